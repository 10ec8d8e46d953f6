//! Hypercalls: number in RAX, arguments in RBX, RCX, RDX and RSI, the result in RAX, negative for errors (KVM's
//! convention).

use core::arch::naked_asm;

use crate::cpuid::{self, Host, Vendor};

/// Does nothing, returns 0.
pub const NOP: u64 = 0x4856_0000;
/// Returns the version of the interface.
pub const VERSION: u64 = 0x4856_0001;
/// A number that nobody has given a meaning.
pub const UNKNOWN: u64 = 0x4856_ffff;
/// What an unknown number returns (KVM_ENOSYS).
pub const ENOSYS: i64 = -1000;
/// What any number returns outside ring 0.
pub const EPERM: i64 = -1;

/// The instruction that calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Instruction {
    /// AMD's.
    Vmmcall,
    /// Intel's.
    Vmcall,
}

impl Instruction {
    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::Vmmcall => Self::Vmcall,
            Self::Vmcall => Self::Vmmcall,
        }
    }

    /// The hypercall `number` with all arguments 0.
    pub fn call(self, number: u64) -> i64 {
        match self {
            Self::Vmmcall => vmmcall(number),
            Self::Vmcall => vmcall(number),
        }
    }
}

macro_rules! hypercall {
    ($name:ident, $instruction:literal) => {
        // No hypercall that exists touches memory, or any register but RAX.
        #[unsafe(naked)]
        extern "C" fn $name(number: u64) -> i64 {
            naked_asm!(
                "push rbx",
                "mov rax, rdi",
                "xor ebx, ebx",
                "xor ecx, ecx",
                "xor edx, edx",
                "xor esi, esi",
                $instruction,
                "pop rbx",
                "ret"
            )
        }
    };
}
hypercall!(vmmcall, "vmmcall");
hypercall!(vmcall, "vmcall");

/// The instruction by which the one who runs this guest is called; None on a bare machine and under anybody who is not
/// known to answer, where it would be #UD.
pub fn instruction() -> Option<Instruction> {
    match cpuid::host() {
        Host::Microhv | Host::Kvm => Some(match cpuid::vendor() {
            Vendor::Amd => Instruction::Vmmcall,
            Vendor::Other => Instruction::Vmcall,
        }),
        Host::Bare | Host::Other => None,
    }
}
