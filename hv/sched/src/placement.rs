//! Which CPU a vCPU is bound to.

use core::ops::Range;

/// The CPUs of a VM's vCPUs.
///
/// All VMs' vCPUs are numbered through, and dealt to the CPUs in turn.
///
/// ```
/// // CPU 0 runs no guests. Another VM has vCPU 0.
/// let second = sched::Placement { first: 1, cpus: 1..4 };
/// assert_eq!([0, 1, 2].map(|vcpu| second.cpu_of(vcpu)), [2, 3, 1]);
/// ```
#[derive(Clone, Debug)]
pub struct Placement {
    /// The number of the VM's boot vCPU among all vCPUs.
    pub first: usize,
    /// The CPUs that run guests. Not empty.
    pub cpus: Range<usize>,
}

impl Placement {
    /// The CPU of the VM's vCPU `vcpu`.
    #[must_use]
    pub fn cpu_of(&self, vcpu: usize) -> usize {
        self.cpus.start + (self.first + vcpu) % self.cpus.len()
    }
}
