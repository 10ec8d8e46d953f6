//! Boots a guest on a machine and judges it.

use crate::build::Images;
use crate::failure::usage;
use crate::guests::{GuestArgs, Wanted};
use crate::machine::Emulator;
use crate::machine::bochs::{self, Bochs};
use crate::machine::input::Input;
use crate::machine::qemu::{Accel, Needs, Qemu};
use crate::output::outln;
use crate::setup::{self, Tool};
use crate::size::Size;
use crate::symbols::Symbols;
use crate::trial::{Guest, Hypervisor, Trial, word_of};
use abi::Verdict;
use abi::options::level;
use anyhow::Result;
use clap::ValueEnum;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

/// What is booted when no guest is named: one machine after the other.
const DEFAULT_GUESTS: [&str; 2] = ["smoke", "exit-latency"];
/// How long a machine is given in seconds: by default, and where someone types, which is for ever.
const TIMEOUT: u32 = 60;
const TYPING_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Boot the hypervisor with guests, and give their verdict
///
/// The console is printed as it comes. Without --guest and --vm: the smoke test, then the exit-latency table.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    #[command(flatten)]
    guests: GuestArgs,
    #[command(flatten)]
    machine: MachineArgs,
    /// Kill the machine after this time [default: 60, but none if the keys of this terminal go to the guest]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    timeout: Option<u32>,
}

/// The machine, and the hypervisor on it.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct MachineArgs {
    /// Emulator of the machine
    #[arg(long, value_enum, default_value = "qemu")]
    host: EmulatorKind,
    /// What carries out the instructions (QEMU)
    #[arg(long, value_enum, default_value = "auto")]
    accel: Accel,
    /// Count instructions: a tick of the TSC is one instruction, and figures repeat exactly (QEMU)
    #[arg(long)]
    icount: bool,
    /// Model of the processor; see `qemu-system-x86_64 -cpu help`, `bochs --help cpu`
    #[arg(long, value_name = "MODEL")]
    cpu: Option<String>,
    /// Processors that run guests, to which QEMU's emulation adds one [default: as many as all vCPUs together, 8 at most]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: Option<u32>,
    /// The machine's memory [default: what the guests have, and 256M]
    #[arg(long, value_name = "SIZE")]
    ram: Option<Size>,
    /// Let the hypervisor end a guest after this time of the machine's own clock [default: a bit below the time-out]
    #[arg(long, value_name = "SECONDS")]
    limit: Option<u32>,
    #[command(flatten)]
    words: HvWords,
    /// Boot the guest without the hypervisor, to compare (QEMU)
    #[arg(long)]
    pub(crate) bare: bool,
}

const AFTER_HELP: &str = "\
Examples:
  cargo xtask run                                           the smoke test, then the exit-latency table
  cargo xtask run --icount --guest exit-latency             latency in instructions
  cargo xtask run --guest my.elf --cmdline \"a b\" --mem 64M  a guest of your own
  cargo xtask run --guest my.elf --module \"disk.img ro\"     ... with a module
  cargo xtask run --guest balloon --vcpus 4 --cpus 2        four virtual processors on two
  cargo xtask run --vm guest=smoke,name=a --vm \"guest=balloon,name=b,vcpus=2,mem=128M,cmdline=--seconds 5\"
                                                            two VMs, whose lines are marked `a| ` and `b| `
  cargo xtask run --guest smoke --bare --accel kvm          the same image without the hypervisor, under KVM
  cargo xtask run --host bochs --guest smoke                on Bochs, by GRUB
  cargo xtask run --guest vmlinuz --initrd initrd.gz --cmdline console=ttyS0 --mem 512M
                                                            Linux on this terminal, whose keys go to it

Keys go to a guest by its FILE alone, as they do with --input -: ctrl-a x leaves (status 130), ctrl-a c shows what the exits
have cost so far, ctrl-a h lists the keys.

Exit status:
    0  pass                the guest reported success, powered off, or halted as Linux's 'System halted' announces
    1  guest-failed        the guest reported failure, or printed 'not ok', or its console is not as demanded
    2  usage               bad usage, or something to install
    3  guest-triple-fault  the guest shut down
    4  guest-killed        the guest did what can't be handled, or halted for ever
    5  hv-panic            the hypervisor panicked
    6  hv-triple-fault     the machine was reset without a verdict
    7  no-virtualization   the processor lacks what the hypervisor needs; the text names it
    8  bad-image           the guest's image was refused; the text says why
    9  leak                memory was missing after the guest's end
   10  no-verdict          the emulator ended otherwise, without a verdict
   11  no-memory           the machine has too little memory for the VMs; the text says for which and of what
  101  the images could not be built
  124  hang                the guest passed its limit, or the machine its time-out
128+n  signal n ended the run, or ctrl-a x as signal 2 does: nothing is left of its files and processes";

/// An emulator; which processor it is or has is another option's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum EmulatorKind {
    Qemu,
    Bochs,
}

/// What the hypervisor is told beside its VMs.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct HvWords {
    /// The hypervisor's log level
    #[arg(long, value_enum, default_value = level::INFO)]
    log: Level,
    /// More words for the hypervisor's command line
    #[arg(long, value_name = "WORDS", default_value = "")]
    hv_words: String,
}

impl HvWords {
    /// The hypervisor with these words.
    pub(crate) fn hypervisor(&self, images: &Images) -> Hypervisor {
        Hypervisor::new(images.hv(), &word_of(self.log), &self.hv_words)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Level {
    #[value(name = level::ERROR)]
    Error,
    #[value(name = level::WARN)]
    Warn,
    #[value(name = level::INFO)]
    Info,
    #[value(name = level::DEBUG)]
    Debug,
    #[value(name = level::TRACE)]
    Trace,
}

pub(crate) fn command(args: &Args) -> Result<ExitCode> {
    let mut machines: Vec<Vec<Wanted>> = if args.guests.names_any() {
        vec![args.guests.wanted("")]
    } else {
        DEFAULT_GUESTS.iter().map(|guest| args.guests.wanted(guest)).collect()
    };
    if args.machine.bare && machines.iter().any(|guests| guests.len() > 1) {
        return Err(usage("--bare boots one guest: without the hypervisor a machine holds no more"));
    }
    let machine = args.machine.machine()?;
    for guests in &mut machines {
        give_keys(guests, &machine);
        check_input(&machine, guests.iter().filter(|guest| guest.has_input()).count())?;
    }
    let images = match (args.machine.bare, machines.iter().flatten().any(Wanted::is_ours)) {
        (false, _) => Some(Images::build()?),
        (true, true) => Some(Images::build_guests()?),
        (true, false) => None,
    };
    for guests in machines {
        let resolved: Vec<_> =
            guests.iter().enumerate().map(|(number, guest)| guest.resolve(number, images.as_ref())).collect();
        let timeout = timeout(args.timeout, TIMEOUT, &resolved);
        let trial = args.machine.trial(&machine, images.as_ref(), resolved, timeout);
        let title = guests.iter().map(Wanted::title).collect::<Vec<_>>().join(", ");
        let verdict = show(&trial, &title)?;
        if verdict != Verdict::Pass {
            return Ok(exit_code(verdict));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A guest alone gets the keys of this terminal, where it can.
fn give_keys(guests: &mut [Wanted], machine: &Emulator) {
    if let [guest] = guests
        && machine.takes_input()
    {
        guest.take_keys();
    }
}

/// Of several VMs one is typed for.
pub(crate) const ONE_INPUT: &str = "there is one input, and one VM that gets it";

/// Fails where what is typed for so many guests would not get to them.
pub(crate) fn check_input(machine: &Emulator, typed_for: usize) -> Result<()> {
    match typed_for {
        0 => Ok(()),
        1 if machine.takes_input() => Ok(()),
        1 => Err(usage("input goes with QEMU alone: Bochs's UART drops what it has no room for")),
        _ => Err(usage(ONE_INPUT)),
    }
}

/// How long the machine is given, if nothing else was `asked` for: `usual` seconds.
pub(crate) fn timeout(asked: Option<u32>, usual: u32, guests: &[Guest]) -> Duration {
    let types = guests.iter().filter_map(|guest| guest.input.as_ref()).any(Input::is_terminal);
    if types && asked.is_none() { TYPING_TIMEOUT } else { Duration::from_secs(asked.unwrap_or(usual).into()) }
}

/// What the program ends with after a run with this verdict.
pub(crate) fn exit_code(verdict: Verdict) -> ExitCode {
    ExitCode::from(verdict.status())
}

/// Carries out a trial with its console on ours, and says how it ended.
pub(crate) fn show(trial: &Trial, title: &str) -> Result<Verdict> {
    let symbols = trial.hypervisor.as_ref().and_then(|hypervisor| Symbols::load(&hypervisor.file).ok());
    let mut printer = Printer { symbols, line: Vec::new() };
    let report = trial.carry_out(&mut |bytes| printer.print(bytes))?;
    printer.end_line();
    if matches!(report.outcome.verdict, Verdict::Hang | Verdict::HvTripleFault | Verdict::Unknown) {
        for line in &report.finished.complaints {
            outln!("emulator: {line}");
        }
    }
    if let [_, _, ..] = &report.vms[..] {
        for vm in &report.vms {
            outln!("run: {}: {}{}", vm.name, vm.outcome, vm.work());
        }
    }
    outln!("run: {} [{title} on {trial}, {:.1} s]", report.outcome, report.finished.elapsed.as_secs_f64());
    Ok(report.outcome.verdict)
}

impl MachineArgs {
    /// The machine, whose emulator is got where it is missing.
    pub(crate) fn machine(&self) -> Result<Emulator> {
        match self.host {
            EmulatorKind::Qemu => {
                let needs = if self.bare { Needs::Nothing } else { Needs::Virtualization };
                setup::ensure(Tool::Qemu)?;
                let engine = self.accel.resolve(self.icount, needs)?;
                Ok(Emulator::Qemu(Qemu::new(engine, self.cpu.clone())))
            }
            EmulatorKind::Bochs if self.bare => Err(usage("--bare goes with QEMU alone")),
            EmulatorKind::Bochs if self.icount || self.accel != Accel::Auto => {
                Err(usage("--accel and --icount are QEMU's; Bochs always counts instructions"))
            }
            EmulatorKind::Bochs => {
                setup::ensure(Tool::Bochs)?;
                let cpu = self.cpu.clone().unwrap_or_else(|| bochs::VMX_CPU.to_string());
                Ok(Emulator::Bochs(Bochs::new(cpu)))
            }
        }
    }

    /// These guests on the machine; `images` has the hypervisor, if there is to be one.
    pub(crate) fn trial(
        &self,
        machine: &Emulator,
        images: Option<&Images>,
        guests: Vec<Guest>,
        timeout: Duration,
    ) -> Trial {
        Trial {
            machine: machine.clone(),
            cpus: self.cpus,
            ram: self.ram,
            hypervisor: images.filter(|_| !self.bare).map(|images| self.words.hypervisor(images)),
            guests,
            timeout,
            limit: self.limit.map(|seconds| Duration::from_secs(seconds.into())),
        }
    }
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
            // Our own output may be closed; the run goes on to its verdict.
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
            outln!("");
            self.line.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Image;
    use crate::machine::qemu::Engine;

    #[test]
    fn one_guest_gets_input_and_on_qemu() {
        let (qemu, bochs) = (Emulator::Qemu(Qemu::new(Engine::Tcg, None)), Emulator::Bochs(Bochs::new(bochs::VMX_CPU)));
        for (machine, typed_for, fits) in
            [(&qemu, 0, true), (&qemu, 1, true), (&qemu, 2, false), (&bochs, 0, true), (&bochs, 1, false)]
        {
            assert_eq!(check_input(machine, typed_for).is_ok(), fits, "{machine}, {typed_for}");
        }
    }

    #[test]
    fn a_machine_is_given_what_is_asked_for_or_usual() {
        let input = Some(Input::File("keys".into()));
        let guests = [Guest { input, ..Guest::new(Image::new("guest", "")) }];
        assert_eq!(timeout(None, 60, &guests), Duration::from_secs(60), "a file types, nobody thinks");
        assert_eq!(timeout(Some(5), 60, &guests), Duration::from_secs(5));
    }
}
