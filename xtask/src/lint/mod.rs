//! The checks of the sources: their form, clippy, and what `hv/DESIGN.md` promises of them: which crate uses which, where `unsafe`
//! stands, and that no files of the image form a circle.

mod circles;
mod layers;
mod sources;
mod unsafety;

use crate::output::outln;
use crate::project;
use crate::setup;
use anyhow::{Context, Result};
use std::process::{Command, ExitCode};

/// Debian's packages, where cargo is Debian's. rustup's toolchains have them, as rust-toolchain.toml asks.
const APT_PACKAGES: [&str; 2] = ["rustfmt-web", "rust-web-clippy"];
/// clippy looks at the images' sources as programs of this host: that takes no bare-metal target.
const HOST: &str = "x86_64-unknown-linux-gnu";

/// Check the sources: cargo fmt, clippy with warnings denied, and the rules of hv/DESIGN.md
///
/// The rules: which crate may use which, which files may have `unsafe`, and that the files of the image form no circle.
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
        &["clippy", "-p", "guest-tests-linux", "--target", HOST, "--", "-D", "warnings"],
    ]
    .into_iter()
    .filter(|arguments| {
        outln!("lint: cargo {}", arguments.join(" "));
        !cargo(arguments).status().is_ok_and(|status| status.success())
    })
    .count()
        + broken_rules()?;
    outln!("lint: {}", if failed == 0 { "clean" } else { "FAILED" });
    Ok(ExitCode::from(u8::from(failed > 0)))
}

/// Checks the rules of `hv/DESIGN.md`, and gives the number of what breaks them.
fn broken_rules() -> Result<usize> {
    let image = "hv/src/";
    let sources = sources::in_folder("hv")?;
    let (image_sources, _): (Vec<_>, Vec<_>) = sources.iter().partition(|source| source.path.starts_with(image));
    let rules = [
        ("crates use those below them", layers::check()?),
        ("unsafe stands in named files", unsafety::check(&sources)),
        ("the image's files form no circle", circles::check(image, &image_sources)),
    ];
    for (rule, wrong) in &rules {
        outln!("lint: {rule}");
        wrong.iter().for_each(|wrong| outln!("error: {wrong}"));
    }
    Ok(rules.iter().map(|(_, wrong)| wrong.len()).sum())
}

fn succeeds(arguments: &[&str]) -> bool {
    cargo(arguments).output().is_ok_and(|output| output.status.success())
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(project::cargo());
    command.current_dir(project::root()).args(arguments);
    command
}
