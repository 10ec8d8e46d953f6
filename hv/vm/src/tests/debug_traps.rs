//! #DB: where it comes, and what DR6, DR7 and RFLAGS then are.

use super::guest::{CODE, Guest};
use crate::{Event, Exception, Exit, Instruction};
use arch::DR7_GD;
use x86::irq::DEBUG_VECTOR;

const INT1: Exit = Exit::Instruction(Instruction::Int1);

#[test]
fn int1_is_a_trap() {
    for (code, next_rip, rip) in [
        (&[0xf1][..], None, CODE + 1),
        (&[0x66, 0xf1], None, CODE + 2),
        (&[0xf1], Some(CODE + 9), CODE + 9),
    ] {
        let mut guest = Guest::new(code);
        guest.vcpu.next_rip = next_rip;
        guest.vcpu.shadow = true;
        guest.resumes(INT1);
        assert_eq!((guest.vcpu.raised(), guest.vcpu.rip), (Some((DEBUG_VECTOR, None)), rip));
        assert!(!guest.vcpu.shadow);
        assert_eq!(guest.vcpu.debug[6], 0, "it has no cause there");
    }
}

#[test]
fn int1_that_another_vcpu_has_overwritten_runs_again() {
    let mut guest = Guest::new(&[0x90]);
    guest.resumes(INT1);
    assert_eq!((guest.vcpu.event, guest.vcpu.rip), (None, CODE));
}

#[test]
fn the_handler_of_a_debug_exception_may_access_the_debug_registers() {
    let exit = Exit::Exception(Exception::new(DEBUG_VECTOR, None));
    for exit in [exit, INT1] {
        let mut guest = Guest::new(&[0xf1]);
        guest.vcpu.debug[7] = DR7_GD | 0x401;
        guest.resumes(exit);
        assert_eq!((guest.vcpu.event, guest.vcpu.debug[7]), (Some(Event::DEBUG), 0x401));
    }
    let mut guest = Guest::new(&[0x0f, 0x0b]);
    guest.vcpu.debug[7] = DR7_GD;
    guest.resumes(Exit::Exception(Exception::new(x86::irq::INVALID_OPCODE_VECTOR, None)));
    assert_eq!(guest.vcpu.debug[7], DR7_GD, "no other handler may");
}
