//! Boots the matrix's rows on its columns, several at once.

use super::images::{self, Change};
use super::matrix::{self, Column, Expected, Row, Source};
use super::results::{Ran, Status};
use crate::build::{self, Images};
use crate::failure::Usage;
use crate::iso;
use crate::judge::{End, VmReport};
use crate::ktap::{self, CaseResult};
use crate::leash::Folder;
use crate::linux::{self, Arch};
use crate::machine::Image;
use crate::machine::input::Input;
use crate::machine::trace::Trace;
use crate::output::outln;
use crate::progress::Counter;
use crate::setup::{self, Tool};
use crate::symbols::Symbols;
use crate::trial::{Backing, Guest, Hypervisor, Report, Trial};
use abi::Verdict;
use abi::lines::{HeapUsage, PastLimit};
use abi::options::level;
use abi::reasons::PAST_LIMIT;
use abi::wire;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// How many of a console's last lines are shown of a test that failed.
const LAST_LINES: usize = 30;

/// What the VM is called whose image is refused beside others.
const REFUSED: &str = "refused";

/// A row on a host.
pub(super) struct Job {
    pub(super) row: &'static Row,
    pub(super) host: Column,
    expected: Expected,
    /// Where the hypervisor's instructions are noted, if they are.
    trace: Option<Trace>,
}

impl Job {
    fn name(&self) -> String {
        format!("{} {}", self.row.name, self.host.name)
    }

    /// Whether it boots the usual image, by an emulator that can trace.
    fn can_be_traced(&self) -> bool {
        self.host.with_hypervisor && !self.row.fault_injection && !self.row.is_linux() && self.host.name != "kvm"
    }

    fn is_meant(&self, filter: &str) -> bool {
        filter.split_whitespace().all(|word| self.name().contains(word))
    }
}

/// A job done.
pub(super) struct Done {
    /// Its place in the list of jobs.
    pub(super) at: usize,
    pub(super) verdict: Ran,
    subtests: Vec<Ran>,
}

/// What jobs share.
pub(super) struct Workshop {
    images: Images,
    /// The hypervisor with fault injection, if a job needs it.
    fault_injection: Option<PathBuf>,
    /// Holds the ISOs that were made.
    isos: Mutex<Folder>,
    /// Held by the job that looks for Debian's packages.
    packages: Mutex<()>,
}

impl Workshop {
    /// Builds what these jobs need.
    pub(super) fn for_jobs(jobs: &[Job]) -> Result<Self> {
        let with_hypervisor = jobs.iter().any(|job| job.host.with_hypervisor);
        let fault_injection =
            jobs.iter().any(|job| job.row.fault_injection).then(Images::build_with_fault_injection).transpose()?;
        let images = if with_hypervisor { Images::build()? } else { Images::build_guests()? };
        Ok(Self { images, fault_injection, isos: Mutex::new(Folder::new()?), packages: Mutex::new(()) })
    }

    /// Writes the image of our guest `name`, changed, to `file`.
    fn changed(&self, name: &str, change: Change, file: &Path) -> Result<PathBuf> {
        let good = fs::read(self.images.guest(name)).with_context(|| format!("can't read the image of {name}"))?;
        write(file, &images::changed(&good, change)?)
    }

    /// Linux and its initial RAM disk, which is put into `folder`. One at a time, so that what is missing is got once.
    fn linux(&self, arch: Arch, stress: &str, folder: &Path) -> Result<(Image, Image)> {
        let _alone = self.packages.lock().expect("no worker panics");
        linux::boot(arch, &linux::script(stress), folder)
    }

    fn memtest(&self) -> Result<PathBuf> {
        let _alone = self.packages.lock().expect("no worker panics");
        linux::memtest()
    }

    /// The ISO of a row: made of what the first host that asks would boot, and the same for the others.
    fn iso(&self, row: &str, trial: &Trial) -> Result<PathBuf> {
        let folder = self.isos.lock().expect("no worker panics");
        let file = folder.path().join(row);
        if !file.exists() {
            iso::make(&trial.images(), &file)?;
        }
        Ok(file)
    }
}

/// Boots all rows whose name, with the host's, contains each word of `filter`, and prints the matrix. Without a filter, those that are
/// rare on a host are booted there only if the run is `thorough`.
pub(super) fn all(filter: Option<&str>, thorough: bool) -> Result<Vec<Ran>> {
    setup::ensure(Tool::Qemu)?;
    setup::ensure(Tool::Bochs)?;
    let hosts = matrix::hosts();
    let guests = build::guest_names()?;
    let is_there = |row: &Row| row.guest().is_some_and(|name| guests.iter().any(|guest| guest == name));
    let jobs = jobs(&hosts).filter(|job| job.row.is_packaged() || is_there(job.row));
    let jobs = jobs.filter(|job| thorough || filter.is_some() || !job.row.rare_on.contains(&job.host.name));
    let jobs: Vec<Job> = jobs.filter(|job| job.is_meant(filter.unwrap_or_default())).collect();
    if jobs.is_empty() {
        return Ok(Vec::new());
    }
    let shop = Workshop::for_jobs(&jobs)?;
    let check = jobs.iter().any(|job| job.host.with_hypervisor).then(|| vector_check(&shop.images));
    let mut results: Vec<_> = check.into_iter().collect();
    let done = run_all(&jobs, &shop)?;
    print_matrix(&hosts, &jobs, &done);
    for done in done {
        results.push(done.verdict);
        results.extend(done.subtests);
    }
    Ok(results)
}

/// Whether the hypervisor's instructions can be noted in this row and column of the matrix.
pub(crate) fn can_trace(row: &str, host: &str) -> bool {
    jobs(&matrix::hosts()).any(|job| job.can_be_traced() && job.row.name == row && job.host.name == host)
}

/// Boots these rows in these columns, as far as there are such, and notes the hypervisor's instructions; true: each ended as it
/// has to.
pub(crate) fn traced(rows: &[String], hosts: &[String], trace: &Trace) -> Result<bool> {
    setup::ensure(Tool::Qemu)?;
    setup::ensure(Tool::Bochs)?;
    let is_meant = |names: &[String], name: &str| names.iter().any(|wanted| wanted == name);
    let machines = matrix::hosts();
    let jobs = jobs(&machines).filter(|job| is_meant(rows, job.row.name) && is_meant(hosts, job.host.name));
    let jobs = jobs.filter(Job::can_be_traced).map(|job| Job { trace: Some(trace.clone()), ..job });
    let jobs: Vec<_> = jobs.collect();
    let done = run_all(&jobs, &Workshop::for_jobs(&jobs)?)?;
    Ok(done.iter().all(|done| done.verdict.status == Status::Passed))
}

/// All rows on all hosts that they are about.
pub(super) fn jobs(hosts: &[Column]) -> impl Iterator<Item = Job> {
    matrix::rows().flat_map(move |row| {
        let hosts = hosts.iter().filter(|host| row.only.is_none_or(|only| only == host.name));
        let hosts = hosts.filter(|host| row.except.is_none_or(|except| except != host.name));
        let hosts = hosts.filter(|host| !(row.typed || row.sends_breaks) || host.takes_input());
        hosts.filter_map(move |host| {
            let expected = if host.with_hypervisor { Some(row.hypervised) } else { row.alone };
            Some(Job { row, host: host.clone(), expected: expected?, trace: None })
        })
    })
}

fn vector_check(images: &Images) -> Ran {
    let status = images.check_vectors().map_or_else(|error| Status::Failed(format!("{error:#}")), |_| Status::Passed);
    let ran = Ran { suite: "image".into(), name: "no-vector check".into(), time: None, status, output: String::new() };
    outln!("{}", line(&ran, 0));
    ran
}

/// As many at once as there are processors, those that take long first, so that none is left alone at the end. In the jobs'
/// order.
pub(super) fn run_all(jobs: &[Job], shop: &Workshop) -> Result<Vec<Done>> {
    let workers = thread::available_parallelism().map_or(1, usize::from).min(jobs.len());
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let counter = Counter::begin("booting", jobs.len());
    let mut order: Vec<_> = jobs.iter().enumerate().collect();
    order.sort_by_key(|(_, job)| !job.host.is_bochs());
    let work = || -> Result<()> {
        while let Some(&(at, job)) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
            let (verdict, subtests) = job.carry_out(shop).with_context(|| job.name())?;
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
    let mut done = done.into_inner().expect("no worker panics");
    done.sort_by_key(|done| done.at);
    Ok(done)
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
    fn carry_out(&self, shop: &Workshop) -> Result<(Ran, Vec<Ran>)> {
        let folder = Folder::new()?;
        let trial = match self.trial(shop, folder.path()) {
            Err(error) if self.row.is_packaged() && error.is::<Usage>() => {
                return Ok((self.skipped(&error), Vec::new()));
            }
            trial => trial?,
        };
        let report = match self.row.iso {
            true => trial.carry_out_from_iso(&shop.iso(self.row.name, &trial)?, &mut |_| ())?,
            false => trial.carry_out(&mut |_| ())?,
        };
        let names = trial.hypervisor.as_ref().map_or_else(|| Ok(Vec::new()), |hv| backtrace(&hv.file, &report))?;
        let judged =
            judge(self.expected, &report, &names, self.host.is_bochs()).and_then(|()| self.judge_flush(&report));
        let judged = judged.and_then(|()| self.judge_refused(&report)).and_then(|()| self.judge_limit(&report));
        let judged = judged.and_then(|()| self.judge_warnings(&report));
        let status = judged.map_or_else(Status::Failed, |()| Status::Passed);
        let verdict = Ran {
            suite: self.host.name.to_string(),
            name: self.row.name.to_string(),
            time: Some(report.finished.elapsed),
            status,
            output: [&report.finished.console[..], &names, &report.finished.complaints].concat().join("\n"),
        };
        // What fails on purpose is told by the verdict alone.
        let subtests = if self.expected.verdict == Verdict::Pass { self.subtests(&report.vms) } else { Vec::new() };
        Ok((verdict, subtests))
    }

    /// Its packages can't be had.
    fn skipped(&self, why: &anyhow::Error) -> Ran {
        Ran {
            suite: self.host.name.to_string(),
            name: self.row.name.to_string(),
            time: None,
            status: Status::Skipped(format!("{why:#}")),
            output: String::new(),
        }
    }

    /// A kernel warns of nothing that it does not warn of on QEMU alone.
    fn judge_warnings(&self, report: &Report) -> Result<(), String> {
        let console = report.finished.console.iter().map(String::as_str);
        match linux::unexpected(console).filter(|_| self.row.is_linux()) {
            Some(warning) => Err(format!("the kernel warns: {warning}")),
            None => Ok(()),
        }
    }

    /// The guest's tests have to detect a flush that is left out.
    fn judge_flush(&self, report: &Report) -> Result<(), String> {
        let by_tests = self.row.fault_injection && self.expected.verdict == Verdict::GuestFailed;
        match by_tests && !report.guests_failed_tests() {
            true => Err("no test of the guest's noticed the missing flush".to_string()),
            false => Ok(()),
        }
    }

    /// A VM that reached its limit was ended there. In real time the machine that runs all this can be late as well.
    fn judge_limit(&self, report: &Report) -> Result<(), String> {
        let counts_time = self.host.is_bochs() || self.row.icount;
        let hypervised = self.host.with_hypervisor && self.expected.text == PAST_LIMIT;
        if !hypervised || !counts_time {
            return Ok(());
        }
        let name = report.vms.first().filter(|_| report.vms.len() > 1).map(|vm| vm.name.as_str());
        let line = |line: &String| PastLimit::parse(wire::own(line, name)?);
        match report.finished.console.iter().find_map(line) {
            Some(Ok(PastLimit { us })) if us <= LATEST_US => Ok(()),
            Some(Ok(PastLimit { us })) => Err(format!("the VM was ended {us} us past its limit")),
            Some(Err(broken)) => Err(broken.to_string()),
            None => Err("nothing says when the VM was ended".to_string()),
        }
    }

    /// The VM that is refused beside others is told its own reason.
    fn judge_refused(&self, report: &Report) -> Result<(), String> {
        let Some((_, text)) = self.row.refused_beside else { return Ok(()) };
        let outcome = report.vms.iter().find(|vm| vm.name == REFUSED).map(|vm| &vm.outcome);
        match outcome {
            Some(outcome) if outcome.verdict == Verdict::BadImage && outcome.text.contains(text) => Ok(()),
            Some(outcome) => Err(format!("the VM '{REFUSED}' was not refused by '{text}': {outcome}")),
            None => Err(format!("there is no VM '{REFUSED}'")),
        }
    }

    fn trial(&self, shop: &Workshop, folder: &Path) -> Result<Trial> {
        let row = self.row;
        let words = row.bochs_words.filter(|_| self.host.is_bochs()).unwrap_or(row.words);
        let mut initrd = None;
        let image = match row.source {
            Source::Guest(name) => Image::new(shop.images.guest(name), words),
            Source::Changed(name, change) => Image::new(shop.changed(name, change, &folder.join(row.name))?, words),
            Source::Linux(arch) => {
                let (kernel, disk) = shop.linux(arch, words, folder)?;
                initrd = Some(disk);
                kernel
            }
            Source::Memtest => Image::new(shop.memtest()?, words),
        };
        let modules = row.modules.iter().enumerate().map(|(at, bytes)| {
            let sum = bytes.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
            let words = format!("sum={sum:x} size={} comma=a,b", bytes.len());
            Ok(Image::new(write(&folder.join(format!("module{at}")), bytes)?, words))
        });
        let typed = || {
            let bytes: Vec<u8> = (0..abi::typed::BYTES).map(abi::typed::byte).collect();
            write(&folder.join("typed"), &bytes).map(Input::File)
        };
        let guest = Guest {
            modules: initrd.into_iter().map(Ok).chain(modules).collect::<Result<_>>()?,
            pages: row.pages,
            paging: row.paging,
            cpuid: row.cpuid.to_string(),
            vcpus: row.vcpus,
            memory: row.memory,
            input: row.typed.then(typed).transpose()?.or(row.sends_breaks.then_some(Input::Breaks)),
            on_reset: row.on_reset,
            ..Guest::new(image)
        };
        let more = (1..=row.more).map(|number| Guest { name: format!("vm{number}"), ..guest.clone() });
        let more: Vec<_> = more.filter(|_| self.host.with_hypervisor).collect();
        let machine = self.host.machine(row);
        let counts_instructions = machine.counts_instructions();
        let in_real_time = row.beside_in_real_time.filter(|_| !counts_instructions);
        let beside = row.beside.filter(|_| self.host.with_hypervisor).map(|(name, words)| Guest {
            name: "beside".to_string(),
            pages: row.pages,
            backing: if row.reserved_beside { Backing::Reserve } else { Backing::Touch },
            ..Guest::new(Image::new(shop.images.guest(name), in_real_time.unwrap_or(words)))
        });
        let refused = row.refused_beside.zip(row.guest());
        let refused = refused.map(|((change, _), name)| shop.changed(name, change, &folder.join(REFUSED)));
        let refused =
            refused.transpose()?.map(|image| Guest { name: REFUSED.to_string(), ..Guest::new(Image::new(image, "")) });
        let hypervisor = if row.fault_injection { shop.fault_injection.clone() } else { Some(shop.images.hv()) };
        let trial = Trial {
            machine,
            cpus: row.cpus,
            ram: row.ram,
            hypervisor: hypervisor
                .filter(|_| self.host.with_hypervisor)
                .map(|file| Hypervisor::new(file, level::INFO, row.hv_words)),
            guests: std::iter::once(guest).chain(more).chain(beside).chain(refused).collect(),
            timeout: row.timeout,
            limit: row.limit_in_real_time.filter(|_| !counts_instructions).or(row.limit),
        };
        Ok(match &self.trace {
            Some(trace) => trial.traced(trace),
            None => trial,
        })
    }

    /// The guests' own results.
    fn subtests(&self, vms: &[VmReport]) -> Vec<Ran> {
        let several = vms.len() > 1;
        let subtest = |vm: &VmReport, case: &ktap::Case| Ran {
            suite: self.host.name.to_string(),
            name: match several {
                true => format!("{}: {}: {}", self.row.name, vm.name, case.name),
                false => format!("{}: {}", self.row.name, case.name),
            },
            time: None,
            status: match case.result {
                CaseResult::Ok => Status::Passed,
                CaseResult::Skip => Status::Skipped(case.notes.join("; ")),
                CaseResult::NotOk => Status::Failed(case.notes.join("; ")),
            },
            output: String::new(),
        };
        vms.iter().flat_map(|vm| vm.ktap.cases.iter().map(move |case| subtest(vm, case))).collect()
    }
}

/// How late a VM may be ended at its limit, in microseconds.
const LATEST_US: u64 = 100_000;

/// Whether it came as it had to. `logs`: the emulator keeps a log, whose end has to be shown when it was killed.
fn judge(expected: Expected, report: &Report, backtrace: &[String], logs: bool) -> Result<(), String> {
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
    } else if !backtrace.iter().chain(&report.finished.console).any(|line| line.contains(expected.line))
        && !expected.line.is_empty()
    {
        Err(format!("no '{}' in the backtrace or on the console", expected.line))
    } else if let Some(line) = report.finished.console.iter().find(|line| allocates(line)) {
        Err(format!("a guest made the hypervisor allocate: {line}"))
    } else if expected.verdict == Verdict::NoMemory {
        // No VM was begun.
        Ok(())
    } else if let Some(vm) = beside(report).find(|vm| vm.outcome.verdict != Verdict::Pass) {
        Err(format!("the VM beside did not pass: {}", vm.outcome))
    } else if matches!(report.finished.end, End::TimedOut(_)) && report.finished.complaints.is_empty() && logs {
        Err("nothing of the emulator's log is shown".to_string())
    } else {
        Ok(())
    }
}

/// Whether the line reports allocations while guests ran, or is a heap line that cannot be parsed.
fn allocates(line: &str) -> bool {
    let usage = wire::own(line, None).and_then(HeapUsage::parse);
    usage.is_some_and(|usage| usage.map_or(true, |usage| usage.allocations != 0))
}

/// The VMs that have to pass, whatever becomes of the first.
fn beside(report: &Report) -> impl Iterator<Item = &VmReport> {
    report.vms.iter().skip(1).filter(|vm| vm.name != REFUSED)
}

/// The names of the backtraces on the console.
fn backtrace(hypervisor: &Path, report: &Report) -> Result<Vec<String>> {
    if report.outcome.verdict != Verdict::HvPanic {
        return Ok(Vec::new());
    }
    let symbols = Symbols::load(hypervisor)?;
    Ok(report.finished.console.iter().flat_map(|line| symbols.explain(line)).collect())
}

fn write(file: &Path, bytes: &[u8]) -> Result<PathBuf> {
    fs::write(file, bytes).with_context(|| format!("can't write {}", file.display()))?;
    Ok(file.to_path_buf())
}

/// A row for each guest, a column for each host.
fn print_matrix(hosts: &[Column], jobs: &[Job], done: &[Done]) {
    let cell = |row: &Row, host: &Column| {
        let at = jobs.iter().position(|job| job.row.name == row.name && job.host.name == host.name)?;
        let ran = &done.iter().find(|done| done.at == at)?.verdict;
        let word = match ran.status {
            Status::Passed => "ok",
            Status::Skipped(_) => return Some("skipped".to_string()),
            Status::Failed(_) => "FAILED",
        };
        Some(format!("{word} {:.1} s", ran.time.unwrap_or(Duration::ZERO).as_secs_f64()))
    };
    let hosts: Vec<_> = hosts.iter().filter(|host| jobs.iter().any(|job| job.host.name == host.name)).collect();
    outln!("");
    let rows: Vec<_> = matrix::rows().filter(|row| jobs.iter().any(|job| job.row.name == row.name)).collect();
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or_default().max("guest".len()) + 2;
    outln!("{:<width$}{}", "guest", hosts.iter().map(|host| format!("{:<16}", host.name)).collect::<String>());
    for row in rows {
        let cells: String = hosts.iter().map(|host| format!("{:<16}", cell(row, host).unwrap_or("-".into()))).collect();
        outln!("{:<width$}{}", row.name, cells.trim_end());
    }
    outln!("");
    for Done { verdict, .. } in done {
        if let Status::Skipped(why) = &verdict.status {
            outln!("skipped: {} on {}: {why}", verdict.name, verdict.suite);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::Outcome;
    use crate::machine::Finished;

    fn report(verdict: Verdict, text: &str) -> Report {
        let finished = Finished {
            end: End::Exited(Some(1)),
            console: Vec::new(),
            complaints: Vec::new(),
            processor_shut_down: false,
            elapsed: Duration::ZERO,
        };
        Report { outcome: Outcome { verdict, text: text.to_string() }, vms: Vec::new(), finished }
    }

    #[test]
    fn a_filter_takes_a_name_in_either_order() {
        let hosts = matrix::hosts();
        let meant = |filter| jobs(&hosts).filter(|job| job.is_meant(filter)).map(|job| job.name()).collect::<Vec<_>>();
        assert_eq!(meant("balloon qemu-svm"), ["balloon qemu-svm"]);
        assert_eq!(meant("qemu-svm ball"), ["balloon qemu-svm"]);
        assert_eq!(meant("balloon no-such"), [""; 0]);
    }

    #[test]
    fn a_test_passes_only_as_it_has_to() {
        let panicked = report(Verdict::HvPanic, "Page fault at 0x1000");
        let names = ["    0x10 hv::selftest::page_fault".to_string()];
        let expected = Expected { verdict: Verdict::HvPanic, text: "page fault", line: "selftest::page_fault" };
        assert_eq!(judge(expected, &panicked, &names, true), Ok(()));
        assert!(judge(expected, &panicked, &[], true).is_err());
        assert!(judge(expected, &report(Verdict::HvPanic, "oops"), &names, true).is_err());
        assert!(judge(expected, &report(Verdict::Pass, "page fault"), &names, true).is_err());
    }

    #[test]
    fn no_guest_makes_the_hypervisor_allocate() {
        let line = |count: u32| format!("hv: heap: 5 of 9 KiB used, {count} allocations while guests ran");
        assert!(allocates(&line(1)) && allocates(&line(10)) && !allocates(&line(0)));
        assert!(allocates("hv: heap: 5 of 9 KiB used") && !allocates("hv: info: heap"));
        let expected = Expected { verdict: Verdict::Pass, text: "", line: "" };
        let mut passed = report(Verdict::Pass, "");
        passed.finished.console.push(line(0));
        assert_eq!(judge(expected, &passed, &[], false), Ok(()));
        passed.finished.console.push(line(3));
        assert!(judge(expected, &passed, &[], false).is_err());
    }

    #[test]
    fn what_was_killed_has_to_show_its_log() {
        let mut killed = report(Verdict::Hang, "no verdict");
        killed.finished.end = End::TimedOut(Duration::from_secs(4));
        let expected = Expected { verdict: Verdict::Hang, text: "", line: "" };
        assert!(judge(expected, &killed, &[], true).is_err());
        assert_eq!(judge(expected, &killed, &[], false), Ok(()));
        killed.finished.complaints.push("at 0x1000".to_string());
        assert_eq!(judge(expected, &killed, &[], true), Ok(()));
    }
}
