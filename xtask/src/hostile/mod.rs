//! Runs hostile guests beside one that verifies itself, round after round, and adds up what they tried.

mod plan;
mod record;

use crate::build::Images;
use crate::failure::usage;
use crate::machine::trace::Trace;
use crate::machine::{Emulator, Host, Image};
use crate::output::outln;
use crate::progress::Live;
use crate::project;
use crate::size::Size;
use crate::trial::{Guest, Hypervisor, Paging, Trial};
use abi::options::guest as word;
use abi::options::{level, paging};
use anyhow::Result;
use clap::ValueEnum;
use plan::{Mode, Round, VICTIM};
use record::{Record, Tally};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// A hostile VM's memory: little, as all of it is filled.
const MEMORY: Size = Size::mib(12);
/// What guests may take beyond the time that they work, by their machine's clock.
const GRACE: u32 = 9;
/// What an emulator may take beyond that, in seconds.
const EMULATOR_MARGIN: u32 = 20;
/// On Bochs a second of the machine's time takes 2 on the wall as a rule, and up to 9 where a guest has it translate its code
/// again and again. A round that needs less ends earlier; a machine that hangs is killed after this time.
const BOCHS_SLOWNESS: u32 = 16;
/// How long a round's guests work by their clocks: long enough that the machine's start is a small part, and no longer than
/// most hostile ones live.
const ROUND_SECONDS: u32 = 3;
/// The machine's processors: the victim shares one with some of the attackers. As vCPUs are pinned one after the other, with
/// two processors all vCPUs that try inputs would share one.
const CPUS: u32 = 3;

/// Run guests that try all that a guest can do, beside one that must not notice
///
/// Hostile VMs try instructions, control registers, MSRs, ports, devices' memory, page tables, descriptors, task gates,
/// breakpoints, hypercalls and interrupts at random, on a fresh machine for each round. Whatever becomes of them, the
/// hypervisor has to give each VM its verdict, and the VM beside them has to pass, with each of its lines whole. Writes
/// target/hostile/report.json, and keeps rounds that failed in target/hostile/failed/.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask hostile                              a minute on QEMU, all modes in turn
  cargo xtask hostile --seconds 600 --mode long --seed 7
  cargo xtask hostile --paging shadow --mode p32
  cargo xtask hostile --host bochs-vmx

A failed round prints the command that repeats it. An emulator that a guest ends is named and counted apart: it is no fault of
the hypervisor's. `cargo xtask run --guest hostile --vcpus 2 --mem 12M --cmdline \"--mode M --seed S --tell\"` has one hostile
guest tell each input before it runs; `--first N --inputs N` pick some.

Exit status: 0 if all is well, 1 if not, 2 if something has to be installed, 101 if the images could not be built.")]
pub(crate) struct Args {
    /// The machines
    #[arg(long, value_enum, default_value = Host::QemuSvm.name())]
    host: Host,
    /// How the hostile guests' memory is translated
    #[arg(long, value_enum, default_value = paging::NESTED)]
    paging: Paging,
    /// What the hostile guests run in [default: each in turn]
    #[arg(long, value_enum)]
    mode: Option<Mode>,
    /// Begin no round after this time
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// End after so many rounds
    #[arg(long, value_name = "N")]
    rounds: Option<u32>,
    /// All that the guests try follows from this number
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u32,
    /// Hostile VMs in a round, of two virtual processors each [default: 10; 3 without nested paging]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=14))]
    attackers: Option<u32>,
}

/// What a switch of tasks by hardware comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TaskGates {
    /// The processor or the hypervisor carries it out.
    Switch,
    /// QEMU's SVM carries it out although it is intercepted: without nested paging the guest's CR3 becomes the processor's
    /// own, and the machine is lost.
    LoseTheMachine,
}

pub(crate) fn command(args: &Args) -> Result<ExitCode> {
    let modes = args.modes()?;
    args.host.ensure()?;
    let machine = args.host.emulator();
    let images = Images::build()?;
    Campaign { args, modes, machine, images: &images }.run()
}

/// A round in each mode on QEMU, nested and shadowed, with the hypervisor's instructions noted in `trace`; true: none failed.
pub(crate) fn traced(images: &Images, trace: &Trace) -> Result<bool> {
    let mut all_passed = true;
    for paging in [Paging::Nested, Paging::Shadow, Paging::Vtlb] {
        let args =
            Args { host: Host::QemuSvm, paging, mode: None, seconds: u32::MAX, rounds: None, seed: 1, attackers: None };
        args.host.ensure()?;
        let (modes, machine) = (args.modes()?, args.host.emulator());
        let campaign = Campaign { args: &args, modes, machine, images };
        for (number, mode) in (1..).zip(&campaign.modes) {
            let round = Round::new(number, args.seed, *mode, args.attackers());
            let report = campaign.trial(&round).traced(trace).carry_out(&mut |_| ())?;
            let record = Record::new(&round, &report, campaign.repeat(&round));
            outln!("{record}");
            all_passed &= !record.has_failed();
        }
    }
    Ok(all_passed)
}

impl Args {
    /// The modes in turn. A 64-bit guest needs nested paging.
    fn modes(&self) -> Result<Vec<Mode>> {
        match self.mode {
            Some(Mode::Long) if self.paging != Paging::Nested => Err(usage("--mode long needs --paging nested")),
            Some(mode) => Ok(vec![mode]),
            None => {
                let all = Mode::value_variants().iter().copied();
                Ok(all.filter(|mode| *mode != Mode::Long || self.paging == Paging::Nested).collect())
            }
        }
    }

    /// Without nested paging an attacker takes more of the machine's heap and time.
    fn attackers(&self) -> u32 {
        self.attackers.unwrap_or(if self.paging == Paging::Nested { 10 } else { 3 })
    }

    /// What task gates do on this machine.
    fn task_gates(&self) -> TaskGates {
        match (self.host, self.paging) {
            (Host::QemuSvm, Paging::Shadow | Paging::Vtlb) => TaskGates::LoseTheMachine,
            _ => TaskGates::Switch,
        }
    }
}

/// A run.
struct Campaign<'a> {
    args: &'a Args,
    modes: Vec<Mode>,
    machine: Emulator,
    images: &'a Images,
}

impl Campaign<'_> {
    /// Rounds until the time is used; then the table and the report.
    fn run(&self) -> Result<ExitCode> {
        let mut tally = Tally::new(self.machine.to_string(), self.args.seed);
        let live = Live::begin(self.args.seconds);
        if self.args.task_gates() == TaskGates::LoseTheMachine {
            live.line(&"task gates are left out: QEMU's SVM does not intercept switches of tasks");
        }
        let started = Instant::now();
        for number in 1..=self.args.rounds.unwrap_or(u32::MAX) {
            if number > 1 && started.elapsed().as_secs() >= self.args.seconds.into() {
                break;
            }
            let mode = self.modes[(number as usize - 1) % self.modes.len()];
            let round = Round::new(number, self.args.seed, mode, self.args.attackers());
            live.say(&format!("round {number}: {mode}; {}", tally.so_far()));
            let report = self.trial(&round).carry_out(&mut |_| ())?;
            let record = Record::new(&round, &report, self.repeat(&round));
            live.line(&record);
            if record.has_failed()
                && let Err(error) = record.keep(&project::reports("hostile").join("failed"), self.args.host)
            {
                live.line(&format!("the round is not kept: {error:#}"));
            }
            tally.add(record, started.elapsed());
        }
        live.end();
        let file = project::reports("hostile").join("report.json");
        tally.save(&file)?;
        outln!("\n{tally}\nreport: {}", project::short(&file));
        outln!("hostile: {}", tally.verdict());
        Ok(ExitCode::from(u8::from(!tally.is_good())))
    }

    /// The command that repeats a round.
    fn repeat(&self, round: &Round) -> String {
        let (Args { host, paging, .. }, attackers) = (self.args, self.args.attackers());
        let name = |value: Option<clap::builder::PossibleValue>| {
            value.map(|value| value.get_name().to_string()).unwrap_or_default()
        };
        let paging = name(paging.to_possible_value());
        let Round { seed, mode, .. } = round;
        format!(
            "cargo xtask hostile --host {host} --paging {paging} --mode {mode} --seed {seed} --attackers {attackers} --rounds 1"
        )
    }

    fn trial(&self, round: &Round) -> Trial {
        let slowness = if self.args.host == Host::QemuSvm { 1 } else { BOCHS_SLOWNESS };
        let limit = 2 * ROUND_SECONDS + GRACE;
        let victim = Guest {
            name: VICTIM.to_string(),
            ..Guest::new(Image::new(
                self.images.guest("victim"),
                format!("{} {} {} {ROUND_SECONDS}", word::SEED, round.seed, word::SECONDS),
            ))
        };
        let attackers = round.attackers.iter().enumerate().map(|(index, attacker)| Guest {
            name: attacker.name.clone(),
            vcpus: 2,
            memory: MEMORY,
            paging: self.args.paging,
            ..Guest::new(Image::new(self.images.guest("hostile"), self.words(round, index)))
        });
        Trial {
            machine: self.machine.clone(),
            cpus: Some(CPUS),
            ram: None,
            hypervisor: Some(Hypervisor::new(self.images.hv(), level::INFO, "")),
            guests: std::iter::once(victim).chain(attackers).collect(),
            timeout: Duration::from_secs((limit * slowness + EMULATOR_MARGIN).into()),
            limit: Some(Duration::from_secs(limit.into())),
        }
    }

    /// The words of attacker `index`.
    fn words(&self, round: &Round, index: usize) -> String {
        let (mode, seed) = (round.mode.to_string(), round.attackers[index].seed.to_string());
        let seconds = ROUND_SECONDS.to_string();
        let mut words = vec![word::MODE, &mode, word::SEED, &seed, word::SECONDS, &seconds];
        if self.args.paging != Paging::Nested {
            words.push(word::SHADOWED);
        }
        if self.args.task_gates() == TaskGates::LoseTheMachine {
            words.push(word::WITHOUT_TASK_GATES);
        }
        words.join(" ")
    }
}
