//! The guest's accesses to its local APIC.

use super::guest::*;
use crate::{Event, Exit, Flow, Gpr, NestedFault, Stop};
use addr::Gpa;
use devices::{Clock, Nanoseconds};

const APIC: u64 = 0xfee0_0000;
/// MOV [RBX], EAX; MOV EAX, [RBX].
const WRITE: [u8; 2] = [0x89, 0x03];
const READ: [u8; 2] = [0x8b, 0x03];

/// An access of the guest's to a register: EAX after it.
fn access(guest: &mut Guest, host: &mut TestHost, register: u64, write: Option<u32>) -> u64 {
    // Linear addresses below 2 MiB only are mapped: where the access goes to is what the exit tells.
    guest.code_at(CODE, if write.is_some() { &WRITE } else { &READ });
    guest.set(Gpr::RBX, HOLE + register).set(Gpr::RAX, write.unwrap_or(0).into());
    let fault = NestedFault::new(Gpa::new(APIC + register), write.is_some(), false, false);
    assert_eq!(guest.handle_on(Exit::NestedFault(fault), host), Flow::Resume);
    assert_eq!(guest.vcpu.rip, CODE + 2);
    guest.get(Gpr::RAX)
}

/// A guest whose APIC is on, with interrupts on.
fn ready() -> (Guest, TestHost) {
    let mut guest = Guest::new(&[]);
    let mut host = TestHost::new(&guest);
    access(&mut guest, &mut host, 0xf0, Some(0x1ff));
    guest.vcpu.rflags |= arch::RFLAGS_IF;
    (guest, host)
}

#[test]
fn registers_are_read_and_written() {
    let (mut guest, mut host) = ready();
    assert_eq!(access(&mut guest, &mut host, 0x30, None), 0x5_0014);
    access(&mut guest, &mut host, 0x80, Some(0x40));
    assert_eq!(access(&mut guest, &mut host, 0x80, None), 0x40);
    guest.vcpu.next_rip = Some(CODE + 4);
    assert_eq!(guest.handle(Exit::Cr8(crate::Cr8::new(false, Some(Gpr::RDX)))), Flow::Resume);
    assert_eq!(guest.get(Gpr::RDX), 4);
}

#[test]
fn a_self_ipi_comes_behind_its_instruction_and_not_before_its_priority() {
    let (mut guest, mut host) = ready();
    access(&mut guest, &mut host, 0x80, Some(0x50));
    access(&mut guest, &mut host, 0x300, Some(0x4_0051));
    assert_eq!((guest.vcpu.event, guest.vcpu.window), (None, false), "its class is not above the task priority");
    access(&mut guest, &mut host, 0x80, Some(0x4f));
    assert_eq!(guest.vcpu.event.take(), Some(Event::Interrupt(0x51)));
    assert_eq!(access(&mut guest, &mut host, 0x120, None), 1 << 17, "in service");
    access(&mut guest, &mut host, 0x300, Some(0x4_0052));
    assert_eq!(guest.vcpu.event, None);
    access(&mut guest, &mut host, 0xb0, Some(0));
    assert_eq!(guest.vcpu.event.take(), Some(Event::Interrupt(0x52)));
    // No kick is needed for an interrupt to oneself.
    assert!(host.kicks.is_empty());
}

/// A guest as [`ready`] gives it, whose processor keeps CR8, with a self-IPI of vector 51h held back by CR8 = 5.
fn held_back_by_cr8() -> (Guest, TestHost) {
    let (mut guest, mut host) = ready();
    guest.vcpu.cr8 = Some(5);
    access(&mut guest, &mut host, 0x300, Some(0x4_0051));
    assert_eq!((guest.vcpu.event, guest.vcpu.window), (None, false), "its class is not above the task priority");
    assert_eq!(guest.vcpu.watched, Some(5));
    (guest, host)
}

#[test]
fn a_cr8_that_the_processor_keeps_is_the_apics() {
    let (mut guest, mut host) = ready();
    guest.vcpu.cr8 = Some(0);
    access(&mut guest, &mut host, 0x80, Some(0x53));
    assert_eq!(guest.vcpu.cr8, Some(5));
    assert_eq!(access(&mut guest, &mut host, 0x80, None), 0x53, "nothing has written CR8");
    guest.vcpu.cr8 = Some(7);
    assert_eq!(access(&mut guest, &mut host, 0x80, None), 0x70);
    assert_eq!(access(&mut guest, &mut host, 0xa0, None), 0x70, "the processor priority");
    // Disabled, the APIC is reset.
    guest.vcpu.cr8 = Some(9);
    for (base, cr8) in [(0xfee0_0900, 9), (0xfee0_0100, 0)] {
        guest.code_at(CODE, &[0x0f, 0x30]);
        guest.set(Gpr::RCX, 0x1b).set(Gpr::RAX, base).set(Gpr::RDX, 0);
        assert_eq!(guest.handle_on(Exit::WriteMsr, &mut host), Flow::Resume);
        assert_eq!(guest.vcpu.cr8, Some(cr8));
    }
}

#[test]
fn in_x2apic_mode_too() {
    let (mut guest, mut host) = ready();
    guest.vcpu.cr8 = Some(0);
    let mut msr = |guest: &mut Guest, exit, register, value| {
        guest.code_at(CODE, &[0x0f, if exit == Exit::WriteMsr { 0x30 } else { 0x32 }]);
        guest.set(Gpr::RCX, register).set(Gpr::RAX, value).set(Gpr::RDX, 0);
        assert_eq!(guest.handle_on(exit, &mut host), Flow::Resume);
        guest.get(Gpr::RAX)
    };
    msr(&mut guest, Exit::WriteMsr, 0x1b, 0xfee0_0d00);
    for tf in [0, arch::RFLAGS_TF] {
        guest.vcpu.rflags |= tf;
        msr(&mut guest, Exit::WriteMsr, 0x808, 0x95 + tf);
        assert_eq!(guest.vcpu.cr8, Some(9));
        guest.vcpu.event = None;
    }
    guest.vcpu.cr8 = Some(3);
    assert_eq!(msr(&mut guest, Exit::ReadMsr, 0x808, 0), 0x30);
}

#[test]
fn a_fall_of_cr8_is_asked_for_while_it_holds_an_interrupt_back() {
    // The exit is behind the MOV, or before it.
    let (mut guest, _) = held_back_by_cr8();
    guest.vcpu.cr8 = Some(4);
    guest.resumes(Exit::TaskPriority);
    assert_eq!((guest.vcpu.event, guest.vcpu.watched), (Some(Event::Interrupt(0x51)), None));
    let (mut guest, _) = held_back_by_cr8();
    for (value, event, watched) in [(6, None, Some(5)), (4, Some(Event::Interrupt(0x51)), None)] {
        guest.vcpu.next_rip = Some(CODE + 4);
        guest.set(Gpr::RDX, value).resumes(Exit::Cr8(crate::Cr8::new(true, Some(Gpr::RDX))));
        assert_eq!((guest.vcpu.cr8, guest.vcpu.event, guest.vcpu.watched), (Some(value), event, watched));
    }
    // By the register.
    let (mut guest, mut host) = held_back_by_cr8();
    access(&mut guest, &mut host, 0x80, Some(0x40));
    assert_eq!((guest.vcpu.event, guest.vcpu.watched), (Some(Event::Interrupt(0x51)), None));
}

#[test]
fn what_a_handler_holds_back_as_well_waits_for_its_end_alone() {
    let (mut guest, mut host) = held_back_by_cr8();
    access(&mut guest, &mut host, 0x300, Some(0x4_0061));
    assert_eq!((guest.vcpu.event.take(), guest.vcpu.watched), (Some(Event::Interrupt(0x61)), None));
    guest.vcpu.cr8 = Some(0);
    access(&mut guest, &mut host, 0xb0, Some(0));
    assert_eq!(guest.vcpu.event, Some(Event::Interrupt(0x51)));
}

#[test]
fn a_step_over_the_mov_to_cr8_comes_before_the_interrupt() {
    let (mut guest, _) = held_back_by_cr8();
    guest.vcpu.rflags |= arch::RFLAGS_TF;
    guest.vcpu.cr8 = Some(0);
    guest.resumes(Exit::TaskPriority);
    assert_eq!((guest.vcpu.event, guest.vcpu.window), (Some(Event::DEBUG), true));
}

#[test]
fn an_ipi_makes_one_request_to_the_other_vcpu() {
    let (mut guest, mut host) = ready();
    access(&mut guest, &mut host, 0x310, Some(1 << 24));
    access(&mut guest, &mut host, 0x300, Some(0x4500));
    assert!(guest.vm.request_pending(1));
    access(&mut guest, &mut host, 0x300, Some(0x4608));
    assert_eq!(host.kicks, [1], "it has not answered yet");
}

#[test]
fn interrupts_off_ask_for_the_window() {
    let (mut guest, mut host) = ready();
    guest.vcpu.rflags &= !arch::RFLAGS_IF;
    access(&mut guest, &mut host, 0x300, Some(0x4_0061));
    assert_eq!((guest.vcpu.event, guest.vcpu.window), (None, true));
    guest.vcpu.rflags |= arch::RFLAGS_IF;
    guest.resumes(Exit::InterruptWindow);
    assert_eq!((guest.vcpu.event, guest.vcpu.window), (Some(Event::Interrupt(0x61)), false));
}

#[test]
fn a_window_that_may_be_late_is_looked_for() {
    let (mut guest, mut host) = ready();
    guest.vcpu.late_windows = true;
    guest.vcpu.rflags &= !arch::RFLAGS_IF;
    {
        let mut devices = guest.vm.devices();
        out(&mut devices, 0x21, 0xef);
        devices.set_gsi(4, true);
    }
    access(&mut guest, &mut host, 0x300, Some(0x4_0061));
    assert_eq!(guest.handle_on(Exit::ExternalInterrupt, &mut host), Flow::Resume);
    assert_eq!((guest.vcpu.event, host.deadline), (None, None));
    guest.vcpu.rflags |= arch::RFLAGS_IF;
    guest.resumes(Exit::InterruptWindow);
    assert_eq!(guest.vcpu.event, Some(Event::Interrupt(UART_VECTOR)));
    assert!(guest.vm.request_pending(0), "it is served before the next entry");
    assert!(guest.handler.serve_request(&mut guest.vcpu, &mut host).is_continue());
    for _ in 0..2 {
        assert_eq!(host.deadline, Some(Nanoseconds(guest.clock.now().0 + 100_000)), "the guest has not taken it");
        assert_eq!(guest.handle_on(Exit::ExternalInterrupt, &mut host), Flow::Resume);
    }
    guest.vcpu.event = None;
    assert_eq!(guest.handle_on(Exit::ExternalInterrupt, &mut host), Flow::Resume);
    assert_eq!((guest.vcpu.event, host.deadline), (Some(Event::Interrupt(0x61)), None));
}

#[test]
fn the_timer_wakes_the_guest_when_it_is_due() {
    let (mut guest, mut host) = ready();
    access(&mut guest, &mut host, 0x3e0, Some(0xb));
    access(&mut guest, &mut host, 0x320, Some(0x70));
    access(&mut guest, &mut host, 0x380, Some(2_500_000));
    assert_eq!(host.deadline, Some(Nanoseconds(2_500_000)));
    guest.code_at(CODE, &[0xf4]);
    guest.vcpu.then(Exit::Halt, |_| {});
    guest.vcpu.then(Exit::Shutdown, |_| {});
    assert_eq!(guest.run(&mut host), Stop::TripleFault);
    assert_eq!((host.waits, guest.vcpu.delivered.as_slice()), (3, &[Event::Interrupt(0x70)][..]));
}

#[test]
fn a_tsc_deadline_is_one_of_the_guests_tsc() {
    let (mut guest, mut host) = ready();
    guest.vcpu.tsc = 5_000;
    access(&mut guest, &mut host, 0x320, Some(2 << 17 | 0x71));
    guest.code_at(CODE, &[0x0f, 0x30]);
    guest.set(Gpr::RCX, 0x6e0).set(Gpr::RAX, 6_000).set(Gpr::RDX, 0);
    assert_eq!(guest.handle_on(Exit::WriteMsr, &mut host), Flow::Resume);
    assert_eq!(host.deadline, Some(Nanoseconds(1_000)));
    guest.vcpu.tsc = 6_000;
    assert_eq!(guest.handle_on(Exit::ExternalInterrupt, &mut host), Flow::Resume);
    assert_eq!((guest.vcpu.event, host.deadline), (Some(Event::Interrupt(0x71)), None));
}

/// Another vCPU has unmapped the code when the hypervisor looks for the instruction's end.
#[test]
fn an_interrupt_of_the_instruction_itself_is_not_lost_to_a_fault_of_its_fetch() {
    let (mut guest, mut host) = ready();
    guest.code_at(CODE, &[0x0f, 0x30]);
    guest.set(Gpr::RCX, 0x1b).set(Gpr::RAX, 0xfee0_0d00).set(Gpr::RDX, 0);
    assert_eq!(guest.handle_on(Exit::WriteMsr, &mut host), Flow::Resume);
    guest.code_at(CODE, &[0x0f, 0x30]);
    guest.map(CODE, 0);
    // An interrupt to itself.
    guest.set(Gpr::RCX, 0x83f).set(Gpr::RAX, 0x61);
    assert_eq!(guest.handle_on(Exit::WriteMsr, &mut host), Flow::Resume);
    assert_eq!((guest.vcpu.event, guest.vcpu.rip), (Some(Event::Interrupt(0x61)), CODE));
}

#[test]
fn what_is_fetched_or_pushed_there_is_no_access() {
    for (fetch, injecting) in [(true, false), (false, true)] {
        let (mut guest, mut host) = ready();
        access(&mut guest, &mut host, 0x80, Some(0x40));
        // The instruction is known by now, and has nothing to do with the fault.
        guest.vcpu.rip = CODE;
        guest.set(Gpr::RAX, 0x50);
        guest.vcpu.event = injecting.then_some(Event::Nmi);
        let fault = NestedFault::new(Gpa::new(APIC + 0x80), !fetch, fetch, false);
        assert!(matches!(guest.handle_on(Exit::NestedFault(fault), &mut host), Flow::Stop(Stop::Unhandled(_))));
        guest.vcpu.event = None;
        assert_eq!(access(&mut guest, &mut host, 0x80, None), 0x40);
    }
}

#[test]
fn without_the_apic_the_page_is_no_devices() {
    let (mut guest, mut host) = ready();
    guest.code_at(CODE, &[0x0f, 0x30]);
    guest.set(Gpr::RCX, 0x1b).set(Gpr::RAX, 0xfee0_0100).set(Gpr::RDX, 0);
    assert_eq!(guest.handle_on(Exit::WriteMsr, &mut host), Flow::Resume);
    assert_eq!(access(&mut guest, &mut host, 0x20, None), 0xffff_ffff);
}

#[test]
fn an_nmi_comes_with_interrupts_off_too() {
    let (mut guest, mut host) = ready();
    guest.vcpu.rflags &= !arch::RFLAGS_IF;
    access(&mut guest, &mut host, 0x300, Some(0x4_4400));
    guest.vcpu.then(Exit::Shutdown, |_| {});
    assert_eq!(guest.run(&mut host), Stop::TripleFault);
    assert_eq!(guest.vcpu.delivered, [Event::Nmi]);
}

#[test]
fn an_nmi_waits_for_the_end_of_the_one_before() {
    let (mut guest, mut host) = ready();
    guest.vcpu.nmi_handled = true;
    access(&mut guest, &mut host, 0x300, Some(0x4_4400));
    guest.vcpu.then(Exit::InterruptWindow, |vcpu| {
        assert!(vcpu.nmi_window && vcpu.delivered.is_empty());
        vcpu.nmi_handled = false;
    });
    guest.vcpu.then(Exit::Shutdown, |_| {});
    assert_eq!(guest.run(&mut host), Stop::TripleFault);
    assert_eq!((guest.vcpu.delivered.as_slice(), guest.vcpu.nmi_window), (&[Event::Nmi][..], false));
}

/// So many NMIs come when three are sent at once to a vCPU that handles one, or none.
fn nmis_of_three(is_handled: bool) -> usize {
    let (mut guest, mut host) = ready();
    guest.vcpu.nmi_handled = is_handled;
    (0..3).for_each(|_| guest.vm.shared(0).posted.post_nmi());
    guest.vm.raise_request(0);
    for _ in 0..4 {
        // The next window opens when the handler returns.
        guest.vcpu.then(Exit::InterruptWindow, |vcpu| vcpu.nmi_handled = false);
    }
    guest.vcpu.then(Exit::Shutdown, |_| {});
    assert_eq!(guest.run(&mut host), Stop::TripleFault);
    assert!(guest.vcpu.delivered.iter().all(|event| *event == Event::Nmi));
    guest.vcpu.delivered.len()
}

#[test]
fn one_nmi_is_kept_while_another_is_handled() {
    assert_eq!((nmis_of_three(true), nmis_of_three(false)), (1, 2));
}

/// An instruction that exits at `register`, with its memory operand there; RSI and RDI are for those with two.
fn at_register(code: &[u8], register: u64, is_write: bool) -> Guest {
    let (mut guest, mut host) = ready();
    guest.map(HOLE, APIC | PRESENT | WRITABLE | USER);
    guest.code_at(CODE, code);
    guest.set(Gpr::RBX, HOLE + register).set(Gpr::RSP, DATA + 0x800);
    guest.set(Gpr::RSI, HOLE + register).set(Gpr::RDI, DATA).set(Gpr::RCX, 1);
    let fault = NestedFault::new(Gpa::new(APIC + register), is_write, false, false);
    assert_eq!(guest.handle_on(Exit::NestedFault(fault), &mut host), Flow::Resume, "{code:x?}");
    assert_eq!((guest.vcpu.rip, guest.vcpu.event), (CODE + code.len() as u64, None), "{code:x?}");
    guest
}

#[test]
fn any_instruction_reads_a_register() {
    const VERSION: u64 = 0x5_0014;
    // PUSH, MOVS, IMUL by 1, CMOVNZ, BSF, MOVD XMM0.
    let guest = at_register(&[0xff, 0x33], 0x30, false);
    assert_eq!(u64::from_le_bytes(guest.memory().bytes(DATA + 0x7f8)), VERSION);
    let guest = at_register(&[0xa5], 0x30, false);
    assert_eq!(u32::from_le_bytes(guest.memory().bytes(DATA)), VERSION as u32);
    for (code, rax) in [(&[0x6b, 0x03, 0x01][..], VERSION), (&[0x0f, 0x45, 0x03], VERSION), (&[0x0f, 0xbc, 0x03], 2)] {
        assert_eq!(at_register(code, 0x30, false).get(Gpr::RAX), rax, "{code:x?}");
    }
    let (mut guest, mut host) = ready();
    guest.vcpu.control.cr4 |= arch::CR4_OSFXSR;
    guest.map(HOLE, APIC | PRESENT | WRITABLE);
    guest.code_at(CODE, &[0x66, 0x0f, 0x6e, 0x03]);
    guest.set(Gpr::RBX, HOLE + 0x30);
    guest.vcpu.xmm[0] = u128::MAX;
    let fault = NestedFault::new(Gpa::new(APIC + 0x30), false, false, false);
    assert_eq!(guest.handle_on(Exit::NestedFault(fault), &mut host), Flow::Resume);
    assert_eq!(guest.vcpu.xmm[0], VERSION.into());
}

#[test]
fn any_instruction_writes_a_register() {
    // POP; SHL by 4, ROL by 4.
    let tpr = |guest: &mut Guest| {
        let mut host = TestHost::new(guest);
        access(guest, &mut host, 0x80, None)
    };
    let (mut guest, mut host) = ready();
    guest.map(HOLE, APIC | PRESENT | WRITABLE);
    guest.memory().put_u64(DATA, 0x50);
    for (code, expected) in [(&[0x8f, 0x03][..], 0), (&[0xc7, 0x03, 0x50, 0, 0, 0], 0x50), (&[0xd1, 0x23], 0xa0)] {
        guest.code_at(CODE, code);
        guest.set(Gpr::RBX, HOLE + 0x80).set(Gpr::RSP, DATA);
        let fault = NestedFault::new(Gpa::new(APIC + 0x80), true, false, false);
        assert_eq!(guest.handle_on(Exit::NestedFault(fault), &mut host), Flow::Resume, "{code:x?}");
        // POP is of 64 bits, which no register has: it is lost.
        assert_eq!(tpr(&mut guest), expected, "{code:x?}");
    }
    // MOVS to the register.
    guest.map(HOLE, APIC | PRESENT | WRITABLE);
    guest.code_at(CODE, &[0xa5]);
    guest.memory().put_u64(DATA, 0x60);
    guest.set(Gpr::RSI, DATA).set(Gpr::RDI, HOLE + 0x80);
    let fault = NestedFault::new(Gpa::new(APIC + 0x80), true, false, false);
    assert_eq!(guest.handle_on(Exit::NestedFault(fault), &mut host), Flow::Resume);
    assert_eq!(tpr(&mut guest), 0x60);
}

/// Loads of segment registers with what the task priority register holds: what is raised, and what is loaded.
#[test]
fn segment_registers_are_loaded_from_a_register() {
    use crate::{Segment, SegmentRegister};
    const GDT: u64 = DATA + 0x400;
    // Data, code that can't be read, an LDT, a TSS, data that is not present, data of CPL 0, from selector 8 on.
    let descriptors: [u64; 6] = [
        0x00cf_f200_1000_ffff,
        0x00cf_f800_0000_ffff,
        0x0000_8200_2000_0067,
        0x0000_8900_3000_0067,
        0x00cf_7200_0000_ffff,
        0x00cf_9200_0000_ffff,
    ];
    let [ds, ss] = [Segment::Ds, Segment::Ss].map(SegmentRegister::Segment);
    let gp = |code: u32| Some((13, Some(code)));
    // MOV DS, [EBX]; MOV SS; LLDT; LTR; each with the selector, the CPL, and the base that is loaded.
    let (mov_ds, mov_ss, lldt, ltr): (&[u8], &[u8], &[u8], &[u8]) =
        (&[0x8e, 0x1b], &[0x8e, 0x13], &[0x0f, 0x00, 0x13], &[0x0f, 0x00, 0x1b]);
    for (code, selector, cpl, raised, register, base) in [
        (mov_ds, 0x0b, 3, None, ds, 0x1000),
        (mov_ds, 0x13, 3, gp(0x10), ds, 0),
        (mov_ds, 0x2b, 3, Some((11, Some(0x28))), ds, 0),
        (mov_ds, 0x33, 3, gp(0x30), ds, 0),
        (mov_ds, 0x38, 0, gp(0x38), ds, 0),
        (mov_ds, 0x0c, 0, gp(0x0c), ds, 0),
        (mov_ds, 0, 3, None, ds, 0),
        (mov_ss, 0, 0, gp(0), ss, 0),
        (mov_ss, 0x0b, 0, gp(0x08), ss, 0),
        (mov_ss, 0x30, 0, None, ss, 0),
        (lldt, 0x18, 0, None, SegmentRegister::Ldtr, 0x2000),
        (lldt, 0x20, 0, gp(0x20), SegmentRegister::Ldtr, 0),
        (lldt, 0, 0, None, SegmentRegister::Ldtr, 0),
        (ltr, 0x20, 0, None, SegmentRegister::Tr, 0x3000),
        (ltr, 0x18, 0, gp(0x18), SegmentRegister::Tr, 0),
        (ltr, 0, 0, gp(0), SegmentRegister::Tr, 0),
    ] {
        let mut guest = Guest::flat_32(code);
        let mut host = TestHost::new(&guest);
        for (at, descriptor) in (GDT + 8..).step_by(8).zip(descriptors) {
            guest.memory().put_u64(at, descriptor);
        }
        guest.vcpu.gdt = (GDT, 0x37);
        guest.set(Gpr::RBX, APIC + 0x80).set(Gpr::RAX, selector);
        for (code, is_write) in [(&WRITE[..], true), (code, false)] {
            guest.code_at(CODE, code);
            guest.vcpu.control.cpl = if is_write { 0 } else { cpl };
            let fault = NestedFault::new(Gpa::new(APIC + 0x80), is_write, false, false);
            assert_eq!(guest.handle_on(Exit::NestedFault(fault), &mut host), Flow::Resume);
        }
        let loaded = guest.vcpu.loaded[register.index()];
        let case = (register, selector, cpl);
        assert_eq!((case, guest.vcpu.raised(), loaded.base), (case, raised, base));
        let next = if raised.is_none() { code.len() as u64 } else { 0 };
        assert_eq!((case, guest.vcpu.rip), (case, CODE + next));
        assert_eq!((case, guest.vcpu.shadow), (case, register == ss && raised.is_none()));
        if register == SegmentRegister::Tr && raised.is_none() {
            assert_eq!(guest.memory().bytes(GDT + 0x25), [0x8b], "it is busy");
        }
    }
}
