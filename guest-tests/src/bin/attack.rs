//! Does one thing that costs its hypervisor dear, again and again, without an end: the hypervisor has to end it at its limit, and
//! what runs beside it has to get its time.
//!
//! Words: `kind=` and one of [`KINDS`] or of [`attack::KINDS`], and the words of that.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

use guest::attack::{self, Kind};
use guest::boot::Boot;
use guest::exit::GuestStatus;
use guest::interrupts::{self, handle};
use guest::port::{self, Direction};
use guest::processor::{self, Cr4};
use guest::{cpuid, ram, smp};

guest::main!(main);

/// The attacks that only 64-bit guests have, or whose code differs with the mode.
const KINDS: [Kind; 3] =
    [("string-io", string_io), ("control-registers", control_registers), ("single-step", single_step)];

/// A port without a device.
const NO_DEVICE: u16 = 0x80;

fn main(boot: &Boot) -> GuestStatus {
    smp::start_all(boot);
    attack::run(boot, &KINDS)
}

/// REP OUTSB, each of 4096 bytes.
fn string_io(boot: &Boot) {
    let page = ram::fresh(boot).address(0);
    interrupts::enable();
    loop {
        port::rep_outsb(NO_DEVICE, page, 4096, Direction::Up);
    }
}

/// Bits of CR0 and CR4 that hypervisors look at, off and on.
fn control_registers(_: &Boot) {
    interrupts::enable();
    for on in [true, false].into_iter().cycle() {
        processor::set_write_protect(on);
        processor::set_caching(on);
        processor::set_cr4(Cr4::Pge, on);
    }
}

/// RFLAGS.TF over instructions that exit.
fn single_step(_: &Boot) {
    handle(x86::irq::DEBUG_VECTOR, |_| {});
    interrupts::enable();
    processor::single_step();
    loop {
        cpuid::vendor();
        port::write8(NO_DEVICE, 0);
    }
}
