//! QEMU, by TCG or KVM.

use super::input::Typist;
use super::pauses::{self, Pauses};
use super::trace::Trace;
use super::{Boot, EmulatorExit, Image, Medium, gather};
use crate::failure::usage;
use crate::leash::{self, Leashed};
use crate::project;
use abi::ports::{DEBUG_EXIT, DEBUG_EXIT_SIZE};
use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Instant;

/// The program.
pub(crate) const PROGRAM: &str = "qemu-system-x86_64";
/// A processor that TCG can be, with SVM and nested paging (`qemu64` has no nested paging).
const TCG_CPU: &str = "EPYC,+svm";

/// What carries out the processor's instructions, as asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Accel {
    /// KVM where it offers what is needed, else TCG
    Auto,
    /// KVM, or an error
    Kvm,
    /// QEMU's own translator
    Tcg,
}

/// What carries out the processor's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    Kvm,
    Tcg,
    /// TCG, counting: one instruction is 2^`shift` nanoseconds, on one thread.
    TcgIcount {
        shift: u8,
    },
}

impl Engine {
    /// One instruction is one nanosecond.
    pub(crate) const ICOUNT: Self = Self::TcgIcount { shift: 0 };
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "KVM",
            Self::Tcg => "TCG",
            Self::TcgIcount { .. } => "TCG, icount",
        })
    }
}

/// What runs on the virtual processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// The hypervisor: it must offer virtualization itself.
    Virtualization,
    /// A guest alone.
    Nothing,
}

/// What this machine's /dev/kvm has to offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kvm {
    usable: bool,
    nested: bool,
}

impl Kvm {
    const NONE: Self = Self { usable: false, nested: false };

    fn look() -> Self {
        // There are KVMs without the processor's virtualization (kvm_pvm), on which a PC's kernels do not get to their first line.
        let modules = ["/sys/module/kvm_amd", "/sys/module/kvm_intel"].map(Path::new);
        let nested = modules.into_iter().filter_map(|module| fs::read_to_string(module.join("parameters/nested")).ok());
        let in_hardware = modules.into_iter().any(Path::exists);
        let openable = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
        Self {
            usable: openable && in_hardware && starts_on_kvm(),
            nested: nested.into_iter().any(|value| matches!(value.trim(), "1" | "Y")),
        }
    }
}

/// Whether QEMU gets as far as a stopped machine. Some kernels offer a KVM that can't be what `-cpu host` asks for.
fn starts_on_kvm() -> bool {
    let machine = Leashed::spawn(Path::new(PROGRAM), |command| {
        command.args(["-nodefaults", "-display", "none", "-accel", "kvm", "-cpu", "host", "-S", "-monitor", "stdio"]);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    });
    machine.is_ok_and(|mut machine| {
        // A broken pipe means that it is dead already, which the status shows.
        let _ = machine.child.stdin.take().map(|mut monitor| monitor.write_all(b"quit\n"));
        machine.child.wait().is_ok_and(|status| status.success())
    })
}

/// The console by a multiplexer, so that a break can be sent on it ([`line`](super::input::line)).
const MULTIPLEXED: &str = "chardev:console";

impl Accel {
    /// Decides for this machine.
    pub(crate) fn resolve(self, icount: bool, needs: Needs) -> Result<Engine> {
        let asks_for_kvm = self == Self::Kvm || (self == Self::Auto && !icount);
        self.resolve_with(if asks_for_kvm { Kvm::look() } else { Kvm::NONE }, icount, needs)
    }

    fn resolve_with(self, kvm: Kvm, icount: bool, needs: Needs) -> Result<Engine> {
        let suffices = kvm.usable && (kvm.nested || needs == Needs::Nothing);
        match self {
            Self::Kvm if icount => Err(usage("--icount counts TCG's instructions: it can't go with --accel kvm")),
            Self::Kvm if !kvm.usable => Err(usage(
                "--accel kvm: /dev/kvm is missing, not for this user, not the processor's, or can't run QEMU's -cpu host",
            )),
            Self::Kvm if !suffices => Err(usage(
                "--accel kvm: this machine's KVM offers its guests no SVM or VMX (/sys/module/kvm_*/parameters/nested is not 1)",
            )),
            Self::Kvm => Ok(Engine::Kvm),
            Self::Auto if suffices && !icount => Ok(Engine::Kvm),
            Self::Auto | Self::Tcg if icount => Ok(Engine::ICOUNT),
            Self::Auto | Self::Tcg => Ok(Engine::Tcg),
        }
    }
}

/// A QEMU machine.
#[derive(Clone, Debug)]
pub(crate) struct Qemu {
    pub(crate) engine: Engine,
    /// The processor's model; None: the engine's default.
    pub(crate) cpu: Option<String>,
    /// It is stopped and continued again and again.
    pub(crate) is_paused: bool,
    /// Where instructions are noted, if they are.
    pub(crate) trace: Option<Trace>,
}

impl Qemu {
    /// One that runs undisturbed.
    pub(crate) fn new(engine: Engine, cpu: Option<String>) -> Self {
        Self { engine, cpu, is_paused: false, trace: None }
    }

    pub(super) fn run(
        &self,
        boot: &Boot,
        folder: &Path,
        deadline: Instant,
        live: &mut dyn FnMut(&[u8]),
    ) -> Result<EmulatorExit> {
        let medium = medium(&boot.from, folder)?;
        let program = project::find_program(PROGRAM).with_context(|| format!("{PROGRAM} is not installed"))?;
        let mut child = Leashed::spawn(&program, |command| {
            let console = if boot.input.is_some() { MULTIPLEXED } else { "stdio" };
            command.args(self.arguments(boot, console)).args(medium).current_dir(folder);
            let input = if boot.input.is_some() { Stdio::piped() } else { Stdio::null() };
            command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
        })?;
        let line = boot.input.as_ref().zip(child.child.stdin.take());
        let mut typist = line.map(|(input, line)| Typist::new(input, line)).transpose()?;
        let console = child.child.stdout.take().context("QEMU has no standard output")?;
        let errors = child.child.stderr.take().context("QEMU has no standard error")?;
        let trace = self.trace.clone();
        let complaints = thread::spawn(move || complaints(errors, trace.as_ref()));
        let pauses = self.is_paused.then(|| Pauses::begin(folder, deadline));

        let (sender, pieces) = mpsc::channel();
        let reader = thread::spawn(move || forward(console, &sender));
        let exit = loop {
            match pieces.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(piece) => {
                    live(&piece);
                    typist.as_mut().map(Typist::begin);
                }
                Err(RecvTimeoutError::Disconnected) => break child.wait_until(deadline)?,
                Err(RecvTimeoutError::Timeout) => {
                    child.kill();
                    break None;
                }
            }
        };
        // What was said before the end is heard in full.
        let _ = reader.join();
        pieces.try_iter().for_each(|piece| live(&piece));
        pauses.map_or(Ok(()), Pauses::end)?;
        Ok(EmulatorExit { exit, complaints: complaints.join().unwrap_or_default(), processor_shut_down: false })
    }

    /// Boots with the console, and QEMU's monitor behind ctrl-a c, on this terminal, and waits for the end.
    pub(crate) fn take_over(&self, boot: &Boot, folder: &Path) -> Result<()> {
        let medium = medium(&boot.from, folder)?;
        let program = project::find_program(PROGRAM).with_context(|| format!("{PROGRAM} is not installed"))?;
        let mut command = leash::bound(&program);
        command.args(self.arguments(boot, "mon:stdio")).args(medium).current_dir(folder);
        // What it says of a processor's features would be in between.
        let status = command.stderr(Stdio::null()).status().with_context(|| format!("can't start {PROGRAM}"))?;
        ensure!(status.success(), "{PROGRAM} ended with {status}");
        Ok(())
    }

    /// QEMU's words for the machine, whose console is there.
    fn arguments(&self, boot: &Boot, console: &str) -> Vec<OsString> {
        let (memory, cpus) = (format!("{}M", boot.memory.in_mib()), boot.cpus.to_string());
        let (accel, cpu) = match self.engine {
            Engine::Kvm => ("kvm", "host"),
            Engine::Tcg => ("tcg,thread=multi", TCG_CPU),
            Engine::TcgIcount { .. } => ("tcg,thread=single", TCG_CPU),
        };
        let icount;
        let mut arguments = vec!["-nodefaults", "-no-user-config", "-display", "none", "-machine", "pc"];
        arguments.extend(["-action", if boot.is_reset { "reboot=reset" } else { "reboot=shutdown" }]);
        arguments.extend(["-accel", accel, "-cpu", self.cpu.as_deref().unwrap_or(cpu), "-smp", &cpus, "-m", &memory]);
        if let Engine::TcgIcount { shift } = self.engine {
            icount = format!("shift={shift},sleep=off");
            arguments.extend(["-icount", &icount]);
        }
        if self.is_paused {
            arguments.extend(pauses::ARGUMENTS);
        }
        let trace = self.trace.as_ref().map(Trace::qemu_arguments);
        arguments.extend(trace.iter().flatten().map(String::as_str));
        let exit = format!("isa-debug-exit,iobase={DEBUG_EXIT:#x},iosize={DEBUG_EXIT_SIZE:#x}");
        if console == MULTIPLEXED {
            arguments.extend(["-chardev", "stdio,id=console,mux=on,signal=off"]);
        }
        arguments.extend(["-serial", console, "-device", &exit]);
        arguments.into_iter().map(OsString::from).collect()
    }
}

/// QEMU's words for what is booted; images are put into `folder`, where QEMU runs.
fn medium(from: &Medium, folder: &Path) -> Result<Vec<OsString>> {
    let images = match from {
        Medium::Iso(file) => return Ok(vec!["-cdrom".into(), file.canonicalize()?.into()]),
        Medium::Images(images) => images,
    };
    let names = gather(images, folder, |from, to| symlink(from, to))?;
    let mut arguments = vec!["-kernel", &names[0], "-append", &images.kernel.words];
    let modules = module_list(&images.modules, &names[1..]);
    if !images.modules.is_empty() {
        arguments.extend(["-initrd", &modules]);
    }
    Ok(arguments.into_iter().map(OsString::from).collect())
}

/// The value of `-initrd` for multiboot modules: `name words,name words`, with the commas inside a string doubled.
fn module_list(modules: &[Image], names: &[String]) -> String {
    let string = |(image, name): (&Image, &String)| format!("{name} {}", image.words).trim_end().replace(',', ",,");
    modules.iter().zip(names).map(string).collect::<Vec<_>>().join(",")
}

fn forward(mut from: impl Read, to: &mpsc::Sender<Vec<u8>>) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if to.send(buffer[..count].to_vec()).is_err() {
            return;
        }
    }
}

/// What QEMU says itself, without its trace, and without what it always says of TCG and a real processor's features.
fn complaints(errors: impl Read, trace: Option<&Trace>) -> Vec<String> {
    let lines = BufReader::new(errors).lines().map_while(Result::ok);
    let lines = lines.filter(|line| !trace.is_some_and(|trace| trace.take(line)));
    lines.filter(|line| !line.trim().is_empty() && !line.contains("TCG doesn't support requested feature")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Images;
    use crate::size::Size;

    fn names(of: &[&str]) -> Vec<String> {
        of.iter().map(|name| (*name).to_string()).collect()
    }

    #[test]
    fn commas_in_module_strings_are_doubled() {
        let modules = [Image::new("/x/a.elf", "root=1,2 ,"), Image::new("/x/b", ""), Image::new("/x/c", "d e")];
        assert_eq!(module_list(&modules, &names(&["a.elf", "b", "c"])), "a.elf root=1,,2 ,,,b,c d e");
    }

    #[test]
    fn the_command_line_has_what_was_asked_for() {
        let boot = Boot {
            from: Medium::Iso("x".into()),
            memory: Size::mib(512),
            cpus: 4,
            vms: Vec::new(),
            input: None,
            is_reset: false,
        };
        let line = |engine, cpu: Option<&str>| {
            let qemu = Qemu::new(engine, cpu.map(str::to_string));
            joined(&qemu.arguments(&boot, "stdio"))
        };
        let tcg = line(Engine::Tcg, None);
        assert!(tcg.contains("-cpu|EPYC,+svm|-smp|4|-m|512M"), "{tcg}");
        assert!(!tcg.contains("icount"), "{tcg}");
        assert!(tcg.contains("-action|reboot=shutdown"), "{tcg}");
        let reset = Boot { is_reset: true, ..boot.clone() };
        let qemu = Qemu::new(Engine::Tcg, None);
        assert!(joined(&qemu.arguments(&reset, "stdio")).contains("-action|reboot=reset"));
        assert!(line(Engine::ICOUNT, Some("max")).contains("-cpu|max|-smp|4|-m|512M|-icount|shift=0,sleep=off"));
        assert!(line(Engine::Kvm, None).contains("-accel|kvm|-cpu|host"));
    }

    #[test]
    fn images_are_booted_by_name_and_isos_by_path() {
        let folder = tempfile::tempdir().unwrap();
        let there = |name: &str| {
            let file = folder.path().join(name);
            fs::write(&file, "x").unwrap();
            file
        };
        let kernel = Image::new(there("hv.elf"), "log=info vm=mem=64M,pages=2m");
        let images = Images { kernel, modules: vec![Image::new(there("smoke.elf"), "a")] };
        let run = tempfile::tempdir().unwrap();
        let words = medium(&Medium::Images(images), run.path()).unwrap();
        assert_eq!(joined(&words), "-kernel|hv.elf|-append|log=info vm=mem=64M,pages=2m|-initrd|smoke.elf a");
        let iso = there("an.iso").canonicalize().unwrap();
        let words = medium(&Medium::Iso(iso.clone()), run.path()).unwrap();
        assert_eq!(joined(&words), format!("-cdrom|{}", iso.display()));
    }

    fn joined(words: &[OsString]) -> String {
        words.iter().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join("|")
    }

    #[test]
    fn kvm_is_taken_where_it_suffices() {
        let none = Kvm { usable: false, nested: true };
        let plain = Kvm { usable: true, nested: false };
        let nested = Kvm { usable: true, nested: true };
        for (accel, kvm, icount, needs, engine) in [
            (Accel::Auto, nested, false, Needs::Virtualization, Some(Engine::Kvm)),
            (Accel::Auto, plain, false, Needs::Virtualization, Some(Engine::Tcg)),
            (Accel::Auto, plain, false, Needs::Nothing, Some(Engine::Kvm)),
            (Accel::Auto, none, false, Needs::Nothing, Some(Engine::Tcg)),
            (Accel::Auto, nested, true, Needs::Virtualization, Some(Engine::ICOUNT)),
            (Accel::Tcg, nested, false, Needs::Virtualization, Some(Engine::Tcg)),
            (Accel::Tcg, nested, true, Needs::Virtualization, Some(Engine::ICOUNT)),
            (Accel::Kvm, nested, false, Needs::Virtualization, Some(Engine::Kvm)),
            (Accel::Kvm, plain, false, Needs::Virtualization, None),
            (Accel::Kvm, none, false, Needs::Nothing, None),
            (Accel::Kvm, nested, true, Needs::Virtualization, None),
        ] {
            assert_eq!(accel.resolve_with(kvm, icount, needs).ok(), engine, "{accel:?} {kvm:?} {icount} {needs:?}");
        }
    }

    #[test]
    fn warnings_of_no_interest_are_dropped() {
        let text =
            "qemu: warning: TCG doesn't support requested feature: CPUID.01H:ECX\n\nqemu: could not load kernel\n";
        assert_eq!(complaints(text.as_bytes(), None), ["qemu: could not load kernel"]);
    }
}
