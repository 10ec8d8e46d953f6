//! What attacks leave to a guest beside them: the matrix's rows that measure it, as a table.

use super::machines::{self, Done, Job, Workshop};
use super::matrix::{self, Column, FAIR};
use super::results::Status;
use crate::failure::usage;
use crate::output::outln;
use crate::setup::{self, Tool};
use abi::lines::Fairness;
use anyhow::Result;
use std::collections::BTreeSet;
use std::process::ExitCode;

/// Measure what a guest gets of its processor beside guests that attack
///
/// Boots each of the matrix's attacks beside a guest that reads the TSC without a pause, and prints that guest's share of the time
/// and the longest gap in it. The same as the rows `fair-…` of `cargo xtask test`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask fairness                              all attacks on all machines
  cargo xtask fairness give-back --host bochs-vmx   those with 'give-back' in their names, on one
  cargo xtask fairness --cpus 1                     attacker and victim on the same processor

Exit status: 0 if all figures are as they have to be, 1 if one is not, 2 if something has to be installed.")]
pub(crate) struct Args {
    /// Run the attacks whose name contains this
    #[arg(default_value = "")]
    filter: String,
    /// Run on this machine alone: qemu-svm, bochs-vmx, bochs-svm or kvm, where it is here
    #[arg(long)]
    host: Option<String>,
    /// 1: attacker and victim share a processor; 2: each vCPU has its own [default: both]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=2))]
    cpus: Option<u32>,
}

impl Args {
    fn means(&self, job: &Job) -> bool {
        let shared = job.row.cpus == Some(1);
        measures(job)
            && job.row.name.contains(&self.filter)
            && self.host.as_ref().is_none_or(|host| host == job.host.name)
            && self.cpus.is_none_or(|cpus| shared == (cpus == 1))
    }
}

pub(crate) fn command(args: &Args) -> Result<ExitCode> {
    setup::ensure(Tool::Qemu)?;
    setup::ensure(Tool::Bochs)?;
    let hosts = matrix::hosts();
    let jobs: Vec<_> = machines::jobs(&hosts).filter(|job| args.means(job)).collect();
    if jobs.is_empty() {
        return Err(usage(none_such(&hosts)));
    }
    let done = machines::run_all(&jobs, &Workshop::for_jobs(&jobs)?)?;
    outln!("\n{:<32}{:<12}{:>8}{:>14}", "attack", "machine", "share", "longest gap");
    for Done { at, verdict, .. } in &done {
        let job = &jobs[*at];
        let figures = verdict.output.lines().find_map(parse);
        let figures = figures.map_or_else(|| format!("{:>8}{:>14}", "-", "-"), columns);
        let why = if let Status::Failed(why) = &verdict.status { why } else { "" };
        outln!("{:<32}{:<12}{figures}  {why}", job.row.name, job.host.name);
    }
    Ok(ExitCode::from(u8::from(done.iter().any(|done| done.verdict.status != Status::Passed))))
}

/// Says what there is instead of what was asked for: attacks by the words of their names that say what they do.
fn none_such(hosts: &[Column]) -> String {
    let jobs: Vec<_> = machines::jobs(hosts).filter(measures).collect();
    let list = |names: BTreeSet<&str>| names.into_iter().collect::<Vec<_>>().join(", ");
    let machines = list(jobs.iter().map(|job| job.host.name).collect());
    let attacks = list(jobs.iter().map(|job| attack(job.row.name)).collect());
    format!("no attack of this name on such a machine; machines: {machines}; attacks: {attacks}")
}

/// An attack's name without what it has in common with others, and without where it is booted.
fn attack(row: &str) -> &str {
    let row = row.strip_prefix("fair-").unwrap_or(row);
    ["-apart", "-shadow", "-vtlb"].iter().fold(row, |name, part| name.strip_suffix(part).unwrap_or(name))
}

/// Whether a guest measures there what an attack leaves to it.
fn measures(job: &Job) -> bool {
    job.row.beside.is_some_and(|(guest, _)| guest == FAIR)
}

/// Reads a line such as `beside| # fairness share=49.8 longest_gap_us=5003`, of whichever VM.
fn parse(line: &str) -> Option<Fairness> {
    Fairness::parse(&line[line.find('#')?..])?.ok()
}

/// What the guest measured, in two columns.
fn columns(Fairness { share_permille: share, longest_gap_us: gap }: Fairness) -> String {
    format!("{:>4}.{} %{:>9}.{} ms", share / 10, share % 10, gap / 1000, gap % 1000 / 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attack_is_named_once() {
        for row in
            ["fair-give-back-2m", "fair-give-back-2m-apart", "fair-give-back-2m-vtlb-apart", "fair-give-back-2m-shadow"]
        {
            assert_eq!(attack(row), "give-back-2m");
        }
    }

    #[test]
    fn figures_are_read_and_shown() {
        let figures = parse("beside| # fairness share=49.8 longest_gap_us=5083\r").unwrap();
        assert_eq!(figures, Fairness { share_permille: 498, longest_gap_us: 5083 });
        assert_eq!(columns(figures), "  49.8 %        5.0 ms");
        assert_eq!(parse("# fairness share=49.8"), None);
        assert_eq!(parse("ok 1 share"), None);
    }
}
