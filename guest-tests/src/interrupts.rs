//! Exceptions that tests expect, and interrupts that they count.

use core::arch::{asm, global_asm, naked_asm};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use base::interrupts::handled;
pub use base::interrupts::{
    NMI, after_the_halt, disable, enable, halt_until_interrupt, handle, handle_no_more, held_off,
};
use base::recovery::{Recoveries, Recovery};

use crate::descriptors::{self, GateDpl};
use crate::{pic, processor, uart};
use x86::irq::{
    BREAKPOINT_VECTOR, DIVIDE_ERROR_VECTOR, GENERAL_PROTECTION_FAULT_VECTOR, INVALID_OPCODE_VECTOR, PAGE_FAULT_VECTOR,
};

/// What the stubs leave on the stack: the registers they save, the vector they add, the frame that the processor wrote.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// RAX.
    pub rax: u64,
    /// RBX.
    pub rbx: u64,
    /// RCX.
    pub rcx: u64,
    /// RDX.
    pub rdx: u64,
    /// RSI.
    pub rsi: u64,
    /// RDI.
    pub rdi: u64,
    /// RBP.
    pub rbp: u64,
    /// R8 to R15.
    pub r8_to_r15: [u64; 8],
    /// The vector.
    pub vector: u64,
    /// The error code; 0 for vectors without one.
    pub error: u64,
    /// RIP: of the instruction itself for faults, of the next for traps and interrupts.
    pub rip: u64,
    /// CS.
    pub cs: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// RSP.
    pub rsp: u64,
    /// SS.
    pub ss: u64,
}

/// An exception that was expected.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// The interrupted state.
    pub frame: Frame,
    /// CR2, as it was in the handler.
    pub cr2: u64,
}

/// Divide error.
pub const DIVIDE_ERROR: u64 = DIVIDE_ERROR_VECTOR as u64;
/// Breakpoint.
pub const BREAKPOINT: u64 = BREAKPOINT_VECTOR as u64;
/// Invalid opcode.
pub const INVALID_OPCODE: u64 = INVALID_OPCODE_VECTOR as u64;
/// General protection.
pub const GENERAL_PROTECTION: u64 = GENERAL_PROTECTION_FAULT_VECTOR as u64;
/// Page fault.
pub const PAGE_FAULT: u64 = PAGE_FAULT_VECTOR as u64;
/// A vector for INT n, which user mode may raise, too.
pub const SOFTWARE: u64 = 0x80;

global_asm!(
    r#"
.text
// 256 stubs of 16 bytes: an error code where the processor pushes none, and the vector.
.balign 16
interrupt_stubs:
.set vector, 0
.rept 256
    .balign 16
    .if (vector != 8) & ((vector < 10) | (vector > 14)) & (vector != 17) & (vector != 21) & (vector != 29) & (vector != 30)
    pushq $0
    .endif
    pushq $vector
    jmp interrupt_common
    .set vector, vector + 1
.endr

interrupt_common:
    pushq %r15
    pushq %r14
    pushq %r13
    pushq %r12
    pushq %r11
    pushq %r10
    pushq %r9
    pushq %r8
    pushq %rbp
    pushq %rdi
    pushq %rsi
    pushq %rdx
    pushq %rcx
    pushq %rbx
    pushq %rax
    cld
    movq %rsp, %rdi
    call {dispatch}
    popq %rax
    popq %rbx
    popq %rcx
    popq %rdx
    popq %rsi
    popq %rdi
    popq %rbp
    popq %r8
    popq %r9
    popq %r10
    popq %r11
    popq %r12
    popq %r13
    popq %r14
    popq %r15
    addq $16, %rsp
    iretq
"#,
    dispatch = sym dispatch,
    options(att_syntax)
);

const STUB_SIZE: u64 = 16;

unsafe extern "C" {
    safe static interrupt_stubs: u8;
}

/// Builds and loads the IDT, and masks all lines of the 8259s: firmware leaves the clock's open.
pub(crate) fn init() {
    pic::init();
    let first = &raw const interrupt_stubs as u64;
    for vector in 0..256 {
        let dpl = if vector == SOFTWARE { GateDpl::User } else { GateDpl::Kernel };
        descriptors::set_gate(vector as usize, first + vector * STUB_SIZE, dpl);
    }
    descriptors::load_idt();
}

static RECOVERIES: Recoveries<Fault> = Recoveries::new();

/// Runs `body`, and gives the exception or software interrupt that ended it if there was one. What `body` owns is then not
/// dropped.
pub fn expect_fault<F: FnOnce()>(body: F) -> Option<Fault> {
    // SAFETY: it is such a function.
    unsafe { RECOVERIES.expect(body, call_recoverably) }
}

/// See [`CallRecoverably`](base::recovery::CallRecoverably).
#[unsafe(naked)]
unsafe extern "C" fn call_recoverably(function: *const (), argument: *mut (), recovery: &Recovery<Fault>) {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "pushfq",
        "mov [rdx + {rsp}], rsp",
        "lea rax, [rip + 2f]",
        "mov [rdx + {rip}], rax",
        "mov rax, rdi",
        "mov rdi, rsi",
        "call rax",
        "2:",
        "popfq",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        rsp = const Recovery::<Fault>::STACK,
        rip = const Recovery::<Fault>::INSTRUCTION,
    )
}

/// What is known of a line's interrupts.
struct Line {
    count: AtomicU64,
    rip: AtomicU64,
}

static LINES: [Line; pic::LINES as usize] =
    [const { Line { count: AtomicU64::new(0), rip: AtomicU64::new(0) } }; pic::LINES as usize];

/// How many interrupts `line` of the PIC has had.
pub fn count(line: u8) -> u64 {
    LINES[usize::from(line)].count.load(Relaxed)
}

/// The RIP that `line`'s last interrupt interrupted.
pub fn last_rip(line: u8) -> u64 {
    LINES[usize::from(line)].rip.load(Relaxed)
}

extern "C" fn dispatch(frame: &mut Frame) {
    const FIRST: u64 = pic::VECTOR_BASE as u64;
    const LAST: u64 = FIRST + pic::LINES as u64 - 1;
    match frame.vector {
        _ if handled(frame.vector as u8) => {}
        FIRST..=LAST => interrupt((frame.vector - FIRST) as u8, frame),
        _ => exception(frame),
    }
}

fn interrupt(line: u8, frame: &Frame) {
    if line == uart::IRQ {
        uart::interrupt_source();
    }
    let seen = &LINES[usize::from(line)];
    seen.count.fetch_add(1, Relaxed);
    seen.rip.store(frame.rip, Relaxed);
    pic::end_of_interrupt(line);
}

fn exception(frame: &mut Frame) {
    let fault = Fault { frame: *frame, cr2: processor::cr2() };
    let recovery = RECOVERIES.take(fault);
    frame.rip = recovery.instruction() as u64;
    frame.rsp = recovery.stack() as u64;
    frame.cs = u64::from(descriptors::CODE64);
    frame.ss = u64::from(descriptors::DATA);
    // DF, TF and IF as the code around expects them; `call_recoverably` brings back the rest.
    frame.rflags = 1 << 1;
}

/// UD2, at the function's own address.
#[unsafe(naked)]
pub extern "C" fn ud2() {
    naked_asm!("ud2", "ret")
}

/// INT3, one byte at the function's own address.
#[unsafe(naked)]
pub extern "C" fn int3() {
    naked_asm!("int3", "ret")
}

/// INT 0x80 ([`SOFTWARE`]), two bytes at the function's own address.
#[unsafe(naked)]
pub extern "C" fn int_0x80() {
    naked_asm!("int 0x80", "ret")
}

/// DIV by zero, at the function's own address.
#[unsafe(naked)]
pub extern "C" fn divide_by(divisor: u64) {
    naked_asm!("div rdi", "ret")
}

/// STI, one instruction, CLI: a pending interrupt arrives between the last two.
#[unsafe(naked)]
pub extern "C" fn open_for_one_instruction() {
    naked_asm!("sti", "nop", "cli", "ret")
}

/// The RIP that an interrupt pending before [`open_for_one_instruction`] interrupts: STI and NOP have a byte each.
pub fn after_the_one_instruction() -> u64 {
    open_for_one_instruction as *const () as u64 + 2
}

/// STI, CLI: the shadow of the one covers the other, nothing arrives.
pub fn open_for_no_instruction() {
    // SAFETY: the handlers preserve all that they interrupt.
    unsafe { asm!("sti", "cli") };
}
