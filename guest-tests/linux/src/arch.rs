//! What differs between 32 and 64 bits: system calls, the entry, threads, probes, and the registers in a signal's frame.

#[cfg(target_arch = "x86_64")]
#[path = "arch/x86_64.rs"]
mod width;
#[cfg(target_arch = "x86")]
#[path = "arch/x86.rs"]
mod width;

pub(crate) use width::*;

unsafe extern "C" {
    /// Loads the word at `address`. If that faults, `fault` is filled in, and the result has no meaning.
    pub(crate) fn probe_load(address: usize, fault: *mut crate::probe::Fault) -> u32;
    /// Stores the word at `address`.
    pub(crate) fn probe_store(address: usize, fault: *mut crate::probe::Fault, word: u32);
    /// Calls the code at `address`, which has to be a RET.
    pub(crate) fn probe_execute(address: usize, fault: *mut crate::probe::Fault);
    /// Makes a thread that calls `entry` with `argument` on the stack that ends at `stack`; the kernel clears `alive` and wakes its
    /// futex when the thread ends. Returns its number, or a negated error.
    pub(crate) fn clone_thread(
        flags: usize,
        stack: usize,
        alive: *const core::sync::atomic::AtomicU32,
        entry: unsafe extern "C" fn(usize) -> !,
        argument: usize,
    ) -> isize;
    /// Returns from a signal's handler.
    pub(crate) fn restore_from_signal();

    static probe_load_access: u8;
    static probe_store_access: u8;
    static probe_landing: u8;
}

/// Whether a probe's own instruction is at this address.
pub(crate) fn is_probe(address: usize) -> bool {
    [&raw const probe_load_access, &raw const probe_store_access].iter().any(|label| label.addr() == address)
}

/// Where a probe goes on after its fault: at its RET.
pub(crate) fn landing() -> usize {
    (&raw const probe_landing).addr()
}
