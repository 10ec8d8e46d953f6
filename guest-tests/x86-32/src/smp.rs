//! The other processors.
//!
//! They are started ([`base::startup`]), and come up, without paging.

use core::arch::global_asm;
use core::ptr;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

pub use base::smp::{Barrier, Cpu, PerCpu, count, cpus, run_on_all};
use base::startup::{self, Signal};

use crate::{descriptors, processor};

/// The local APIC, where firmware leaves it. There is no paging when it is used.
const APIC: usize = 0xfee0_0000;
const SPURIOUS: usize = 0xf0;
const COMMAND_LOW: usize = 0x300;
const COMMAND_HIGH: usize = 0x310;
const ENABLED: u32 = 1 << 8 | 0xff;
const INIT: u32 = 0x4500;
const START_UP: u32 = 0x4600;

/// Where they start in real mode: a page that no loader uses.
const TRAMPOLINE: u32 = 0x8000;

/// The top of the starting processor's stack, and its number. One starts at a time.
static STACK_TOP: AtomicU32 = AtomicU32::new(0);
static INDEX: AtomicU32 = AtomicU32::new(0);

/// Starts all processors that the machine says it has; panics if one does not come up. To be called without paging. Returns how
/// many run now.
pub fn start_all() -> usize {
    const HAS_APIC: u32 = 1 << 9;
    if processor::cpuid(1, 0)[3] & HAS_APIC == 0 {
        return 1;
    }
    write(SPURIOUS, ENABLED);
    copy_trampoline();
    startup::start_each(start)
}

/// Whether it came up.
fn start(cpu: Cpu) -> bool {
    STACK_TOP.store(startup::stack_top(cpu), Relaxed);
    INDEX.store(cpu.apic_id(), Relaxed);
    startup::start(cpu, |signal| {
        let command = match signal {
            Signal::Init => INIT,
            Signal::StartUp => START_UP | TRAMPOLINE >> 12,
        };
        send(cpu, command);
    })
}

fn send(cpu: Cpu, command: u32) {
    write(COMMAND_HIGH, cpu.apic_id() << 24);
    write(COMMAND_LOW, command);
}

fn write(register: usize, value: u32) {
    // SAFETY: the APIC's registers, which only interrupt.
    unsafe { ptr::with_exposed_provenance_mut::<u32>(APIC + register).write_volatile(value) };
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
    write(SPURIOUS, ENABLED);
    startup::serve(cpu)
}
