//! How much of a processor's time a guest gets, and how long it waits for it at most: it reads the TSC without a pause, and what
//! passes between two readings beyond what the reading takes has gone to others.
//!
//! Words: `ms=N`, for how long (1000); `min_share=PERCENT` and `max_gap_us=N`, what the figures are held to, if they are;
//! `release_mib=N`, to give so much memory back and touch it again meanwhile, which the longest gap holds for as well.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

use abi::lines;
use abi::options::guest::key;
use guest::boot::Boot;
use guest::exit::GuestStatus;
use guest::hypercall::Microhv;
use guest::ktap::{self, Outcome};
use guest::ram::{self, Area};
use guest::{cases, check, clock, interrupts, println, skip_unless, tsc};

guest::main!(main);

/// Readings of which the closest two tell what one takes.
const TRIALS: usize = 10_000;
/// As many times that is a gap.
const GAP: u64 = 8;

/// What was measured, and what it is held to.
struct Fairness {
    permille: u64,
    longest_gap_us: u64,
    min_share: Option<u64>,
    max_gap_us: Option<u64>,
}

fn main(boot: &Boot) -> GuestStatus {
    let milliseconds: u64 = boot.word(key::MILLISECONDS).unwrap_or(1000);
    let millisecond = clock::microseconds(1000);
    // A hypervisor's own interrupts then get through on any host.
    interrupts::enable();
    let reading = (0..TRIALS).map(|_| tsc::read().abs_diff(tsc::read())).min().unwrap_or_default();
    // What runs beside it gets going meanwhile.
    clock::wait(milliseconds / 4 * millisecond);
    let between = Releases::wanted(boot);
    let gaps = Gaps::watch(milliseconds * millisecond, GAP * reading, || between.iter().for_each(Releases::again));
    let fairness = Fairness {
        permille: 1000 - 1000 * gaps.sum / gaps.time,
        longest_gap_us: 1000 * gaps.longest / millisecond,
        min_share: boot.word(key::MIN_SHARE),
        max_gap_us: boot.word(key::MAX_GAP_US),
    };
    let Fairness { permille, longest_gap_us, .. } = fairness;
    println!("{}", lines::Fairness { share_permille: permille, longest_gap_us });
    println!("# {} gaps, of more than {} ticks each, in {} ticks", gaps.count, GAP * reading, gaps.time);
    ktap::run(&fairness, cases![share, longest_gap])
}

fn share(fairness: &Fairness) -> Outcome {
    skip_unless!(fairness.min_share.is_some(), "it is held to none");
    let permille = 10 * fairness.min_share.unwrap_or_default();
    check!(fairness.permille >= permille, "{} of 1000, expected {permille}", fairness.permille);
    Ok(())
}

fn longest_gap(fairness: &Fairness) -> Outcome {
    skip_unless!(fairness.max_gap_us.is_some(), "it is held to none");
    let most = fairness.max_gap_us.unwrap_or_default();
    check!(fairness.longest_gap_us <= most, "{} us, expected {most} at most", fairness.longest_gap_us);
    Ok(())
}

/// Memory that is given back again and again. The hypervisor must wait for all CPUs before it can use the frames again.
struct Releases {
    hypervisor: Microhv,
    area: Area,
}

impl Releases {
    fn wanted(boot: &Boot) -> Option<Self> {
        let frames = boot.word::<u64>(key::RELEASE_MIB)? << 20 >> addr::PAGE_SHIFT;
        Some(Self { hypervisor: Microhv::here()?, area: ram::largest_area(boot).part(0, frames) })
    }

    fn again(&self) {
        self.area.touch();
        // If memory runs short for a while, the next release finds less.
        let _ = self.hypervisor.release(self.area);
    }
}

/// The time that others had, in ticks of the TSC.
struct Gaps {
    count: u64,
    sum: u64,
    longest: u64,
    /// From the first reading to the last.
    time: u64,
}

impl Gaps {
    /// Those of more than `least` ticks, until `time` has passed. `work` is done between two readings.
    fn watch(time: u64, least: u64, work: impl Fn()) -> Self {
        let mut gaps = Self { count: 0, sum: 0, longest: 0, time: 0 };
        let start = tsc::read();
        let mut last = start;
        while gaps.time < time {
            work();
            let now = tsc::read();
            let between = now.saturating_sub(last);
            if between > least {
                gaps.count += 1;
                gaps.sum += between;
                gaps.longest = gaps.longest.max(between);
            }
            last = now;
            gaps.time = last - start;
        }
        gaps
    }
}
