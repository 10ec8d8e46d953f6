//! Writes to every page of its memory that is free, and then reads them all; under the hypervisor it gives the pages back
//! before it does so again.
//!
//! With several such VMs that have more memory than there is, those end whose page finds no frame.
//!
//! Words: `rounds=N`, how often; `wait=SECONDS`, how long it leaves its memory alone before.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

use abi::options::guest::key;
use guest::boot::Boot;
use guest::exit::GuestStatus;
use guest::hypercall::Microhv;
use guest::ktap::{self, Outcome};
use guest::{cases, check_eq, check_ok, clock, ram, tsc};

guest::main!(main);

fn main(boot: &Boot) -> GuestStatus {
    ktap::run(boot, cases![every_page_keeps_its_number])
}

fn every_page_keeps_its_number(boot: &Boot) -> Outcome {
    let (area, start) = (ram::largest_area(boot), tsc::read());
    let wait = clock::seconds(boot.word(key::WAIT).unwrap_or(0));
    while tsc::read() - start < wait {
        core::hint::spin_loop();
    }
    for round in 1..=boot.word(key::ROUNDS).unwrap_or(1u64) {
        if let Some(hypervisor) = Microhv::here().filter(|_| round > 1) {
            check_ok!(hypervisor.release(area));
        }
        for index in 0..area.frames() {
            area.frame(index).write(index as usize % 512, index ^ !round);
        }
        for index in 0..area.frames() {
            check_eq!(area.frame(index).read(index as usize % 512), index ^ !round, "page {index}");
        }
    }
    Ok(())
}
