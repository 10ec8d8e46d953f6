//! Runs the stress guests, round after round, and adds up what the hypervisor's accounts say.

mod plan;
mod record;

use crate::build::Images;
use crate::failure::usage;
use crate::machine::bochs::{self, Bochs};
use crate::machine::qemu::{Accel, Engine, Needs, Qemu};
use crate::machine::{Emulator, Image};
use crate::output::outln;
use crate::progress::Live;
use crate::project;
use crate::run::EmulatorKind;
use crate::setup::{self, Tool};
use crate::size::Size;
use crate::trial::{Guest, Hypervisor, Report, Trial};
use abi::Verdict;
use abi::hypercall::FlushPoint;
use abi::options::level;
use anyhow::Result;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use plan::{Round, Vm};
use record::{Ended, Record, Tally};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Each VM's memory.
const MEMORY: Size = Size::mib(128);
/// What guests may take beyond the time that they work, by their machine's clock.
const GRACE: u32 = 20;
/// What an emulator may take beyond that, in seconds.
const EMULATOR_MARGIN: u32 = 30;
/// On Bochs a second of the machine's time takes about this many on the wall, with four processors.
const BOCHS_SLOWNESS: u32 = 4;
/// How many of a console's last lines are shown of a round that failed.
const LAST_LINES: usize = 30;
/// The shortest round, in seconds.
const LEAST_ROUND: u32 = 2;

/// Run the stress guests until the time is used
///
/// Two VMs at once, with guests in rotation, and a fresh machine for each round. Writes target/stress/report.json, and
/// passes only if no guest saw anything stale or lost, and every frame and every table page came back.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask stress                            one minute, 4 vCPUs in two VMs, on QEMU
  cargo xtask stress --seconds 600 --seed 7
  cargo xtask stress --host bochs --vcpus 2
  cargo xtask stress --skip-flush replace       a flush left out on purpose: the guest has to notice

A failed round prints the command that repeats it. An emulator that stops answering is given one more try with the same
guests and seeds; such rounds are counted as `no answer`, and more than one in twenty fail the run.

Exit status: 0 if all is well (with --skip-flush: if the missing flush was noticed), 1 if not, 2 if something has to be
installed, 101 if the images could not be built.")]
pub(crate) struct Args {
    /// Emulator of the machines
    #[arg(long, value_enum, default_value = "qemu")]
    host: EmulatorKind,
    /// What carries out the instructions (QEMU)
    #[arg(long, value_enum, default_value = "auto")]
    accel: Accel,
    /// Begin no round after this time
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// How long a round's guests work
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=600))]
    round: u32,
    /// What all guests do follows from this number
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u32,
    /// Virtual processors of both VMs together, on as many processors of the machine
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(2..=8))]
    vcpus: u32,
    /// Leave this flush out, and pass when the guest has noticed
    #[arg(long, value_name = "FLUSH", value_parser = flush_parser())]
    skip_flush: Option<FlushPoint>,
}

/// Takes a flush by its name.
fn flush_parser() -> impl TypedValueParser<Value = FlushPoint> {
    PossibleValuesParser::new(FlushPoint::ALL.iter().map(|flush| flush.name())).try_map(|name| name.parse())
}

pub(crate) fn command(args: &Args) -> Result<ExitCode> {
    let machine = args.machine()?;
    // This comes first, because each build replaces the image of the other.
    let skipping = args.skip_flush.map(|_| Images::build_with_fault_injection()).transpose()?;
    let images = Images::build()?;
    let hypervisor = skipping.unwrap_or_else(|| images.hv());
    let stress = Stress { args, machine, images, hypervisor };
    match args.skip_flush {
        None => stress.run(),
        Some(flush) => stress.run_without(flush),
    }
}

impl Args {
    fn machine(&self) -> Result<Emulator> {
        match self.host {
            EmulatorKind::Qemu => {
                setup::ensure(Tool::Qemu)?;
                let engine = self.accel.resolve(false, Needs::Virtualization)?;
                Ok(Emulator::Qemu(Qemu::new(engine, None)))
            }
            EmulatorKind::Bochs if self.accel != Accel::Auto => Err(usage("--accel is QEMU's")),
            EmulatorKind::Bochs => {
                setup::ensure(Tool::Bochs)?;
                Ok(Emulator::Bochs(Bochs::new(bochs::VMX_CPU)))
            }
        }
    }
}

/// A stress run.
struct Stress<'a> {
    args: &'a Args,
    machine: Emulator,
    images: Images,
    hypervisor: PathBuf,
}

impl Stress<'_> {
    /// Rounds until the time is used; then the table and the report.
    fn run(&self) -> Result<ExitCode> {
        let mut tally = Tally::new(self.machine.to_string(), self.args.seed, self.args.vcpus);
        let live = Live::begin(self.args.seconds);
        let started = Instant::now();
        for number in 1.. {
            let Some(seconds) = self.next_round(started) else { break };
            let round = Round::of_two(number, self.args.seed, seconds, self.args.vcpus);
            live.say(&format!("round {number}: {}; {}", round.title(), tally.so_far()));
            let record = self.carry_out(&round)?;
            live.line(&record);
            tally.add(record, started.elapsed());
        }
        live.end();
        let file = project::reports("stress").join("report.json");
        tally.save(&file)?;
        outln!("\n{tally}\nreport: {}", project::short(&file));
        outln!("stress: {}", tally.verdict());
        Ok(ExitCode::from(u8::from(!tally.is_good())))
    }

    /// Rounds with a flush left out, until a guest notices.
    fn run_without(&self, flush: FlushPoint) -> Result<ExitCode> {
        let live = Live::begin(self.args.seconds);
        let started = Instant::now();
        let mut rounds = 0;
        while let Some(seconds) = self.next_round(started) {
            rounds += 1;
            let round = Round::without(flush, rounds, self.args.seed, seconds, self.args.vcpus);
            live.say(&format!("round {rounds}: {} without the flush of {flush}", round.title()));
            let report = self.trial(&round).carry_out(&mut |_| ())?;
            live.line(&format_args!("round {rounds}: {}: {}", round.title(), report.outcome));
            match report.outcome.verdict {
                Verdict::Pass => {}
                Verdict::GuestFailed if report.guests_failed_tests() => {
                    live.end();
                    outln!("stress: the missing flush of {flush} was noticed in round {rounds}");
                    return Ok(ExitCode::SUCCESS);
                }
                other => {
                    live.end();
                    report.finished.console.iter().for_each(|line| outln!("{line}"));
                    outln!("stress: FAILED: {other} in place of a guest that notices the missing flush of {flush}");
                    return Ok(ExitCode::FAILURE);
                }
            }
        }
        live.end();
        outln!("stress: FAILED: no guest noticed the missing flush of {flush} in {rounds} rounds");
        Ok(ExitCode::FAILURE)
    }

    /// How long the guests of the next round are to work by their clocks, if there is time for a round.
    fn next_round(&self, started: Instant) -> Option<u32> {
        let used = u32::try_from(started.elapsed().as_secs()).unwrap_or(u32::MAX);
        let left = self.args.seconds.saturating_sub(used);
        let seconds = self.args.round.min(left);
        (used == 0 || left >= LEAST_ROUND).then(|| (seconds / self.slowness()).max(1))
    }

    /// How many seconds on the wall one of the machine's takes.
    fn slowness(&self) -> u32 {
        match self.machine {
            Emulator::Qemu(_) => 1,
            Emulator::Bochs(_) => BOCHS_SLOWNESS,
        }
    }

    /// A round on a fresh machine; on another one if a QEMU stopped answering. Bochs, deterministic as it is, would again.
    fn carry_out(&self, round: &Round) -> Result<Record> {
        let trial = self.trial(round);
        let may_fall_silent = matches!(self.machine, Emulator::Qemu(_));
        let (report, ended) = record::settle(may_fall_silent, || trial.carry_out(&mut |_| ()))?;
        Ok(self.record(round, &report, ended))
    }

    fn record(&self, round: &Round, report: &Report, ended: Ended) -> Record {
        let host = match &self.machine {
            Emulator::Qemu(Qemu { engine: Engine::Kvm, .. }) => "--accel kvm",
            Emulator::Qemu(_) => "--accel tcg",
            Emulator::Bochs(_) => "--host bochs",
        };
        let (limit, timeout) = self.patience(round);
        let repeat = format!(
            "cargo xtask run {host} --timeout {} --limit {} {}",
            timeout.as_secs(),
            limit.as_secs(),
            round.options()
        );
        Record::new(round, report, ended, repeat)
    }

    /// After how long the hypervisor ends a guest, by its machine's clock, and after how long we end the machine.
    fn patience(&self, round: &Round) -> (Duration, Duration) {
        let limit = 2 * round.seconds + GRACE;
        let seconds = |seconds: u32| Duration::from_secs(seconds.into());
        (seconds(limit), seconds(limit * self.slowness() + EMULATOR_MARGIN))
    }

    fn trial(&self, round: &Round) -> Trial {
        let (limit, timeout) = self.patience(round);
        Trial {
            machine: self.machine.clone(),
            cpus: None,
            ram: None,
            hypervisor: Some(Hypervisor::new(self.hypervisor.clone(), level::INFO, "")),
            guests: round.vms.iter().map(|vm| self.guest(vm)).collect(),
            timeout,
            limit: Some(limit),
        }
    }

    fn guest(&self, vm: &Vm) -> Guest {
        let image = Image::new(self.images.guest(vm.guest), vm.words.clone());
        Guest { name: vm.name.to_string(), vcpus: vm.vcpus, memory: MEMORY, ..Guest::new(image) }
    }
}
