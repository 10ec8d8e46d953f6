//! CR0 and CR4, for code of either mode.

use core::arch::asm;

use arch::{CR0_EM, CR0_MP, CR0_TS, CR4_OSFXSR};

macro_rules! control_register {
    ($(#[$doc:meta])* $read:ident, $write:ident, $name:literal) => {
        $(#[$doc])*
        pub fn $read() -> u64 {
            let value: usize;
            // SAFETY: reading it has no effect.
            unsafe { asm!(concat!("mov {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags)) };
            value as u64
        }

        fn $write(value: u64) {
            // SAFETY: the functions of this file change only bits on which no Rust code depends.
            unsafe { asm!(concat!("mov ", $name, ", {}"), in(reg) value as usize, options(nostack, preserves_flags)) };
        }
    };
}

control_register!(
    /// CR0.
    cr0, set_cr0, "cr0"
);
control_register!(
    /// CR4.
    cr4, set_cr4, "cr4"
);

/// What CR4 holds after `bits` were set in it. They are cleared again, but for those that were set before.
///
/// No bit that is clear in a guest changes what its code does, while it runs at CPL 0 and none of its pages is a user's; and what
/// a write of CR4 does to translations changes none of them. (The bit that chooses between modes of paging faults or is ignored.)
pub fn try_cr4(bits: u64) -> u64 {
    let before = cr4();
    set_cr4(before | bits);
    let after = cr4();
    set_cr4(before);
    after
}

/// Lets SSE and x87 instructions work, which the compiler's code has none of.
pub fn enable_sse() {
    set_cr0(cr0() & !(CR0_EM | CR0_TS) | CR0_MP);
    set_cr4(cr4() | CR4_OSFXSR);
}
