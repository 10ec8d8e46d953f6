//! What both vendors' dumps have in common.

use core::fmt;
use vm::{Gpr, Registers};

const NAMES: [&str; 16] =
    ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];

/// The general registers, four to a line.
///
/// # Errors
/// Those of `out`.
pub(crate) fn general_registers(vcpu: &impl Registers, out: &mut dyn fmt::Write) -> fmt::Result {
    for (number, name) in (0..).zip(NAMES) {
        let end = if number % 4 == 3 { '\n' } else { ' ' };
        write!(out, "{name:>3} {:016x}{end}", vcpu.gpr(Gpr::new(number)))?;
    }
    Ok(())
}
