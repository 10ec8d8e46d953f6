//! The CPUs that take part.

use core::ops::Range;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

/// The CPUs that take part, by number: how many there are, their APIC IDs, their stacks. The boot CPU, number 0, adds the others, one
/// after the other, while these read the table.
///
/// ```
/// let cpus = firmware::CpuTable::<4>::new();
/// cpus.set_apic_id(1, 8);
/// cpus.set_stack(1, 0x1000..0x2000);
/// cpus.set_online(1);
/// assert_eq!((cpus.online(), cpus.with_apic_id(8)), (2, 1));
/// assert!(cpus.is_stack(0x1ff0, 16));
/// ```
#[derive(Debug)]
pub struct CpuTable<const MAX: usize> {
    online: AtomicUsize,
    apic_ids: [AtomicU32; MAX],
    stacks: [Stack; MAX],
}

/// Where a stack begins, above its guard, and ends.
#[derive(Debug)]
struct Stack {
    bottom: AtomicU64,
    top: AtomicU64,
}

impl<const MAX: usize> CpuTable<MAX> {
    /// The boot CPU alone.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it is for a static: only a constant function will do")]
    pub const fn new() -> Self {
        Self {
            online: AtomicUsize::new(1),
            apic_ids: [const { AtomicU32::new(0) }; MAX],
            stacks: [const { Stack { bottom: AtomicU64::new(0), top: AtomicU64::new(0) } }; MAX],
        }
    }

    /// How many CPUs there are to work with.
    #[inline]
    pub fn online(&self) -> usize {
        self.online.load(Ordering::Acquire)
    }

    /// CPU `cpu` is online, as all before it are.
    pub fn set_online(&self, cpu: usize) {
        self.online.store(cpu + 1, Ordering::Release);
    }

    /// The APIC ID of CPU `cpu`.
    #[inline]
    pub fn apic_id(&self, cpu: usize) -> u32 {
        self.apic_ids[cpu].load(Ordering::Relaxed)
    }

    /// CPU `cpu` is the one with this APIC ID.
    pub fn set_apic_id(&self, cpu: usize, id: u32) {
        self.apic_ids[cpu].store(id, Ordering::Relaxed);
    }

    /// The CPU with this APIC ID, of those that are online; the boot CPU if there is none.
    pub fn with_apic_id(&self, id: u32) -> usize {
        self.apic_ids.iter().take(self.online()).position(|other| other.load(Ordering::Relaxed) == id).unwrap_or(0)
    }

    /// CPU `cpu` has its stack in these addresses.
    pub fn set_stack(&self, cpu: usize, stack: Range<u64>) {
        self.stacks[cpu].bottom.store(stack.start, Ordering::Relaxed);
        self.stacks[cpu].top.store(stack.end, Ordering::Relaxed);
    }

    /// Whether `bytes` bytes at `address` are of one of these stacks, which the boot CPU's is not.
    pub fn is_stack(&self, address: u64, bytes: u64) -> bool {
        let Some(end) = address.checked_add(bytes) else { return false };
        let has =
            |stack: &Stack| stack.bottom.load(Ordering::Relaxed) <= address && end <= stack.top.load(Ordering::Relaxed);
        self.stacks.iter().any(has)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_apic_id_is_looked_for_among_cpus_that_are_online() {
        let cpus = CpuTable::<3>::new();
        cpus.set_apic_id(0, 4);
        cpus.set_apic_id(1, 6);
        assert_eq!([4, 6, 0].map(|id| cpus.with_apic_id(id)), [0; 3], "CPU 1 is on its way");
        cpus.set_online(1);
        assert_eq!([4, 6, 0].map(|id| cpus.with_apic_id(id)), [0, 1, 0]);
        assert_eq!([cpus.apic_id(0), cpus.apic_id(1)], [4, 6]);
    }

    #[test]
    fn a_word_is_of_a_stack_if_all_of_it_is() {
        let cpus = CpuTable::<3>::new();
        assert!(!cpus.is_stack(0, 16), "there is none");
        cpus.set_stack(1, 0x2000..0x3000);
        for (address, expected) in [(0x1ff8, false), (0x2000, true), (0x2ff0, true), (0x2ff8, false), (0x3000, false)] {
            assert_eq!(cpus.is_stack(address, 16), expected, "{address:#x}");
        }
        assert!(!cpus.is_stack(u64::MAX - 7, 16), "the sum passes the end of the address space");
    }
}
