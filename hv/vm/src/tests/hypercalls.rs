//! Hypercalls, and the exceptions that are some.

use super::guest::*;
use crate::{Event, Exception, Exit, Gpr};
use abi::hypercall::{ABI_VERSION, Number, Refused, encode_result};

const VMMCALL: [u8; 3] = [0x0f, 0x01, 0xd9];
const VMCALL: [u8; 3] = [0x0f, 0x01, 0xc1];
const UD2: [u8; 2] = [0x0f, 0x0b];

const NOP: u64 = Number::Nop as u64;
const VERSION: u64 = Number::Version as u64;

const INVALID_OPCODE: Exit = Exit::Exception(Exception::new(6, None));

/// What the hypercall in `code`, which leaves by `exit`, returns; everything else must be as before.
fn call(code: &[u8], exit: Exit, number: u64, cpl: u8) -> u64 {
    let mut guest = Guest::new(code);
    guest.vcpu.control.cpl = cpl;
    guest.vcpu.gprs = core::array::from_fn(|n| 0x1111_1111_1111_1111 * n as u64);
    guest.set(Gpr::RAX, number);
    let before = guest.vcpu.gprs;
    guest.resumes(exit);
    assert_eq!(guest.vcpu.gprs[1..], before[1..]);
    assert_eq!((guest.vcpu.rip, guest.vcpu.raised()), (CODE + code.len() as u64, None));
    guest.get(Gpr::RAX)
}

#[test]
fn known_numbers_return_what_the_page_says() {
    assert_eq!(call(&VMMCALL, Exit::Hypercall, NOP, 0), 0);
    assert_eq!(call(&VMMCALL, Exit::Hypercall, VERSION, 0), ABI_VERSION);
}

#[test]
fn an_unknown_number_is_an_error_and_the_guest_goes_on() {
    for number in [0, 1, Number::Report as u64, NOP - 1, NOP | 1 << 32, u64::MAX] {
        assert_eq!(call(&VMMCALL, Exit::Hypercall, number, 0), encode_result(Err(Refused::NoSuchCall)), "{number:#x}");
    }
}

#[test]
fn only_the_kernel_may_call() {
    for cpl in 1..=3 {
        assert_eq!(call(&VMMCALL, Exit::Hypercall, NOP, cpl), encode_result(Err(Refused::NotPermitted)));
        assert_eq!(call(&VMCALL, INVALID_OPCODE, NOP, cpl), encode_result(Err(Refused::NotPermitted)));
    }
}

#[test]
fn the_other_vendors_hypercall_works_through_its_exception() {
    for code in [&VMCALL[..], &VMMCALL, &[0x48, 0x0f, 0x01, 0xc1]] {
        assert_eq!(call(code, INVALID_OPCODE, VERSION, 0), ABI_VERSION, "{code:02x?}");
        assert_eq!(call(code, INVALID_OPCODE, 7, 0), encode_result(Err(Refused::NoSuchCall)), "{code:02x?}");
    }
}

#[test]
fn an_undefined_instruction_is_the_guests_own_affair() {
    for code in [&UD2[..], &[0x06], &[0xf0, 0x0f, 0x01, 0xc1]] {
        let mut guest = Guest::new(code);
        guest.set(Gpr::RAX, VERSION);
        guest.resumes(INVALID_OPCODE);
        assert_eq!((guest.vcpu.rip, guest.vcpu.event), (CODE, Some(Event::UNDEFINED)), "{code:02x?}");
        assert_eq!(guest.get(Gpr::RAX), VERSION);
    }
}

#[test]
fn an_undefined_instruction_whose_bytes_are_gone_is_the_guests_too() {
    let mut guest = Guest::new(&VMCALL);
    guest.protect(CODE, 0);
    guest.resumes(INVALID_OPCODE);
    assert_eq!(guest.vcpu.event, Some(Event::UNDEFINED));
}

#[test]
fn other_exceptions_are_given_to_the_guest_as_they_were() {
    for exception in [Exception::new(1, None), Exception::new(17, Some(0)), Exception::new(18, None)] {
        let mut guest = Guest::new(&VMCALL);
        guest.resumes(Exit::Exception(exception));
        assert_eq!((guest.vcpu.rip, guest.vcpu.event), (CODE, Some(Event::Exception(exception))));
    }
}
