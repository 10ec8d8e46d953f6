//! What an exit costs, by kind: the span that the guest itself sees around the instruction, in TSC ticks.
//!
//! Words of the command line: `samples=N` (at least 1,000, which is the default), and `pages=4k|2m`, the largest leaf
//! that the VM was given, which the table then shows: with 2 MiB leaves only one first touch in 512 is an exit.
//!
//! Figures are raw. The `empty` kind is the same code with nothing between the two RDTSCs.
#![no_std]
#![no_main]

mod apic;

use abi::ports::{PIT, PM_TIMER, RTC};
use guest::boot::Boot;
use guest::exit::GuestStatus;
use guest::hypercall::Instruction;
use guest::ktap::{self, Outcome};
use guest::latency::{FEWEST_SAMPLES, Latencies, WARM_UP};
use guest::msr::Msr;
use guest::stats::Summary;
use guest::{cases, check_eq, hypercall, pic, port, println, ram, skip_unless, timed};

guest::main!(main);

#[derive(Clone, Copy)]
enum Kind {
    Empty,
    Cpuid,
    Hypercall,
    UnknownHypercall,
    ForeignHypercall,
    PioIn,
    PioOut,
    InlFromPmtimer,
    InbFromPit,
    InbFromRtc,
    Rdmsr,
    Wrmsr,
    MovToCr8,
    MovFromCr8,
    FirstTouch4k,
    ApicReadMmio,
    ApicWriteMmio,
    ApicReadMsr,
    ApicWriteMsr,
    SelfIpi,
    IpiRoundTrip,
    TimerExpiry,
    TscDeadline,
    TscDeadlineImmediate,
    HltWakeup,
}

impl Kind {
    /// In the order of their declaration.
    const NAMES: [&str; 25] = [
        "empty",
        "cpuid",
        "hypercall",
        "unknown_hypercall",
        "foreign_hypercall",
        "pio_in",
        "pio_out",
        "inl_from_pmtimer",
        "inb_from_pit",
        "inb_from_rtc",
        "rdmsr",
        "wrmsr",
        "mov_to_cr8",
        "mov_from_cr8",
        "first_touch_4k",
        "apic_read_mmio",
        "apic_write_mmio",
        "apic_read_msr",
        "apic_write_msr",
        "self_ipi",
        "ipi_round_trip",
        "timer_expiry",
        "tscdeadline",
        "tscdeadline_immed",
        "hlt_wakeup",
    ];
}

struct Bench<'a> {
    boot: &'a Boot,
    latencies: Latencies<{ Kind::NAMES.len() }>,
}

fn main(boot: &Boot) -> GuestStatus {
    let bench = Bench { boot, latencies: Latencies::new(Kind::NAMES, boot.word("samples").unwrap_or(FEWEST_SAMPLES)) };
    let verdict = ktap::run(
        &bench,
        cases![
            summaries,
            empty,
            cpuid,
            hypercall,
            unknown_hypercall,
            foreign_hypercall,
            pio_in,
            pio_out,
            inl_from_pmtimer,
            inb_from_pit,
            inb_from_rtc,
            rdmsr,
            wrmsr,
            apic::mov_to_cr8,
            apic::mov_from_cr8,
            first_touch_4k,
            apic::read_mmio,
            apic::write_mmio,
            apic::self_ipi,
            apic::timer_expiry,
            apic::tscdeadline,
            apic::tscdeadline_immed,
            apic::hlt_wakeup,
            apic::ipi_round_trip,
            apic::read_msr,
            apic::write_msr,
        ],
    );
    let pages = boot.words().find_map(|word| word.strip_prefix("pages=")).unwrap_or("not said");
    println!("# leaves up to: {pages}");
    bench.latencies.print("exit latency, TSC ticks as the guest sees them");
    verdict
}

/// The figures are only as good as this.
fn summaries(_: &Bench<'_>) -> Outcome {
    let mut samples: [u64; 200] = core::array::from_fn(|index| (index as u64 * 77) % 200 + 1);
    let expected = Summary { samples: 200, min: 1, median: 100, p99: 198, max: 200 };
    check_eq!(Summary::of(&mut samples), Some(expected));
    check_eq!(Summary::of(&mut [7]), Some(Summary { samples: 1, min: 7, median: 7, p99: 7, max: 7 }));
    check_eq!(Summary::of(&mut []), None);
    Ok(())
}

fn empty(bench: &Bench<'_>) -> Outcome {
    bench.measure(Kind::Empty, || Some(timed::empty()))
}

fn cpuid(bench: &Bench<'_>) -> Outcome {
    bench.measure(Kind::Cpuid, || Some(timed::cpuid()))
}

fn hypercall(bench: &Bench<'_>) -> Outcome {
    let instruction = hypercall::instruction();
    skip_unless!(instruction.is_some(), "no hypervisor answers hypercalls");
    bench.measure(Kind::Hypercall, || instruction.map(|code| timed::hypercall(code, hypercall::NOP as u32)))
}

/// The other vendor's instruction, which the processor does not have.
fn foreign_hypercall(bench: &Bench<'_>) -> Outcome {
    let instruction = hypercall::instruction().map(|own| match own {
        Instruction::Vmmcall => Instruction::Vmcall,
        Instruction::Vmcall => Instruction::Vmmcall,
    });
    skip_unless!(instruction.is_some(), "no hypervisor answers hypercalls");
    bench.measure(Kind::ForeignHypercall, || instruction.map(|code| timed::hypercall(code, u32::MAX)))
}

/// One that neither this hypervisor nor KVM has.
fn unknown_hypercall(bench: &Bench<'_>) -> Outcome {
    let instruction = hypercall::instruction();
    skip_unless!(instruction.is_some(), "no hypervisor answers hypercalls");
    bench.measure(Kind::UnknownHypercall, || instruction.map(|code| timed::hypercall(code, u32::MAX)))
}

/// The first ELCR, a port that hypervisors handle themselves.
fn pio_in(bench: &Bench<'_>) -> Outcome {
    bench.measure(Kind::PioIn, || Some(timed::inb(pic::ELCR)))
}

fn inl_from_pmtimer(bench: &Bench<'_>) -> Outcome {
    bench.measure(Kind::InlFromPmtimer, || Some(timed::inl(PM_TIMER)))
}

/// A byte of a count.
fn inb_from_pit(bench: &Bench<'_>) -> Outcome {
    bench.measure(Kind::InbFromPit, || Some(timed::inb(PIT)))
}

/// The seconds.
fn inb_from_rtc(bench: &Bench<'_>) -> Outcome {
    port::write8(RTC, 0);
    bench.measure(Kind::InbFromRtc, || Some(timed::inb(RTC + 1)))
}

fn pio_out(bench: &Bench<'_>) -> Outcome {
    let elcr = port::read8(pic::ELCR);
    bench.measure(Kind::PioOut, || Some(timed::pio_out(elcr)))?;
    check_eq!(port::read8(pic::ELCR), elcr);
    Ok(())
}

fn rdmsr(bench: &Bench<'_>) -> Outcome {
    bench.measure(Kind::Rdmsr, || Some(timed::rdmsr()))
}

fn wrmsr(bench: &Bench<'_>) -> Outcome {
    let pat = Msr::Pat.read();
    bench.measure(Kind::Wrmsr, || Some(timed::wrmsr(pat)))?;
    check_eq!(Msr::Pat.read(), pat);
    Ok(())
}

/// Frames that nothing has touched since the machine started, one after the other.
fn first_touch_4k(bench: &Bench<'_>) -> Outcome {
    let mut frames = ram::free(bench.boot).filter(|frame| frame.gpa() >= ram::HIGH_MEMORY);
    bench.measure(Kind::FirstTouch4k, || frames.next().map(|frame| timed::store(frame.address(0))))
}

impl Bench<'_> {
    /// Takes as many samples of `span` as wanted, or as there are.
    fn measure(&self, kind: Kind, span: impl FnMut() -> Option<u64>) -> Outcome {
        self.latencies.measure(kind as usize, span)
    }
}
