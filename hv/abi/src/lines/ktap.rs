//! The words of KTAP, version 1 (Linux, Documentation/dev-tools/ktap.rst), in which guests report and which `xtask` reads. A line
//! that begins with `#` is a comment.

/// The first line of a report.
pub const VERSION: &str = "KTAP version 1";
/// Before the number of tests.
pub const PLAN: &str = "1..";
/// Before the number and the name of a test that passed or was skipped.
pub const OK: &str = "ok ";
/// Before the number and the name of a test that failed.
pub const NOT_OK: &str = "not ok ";
/// Behind the name of a test that was skipped, before the reason.
pub const SKIP: &str = "SKIP";
