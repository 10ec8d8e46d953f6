//! Boots the matrix's rows on its columns, several at once.

use super::images;
use super::matrix::{self, Expected, Host, ROWS, Row, Source};
use super::results::{Ran, Status};
use crate::build::Images;
use crate::ktap::{self, CaseResult};
use crate::machine::Image;
use crate::progress::Counter;
use crate::setup::{self, Tool};
use crate::size::Size;
use crate::symbols::Symbols;
use crate::trial::{Guest, Hypervisor, Report, Trial};
use crate::verdict::Verdict;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;
use tempfile::TempDir;

const MEMORY: Size = Size::mib(64);
/// How many of a console's last lines are shown of a test that failed.
const LAST_LINES: usize = 30;

/// A row on a host.
struct Job {
    row: &'static Row,
    host: Host,
    expected: Expected,
}

impl Job {
    fn name(&self) -> String {
        format!("{} {}", self.row.name, self.host.name)
    }
}

/// A job done.
struct Done {
    /// Its place in the list of jobs.
    at: usize,
    verdict: Ran,
    subtests: Vec<Ran>,
}

/// Boots all rows whose name, with the host's, contains `filter`, and prints the matrix.
pub(super) fn all(filter: Option<&str>) -> Result<Vec<Ran>> {
    setup::ensure(Tool::Qemu)?;
    setup::ensure(Tool::Bochs)?;
    let hosts = matrix::hosts();
    let jobs: Vec<Job> = jobs(&hosts).filter(|job| filter.is_none_or(|filter| job.name().contains(filter))).collect();
    if jobs.is_empty() {
        return Ok(Vec::new());
    }
    let (images, mut results) = if jobs.iter().any(|job| job.host.with_hypervisor) {
        let images = Images::build()?;
        let check = vector_check(&images);
        (images, vec![check])
    } else {
        (Images::build_guests()?, Vec::new())
    };
    let mut done = run_all(&jobs, &images)?;
    done.sort_by_key(|done| done.at);
    print_matrix(&hosts, &jobs, &done);
    for done in done {
        results.push(done.verdict);
        results.extend(done.subtests);
    }
    Ok(results)
}

fn jobs(hosts: &[Host]) -> impl Iterator<Item = Job> {
    ROWS.iter().flat_map(move |row| {
        hosts.iter().filter_map(move |host| {
            let expected = if host.with_hypervisor { Some(row.hypervised) } else { row.alone };
            let _possible = host.machine(row.cpu)?;
            Some(Job { row, host: host.clone(), expected: expected? })
        })
    })
}

fn vector_check(images: &Images) -> Ran {
    let status = images.check_vectors().map_or_else(|error| Status::Failed(format!("{error:#}")), |_| Status::Passed);
    let ran = Ran { suite: "image".into(), name: "no-vector check".into(), time: None, status, output: String::new() };
    println!("{}", line(&ran, 0));
    ran
}

/// As many at once as there are processors.
fn run_all(jobs: &[Job], images: &Images) -> Result<Vec<Done>> {
    let workers = thread::available_parallelism().map_or(1, usize::from).min(jobs.len());
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let counter = Counter::begin("booting", jobs.len());
    let work = || -> Result<()> {
        while let Some((at, job)) = Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|at| Some((at, jobs.get(at)?)))
        {
            let (verdict, subtests) = job.carry_out(images).with_context(|| job.name())?;
            counter.done(&line(&verdict, subtests.len()));
            done.lock().expect("no worker panics").push(Done { at, verdict, subtests });
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("no worker panics"))
    })?;
    counter.end();
    Ok(done.into_inner().expect("no worker panics"))
}

/// The line of a test, and what is needed to understand a failure.
fn line(ran: &Ran, subtests: usize) -> String {
    let (word, why) = match &ran.status {
        Status::Passed => ("PASS", String::new()),
        Status::Skipped(why) => ("SKIP", format!(": {why}")),
        Status::Failed(why) => ("FAIL", format!(": {why}\n{}", indent(&ran.output))),
    };
    let time = ran.time.map_or_else(String::new, |time| format!("{:.3}s", time.as_secs_f64()));
    let subtests = if subtests > 0 { format!(" ({subtests} subtests)") } else { String::new() };
    format!("        {word} [{time:>9}] {} {}{subtests}{why}", ran.suite, ran.name)
}

fn indent(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].iter().map(|line| format!("            {line}\n")).collect()
}

impl Job {
    fn carry_out(&self, images: &Images) -> Result<(Ran, Vec<Ran>)> {
        let folder = TempDir::new()?;
        let trial = self.trial(images, folder.path())?;
        let report = trial.carry_out(&mut |_| ())?;
        let names = trial.hypervisor.as_ref().map_or_else(|| Ok(Vec::new()), |hv| backtrace(&hv.file, &report))?;
        let status = judge(self.expected, &report, &names).map_or_else(Status::Failed, |()| Status::Passed);
        let verdict = Ran {
            suite: self.host.name.to_string(),
            name: self.row.name.to_string(),
            time: Some(report.finished.elapsed),
            status,
            output: [&report.finished.console[..], &names, &report.finished.complaints].concat().join("\n"),
        };
        // What fails on purpose is told by the verdict alone.
        let subtests = if self.expected.verdict == Verdict::Pass { self.subtests(&report) } else { Vec::new() };
        Ok((verdict, subtests))
    }

    fn trial(&self, images: &Images, folder: &Path) -> Result<Trial> {
        let row = self.row;
        let image = match row.source {
            Source::Guest(name) => images.guest(name),
            Source::Changed(name, change) => {
                let good = fs::read(images.guest(name)).with_context(|| format!("can't read the image of {name}"))?;
                write(folder, row.name, &images::changed(&good, change)?)?
            }
        };
        let modules = row.modules.iter().enumerate().map(|(at, bytes)| {
            let sum = bytes.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
            let words = format!("sum={sum:x} size={} comma=a,b", bytes.len());
            Ok(Image::new(write(folder, &format!("module{at}"), bytes)?, words))
        });
        Ok(Trial {
            machine: self.host.machine(row.cpu).context("not on this host")?,
            hypervisor: self
                .host
                .with_hypervisor
                .then(|| Hypervisor { file: images.hv(), words: format!("log=info {}", row.hv_words) }),
            guest: Guest {
                image: Image::new(image, row.words),
                modules: modules.collect::<Result<_>>()?,
                memory: MEMORY,
                pages: row.pages,
            },
            timeout: row.timeout,
            limit: row.limit,
        })
    }

    /// The guest's own results.
    fn subtests(&self, report: &Report) -> Vec<Ran> {
        let ktap = ktap::Report::parse(report.finished.console.iter().map(String::as_str));
        let subtest = |case: ktap::Case| Ran {
            suite: self.host.name.to_string(),
            name: format!("{}: {}", self.row.name, case.name),
            time: None,
            status: match case.result {
                CaseResult::Ok => Status::Passed,
                CaseResult::Skip => Status::Skipped(case.notes.join("; ")),
                CaseResult::NotOk => Status::Failed(case.notes.join("; ")),
            },
            output: String::new(),
        };
        ktap.cases.into_iter().map(subtest).collect()
    }
}

/// Whether it came as it had to.
fn judge(expected: Expected, report: &Report, backtrace: &[String]) -> Result<(), String> {
    let outcome = &report.outcome;
    if outcome.verdict != expected.verdict {
        Err(format!(
            "{} (status {}) in place of {}: {}",
            outcome.verdict,
            outcome.verdict.status(),
            expected.verdict,
            outcome.text
        ))
    } else if !outcome.text.to_lowercase().contains(&expected.text.to_lowercase()) {
        Err(format!("{} does not say '{}': {}", outcome.verdict, expected.text, outcome.text))
    } else if !backtrace.iter().any(|name| name.contains(expected.backtrace)) && !expected.backtrace.is_empty() {
        Err(format!("no '{}' in the backtrace", expected.backtrace))
    } else {
        Ok(())
    }
}

/// The names of the backtraces on the console.
fn backtrace(hypervisor: &Path, report: &Report) -> Result<Vec<String>> {
    if report.outcome.verdict != Verdict::HvPanic {
        return Ok(Vec::new());
    }
    let symbols = Symbols::load(hypervisor)?;
    Ok(report.finished.console.iter().flat_map(|line| symbols.explain(line)).collect())
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> Result<PathBuf> {
    let file = folder.join(name);
    fs::write(&file, bytes).with_context(|| format!("can't write {}", file.display()))?;
    Ok(file)
}

/// A row for each guest, a column for each host.
fn print_matrix(hosts: &[Host], jobs: &[Job], done: &[Done]) {
    let cell = |row: &Row, host: &Host| {
        let at = jobs.iter().position(|job| job.row.name == row.name && job.host.name == host.name)?;
        let ran = &done.iter().find(|done| done.at == at)?.verdict;
        let word = if ran.status == Status::Passed { "ok" } else { "FAILED" };
        Some(format!("{word} {:.1} s", ran.time.unwrap_or(Duration::ZERO).as_secs_f64()))
    };
    let hosts: Vec<_> = hosts.iter().filter(|host| jobs.iter().any(|job| job.host.name == host.name)).collect();
    println!();
    println!("{:<18}{}", "guest", hosts.iter().map(|host| format!("{:<16}", host.name)).collect::<String>());
    for row in ROWS.iter().filter(|row| jobs.iter().any(|job| job.row.name == row.name)) {
        let cells: String = hosts.iter().map(|host| format!("{:<16}", cell(row, host).unwrap_or("-".into()))).collect();
        println!("{:<18}{}", row.name, cells.trim_end());
    }
    println!();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::{End, Outcome};
    use crate::machine::Finished;

    fn report(verdict: Verdict, text: &str) -> Report {
        let finished = Finished {
            end: End::Exited(Some(1)),
            console: Vec::new(),
            complaints: Vec::new(),
            processor_shut_down: false,
            elapsed: Duration::ZERO,
        };
        Report { outcome: Outcome { verdict, text: text.to_string() }, finished }
    }

    #[test]
    fn a_test_passes_only_as_it_has_to() {
        let panicked = report(Verdict::HvPanic, "Page fault at 0x1000");
        let names = ["    0x10 hv::selftest::page_fault".to_string()];
        let expected = Expected { verdict: Verdict::HvPanic, text: "page fault", backtrace: "selftest::page_fault" };
        assert_eq!(judge(expected, &panicked, &names), Ok(()));
        assert!(judge(expected, &panicked, &[]).is_err());
        assert!(judge(expected, &report(Verdict::HvPanic, "oops"), &names).is_err());
        assert!(judge(expected, &report(Verdict::Pass, "page fault"), &names).is_err());
    }
}
