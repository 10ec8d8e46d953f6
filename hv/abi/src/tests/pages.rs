//! The page for authors of guests and README's table say what the crate does, and nothing else.

use crate::hypercall::{ABI_VERSION, Arguments, FlushPoint, Number, Refused, Statistic, TestCall};
use crate::{Verdict, cpuid, ports};
use core::fmt::Debug;
use std::collections::BTreeSet;
use std::string::{String, ToString};
use std::vec::Vec;
use std::{format, vec};

const PAGE: &str = include_str!("../../docs/guest-interface.md");
const README: &str = include_str!("../../../../README.md");

/// The cells of the table below this heading, row by row, without marks of code.
fn table(page: &str, heading: &str) -> Vec<Vec<String>> {
    let (_, section) = page.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no heading {heading}"));
    let lines = section.lines().take_while(|line| !line.starts_with('#'));
    let rows = lines.skip_while(|line| !line.starts_with("| ---")).skip(1).take_while(|line| line.starts_with('|'));
    let cells = |row: &str| row.trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")).collect();
    rows.map(cells).collect()
}

/// Both have the same, in the same order, and nothing twice.
fn assert_same<T: Ord + Clone + Debug>(page: &[T], crate_has: &[T]) {
    assert_eq!(page, crate_has, "the page, and the crate");
    assert_eq!(crate_has.iter().collect::<BTreeSet<_>>().len(), crate_has.len(), "something is there twice");
}

fn hex(text: &str) -> u64 {
    u64::from_str_radix(&text.trim_start_matches("0x").replace('_', ""), 16).expect(text)
}

#[test]
fn the_page_has_each_call() {
    let page = table(PAGE, "### Calls").into_iter().map(|row| (hex(&row[0]), row[1].clone())).collect::<Vec<_>>();
    assert_same(&page, &Number::ALL.iter().map(|&call| (call.into(), call.to_string())).collect::<Vec<_>>());
}

#[test]
fn the_page_has_each_calls_arguments() {
    for (row, &call) in table(PAGE, "### Calls").iter().zip(Number::ALL) {
        let page: Vec<_> = row[2].split(", ").filter_map(|part| part.split_once(':')).map(|(name, _)| name).collect();
        let matters = |register: &usize| decoded(call, [1; 4]) != decoded(call, with_two_in(*register));
        let used = (0..4).filter(matters).map(|register| ["RBX", "RCX", "RDX", "RSI"][register]);
        assert_eq!(page, used.collect::<Vec<_>>(), "the page, and the crate, on {call}");
    }
}

fn decoded(call: Number, arguments: Arguments) -> Result<TestCall, Refused> {
    TestCall::decode(call.into(), arguments)
}

/// Arguments that select something, and differ in one register from all ones.
fn with_two_in(register: usize) -> Arguments {
    let mut arguments = [1; 4];
    arguments[register] = 2;
    arguments
}

#[test]
fn the_page_has_each_calls_errors() {
    for (row, &call) in table(PAGE, "### Calls").iter().zip(Number::ALL) {
        let page = row[5].split(", ").filter(|cell| !cell.is_empty()).map(|cell| cell.parse().expect(cell));
        let page: Vec<i64> = [-1].into_iter().chain(page).collect();
        assert_same(&page, &call.errors().iter().map(|&refused| refused.into()).collect::<Vec<i64>>());
    }
}

/// A call that only test builds have is refused as one that there is not.
#[test]
fn the_page_tells_which_calls_need_a_test_build() {
    for (row, call) in table(PAGE, "### Calls").iter().zip(Number::ALL) {
        assert_eq!(row[6] == "a test build", call.errors().contains(&Refused::NoSuchCall), "{call}");
        assert!(["", "pages=2m", "a test build"].contains(&&*row[6]), "{call} needs {}", row[6]);
    }
}

#[test]
fn the_page_has_each_error() {
    let page: Vec<i64> = table(PAGE, "### Errors").iter().map(|row| row[0].parse().unwrap()).collect();
    assert_same(&page, &Refused::ALL.iter().map(|&refused| refused.into()).collect::<Vec<_>>());
}

fn numbers_and_names(heading: &str) -> Vec<(u64, String)> {
    table(PAGE, heading).iter().map(|row| (row[0].parse().unwrap(), row[1].clone())).collect()
}

#[test]
fn the_page_has_each_statistic() {
    let statistics: Vec<_> = Statistic::ALL.iter().map(|&which| (which.into(), which.to_string())).collect();
    assert_same(&numbers_and_names("### Statistics"), &statistics);
}

#[test]
fn the_page_has_each_flush_point() {
    let points: Vec<_> = FlushPoint::ALL.iter().map(|&point| (point.into(), point.to_string())).collect();
    assert_same(&numbers_and_names("### Flush points"), &points);
}

#[test]
fn the_page_has_the_version() {
    assert_eq!(table(PAGE, "### Calls")[1][4], format!("the version of this page: {ABI_VERSION}"));
}

#[test]
fn the_page_tells_how_the_hypervisor_is_found() {
    let leaf = format!("`0x{:x}_{:04x}`", cpuid::LEAF >> 16, cpuid::LEAF & 0xffff);
    let name = format!("`{}`", core::str::from_utf8(cpuid::SIGNATURE).unwrap());
    let (_, section) = PAGE.split_once("## Is it there?\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    assert!(section.contains(&leaf) && section.contains(&name), "{leaf} {name}");
}

#[test]
fn the_page_has_the_ports() {
    let devices: Vec<_> = table(PAGE, "## Devices").into_iter().map(|row| row[0].clone()).collect();
    let com1 = format!("{:#x}–{:#x}", ports::COM1, ports::COM1 + 7);
    for port in [com1, format!("{:#x}", ports::DEBUG_CONSOLE), format!("{:#x}", ports::DEBUG_EXIT)] {
        assert!(devices.contains(&port), "{port}");
    }
    let (_, ending) = PAGE.split_once("## Ending\n").unwrap();
    let told = format!("port `{:#x}` ends the VM: {} is success", ports::DEBUG_EXIT, ports::SUCCESS);
    assert!(ending.contains(&told), "{told}");
}

#[test]
fn readme_has_each_verdict() {
    let (_, rest) = README.split_once("| status | name | meaning |\n").unwrap();
    let rows = rest.lines().skip(1).take_while(|line| line.starts_with('|'));
    let cells = rows.map(|row| row.split('|').map(str::trim).skip(1).take(2).collect::<Vec<_>>());
    let page: Vec<_> = cells.filter(|cells| !cells[1].is_empty()).map(|cells| cells.join(" ")).collect();
    let verdicts: Vec<_> = Verdict::ALL.iter().map(|verdict| format!("{} {verdict}", verdict.status())).collect();
    assert_same(&page, &verdicts);
}

#[test]
fn a_table_is_read_row_by_row() {
    let page = "x\n## A\n\n| h | i |\n| --- | --- |\n| `1` | a b |\n| 2 | |\n\n## B\n| h |\n| --- |\n| 3 |\n";
    assert_eq!(table(page, "## A"), vec![vec!["1", "a b"], vec!["2", ""]]);
    assert_eq!(table(page, "## B"), vec![vec!["3"]]);
}
