//! The local APIC as software sees it: registers and their bits, IA32_APIC_BASE (Intel SDM vol. 3, chapter 11; AMD APM vol. 2,
//! chapter 16). The page that IA32_APIC_BASE names after reset is a PC's (`abi::mmio`).

/// The low byte of the version register: an APIC that is integrated in the processor has 10h to 15h (SDM section 11.4.8).
pub const VERSION: u8 = 0x14;

/// The registers' MSRs in x2APIC mode (SDM table 11-6).
pub const X2APIC_MSRS: core::ops::Range<u32> = 0x800..0x900;

/// IA32_APIC_BASE: this is the processor that booted (SDM figure 11-5).
pub const BASE_BSP: u64 = 1 << 8;
/// IA32_APIC_BASE: x2APIC mode (SDM figure 11-26).
pub const BASE_X2APIC: u64 = 1 << 10;
/// IA32_APIC_BASE: the APIC is enabled.
pub const BASE_ENABLED: u64 = 1 << 11;

/// Registers by number: in xAPIC mode it is a 16th of the register's offset in the page (SDM table 11-1), in x2APIC mode the place of
/// its MSR in [`X2APIC_MSRS`] (SDM table 11-6).
pub mod register {
    use x86::apic::xapic;

    const fn number(offset: u32) -> u16 {
        (offset >> OFFSET_SHIFT) as u16
    }

    /// The shift from a number to the offset in the page.
    pub const OFFSET_SHIFT: u32 = 4;

    /// The APIC ID: bits 31:24 in xAPIC mode, all 32 in x2APIC mode.
    pub const ID: u16 = number(xapic::XAPIC_ID);
    /// Version, and the number of entries of the local vector table (LVT).
    pub const VERSION: u16 = number(xapic::XAPIC_VERSION);
    /// Task priority.
    pub const TASK_PRIORITY: u16 = number(xapic::XAPIC_TPR);
    /// Arbitration priority.
    pub const ARBITRATION_PRIORITY: u16 = 0x09;
    /// Processor priority.
    pub const PROCESSOR_PRIORITY: u16 = number(xapic::XAPIC_PPR);
    /// End of interrupt.
    pub const END_OF_INTERRUPT: u16 = number(xapic::XAPIC_EOI);
    /// Remote read.
    pub const REMOTE_READ: u16 = 0x0c;
    /// Logical destination.
    pub const LOGICAL_DESTINATION: u16 = number(xapic::XAPIC_LDR);
    /// Destination format. Not in x2APIC mode.
    pub const DESTINATION_FORMAT: u16 = 0x0e;
    /// Spurious-interrupt vector.
    pub const SPURIOUS: u16 = number(xapic::XAPIC_SVR);
    /// In service: the first of eight registers of 32 vectors each.
    pub const IN_SERVICE: u16 = number(xapic::XAPIC_ISR0);
    /// Trigger mode: the first of eight.
    pub const TRIGGER_MODE: u16 = number(xapic::XAPIC_TMR0);
    /// Interrupt request: the first of eight.
    pub const INTERRUPT_REQUEST: u16 = number(xapic::XAPIC_IRR0);
    /// Error status.
    pub const ERROR_STATUS: u16 = number(xapic::XAPIC_ESR);
    /// Interrupt command: its low half in xAPIC mode, all of it in x2APIC mode.
    pub const COMMAND_LOW: u16 = number(xapic::XAPIC_ICR0);
    /// Interrupt command: the destination. Not in x2APIC mode.
    pub const COMMAND_HIGH: u16 = number(xapic::XAPIC_ICR1);
    /// LVT: the timer.
    pub const LVT_TIMER: u16 = number(xapic::XAPIC_LVT_TIMER);
    /// LVT: the thermal sensor.
    pub const LVT_THERMAL: u16 = number(xapic::XAPIC_LVT_THERMAL);
    /// LVT: the performance counters.
    pub const LVT_PERFORMANCE: u16 = number(xapic::XAPIC_LVT_PMI);
    /// LVT: the pin LINT0.
    pub const LVT_LINT0: u16 = number(xapic::XAPIC_LVT_LINT0);
    /// LVT: the pin LINT1.
    pub const LVT_LINT1: u16 = number(xapic::XAPIC_LVT_LINT1);
    /// LVT: errors of the APIC.
    pub const LVT_ERROR: u16 = number(xapic::XAPIC_LVT_ERROR);
    /// The count that the timer starts from.
    pub const INITIAL_COUNT: u16 = number(xapic::XAPIC_TIMER_INIT_COUNT);
    /// The count that the timer has reached.
    pub const CURRENT_COUNT: u16 = number(xapic::XAPIC_TIMER_CURRENT_COUNT);
    /// What the timer's clock is divided by.
    pub const DIVIDE: u16 = number(xapic::XAPIC_TIMER_DIV_CONF);
    /// A self-IPI. In x2APIC mode only.
    pub const SELF_IPI: u16 = 0x3f;
}

/// Spurious-interrupt vector register: software has enabled the APIC (SDM figure 11-23).
pub const SOFTWARE_ENABLED: u32 = 1 << 8;

/// Delivery modes, in bits 10:8 of the interrupt command and of LVT entries (SDM figures 11-8 and 11-12).
pub mod delivery {
    /// Where the field begins.
    pub const SHIFT: u32 = 8;
    /// The field, when it is shifted down.
    pub const MASK: u32 = 7;
    /// The vector that stands beside it.
    pub const FIXED: u32 = 0;
    /// The same, to one of the destinations.
    pub const LOWEST_PRIORITY: u32 = 1;
    /// NMI.
    pub const NMI: u32 = 4;
    /// INIT.
    pub const INIT: u32 = 5;
    /// Start-up (SIPI).
    pub const STARTUP: u32 = 6;
    /// The vector comes from the 8259s.
    pub const EXT_INT: u32 = 7;
}

/// Interrupt command: the destination is logical.
pub const COMMAND_LOGICAL: u32 = 1 << 11;
/// Interrupt command, LVT entries: the delivery is pending.
pub const DELIVERY_STATUS: u32 = 1 << 12;
/// Interrupt command: the level is asserted.
pub const COMMAND_ASSERT: u32 = 1 << 14;
/// Interrupt command: level-triggered.
pub const COMMAND_LEVEL: u32 = 1 << 15;
/// Where the interrupt command's destination shorthand begins, of two bits.
pub const SHORTHAND_SHIFT: u32 = 18;
/// Interrupt command: to the sender alone.
pub const COMMAND_SELF: u32 = 1 << SHORTHAND_SHIFT;
/// Interrupt command: to all.
pub const COMMAND_ALL: u32 = 2 << SHORTHAND_SHIFT;
/// Interrupt command: to all but the sender.
pub const COMMAND_OTHERS: u32 = 3 << SHORTHAND_SHIFT;

/// Interrupt commands (the low half) to one destination, which is physical.
pub mod command {
    use super::{COMMAND_ASSERT, delivery};

    /// An interrupt with this vector.
    #[must_use]
    pub const fn fixed(vector: u8) -> u32 {
        COMMAND_ASSERT | delivery::FIXED << delivery::SHIFT | vector as u32
    }

    /// NMI.
    pub const NMI: u32 = COMMAND_ASSERT | delivery::NMI << delivery::SHIFT;

    /// INIT: the processor waits for a start-up interrupt.
    pub const INIT: u32 = COMMAND_ASSERT | delivery::INIT << delivery::SHIFT;

    /// Start-up: the processor begins in real mode at the page with this number, below 1 MiB.
    #[must_use]
    pub const fn startup(page: u8) -> u32 {
        COMMAND_ASSERT | delivery::STARTUP << delivery::SHIFT | page as u32
    }

    /// The whole command in x2APIC mode.
    #[must_use]
    pub const fn x2apic(destination: u32, command: u32) -> u64 {
        (destination as u64) << 32 | command as u64
    }

    /// The high half in xAPIC mode: its destination has 8 bits.
    #[must_use]
    pub const fn xapic_high(destination: u32) -> u32 {
        destination << 24
    }

    /// Whether the APIC `id` is the destination of a command: in xAPIC mode the largest value of 8 bits means all.
    #[must_use]
    pub const fn reaches(id: u32, x2apic: bool) -> bool {
        x2apic || id < 0xff
    }
}

/// LVT of LINT0 and LINT1: a level-triggered interrupt is in service.
pub const LVT_REMOTE_IRR: u32 = 1 << 14;
/// LVT: masked.
pub const LVT_MASKED: u32 = 1 << 16;
/// Where the LVT timer's mode begins, of two bits.
pub const TIMER_MODE_SHIFT: u32 = 17;
/// LVT timer: it starts anew when it has reached 0.
pub const LVT_PERIODIC: u32 = 1 << TIMER_MODE_SHIFT;
/// LVT timer: it interrupts when the TSC reaches IA32_TSC_DEADLINE.
pub const LVT_TSC_DEADLINE: u32 = 2 << TIMER_MODE_SHIFT;

/// Divide configuration: by 1 (SDM figure 11-10).
pub const DIVIDE_BY_1: u32 = 0b1011;

/// Vectors below this one are illegal in the interrupt command and in LVT entries (SDM section 11.5.2).
pub const FIRST_VECTOR: u8 = 16;
/// Error status: an IPI of an illegal vector was sent (SDM figure 11-9).
pub const ERROR_SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
/// Error status: an illegal vector was received, which an LVT entry may have too.
pub const ERROR_RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
/// Error status: an access to a register that there is not.
pub const ERROR_ILLEGAL_REGISTER: u32 = 1 << 7;

#[cfg(test)]
mod tests {
    use super::*;

    /// SDM figures 11-12 and 11-28, and the words of section 9.4.4.1's example.
    #[test]
    fn commands_are_as_the_manual_has_them() {
        assert_eq!(
            [command::fixed(0xf1), command::NMI, command::INIT, command::startup(8)],
            [0x40f1, 0x4400, 0x4500, 0x4608]
        );
        assert_eq!(command::x2apic(0x1_0002, command::NMI), 0x0001_0002_0000_4400);
        assert_eq!(command::xapic_high(3), 0x0300_0000);
        assert_eq!([0xfe, 0xff, 0x100].map(|id| command::reaches(id, false)), [true, false, false]);
        assert!(command::reaches(0xff, true));
    }

    #[test]
    fn registers_are_where_the_manual_draws_them() {
        use register::*;
        assert_eq!(
            [ID, VERSION, TASK_PRIORITY, ARBITRATION_PRIORITY, PROCESSOR_PRIORITY],
            [0x02, 0x03, 0x08, 0x09, 0x0a]
        );
        assert_eq!([END_OF_INTERRUPT, REMOTE_READ, LOGICAL_DESTINATION, DESTINATION_FORMAT], [0x0b, 0x0c, 0x0d, 0x0e]);
        assert_eq!([SPURIOUS, IN_SERVICE, TRIGGER_MODE, INTERRUPT_REQUEST], [0x0f, 0x10, 0x18, 0x20]);
        assert_eq!([ERROR_STATUS, COMMAND_LOW, COMMAND_HIGH, LVT_TIMER], [0x28, 0x30, 0x31, 0x32]);
        assert_eq!([LVT_THERMAL, LVT_PERFORMANCE, LVT_LINT0, LVT_LINT1, LVT_ERROR], [0x33, 0x34, 0x35, 0x36, 0x37]);
        assert_eq!([INITIAL_COUNT, CURRENT_COUNT, DIVIDE, SELF_IPI], [0x38, 0x39, 0x3e, 0x3f]);
        assert_eq!(X2APIC_MSRS.start + u32::from(COMMAND_LOW), x86::msr::IA32_X2APIC_ICR);
    }
}
