//! Breaks the crates on purpose, one change at a time, and tells which changes no test notices.

mod copy;
mod explain;
mod programs;
mod report;
mod rewrite;

use crate::failure::usage;
use crate::output::outln;
use crate::progress::Live;
use crate::project;
use crate::seed;
use anyhow::{Context, Result, anyhow, ensure};
use clap::ValueEnum;
use copy::{Mutant, Source};
use explain::Explanations;
use programs::{Built, Ended, Program, Stage};
use report::{Decided, Report};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The crates that are swept, and what tests each.
const CRATES: [(&str, &[Stage]); 9] = [
    ("rcu", &Stage::ALL),
    ("apic", &[Stage::Host, Stage::Loom]),
    ("walk", &[Stage::Host]),
    ("mmu", &Stage::ALL),
    ("shadow", &Stage::ALL),
    ("memory", &[Stage::Host, Stage::Shuttle]),
    ("emul", &[Stage::Host]),
    ("devices", &[Stage::Host]),
    ("loader", &[Stage::Host]),
];
/// Those that are swept where no crate is named.
const USUAL: usize = 5;
/// Changes that the compiler refuses are left out, and others may then be found to be refused.
const BUILDS: usize = 12;

/// Break the crates on purpose, one change at a time
///
/// Each change of a crate has to make one of its tests or models fail: a memory ordering that is weaker, a fence, a flush or a count
/// that is left out, a condition that is constant, a bound that is off by one, a bit that is missing. A copy of the crate is built
/// once with all changes, each switched by its number. What becomes of them is written to target/mutants/CRATE.json; the last line
/// has the number of survivors that hv/CRATE/mutants.toml does not explain.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask mutants --crate rcu                        all changes of one crate
  cargo xtask mutants --crate rcu --kind ordering,flush
  cargo xtask mutants --only hv/rcu/src/domain.rs        those of one file
  cargo xtask mutants --only hv/rcu/src/domain.rs:77     those of one line
  cargo xtask mutants --resume                           what is not decided yet
  cargo xtask mutants --sample 30                        half a minute's, of one crate, chosen by the commit

Exit status: 0 if each survivor is explained, 1 if one is not, 2 if an explanation's code has gone, 101 if the copy could not be
built.")]
pub(crate) struct Args {
    /// Change these crates; rcu, apic, walk, mmu and shadow if none is named
    #[arg(long = "crate", value_name = "CRATE", value_delimiter = ',', value_parser = CRATES.map(|(name, _)| name))]
    crates: Vec<String>,
    /// Make changes of these kinds alone
    #[arg(long, value_enum, value_delimiter = ',')]
    kind: Vec<Kind>,
    /// Make the changes of this file, or of this line of it, alone
    #[arg(long, value_name = "FILE[:LINE]")]
    only: Option<String>,
    /// Run this many tests at once; as many as there are processors if not given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    jobs: Option<u16>,
    /// Leave out what is decided in target/mutants/CRATE.json for the same source; where tests alone are others, try the survivors
    #[arg(long)]
    resume: bool,
    /// Try changes of one crate for this long, both chosen by the commit
    #[arg(long, value_name = "SECONDS", conflicts_with = "only")]
    sample: Option<u32>,
    /// List the changes, and try none
    #[arg(long)]
    list: bool,
}

/// What kind of change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    /// A memory ordering that is weaker, a fence left out
    Ordering,
    /// A condition that is constant
    Branch,
    /// A flush, a kick or a post left out
    Flush,
    /// A bound that is off by one, a count left out
    Count,
    /// Bits left out
    Bits,
}

pub(crate) fn command(args: &Args) -> Result<ExitCode> {
    let mut survivors = 0;
    let mut crates = args.crates()?;
    if args.sample.is_some() {
        let chosen = commit()? as usize % crates.len();
        crates = vec![crates[chosen]];
    }
    for (name, stages) in crates {
        let report = sweep(args, name, stages)?;
        if args.list {
            continue;
        }
        outln!("{report}");
        survivors += report.survivors().filter(|survivor| args.wants(&survivor.mutant)).count();
    }
    if !args.list {
        outln!("{survivors} survivors that nothing explains");
    }
    Ok(ExitCode::from(u8::from(survivors > 0)))
}

impl Args {
    fn crates(&self) -> Result<Vec<(&'static str, &'static [Stage])>> {
        let of_line = match &self.only {
            Some(only) => {
                Some(only.strip_prefix("hv/").and_then(|path| path.split('/').next()).ok_or_else(|| {
                    usage(format!("{only}: a place is FILE or FILE:LINE, and its file begins with hv/"))
                })?)
            }
            None => None,
        };
        let is_wanted = |index: usize, name: &str| match of_line {
            Some(of_line) => name == of_line,
            None if self.crates.is_empty() => index < USUAL,
            None => self.crates.iter().any(|wanted| wanted == name),
        };
        let wanted = CRATES.into_iter().enumerate().filter(|(index, (name, _))| is_wanted(*index, name));
        let crates: Vec<_> = wanted.map(|(_, of_crate)| of_crate).collect();
        match &self.only {
            Some(only) if crates.is_empty() => Err(usage(format!("{only}: there is nothing to change"))),
            _ => Ok(crates),
        }
    }

    fn wants(&self, mutant: &Mutant) -> bool {
        let place = || format!("{}:{}", mutant.file, mutant.line);
        (self.kind.is_empty() || self.kind.contains(&mutant.kind))
            && self.only.as_ref().is_none_or(|only| *only == mutant.file || *only == place())
    }
}

fn sweep(args: &Args, name: &str, stages: &[Stage]) -> Result<Report> {
    let source = Source::of(name)?;
    if let Some(only) = &args.only {
        // Before anything is built, which takes minutes.
        let (mutants, ..) = prepare(name, &[])?;
        if !mutants.iter().any(|mutant| args.wants(mutant)) {
            return Err(usage(format!("{only}: there is nothing to change; --list shows where there is")));
        }
    }
    let (mutants, programs, refused) = prepare(name, if args.list { &[] } else { stages })?;
    let explained = Explanations::read(name)?.explained(&mutants)?;
    let mut report = Report::new(name, source, refused);
    let file = project::reports("mutants").join(format!("{name}.json"));
    report.take_over(&file, &mutants, &explained);
    let mut wanted: Vec<_> = mutants.into_iter().filter(|mutant| args.wants(mutant)).collect();
    if args.list {
        wanted.iter().for_each(|it| outln!("{}:{}: {:?}: {}", it.file, it.line, it.kind, it.change));
        return Ok(report);
    }
    wanted.retain(|mutant| !(args.resume && report.has(mutant.number)));
    if args.sample.is_some() {
        let seed = commit()?;
        wanted.sort_by_key(|mutant| seed::derive(seed, mutant.number as u32));
    }
    try_each(args, wanted, &programs, &explained, report, &file)
}

/// Tries the mutants in their order, several at a time. The report is saved with each, so that a run that is ended can be resumed.
fn try_each(
    args: &Args,
    mutants: Vec<Mutant>,
    programs: &[Program],
    explained: &BTreeSet<usize>,
    report: Report,
    file: &Path,
) -> Result<Report> {
    let end = args.sample.map(|seconds| Instant::now() + Duration::from_secs(seconds.into()));
    let jobs = args.jobs.map_or_else(|| thread::available_parallelism().map_or(1, usize::from), usize::from);
    let live = Live::begin(args.sample);
    let total = mutants.len();
    let (queue, report) = (Mutex::new(mutants.into_iter()), Mutex::new(report));
    let work = || -> Result<()> {
        while end.is_none_or(|end| Instant::now() < end) {
            let (mutant, left) = {
                let mut queue = lock(&queue);
                let Some(mutant) = queue.next() else { break };
                (mutant, queue.len())
            };
            live.say(&format!("{} of {total} to do; {}:{}", left + 1, mutant.file, mutant.line));
            let started = Instant::now();
            let ended = run(programs, mutant.number)?;
            let (explained, seconds) = (explained.contains(&mutant.number), started.elapsed().as_secs_f64());
            let decided = Decided { mutant, ended, explained, seconds };
            if decided.is_survivor() {
                live.line(&decided);
            }
            let mut report = lock(&report);
            report.add(decided);
            report.save(file)?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(|_| Err(anyhow!("a worker panicked"))))
    })?;
    live.end();
    Ok(report.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Builds the copy until it compiles: changes, programs with the quickest first, and the number of changes that the compiler refused.
fn prepare(name: &str, stages: &[Stage]) -> Result<(Vec<Mutant>, Vec<Program>, usize)> {
    let mut refused = BTreeSet::new();
    let mut copy = copy::make(name, &refused)?;
    let mut built = BTreeMap::new();
    'builds: for _ in 0..BUILDS {
        built.clear();
        for (index, stage) in stages.iter().enumerate() {
            match stage.build(&copy.root, name)? {
                Built::Programs(paths) => built.insert(index, paths),
                Built::Refused(numbers) => {
                    refused.extend(numbers);
                    copy = copy::make(name, &refused)?;
                    continue 'builds;
                }
            };
        }
        break;
    }
    ensure!(built.len() == stages.len(), "the copy of {name} does not compile, whatever is left out");
    let folder = copy.root.join("hv").join(name);
    let paths = built.into_values().flatten();
    let measured = paths.map(|path| Program::measured(path, folder.clone())).collect::<Result<Vec<_>>>()?;
    let mut programs: Vec<_> = measured.into_iter().flatten().collect();
    programs.sort_by_key(Program::limit);
    for program in &programs {
        outln!("{name}: {} tests have {:.0} s for each change", program.len(), program.limit().as_secs_f64());
    }
    Ok((copy.mutants, programs, refused.len()))
}

fn run(programs: &[Program], number: usize) -> Result<Ended> {
    let mut ended = Ended::Unreached;
    for program in programs.iter().filter(|program| program.reaches(number)) {
        ended = program.run(number)?;
        if ended.is_noticed() {
            break;
        }
    }
    Ok(ended)
}

/// The first digits of the commit's hash.
fn commit() -> Result<u32> {
    let output = Command::new("git").current_dir(project::root()).args(["rev-parse", "HEAD"]).output()?;
    let hash = String::from_utf8_lossy(&output.stdout);
    u32::from_str_radix(hash.get(..8).unwrap_or_default(), 16).context("git tells no commit")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
