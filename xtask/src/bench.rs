//! Measures what exits cost, and holds it against the figures kept in the repository.

use crate::build::Images;
use crate::figures::{Figures, Unit};
use crate::machine::qemu::{Engine, Qemu};
use crate::machine::{Image, Machine};
use crate::progress::Step;
use crate::project;
use crate::setup::{self, Tool};
use crate::size::Size;
use crate::trial::{Guest, Hypervisor, Pages, Trial};
use crate::verdict::Verdict;
use anyhow::Result;
use std::process::ExitCode;
use std::time::Duration;

/// Ample: a run takes seconds.
const TIMEOUT: Duration = Duration::from_secs(120);
/// The name of the only host that is measured so far, in the figures and in the name of the file that keeps them.
const HOST: &str = "qemu-svm-icount";

/// Measure what exits cost, and compare
///
/// Boots the exit-latency guest on QEMU with --icount, where a tick is an instruction, twice: the figures have to be the
/// same. Writes target/bench/exit-latency.json, and fails where a figure is more than 5 % above the one kept in
/// xtask/baseline/.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask bench          measure and compare
  cargo xtask bench --save   keep the figures as those to compare with

Exit status: 0 if all is well; 1 after a regression, or if two runs differ; 2 if something has to be installed; if the
guest does not pass, the status of its run (see `cargo xtask run --help`).")]
pub(crate) struct Args {
    /// Keep the measured figures in the repository, in place of comparing
    #[arg(long)]
    save: bool,
}

pub(crate) fn command(args: &Args) -> Result<ExitCode> {
    setup::ensure(Tool::Qemu)?;
    let trial = trial(&Images::build()?);
    let (first, second) = match (measure(&trial, "first")?, measure(&trial, "second")?) {
        (Ok(first), Ok(second)) => (first, second),
        (Err(verdict), _) | (_, Err(verdict)) => return Ok(ExitCode::from(verdict.status())),
    };
    let kept_file = project::root().join(format!("xtask/baseline/exit-latency-{HOST}.json"));
    let kept = if args.save || !kept_file.exists() { None } else { Some(Figures::load(&kept_file)?) };
    println!("exit latency in instructions, as the guest sees it ({HOST})\n{}", first.table(kept.as_ref()));
    let file = project::reports("bench").join("exit-latency.json");
    first.save(&file)?;
    println!("bench: written to {}", project::short(&file));

    if first != second {
        println!("bench: FAILED: two runs differ; the second:\n{}", second.table(Some(&first)));
        return Ok(ExitCode::FAILURE);
    }
    if args.save {
        first.save(&kept_file)?;
        println!("bench: kept in {}", project::short(&kept_file));
        return Ok(ExitCode::SUCCESS);
    }
    let Some(kept) = kept else {
        println!("bench: FAILED: there is nothing to compare with; `cargo xtask bench --save` keeps these figures");
        return Ok(ExitCode::FAILURE);
    };
    let regressions = first.regressions(&kept)?;
    for regression in &regressions {
        println!("bench: FAILED: {regression}");
    }
    if regressions.is_empty() {
        println!("bench: two runs are the same, and nothing is more than 5 % above the figures kept");
    }
    Ok(ExitCode::from(u8::from(!regressions.is_empty())))
}

fn trial(images: &Images) -> Trial {
    Trial {
        machine: Machine::Qemu(Qemu { engine: Engine::TcgIcount, cpu: None }),
        hypervisor: Some(Hypervisor { file: images.hv(), words: "log=info".to_string() }),
        guest: Guest {
            image: Image::new(images.guest("exit-latency"), ""),
            modules: Vec::new(),
            memory: Size::mib(64),
            // So that a first touch is that of a 4 KiB page.
            pages: Pages::Small,
        },
        timeout: TIMEOUT,
        limit: None,
    }
}

/// The figures of one run, or how it ended if it did not pass.
fn measure(trial: &Trial, which: &str) -> Result<Result<Figures, Verdict>> {
    let step = Step::begin(format!("measuring, {which} run"));
    let report = trial.carry_out(&mut |_| ())?;
    step.end(report.outcome.verdict.name());
    if report.outcome.verdict != Verdict::Pass {
        report.finished.console.iter().chain(&report.finished.complaints).for_each(|line| println!("{line}"));
        println!("bench: {}", report.outcome);
        return Ok(Err(report.outcome.verdict));
    }
    Figures::read(HOST, Unit::Instructions, report.finished.console.iter().map(String::as_str)).map(Ok)
}
