//! Switches of tasks by hardware: what they save and load, and whose the faults are.

use super::guest::{CODE, Guest, HOLE, PAE, PD, PE, PG, PRESENT};
use crate::SegmentRegister;
use crate::task_switch::LoadedSegment;
use crate::{Event, Exit, Flow, Gpr, Segment, Stop, TaskSwitch, TaskSwitchSource, Vcpu};
use arch::{CR0_TS, DR6_BT, RFLAGS_IF, RFLAGS_NT, RFLAGS_RF, RFLAGS_TF, RFLAGS_VM};
use proptest::prelude::*;
use std::vec::Vec;
use x86::irq::{
    DEBUG_VECTOR, DOUBLE_FAULT_VECTOR, GENERAL_PROTECTION_FAULT_VECTOR, INVALID_TSS_VECTOR, PAGE_FAULT_VECTOR,
    SEGMENT_NOT_PRESENT_VECTOR, STACK_SEGEMENT_FAULT_VECTOR,
};

const GDT: u64 = 0x5000;
const LDT: u64 = 0x5800;
const OLD: u64 = 0x6000;
const NEW: u64 = 0x7000;
const PDPTES: u64 = 0x9000;
const STACK: u64 = 0xb000;

// Selectors.
const KERNEL_CODE: u16 = 0x08;
const KERNEL_DATA: u16 = 0x10;
const USER_CODE: u16 = 0x18 | 3;
const USER_DATA: u16 = 0x20 | 3;
const OLD_TASK: u16 = 0x28;
const NEW_TASK: u16 = 0x30;
/// Free for the test.
const FREE: u16 = 0x38;
const LAST: u16 = 0x47;

const AVAILABLE: u8 = 0x89;
const BUSY: u8 = 0x8b;

const EIP: u64 = 0x1234;
const EFLAGS: u64 = 0x46;
const CR3: u64 = 0x1c;

fn descriptor(base: u64, limit: u32, access: u8, flags: u8) -> u64 {
    let (limit, flags) = (u64::from(limit), u64::from(flags));
    let high = u64::from(access) << 40 | (limit >> 16) << 48 | flags << 52 | (base >> 24) << 56;
    limit & 0xffff | (base & 0xff_ffff) << 16 | high
}

/// Where the fields of a 32-bit TSS are.
const fn field(segment: Segment) -> u64 {
    0x48 + 4 * segment as u64
}

/// A guest in 32-bit code that a switch of tasks leaves: CALL FAR [EAX] is what it executes.
fn guest() -> Guest {
    let mut guest = Guest::flat_32(&[0xff, 0x18, 0x90, 0x90]);
    guest.vcpu.gdt = (GDT, LAST.into());
    for (selector, value) in [
        (KERNEL_CODE, descriptor(0, 0xf_ffff, 0x9b, 0xc)),
        (KERNEL_DATA, descriptor(0, 0xf_ffff, 0x93, 0xc)),
        (USER_CODE, descriptor(0, 0xf_ffff, 0xfb, 0xc)),
        (USER_DATA, descriptor(0, 0xf_ffff, 0xf3, 0xc)),
        (OLD_TASK, descriptor(OLD, 0x67, BUSY, 0)),
        (NEW_TASK, descriptor(NEW, 0x67, AVAILABLE, 0)),
    ] {
        describe(&guest, selector, value);
    }
    guest.vcpu.loaded[SegmentRegister::Tr.index()] =
        LoadedSegment { selector: OLD_TASK, base: OLD as u32, limit: 0x67, attributes: BUSY.into() };
    guest.vcpu.rflags = EFLAGS | RFLAGS_IF;
    (0..8).for_each(|gpr| guest.vcpu.gprs[gpr] = 0xa0 + gpr as u64);
    for (at, value) in [(0x20, EIP), (0x24, EFLAGS), (field(Segment::Cs), KERNEL_CODE.into())] {
        set(&guest, at, value as u32);
    }
    (0..8).for_each(|gpr| set(&guest, 0x28 + 4 * gpr, 0xb0 + gpr as u32));
    for segment in [Segment::Es, Segment::Ss, Segment::Ds, Segment::Fs, Segment::Gs] {
        set(&guest, field(segment), KERNEL_DATA.into());
    }
    set(&guest, 0x38, STACK as u32);
    guest
}

/// Writes a field of the new task's TSS.
fn set(guest: &Guest, at: u64, value: u32) {
    guest.memory().put(NEW + at, &value.to_le_bytes());
}

fn describe(guest: &Guest, selector: u16, descriptor: u64) {
    guest.memory().put_u64(GDT + u64::from(selector & !7), descriptor);
}

fn access(guest: &Guest, selector: u16) -> u8 {
    let [access] = guest.memory().bytes(GDT + u64::from(selector & !7) + 5);
    access
}

fn dword(guest: &Guest, at: u64) -> u64 {
    u32::from_le_bytes(guest.memory().bytes(at)).into()
}

fn switch(source: TaskSwitchSource) -> Exit {
    Exit::TaskSwitch(TaskSwitch::new(NEW_TASK, source, None))
}

const CALL: TaskSwitchSource = TaskSwitchSource::Call;

/// Whether the new task is the one that runs.
fn is_entered(guest: &Guest) -> bool {
    guest.vcpu.loaded[SegmentRegister::Tr.index()].selector == NEW_TASK
}

#[test]
fn a_call_saves_the_old_task_and_loads_the_new_one_which_is_nested() {
    let mut guest = guest();
    guest.vcpu.debug[7] = 0x7ff;
    guest.vcpu.shadow = true;
    guest.resumes(switch(CALL));
    assert_eq!(dword(&guest, OLD + 0x20), CODE + 2, "behind the CALL");
    assert_eq!(dword(&guest, OLD + 0x24), EFLAGS | RFLAGS_IF);
    (0..8).for_each(|gpr| assert_eq!(dword(&guest, OLD + 0x28 + 4 * gpr), 0xa0 + gpr));
    assert_eq!(dword(&guest, OLD + field(Segment::Cs)), KERNEL_CODE.into());
    assert_eq!(dword(&guest, OLD + field(Segment::Gs)), KERNEL_DATA.into());
    assert_eq!(dword(&guest, NEW), OLD_TASK.into());
    assert_eq!((access(&guest, OLD_TASK), access(&guest, NEW_TASK)), (BUSY, BUSY));

    let vcpu = &guest.vcpu;
    assert_eq!((vcpu.rip, vcpu.rflags, vcpu.gprs[3], vcpu.gprs[4]), (EIP, EFLAGS | RFLAGS_NT, 0xb3, STACK));
    assert_eq!(vcpu.loaded[7], LoadedSegment { selector: NEW_TASK, base: NEW as u32, limit: 0x67, attributes: 0x8b });
    assert_eq!(vcpu.loaded[1].attributes, 0xc9b);
    assert_eq!((vcpu.loaded[3].limit, vcpu.loaded[3].attributes), (u32::MAX, 0xc93));
    assert!(!vcpu.loaded[6].is_usable(), "there is no LDT");
    assert_eq!(vcpu.control.cr0, PE | CR0_TS);
    assert_eq!(vcpu.debug[7], 0x7ff & !0x155, "breakpoints of the old task are off");
    assert_eq!((vcpu.event, vcpu.shadow), (None, false));
    assert_eq!(vcpu.puts, 2, "the registers are the handler's");
}

#[test]
fn nothing_of_the_old_task_state_is_written_but_what_the_processor_saves() {
    let mut guest = guest();
    guest.memory().put(OLD, &[0xee; 0x68]);
    guest.resumes(switch(CALL));
    assert_eq!(guest.memory().bytes(OLD), [0xee; 0x20]);
    assert_eq!(guest.memory().bytes(OLD + field(Segment::Cs)), [8, 0, 0xee, 0xee]);
    assert_eq!(guest.memory().bytes(OLD + 0x5e), [0xee; 10]);
}

#[test]
fn a_jump_leaves_no_way_back() {
    let mut guest = guest();
    guest.resumes(switch(TaskSwitchSource::Jump));
    assert_eq!((access(&guest, OLD_TASK), access(&guest, NEW_TASK)), (AVAILABLE, BUSY));
    assert_eq!(dword(&guest, NEW), 0);
    assert_eq!((guest.vcpu.rip, guest.vcpu.rflags), (EIP, EFLAGS));
}

#[test]
fn iret_goes_back_to_a_busy_task_and_ends_the_handling_of_an_nmi() {
    let mut guest = guest();
    describe(&guest, NEW_TASK, descriptor(NEW, 0x67, BUSY, 0));
    guest.code_at(CODE, &[0xcf]);
    guest.vcpu.rflags |= RFLAGS_NT;
    guest.vcpu.nmi_handled = true;
    guest.resumes(switch(TaskSwitchSource::Iret));
    assert_eq!((access(&guest, OLD_TASK), access(&guest, NEW_TASK)), (AVAILABLE, BUSY));
    assert_eq!(dword(&guest, OLD + 0x20), CODE + 1);
    assert_eq!(dword(&guest, OLD + 0x24), EFLAGS | RFLAGS_IF, "NT is clear");
    assert_eq!(guest.vcpu.rflags, EFLAGS);
    assert!(!guest.vcpu.nmi_handled);
}

#[test]
fn an_event_interrupts_the_old_task_at_its_instruction() {
    let mut guest = guest();
    guest.vcpu.event = Some(Event::Nmi);
    let event = TaskSwitch::new(NEW_TASK, TaskSwitchSource::Event, None).with_resume_flag(true);
    guest.resumes(Exit::TaskSwitch(event));
    assert_eq!(dword(&guest, OLD + 0x20), CODE);
    assert_eq!(dword(&guest, OLD + 0x24), EFLAGS | RFLAGS_IF | RFLAGS_RF);
    assert_eq!(guest.vcpu.event, None, "it is delivered");
    assert!(guest.vcpu.nmi_handled);
    assert_eq!(guest.vcpu.rflags & RFLAGS_NT, RFLAGS_NT);
}

#[test]
fn the_resume_flag_of_the_old_task_is_what_the_hardware_tells() {
    for (told, before, after) in
        [(None, 0, 0), (None, RFLAGS_RF, RFLAGS_RF), (Some(false), RFLAGS_RF, 0), (Some(true), 0, RFLAGS_RF)]
    {
        let mut guest = guest();
        guest.vcpu.rflags |= before;
        let call = TaskSwitch::new(NEW_TASK, CALL, None);
        guest.resumes(Exit::TaskSwitch(told.map_or(call, |told| call.with_resume_flag(told))));
        assert_eq!(dword(&guest, OLD + 0x24) & RFLAGS_RF, after, "{told:?}");
    }
}

#[test]
fn a_software_interrupt_is_behind_the_old_task() {
    let mut guest = guest();
    guest.code_at(CODE, &[0xcd, 0x81]);
    guest.resumes(switch(TaskSwitchSource::SoftwareInterrupt));
    assert_eq!(dword(&guest, OLD + 0x20), CODE + 2);
    // Where the hardware says, it is believed.
    let mut guest = self::guest();
    guest.vcpu.next_rip = Some(CODE + 7);
    guest.resumes(switch(TaskSwitchSource::SoftwareInterrupt));
    assert_eq!(dword(&guest, OLD + 0x20), CODE + 7);
}

#[test]
fn an_event_whose_gate_leads_elsewhere_was_a_software_interrupt() {
    const IDT: u64 = 0x5c00;
    // Vector 3 goes to the new task, vector 4 to another; vector 5 has an interrupt gate, vector 6 is beyond the end.
    let gate = |task: u16| u64::from(task) << 16 | 0x8500 << 32;
    let gates = [gate(NEW_TASK), gate(FREE), u64::from(NEW_TASK) << 16 | 0x8e00 << 32];
    for (vector, eip) in [(3, CODE), (4, CODE + 2), (5, CODE + 2), (6, CODE + 2)] {
        let mut guest = guest();
        guest.code_at(CODE, &[0xcd, 0x81]);
        guest.vcpu.idt = (IDT, 6 * 8 - 1);
        (3..).zip(gates).for_each(|(vector, gate)| guest.memory().put_u64(IDT + 8 * vector, gate));
        let event = TaskSwitch::new(NEW_TASK, TaskSwitchSource::Event, None).unless_by_int(vector);
        guest.resumes(Exit::TaskSwitch(event));
        assert_eq!(dword(&guest, OLD + 0x20), eip, "{vector}");
    }
}

#[test]
fn the_privilege_of_a_selector_does_not_tell_tasks_apart() {
    let mut guest = guest();
    guest.code_at(CODE, &[0xcd, 0x81]);
    guest.vcpu.idt = (0x5c00, 7);
    guest.memory().put_u64(0x5c00, u64::from(NEW_TASK | 3) << 16 | 0x8500 << 32);
    guest.resumes(Exit::TaskSwitch(TaskSwitch::new(NEW_TASK, TaskSwitchSource::Event, None).unless_by_int(0)));
    assert_eq!(dword(&guest, OLD + 0x20), CODE, "an event it is");
}

#[test]
fn an_int_n_needs_a_gate_for_its_privilege() {
    const IDT: u64 = 0x5c00;
    for (code, vector, dpl, cpl, is_refused) in [
        (&[0xcd, 0x06][..], 6, 0, 3, true),
        (&[0xcd, 0x06], 6, 3, 3, false),
        (&[0xcd, 0x06], 6, 0, 0, false),
        (&[0xcc], 3, 0, 3, true),
        (&[0xce], 4, 2, 3, true),
        (&[0xf1], 1, 0, 3, false),
    ] {
        let mut guest = guest();
        guest.code_at(CODE, code);
        guest.vcpu.control.cpl = cpl;
        guest.vcpu.idt = (IDT, 8 * 8 - 1);
        guest.memory().put_u64(IDT + 8 * vector, u64::from(NEW_TASK) << 16 | (0x85 | dpl << 5) << 40);
        let by_int = switch(TaskSwitchSource::SoftwareInterrupt);
        if is_refused {
            refused(guest, by_int, GENERAL_PROTECTION_FAULT_VECTOR, (vector << 3 | 2) as u32);
        } else {
            guest.resumes(by_int);
            assert!(is_entered(&guest), "{code:x?}");
        }
    }
}

const FAULT: Exit = Exit::TaskSwitch(TaskSwitch::new(NEW_TASK, TaskSwitchSource::Event, Some(0x1234_5678)));

#[test]
fn an_error_code_is_pushed_on_the_new_stack() {
    let mut guest = guest();
    guest.resumes(FAULT);
    assert_eq!((guest.get(Gpr::RSP), dword(&guest, STACK - 4)), (STACK - 4, 0x1234_5678));
    assert_eq!(guest.vcpu.event, None);
}

#[test]
fn a_stack_without_room_for_the_error_code_is_a_fault_of_the_new_task() {
    // One that grows downwards to its limit, and some of 16 bits.
    for (limit, access, flags, esp, pushed) in [
        (0x2003, 0x93, 4, 0x2004, Some(0x2000)),
        (0x2002, 0x93, 4, 0x2004, None),
        (0x2000, 0x93, 4, 0, None),
        (0x2000, 0x93, 4, 2, None),
        (0x2003, 0x97, 4, 0x2008, Some(0x2004)),
        (0x2003, 0x97, 4, 0x2007, None),
        (0xffff, 0x93, 0, 0x1_0004, Some(0x1_0000)),
        (0xffff, 0x93, 0, 0x1_0000, Some(0x1_fffc)),
        (0x2003, 0x97, 0, 0x1_0000, Some(0x1_fffc)),
    ] {
        let mut guest = guest();
        describe(&guest, FREE, descriptor(0, limit, access, flags));
        set(&guest, field(Segment::Ss), FREE.into());
        set(&guest, 0x38, esp);
        guest.resumes(FAULT);
        assert!(is_entered(&guest));
        match pushed {
            Some(top) => assert_eq!((guest.vcpu.raised(), guest.get(Gpr::RSP)), (None, top), "{esp:x}"),
            None => {
                assert_eq!(guest.vcpu.raised(), Some((STACK_SEGEMENT_FAULT_VECTOR, Some(1))), "{esp:x}");
                assert_eq!(guest.get(Gpr::RSP), esp.into());
            }
        }
    }
}

#[test]
fn task_states_of_16_bits_have_their_own_layout() {
    let mut guest = guest();
    describe(&guest, OLD_TASK, descriptor(OLD, 0x2b, 0x83, 0));
    describe(&guest, NEW_TASK, descriptor(NEW, 0x2b, 0x81, 0));
    guest.vcpu.loaded[7].attributes = 0x83;
    guest.vcpu.loaded[7].limit = 0x2b;
    for (index, word) in (0..).zip([
        0x1234,
        0x0246,
        0xb0,
        0xb1,
        0xb2,
        0xb3,
        0xb4,
        0xb5,
        0xb6,
        0xb7,
        KERNEL_DATA,
        KERNEL_CODE,
        KERNEL_DATA,
        0,
        0u16,
    ]) {
        guest.memory().put(NEW + 14 + 2 * index, &word.to_le_bytes());
    }
    guest.memory().put(OLD, &[0xee; 0x2c]);
    guest.set(Gpr::RBX, 0xffff_7777);
    guest.resumes(switch(CALL));
    let word = |at| u16::from_le_bytes(guest.memory().bytes(at));
    assert_eq!((word(OLD + 14), word(OLD + 16)), (CODE as u16 + 2, (EFLAGS | RFLAGS_IF) as u16));
    assert_eq!((word(OLD + 24), word(OLD + 36), word(OLD + 40)), (0x7777, KERNEL_CODE, KERNEL_DATA));
    assert_eq!((word(OLD + 12), word(OLD + 42), word(NEW)), (0xeeee, 0xeeee, OLD_TASK));
    assert_eq!((guest.vcpu.rip, guest.vcpu.rflags), (0x1234, 0x246 | RFLAGS_NT));
    assert_eq!((guest.get(Gpr::RBX), guest.vcpu.control.cr3), (0xb3, 0));
    assert_eq!(guest.vcpu.loaded[7].attributes, 0x83);
    assert_eq!((guest.vcpu.loaded[4].selector, guest.vcpu.loaded[4].is_usable()), (0, false), "there is no FS");
    // Its error codes have 16 bits.
    describe(&guest, NEW_TASK, descriptor(NEW, 0x2b, 0x81, 0));
    guest.resumes(FAULT);
    assert_eq!((guest.get(Gpr::RSP), guest.memory().bytes(0xb2)), (0xb2, [0x78, 0x56, 0]));
}

/// A switch that ends in this exception of the old task, with nothing changed.
#[track_caller]
fn refused(mut guest: Guest, exit: Exit, vector: u8, error: u32) {
    let (memory, gprs, tr) = (guest.memory().snapshot(), guest.vcpu.gprs, guest.vcpu.loaded[7]);
    let rip = guest.vcpu.rip;
    guest.vcpu.event = None;
    guest.resumes(exit);
    assert_eq!(guest.vcpu.raised(), Some((vector, Some(error))));
    assert!(guest.memory().snapshot() == memory, "memory has changed");
    assert_eq!((guest.vcpu.gprs, guest.vcpu.loaded[7], guest.vcpu.rip), (gprs, tr, rip));
    assert_eq!(guest.vcpu.control.cr0 & CR0_TS, 0);
}

#[test]
fn a_descriptor_that_is_none_of_a_fitting_task_is_refused_in_the_old_task() {
    const GP: u8 = GENERAL_PROTECTION_FAULT_VECTOR;
    const TS: u8 = INVALID_TSS_VECTOR;
    use TaskSwitchSource::{Event, Iret, Jump};
    for (source, limit, access, vector, external) in [
        (CALL, 0x67, BUSY, GP, 0),
        (Jump, 0x67, BUSY, GP, 0),
        (Event, 0x67, BUSY, GP, 1),
        (Iret, 0x67, AVAILABLE, TS, 0),
        (CALL, 0x67, 0x82, GP, 0),
        (CALL, 0x67, 0x93, GP, 0),
        (Iret, 0x67, 0x93, TS, 0),
        (CALL, 0x67, AVAILABLE & 0x7f, SEGMENT_NOT_PRESENT_VECTOR, 0),
        (Event, 0x67, AVAILABLE & 0x7f, SEGMENT_NOT_PRESENT_VECTOR, 1),
        (CALL, 0x66, AVAILABLE, TS, 0),
        (CALL, 0x2a, 0x81, TS, 0),
        (Event, 0x66, AVAILABLE, TS, 1),
    ] {
        let guest = guest();
        describe(&guest, NEW_TASK, descriptor(NEW, limit, access, 0));
        refused(guest, switch(source), vector, u32::from(NEW_TASK) | external);
    }
    // Null, of the LDT, beyond the end.
    for selector in [0, NEW_TASK | 4, LAST + 1] {
        refused(guest(), Exit::TaskSwitch(TaskSwitch::new(selector, CALL, None)), GP, u32::from(selector));
    }
}

#[test]
fn a_descriptor_is_all_within_its_table() {
    let mut guest = guest();
    guest.vcpu.gdt.1 = u32::from(NEW_TASK) + 6;
    refused(guest, switch(CALL), GENERAL_PROTECTION_FAULT_VECTOR, NEW_TASK.into());
}

#[test]
fn an_old_task_state_that_is_too_short_is_refused() {
    let mut guest = guest();
    guest.vcpu.loaded[7].limit = 0x5c;
    refused(guest, switch(CALL), INVALID_TSS_VECTOR, OLD_TASK.into());
}

/// PAE paging, one to one.
fn paged() -> Guest {
    let mut guest = guest();
    guest.memory().put_u64(PDPTES, PD | PRESENT);
    (guest.vcpu.control.cr0, guest.vcpu.control.cr3, guest.vcpu.control.cr4) = (PE | PG, PDPTES, PAE);
    set(&guest, CR3, PDPTES as u32);
    // Tables have their accessed and dirty bits, so that a walk changes nothing.
    for entry in (0..512).map(|page| super::guest::PT + page * 8).chain([PD]) {
        let [low] = guest.memory().bytes(entry);
        guest.memory().put(entry, &[low | 0x60]);
    }
    guest
}

#[test]
fn what_is_not_mapped_is_a_page_fault_of_the_old_task() {
    use TaskSwitchSource::Jump;
    for (source, page, flags, at, error) in [
        (CALL, NEW, 0, NEW, 0),
        (CALL, OLD, 0x61, OLD + 0x20, 3),
        (Jump, OLD, 0x61, OLD + 0x20, 3),
        (CALL, NEW, 0x61, NEW, 3),
        (CALL, GDT, 0x61, GDT + u64::from(NEW_TASK) + 5, 3),
        (Jump, GDT, 0x61, GDT + u64::from(OLD_TASK) + 5, 3),
        (CALL, GDT, 0, GDT + u64::from(NEW_TASK), 0),
    ] {
        let mut guest = paged();
        guest.vcpu.control.cr0 |= super::guest::WP;
        guest.protect(page, flags);
        refused(guest, switch(source), PAGE_FAULT_VECTOR, error);
        let mut guest = paged();
        guest.vcpu.control.cr0 |= super::guest::WP;
        guest.protect(page, flags);
        guest.resumes(switch(source));
        assert_eq!(guest.vcpu.cr2, at);
    }
}

#[test]
fn an_instruction_that_reaches_into_an_absent_page_is_a_page_fault() {
    const NEXT: u64 = 0xd000;
    for next_rip in [None, Some(NEXT + 1)] {
        let mut guest = paged();
        guest.code_at(NEXT - 1, &[0xff, 0x18]);
        guest.vcpu.next_rip = next_rip;
        guest.protect(NEXT, 0x60);
        guest.resumes(switch(CALL));
        match next_rip {
            None => assert_eq!((guest.vcpu.raised(), guest.vcpu.cr2), (Some((PAGE_FAULT_VECTOR, Some(0))), NEXT)),
            Some(_) => assert!(is_entered(&guest), "the hardware tells where it ends"),
        }
    }
}

#[test]
fn a_task_state_in_two_pages_is_not_saved_by_half() {
    let mut guest = paged();
    guest.vcpu.control.cr0 |= super::guest::WP;
    guest.vcpu.loaded[7].base = 0xcfc0;
    guest.protect(0xd000, 0x61);
    refused(guest, switch(TaskSwitchSource::Jump), PAGE_FAULT_VECTOR, 3);
}

#[test]
fn an_error_code_is_pushed_with_the_new_tasks_privilege() {
    let mut guest = paged();
    for segment in [Segment::Es, Segment::Ss, Segment::Ds, Segment::Fs, Segment::Gs] {
        set(&guest, field(segment), USER_DATA.into());
    }
    set(&guest, field(Segment::Cs), USER_CODE.into());
    guest.protect(STACK - 4, 0x63);
    guest.resumes(FAULT);
    assert_eq!(guest.vcpu.raised(), Some((PAGE_FAULT_VECTOR, Some(7))));
    assert!(is_entered(&guest));
    assert_eq!((guest.vcpu.cr2, guest.get(Gpr::RSP)), (STACK - 4, STACK));
}

#[test]
fn reserved_flags_are_not_loaded() {
    let mut guest = guest();
    set(&guest, 0x24, !(RFLAGS_VM as u32));
    guest.resumes(switch(TaskSwitchSource::Jump));
    assert_eq!(guest.vcpu.rflags, 0x003d_7fd7);
}

#[test]
fn the_address_space_is_the_new_tasks() {
    let mut guest = paged();
    guest.memory().put_u64(0xa000, PD | PRESENT);
    guest.memory().put_u64(0xa018, 0xc000 | PRESENT);
    set(&guest, CR3, 0xa000);
    guest.resumes(switch(CALL));
    assert_eq!(guest.vcpu.raised(), None);
    assert_eq!(guest.vcpu.control.cr3, 0xa000);
    assert_eq!(guest.vcpu.pdptes, Some([PD | PRESENT, 0, 0, 0xc000 | PRESENT]));
}

/// A CALL behind a load of SS, with TF. The new task has no TF.
#[test]
fn the_old_tasks_step_is_not_left_to_the_new_one() {
    let mut guest = guest();
    guest.vcpu.rflags |= RFLAGS_TF;
    guest.vcpu.shadow = true;
    guest.vcpu.hold_step();
    guest.vcpu.then(Exit::Shutdown, |_| {});
    guest.resumes(switch(CALL));
    guest.vcpu.enter();
    assert_eq!((guest.vcpu.delivered.as_slice(), guest.vcpu.debug[6]), (&[][..], 0));
}

#[test]
fn pdptes_that_cannot_be_loaded_are_a_fault_of_the_new_task() {
    // With a reserved bit, and where no memory is.
    for cr3 in [0xa000, HOLE as u32] {
        let mut guest = paged();
        guest.memory().put_u64(0xa000, PD | PRESENT | 2);
        set(&guest, CR3, cr3);
        guest.resumes(switch(CALL));
        assert_eq!(guest.vcpu.event, Some(Event::GENERAL_PROTECTION));
        assert!(is_entered(&guest));
        assert_eq!((guest.vcpu.control.cr3, guest.vcpu.pdptes, guest.vcpu.rip), (PDPTES, None, EIP));
    }
}

#[test]
fn without_paging_there_is_no_address_space() {
    let mut guest = guest();
    set(&guest, CR3, 0xa000);
    guest.resumes(switch(CALL));
    assert_eq!((guest.vcpu.control.cr3, guest.vcpu.pdptes), (0, None));
}

/// A switch that ends in this exception of the new task.
#[track_caller]
fn fails_inside(guest: &mut Guest, exit: Exit, vector: u8, error: u32) {
    guest.resumes(exit);
    assert_eq!(guest.vcpu.raised(), Some((vector, Some(error))));
    assert!(is_entered(guest));
    assert_eq!((guest.vcpu.rip, guest.vcpu.rflags), (EIP, EFLAGS | RFLAGS_NT | RFLAGS_RF));
    assert_eq!(access(guest, NEW_TASK), BUSY);
}

#[test]
fn segments_of_the_new_task_fit_its_privilege() {
    use Segment::{Cs, Ds, Es, Gs, Ss};
    const TS: u8 = INVALID_TSS_VECTOR;
    const NP: u8 = SEGMENT_NOT_PRESENT_VECTOR;
    const SS: u8 = STACK_SEGEMENT_FAULT_VECTOR;
    let user = |rpl: u16| FREE | rpl;
    for (register, selector, access, vector) in [
        (Cs, 0, 0x9b, Some(TS)),
        (Cs, LAST + 1, 0x9b, Some(TS)),
        (Cs, user(0), 0x9b, None),
        (Cs, user(0), 0x93, Some(TS)),
        (Cs, user(0), 0x1b, Some(NP)),
        (Cs, user(0), 0xfb, Some(TS)),
        (Cs, user(0), 0x9f, None),
        (Cs, user(0), 0xff, Some(TS)),
        (Ss, 0, 0x93, Some(TS)),
        (Ss, user(0), 0x93, None),
        (Ss, user(3), 0x93, Some(TS)),
        (Ss, user(0), 0xf3, Some(TS)),
        (Ss, user(0), 0x91, Some(TS)),
        (Ss, user(0), 0x9b, Some(TS)),
        (Ss, user(0), 0x13, Some(SS)),
        (Ss, user(3), 0x13, Some(SS)),
        (Ss, user(0), 0x73, Some(SS)),
        (Ss, user(0), 0x11, Some(TS)),
        (Cs, user(0), 0x7b, Some(TS)),
        (Gs, user(3), 0x13, Some(NP)),
        (Gs, user(0), 0x19, Some(TS)),
        (Ds, 0, 0x93, None),
        (Ds, 3, 0x93, None),
        (Ds, user(0), 0x91, None),
        (Ds, user(0), 0x9b, None),
        (Es, user(0), 0x99, Some(TS)),
        (Es, user(3), 0x93, Some(TS)),
        (Es, user(3), 0x9f, None),
        (Gs, user(3), 0xf3, None),
        (Gs, user(0), 0x13, Some(NP)),
        (Gs, user(0), 0x89, Some(TS)),
        (Gs, FREE | 4, 0x93, Some(TS)),
    ] {
        let mut guest = guest();
        describe(&guest, FREE, descriptor(0, 0xf_ffff, access, 0xc));
        set(&guest, field(register), selector.into());
        match vector {
            Some(vector) => fails_inside(&mut guest, switch(CALL), vector, (selector & !3).into()),
            None => {
                guest.resumes(switch(CALL));
                assert_eq!(guest.vcpu.raised(), None, "{register:?} {selector:x} {access:x}");
            }
        }
    }
}

#[test]
fn a_segment_that_fails_leaves_those_behind_it_with_their_selectors_alone() {
    let mut guest = guest();
    set(&guest, field(Segment::Ss), (USER_DATA & !3).into());
    fails_inside(&mut guest, switch(CALL), INVALID_TSS_VECTOR, (USER_DATA & !3).into());
    let [es, cs, ss, ds, ..] = guest.vcpu.loaded;
    assert!(cs.is_usable() && !ss.is_usable() && !ds.is_usable() && !es.is_usable());
    assert_eq!((ss.selector, ds.selector, es.selector), (USER_DATA & !3, KERNEL_DATA, KERNEL_DATA));
    assert_eq!(guest.vcpu.control.cpl, 0);
}

#[test]
fn a_new_task_may_be_in_user_mode() {
    let mut guest = guest();
    for segment in [Segment::Es, Segment::Ss, Segment::Ds, Segment::Fs, Segment::Gs] {
        set(&guest, field(segment), USER_DATA.into());
    }
    set(&guest, field(Segment::Cs), USER_CODE.into());
    guest.resumes(switch(CALL));
    assert_eq!((guest.vcpu.raised(), guest.vcpu.control.cpl), (None, 3));
    // Data of the supervisor is not its own.
    let mut again = self::guest();
    set(&again, field(Segment::Cs), USER_CODE.into());
    set(&again, field(Segment::Ss), USER_DATA.into());
    fails_inside(&mut again, switch(CALL), INVALID_TSS_VECTOR, KERNEL_DATA.into());
    assert_eq!(again.vcpu.control.cpl, 3);
}

#[test]
fn descriptors_count_as_accessed() {
    let mut guest = guest();
    describe(&guest, FREE, descriptor(0, 0xf_ffff, 0x92, 0xc));
    set(&guest, field(Segment::Fs), FREE.into());
    guest.resumes(switch(CALL));
    assert_eq!((access(&guest, FREE), guest.vcpu.loaded[4].attributes), (0x93, 0xc93));
}

#[test]
fn the_local_table_is_the_new_tasks() {
    let prepared = |access| {
        let guest = guest();
        describe(&guest, FREE, descriptor(LDT, 7, access, 0));
        guest.memory().put_u64(LDT, descriptor(0x4_0000, 0xfff, 0x93, 0));
        set(&guest, 0x60, FREE.into());
        set(&guest, field(Segment::Ds), 4);
        guest
    };
    let mut guest = prepared(0x82);
    guest.resumes(switch(CALL));
    assert_eq!(guest.vcpu.raised(), None);
    assert_eq!(guest.vcpu.loaded[3], LoadedSegment { selector: 4, base: 0x4_0000, limit: 0xfff, attributes: 0x93 });
    assert_eq!(guest.vcpu.loaded[6], LoadedSegment { selector: FREE, base: LDT as u32, limit: 7, attributes: 0x82 });
    // Not present, another kind, of the LDT, beyond the end.
    for (access, selector) in [(0x02, FREE), (0x93, FREE), (0x82, FREE | 4), (0x82, LAST + 1)] {
        let mut guest = prepared(access);
        set(&guest, 0x60, selector.into());
        fails_inside(&mut guest, switch(CALL), INVALID_TSS_VECTOR, selector.into());
    }
}

#[test]
fn a_new_task_may_be_in_virtual_8086_mode() {
    let mut guest = guest();
    set(&guest, 0x24, (EFLAGS | RFLAGS_VM) as u32);
    set(&guest, field(Segment::Cs), 0x800);
    set(&guest, field(Segment::Ss), 0xb00);
    guest.resumes(switch(TaskSwitchSource::Jump));
    assert_eq!((guest.vcpu.raised(), guest.vcpu.control.cpl), (None, 3));
    assert_eq!(guest.vcpu.loaded[1], LoadedSegment { selector: 0x800, base: 0x8000, limit: 0xffff, attributes: 0xf3 });
    assert_eq!(guest.vcpu.rflags, EFLAGS | RFLAGS_VM);
}

/// An entry with RFLAGS.VM set demands such segments, also if a fault comes first.
#[test]
fn virtual_8086_segments_are_loaded_first() {
    let mut guest = guest();
    set(&guest, 0x24, (EFLAGS | RFLAGS_VM) as u32);
    set(&guest, 0x60, KERNEL_DATA.into());
    guest.resumes(switch(TaskSwitchSource::Jump));
    assert_eq!(guest.vcpu.raised(), Some((INVALID_TSS_VECTOR, Some(KERNEL_DATA.into()))));
    assert!(guest.vcpu.loaded[..6].iter().all(|segment| segment.attributes == 0xf3));
}

#[test]
fn an_instruction_pointer_beyond_the_code_is_a_fault_of_the_new_task() {
    let mut guest = guest();
    describe(&guest, FREE, descriptor(0, EIP as u32 - 1, 0x9b, 4));
    set(&guest, field(Segment::Cs), FREE.into());
    fails_inside(&mut guest, switch(CALL), GENERAL_PROTECTION_FAULT_VECTOR, 0);
}

#[test]
fn a_task_may_ask_for_a_debug_trap() {
    let mut guest = guest();
    (guest.vcpu.debug[6], guest.vcpu.debug[7]) = (arch::reset::DR6, arch::DR7_GD);
    set(&guest, 0x64, 1);
    guest.resumes(switch(CALL));
    assert_eq!(guest.vcpu.raised(), Some((DEBUG_VECTOR, None)));
    assert_eq!(guest.vcpu.debug[6], arch::reset::DR6 | DR6_BT);
    assert_eq!(guest.vcpu.debug[7], 0, "its handler may access them");
}

#[test]
fn a_fault_on_the_way_to_a_handler_is_a_double_fault_if_both_contribute() {
    use crate::Exception;
    let second = |first: u8| {
        let mut guest = guest();
        guest.vcpu.event = Some(Event::Exception(Exception::new(first, Some(0))));
        describe(&guest, NEW_TASK, descriptor(NEW, 0x66, AVAILABLE, 0));
        (guest.handle(FAULT), guest.vcpu.raised().map(|(vector, _)| vector))
    };
    assert_eq!(second(1), (Flow::Resume, Some(INVALID_TSS_VECTOR)));
    for first in [0, 10, 11, 12, 13, PAGE_FAULT_VECTOR] {
        assert_eq!(second(first), (Flow::Resume, Some(DOUBLE_FAULT_VECTOR)), "{first}");
    }
    assert_eq!(second(DOUBLE_FAULT_VECTOR).0, Flow::Stop(Stop::TripleFault));
}

#[test]
fn a_task_state_that_is_not_in_memory_ends_the_vm() {
    let mut guest = guest();
    describe(&guest, NEW_TASK, descriptor(0x10_0000, 0x67, AVAILABLE, 0));
    assert!(guest.unhandled(switch(CALL)).contains("not in memory"));
}

#[test]
fn a_task_may_return_to_itself() {
    let mut guest = guest();
    guest.vcpu.rflags |= RFLAGS_NT;
    guest.code_at(CODE, &[0xcf]);
    guest.resumes(Exit::TaskSwitch(TaskSwitch::new(OLD_TASK, TaskSwitchSource::Iret, None)));
    // The busy bit was cleared on the way out, and IRET does not set it.
    assert_eq!(access(&guest, OLD_TASK), AVAILABLE);
    assert_eq!((guest.vcpu.rip, guest.get(Gpr::RBX)), (CODE + 1, 0xa3));
}

#[test]
fn of_two_vcpus_that_enter_one_task_one_finds_it_busy() {
    let mut guest = guest();
    guest.memory().meanwhile.set(Some((GDT + u64::from(NEW_TASK), descriptor(NEW, 0x67, BUSY, 0))));
    let states = |guest: &Guest| (guest.memory().bytes::<0x68>(OLD), guest.memory().bytes::<0x68>(NEW));
    let before = states(&guest);
    guest.resumes(switch(CALL));
    assert_eq!((guest.vcpu.event, guest.vcpu.rip), (None, CODE), "the instruction runs again");
    assert_eq!(states(&guest), before);
    guest.resumes(switch(CALL));
    assert_eq!(guest.vcpu.raised(), Some((GENERAL_PROTECTION_FAULT_VECTOR, Some(NEW_TASK.into()))));
}

#[test]
fn what_another_vcpu_does_to_a_descriptor_is_not_lost() {
    let mut guest = guest();
    guest.code_at(CODE, &[0xcf]);
    // The old task's: it becomes absent when its busy bit is cleared.
    let at = GDT + u64::from(OLD_TASK);
    describe(&guest, NEW_TASK, descriptor(NEW, 0x67, BUSY, 0));
    guest.memory().meanwhile.set(Some((at, descriptor(OLD, 0x67, BUSY & 0x7f, 0))));
    guest.resumes(switch(TaskSwitchSource::Iret));
    assert_eq!(access(&guest, OLD_TASK), AVAILABLE & 0x7f);
}

#[test]
fn a_switch_that_another_vcpu_makes_impossible_in_its_midst_ends_the_vm_by_name() {
    let mut guest = paged();
    // The page of the old task's state goes when the new task has become busy.
    guest.memory().meanwhile.set(Some((super::guest::PT + (OLD >> 12) * 8, 0)));
    assert!(guest.unhandled(switch(CALL)).contains("in the midst"));
}

/// A descriptor of any kind, mostly somewhere in memory.
fn any_descriptor() -> impl Strategy<Value = u64> {
    let base = prop_oneof![Just(0u64), Just(NEW), Just(OLD), Just(0x1_fff0), Just(0xffff_fff0), any::<u64>()];
    let limit = prop_oneof![Just(0x67u32), Just(0x2b), Just(0xf_ffff), 0u32..0x100];
    let access = prop_oneof![Just(0x89u8), Just(0x8b), Just(0x81), Just(0x82), Just(0x93), Just(0x9b), any::<u8>()];
    (base, limit, access, 0u8..16).prop_map(|(base, limit, access, flags)| descriptor(base, limit, access, flags))
}

fn any_switch() -> impl Strategy<Value = TaskSwitch> {
    use TaskSwitchSource::{Call, Event, Iret, Jump, SoftwareInterrupt};
    let source = prop::sample::select(&[Call, Iret, Jump, SoftwareInterrupt, Event][..]);
    let selector = prop_oneof![4 => Just(NEW_TASK), 1 => 0u16..0x50, 1 => any::<u16>()];
    (selector, source, any::<Option<u32>>(), any::<Option<u8>>()).prop_map(|(selector, source, error, vector)| {
        let switch = TaskSwitch::new(selector, source, error);
        vector.map_or(switch, |vector| switch.unless_by_int(vector))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    /// A switch is carried out, is a fault of the old task, which has not changed then, or ends the VM.
    #[test]
    fn a_switch_is_whole_or_none(
        switch in any_switch(),
        descriptors in prop::collection::vec((1u16..9, any_descriptor()), 0..4),
        fields in prop::collection::vec((0u64..26, prop_oneof![any::<u32>(), 0u32..0x50]), 0..4),
        entries in prop::collection::vec((0u64..16, any::<u64>()), 0..2),
        is_paged in any::<bool>(),
        gdt in prop_oneof![4 => Just(GDT), 1 => any::<u64>()],
        next_rip in any::<Option<u64>>(),
    ) {
        let mut guest = if is_paged { paged() } else { guest() };
        (guest.vcpu.gdt.0, guest.vcpu.next_rip) = (gdt, next_rip);
        descriptors.into_iter().for_each(|(index, value)| describe(&guest, index << 3, value));
        fields.into_iter().for_each(|(index, value)| set(&guest, 4 * index, value));
        entries.into_iter().for_each(|(page, flags)| guest.protect(page << 12, flags & 0xfe7 | 0x60));
        let memory = guest.memory().snapshot();
        let (gprs, rip, tr) = (guest.vcpu.gprs, guest.vcpu.rip, guest.vcpu.loaded[7]);
        match guest.handle(Exit::TaskSwitch(switch)) {
            Flow::Resume if guest.vcpu.loaded[7] == tr && guest.vcpu.rip == rip => {
                prop_assert!(guest.vcpu.raised().is_some());
                prop_assert_eq!(guest.vcpu.gprs, gprs);
                prop_assert!(without_marks(&guest.memory().snapshot()) == without_marks(&memory));
            }
            Flow::Resume => {
                prop_assert_eq!(guest.vcpu.loaded[7].selector, switch.selector());
                prop_assert_eq!(guest.vcpu.control.cr0 & CR0_TS, CR0_TS);
                let cpl = guest.vcpu.control.cpl;
                let [_, cs, ss, ..] = guest.vcpu.loaded;
                // What entries demand.
                let is_virtual_8086 = guest.vcpu.rflags & RFLAGS_VM != 0 && ss.attributes == 0xf3;
                prop_assert!(is_virtual_8086 || cs.is_usable() && ss.selector & 3 == u16::from(cpl));
                prop_assert!(is_virtual_8086 || cs.selector & 3 == u16::from(cpl));
            }
            Flow::Stop(Stop::Unhandled(_)) => {}
            other => prop_assert!(false, "{other:?}"),
        }
    }
}

/// All but the page table, in which a walk sets accessed and dirty bits.
fn without_marks(memory: &[u8]) -> Vec<u8> {
    let table = super::guest::PT as usize;
    [&memory[..table], &memory[table + 4096..]].concat()
}
