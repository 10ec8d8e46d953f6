//! What a run leaves behind, and how it ends, when its output is gone or a signal ends it. The emulator is a script.

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// What a run may take to end after it was told to. Ample: it takes a moment.
const END_TIMEOUT: Duration = Duration::from_secs(60);
/// More than a pipe and all buffers hold.
const LONG: &str = "for n in $(seq 20000); do echo \"a line that is long enough to fill the pipe: $n\"; done\n";
/// Tells its process ID on the console, and stays.
const STAYS: &str = "echo pid $$\nexec sleep 1000\n";

/// The signals come as they do at a terminal, whatever those of the test runner are …
const HEEDED: &str = "exec env --default-signal=INT,HUP,TERM";
/// … or as they do in the background.
const IGNORED: &str = "trap '' INT HUP; exec";

/// A place with an emulator of its own and an image to boot.
struct Place {
    folder: TempDir,
}

impl Place {
    /// `script` is what the emulator does.
    fn new(script: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("guest.elf"), "no image, which the script does not mind").unwrap();
        fs::create_dir(folder.path().join("bin")).unwrap();
        fs::create_dir(folder.path().join("tmp")).unwrap();
        let place = Self { folder };
        place.program("qemu-system-x86_64", script);
        place
    }

    fn program(&self, name: &str, script: &str) {
        let file = self.path("bin").join(name);
        fs::write(&file, format!("#!/bin/sh\n{script}")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `xtask` with these arguments, by a shell that does `before` first; its last line may begin a command, as env(1) does.
    fn command(&self, before: &str, arguments: &str) -> Command {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{before} \"$XTASK\" {arguments}")]).current_dir(self.folder.path());
        command.env("XTASK", env!("CARGO_BIN_EXE_xtask"));
        command.env("PATH", format!("{}:{path}", self.path("bin").display()));
        command.env("CARGO_TARGET_DIR", self.path("target")).env("TMPDIR", self.path("tmp"));
        command
    }

    /// Boots the image alone, which takes no build.
    fn run(&self, before: &str) -> Command {
        self.command(before, "run --bare --accel tcg --guest guest.elf")
    }

    /// What is left of the run's files.
    fn leftovers(&self) -> Vec<PathBuf> {
        let folders = [self.path("target/run"), self.path("tmp")];
        let entries = folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten();
        entries.map(|entry| entry.unwrap().path()).collect()
    }
}

/// A run whose emulator stays.
struct Running {
    xtask: Child,
    emulator: String,
}

impl Running {
    fn start(mut command: Command) -> Self {
        let mut xtask = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(xtask.stdout.take().unwrap()).lines().map_while(Result::ok);
        let emulator =
            lines.find_map(|line| Some(line.strip_prefix("pid ")?.to_string())).expect("the emulator started");
        thread::spawn(move || lines.for_each(drop));
        Self { xtask, emulator }
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.xtask.id().to_string()]).status();
        assert!(status.unwrap().success());
    }

    fn end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + END_TIMEOUT;
        loop {
            if let Some(status) = self.xtask.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the run goes on");
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn assert_no_emulator(&self) {
        assert!(!Path::new("/proc").join(&self.emulator).exists(), "the emulator outlives the run");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.xtask.kill();
        let _ = self.xtask.wait();
    }
}

/// A terminal with a program in its foreground.
struct Terminal {
    master: File,
    child: Child,
    /// What the terminal has shown.
    shown: String,
}

impl Terminal {
    fn start(mut command: Command) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let line = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
        let ends = [line.try_clone().unwrap(), line.try_clone().unwrap(), line].map(Stdio::from);
        let [input, output, errors] = ends;
        let child = command.stdin(input).stdout(output).stderr(errors).spawn().unwrap();
        Self { master: master.into(), child, shown: String::new() }
    }

    fn types(&mut self, keys: &[u8]) {
        self.master.write_all(keys).unwrap();
    }

    /// Reads on until the terminal shows this text.
    fn shows(&mut self, text: &str) {
        let mut buffer = [0; 256];
        while !self.shown.contains(text) {
            // An error is the end of the last program on the terminal.
            let count = self.master.read(&mut buffer).unwrap_or(0);
            assert_ne!(count, 0, "no '{text}' in: {}", self.shown);
            self.shown.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The output of a command of whose standard output only the first line is read.
fn head(mut command: Command) -> ExitStatus {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = [0];
    let mut output = child.stdout.take().unwrap();
    output.read_exact(&mut line).unwrap();
    drop(output);
    child.wait().unwrap()
}

#[test]
fn a_reader_that_left_does_not_change_the_verdict() {
    for (status, expected) in [(1, 0), (3, 1), (0, 3)] {
        let place = Place::new(&format!("{LONG}exit {status}"));
        let ended = head(place.run(""));
        assert_eq!(ended.code(), Some(expected), "{ended}");
        assert_eq!(place.leftovers(), [""; 0].map(PathBuf::from));
    }
}

#[test]
fn a_full_device_does_not_change_the_verdict() {
    let place = Place::new(&format!("{LONG}exit 3"));
    let full = || Stdio::from(File::options().write(true).open("/dev/full").unwrap());
    let ended = place.run("").stdout(full()).stderr(full()).status().unwrap();
    assert_eq!(ended.code(), Some(1), "{ended}");
}

#[test]
fn help_and_errors_for_a_full_device_have_their_status() {
    let place = Place::new("");
    for (arguments, expected) in [("run --help", 0), ("--help", 0), ("--version", 0), ("run --nonsense", 2), ("", 2)] {
        let full = || Stdio::from(File::options().write(true).open("/dev/full").unwrap());
        let ended = place.command("", arguments).stdout(full()).stderr(full()).status().unwrap();
        assert_eq!(ended.code(), Some(expected), "{arguments}: {ended}");
    }
}

#[test]
fn lines_of_long_steps_are_no_end_either() {
    // Each test is a line that goes through the tool.
    let place = Place::new("");
    let tests = "[ \"$1\" = test ] || exit 1\nfor n in $(seq 5000); do echo \"test a_name_that_fills_the_pipe_$n ... ok\"; done";
    place.program("cargo", tests);
    let before = "export CARGO=$PWD/bin/cargo; exec";
    let ended = head(place.command(before, "test --only host"));
    assert_eq!(ended.code(), Some(0), "{ended}");
}

#[test]
fn signals_leave_no_files_and_no_process() {
    for (name, number) in [("INT", 2), ("TERM", 15), ("HUP", 1)] {
        let place = Place::new(STAYS);
        let mut running = Running::start(place.run(HEEDED));
        assert_eq!(place.leftovers().len(), 1, "the run has a folder");
        running.signal(name);
        assert_eq!(running.end().code(), Some(128 + number), "{name}");
        running.assert_no_emulator();
        assert_eq!(place.leftovers(), [""; 0].map(PathBuf::from), "{name}");
    }
}

#[test]
fn keys_of_a_terminal_go_to_the_guest_but_for_commands() {
    let place = Place::new("echo pid $$\nhead -c 5 | od -An -tx1\nexec sleep 1000\n");
    // The terminal is the controlling one of a session of its own, as after a login.
    let mut terminal = Terminal::start(place.run("exec setsid --ctty --wait timeout --foreground 60"));
    terminal.shows("pid ");
    // ctrl-c is the guest's, as each key is that; ctrl-a c is a break to QEMU's multiplexer; ctrl-a h helps.
    terminal.types(b"\x03k\x01c\x01h\r");
    terminal.shows("03 6b 01 62 0d");
    terminal.shows("ctrl-a x ");
    terminal.types(b"\x01x");
    terminal.shows("left by ctrl-a x");
    assert_eq!(terminal.child.wait().unwrap().code(), Some(130));
    assert_eq!(place.leftovers(), [""; 0].map(PathBuf::from));
}

#[test]
fn a_signal_that_came_ignored_is_ignored_and_others_are_not() {
    let place = Place::new(STAYS);
    let mut running = Running::start(place.run(IGNORED));
    // Any of the first two would end it with another status: pending ones are handled before those that came later.
    for name in ["INT", "HUP", "TERM"] {
        running.signal(name);
    }
    assert_eq!(running.end().code(), Some(128 + 15));
    running.assert_no_emulator();
    assert_eq!(place.leftovers(), [""; 0].map(PathBuf::from));
}

#[test]
fn a_terminals_signal_reaches_the_tool_alone() {
    // QEMU handles SIGINT and SIGHUP by ending, whether they came ignored or not: as if its guest had crashed it.
    let place = Place::new(&format!(
        "trap 'exit 7' INT HUP\n{}",
        STAYS.replace("exec sleep 1000", "while :; do sleep 0.1; done")
    ));
    let mut running = Running::start(place.run(IGNORED));
    let group = fs::read_to_string(format!("/proc/{}/stat", running.emulator)).unwrap();
    let group = group.rsplit_once(')').unwrap().1.split_whitespace().nth(2).unwrap().to_string();
    assert_eq!(group, running.emulator, "the emulator has a process group of its own");
    running.signal("TERM");
    assert_eq!(running.end().code(), Some(128 + 15));
    running.assert_no_emulator();
}

#[test]
fn a_time_out_leaves_nothing_where_interrupts_came_ignored() {
    let place = Place::new(STAYS);
    let mut running = Running::start(place.command(IGNORED, "run --bare --accel tcg --timeout 1 --guest guest.elf"));
    assert_eq!(running.end().code(), Some(124));
    running.assert_no_emulator();
    assert_eq!(place.leftovers(), [""; 0].map(PathBuf::from));
}

/// The arguments name files that can't be used: the error names the option and the file, and comes before any build.
fn assert_refused(place: &Place, before: &str, arguments: &str, option: &str, file: &str) {
    let Output { status, stderr, .. } = place.command(before, arguments).output().unwrap();
    let text = String::from_utf8_lossy(&stderr);
    assert_eq!(status.code(), Some(2), "{arguments}: {text}");
    assert!(text.contains(option) && text.contains(file), "{arguments}: {text}");
    assert!(!place.path("built").exists(), "{arguments}: something was built");
}

#[test]
fn files_that_are_missing_are_usage_errors() {
    let place = Place::new("exit 1");
    place.program("cargo", &format!("touch {}; exit 1", place.path("built").display()));
    let before = "export CARGO=$PWD/bin/cargo; exec";
    fs::create_dir(place.path("folder")).unwrap();
    for file in ["nofile", "folder", "guest.elf/x"] {
        for command in ["run", "run --bare", "run --host bochs", "iso"] {
            for (arguments, option) in [
                (format!("{command} --guest guest.elf --module '{file} a b'"), "--module"),
                (format!("{command} --guest {file}"), "--guest"),
                (format!("{command} --vm guest={file}"), "--vm"),
                (format!("{command} --vm guest=guest.elf,module={file},cmdline=x"), "--vm"),
            ] {
                assert_refused(&place, before, &arguments, option, file);
            }
        }
    }
    for file in ["folder", "guest.elf/x.iso"] {
        assert_refused(&place, before, &format!("iso --guest guest.elf --output {file}"), "--output", file);
    }
    // Without a fault of the kind, it goes on to the build.
    let Output { status, .. } = place.command(before, "run --guest guest.elf").output().unwrap();
    assert_eq!((status.code(), place.path("built").exists()), (Some(101), true));
}

#[test]
fn files_that_can_not_be_read_are_usage_errors() {
    let place = Place::new("exit 1");
    let secret = place.path("secret");
    fs::write(&secret, "x").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o000)).unwrap();
    // The superuser reads everything; without this capability it doesn't.
    let before = if File::open(&secret).is_ok() { "exec setpriv --bounding-set=-all --inh-caps=-all" } else { "exec" };
    assert_refused(&place, before, "run --bare --guest guest.elf --module secret", "--module", "secret");
}
