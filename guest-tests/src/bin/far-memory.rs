//! Memory from 4 GiB on: what a PC of more than 3 GiB has besides.
//!
//! Word: `mem=MIB`, all of the memory.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

use abi::mmio::PCI_WINDOW;
use abi::options::guest::key;
use addr::{Gpa, Gva, PAGE_SIZE};
use guest::boot::{Boot, Region};
use guest::exit::GuestStatus;
use guest::ktap::{self, Outcome};
use guest::paging::{Rights, map};
use guest::ram::{self, Frame};
use guest::raw_gva::RawGva;
use guest::{cases, check, check_eq};

guest::main!(main);

const MIB: u64 = 1 << 20;
const ABOVE_4G: u64 = 4 << 30;
const HOLE: u64 = PCI_WINDOW.start as u64;
/// Where frames are mapped that the one-to-one map does not have.
const WINDOW: Gva = Gva::new(1 << 40);

fn main(boot: &Boot) -> GuestStatus {
    ktap::run(boot, cases![map_has_the_hole, hole_has_no_memory, each_end_keeps_its_own, nothing_is_behind_the_end])
}

/// Where the memory ends that is from 4 GiB on.
fn end(boot: &Boot) -> u64 {
    ABOVE_4G + boot.word(key::MEM).unwrap_or(0) * MIB - HOLE
}

/// Firmware may keep some at the end of what is below the hole.
fn map_has_the_hole(boot: &Boot) -> Outcome {
    const FIRMWARE: u64 = MIB;
    let ends = |limit: u64| {
        let below = boot.memory_map().filter(Region::is_available).map(|region| region.end().raw());
        below.filter(|end| *end <= limit).max().unwrap_or(0)
    };
    check!((HOLE - FIRMWARE..=HOLE).contains(&ends(ABOVE_4G)), "{:#x}", ends(ABOVE_4G));
    check_eq!(ends(u64::MAX), end(boot));
    let first = ram::above_identity(boot).next();
    check_eq!(first.map(Frame::gpa), Some(Gpa::new(ABOVE_4G)));
    Ok(())
}

/// It takes no writes. (It reads as ones, but on QEMU alone.)
fn hole_has_no_memory(boot: &Boot) -> Outcome {
    let place = ram::absent(boot, Gpa::new(HOLE)).address(0);
    place.write(0x5a);
    check!(place.read() != 0x5a);
    Ok(())
}

fn each_end_keeps_its_own(boot: &Boot) -> Outcome {
    let below = ram::free(boot).max_by_key(|frame| frame.gpa().raw());
    let above = [ram::above_identity(boot).next(), ram::above_identity(boot).last()];
    let frames = [ram::free(boot).next(), below, above[0], above[1]];
    let place = |index: u64| RawGva::above_identity(WINDOW).plus(index * PAGE_SIZE);
    for (index, frame) in (0..).zip(frames) {
        check!(frame.is_some(), "number {index}");
        frame.into_iter().for_each(|frame| map(place(index), frame, Rights::WRITABLE));
        place(index).write(0xa0 | index as u8);
    }
    for index in 0..frames.len() as u64 {
        check_eq!(place(index).read(), 0xa0 | index as u8, "number {index}");
    }
    // The same frame, by the one-to-one map.
    check_eq!(below.map(|frame| frame.address(0).read()), Some(0xa1));
    Ok(())
}

fn nothing_is_behind_the_end(boot: &Boot) -> Outcome {
    let place = RawGva::above_identity(WINDOW).plus(16 * PAGE_SIZE);
    map(place, ram::absent(boot, Gpa::new(end(boot))), Rights::WRITABLE);
    place.write(0x5a);
    check!(place.read() != 0x5a);
    Ok(())
}
