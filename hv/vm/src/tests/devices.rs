//! Devices that are mapped to memory, and interrupts by the I/O APIC.

use super::guest::*;
use crate::{Event, Exit, Flow, Gpr, NestedFault, Stop};
use addr::Gpa;
use apic::{LocalApic, Register};
use devices::{Nanoseconds, Size};

const IOAPIC: u64 = 0xfec0_0000;
const HPET: u64 = 0xfed0_0000;
const TEST_MEMORY: u64 = 0xff00_0000;
const APIC: u64 = 0xfee0_0000;
/// MOV [RBX], EAX; MOV EAX, [RBX].
const WRITE: [u8; 2] = [0x89, 0x03];
const READ: [u8; 2] = [0x8b, 0x03];
const LEVEL: u32 = 1 << 15;
/// The I/O APIC's input that is COM1's, and a line that only the test device drives.
const UART_PIN: u32 = 4;
const LINE: u32 = 20;

/// The guest executes `code`, whose operand, in RBX, is at guest-physical address `at`.
fn execute(guest: &mut Guest, host: &mut TestHost, code: &[u8], at: u64, write: bool) {
    guest.code_at(CODE, code);
    guest.map(HOLE, at & !0xfff | PRESENT | WRITABLE);
    guest.set(Gpr::RBX, HOLE | at & 0xfff);
    let fault = NestedFault::new(Gpa::new(at), write, false, false);
    assert_eq!(guest.handle_on(Exit::NestedFault(fault), host), Flow::Resume);
    assert_eq!(guest.vcpu.rip, CODE + code.len() as u64);
}

fn write(guest: &mut Guest, host: &mut TestHost, at: u64, value: u32) {
    guest.set(Gpr::RAX, value.into());
    execute(guest, host, &WRITE, at, true);
}

fn read(guest: &mut Guest, host: &mut TestHost, at: u64) -> u64 {
    execute(guest, host, &READ, at, false);
    guest.get(Gpr::RAX)
}

/// Programs an input of the I/O APIC to send to vCPU `to`.
fn program(guest: &mut Guest, host: &mut TestHost, pin: u32, low: u32, to: u32) {
    for (register, value) in [(0x11 + 2 * pin, to << 24), (0x10 + 2 * pin, low)] {
        write(guest, host, IOAPIC, register);
        write(guest, host, IOAPIC + 0x10, value);
    }
}

fn out(guest: &mut Guest, host: &mut TestHost, port: u16, value: u8) -> Flow {
    guest.vcpu.next_rip = Some(CODE + 2);
    guest.set(Gpr::RAX, value.into());
    guest.handle_on(io(port, Size::Byte, false), host)
}

/// Sets the level of [`LINE`].
fn set_line(guest: &mut Guest, host: &mut TestHost, high: bool) {
    assert_eq!(out(guest, host, 0x2000 + LINE as u16, high.into()), Flow::Resume);
}

/// A guest whose APIC is on, with interrupts on.
fn ready() -> (Guest, TestHost) {
    let mut guest = Guest::new(&[]);
    let mut host = TestHost::new(&guest);
    write(&mut guest, &mut host, APIC + 0xf0, 0x1ff);
    guest.vcpu.rflags |= arch::RFLAGS_IF;
    (guest, host)
}

/// Another vCPU's local APIC, which that vCPU has switched on.
fn other(guest: &Guest) -> LocalApic {
    let posted = &guest.vm.shared(1).posted;
    let mut apic = LocalApic::new(1, posted);
    let _ = apic.write(Register::Spurious, 0x1ff, posted, &crate::local_apic::ApicClock(guest.vm.clock()));
    apic
}

#[test]
fn registers_are_read_and_written_by_any_instruction() {
    let (mut guest, mut host) = ready();
    write(&mut guest, &mut host, IOAPIC, 1);
    assert_eq!(read(&mut guest, &mut host, IOAPIC + 0x10), 0x0017_0020);
    assert_eq!(read(&mut guest, &mut host, HPET + 4), 10_000_000);
    write(&mut guest, &mut host, TEST_MEMORY + 0x10, 0x1111_2222);
    // ADD DWORD [RBX], 1; MOV RAX, [RBX].
    execute(&mut guest, &mut host, &[0x83, 0x03, 0x01], TEST_MEMORY + 0x10, true);
    execute(&mut guest, &mut host, &[0x48, 0x8b, 0x03], TEST_MEMORY + 0x10, false);
    assert_eq!(guest.get(Gpr::RAX), 0x1111_2223);
}

#[test]
fn a_string_moves_between_memory_and_a_device() {
    let (mut guest, mut host) = ready();
    guest.memory().put(DATA, b"micro");
    // REP MOVSB, an element at a time.
    for (n, &byte) in b"micro".iter().enumerate() {
        guest.set(Gpr::RSI, DATA + n as u64).set(Gpr::RDI, HOLE + n as u64).set(Gpr::RCX, 1);
        execute(&mut guest, &mut host, &[0xf3, 0xa4], TEST_MEMORY + n as u64, true);
        assert_eq!(read(&mut guest, &mut host, TEST_MEMORY + n as u64) as u8, byte);
    }
}

#[test]
fn an_address_without_a_device_stays_unclaimed() {
    let (mut guest, mut host) = ready();
    write(&mut guest, &mut host, IOAPIC + 0x1000, 1);
    assert_eq!(read(&mut guest, &mut host, IOAPIC + 0x1000), 0xffff_ffff);
}

#[test]
fn a_devices_interrupt_comes_by_the_io_apic() {
    let (mut guest, mut host) = ready();
    program(&mut guest, &mut host, UART_PIN, 0x34, 0);
    assert_eq!(out(&mut guest, &mut host, 0x3f9, 0x02), Flow::Resume);
    assert_eq!(guest.vcpu.event, Some(Event::Interrupt(0x34)));
    assert!(host.kicks.is_empty());
}

#[test]
fn a_message_to_another_vcpu_is_posted_there_and_kicks_once() {
    let (mut guest, mut host) = ready();
    let mut other = other(&guest);
    program(&mut guest, &mut host, UART_PIN, 0x35, 1);
    assert_eq!(out(&mut guest, &mut host, 0x3f9, 0x02), Flow::Resume);
    assert_eq!((guest.vcpu.event, host.kicks.as_slice()), (None, &[1][..]));
    assert!(guest.vm.request_pending(1));
    assert_eq!(other.acknowledge(&guest.vm.shared(1).posted), Some(0x35));
}

#[test]
fn a_level_comes_again_after_each_eoi_while_it_is_high() {
    let (mut guest, mut host) = ready();
    program(&mut guest, &mut host, LINE, LEVEL | 0x45, 0);
    set_line(&mut guest, &mut host, true);
    for _ in 0..3 {
        assert_eq!(guest.vcpu.event.take(), Some(Event::Interrupt(0x45)));
        set_line(&mut guest, &mut host, true);
        assert_eq!(guest.vcpu.event, None, "not before its EOI");
        write(&mut guest, &mut host, APIC + 0xb0, 0);
    }
    assert_eq!(guest.vcpu.event.take(), Some(Event::Interrupt(0x45)));
    set_line(&mut guest, &mut host, false);
    write(&mut guest, &mut host, APIC + 0xb0, 0);
    assert_eq!((guest.vcpu.event, guest.vcpu.window), (None, false));
}

#[test]
fn an_eoi_in_x2apic_mode_is_broadcast_too() {
    let (mut guest, mut host) = ready();
    program(&mut guest, &mut host, LINE, LEVEL | 0x45, 0);
    for (msr, value) in [(0x1b, 0xfee0_0d00), (0x80b, 0)] {
        set_line(&mut guest, &mut host, true);
        guest.vcpu.event = None;
        guest.code_at(CODE, &[0x0f, 0x30]);
        guest.set(Gpr::RCX, msr).set(Gpr::RAX, value).set(Gpr::RDX, 0);
        assert_eq!(guest.handle_on(Exit::WriteMsr, &mut host), Flow::Resume);
    }
    assert_eq!(guest.vcpu.event, Some(Event::Interrupt(0x45)));
}

#[test]
fn an_nmi_message_is_an_nmi() {
    let (mut guest, mut host) = ready();
    guest.vcpu.rflags &= !arch::RFLAGS_IF;
    program(&mut guest, &mut host, LINE, 0x400, 0);
    set_line(&mut guest, &mut host, true);
    guest.vcpu.then(Exit::Shutdown, |_| {});
    assert_eq!(guest.run(&mut host), Stop::TripleFault);
    assert_eq!(guest.vcpu.delivered, [Event::Nmi]);
}

#[test]
fn an_ext_int_message_takes_the_8259s_vector_though_lint0_is_masked() {
    let (mut guest, mut host) = ready();
    write(&mut guest, &mut host, APIC + 0x350, 0x1_0700);
    program(&mut guest, &mut host, LINE, 0x700, 0);
    for (port, value) in [(0x21, 0xef), (0x3f9, 0x02)] {
        assert_eq!(out(&mut guest, &mut host, port, value), Flow::Resume);
    }
    assert_eq!(guest.vcpu.event, None);
    set_line(&mut guest, &mut host, true);
    guest.vcpu.then(Exit::Shutdown, |_| {});
    assert_eq!(guest.run(&mut host), Stop::TripleFault);
    assert_eq!(guest.vcpu.delivered, [Event::Interrupt(UART_VECTOR)]);
}

#[test]
fn the_8259s_interrupt_goes_to_the_vcpu_whose_lint0_takes_it() {
    let (mut guest, mut host) = ready();
    let mut other = other(&guest);
    let clock = crate::local_apic::ApicClock(guest.vm.clock());
    let _ = other.write(Register::new(0x35).unwrap(), 0x700, &guest.vm.shared(1).posted, &clock);
    write(&mut guest, &mut host, APIC + 0x350, 0x1_0700);
    for (port, value) in [(0x21, 0xef), (0x3f9, 0x02), (0x3f9, 0x02)] {
        assert_eq!(out(&mut guest, &mut host, port, value), Flow::Resume);
    }
    assert_eq!((guest.vcpu.event, guest.vcpu.window), (None, false));
    assert_eq!(host.kicks, [1], "once");
}

#[test]
fn the_hpets_deadline_is_the_vms() {
    let (mut guest, mut host) = ready();
    program(&mut guest, &mut host, LINE, 0x50, 0);
    write(&mut guest, &mut host, HPET + 0x140, LINE << 9 | 0x104);
    write(&mut guest, &mut host, HPET + 0x148, 300_000);
    write(&mut guest, &mut host, HPET + 0x10, 1);
    assert_eq!(host.deadline, Some(Nanoseconds(3_000_000)));
    guest.code_at(CODE, &[0xf4]);
    guest.vcpu.then(Exit::Halt, |_| {});
    guest.vcpu.then(Exit::Shutdown, |_| {});
    assert_eq!(guest.run(&mut host), Stop::TripleFault);
    assert_eq!((host.waits, guest.vcpu.delivered.as_slice()), (3, &[Event::Interrupt(0x50)][..]));
}

/// What time has brought comes with any access to a device.
#[test]
fn what_a_device_has_for_the_guest_comes_behind_smsw_and_lmsw() {
    // SMSW [RBX], LMSW [RBX]. A step comes first.
    for (code, is_write) in [([0x0f, 0x01, 0x23], true), ([0x0f, 0x01, 0x33], false)] {
        for (rflags, event) in [(0, Event::Interrupt(0x50)), (arch::RFLAGS_TF, Event::DEBUG)] {
            let (mut guest, mut host) = ready();
            program(&mut guest, &mut host, LINE, 0x50, 0);
            write(&mut guest, &mut host, HPET + 0x140, LINE << 9 | 0x104);
            write(&mut guest, &mut host, HPET + 0x148, 300_000);
            write(&mut guest, &mut host, HPET + 0x10, 1);
            guest.clock.pass(3_000_000);
            guest.vcpu.rflags |= rflags;
            guest.code_at(CODE, &code);
            guest.map(HOLE, TEST_MEMORY | PRESENT | WRITABLE);
            guest.set(Gpr::RBX, HOLE);
            assert_eq!(guest.handle_on(Exit::ControlRegister, &mut host), Flow::Resume);
            assert_eq!((guest.vcpu.event, guest.vcpu.rip), (Some(event), CODE + 3), "{code:x?}");
            if is_write {
                guest.vcpu.event = None;
                assert_eq!(read(&mut guest, &mut host, TEST_MEMORY) as u16, guest.vcpu.control.cr0 as u16);
            }
        }
    }
}

#[test]
fn soft_off_ends_the_vm() {
    let (mut guest, mut host) = ready();
    assert_eq!(out(&mut guest, &mut host, 0x605, 0x20), Flow::Stop(Stop::PoweredOff));
}
