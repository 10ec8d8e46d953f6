//! Interrupts, and what handles them.

use core::arch::{asm, naked_asm};
use core::mem;
use core::ptr;
use core::sync::atomic::{
    AtomicPtr,
    Ordering::{Acquire, Release},
};

/// Non-maskable interrupt.
pub const NMI: u8 = 2;

/// What handles an interrupt with this vector. The end of interrupt is its own affair.
pub type Handler = fn(u8);

/// The handlers of vectors that have one of their own.
static HANDLERS: [AtomicPtr<()>; 256] = [const { AtomicPtr::new(ptr::null_mut()) }; 256];

/// From now on `handler` handles `vector` on all processors, with interrupts off.
pub fn handle(vector: u8, handler: Handler) {
    HANDLERS[usize::from(vector)].store(handler as *mut (), Release);
}

/// The library handles `vector` again.
pub fn handle_no_more(vector: u8) {
    HANDLERS[usize::from(vector)].store(ptr::null_mut(), Release);
}

/// To be called by the library's stubs: whether `vector` has a handler of its own, which then has handled it.
pub fn handled(vector: u8) -> bool {
    let handler = HANDLERS[usize::from(vector)].load(Acquire);
    if handler.is_null() {
        return false;
    }
    // SAFETY: only `handle` stores there, and it stores such a function.
    let handler = unsafe { mem::transmute::<*mut (), Handler>(handler) };
    handler(vector);
    true
}

/// STI.
pub fn enable() {
    // SAFETY: the handlers preserve all that they interrupt.
    unsafe { asm!("sti", options(nostack)) };
}

/// CLI.
pub fn disable() {
    // SAFETY: it keeps handlers from running, no more.
    unsafe { asm!("cli", options(nostack)) };
}

/// STI, HLT, CLI: a pending interrupt wakes the processor.
#[unsafe(naked)]
pub extern "C" fn halt_until_interrupt() {
    naked_asm!("sti", "hlt", "cli", "ret")
}

/// Where the waking interrupt of [`halt_until_interrupt`] comes: STI and HLT have a byte each.
pub fn after_the_halt() -> u64 {
    halt_until_interrupt as *const () as u64 + 2
}

/// Runs `body` with interrupts off, and has the interrupt flag as before afterwards.
pub fn held_off<R>(body: impl FnOnce() -> R) -> R {
    const FLAG: usize = 1 << 9;
    let flags: usize;
    // In AT&T's syntax PUSHF has the width of the mode.
    // SAFETY: what is pushed is popped at once; see `disable`.
    unsafe { asm!("pushf", "pop {}", "cli", out(reg) flags, options(att_syntax)) };
    let result = body();
    if flags & FLAG != 0 {
        enable();
    }
    result
}
