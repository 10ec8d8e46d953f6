//! Reads what is typed on COM1 and compares each byte with what has to come, polling and by interrupts.
//!
//! What is typed is [`abi::typed`]'s, and it comes without a pause: the UART holds 16 bytes of it, and the line the rest.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use abi::typed::{self, BYTES};
use guest::boot::Boot;
use guest::exit::GuestStatus;
use guest::hypercall::Microhv;
use guest::interrupts::{self, halt_until_interrupt};
use guest::ktap::{self, Outcome};
use guest::{cases, check, check_eq, clock, pic, skip_unless, tsc, uart};

guest::main!(main);

/// How long a byte may take: an emulator's processor may be kept waiting by the machine it runs on.
const PATIENCE_SECONDS: u64 = 10;

/// How many bytes were read, how many of them were not what had to come, and how many others were lost.
static READ: AtomicUsize = AtomicUsize::new(0);
static WRONG: AtomicU64 = AtomicU64::new(0);
static OVERRUNS: AtomicU64 = AtomicU64::new(0);

fn main(boot: &Boot) -> GuestStatus {
    ktap::run(
        boot,
        cases![
            polled_bytes_are_what_was_typed,
            what_is_not_read_waits,
            without_rts_nothing_comes,
            bytes_interrupt_a_sleeper
        ],
    )
}

fn polled_bytes_are_what_was_typed(_: &Boot) -> Outcome {
    poll(BYTES / 4)
}

/// Many times what the UART holds comes meanwhile, if nothing holds it back.
fn what_is_not_read_waits(_: &Boot) -> Outcome {
    wait(clock::seconds(1) / 20);
    poll(BYTES / 2)
}

fn without_rts_nothing_comes(_: &Boot) -> Outcome {
    skip_unless!(Microhv::here().is_some(), "QEMU sends whether RTS is on or not");
    uart::set_rts(false);
    while take() {}
    wait(clock::seconds(1) / 20);
    let held = !take();
    uart::set_rts(true);
    check!(held, "a byte came after RTS was off");
    poll(BYTES * 3 / 4)
}

fn bytes_interrupt_a_sleeper(_: &Boot) -> Outcome {
    interrupts::handle(pic::VECTOR_BASE + uart::IRQ, |_| {
        while uart::interrupt_source() & uart::RECEIVED_MASK == uart::RECEIVED {
            while take() {}
        }
        pic::end_of_interrupt(uart::IRQ);
    });
    pic::unmask_only(uart::IRQ);
    uart::set_data_interrupt(true);
    while READ.load(Relaxed) < BYTES {
        halt_until_interrupt();
    }
    uart::set_data_interrupt(false);
    pic::mask_all();
    judge()
}

/// Reads until so many bytes were read in all.
fn poll(until: usize) -> Outcome {
    let (mut last, patience) = (tsc::read(), clock::seconds(PATIENCE_SECONDS));
    while READ.load(Relaxed) < until {
        if take() {
            last = tsc::read();
        }
        check!(tsc::read() - last < patience, "no byte came after the first {}", READ.load(Relaxed));
    }
    judge()
}

fn judge() -> Outcome {
    check_eq!(WRONG.load(Relaxed), 0, "of {} bytes", READ.load(Relaxed));
    check_eq!(OVERRUNS.load(Relaxed), 0);
    Ok(())
}

/// Reads a byte and compares it. False if there is none.
fn take() -> bool {
    let status = uart::line_status();
    OVERRUNS.fetch_add((status & uart::LSR_OVERRUN != 0).into(), Relaxed);
    let ready = status & uart::LSR_DATA_READY != 0;
    if ready {
        let wrong = uart::read_data() != typed::byte(READ.fetch_add(1, Relaxed));
        WRONG.fetch_add(wrong.into(), Relaxed);
    }
    ready
}

fn wait(ticks: u64) {
    let start = tsc::read();
    while tsc::read() - start < ticks {
        core::hint::spin_loop();
    }
}
