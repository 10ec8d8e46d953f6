//! The processor's own tables: segments, interrupt vectors, and stacks for what may strike at any moment.

mod traps;

use alloc::boxed::Box;
use core::cell::UnsafeCell;
use core::ptr::addr_of;
use spin::Once;
use vm::cpuid::Leaf;
use x86::Ring;
use x86::bits64::segmentation::{Descriptor64, load_cs};
use x86::bits64::task::TaskStateSegment;
use x86::controlregs::{Cr0, Cr4, cr0, cr0_write, cr4, cr4_write};
use x86::dtables::{DescriptorTablePointer, lgdt, lidt};
use x86::msr::{IA32_EFER, IA32_PAT, rdmsr, wrmsr};
use x86::segmentation::{
    BuildDescriptor, CodeSegmentType, DataSegmentType, Descriptor, DescriptorBuilder, GateDescriptorBuilder,
    SegmentDescriptorBuilder, SegmentSelector, load_ds, load_es, load_ss,
};
use x86::task::load_tr;

const CODE: SegmentSelector = SegmentSelector::new(1, Ring::Ring0);
const DATA: SegmentSelector = SegmentSelector::new(2, Ring::Ring0);
const TASK: SegmentSelector = SegmentSelector::new(3, Ring::Ring0);

/// Vectors whose handlers can't trust the interrupted stack: NMI, double fault, machine check.
const OWN_STACKS: [u8; 3] = [2, 8, 18];
const OWN_STACK_SIZE: usize = 16 * 1024;

#[derive(Clone, Copy)]
#[repr(C, align(16))]
struct Stack([u8; OWN_STACK_SIZE]);

#[repr(C, packed)]
struct Gdt {
    null: Descriptor,
    code: Descriptor,
    data: Descriptor,
    task: Descriptor64,
}

/// One CPU's tables, which are its own. The processor itself writes to them (the TSS's busy bit), hence the cell.
#[repr(C, align(16))]
struct Tables {
    stacks: [Stack; OWN_STACKS.len()],
    idt: [Descriptor64; 256],
    gdt: Gdt,
    tss: TaskStateSegment,
}

struct BootCpu(UnsafeCell<Tables>);

// SAFETY: the boot CPU alone uses its tables, and writes them once, in `init`.
unsafe impl Sync for BootCpu {}

static BOOT_CPU: BootCpu = BootCpu(UnsafeCell::new(Tables::new()));

impl Tables {
    const fn new() -> Self {
        Self {
            stacks: [Stack([0; OWN_STACK_SIZE]); OWN_STACKS.len()],
            idt: [Descriptor64::NULL; 256],
            gdt: Gdt {
                null: Descriptor::NULL,
                code: Descriptor::NULL,
                data: Descriptor::NULL,
                task: Descriptor64::NULL,
            },
            tss: TaskStateSegment::new(),
        }
    }

    fn fill(&mut self) {
        for (index, stack) in self.stacks.iter().enumerate() {
            self.tss.set_ist(index, stack.0.as_ptr_range().end as u64);
        }
        let code: DescriptorBuilder =
            SegmentDescriptorBuilder::<u32>::code_descriptor(0, 0xf_ffff, CodeSegmentType::ExecuteReadAccessed);
        let data: DescriptorBuilder =
            SegmentDescriptorBuilder::<u32>::data_descriptor(0, 0xf_ffff, DataSegmentType::ReadWriteAccessed);
        let limit = size_of::<TaskStateSegment>() as u64 - 1;
        let task: DescriptorBuilder =
            GateDescriptorBuilder::<u64>::tss_descriptor(addr_of!(self.tss) as u64, limit, true);
        self.gdt = Gdt {
            null: Descriptor::NULL,
            code: code.present().dpl(Ring::Ring0).l().limit_granularity_4kb().finish(),
            data: data.present().dpl(Ring::Ring0).db().limit_granularity_4kb().finish(),
            task: task.present().dpl(Ring::Ring0).finish(),
        };
        for (vector, stub) in traps::stubs().enumerate() {
            let gate: DescriptorBuilder = GateDescriptorBuilder::<u64>::interrupt_descriptor(CODE, stub);
            let own_stack =
                OWN_STACKS.iter().position(|&v| usize::from(v) == vector).map_or(0, |index| index as u8 + 1);
            self.idt[vector] = gate.present().dpl(Ring::Ring0).ist(own_stack).finish();
        }
    }
}

/// Loads this CPU's segments, task register and interrupt table.
///
/// # Safety
/// Once, on the boot CPU, with interrupts off.
pub(crate) unsafe fn init() {
    // SAFETY: the caller's promise; the tables live for ever.
    unsafe { load(BOOT_CPU.0.get()) };
}

/// The same for another CPU, with what else the boot CPU had set at [`keep_modes`].
///
/// # Safety
/// Once on each, with interrupts off, on the hypervisor's page tables.
pub(crate) unsafe fn init_ap() {
    // Not by way of the stack, where they would take most of it.
    let mut tables = Box::<Tables>::new_uninit();
    // SAFETY: the box's own memory.
    unsafe { tables.as_mut_ptr().write_bytes(0, 1) };
    // SAFETY: tables without a single descriptor are zeroes, as `Tables::new` has them.
    let tables = unsafe { tables.assume_init() };
    // SAFETY: the caller's promise; the tables live for ever.
    unsafe { load(Box::into_raw(tables)) };
    if let Some(modes) = MODES.get() {
        // SAFETY: the boot CPU runs the same code on the same tables with these.
        unsafe { modes.load() };
    }
}

/// What all CPUs have set alike, as the boot CPU has it before the others start.
struct Modes {
    cr0: Cr0,
    cr4: Cr4,
    efer: u64,
    pat: u64,
}

static MODES: Once<Modes> = Once::new();

impl Modes {
    fn read() -> Self {
        // SAFETY: reading a control register has no effect.
        let cr0 = unsafe { cr0() };
        // SAFETY: as above.
        let cr4 = unsafe { cr4() };
        // SAFETY: nor has reading these MSRs, which come with long mode.
        let efer = unsafe { rdmsr(IA32_EFER) };
        // SAFETY: as above.
        let pat = unsafe { rdmsr(IA32_PAT) };
        Self { cr0, cr4, efer, pat }
    }

    /// # Safety
    /// The CPU is in long mode, and what it runs can do with these.
    unsafe fn load(&self) {
        // SAFETY: the caller's promise, here and below. EFER comes first: it tells what CR4 may hold.
        unsafe { wrmsr(IA32_EFER, self.efer) };
        // SAFETY: as above.
        unsafe { wrmsr(IA32_PAT, self.pat) };
        // SAFETY: as above.
        unsafe { cr0_write(self.cr0) };
        // SAFETY: as above; where it sets PGE it drops what the boot tables had.
        unsafe { cr4_write(self.cr4) };
    }
}

/// What the boot CPU has set now is what [`init_ap`] gives the others.
pub(crate) fn keep_modes() {
    MODES.call_once(Modes::read);
}

/// # Safety
/// Interrupts are off, and `tables` are this CPU's own and live for ever.
unsafe fn load(tables: *mut Tables) {
    // SAFETY: the caller's promise makes this the only reference there is, and the processor does not use them yet.
    unsafe { (*tables).fill() };
    // SAFETY: as above, and from now on only the processor writes them.
    let Tables { gdt, idt, .. } = unsafe { &*tables };
    let (gdt, idt) = (DescriptorTablePointer::new(gdt), DescriptorTablePointer::new(idt));
    // SAFETY: the GDT holds flat ring-0 segments at the selectors loaded next, and lives for ever.
    unsafe { lgdt(&gdt) };
    // SAFETY: as above.
    unsafe { load_cs(CODE) };
    // SAFETY: as above.
    unsafe { load_ss(DATA) };
    // SAFETY: as above.
    unsafe { load_ds(DATA) };
    // SAFETY: as above.
    unsafe { load_es(DATA) };
    // SAFETY: the descriptor is an available TSS that lives for ever.
    unsafe { load_tr(TASK) };
    // SAFETY: every gate leads to its stub.
    unsafe { lidt(&idt) };
}

/// What CPUID answers on this processor.
pub(crate) fn cpuid(leaf: u32, subleaf: u32) -> Leaf {
    let result = raw_cpuid::cpuid!(leaf, subleaf);
    Leaf { eax: result.eax, ebx: result.ebx, ecx: result.ecx, edx: result.edx }
}
