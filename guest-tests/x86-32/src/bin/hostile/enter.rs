//! The way into a mode and back: an input runs in the mode that its [`Plan`] describes, and whatever interrupts it leads back to
//! flat protected mode without paging, where the next input is made.
//!
//! Every gate of the mode's IDT leads to the code here. It trusts no register, and of memory only the GDT's code segment (the
//! processor read that to get here) and what lies in the image.

use core::arch::global_asm;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU16, AtomicU32, Ordering::Relaxed};

use guest32::descriptors::{self, CODE, CODE64, DATA};
use guest32::memory::peek;

use crate::world::{CODE16, DATA16, STACK_TOP, put};

/// Where the code is that runs in real mode.
const LOW: u32 = 0x9000;
const LOW_SIZE: u32 = 0x180;
/// Behind it, from where real mode loads the GDTR on the way back.
const LOW_GDTR: u32 = LOW + 0x1f0;
/// The segment and the offset of the frame that real mode starts with.
pub(crate) const REAL_STACK: u16 = 0x2000;
pub(crate) const REAL_FRAME: u16 = 0x7000;
/// The length of the vector table of real mode, less 1: as long as it is after a reset.
pub(crate) const REAL_IDT_LIMIT: u16 = 0x3ff;

/// The operand of LGDT and LIDT: the limit, and a base of 32 bits or of 64.
pub(crate) struct TablePointer([AtomicU16; 5]);

impl TablePointer {
    const fn new() -> Self {
        Self([const { AtomicU16::new(0) }; 5])
    }

    /// From now on it names this table.
    pub(crate) fn set(&self, limit: u16, base: u32) {
        for (part, value) in self.0.iter().zip([limit, base as u16, (base >> 16) as u16, 0, 0]) {
            part.store(value, Relaxed);
        }
    }
}

/// By which way an input is entered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(crate) enum Way {
    /// Real mode.
    Real = 0,
    /// Protected mode with paging.
    Protected = 1,
    /// 64-bit mode.
    Long = 2,
}

/// The state in which an input starts. Its general registers are in its frame: in protected mode POPAD's, in 64-bit mode R15 to
/// R8, RDI, RSI, RBP, RBX, RDX, RCX and RAX, and in real mode POPAD's, GS, FS, ES and DS; then comes what IRET takes.
#[repr(C)]
pub(crate) struct Plan {
    pub(crate) gdtr: TablePointer,
    pub(crate) idtr: TablePointer,
    pub(crate) way: AtomicU32,
    pub(crate) efer: AtomicU32,
    pub(crate) cr0: AtomicU32,
    pub(crate) cr3: AtomicU32,
    pub(crate) cr4: AtomicU32,
    /// The task register's selector.
    pub(crate) task: AtomicU32,
    /// What is in DS, ES, FS and GS.
    pub(crate) data: AtomicU32,
    /// Where the frame is.
    pub(crate) frame: AtomicU32,
}

pub(crate) static PLAN: Plan = Plan {
    gdtr: TablePointer::new(),
    idtr: TablePointer::new(),
    way: AtomicU32::new(0),
    efer: AtomicU32::new(0),
    cr0: AtomicU32::new(0),
    cr3: AtomicU32::new(0),
    cr4: AtomicU32::new(0),
    task: AtomicU32::new(0),
    data: AtomicU32::new(0),
    frame: AtomicU32::new(0),
};

/// The tables of flat protected mode, between inputs.
static HARNESS_GDTR: TablePointer = TablePointer::new();
static HARNESS_IDTR: TablePointer = TablePointer::new();
/// The IDT while long mode is left.
static LEAVE_IDTR: TablePointer = TablePointer::new();
/// Where 64-bit mode is left for its 32-bit code: the offset, and the selector.
static LEAVE: [AtomicU32; 2] = [AtomicU32::new(0), AtomicU32::new(CODE as u32)];
/// The stack pointer to come back to.
static HARNESS_STACK: AtomicU32 = AtomicU32::new(0);

/// Has what runs between inputs use the IDT at `idt`, and the way out of long mode the one at `leave_idt`.
pub(crate) fn init(idt: u32, leave_idt: u32) {
    let (limit, base) = descriptors::gdt();
    HARNESS_GDTR.set(limit, base);
    HARNESS_IDTR.set(256 * 8 - 1, idt);
    LEAVE_IDTR.set(16 * 3 - 1, leave_idt);
    LEAVE[0].store(&raw const hostile_leave as u32, Relaxed);
}

/// Puts what real mode needs where it belongs: code and vectors.
pub(crate) fn write_low() {
    let (limit, base) = descriptors::gdt();
    let low = &raw const hostile_low as u32;
    for offset in (0..LOW_SIZE).step_by(4) {
        put(LOW + offset, peek(low + offset));
    }
    put(LOW_GDTR, base << 16 | u32::from(limit));
    put(LOW_GDTR + 4, base >> 16);
    write_vectors();
}

/// The vectors of real mode, at address 0. Some inputs set CR0.PE, which makes gates of the vectors; each pair of them is a gate
/// to the 32-bit code at [`LOW`], too: the offset's low half and the selector are a far pointer to code there, and the type and
/// the offset's high half are another one, to a jump.
fn write_vectors() {
    for pair in 0..128 {
        put(8 * pair, u32::from(CODE) << 16 | LOW);
        put(8 * pair + 4, INTERRUPT_GATE);
    }
    // `ljmp $0, $LOW_RECOVER`, at 0000:8e00.
    put(INTERRUPT_GATE, (LOW + 0x80) << 8 | 0xea);
    put(INTERRUPT_GATE + 4, 0);
}

/// Present, of 32 bits, with DPL 0; as an address, of the jump.
const INTERRUPT_GATE: u32 = 0x8e00;

unsafe extern "C" {
    safe static hostile_low: u8;
    safe static hostile_recover: u8;
    safe static hostile_recover_long: u8;
    safe static hostile_return: u8;
    safe static hostile_return_long: u8;
    safe static hostile_leave: u8;
    fn hostile_enter();
}

/// Where the gates of protected mode lead.
pub(crate) fn recover() -> u32 {
    &raw const hostile_recover as u32
}

/// Where the gates of long mode lead.
pub(crate) fn recover_long() -> u32 {
    &raw const hostile_recover_long as u32
}

/// An IRETD.
pub(crate) fn return_at_once() -> u32 {
    &raw const hostile_return as u32
}

/// An IRETQ.
pub(crate) fn return_at_once_long() -> u32 {
    &raw const hostile_return_long as u32
}

/// Runs the input that [`PLAN`] describes, until it is interrupted.
pub(crate) fn enter() {
    // SAFETY: the way back restores the stack pointer, all general registers, the segments and the control registers. An
    // input may write anywhere, to the image as well: that is what this guest is for, and it costs no VM but its own.
    unsafe { hostile_enter() };
}

global_asm!(
    r#"
.text
.code32
hostile_enter:
    pushal
    pushfl
    movl %esp, {stack}
    // The image's own stack is read-only as soon as paging is on: an NMI could not be delivered then.
    movl ${scratch_stack}, %esp
    lgdtl {plan} + {gdtr}
    movl {plan} + {cr4}, %eax
    movl %eax, %cr4
    movl $0xc0000080, %ecx
    xorl %edx, %edx
    movl {plan} + {efer}, %eax
    wrmsr
    movl {plan} + {cr0}, %ebx
    cmpl $1, {plan} + {way}
    jb 2f
    movl {plan} + {cr3}, %eax
    movl %eax, %cr3
    ja 3f

    // Protected mode.
    movl %ebx, %cr0
    lidtl {plan} + {idtr}
    movl {plan} + {task}, %eax
    ltr %ax
    movl {plan} + {data}, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %fs
    movl %eax, %gs
    movl %cs:{plan} + {frame}, %esp
    popal
    iretl

    // Real mode.
2:  lidtl {plan} + {idtr}
    ljmpl ${code16}, ${low_enter}

    // Long mode: first its 32-bit code, then 64-bit mode.
3:  lidtl {plan} + {idtr}
    movl %ebx, %cr0
    ljmpl ${code64}, $4f
.code64
4:  movl ${plan}, %ebx
    movl {task}(%rbx), %eax
    ltr %ax
    movl {data}(%rbx), %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %fs
    movl %eax, %gs
    movl {frame}(%rbx), %esp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rdi
    popq %rsi
    popq %rbp
    popq %rbx
    popq %rdx
    popq %rcx
    popq %rax
    iretq

// PCIDE has to be clear before paging is turned off.
hostile_recover_long:
    cli
    cld
    movl $0x20, %eax
    movq %rax, %cr4
    movl ${harness_gdtr}, %ebx
    lgdt (%rbx)
    movl ${data_selector}, %eax
    movl %eax, %ss
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %fs
    movl %eax, %gs
    movl ${scratch_stack}, %esp
    // An NMI may come at each exit on the way out, with and without paging.
    movl ${leave_idtr}, %ebx
    lidt (%rbx)
    movl ${leave}, %ebx
    ljmpl *(%rbx)

// Long mode is left before CR4.PAE is cleared: QEMU's TCG (7.2) loads no CR0 at an exit from a guest with EFER.LME set and
// without PAE, so that the hypervisor would go on without paging.
.code32
hostile_leave:
    movl $1, %eax
    movl %eax, %cr0
    lidtl {harness_idtr}
    movl $0xc0000080, %ecx
    xorl %eax, %eax
    xorl %edx, %edx
    wrmsr
    jmp 6f

hostile_recover:
    cli
    cld
    lgdtl %cs:{harness_gdtr}
    movl ${data_selector}, %eax
    movl %eax, %ss
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %fs
    movl %eax, %gs
    movl ${scratch_stack}, %esp
6:  movl $1, %eax
    movl %eax, %cr0
    ljmpl ${code}, $7f
7:  lidtl {harness_idtr}
    // It is in the image, which is read-only as long as paging is on: an NMI could not be delivered before.
    movl {stack}, %esp
    xorl %eax, %eax
    movl %eax, %cr4
    // Nothing enabled; this has no other way to clear GD than to be caught by it once.
    movl %dr7, %eax
    cmpl $0x400, %eax
    je 8f
    movl $0x400, %eax
    movl %eax, %dr7
8:  popfl
    popal
    ret

hostile_return:
    iretl
.code64
hostile_return_long:
    iretq
.code32

.section .rodata.hostile, "a"
.balign 16
hostile_low:
// The gates that the vectors make.
    movl $hostile_recover, %eax
    jmp *%eax

.skip 0x80 - (. - hostile_low)
// The vectors.
.code16
    cli
    xorw %ax, %ax
    movw %ax, %ds
    lgdtl {low_gdtr}
    movl %cr0, %eax
    orb $1, %al
    movl %eax, %cr0
    ljmpl ${code}, $hostile_recover

.skip 0x100 - (. - hostile_low)
// From protected mode, with CR0 in EBX. Segments keep the limits that they have when PE is cleared.
    movw ${data16}, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %fs
    movw %ax, %gs
    movw %ax, %ss
    movl %ebx, %cr0
    ljmp $0, ${low} + (8f - hostile_low)
8:  movw ${real_stack}, %ax
    movw %ax, %ss
    movw ${real_frame}, %sp
    popal
    popw %gs
    popw %fs
    popw %es
    popw %ds
    iretw
.skip 0x180 - (. - hostile_low)
.code32
.text
"#,
    stack = sym HARNESS_STACK,
    scratch_stack = const STACK_TOP,
    harness_gdtr = sym HARNESS_GDTR,
    harness_idtr = sym HARNESS_IDTR,
    leave_idtr = sym LEAVE_IDTR,
    leave = sym LEAVE,
    plan = sym PLAN,
    gdtr = const offset_of!(Plan, gdtr),
    idtr = const offset_of!(Plan, idtr),
    way = const offset_of!(Plan, way),
    efer = const offset_of!(Plan, efer),
    cr0 = const offset_of!(Plan, cr0),
    cr3 = const offset_of!(Plan, cr3),
    cr4 = const offset_of!(Plan, cr4),
    task = const offset_of!(Plan, task),
    data = const offset_of!(Plan, data),
    frame = const offset_of!(Plan, frame),
    code = const CODE,
    data_selector = const DATA,
    code16 = const CODE16,
    data16 = const DATA16,
    code64 = const CODE64,
    low = const LOW,
    low_enter = const LOW + 0x100,
    low_gdtr = const LOW_GDTR,
    real_stack = const REAL_STACK,
    real_frame = const REAL_FRAME,
    options(att_syntax)
);
