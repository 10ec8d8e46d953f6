//! A guest that resets its machine, by one way after the other, and looks each time whether it begins as at first.
//!
//! It counts in CMOS memory, which a battery keeps.

use abi::ports::COM1;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::boot::Boot;
use crate::exit::GuestStatus;
use crate::hypercall::Microhv;
use crate::ktap::{self, Case, Outcome};
use crate::ram::{self, Area};
use crate::{cases, check, check_eq, clock, console, port, println};

/// A byte of CMOS memory that neither IBM nor SeaBIOS has a use for.
const COUNT: u8 = 0x50;
const CMOS: u16 = 0x70;
const RESET_CONTROL: u16 = 0xcf9;
const KEYBOARD: u16 = 0x64;
const SYSTEM_CONTROL: u16 = 0x92;
const UART_SCRATCH: u16 = COM1 + 7;

/// In the image, and among the zeroes behind it.
static FROM_IMAGE: AtomicU32 = AtomicU32::new(IMAGE);
static ZERO: AtomicU32 = AtomicU32::new(0);
const IMAGE: u32 = 0x5eed;

/// What depends on the guest's mode.
pub struct Mode {
    /// Faults without an IDT.
    pub triple_fault: fn(),
    /// Changes registers that [`check`](Self::check) looks at, and gives other processors something to do.
    pub spoil: fn(&Boot),
    /// Fails where a processor is not as after a reset.
    pub check: fn() -> Outcome,
}

/// Resets the machine by each way, and reports on the last beginning.
pub fn run(boot: &Boot, mode: &Mode) -> GuestStatus {
    let ways: [(_, fn()); 4] = [
        ("the reset control register", by_reset_control),
        ("the keyboard controller", || port::write8(KEYBOARD, 0xfe)),
        ("port 0x92", || port::write8(SYSTEM_CONTROL, 3)),
        ("a triple fault", mode.triple_fault),
    ];
    let begins: &[Case<(&Boot, &Mode)>] = cases![the_machine_begins_as_at_first];
    let Some((name, way)) = ways.get(usize::from(count())) else {
        return ktap::run(&(boot, mode), begins);
    };
    if the_machine_begins_as_at_first(&(boot, mode)).is_err() {
        return GuestStatus::Failed;
    }
    spoil(boot);
    (mode.spoil)(boot);
    println!("# reset by {name}");
    console::drain();
    way();
    // A reset may take a moment.
    clock::wait(clock::seconds(1));
    println!("Bail out! the machine is not reset by {name}");
    GuestStatus::Failed
}

/// Resets the machine by its reset control register, which takes a moment on some.
pub(crate) fn by_reset_control() {
    port::write8(RESET_CONTROL, 6);
}

/// How often this was called since the machine was switched on.
fn count() -> u8 {
    port::write8(CMOS, COUNT);
    let before = port::read8(CMOS + 1);
    port::write8(CMOS + 1, before + 1);
    before
}

/// Free frames: the first and last of many, and some between.
fn frames(boot: &Boot) -> impl Iterator<Item = ram::Frame> {
    let area: Area = ram::largest_area(boot);
    let last = area.frames() - 1;
    [0, 1, last / 3, last / 2, last].into_iter().map(move |index| area.frame(index))
}

fn spoil(boot: &Boot) {
    FROM_IMAGE.store(1, Relaxed);
    ZERO.store(1, Relaxed);
    frames(boot).for_each(|frame| frame.write(7, !0));
    port::write8(UART_SCRATCH, 0x5a);
}

fn the_machine_begins_as_at_first(&(boot, mode): &(&Boot, &Mode)) -> Outcome {
    check_eq!(FROM_IMAGE.load(Relaxed), IMAGE);
    check_eq!(ZERO.load(Relaxed), 0);
    // QEMU resets neither memory nor, but for its interrupts, the UART.
    if Microhv::here().is_some() {
        for frame in frames(boot) {
            check!((0..ram::Frame::WORDS).all(|word| frame.read(word) == 0), "{frame:?} is not zero");
        }
        check_eq!(port::read8(UART_SCRATCH), 0);
    }
    (mode.check)()
}
