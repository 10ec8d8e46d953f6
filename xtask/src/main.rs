//! Sets up, builds, runs, tests and measures the hypervisor: `cargo xtask --help`.

// They panic where their stream is closed or full; `output` has others.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod accounts;
mod bench;
mod build;
mod coverage;
mod demands;
mod exit_path;
mod failure;
mod figures;
mod functions;
mod fuzz;
mod guests;
mod gzip;
mod hostile;
mod image_size;
mod iso;
mod judge;
mod ktap;
mod latency;
mod leash;
mod lint;
mod linux;
mod machine;
mod mutants;
mod output;
mod progress;
mod project;
mod run;
mod seed;
mod setup;
mod size;
mod stress;
mod symbols;
mod terminal;
mod test;
mod toolchain;
mod trial;
mod vectors;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, about, arg_required_else_help = true)]
#[command(
    after_help = "Exit status: 0 all is well; 2 bad usage, or something to install; `run` has more (see `run --help`)."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Setup(setup::Args),
    Build(build::Args),
    Run(run::Args),
    Linux(linux::Args),
    Iso(iso::Args),
    Test(test::Args),
    Stress(stress::Args),
    Hostile(hostile::Args),
    Bench(bench::Args),
    Fairness(test::fairness::Args),
    Coverage(coverage::Args),
    Mutants(mutants::Args),
    Fuzz(fuzz::Args),
    Lint(lint::Args),
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    let result = leash::Watch::begin().and_then(|watch| {
        let result = carry_out(command);
        watch.end();
        result
    });
    result.unwrap_or_else(|error| failure::report(&error))
}

fn carry_out(command: Command) -> Result<ExitCode> {
    match command {
        Command::Setup(args) => setup::command(&args),
        Command::Build(args) => build::command(&args),
        Command::Run(args) => run::command(&args),
        Command::Linux(args) => linux::command(&args),
        Command::Iso(args) => iso::command(&args),
        Command::Test(args) => test::command(&args),
        Command::Stress(args) => stress::command(&args),
        Command::Hostile(args) => hostile::command(&args),
        Command::Bench(args) => bench::command(&args),
        Command::Fairness(args) => test::fairness::command(&args),
        Command::Coverage(args) => coverage::command(&args),
        Command::Mutants(args) => mutants::command(&args),
        Command::Fuzz(args) => fuzz::command(&args),
        Command::Lint(args) => lint::command(&args),
    }
}
