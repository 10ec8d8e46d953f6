//! Port I/O of all widths.
//!
//! No port of the machines that a guest runs on reads or writes memory by itself, so none of this can harm Rust's objects.

use core::arch::asm;

/// IN AL, DX.
pub fn read8(port: u16) -> u8 {
    let value;
    // SAFETY: see the module's head.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags)) };
    value
}

/// IN AX, DX.
pub fn read16(port: u16) -> u16 {
    let value;
    // SAFETY: see the module's head.
    unsafe { asm!("in ax, dx", in("dx") port, out("ax") value, options(nomem, nostack, preserves_flags)) };
    value
}

/// IN EAX, DX.
pub fn read32(port: u16) -> u32 {
    let value;
    // SAFETY: see the module's head.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack, preserves_flags)) };
    value
}

/// OUT DX, AL.
pub fn write8(port: u16, value: u8) {
    // SAFETY: see the module's head.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags)) };
}

/// OUT DX, AX.
pub fn write16(port: u16, value: u16) {
    // SAFETY: see the module's head.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack, preserves_flags)) };
}

/// OUT DX, EAX.
pub fn write32(port: u16, value: u32) {
    // SAFETY: see the module's head.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack, preserves_flags)) };
}
