//! Exits that need no device and no memory, the ends of a VM, and the loop's accounts.

use super::guest::*;
use crate::{
    Cr8, Event, Exception, Exit, ExitKind, Flow, Gpr, Instruction, NestedFault, PageFault, Stop, TaskSwitch,
    TaskSwitchSource,
};
use abi::reasons;
use addr::{Gpa, Gva};
use devices::Size;
use std::string::ToString;

#[test]
fn invd_is_passed_over() {
    for code in [&[0x0f, 0x08][..], &[0x66, 0x0f, 0x08]] {
        let mut guest = Guest::new(code);
        guest.resumes(Exit::Instruction(Instruction::Invd));
        assert_eq!((guest.vcpu.rip, guest.vcpu.event), (CODE + code.len() as u64, None));
    }
}

#[test]
fn what_cpuid_does_not_offer_is_undefined() {
    for instruction in [Instruction::Xsetbv, Instruction::Undefined] {
        let mut guest = Guest::new(&[0x0f, 0x01, 0xd1]);
        guest.resumes(Exit::Instruction(instruction));
        assert_eq!((guest.vcpu.rip, guest.vcpu.event), (CODE, Some(Event::UNDEFINED)));
    }
}

#[test]
fn a_triple_fault_ends_the_vm() {
    assert_eq!(Guest::new(&[]).handle(Exit::Shutdown), Flow::Stop(Stop::TripleFault));
}

#[test]
fn exits_that_can_not_be_handled_end_the_vm_with_a_reason() {
    assert!(Guest::new(&[]).unhandled(Exit::ForeignCr3).contains(reasons::SWITCHED_TASKS));
    assert!(Guest::new(&[]).unhandled(Exit::InvalidState).contains("refused"));
    assert!(Guest::new(&[]).unhandled(Exit::Unknown).contains("not asked for"));
}

#[test]
fn the_loop_ends_with_the_exit_that_stops_the_vm() {
    let mut guest = Guest::new(&[]);
    guest.vcpu.next_rip = Some(CODE + 2);
    guest.vcpu.then(Exit::Cpuid, |_| {});
    guest.vcpu.then(io(0xf4, Size::Byte, false), |vcpu| vcpu.gprs[0] = 3);
    guest.vcpu.then(Exit::Cpuid, |_| panic!("the guest has ended itself"));
    let mut host = TestHost::new(&guest);
    assert_eq!(guest.run(&mut host), Stop::Exited(3));
    assert_eq!((guest.vcpu.entries, guest.vcpu.script_left()), (2, 1));
}

#[test]
fn translations_are_dropped_at_the_entry_for_which_memory_asks_it() {
    let mut guest = Guest::new(&[]);
    guest.vcpu.next_rip = Some(CODE);
    for _ in 0..2 {
        guest.vcpu.then(Exit::Cpuid, |_| {});
    }
    guest.vcpu.then(Exit::Shutdown, |_| {});
    guest.memory().stale.set(true);
    let mut host = TestHost::new(&guest);
    guest.run(&mut host);
    assert_eq!((guest.vcpu.entries, &guest.vcpu.flushed[..]), (3, &[1][..]));
}

#[test]
fn each_kind_of_exit_is_counted() {
    let resuming = [
        Exit::Cpuid,
        Exit::Hypercall,
        io(0xe9, Size::Byte, true),
        io(0xe9, Size::Byte, false),
        string(0xe9, Size::Byte, false),
        Exit::ReadMsr,
        Exit::WriteMsr,
        Exit::Cr8(Cr8::new(false, Some(Gpr::RDX))),
        Exit::Halt,
        Exit::Emulate,
        // Not by an instruction that could be one: it runs again.
        Exit::ControlRegister,
        Exit::DebugRegister,
        Exit::Invlpg,
        // To the null selector: #GP.
        Exit::TaskSwitch(TaskSwitch::new(0, TaskSwitchSource::Jump, None)),
        Exit::NestedFault(NestedFault::new(Gpa::new(DATA), true, false, false)),
        Exit::Exception(Exception::new(1, None)),
        Exit::Instruction(Instruction::Invd),
        Exit::ExternalInterrupt,
        Exit::Nmi,
        Exit::InterruptWindow,
    ];
    let stopping = [
        Exit::Misconfiguration(Gpa::new(0)),
        // Of no vCPU with nested paging.
        Exit::PageFault(PageFault::new(Gva::new(DATA), 0)),
        Exit::Shutdown,
        Exit::ForeignCr3,
        Exit::InvalidState,
        Exit::Unknown,
    ];
    assert_eq!(resuming.len() + stopping.len(), ExitKind::COUNT);

    // OUTSB. The timer wakes HLT, and each of its interrupts ends by itself.
    let mut guest = Guest::with_devices(&[0x6e], |devices| {
        for (port, value) in [(0x20, 0x11), (0x21, 8), (0x21, 4), (0x21, 3), (0x21, 0xfe)] {
            out(devices, port, value);
        }
        [(0x43, 0x34), (0x40, 0), (0x40, 0x10)].into_iter().for_each(|(port, value)| out(devices, port, value));
    });
    guest.vcpu.next_rip = Some(CODE + 2);
    guest.vcpu.rflags |= arch::RFLAGS_IF;
    guest.set(Gpr::RSI, DATA);
    // The n-th kind n times over.
    for (n, exit) in (1..).zip(resuming) {
        for _ in 0..n {
            guest.vcpu.then(exit, |vcpu| {
                vcpu.rip = CODE;
                vcpu.gprs[Gpr::RCX.index()] = 0x277;
                vcpu.gprs[Gpr::RAX.index()] = 0;
                vcpu.gprs[Gpr::RDX.index()] = 0;
            });
        }
    }
    let [first, others @ ..] = stopping;
    guest.vcpu.then(first, |_| {});
    let mut host = TestHost::new(&guest);
    guest.run(&mut host);
    assert_eq!(guest.vcpu.script_left(), 0);
    for (n, exit) in (1..).zip(resuming) {
        assert_eq!(guest.handler.context.stats().count(exit.kind()), n, "{exit:?}");
    }
    assert_eq!(guest.handler.context.stats().count(first.kind()), 1, "{first:?}");
    for exit in others {
        let mut guest = Guest::new(&[0x0f, 0xa2]);
        guest.vcpu.then(exit, |_| {});
        let mut host = TestHost::new(&guest);
        guest.run(&mut host);
        assert_eq!(guest.handler.context.stats().count(exit.kind()), 1, "{exit:?}");
    }
    // After all but the one that stopped it and those that put it to sleep the guest was entered again, ten ticks later.
    let table = guest.handler.context.stats().to_string();
    let ticks = 10 * (guest.vcpu.entries - 1 - guest.handler.context.stats().count(ExitKind::Halt));
    assert!(table.ends_with(&std::format!(" {ticks} ticks of the TSC in the hypervisor")), "{table}");
}

#[test]
fn an_event_is_pushed_where_a_table_was() {
    let features = walk::Features { maxphyaddr: 40, pages_1g: false, pse36: true, pml4e_bit8_reserved: false };
    let mut guest = Guest::new(&[0x90]);
    guest.vcpu.own = Some(shadow::Registers::new(features));
    // The page fault is that of its delivery.
    guest.vcpu.event = Some(Event::UNDEFINED);
    assert_eq!(guest.handle(Exit::PageFault(PageFault::new(Gva::new(0x3ffc), 3))), Flow::Resume);
    assert_eq!(guest.vcpu.event, Some(Event::UNDEFINED));
    assert_eq!(guest.handler.memory.given_up, Some(Gpa::new(0x3ffc)));
}

/// The first pages are where their linear addresses say, by the directory in page 6 and its table in page 4, and once more from
/// 1 GiB on, by page 7 and page 5. The code is an ADDPS, which is not emulated, and stands for one that writes.
fn shadowed() -> Guest {
    let features = walk::Features { maxphyaddr: 40, pages_1g: false, pse36: true, pml4e_bit8_reserved: false };
    let mut guest = Guest::flat_32(&[0x0f, 0x58, 0x03]);
    let memory = &guest.handler.memory;
    for (n, (directory, table)) in [(0x6000u64, 0x4000u64), (0x7000, 0x5000)].into_iter().enumerate() {
        memory.put(0x3000 + 8 * n as u64, &(directory | 1).to_le_bytes());
        memory.put(directory, &(table | 0x67).to_le_bytes());
        (0..32).for_each(|page: u64| memory.put(table + 8 * page, &(page << 12 | 0x67).to_le_bytes()));
    }
    let mut own = shadow::Registers::new(features);
    let controls = walk::Controls { cr0: PG | PE, cr3: 0x3000, cr4: PAE, ..own.paging().controls };
    assert_eq!(own.write(memory, controls), Ok(shadow::Change::Context));
    guest.vcpu.own = Some(own);
    guest
}

/// Writes the table at `at`. Whether the VM ends by that, without having given up the table.
fn ends_by_write(guest: &mut Guest, at: u64) -> bool {
    match guest.handle(Exit::PageFault(PageFault::new(Gva::new(at), 3))) {
        Flow::Stop(Stop::NotEmulated(_) | Stop::Unhandled(_)) => {
            assert_eq!(guest.handler.memory.given_up, None);
            true
        }
        flow => {
            assert_eq!(flow, Flow::Resume);
            false
        }
    }
}

#[test]
fn a_table_that_translates_its_own_address_is_not_given_up_in_vain() {
    for event in [None, Some(Event::UNDEFINED)] {
        let mut guest = shadowed();
        guest.vcpu.event = event;
        assert!(ends_by_write(&mut guest, 0x6ff0));
        // The other gigabyte's directory; a table of the last level goes out of sync when it is one again.
        for table in [0x7ff0, 0x4ff0] {
            let mut guest = shadowed();
            guest.vcpu.event = event;
            assert!(!ends_by_write(&mut guest, table));
            assert_eq!(guest.handler.memory.given_up, Some(Gpa::new(table)));
        }
    }
}

#[test]
fn a_table_that_translates_the_code_that_writes_it_is_not_given_up_in_vain() {
    const OTHER_GIB: u64 = 1 << 30;
    let mut guest = shadowed();
    guest.handler.memory.table_at.set(Some(0x6ff0));
    assert!(ends_by_write(&mut guest, OTHER_GIB | 0x6ff0));
    // An event is delivered before the next instruction is fetched.
    guest.vcpu.event = Some(Event::UNDEFINED);
    assert!(!ends_by_write(&mut guest, OTHER_GIB | 0x6ff0));
    assert_eq!(guest.handler.memory.given_up, Some(Gpa::new(0x6ff0)));
}
