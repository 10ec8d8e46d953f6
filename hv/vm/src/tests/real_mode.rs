//! Real mode where the processor has none for guests.

use super::guest::*;
use crate::vcpu::SegmentState;
use crate::{Event, Exception, Exit, ExitHandler, Flow, Gpr, Stop, Vcpu};
use arch::msr::DEBUGCTL_BTF;
use arch::{CR4_DE, DR6_BD, DR6_BS, DR7_GD, RFLAGS_IF, RFLAGS_OF, RFLAGS_TF};
use proptest::prelude::*;
use std::vec::Vec;
use x86::irq::{
    DEBUG_VECTOR, DOUBLE_FAULT_VECTOR, GENERAL_PROTECTION_FAULT_VECTOR, INVALID_OPCODE_VECTOR,
    STACK_SEGEMENT_FAULT_VECTOR,
};

/// Each vector's handler is a HLT; they are one behind the other from here on.
const HANDLERS: u64 = 0x400;
const VECTORS: u64 = 0x40;
/// SP at the start.
const TOP: u64 = 0x800;

/// A guest at `code`, with data and stack in a segment of its own.
fn real(code: &[u8]) -> Guest {
    let mut guest = Guest::real(code);
    let data =
        SegmentState { selector: (DATA >> 4) as u16, base: DATA, limit: 0xffff, default_big: false, long: false };
    for register in [0, 2, 3, 4, 5] {
        guest.vcpu.segments[register] = data;
    }
    guest.vcpu.attributes = [0x93; 6];
    guest.vcpu.idt = (0, 0x3ff);
    guest.set(Gpr::RSP, TOP);
    for vector in 0..VECTORS {
        handle_at(&guest, vector, HANDLERS + vector, &[0xf4]);
    }
    guest
}

/// Has `vector` be handled by `code`, at this offset in the code segment.
fn handle_at(guest: &Guest, vector: u64, offset: u64, code: &[u8]) {
    let entry = [offset.to_le_bytes(), (CODE >> 4).to_le_bytes()];
    guest.memory().put(vector * 4, &entry.map(|[low, high, ..]| [low, high]).concat());
    guest.memory().put(CODE + offset, code);
}

fn word(guest: &Guest, at: u64) -> u16 {
    u16::from_le_bytes(guest.memory().bytes(DATA + at))
}

/// Runs up to a HLT.
#[track_caller]
fn halts(guest: &mut Guest) {
    assert_eq!(guest.handle(Exit::Emulate), Flow::Stop(Stop::Halted));
}

/// Runs up to the first exception: its vector, and where it returns to.
#[track_caller]
fn raises(guest: &mut Guest) -> (u8, u16) {
    halts(guest);
    let vector = guest.vcpu.rip.checked_sub(HANDLERS + 1).expect("a handler is reached");
    (vector as u8, word(guest, guest.get(Gpr::RSP)))
}

#[test]
fn operands_of_smsw_and_lmsw_are_checked() {
    // SMSW, LMSW.
    for modrm in [0x26, 0x36] {
        for (code, vector) in [
            (&[0x90, 0x0f, 0x01, modrm, 0xff, 0xff][..], GENERAL_PROTECTION_FAULT_VECTOR),
            (&[0x90, 0x36, 0x0f, 0x01, modrm, 0xff, 0xff], STACK_SEGEMENT_FAULT_VECTOR),
        ] {
            let mut guest = real(code);
            assert_eq!(raises(&mut guest), (vector, 1), "{code:x?}");
        }
    }
}

#[test]
fn accesses_to_debug_registers_are_guarded() {
    // MOV EAX, DR0; MOV DR0, EAX; MOV DR7, EAX.
    for code in [[0x0f, 0x21, 0xc0], [0x0f, 0x23, 0xc0], [0x0f, 0x23, 0xf8]] {
        let mut guest = real(&code);
        guest.vcpu.debug = [0x11, 0, 0, 0, 0, 0, 0xf, DR7_GD | 0x400];
        guest.set(Gpr::RAX, 0x55);
        assert_eq!(raises(&mut guest), (DEBUG_VECTOR, 0), "{code:x?}");
        assert_eq!(guest.vcpu.debug, [0x11, 0, 0, 0, 0, 0, DR6_BD, 0x400]);
        assert_eq!(guest.get(Gpr::RAX), 0x55);
    }
}

#[test]
fn debug_registers_are_read_and_written() {
    // MOV EAX, DRn; HLT.
    for (number, value) in [(0u8, 0x10), (3, 0x13), (4, 0x16), (5, 0x17), (6, 0x16), (7, 0x17)] {
        let mut guest = real(&[0x0f, 0x21, 0xc0 | number << 3, 0xf4]);
        guest.vcpu.debug = [0x10, 0x11, 0x12, 0x13, 0, 0, 0x16, 0x17];
        halts(&mut guest);
        assert_eq!(guest.get(Gpr::RAX), value, "DR{number}");
    }
    // MOV DR3, EAX; MOV DR5, EAX; HLT.
    let mut guest = real(&[0x0f, 0x23, 0xd8, 0x0f, 0x23, 0xe8, 0xf4]);
    guest.set(Gpr::RAX, 0x1_0000_0155);
    halts(&mut guest);
    assert_eq!((guest.vcpu.debug[3], guest.vcpu.debug[7]), (0x155, 0x555));
    let mut guest = real(&[0x0f, 0x23, 0xe8]);
    guest.vcpu.control.cr4 = CR4_DE;
    assert_eq!(raises(&mut guest), (INVALID_OPCODE_VECTOR, 0));
}

#[test]
fn control_registers_are_read_and_written() {
    // MOV CRn, EAX; MOV EBX, CRn; HLT.
    for (number, value) in [(0u8, 0x10), (2, 0xffff_f123), (3, 0xffff_f000), (4, PAE)] {
        let mut guest = real(&[0x0f, 0x22, 0xc0 | number << 3, 0x0f, 0x20, 0xc3 | number << 3, 0xf4]);
        guest.set(Gpr::RAX, value | 1 << 32);
        halts(&mut guest);
        assert_eq!(guest.get(Gpr::RBX), value, "CR{number}");
    }
    // Reserved bits, and PG without PE.
    for (number, value) in [(4u8, 1 << 31), (0, PG), (0, 1 << 29)] {
        let mut guest = real(&[0x0f, 0x22, 0xc0 | number << 3]);
        guest.set(Gpr::RAX, value);
        assert_eq!(raises(&mut guest), (GENERAL_PROTECTION_FAULT_VECTOR, 0), "CR{number}");
    }
}

#[test]
fn the_processor_goes_on_in_protected_mode() {
    // MOV CR0, EAX; LMSW AX.
    for code in [[0x0f, 0x22, 0xc0], [0x0f, 0x01, 0xf0]] {
        let mut guest = real(&code);
        guest.set(Gpr::RAX, 1);
        guest.resumes(Exit::Emulate);
        assert_eq!((guest.vcpu.rip, guest.vcpu.control.cr0, guest.vcpu.event), (3, PE | arch::CR0_ET, None));
    }
}

#[test]
fn pdptes_are_loaded_where_the_processor_holds_them() {
    for (held, entry, expected) in [
        (Some([0; 4]), PD | PRESENT, Ok(Some([PD | PRESENT, 0, 0, 0]))),
        (None, PD | PRESENT, Ok(None)),
        (Some([0; 4]), PD | PRESENT | WRITABLE, Err(GENERAL_PROTECTION_FAULT_VECTOR)),
    ] {
        // MOV CR0, EAX.
        let mut guest = real(&[0x0f, 0x22, 0xc0]);
        (guest.vcpu.control.cr3, guest.vcpu.control.cr4, guest.vcpu.held) = (PDPT, PAE, held);
        guest.memory().put_u64(PDPT, entry);
        guest.set(Gpr::RAX, PE | PG);
        let loaded = match guest.handle(Exit::Emulate) {
            Flow::Resume => Ok(guest.vcpu.pdptes),
            _ => Err((guest.vcpu.rip - HANDLERS - 1) as u8),
        };
        assert_eq!(loaded, expected);
    }
}

/// INVLPG, which has nothing to do.
#[test]
fn without_paging_no_page_has_a_translation() {
    let mut guest = real(&[0x0f, 0x01, 0x3e, 0x00, 0x00, 0xf4]);
    halts(&mut guest);
    assert_eq!(guest.vcpu.rip, 6);
}

#[test]
fn code_ends_with_its_segment() {
    // MOV AX, of which the last byte is beyond; NOP, as the last byte; nothing.
    for (at, code, back) in [(0xfffe, &[0xb8, 0x12][..], 0xfffe), (0xffff, &[0x90], 0), (0x1_0000, &[], 0)] {
        let mut guest = real(&[]);
        guest.memory().put(CODE + at, code);
        guest.vcpu.rip = at;
        assert_eq!(raises(&mut guest), (GENERAL_PROTECTION_FAULT_VECTOR, back), "{at:x}");
    }
    // The same where there is no memory either.
    let mut guest = real(&[]);
    (guest.vcpu.segments[1].base, guest.vcpu.rip) = (HOLE - 0x1_0000, 0x1_0000);
    assert_eq!(raises(&mut guest), (GENERAL_PROTECTION_FAULT_VECTOR, 0));
    // The last three bytes: MOV AX.
    let mut guest = real(&[]);
    guest.memory().put(CODE + 0xfffd, &[0xb8, 0x34, 0x12]);
    guest.vcpu.rip = 0xfffd;
    assert_eq!((raises(&mut guest), guest.get(Gpr::RAX)), ((GENERAL_PROTECTION_FAULT_VECTOR, 0), 0x1234));
}

#[test]
fn an_nmi_waits_for_the_iret_of_another() {
    // NOP; INC WORD [4]; HLT.
    let mut guest = real(&[0x90, 0xff, 0x06, 0x04, 0x00, 0xf4]);
    // INC WORD [0]; ADD [2], SP; MOV AX, [4]; OR [6], AX; IRET.
    let handler = [0xff, 0x06, 0, 0, 0x01, 0x26, 2, 0, 0xa1, 4, 0, 0x09, 0x06, 6, 0, 0xcf];
    handle_at(&guest, 2, 0x200, &handler);
    guest.handler.context.nmis = 2;
    halts(&mut guest);
    assert_eq!(word(&guest, 0), 2, "how many came");
    assert_eq!(u64::from(word(&guest, 2)), 2 * (TOP - 6), "the sum of SP in both");
    assert_eq!(word(&guest, 6), 0, "the second is right behind the IRET of the first");
}

#[test]
fn an_nmi_that_is_handled_keeps_another_back() {
    // NOP; HLT, and as the NMI's handler HLT.
    let mut guest = real(&[0x90, 0xf4]);
    guest.handler.context.nmis = 2;
    assert_eq!(raises(&mut guest), (2, 1));
    assert_eq!((guest.handler.context.nmis, guest.vcpu.nmi_handled), (1, true));
}

/// Where a guest with this last byte of its vector table is, once `change` has had its way.
#[track_caller]
fn with_table(limit: u32, code: &[u8], change: impl FnOnce(&mut Guest)) -> Result<(u8, u16), Stop> {
    let mut guest = real(code);
    guest.vcpu.idt.1 = limit;
    change(&mut guest);
    match guest.handle(Exit::Emulate) {
        Flow::Stop(Stop::Halted) => {
            let vector = guest.vcpu.rip.checked_sub(HANDLERS + 1).expect("a handler is reached");
            Ok((vector as u8, word(&guest, guest.get(Gpr::RSP))))
        }
        Flow::Stop(stop) => Err(stop),
        flow => panic!("{flow:?}"),
    }
}

/// The limit of a table whose last vector is this one.
const fn up_to(vector: u8) -> u32 {
    4 * vector as u32 + 3
}

#[test]
fn without_a_vector_table_all_that_is_delivered_is_a_triple_fault() {
    // LIDT [0], whose limit is 0, and: INT3, INT 20h, INTO, UD2, AAM 0; INT1.
    for then in [&[0xcc][..], &[0xcd, 0x20], &[0xce], &[0x0f, 0x0b], &[0xd4, 0x00], &[0xf1]] {
        let code = [&[0x0f, 0x01, 0x1e, 0x00, 0x00], then].concat();
        let end = with_table(0x3ff, &code, |guest| guest.vcpu.rflags |= RFLAGS_OF);
        assert_eq!(end, Err(Stop::TripleFault), "{then:x?}");
    }
    // An interrupt behind NOP, and an NMI.
    let interrupt = |guest: &mut Guest| {
        guest.vcpu.rflags |= RFLAGS_IF;
        interrupt_waits(guest);
    };
    assert_eq!(with_table(0, &[0x90, 0xf4], interrupt), Err(Stop::TripleFault));
    assert_eq!(with_table(0, &[0x90, 0xf4], |guest| guest.handler.context.nmis = 1), Err(Stop::TripleFault));
}

#[test]
fn a_vector_beyond_the_table_is_a_general_protection_fault() {
    let at = |vector| move |guest: &mut Guest| guest.vcpu.event = Some(Event::Exception(Exception::new(vector, None)));
    let interrupt = |guest: &mut Guest| guest.vcpu.event = Some(Event::Interrupt(WAITS));
    // NOP; INT 20h, at whose beginning the fault is; the last byte of the entry counts.
    assert_eq!(with_table(up_to(13), &[0x90, 0xcd, 0x20], |_| {}), Ok((GENERAL_PROTECTION_FAULT_VECTOR, 1)));
    assert_eq!(with_table(up_to(0x20) - 1, &[0x90, 0xcd, 0x20], |_| {}), Ok((GENERAL_PROTECTION_FAULT_VECTOR, 1)));
    assert_eq!(with_table(up_to(0x20), &[0x90, 0xcd, 0x20], |_| {}), Ok((0x20, 3)));
    assert_eq!(with_table(up_to(13), &[0x90], interrupt), Ok((GENERAL_PROTECTION_FAULT_VECTOR, 0)));
    // #MF contributes to no #DF.
    assert_eq!(with_table(up_to(13), &[0x90], at(16)), Ok((GENERAL_PROTECTION_FAULT_VECTOR, 0)));
    // #SS does, and #GP.
    assert_eq!(with_table(up_to(11), &[0x90], at(12)), Ok((DOUBLE_FAULT_VECTOR, 0)));
    assert_eq!(with_table(up_to(12), &[0x90], at(13)), Ok((DOUBLE_FAULT_VECTOR, 0)));
    assert_eq!(with_table(up_to(7), &[0x90], at(DOUBLE_FAULT_VECTOR)), Err(Stop::TripleFault));
}

#[test]
fn a_stack_that_has_no_room_for_a_frame_is_a_triple_fault() {
    // UD2, INT 20h.
    for code in [[0x0f, 0x0b], [0xcd, 0x20]] {
        let end = with_table(0x3ff, &code, |guest| {
            guest.set(Gpr::RSP, 1);
        });
        assert_eq!(end, Err(Stop::TripleFault), "{code:x?}");
    }
}

/// An interrupt waits with this vector.
const WAITS: u8 = 0x30;

fn interrupt_waits(guest: &mut Guest) {
    let ExitHandler { context, shared, .. } = &mut guest.handler;
    let clock = crate::local_apic::ApicClock(guest.vm.clock());
    let _ = context.apic.write(apic::Register::Spurious, 0x1ff, &shared.posted, &clock);
    shared.posted.post_vector(WAITS);
}

/// Where the first step is, with these flags on the stack.
#[track_caller]
fn first_step(code: &[u8], rflags: u64, popped: u64) -> u16 {
    let mut guest = real(code);
    guest.vcpu.rflags |= rflags;
    guest.memory().put(DATA + TOP, &(popped as u16).to_le_bytes());
    let (vector, back) = raises(&mut guest);
    assert_eq!((vector, guest.vcpu.debug[6]), (DEBUG_VECTOR, DR6_BS), "{code:x?}");
    back
}

#[test]
fn a_step_is_behind_the_instruction_after_the_one_that_sets_tf() {
    // POPF; NOP; NOP.
    const POPF: [u8; 3] = [0x9d, 0x90, 0x90];
    assert_eq!(first_step(&POPF, 0, RFLAGS_TF), 2);
    assert_eq!(first_step(&POPF, RFLAGS_TF, RFLAGS_TF), 1);
    assert_eq!(first_step(&POPF, RFLAGS_TF, 0), 1, "TF was set before it");
    // PUSH 0100h; PUSH CS; PUSH 8; IRET, to NOP.
    let iret = [0x68, 0x00, 0x01, 0x0e, 0x6a, 0x08, 0xcf, 0xf4, 0x90, 0x90];
    assert_eq!(first_step(&iret, 0, 0), 9);
}

#[test]
fn there_is_no_step_behind_a_load_of_ss_and_behind_int() {
    // MOV AX, SS; MOV SS, AX; NOP, with TF from POPF: the steps are behind the first and the third.
    let mut guest = real(&[0x8e, 0xd0, 0x90, 0x90]);
    guest.vcpu.rflags |= RFLAGS_TF;
    guest.set(Gpr::RAX, DATA >> 4);
    assert_eq!(raises(&mut guest), (DEBUG_VECTOR, 3));
    // INT 20h.
    let mut guest = real(&[0xcd, 0x20]);
    guest.vcpu.rflags |= RFLAGS_TF;
    assert_eq!(raises(&mut guest), (0x20, 2));
    assert_eq!(guest.vcpu.debug[6], 0);
}

/// Its #DB would come with the first entry in protected mode.
#[test]
fn an_int_behind_a_load_of_ss_leaves_no_step_pending() {
    // MOV SS, AX, and: INT 20h, INT3, INTO. With TF of POPF before it.
    for (int, vector) in [(&[0xcd, 0x20][..], 0x20), (&[0xcc], 3), (&[0xce], 4)] {
        let mut guest = real(&[&[0x9d, 0x8e, 0xd0], int].concat());
        // LMSW BX.
        handle_at(&guest, vector, 0x200, &[0x0f, 0x01, 0xf3]);
        guest.memory().put(DATA + TOP, &((RFLAGS_TF | RFLAGS_OF) as u16).to_le_bytes());
        guest.set(Gpr::RAX, DATA >> 4).set(Gpr::RBX, PE);
        guest.vcpu.then(Exit::Shutdown, |_| {});
        guest.resumes(Exit::Emulate);
        assert_eq!((guest.vcpu.rip, guest.vcpu.control.cr0 & PE), (0x203, PE), "{int:x?}");
        guest.vcpu.enter();
        assert_eq!((guest.vcpu.delivered.as_slice(), guest.vcpu.debug[6]), (&[][..], 0), "{int:x?}");
    }
}

#[test]
fn with_btf_there_is_a_step_behind_branches_that_are_taken_alone() {
    // JZ (not taken), NOP and then: JMP, CALL, JNZ, LOOP, RET to 9, each over one byte.
    for branch in [&[0xeb, 0x01][..], &[0xe8, 0x01, 0x00], &[0x75, 0x01], &[0xe2, 0x01], &[0xc3]] {
        let code: Vec<u8> = [&[0x74, 0x10, 0x90], branch, &[0xf4; 8]].concat();
        let mut guest = real(&code);
        (guest.vcpu.rflags, guest.vcpu.debugctl) = (2 | RFLAGS_TF, DEBUGCTL_BTF);
        guest.set(Gpr::RCX, 2);
        guest.memory().put(DATA + TOP, &[9, 0]);
        let to = if branch == [0xc3] { 9 } else { 3 + branch.len() as u16 + 1 };
        assert_eq!(raises(&mut guest), (DEBUG_VECTOR, to), "{branch:x?}");
        assert_eq!((guest.vcpu.debug[6], guest.vcpu.debugctl), (DR6_BS, 0));
    }
}

/// An interrupt waits behind STI for one instruction more.
#[test]
fn with_btf_the_shadow_of_sti_and_of_ss_stays() {
    // STI; NOP; NOP; HLT, and with MOV SS, AX for the first NOP.
    for (code, back) in [(&[0xfb, 0x90, 0x90, 0xf4][..], 2), (&[0xfb, 0x8e, 0xd0, 0x90, 0x90, 0xf4], 4)] {
        let mut guest = real(code);
        (guest.vcpu.rflags, guest.vcpu.debugctl) = (2 | RFLAGS_TF, DEBUGCTL_BTF);
        guest.set(Gpr::RAX, DATA >> 4);
        interrupt_waits(&mut guest);
        assert_eq!(raises(&mut guest), (WAITS, back), "{code:x?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Any code, with all that can wait for it: the vCPU panics where an event comes on top of another, or is not taken.
    #[test]
    fn whatever_the_code_is_it_goes_on_or_ends(
        code in prop::collection::vec(any::<u8>(), 64),
        gprs in prop::array::uniform8(any::<u32>()),
        rflags in any::<u16>(),
        (btf, nmis, waits, dr7) in (any::<bool>(), 0u8..3, any::<bool>(), any::<u16>()),
    ) {
        let mut guest = real(&code);
        for (number, value) in (0..).zip(gprs) {
            guest.set(Gpr::new(number), value.into());
        }
        // Not VM, and what is always set.
        guest.vcpu.rflags = u64::from(rflags) & 0x7fd5 | 2;
        guest.vcpu.debug = [DATA, DATA + 0x100, 0, CODE, 0, 0, 0, u64::from(dr7) | 0x1333_0000];
        guest.vcpu.debugctl = if btf { DEBUGCTL_BTF } else { 0 };
        guest.handler.context.nmis = nmis;
        if waits {
            interrupt_waits(&mut guest);
        }
        for _ in 0..4 {
            match guest.handle(Exit::Emulate) {
                Flow::Resume if guest.vcpu.control.cr0 & PE == 0 => {}
                Flow::Resume | Flow::Yield | Flow::Stop(_) => break,
            }
        }
    }
}
