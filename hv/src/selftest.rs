//! Ways for the hypervisor to fail on purpose: the tests of what it says when it does.

use crate::cpus;
use crate::rcu_domain;
use crate::smp;
use crate::timer;
use crate::verdict::{self, Verdict};
use crate::watchdog;
use abi::options::{self, self_test};
use abi::reasons;
use core::hint::black_box;
use loader::SelfTest;
use x86::dtables::{DescriptorTablePointer, lidt};

/// Fails as asked.
pub(crate) fn fail(how: SelfTest) -> ! {
    match how {
        SelfTest::Panic => panic!("{}", reasons::SELF_TEST),
        SelfTest::PageFault => page_fault(),
        SelfTest::StackOverflow => {
            black_box(overflow(0));
        }
        SelfTest::DoubleFault => double_fault(),
        SelfTest::TripleFault => triple_fault(),
        SelfTest::Stuck if cpus::online() == 1 => verdict::end(
            Verdict::Usage,
            format_args!("{}={}: {}", options::SELF_TEST, self_test::STUCK, reasons::ONE_CPU),
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

/// Has one of the other CPUs never come back; the rest does what CPUs without vCPUs do.
fn watch_a_stuck_cpu() {
    smp::release(|cpu| if cpu == 1 { get_stuck(cpu) } else { sleep(cpu) });
    sleep(0);
}

fn sleep(cpu: usize) -> ! {
    let mut cpu = rcu_domain::register(cpu);
    loop {
        timer::arm(watchdog::next_check());
        smp::idle(&mut cpu, || false);
    }
}

/// In the hypervisor, with interrupts off, and silent.
#[inline(never)]
fn get_stuck(cpu: usize) -> ! {
    let online = rcu_domain::register(cpu);
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
