//! Runs all tests: on the build machine, in loom's models, and on emulated machines.

mod cargo;
pub(crate) mod fairness;
mod images;
mod machines;
mod matrix;
mod results;

pub(crate) use machines::{can_trace, traced};

use crate::output::{errln, outln};
use crate::project;
use anyhow::Result;
use clap::ValueEnum;
use results::Results;
use std::process::ExitCode;

/// Run all tests
///
/// The crates' tests on this machine, loom's models, and every guest on every kind of machine there is here, with what
/// has to go wrong too. Writes target/test/junit.xml; the last line is `N passed, N failed`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask test                        everything but what takes long for little that is new
  cargo xtask test --all                  ... that, too
  cargo xtask test smoke                  tests with 'smoke' in their names
  cargo xtask test --only machines        the guests on all machines
  cargo xtask test --only machines 'hang qemu-svm'

Exit status: 0 if none failed, 1 if one did, 2 if something has to be installed, 101 if the images could not be built.")]
pub(crate) struct Args {
    /// Run the tests whose name contains this; of a guest on a machine, 'GUEST MACHINE' in either order
    filter: Option<String>,
    /// Boot all guests on all machines, also where that takes long for little that is new
    #[arg(long)]
    all: bool,
    /// Run tests of this kind alone
    #[arg(long, value_enum)]
    only: Option<Kind>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// The crates' tests on this machine, those in the documentation too
    Host,
    /// loom's models
    Models,
    /// Guests on emulated machines
    Machines,
}

pub(crate) fn command(args: &Args) -> Result<ExitCode> {
    let filter = args.filter.as_deref();
    let mut results = Results::default();
    for kind in [Kind::Host, Kind::Models, Kind::Machines] {
        if args.only.is_none_or(|only| only == kind) {
            results.add(match kind {
                Kind::Host => cargo::host(filter)?,
                Kind::Models => cargo::models(filter)?,
                Kind::Machines => machines::all(filter, args.all)?,
            });
        }
    }
    if let (Some(filter), true) = (filter, results.is_empty()) {
        errln!("error: no test's name contains '{filter}'");
        return Ok(ExitCode::FAILURE);
    }
    results.failures().for_each(|line| outln!("{line}"));
    let file = project::reports("test").join("junit.xml");
    results.write_junit(&file)?;
    outln!("JUnit: {}", project::short(&file));
    outln!("{results}");
    Ok(ExitCode::from(u8::from(results.failed() > 0)))
}
