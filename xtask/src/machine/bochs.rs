//! Bochs: the way to VMX where the processor has none, and a second opinion on SVM.

use super::trace::Trace;
use super::{Boot, EmulatorExit, Medium, iso};
use crate::leash::Leashed;
use crate::project;
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

/// The program.
pub(crate) const PROGRAM: &str = "bochs";
/// The default processor: VMX with EPT, VPID and unrestricted guest.
pub(crate) const VMX_CPU: &str = "corei7_skylake_x";
/// A processor with SVM, nested paging and next-RIP save.
pub(crate) const SVM_CPU: &str = "ryzen";

const BIOS: &str = "BIOS-bochs-latest";
const VGA_BIOS: &str = "vgabios.bin";
/// Where distributions put either.
const BIOS_FOLDERS: [&str; 5] = [
    "/usr/share/bochs",
    "/usr/share/vgabios",
    "/usr/share/bochs/bios",
    "/usr/local/share/bochs",
    "/opt/homebrew/share/bochs",
];

/// Instructions in a second of the machine's own time: about half of what Bochs reaches, so that limits in the machine's
/// time come before those of the clock on the wall.
const IPS: u32 = 50_000_000;
/// The debugger of Debian's build waits for commands: go on, show where it stopped, go on again, show, end. A third
/// exception in a row stops it, though that may be a guest's own and the hypervisor's to handle; so may an interrupt.
const DEBUGGER_COMMANDS: &str = "c\nr\nsreg\nu /8\nc\nr\nsreg\nu /8\nq\n";
/// How long after such an exception the console must have been silent for it to be the hypervisor's.
const SILENCE: Duration = Duration::from_secs(2);
/// How often the console's file is looked at.
const POLL: Duration = Duration::from_millis(20);
/// How many of the log's last lines are worth showing.
const LAST_LOG_LINES: usize = 12;
/// What Bochs says where its log is not open yet.
const ERRORS: &str = "errors";
/// Marks there what it ends for.
const PANIC: &str = ">>PANIC<< ";
/// In the log of a processor that met a third exception in a row.
const TRIPLE_FAULT: &str = "exception with no resolution";

/// A Bochs machine.
#[derive(Clone, Debug)]
pub(crate) struct Bochs {
    /// The processor's model; `bochs --help cpu` lists them.
    pub(crate) cpu: String,
    /// Where instructions are noted, if they are. The debugger traces the first processor alone.
    pub(crate) trace: Option<Trace>,
}

/// The machine's BIOS and its VGA BIOS, where both are installed.
pub(crate) fn find_bios() -> Option<(PathBuf, PathBuf)> {
    let find = |name| BIOS_FOLDERS.iter().map(|folder| Path::new(folder).join(name)).find(|file| file.is_file());
    Some((find(BIOS)?, find(VGA_BIOS)?))
}

impl Bochs {
    /// One with this processor.
    pub(crate) fn new(cpu: impl Into<String>) -> Self {
        Self { cpu: cpu.into(), trace: None }
    }

    pub(super) fn run(
        &self,
        boot: &Boot,
        folder: &Path,
        deadline: Instant,
        live: &mut dyn FnMut(&[u8]),
    ) -> Result<EmulatorExit> {
        let iso = match &boot.from {
            Medium::Images(images) => {
                iso::make(images, folder, &folder.join("boot.iso"))?;
                PathBuf::from("boot.iso")
            }
            Medium::Iso(file) => file.canonicalize()?,
        };
        let (bios, vga_bios) = find_bios().context("Bochs's BIOS images are not installed")?;
        fs::write(folder.join("bochsrc"), self.configuration(boot, &iso, &bios, &vga_bios))?;
        let trace = self.trace.as_ref();
        let commands = trace.map(Trace::bochs_commands).unwrap_or_default() + DEBUGGER_COMMANDS;
        fs::write(folder.join("commands"), commands)?;
        let program = project::find_program(PROGRAM).context("bochs is not installed")?;
        let errors = File::create(folder.join(ERRORS))?;
        let mut child = Leashed::spawn(&program, |command| {
            command.args(["-q", "-f", "bochsrc", "-rc", "commands"]).current_dir(folder);
            command.env("TERM", "xterm").stdin(Stdio::null()).stderr(errors);
            match trace {
                Some(_) => command.stdout(Stdio::piped()),
                None => command.args(["-dbglog", "debugger.log"]).stdout(Stdio::null()),
            };
        })?;
        if let (Some(trace), Some(output)) = (trace.cloned(), child.child.stdout.take()) {
            thread::spawn(move || {
                BufReader::new(output).lines().map_while(Result::ok).for_each(|line| _ = trace.take(&line))
            });
        }
        attend(&mut child, folder, deadline, live)
    }

    fn configuration(&self, boot: &Boot, iso: &Path, bios: &Path, vga_bios: &Path) -> String {
        format!(
            "config_interface: textconfig\n\
             display_library: term\n\
             plugin_ctrl: speaker=0\n\
             romimage: file=\"{bios}\", options=fastboot\n\
             vgaromimage: file=\"{vga_bios}\"\n\
             megs: {megs}\n\
             cpu: model={cpu}, count={cpus}, ips={IPS}, reset_on_triple_fault=0\n\
             ata0-master: type=cdrom, path=\"{iso}\", status=inserted\n\
             boot: cdrom\n\
             com1: enabled=1, mode=file, dev=console\n\
             log: bochs.log\n\
             panic: action=fatal, cpu0=report\n\
             error: action=report\n\
             info: action=report\n\
             debug: action=ignore\n\
             clock: sync=none, time0=0\n",
            bios = bios.display(),
            vga_bios = vga_bios.display(),
            megs = boot.memory.in_mib(),
            cpu = self.cpu,
            cpus = boot.cpus,
            iso = iso.display(),
        )
    }
}

/// Hands the console on until Bochs ends or is ended.
fn attend(child: &mut Leashed, folder: &Path, deadline: Instant, live: &mut dyn FnMut(&[u8])) -> Result<EmulatorExit> {
    let mut console = Tail::new(folder.join("console"));
    let log = folder.join("bochs.log");
    let mut last_heard = Instant::now();
    let exit = loop {
        thread::sleep(POLL);
        if console.forward(live)? {
            last_heard = Instant::now();
        }
        if let Some(status) = child.ended()? {
            break Some(status);
        }
        let dead = last_heard.elapsed() >= SILENCE && has_shut_down(&log);
        if dead || Instant::now() >= deadline {
            stop_at_prompt(child);
            break None;
        }
        if last_heard.elapsed() >= SILENCE {
            thread::sleep(10 * POLL);
        }
    };
    console.forward(live)?;
    let mut complaints = last_lines(&text(&log), &text(&folder.join("debugger.log")));
    if complaints.is_empty() {
        complaints.extend(refusal(&text(&folder.join(ERRORS))));
    }
    Ok(EmulatorExit { exit, complaints, processor_shut_down: has_shut_down(&log) })
}

/// Ends a Bochs past its deadline. An interrupt brings up the debugger's prompt, whose commands show where it was, twice
/// for [`DEBUGGER_COMMANDS`]; it ignores SIGTERM, and what does not end soon is killed.
fn stop_at_prompt(child: &mut Leashed) {
    for _ in 0..2 {
        if !child.interrupt() || matches!(child.ends_within(Duration::from_millis(500)), Ok(true)) {
            break;
        }
    }
    child.kill();
}

/// A file's text, as far as it is there.
fn text(file: &Path) -> String {
    String::from_utf8_lossy(&fs::read(file).unwrap_or_default()).into_owned()
}

/// Why Bochs did not start, by what it said: a line of its configuration, whose number means nothing to a user.
fn refusal(errors: &str) -> Option<String> {
    let (_, why) = errors.lines().find_map(|line| line.split_once(PANIC))?;
    Some(match why.ends_with("cpu directive malformed.") {
        true => "Bochs does not know the processor; `bochs --help cpu` lists its models".to_string(),
        false => why.to_string(),
    })
}

/// Whether the processor met a third exception in a row, by Bochs's log.
fn has_shut_down(log: &Path) -> bool {
    text(log).contains(TRIPLE_FAULT)
}

/// A file that grows, and may not be there yet: Bochs makes it when the UART is programmed.
struct Tail {
    path: PathBuf,
    file: Option<File>,
}

impl Tail {
    fn new(path: PathBuf) -> Self {
        Self { path, file: None }
    }

    /// Hands on what is new. Whether there was anything.
    fn forward(&mut self, to: &mut dyn FnMut(&[u8])) -> Result<bool> {
        if self.file.is_none() {
            self.file = File::open(&self.path).ok();
        }
        let Some(file) = &mut self.file else { return Ok(false) };
        let mut new = Vec::new();
        file.read_to_end(&mut new).context("can't read the console's file")?;
        if !new.is_empty() {
            to(&new);
        }
        Ok(!new.is_empty())
    }
}

/// The ends of the log and of what the debugger showed.
fn last_lines(log: &str, debugger: &str) -> Vec<String> {
    let tail = |text: &str, count: usize| {
        let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).map(str::to_string).collect();
        lines[lines.len().saturating_sub(count)..].to_vec()
    };
    [tail(debugger, 2 * LAST_LOG_LINES), tail(log, LAST_LOG_LINES)].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size::Size;
    use std::io::Write;

    #[test]
    fn the_configuration_names_model_processors_and_memory() {
        let boot = Boot {
            from: Medium::Iso("x.iso".into()),
            memory: Size::mib(512),
            cpus: 4,
            vms: Vec::new(),
            input: None,
            is_reset: false,
        };
        let [iso, bios, vga_bios] = ["c.iso", "/a/bios", "/b/vga"].map(Path::new);
        let text = Bochs::new(SVM_CPU).configuration(&boot, iso, bios, vga_bios);
        assert!(text.contains("megs: 512\n"));
        assert!(text.contains("cpu: model=ryzen, count=4, "));
        assert!(text.contains("path=\"c.iso\""));
        assert!(text.contains("file=\"/a/bios\""));
        assert!(text.lines().all(|line| !line.starts_with(' ')));
    }

    #[test]
    fn a_growing_file_is_followed_from_its_making() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console");
        let mut tail = Tail::new(path.clone());
        let mut seen = Vec::new();
        tail.forward(&mut |bytes| seen.extend_from_slice(bytes)).unwrap();
        let mut file = File::create(&path).unwrap();
        for piece in ["one\n", "two"] {
            file.write_all(piece.as_bytes()).unwrap();
            tail.forward(&mut |bytes| seen.extend_from_slice(bytes)).unwrap();
        }
        assert_eq!(seen, b"one\ntwo");
    }

    #[test]
    fn a_stuck_bochs_is_killed_and_its_logs_end_shown() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Leashed::spawn(Path::new("/bin/sh"), |command| {
            let script =
                "trap '' INT TERM; seq 100 | sed 's/^/at /' > bochs.log; echo hello > console; exec sleep 1000";
            command.args(["-c", script]).current_dir(folder.path());
        })
        .unwrap();
        // The script has come to its end when the console has its line.
        let (mut heard, asked) = (Vec::new(), Instant::now());
        while !folder.path().join("console").exists() && asked.elapsed() < Duration::from_secs(20) {
            thread::sleep(POLL);
        }
        let stop =
            attend(&mut child, folder.path(), Instant::now(), &mut |bytes| heard.extend_from_slice(bytes)).unwrap();
        assert_eq!((stop.exit, stop.processor_shut_down, heard.as_slice()), (None, false, &b"hello\n"[..]));
        assert_eq!(stop.complaints.last().map(String::as_str), Some("at 100"));
        assert_eq!(stop.complaints.len(), LAST_LOG_LINES);
        assert!(child.child.try_wait().unwrap().is_some(), "it is dead");
    }

    #[test]
    fn a_bochs_that_does_not_start_says_why() {
        let said = "========\n00000000000p[      ] >>PANIC<< bochsrc:7: cpu directive malformed.\n00000000000e[SIM   ] notify\n";
        assert_eq!(
            refusal(said).as_deref(),
            Some("Bochs does not know the processor; `bochs --help cpu` lists its models")
        );
        let other = "00000000000p[      ] >>PANIC<< ROM: couldn't open ROM image file\n";
        assert_eq!(refusal(other).as_deref(), Some("ROM: couldn't open ROM image file"));
        assert_eq!(refusal("nothing"), None);
    }

    #[test]
    fn the_logs_ends_are_kept() {
        let log: String = (0..100).map(|n| format!("line {n}\n\n")).collect();
        let lines = last_lines(&log, "rip: 1\n");
        assert_eq!(lines.len(), LAST_LOG_LINES + 1);
        assert_eq!((lines[0].as_str(), lines[LAST_LOG_LINES].as_str()), ("rip: 1", "line 99"));
    }
}
