//! The machine's CPUs that take part. [`smp`](crate::smp) enters them.

use firmware::CpuTable;

/// As many CPUs as can take part.
pub(crate) const MAX_CPUS: usize = 64;

/// The boot CPU's stack is not in it, but in the image.
pub(crate) static CPUS: CpuTable<MAX_CPUS> = CpuTable::new();

/// How many CPUs there are to work with.
pub(crate) fn online() -> usize {
    CPUS.online()
}
