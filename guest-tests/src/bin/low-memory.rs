//! All memory is below 1 MiB. The image is linked to be there as well.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

use addr::Gpa;
use guest::boot::{self, Boot, Region};
use guest::exit::GuestStatus;
use guest::ktap::{self, Outcome};
use guest::{cases, check, check_eq, ram};

guest::main!(main);

const CONVENTIONAL: u64 = 640 << 10;
const MIB: u64 = 1 << 20;

fn main(boot: &Boot) -> GuestStatus {
    ktap::run(boot, cases![map_ends_below_640_kib, every_page_keeps_its_number, nothing_is_at_1_mib])
}

fn map_ends_below_640_kib(boot: &Boot) -> Outcome {
    let end = boot.memory_map().filter(Region::is_available).map(|region| region.end().raw()).max();
    check!(end.is_some_and(|end| boot::image().end <= end && end <= CONVENTIONAL), "{end:x?}");
    check_eq!(boot.mem_upper(), Some(0));
    Ok(())
}

fn every_page_keeps_its_number(boot: &Boot) -> Outcome {
    check!(ram::free(boot).next().is_some());
    ram::free(boot).for_each(|frame| frame.write(7, frame.gpa().raw()));
    for frame in ram::free(boot) {
        check_eq!(frame.read(7), frame.gpa().raw());
    }
    Ok(())
}

/// It reads as ones and takes no writes.
fn nothing_is_at_1_mib(boot: &Boot) -> Outcome {
    let place = ram::absent(boot, Gpa::new(MIB)).address(0);
    place.write(0x5a);
    check_eq!(place.read(), 0xff);
    Ok(())
}
