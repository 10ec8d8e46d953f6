//! More writable pages than a small shadow knows of, walked round again and again: each page holds what was written there last.
//!
//! `pages=N`: so many, each a frame of its own; 2,000 if nothing is said. `rounds=N`: how often they are walked round; twice if
//! nothing is said.
#![no_std]
#![no_main]

use abi::options::guest::key;

use guest32::boot::Boot;
use guest32::exit::GuestStatus;
use guest32::ktap::{self, Outcome};
use guest32::memory::{self, Pages};
use guest32::paging::{self, Mode, PRESENT, Space, WRITABLE};
use guest32::{cases, check_eq};

guest32::main!(main);

/// Where the pages are in linear memory, and in physical memory: above all that other guests use.
const AT: u32 = 1 << 30;
const FRAMES: u32 = 64 << 20;

struct Bench {
    pages: u32,
    rounds: u32,
}

fn main(boot: &Boot) -> GuestStatus {
    let word = |key, usual| boot.word(key).unwrap_or(usual) as u32;
    let bench = Bench { pages: word(key::PAGES, 2_000), rounds: word(key::ROUNDS, 2) };
    ktap::run(&bench, cases![two_level, pae])
}

fn two_level(bench: &Bench) -> Outcome {
    walk_round(bench, Mode::TwoLevel)
}

fn pae(bench: &Bench) -> Outcome {
    walk_round(bench, Mode::Pae)
}

fn walk_round(bench: &Bench, mode: Mode) -> Outcome {
    let pages = &mut Pages::from(memory::START);
    let space = Space::new(mode, pages);
    for offset in offsets(bench) {
        space.pte(AT + offset, pages).set(u64::from(FRAMES + offset) | PRESENT | WRITABLE);
    }
    space.enter();
    let outcome = (0..bench.rounds).try_for_each(|round| {
        for offset in offsets(bench) {
            if round > 0 {
                check_eq!(memory::peek(AT + offset), offset | (round - 1), "at {offset:#x} in round {round}");
            }
            memory::store(AT + offset, offset | round);
        }
        Ok(())
    });
    paging::leave();
    outcome
}

/// Of the pages, one behind the other.
fn offsets(bench: &Bench) -> impl Iterator<Item = u32> + use<> {
    (0..bench.pages).map(|page| page << 12)
}
