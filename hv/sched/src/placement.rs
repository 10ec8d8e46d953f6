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
    /// The placements of VMs with so many vCPUs each, on the CPUs `cpus`.
    ///
    /// ```
    /// let mut vms = sched::Placement::deal([2, 2], 0..4);
    /// assert_eq!(vms.next().map(|vm| [vm.cpu_of(0), vm.cpu_of(1)]), Some([0, 1]));
    /// assert_eq!(vms.next().map(|vm| [vm.cpu_of(0), vm.cpu_of(1)]), Some([2, 3]));
    /// ```
    pub fn deal(vcpus: impl IntoIterator<Item = usize>, cpus: Range<usize>) -> impl Iterator<Item = Self> {
        let mut next = 0;
        vcpus.into_iter().map(move |vcpus| {
            let first = next;
            next += vcpus;
            Self { first, cpus: cpus.clone() }
        })
    }

    /// The CPU of the VM's vCPU `vcpu`.
    #[must_use]
    pub fn cpu_of(&self, vcpu: usize) -> usize {
        self.cpus.start + (self.first + vcpu) % self.cpus.len()
    }
}

#[cfg(test)]
mod tests {
    use super::Placement;
    use proptest::prelude::*;
    use std::vec::Vec;

    proptest! {
        #[test]
        fn vcpus_are_dealt_evenly_to_the_cpus_that_run_guests(
            vms in prop::collection::vec(1usize..17, 1..8),
            start in 0usize..2,
            count in 1usize..64,
        ) {
            let placements = Placement::deal(vms.iter().copied(), start..start + count);
            let each = placements.zip(&vms).flat_map(|(vm, &vcpus)| (0..vcpus).map(move |vcpu| vm.cpu_of(vcpu)));
            let dealt: Vec<_> = each.collect();
            prop_assert_eq!(dealt.len(), vms.iter().sum::<usize>());
            let on = |cpu: usize| dealt.iter().filter(|dealt| **dealt == cpu).count();
            let (fewest, most) = (dealt.len() / count, dealt.len().div_ceil(count));
            for cpu in start..start + count {
                prop_assert!((fewest..=most).contains(&on(cpu)), "{} on CPU {}", on(cpu), cpu);
            }
            prop_assert!(dealt.iter().all(|cpu| (start..start + count).contains(cpu)));
        }
    }
}
