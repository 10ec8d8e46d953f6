//! Whether a virtual machine is what a 32-bit kernel expects: exceptions without paging, with two levels and with PAE, what
//! CPUID says of long mode, PDPTEs, and this hypervisor's hypercalls.
//!
//! `pdptes=held` demands what a processor does that has no nested paging: PDPTEs are read, and checked, when CR3 is loaded, and
//! not again before the next time.
#![no_std]
#![no_main]

use abi::hypercall::ABI_VERSION;
use abi::options::guest::key;
use arch::page_fault;
use core::arch::naked_asm;
use core::sync::atomic::Ordering::Relaxed;

use guest32::boot::Boot;
use guest32::cpuid::{self, Hypervisor};
use guest32::exit::GuestStatus;
use guest32::interrupts::{
    BREAKPOINT, DIVIDE_ERROR, Fault, GENERAL_PROTECTION, INVALID_OPCODE, PAGE_FAULT, SOFTWARE, expect_fault,
};
use guest32::ktap::{self, Outcome};
use guest32::memory::{self, Page, Pages};
use guest32::paging::{self, Mode, NO_EXECUTE, PRESENT, Space, USER, WRITABLE};
use guest32::{cases, check, check_eq, processor, skip_unless, user};

guest32::main!(main);

const AT: u32 = 1 << 30;
const USER_CODE: u32 = AT + 4096;

fn main(boot: &Boot) -> GuestStatus {
    ktap::run(
        boot,
        cases![
            paging_comes_and_goes,
            invalid_opcode,
            divide_error,
            breakpoint,
            software_interrupt,
            unknown_msr,
            page_fault,
            page_fault_in_user_mode,
            long_mode_only_where_cpuid_has_it,
            no_execute_is_reserved_without_nxe,
            pdpte_with_a_reserved_bit,
            pdptes_are_held,
            pdptes_are_read_by_writes_of_cr4,
            hypercalls,
            hypercall_of_user_mode,
        ],
    )
}

/// Runs `test` without paging, and in either mode, with the space if there is one.
fn in_each_mode(test: impl Fn(Option<&mut World>) -> Outcome) -> Outcome {
    test(None)?;
    in_both_modes(|world| test(Some(world)))
}

/// Runs `test` in either mode of paging.
fn in_both_modes(test: impl Fn(&mut World) -> Outcome) -> Outcome {
    [Mode::TwoLevel, Mode::Pae].into_iter().try_for_each(|mode| with(mode, &test))
}

/// Runs `test` with paging in `mode`, and leaves it.
fn with(mode: Mode, test: impl Fn(&mut World) -> Outcome) -> Outcome {
    let mut pages = Pages::from(memory::START);
    let space = Space::new(mode, &mut pages);
    let mut world = World { mode, space, pages };
    space.enter();
    let outcome = test(&mut world);
    paging::leave();
    outcome
}

/// An address space that is in use.
struct World {
    mode: Mode,
    space: Space,
    pages: Pages,
}

impl World {
    /// Maps a new page at `linear`.
    fn map(&mut self, linear: u32, rights: u64) -> Page {
        let page = self.pages.take();
        self.space.pte(linear, &mut self.pages).set(u64::from(page.address()) | rights);
        page
    }

    /// Runs `code`, which ends in a fault or in INT 0x80, in user mode.
    fn run_in_user_mode(&mut self, code: &[u8]) -> Fault {
        self.map(USER_CODE, PRESENT | USER).write(0, code);
        user::run(USER_CODE, AT)
    }
}

fn paging_comes_and_goes(_: &Boot) -> Outcome {
    in_both_modes(|world| {
        let page = world.map(AT, PRESENT | WRITABLE);
        memory::store(AT, world.space.cr3());
        paging::leave();
        check_eq!(page.dword(0).load(Relaxed), world.space.cr3(), "in {:?}", world.mode);
        check_eq!(processor::cr3(), world.space.cr3());
        world.space.enter();
        check_eq!(memory::peek(AT), world.space.cr3(), "in {:?}", world.mode);
        Ok(())
    })
}

#[unsafe(naked)]
extern "C" fn ud2() {
    naked_asm!("ud2", "ret")
}

#[unsafe(naked)]
extern "C" fn divide_by_0() {
    naked_asm!("xor ecx, ecx", "div ecx", "ret")
}

#[unsafe(naked)]
extern "C" fn int3() {
    naked_asm!("int3", "ret")
}

#[unsafe(naked)]
extern "C" fn int_0x80() {
    naked_asm!("int 0x80", "ret")
}

/// RDMSR, behind four bytes of MOV.
#[unsafe(naked)]
extern "C" fn rdmsr(number: u32) {
    naked_asm!("mov ecx, [esp + 4]", "rdmsr", "ret")
}

/// `function` raises `vector`, with an error code of 0, at `offset` from its beginning.
fn raises(function: extern "C" fn(), vector: u32, offset: u32) -> Outcome {
    in_each_mode(|_| told(expect_fault(|| function()), vector, function as *const () as u32 + offset))
}

fn told(fault: Option<Fault>, vector: u32, eip: u32) -> Outcome {
    let told = fault.map(|Fault { frame, .. }| (frame.vector, frame.error, frame.eip));
    check_eq!(told, Some((vector, 0, eip)));
    Ok(())
}

fn invalid_opcode(_: &Boot) -> Outcome {
    raises(ud2, INVALID_OPCODE, 0)
}

fn divide_error(_: &Boot) -> Outcome {
    raises(divide_by_0, DIVIDE_ERROR, 2)
}

/// A trap: EIP is behind the one byte of INT3.
fn breakpoint(_: &Boot) -> Outcome {
    raises(int3, BREAKPOINT, 1)
}

/// EIP is behind the two bytes of INT n.
fn software_interrupt(_: &Boot) -> Outcome {
    raises(int_0x80, SOFTWARE, 2)
}

/// An exception that the hypervisor raises. Emulators ignore MSRs that they do not know.
fn unknown_msr(_: &Boot) -> Outcome {
    skip_unless!(is_ours(), "only this hypervisor promises it");
    const UNKNOWN: u32 = 0x4856_0bad;
    in_each_mode(|_| told(expect_fault(|| rdmsr(UNKNOWN)), GENERAL_PROTECTION, rdmsr as *const () as u32 + 4))
}

fn page_fault(_: &Boot) -> Outcome {
    in_both_modes(|world| {
        let told = expect_fault(|| memory::load(AT)).map(|fault| (fault.frame.vector, fault.frame.error, fault.cr2));
        check_eq!(told, Some((PAGE_FAULT, 0, AT)), "in {:?}", world.mode);
        world.map(AT, PRESENT);
        check!(expect_fault(|| memory::load(AT)).is_none(), "in {:?}", world.mode);
        Ok(())
    })
}

/// From ring 3 the handler gets the stack of the TSS, and U in the error code.
fn page_fault_in_user_mode(_: &Boot) -> Outcome {
    in_both_modes(|world| {
        // MOV EAX, [ECX].
        let fault = world.run_in_user_mode(&[0x8b, 0x01]);
        check_eq!((fault.frame.vector, fault.frame.error, fault.cr2), (PAGE_FAULT, page_fault::USER, AT));
        check_eq!((fault.frame.eip, fault.frame.cs & 3), (USER_CODE, 3));
        Ok(())
    })
}

/// EFER.LME is reserved without it (Intel SDM vol. 3, section 2.2.1).
fn long_mode_only_where_cpuid_has_it(_: &Boot) -> Outcome {
    let before = processor::efer();
    let fault = expect_fault(|| processor::set_long_mode_enable(true));
    if processor::has_long_mode() {
        check!(fault.is_none(), "{fault:x?}");
        check!(processor::efer() != before);
        processor::set_long_mode_enable(false);
    } else {
        check_eq!(fault.map(|fault| (fault.frame.vector, fault.frame.error)), Some((GENERAL_PROTECTION, 0)));
    }
    check_eq!(processor::efer(), before);
    Ok(())
}

/// EFER.NXE says what bit 63 of an entry is that stays as it was.
fn no_execute_is_reserved_without_nxe(_: &Boot) -> Outcome {
    skip_unless!(processor::has_nx(), "no NX");
    with(Mode::Pae, |world| {
        world.map(AT, PRESENT | NO_EXECUTE);
        for nxe in [true, false, true, false] {
            processor::set_nx(nxe);
            world.space.load();
            let fault = expect_fault(|| memory::load(AT));
            let is_reserved = fault.is_some_and(|fault| fault.frame.vector == PAGE_FAULT && has_reserved(&fault));
            check!(if nxe { fault.is_none() } else { is_reserved }, "with NXE {nxe}: {fault:x?}");
        }
        Ok(())
    })
}

/// Whether the error code of a page fault has RSVD set. QEMU's TCG leaves out P, which belongs to it.
fn has_reserved(fault: &Fault) -> bool {
    fault.frame.error & page_fault::RESERVED != 0
}

/// Whether PDPTEs have to be held.
fn are_held(boot: &Boot) -> bool {
    boot.text_word(key::PDPTES) == Some("held")
}

/// The load of CR3 fails, and changes nothing. With nested paging a processor may find out when it uses the PDPTE (AMD APM
/// vol. 2, section 15.25.10), and what it then checks is less.
fn pdpte_with_a_reserved_bit(boot: &Boot) -> Outcome {
    let bits: &[u32] = if are_held(boot) { &[1, 2, 5, 6, 7, 8, 51, 63] } else { &[51] };
    // Address bits are not reserved.
    let bits = bits.iter().filter(|&&bit| bit <= 8 || bit >= processor::physical_bits());
    with(Mode::Pae, |world| {
        world.map(AT, PRESENT);
        let wrong = Space::new(Mode::Pae, &mut world.pages);
        let pdpte = wrong.root().qword(1);
        let valid = pdpte.load(Relaxed);
        for &bit in bits.clone() {
            pdpte.store(valid | 1 << bit, Relaxed);
            match expect_fault(|| wrong.load()) {
                Some(fault) => {
                    check_eq!((fault.frame.vector, fault.frame.error), (GENERAL_PROTECTION, 0), "bit {bit}");
                    check_eq!(processor::cr3(), world.space.cr3(), "bit {bit}");
                    check!(expect_fault(|| memory::load(AT)).is_none(), "bit {bit}");
                }
                None => {
                    check!(!are_held(boot), "bit {bit}");
                    let fault = expect_fault(|| memory::load(AT));
                    check!(fault.is_some_and(|fault| has_reserved(&fault)), "bit {bit}: {fault:x?}");
                    world.space.load();
                }
            }
        }
        Ok(())
    })
}

/// Two page directory pointers for `AT`'s gigabyte: the first maps a page there, the second maps nothing.
fn pdptes(world: &mut World) -> [u64; 2] {
    world.map(AT, PRESENT);
    [world.space.root().qword(1).load(Relaxed), u64::from(world.pages.take().address()) | PRESENT]
}

fn is_missing(linear: u32) -> bool {
    processor::invlpg(linear);
    expect_fault(|| memory::load(linear)).is_some_and(|fault| fault.frame.vector == PAGE_FAULT)
}

fn pdptes_are_held(boot: &Boot) -> Outcome {
    skip_unless!(are_held(boot), "with nested paging they need not be");
    with(Mode::Pae, |world| {
        let (values, pdpte) = (pdptes(world), world.space.root().qword(1));
        world.space.load();
        for round in 0..4 {
            pdpte.store(values[1], Relaxed);
            check!(!is_missing(AT), "in round {round}");
            world.space.load();
            check!(is_missing(AT), "in round {round}");
            pdpte.store(values[0], Relaxed);
            check!(is_missing(AT), "in round {round}");
            world.space.load();
        }
        Ok(())
    })
}

/// When they change what there is to translate (Intel SDM vol. 3, section 4.4.1).
fn pdptes_are_read_by_writes_of_cr4(_: &Boot) -> Outcome {
    with(Mode::Pae, |world| {
        let (values, pdpte) = (pdptes(world), world.space.root().qword(1));
        for round in 0..6 {
            let index = round % 2;
            pdpte.store(values[index], Relaxed);
            paging::set_global_pages(round % 4 < 2);
            paging::set_global_pages(round % 4 >= 2);
            check_eq!(is_missing(AT), index == 1, "in round {round}");
        }
        paging::set_global_pages(false);
        Ok(())
    })
}

/// What this hypervisor's calls are numbered by, and what they return.
mod call {
    use abi::hypercall::{Number, Refused};

    pub(super) const NOP: u32 = Number::Nop as u32;
    pub(super) const VERSION: u32 = Number::Version as u32;
    pub(super) const UNKNOWN: u32 = NOP | 0xffff;
    pub(super) const ENOSYS: i32 = Refused::NoSuchCall as i32;
    pub(super) const EPERM: i32 = Refused::NotPermitted as i32;
}

macro_rules! hypercall {
    ($name:ident, $instruction:literal) => {
        /// With all arguments 0.
        #[unsafe(naked)]
        extern "C" fn $name(number: u32) -> i32 {
            naked_asm!(
                "push ebx",
                "push esi",
                "mov eax, [esp + 12]",
                "xor ebx, ebx",
                "xor ecx, ecx",
                "xor edx, edx",
                "xor esi, esi",
                $instruction,
                "pop esi",
                "pop ebx",
                "ret",
            )
        }
    };
}
hypercall!(vmmcall, "vmmcall");
hypercall!(vmcall, "vmcall");

/// Whether it is this hypervisor that runs the guest.
fn is_ours() -> bool {
    cpuid::hypervisor() == Hypervisor::Microhv
}

fn hypercalls(_: &Boot) -> Outcome {
    skip_unless!(is_ours(), "not under this hypervisor");
    in_each_mode(|_| {
        for hypercall in [vmmcall, vmcall] {
            check_eq!(hypercall(call::NOP), 0);
            check_eq!(u64::from(hypercall(call::VERSION).cast_unsigned()), ABI_VERSION);
            for number in [call::UNKNOWN, 0, 1, u32::MAX] {
                check_eq!(hypercall(number), call::ENOSYS, "for {number:#x}");
            }
        }
        Ok(())
    })
}

fn hypercall_of_user_mode(_: &Boot) -> Outcome {
    skip_unless!(is_ours(), "not under this hypervisor");
    in_both_modes(|world| {
        // MOV EAX, NOP; VMMCALL; INT 0x80.
        let [a, b, c, d] = call::NOP.to_le_bytes();
        let fault = world.run_in_user_mode(&[0xb8, a, b, c, d, 0x0f, 0x01, 0xd9, 0xcd, SOFTWARE as u8]);
        check_eq!(fault.frame.vector, SOFTWARE);
        check_eq!(fault.frame.registers[7].cast_signed(), call::EPERM);
        Ok(())
    })
}
