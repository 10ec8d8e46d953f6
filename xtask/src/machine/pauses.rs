//! A QEMU that is stopped and continued again and again, as by a debugger: its threads are interrupted wherever they are.

use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// QEMU's words for the socket that it is told by, in the folder where it runs.
pub(super) const ARGUMENTS: [&str; 2] = ["-qmp", "unix:qmp,server=on,wait=off"];
const SOCKET: &str = "qmp";

/// Between two pauses the machine gets on.
const GAP: Duration = Duration::from_millis(10);

/// Pauses the machine in `folder` until it ends.
pub(super) struct Pauses(JoinHandle<Result<usize>>);

impl Pauses {
    /// Begins as soon as the machine is there, which has to be before `deadline`.
    pub(super) fn begin(folder: &Path, deadline: Instant) -> Self {
        let socket = folder.join(SOCKET);
        Self(thread::spawn(move || pause(&socket, deadline)))
    }

    /// To be called when the machine has ended.
    ///
    /// # Errors
    /// It was never paused.
    pub(super) fn end(self) -> Result<()> {
        match self.0.join().expect("it does not panic")? {
            0 => bail!("QEMU was never paused"),
            _ => Ok(()),
        }
    }
}

fn pause(socket: &Path, deadline: Instant) -> Result<usize> {
    let mut qemu = Qmp::connect(socket, deadline).context("can't reach QEMU to pause it")?;
    let mut pauses = 0;
    // An error is the machine's end.
    while qemu.execute("stop").and_then(|()| qemu.execute("cont")).is_ok() {
        pauses += 1;
        thread::sleep(GAP);
    }
    Ok(pauses)
}

/// A connection by QEMU's machine protocol (qemu.org, "QEMU Emulator Protocol Specification").
struct Qmp(BufReader<UnixStream>);

impl Qmp {
    fn connect(socket: &Path, deadline: Instant) -> Result<Self> {
        // QEMU binds the socket before it listens: meanwhile it is there, and refuses.
        let is_early = |kind| matches!(kind, ErrorKind::NotFound | ErrorKind::ConnectionRefused);
        let stream = loop {
            match UnixStream::connect(socket) {
                Err(error) if is_early(error.kind()) && Instant::now() < deadline => thread::sleep(GAP),
                connected => break connected?,
            }
        };
        let mut qemu = Self(BufReader::new(stream));
        qemu.execute("qmp_capabilities")?;
        Ok(qemu)
    }

    /// Waits until it is done, and skips events meanwhile.
    fn execute(&mut self, command: &str) -> Result<()> {
        writeln!(self.0.get_mut(), r#"{{"execute": "{command}"}}"#)?;
        let mut line = String::new();
        loop {
            line.clear();
            match self.0.read_line(&mut line)? {
                0 => bail!("QEMU has ended"),
                _ if line.contains(r#""return""#) => return Ok(()),
                _ if line.contains(r#""error""#) => bail!("QEMU refuses to {command}: {line}"),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// Answers `commands` commands, and is gone.
    fn machine(folder: &Path, commands: usize) -> JoinHandle<Vec<String>> {
        let listener = UnixListener::bind(folder.join(SOCKET)).unwrap();
        thread::spawn(move || {
            let mut stream = BufReader::new(listener.accept().unwrap().0);
            writeln!(stream.get_mut(), r#"{{"QMP": {{}}}}"#).unwrap();
            let mut heard = Vec::new();
            while heard.len() < commands {
                let mut line = String::new();
                stream.read_line(&mut line).unwrap();
                heard.push(line);
                write!(stream.get_mut(), "{{\"event\": \"STOP\"}}\n{{\"return\": {{}}}}\n").unwrap();
            }
            heard
        })
    }

    #[test]
    fn a_socket_that_nothing_listens_on_yet_is_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join(SOCKET);
        drop(UnixListener::bind(&socket).unwrap());
        let pauses = Pauses::begin(folder.path(), Instant::now() + Duration::from_secs(60));
        thread::sleep(10 * GAP);
        assert!(!pauses.0.is_finished());
        std::fs::remove_file(&socket).unwrap();
        let machine = machine(folder.path(), 3);
        assert_eq!(machine.join().unwrap().len(), 3);
        pauses.end().unwrap();
    }

    #[test]
    fn it_is_stopped_and_continued_until_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let machine = machine(folder.path(), 5);
        let pauses = Pauses::begin(folder.path(), Instant::now() + Duration::from_secs(60));
        let heard = machine.join().unwrap();
        assert!(heard[0].contains("qmp_capabilities"));
        assert!(heard[1].contains("stop") && heard[2].contains("cont") && heard[3].contains("stop"));
        assert!(pauses.end().is_ok());
    }

    #[test]
    fn a_machine_that_was_never_paused_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let machine = machine(folder.path(), 1);
        let pauses = Pauses::begin(folder.path(), Instant::now() + Duration::from_secs(60));
        machine.join().unwrap();
        assert!(pauses.end().is_err());
    }
}
