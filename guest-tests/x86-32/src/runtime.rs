//! What the compiler calls and a system's C library has otherwise.
//!
//! Named as C names them, so that they also come before those of `compiler_builtins`, where that has any.

use core::arch::asm;

/// Copies up.
///
/// # Safety
/// As C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: the caller's promise. ESI is LLVM's own, so it is exchanged for the time.
    unsafe {
        asm!("xchg esi, {from}", "rep movsb", "xchg esi, {from}",
            from = inout(reg) from => _, inout("ecx") count => _, inout("edi") to => _, options(nostack, preserves_flags));
    }
    to
}

/// Copies up or down, so that ranges may overlap.
///
/// # Safety
/// As C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    if to.addr().wrapping_sub(from.addr()) >= count {
        // SAFETY: the caller's promise; what is copied is read before it is overwritten.
        return unsafe { memcpy(to, from, count) };
    }
    let (last_to, last_from) = (to.wrapping_add(count).wrapping_sub(1), from.wrapping_add(count).wrapping_sub(1));
    // SAFETY: as above, from the end on; the direction flag is clear again afterwards.
    unsafe {
        asm!("xchg esi, {from}", "std", "rep movsb", "cld", "xchg esi, {from}",
            from = inout(reg) last_from => _, inout("ecx") count => _, inout("edi") last_to => _, options(nostack));
    }
    to
}

/// Fills.
///
/// # Safety
/// As C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, count: usize) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("rep stosb", in("al") byte as u8, inout("ecx") count => _, inout("edi") to => _,
            options(nostack, preserves_flags));
    }
    to
}

/// Compares.
///
/// # Safety
/// As C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, count: usize) -> i32 {
    for index in 0..count {
        // SAFETY: the caller's promise.
        let left = unsafe { left.wrapping_add(index).read_volatile() };
        // SAFETY: as above.
        let right = unsafe { right.wrapping_add(index).read_volatile() };
        if left != right {
            return i32::from(left) - i32::from(right);
        }
    }
    0
}
