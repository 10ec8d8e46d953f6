//! The GDT and the IDT, which all processors share, and each processor's TSS.
//!
//! The tables are arrays of atomics: the processor reads them, and writes their accessed and busy bits, behind the
//! compiler's back.

use core::arch::asm;
use core::mem::size_of;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use base::smp::{FIRST_TSS, TSS_STEP};

use crate::smp::{Cpu, PerCpu};

/// Selector of the 64-bit code segment.
pub const CODE64: u16 = 0x08;
/// Selector of the data segment.
pub const DATA: u16 = 0x10;
/// Selector of user mode's data segment, with RPL 3.
pub const USER_DATA: u16 = 0x18 | 3;
/// Selector of user mode's 64-bit code segment, with RPL 3.
pub const USER_CODE64: u16 = 0x20 | 3;
/// Selector of the 32-bit code segment, on the way from real mode.
pub(crate) const CODE32: u16 = 0x28;

#[repr(C)]
pub(crate) struct Gdt {
    segments: [AtomicU64; 6],
    tss: [[AtomicU64; 2]; Cpu::MOST],
}

/// Accessed bits are set from the start, so that the processor has nothing to write when it loads a selector.
pub(crate) static GDT: Gdt = Gdt {
    segments: [
        AtomicU64::new(0),
        AtomicU64::new(0x00af_9b00_0000_ffff),
        AtomicU64::new(0x00cf_9300_0000_ffff),
        AtomicU64::new(0x00cf_f300_0000_ffff),
        AtomicU64::new(0x00af_fb00_0000_ffff),
        AtomicU64::new(0x00cf_9b00_0000_ffff),
    ],
    tss: [const { [const { AtomicU64::new(0) }; 2] }; Cpu::MOST],
};

/// The 64-bit TSS as 32-bit words (AMD64 APM volume 2, figure 12-8): its 64-bit fields are not aligned.
type Tss = [AtomicU32; 26];
const TSS_RSP0: usize = 1;
const TSS_IST1: usize = 9;
/// High half: offset of the I/O permission bitmap, past the limit for none.
const TSS_IOMAP: usize = 25;
static TSS: PerCpu<Tss> = PerCpu::new([const { [const { AtomicU32::new(0) }; 26] }; Cpu::MOST]);

/// The double fault's interrupt stack table index.
const DOUBLE_FAULT_IST: u64 = 1;
const DOUBLE_FAULT: usize = 8;

#[repr(C, align(16))]
struct Stack<const N: usize>([AtomicU64; N]);
static DOUBLE_FAULT_STACK: PerCpu<Stack<1024>> =
    PerCpu::new([const { Stack([const { AtomicU64::new(0) }; 1024]) }; Cpu::MOST]);
static INTERRUPT_STACK: PerCpu<Stack<2048>> =
    PerCpu::new([const { Stack([const { AtomicU64::new(0) }; 2048]) }; Cpu::MOST]);

type Idt = [[AtomicU64; 2]; 256];
static IDT: Idt = [const { [const { AtomicU64::new(0) }; 2] }; 256];

/// The privilege that may raise a vector by INT n.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum GateDpl {
    Kernel,
    User,
}

/// The operand of LGDT and LIDT.
#[repr(C, packed)]
struct TablePointer {
    limit: u16,
    base: u64,
}

/// Completes `cpu`'s part of the GDT (the entry code runs on it already) and loads its TSS, by which [`Cpu::current`] knows it.
/// To be called by `cpu` itself.
pub(crate) fn init(cpu: Cpu) {
    let tss = TSS.of(cpu);
    set_tss_pointer(tss, TSS_RSP0, stack_top(INTERRUPT_STACK.of(cpu)));
    set_tss_pointer(tss, TSS_IST1, stack_top(DOUBLE_FAULT_STACK.of(cpu)));
    tss[TSS_IOMAP].store((size_of::<Tss>() as u32) << 16, Relaxed);

    let base = tss.as_ptr() as u64;
    let limit = size_of::<Tss>() as u64 - 1;
    let available_tss = 0x89 << 40;
    let low = limit | (base & 0xff_ffff) << 16 | available_tss | (base >> 24 & 0xff) << 56;
    let [low_half, high_half] = &GDT.tss[cpu.index()];
    low_half.store(low, Relaxed);
    high_half.store(base >> 32, Relaxed);
    let selector = FIRST_TSS + TSS_STEP * cpu.index() as u16;
    // SAFETY: the selector's descriptor was just made and names a TSS that lives for ever. No `nomem`: the processor
    // reads the descriptor and sets its busy bit.
    unsafe { asm!("ltr {0:x}", in(reg) selector, options(nostack, preserves_flags)) };
}

/// Points `vector` at `handler`, an interrupt gate of 64-bit code.
pub(crate) fn set_gate(vector: usize, handler: u64, dpl: GateDpl) {
    let ist = if vector == DOUBLE_FAULT { DOUBLE_FAULT_IST } else { 0 };
    let dpl = match dpl {
        GateDpl::Kernel => 0,
        GateDpl::User => 3,
    };
    let present_interrupt_gate = 0x8e;
    let low = handler & 0xffff
        | u64::from(CODE64) << 16
        | ist << 32
        | (present_interrupt_gate | dpl << 5) << 40
        | (handler >> 16 & 0xffff) << 48;
    IDT[vector][0].store(low, Relaxed);
    IDT[vector][1].store(handler >> 32, Relaxed);
}

/// Loads the IDT.
pub(crate) fn load_idt() {
    lidt(&TablePointer { limit: size_of::<Idt>() as u16 - 1, base: IDT.as_ptr() as u64 });
}

/// Loads an IDT without a single gate: the next exception is a triple fault.
pub fn load_empty_idt() {
    lidt(&TablePointer { limit: 0, base: 0 });
}

fn lidt(pointer: &TablePointer) {
    // SAFETY: the callers' tables live for ever (or are empty), and no gate in them leads anywhere but to the handlers
    // of `interrupts`.
    unsafe { asm!("lidt [{}]", in(reg) pointer, options(nostack, preserves_flags)) };
}

fn stack_top<const N: usize>(stack: &'static Stack<N>) -> u64 {
    stack.0.as_ptr_range().end as u64
}

fn set_tss_pointer(tss: &Tss, index: usize, pointer: u64) {
    tss[index].store(pointer as u32, Relaxed);
    tss[index + 1].store((pointer >> 32) as u32, Relaxed);
}
