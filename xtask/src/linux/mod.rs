//! Boots Linux: Debian's kernels, with an initial RAM disk of busybox, our stress program and a script.

mod initrd;
mod packages;
mod warnings;

use crate::build::{self, Images};
use crate::demands::Demands;
use crate::failure::usage;
use crate::guests::readable_file;
use crate::leash::Folder;
use crate::machine::input::Input;
use crate::machine::{Emulator, Image, run_folder};
use crate::run::{self, MachineArgs};
use crate::size::Size;
use crate::toolchain::Target;
use crate::trial::{Guest, OnReset, Paging};
use abi::options::MAX_VCPUS;
use anyhow::{Context, Result};
use initrd::Archive;
pub(crate) use packages::Arch;
use packages::File;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
pub(crate) use warnings::{NO_MORE_WARNINGS, script, unexpected};

/// What the initial RAM disk runs first.
const INIT: &str = include_str!("init.sh");
/// The kernel's command line.
const CONSOLE: &str = "console=ttyS0";
/// Linux's memory if nothing else is said.
const MEMORY: Size = Size::mib(512);
/// How long it is given if nothing else is said, in seconds.
const TIMEOUT: u32 = 600;

/// Boot Linux as a guest, run a script in it, and give its verdict
///
/// The kernel and busybox are Debian's, and come by apt-get into target/linux/ when they are first needed. The script runs as root
/// with busybox's commands and our stress program: `stress seed=N ops=N threads=N`, and on amd64 `stress32`, the same with 32 bits.
/// Linux powers off when it ends; one that halts and says 'System halted' has powered off as well. The run has passed if the script ended with status 0, no KTAP line says 'not ok', and no line says
/// 'Kernel panic' or 'BUG:'. Without --run it is a shell on this terminal: ctrl-a x leaves, `exit` powers off.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// Which of Debian's kernels
    #[arg(long, value_enum, default_value = "amd64")]
    arch: Arch,
    /// Another kernel, for the processors of --arch
    #[arg(long, value_name = "FILE", value_parser = readable_file)]
    kernel: Option<PathBuf>,
    /// Another initial RAM disk; what it does is its own affair
    #[arg(long, value_name = "FILE", value_parser = readable_file, conflicts_with = "run")]
    initrd: Option<PathBuf>,
    /// A shell script, by its file or as it stands
    #[arg(long, value_name = "SCRIPT")]
    run: Option<String>,
    /// More words for the kernel's command line, after console=ttyS0
    #[arg(long, value_name = "WORDS", default_value = "", allow_hyphen_values = true)]
    cmdline: String,
    /// What is typed in the guest; `-` is the standard input [default: the keys of this terminal, without --run]
    #[arg(long, value_name = "FILE")]
    input: Option<Input>,
    /// The guest's virtual processors, 16 at most
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_VCPUS)))]
    vcpus: u32,
    /// The guest's memory
    #[arg(long, value_name = "SIZE", default_value_t = MEMORY)]
    mem: Size,
    /// How the guest's memory is translated
    #[arg(long, value_enum, default_value = "nested")]
    paging: Paging,
    /// What becomes of the guest when it resets its machine, by a triple fault among other ways
    #[arg(long, value_enum, default_value = "end")]
    on_reset: OnReset,
    #[command(flatten)]
    demands: Demands,
    #[command(flatten)]
    machine: MachineArgs,
    /// Kill the machine after this time [default: 600, but none if the keys of this terminal go to the guest]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    timeout: Option<u32>,
}

const AFTER_HELP: &str = "\
Examples:
  cargo xtask linux --vcpus 4                               a shell; ctrl-a x leaves
  cargo xtask linux --input keys                            ... in which the contents of the file keys are typed
  cargo xtask linux --bare                                  ... without the hypervisor; ctrl-a x leaves
  cargo xtask linux --run 'stress seed=7 ops=500'           the stress program under the hypervisor
  cargo xtask linux --arch 686 --paging shadow --run my.sh  a script, in 32 bits without PAE and without nested paging
  cargo xtask linux --kernel bzImage --vcpus 4 --run my.sh  a kernel of your own
  cargo xtask linux --run my.sh --expect 'all done' --fail-on Oops

Exit status: as of `run`.";

pub(crate) fn command(args: &Args) -> Result<ExitCode> {
    if args.is_shell() && !args.machine.bare && args.input.is_none() && !Input::Standard.is_terminal() {
        return Err(usage("a shell needs a terminal: --input FILE types a file in it, --run SCRIPT runs a script"));
    }
    let machine = args.machine.machine()?;
    run::check_input(&machine, args.input(&machine).iter().count())?;
    let files = run_folder()?;
    let guests = vec![args.guest(&machine, &files)?];
    let images = if args.machine.bare { None } else { Some(Images::build()?) };
    let timeout = run::timeout(args.timeout, TIMEOUT, &guests);
    let trial = args.machine.trial(&machine, images.as_ref(), guests, timeout);
    if args.machine.bare && args.is_shell() && args.input.is_none() {
        trial.take_over()?;
        return Ok(ExitCode::SUCCESS);
    }
    run::show(&trial, &args.title()).map(run::exit_code)
}

/// Debian's memtest86+, which comes by apt-get where it is missing. It is booted as Linux is.
///
/// # Errors
/// It can't be had.
pub(crate) fn memtest() -> Result<PathBuf> {
    packages::find_or_get(File::Memtest, Arch::Amd64)
}

impl Args {
    /// Whether Linux does what is typed.
    fn is_shell(&self) -> bool {
        self.run.is_none() && self.initrd.is_none()
    }

    /// What is typed: unless something is asked for or a script is run, the keys of this terminal. A shell can't do without them.
    fn input(&self, machine: &Emulator) -> Option<Input> {
        let takes_keys = self.is_shell() || self.run.is_none() && machine.takes_input();
        let keys = || (takes_keys && Input::Standard.is_terminal()).then_some(Input::Standard);
        self.input.clone().or_else(keys)
    }

    fn title(&self) -> String {
        match &self.kernel {
            Some(file) => file.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            None => format!("Linux {}", self.arch.name()),
        }
    }

    fn guest(&self, machine: &Emulator, files: &Folder) -> Result<Guest> {
        let kernel = match &self.kernel {
            Some(file) => file.clone(),
            None => packages::find_or_get(File::Kernel, self.arch)?,
        };
        let initrd = match &self.initrd {
            Some(file) => file.clone(),
            None => make_initrd(self.arch, self.run.as_deref(), files.path())?,
        };
        let words = format!("{CONSOLE} {}", self.cmdline);
        Ok(Guest {
            modules: vec![Image::new(initrd, "")],
            vcpus: self.vcpus,
            memory: self.mem,
            paging: self.paging,
            input: self.input(machine),
            on_reset: self.on_reset,
            demands: self.demands.clone(),
            ..Guest::new(Image::new(kernel, words.trim_end()))
        })
    }
}

/// Debian's kernel and what boots it, with its files in `folder`: it runs `script`, and powers off.
pub(crate) fn boot(arch: Arch, script: &str, folder: &Path) -> Result<(Image, Image)> {
    let kernel = packages::find_or_get(File::Kernel, arch)?;
    Ok((Image::new(kernel, CONSOLE), Image::new(make_initrd(arch, Some(script), folder)?, "")))
}

fn make_initrd(arch: Arch, script: Option<&str>, folder: &Path) -> Result<PathBuf> {
    let mut archive = Archive::default();
    for name in ["bin", "dev", "proc", "sys", "tmp"] {
        archive.folder(name);
    }
    // For the first process's output, before /dev is mounted.
    archive.device("dev/console", 5, 1);
    archive.program("init", INIT.as_bytes());
    archive.program("bin/busybox", &read(&packages::find_or_get(File::Busybox, arch)?)?);
    for (name, target) in stress_programs(arch) {
        archive.program(&format!("bin/{name}"), &read(&build::linux_stress(*target)?)?);
    }
    if let Some(script) = script {
        archive.program("script", &script_text(script)?);
    }
    let file = folder.join("initrd.cpio");
    fs::write(&file, archive.finish()).with_context(|| format!("can't write {}", file.display()))?;
    Ok(file)
}

/// The stress programs for this kernel, by the names they have there.
const fn stress_programs(arch: Arch) -> &'static [(&'static str, Target)] {
    match arch {
        Arch::Amd64 => &[("stress", Target::Bits64), ("stress32", Target::Bits32)],
        Arch::Pae | Arch::I686 => &[("stress", Target::Bits32)],
    }
}

/// A script by its file, or else as it stands.
fn script_text(script: &str) -> Result<Vec<u8>> {
    let file = Path::new(script);
    if file.is_file() { read(file) } else { Ok(format!("{script}\n").into_bytes()) }
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("can't read {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_a_file_or_a_command() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/src/linux/init.sh");
        assert_eq!(script_text(file).unwrap(), INIT.as_bytes());
        assert_eq!(script_text("stress ops=1; true").unwrap(), b"stress ops=1; true\n");
    }
}
