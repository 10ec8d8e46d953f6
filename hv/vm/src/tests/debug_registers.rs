//! Writes of debug registers that exit.

use super::guest::*;
use crate::{Event, Exit, Flow, Gpr};
use arch::{CR4_DE, DR6_BD, DR7_GD};

/// MOV DRn, RBX.
const fn mov(register: u8) -> [u8; 3] {
    [0x0f, 0x23, 0xc3 | register << 3]
}

const WIDE: u64 = 0xffff_8000_0000_1000;

#[test]
fn the_register_gets_the_value() {
    for register in [0, 1, 2, 3, 7] {
        let mut guest = Guest::new(&mov(register));
        guest.set(Gpr::RBX, 0x1234_5678).resumes(Exit::DebugRegister);
        assert_eq!((guest.vcpu.debug[usize::from(register)], guest.vcpu.rip), (0x1234_5678, CODE + 3));
    }
}

#[test]
fn an_address_has_all_bits_in_64_bit_code_alone() {
    let mut guest = Guest::new(&mov(2));
    guest.set(Gpr::RBX, WIDE).resumes(Exit::DebugRegister);
    assert_eq!(guest.vcpu.debug[2], WIDE);
    let mut guest = Guest::flat_32(&mov(2));
    guest.set(Gpr::RBX, WIDE).resumes(Exit::DebugRegister);
    assert_eq!(guest.vcpu.debug[2], WIDE & 0xffff_ffff);
}

#[test]
fn the_upper_half_of_dr7_is_reserved() {
    let mut guest = Guest::new(&mov(7));
    guest.set(Gpr::RBX, WIDE).resumes(Exit::DebugRegister);
    assert_eq!((guest.vcpu.raised(), guest.vcpu.rip, guest.vcpu.debug[7]), (Some((13, Some(0))), CODE, 0));
}

#[test]
fn dr5_is_dr7_unless_there_are_debugging_extensions() {
    let mut guest = Guest::new(&mov(5));
    guest.set(Gpr::RBX, 0x455).resumes(Exit::DebugRegister);
    assert_eq!(guest.vcpu.debug[7], 0x455);
    let mut guest = Guest::new(&mov(5));
    guest.vcpu.control.cr4 |= CR4_DE;
    guest.resumes(Exit::DebugRegister);
    assert_eq!((guest.vcpu.raised(), guest.vcpu.rip), (Some((6, None)), CODE));
}

#[test]
fn other_code_by_now_runs_again() {
    let mut guest = Guest::new(&[0x0f, 0x20, 0xc3]);
    assert_eq!(guest.handle(Exit::DebugRegister), Flow::Resume);
    assert_eq!((guest.vcpu.event, guest.vcpu.rip), (None, CODE));
}

#[test]
fn general_detect_comes_first() {
    let mut guest = Guest::new(&mov(0));
    guest.vcpu.debug[7] = DR7_GD | 0x400;
    guest.set(Gpr::RBX, 0x1234_5678).resumes(Exit::DebugRegister);
    assert_eq!((guest.vcpu.event, guest.vcpu.rip), (Some(Event::DEBUG), CODE));
    assert_eq!((guest.vcpu.debug[0], guest.vcpu.debug[6], guest.vcpu.debug[7]), (0, DR6_BD, 0x400));
}
