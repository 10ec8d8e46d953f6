//! Carries hypercalls out. [`abi::hypercall`] has their numbers, arguments and errors.

use crate::memory::Memory;
use crate::vcpu::Vcpu;
use abi::hypercall::{ABI_VERSION, Number, Refused, TestCall, encode_result};
use emul::Gpr;

const NOP: u64 = Number::Nop as u64;
const VERSION: u64 = Number::Version as u64;

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
        encode_result(Err(Refused::NotPermitted))
    } else {
        match vcpu.gpr(Gpr::RAX) {
            NOP => 0,
            VERSION => ABI_VERSION,
            number => match test_call(vcpu, memory, number) {
                Some(result) => encode_result(result),
                None => return Call::Unfinished,
            },
        }
    };
    vcpu.set_gpr(Gpr::RAX, result);
    Call::Done
}

/// Operations on the guest's own memory, for guests that test the hypervisor.
#[cold]
fn test_call(vcpu: &impl Vcpu, memory: &mut impl Memory, number: u64) -> Option<Result<u64, Refused>> {
    let arguments = [Gpr::RBX, Gpr::RCX, Gpr::RDX, Gpr::RSI].map(|register| vcpu.gpr(register));
    match TestCall::decode(number, arguments) {
        Ok(call) => memory.test_call(call),
        Err(refused) => Some(Err(refused)),
    }
}
