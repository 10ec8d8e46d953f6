//! Each kind of line is read as it was written, and a line of another kind, cut short or changed is never taken for one with other
//! contents by a panic.

use crate::lines::*;
use crate::verdict::Verdict;
use crate::wire::{self, Own};
use proptest::prelude::*;
use proptest::sample::select;
use std::format;
use std::string::{String, ToString};
use std::vec::Vec;

/// A text that a line can have: no ends of lines, and no blanks at its end, which are not told from the line's end.
fn text() -> impl Strategy<Value = String> {
    "[ -~äß…]{0,30}".prop_map(|text| text.trim_end().to_string())
}

fn word() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9_-]{0,12}"
}

/// All lines of [`lines`](crate::lines), read.
fn read_all(line: &str) {
    let _ = VerdictLine::parse(line);
    let _ = Accounts::parse(line);
    let _ = HeapUsage::parse(line);
    let _ = PastLimit::parse(line);
    let _ = StartToGuest::parse(line);
    let _ = Backtrace::parse(line).map(|line| line.map(|line| line.0.count()));
    let _ = Latency::parse(line);
    let _ = Operations::parse(line);
    let _ = Fairness::parse(line);
    let _ = NumberedLine::parse(line);
    let _ = NumberedLines::parse(line);
    let _ = Kinds::parse(line).map(|line| line.0.count());
    let _ = Inputs::parse(line).map(|line| line.map(|line| line.counts.count()));
}

proptest! {
    #[test]
    fn a_verdict_is_read_back(verdict in select(Verdict::ALL), text in text()) {
        let line = VerdictLine { verdict, text: &*text };
        let printed = line.to_string();
        prop_assert_eq!(VerdictLine::parse(&printed), Some(Ok(line)));
    }

    #[test]
    fn a_verdict_of_another_name_or_status_is_broken(name in word(), status: u8, verdict in select(Verdict::ALL)) {
        for line in [
            format!("verdict: {name} {status}"),
            format!("verdict: {verdict} {status}"),
            format!("verdict: {name} {}", verdict.status()),
        ] {
            match VerdictLine::parse(&line).unwrap() {
                Ok(read) => prop_assert_eq!(read.to_string().trim_end().to_string(), line),
                Err(broken) => prop_assert_eq!(broken.to_string(), "the line has no valid verdict with its status"),
            }
        }
    }

    #[test]
    fn accounts_are_read_back(counts: [u64; 8]) {
        let [allocated, freed, deferred, peak_backlog, longest_grace_period, kicks, operations, left] = counts;
        let line =
            Accounts { allocated, freed, deferred, peak_backlog, longest_grace_period, kicks, operations, left };
        prop_assert_eq!(Accounts::parse(&line.to_string()), Some(Ok(line)));
        prop_assert_eq!(line.fields().map(|(_, count)| count).collect::<Vec<_>>(), counts);
    }

    #[test]
    fn accounts_without_one_of_their_fields_are_broken(counts: [u64; 8], missing in 0..8usize) {
        let [allocated, freed, deferred, peak_backlog, longest_grace_period, kicks, operations, left] = counts;
        let line =
            Accounts { allocated, freed, deferred, peak_backlog, longest_grace_period, kicks, operations, left };
        let part = line.fields().nth(missing).unwrap().0;
        let line = line.to_string().replace(&format!(" {part}="), " x=");
        prop_assert_eq!(Accounts::parse(&line), Some(Err(Broken { part })));
    }

    #[test]
    fn heap_usage_is_read_back(used_kib: u64, total_kib: u64, allocations: u64) {
        let line = HeapUsage { used_kib, total_kib, allocations };
        prop_assert_eq!(HeapUsage::parse(&line.to_string()), Some(Ok(line)));
    }

    #[test]
    fn the_time_past_a_limit_is_read_back(us: u64) {
        let line = PastLimit { us };
        prop_assert_eq!(PastLimit::parse(&line.to_string()), Some(Ok(line)));
    }

    #[test]
    fn the_start_is_read_back(ticks: u64) {
        prop_assert_eq!(StartToGuest::parse(&StartToGuest(ticks).to_string()), Some(Ok(StartToGuest(ticks))));
    }

    #[test]
    fn a_backtrace_is_read_back(addresses: Vec<u64>) {
        let line = Backtrace(addresses.iter().copied()).to_string();
        prop_assert_eq!(Backtrace::parse(&line).unwrap().unwrap().0.collect::<Vec<_>>(), addresses);
    }

    #[test]
    fn latency_is_read_back(name in word(), [samples, min, median, p99, max]: [u64; 5]) {
        let line = Latency { name: &name, samples, min, median, p99, max };
        let printed = line.to_string();
        prop_assert_eq!(Latency::parse(&printed), Some(Ok(line)));
    }

    #[test]
    fn operations_are_read_back(count: u64) {
        prop_assert_eq!(Operations::parse(&Operations(count).to_string()), Some(Ok(Operations(count))));
    }

    #[test]
    fn fairness_is_read_back(share_permille: u64, longest_gap_us: u64) {
        let line = Fairness { share_permille, longest_gap_us };
        prop_assert_eq!(Fairness::parse(&line.to_string()), Some(Ok(line)));
    }

    #[test]
    fn numbered_lines_are_read_back(number: u64, text in text(), longest_gap_us: u64) {
        let line = NumberedLine { number, text: &text };
        let printed = line.to_string();
        prop_assert_eq!(NumberedLine::parse(&printed), Some(Ok(line)));
        let last = NumberedLines { count: number, longest_gap_us };
        prop_assert_eq!(NumberedLines::parse(&last.to_string()), Some(Ok(last)));
        prop_assert!(NumberedLine::parse(&last.to_string()).is_none());
        prop_assert!(NumberedLines::parse(&printed).is_none());
    }

    #[test]
    fn kinds_and_inputs_are_read_back(inputs in proptest::collection::vec((word(), any::<u64>()), 0..9), next: u64, restarts: u64) {
        let (names, counts): (Vec<_>, Vec<_>) = inputs.into_iter().unzip();
        let kinds = Kinds(names.iter().map(String::as_str)).to_string();
        prop_assert_eq!(Kinds::parse(&kinds).unwrap().0.collect::<Vec<_>>(), names);
        let inputs = Inputs { next, restarts, counts: counts.iter().copied() }.to_string();
        let read = Inputs::parse(&inputs).unwrap().unwrap();
        prop_assert_eq!((read.next, read.restarts), (next, restarts));
        prop_assert_eq!(read.counts.collect::<Vec<_>>(), counts);
    }

    #[test]
    fn a_line_of_the_hypervisors_is_about_the_one_it_names(name in word(), other in word(), text in text()) {
        let about = format!("{}{text}", Own(Some(&name)));
        prop_assert_eq!(wire::own(&about, Some(&name)), Some(&*text));
        prop_assert!(name == other || wire::own(&about, Some(&other)).is_none());
        let alone = format!("{}{text}\r\n", Own(None));
        prop_assert_eq!(wire::own(&alone, None), Some(&*text));
        prop_assert_eq!(wire::parse(about.as_bytes(), None), None);
    }

    /// What a guest prints can be anything.
    #[test]
    fn no_line_is_too_strange_to_be_read(
        begin in select(&[
            "", "verdict:", "tables: ", "heap: ", "start-to-guest: ", "backtrace:", "# latency ", "# operations ", "# fairness ",
            "# line ", "# lines ", "# kinds", "# inputs ", "# fairness share=",
        ][..]),
        rest in any::<String>(),
    ) {
        read_all(&format!("{begin}{rest}"));
    }
}

#[test]
fn other_lines_are_passed_over() {
    for line in [
        "",
        "info: verdict: pass 0",
        " verdict: pass 0",
        "# 12 operations",
        "# latency: see below",
        "heap",
        "backtrace",
    ] {
        assert!(VerdictLine::parse(line).is_none(), "{line}");
        assert!(Latency::parse(line).is_none() && Operations::parse(line).is_none(), "{line}");
        assert!(HeapUsage::parse(line).is_none() && Backtrace::parse(line).is_none(), "{line}");
    }
}

#[test]
fn broken_lines_are_told() {
    assert!(VerdictLine::parse("verdict: ").unwrap().is_err());
    assert!(VerdictLine::parse("verdict: pass").unwrap().is_err());
    assert!(HeapUsage::parse("heap: 5 of 9 KiB used").unwrap().is_err());
    assert!(PastLimit::parse("ended many us past its limit").unwrap().is_err());
    assert!(PastLimit::parse("ended 5 us past").is_none());
    assert!(StartToGuest::parse("start-to-guest: soon").unwrap().is_err());
    assert!(Backtrace::parse("backtrace: here").unwrap().is_err());
    for line in [
        "# latency unit=tsc samples=1 min=1 median=1 p99=1 max=1",
        "# latency name=cpuid unit=tsc samples=1 min=1 median=1 p99=1",
        "# latency name=cpuid unit=tsc samples=1 min=1 median=x p99=1 max=1",
        "# latency name=cpuid unit=ns samples=1 min=1 median=1 p99=1 max=1",
    ] {
        assert!(Latency::parse(line).unwrap().is_err(), "{line}");
    }
    assert!(Fairness::parse("# fairness share=49.8").unwrap().is_err());
    assert!(Fairness::parse("# fairness share=49.80 longest_gap_us=1").unwrap().is_err());
}

#[test]
fn counts_of_a_line_that_was_cut_short_are_left_out() {
    let mut read = Inputs::parse("# inputs 20 2 8 junk 9").unwrap().unwrap();
    assert_eq!((read.next, read.restarts, read.counts.next()), (20, 2, Some(8)));
    assert!(Inputs::parse("# inputs 20").unwrap().is_err());
}
