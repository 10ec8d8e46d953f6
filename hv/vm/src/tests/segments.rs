//! Operands of other instructions than INS and OUTS that the processor has not checked before the exit.

use super::guest::*;
use crate::{Exit, Gpr, LoadedSegment, NestedFault, SegmentRegister, SegmentState};
use addr::Gpa;
use arch::RFLAGS_VM;

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

/// Where memory ends: the selector of a far pointer is FFFFh if it is behind that.
const END: u64 = (PAGES as u64) << 12;
const SELECTOR: u64 = 0xfffc;
/// Its descriptor.
const ENTRY: u64 = 0xfff8;
const CODE_3: u64 = 0x00cf_fa00_0000_ffff;
const STACK: u64 = DATA + 0x100;

/// A guest at a far JMP or CALL through [RBX], at a pointer of `bytes` bytes without the selector, of which the last are not in memory.
fn at_far_pointer(mut guest: Guest, offset: u64, bytes: u64, descriptor: u64, cpl: u8) -> Guest {
    guest.memory().put(END - bytes, &offset.to_le_bytes()[..bytes as usize]);
    guest.memory().put_u64(ENTRY, descriptor);
    guest.vcpu.loaded[SegmentRegister::Ldtr.index()] =
        LoadedSegment { selector: 0x40, base: 0, limit: 0xffff, attributes: 0x82 };
    guest.vcpu.control.cpl = cpl;
    guest.set(Gpr::RBX, END - bytes).set(Gpr::RSP, STACK);
    guest
}

const FAR: Exit = Exit::NestedFault(NestedFault::new(Gpa::new(END), false, false, false));

#[test]
fn far_transfers_through_a_device_load_the_code_segment() {
    let gp = Some((13, Some(SELECTOR as u32)));
    // Code of DPL 3; conforming code of DPL 0; code of another DPL than the CPL, and with an RPL above it; data; code that is not present;
    // code that ends too early; an LDT and a busy TSS.
    for (descriptor, cpl, raised) in [
        (CODE_3, 3, None),
        (CODE_3 & !(3 << 45) | 4 << 40, 3, None),
        (CODE_3 & !(3 << 45) | 4 << 40, 0, None),
        (CODE_3, 0, gp),
        (CODE_3 & !(3 << 45), 3, gp),
        (CODE_3 & !(3 << 45), 0, gp),
        (CODE_3 & !(8 << 40), 3, gp),
        (CODE_3 & !(1 << 47), 3, Some((11, Some(SELECTOR as u32)))),
        (CODE_3 & !(1 << 55 | 0xf << 48), 3, Some((13, Some(0)))),
        (0x0000_e200_0000_ffff, 3, gp),
        (0x0000_eb00_0000_ffff, 3, gp),
    ] {
        // JMP, CALL.
        for (code, pushes) in [([0xff, 0x2b], false), ([0xff, 0x1b], true)] {
            let mut guest = at_far_pointer(Guest::flat_32(&code), 0x1_2345, 4, descriptor, cpl);
            guest.resumes(FAR);
            assert_eq!(guest.vcpu.raised(), raised, "{descriptor:x} at CPL {cpl}");
            let cs = guest.vcpu.segments[1].selector;
            let (rip, selector) =
                if raised.is_none() { (0x1_2345, SELECTOR as u16 | u16::from(cpl)) } else { (CODE, 8) };
            assert_eq!((guest.vcpu.rip, cs, guest.vcpu.control.cpl), (rip, selector, cpl));
            let is_pushed = pushes && raised.is_none();
            assert_eq!(guest.get(Gpr::RSP), if is_pushed { STACK - 8 } else { STACK });
            let expected = if is_pushed { 8 << 32 | (CODE + 2) } else { 0 };
            assert_eq!(u64::from_le_bytes(guest.memory().bytes(STACK - 8)), expected);
            let [type_byte] = guest.memory().bytes(ENTRY + 5);
            assert_eq!(type_byte & 1 != 0, raised.is_none() || descriptor >> 40 & 1 != 0, "the accessed bit");
        }
    }
}

#[test]
fn far_transfers_of_64_bit_code_go_to_canonical_addresses() {
    const CODE_64: u64 = 0x00af_fa00_0000_ffff;
    const HIGH: u64 = 0xffff_8000_0000_1000;
    for (descriptor, offset, raised) in [
        (CODE_64, HIGH, None),
        (CODE_64, 1 << 47, Some((13, Some(0)))),
        (CODE_64 | 1 << 54, HIGH, Some((13, Some(SELECTOR as u32)))),
        (CODE_3, 0x1_2345, None),
        (CODE_3, 1 << 32, Some((13, Some(0)))),
        // A TSS, which is none to go to in long mode.
        (0x0000_e900_0000_ffff, HIGH, Some((13, Some(SELECTOR as u32)))),
    ] {
        let mut guest = at_far_pointer(Guest::new(&[0x48, 0xff, 0x1b]), offset, 8, descriptor, 3);
        guest.resumes(FAR);
        assert_eq!(guest.vcpu.raised(), raised, "{descriptor:x} {offset:x}");
        if raised.is_none() {
            assert_eq!((guest.vcpu.rip, guest.get(Gpr::RSP)), (offset, STACK - 16));
            assert_eq!(guest.memory().bytes(STACK - 16), (CODE + 3).to_le_bytes());
        }
    }
}

#[test]
fn a_far_call_whose_stack_faults_goes_nowhere() {
    let mut guest = at_far_pointer(Guest::flat_32(&[0xff, 0x1b]), 0x1_2345, 4, CODE_3, 3);
    guest.set(Gpr::RSP, 4);
    guest.vcpu.segments[2].limit = 3;
    guest.resumes(FAR);
    assert_eq!((guest.vcpu.raised(), guest.vcpu.rip), (Some((12, Some(0))), CODE));
    assert_eq!((guest.vcpu.segments[1].selector, guest.get(Gpr::RSP)), (8, 4));
}

/// A call gate, a task gate and a TSS.
#[test]
fn far_transfers_to_gates_and_tasks_end_the_vm_by_name() {
    for kind in [0xec, 0xe5, 0xe9] {
        let mut guest = at_far_pointer(Guest::flat_32(&[0xff, 0x2b]), 0, 4, kind << 40, 3);
        assert!(guest.unhandled(FAR).contains("to a gate or to another task"));
    }
}

/// The local APIC's page has no second register where the selector is: it is null.
#[test]
fn a_null_selector_is_no_code_segment() {
    let mut guest = at_far_pointer(Guest::flat_32(&[0xff, 0x2b]), 0, 4, 0, 3);
    guest.set(Gpr::RBX, 0xfee0_0080);
    guest.resumes(Exit::NestedFault(NestedFault::new(Gpa::new(0xfee0_0080), false, false, false)));
    assert_eq!((guest.vcpu.raised(), guest.vcpu.rip), (Some((13, Some(0))), CODE));
}

/// JMP FAR [BX] and CALL FAR [BX] in virtual-8086 mode, which has no descriptors.
#[test]
fn far_transfers_of_virtual_8086_mode_are_as_in_real_mode() {
    for (code, rsp) in [([0xff, 0x2f], STACK), ([0xff, 0x1f], STACK - 4)] {
        let mut guest = at_far_pointer(Guest::flat_32(&code), 0x1234, 2, 0, 3);
        guest.vcpu.rflags |= RFLAGS_VM;
        guest.vcpu.segments[1] = SegmentState { default_big: false, limit: 0xffff, ..guest.vcpu.segments[1] };
        (guest.vcpu.segments[3].base, guest.vcpu.segments[2].base) = (END - 2, STACK & !0xffff);
        guest.vcpu.segments[2].default_big = false;
        guest.set(Gpr::RBX, 0);
        guest.resumes(FAR);
        let cs = guest.vcpu.segments[1];
        assert_eq!((guest.vcpu.rip, cs.selector, cs.base, guest.vcpu.event), (0x1234, 0xffff, 0xf_fff0, None));
        assert_eq!(guest.get(Gpr::RSP), rsp);
    }
}
