//! Hypercalls: VMMCALL or VMCALL in KVM's convention, so that the same guest measures both hypervisors.
//!
//! The number is in RAX, arguments are in RBX, RCX, RDX and RSI, and the result is in RAX: a negative one is an error. Every other
//! register is kept. `docs/guest-interface.md` describes each call.

use crate::Unknown;
use crate::numbered::numbered;
use core::num::NonZero;

/// The version of this interface: what [`Number::Version`] returns.
pub const ABI_VERSION: u64 = 1;

/// The first number of this hypervisor's own; KVM's are small.
const BASE: u32 = 0x4856_0000;

numbered! {
    /// The number of a call. All but the first two are [test calls](TestCall).
    pub enum Number: u32 {
        /// Does nothing and returns 0.
        Nop = BASE, "nop";
        /// Returns [`ABI_VERSION`].
        Version = BASE + 1, "version";
        /// [`TestCall::Release`].
        Release = BASE + 2, "release";
        /// [`TestCall::Split`].
        Split = BASE + 3, "split";
        /// [`TestCall::Collapse`].
        Collapse = BASE + 4, "collapse";
        /// [`TestCall::LogDirty`].
        LogDirty = BASE + 5, "log-dirty";
        /// [`TestCall::Replace`].
        Replace = BASE + 6, "replace";
        /// [`TestCall::Report`].
        Report = BASE + 7, "report";
        /// [`TestCall::Stat`].
        Stat = BASE + 8, "stat";
        /// [`TestCall::FailAllocations`].
        FailAllocations = BASE + 9, "fail-allocations";
        /// [`TestCall::SkipFlush`].
        SkipFlush = BASE + 10, "skip-flush";
        /// [`TestCall::Misconfigure`].
        Misconfigure = BASE + 11, "misconfigure";
    }
}

impl Number {
    /// The errors that the call can return.
    #[must_use]
    pub const fn errors(self) -> &'static [Refused] {
        use Refused::{Invalid, NoMemory, NoSuchCall, NotPermitted, NotRam, Raced};
        match self {
            Self::Nop | Self::Version | Self::Report | Self::FailAllocations => &[NotPermitted],
            Self::Stat => &[NotPermitted, Invalid],
            Self::SkipFlush => &[NotPermitted, Invalid, NoSuchCall],
            Self::Release | Self::Split => &[NotPermitted, NoMemory, NotRam, Invalid],
            Self::Collapse | Self::LogDirty | Self::Replace => &[NotPermitted, Raced, NoMemory, NotRam, Invalid],
            Self::Misconfigure => &[NotPermitted, Raced, NoMemory, NotRam, Invalid, NoSuchCall],
        }
    }
}

impl From<Number> for u64 {
    fn from(number: Number) -> Self {
        u32::from(number).into()
    }
}

numbered! {
    /// Why a call was refused. The numbers are Linux's errors (include/uapi/asm-generic/errno-base.h), and KVM's for a call that
    /// there is not (include/uapi/linux/kvm_para.h). In every case but [`Raced`](Self::Raced) nothing has changed; a call that is
    /// carried out in steps keeps the steps that are done.
    pub enum Refused: i64 {
        /// The call came from a privilege level other than 0 (EPERM).
        NotPermitted = -1, "not permitted from this privilege level";
        /// Another processor changed the same page first (EAGAIN).
        Raced = -11, "another processor was faster";
        /// There is no frame for it (ENOMEM).
        NoMemory = -12, "no frame is left";
        /// The range is not, or not all, RAM (EFAULT).
        NotRam = -14, "the range is not all RAM";
        /// The arguments make no sense, or there is nothing to do this to (EINVAL).
        Invalid = -22, "the arguments make no sense here";
        /// There is no such call (KVM_ENOSYS).
        NoSuchCall = -1000, "no such call";
    }
}

impl core::error::Error for Refused {}

numbered! {
    /// What [`TestCall::Stat`] tells.
    pub enum Statistic: u64 {
        /// Operations on the VM's tables so far.
        Operations = 0, "operations";
        /// Pages that wait for a grace period.
        Backlog = 1, "backlog";
        /// The most pages that waited at once.
        PeakBacklog = 2, "peak-backlog";
        /// Grace periods so far, of all VMs.
        GracePeriods = 3, "grace-periods";
        /// CPUs interrupted for this VM so far.
        Kicks = 4, "kicks";
        /// Frames that the VM has.
        FramesInUse = 5, "frames-in-use";
        /// Flushes of this VM's translations so far.
        Flushes = 6, "flushes";
    }
}

numbered! {
    /// An operation on the tables that flushes translations. A split is none: both forms of the page mean the same.
    pub enum FlushPoint: u64 {
        /// Pages were given back.
        Release = 1, "release";
        /// Pages were write-protected to log writes.
        LogDirty = 2, "log-dirty";
        /// A page's frame was replaced.
        Replace = 3, "replace";
        /// Small pages became a large one.
        Collapse = 4, "collapse";
    }
}

/// Which of the VM's next allocations of frames fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllocationFailures {
    /// None.
    None,
    /// The n-th from now on. [`u64::MAX`] can't be told from [`All`](Self::All), and is that.
    Nth(NonZero<u64>),
    /// All.
    All,
}

impl From<u64> for AllocationFailures {
    fn from(argument: u64) -> Self {
        match NonZero::new(argument) {
            None => Self::None,
            Some(NonZero::<u64>::MAX) => Self::All,
            Some(n) => Self::Nth(n),
        }
    }
}

impl From<AllocationFailures> for u64 {
    fn from(failures: AllocationFailures) -> Self {
        match failures {
            AllocationFailures::None => 0,
            AllocationFailures::Nth(n) => n.get(),
            AllocationFailures::All => Self::MAX,
        }
    }
}

/// Arguments of a call, as they are in RBX, RCX, RDX and RSI.
pub type Arguments = [u64; 4];

/// A call on the caller's own memory, with its arguments, for guests that test the hypervisor. Addresses are guest physical, in
/// bytes, and multiples of 4 KiB; so are lengths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TestCall {
    /// Gives the frames of a range back; it reads as zeros afterwards. Returns how many there were.
    Release {
        /// Where the range begins.
        start: u64,
        /// How long it is.
        bytes: u64,
    },
    /// Makes 512 small pages of a 2 MiB page.
    Split {
        /// An address in the page.
        at: u64,
    },
    /// Makes a 2 MiB page of 512 small ones, in other frames.
    Collapse {
        /// An address in the page.
        at: u64,
    },
    /// Logs which pages of a range were written since their last log, and begins anew. Returns how many.
    LogDirty {
        /// Where the range begins.
        start: u64,
        /// How long it is.
        bytes: u64,
        /// Where to write a bitmap with a bit for each page of the range, the first in bit 0 of the first byte; None: nowhere.
        bitmap: Option<NonZero<u64>>,
    },
    /// Puts another frame with the same contents in the place of a small page's.
    Replace {
        /// The page.
        at: u64,
    },
    /// Returns what of the RAM is mapped, as [`Mapped`]. It is counted part by part: what changes meanwhile counts as it was or as it is.
    Report,
    /// Returns a count.
    Stat(Statistic),
    /// Plans which allocations fail.
    FailAllocations(AllocationFailures),
    /// Leaves the flush of an operation out from now on; None: of none.
    SkipFlush(Option<FlushPoint>),
    /// Takes a page away for good: its entry in the nested tables makes no sense from then on.
    Misconfigure {
        /// The page.
        at: u64,
    },
}

impl TestCall {
    /// The call in a guest's registers.
    ///
    /// # Errors
    /// [`Refused::NoSuchCall`] if `number` is none of a test call, [`Refused::Invalid`] if an argument that selects something
    /// selects nothing.
    pub fn decode(number: u64, [first, second, third, _]: Arguments) -> Result<Self, Refused> {
        let number = u32::try_from(number).ok().and_then(|number| Number::try_from(number).ok());
        Ok(match number.ok_or(Refused::NoSuchCall)? {
            Number::Nop | Number::Version => return Err(Refused::NoSuchCall),
            Number::Release => Self::Release { start: first, bytes: second },
            Number::Split => Self::Split { at: first },
            Number::Collapse => Self::Collapse { at: first },
            Number::LogDirty => Self::LogDirty { start: first, bytes: second, bitmap: NonZero::new(third) },
            Number::Replace => Self::Replace { at: first },
            Number::Report => Self::Report,
            Number::Stat => Self::Stat(first.try_into().map_err(|Unknown| Refused::Invalid)?),
            Number::FailAllocations => Self::FailAllocations(first.into()),
            Number::SkipFlush => Self::SkipFlush(match first {
                0 => None,
                point => Some(point.try_into().map_err(|Unknown| Refused::Invalid)?),
            }),
            Number::Misconfigure => Self::Misconfigure { at: first },
        })
    }

    /// What a guest puts into its registers.
    #[must_use]
    pub fn encode(self) -> (Number, Arguments) {
        match self {
            Self::Release { start, bytes } => (Number::Release, [start, bytes, 0, 0]),
            Self::Split { at } => (Number::Split, [at, 0, 0, 0]),
            Self::Collapse { at } => (Number::Collapse, [at, 0, 0, 0]),
            Self::LogDirty { start, bytes, bitmap } => {
                (Number::LogDirty, [start, bytes, bitmap.map_or(0, NonZero::get), 0])
            }
            Self::Replace { at } => (Number::Replace, [at, 0, 0, 0]),
            Self::Report => (Number::Report, [0; 4]),
            Self::Stat(which) => (Number::Stat, [which.into(), 0, 0, 0]),
            Self::FailAllocations(failures) => (Number::FailAllocations, [failures.into(), 0, 0, 0]),
            Self::SkipFlush(point) => (Number::SkipFlush, [point.map_or(0, u64::from), 0, 0, 0]),
            Self::Misconfigure { at } => (Number::Misconfigure, [at, 0, 0, 0]),
        }
    }

    /// Whether the call is carried out in steps, between which the guest's instruction starts again.
    #[must_use]
    pub const fn has_steps(&self) -> bool {
        matches!(self, Self::Release { .. } | Self::LogDirty { .. } | Self::Report)
    }
}

/// The result as it is in RAX.
#[must_use]
pub fn encode_result(result: Result<u64, Refused>) -> u64 {
    result.unwrap_or_else(|refused| i64::from(refused).cast_unsigned())
}

/// The result by what is in RAX.
///
/// # Errors
/// [`Unknown`]: a negative number that is no error of this interface.
pub fn decode_result(rax: u64) -> Result<Result<u64, Refused>, Unknown> {
    match rax.cast_signed() {
        0.. => Ok(Ok(rax)),
        number => Refused::try_from(number).map(Err),
    }
}

/// What of a VM's memory is mapped: the result of [`TestCall::Report`]. The pages of 4 KiB are in the low half of RAX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// 4 KiB pages.
    pub small: u32,
    /// 2 MiB pages, fewer than 2³¹.
    pub large: u32,
}

impl Mapped {
    /// All of it in 4 KiB pages.
    #[must_use]
    pub fn frames(self) -> u64 {
        u64::from(self.small) + 512 * u64::from(self.large)
    }
}

impl From<Mapped> for u64 {
    fn from(Mapped { small, large }: Mapped) -> Self {
        Self::from(small) | Self::from(large) << 32
    }
}

impl From<u64> for Mapped {
    fn from(result: u64) -> Self {
        Self { small: result as u32, large: (result >> 32) as u32 }
    }
}
