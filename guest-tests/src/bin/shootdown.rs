//! One processor has frames taken away and replaced, while the others stay in guest mode and read them.
//!
//! Each page holds one value, of a generation. The first processor has the page's frame replaced (or given back), writes the
//! next generation, and publishes that. A processor that reads a page after that must see this generation or a later one: an older
//! one, or poison, was read from a frame that is no longer the page's.
//!
//! Words: see [`guest::stress`]. A step is one page replaced.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

use abi::memory::POISON;
use core::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release, SeqCst},
};

use guest::boot::Boot;
use guest::exit::GuestStatus;
use guest::hypercall::Refused;
use guest::ktap::{NotPassed, Outcome};
use guest::ram::{self, Frame};
use guest::random::mix;
use guest::smp::{self, Cpu, PerCpu};
use guest::stress::{Stress, Worker};
use guest::{cases, check, clock, skip_unless};

guest::main!(main);

/// Few, so that each reader's translations of them all stay.
const PAGES: usize = 8;
/// Where in the page the value is; the rest of a replaced frame is never looked at.
const WORD: usize = 77;

fn main(boot: &Boot) -> GuestStatus {
    Stress::new(boot, 2).run(cases![replaced_frames_are_not_seen, released_frames_are_not_seen])
}

fn replaced_frames_are_not_seen(stress: &Stress<'_>) -> Outcome {
    let hypervisor = stress.hypervisor()?;
    Pages::new(stress)?.attack(stress, Zeros::Never, |frame| match hypervisor.replace(frame) {
        Err(Refused::Raced) => Ok(()),
        result => result,
    })
}

fn released_frames_are_not_seen(stress: &Stress<'_>) -> Outcome {
    let hypervisor = stress.hypervisor()?;
    Pages::new(stress)?.attack(stress, Zeros::InBetween, |frame| hypervisor.release(frame.into()).map(drop))
}

/// Whether a page may read as 0.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Zeros {
    Never,
    /// Until the next generation is written.
    InBetween,
}

/// A page and its generation: twice its number, less 1 while it is being made.
struct Page {
    frame: Frame,
    phase: AtomicU64,
}

struct Pages {
    seed: u64,
    pages: [Page; PAGES],
    /// How often each reader has read all.
    rounds: PerCpu<AtomicU64>,
}

impl Pages {
    /// In one 2 MiB page where that is how memory comes, some neighbours and some not.
    fn new(stress: &Stress<'_>) -> Result<Self, NotPassed> {
        skip_unless!(smp::count() > 1, "one processor");
        let area = ram::largest_area(stress.boot);
        let pages = core::array::from_fn(|index| {
            let index = index as u64;
            let page = Page { frame: area.frame(16 + index / 2 * 37 + index % 2), phase: AtomicU64::new(0) };
            page.frame.write(WORD, value(stress.seed(), index, 0));
            page
        });
        let rounds = PerCpu::new([const { AtomicU64::new(0) }; Cpu::MOST]);
        Ok(Self { seed: stress.seed(), pages, rounds })
    }

    fn attack(
        &self,
        stress: &Stress<'_>,
        zeros: Zeros,
        take_away: impl Fn(Frame) -> Result<(), Refused> + Sync,
    ) -> Outcome {
        stress.on_all(|worker| {
            if !worker.cpu.is_boot() {
                return self.read(stress, worker.cpu, zeros);
            }
            let outcome = self.change(stress, worker, &take_away);
            stress.stop();
            outcome
        })
    }

    fn change(
        &self,
        stress: &Stress<'_>,
        worker: &mut Worker<'_>,
        take_away: &impl Fn(Frame) -> Result<(), Refused>,
    ) -> Outcome {
        while worker.goes_on() {
            let index = worker.random.below(PAGES as u64);
            let Page { frame, phase } = &self.pages[index as usize];
            if worker.random.one_in(4) {
                self.wait_for_readers(stress);
            }
            let next = phase.load(Relaxed) + 2;
            phase.store(next - 1, SeqCst);
            if let Err(refused) = take_away(*frame) {
                check!(false, "{} is not taken away: {refused}", frame.gpa());
            }
            frame.write(WORD, value(self.seed, index, next / 2));
            phase.store(next, Release);
            worker.did(1);
        }
        Ok(())
    }

    /// Until each has read all pages once more, so that it has translations of them.
    fn wait_for_readers(&self, stress: &Stress<'_>) {
        for reader in smp::cpus().skip(1) {
            let rounds = self.rounds.of(reader);
            // Twice, for one has begun before.
            let enough = rounds.load(Relaxed) + 2;
            clock::wait_for(clock::seconds(1), || stress.is_stopped() || rounds.load(Relaxed) >= enough);
        }
    }

    /// Reads without a pause, with interrupts on: nothing in here makes the processor leave the guest.
    fn read(&self, stress: &Stress<'_>, cpu: Cpu, zeros: Zeros) -> Outcome {
        while !stress.is_stopped() {
            for (page, index) in self.pages.iter().zip(0..) {
                let before = page.phase.load(Acquire);
                let seen = page.frame.read(WORD);
                let after = page.phase.load(SeqCst);
                if seen == 0 && zeros == Zeros::InBetween {
                    check!(
                        before % 2 == 1 || after > before,
                        "0 at {} after generation {}",
                        page.frame.gpa(),
                        before / 2
                    );
                    continue;
                }
                check!(seen != POISON, "poison at {} after generation {}", page.frame.gpa(), before / 2);
                // The next generation is there before it is published.
                let generation = number(seen);
                check!(
                    seen == value(self.seed, index, generation),
                    "{seen:#x} at {} is of no generation",
                    page.frame.gpa()
                );
                check!(
                    (before / 2..=after.div_ceil(2)).contains(&generation),
                    "generation {generation} at {} after {}",
                    page.frame.gpa(),
                    before / 2
                );
            }
            self.rounds.of(cpu).fetch_add(1, Relaxed);
        }
        Ok(())
    }
}

/// The generation in the low half, and in the high half what follows from it, the page and the seed.
fn value(seed: u64, page: u64, generation: u64) -> u64 {
    mix(seed ^ mix(page) ^ generation) << 32 | generation & u64::from(u32::MAX)
}

fn number(value: u64) -> u64 {
    value & u64::from(u32::MAX)
}
