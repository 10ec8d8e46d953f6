//! The other processors.
//!
//! They are started ([`base::startup`]), and come up, without paging.

use core::arch::global_asm;
use core::ptr;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use base::apic::{Apic, Delivery};
pub use base::smp::{Barrier, Cpu, PerCpu, Task, assign, count, cpus, run_on_all};
use base::startup::{self, Signal};

use crate::descriptors;

/// Where they start in real mode: a page that no loader uses.
const TRAMPOLINE: u32 = 0x8000;

/// The top of the starting processor's stack, and its number. One starts at a time.
static STACK_TOP: AtomicU32 = AtomicU32::new(0);
static INDEX: AtomicU32 = AtomicU32::new(0);

/// Starts all processors that the machine says it has; panics if one does not come up. To be called without paging. Returns how
/// many run now.
pub fn start_all() -> usize {
    if !Apic::exists() {
        return 1;
    }
    Apic::start();
    copy_trampoline();
    startup::start_each(start)
}

/// Whether it came up.
fn start(cpu: Cpu) -> bool {
    prepare(cpu);
    startup::start(cpu, |signal| send(cpu, signal))
}

/// Starts `cpu` anew, whatever it does: it then waits for a task. Whether it came up within `patience` ticks of the TSC.
pub fn restart(cpu: Cpu, patience: u64) -> bool {
    // What it did may have overwritten it.
    copy_trampoline();
    prepare(cpu);
    startup::start_within(cpu, patience, |signal| send(cpu, signal))
}

fn prepare(cpu: Cpu) {
    STACK_TOP.store(startup::stack_top(cpu), Relaxed);
    INDEX.store(cpu.apic_id(), Relaxed);
}

fn send(cpu: Cpu, signal: Signal) {
    let delivery = match signal {
        Signal::Init => Delivery::Init,
        Signal::StartUp => Delivery::StartUp((TRAMPOLINE >> 12) as u8),
    };
    Apic::here().send(delivery, cpu.into());
}

fn copy_trampoline() {
    for (at, &byte) in (TRAMPOLINE as usize..).zip(startup::trampoline()) {
        // SAFETY: no Rust object is below the image.
        unsafe { ptr::with_exposed_provenance_mut::<u8>(at).write_volatile(byte) };
    }
}

global_asm!(
    base::ap_trampoline!(),
    r#"
    movl %eax, %fs
    movl %eax, %gs
    movl {stack_top}, %esp
    xorl %ebp, %ebp
    subl $12, %esp
    pushl {index}
    call {start}
    ud2
"#,
    code32 = const descriptors::CODE,
    data = const descriptors::DATA,
    gdt_size = const size_of::<descriptors::Gdt>(),
    gdt = sym descriptors::GDT,
    stack_top = sym STACK_TOP,
    index = sym INDEX,
    start = sym run,
    options(att_syntax)
);

/// What a started processor does.
extern "C" fn run(index: u32) -> ! {
    let cpu = Cpu::new(index as usize);
    descriptors::init(cpu);
    descriptors::load_idt();
    Apic::start();
    startup::serve(cpu)
}
