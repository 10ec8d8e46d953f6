//! The results of all VMs of a run.

use crate::end_reason::EndReason;
use abi::Verdict;
use abi::lines::VerdictLine;
use alloc::vec::Vec;
use core::fmt;

/// The results of all VMs of a run, by their numbers, as they come. `N` is a VM's name.
///
/// ```
/// use vm::{Ended, EndReason, Results, Stop};
///
/// let mut results = Results::new();
/// results.expect(2);
/// results.add(1, Ended { name: Some("b"), reason: EndReason::Stopped(Stop::Limit) });
/// assert!(!results.are_complete());
/// results.add(0, Ended { name: Some("a"), reason: EndReason::Stopped(Stop::Exited(0)) });
/// assert!(results.are_complete());
/// assert_eq!(results.overall().unwrap().to_string(), "b: the guest ran past its limit");
/// ```
#[derive(Debug)]
pub struct Results<N>(Vec<Option<Ended<N>>>);

/// The result of one VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended<N> {
    /// Its name, if there are several VMs.
    pub name: Option<N>,
    /// Why it has ended, or has not started.
    pub reason: EndReason,
}

impl<N> Ended<N> {
    /// The verdict on the VM.
    pub const fn verdict(&self) -> Verdict {
        self.reason.verdict()
    }

    /// The line that is printed when the VM ends. The only VM has none: its verdict is the run's.
    pub fn line(&self) -> Option<impl fmt::Display>
    where
        N: fmt::Display,
    {
        let name = self.name.as_ref()?;
        let verdict = VerdictLine { verdict: self.verdict(), text: &self.reason };
        Some(fmt::from_fn(move |f| write!(f, "{name}: {verdict}")))
    }
}

/// The text of the run's verdict, if that is this VM's. A success is all VMs'.
impl<N: fmt::Display> fmt::Display for Ended<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) if self.verdict() != Verdict::Pass => write!(f, "{name}: {}", self.reason),
            _ => self.reason.fmt(f),
        }
    }
}

impl<N> Results<N> {
    /// Of no VM.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it is for a static: only a constant function will do")]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Prepares for so many VMs.
    pub fn expect(&mut self, vms: usize) {
        self.0.resize_with(vms, || None);
    }

    /// VM `number`, of those that are expected, has ended, or was refused.
    pub fn add(&mut self, number: usize, ended: Ended<N>) {
        self.0[number] = Some(ended);
    }

    /// Whether each VM has ended.
    pub fn are_complete(&self) -> bool {
        self.0.iter().all(Option::is_some)
    }

    /// The result that the run ends with; None if no VM has ended.
    pub fn overall(&self) -> Option<&Ended<N>> {
        Verdict::overall(self.0.iter().flatten(), |ended| ended.verdict())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::Stop;
    use std::string::ToString;

    fn results(ends: &[Option<Stop>], named: bool) -> Results<&'static str> {
        let mut results = Results::new();
        results.expect(ends.len());
        for ((number, stop), name) in ends.iter().enumerate().zip(["a", "b", "c"]) {
            let ended = |stop| Ended { name: named.then_some(name), reason: EndReason::Stopped(stop) };
            stop.map(ended).into_iter().for_each(|ended| results.add(number, ended));
        }
        results
    }

    #[test]
    fn a_run_is_complete_when_each_vm_has_ended() {
        let (pass, limit) = (Some(Stop::Exited(0)), Some(Stop::Limit));
        assert!(!results(&[pass, None], true).are_complete());
        assert!(!results(&[None, pass], true).are_complete());
        assert!(results(&[pass, limit], true).are_complete());
    }

    #[test]
    fn the_first_failure_is_the_runs_and_named() {
        let [pass, limit, failed] = [Stop::Exited(0), Stop::Limit, Stop::Exited(3)].map(Some);
        let text = |ends: &[Option<Stop>], named| results(ends, named).overall().map(ToString::to_string);
        assert_eq!(text(&[pass, limit, failed], true).unwrap(), "b: the guest ran past its limit");
        assert_eq!(text(&[pass, pass], true).unwrap(), "the guest reported success", "of all VMs");
        assert_eq!(text(&[limit], false).unwrap(), "the guest ran past its limit");
        assert_eq!(text(&[], true), None);
    }

    #[test]
    fn one_of_several_vms_has_a_line_of_its_own() {
        let line = |named| results(&[Some(Stop::Limit)], named).overall()?.line().map(|line| line.to_string());
        assert_eq!(line(true).unwrap(), "a: verdict: hang 124 the guest ran past its limit");
        assert_eq!(line(false), None);
    }
}
