//! A guest that lives beside hostile ones, and checks that it notices nothing of them: its memory keeps what was written, its
//! clock goes on, its timer comes, and each of its lines is whole.
//!
//! Words: `--seconds N`, how long; `--seed N`, for the memory's patterns; `--gap N`, the milliseconds that a tick of the timer may
//! come late, which on an emulator is the machine's below as well.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

use abi::lines::{NumberedLine, NumberedLines};
use abi::options::guest as word;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use guest::apic::Apic;
use guest::boot::Boot;
use guest::exit::GuestStatus;
use guest::interrupts::{self, halt_until_interrupt};
use guest::ktap::{self, Outcome};
use guest::pattern::Pattern;
use guest::{cases, check, clock, println, ram, skip_unless, tsc};

guest::main!(main);

const TIMER: u8 = 0x90;
/// Between two ticks of the timer.
const TICK_MICROSECONDS: u64 = 20_000;
/// How late one may be, unless the command line says so.
const USUAL_GAP_MILLISECONDS: u64 = 5_000;
/// Pages that are looked at each time.
const PAGES_PER_TICK: u64 = 16;
/// Pages with a pattern at a time.
const PAGES: u64 = 512;
/// Ticks between two lines.
const TICKS_PER_LINE: u64 = 5;

static TICKS: AtomicU64 = AtomicU64::new(0);

fn main(boot: &Boot) -> GuestStatus {
    interrupts::handle(TIMER, |_| {
        TICKS.fetch_add(1, Relaxed);
        Apic::here().end_of_interrupt();
    });
    Apic::start();
    ktap::run(boot, cases![notices_nothing])
}

fn notices_nothing(boot: &Boot) -> Outcome {
    skip_unless!(Apic::has_tsc_deadline(), "the timer has no deadlines");
    let (tick, end) = (clock::microseconds(TICK_MICROSECONDS), clock::seconds(boot.option(word::SECONDS).unwrap_or(3)));
    let gap = clock::microseconds(1_000 * boot.option("--gap").unwrap_or(USUAL_GAP_MILLISECONDS));
    let memory = Pattern::new(boot.option(word::SEED).unwrap_or(1), ram::largest_area(boot).part(0, PAGES));
    (0..PAGES).for_each(|page| {
        memory.write(page);
    });
    let started = tsc::read();
    let (mut now, mut longest, mut lines) = (started, 0, 0);
    for turn in 0.. {
        let ticks = TICKS.load(Relaxed);
        Apic::here().start_deadline(TIMER, now + tick);
        while TICKS.load(Relaxed) == ticks {
            halt_until_interrupt();
        }
        let woken = tsc::read();
        check!(woken >= now + tick, "the timer comes {} ticks early", (now + tick).saturating_sub(woken));
        check!(woken - now <= tick + gap, "{} ms without a turn", (woken - now) / clock::microseconds(1_000));
        longest = longest.max(woken - now);
        now = woken;
        for page in 0..PAGES_PER_TICK {
            memory.verify((turn * PAGES_PER_TICK + page) % PAGES, true)?;
        }
        if turn % TICKS_PER_LINE == 0 {
            lines += 1;
            println!("{}", NumberedLine { number: lines, text: LINE });
        }
        if now - started >= end {
            break;
        }
    }
    let longest_gap_us = longest * 1_000_000 / clock::ticks_per_second();
    println!("{}", NumberedLines { count: lines, longest_gap_us });
    Ok(())
}

/// As long as a line that is likely to be cut.
const LINE: &str = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789 the end";
