//! Addresses that the nested tables do not translate.

use super::guest::*;
use crate::{Event, Exception, Exit, Flow, Gpr, NestedFault, Stop};
use addr::Gpa;
use devices::Size;
use std::string::ToString;

const ARITHMETIC: u64 = 0x8d5;
const CF_PF_AF_ZF: u64 = 0x55;

/// The end of memory.
const END: u64 = (PAGES as u64) << 12;

const fn at(address: u64, write: bool, fetch: bool) -> Exit {
    Exit::NestedFault(NestedFault::new(Gpa::new(address), write, fetch, false))
}

const READ: Exit = at(HOLE, false, false);
const WRITE: Exit = at(HOLE, true, false);

/// A guest at `code` with RBX, RSI and RDI at an address without memory.
fn at_hole(code: &[u8]) -> Guest {
    let mut guest = Guest::new(code);
    guest.set(Gpr::RBX, HOLE).set(Gpr::RSI, HOLE).set(Gpr::RDI, HOLE);
    guest
}

#[test]
fn the_first_touch_of_memory_runs_the_instruction_again() {
    for exit in [at(DATA, false, false), at(DATA, true, false), at(CODE, false, true)] {
        let mut guest = Guest::new(&[0x88, 0x03]);
        guest.set(Gpr::RBX, DATA).set(Gpr::RAX, 0x77);
        let before = (guest.vcpu.gprs, guest.memory().snapshot());
        guest.resumes(exit);
        assert!((guest.vcpu.gprs, guest.memory().snapshot()) == before);
        assert_eq!((guest.vcpu.rip, guest.vcpu.event), (CODE, None));
    }
}

#[test]
fn an_event_whose_delivery_touched_memory_first_is_delivered_again() {
    let mut guest = Guest::new(&[0x90]);
    guest.vcpu.event = Some(Event::Interrupt(0x20));
    guest.resumes(at(DATA, true, false));
    assert_eq!((guest.vcpu.rip, guest.vcpu.event), (CODE, Some(Event::Interrupt(0x20))));
}

#[test]
fn a_host_without_frames_ends_the_vm_as_that() {
    let mut guest = Guest::new(&[0x88, 0x03]);
    guest.memory().out_of_frames.set(true);
    assert_eq!(guest.handle(at(DATA, true, false)), Flow::Stop(Stop::OutOfMemory));
}

#[test]
fn a_read_gives_ones_of_its_width() {
    const OLD: u64 = 0x1122_3344_5566_7788;
    for (code, rax) in [
        (&[0x8a, 0x03][..], 0x1122_3344_5566_77ff),
        (&[0x8a, 0x23], 0x1122_3344_5566_ff88),
        (&[0x66, 0x8b, 0x03], 0x1122_3344_5566_ffff),
        (&[0x8b, 0x03], 0xffff_ffff),
        (&[0x48, 0x8b, 0x03], u64::MAX),
        (&[0x0f, 0xb6, 0x03], 0xff),
        (&[0x48, 0x0f, 0xb7, 0x03], 0xffff),
        (&[0x66, 0x0f, 0xbe, 0x03], 0x1122_3344_5566_ffff),
        (&[0x48, 0x63, 0x03], u64::MAX),
        (&[0x23, 0x03], 0x5566_7788),
        (&[0xac], 0x1122_3344_5566_77ff),
    ] {
        let mut guest = at_hole(code);
        guest.set(Gpr::RAX, OLD);
        guest.resumes(READ);
        assert_eq!(guest.get(Gpr::RAX), rax, "{code:02x?}");
        assert_eq!((guest.vcpu.rip, guest.vcpu.event), (CODE + code.len() as u64, None), "{code:02x?}");
    }
}

#[test]
fn a_write_is_lost() {
    for code in [&[0x88, 0x03][..], &[0x48, 0x89, 0x03], &[0xc6, 0x03, 0x12], &[0x48, 0x87, 0x03], &[0xaa]] {
        let mut guest = at_hole(code);
        let before = guest.memory().snapshot();
        guest.resumes(WRITE);
        assert!(guest.memory().snapshot() == before, "{code:02x?}");
        assert_eq!((guest.vcpu.rip, guest.vcpu.event), (CODE + code.len() as u64, None), "{code:02x?}");
    }
}

#[test]
fn a_read_modify_write_computes_with_ones() {
    // ADD [RBX], EAX, locked and not.
    for code in [&[0x01, 0x03][..], &[0xf0, 0x01, 0x03]] {
        let mut guest = at_hole(code);
        guest.set(Gpr::RAX, 1);
        guest.resumes(WRITE);
        assert_eq!((guest.vcpu.rflags & ARITHMETIC, guest.vcpu.rip), (CF_PF_AF_ZF, CODE + code.len() as u64));
    }
}

#[test]
fn movs_from_nowhere_fills_memory_with_ones() {
    let mut guest = at_hole(&[0xa4]);
    guest.set(Gpr::RDI, DATA);
    guest.resumes(READ);
    assert_eq!(guest.memory().bytes(DATA), [0xff, 0]);
    assert_eq!((guest.get(Gpr::RSI), guest.get(Gpr::RDI), guest.vcpu.rip), (HOLE + 1, DATA + 1, CODE + 1));
}

#[test]
fn movs_to_nowhere_is_lost() {
    let mut guest = at_hole(&[0xa4]);
    guest.set(Gpr::RSI, DATA);
    guest.memory().put(DATA, b"x");
    guest.resumes(WRITE);
    assert_eq!((guest.get(Gpr::RSI), guest.get(Gpr::RDI), guest.vcpu.rip), (DATA + 1, HOLE + 1, CODE + 1));
}

#[test]
fn movs_at_the_end_of_memory_writes_what_is_memory() {
    let mut guest = at_hole(&[0x48, 0xa5]);
    guest.set(Gpr::RSI, DATA).set(Gpr::RDI, END - 3);
    guest.memory().put(DATA, b"abcdefgh");
    guest.resumes(at(END, true, false));
    assert_eq!(guest.memory().bytes(END - 4), *b"\0abc");
    assert_eq!(guest.vcpu.rip, CODE + 2);
}

#[test]
fn rep_movs_goes_on_as_an_instruction_between_its_iterations() {
    let mut guest = at_hole(&[0xf3, 0xa4]);
    guest.set(Gpr::RDI, DATA).set(Gpr::RCX, 2);
    guest.resumes(READ);
    assert_eq!((guest.get(Gpr::RCX), guest.get(Gpr::RSI), guest.vcpu.rip), (1, HOLE + 1, CODE));
    guest.resumes(READ);
    assert_eq!((guest.get(Gpr::RCX), guest.get(Gpr::RSI), guest.vcpu.rip), (0, HOLE + 2, CODE + 2));
    assert_eq!(guest.memory().bytes(DATA), [0xff, 0xff, 0]);
}

#[test]
fn movs_whose_other_operand_faults_has_moved_nothing() {
    for (rsi, rdi, flags, error_code) in [(HOLE, DATA, PRESENT, 3), (HOLE, DATA, 0, 2), (DATA, HOLE, 0, 0)] {
        let mut guest = at_hole(&[0xf3, 0xa4]);
        guest.protect(DATA, flags);
        guest.set(Gpr::RSI, rsi).set(Gpr::RDI, rdi).set(Gpr::RCX, 5);
        let before = guest.vcpu.gprs;
        guest.resumes(READ);
        assert_eq!((guest.vcpu.raised(), guest.vcpu.cr2), (Some((14, Some(error_code))), DATA));
        assert_eq!((guest.vcpu.gprs, guest.vcpu.rip), (before, CODE));
    }
}

#[test]
fn movs_of_the_user_reaches_the_users_memory_only() {
    let mut guest = at_hole(&[0xa4]);
    guest.vcpu.control.cpl = 3;
    guest.protect(DATA, PRESENT | WRITABLE);
    guest.set(Gpr::RDI, DATA);
    guest.resumes(READ);
    assert_eq!((guest.vcpu.raised(), guest.memory().bytes(DATA)), (Some((14, Some(7))), [0]));
}

#[test]
fn code_without_memory_ends_the_vm() {
    assert!(Guest::new(&[]).unhandled(at(HOLE, false, true)).contains("fetch"));
}

#[test]
fn an_instruction_that_is_not_emulated_ends_the_vm() {
    // ADDPS, CRC32.
    for (code, text) in [
        (&[0x0f, 0x58, 0x03][..], "an instruction that is not emulated, on an address that has no memory: Addps"),
        (
            &[0xf2, 0x0f, 0x38, 0xf1, 0x03],
            "an instruction that is not emulated, on an address that has no memory: Crc32",
        ),
    ] {
        match at_hole(code).handle(READ) {
            Flow::Stop(stop @ Stop::NotEmulated(_)) => assert_eq!(stop.to_string(), text),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn bytes_that_are_no_instruction_are_undefined() {
    let mut guest = at_hole(&[0x06]);
    guest.resumes(READ);
    assert_eq!((guest.vcpu.raised(), guest.vcpu.rip), (Some((6, None)), CODE));
}

/// Another vCPU has changed the code since the exit: the processor executes what is there now.
#[test]
fn an_instruction_without_memory_is_left_to_the_processor() {
    // MOV EAX, EBX; CLI; HLT; WRMSR; MOV CR0, RAX.
    for code in [&[0x89, 0xd8][..], &[0xfa], &[0xf4], &[0x0f, 0x30], &[0x0f, 0x22, 0xc0]] {
        let mut guest = at_hole(code);
        guest.vcpu.control.cpl = 3;
        let before = (guest.vcpu.gprs, guest.vcpu.rflags);
        guest.resumes(READ);
        assert_eq!((guest.vcpu.gprs, guest.vcpu.rflags), before, "{code:x?}");
        assert_eq!((guest.vcpu.rip, guest.vcpu.event), (CODE, None), "{code:x?}");
    }
}

#[test]
fn privileged_instructions_are_checked() {
    // LGDT [RBX].
    for (cpl, raised, gdt) in [(3, Some((13, Some(0))), (0, 0)), (0, None, (u64::MAX, 0xffff))] {
        let mut guest = at_hole(&[0x0f, 0x01, 0x13]);
        guest.vcpu.control.cpl = cpl;
        guest.resumes(READ);
        assert_eq!((guest.vcpu.raised(), guest.vcpu.gdt), (raised, gdt));
    }
}

#[test]
fn an_operand_at_the_end_of_memory_is_half_memory() {
    let mut guest = Guest::new(&[0x8b, 0x03]);
    guest.memory().put(END - 2, &[0x11, 0x22]);
    guest.set(Gpr::RBX, END - 2);
    guest.resumes(at(END, false, false));
    assert_eq!(guest.get(Gpr::RAX), 0xffff_2211);
    // MOV [RBX], ECX; LOCK XADD.
    for code in [&[0x89, 0x0b][..], &[0xf0, 0x0f, 0xc1, 0x0b]] {
        let mut guest = Guest::new(code);
        guest.set(Gpr::RBX, END - 2).set(Gpr::RCX, 0x8877_6655);
        guest.resumes(at(END, true, false));
        assert_eq!((guest.memory().bytes(END - 2), guest.vcpu.event), ([0x55, 0x66], None), "{code:x?}");
    }
}

/// The destination is looked at before a device is read.
#[test]
fn a_push_of_a_device_whose_stack_faults_is_that_fault() {
    let mut guest = at_hole(&[0xff, 0x33]);
    guest.set(Gpr::RSP, DATA + 8);
    guest.protect(DATA, PRESENT);
    guest.resumes(READ);
    assert_eq!((guest.vcpu.raised(), guest.vcpu.cr2, guest.get(Gpr::RSP)), (Some((14, Some(3))), DATA, DATA + 8));
}

#[test]
fn a_division_by_what_nothing_answers_or_by_zero_is_as_the_processors() {
    // DIV DWORD [RBX].
    let mut guest = at_hole(&[0xf7, 0x33]);
    guest.set(Gpr::RAX, 7).set(Gpr::RDX, 1);
    guest.resumes(READ);
    assert_eq!((guest.get(Gpr::RAX), guest.get(Gpr::RDX), guest.vcpu.event), (1, 8, None));
    guest.code_at(CODE, &[0xf7, 0x33]);
    guest.set(Gpr::RDX, u64::MAX);
    guest.resumes(READ);
    assert_eq!(guest.vcpu.raised(), Some((0, None)));
}

/// An entry of the guest's tables is where no memory is: it reads as ones.
#[test]
fn a_walk_that_reaches_no_memory_is_a_page_fault_of_reserved_bits() {
    let mut guest = Guest::new(&[0x8b, 0x03]);
    guest.memory().put_u64(PD + 8, HOLE | PRESENT | WRITABLE | USER);
    guest.set(Gpr::RBX, 0x20_0000);
    guest.vcpu.faulted_in_walk = true;
    guest.resumes(READ);
    assert_eq!((guest.vcpu.raised(), guest.vcpu.cr2), (Some((14, Some(9))), 0x20_0000));
}

#[test]
fn code_that_is_gone_faults() {
    let mut guest = at_hole(&[0x8b, 0x03]);
    guest.protect(CODE, 0);
    guest.resumes(READ);
    assert_eq!((guest.vcpu.raised(), guest.vcpu.cr2, guest.vcpu.rip), (Some((14, Some(0))), CODE, CODE));
}

#[test]
fn an_event_that_can_not_be_delivered_for_want_of_memory_ends_the_vm() {
    // The instruction at RIP has no part in it.
    for event in [Event::Interrupt(0x20), Event::Exception(Exception::new(14, Some(0)))] {
        let mut guest = at_hole(&[0x8b, 0x03]);
        guest.vcpu.event = Some(event);
        guest.unhandled(READ);
        assert_eq!((guest.get(Gpr::RAX), guest.vcpu.rip), (0, CODE));
    }
}

/// With EPT: the guest has changed its PDPTEs, and not loaded them again.
#[test]
fn software_walks_go_by_the_pdptes_that_the_processor_holds() {
    for (code, exit) in [
        (&[0x0f, 0xa2][..], Exit::Cpuid),
        (&[0x66, 0x0f, 0xa2], Exit::Cpuid),
        (&[0x6e], string(0x80, Size::Byte, false)),
        (&[0x8b, 0x03], Exit::NestedFault(NestedFault::new(Gpa::new(HOLE), false, false, false))),
    ] {
        let mut guest = Guest::flat_32(code);
        (guest.vcpu.control.cr0, guest.vcpu.control.cr3, guest.vcpu.control.cr4) = (PE | PG, PDPT, PAE);
        guest.memory().put_u64(PDPT, 0);
        guest.vcpu.held = Some([PD | PRESENT, 0, 0, 0]);
        guest.set(Gpr::RSI, DATA).set(Gpr::RBX, HOLE);
        guest.resumes(exit);
        assert_eq!((guest.vcpu.event, guest.vcpu.rip), (None, CODE + code.len() as u64), "{code:x?}");
    }
}

/// Another vCPU has taken the second page away since the exit.
#[test]
fn an_instruction_that_reaches_into_an_absent_page_is_a_page_fault() {
    const NEXT: u64 = CODE + 0x1000;
    let outs = string(0x80, Size::Byte, false);
    let load = Exit::NestedFault(NestedFault::new(Gpa::new(HOLE), false, false, false));
    for (code, exit) in [(&[0xf3, 0x6e], outs), (&[0x8b, 0x03], load)] {
        let mut guest = Guest::new(&[]);
        guest.code_at(NEXT - 1, code);
        guest.protect(NEXT, 0);
        guest.set(Gpr::RBX, HOLE);
        guest.resumes(exit);
        assert_eq!((guest.vcpu.raised(), guest.vcpu.cr2), (Some((14, Some(0))), NEXT), "{code:x?}");
        assert_eq!(guest.vcpu.rip, NEXT - 1);
    }
}

/// MOV DS, AX, whose GDT is where no memory is: the processor would exit there for ever.
#[test]
fn an_instruction_that_exits_without_an_operand_ends_the_vm_at_last() {
    let mut guest = at_hole(&[0x8e, 0xd8]);
    let stop = (0..2000).find_map(|_| match guest.handle(READ) {
        Flow::Resume => None,
        other => Some(other),
    });
    assert!(matches!(stop, Some(Flow::Stop(Stop::NotEmulated(_)))), "{stop:?}");
}
