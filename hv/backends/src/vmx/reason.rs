//! Exit reasons and exit qualifications, and what they are in the form that both vendors share (Intel SDM vol. 3,
//! section 28.2 and appendix C).

use super::events::{EVENT_ERROR_CODE, EVENT_TYPE, EVENT_VALID, TYPE_BY_INSTRUCTION};
use addr::Gpa;
use vm::{NestedFault, TaskSwitch, TaskSwitchSource};

/// Basic exit reasons.
pub(super) const EXCEPTION_OR_NMI: u64 = 0;
pub(super) const EXTERNAL_INTERRUPT: u64 = 1;
pub(super) const TRIPLE_FAULT: u64 = 2;
pub(super) const INTERRUPT_WINDOW: u64 = 7;
pub(super) const NMI_WINDOW: u64 = 8;
pub(super) const TASK_SWITCH: u64 = 9;
pub(super) const CPUID: u64 = 10;
pub(super) const GETSEC: u64 = 11;
pub(super) const HLT: u64 = 12;
pub(super) const INVD: u64 = 13;
pub(super) const INVLPG: u64 = 14;
pub(super) const RDPMC: u64 = 15;
pub(super) const VMCALL: u64 = 18;
pub(super) const VMCLEAR: u64 = 19;
pub(super) const VMXON: u64 = 27;
pub(super) const CONTROL_REGISTER: u64 = 28;
pub(super) const IO: u64 = 30;
pub(super) const RDMSR: u64 = 31;
pub(super) const WRMSR: u64 = 32;
pub(super) const MWAIT: u64 = 36;
pub(super) const MONITOR: u64 = 39;
pub(super) const TPR_BELOW_THRESHOLD: u64 = 43;
pub(super) const EPT_VIOLATION: u64 = 48;
pub(super) const EPT_MISCONFIGURATION: u64 = 49;
pub(super) const INVEPT: u64 = 50;
pub(super) const PREEMPTION_TIMER: u64 = 52;
pub(super) const INVVPID: u64 = 53;
pub(super) const XSETBV: u64 = 55;

/// The entry failed after the host's state was left: bit 31 of the exit reason.
pub(super) const ENTRY_FAILED: u64 = 1 << 31;

/// In place of an exit reason: the guest was not entered, as its next instruction has to be emulated.
pub(super) const NOT_ENTERED: u64 = 1 << 32 | 63;

/// Exits that can come while an event is being delivered, and those that this backend deals with by itself.
const RARE: u64 =
    1 << EXCEPTION_OR_NMI | 1 << TASK_SWITCH | 1 << CONTROL_REGISTER | 1 << EPT_VIOLATION | 1 << EPT_MISCONFIGURATION;

/// Whether there is more to do than to report the exit. The lowest six bits tell: with more bits set it is an entry that
/// failed, and those have other numbers.
#[inline(always)]
pub(super) const fn is_rare(reason: u64) -> bool {
    RARE >> (reason & 63) & 1 != 0
}

/// The qualification of an EPT violation (SDM table 28-7), and where it was.
#[inline]
pub(super) const fn nested_fault(qualification: u64, address: u64) -> NestedFault {
    const WRITE: u64 = 1 << 1;
    const FETCH: u64 = 1 << 2;
    // What the translation allowed, if there was one.
    const READABLE_WRITABLE_EXECUTABLE: u64 = 7 << 3;
    NestedFault::new(
        Gpa::new(address),
        qualification & WRITE != 0,
        qualification & FETCH != 0,
        qualification & READABLE_WRITABLE_EXECUTABLE != 0,
    )
}

/// Whether the access was one to the guest's page tables, by the same qualification: the linear address is valid, and not translated.
pub(super) const fn is_walk(qualification: u64) -> bool {
    const LINEAR_VALID: u64 = 1 << 7;
    const TRANSLATED: u64 = 1 << 8;
    qualification & (LINEAR_VALID | TRANSLATED) == LINEAR_VALID
}

/// The qualification of a switch of tasks (SDM table 28-2), and the event whose delivery has led to it, with its error code.
pub(super) const fn task_switch(qualification: u64, interrupted: u64, error_code: u32) -> TaskSwitch {
    let source = match qualification >> 30 & 3 {
        0 => TaskSwitchSource::Call,
        1 => TaskSwitchSource::Iret,
        2 => TaskSwitchSource::Jump,
        _ if interrupted & EVENT_VALID != 0 && interrupted & EVENT_TYPE >= TYPE_BY_INSTRUCTION => {
            TaskSwitchSource::SoftwareInterrupt
        }
        _ => TaskSwitchSource::Event,
    };
    let has_error_code = interrupted & (EVENT_VALID | EVENT_ERROR_CODE) == EVENT_VALID | EVENT_ERROR_CODE;
    TaskSwitch::new(qualification as u16, source, if has_error_code { Some(error_code) } else { None })
}

/// An access to a control register that exits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CrAccess {
    /// MOV to CRn from a general register.
    Write { cr: u8, gpr: u8 },
    /// MOV from CRn to a general register.
    Read { cr: u8, gpr: u8 },
    /// CLTS.
    Clts,
    /// LMSW of these four bits.
    Lmsw(u8),
}

/// The qualification of an exit for a control register (SDM table 28-3).
pub(super) const fn cr_access(qualification: u64) -> CrAccess {
    let (cr, gpr) = ((qualification & 15) as u8, (qualification >> 8 & 15) as u8);
    match qualification >> 4 & 3 {
        0 => CrAccess::Write { cr, gpr },
        1 => CrAccess::Read { cr, gpr },
        2 => CrAccess::Clts,
        _ => CrAccess::Lmsw((qualification >> 16 & 15) as u8),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ept_violations_tell_access_and_translation() {
        let at = Gpa::new(0x1234_5678);
        // A write on a guest's page walk's target (bits 8:7); a fetch; a write to a read-only page.
        assert_eq!(nested_fault(0x182, 0x1234_5678), NestedFault::new(at, true, false, false));
        assert_eq!(nested_fault(0x184, 0x1234_5678), NestedFault::new(at, false, true, false));
        assert_eq!(nested_fault(0x1aa, 0x1234_5678), NestedFault::new(at, true, false, true));
    }

    #[test]
    fn control_register_accesses_are_told_apart() {
        assert_eq!(cr_access(0x0300), CrAccess::Write { cr: 0, gpr: 3 });
        assert_eq!(cr_access(0x0f13), CrAccess::Read { cr: 3, gpr: 15 });
        assert_eq!(cr_access(0x20), CrAccess::Clts);
        assert_eq!(cr_access(0x000b_0030), CrAccess::Lmsw(0xb));
    }

    #[test]
    fn task_switches_tell_where_they_come_from() {
        let source = |qualification, interrupted| task_switch(qualification, interrupted, 0).source();
        assert_eq!(source(0x138, 0), TaskSwitchSource::Call);
        assert_eq!(source(1 << 30 | 0x138, 0), TaskSwitchSource::Iret);
        assert_eq!(source(2 << 30 | 0x138, 0), TaskSwitchSource::Jump);
        // INT 81h, INT3, an interrupt, an NMI, #NP.
        assert_eq!(source(3 << 30 | 0x138, 0x8000_0481), TaskSwitchSource::SoftwareInterrupt);
        assert_eq!(source(3 << 30 | 0x138, 0x8000_0603), TaskSwitchSource::SoftwareInterrupt);
        assert_eq!(source(3 << 30 | 0x138, 0x8000_0020), TaskSwitchSource::Event);
        assert_eq!(source(3 << 30 | 0x138, 0x8000_0202), TaskSwitchSource::Event);
        let fault = task_switch(3 << 30 | 0x138, 0x8000_0b0b, 0x148);
        assert_eq!(
            (fault.selector(), fault.source(), fault.error_code()),
            (0x138, TaskSwitchSource::Event, Some(0x148))
        );
        assert_eq!(task_switch(0x138, 0, 0x148).error_code(), None);
    }

    #[test]
    fn exits_in_the_midst_of_a_delivery_are_not_missed() {
        for reason in [EXCEPTION_OR_NMI, TASK_SWITCH, EPT_VIOLATION, EPT_MISCONFIGURATION, CONTROL_REGISTER] {
            assert!(is_rare(reason));
        }
        for reason in [CPUID, VMCALL, IO, RDMSR, WRMSR, HLT, u64::MAX] {
            assert!(!is_rare(reason));
        }
        for failure in [33, 34, 41] {
            assert!(!is_rare(ENTRY_FAILED | failure));
        }
    }
}
