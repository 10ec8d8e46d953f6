//! Code in user mode.

use core::arch::naked_asm;

use crate::descriptors;
use crate::interrupts::{Fault, expect_fault};
use crate::raw_gva::RawGva;

/// Runs the code at `at`, in a page that user mode may execute, in ring 3 with RAX = `rax` and interrupts off, until it
/// faults or gives up by INT 0x80.
pub fn run(at: RawGva, rax: u64) -> Fault {
    expect_fault(|| enter(at.raw(), rax)).expect("there is no other way back")
}

#[unsafe(naked)]
extern "C" fn enter(rip: u64, rax: u64) {
    naked_asm!(
        "mov rax, rsi",
        "push {data}",
        "push 0",
        "push 2",
        "push {code}",
        "push rdi",
        "iretq",
        data = const descriptors::USER_DATA,
        code = const descriptors::USER_CODE64,
    )
}
