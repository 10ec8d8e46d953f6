//! From what a machine did to a verdict: the one place that decides.

use crate::ktap;
use crate::verdict::{Verdict, VerdictLine};
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

/// What the emulator's end can tell beyond the console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Machine {
    /// QEMU with the hypervisor: the exit port's value V makes the status (V << 1) | 1, a reset makes it 0.
    QemuHv,
    /// QEMU with the guest alone, and the same port.
    QemuBare,
    /// Bochs with the hypervisor: the status says nothing.
    BochsHv,
}

/// All that is known of a finished run.
pub(crate) struct Evidence<'a> {
    pub(crate) machine: Machine,
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

/// Judges a run.
pub(crate) fn judge(evidence: &Evidence<'_>) -> Outcome {
    let outcome = match evidence.machine {
        Machine::QemuBare => judge_bare(evidence),
        Machine::QemuHv | Machine::BochsHv => judge_hv(evidence),
    };
    if outcome.verdict == Verdict::Pass { hold_to_ktap(outcome, evidence.console) } else { outcome }
}

/// A guest that ends with success although a test of its own failed has failed.
fn hold_to_ktap(outcome: Outcome, console: &[String]) -> Outcome {
    let report = ktap::Report::parse(console.iter().map(String::as_str));
    let failed: Vec<_> = report.failed().map(|case| case.name.as_str()).collect();
    if !failed.is_empty() {
        Outcome::new(Verdict::GuestFailed, format!("the guest reported success, but not ok: {}", failed.join(", ")))
    } else if let Some(fault) = report.faults.first() {
        Outcome::new(Verdict::GuestFailed, format!("the guest reported success, but its KTAP is broken: {fault}"))
    } else {
        outcome
    }
}

fn judge_hv(evidence: &Evidence<'_>) -> Outcome {
    // The verdict is the very last line: what a guest prints to look like one comes before it.
    let verdict = last_line(evidence.console).and_then(VerdictLine::parse);
    match (verdict, evidence.end) {
        (Some(Err(why)), _) => Outcome::new(Verdict::Unknown, why),
        (Some(Ok(line)), End::Exited(status)) => {
            let told = i32::from(line.verdict.status()) << 1 | 1;
            if evidence.machine == Machine::QemuHv && status != Some(told) {
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
        (None, End::Exited(Some(0))) if evidence.machine == Machine::QemuHv => hv_triple_fault(evidence),
        (None, End::Exited(status)) => no_verdict(evidence, status),
    }
}

fn judge_bare(evidence: &Evidence<'_>) -> Outcome {
    match evidence.end {
        End::TimedOut(after) => hang(evidence, after),
        End::Exited(Some(0)) => Outcome::new(Verdict::GuestTripleFault, "the machine was reset"),
        // QEMU ends with 1 also when it can't start at all; then it says why, and the console is empty.
        End::Exited(Some(1)) if evidence.complaints.is_empty() || !evidence.console.is_empty() => {
            Outcome::new(Verdict::Pass, "the guest reported success")
        }
        End::Exited(Some(status)) if status & 1 == 1 && status > 1 => {
            Outcome::new(Verdict::GuestFailed, format!("the guest reported {}", status >> 1))
        }
        End::Exited(status) => no_verdict(evidence, status),
    }
}

fn hv_triple_fault(evidence: &Evidence<'_>) -> Outcome {
    Outcome::new(Verdict::HvTripleFault, format!("the machine was reset without a verdict; {}", last_words(evidence)))
}

fn hang(evidence: &Evidence<'_>, after: Duration) -> Outcome {
    Outcome::new(Verdict::Hang, format!("no verdict within {} s; {}", after.as_secs(), last_words(evidence)))
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

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_string).collect()
    }

    fn verdict_of(machine: Machine, end: End, console: &str, complaints: &str) -> Outcome {
        let (console, complaints) = (lines(console), lines(complaints));
        judge(&Evidence { machine, end, console: &console, complaints: &complaints, processor_shut_down: false })
    }

    fn hv(end: End, console: &str) -> Verdict {
        verdict_of(Machine::QemuHv, end, console, "").verdict
    }

    const TIMED_OUT: End = End::TimedOut(Duration::from_secs(60));

    const fn exited(status: i32) -> End {
        End::Exited(Some(status))
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
            ("hang 124 at 0x1000", 249, Verdict::Hang),
        ] {
            let console = format!("hv: hello\nhv: verdict: {line}\n");
            assert_eq!(hv(exited(status), &console), verdict, "{line}");
            assert_eq!(verdict_of(Machine::BochsHv, exited(1), &console, "").verdict, verdict, "{line}");
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
        let hang = verdict_of(Machine::QemuHv, TIMED_OUT, "hv: hello\n\nhv: working\n\n", "");
        assert_eq!(hang.to_string(), "FAILED: hang (status 124): no verdict within 60 s; last line: hv: working");
        let refused = verdict_of(Machine::QemuHv, exited(1), "", "qemu: no such file");
        assert_eq!(
            refused.to_string(),
            "FAILED: no-verdict (status 10): the emulator ended with status 1; qemu: no such file"
        );
    }

    #[test]
    fn bochs_tells_a_triple_fault_by_its_log() {
        let console = lines("hv: hello");
        for end in [exited(1), TIMED_OUT] {
            let evidence = Evidence {
                machine: Machine::BochsHv,
                end,
                console: &console,
                complaints: &[],
                processor_shut_down: true,
            };
            assert_eq!(judge(&evidence).verdict, Verdict::HvTripleFault);
        }
        assert_eq!(verdict_of(Machine::BochsHv, exited(0), "hv: hello", "").verdict, Verdict::Unknown);
    }

    #[test]
    fn guests_alone_are_judged_by_the_status() {
        let bare = |end, console, complaints| verdict_of(Machine::QemuBare, end, console, complaints).verdict;
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
    fn success_with_a_failed_test_is_failure() {
        let ktap = "KTAP version 1\n1..2\nok 1 a\nnot ok 2 b\n";
        let outcome = verdict_of(Machine::QemuBare, exited(1), ktap, "");
        assert_eq!(outcome.verdict, Verdict::GuestFailed);
        assert!(outcome.text.ends_with("not ok: b"), "{}", outcome.text);
        assert_eq!(hv(exited(1), &format!("{ktap}hv: verdict: pass 0 fine")), Verdict::GuestFailed);
        assert_eq!(hv(exited(1), "KTAP version 1\n1..2\nok 1 a\nhv: verdict: pass 0"), Verdict::GuestFailed);
        assert_eq!(hv(exited(1), "KTAP version 1\n1..1\nok 1 a\nhv: verdict: pass 0"), Verdict::Pass);
    }
}
