//! The registers by name.

use arch::apic::{DELIVERY_STATUS, LVT_REMOTE_IRR, register};

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
        let remote = if matches!(self, Self::Lint0 | Self::Lint1) { LVT_REMOTE_IRR } else { 0 };
        self.writable() | DELIVERY_STATUS | remote
    }
}

impl Register {
    /// The register of this number. None if there is none.
    #[inline]
    pub const fn new(number: u16) -> Option<Self> {
        Some(match number {
            register::ID => Self::Id,
            register::VERSION => Self::Version,
            register::TASK_PRIORITY => Self::TaskPriority,
            register::ARBITRATION_PRIORITY => Self::ArbitrationPriority,
            register::PROCESSOR_PRIORITY => Self::ProcessorPriority,
            register::END_OF_INTERRUPT => Self::EndOfInterrupt,
            register::REMOTE_READ => Self::RemoteRead,
            register::LOGICAL_DESTINATION => Self::LogicalDestination,
            register::DESTINATION_FORMAT => Self::DestinationFormat,
            register::SPURIOUS => Self::Spurious,
            register::IN_SERVICE..register::TRIGGER_MODE => Self::InService((number - register::IN_SERVICE) as u8),
            register::TRIGGER_MODE..register::INTERRUPT_REQUEST => {
                Self::TriggerMode((number - register::TRIGGER_MODE) as u8)
            }
            register::INTERRUPT_REQUEST..register::ERROR_STATUS => {
                Self::InterruptRequest((number - register::INTERRUPT_REQUEST) as u8)
            }
            register::ERROR_STATUS => Self::ErrorStatus,
            register::COMMAND_LOW => Self::CommandLow,
            register::COMMAND_HIGH => Self::CommandHigh,
            register::LVT_TIMER => Self::Local(Lvt::Timer),
            register::LVT_THERMAL => Self::Local(Lvt::Thermal),
            register::LVT_PERFORMANCE => Self::Local(Lvt::Performance),
            register::LVT_LINT0 => Self::Local(Lvt::Lint0),
            register::LVT_LINT1 => Self::Local(Lvt::Lint1),
            register::LVT_ERROR => Self::Local(Lvt::Error),
            register::INITIAL_COUNT => Self::InitialCount,
            register::CURRENT_COUNT => Self::CurrentCount,
            register::DIVIDE => Self::Divide,
            register::SELF_IPI => Self::SelfIpi,
            _ => return None,
        })
    }
}
