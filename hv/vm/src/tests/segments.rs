//! Operands of other instructions than INS and OUTS that the processor has not checked before the exit.

use super::guest::*;
use crate::{Exit, Gpr, NestedFault, SegmentState};
use addr::Gpa;

const READ_ONLY: u16 = 0xc91;
const EXECUTE_ONLY: u16 = 0xc99;
const EXPAND_DOWN: u16 = 0xc97;
const UNUSABLE: u16 = 0;

const READ: Exit = Exit::NestedFault(NestedFault::new(Gpa::new(HOLE), false, false, false));
const WRITE: Exit = Exit::NestedFault(NestedFault::new(Gpa::new(HOLE), true, false, false));

/// A guest at `code`, in 32-bit protected mode, with a segment of these attributes and this limit in `register`.
fn with_segment(code: &[u8], register: usize, attributes: u16, limit: u32) -> Guest {
    let mut guest = Guest::flat_32(code);
    guest.vcpu.attributes[register] = attributes;
    guest.vcpu.segments[register] = SegmentState { limit, ..guest.vcpu.segments[register] };
    guest
}

#[test]
fn movs_checks_the_operand_that_has_not_exited_and_moves_nothing() {
    const ES: usize = 0;
    const DS: usize = 3;
    const LAST: u32 = DATA as u32 + 3;
    for (register, attributes, limit, vector) in [
        (ES, 0xc93, LAST, None),
        (ES, 0xc93, LAST - 1, Some(13)),
        (ES, EXPAND_DOWN, DATA as u32, Some(13)),
        (ES, READ_ONLY, u32::MAX, Some(13)),
        (ES, UNUSABLE, 0, Some(13)),
        (DS, READ_ONLY, LAST, None),
        (DS, READ_ONLY, LAST - 1, Some(13)),
        (DS, EXECUTE_ONLY, u32::MAX, Some(13)),
        (DS, UNUSABLE, 0, Some(13)),
    ] {
        // REP MOVSD, between memory and what is none.
        let mut guest = with_segment(&[0xf3, 0xa5], register, attributes, limit);
        let (rsi, rdi, exit) = if register == ES { (HOLE, DATA, READ) } else { (DATA, HOLE, WRITE) };
        guest.set(Gpr::RSI, rsi).set(Gpr::RDI, rdi).set(Gpr::RCX, 1);
        let before = guest.memory().snapshot();
        guest.resumes(exit);
        assert_eq!(guest.vcpu.raised(), vector.map(|vector| (vector, Some(0))), "{register} {attributes:x} {limit:x}");
        if vector.is_some() {
            assert_eq!((guest.get(Gpr::RSI), guest.get(Gpr::RDI), guest.get(Gpr::RCX)), (rsi, rdi, 1));
            assert!(guest.memory().snapshot() == before);
        }
    }
}

#[test]
fn movs_from_the_stack_segment_ends_in_its_exception() {
    let mut guest = with_segment(&[0x36, 0xa4], 2, 0xc93, DATA as u32 - 1);
    guest.set(Gpr::RSI, DATA).set(Gpr::RDI, HOLE);
    guest.resumes(WRITE);
    assert_eq!(guest.vcpu.raised(), Some((12, Some(0))));
}

#[test]
fn movs_of_no_elements_has_no_segments() {
    let mut guest = with_segment(&[0xf3, 0xa4], 0, UNUSABLE, 0);
    guest.set(Gpr::RSI, HOLE).set(Gpr::RDI, DATA).set(Gpr::RCX, 0);
    guest.resumes(READ);
    assert_eq!((guest.vcpu.raised(), guest.vcpu.rip), (None, CODE + 2));
}

#[test]
fn lmsw_and_smsw_check_their_operands() {
    // Of DS: [EBX].
    const LMSW: [u8; 3] = [0x0f, 0x01, 0x33];
    const SMSW: [u8; 3] = [0x0f, 0x01, 0x23];
    const LAST: u32 = DATA as u32 + 1;
    for (code, attributes, limit, faults) in [
        (LMSW, READ_ONLY, LAST, false),
        (LMSW, READ_ONLY, LAST - 1, true),
        (LMSW, EXECUTE_ONLY, LAST, true),
        (LMSW, UNUSABLE, 0, true),
        (SMSW, 0xc93, LAST, false),
        (SMSW, 0xc93, LAST - 1, true),
        (SMSW, READ_ONLY, LAST, true),
        (SMSW, UNUSABLE, 0, true),
    ] {
        let mut guest = with_segment(&code, 3, attributes, limit);
        // PE, MP and TS, where LMSW finds it.
        guest.memory().put(DATA, &[0b1011, 0]);
        guest.set(Gpr::RBX, DATA);
        let (cr0, before) = (guest.vcpu.control.cr0, guest.memory().snapshot());
        guest.resumes(Exit::ControlRegister);
        let raised = if faults { Some((13, Some(0))) } else { None };
        assert_eq!(guest.vcpu.raised(), raised, "{code:x?} {attributes:x} {limit:x}");
        assert_eq!(guest.vcpu.control.cr0 == cr0 && guest.memory().snapshot() == before, faults);
    }
}
