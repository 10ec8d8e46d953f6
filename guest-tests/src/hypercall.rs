//! Hypercalls: number in RAX, arguments in RBX, RCX, RDX and RSI, the result in RAX, negative for errors (KVM's
//! convention).

use core::arch::naked_asm;

use core::fmt;

use crate::cpuid::{self, Host, Vendor};
use crate::ram::{Area, Block, Frame};

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
        self.call_with(number, [0; 3])
    }

    /// The hypercall `number` with arguments in RBX, RCX and RDX. Not public, because some change memory.
    fn call_with(self, number: u64, [rbx, rcx, rdx]: [u64; 3]) -> i64 {
        match self {
            Self::Vmmcall => vmmcall(number, rbx, rdx, rcx),
            Self::Vmcall => vmcall(number, rbx, rdx, rcx),
        }
    }
}

macro_rules! hypercall {
    ($name:ident, $instruction:literal) => {
        // No hypercall changes any register but RAX. RDX and RCX are where C's third and fourth argument are.
        #[unsafe(naked)]
        extern "C" fn $name(number: u64, rbx: u64, rdx: u64, rcx: u64) -> i64 {
            naked_asm!("push rbx", "mov rax, rdi", "mov rbx, rsi", "xor esi, esi", $instruction, "pop rbx", "ret")
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

/// Why this hypervisor refused a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// Another processor was faster (EAGAIN).
    Raced,
    /// No frame; nothing has changed (ENOMEM).
    NoMemory,
    /// The range is not all RAM (EFAULT).
    NotRam,
    /// The arguments make no sense, or there is nothing to do this to (EINVAL).
    Invalid,
    /// There is no such call ([`ENOSYS`]).
    NoSuchCall,
    /// Something else.
    Other(i64),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl From<i64> for Refused {
    fn from(result: i64) -> Self {
        match result {
            -11 => Self::Raced,
            -12 => Self::NoMemory,
            -14 => Self::NotRam,
            -22 => Self::Invalid,
            ENOSYS => Self::NoSuchCall,
            other => Self::Other(other),
        }
    }
}

/// What of a VM's memory is mapped, as seen without a lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Report {
    /// 4 KiB pages.
    pub small: u64,
    /// 2 MiB pages.
    pub large: u64,
}

impl Report {
    /// All of it in 4 KiB pages.
    pub fn frames(self) -> u64 {
        self.small + self.large * addr::PageSize::Size2M.frames()
    }
}

/// What [`Microhv::stat`] tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum Stat {
    /// Operations on the VM's tables so far.
    Operations = 0,
    /// Frames that wait for a grace period.
    Backlog = 1,
    /// The most that did at once.
    PeakBacklog = 2,
    /// Grace periods so far, of all VMs.
    GracePeriods = 3,
    /// Processors kicked for this VM.
    Kicks = 4,
    /// Frames that the VM has.
    FramesInUse = 5,
    /// Flushes of this VM's translations.
    Flushes = 6,
}

/// Which of the VM's next allocations fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failing {
    /// None.
    None,
    /// The n-th from now on, n being 1 or more.
    Nth(u64),
    /// All.
    All,
}

/// This project's hypervisor, and what it does for guests that test it. Each call concerns the caller's own memory, of which
/// only what no Rust object has can be named.
#[derive(Clone, Copy, Debug)]
pub struct Microhv(Instruction);

impl Microhv {
    /// None under anybody else.
    pub fn here() -> Option<Self> {
        instruction().filter(|_| cpuid::host() == Host::Microhv).map(Self)
    }

    /// Gives the frames of `area` back: it reads as zeros afterwards. How many there were.
    pub fn release(self, area: Area) -> Result<u64, Refused> {
        self.call(2, [area.gpa().raw(), area.bytes(), 0])
    }

    /// Makes 512 pages of a 2 MiB one.
    pub fn split(self, block: Block) -> Result<(), Refused> {
        self.call(3, [block.gpa().raw(), 0, 0]).map(drop)
    }

    /// Makes one page of 512, in other frames.
    pub fn collapse(self, block: Block) -> Result<(), Refused> {
        self.call(4, [block.gpa().raw(), 0, 0]).map(drop)
    }

    /// Begins to log writes to `area`, without telling which there were.
    pub fn start_dirty_log(self, area: Area) -> Result<(), Refused> {
        self.call(5, [area.gpa().raw(), area.bytes(), 0]).map(drop)
    }

    /// Sets in `bitmap` a bit for each page of `area` that was written since its last log, and begins anew. How many.
    pub fn log_dirty(self, area: Area, bitmap: Frame) -> Result<u64, Refused> {
        assert!(area.frames() <= 8 * addr::PAGE_SIZE, "a bit each of one frame");
        self.call(5, [area.gpa().raw(), area.bytes(), bitmap.gpa().raw()])
    }

    /// Puts another frame in the place of this one, with the same contents, and poison into this one.
    pub fn replace(self, frame: Frame) -> Result<(), Refused> {
        self.call(6, [frame.gpa().raw(), 0, 0]).map(drop)
    }

    /// What is mapped.
    pub fn report(self) -> Result<Report, Refused> {
        self.call(7, [0; 3]).map(|pages| Report { small: pages & 0xffff_ffff, large: pages >> 32 })
    }

    /// A count.
    pub fn stat(self, which: Stat) -> Result<u64, Refused> {
        self.call(8, [which as u64, 0, 0])
    }

    /// Plans which allocations fail.
    pub fn fail_allocations(self, failing: Failing) -> Result<(), Refused> {
        let n = match failing {
            Failing::None => 0,
            Failing::Nth(n) => n.max(1),
            Failing::All => u64::MAX,
        };
        self.call(9, [n, 0, 0]).map(drop)
    }

    /// Leaves the flush of an operation out from now on: 1 release, 2 dirty log, 3 replace, 4 collapse, 5 split; 0 none.
    pub fn skip_flush(self, which: u64) -> Result<(), Refused> {
        self.call(10, [which, 0, 0]).map(drop)
    }

    /// Takes a page away for good: its entry in the nested tables makes no sense from then on.
    pub fn spoil(self, frame: Frame) -> Result<(), Refused> {
        self.call(11, [frame.gpa().raw(), 0, 0]).map(drop)
    }

    fn call(self, call: u64, arguments: [u64; 3]) -> Result<u64, Refused> {
        let result = self.0.call_with(NOP + call, arguments);
        u64::try_from(result).map_err(|_| Refused::from(result))
    }
}
