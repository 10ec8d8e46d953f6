//! The string forms of port I/O.

use addr::{Gva, PAGE_SIZE, PageSize};
use guest::boot::Boot;
use guest::interrupts::{PAGE_FAULT, expect_fault};
use guest::ktap::Outcome;
use guest::paging::{Rights, map, unmap};
use guest::port::{
    Direction, StringEnd, addr32_rep_insb, addr32_rep_outsb, read8, rep_insb, rep_insd, rep_insw, rep_outsb, rep_outsd,
    rep_outsw, write8,
};
use guest::ram::{self, Frame};
use guest::raw_gva::RawGva;
use guest::{check_eq, uart};

use super::ports::UNCLAIMED;

/// What each of these tests reads from the UART's scratch register.
const SCRATCH: u8 = 0xc3;
/// The port that takes POST codes, and drops them.
const POST: u16 = 0x80;
const END_OF_PAGE: u64 = PAGE_SIZE - 4;

/// Two pages, one behind the other, of two frames that need not be; first in 2 MiB of their own.
fn two_pages(boot: &Boot, n: u64) -> (RawGva, [Frame; 2]) {
    let at = RawGva::above_identity(Gva::new(0x80_8000_0000 + n * PageSize::Size2M.bytes()));
    let frames = [ram::fresh(boot), ram::fresh(boot)];
    map(at, frames[0], Rights::WRITABLE);
    map(at.plus(PAGE_SIZE), frames[1], Rights::WRITABLE);
    (at, frames)
}

/// `N` bytes from `at` on.
fn bytes<const N: usize>(at: RawGva) -> [u8; N] {
    core::array::from_fn(|index| at.plus(index as u64).read())
}

fn end(count: u64, next: u64) -> StringEnd {
    StringEnd { count, next }
}

/// A diagnostic line of the report, in one instruction.
pub(crate) fn outs_to_the_console(boot: &Boot) -> Outcome {
    const LINE: &[u8] = b"# rep outsb\n";
    const { assert!(LINE.len() <= uart::FIFO) };
    let frame = ram::fresh(boot);
    frame.write_bytes(0, LINE);
    uart::drain();
    let line = frame.address(0);
    let length = LINE.len() as u64;
    check_eq!(rep_outsb(uart::data_port(), line, length, Direction::Up), end(0, line.raw() + length));
    Ok(())
}

pub(crate) fn ins_of_all_widths(boot: &Boot) -> Outcome {
    let at = ram::fresh(boot).address(0);
    write8(uart::SCRATCH, SCRATCH);
    check_eq!(rep_insb(uart::SCRATCH, at, 3, Direction::Up), end(0, at.raw() + 3));
    check_eq!(bytes(at), [SCRATCH, SCRATCH, SCRATCH, 0]);

    let modem = read8(uart::MODEM_STATUS);
    check_eq!(rep_insw(uart::MODEM_STATUS, at, 2, Direction::Up), end(0, at.raw() + 4));
    check_eq!(bytes(at), [modem, SCRATCH, modem, SCRATCH, 0]);

    check_eq!(rep_insd(UNCLAIMED, at, 2, Direction::Up), end(0, at.raw() + 8));
    check_eq!(bytes(at), [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0]);
    Ok(())
}

/// Whole elements on both sides of the boundary, then elements with the boundary in them.
pub(crate) fn ins_across_pages(boot: &Boot) -> Outcome {
    let (at, [first, second]) = two_pages(boot, 0);
    write8(uart::SCRATCH, SCRATCH);
    let start = at.plus(END_OF_PAGE);
    check_eq!(rep_insb(uart::SCRATCH, start, 6, Direction::Up), end(0, start.raw() + 6));
    check_eq!(bytes(first.address(END_OF_PAGE - 1)), [0, SCRATCH, SCRATCH, SCRATCH, SCRATCH]);
    check_eq!(bytes(second.address(0)), [SCRATCH, SCRATCH, 0]);

    let start = at.plus(PAGE_SIZE - 1);
    let modem = read8(uart::MODEM_STATUS);
    write8(uart::SCRATCH, !SCRATCH);
    check_eq!(rep_insw(uart::MODEM_STATUS, start, 1, Direction::Up), end(0, start.raw() + 2));
    check_eq!((bytes(first.address(PAGE_SIZE - 1)), bytes(second.address(0))), ([modem], [!SCRATCH, SCRATCH, 0]));

    let start = at.plus(PAGE_SIZE - 3);
    check_eq!(rep_insd(UNCLAIMED, start, 2, Direction::Up), end(0, start.raw() + 8));
    check_eq!(bytes(first.address(END_OF_PAGE)), [SCRATCH, 0xff, 0xff, 0xff]);
    check_eq!(bytes(second.address(0)), [0xff, 0xff, 0xff, 0xff, 0xff, 0]);
    Ok(())
}

pub(crate) fn ins_downwards(boot: &Boot) -> Outcome {
    let (at, [first, second]) = two_pages(boot, 1);
    write8(uart::SCRATCH, SCRATCH);
    let start = at.plus(PAGE_SIZE + 1);
    check_eq!(rep_insb(uart::SCRATCH, start, 4, Direction::Down), end(0, start.raw() - 4));
    check_eq!(bytes(first.address(END_OF_PAGE)), [0, 0, SCRATCH, SCRATCH]);
    check_eq!(bytes(second.address(0)), [SCRATCH, SCRATCH, 0]);

    let start = first.address(16);
    check_eq!(rep_insd(UNCLAIMED, start, 2, Direction::Down), end(0, start.raw() - 8));
    check_eq!(bytes(first.address(8)), [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0]);
    Ok(())
}

/// Nothing happens: no access to port or memory, not even to a page that is not there.
pub(crate) fn count_of_zero(boot: &Boot) -> Outcome {
    let (at, _) = two_pages(boot, 2);
    let unmapped = at.plus(2 * PAGE_SIZE);
    write8(uart::SCRATCH, SCRATCH);
    for run in [rep_insb, rep_insw, rep_insd, rep_outsb, rep_outsw, rep_outsd] {
        for direction in [Direction::Up, Direction::Down] {
            check_eq!(run(uart::SCRATCH, unmapped, 0, direction), end(0, unmapped.raw()));
        }
    }
    check_eq!(read8(uart::SCRATCH), SCRATCH);
    Ok(())
}

/// ECX counts, ESI and EDI point, and the high halves are 0 afterwards.
pub(crate) fn with_32_bit_addresses(boot: &Boot) -> Outcome {
    let at = ram::fresh(boot).address(0x20);
    write8(uart::SCRATCH, SCRATCH);
    check_eq!(addr32_rep_insb(uart::SCRATCH, at, 3, Direction::Up), end(0, at.raw() + 3));
    check_eq!(bytes(at), [SCRATCH, SCRATCH, SCRATCH, 0]);

    at.plus(2).write(!SCRATCH);
    check_eq!(addr32_rep_outsb(uart::SCRATCH, at, 3, Direction::Up), end(0, at.raw() + 3));
    check_eq!(read8(uart::SCRATCH), !SCRATCH);
    Ok(())
}

/// The fault tells how far it came, so that the instruction can go on from there.
pub(crate) fn outs_faults_where_the_page_ends(boot: &Boot) -> Outcome {
    let (at, _) = two_pages(boot, 3);
    let hole = at.plus(PAGE_SIZE);
    unmap(hole, PageSize::Size4K);
    let fault = expect_fault(|| _ = rep_outsb(POST, at.plus(END_OF_PAGE), 7, Direction::Up));
    check_eq!(
        fault.map(|fault| (fault.frame.vector, fault.frame.error, fault.cr2, fault.frame.rcx, fault.frame.rsi)),
        Some((PAGE_FAULT, 0, hole.raw(), 3, hole.raw()))
    );
    Ok(())
}

pub(crate) fn ins_faults_where_the_page_ends(boot: &Boot) -> Outcome {
    const WRITE: u64 = 1 << 1;
    let (at, [first, _]) = two_pages(boot, 4);
    let hole = at.plus(PAGE_SIZE);
    unmap(hole, PageSize::Size4K);
    write8(uart::SCRATCH, SCRATCH);
    let fault = expect_fault(|| _ = rep_insb(uart::SCRATCH, at.plus(END_OF_PAGE), 7, Direction::Up));
    check_eq!(
        fault.map(|fault| (fault.frame.vector, fault.frame.error, fault.cr2, fault.frame.rcx, fault.frame.rdi)),
        Some((PAGE_FAULT, WRITE, hole.raw(), 3, hole.raw()))
    );
    check_eq!(bytes(first.address(END_OF_PAGE)), [SCRATCH; 4]);
    Ok(())
}
