//! What the compiler calls and a C library has otherwise. Byte by byte: nothing here moves much, and a page is filled and compared
//! by the words of its pattern.
//!
//! The reads are volatile, because LLVM makes a call of the function itself of a plain loop.

/// Copies up.
///
/// # Safety
/// As C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    for index in 0..count {
        // SAFETY: the caller's promise.
        let byte = unsafe { from.wrapping_add(index).read_volatile() };
        // SAFETY: as above.
        unsafe { to.wrapping_add(index).write_volatile(byte) };
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
    for index in (0..count).rev() {
        // SAFETY: the caller's promise.
        let byte = unsafe { from.wrapping_add(index).read_volatile() };
        // SAFETY: as above.
        unsafe { to.wrapping_add(index).write_volatile(byte) };
    }
    to
}

/// Fills.
///
/// # Safety
/// As C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, count: usize) -> *mut u8 {
    for index in 0..count {
        // SAFETY: the caller's promise.
        unsafe { to.wrapping_add(index).write_volatile(byte as u8) };
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

/// The length of a string.
///
/// # Safety
/// As C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(string: *const u8) -> usize {
    let mut length = 0;
    // SAFETY: the caller's promise: a zero ends the string.
    while unsafe { string.wrapping_add(length).read_volatile() } != 0 {
        length += 1;
    }
    length
}
