//! Code in user mode.

use core::arch::naked_asm;

use crate::descriptors;
use crate::interrupts::{Fault, expect_fault};

/// Runs the code at `eip`, in a page that user mode may execute, in ring 3 with ECX = `ecx` and interrupts off, until it faults
/// or gives up by INT 0x80. It has no stack.
pub fn run(eip: u32, ecx: u32) -> Fault {
    expect_fault(|| enter(eip, ecx)).expect("there is no other way back")
}

#[unsafe(naked)]
extern "C" fn enter(eip: u32, ecx: u32) {
    naked_asm!(
        "mov eax, [esp + 4]",
        "mov ecx, [esp + 8]",
        "mov edx, {data}",
        "mov ds, edx",
        "mov es, edx",
        "push edx",
        "push 0",
        "push 2",
        "push {code}",
        "push eax",
        "iretd",
        data = const descriptors::USER_DATA,
        code = const descriptors::USER_CODE,
    )
}
