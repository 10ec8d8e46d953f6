//! The registers' names.

/// A register, by its place in the xAPIC's page, in steps of 16 bytes (Intel SDM vol. 3, table 11-1). In x2APIC mode the same
/// number above 800h names the MSR.
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
    /// 32 vectors each.
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

/// An entry of the local vector table.
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

    /// The bits that can be written (SDM figure 11-8): not the delivery status nor the remote IRR.
    pub(crate) const fn writable(self) -> u32 {
        match self {
            Self::Timer => 0x0007_00ff,
            Self::Thermal | Self::Performance => 0x0001_07ff,
            Self::Lint0 | Self::Lint1 => 0x0001_a7ff,
            Self::Error => 0x0001_00ff,
        }
    }

    /// The bits that are something, if only to be read: x2APIC mode refuses the others.
    pub(crate) const fn defined(self) -> u32 {
        const DELIVERY_STATUS: u32 = 1 << 12;
        const REMOTE_IRR: u32 = 1 << 14;
        let remote = if matches!(self, Self::Lint0 | Self::Lint1) { REMOTE_IRR } else { 0 };
        self.writable() | DELIVERY_STATUS | remote
    }
}

impl Register {
    /// The register in place `number`: the offset in the page divided by 16, or the MSR's number less 800h.
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
