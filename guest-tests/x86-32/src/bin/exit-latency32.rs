//! What a kernel's dealings with its page tables cost, by kind: the span that the guest itself sees, in TSC ticks.
//!
//! | kind | span |
//! | --- | --- |
//! | `page_fault` | a load that the guest's own tables forbid, to the handler's first instruction |
//! | `install_touch` | an entry of a page table written (with PAE in two halves), and the page loaded from |
//! | `invlpg` | INVLPG of a page that is in use |
//! | `cr3_touch` | CR3 loaded with another address space, and a page of it loaded from |
//! | `cr0_wp` | CR0.WP switched |
//!
//! With PAE; `mode=two-level` for two levels. `samples=N`: at least 1,000, which is the default.
#![no_std]
#![no_main]

use guest32::boot::Boot;
use guest32::control::CR0_WP;
use guest32::exit::GuestStatus;
use guest32::ktap::{self, Outcome};
use guest32::latency::{FEWEST_SAMPLES, Latencies};
use guest32::memory::{self, Page, Pages};
use guest32::paging::{ACCESSED, DIRTY, Mode, PRESENT, Space, WRITABLE};
use guest32::{cases, processor, timed};

guest32::main!(main);

/// Where pages come and go.
const AT: u32 = 1 << 30;
/// A page that is always there.
const STAYS: u32 = AT + 4096;

#[derive(Clone, Copy)]
enum Kind {
    Empty,
    PageFault,
    InstallTouch,
    Invlpg,
    Cr3Touch,
    Cr0Wp,
}

impl Kind {
    /// In the order of their declaration.
    const NAMES: [&str; 6] = ["empty", "page_fault", "install_touch", "invlpg", "cr3_touch", "cr0_wp"];
}

struct Bench {
    latencies: Latencies<{ Kind::NAMES.len() }>,
    mode: Mode,
    spaces: [Space; 2],
    frame: Page,
}

fn main(boot: &Boot) -> GuestStatus {
    let mode = if boot.words().any(|word| word == "mode=two-level") { Mode::TwoLevel } else { Mode::Pae };
    let pages = &mut Pages::from(memory::START);
    let frame = pages.take();
    let spaces = [0, 1].map(|_| {
        let space = Space::new(mode, pages);
        space.pte(STAYS, pages).set(u64::from(frame.address()) | PRESENT | WRITABLE | ACCESSED | DIRTY);
        space
    });
    let samples = boot.word("samples").unwrap_or(FEWEST_SAMPLES);
    let bench = Bench { latencies: Latencies::new(Kind::NAMES, samples), mode, spaces, frame };
    bench.spaces[0].enter();
    let verdict = ktap::run(&bench, cases![empty, page_fault, install_touch, invlpg, cr3_touch, cr0_wp]);
    let title = match mode {
        Mode::TwoLevel => "page tables of two levels, TSC ticks as the guest sees them",
        Mode::Pae => "page tables of PAE, TSC ticks as the guest sees them",
    };
    bench.latencies.print(title);
    verdict
}

impl Bench {
    fn measure(&self, kind: Kind, span: impl FnMut() -> u64) -> Outcome {
        let mut span = span;
        self.latencies.measure(kind as usize, || Some(span()))
    }
}

fn empty(bench: &Bench) -> Outcome {
    bench.measure(Kind::Empty, timed::empty)
}

fn page_fault(bench: &Bench) -> Outcome {
    bench.measure(Kind::PageFault, || timed::page_fault(AT))
}

fn install_touch(bench: &Bench) -> Outcome {
    let pages = &mut Pages::from(memory::END - (1 << 20));
    let entry = bench.spaces[0].pte(AT, pages);
    let value = bench.frame.address() | (PRESENT | WRITABLE | ACCESSED | DIRTY) as u32;
    bench.measure(Kind::InstallTouch, || {
        let span = match bench.mode {
            Mode::TwoLevel => timed::install_and_touch(entry.address(), value, AT),
            Mode::Pae => timed::install_halves_and_touch(entry.address(), value, AT),
        };
        entry.set(0);
        processor::invlpg(AT);
        span
    })
}

fn invlpg(bench: &Bench) -> Outcome {
    bench.measure(Kind::Invlpg, || {
        memory::load(STAYS);
        timed::invlpg(STAYS)
    })
}

fn cr3_touch(bench: &Bench) -> Outcome {
    let mut turn = 0;
    bench.measure(Kind::Cr3Touch, || {
        turn ^= 1;
        timed::switch_and_touch(bench.spaces[turn].cr3(), STAYS)
    })
}

fn cr0_wp(bench: &Bench) -> Outcome {
    let mut cr0 = processor::cr0();
    bench.measure(Kind::Cr0Wp, || {
        cr0 ^= CR0_WP;
        timed::write_cr0(cr0)
    })
}
