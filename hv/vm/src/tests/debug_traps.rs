//! #DB: where it comes, and what DR6, DR7 and RFLAGS then are.

use super::guest::{CODE, DATA, Guest, HOLE, io, string};
use crate::{Cr8, Event, Exception, Exit, Gpr, Instruction, NestedFault, Vcpu};
use addr::Gpa;
use arch::{CR4_DE, DR6_BS, DR7_GD, RFLAGS_IF, RFLAGS_RF, RFLAGS_TF, RFLAGS_VM};
use devices::Size;
use proptest::prelude::*;
use x86::irq::{DEBUG_VECTOR, GENERAL_PROTECTION_FAULT_VECTOR, INVALID_OPCODE_VECTOR};

const INT1: Exit = Exit::Instruction(Instruction::Int1);

#[test]
fn int1_is_a_trap() {
    for (code, next_rip, rip) in
        [(&[0xf1][..], None, CODE + 1), (&[0x66, 0xf1], None, CODE + 2), (&[0xf1], Some(CODE + 9), CODE + 9)]
    {
        let mut guest = Guest::new(code);
        guest.vcpu.next_rip = next_rip;
        guest.vcpu.shadow = true;
        guest.resumes(INT1);
        assert_eq!((guest.vcpu.raised(), guest.vcpu.rip), (Some((DEBUG_VECTOR, None)), rip));
        assert!(!guest.vcpu.shadow);
        assert_eq!(guest.vcpu.debug[6], 0, "it has no cause there");
    }
}

/// As QEMU reports it.
#[test]
fn int1_that_is_undefined_to_the_processor_is_the_same() {
    let mut guest = Guest::new(&[0xf1]);
    guest.resumes(Exit::Exception(Exception::new(INVALID_OPCODE_VECTOR, None)));
    assert_eq!((guest.vcpu.event, guest.vcpu.rip), (Some(Event::DEBUG), CODE + 1));
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

/// A port where nothing is.
const PORT: u16 = 0x80;
const LOAD_FROM_HOLE: Exit = Exit::NestedFault(NestedFault::new(Gpa::new(HOLE), false, false, false));
const STORE_TO_HOLE: Exit = Exit::NestedFault(NestedFault::new(Gpa::new(HOLE), true, false, false));

/// Instructions that are carried out here, one of each kind.
fn instructions() -> [(&'static [u8], Exit); 11] {
    [
        (&[0x0f, 0xa2], Exit::Cpuid),
        (&[0x0f, 0x01, 0xd9], Exit::Hypercall),
        (&[0x0f, 0x01, 0xc1], Exit::Exception(Exception::new(INVALID_OPCODE_VECTOR, None))),
        (&[0x0f, 0x32], Exit::ReadMsr),
        (&[0x0f, 0x30], Exit::WriteMsr),
        (&[0xf4], Exit::Halt),
        (&[0x0f, 0x08], Exit::Instruction(Instruction::Invd)),
        (&[0x44, 0x0f, 0x20, 0xc0], Exit::Cr8(Cr8::new(false, None))),
        (&[0x8b, 0x03], LOAD_FROM_HOLE),
        (&[0x6e], string(PORT, Size::Byte, false)),
        (&[0x6c], string(PORT, Size::Byte, true)),
    ]
}

/// A guest at `code`, with what the instructions need in their registers.
fn guest(code: &[u8], rflags: u64) -> Guest {
    let mut guest = Guest::new(code);
    guest.vcpu.rflags |= rflags;
    guest.vcpu.debug[6] = arch::reset::DR6 | 4;
    guest.set(Gpr::RCX, u64::from(x86::msr::IA32_PAT)).set(Gpr::RBX, HOLE).set(Gpr::RSI, DATA).set(Gpr::RDI, DATA);
    guest.set(Gpr::RAX, arch::reset::PAT & 0xffff_ffff).set(Gpr::RDX, arch::reset::PAT >> 32);
    guest
}

#[test]
fn a_single_step_is_behind_each_instruction() {
    for (code, exit) in instructions() {
        let mut guest = guest(code, RFLAGS_TF | RFLAGS_RF);
        guest.resumes(exit);
        assert_eq!((guest.vcpu.raised(), guest.vcpu.rip), (Some((DEBUG_VECTOR, None)), CODE + code.len() as u64));
        assert_eq!(guest.vcpu.debug[6], arch::reset::DR6 | DR6_BS, "{exit:?}: older breakpoints are forgotten");
        assert_eq!(guest.vcpu.rflags & RFLAGS_RF, 0, "{exit:?}: a trap does not push it");
    }
}

#[test]
fn none_of_them_is_a_branch_to_step_over() {
    for (code, exit) in instructions().into_iter().filter(|(_, exit)| *exit != Exit::Halt) {
        let mut guest = guest(code, RFLAGS_TF);
        guest.vcpu.debugctl = 2;
        guest.resumes(exit);
        assert_eq!((guest.vcpu.raised(), guest.vcpu.rip), (None, CODE + code.len() as u64), "{exit:?}");
        assert_eq!((guest.vcpu.rflags & RFLAGS_RF, guest.vcpu.debugctl), (0, 2), "{exit:?}");
    }
}

#[test]
fn a_debug_exception_ends_recording_and_steps_over_branches() {
    for exit in [Exit::Instruction(Instruction::Int1), Exit::Exception(Exception::new(DEBUG_VECTOR, None))] {
        let mut guest = guest(&[0xf1], 0);
        guest.vcpu.debugctl = 3;
        guest.resumes(exit);
        assert_eq!((guest.vcpu.event, guest.vcpu.debugctl), (Some(Event::DEBUG), 0));
    }
    let mut guest = guest(&[0x0f, 0x0b], 0);
    guest.vcpu.debugctl = 3;
    guest.resumes(Exit::Exception(Exception::new(INVALID_OPCODE_VECTOR, None)));
    assert_eq!(guest.vcpu.debugctl, 3, "no other exception does");
}

#[test]
fn the_resume_flag_is_for_one_instruction() {
    for (code, exit) in instructions().into_iter().filter(|(_, exit)| *exit != Exit::Halt) {
        let mut guest = guest(code, RFLAGS_RF);
        guest.resumes(exit);
        assert_eq!((guest.vcpu.event, guest.vcpu.rflags & RFLAGS_RF), (None, 0), "{exit:?}");
    }
}

#[test]
fn a_fault_pushes_the_resume_flag_and_has_no_step_behind_it() {
    let mut guest = guest(&[0x0f, 0x30], RFLAGS_TF);
    guest.set(Gpr::RAX, 2);
    guest.resumes(Exit::WriteMsr);
    assert_eq!((guest.vcpu.raised(), guest.vcpu.rip), (Some((GENERAL_PROTECTION_FAULT_VECTOR, Some(0))), CODE));
    assert_eq!(guest.vcpu.rflags & RFLAGS_RF, RFLAGS_RF);
    for (vector, pushed) in
        [(0, true), (1, false), (3, false), (4, false), (6, true), (8, false), (14, true), (17, true), (18, false)]
    {
        assert_eq!(Exception::new(vector, None).is_fault(), pushed, "{vector}");
    }
}

#[test]
fn a_breakpoint_that_a_load_of_ss_has_met_comes_with_the_step() {
    let mut guest = guest(&[0x0f, 0xa2], RFLAGS_TF);
    guest.vcpu.pending_traps = 2;
    guest.resumes(Exit::Cpuid);
    assert_eq!((guest.vcpu.debug[6], guest.vcpu.pending_traps), (arch::reset::DR6 | DR6_BS | 2, 0));
}

#[test]
fn a_fault_behind_a_load_of_ss_leaves_neither_shadow_nor_step() {
    let mut guest = guest(&[0x0f, 0x30], RFLAGS_TF);
    (guest.vcpu.shadow, guest.vcpu.pending_traps) = (true, DR6_BS);
    guest.set(Gpr::RAX, 2);
    guest.resumes(Exit::WriteMsr);
    assert_eq!(guest.vcpu.raised(), Some((GENERAL_PROTECTION_FAULT_VECTOR, Some(0))));
    assert_eq!((guest.vcpu.shadow, guest.vcpu.pending_traps), (false, 0));
}

#[test]
fn steps_are_between_iterations() {
    for (code, exit) in [
        (&[0xf3, 0x6e][..], string(PORT, Size::Byte, false)),
        (&[0xf3, 0x6c], string(PORT, Size::Byte, true)),
        (&[0xf3, 0xaa], STORE_TO_HOLE),
        (&[0xf3, 0xa4], STORE_TO_HOLE),
    ] {
        let mut guest = guest(code, RFLAGS_TF);
        guest.set(Gpr::RCX, 2);
        if exit == STORE_TO_HOLE {
            guest.set(Gpr::RDI, HOLE);
        }
        guest.resumes(exit);
        assert_eq!((guest.vcpu.event.take(), guest.vcpu.rip), (Some(Event::DEBUG), CODE), "{code:x?}");
        assert_eq!((guest.get(Gpr::RCX), guest.vcpu.rflags & RFLAGS_RF), (1, RFLAGS_RF));
        guest.resumes(exit);
        assert_eq!((guest.vcpu.event.take(), guest.vcpu.rip), (Some(Event::DEBUG), CODE + 2));
        assert_eq!((guest.get(Gpr::RCX), guest.vcpu.rflags & RFLAGS_RF), (0, 0));
    }
}

#[test]
fn an_interrupt_comes_behind_the_step() {
    let mut guest = guest(&[0x0f, 0x30], RFLAGS_TF | RFLAGS_IF);
    guest.handler.shared.posted.post_vector(0x40);
    // A TSC deadline: what the APIC has is looked at behind it.
    guest.set(Gpr::RCX, u64::from(x86::msr::IA32_TSC_DEADLINE)).set(Gpr::RAX, 0).set(Gpr::RDX, 0);
    guest.resumes(Exit::WriteMsr);
    assert_eq!((guest.vcpu.event, guest.vcpu.rip), (Some(Event::DEBUG), CODE + 2));
    assert!(guest.handler.shared.request.is_pending());
}

/// DR7 with breakpoint 1: R/W and LEN.
const fn dr7(kind: u64, length: u64) -> u64 {
    1 << 3 | (length << 2 | kind) << 20
}

const WRITE: u64 = 1;
const PORTS: u64 = 2;
const READ: u64 = 3;

#[test]
fn breakpoints_are_met_by_what_is_accessed() {
    let (out, outs, ins) =
        (io(PORT, Size::Byte, false), string(PORT, Size::Byte, false), string(PORT, Size::Byte, true));
    for (code, exit, dr7, at, is_met) in [
        (&[0xee][..], out, dr7(PORTS, 0), PORT.into(), true),
        (&[0xee], out, dr7(PORTS, 0), u64::from(PORT) + 1, false),
        (&[0xee], out, dr7(PORTS, 3), u64::from(PORT) + 3, true),
        (&[0xee], out, dr7(READ, 0), PORT.into(), false),
        (&[0xee], out, dr7(PORTS, 0) & !0xff, PORT.into(), false),
        (&[0xef], io(PORT, Size::Dword, false), dr7(PORTS, 0), u64::from(PORT) + 3, true),
        (&[0xec], io(PORT, Size::Byte, true), dr7(PORTS, 0), PORT.into(), true),
        (&[0x6e], outs, dr7(PORTS, 0), PORT.into(), true),
        (&[0x6e], outs, dr7(READ, 0), DATA, true),
        (&[0x6e], outs, dr7(WRITE, 0), DATA, false),
        (&[0x6c], ins, dr7(WRITE, 0), DATA, true),
        (&[0x6c], ins, dr7(READ, 3), DATA + 3, true),
        (&[0x6c], ins, dr7(WRITE, 0), DATA + 1, false),
        (&[0x8b, 0x03], LOAD_FROM_HOLE, dr7(READ, 0), HOLE + 3, true),
        (&[0x8b, 0x03], LOAD_FROM_HOLE, dr7(READ, 2), HOLE + 7, true),
        (&[0x8b, 0x03], LOAD_FROM_HOLE, dr7(WRITE, 0), HOLE, false),
        (&[0x89, 0x03], STORE_TO_HOLE, dr7(WRITE, 1), HOLE + 2, true),
        (&[0x89, 0x03], STORE_TO_HOLE, dr7(WRITE, 1), HOLE + 4, false),
        (&[0x01, 0x03], STORE_TO_HOLE, dr7(WRITE, 0), HOLE, true),
    ] {
        let mut guest = guest(code, 0);
        guest.vcpu.control.cr4 |= CR4_DE;
        (guest.vcpu.debug[1], guest.vcpu.debug[7]) = (at, dr7);
        guest.vcpu.next_rip = Some(CODE + code.len() as u64);
        guest.set(Gpr::RDX, PORT.into());
        guest.resumes(exit);
        let expected = if is_met { (Some(Event::DEBUG), arch::reset::DR6 | 2) } else { (None, arch::reset::DR6 | 4) };
        assert_eq!((guest.vcpu.event, guest.vcpu.debug[6]), expected, "{code:x?} {dr7:x} {at:x}");
        assert_eq!(guest.vcpu.rip, CODE + code.len() as u64);
    }
}

#[test]
fn breakpoints_at_ports_are_an_extension() {
    let mut guest = guest(&[0xee], 0);
    guest.vcpu.next_rip = Some(CODE + 1);
    (guest.vcpu.debug[1], guest.vcpu.debug[7]) = (PORT.into(), dr7(PORTS, 0));
    guest.resumes(io(PORT, Size::Byte, false));
    assert_eq!(guest.vcpu.event, None);
}

#[test]
fn a_breakpoint_in_the_midst_of_a_string_is_met_there() {
    let mut guest = guest(&[0xf3, 0x6c], 0);
    (guest.vcpu.debug[1], guest.vcpu.debug[7]) = (DATA + 1, dr7(WRITE, 0));
    guest.set(Gpr::RCX, 4);
    guest.resumes(string(PORT, Size::Byte, true));
    assert_eq!((guest.vcpu.event, guest.get(Gpr::RCX), guest.vcpu.rip), (Some(Event::DEBUG), 2, CODE));
}

proptest! {
    /// By the bytes: a breakpoint is met if one of them is its own.
    #[test]
    fn ranges_overlap_where_they_have_a_byte_in_common(
        at in any::<u64>(),
        offset in -20i64..20,
        bytes in prop::sample::select(&[1u64, 2, 4, 8][..]),
        (code, length) in prop::sample::select(&[(0u64, 1u64), (1, 2), (3, 4), (2, 8)][..]),
    ) {
        let address = at.wrapping_add_signed(offset);
        let own: std::vec::Vec<u64> = (0..length).map(|byte| (address & !(length - 1)).wrapping_add(byte)).collect();
        let is_met = (0..bytes).any(|byte| own.contains(&at.wrapping_add(byte)));
        let met = crate::debug_traps::breakpoints_met(
            dr7(WRITE, code), [0, address, 0, 0], crate::debug_traps::Access::Write, at, bytes,
        );
        prop_assert_eq!(met, if is_met { 2 } else { 0 });
    }
}

/// DR7 for breakpoint 0: reads and writes of 8 bytes.
const WATCH_8: u64 = 1 | 0b1011 << 16;

#[test]
fn a_data_breakpoint_at_the_operand_of_lmsw_and_smsw_is_behind_them() {
    for code in [&[0x0f, 0x01, 0x33], &[0x0f, 0x01, 0x23]] {
        let mut guest = guest(code, 0);
        guest.set(Gpr::RBX, DATA);
        (guest.vcpu.debug[0], guest.vcpu.debug[7]) = (DATA, WATCH_8);
        guest.resumes(Exit::ControlRegister);
        assert_eq!((guest.vcpu.raised(), guest.vcpu.rip), (Some((DEBUG_VECTOR, None)), CODE + 3), "{code:x?}");
        assert_eq!(guest.vcpu.debug[6] & 0xf, 1);
    }
}

/// PUSH [RBX], of which the processor has done nothing.
#[test]
fn steps_and_breakpoints_are_behind_an_instruction_that_is_interpreted() {
    for (rflags, at, status) in [(RFLAGS_TF, 0, DR6_BS), (0, DATA, 1), (0, HOLE, 1), (RFLAGS_TF, DATA, DR6_BS | 1)] {
        let mut guest = guest(&[0xff, 0x33], rflags | RFLAGS_RF);
        guest.set(Gpr::RSP, DATA + 8);
        (guest.vcpu.debug[0], guest.vcpu.debug[7]) = (at, WATCH_8);
        guest.resumes(LOAD_FROM_HOLE);
        assert_eq!((guest.vcpu.raised(), guest.vcpu.rip), (Some((DEBUG_VECTOR, None)), CODE + 2));
        assert_eq!(guest.vcpu.debug[6], arch::reset::DR6 | status);
        assert_eq!(guest.vcpu.rflags & RFLAGS_RF, 0);
    }
}

/// PUSH [RBX] and JMP [RBX].
#[test]
fn with_btf_there_is_a_step_over_a_branch_that_is_interpreted_alone() {
    for (code, step) in [([0xff, 0x33], None), ([0xff, 0x23], Some((DEBUG_VECTOR, None)))] {
        let mut guest = guest(&code, RFLAGS_TF);
        guest.set(Gpr::RSP, DATA + 8);
        guest.vcpu.debugctl = 2;
        guest.resumes(LOAD_FROM_HOLE);
        assert_eq!((guest.vcpu.raised(), guest.vcpu.debugctl), (step, if step.is_some() { 0 } else { 2 }), "{code:x?}");
    }
}

/// POPF from where no memory is, which sets TF.
#[test]
fn a_step_is_not_behind_the_popf_that_sets_tf() {
    for (rflags, step) in [(0, None), (RFLAGS_TF, Some((DEBUG_VECTOR, None)))] {
        let mut guest = guest(&[0x9d], rflags);
        guest.set(Gpr::RSP, HOLE);
        guest.resumes(LOAD_FROM_HOLE);
        assert_eq!((guest.vcpu.raised(), guest.vcpu.rip), (step, CODE + 1));
        assert_eq!(guest.vcpu.rflags & RFLAGS_TF, RFLAGS_TF);
    }
}

/// POP SS and MOV SS from where no memory is, in virtual-8086 mode.
#[test]
fn behind_a_load_of_ss_there_is_a_shadow_and_no_step() {
    for code in [&[0x17][..], &[0x8e, 0x17]] {
        for debugctl in [0, 2] {
            let mut guest = Guest::flat_32(code);
            guest.vcpu.segments[1].default_big = false;
            guest.vcpu.rflags |= RFLAGS_TF | RFLAGS_VM;
            (guest.vcpu.control.cpl, guest.vcpu.debugctl) = (3, debugctl);
            for segment in [2, 3] {
                guest.vcpu.segments[segment].base = HOLE;
                guest.vcpu.segments[segment].default_big = false;
            }
            guest.set(Gpr::RSP, 0x10);
            guest.resumes(LOAD_FROM_HOLE);
            assert_eq!((guest.vcpu.event, guest.vcpu.rip), (None, CODE + code.len() as u64), "{code:x?}");
            assert!(guest.vcpu.shadow);
        }
    }
}

/// An interrupt waits, of which the APIC knows.
fn interrupt_waits(guest: &mut Guest) {
    let crate::ExitHandler { context, shared, .. } = &mut guest.handler;
    let clock = crate::local_apic::ApicClock(guest.vm.clock());
    let _ = context.apic.write(apic::Register::Spurious, 0x1ff, &shared.posted, &clock);
    shared.posted.post_vector(0x40);
}

#[test]
fn a_breakpoint_that_a_load_of_ss_has_met_comes_before_an_interrupt() {
    for exit in [Exit::TaskPriority, Exit::Cr8(Cr8::new(true, Some(Gpr::RBX))), Exit::Halt] {
        for (pending, event) in [(4, Event::DEBUG), (0, Event::Interrupt(0x40))] {
            let mut guest = guest(&[0xf4], RFLAGS_IF);
            guest.vcpu.next_rip = Some(CODE + 4);
            (guest.vcpu.shadow, guest.vcpu.pending_traps) = (true, pending);
            guest.set(Gpr::RBX, 0);
            interrupt_waits(&mut guest);
            guest.resumes(exit);
            assert_eq!(guest.vcpu.event, Some(event), "{exit:?}");
            assert!(pending == 0 || guest.vcpu.debug[6] == arch::reset::DR6 | pending);
            assert_eq!(guest.vcpu.pending_traps, 0);
        }
    }
}

/// The hardware holds the step of the MOV pending.
#[test]
fn the_step_behind_a_fall_of_the_task_priority_comes_before_an_interrupt() {
    for shadow in [false, true] {
        let mut guest = guest(&[], RFLAGS_IF | RFLAGS_TF);
        guest.vcpu.shadow = shadow;
        guest.vcpu.hold_step();
        interrupt_waits(&mut guest);
        guest.resumes(Exit::TaskPriority);
        assert_eq!((guest.vcpu.event, guest.vcpu.debug[6]), (Some(Event::DEBUG), arch::reset::DR6 | DR6_BS));
        guest.vcpu.then(Exit::Shutdown, |_| {});
        guest.vcpu.enter();
        assert_eq!(guest.vcpu.delivered, [Event::DEBUG], "it comes once");
    }
}

#[test]
fn a_breakpoint_that_a_load_of_ss_has_met_ends_the_hlt_behind_it() {
    let mut guest = guest(&[0xf4], 0);
    (guest.vcpu.shadow, guest.vcpu.pending_traps) = (true, 4);
    guest.resumes(Exit::Halt);
    assert_eq!((guest.vcpu.event, guest.vcpu.rip), (Some(Event::DEBUG), CODE + 1));
}
