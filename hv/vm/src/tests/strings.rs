//! INS and OUTS.

use super::guest::*;
use crate::{Event, Exit, Flow, Gpr, Stop};
use devices::Size;

const CONSOLE: u16 = 0xe9;
/// COM1's data: each read takes a byte that came in.
const COM1: u16 = 0x3f8;

const OUTSB: [u8; 1] = [0x6e];
const REP_OUTSB: [u8; 2] = [0xf3, 0x6e];
const REP_OUTSD: [u8; 2] = [0xf3, 0x6f];
const INSB: [u8; 1] = [0x6c];
const REP_INSB: [u8; 2] = [0xf3, 0x6c];
const REP_INSD: [u8; 2] = [0xf3, 0x6d];

const PRINT: Exit = string(CONSOLE, Size::Byte, false);
const RECEIVE: Exit = string(COM1, Size::Byte, true);

const DIRECTION_FLAG: u64 = 1 << 10;

/// A guest at `code`, to which COM1 has `input`.
fn receiver(code: &[u8], input: &[u8]) -> Guest {
    Guest::with_devices(code, |devices| {
        // With its FIFO on.
        out(devices, 0x3fa, 1);
        assert!(input.iter().all(|&byte| devices.receive(byte)));
    })
}

/// The next byte at COM1.
fn received(guest: &mut Guest) -> u8 {
    guest.vcpu.next_rip = Some(0);
    guest.resumes(io(COM1, Size::Byte, true));
    guest.get(Gpr::RAX) as u8
}

/// Exits of the same instruction until it is done.
#[track_caller]
fn finish(guest: &mut Guest, exit: Exit) -> usize {
    let at = guest.vcpu.rip;
    for exits in 1..100 {
        guest.resumes(exit);
        assert_eq!(guest.vcpu.raised(), None);
        if guest.vcpu.rip != at {
            return exits;
        }
    }
    panic!("the instruction never ends");
}

#[test]
fn rep_outs_writes_every_element_of_a_page_in_one_exit() {
    let mut guest = Guest::new(&REP_OUTSB);
    guest.memory().put(DATA, b"hello world");
    guest.set(Gpr::RSI, DATA).set(Gpr::RCX, 5);
    assert_eq!(finish(&mut guest, PRINT), 1);
    assert_eq!((guest.get(Gpr::RSI), guest.get(Gpr::RCX), guest.vcpu.rip), (DATA + 5, 0, CODE + 2));
    assert_eq!(guest.printed(), b"hello");
}

#[test]
fn outs_to_a_full_console_keeps_what_it_could_not_write() {
    let mut guest = Guest::new(&REP_OUTSB);
    guest.memory().put(DATA, b"hello");
    guest.set(Gpr::RSI, DATA).set(Gpr::RCX, 5);
    guest.vm.devices().sink().room = 2;
    for _ in 0..2 {
        assert_eq!(guest.handle(PRINT), Flow::Yield);
        assert_eq!((guest.get(Gpr::RSI), guest.get(Gpr::RCX), guest.vcpu.rip), (DATA + 2, 3, CODE));
    }
    guest.vm.devices().sink().room = 9;
    assert_eq!(finish(&mut guest, PRINT), 1);
    assert_eq!((guest.get(Gpr::RCX), guest.vcpu.rip, &*guest.printed()), (0, CODE + 2, &b"hello"[..]));
}

#[test]
fn a_long_string_is_moved_in_batches_between_which_the_host_has_its_turn() {
    let mut guest = Guest::new(&REP_OUTSB);
    guest.memory().put(DATA, &[b'x'; 150]);
    guest.set(Gpr::RSI, DATA).set(Gpr::RCX, 150);
    for left in [86, 22] {
        guest.resumes(PRINT);
        assert_eq!((guest.get(Gpr::RSI), guest.get(Gpr::RCX), guest.vcpu.rip), (DATA + 150 - left, left, CODE));
    }
    assert_eq!(finish(&mut guest, PRINT), 1);
    assert_eq!(guest.printed(), [b'x'; 150]);
}

#[test]
fn an_instruction_on_two_pages_takes_an_exit_for_each() {
    let mut guest = Guest::new(&REP_OUTSB);
    guest.memory().put(DATA + 0xffe, b"hello");
    guest.set(Gpr::RSI, DATA + 0xffe).set(Gpr::RCX, 5);
    guest.resumes(PRINT);
    assert_eq!((guest.get(Gpr::RSI), guest.get(Gpr::RCX), guest.vcpu.rip), (DATA + 0x1000, 3, CODE));
    guest.resumes(PRINT);
    assert_eq!((guest.get(Gpr::RSI), guest.get(Gpr::RCX), guest.vcpu.rip), (DATA + 0x1003, 0, CODE + 2));
    assert_eq!(guest.printed(), b"hello");
}

#[test]
fn elements_have_the_instructions_width() {
    let mut guest = Guest::new(&REP_OUTSD);
    guest.memory().put(DATA, b"abcdefgh");
    guest.set(Gpr::RSI, DATA).set(Gpr::RCX, 2);
    finish(&mut guest, string(CONSOLE, Size::Dword, false));
    // The first byte of each goes to the console, the others to the ports behind it.
    assert_eq!(guest.printed(), b"ae");
    assert_eq!(guest.get(Gpr::RSI), DATA + 8);

    let mut guest = Guest::new(&REP_INSD);
    guest.set(Gpr::RDI, DATA).set(Gpr::RCX, 2);
    finish(&mut guest, string(CONSOLE, Size::Dword, true));
    assert_eq!(guest.memory().bytes(DATA), [0xe9, 0xff, 0xff, 0xff, 0xe9, 0xff, 0xff, 0xff, 0]);
    assert_eq!((guest.get(Gpr::RDI), guest.get(Gpr::RCX)), (DATA + 8, 0));
}

#[test]
fn without_rep_one_element_is_moved_and_rcx_kept() {
    let mut guest = Guest::new(&OUTSB);
    guest.memory().put(DATA, b"ab");
    guest.set(Gpr::RSI, DATA).set(Gpr::RCX, 7);
    guest.resumes(PRINT);
    assert_eq!((guest.get(Gpr::RSI), guest.get(Gpr::RCX), guest.vcpu.rip), (DATA + 1, 7, CODE + 1));
    assert_eq!(guest.printed(), b"a");

    let mut guest = receiver(&INSB, b"xy");
    guest.set(Gpr::RDI, DATA).set(Gpr::RCX, 0);
    guest.resumes(RECEIVE);
    assert_eq!((guest.get(Gpr::RDI), guest.get(Gpr::RCX), guest.vcpu.rip), (DATA + 1, 0, CODE + 1));
    assert_eq!((guest.memory().bytes(DATA), received(&mut guest)), (*b"x\0", b'y'));
}

#[test]
fn ins_fills_memory_in_the_order_of_arrival() {
    let mut guest = receiver(&REP_INSB, b"wxyz");
    guest.set(Gpr::RDI, DATA + 0xffe).set(Gpr::RCX, 3);
    assert_eq!(finish(&mut guest, RECEIVE), 2);
    assert_eq!(guest.memory().bytes(DATA + 0xffe), *b"wxy\0");
    assert_eq!((guest.get(Gpr::RDI), guest.get(Gpr::RCX), received(&mut guest)), (DATA + 0x1001, 0, b'z'));
}

#[test]
fn with_the_direction_flag_elements_go_downwards() {
    let mut guest = Guest::new(&REP_OUTSB);
    guest.memory().put(DATA, b"abc");
    guest.set(Gpr::RSI, DATA + 2).set(Gpr::RCX, 3);
    guest.vcpu.rflags |= DIRECTION_FLAG;
    finish(&mut guest, PRINT);
    assert_eq!(guest.get(Gpr::RSI), DATA - 1);
    assert_eq!(guest.printed(), b"cba");
}

#[test]
fn a_count_of_zero_touches_neither_port_nor_memory() {
    let mut guest = receiver(&REP_INSB, b"x");
    guest.set(Gpr::RDI, HOLE).set(Gpr::RCX, 0);
    guest.resumes(RECEIVE);
    assert_eq!((guest.get(Gpr::RDI), guest.vcpu.rip, guest.vcpu.event), (HOLE, CODE + 2, None));
    assert_eq!(received(&mut guest), b'x');

    let mut guest = Guest::new(&REP_OUTSB);
    guest.set(Gpr::RSI, HOLE).set(Gpr::RCX, 0);
    guest.resumes(PRINT);
    assert_eq!((guest.get(Gpr::RSI), guest.vcpu.rip, guest.printed()), (HOLE, CODE + 2, std::vec![]));
}

#[test]
fn outs_reads_the_segment_of_its_prefix() {
    let mut guest = Guest::new(&[0x64, 0x6e]);
    guest.vcpu.segments[4].base = DATA;
    guest.memory().put(DATA + 5, b"!");
    guest.set(Gpr::RSI, 5);
    finish(&mut guest, PRINT);
    assert_eq!(guest.printed(), b"!");
}

#[test]
fn offsets_wrap_at_64_kib_in_16_bit_code() {
    let mut guest = Guest::real(&REP_OUTSB);
    guest.vcpu.segments[3].base = DATA;
    guest.memory().put(DATA, b"b");
    guest.memory().put(DATA + 0xffff, b"a");
    guest.set(Gpr::RSI, 0x9999_ffff).set(Gpr::RCX, 0x8888_0002);
    finish(&mut guest, PRINT);
    assert_eq!(guest.printed(), b"ab");
    assert_eq!((guest.get(Gpr::RSI), guest.get(Gpr::RCX), guest.vcpu.rip), (0x9999_0001, 0x8888_0000, 2));
}

#[test]
fn a_fault_of_outs_leaves_the_registers_at_the_element_that_faulted() {
    let mut guest = Guest::new(&REP_OUTSB);
    guest.memory().put(DATA + 0xffe, b"hello");
    guest.protect(DATA + 0x1000, 0);
    guest.set(Gpr::RSI, DATA + 0xffe).set(Gpr::RCX, 5);
    guest.resumes(PRINT);
    guest.resumes(PRINT);
    assert_eq!((guest.vcpu.raised(), guest.vcpu.cr2), (Some((14, Some(0))), DATA + 0x1000));
    assert_eq!((guest.get(Gpr::RSI), guest.get(Gpr::RCX), guest.vcpu.rip), (DATA + 0x1000, 3, CODE));
    // The guest brings the page, and the instruction goes on where it was.
    guest.protect(DATA + 0x1000, PRESENT);
    guest.vcpu.event = None;
    finish(&mut guest, PRINT);
    assert_eq!(guest.printed(), b"hello");
}

#[test]
fn a_fault_of_ins_takes_nothing_from_the_port() {
    for (flags, cpl, error_code) in
        [(PRESENT | USER, 0, 0b011), (0, 0, 0b010), (PRESENT | USER, 3, 0b111), (PRESENT | WRITABLE, 3, 0b111)]
    {
        let mut guest = receiver(&REP_INSB, b"xyz");
        guest.vcpu.control.cpl = cpl;
        guest.protect(DATA + 0x1000, flags);
        guest.set(Gpr::RDI, DATA + 0xfff).set(Gpr::RCX, 3);
        guest.resumes(RECEIVE);
        guest.resumes(RECEIVE);
        assert_eq!((guest.vcpu.raised(), guest.vcpu.cr2), (Some((14, Some(error_code))), DATA + 0x1000));
        assert_eq!((guest.get(Gpr::RDI), guest.get(Gpr::RCX), guest.vcpu.rip), (DATA + 0x1000, 2, CODE));
        assert_eq!((guest.memory().bytes(DATA + 0xfff), received(&mut guest)), (*b"x\0", b'y'));
    }
}

#[test]
fn an_element_on_two_pages_faults_whole_at_the_first_byte_that_does() {
    for (rdi, cr2) in [(DATA + 0xffe, DATA + 0x1000), (DATA + 0xfff, DATA + 0x1000), (DATA + 0x1002, DATA + 0x1002)] {
        let mut guest = receiver(&REP_INSD, b"x");
        guest.protect(DATA + 0x1000, PRESENT);
        guest.set(Gpr::RDI, rdi).set(Gpr::RCX, 1);
        let before = guest.memory().snapshot();
        guest.resumes(string(COM1, Size::Dword, true));
        assert_eq!((guest.vcpu.raised(), guest.vcpu.cr2), (Some((14, Some(3))), cr2));
        assert_eq!((guest.get(Gpr::RDI), guest.get(Gpr::RCX)), (rdi, 1));
        assert!(guest.memory().snapshot() == before);
        assert_eq!(received(&mut guest), b'x');
    }
}

#[test]
fn with_smap_the_kernel_reaches_the_users_pages_only_while_ac_is_set() {
    const SMAP: u64 = 1 << 21;
    const AC: u64 = 1 << 18;
    for (ac, raised) in [(0, Some((14, Some(1)))), (AC, None)] {
        let mut guest = Guest::new(&OUTSB);
        guest.vcpu.control.cr4 |= SMAP;
        guest.vcpu.rflags |= ac;
        guest.set(Gpr::RSI, DATA);
        guest.resumes(PRINT);
        assert_eq!(guest.vcpu.raised(), raised);
    }
}

#[test]
fn ins_sets_accessed_and_dirty_bits() {
    const ACCESSED_DIRTY: u64 = 0x60;
    let mut guest = receiver(&INSB, b"x");
    guest.set(Gpr::RDI, DATA);
    guest.resumes(RECEIVE);
    let entry = u64::from_le_bytes(guest.memory().bytes(PT + (DATA >> 12) * 8));
    assert_eq!(entry & ACCESSED_DIRTY, ACCESSED_DIRTY);
}

#[test]
fn an_address_that_is_not_canonical_is_a_general_protection_fault() {
    let mut guest = Guest::new(&REP_OUTSB);
    guest.set(Gpr::RSI, 1 << 63).set(Gpr::RCX, 1);
    guest.resumes(PRINT);
    assert_eq!((guest.vcpu.raised(), guest.vcpu.rip, guest.get(Gpr::RCX)), (Some((13, Some(0))), CODE, 1));
}

#[test]
fn in_the_stack_segment_it_is_a_stack_fault() {
    // REP OUTSB from SS.
    let mut guest = Guest::new(&[0xf3, 0x36, 0x6e]);
    guest.set(Gpr::RSI, 1 << 63).set(Gpr::RCX, 1);
    guest.resumes(PRINT);
    assert_eq!((guest.vcpu.raised(), guest.vcpu.rip), (Some((12, Some(0))), CODE));
}

#[test]
fn an_element_outside_memory_is_ones_or_is_lost() {
    for (code, exit, printed) in [(&REP_OUTSB, PRINT, &[0xff][..]), (&REP_INSB, RECEIVE, &[])] {
        let mut guest = Guest::new(code);
        guest.set(Gpr::RSI, HOLE).set(Gpr::RDI, HOLE).set(Gpr::RCX, 1);
        guest.resumes(exit);
        assert_eq!((guest.get(Gpr::RCX), guest.vcpu.rip), (0, CODE + 2));
        assert_eq!(guest.printed(), printed);
    }
}

#[test]
fn outs_to_the_exit_port_ends_the_vm_at_its_element() {
    let mut guest = Guest::new(&REP_OUTSD);
    guest.memory().put(DATA, &7u32.to_le_bytes());
    guest.set(Gpr::RSI, DATA).set(Gpr::RCX, 3);
    assert_eq!(guest.handle(string(0xf4, Size::Dword, false)), Flow::Stop(Stop::Exited(7)));
    assert_eq!((guest.get(Gpr::RSI), guest.get(Gpr::RCX), guest.vcpu.rip), (DATA + 4, 2, CODE));

    guest.set(Gpr::RSI, DATA).set(Gpr::RCX, 1);
    assert_eq!(guest.handle(string(0xf4, Size::Dword, false)), Flow::Stop(Stop::Exited(7)));
    assert_eq!((guest.get(Gpr::RCX), guest.vcpu.rip), (0, CODE + 2));
}

#[test]
fn an_interrupt_that_outs_causes_comes_behind_the_instruction() {
    let mut guest = Guest::with_devices(&OUTSB, |devices| out(devices, 0x21, 0xef));
    guest.vcpu.rflags |= arch::RFLAGS_IF;
    // COM1's transmitter is empty, and is to interrupt when it is.
    guest.memory().put(DATA, &[2]);
    guest.set(Gpr::RSI, DATA);
    guest.resumes(string(0x3f9, Size::Byte, false));
    assert_eq!((guest.vcpu.rip, guest.vcpu.event), (CODE + 1, Some(Event::Interrupt(UART_VECTOR))));
}

#[test]
fn code_that_is_no_longer_a_string_instruction_is_looked_at_again() {
    for (code, raised) in [(&[0x90, 0x90], None), (&[0x06, 0x06], Some((6, None)))] {
        let mut guest = Guest::new(code);
        guest.set(Gpr::RSI, DATA).set(Gpr::RCX, 1);
        guest.resumes(PRINT);
        assert_eq!((guest.vcpu.rip, guest.vcpu.raised(), guest.get(Gpr::RCX)), (CODE, raised, 1));
        assert_eq!(guest.printed(), b"");
    }
}

#[test]
fn code_that_is_gone_faults() {
    let mut guest = Guest::new(&REP_OUTSB);
    guest.protect(CODE, 0);
    guest.resumes(PRINT);
    assert_eq!((guest.vcpu.raised(), guest.vcpu.cr2), (Some((14, Some(0))), CODE));
}

/// What is checked before an element is moved: what a guest has, and the vector of the exception.
struct Checked {
    /// Attributes and limit of the segment. Its base is [`DATA`].
    segment: (u16, u32),
    offset: u64,
    vector: Option<u8>,
}

const WRITABLE_DATA: u16 = 0xc93;
const READ_ONLY: u16 = 0xc91;
const EXPAND_DOWN: u16 = 0xc97;
const CODE_SEGMENT: u16 = 0xc9b;
const UNUSABLE: u16 = 0;

const fn checked(segment: (u16, u32), offset: u64, vector: Option<u8>) -> Checked {
    Checked { segment, offset, vector }
}

fn protected(mut guest: Guest, register: usize, checked: &Checked) -> Guest {
    let Guest { vcpu, .. } = &mut guest;
    vcpu.control = crate::ControlRegisters { cr0: 1, cr3: 0, cr4: 0, efer: 0, cpl: 0 };
    vcpu.segments[1] = Guest::flat_32(&[]).vcpu.segments[1];
    vcpu.segments[register] = crate::SegmentState { base: DATA, limit: checked.segment.1, ..vcpu.segments[register] };
    vcpu.attributes[register] = checked.segment.0;
    guest
}

#[test]
fn ins_checks_es_before_the_port_is_read() {
    for row in [
        checked((WRITABLE_DATA, 0xfff), 0xffc, None),
        checked((WRITABLE_DATA, 0xfff), 0xffd, Some(13)),
        checked((WRITABLE_DATA, u32::MAX), 0xffff_ffff, Some(13)),
        checked((READ_ONLY, u32::MAX), 0, Some(13)),
        checked((CODE_SEGMENT, u32::MAX), 0, Some(13)),
        checked((UNUSABLE, 0), 0, Some(13)),
        checked((EXPAND_DOWN, 0xfff), 0xfff, Some(13)),
        checked((EXPAND_DOWN, 0xfff), 0x1000, None),
    ] {
        let mut guest = protected(receiver(&REP_INSD, b"x"), 0, &row);
        guest.set(Gpr::RDI, row.offset).set(Gpr::RCX, 1);
        let before = guest.memory().snapshot();
        guest.resumes(string(COM1, Size::Dword, true));
        let raised = row.vector.map(|vector| (vector, Some(0)));
        assert_eq!(guest.vcpu.raised(), raised, "{:x?} {:x}", row.segment, row.offset);
        if raised.is_some() {
            assert_eq!((guest.get(Gpr::RDI), guest.get(Gpr::RCX), guest.vcpu.rip), (row.offset, 1, CODE));
            assert!(guest.memory().snapshot() == before);
            assert_eq!(received(&mut guest), b'x');
        }
    }
}

#[test]
fn outs_checks_its_segment_before_the_port_is_written() {
    for row in [
        checked((READ_ONLY, 0xfff), 0xfff, None),
        checked((READ_ONLY, 0xfff), 0x1000, Some(13)),
        checked((CODE_SEGMENT, 0xfff), 0, None),
        checked((CODE_SEGMENT & !2, 0xfff), 0, Some(13)),
        checked((UNUSABLE, 0), 0, Some(13)),
        checked((EXPAND_DOWN, 0xfff), 0xfff, Some(13)),
        checked((EXPAND_DOWN, 0xfff), 0x1000, None),
    ] {
        // DS, and SS and FS by a prefix.
        for (register, code, stack) in [(3, &[0x6e][..], false), (2, &[0x36, 0x6e], true), (4, &[0x64, 0x6e], false)] {
            let mut guest = protected(Guest::new(code), register, &row);
            guest.set(Gpr::RSI, row.offset);
            guest.resumes(PRINT);
            let raised = row.vector.map(|vector| (if stack { 12 } else { vector }, Some(0)));
            assert_eq!(guest.vcpu.raised(), raised, "{register} {:x?} {:x}", row.segment, row.offset);
            let (rsi, printed) = if raised.is_some() { (row.offset, 0) } else { (row.offset + 1, 1) };
            assert_eq!((guest.get(Gpr::RSI), guest.printed().len()), (rsi, printed));
        }
    }
}

#[test]
fn a_limit_in_the_midst_of_a_string_is_met_there() {
    let mut guest = protected(Guest::new(&REP_OUTSB), 3, &checked((READ_ONLY, 4), 0, None));
    guest.memory().put(DATA, b"hello world");
    guest.set(Gpr::RSI, 0).set(Gpr::RCX, 11);
    guest.resumes(PRINT);
    assert_eq!(guest.vcpu.raised(), Some((13, Some(0))));
    assert_eq!((guest.get(Gpr::RSI), guest.get(Gpr::RCX), guest.vcpu.rip), (5, 6, CODE));
    assert_eq!(guest.printed(), b"hello");
}

#[test]
fn a_string_of_no_elements_has_no_segment() {
    let mut guest = protected(Guest::new(&REP_OUTSB), 3, &checked((UNUSABLE, 0), 0, None));
    guest.set(Gpr::RSI, 0).set(Gpr::RCX, 0);
    guest.resumes(PRINT);
    assert_eq!((guest.vcpu.raised(), guest.vcpu.rip), (None, CODE + 2));
}

#[test]
fn user_mode_may_ask_for_alignment_checks_of_strings() {
    const AM: u64 = 1 << 18;
    const AC: u64 = 1 << 18;
    for (am, ac, cpl, misaligned, raised) in [
        (AM, AC, 3, 2, Some((17, Some(0)))),
        (AM, AC, 3, 0, None),
        (0, AC, 3, 2, None),
        (AM, 0, 3, 2, None),
        (AM, AC, 0, 2, None),
    ] {
        let mut guest = receiver(&REP_INSD, b"x");
        guest.vcpu.control.cr0 |= am;
        guest.vcpu.control.cpl = cpl;
        guest.vcpu.rflags |= ac;
        guest.set(Gpr::RDI, DATA + misaligned).set(Gpr::RCX, 1);
        guest.resumes(string(COM1, Size::Dword, true));
        assert_eq!(guest.vcpu.raised(), raised);
        if raised.is_some() {
            assert_eq!(received(&mut guest), b'x');
        }
    }
}

#[test]
fn code_may_be_written_in_real_mode_but_not_beyond_its_limit() {
    for (offset, raised) in [(0xfffc, None), (0xfffd, Some((13, Some(0))))] {
        let mut guest = Guest::real(&[0x66, 0x6d]);
        guest.vcpu.segments[0] = crate::SegmentState { base: DATA, limit: 0xffff, ..guest.vcpu.segments[0] };
        guest.vcpu.attributes[0] = 0x9b;
        guest.set(Gpr::RDI, offset);
        guest.resumes(string(COM1, Size::Dword, true));
        assert_eq!(guest.vcpu.raised(), raised);
    }
}

#[test]
fn strings_of_64_bit_code_are_at_canonical_addresses() {
    const LAST: u64 = 0x7fff_ffff_ffff;
    for (code, raised) in [(&[0x6f][..], 13), (&[0x64, 0x6f], 13)] {
        let mut guest = Guest::new(code);
        guest.vcpu.attributes = [0; 6];
        guest.set(Gpr::RSI, LAST - 2);
        guest.resumes(string(CONSOLE, Size::Dword, false));
        assert_eq!((guest.vcpu.raised(), guest.printed().len()), (Some((raised, Some(0))), 0));
    }
}
