//! Parts of the hypervisor's texts, of verdicts and of other lines, by which `xtask`'s tests tell one reason from another.

use core::fmt;

/// A VM touched memory for which there was no frame.
pub const NO_FRAME: &str = "no frame left for the guest's memory";
/// Each vCPU of a VM is halted, and nothing wakes one.
pub const HALTED: &str = "the guest halted with interrupts off: nothing can wake it";
/// A VM ran longer than it may.
pub const PAST_LIMIT: &str = "the guest ran past its limit";
/// An entry of a VM's nested tables is none that the hypervisor writes.
pub const MISCONFIGURED: &str = "the nested tables have an entry that makes no sense";
/// Before the entries on the way to an address, which follow.
pub const NESTED_PATH: &str = "the nested tables on the way to";
/// An event is delivered on a stack where the guest may not simply write: in a page table that translates it, say.
pub const DELIVERY_WRITES: &str = "the delivery of an event writes memory that has to be emulated";
/// The processor loaded the CR3 of a guest's task, where only the shadow's may be loaded.
pub const SWITCHED_TASKS: &str = "the processor switched tasks without an exit, which shadow paging can't follow";
/// A guest without nested paging sets EFER.LME.
pub const ASKS_FOR_LONG_MODE: &str = "a guest asks for long mode";
/// VMs may touch more memory than there is.
pub const OVERCOMMITTED: &str = "frames of RAM more than there are";
/// A VM's memory has to be there from the start, and is not.
pub const RESERVED: &str = "for its memory, which is reserved";
/// The hypervisor would need more for its VMs than the machine has.
pub const HEAP: &str = "of the hypervisor's heap";
/// The processor has no SVM.
pub const SVM: &str = "SVM: CPUID 8000_0001h, ECX bit 2";
/// The processor has VMX, but no nested paging.
pub const EPT: &str = "EPT: IA32_VMX_PROCBASED_CTLS2 (48Bh) bit 33";
/// The processor can't walk nested tables.
pub const NESTED_PAGING: &str = "nested paging";
/// An image has a header that is damaged.
pub const WRONG_CHECKSUM: &str = "has a wrong checksum";
/// A self-test that needs a second CPU.
pub const ONE_CPU: &str = "one CPU gets stuck and another tells, but there is one";
/// The text of the panic that a self-test asks for.
pub const SELF_TEST: &str = "the self-test asked for it";

/// The feature of this name, which a VM was to have.
#[derive(Clone, Copy, Debug)]
pub struct Feature(pub &'static str);

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the feature {}", self.0)
    }
}

/// This segment of an image, from 0, which was refused.
#[derive(Clone, Copy, Debug)]
pub struct Segment(pub usize);

impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "segment {}", self.0)
    }
}

/// This CPU stays in the hypervisor.
#[derive(Clone, Copy, Debug)]
pub struct Stuck(pub usize);

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CPU {} is stuck", self.0)
    }
}

/// Follows the reason for a reset after which the VM does not end.
pub const BEGINS_ANEW: &str = "the VM begins anew";

/// Before the table of a VM's exits that is printed while it runs.
pub const EXITS_SO_FAR: &str = "exits so far:";
