//! Accesses that may fault.
//!
//! The handler of SIGSEGV fills in the [`Fault`] that the probe's second argument points to, and has the probe return. A fault
//! anywhere else ends the process as failed.

use ::arch::page_fault;
use core::ptr;

use linux_raw_sys::general::{MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE, SEGV_ACCERR, SEGV_MAPERR};

use crate::arch::{self, SignalContext, probe_execute, probe_load, probe_store};
use crate::exit::{self, GuestStatus};
use crate::sys::{self, Mapping, SignalInfo};

/// FaultCause an access faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FaultCause {
    /// Nothing is mapped there.
    Unmapped,
    /// What is mapped does not permit it.
    Forbidden,
}

/// An access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Load,
    Store,
    Execute,
}

/// The bits of a page fault's error code, as wide as a signal tells it.
const ERROR_WRITE: usize = page_fault::WRITE as usize;
const ERROR_USER: usize = page_fault::USER as usize;
const ERROR_FETCH: usize = page_fault::FETCH as usize;

/// What the kernel said of a fault.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    happened: bool,
    code: i32,
    address: usize,
    cr2: usize,
    error_code: usize,
}

impl Fault {
    const NONE: Self = Self { happened: false, code: 0, address: 0, cr2: 0, error_code: 0 };
}

/// What came of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Probed {
    /// It was done; a load's word.
    Done(u32),
    /// It faulted for this reason.
    Faulted(FaultCause),
    /// It faulted, but si_code, si_addr, CR2 or the error code is not what this access has: these are the four.
    Odd(i32, usize, usize, usize),
}

/// Makes the access. A store stores `word`; what is executed has to be a RET.
pub(crate) fn probe(access: Access, address: usize, word: u32) -> Probed {
    let mut fault = Fault::NONE;
    let slot = &raw mut fault;
    let value = match access {
        // SAFETY: it reads a word, or faults; `slot` is valid meanwhile.
        Access::Load => unsafe { probe_load(address, slot) },
        Access::Store => {
            // SAFETY: the test's own window is there, in which there are no Rust objects.
            unsafe { probe_store(address, slot, word) };
            word
        }
        Access::Execute => {
            // SAFETY: the code is a RET, says the caller.
            unsafe { probe_execute(address, slot) };
            0
        }
    };
    // SAFETY: the handler may have written it, unseen by the compiler.
    let fault = unsafe { ptr::read_volatile(slot) };
    if fault.happened { judge(access, address, fault) } else { Probed::Done(value) }
}

fn judge(access: Access, address: usize, fault: Fault) -> Probed {
    let Fault { code, address: told, cr2, error_code, .. } = fault;
    let expected = ERROR_USER | if access == Access::Store { ERROR_WRITE } else { 0 };
    let is_fetch = error_code & ERROR_FETCH != 0;
    let fits = told == address
        && cr2 == address
        && error_code & (ERROR_USER | ERROR_WRITE) == expected
        && (!is_fetch || access == Access::Execute);
    match u32::try_from(code) {
        Ok(SEGV_MAPERR) if fits => Probed::Faulted(FaultCause::Unmapped),
        Ok(SEGV_ACCERR) if fits => Probed::Faulted(FaultCause::Forbidden),
        _ => Probed::Odd(code, told, cr2, error_code),
    }
}

/// Begins to handle faults; before that, one ends the process by its signal.
pub(crate) fn handle_faults() {
    sys::handle_sigsegv(on_sigsegv);
}

extern "C" fn on_sigsegv(_: i32, info: *const SignalInfo, context: *mut SignalContext) {
    // SAFETY: the kernel hands it over, for the time of this call.
    let info = unsafe { &*info };
    // SAFETY: as above.
    let context = unsafe { &mut *context };
    let instruction = context.instruction();
    // A fetch that faults is at its own address.
    if !arch::is_probe(instruction) && instruction != info.address {
        crate::println!("Bail out! SIGSEGV at {instruction:#x}, si_code {}, si_addr {:#x}", info.code, info.address);
        exit::end(GuestStatus::Failed);
    }
    let fault = Fault {
        happened: true,
        code: info.code,
        address: info.address,
        cr2: context.cr2,
        error_code: context.error_code,
    };
    let slot = context.second_argument() as *mut Fault;
    // SAFETY: it is a probe's second argument.
    unsafe { slot.write_volatile(fault) };
    context.go_on_at(arch::landing());
}

/// Whether a page that permits no execution can't be executed: 32-bit kernels without PAE have no such pages.
pub(crate) fn has_no_execute() -> bool {
    const RET: u32 = 0xc3;
    let mapping =
        Mapping { protection: PROT_READ | PROT_WRITE, flags: MAP_PRIVATE | MAP_ANONYMOUS, file: 0, file_page: 0 };
    // SAFETY: the kernel takes a place where nothing is.
    let page = unsafe { sys::map(0, 1, mapping) }.expect("a page");
    let stored = probe(Access::Store, page, RET);
    let executed = probe(Access::Execute, page, 0);
    // SAFETY: the page from above.
    let unmapped = unsafe { sys::unmap(page, 1) };
    assert_eq!((stored, unmapped), (Probed::Done(RET), Ok(())));
    executed != Probed::Done(0)
}
