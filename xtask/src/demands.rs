//! What a guest's console must have and must not have, for guests that do not say themselves how they ended: a Linux that powers
//! off has passed unless its console says otherwise.

/// Begins what Linux says when it can't go on, or finds an error of its own.
const KERNEL_FAILURES: [&str; 2] = ["Kernel panic", "BUG:"];
/// What Linux says last before it turns the machine off (kernel/reboot.c).
const POWER_DOWN: &str = "reboot: Power down";
/// ... and before it halts its processors with interrupts off, which it does where it can't turn the machine off, or is told to.
const HALTED: &str = "reboot: System halted";

/// What is demanded of a guest's console.
#[derive(clap::Args, Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Demands {
    /// Fail unless a line of the guest has this text; may be repeated
    #[arg(long, value_name = "TEXT")]
    expect: Vec<String>,
    /// Fail if a line of the guest has this text, as with 'Kernel panic' and 'BUG:'; may be repeated
    #[arg(long, value_name = "TEXT")]
    fail_on: Vec<String>,
}

#[cfg(test)]
impl Demands {
    pub(crate) fn expecting(text: &str) -> Self {
        Self { expect: vec![text.to_string()], ..Self::default() }
    }

    pub(crate) fn failing_on(text: &str) -> Self {
        Self { fail_on: vec![text.to_string()], ..Self::default() }
    }
}

impl Demands {
    /// Whether anything is demanded.
    pub(crate) fn are_any(&self) -> bool {
        !self.expect.is_empty() || !self.fail_on.is_empty()
    }

    /// The first line that says that the guest has failed.
    pub(crate) fn failure<'l>(&self, lines: &[&'l str]) -> Option<&'l str> {
        let fails = |line: &str| {
            KERNEL_FAILURES.into_iter().any(|text| has_words(line, text))
                || self.fail_on.iter().any(|text| line.contains(text))
        };
        lines.iter().copied().find(|line| fails(line))
    }

    /// The first text that no line has.
    pub(crate) fn missing(&self, lines: &[&str]) -> Option<&str> {
        self.expect.iter().map(String::as_str).find(|text| !lines.iter().any(|line| line.contains(text)))
    }
}

/// Whether the line has this text where a word begins: `BUG:` is not in `DEBUG:`.
fn has_words(line: &str, text: &str) -> bool {
    line.match_indices(text).any(|(at, _)| !line[..at].ends_with(char::is_alphanumeric))
}

/// Whether Linux turned the machine off: an emulator ends alike when it is reset.
pub(crate) fn is_powered_off<'l>(mut lines: impl Iterator<Item = &'l str>) -> bool {
    lines.any(|line| line.ends_with(POWER_DOWN))
}

/// Whether Linux halted, and meant to.
pub(crate) fn is_halted<'l>(mut lines: impl Iterator<Item = &'l str>) -> bool {
    lines.any(|line| line.trim_end().ends_with(HALTED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_says_that_it_failed() {
        let demands = Demands { fail_on: vec!["Oops".to_string()], ..Demands::default() };
        for (line, fails) in [
            ("[    1.5] Kernel panic - not syncing: Attempted to kill init!", true),
            ("[    9.1] watchdog: BUG: soft lockup - CPU#0 stuck for 22s!", true),
            ("BUG: unable to handle page fault for address: 0000000000001000", true),
            ("DEBUG: nothing", false),
            ("[    2.0] Oops: 0000 [#1] SMP", true),
            ("[    0.0] Linux version 6.1.0", false),
            ("kernel panic", false),
        ] {
            assert_eq!(demands.failure(&["before", line, "after"]), fails.then_some(line), "{line}");
        }
        assert_eq!(Demands::default().failure(&["Oops: 0000"]), None);
    }

    #[test]
    fn what_is_expected_is_in_some_line() {
        let demands = Demands { expect: ["hello", "done 7"].map(str::to_string).into(), ..Demands::default() };
        assert_eq!(demands.missing(&["oh hello there", "done 7"]), None);
        assert_eq!(demands.missing(&["hello", "done"]), Some("done 7"));
        assert_eq!(Demands::default().missing(&[]), None);
    }

    #[test]
    fn turned_off_is_not_reset() {
        assert!(is_powered_off(["x", "[    3.141592] reboot: Power down"].into_iter()));
        assert!(!is_powered_off(["[    3.141592] reboot: Restarting system"].into_iter()));
        assert!(!is_powered_off(["[    3.141592] reboot: System halted"].into_iter()));
        assert!(is_halted(["x", "[    3.141592] reboot: System halted\r"].into_iter()));
        assert!(!is_halted(["echo reboot: System halted, or not"].into_iter()));
    }
}
