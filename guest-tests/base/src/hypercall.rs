//! Hypercalls, by either instruction, and those of this project's hypervisor. [`abi::hypercall`] has the convention.

pub use abi::hypercall::{AllocationFailures, FlushPoint, Mapped, Number, Refused};
use abi::hypercall::{TestCall, decode_result};
use core::arch::naked_asm;
use core::num::NonZero;

use crate::cpuid::{self, Hypervisor, Vendor};
use crate::ram::{Area, Block, Frame};

/// Does nothing, returns 0.
pub const NOP: u64 = Number::Nop as u64;
/// Returns the version of the interface.
pub const VERSION: u64 = Number::Version as u64;
/// A number without a meaning.
pub const UNKNOWN: u64 = NOP | 0xffff;

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
        self.call_with(number, [0; 3])
    }

    /// The hypercall `number` with arguments in RBX, RCX and RDX, or the low halves of these. Not public, because some change
    /// memory.
    fn call_with(self, number: u64, arguments: [u64; 3]) -> i64 {
        let [number, rbx, rcx, rdx] = [number, arguments[0], arguments[1], arguments[2]].map(|value| value as usize);
        let result = match self {
            Self::Vmmcall => vmmcall(number, rbx, rdx, rcx),
            Self::Vmcall => vmcall(number, rbx, rdx, rcx),
        };
        result as i64
    }
}

macro_rules! hypercall {
    ($name:ident, $instruction:literal) => {
        // No hypercall changes any register but RAX. RDX and RCX are where C's third and fourth argument are.
        #[cfg(target_arch = "x86_64")]
        #[unsafe(naked)]
        extern "C" fn $name(number: usize, rbx: usize, rdx: usize, rcx: usize) -> isize {
            naked_asm!("push rbx", "mov rax, rdi", "mov rbx, rsi", "xor esi, esi", $instruction, "pop rbx", "ret")
        }

        // The arguments are behind two pushes and the return address.
        #[cfg(target_arch = "x86")]
        #[unsafe(naked)]
        extern "C" fn $name(number: usize, ebx: usize, edx: usize, ecx: usize) -> isize {
            naked_asm!(
                "push ebx",
                "push esi",
                "mov eax, [esp + 12]",
                "mov ebx, [esp + 16]",
                "mov edx, [esp + 20]",
                "mov ecx, [esp + 24]",
                "xor esi, esi",
                $instruction,
                "pop esi",
                "pop ebx",
                "ret"
            )
        }
    };
}
hypercall!(vmmcall, "vmmcall");
hypercall!(vmcall, "vmcall");

/// The instruction that calls the hypervisor below this guest; None on a bare machine and below a hypervisor that is not
/// known to answer, where it would be #UD.
pub fn instruction() -> Option<Instruction> {
    match cpuid::hypervisor() {
        Hypervisor::Microhv | Hypervisor::Kvm => Some(match cpuid::vendor() {
            Vendor::Amd => Instruction::Vmmcall,
            Vendor::Other => Instruction::Vmcall,
        }),
        Hypervisor::Bare | Hypervisor::Other => None,
    }
}

/// This project's hypervisor, and what it does for guests that test it. Each call concerns the caller's own memory, of which
/// only what no Rust object has can be named.
#[derive(Clone, Copy, Debug)]
pub struct Microhv(Instruction);

impl Microhv {
    /// None below another hypervisor, or none.
    pub fn here() -> Option<Self> {
        instruction().filter(|_| cpuid::hypervisor() == Hypervisor::Microhv).map(Self)
    }

    /// Gives the frames of `area` back: it reads as zeros afterwards. How many there were.
    pub fn release(self, area: Area) -> Result<u64, Refused> {
        self.call(TestCall::Release { start: area.gpa().raw(), bytes: area.bytes() })
    }

    /// Makes 512 pages of a 2 MiB one.
    pub fn split(self, block: Block) -> Result<(), Refused> {
        self.call(TestCall::Split { at: block.gpa().raw() }).map(drop)
    }

    /// Makes one page of 512, in other frames.
    pub fn collapse(self, block: Block) -> Result<(), Refused> {
        self.call(TestCall::Collapse { at: block.gpa().raw() }).map(drop)
    }

    /// Begins to log writes to `area`, without telling which there were.
    pub fn start_dirty_log(self, area: Area) -> Result<(), Refused> {
        self.log(area, None).map(drop)
    }

    /// Sets in `bitmap` a bit for each page of `area` that was written since its last log, and begins anew. How many.
    pub fn log_dirty(self, area: Area, bitmap: Frame) -> Result<u64, Refused> {
        assert!(area.frames() <= 8 * addr::PAGE_SIZE, "a bit each of one frame");
        self.log(area, NonZero::new(bitmap.gpa().raw()))
    }

    fn log(self, area: Area, bitmap: Option<NonZero<u64>>) -> Result<u64, Refused> {
        self.call(TestCall::LogDirty { start: area.gpa().raw(), bytes: area.bytes(), bitmap })
    }

    /// Puts another frame in the place of this one, with the same contents, and poison into this one.
    pub fn replace(self, frame: Frame) -> Result<(), Refused> {
        self.call(TestCall::Replace { at: frame.gpa().raw() }).map(drop)
    }

    /// What is mapped.
    pub fn report(self) -> Result<Mapped, Refused> {
        self.call(TestCall::Report).map(Mapped::from)
    }

    /// Plans which allocations fail.
    pub fn fail_allocations(self, failures: AllocationFailures) -> Result<(), Refused> {
        self.call(TestCall::FailAllocations(failures)).map(drop)
    }

    /// Leaves the flush of an operation out from now on.
    pub fn skip_flush(self, point: FlushPoint) -> Result<(), Refused> {
        self.call(TestCall::SkipFlush(Some(point))).map(drop)
    }

    /// Takes a page away for good: its entry in the nested tables makes no sense from then on.
    pub fn misconfigure(self, frame: Frame) -> Result<(), Refused> {
        self.call(TestCall::Misconfigure { at: frame.gpa().raw() }).map(drop)
    }

    /// An error that the interface does not have, or not for this call, is a fault of the hypervisor's: the guest ends.
    fn call(self, call: TestCall) -> Result<u64, Refused> {
        let (number, [rbx, rcx, rdx, _]) = call.encode();
        let rax = self.0.call_with(number.into(), [rbx, rcx, rdx]).cast_unsigned();
        let result = decode_result(rax).unwrap_or_else(|error| panic!("{number} returned {rax:#x}: {error}"));
        if let Err(refused) = result {
            assert!(number.errors().contains(&refused), "{number} is not to be refused so: {refused}");
        }
        result
    }
}
