//! KTAP, the format in which guests report (Linux, Documentation/dev-tools/ktap.rst).

use abi::lines::ktap::{NOT_OK, OK, PLAN, SKIP, VERSION};

/// One result line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Case {
    /// The name, after the names of the tests that it is part of: `paging.write_protect`.
    pub(crate) name: String,
    pub(crate) result: CaseResult,
    /// The diagnostic lines (`# …`) since the result before.
    pub(crate) notes: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CaseResult {
    Ok,
    Skip,
    NotOk,
}

/// What a guest reported.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// The innermost results: a test with subtests is told by these.
    pub(crate) cases: Vec<Case>,
    /// What contradicts the format's rules: a plan not kept, a number out of order.
    pub(crate) faults: Vec<String>,
}

impl Report {
    pub(crate) fn failed(&self) -> impl Iterator<Item = &Case> {
        self.cases.iter().filter(|case| case.result == CaseResult::NotOk)
    }

    /// Reads a console's lines; those that are not KTAP are passed over, as `kunit.py` does.
    pub(crate) fn parse<'a>(lines: impl IntoIterator<Item = &'a str>) -> Self {
        let mut parser = Parser::default();
        for line in lines {
            parser.line(line);
        }
        parser.finish()
    }
}

/// Tests at one depth of nesting.
#[derive(Default)]
struct Level {
    planned: Option<usize>,
    /// Results seen at this depth.
    seen: usize,
    /// The index in `Report::cases` where this level's results begin.
    first: usize,
}

#[derive(Default)]
struct Parser {
    /// By depth of indentation, outermost first.
    levels: Vec<Level>,
    notes: Vec<String>,
    report: Report,
}

impl Parser {
    fn line(&mut self, line: &str) {
        let text = line.trim_start();
        // Two blanks a level.
        let depth = (line.len() - text.len()) / 2;
        let text = text.trim_end();
        if text == VERSION {
            self.close_to(depth);
            self.open(depth);
        } else if let Some(note) = text.strip_prefix('#') {
            self.notes.push(note.trim().to_string());
        } else if self.levels.is_empty() {
            // Nothing before the first version line is KTAP.
        } else if let Some(count) = text.strip_prefix(PLAN).and_then(|count| count.parse().ok()) {
            self.open(depth);
            self.levels[depth].planned = Some(count);
        } else if let Some((ok, rest)) = result_line(text) {
            self.result(depth, ok, rest);
        }
    }

    fn open(&mut self, depth: usize) {
        while self.levels.len() <= depth {
            self.levels.push(Level { first: self.report.cases.len(), ..Level::default() });
        }
    }

    /// Ends all levels from `depth` inwards.
    fn close_to(&mut self, depth: usize) {
        for level in self.levels.drain(depth.min(self.levels.len())..) {
            if let Some(planned) = level.planned.filter(|planned| *planned != level.seen) {
                self.report.faults.push(format!("{planned} tests were planned, {} reported", level.seen));
            }
        }
    }

    fn result(&mut self, depth: usize, ok: bool, rest: &str) {
        let (number, name) = rest.split_once(' ').unwrap_or((rest, ""));
        let (name, directive) = name.split_once('#').unwrap_or((name, ""));
        let name = name.trim().trim_start_matches("- ");
        let skip = directive.trim().get(..SKIP.len()).is_some_and(|word| word.eq_ignore_ascii_case(SKIP));

        let children = self.levels.get(depth + 1).map(|level| level.first);
        self.close_to(depth + 1);
        self.open(depth);
        let level = &mut self.levels[depth];
        level.seen += 1;
        if number.parse() != Ok(level.seen) {
            self.report.faults.push(format!("result {} has the number {number}", level.seen));
        }
        let notes = std::mem::take(&mut self.notes);
        let result = if skip {
            CaseResult::Skip
        } else if ok {
            CaseResult::Ok
        } else {
            CaseResult::NotOk
        };
        let first = children.unwrap_or(self.report.cases.len());
        for child in &mut self.report.cases[first..] {
            child.name = format!("{name}.{}", child.name);
        }
        let told_by_children = match result {
            CaseResult::NotOk => self.report.cases[first..].iter().any(|child| child.result == CaseResult::NotOk),
            CaseResult::Ok | CaseResult::Skip => first < self.report.cases.len(),
        };
        if !told_by_children {
            self.report.cases.push(Case { name: name.to_string(), result, notes });
        }
    }

    fn finish(mut self) -> Report {
        self.close_to(0);
        self.report
    }
}

fn result_line(text: &str) -> Option<(bool, &str)> {
    let not_ok = text.strip_prefix(NOT_OK).map(|rest| (false, rest));
    not_ok.or_else(|| text.strip_prefix(OK).map(|rest| (true, rest)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Report {
        Report::parse(text.lines())
    }

    fn names(report: &Report) -> Vec<(&str, CaseResult)> {
        report.cases.iter().map(|case| (case.name.as_str(), case.result)).collect()
    }

    #[test]
    fn flat_results_with_noise_between() {
        let report = parse(
            "hv: info: ready\nok 9 too early\nKTAP version 1\n1..4\n# looks at leaves\nok 1 cpuid\nhv: debug: exit\n\
             not ok 2 paging # wrong page\nok 3 - apic # SKIP no local APIC\r\nok 4 msr\n",
        );
        assert_eq!(
            names(&report),
            [
                ("cpuid", CaseResult::Ok),
                ("paging", CaseResult::NotOk),
                ("apic", CaseResult::Skip),
                ("msr", CaseResult::Ok)
            ]
        );
        assert_eq!(report.cases[0].notes, ["looks at leaves"]);
        assert_eq!(report.failed().count(), 1);
        assert!(report.faults.is_empty());
    }

    #[test]
    fn nested_results_carry_their_parents_names() {
        let report = parse(
            "KTAP version 1\n1..2\n  KTAP version 1\n  1..2\n  ok 1 read\n  not ok 2 write\nnot ok 1 paging\n\
             \x20 KTAP version 1\n  1..1\n    KTAP version 1\n    1..1\n    ok 1 deep\n  ok 1 inner\nok 2 outer\n",
        );
        assert_eq!(
            names(&report),
            [
                ("paging.read", CaseResult::Ok),
                ("paging.write", CaseResult::NotOk),
                ("outer.inner.deep", CaseResult::Ok)
            ]
        );
        assert!(report.faults.is_empty(), "{:?}", report.faults);
    }

    #[test]
    fn a_parent_may_fail_by_itself() {
        let report = parse("KTAP version 1\n1..1\n  KTAP version 1\n  1..1\n  ok 1 part\nnot ok 1 whole\n");
        assert_eq!(names(&report), [("whole.part", CaseResult::Ok), ("whole", CaseResult::NotOk)]);
    }

    #[test]
    fn a_broken_plan_is_a_fault() {
        assert_eq!(parse("KTAP version 1\n1..3\nok 1 a\nok 2 b\n").faults.len(), 1);
        assert_eq!(parse("KTAP version 1\n1..2\nok 1 a\nok 3 b\n").faults.len(), 1);
        assert_eq!(parse("KTAP version 1\n1..1\nok 1 a\nok 2 b\n").faults.len(), 1);
        assert_eq!(parse("KTAP version 1\n1..1\n  KTAP version 1\n  1..2\n  ok 1 a\nok 1 b\n").faults.len(), 1);
    }

    #[test]
    fn a_console_without_ktap_has_no_results() {
        assert_eq!(parse("hello\nok 1 not a result\n1..5\n"), Report::default());
        assert_eq!(parse(""), Report::default());
    }
}
