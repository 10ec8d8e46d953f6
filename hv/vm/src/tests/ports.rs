//! IN and OUT.

use super::guest::*;
use crate::{Event, Flow, Gpr, Stop};
use devices::Size;

const UNCLAIMED: u16 = 0x1234;
/// Bochs' debug console: prints, and reads as its own number.
const CONSOLE: u16 = 0xe9;

/// A guest at a port I/O instruction of two bytes, which the hardware tells.
fn at_io() -> Guest {
    let mut guest = Guest::new(&[]);
    guest.vcpu.next_rip = Some(CODE + 2);
    guest
}

#[test]
fn in_of_8_and_16_bits_leaves_the_rest_of_rax() {
    const OLD: u64 = 0x1122_3344_5566_7788;
    for (port, size, new) in [
        (CONSOLE, Size::Byte, 0x1122_3344_5566_77e9),
        (UNCLAIMED, Size::Byte, 0x1122_3344_5566_77ff),
        (CONSOLE, Size::Word, 0x1122_3344_5566_ffe9),
        (UNCLAIMED, Size::Word, 0x1122_3344_5566_ffff),
        (CONSOLE, Size::Dword, 0x0000_0000_ffff_ffe9),
        (UNCLAIMED, Size::Dword, 0x0000_0000_ffff_ffff),
    ] {
        let mut guest = at_io();
        guest.set(Gpr::RAX, OLD).set(Gpr::RDX, OLD);
        guest.resumes(io(port, size, true));
        assert_eq!(guest.get(Gpr::RAX), new, "{size:?} from {port:#x}");
        assert_eq!((guest.get(Gpr::RDX), guest.vcpu.rip), (OLD, CODE + 2));
    }
}

#[test]
fn out_writes_the_low_part_of_rax_and_changes_nothing() {
    let mut guest = at_io();
    let value = u64::from_be_bytes(*b"nothing!");
    guest.set(Gpr::RAX, value);
    guest.resumes(io(CONSOLE, Size::Byte, false));
    assert_eq!((guest.get(Gpr::RAX), guest.vcpu.rip), (value, CODE + 2));
    assert_eq!(guest.printed(), b"!");
}

#[test]
fn out_to_a_full_console_has_no_effect_and_is_executed_again() {
    for port in [CONSOLE, 0x3f8] {
        let mut guest = at_io();
        guest.vm.devices().sink().room = 1;
        guest.set(Gpr::RAX, b'x'.into());
        guest.resumes(io(port, Size::Byte, false));
        guest.vcpu.rip = CODE;
        for _ in 0..2 {
            assert_eq!(guest.handle(io(port, Size::Byte, false)), Flow::Yield);
            assert_eq!((guest.vcpu.rip, &*guest.printed()), (CODE, &b"x"[..]));
        }
        guest.vm.devices().sink().room = 1;
        guest.resumes(io(port, Size::Byte, false));
        assert_eq!((guest.vcpu.rip, &*guest.printed()), (CODE + 2, &b"xx"[..]));
    }
}

#[test]
fn the_exit_port_ends_the_vm_with_the_value_in_the_accesss_width() {
    for (size, value) in [(Size::Byte, 0xdd), (Size::Word, 0xccdd), (Size::Dword, 0xaabb_ccdd)] {
        let mut guest = at_io();
        guest.set(Gpr::RAX, 0x1122_3344_aabb_ccdd);
        assert_eq!(guest.handle(io(0xf4, size, false)), Flow::Stop(Stop::Exited(value)));
    }
}

#[test]
fn a_reset_ends_the_vm() {
    for (port, value) in [(0x64, 0xfe), (0x92, 3), (0xcf9, 6)] {
        let mut guest = at_io();
        guest.set(Gpr::RAX, value);
        assert_eq!(guest.handle(io(port, Size::Byte, false)), Flow::Stop(Stop::Reset), "{port:#x}");
    }
}

#[test]
fn port_io_ends_the_interrupt_shadow() {
    let mut guest = at_io();
    guest.vcpu.shadow = true;
    guest.resumes(io(UNCLAIMED, Size::Byte, true));
    assert!(!guest.vcpu.shadow);
}

#[test]
fn an_out_that_makes_a_device_interrupt_is_interrupted_behind_itself() {
    let mut guest = Guest::with_devices(&[], |devices| out(devices, 0x21, 0xef));
    guest.vcpu.rflags |= arch::RFLAGS_IF;
    guest.vcpu.next_rip = Some(CODE + 2);
    // Interrupt when the transmitter is empty, which it is.
    guest.set(Gpr::RAX, 2);
    guest.resumes(io(0x3f9, Size::Byte, false));
    assert_eq!((guest.vcpu.rip, guest.vcpu.event), (CODE + 2, Some(Event::Interrupt(UART_VECTOR))));
}

#[test]
fn every_backend_tells_where_port_io_ends() {
    let mut guest = Guest::new(&[0xe4, 0x80]);
    assert!(guest.unhandled(io(0x80, Size::Byte, true)).contains("next instruction"));
}
