//! Accesses to debug registers that exit, and those of emulated real mode.

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
    // Of DR6 and DR7 some bits are fixed.
    for (register, value) in
        [(0, 0x1234_5678), (1, 0x1234_5678), (2, 0x1234_5678), (3, 0x1234_5678), (6, 0xffff_4ff8), (7, 0x1234_0678)]
    {
        let mut guest = Guest::new(&mov(register));
        guest.set(Gpr::RBX, 0x1234_5678).resumes(Exit::DebugRegister);
        assert_eq!((guest.vcpu.debug[usize::from(register)], guest.vcpu.rip), (value, CODE + 3));
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
    let mut guest = Guest::new(&[0x0f, 0xa2]);
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

/// Another vCPU has made it of an SMSW, which any code may execute.
#[test]
fn privilege_is_checked_again() {
    // MOV DR0, RBX; MOV CR0, RBX; MOV RBX, CR0; CLTS; LMSW BX; INVLPG [RBX]; SMSW EBX.
    let general = Some((13, Some(0)));
    for (code, umip, raised) in [
        (&mov(0)[..], 0, general),
        (&[0x0f, 0x22, 0xc3], 0, general),
        (&[0x0f, 0x20, 0xc3], 0, general),
        (&[0x0f, 0x06], 0, general),
        (&[0x0f, 0x01, 0xf3], 0, general),
        (&[0x0f, 0x01, 0x3b], 0, general),
        (&[0x0f, 0x01, 0xe3], 0, None),
        (&[0x0f, 0x01, 0xe3], arch::CR4_UMIP, general),
    ] {
        let mut guest = Guest::new(code);
        guest.vcpu.control.cpl = 3;
        guest.vcpu.control.cr4 |= umip;
        let control = guest.vcpu.control;
        guest.resumes(Exit::ControlRegister);
        assert_eq!((guest.vcpu.raised(), guest.vcpu.control), (raised, control), "{code:x?}");
    }
}

/// With nested paging the processor has to know of them itself.
#[test]
fn what_translations_go_by_is_left_to_the_processor() {
    // MOV CR3, RBX; MOV RBX, CR3; INVLPG [RBX].
    for code in [[0x0f, 0x22, 0xdb], [0x0f, 0x20, 0xdb], [0x0f, 0x01, 0x3b]] {
        let mut guest = Guest::new(&code);
        guest.resumes(Exit::ControlRegister);
        assert_eq!((guest.vcpu.event, guest.vcpu.rip), (None, CODE), "{code:x?}");
    }
}
