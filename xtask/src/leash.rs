//! What must not outlive this program, in whatever way it ends: emulators, the folders of their files, and a raw terminal.
//!
//! [`Leashed`], [`Folder`] and [`RawTerminal`] clean up when they are dropped, for which a signal leaves no time. So each is in a list, too, by
//! which a thread that waits for SIGINT, SIGTERM and SIGHUP kills the processes, removes the folders and restores the terminal. It
//! then ends the program with status 128 + n.
//!
//! A signal that came ignored stays ignored, as is usual: SIGHUP under nohup(1), SIGINT in a background job of a script.
//! QEMU and Bochs handle those signals all the same, and would end as if their guest had made them. So each emulator has a
//! process group of its own, which a terminal's signals do not reach.

use crate::project;
use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitOptions, kill_process_group, waitid, waitpid};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The signals that end the program.
const FATAL: [i32; 3] = [SIGINT, SIGTERM, SIGHUP];
/// A child or a thread may add a file to a folder that is being removed: so it is removed again, this often at most.
const REMOVALS: usize = 10;

/// What there is at the moment.
static HELD: Mutex<Held> = Mutex::new(Held { groups: Vec::new(), folders: Vec::new(), terminal: None });

struct Held {
    groups: Vec<Pid>,
    folders: Vec<PathBuf>,
    /// How the terminal was before it was made raw.
    terminal: Option<Termios>,
}

fn held() -> MutexGuard<'static, Held> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The handling of signals, from the program's start to its end.
pub(crate) struct Watch {
    /// The signal that came; 0: none.
    came: Arc<AtomicUsize>,
}

impl Watch {
    /// Begins to heed the signals, but for those that came ignored.
    pub(crate) fn begin() -> Result<Self> {
        let heeded = || FATAL.into_iter().filter(|signal| !came_ignored(*signal));
        let came = Arc::new(AtomicUsize::new(0));
        for signal in heeded() {
            let number = usize::try_from(signal)?;
            signal_hook::flag::register_usize(signal, Arc::clone(&came), number).context("can't handle signals")?;
        }
        let mut signals = Signals::new(heeded()).context("can't handle signals")?;
        thread::spawn(move || signals.forever().next().map(|signal| end_by(signal)));
        Ok(Self { came })
    }

    /// Ends the program by the signal that came, if one did. A child such as cargo gets a terminal's signal too: its end by
    /// the signal must not become this program's status.
    pub(crate) fn end(&self) {
        if let Ok(signal @ 1..) = i32::try_from(self.came.load(Ordering::SeqCst)) {
            end_by(signal);
        }
    }
}

/// Whether this program was started with the signal ignored. Elsewhere than on Linux, the answer is no.
fn came_ignored(signal: i32) -> bool {
    // A mask in hexadecimal, with signal 1 as bit 0: proc(5).
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    mask.unwrap_or_default() >> (signal - 1) & 1 == 1
}

/// Cleans up, and ends the program, as ctrl-c would on a terminal that is not raw.
pub(crate) fn leave() -> ! {
    end_by(SIGINT)
}

/// Cleans up, and ends the program.
fn end_by(signal: i32) -> ! {
    // Never released: nothing is added to the list any more, and a thread that sees its emulator end stops at the list
    // before it can report that end as a verdict.
    let held = held();
    held.terminal.iter().for_each(restore);
    for group in &held.groups {
        kill(*group);
        // It writes no file any more once it is gone. Another thread may have waited for it already.
        let _ = waitpid(Some(*group), WaitOptions::empty());
    }
    held.folders.iter().for_each(|folder| remove(folder));
    process::exit(128 + signal)
}

fn kill(group: Pid) {
    // Fails only if its processes have ended already.
    let _ = kill_process_group(group, Signal::KILL);
}

fn remove(folder: &Path) {
    let removed = || fs::remove_dir_all(folder).is_ok() || !folder.exists();
    let _ = (0..REMOVALS).any(|_| removed());
}

/// The terminal of the standard input, each key of which is read as it is typed, until the value is dropped. Neither are keys shown
/// nor do they raise signals. Output stays as it was, so that a line feed begins a line.
pub(crate) struct RawTerminal(());

impl RawTerminal {
    /// Makes it raw.
    ///
    /// # Errors
    /// There is no terminal.
    pub(crate) fn begin() -> io::Result<Self> {
        let mut held = held();
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        raw.output_modes = before.output_modes;
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        held.terminal = Some(before);
        Ok(Self(()))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        held().terminal.take().iter().for_each(restore);
    }
}

fn restore(before: &Termios) {
    // A terminal that has hung up needs no modes.
    let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
}

/// A folder for temporary files, gone with the value.
#[derive(Debug)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    /// One in the system's folder for temporary files.
    pub(crate) fn new() -> Result<Self> {
        Self::new_in(&std::env::temp_dir())
    }

    pub(crate) fn new_in(parent: &Path) -> Result<Self> {
        let mut held = held();
        let made = TempDir::new_in(parent).with_context(|| format!("can't make a folder in {}", parent.display()))?;
        let folder = made.keep();
        held.folders.push(folder.clone());
        Ok(Self(folder))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let mut held = held();
        remove(&self.0);
        held.folders.retain(|folder| *folder != self.0);
    }
}

/// A command for a program that, on Linux, is killed when this one ends in whatever way.
pub(crate) fn bound(program: &Path) -> Command {
    // setpriv(1) sets PR_SET_PDEATHSIG and becomes the program. The signal comes when the thread ends that spawned it; that
    // thread is the one that waits for the child.
    match project::find_program("setpriv") {
        Some(setpriv) if cfg!(target_os = "linux") => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "KILL"]).arg(program);
            command
        }
        _ => Command::new(program),
    }
}

/// A child in a process group of its own, which is killed when the value is dropped, by a signal to this program and, on
/// Linux, when this program ends in whatever way.
#[derive(Debug)]
pub(crate) struct Leashed {
    pub(crate) child: Child,
    group: Pid,
}

impl Leashed {
    pub(crate) fn spawn(program: &Path, configure: impl FnOnce(&mut Command)) -> Result<Self> {
        let mut command = bound(program);
        configure(&mut command);
        let mut held = held();
        let child = command.process_group(0).spawn().with_context(|| format!("can't start {}", program.display()))?;
        let group = Pid::from_child(&child);
        held.groups.push(group);
        Ok(Self { child, group })
    }

    /// The exit status once it has ended by itself; None when it is still there at the deadline, and then it is killed.
    pub(crate) fn wait_until(&mut self, deadline: Instant) -> Result<Option<Option<i32>>> {
        if self.ends_within(deadline.saturating_duration_since(Instant::now()))? {
            return Ok(self.ended()?);
        }
        self.kill();
        Ok(None)
    }

    /// Whether it ends by itself within this time.
    pub(crate) fn ends_within(&mut self, patience: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + patience;
        loop {
            if self.has_ended()? {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// The exit status, if it has ended by itself: then its children are killed.
    pub(crate) fn ended(&mut self) -> io::Result<Option<Option<i32>>> {
        if !self.has_ended()? {
            return Ok(None);
        }
        kill(self.group);
        Ok(Some(self.child.wait()?.code()))
    }

    /// Whether it has ended. It stays unreaped, so that its number, which is its group's, does not become another's.
    ///
    /// # Errors
    /// It was waited for already.
    fn has_ended(&self) -> io::Result<bool> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        Ok(waitid(WaitId::Pid(self.group), options)?.is_some())
    }

    /// Sends it SIGINT; false: it has ended already.
    pub(crate) fn interrupt(&self) -> bool {
        kill_process_group(self.group, Signal::INT).is_ok()
    }

    /// Ends it, and its children, which may have outlived it.
    pub(crate) fn kill(&mut self) {
        if self.has_ended().is_ok() {
            kill(self.group);
            let _ = self.child.wait();
        }
    }
}

impl Drop for Leashed {
    fn drop(&mut self) {
        self.kill();
        held().groups.retain(|group| *group != self.group);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_past_its_deadline_is_killed() {
        let mut child = Leashed::spawn(Path::new("sleep"), |command| {
            command.arg("1000");
        })
        .unwrap();
        assert_eq!(child.wait_until(Instant::now() + Duration::from_millis(50)).unwrap(), None);
        assert!(child.has_ended().is_err(), "it was waited for");
    }

    #[test]
    fn a_childs_own_end_is_told() {
        let mut child = Leashed::spawn(Path::new("sh"), |command| {
            command.args(["-c", "exit 7"]);
        })
        .unwrap();
        assert_eq!(child.wait_until(Instant::now() + Duration::from_secs(60)).unwrap(), Some(Some(7)));
    }

    #[test]
    fn a_childs_children_are_killed_with_it() {
        use std::io::{BufRead, BufReader};
        let mut child = Leashed::spawn(Path::new("sh"), |command| {
            command.args(["-c", "sleep 1000 & echo $!; wait"]).stdout(process::Stdio::piped());
        })
        .unwrap();
        let mut output = BufReader::new(child.child.stdout.take().unwrap());
        let mut grandchild = String::new();
        output.read_line(&mut grandchild).unwrap();
        drop(child);
        // The pipe is closed when the grandchild, which holds it too, is gone.
        assert_eq!(output.read_line(&mut String::new()).unwrap(), 0);
    }

    #[test]
    fn a_childs_children_are_killed_though_it_ended_by_itself() {
        use std::io::Read;
        for waits in [false, true] {
            let mut child = Leashed::spawn(Path::new("sh"), |command| {
                command.args(["-c", "sleep 1000 &"]).stdout(process::Stdio::piped());
            })
            .unwrap();
            let mut output = child.child.stdout.take().unwrap();
            let deadline = Instant::now() + Duration::from_secs(60);
            if waits {
                assert_eq!(child.wait_until(deadline).unwrap(), Some(Some(0)));
            } else {
                assert!(child.ends_within(Duration::from_secs(60)).unwrap());
            }
            drop(child);
            // The grandchild holds the pipe, too.
            assert_eq!(output.read(&mut [0]).unwrap(), 0);
        }
    }

    #[test]
    fn a_folder_goes_with_its_value() {
        let folder = Folder::new().unwrap();
        let path = folder.path().to_path_buf();
        fs::write(path.join("file"), "x").unwrap();
        assert!(held().folders.contains(&path));
        drop(folder);
        assert!(!path.exists() && !held().folders.contains(&path));
    }
}
