//! Ways for the hypervisor to fail on purpose: the tests of what it says when it does.

use crate::smp;
use crate::tables;
use crate::timer::{self, Deadline};
use crate::verdict::{self, Verdict};
use crate::watchdog;
use core::hint::black_box;
use core::time::Duration;
use loader::SelfTest;
use x86::dtables::{DescriptorTablePointer, lidt};

/// Fails as asked.
pub(crate) fn fail(how: SelfTest) -> ! {
    match how {
        SelfTest::Panic => panic!("the self-test asked for it"),
        SelfTest::PageFault => page_fault(),
        SelfTest::StackOverflow => {
            black_box(overflow(0));
        }
        SelfTest::DoubleFault => double_fault(),
        SelfTest::TripleFault => triple_fault(),
        SelfTest::Stuck if smp::cpus() == 1 => verdict::end(
            Verdict::Usage,
            format_args!("selftest=stuck: one CPU gets stuck and another tells, but there is one"),
        ),
        SelfTest::Stuck => watch_a_stuck_cpu(),
    }
    verdict::end(Verdict::Usage, format_args!("the self-test {how:?} did not fail"))
}

/// An address in the lower half, which the hypervisor does not map.
#[inline(never)]
fn page_fault() {
    // SAFETY: none: the fault is the point, and it ends the machine.
    unsafe { black_box(0x1000 as *const u8).read_volatile() };
}

/// Recurses until the page below the stack stops it: the page fault finds no stack, and becomes a double fault.
#[inline(never)]
#[expect(unconditional_recursion, reason = "the overflow is the point")]
fn overflow(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    overflow(depth + 1) + frame[0]
}

/// A fault without anything to take it.
fn triple_fault() {
    // SAFETY: none: the fault is the point, and it resets the machine.
    unsafe { lidt(&DescriptorTablePointer::<u8>::default()) };
    // SAFETY: as above.
    unsafe { core::arch::asm!("ud2", options(noreturn)) }
}

/// Has the other CPUs never come back, and does what a CPU without vCPUs does.
fn watch_a_stuck_cpu() {
    const PATIENCE: Duration = Duration::from_millis(500);
    let mut cpu = tables::register(0);
    watchdog::start(PATIENCE);
    smp::release(get_stuck);
    loop {
        watchdog::beat(0);
        timer::arm(Deadline::after(PATIENCE / 5));
        // SAFETY: this CPU's tables are loaded; STI's shadow covers HLT.
        cpu.idle(|| unsafe { core::arch::asm!("sti", "hlt", "cli", options(nomem, nostack)) });
    }
}

/// In the hypervisor, and silent.
#[inline(never)]
fn get_stuck(cpu: usize) -> ! {
    let online = tables::register(cpu);
    watchdog::beat(cpu);
    loop {
        black_box(&online);
        core::hint::spin_loop();
    }
}

/// A fault without a stack to take it on.
fn double_fault() {
    // SAFETY: none: the fault is the point, and it ends the machine.
    unsafe { core::arch::asm!("xor esp, esp", "push rax", options(noreturn)) }
}
