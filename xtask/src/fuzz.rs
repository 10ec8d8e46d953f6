//! Runs the fuzz targets of `hv/fuzz` with libFuzzer.
//!
//! The stable toolchain builds them: the instrumentation that cargo-fuzz asks for is a pass of LLVM's, and libFuzzer comes with
//! the crate `libfuzzer-sys`.

use crate::build::program_names;
use crate::failure::usage;
use crate::guests::readable_file;
use crate::leash::Leashed;
use crate::output::outln;
use crate::progress::Step;
use crate::project;
use crate::setup::{self, Tool};
use crate::toolchain;
use anyhow::{Context, Result, bail};
use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// Where the targets are.
const PACKAGE: &str = "hv/fuzz";
const TARGETS: &str = "hv/fuzz/fuzz_targets";
/// The inputs that a target begins with, in a folder of its name. Not every target has one.
const SEEDS: &str = "hv/fuzz/seeds";

/// Edge coverage with counters that libFuzzer reads, and comparisons that guide it; panics where debug builds do.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
                     -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 -Cdebug-assertions -Coverflow-checks";

/// One input that takes longer than this many seconds is a finding.
const SLOWEST: u32 = 10;
/// How many of libFuzzer's last lines are shown with a finding: the panic, and what follows.
const LAST_LINES: usize = 25;

/// Fuzz what takes a guest's input
///
/// Each target in turn, or one alone. It begins with its inputs in hv/fuzz/seeds. What is learnt stays in target/fuzz/corpus and is
/// built upon the next time; an input that fails is kept in target/fuzz/artifacts.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask fuzz                                   each target for half a minute
  cargo xtask fuzz emul_decode --seconds 600
  cargo xtask fuzz emul_decode --input FILE          one input again, as a finding says
  cargo xtask fuzz --list

Exit status: 0 if nothing was found, 1 if something was, 2 if something has to be installed, 101 if the targets could not be
built.")]
pub(crate) struct Args {
    /// Run this target alone
    target: Option<String>,
    /// How long each target runs
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Run the target once, with this file as its input
    #[arg(long, value_name = "FILE", requires = "target", conflicts_with = "seconds", value_parser = readable_file)]
    input: Option<PathBuf>,
    /// Build the targets, and run none
    #[arg(long, conflicts_with = "input")]
    build: bool,
    /// List the targets
    #[arg(long)]
    list: bool,
}

pub(crate) fn command(args: &Args) -> Result<ExitCode> {
    let mut targets = targets()?;
    if args.list {
        targets.iter().for_each(|target| outln!("{target}"));
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(wanted) = &args.target {
        if !targets.contains(wanted) {
            return Err(usage(format!("{wanted}: no such target ({})", targets.join(", "))));
        }
        targets = vec![wanted.clone()];
    }
    let programs = build(&targets)?;
    if args.build {
        return Ok(ExitCode::SUCCESS);
    }
    let work = match &args.input {
        Some(input) => Work::Once(input),
        None => Work::Seconds(args.seconds),
    };
    let campaigns = targets.iter().map(|target| Campaign::carry_out(&programs.join(target), target, &work));
    let campaigns = campaigns.collect::<Result<Vec<_>>>()?;
    outln!("\n{:<20}{:>12}{:>10}  found", "target", "runs", "coverage");
    campaigns.iter().for_each(|campaign| outln!("{campaign}"));
    Ok(ExitCode::from(u8::from(campaigns.iter().any(|campaign| campaign.found.is_some()))))
}

/// The names of the targets.
fn targets() -> Result<Vec<String>> {
    let mut names = program_names(TARGETS)?;
    names.sort();
    Ok(names)
}

/// The folder of a target's seeds, if there is one.
fn seeds(target: &str) -> Option<PathBuf> {
    Some(project::root().join(SEEDS).join(target)).filter(|folder| folder.is_dir())
}

/// Builds targets, and gives the folder of their programs.
fn build(targets: &[String]) -> Result<PathBuf> {
    setup::ensure(Tool::Cxx)?;
    // With a target named, the flags are not for build scripts, which are linked without libFuzzer.
    let host = toolchain::host()?;
    let folder = project::target().join("fuzz");
    let mut cargo = Command::new(project::cargo());
    cargo.current_dir(project::root().join(PACKAGE)).env("RUSTFLAGS", FLAGS).env_remove("CARGO_ENCODED_RUSTFLAGS");
    cargo.args(["build", "--release", "--target", &host, "--target-dir"]).arg(&folder);
    cargo.args(targets.iter().flat_map(|target| ["--bin", target]));
    if !cargo.status().context("can't run cargo")?.success() {
        bail!("the fuzz targets could not be built");
    }
    Ok(folder.join(host).join("release"))
}

/// What a target's program is to do.
enum Work<'a> {
    /// Look for inputs that fail, for this long.
    Seconds(u32),
    /// Run this input.
    Once(&'a Path),
}

/// What came of a target.
#[derive(Debug, Default, PartialEq, Eq)]
struct Campaign {
    target: String,
    runs: u64,
    /// Edges of the control flow that were taken; as far as libFuzzer said.
    coverage: Option<u64>,
    found: Option<Finding>,
}

/// A program that did not end well.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    /// The input, where libFuzzer wrote it.
    artifact: Option<PathBuf>,
}

impl Campaign {
    fn carry_out(program: &Path, target: &str, work: &Work<'_>) -> Result<Self> {
        let [corpus, artifacts] = ["corpus", "artifacts"].map(|kind| project::reports("fuzz").join(kind).join(target));
        for folder in [&corpus, &artifacts] {
            fs::create_dir_all(folder).with_context(|| format!("can't make {}", folder.display()))?;
        }
        let step = Step::begin(format!("fuzzing {target}"));
        let mut fuzzer = Leashed::spawn(program, |command| {
            command.args(["-print_final_stats=1", &format!("-timeout={SLOWEST}")]);
            command.arg(format!("-artifact_prefix={}/", artifacts.display()));
            match work {
                // What is learnt goes to the first folder.
                Work::Seconds(seconds) => {
                    command.arg(format!("-max_total_time={seconds}")).arg(&corpus).args(seeds(target))
                }
                Work::Once(input) => command.arg(input),
            };
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        })?;
        let words = fuzzer.child.stderr.take().context("the fuzzer has no standard error")?;
        let lines = BufReader::new(words).split(b'\n').map_while(Result::ok);
        let lines: Vec<_> = lines.map(|line| String::from_utf8_lossy(&line).into_owned()).collect();
        let is_well = fuzzer.child.wait()?.success();
        step.end(if is_well { "nothing found" } else { "FAILED" });
        let mut campaign = Self::read(target, &lines);
        match work {
            _ if is_well => campaign.found = None,
            Work::Once(input) => campaign.found = Some(Finding { artifact: Some(input.to_path_buf()) }),
            Work::Seconds(_) => campaign.found = campaign.found.or(Some(Finding { artifact: None })),
        }
        if campaign.found.is_some() {
            lines[lines.len().saturating_sub(LAST_LINES)..].iter().for_each(|line| outln!("    {line}"));
        }
        Ok(campaign)
    }

    /// Reads libFuzzer's lines.
    fn read(target: &str, lines: &[String]) -> Self {
        let mut campaign = Self { target: target.to_string(), ..Self::default() };
        for line in lines {
            let mut words = line.split_whitespace();
            if words.by_ref().any(|word| word == "cov:") {
                campaign.coverage = words.next().and_then(|count| count.parse().ok()).or(campaign.coverage);
            } else if let Some(count) = line.strip_prefix("stat::number_of_executed_units:") {
                campaign.runs = count.trim().parse().unwrap_or_default();
            } else if let Some((_, path)) = line.split_once("Test unit written to ") {
                campaign.found = Some(Finding { artifact: Some(PathBuf::from(path)) });
            }
        }
        campaign
    }
}

impl fmt::Display for Campaign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let coverage = self.coverage.map_or_else(|| "-".to_string(), |count| count.to_string());
        write!(f, "{:<20}{:>12}{coverage:>10}  ", self.target, self.runs)?;
        match &self.found {
            None => f.write_str("nothing"),
            Some(Finding { artifact: None }) => f.write_str("FAILED without an input"),
            Some(Finding { artifact: Some(input) }) => {
                write!(f, "FAILED: cargo xtask fuzz {} --input {}", self.target, project::short(input))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Campaign {
        Campaign::read("t", &text.lines().map(str::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn libfuzzers_lines_are_read() {
        let campaign = read(
            "#2\tINITED cov: 9 ft: 9 corp: 1/1b exec/s: 0 rss: 30Mb\n#61488\tDONE   cov: 412 ft: 1482 corp: 99/9Kb\n\
             Done 61488 runs in 6 second(s)\nstat::number_of_executed_units: 61488\n",
        );
        let expected = Campaign { target: "t".into(), runs: 61488, coverage: Some(412), found: None };
        assert_eq!(campaign, expected);
        assert!(campaign.to_string().ends_with("61488       412  nothing"), "{campaign}");
    }

    #[test]
    fn a_finding_says_how_to_repeat_it() {
        let text = "==7== ERROR: libFuzzer: deadly signal\n\
                    artifact_prefix='/x/'; Test unit written to /x/crash-12ab\nstat::number_of_executed_units: 77\n";
        let campaign = read(text);
        assert_eq!(campaign.runs, 77);
        assert!(campaign.to_string().ends_with("FAILED: cargo xtask fuzz t --input /x/crash-12ab"), "{campaign}");
    }

    #[test]
    fn every_folder_of_seeds_is_a_targets() {
        let folders = fs::read_dir(project::root().join(SEEDS)).unwrap();
        let names: Vec<_> = folders.map(|folder| folder.unwrap().file_name().into_string().unwrap()).collect();
        let targets = targets().unwrap();
        assert!(!names.is_empty() && names.iter().all(|name| targets.contains(name)), "{names:?}");
    }

    #[test]
    fn every_target_is_a_program_of_the_package() {
        let manifest = fs::read_to_string(project::root().join(PACKAGE).join("Cargo.toml")).unwrap();
        let mut programs: Vec<_> =
            manifest.lines().filter_map(|line| line.strip_prefix("path = \"fuzz_targets/")).collect();
        programs.sort_unstable();
        let targets: Vec<_> = targets().unwrap().into_iter().map(|target| format!("{target}.rs\"")).collect();
        assert_eq!(programs, targets);
    }
}
