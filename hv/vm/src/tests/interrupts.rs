//! Interrupts of the guest's devices and of the host, and HLT.

use super::guest::*;
use crate::{Activity, Event, Exception, Exit, Stop};
use std::vec;

const NOP: [u8; 1] = [0x90];
const HLT: [u8; 1] = [0xf4];

const TIMER: Event = Event::Interrupt(TIMER_VECTOR);
const UART: Event = Event::Interrupt(UART_VECTOR);

/// Unmasks the timer and COM1.
fn unmask(devices: &mut Devices) {
    out(devices, 0x21, 0xee);
}

/// A guest at `code` with interrupts on, for which COM1's waits.
fn with_interrupt(code: &[u8]) -> Guest {
    let mut guest = Guest::with_devices(code, |devices| {
        unmask(devices);
        devices.set_gsi(4, true);
    });
    guest.vcpu.rflags |= arch::RFLAGS_IF;
    guest.vcpu.blocked = true;
    guest
}

/// A guest at `code` with interrupts on, whose timer interrupts every 10 ms.
fn with_timer(code: &[u8]) -> Guest {
    let mut guest = Guest::with_devices(code, |devices| {
        unmask(devices);
        let [low, high] = 11_932u16.to_le_bytes();
        [(0x43, 0x34), (0x40, low), (0x40, high)].into_iter().for_each(|(port, value)| out(devices, port, value));
    });
    guest.vcpu.rflags |= arch::RFLAGS_IF;
    guest
}

/// Runs the script up to a triple fault, with a host that ticks every millisecond.
fn run(guest: &mut Guest) -> TestHost {
    guest.vcpu.then(Exit::Shutdown, |_| {});
    let mut host = TestHost::new(guest);
    assert_eq!(guest.run(&mut host), Stop::TripleFault);
    host
}

#[test]
fn hlt_with_interrupts_off_halts_for_ever() {
    let mut guest = with_interrupt(&HLT);
    guest.vcpu.rflags &= !arch::RFLAGS_IF;
    guest.vcpu.then(Exit::Halt, |_| {});
    let mut host = TestHost::new(&guest);
    assert_eq!(guest.run(&mut host), Stop::Halted);
    assert_eq!((guest.vcpu.entries, host.waits), (1, 0));
}

#[test]
fn an_nmi_on_its_way_wakes_though_its_sender_halts_for_ever() {
    let mut guest = Guest::new(&HLT);
    // The other vCPU runs.
    guest.vm.add_wakeable();
    guest.vcpu.then(Exit::Halt, |_| {});
    let mut host = TestHost::new(&guest);
    assert_eq!(crate::run(&mut guest.vcpu, &mut guest.handler, &mut host), None);
    assert_eq!(guest.handler.context.activity(), Activity::Dead);
    // It sends an NMI, and halts with interrupts off.
    guest.vm.shared(0).posted.post_nmi();
    guest.vm.raise_request(0);
    assert!(guest.vm.remove_wakeable());
    guest.vcpu.then(Exit::Shutdown, |_| {});
    assert_eq!(crate::run(&mut guest.vcpu, &mut guest.handler, &mut host), Some(Stop::TripleFault));
    assert_eq!(guest.vcpu.delivered, [Event::Nmi]);
}

/// With SVM no exit tells of the end of an IRET with interrupts off: the next one may be that of a HLT.
#[test]
fn hlt_with_interrupts_off_is_over_when_an_nmi_waits() {
    let mut guest = Guest::new(&HLT);
    guest.handler.context.nmis = 1;
    guest.vcpu.nmi_handled = true;
    guest.vcpu.then(Exit::Halt, |vcpu| vcpu.nmi_handled = false);
    run(&mut guest);
    assert_eq!(guest.vcpu.delivered, [Event::Nmi]);
}

#[test]
fn hlt_with_an_interrupt_pending_does_not_wait() {
    let mut guest = with_interrupt(&HLT);
    guest.vcpu.then(Exit::Halt, |_| {});
    let host = run(&mut guest);
    assert_eq!((guest.vcpu.delivered, guest.vcpu.rip, host.waits), (vec![UART], CODE + 1, 0));
}

#[test]
fn hlt_waits_until_the_clock_brings_an_interrupt() {
    let mut guest = with_timer(&HLT);
    guest.vcpu.then(Exit::Halt, |_| {});
    let host = run(&mut guest);
    assert_eq!((guest.vcpu.delivered, guest.vcpu.rip), (vec![TIMER], CODE + 1));
    assert!((10..=11).contains(&host.waits), "{} ms", host.waits);
}

#[test]
fn hlt_right_behind_sti_is_woken_all_the_same() {
    let mut guest = with_interrupt(&HLT);
    guest.vcpu.then(Exit::Halt, |vcpu| vcpu.shadow = true);
    run(&mut guest);
    assert_eq!((guest.vcpu.delivered, guest.vcpu.rip), (vec![UART], CODE + 1));
}

#[test]
fn hlt_that_the_guest_has_taken_away_faults_and_does_not_wait() {
    let mut guest = with_timer(&HLT);
    guest.protect(CODE, 0);
    guest.vcpu.then(Exit::Halt, |_| {});
    let host = run(&mut guest);
    let fault = Event::Exception(Exception::new(14, Some(0)));
    assert_eq!((guest.vcpu.delivered, guest.vcpu.cr2, host.waits), (vec![fault], CODE, 0));
}

#[test]
fn a_guest_that_waits_for_too_long_is_at_its_limit() {
    let mut guest = Guest::new(&HLT);
    guest.vcpu.rflags |= arch::RFLAGS_IF;
    guest.vcpu.then(Exit::Halt, |_| {});
    let mut host = TestHost::with_patience(&guest, 5);
    assert_eq!(guest.run(&mut host), Stop::Limit);
    assert_eq!((host.waits, guest.vcpu.delivered), (6, vec![]));
}

#[test]
fn a_guest_that_runs_for_too_long_is_at_its_limit() {
    for exit in [Exit::ExternalInterrupt, Exit::Nmi] {
        let mut guest = Guest::new(&NOP);
        for _ in 0..6 {
            guest.vcpu.then(exit, |_| {});
        }
        let mut host = TestHost::with_patience(&guest, 5);
        assert_eq!(guest.run(&mut host), Stop::Limit);
        assert_eq!((host.interrupts, guest.vcpu.script_left()), (6, 0));
    }
}

#[test]
fn the_hosts_interrupts_and_nmis_are_the_hosts_and_leave_the_guest_as_it_was() {
    for exit in [Exit::ExternalInterrupt, Exit::Nmi] {
        let mut guest = Guest::new(&NOP);
        guest.vcpu.shadow = true;
        guest.vcpu.then(exit, |_| {});
        let host = run(&mut guest);
        assert_eq!((host.interrupts, guest.vcpu.puts), (1, 1));
        assert_eq!((guest.vcpu.rip, guest.vcpu.shadow, guest.vcpu.delivered), (CODE, true, vec![]));
        assert!(!guest.vcpu.window);
    }
}

#[test]
fn time_passes_for_the_guests_devices_while_it_runs() {
    let mut guest = with_timer(&NOP);
    for _ in 0..9 {
        guest.vcpu.then(Exit::ExternalInterrupt, |_| {});
    }
    guest.vcpu.then(Exit::Nmi, |vcpu| assert!(vcpu.delivered.is_empty()));
    guest.vcpu.then(Exit::Nmi, |_| {});
    run(&mut guest);
    assert_eq!(guest.vcpu.delivered, [TIMER]);
}

#[test]
fn an_interrupt_waits_for_the_window_while_the_guest_has_them_off() {
    let mut guest = with_interrupt(&NOP);
    guest.vcpu.rflags &= !arch::RFLAGS_IF;
    guest.vcpu.then(Exit::ExternalInterrupt, |_| {});
    guest.vcpu.then(Exit::InterruptWindow, |vcpu| {
        assert!(vcpu.window && vcpu.delivered.is_empty());
        vcpu.rflags |= arch::RFLAGS_IF;
    });
    run(&mut guest);
    assert_eq!((guest.vcpu.delivered, guest.vcpu.rip), (vec![UART], CODE));
    assert!(!guest.vcpu.window);
}

#[test]
fn an_interrupt_waits_for_the_window_in_a_shadow() {
    let mut guest = with_interrupt(&NOP);
    guest.vcpu.then(Exit::ExternalInterrupt, |vcpu| vcpu.shadow = true);
    guest.vcpu.then(Exit::InterruptWindow, |vcpu| {
        assert!(vcpu.window && vcpu.shadow && vcpu.delivered.is_empty());
        vcpu.shadow = false;
    });
    run(&mut guest);
    assert_eq!((guest.vcpu.delivered, guest.vcpu.rip), (vec![UART], CODE));
    assert!(!guest.vcpu.window);
}

#[test]
fn a_hlt_in_a_shadow_is_over_when_its_interrupt_comes() {
    for code in [&HLT[..], &[0x66, 0xf4]] {
        let mut guest = with_interrupt(code);
        guest.vcpu.then(Exit::ExternalInterrupt, |vcpu| vcpu.shadow = true);
        run(&mut guest);
        assert_eq!((guest.vcpu.delivered, guest.vcpu.rip), (vec![UART], CODE + code.len() as u64));
        assert!(!guest.vcpu.window);
    }
}

#[test]
fn a_hlt_in_a_shadow_stays_where_nothing_can_wake_it() {
    // MOV SS with interrupts off; an event that comes first.
    for (rflags, event) in [(2, None), (2 | arch::RFLAGS_IF, Some(Event::UNDEFINED))] {
        let mut guest = with_interrupt(&HLT);
        guest.vcpu.then(Exit::ExternalInterrupt, move |vcpu| {
            (vcpu.rflags, vcpu.event, vcpu.shadow) = (rflags, event, true);
        });
        run(&mut guest);
        assert_eq!((guest.vcpu.rip, guest.vcpu.shadow, guest.vcpu.window), (CODE, true, true));
        assert_eq!(guest.vcpu.delivered, vec![event].into_iter().flatten().collect::<vec::Vec<_>>());
    }
}

#[test]
fn an_event_whose_delivery_was_cut_short_comes_before_an_interrupt() {
    let mut guest = with_interrupt(&NOP);
    let first = Event::Exception(Exception::new(14, Some(2)));
    guest.vcpu.then(Exit::ExternalInterrupt, move |vcpu| vcpu.event = Some(first));
    guest.vcpu.then(Exit::InterruptWindow, |vcpu| assert!(vcpu.window));
    run(&mut guest);
    assert_eq!(guest.vcpu.delivered, [first, UART]);
}

#[test]
fn of_two_interrupts_the_second_waits_for_the_window() {
    let mut guest = Guest::with_devices(&NOP, |devices| {
        // Automatic end of interrupt, so that the first does not hold back the second.
        for (port, value) in [(0x20, 0x11), (0x21, 8), (0x21, 4), (0x21, 3)] {
            out(devices, port, value);
        }
        unmask(devices);
        devices.set_gsi(0, true);
        devices.set_gsi(4, true);
    });
    guest.vcpu.rflags |= arch::RFLAGS_IF;
    guest.vcpu.blocked = true;
    guest.vcpu.then(Exit::ExternalInterrupt, |_| {});
    guest.vcpu.then(Exit::InterruptWindow, |vcpu| assert!(vcpu.window));
    run(&mut guest);
    assert_eq!(guest.vcpu.delivered, [TIMER, UART]);
    assert!(!guest.vcpu.window);
}

#[test]
fn a_window_for_which_no_interrupt_is_left_closes() {
    let mut guest = Guest::new(&NOP);
    guest.vcpu.rflags |= arch::RFLAGS_IF;
    guest.vcpu.window = true;
    guest.resumes(Exit::InterruptWindow);
    assert_eq!((guest.vcpu.window, guest.vcpu.event), (false, None));
}

#[test]
fn an_interrupt_is_acknowledged_only_when_it_is_delivered() {
    use crate::Gpr;
    use devices::Size;
    let mut guest = with_interrupt(&NOP);
    guest.vcpu.shadow = true;
    guest.vcpu.then(Exit::ExternalInterrupt, |_| {});
    run(&mut guest);
    guest.vcpu.next_rip = Some(CODE);
    guest.vcpu.rflags &= !arch::RFLAGS_IF;
    // The first controller's requests: the line is still one of them.
    guest.resumes(io(0x20, Size::Byte, true));
    assert_eq!(guest.get(Gpr::RAX), 1 << 4);
}
