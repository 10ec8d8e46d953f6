//! The GDT and the IDT, which all processors share, and each processor's TSS.
//!
//! The tables are arrays of atomics: the processor reads them, and writes their accessed and busy bits, behind the
//! compiler's back.

use core::arch::asm;
use core::mem::size_of;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use base::smp::{Cpu, FIRST_TSS, PerCpu, TSS_STEP};

/// Selector of the flat code segment.
pub const CODE: u16 = 0x08;
/// Selector of the flat data segment.
pub const DATA: u16 = 0x10;
/// Selector of user mode's data segment, with RPL 3.
pub const USER_DATA: u16 = 0x18 | 3;
/// Selector of user mode's code segment, with RPL 3.
pub const USER_CODE: u16 = 0x20 | 3;
/// Selector of the code segment of 64-bit mode, for guests that enter it.
pub const CODE64: u16 = 0x28;

/// How many descriptors tests may write.
const FREE_DESCRIPTORS: usize = 16;

#[repr(C)]
pub(crate) struct Gdt {
    segments: [AtomicU64; 6],
    /// Each with as much behind it as there is in long mode, so that the selectors are the same.
    tss: [[AtomicU64; 2]; Cpu::MOST],
    /// What tests write.
    free: [AtomicU64; FREE_DESCRIPTORS],
}

/// Accessed bits are set from the start, so that the processor has nothing to write when it loads a selector.
pub(crate) static GDT: Gdt = Gdt {
    segments: [
        AtomicU64::new(0),
        AtomicU64::new(0x00cf_9b00_0000_ffff),
        AtomicU64::new(0x00cf_9300_0000_ffff),
        AtomicU64::new(0x00cf_f300_0000_ffff),
        AtomicU64::new(0x00cf_fb00_0000_ffff),
        AtomicU64::new(0x00af_9b00_0000_ffff),
    ],
    tss: [const { [const { AtomicU64::new(0) }; 2] }; Cpu::MOST],
    free: [const { AtomicU64::new(0) }; FREE_DESCRIPTORS],
};

/// Selector of the first descriptor that tests may write.
const FREE: u16 = FIRST_TSS + TSS_STEP * Cpu::MOST as u16;

/// Writes the descriptor of number `index` of those that are free for tests, and gives its selector.
pub fn set_free(index: usize, descriptor: u64) -> u16 {
    GDT.free[index].store(descriptor, Relaxed);
    FREE + 8 * index as u16
}

/// What that descriptor is now.
pub fn free(index: usize) -> u64 {
    GDT.free[index].load(Relaxed)
}

/// Where that descriptor is.
pub fn free_address(index: usize) -> u32 {
    (&raw const GDT.free[index]).expose_provenance() as u32
}

/// The descriptor of a segment: `access` is bits 40 to 47, `flags` bits 52 to 55.
pub const fn descriptor(base: u32, limit: u32, access: u8, flags: u8) -> u64 {
    let (base, limit) = (base as u64, limit as u64);
    let (low, high) = (limit & 0xffff | (base & 0xff_ffff) << 16, limit >> 16 & 0xf | (flags as u64) << 4);
    low | (access as u64) << 40 | high << 48 | (base >> 24) << 56
}

/// The 32-bit TSS (Intel SDM vol. 3, figure 8-2).
pub(crate) type Tss = [AtomicU32; 26];
pub(crate) static TSS: PerCpu<Tss> = PerCpu::new([const { [const { AtomicU32::new(0) }; 26] }; Cpu::MOST]);
const TSS_ESP0: usize = 1;
const TSS_SS0: usize = 2;
/// High half: offset of the I/O permission bitmap, past the limit for none.
const TSS_IOMAP: usize = 25;

#[repr(C, align(16))]
struct Stack([AtomicU32; 4096]);
/// What exceptions of user mode run on.
static INTERRUPT_STACK: PerCpu<Stack> = PerCpu::new([const { Stack([const { AtomicU32::new(0) }; 4096]) }; Cpu::MOST]);

static IDT: [AtomicU64; 256] = [const { AtomicU64::new(0) }; 256];

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
    base: u32,
}

/// Completes `cpu`'s part of the GDT (the entry code runs on it already) and loads its TSS, by which [`Cpu::current`] knows it.
/// To be called by `cpu` itself.
pub(crate) fn init(cpu: Cpu) {
    let tss = TSS.of(cpu);
    tss[TSS_ESP0].store(INTERRUPT_STACK.of(cpu).0.as_ptr_range().end as u32, Relaxed);
    tss[TSS_SS0].store(DATA.into(), Relaxed);
    tss[TSS_IOMAP].store((size_of::<Tss>() as u32) << 16, Relaxed);
    let (base, limit) = (tss.as_ptr() as u64, size_of::<Tss>() as u64 - 1);
    let available_tss = 0x89 << 40;
    let descriptor = limit | (base & 0xff_ffff) << 16 | available_tss | (base >> 24 & 0xff) << 56;
    GDT.tss[cpu.index()][0].store(descriptor, Relaxed);
    let selector = FIRST_TSS + TSS_STEP * cpu.index() as u16;
    // SAFETY: the selector's descriptor was just made and names a TSS that lives for ever. No `nomem`: the processor
    // reads the descriptor and sets its busy bit.
    unsafe { asm!("ltr {0:x}", in(reg) selector, options(nostack, preserves_flags)) };
}

/// What LGDT was given: the GDT's limit and where it is.
pub fn gdt() -> (u16, u32) {
    (size_of::<Gdt>() as u16 - 1, (&raw const GDT).expose_provenance() as u32)
}

/// Points `vector` at `handler`, by an interrupt gate.
pub(crate) fn set_gate(vector: usize, handler: u32, dpl: GateDpl) {
    let present_interrupt_gate = match dpl {
        GateDpl::Kernel => 0x8e << 40,
        GateDpl::User => 0xee << 40,
    };
    let (handler, code) = (u64::from(handler), u64::from(CODE));
    IDT[vector].store(handler & 0xffff | code << 16 | present_interrupt_gate | (handler >> 16) << 48, Relaxed);
}

/// Points `vector` at the task of `tss`, by a task gate.
pub(crate) fn set_task_gate(vector: usize, tss: u16) {
    IDT[vector].store(task_gate(tss), Relaxed);
}

/// A task gate for the supervisor.
pub const fn task_gate(tss: u16) -> u64 {
    (tss as u64) << 16 | 0x85 << 40
}

/// The descriptor of the TSS of `cpu`.
pub(crate) fn tss_descriptor(cpu: Cpu) -> u64 {
    GDT.tss[cpu.index()][0].load(Relaxed)
}

/// Loads an IDT without a single gate, and faults: three times.
pub fn triple_fault() {
    let pointer = TablePointer { limit: 0, base: 0 };
    // SAFETY: nothing is executed after that.
    unsafe { asm!("lidt [{}]", "ud2", in(reg) &raw const pointer, options(noreturn)) };
}

/// Loads the IDT.
pub(crate) fn load_idt() {
    let pointer = TablePointer { limit: size_of::<[AtomicU64; 256]>() as u16 - 1, base: IDT.as_ptr() as u32 };
    // SAFETY: the table lives for ever, and no gate in it leads anywhere but to the handlers of `interrupts`.
    unsafe { asm!("lidt [{}]", in(reg) &raw const pointer, options(nostack, preserves_flags)) };
}
