//! The machine's CPUs that take part: how many there are, their APIC IDs, their stacks. [`smp`](crate::smp) enters them.

use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

/// As many CPUs as can take part.
pub(crate) const MAX_CPUS: usize = 64;

/// CPUs that are online. They come one after the other, and the boot CPU counts them.
static ONLINE: AtomicUsize = AtomicUsize::new(1);

/// Their APIC IDs, by CPU number.
static APIC_IDS: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];

/// Where their stacks begin, above the guard, and end; that of the boot CPU is in the image.
static STACKS: [Stack; MAX_CPUS] = [const { Stack { bottom: AtomicU64::new(0), top: AtomicU64::new(0) } }; MAX_CPUS];

struct Stack {
    bottom: AtomicU64,
    top: AtomicU64,
}

/// How many CPUs there are to work with.
pub(crate) fn online() -> usize {
    ONLINE.load(Ordering::Acquire)
}

/// CPU `cpu` is online, as all before it are.
pub(crate) fn set_online(cpu: usize) {
    ONLINE.store(cpu + 1, Ordering::Release);
}

/// The APIC ID of CPU `cpu`.
pub(crate) fn apic_id(cpu: usize) -> u32 {
    APIC_IDS[cpu].load(Ordering::Relaxed)
}

/// CPU `cpu` is the one with this APIC ID.
pub(crate) fn set_apic_id(cpu: usize, id: u32) {
    APIC_IDS[cpu].store(id, Ordering::Relaxed);
}

/// The CPU with this APIC ID; the boot CPU if there is none.
pub(crate) fn with_apic_id(id: u32) -> usize {
    APIC_IDS.iter().take(online()).position(|other| other.load(Ordering::Relaxed) == id).unwrap_or(0)
}

/// CPU `cpu` has its stack in these addresses.
pub(crate) fn set_stack(cpu: usize, stack: core::ops::Range<u64>) {
    STACKS[cpu].bottom.store(stack.start, Ordering::Relaxed);
    STACKS[cpu].top.store(stack.end, Ordering::Relaxed);
}

/// Whether 16 bytes at `address` are of an AP's stack.
pub(crate) fn is_stack(address: u64) -> bool {
    let ends =
        |stack: &Stack| stack.bottom.load(Ordering::Relaxed)..stack.top.load(Ordering::Relaxed).saturating_sub(16);
    STACKS.iter().any(|stack| ends(stack).contains(&address))
}
