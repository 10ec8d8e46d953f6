//! From what a machine did to a verdict: the one place that decides.

use crate::accounts::{self, Accounts};
use crate::demands::{self, Demands};
use crate::ktap;
use abi::Verdict;
use abi::lines::{Operations, VerdictLine};
use abi::ports;
use abi::reasons;
use abi::wire::{self, Part};
use std::fmt;
use std::time::Duration;

/// How the emulator ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// By itself; None if by a signal.
    Exited(Option<i32>),
    /// It was killed when this much time had passed.
    TimedOut(Duration),
}

/// What the emulator's exit status tells beyond the console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExitProtocol {
    /// QEMU with the hypervisor: the exit port's value V makes the status (V << 1) | 1, a reset makes it 0.
    QemuHv,
    /// QEMU with the guest alone, and the same port.
    QemuBare,
    /// Bochs with the hypervisor: the status says nothing.
    BochsHv,
}

/// All that is known of a finished run.
pub(crate) struct Evidence<'a> {
    pub(crate) protocol: ExitProtocol,
    /// The VMs' names, in their order.
    pub(crate) vms: &'a [String],
    /// What is demanded of each of them.
    pub(crate) demands: &'a [Demands],
    pub(crate) end: End,
    /// The console, line by line.
    pub(crate) console: &'a [String],
    /// What the emulator said itself.
    pub(crate) complaints: &'a [String],
    /// The emulator saw the processor shut down (Bochs writes that to its log).
    pub(crate) processor_shut_down: bool,
}

/// A verdict and the words for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) verdict: Verdict,
    pub(crate) text: String,
}

impl Outcome {
    fn new(verdict: Verdict, text: impl Into<String>) -> Self {
        Self { verdict, text: text.into() }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.verdict {
            Verdict::Pass => write!(f, "passed: {}", self.text),
            verdict => write!(f, "FAILED: {verdict} (status {}): {}", verdict.status(), self.text),
        }
    }
}

/// A run judged, and each VM of it.
#[derive(Debug)]
pub(crate) struct Judgement {
    pub(crate) outcome: Outcome,
    pub(crate) vms: Vec<VmReport>,
}

/// What is known of one VM.
#[derive(Debug)]
pub(crate) struct VmReport {
    pub(crate) name: String,
    pub(crate) outcome: Outcome,
    pub(crate) ktap: ktap::Report,
    /// None where the hypervisor gave none; an error where it makes no sense.
    pub(crate) accounts: Option<Result<Accounts, String>>,
    /// The guest's own count of table operations.
    pub(crate) operations: Option<u64>,
}

impl VmReport {
    /// How much was done, in brackets; nothing where nothing was counted.
    pub(crate) fn work(&self) -> String {
        let guest = self.operations.map(|count| format!("{count} operations by the guest"));
        let tables = self.accounts.as_ref().and_then(|accounts| accounts.as_ref().ok());
        let tables = tables.map(|tables| format!("{} on its tables", tables.operations));
        let parts: Vec<_> = guest.into_iter().chain(tables).collect();
        if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) }
    }
}

/// Judges a run: the worst of what the hypervisor says and what the guests reported.
pub(crate) fn judge(evidence: &Evidence<'_>) -> Judgement {
    let outcome = match evidence.protocol {
        ExitProtocol::QemuBare => judge_bare(evidence),
        ExitProtocol::QemuHv | ExitProtocol::BochsHv => judge_hv(evidence),
    };
    if let [only] = evidence.vms {
        let vm = vm_report(evidence, 0, only, outcome);
        return Judgement { outcome: vm.outcome.clone(), vms: vec![vm] };
    }
    let report = |(index, vm): (usize, &String)| vm_report(evidence, index, vm, verdict_on(evidence, vm));
    let vms: Vec<_> = evidence.vms.iter().enumerate().map(report).collect();
    Judgement { outcome: worst(outcome, &vms), vms }
}

/// A pass stands only if it is every VM's. The hypervisor's word on the whole has to be its word on the VMs, but what a
/// guest reported can make it worse.
fn worst(outcome: Outcome, vms: &[VmReport]) -> Outcome {
    let outcome = if says_halted(&outcome) && vms.iter().any(|vm| is_halt(&vm.outcome)) {
        powered_off_by_halt()
    } else {
        outcome
    };
    match vms.iter().find(|vm| vm.outcome.verdict != Verdict::Pass) {
        Some(vm) if outcome.verdict == Verdict::Pass => {
            Outcome::new(vm.outcome.verdict, format!("{}: {}", vm.name, vm.outcome.text))
        }
        _ => outcome,
    }
}

/// Reads a console line as a verdict on the run, or on one VM among several. None: it is some other line. An error: it contradicts
/// itself.
fn verdict_line<'a>(line: &'a str, vm: Option<&str>) -> Option<Result<VerdictLine<&'a str>, String>> {
    let read = VerdictLine::parse(wire::own(line, vm)?)?;
    Some(read.map_err(|broken| format!("{broken}: {line}")))
}

/// What the hypervisor says of one VM among several.
fn verdict_on(evidence: &Evidence<'_>, vm: &str) -> Outcome {
    match evidence.console.iter().rev().find_map(|line| verdict_line(line, Some(vm))) {
        Some(Ok(line)) => Outcome::new(line.verdict, line.text),
        Some(Err(why)) => Outcome::new(Verdict::Unknown, why),
        None => Outcome::new(Verdict::Unknown, "no verdict on this VM"),
    }
}

/// A VM's report, with the outcome made worse if its own tests failed, or its console is not as demanded.
fn vm_report(evidence: &Evidence<'_>, index: usize, vm: &str, outcome: Outcome) -> VmReport {
    let tag = Some(vm).filter(|_| evidence.vms.len() > 1);
    let lines: Vec<&str> = evidence.console.iter().filter_map(|line| unmarked(line, tag)).collect();
    let ktap = ktap::Report::parse(lines.iter().copied());
    let accounts = evidence.console.iter().rev().find_map(|line| accounts::parse(line, tag));
    VmReport {
        name: vm.to_string(),
        outcome: hold_to_accounts(
            hold_to_demands(hold_to_ktap(or_halt(outcome, &lines), &ktap), &evidence.demands[index], &lines),
            accounts.as_ref(),
        ),
        ktap,
        accounts,
        operations: lines.iter().rev().find_map(|line| Some(Operations::parse(line.trim())?.ok()?.0)),
    }
}

/// The line as this VM wrote it: without its mark if there are several. None: it is not this VM's.
fn unmarked<'a>(line: &'a str, vm: Option<&str>) -> Option<&'a str> {
    let (part, text) = wire::parse(line.as_bytes(), vm)?;
    // Pieces were joined: a rest that is still there is the rest of nothing.
    (part == Part::Fresh).then(|| &line[line.len() - text.len()..])
}

/// A kernel that says that it halts, and then does, has powered off: it does so where it can't turn its machine off.
fn or_halt(outcome: Outcome, lines: &[&str]) -> Outcome {
    if says_halted(&outcome) && demands::is_halted(lines.iter().copied()) { powered_off_by_halt() } else { outcome }
}

/// Whether the hypervisor says that the guest, or one of several, halted for ever.
fn says_halted(outcome: &Outcome) -> bool {
    outcome.verdict == Verdict::GuestKilled && outcome.text.ends_with(reasons::HALTED)
}

fn powered_off_by_halt() -> Outcome {
    Outcome::new(Verdict::Pass, POWERED_OFF_BY_HALT)
}

fn is_halt(outcome: &Outcome) -> bool {
    outcome.text == POWERED_OFF_BY_HALT
}

const POWERED_OFF_BY_HALT: &str = "the guest powered off: it said that it halts, and did";

/// A pass is none if the hypervisor's own account says that something did not come back.
fn hold_to_accounts(outcome: Outcome, accounts: Option<&Result<Accounts, String>>) -> Outcome {
    if outcome.verdict != Verdict::Pass {
        return outcome;
    }
    let fault = match accounts {
        Some(Ok(accounts)) => accounts::fault(accounts).map(|fault| (Verdict::Leak, fault)),
        Some(Err(broken)) => Some((Verdict::Unknown, broken.clone())),
        None => None,
    };
    fault.map_or(outcome, |(verdict, fault)| Outcome::new(verdict, format!("the verdict is pass, but {fault}")))
}

/// A guest that ends with success although a test of its own failed has failed.
fn hold_to_ktap(outcome: Outcome, report: &ktap::Report) -> Outcome {
    if outcome.verdict != Verdict::Pass {
        return outcome;
    }
    let failed: Vec<_> = report.failed().map(|case| case.name.as_str()).collect();
    if !failed.is_empty() {
        Outcome::new(Verdict::GuestFailed, format!("the guest reported success, but not ok: {}", failed.join(", ")))
    } else if let Some(fault) = report.faults.first() {
        Outcome::new(Verdict::GuestFailed, format!("the guest reported success, but its KTAP is broken: {fault}"))
    } else {
        outcome
    }
}

/// A pass is none if the console is not as demanded. A kernel that said why it failed has failed, whether it then hung or had the
/// machine reset.
fn hold_to_demands(outcome: Outcome, demands: &Demands, lines: &[&str]) -> Outcome {
    let is_the_guests = matches!(outcome.verdict, Verdict::Pass | Verdict::Hang | Verdict::GuestTripleFault);
    if let Some(line) = demands.failure(lines).filter(|_| is_the_guests) {
        return Outcome::new(Verdict::GuestFailed, format!("the guest said: {}", line.trim()));
    }
    match demands.missing(lines) {
        Some(text) if outcome.verdict == Verdict::Pass => {
            Outcome::new(Verdict::GuestFailed, format!("the guest ended without a word of '{text}'"))
        }
        _ => outcome,
    }
}

fn judge_hv(evidence: &Evidence<'_>) -> Outcome {
    // The verdict is the very last line: what a guest prints to look like one comes before it.
    let verdict = last_line(evidence.console).and_then(|line| verdict_line(line, None));
    match (verdict, evidence.end) {
        (Some(Err(why)), _) => Outcome::new(Verdict::Unknown, why),
        (Some(Ok(line)), End::Exited(status)) => {
            let told = ports::exit_status(line.verdict.status().into());
            if evidence.protocol == ExitProtocol::QemuHv && status != Some(told) {
                let text = format!("the console says {}, but QEMU ended with {}", line.verdict, status_word(status));
                return Outcome::new(Verdict::Unknown, text);
            }
            Outcome::new(line.verdict, line.text)
        }
        (Some(Ok(line)), End::TimedOut(_)) => {
            Outcome::new(Verdict::Unknown, format!("the machine went on after its verdict ({})", line.verdict))
        }
        (None, _) if evidence.processor_shut_down => hv_triple_fault(evidence),
        (None, End::TimedOut(after)) => hang(evidence, after),
        (None, End::Exited(Some(0))) if evidence.protocol == ExitProtocol::QemuHv => hv_triple_fault(evidence),
        (None, End::Exited(status)) => no_verdict(evidence, status),
    }
}

fn judge_bare(evidence: &Evidence<'_>) -> Outcome {
    let status = match evidence.end {
        End::TimedOut(after) => return hang(evidence, after),
        End::Exited(Some(0)) if demands::is_powered_off(evidence.console.iter().map(String::as_str)) => {
            return Outcome::new(Verdict::Pass, "the guest powered off");
        }
        End::Exited(Some(0)) => return Outcome::new(Verdict::GuestTripleFault, "the machine was reset"),
        End::Exited(status) => status,
    };
    match status.and_then(ports::exit_value) {
        // QEMU ends with that status also when it can't start at all; then it says why, and the console is empty.
        Some(ports::SUCCESS) if !evidence.complaints.is_empty() && evidence.console.is_empty() => {
            no_verdict(evidence, status)
        }
        Some(ports::SUCCESS) => Outcome::new(Verdict::Pass, "the guest reported success"),
        Some(value) => Outcome::new(Verdict::GuestFailed, format!("the guest reported {value}")),
        None => no_verdict(evidence, status),
    }
}

fn hv_triple_fault(evidence: &Evidence<'_>) -> Outcome {
    Outcome::new(Verdict::HvTripleFault, format!("the machine was reset without a verdict; {}", last_words(evidence)))
}

/// Begins the text of the verdict on a run that has reached its time-out.
pub(crate) const NO_VERDICT_WITHIN: &str = "no verdict within";

fn hang(evidence: &Evidence<'_>, after: Duration) -> Outcome {
    Outcome::new(Verdict::Hang, format!("{NO_VERDICT_WITHIN} {} s; {}", after.as_secs(), last_words(evidence)))
}

fn no_verdict(evidence: &Evidence<'_>, status: Option<i32>) -> Outcome {
    let why = evidence.complaints.last().map_or_else(|| last_words(evidence), Clone::clone);
    Outcome::new(Verdict::Unknown, format!("the emulator ended with {}; {why}", status_word(status)))
}

fn status_word(status: Option<i32>) -> String {
    status.map_or_else(|| "a signal".to_string(), |status| format!("status {status}"))
}

fn last_line(console: &[String]) -> Option<&str> {
    console.iter().rev().map(|line| line.trim_end()).find(|line| !line.is_empty())
}

fn last_words(evidence: &Evidence<'_>) -> String {
    last_line(evidence.console)
        .map_or_else(|| "the console stayed empty".to_string(), |line| format!("last line: {line}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::console::Console;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_string).collect()
    }

    fn judgement(protocol: ExitProtocol, vms: &[&str], end: End, console: &str, complaints: &str) -> Judgement {
        let (console, complaints) = (lines(console), lines(complaints));
        let vms: Vec<_> = vms.iter().map(|vm| (*vm).to_string()).collect();
        let demands = vec![Demands::default(); vms.len()];
        judge(&Evidence {
            protocol,
            vms: &vms,
            demands: &demands,
            end,
            console: &console,
            complaints: &complaints,
            processor_shut_down: false,
        })
    }

    fn verdict_of(protocol: ExitProtocol, end: End, console: &str, complaints: &str) -> Outcome {
        judgement(protocol, &["vm0"], end, console, complaints).outcome
    }

    fn hv(end: End, console: &str) -> Verdict {
        verdict_of(ExitProtocol::QemuHv, end, console, "").verdict
    }

    const TIMED_OUT: End = End::TimedOut(Duration::from_secs(60));

    const fn exited(status: i32) -> End {
        End::Exited(Some(status))
    }

    const HALTED: &str = "hv: verdict: guest-killed 4 the guest halted with interrupts off: nothing can wake it";
    const SAYS_SO: &str = "[    9.1] reboot: System halted";

    #[test]
    fn a_kernel_that_says_that_it_halts_has_powered_off() {
        let halted = |console: &str| hv(exited(9), &format!("{console}\n{HALTED}"));
        assert_eq!(halted(SAYS_SO), Verdict::Pass);
        assert_eq!(halted("nothing"), Verdict::GuestKilled);
        assert_eq!(halted("hv: reboot: System halted"), Verdict::GuestKilled, "that is the hypervisor's");
        for failure in ["KTAP version 1\n1..1\nnot ok 1 script", "Kernel panic - not syncing", "BUG: it"] {
            assert_eq!(halted(&format!("{failure}\n{SAYS_SO}")), Verdict::GuestFailed, "{failure}");
        }
        let otherwise = "hv: verdict: guest-killed 4 the guest asked for a reset";
        assert_eq!(hv(exited(9), &format!("{SAYS_SO}\n{otherwise}")), Verdict::GuestKilled);
    }

    #[test]
    fn demands_hold_for_a_kernel_that_halted() {
        let console = lines(&format!("{SAYS_SO}\n{HALTED}"));
        let judged = |demands: Demands| {
            let (vms, complaints) = (["vm0".to_string()], []);
            let (protocol, end) = (ExitProtocol::QemuHv, exited(9));
            let evidence = Evidence {
                protocol,
                vms: &vms,
                demands: &[demands],
                end,
                console: &console,
                complaints: &complaints,
                processor_shut_down: false,
            };
            judge(&evidence).outcome.verdict
        };
        assert_eq!(judged(Demands::expecting("System")), Verdict::Pass);
        assert_eq!(judged(Demands::expecting("all done")), Verdict::GuestFailed);
        assert_eq!(judged(Demands::failing_on("System")), Verdict::GuestFailed);
    }

    #[test]
    fn each_of_several_kernels_may_halt() {
        let verdict = |name: &str, rest: &str| format!("hv: {name}: verdict: {rest}\n");
        let halted = "guest-killed 4 the guest halted with interrupts off: nothing can wake it";
        let last = "hv: verdict: guest-killed 4 a: the guest halted with interrupts off: nothing can wake it";
        let passes = verdict("b", "pass 0 the guest powered off");
        let console = format!("a| reboot: System halted\n{}{passes}{last}", verdict("a", halted));
        let judged = |console: &str| {
            let judgement = judgement(ExitProtocol::QemuHv, &["a", "b"], exited(9), console, "");
            (judgement.outcome.verdict, judgement.vms[0].outcome.verdict)
        };
        assert_eq!(judged(&console), (Verdict::Pass, Verdict::Pass));
        let other = console.replace("a| reboot", "b| reboot");
        assert_eq!(judged(&other), (Verdict::GuestKilled, Verdict::GuestKilled), "another VM said so");
        let failed = console.replace(&passes, &verdict("b", "guest-failed 1 the guest reported 1"));
        assert_eq!(judged(&failed), (Verdict::GuestFailed, Verdict::Pass));
    }

    #[test]
    fn the_line_and_the_status_agree() {
        for (line, status, verdict) in [
            ("pass 0 all is well", 1, Verdict::Pass),
            ("guest-failed 1 reported 1", 3, Verdict::GuestFailed),
            ("usage 2 no such word", 5, Verdict::Usage),
            ("guest-triple-fault 3", 7, Verdict::GuestTripleFault),
            ("guest-killed 4", 9, Verdict::GuestKilled),
            ("hv-panic 5 oops", 11, Verdict::HvPanic),
            ("no-virtualization 7 SVM", 15, Verdict::NoVirtualization),
            ("bad-image 8 short", 17, Verdict::BadImage),
            ("leak 9 3 frames", 19, Verdict::Leak),
            ("no-memory 11 vm0: frames", 23, Verdict::NoMemory),
            ("hang 124 at 0x1000", 249, Verdict::Hang),
        ] {
            let console = format!("hv: hello\nhv: verdict: {line}\n");
            assert_eq!(hv(exited(status), &console), verdict, "{line}");
            assert_eq!(verdict_of(ExitProtocol::BochsHv, exited(1), &console, "").verdict, verdict, "{line}");
            assert_eq!(hv(exited(status ^ 2), &console), Verdict::Unknown, "{line}");
        }
    }

    #[test]
    fn a_guest_can_not_forge_a_verdict() {
        assert_eq!(hv(exited(7), "hv: verdict: pass 0\nhv: verdict: guest-triple-fault 3"), Verdict::GuestTripleFault);
        assert_eq!(hv(exited(0), "hv: verdict: pass 0"), Verdict::Unknown);
        assert_eq!(hv(TIMED_OUT, "hv: verdict: pass 0"), Verdict::Unknown);
        assert_eq!(hv(TIMED_OUT, "hv: verdict: pass 0\nand on it goes"), Verdict::Hang);
    }

    #[test]
    fn no_verdict_line() {
        assert_eq!(hv(exited(0), "hv: hello"), Verdict::HvTripleFault);
        assert_eq!(hv(exited(0), ""), Verdict::HvTripleFault);
        assert_eq!(hv(exited(1), "hv: hello"), Verdict::Unknown);
        assert_eq!(hv(End::Exited(None), "hv: hello"), Verdict::Unknown);
        assert_eq!(hv(exited(1), "hv: verdict: success 0"), Verdict::Unknown);
        let hang = verdict_of(ExitProtocol::QemuHv, TIMED_OUT, "hv: hello\n\nhv: working\n\n", "");
        assert_eq!(hang.to_string(), "FAILED: hang (status 124): no verdict within 60 s; last line: hv: working");
        let refused = verdict_of(ExitProtocol::QemuHv, exited(1), "", "qemu: no such file");
        assert_eq!(
            refused.to_string(),
            "FAILED: no-verdict (status 10): the emulator ended with status 1; qemu: no such file"
        );
    }

    #[test]
    fn a_linux_that_powers_off_has_passed_unless_its_console_says_otherwise() {
        const OFF: &str = "[    9.0] reboot: Power down";
        let told = |end, console: String| verdict_of(ExitProtocol::QemuBare, end, &console, "");
        let off = told(exited(0), format!("KTAP version 1\n1..1\nok 1 script\n{OFF}"));
        assert_eq!((off.verdict, off.text.as_str()), (Verdict::Pass, "the guest powered off"));
        let reset = told(exited(0), "[    9.0] reboot: Restarting system".to_string());
        assert_eq!(reset.verdict, Verdict::GuestTripleFault);
        let not_ok = told(exited(0), format!("KTAP version 1\n1..1\nnot ok 1 script\n{OFF}"));
        assert_eq!(not_ok.verdict, Verdict::GuestFailed);
        for (end, last) in [(exited(0), OFF), (exited(0), ""), (TIMED_OUT, "")] {
            let panicked = told(end, format!("[    1.0] Kernel panic - not syncing: x\n{last}"));
            assert_eq!(panicked.to_string().split(": ").nth(2), Some("the guest said"), "{panicked}");
            assert_eq!(panicked.verdict, Verdict::GuestFailed);
        }
        // A panic of the guest does not hide what the hypervisor did.
        assert_eq!(hv(exited(11), "Kernel panic\nhv: verdict: hv-panic 5 oops"), Verdict::HvPanic);
    }

    #[test]
    fn bochs_tells_a_triple_fault_by_its_log() {
        let console = lines("hv: hello");
        for end in [exited(1), TIMED_OUT] {
            let evidence = Evidence {
                protocol: ExitProtocol::BochsHv,
                vms: &lines("vm0"),
                demands: &[Demands::default()],
                end,
                console: &console,
                complaints: &[],
                processor_shut_down: true,
            };
            assert_eq!(judge(&evidence).outcome.verdict, Verdict::HvTripleFault);
        }
        assert_eq!(verdict_of(ExitProtocol::BochsHv, exited(0), "hv: hello", "").verdict, Verdict::Unknown);
    }

    #[test]
    fn guests_alone_are_judged_by_the_status() {
        let bare = |end, console, complaints| verdict_of(ExitProtocol::QemuBare, end, console, complaints).verdict;
        assert_eq!(bare(exited(1), "hello", ""), Verdict::Pass);
        assert_eq!(bare(exited(1), "", ""), Verdict::Pass);
        assert_eq!(bare(exited(1), "", "qemu: could not load kernel"), Verdict::Unknown);
        assert_eq!(bare(exited(1), "hello", "qemu: warning"), Verdict::Pass);
        assert_eq!(bare(exited(3), "hello", ""), Verdict::GuestFailed);
        assert_eq!(bare(exited(0), "hello", ""), Verdict::GuestTripleFault);
        assert_eq!(bare(exited(2), "hello", ""), Verdict::Unknown);
        assert_eq!(bare(End::Exited(None), "hello", ""), Verdict::Unknown);
        assert_eq!(bare(TIMED_OUT, "hello", ""), Verdict::Hang);
    }

    #[test]
    fn each_refused_vm_has_its_own_reason() {
        let console = "hv: b: verdict: bad-image 8 no multiboot header\nhv: c: verdict: bad-image 8 cut\n\
                       hv: a: verdict: pass 0 all is well\nhv: verdict: bad-image 8 b: no multiboot header\n";
        let judged = judgement(ExitProtocol::QemuHv, &["a", "b", "c"], exited(17), console, "");
        let texts: Vec<_> = judged.vms.iter().map(|vm| (vm.outcome.verdict, vm.outcome.text.as_str())).collect();
        let bad = Verdict::BadImage;
        assert_eq!(texts, [(Verdict::Pass, "all is well"), (bad, "no multiboot header"), (bad, "cut")]);
        assert_eq!((judged.outcome.verdict, judged.outcome.text.as_str()), (bad, "b: no multiboot header"));
    }

    #[test]
    fn success_with_a_failed_test_is_failure() {
        let ktap = "KTAP version 1\n1..2\nok 1 a\nnot ok 2 b\n";
        let outcome = verdict_of(ExitProtocol::QemuBare, exited(1), ktap, "");
        assert_eq!(outcome.verdict, Verdict::GuestFailed);
        assert!(outcome.text.ends_with("not ok: b"), "{}", outcome.text);
        assert_eq!(hv(exited(1), &format!("{ktap}hv: verdict: pass 0 fine")), Verdict::GuestFailed);
        assert_eq!(hv(exited(1), "KTAP version 1\n1..2\nok 1 a\nhv: verdict: pass 0"), Verdict::GuestFailed);
        assert_eq!(hv(exited(1), "KTAP version 1\n1..1\nok 1 a\nhv: verdict: pass 0"), Verdict::Pass);
    }

    #[test]
    fn a_pass_with_something_left_over_is_a_leak() {
        let account = |left| {
            format!(
                "hv: tables: allocated=5 freed=5 deferred=1 peak-backlog=1 longest-grace-period=9 kicks=0 operations=7 \
                 left={left}\nhv: verdict: pass 0"
            )
        };
        assert_eq!(hv(exited(1), &account("0")), Verdict::Pass);
        assert_eq!(hv(exited(1), &account("2")), Verdict::Leak);
        assert_eq!(hv(exited(1), &account("none")), Verdict::Unknown);
    }

    const TWO: &str = "a| KTAP version 1\nb| KTAP version 1\nb| 1..1\na| 1..2\na| ok 1 x\nb| not ok 1 z\na|\na| ok 2 y\n\
                       a| # operations 12\nhv: a: tables: allocated=1 freed=1 deferred=0 peak-backlog=0 \
                       longest-grace-period=0 kicks=0 operations=13 left=0\n";

    fn two(rest: &str, status: i32) -> Judgement {
        judgement(ExitProtocol::QemuHv, &["a", "b"], exited(status), &format!("{TWO}{rest}"), "")
    }

    #[test]
    fn each_vm_has_its_own_lines() {
        let end = "hv: a: verdict: pass 0 fine\nhv: b: verdict: guest-failed 1 wrote 1\nhv: verdict: guest-failed 1 b: wrote 1";
        let judged = two(end, 3);
        assert_eq!(judged.outcome, Outcome::new(Verdict::GuestFailed, "b: wrote 1"));
        let [a, b] = &judged.vms[..] else { panic!("two VMs") };
        assert_eq!((a.name.as_str(), a.outcome.verdict, a.ktap.cases.len()), ("a", Verdict::Pass, 2));
        assert_eq!((a.operations, a.accounts.clone().unwrap().unwrap().operations), (Some(12), 13));
        assert_eq!((b.name.as_str(), b.outcome.verdict, b.ktap.failed().count()), ("b", Verdict::GuestFailed, 1));
        assert_eq!((b.operations, &b.accounts), (None, &None));
        assert_eq!((a.work().as_str(), b.work().as_str()), (" (12 operations by the guest, 13 on its tables)", ""));
    }

    /// What is on the wire when VM `a` floods it with a line without an end, and `b`'s words are cut at `cut`.
    fn flooded(own: &str, cut: usize) -> Vec<u8> {
        struct Line(Vec<u8>);
        impl serial::Transmitter for Line {
            fn room(&mut self) -> usize {
                16
            }
            fn send(&mut self, byte: u8) {
                self.0.push(byte);
            }
        }
        let (mut mux, mut hv) = serial::Mux::new(1024);
        let [mut a, mut b] = ["a", "b"].map(|name| mux.add_vm(Some(name), 1024, 1024).output);
        let (mut line, mut now) = (Line(Vec::new()), 0);
        let mut send = |mux: &mut serial::Mux| {
            now += serial::HOLD;
            mux.due(now);
            now += serial::HOLD;
            while mux.burst(now, &mut line) != 0 {}
        };
        for piece in [&own[..cut], &own[cut..]] {
            b"not ok 1 x".repeat(50).iter().for_each(|&byte| assert!(a.put(byte)));
            send(&mut mux);
            piece.bytes().for_each(|byte| assert!(b.put(byte)));
            send(&mut mux);
        }
        hv.write_lines("hv: ", &"a: verdict: pass 0\nb: verdict: pass 0\nverdict: pass 0");
        send(&mut mux);
        line.0
    }

    #[test]
    fn a_vms_flood_without_an_end_changes_no_verdict() {
        for (own, verdict) in [
            ("KTAP version 1\n1..2\nok 1 y\nok 2 z\n", Verdict::Pass),
            ("KTAP version 1\n1..2\nok 1 y\nnot ok 2 z\n", Verdict::GuestFailed),
        ] {
            for cut in 0..own.len() {
                let names = ["a", "b"].map(str::to_string);
                let mut console = Console::new(&names.clone().map(Some));
                console.feed(&flooded(own, cut));
                let judged = judge(&Evidence {
                    protocol: ExitProtocol::QemuHv,
                    vms: &names,
                    demands: &[Demands::default(), Demands::default()],
                    end: exited(1),
                    console: &console.into_lines(),
                    complaints: &[],
                    processor_shut_down: false,
                });
                let verdicts: Vec<_> = judged.vms.iter().map(|vm| vm.outcome.verdict).collect();
                assert_eq!(verdicts, [Verdict::Pass, verdict], "cut at {cut}");
                assert_eq!(judged.vms[1].ktap.cases.len(), 2, "cut at {cut}");
            }
        }
    }

    #[test]
    fn of_several_vms_the_worst_counts() {
        let passes = "hv: a: verdict: pass 0\nhv: b: verdict: pass 0\nhv: verdict: pass 0";
        let judged = two(passes, 1);
        assert_eq!(judged.outcome.verdict, Verdict::GuestFailed);
        assert_eq!(judged.outcome.text, "b: the guest reported success, but not ok: z");
        assert_eq!(judged.vms[0].outcome.verdict, Verdict::Pass);
        for rest in ["hv: a: verdict: pass 0\nhv: verdict: pass 0", "b| hv: b: verdict: pass 0\nhv: verdict: pass 0"] {
            assert_eq!(two(rest, 1).outcome.verdict, Verdict::Unknown, "a pass that is not everybody's: {rest}");
        }
        let panicked = two("hv: verdict: hv-panic 5 oops", 11);
        assert_eq!((panicked.outcome.verdict, panicked.vms[1].outcome.verdict), (Verdict::HvPanic, Verdict::Unknown));
    }
}
