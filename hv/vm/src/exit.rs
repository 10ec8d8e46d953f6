//! VM exits as both vendors' hardware reports them, in one form.

use addr::Gpa;
use devices::Size;

/// Why the processor left the guest, with what the hardware told about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// CPUID.
    Cpuid,
    /// VMMCALL on AMD, VMCALL on Intel.
    Hypercall,
    /// IN, OUT, INS or OUTS.
    Io(Io),
    /// RDMSR of an intercepted register.
    ReadMsr,
    /// WRMSR of an intercepted register.
    WriteMsr,
    /// HLT.
    Halt,
    /// A guest physical address that the nested tables do not translate for this access.
    NestedFault(NestedFault),
    /// An exception in the guest that is intercepted.
    Exception(Exception),
    /// XSETBV, INVD and others that the guest's CPUID does not offer or that need no action.
    Instruction(Instruction),
    /// An interrupt for the host.
    ExternalInterrupt,
    /// An NMI for the host.
    Nmi,
    /// The guest can take an interrupt now, as was asked for.
    InterruptWindow,
    /// A triple fault in the guest.
    Shutdown,
    /// The processor refused to enter: the hypervisor set up a state that can't be.
    InvalidState,
    /// None of the above.
    Unknown,
}

/// Port I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Io {
    /// The first port.
    pub port: u16,
    /// 1, 2 or 4 bytes.
    pub size: Size,
    /// Whether the guest reads.
    pub input: bool,
    /// INS or OUTS.
    pub string: bool,
}

/// An access that EPT or NPT could not translate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NestedFault {
    /// Where.
    pub address: Gpa,
    /// Whether the access was a write.
    pub write: bool,
    /// Whether it was an instruction fetch.
    pub fetch: bool,
    /// Whether a translation was there, and forbade the access.
    pub present: bool,
}

/// An intercepted exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// 0 to 31.
    pub vector: u8,
    /// What the processor would have pushed.
    pub error_code: Option<u32>,
}

/// Instructions that exit and are answered alike by every guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instruction {
    /// INVD: done as WBINVD would be, that is not at all, since the caches are the host's.
    Invd,
    /// XSETBV: not offered.
    Xsetbv,
    /// What the guest's CPUID does not offer: MONITOR, MWAIT, the vendor's virtualization.
    Undefined,
}

/// Something to deliver to the guest at the next entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// An external interrupt.
    Interrupt(u8),
    /// An exception, as a fault at the current instruction.
    Exception(Exception),
}

/// Exceptions that handlers raise.
impl Event {
    /// #UD.
    pub const UNDEFINED: Self = Self::Exception(Exception { vector: 6, error_code: None });
    /// #GP(0).
    pub const GENERAL_PROTECTION: Self = Self::Exception(Exception { vector: 13, error_code: Some(0) });
}

/// What exits are counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[expect(missing_docs, reason = "each names the variant of `Exit` that it counts")]
pub enum Kind {
    Cpuid,
    Hypercall,
    IoIn,
    IoOut,
    IoString,
    ReadMsr,
    WriteMsr,
    Halt,
    NestedFault,
    Exception,
    Instruction,
    ExternalInterrupt,
    Nmi,
    InterruptWindow,
    Shutdown,
    InvalidState,
    Unknown,
}

impl Kind {
    /// How many kinds there are.
    pub const COUNT: usize = Self::Unknown as usize + 1;

    /// Names, by number.
    pub const NAMES: [&'static str; Self::COUNT] = [
        "cpuid",
        "hypercall",
        "io-in",
        "io-out",
        "io-string",
        "rdmsr",
        "wrmsr",
        "hlt",
        "nested-fault",
        "exception",
        "instruction",
        "interrupt",
        "nmi",
        "window",
        "shutdown",
        "invalid",
        "unknown",
    ];
}

impl Exit {
    /// What this exit is counted as.
    #[inline]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Cpuid => Kind::Cpuid,
            Self::Hypercall => Kind::Hypercall,
            Self::Io(Io { string: true, .. }) => Kind::IoString,
            Self::Io(Io { input: true, .. }) => Kind::IoIn,
            Self::Io(_) => Kind::IoOut,
            Self::ReadMsr => Kind::ReadMsr,
            Self::WriteMsr => Kind::WriteMsr,
            Self::Halt => Kind::Halt,
            Self::NestedFault(_) => Kind::NestedFault,
            Self::Exception(_) => Kind::Exception,
            Self::Instruction(_) => Kind::Instruction,
            Self::ExternalInterrupt => Kind::ExternalInterrupt,
            Self::Nmi => Kind::Nmi,
            Self::InterruptWindow => Kind::InterruptWindow,
            Self::Shutdown => Kind::Shutdown,
            Self::InvalidState => Kind::InvalidState,
            Self::Unknown => Kind::Unknown,
        }
    }
}
