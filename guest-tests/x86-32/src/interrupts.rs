//! Exceptions that tests expect.

use core::arch::{asm, global_asm, naked_asm};
use core::ptr;

pub use base::interrupts::{NMI, enable, halt_until_interrupt, handle};
use base::recovery::{Recoveries, Recovery};
use base::{interrupts, pic};

use crate::descriptors::{self, GateDpl};
use crate::memory::Page;
use crate::processor;
use x86::irq::{
    BREAKPOINT_VECTOR, DIVIDE_ERROR_VECTOR, GENERAL_PROTECTION_FAULT_VECTOR, INVALID_OPCODE_VECTOR, PAGE_FAULT_VECTOR,
};

/// What the stubs leave on the stack: the registers they save (PUSHAD), the vector they add, the frame that the processor wrote.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// EDI, ESI, EBP, ESP (of no use), EBX, EDX, ECX, EAX.
    pub registers: [u32; 8],
    /// The vector.
    pub vector: u32,
    /// The error code; 0 for vectors without one.
    pub error: u32,
    /// EIP: of the instruction itself for faults, of the next for traps and interrupts.
    pub eip: u32,
    /// CS.
    pub cs: u32,
    /// EFLAGS.
    pub eflags: u32,
}

/// An exception that was expected.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// The interrupted state.
    pub frame: Frame,
    /// CR2, as it was in the handler.
    pub cr2: u32,
}

/// Divide error.
pub const DIVIDE_ERROR: u32 = DIVIDE_ERROR_VECTOR as u32;
/// Breakpoint.
pub const BREAKPOINT: u32 = BREAKPOINT_VECTOR as u32;
/// Invalid opcode.
pub const INVALID_OPCODE: u32 = INVALID_OPCODE_VECTOR as u32;
/// General protection.
pub const GENERAL_PROTECTION: u32 = GENERAL_PROTECTION_FAULT_VECTOR as u32;
/// Page fault.
pub const PAGE_FAULT: u32 = PAGE_FAULT_VECTOR as u32;
/// A vector for INT n, which user mode may raise, too.
pub const SOFTWARE: u32 = 0x80;

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
    pushl $0
    .endif
    pushl $vector
    jmp interrupt_common
    .set vector, vector + 1
.endr

// The stack is taken as it is: `dispatch` needs no alignment. Its answer is where to go on, if not where it was. It copies the frame
// by a string instruction, and tests interrupt code that has a segment of its own in ES.
interrupt_common:
    pushal
    cld
    movl %esp, %eax
    pushl %es
    movl ${data}, %ecx
    movl %ecx, %es
    pushl %eax
    call {dispatch}
    addl $4, %esp
    popl %es
    testl %eax, %eax
    jnz 2f
    popal
    addl $8, %esp
    iretl
2:  movl {esp}(%eax), %esp
    jmpl *{eip}(%eax)
"#,
    dispatch = sym dispatch,
    data = const descriptors::DATA,
    esp = const Recovery::<Fault>::STACK,
    eip = const Recovery::<Fault>::INSTRUCTION,
    options(att_syntax)
);

const STUB_SIZE: u32 = 16;

unsafe extern "C" {
    safe static interrupt_stubs: u8;
}

/// Builds and loads the IDT, and masks all lines of the 8259s: firmware leaves the clock's open.
pub(crate) fn init() {
    pic::init();
    (0..256).for_each(restore_gate);
    descriptors::load_idt();
}

/// Has the library handle `vector`.
pub(crate) fn restore_gate(vector: u32) {
    let first = &raw const interrupt_stubs as u32;
    let dpl = if vector == SOFTWARE { GateDpl::User } else { GateDpl::Kernel };
    descriptors::set_gate(vector as usize, first + vector * STUB_SIZE, dpl);
}

/// Has `vector` come back at once from now on, to what it interrupts. (It must have no error code.)
pub fn ignore(vector: u8) {
    #[unsafe(naked)]
    extern "C" fn back() {
        naked_asm!("iretd")
    }
    descriptors::set_gate(vector.into(), back as *const () as u32, GateDpl::Kernel);
}

/// UD2.
pub fn ud2() {
    // SAFETY: it raises #UD, and nothing else.
    unsafe { asm!("ud2") };
}

static RECOVERIES: Recoveries<Fault> = Recoveries::new();

/// Runs `body`, and gives the exception or software interrupt that ended it if there was one. What `body` owns is then not
/// dropped.
pub fn expect_fault<F: FnOnce()>(body: F) -> Option<Fault> {
    // SAFETY: it is such a function.
    unsafe { RECOVERIES.expect(body, call_recoverably) }
}

/// See [`CallRecoverably`](base::recovery::CallRecoverably). Segments are the kernel's afterwards.
#[unsafe(naked)]
unsafe extern "C" fn call_recoverably(function: *const (), argument: *mut (), recovery: &Recovery<Fault>) {
    naked_asm!(
        "push ebx",
        "push ebp",
        "push esi",
        "push edi",
        "pushfd",
        // Arguments are behind five pushes and the return address.
        "mov eax, [esp + 24]",
        "mov ecx, [esp + 28]",
        "mov edx, [esp + 32]",
        "mov [edx + {esp}], esp",
        "mov dword ptr [edx + {eip}], offset recovered",
        "sub esp, 8",
        "push ecx",
        "call eax",
        "add esp, 12",
        "recovered:",
        "mov eax, {data}",
        "mov ds, eax",
        "mov es, eax",
        "popfd",
        "pop edi",
        "pop esi",
        "pop ebp",
        "pop ebx",
        "ret",
        esp = const Recovery::<Fault>::STACK,
        eip = const Recovery::<Fault>::INSTRUCTION,
        data = const descriptors::DATA,
    )
}

extern "C" fn dispatch(frame: &Frame) -> *const Recovery<Fault> {
    if interrupts::handled(frame.vector as u8) {
        return ptr::null();
    }
    RECOVERIES.take(Fault { frame: *frame, cr2: processor::cr2() })
}

/// Raises #UD for ever on the stack whose top is at `top`, in `page`: the handler returns to the UD2. Each delivery writes the 12
/// bytes below the top, and nothing else does.
pub fn raise_for_ever(page: Page, top: u32) -> ! {
    assert!((12..=4096).contains(&top), "the frame would be another page's");
    descriptors::set_gate(INVALID_OPCODE as usize, return_at_once as *const () as u32, GateDpl::Kernel);
    // SAFETY: the stack is in a page that no Rust object has, and large enough for what is written there; it is not left again.
    unsafe { asm!("mov esp, {0:e}", "ud2", in(reg) page.address() + top, options(noreturn)) }
}

#[unsafe(naked)]
extern "C" fn return_at_once() {
    naked_asm!("iretd")
}
