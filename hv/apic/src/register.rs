//! The registers by name.

/// A register. Its number is the offset in the xAPIC's page divided by 16 (Intel SDM vol. 3, table 11-1), and in x2APIC mode the
/// MSR's number less 800h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the manual's names")]
pub enum Register {
    Id,
    Version,
    TaskPriority,
    ArbitrationPriority,
    ProcessorPriority,
    EndOfInterrupt,
    RemoteRead,
    LogicalDestination,
    DestinationFormat,
    Spurious,
    /// Each word has 32 vectors; the argument is the word's number, 0 to 7. The same holds for the next two.
    InService(u8),
    TriggerMode(u8),
    InterruptRequest(u8),
    ErrorStatus,
    CommandLow,
    CommandHigh,
    Local(Lvt),
    InitialCount,
    CurrentCount,
    Divide,
    /// x2APIC only.
    SelfIpi,
}

/// An entry of the local vector table (LVT).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lvt {
    Timer,
    Thermal,
    Performance,
    Lint0,
    Lint1,
    Error,
}

impl Lvt {
    pub(crate) const COUNT: usize = 6;

    /// The writable bits (SDM figure 11-8): neither the delivery status nor the remote IRR is.
    pub(crate) const fn writable(self) -> u32 {
        match self {
            Self::Timer => 0x0007_00ff,
            Self::Thermal | Self::Performance => 0x0001_07ff,
            Self::Lint0 | Self::Lint1 => 0x0001_a7ff,
            Self::Error => 0x0001_00ff,
        }
    }

    /// The bits that are defined, read-only ones included: a write of others is #GP in x2APIC mode.
    pub(crate) const fn defined(self) -> u32 {
        const DELIVERY_STATUS: u32 = 1 << 12;
        const REMOTE_IRR: u32 = 1 << 14;
        let remote = if matches!(self, Self::Lint0 | Self::Lint1) { REMOTE_IRR } else { 0 };
        self.writable() | DELIVERY_STATUS | remote
    }
}

impl Register {
    /// The register of this number. None if there is none.
    #[inline]
    pub const fn new(number: u16) -> Option<Self> {
        Some(match number {
            0x02 => Self::Id,
            0x03 => Self::Version,
            0x08 => Self::TaskPriority,
            0x09 => Self::ArbitrationPriority,
            0x0a => Self::ProcessorPriority,
            0x0b => Self::EndOfInterrupt,
            0x0c => Self::RemoteRead,
            0x0d => Self::LogicalDestination,
            0x0e => Self::DestinationFormat,
            0x0f => Self::Spurious,
            0x10..=0x17 => Self::InService(number as u8 - 0x10),
            0x18..=0x1f => Self::TriggerMode(number as u8 - 0x18),
            0x20..=0x27 => Self::InterruptRequest(number as u8 - 0x20),
            0x28 => Self::ErrorStatus,
            0x30 => Self::CommandLow,
            0x31 => Self::CommandHigh,
            0x32 => Self::Local(Lvt::Timer),
            0x33 => Self::Local(Lvt::Thermal),
            0x34 => Self::Local(Lvt::Performance),
            0x35 => Self::Local(Lvt::Lint0),
            0x36 => Self::Local(Lvt::Lint1),
            0x37 => Self::Local(Lvt::Error),
            0x38 => Self::InitialCount,
            0x39 => Self::CurrentCount,
            0x3e => Self::Divide,
            0x3f => Self::SelfIpi,
            _ => return None,
        })
    }
}
