//! Gets what the commands need, where the system has a way to get it.
//!
//! Every command begins with its own part of this: it looks for the things themselves, which takes no time when they are
//! there. Nothing is remembered, so nothing is believed that has changed since.

use crate::failure::usage;
use crate::machine::{bochs, iso, qemu};
use crate::output::outln;
use crate::progress::Step;
use crate::project;
use crate::toolchain::{Target, Toolchain};
use anyhow::{Context, Result};
use clap::ValueEnum;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, ExitCode};

/// Get what building and running need
///
/// Every other command does its own part of this by itself; this one does all of it.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  cargo xtask setup               QEMU and the bare-metal target\n  cargo xtask setup --only qemu   QEMU alone"
)]
pub(crate) struct Args {
    /// Set up this alone
    #[arg(long, value_enum)]
    only: Option<Part>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The emulator QEMU
    Qemu,
    /// The emulator Bochs, and GRUB's tools to make ISOs for it
    Bochs,
    /// ACPI's compiler, with which a test checks the guests' tables
    Iasl,
    /// A Rust toolchain that builds for the bare machine
    Toolchain,
}

pub(crate) fn command(args: &Args) -> Result<ExitCode> {
    let wanted = |part| args.only.is_none_or(|only| only == part);
    if wanted(Part::Qemu) {
        ensure(Tool::Qemu)?;
        outln!("setup: {} is here", qemu::PROGRAM);
    }
    if wanted(Part::Bochs) {
        ensure(Tool::Bochs)?;
        outln!("setup: Bochs and GRUB's tools are here");
    }
    if wanted(Part::Iasl) {
        ensure(Tool::Iasl)?;
        outln!("setup: {} is here", Tool::IASL);
    }
    if wanted(Part::Toolchain) {
        for target in [Target::Bits64, Target::Bits32] {
            outln!("setup: images for {} are built with {}", target.name(), Toolchain::find_or_get(target)?);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Something that is installed as packages of the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tool {
    Qemu,
    Bochs,
    /// ACPICA's compiler.
    Iasl,
    /// A linker for ELF, where the Rust toolchain brings none.
    Lld,
    /// A compiler for C++, in which libFuzzer is written.
    Cxx,
}

impl Tool {
    /// The program that `hv/bios/tests/iasl.rs` runs.
    const IASL: &str = "iasl";

    fn is_here(self) -> bool {
        match self {
            Self::Qemu => project::find_program(qemu::PROGRAM).is_some(),
            Self::Bochs => {
                project::find_program(bochs::PROGRAM).is_some()
                    && bochs::find_bios().is_some()
                    && ["xorriso", "mformat"].into_iter().all(|program| project::find_program(program).is_some())
                    && iso::find_mkrescue().is_some()
                    && iso::find_bios_modules().is_some()
            }
            Self::Iasl => project::find_program(Self::IASL).is_some(),
            Self::Lld => project::find_program("ld.lld").is_some(),
            Self::Cxx => ["c++", "g++", "clang++"].into_iter().any(|program| project::find_program(program).is_some()),
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Qemu => "QEMU",
            Self::Bochs => "Bochs and GRUB's tools",
            Self::Iasl => "ACPI's compiler iasl",
            Self::Lld => "the linker lld",
            Self::Cxx => "a C++ compiler",
        }
    }

    /// Debian's and Ubuntu's packages.
    const fn apt(self) -> &'static [&'static str] {
        match self {
            Self::Qemu => &["qemu-system-x86"],
            Self::Bochs => {
                &["bochs", "bochs-term", "bochsbios", "vgabios", "grub-pc-bin", "grub-common", "xorriso", "mtools"]
            }
            Self::Iasl => &["acpica-tools"],
            Self::Lld => &["lld"],
            Self::Cxx => &["g++"],
        }
    }

    /// What to type on other systems.
    const fn elsewhere(self) -> [&'static str; 3] {
        match self {
            Self::Qemu => ["dnf install qemu-system-x86-core", "pacman -S qemu-system-x86", "brew install qemu"],
            Self::Bochs => [
                "dnf install bochs vgabios grub2-pc-modules grub2-tools-extra xorriso mtools",
                "pacman -S grub libisoburn mtools, and bochs from the AUR",
                "brew install bochs i686-elf-grub xorriso mtools",
            ],
            Self::Iasl => ["dnf install acpica-tools", "pacman -S acpica", "brew install acpica"],
            Self::Lld => ["dnf install lld", "pacman -S lld", "brew install lld"],
            Self::Cxx => ["dnf install gcc-c++", "pacman -S gcc", "xcode-select --install, or brew install gcc"],
        }
    }

    fn advice(self) -> String {
        let [fedora, arch, mac] = self.elsewhere();
        format!(
            "install {}:\n  Debian, Ubuntu: apt-get install --no-install-recommends {}\n  Fedora: {fedora}\n  Arch: {arch}\n  macOS: {mac}",
            self.name(),
            self.apt().join(" "),
        )
    }
}

/// Makes sure that a tool is there: by apt where possible, else with an error that says what to install.
pub(crate) fn ensure(tool: Tool) -> Result<()> {
    if tool.is_here() {
        return Ok(());
    }
    let got = apt_install(tool.apt());
    if got.is_ok() && tool.is_here() {
        return Ok(());
    }
    let why = got.err().map(|error| format!(" ({error:#})")).unwrap_or_default();
    Err(usage(format!("{} is missing{why}; {}", tool.name(), tool.advice())))
}

/// Installs Debian packages, as root or by a sudo that asks nothing.
pub(crate) fn apt_install(packages: &[&str]) -> Result<()> {
    let prefix = become_root().context("no apt-get here that this user may run")?;
    let step = Step::begin(format!("installing {}", packages.join(", ")));
    let apt = |arguments: &[&str]| -> Result<()> {
        let words: Vec<&str> =
            prefix.iter().copied().chain(["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]).collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).args(["-q", "-y", "-o", "DPkg::Lock::Timeout=300"]).args(arguments);
        let output = command.stdin(std::process::Stdio::null()).output().context("can't run apt-get")?;
        let errors = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "apt-get {} failed: {}", arguments[0], errors.trim());
        Ok(())
    };
    // Old lists name packages that are gone, or older than those that will do; without a network, they are all there is.
    let updated = apt(&["update"]);
    let install = [&["install", "--no-install-recommends"], packages].concat();
    let result = apt(&install).map_err(|error| updated.err().unwrap_or(error));
    step.end(if result.is_ok() { "done" } else { "failed" });
    result
}

/// The words to put before apt-get: none for root, `sudo -n` for others. None where there is no apt-get or no right to it.
fn become_root() -> Option<Vec<&'static str>> {
    project::find_program("apt-get")?;
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|entry| entry.uid() == 0);
    if is_root {
        return Some(Vec::new());
    }
    let sudo = Command::new("sudo").args(["-n", "true"]).output().is_ok_and(|output| output.status.success());
    sudo.then(|| vec!["sudo", "-n"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_names_every_system() {
        for tool in [Tool::Qemu, Tool::Bochs, Tool::Iasl, Tool::Lld, Tool::Cxx] {
            let advice = tool.advice();
            for word in ["apt-get install", "dnf install", "pacman -S", "brew install"] {
                assert!(advice.contains(word), "{advice}");
            }
        }
    }
}
