//! MOV to and from CR8.

use super::guest::*;
use crate::{Cr8, Exit, Flow, Gpr, Stop};
use addr::Gpa;

const WRITE_FROM_RBX: [u8; 4] = [0x44, 0x0f, 0x22, 0xc3];
const READ_TO_R9: [u8; 4] = [0x45, 0x0f, 0x20, 0xc1];

#[test]
fn what_was_written_is_read() {
    let mut guest = Guest::new(&WRITE_FROM_RBX);
    guest.set(Gpr::RBX, 13).resumes(Exit::Cr8(Cr8::new(true, None)));
    assert_eq!(guest.vcpu.rip, CODE + 4);
    guest.code_at(CODE, &READ_TO_R9);
    guest.set(Gpr::new(9), u64::MAX).resumes(Exit::Cr8(Cr8::new(false, None)));
    assert_eq!((guest.get(Gpr::new(9)), guest.vcpu.rip), (13, CODE + 4));
}

#[test]
fn what_the_hardware_tells_is_not_decoded() {
    let mut guest = Guest::new(&[]);
    guest.vcpu.next_rip = Some(CODE + 5);
    guest.set(Gpr::RDX, 7).resumes(Exit::Cr8(Cr8::new(true, Some(Gpr::RDX))));
    guest.resumes(Exit::Cr8(Cr8::new(false, Some(Gpr::RSP))));
    assert_eq!((guest.get(Gpr::RSP), guest.vcpu.rip), (7, CODE + 5));
}

#[test]
fn reserved_bits_are_a_general_protection_fault() {
    let mut guest = Guest::new(&WRITE_FROM_RBX);
    guest.set(Gpr::RBX, 16).resumes(Exit::Cr8(Cr8::new(true, None)));
    assert_eq!((guest.vcpu.raised(), guest.vcpu.rip), (Some((13, Some(0))), CODE));
}

#[test]
fn other_code_by_now_runs_again() {
    let mut guest = Guest::new(&READ_TO_R9);
    guest.resumes(Exit::Cr8(Cr8::new(true, None)));
    assert_eq!((guest.vcpu.event, guest.vcpu.rip), (None, CODE));
}

#[test]
fn a_misconfiguration_ends_the_vm_and_tells_where() {
    let at = Gpa::new(0x1234_5000);
    assert_eq!(Guest::new(&[]).handle(Exit::Misconfiguration(at)), Flow::Stop(Stop::Misconfigured(at)));
}
