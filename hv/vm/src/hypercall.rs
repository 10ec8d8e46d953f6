//! Hypercalls: VMMCALL or VMCALL, in KVM's convention, so that the same guest measures both hypervisors.
//!
//! The page for who writes guests is `hv/abi/docs/guest-interface.md`.

use crate::exit_handler::Memory;
use crate::vcpu::Vcpu;
use emul::Gpr;

/// The first number of this hypervisor's own; KVM's are small.
pub const BASE: u64 = 0x4856_0000;
/// Does nothing and returns 0.
pub const NOP: u64 = BASE;
/// Returns [`ABI_VERSION`].
pub const VERSION: u64 = BASE + 1;

/// The version of this interface.
pub const ABI_VERSION: u64 = 1;

/// There is no such hypercall (KVM_ENOSYS of Linux's include/uapi/linux/kvm_para.h).
pub(crate) const NO_SUCH_CALL: i64 = -1000;
/// Not from user mode (KVM_EPERM).
const NOT_PERMITTED: i64 = -1;

/// What has become of a hypercall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// Its result is in RAX.
    Done,
    /// A step of it is done. The guest's instruction has to run again, with the same registers.
    Unfinished,
}

/// Carries out the hypercall in the guest's registers.
#[inline]
pub(crate) fn call(vcpu: &mut impl Vcpu, memory: &mut impl Memory) -> Call {
    let result = if vcpu.control().cpl != 0 {
        NOT_PERMITTED.cast_unsigned()
    } else {
        match vcpu.gpr(Gpr::RAX) {
            NOP => 0,
            VERSION => ABI_VERSION,
            number => match test_call(vcpu, memory, number) {
                Some(result) => result.cast_unsigned(),
                None => return Call::Unfinished,
            },
        }
    };
    vcpu.set_gpr(Gpr::RAX, result);
    Call::Done
}

/// Operations on the guest's own memory, for guests that test the hypervisor.
#[cold]
fn test_call(vcpu: &impl Vcpu, memory: &mut impl Memory, number: u64) -> Option<i64> {
    memory.test_call(number, [Gpr::RBX, Gpr::RCX, Gpr::RDX, Gpr::RSI].map(|register| vcpu.gpr(register)))
}
