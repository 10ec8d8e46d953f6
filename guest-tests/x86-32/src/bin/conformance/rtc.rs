//! The clock (Motorola MC146818A): its updates, its interrupts, and setting it.

use abi::ports::RTC;
use guest32::boot::Boot;
use guest32::clock::{microseconds, seconds, wait, wait_for};
use guest32::ktap::Outcome;
use guest32::{check, check_eq, pic, port};

const SECONDS: u8 = 0;
const MINUTES: u8 = 2;
const HOURS: u8 = 4;
const STATUS_A: u8 = 10;
const STATUS_B: u8 = 11;
const STATUS_C: u8 = 12;
const UPDATE_IN_PROGRESS: u8 = 1 << 7;
const SET: u8 = 1 << 7;
const PERIODIC: u8 = 1 << 6;
const UPDATED: u8 = 1 << 4;
const INTERRUPT_REQUEST: u8 = 1 << 7;
/// The second 8259's line of the clock, which shows on the first one's line of the second.
const LINE: u8 = 8;
const CASCADE: u8 = 2;

fn read(register: u8) -> u8 {
    port::write8(RTC, register);
    port::read8(RTC + 1)
}

fn write(register: u8, value: u8) {
    port::write8(RTC, register);
    port::write8(RTC + 1, value);
}

/// An update takes two milliseconds. A machine with other work may keep the guest from running for longer, so that it misses one, or
/// its begin.
pub(crate) fn an_update_is_announced_and_told(_: &Boot) -> Outcome {
    let updates = || read(STATUS_A) & UPDATE_IN_PROGRESS != 0;
    let mut is_told = false;
    for _ in 0..5 {
        check!(wait_for(seconds(20), updates), "no update is in progress in 20 seconds");
        let before = read(SECONDS);
        read(STATUS_C);
        check!(wait_for(seconds(1), || !updates()), "the update does not end");
        is_told = read(STATUS_C) & UPDATED != 0 && read(SECONDS) != before;
        if is_told {
            break;
        }
    }
    check!(is_told, "no update of five is told by its flag and by the second");
    Ok(())
}

pub(crate) fn a_period_interrupts_until_the_flags_are_read(_: &Boot) -> Outcome {
    pic::init();
    let requested = || pic::requested() >> CASCADE & 1 != 0;
    let b = read(STATUS_B);
    read(STATUS_C);
    pic::unmask_only_second(LINE);
    let early = requested();
    write(STATUS_B, b | PERIODIC);
    let interrupts = wait_for(seconds(1), requested);
    write(STATUS_B, b & !PERIODIC);
    let flags = read(STATUS_C);
    pic::init();
    check_eq!((early, interrupts), (false, true));
    check_eq!(flags & PERIODIC, PERIODIC);
    check_eq!(read(STATUS_C) & INTERRUPT_REQUEST, 0);
    Ok(())
}

pub(crate) fn the_clock_is_held_while_it_is_set(_: &Boot) -> Outcome {
    let b = read(STATUS_B);
    let time = || [HOURS, MINUTES, SECONDS].map(read);
    write(STATUS_B, b | SET);
    for (register, value) in [(HOURS, 0x12), (MINUTES, 0x34), (SECONDS, 0x10)] {
        write(register, value);
    }
    wait(microseconds(1_100_000));
    let held = time();
    write(STATUS_B, b & !SET);
    let goes_on = wait_for(seconds(2), || read(SECONDS) != 0x10);
    check_eq!(held, [0x12, 0x34, 0x10]);
    check!(goes_on, "it stands still");
    check_eq!(time(), [0x12, 0x34, 0x11]);
    Ok(())
}
