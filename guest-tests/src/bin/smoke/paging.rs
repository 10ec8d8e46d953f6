//! The guest's own page tables at work.

use addr::{Gva, PAGE_SIZE, PageSize};
use arch::page_fault;
use guest::boot::Boot;
use guest::cpuid::cpuid;
use guest::interrupts::{PAGE_FAULT, expect_fault};
use guest::ktap::Outcome;
use guest::msr::{EFER_NXE, Msr};
use guest::paging::{ACCESSED, DIRTY, Rights, leaf, map, map_2m, unmap};
use guest::raw_gva::RawGva;
use guest::{check_eq, processor, ram, skip_unless};

/// Bits of a page fault's error code, as wide as the processor pushes it.
const PRESENT: u64 = page_fault::PRESENT as u64;
const WRITE: u64 = page_fault::WRITE as u64;
const FETCH: u64 = page_fault::FETCH as u64;

const EDX_NX: u32 = 1 << 20;

/// A page of its own for the `n`th test, first in 2 MiB of its own.
fn page(n: u64) -> RawGva {
    RawGva::above_identity(Gva::new(0x80_4000_0000 + n * PageSize::Size2M.bytes()))
}

/// Vector, error code, CR2 and RIP of what `access` leads to; None if it works.
fn fault_of(access: impl FnOnce()) -> Option<(u64, u64, u64, u64)> {
    expect_fault(access).map(|fault| (fault.frame.vector, fault.frame.error, fault.cr2, fault.frame.rip))
}

pub(crate) fn two_addresses_for_one_frame(boot: &Boot) -> Outcome {
    let (frame, one) = (ram::fresh(boot), page(0));
    let other = one.plus(PAGE_SIZE);
    map(one, frame, Rights::WRITABLE);
    map(other, frame, Rights::WRITABLE);
    one.plus(0x123).write(0xa5);
    check_eq!(other.plus(0x123).read(), 0xa5);
    other.plus(0xfff).write(0x5a);
    check_eq!(one.plus(0xfff).read(), 0x5a);
    check_eq!(frame.address(0x123).read(), 0xa5);
    Ok(())
}

pub(crate) fn unmapped_page_faults(boot: &Boot) -> Outcome {
    let at = page(1).plus(0x10);
    map(page(1), ram::fresh(boot), Rights::WRITABLE);
    at.write(1);
    unmap(page(1), PageSize::Size4K);
    check_eq!(fault_of(|| _ = at.read()), Some((PAGE_FAULT, 0, at.raw(), RawGva::read_rip())));
    check_eq!(fault_of(|| at.write(1)), Some((PAGE_FAULT, WRITE, at.raw(), RawGva::write_rip())));
    Ok(())
}

pub(crate) fn read_only_page_faults(boot: &Boot) -> Outcome {
    let at = page(2).plus(0xff8);
    map(page(2), ram::fresh(boot), Rights::READ_ONLY);
    check_eq!(fault_of(|| _ = at.read()), None);
    check_eq!(fault_of(|| at.write(1)), Some((PAGE_FAULT, PRESENT | WRITE, at.raw(), RawGva::write_rip())));
    Ok(())
}

pub(crate) fn write_protect_off(boot: &Boot) -> Outcome {
    let (frame, at) = (ram::fresh(boot), page(3));
    map(at, frame, Rights::READ_ONLY);
    processor::set_write_protect(false);
    let fault = fault_of(|| at.write(0x77));
    processor::set_write_protect(true);
    check_eq!(fault, None);
    check_eq!(frame.address(0).read(), 0x77);
    check_eq!(fault_of(|| at.write(1)), Some((PAGE_FAULT, PRESENT | WRITE, at.raw(), RawGva::write_rip())));
    Ok(())
}

pub(crate) fn no_execute_page_faults(boot: &Boot) -> Outcome {
    skip_unless!(cpuid(0x8000_0001, 0).edx & EDX_NX != 0, "no NX");
    const RET: u8 = 0xc3;
    let (frame, at) = (ram::fresh(boot), page(4));
    frame.address(0).write(RET);
    Msr::Efer.write(Msr::Efer.read() | EFER_NXE);
    map(at, frame, Rights::DATA);
    let fault = fault_of(|| at.call());
    map(at, frame, Rights::WRITABLE);
    processor::invlpg(at.gva());
    let no_fault = fault_of(|| at.call());
    Msr::Efer.write(Msr::Efer.read() & !EFER_NXE);
    check_eq!(fault, Some((PAGE_FAULT, PRESENT | FETCH, at.raw(), at.raw())));
    check_eq!(no_fault, None);
    Ok(())
}

pub(crate) fn invlpg_shows_the_new_frame(boot: &Boot) -> Outcome {
    new_frame_after(boot, page(5), || processor::invlpg(page(5).gva()))
}

pub(crate) fn cr3_load_shows_the_new_frame(boot: &Boot) -> Outcome {
    new_frame_after(boot, page(6), processor::reload_cr3)
}

fn new_frame_after(boot: &Boot, at: RawGva, flush: impl FnOnce()) -> Outcome {
    let (old, new) = (ram::fresh(boot), ram::fresh(boot));
    old.address(0).write(1);
    new.address(0).write(2);
    map(at, old, Rights::WRITABLE);
    check_eq!(at.read(), 1);
    map(at, new, Rights::WRITABLE);
    flush();
    check_eq!(at.read(), 2);
    Ok(())
}

pub(crate) fn accessed_and_dirty_are_set(boot: &Boot) -> Outcome {
    let at = page(7);
    map(at, ram::fresh(boot), Rights::WRITABLE);
    check_eq!(leaf(at) & (ACCESSED | DIRTY), 0);
    at.read();
    check_eq!(leaf(at) & (ACCESSED | DIRTY), ACCESSED);
    at.write(1);
    check_eq!(leaf(at) & (ACCESSED | DIRTY), ACCESSED | DIRTY);
    Ok(())
}

pub(crate) fn large_page(boot: &Boot) -> Outcome {
    let Some(block) = ram::free_block(boot) else {
        return Err(guest::ktap::NotPassed::Skipped("no 2 MiB are free"));
    };
    let at = page(8);
    map_2m(at, block, Rights::WRITABLE);
    for index in [0, 1, 511] {
        at.plus(index * PAGE_SIZE + 8).write(index as u8 ^ 0x99);
        check_eq!(block.frame(index).address(8).read(), index as u8 ^ 0x99);
    }
    unmap(at, PageSize::Size2M);
    let last = at.plus(PageSize::Size2M.bytes() - 1);
    check_eq!(fault_of(|| last.write(1)), Some((PAGE_FAULT, WRITE, last.raw(), RawGva::write_rip())));
    Ok(())
}
