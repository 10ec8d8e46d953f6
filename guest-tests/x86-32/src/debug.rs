//! Code that is run step by step or with breakpoints, and the debug traps that come of it (Intel SDM vol. 3, chapter 18).

use core::arch::{asm, naked_asm};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

use crate::descriptors::{self, GateDpl};
use crate::interrupts::{Fault, expect_fault, restore_gate};
use crate::memory::Page;
use crate::processor;
use x86::irq::DEBUG_VECTOR;

/// EFLAGS.TF: single steps.
pub const SINGLE_STEP: u32 = arch::RFLAGS_TF as u32;
/// EFLAGS.RF.
pub const RESUME: u32 = arch::RFLAGS_RF as u32;
/// DR6.BS.
pub const DR6_STEP: u32 = arch::DR6_BS as u32;
/// DR6.BD.
pub const DR6_ACCESS: u32 = arch::DR6_BD as u32;
/// DR6 without a cause.
pub const DR6_NONE: u32 = arch::reset::DR6 as u32;
/// DR7 without a breakpoint.
pub const DR7_NONE: u32 = arch::reset::DR7 as u32;
/// DR7.GD.
pub const DR7_DETECT: u32 = arch::DR7_GD as u32;

const RFLAGS_FIXED: u32 = arch::RFLAGS_FIXED as u32;

/// How many traps are noted.
const MOST: usize = 8;

/// What a breakpoint waits for: R/W of DR7.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The execution of an instruction.
    Execution = 0,
    /// A write.
    Write = 1,
    /// An access to a port, if CR4.DE is set.
    Port = 2,
    /// A read or a write.
    Access = 3,
}

/// DR7 with breakpoint `number` for `kind`, `bytes` (1, 2 or 4) long.
pub const fn dr7(number: u32, kind: Kind, bytes: u32) -> u32 {
    DR7_NONE | 1 << (2 * number) | ((bytes - 1) << 2 | kind as u32) << (16 + 4 * number)
}

/// Registers that code is given.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Input {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
    /// ESI.
    pub esi: u32,
    /// EDI.
    pub edi: u32,
}

/// What is to be run.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// It must leave ESP and EBP as they are.
    pub code: &'a [u8],
    /// The registers.
    pub input: Input,
    /// EFLAGS.
    pub eflags: u32,
    /// DR0 and DR1; the others are 0.
    pub breakpoints: [u32; 2],
    /// DR7.
    pub dr7: u32,
}

/// One #DB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trap {
    /// Where it came, in bytes from the beginning of the code.
    pub at: u32,
    /// EFLAGS.
    pub eflags: u32,
    /// DR6.
    pub dr6: u32,
    /// DR7, in the handler.
    pub dr7: u32,
}

/// The traps of a run.
#[derive(Clone, Copy, Debug)]
pub struct Traps {
    /// How many there were.
    pub count: usize,
    /// The first ones.
    pub first: [Trap; MOST],
    /// Another exception, which ended the run.
    pub exception: Option<Fault>,
}

/// How many traps there were, and where each of the first ones came, with DR6.
pub type Places<const N: usize> = (usize, [(u32, u32); N]);

impl Traps {
    /// How many there were, where each came, and DR6 without what is always set; zeroes behind the last.
    ///
    /// # Errors
    /// The vector of another exception, and where it came.
    pub fn places<const N: usize>(&self) -> Result<Places<N>, (u32, u32)> {
        match self.exception {
            Some(fault) => Err((fault.frame.vector, fault.frame.eip.wrapping_sub(CODE.load(Relaxed)))),
            None => Ok((self.count, core::array::from_fn(|n| (self.first[n].at, self.first[n].dr6 & !DR6_NONE)))),
        }
    }
}

struct Noted {
    at: AtomicU32,
    eflags: AtomicU32,
    dr6: AtomicU32,
    dr7: AtomicU32,
}

static NOTED: [Noted; MOST] = [const {
    Noted { at: AtomicU32::new(0), eflags: AtomicU32::new(0), dr6: AtomicU32::new(0), dr7: AtomicU32::new(0) }
}; MOST];
static COUNT: AtomicU32 = AtomicU32::new(0);
/// DR6 may have no cause although there is one.
static INFERS: AtomicBool = AtomicBool::new(false);
/// DR0 and DR1, where they are breakpoints at instructions.
static INSTRUCTIONS: [AtomicU32; 2] = [const { AtomicU32::new(0) }; 2];
/// Where the code is, and where it ends.
static CODE: AtomicU32 = AtomicU32::new(0);
static END: AtomicU32 = AtomicU32::new(0);

/// Runs `run` in `page`, behind a POPFD. Single steps end with it.
pub fn trace(page: Page, run: &Run<'_>) -> Traps {
    const POPFD: u8 = 0x9d;
    const NOP: u8 = 0x90;
    const RET: u8 = 0xc3;
    page.write(0, &[POPFD]);
    page.write(1, run.code);
    page.write(1 + run.code.len(), &[NOP, NOP, NOP, NOP, RET]);
    CODE.store(page.address() + 1, Relaxed);
    END.store(page.address() + 1 + run.code.len() as u32, Relaxed);
    COUNT.store(0, Relaxed);
    for Noted { at, eflags, dr6, dr7 } in &NOTED {
        [at, eflags, dr6, dr7].into_iter().for_each(|field| field.store(0, Relaxed));
    }
    descriptors::set_gate(DEBUG_VECTOR.into(), debug_trap as *const () as u32, GateDpl::Kernel);
    set_dr6(DR6_NONE);
    let [dr0, dr1] = run.breakpoints;
    for (number, (place, address)) in INSTRUCTIONS.iter().zip(run.breakpoints).enumerate() {
        let is_execution = run.dr7 >> (2 * number) & 1 != 0 && run.dr7 >> (16 + 4 * number) & 3 == 0;
        place.store(if is_execution { address } else { 0 }, Relaxed);
    }
    processor::set_breakpoints([dr0, dr1, 0, 0], run.dr7);
    // SAFETY: the caller's code comes back, by the RET behind it.
    let exception = expect_fault(|| unsafe { call_with(page.address(), &run.input, run.eflags | RFLAGS_FIXED) });
    processor::set_breakpoints([0; 4], DR7_NONE);
    restore_gate(DEBUG_VECTOR.into());
    Traps {
        count: COUNT.load(Relaxed) as usize,
        first: core::array::from_fn(|n| Trap {
            at: NOTED[n].at.load(Relaxed),
            eflags: NOTED[n].eflags.load(Relaxed),
            dr6: NOTED[n].dr6.load(Relaxed),
            dr7: NOTED[n].dr7.load(Relaxed),
        }),
        exception,
    }
}

fn dr6() -> u32 {
    let value;
    // SAFETY: reading it has no effect.
    unsafe { asm!("mov {:e}, dr6", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

fn set_dr6(value: u32) {
    // SAFETY: it tells of the past alone.
    unsafe { asm!("mov dr6, {:e}", in(reg) value, options(nomem, nostack, preserves_flags)) };
}

fn read_dr7() -> u32 {
    let value;
    // SAFETY: reading it has no effect.
    unsafe { asm!("mov {:e}, dr7", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Has these registers and flags at `at`, whose first instruction is a POPFD and whose last is a RET.
#[unsafe(naked)]
unsafe extern "C" fn call_with(at: u32, input: &Input, eflags: u32) {
    naked_asm!(
        "push ebx",
        "push ebp",
        "push esi",
        "push edi",
        // Arguments are behind four pushes and the return address.
        "mov eax, [esp + 20]",
        "mov ebp, [esp + 24]",
        "mov edx, [esp + 28]",
        "pushfd",
        "call 2f",
        "popfd",
        "pop edi",
        "pop esi",
        "pop ebp",
        "pop ebx",
        "ret",
        // The code's RET takes the return address, its POPFD what is above.
        "2: push edx",
        "push eax",
        "mov eax, [ebp]",
        "mov ebx, [ebp + 4]",
        "mov ecx, [ebp + 8]",
        "mov edx, [ebp + 12]",
        "mov esi, [ebp + 16]",
        "mov edi, [ebp + 20]",
        "ret",
    )
}

/// What PUSHAD and the processor leave on the stack.
#[repr(C)]
struct Frame {
    registers: [u32; 8],
    eip: u32,
    cs: u32,
    eflags: u32,
}

#[unsafe(naked)]
extern "C" fn debug_trap() {
    naked_asm!(
        "pushad",
        "cld",
        "mov eax, esp",
        "push eax",
        "call {note}",
        "add esp, 4",
        "popad",
        "iretd",
        note = sym note,
    )
}

/// From now on, the cause of a trap is inferred where DR6 has none.
pub fn infer_causes(infers: bool) {
    INFERS.store(infers, Relaxed);
}

/// DR6, or what it should be.
fn cause(frame: &Frame) -> u32 {
    let found = dr6();
    if found & !DR6_NONE != 0 || !INFERS.load(Relaxed) {
        return found;
    }
    let step = if frame.eflags & SINGLE_STEP != 0 { DR6_STEP } else { 0 };
    let met = (0..).zip(&INSTRUCTIONS).filter(|(_, place)| place.load(Relaxed) == frame.eip);
    met.fold(found | step, |found, (number, _)| found | 1 << number)
}

/// Counts first: with GD still set the accesses below trap again, and again.
extern "C" fn note(frame: &mut Frame) {
    let number = COUNT.fetch_add(1, Relaxed) as usize;
    let Some(noted) = NOTED.get(number) else {
        frame.eflags = frame.eflags & !SINGLE_STEP | RESUME;
        return;
    };
    noted.at.store(frame.eip.wrapping_sub(CODE.load(Relaxed)), Relaxed);
    noted.eflags.store(frame.eflags, Relaxed);
    let found = cause(frame);
    noted.dr6.store(found, Relaxed);
    noted.dr7.store(read_dr7(), Relaxed);
    set_dr6(DR6_NONE);
    if frame.eip >= END.load(Relaxed) || frame.eip < CODE.load(Relaxed) {
        frame.eflags &= !SINGLE_STEP;
    }
    // An instruction breakpoint is met once.
    if found & arch::DR6_BREAKPOINTS as u32 != 0 {
        frame.eflags |= RESUME;
    }
}
