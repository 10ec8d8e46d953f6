//! Ways for the hypervisor to fail on purpose: the tests of what it says when it does.

use crate::verdict::{self, Verdict};
use core::hint::black_box;
use loader::SelfTest;

/// Fails as asked.
pub(crate) fn fail(how: SelfTest) -> ! {
    match how {
        SelfTest::Panic => panic!("the self-test asked for it"),
        SelfTest::PageFault => page_fault(),
        SelfTest::StackOverflow => {
            black_box(overflow(0));
        }
        SelfTest::DoubleFault => double_fault(),
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

/// A fault without a stack to take it on.
fn double_fault() {
    // SAFETY: none: the fault is the point, and it ends the machine.
    unsafe { core::arch::asm!("xor esp, esp", "push rax", options(noreturn)) }
}
