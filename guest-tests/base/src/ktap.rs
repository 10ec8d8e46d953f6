//! KTAP, version 1 (Linux, Documentation/dev-tools/ktap.rst).

use abi::lines::ktap::{NOT_OK, OK, PLAN, SKIP, VERSION};
use core::fmt;

use crate::exit::GuestStatus;
use crate::println;

/// Why a test ended early.
#[derive(Clone, Copy, Debug)]
pub enum NotPassed {
    /// A check failed, and said so.
    Failed,
    /// It does not apply here, for this reason.
    Skipped(&'static str),
}

/// What a test returns.
pub type Outcome = Result<(), NotPassed>;

/// A test: a name, and a function that gets the suite's context.
pub struct Case<C> {
    /// The name in the report.
    pub name: &'static str,
    /// The test.
    pub run: fn(&C) -> Outcome,
}

/// Runs the tests in their order and reports them. The status is a failure if one failed.
pub fn run<C>(context: &C, cases: &[Case<C>]) -> GuestStatus {
    println!("{VERSION}");
    println!("{PLAN}{}", cases.len());
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for (Case { name, run }, number) in cases.iter().zip(1..) {
        match run(context) {
            Ok(()) => {
                passed += 1;
                println!("{OK}{number} {name}");
            }
            Err(NotPassed::Failed) => {
                failed += 1;
                println!("{NOT_OK}{number} {name}");
            }
            Err(NotPassed::Skipped(reason)) => {
                skipped += 1;
                println!("{OK}{number} {name} # {SKIP} {reason}");
            }
        }
    }
    println!("# Totals: pass:{passed} fail:{failed} xfail:0 xpass:0 skip:{skipped} error:0");
    if failed == 0 { GuestStatus::Passed } else { GuestStatus::Failed }
}

/// The tests of these functions, named by their paths.
#[macro_export]
macro_rules! cases {
    ($($test:path),+ $(,)?) => {
        &[$($crate::ktap::Case { name: stringify!($test), run: $test }),+]
    };
}

/// Ends the test as failed unless the condition holds. A message in `format!`'s manner may follow.
#[macro_export]
macro_rules! check {
    ($condition:expr $(,)?) => {
        $crate::check!($condition, "it does not hold")
    };
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::ktap::failed(
                file!(), line!(), stringify!($condition), format_args!($($message)+),
            ));
        }
    };
}

/// Ends the test as failed unless both are equal. A message in `format!`'s manner may follow.
#[macro_export]
macro_rules! check_eq {
    ($got:expr, $expected:expr $(,)?) => {
        $crate::check_eq!($got, $expected, "")
    };
    ($got:expr, $expected:expr, $($message:tt)+) => {
        match ($got, $expected) {
            (got, expected) => if got != expected {
                return Err($crate::ktap::failed(
                    file!(), line!(), stringify!($got),
                    format_args!("got {got:x?}, expected {expected:x?} (hex) {}", format_args!($($message)+)),
                ));
            }
        }
    };
}

/// Ends the test as not applicable unless the condition holds.
#[macro_export]
macro_rules! skip_unless {
    ($condition:expr, $reason:literal) => {
        if !$condition {
            return Err($crate::ktap::NotPassed::Skipped($reason));
        }
    };
}

/// The value of a result that should be `Ok`; ends the test as failed if it is not, with the error.
#[macro_export]
macro_rules! check_ok {
    ($result:expr $(,)?) => {
        match $result {
            Ok(value) => value,
            Err(error) => {
                return Err($crate::ktap::failed(file!(), line!(), stringify!($result), format_args!("{error:?}")));
            }
        }
    };
}

/// Prints the diagnostic of a failed check.
#[doc(hidden)]
pub fn failed(file: &str, line: u32, what: &str, why: fmt::Arguments<'_>) -> NotPassed {
    println!("# {file}:{line}: {what}: {why}");
    NotPassed::Failed
}
