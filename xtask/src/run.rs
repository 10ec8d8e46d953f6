//! Boots a guest on a machine and judges it.

use crate::build::{self, Images};
use crate::failure::usage;
use crate::machine::bochs::{self, Bochs};
use crate::machine::qemu::{Accel, Needs, Qemu};
use crate::machine::{Image, Machine};
use crate::setup::{self, Tool};
use crate::size::Size;
use crate::symbols::Symbols;
use crate::trial::{Guest, Hypervisor, Pages, Trial};
use crate::verdict::Verdict;
use anyhow::Result;
use clap::ValueEnum;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// What is booted when no guest is named: one machine after the other.
const DEFAULT_GUESTS: [&str; 2] = ["smoke", "exit-latency"];

/// Boot the hypervisor with a guest, and give the guest's verdict
///
/// The console is printed as it comes. Without --guest: the smoke test, then the exit-latency table.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// Emulator of the machine
    #[arg(long, value_enum, default_value = "qemu")]
    host: HostKind,
    /// What carries out the instructions (QEMU)
    #[arg(long, value_enum, default_value = "auto")]
    accel: Accel,
    /// Count instructions: a tick of the TSC is one instruction, and figures repeat exactly (QEMU)
    #[arg(long)]
    icount: bool,
    /// Model of the processor; see `qemu-system-x86_64 -cpu help`, `bochs --help cpu`
    #[arg(long, value_name = "MODEL")]
    cpu: Option<String>,
    /// Multiboot ELF to run, or the name of one of our guests
    #[arg(long, value_name = "FILE")]
    guest: Option<String>,
    /// Words for the guest's command line, after its name
    #[arg(long, value_name = "WORDS", default_value = "")]
    cmdline: String,
    /// A module for the guest, and the words for its string; may be repeated
    #[arg(long, value_name = "FILE WORDS")]
    module: Vec<String>,
    /// The guest's memory
    #[arg(long, value_name = "SIZE", default_value = "64M")]
    mem: Size,
    /// The largest page that maps the guest's memory [default: 4k for exit-latency, which touches such pages; else 2m]
    #[arg(long, value_enum)]
    pages: Option<Pages>,
    /// Kill the machine after this time
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    timeout: u32,
    /// Let the hypervisor end the guest after this time of the machine's own clock [default: a bit below the time-out]
    #[arg(long, value_name = "SECONDS")]
    limit: Option<u32>,
    /// The hypervisor's log level
    #[arg(long, value_enum, default_value = "info")]
    log: Level,
    /// More words for the hypervisor's command line
    #[arg(long, value_name = "WORDS", default_value = "")]
    hv_words: String,
    /// Boot the guest without the hypervisor, to compare (QEMU)
    #[arg(long)]
    bare: bool,
}

const AFTER_HELP: &str = "\
Examples:
  cargo xtask run                                           the smoke test, then the exit-latency table
  cargo xtask run --icount --guest exit-latency             latency in instructions
  cargo xtask run --guest my.elf --cmdline \"a b\" --mem 64M  a guest of your own
  cargo xtask run --guest my.elf --module \"disk.img ro\"     ... with a module
  cargo xtask run --guest smoke --bare --accel kvm          the same image without the hypervisor, under KVM
  cargo xtask run --host bochs --guest smoke                on Bochs, by GRUB

Exit status:
    0  pass                the guest reported success
    1  guest-failed        the guest reported failure, or printed 'not ok'
    2  usage               bad usage, or something to install
    3  guest-triple-fault  the guest shut down
    4  guest-killed        the guest did what can't be handled, or halted for ever
    5  hv-panic            the hypervisor panicked
    6  hv-triple-fault     the machine was reset without a verdict
    7  no-virtualization   the processor lacks what the hypervisor needs; the text names it
    8  bad-image           the guest's image was refused; the text says why
    9  leak                memory was missing after the guest's end
   10  no-verdict          the emulator ended otherwise, without a verdict
  101  the images could not be built
  124  hang                the guest passed its limit, or the machine its time-out";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum HostKind {
    Qemu,
    Bochs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

pub(crate) fn command(args: &Args) -> Result<ExitCode> {
    let guests: Vec<&str> = args.guest.as_deref().map_or_else(|| DEFAULT_GUESTS.to_vec(), |guest| vec![guest]);
    let ours = guests.iter().map(|guest| build::is_our_guest(guest)).collect::<Result<Vec<_>>>()?;
    let machine = args.machine()?;
    let images = match (args.bare, ours.contains(&true)) {
        (false, _) => Some(Images::build()?),
        (true, true) => Some(Images::build_guests()?),
        (true, false) => None,
    };
    for (name, ours) in guests.into_iter().zip(ours) {
        let file = images.as_ref().filter(|_| ours).map_or_else(|| PathBuf::from(name), |images| images.guest(name));
        let trial = args.trial(&machine, images.as_ref().filter(|_| !args.bare), file);
        let verdict = show(&trial, name)?;
        if verdict != Verdict::Pass {
            return Ok(ExitCode::from(verdict.status()));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Carries out a trial with its console on ours, and says how it ended.
fn show(trial: &Trial, name: &str) -> Result<Verdict> {
    let symbols = trial.hypervisor.as_ref().and_then(|hypervisor| Symbols::load(&hypervisor.file).ok());
    let mut printer = Printer { symbols, line: Vec::new() };
    let report = trial.carry_out(&mut |bytes| printer.print(bytes))?;
    printer.end_line();
    if matches!(report.outcome.verdict, Verdict::Hang | Verdict::HvTripleFault | Verdict::Unknown) {
        for line in &report.finished.complaints {
            println!("emulator: {line}");
        }
    }
    let name = Path::new(name).file_name().unwrap_or_default().to_string_lossy();
    println!("run: {} [{name} on {trial}, {:.1} s]", report.outcome, report.finished.elapsed.as_secs_f64());
    Ok(report.outcome.verdict)
}

impl Args {
    fn machine(&self) -> Result<Machine> {
        match self.host {
            HostKind::Qemu => {
                let needs = if self.bare { Needs::Nothing } else { Needs::Virtualization };
                setup::ensure(Tool::Qemu)?;
                let engine = self.accel.resolve(self.icount, needs)?;
                Ok(Machine::Qemu(Qemu { engine, cpu: self.cpu.clone() }))
            }
            HostKind::Bochs if self.bare => Err(usage("--bare goes with QEMU alone")),
            HostKind::Bochs if self.icount || self.accel != Accel::Auto => {
                Err(usage("--accel and --icount are QEMU's; Bochs always counts instructions"))
            }
            HostKind::Bochs => {
                setup::ensure(Tool::Bochs)?;
                let cpu = self.cpu.clone().unwrap_or_else(|| bochs::VMX_CPU.to_string());
                Ok(Machine::Bochs(Bochs { cpu }))
            }
        }
    }

    fn trial(&self, machine: &Machine, images: Option<&Images>, guest: PathBuf) -> Trial {
        let level = self.log.to_possible_value().map(|value| value.get_name().to_string()).unwrap_or_default();
        let words = format!("log={level} {}", self.hv_words);
        let is_latency = guest.file_name().is_some_and(|name| name == "exit-latency");
        Trial {
            machine: machine.clone(),
            hypervisor: images.map(|images| Hypervisor { file: images.hv(), words }),
            guest: Guest {
                image: Image::new(guest, self.cmdline.clone()),
                modules: self.module.iter().map(|module| parse_module(module)).collect(),
                memory: self.mem,
                pages: self.pages.unwrap_or(if is_latency { Pages::Small } else { Pages::Large }),
            },
            timeout: Duration::from_secs(self.timeout.into()),
            limit: self.limit.map(|seconds| Duration::from_secs(seconds.into())),
        }
    }
}

/// `FILE WORDS`: a file whose path has a blank is given by a path without one.
fn parse_module(module: &str) -> Image {
    let (file, words) = module.split_once(' ').unwrap_or((module, ""));
    Image::new(file, words)
}

/// Passes a console on, and puts the names below a panic's backtrace.
struct Printer {
    symbols: Option<Symbols>,
    /// The line so far.
    line: Vec<u8>,
}

impl Printer {
    fn print(&mut self, bytes: &[u8]) {
        let mut out = io::stdout().lock();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            // There is nobody to tell when our own output is closed; the run goes on to its verdict.
            let _ = out.write_all(piece);
            self.line.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                let line = String::from_utf8_lossy(&self.line);
                for name in self.symbols.iter().flat_map(|symbols| symbols.explain(&line)) {
                    let _ = writeln!(out, "{name}");
                }
                self.line.clear();
            }
        }
        let _ = out.flush();
    }

    /// Ends a last line that the machine left open.
    fn end_line(&mut self) {
        if !self.line.is_empty() {
            println!();
            self.line.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_a_file_and_words() {
        let module = parse_module("a/b.img root=1 ro");
        assert_eq!((module.file, module.words.as_str()), (PathBuf::from("a/b.img"), "root=1 ro"));
        assert_eq!(parse_module("x").words, "");
    }
}
