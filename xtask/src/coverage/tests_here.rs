//! What the crates' tests reach, by LLVM's source-based coverage.

use super::image::SourceLine;
use crate::leash::Folder;
use crate::progress::Step;
use crate::project;
use crate::symbols;
use crate::toolchain::Llvm;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The lines that the tests of these crates reach.
pub(super) fn reached(crates: &[&str]) -> Result<BTreeSet<SourceLine>> {
    let tools = Llvm::find_or_get()?;
    let raw = Folder::new()?;
    let programs = test_programs(crates)?;
    let step = Step::begin(format!("running the tests of {}", crates.join(", ")));
    let tests = cargo(crates).env("LLVM_PROFILE_FILE", raw.path().join("%p-%m.profraw")).output()?;
    step.end(if tests.status.success() { "passed" } else { "FAILED" });
    ensure!(tests.status.success(), "tests failed:\n{}", String::from_utf8_lossy(&tests.stdout));
    export(&tools, raw.path(), &programs)
}

/// cargo for the crates' tests with counters, built apart from others.
fn cargo(crates: &[&str]) -> Command {
    let mut command = Command::new(project::cargo());
    command.current_dir(project::root()).env("RUSTFLAGS", "-Cinstrument-coverage").stdin(Stdio::null());
    command.args(["test", "--lib", "--tests", "--target-dir"]).arg(project::target().join("coverage"));
    command.args(crates.iter().flat_map(|name| ["--package", name]));
    command
}

/// Builds the tests, and gives their programs.
fn test_programs(crates: &[&str]) -> Result<Vec<PathBuf>> {
    let step = Step::begin("building the tests with counters");
    // Build scripts and macros have counters, too, and would leave their profiles where they run.
    let mut cargo = cargo(crates);
    cargo.args(["--no-run", "--message-format=json-render-diagnostics"]).env("LLVM_PROFILE_FILE", "/dev/null");
    let output = cargo.stderr(Stdio::inherit()).output().context("can't run cargo")?;
    step.end(if output.status.success() { "done" } else { "FAILED" });
    ensure!(output.status.success(), "the tests could not be built");
    let messages = String::from_utf8_lossy(&output.stdout);
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    Ok(messages.filter_map(|message| Some(PathBuf::from(message.get("executable")?.as_str()?))).collect())
}

/// Merges the profiles and reads the lines that they count.
fn export(tools: &Llvm, raw: &Path, programs: &[PathBuf]) -> Result<BTreeSet<SourceLine>> {
    let merged = raw.join("merged.profdata");
    let profiles = fs::read_dir(raw)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    run(Command::new(&tools.profdata).args(["merge", "-sparse", "-o"]).arg(&merged).args(profiles))?;
    let mut cov = Command::new(&tools.cov);
    cov.args(["export", "--format=lcov", "--instr-profile"]).arg(&merged);
    let text = run(cov.args(programs.iter().flat_map(|program| [Path::new("--object"), program])))?;
    Ok(read_lcov(&text))
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("can't run {command:?}"))?;
    ensure!(output.status.success(), "{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Reads `SF:FILE` and, below it, `DA:LINE,COUNT` (geninfo(1)).
fn read_lcov(text: &str) -> BTreeSet<SourceLine> {
    let mut file = String::new();
    let mut reached = BTreeSet::new();
    for line in text.lines() {
        if let Some(path) = line.strip_prefix("SF:") {
            file = symbols::short(path);
        } else if let Some((line, count)) = line.strip_prefix("DA:").and_then(|rest| rest.split_once(','))
            && let (Ok(line), true) = (line.parse(), count != "0")
        {
            reached.insert(SourceLine { file: file.clone(), line });
        }
    }
    reached
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_with_a_count_are_reached() {
        let root = project::root();
        let text = format!("SF:{}/hv/vm/src/x.rs\nFN:3,f\nDA:3,12\nDA:4,0\nDA:5,1\nend_of_record\n", root.display());
        let lines: Vec<_> = read_lcov(&text).into_iter().map(|place| (place.file, place.line)).collect();
        assert_eq!(lines, [("hv/vm/src/x.rs".to_string(), 3), ("hv/vm/src/x.rs".to_string(), 5)]);
    }
}
