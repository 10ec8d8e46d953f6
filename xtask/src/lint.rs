//! The checks of the sources: their form, and clippy.

use crate::output::outln;
use crate::project;
use crate::setup;
use anyhow::{Context, Result};
use std::process::{Command, ExitCode};

/// Debian's packages, where cargo is Debian's. rustup's toolchains have them, as rust-toolchain.toml asks.
const APT_PACKAGES: [&str; 2] = ["rustfmt-web", "rust-web-clippy"];
/// clippy looks at the images' sources as programs of this host: that takes no bare-metal target.
const HOST: &str = "x86_64-unknown-linux-gnu";

/// Check the sources: cargo fmt, and clippy with warnings denied
#[derive(clap::Args)]
#[command(after_help = "Example:\n  cargo xtask lint")]
pub(crate) struct Args {}

pub(crate) fn command(_: &Args) -> Result<ExitCode> {
    if ["fmt", "clippy"].into_iter().any(|tool| !succeeds(&[tool, "--version"])) {
        setup::apt_install(&APT_PACKAGES).context("cargo fmt and cargo clippy are missing")?;
    }
    let failed = [
        &["fmt", "--all", "--check"][..],
        &["clippy", "--all-targets", "--", "-D", "warnings"],
        &["clippy", "-p", "hv", "-p", "guest-tests", "-p", "guest-tests-32", "--target", HOST, "--", "-D", "warnings"],
    ]
    .into_iter()
    .filter(|arguments| {
        outln!("lint: cargo {}", arguments.join(" "));
        !cargo(arguments).status().is_ok_and(|status| status.success())
    })
    .count();
    outln!("lint: {}", if failed == 0 { "clean" } else { "FAILED" });
    Ok(ExitCode::from(u8::from(failed > 0)))
}

fn succeeds(arguments: &[&str]) -> bool {
    cargo(arguments).output().is_ok_and(|output| output.status.success())
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(project::cargo());
    command.current_dir(project::root()).args(arguments);
    command
}
