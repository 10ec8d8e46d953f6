//! Tests of what can't be read off a definition: that each thing is read as it was written, and that the pages say what the crate does.

mod hypercalls;
mod lines;
mod pages;

use crate::Verdict;

#[test]
fn a_run_ends_as_its_first_vm_that_does_not_pass() {
    use Verdict::{Hang, Leak, Pass};
    let overall =
        |ends: &[Verdict]| Verdict::overall(ends.iter().enumerate(), |(_, verdict)| **verdict).map(|(n, _)| n);
    assert_eq!(overall(&[Pass, Hang, Leak]), Some(1));
    assert_eq!(overall(&[Pass, Pass]), Some(0));
    assert_eq!(overall(&[]), None);
}
