//! How a run ends: the names and statuses that the hypervisor and `xtask` share.

use std::fmt;

/// The end of a run. The value is the exit status of `cargo xtask run`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Verdict {
    /// The guest reported success.
    Pass = 0,
    /// The guest reported failure.
    GuestFailed = 1,
    /// The hypervisor's command line makes no sense.
    Usage = 2,
    /// The guest shut down by a triple fault.
    GuestTripleFault = 3,
    /// The guest did what can't be handled, or can never run again.
    GuestKilled = 4,
    /// The hypervisor panicked.
    HvPanic = 5,
    /// The machine was reset or shut down without a verdict.
    HvTripleFault = 6,
    /// The machine lacks what the hypervisor needs.
    NoVirtualization = 7,
    /// The guest's image was refused.
    BadImage = 8,
    /// Frames were missing after the VM's end.
    Leak = 9,
    /// The emulator ended in some other way, without a verdict.
    Unknown = 10,
    /// The machine has too little memory for the VMs.
    NoMemory = 11,
    /// The guest passed its limit, or the run its time-out.
    Hang = 124,
}

impl Verdict {
    const ALL: [Self; 13] = [
        Self::Pass,
        Self::GuestFailed,
        Self::Usage,
        Self::GuestTripleFault,
        Self::GuestKilled,
        Self::HvPanic,
        Self::HvTripleFault,
        Self::NoVirtualization,
        Self::BadImage,
        Self::Leak,
        Self::Unknown,
        Self::NoMemory,
        Self::Hang,
    ];

    /// The exit status.
    pub(crate) const fn status(self) -> u8 {
        self as u8
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::GuestFailed => "guest-failed",
            Self::Usage => "usage",
            Self::GuestTripleFault => "guest-triple-fault",
            Self::GuestKilled => "guest-killed",
            Self::HvPanic => "hv-panic",
            Self::HvTripleFault => "hv-triple-fault",
            Self::NoVirtualization => "no-virtualization",
            Self::BadImage => "bad-image",
            Self::Leak => "leak",
            Self::Unknown => "no-verdict",
            Self::NoMemory => "no-memory",
            Self::Hang => "hang",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A verdict line of the hypervisor: `hv: verdict: NAME STATUS text…`, or `hv: VM: verdict: …` of one VM among several.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct VerdictLine<'a> {
    pub(crate) verdict: Verdict,
    pub(crate) text: &'a str,
}

impl<'a> VerdictLine<'a> {
    /// Reads a console line. None: it is some other line. An error: it is a verdict line that contradicts itself.
    pub(crate) fn parse(line: &'a str) -> Option<Result<Self, String>> {
        Self::parse_rest(line.strip_prefix("hv: ")?)
    }

    /// The same for the verdict on one VM among several.
    pub(crate) fn parse_for(line: &'a str, vm: &str) -> Option<Result<Self, String>> {
        Self::parse_rest(line.strip_prefix("hv: ")?.strip_prefix(vm)?.strip_prefix(": ")?)
    }

    fn parse_rest(rest: &'a str) -> Option<Result<Self, String>> {
        let rest = rest.trim_end().strip_prefix("verdict:")?.trim_start();
        let mut words = rest.splitn(3, ' ');
        let (name, status) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let text = words.next().unwrap_or_default();
        Some(
            Verdict::ALL
                .into_iter()
                .find(|verdict| verdict.name() == name && Ok(verdict.status()) == status.parse())
                .map(|verdict| Self { verdict, text })
                .ok_or_else(|| format!("no verdict is called '{name}' and has status '{status}'")),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verdict_line_is_read_back() {
        for verdict in Verdict::ALL {
            let line = format!("hv: verdict: {} {} some text: here\r\n", verdict.name(), verdict.status());
            assert_eq!(VerdictLine::parse(&line), Some(Ok(VerdictLine { verdict, text: "some text: here" })));
        }
        let bare = VerdictLine::parse("hv: verdict: pass 0").unwrap().unwrap();
        assert_eq!((bare.verdict, bare.text), (Verdict::Pass, ""));
    }

    #[test]
    fn a_vms_own_line_is_its_own() {
        let line = "hv: a: verdict: guest-failed 1 it wrote 1";
        let read = VerdictLine::parse_for(line, "a").unwrap().unwrap();
        assert_eq!((read.verdict, read.text), (Verdict::GuestFailed, "it wrote 1"));
        assert_eq!(VerdictLine::parse_for(line, "b"), None);
        assert_eq!(VerdictLine::parse_for("hv: aa: verdict: pass 0", "a"), None);
        assert_eq!(VerdictLine::parse(line), None);
    }

    #[test]
    fn statuses_are_distinct() {
        for (at, verdict) in Verdict::ALL.into_iter().enumerate() {
            assert!(Verdict::ALL[..at].iter().all(|earlier| earlier.status() != verdict.status()));
        }
    }

    #[test]
    fn other_lines_and_contradictions_are_told_apart() {
        assert_eq!(VerdictLine::parse("hv: info: verdict: pass 0"), None);
        assert_eq!(VerdictLine::parse(" hv: verdict: pass 0"), None);
        for line in
            ["hv: verdict: ", "hv: verdict: pass", "hv: verdict: pass 1", "hv: verdict: hang 0", "hv: verdict: won 0"]
        {
            assert!(matches!(VerdictLine::parse(line), Some(Err(_))), "{line}");
        }
    }
}
