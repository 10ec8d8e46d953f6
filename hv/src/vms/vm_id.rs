//! Which VM one is.

use loader::VmName;
use sched::Placement;

/// A VM's place among the VMs.
pub(super) struct VmId {
    pub(super) number: usize,
    pub(super) placement: Placement,
    /// On the console, if there are several VMs.
    pub(super) name: Option<VmName>,
}
