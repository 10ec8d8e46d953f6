//! What is typed on a machine's COM1: the bytes of a file, or the keys of this terminal.

use crate::guests::readable_file;
use crate::leash::RawTerminal;
use crate::terminal;
use anyhow::{Context, Result};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::ChildStdin;
use std::str::FromStr;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::Duration;

/// Where what is typed comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// A file that was there, and could be read.
    File(PathBuf),
    /// The standard input: of a terminal each key, of anything else its bytes.
    Standard,
    /// Breaks, at each of which the hypervisor tells what the exits have cost so far: for tests.
    Breaks,
}

/// What QEMU's multiplexer, which the console is connected by, makes of bytes: ctrl-a begins a command (`qemu-system-x86_64 -echr`).
pub(crate) mod line {
    const ESCAPE: u8 = 0x01;
    /// A break.
    pub(crate) const BREAK: &[u8] = &[ESCAPE, b'b'];

    /// What has it pass on these bytes.
    pub(crate) fn bytes(bytes: &[u8]) -> Vec<u8> {
        bytes.iter().flat_map(|&byte| std::iter::repeat_n(byte, if byte == ESCAPE { 2 } else { 1 })).collect()
    }
}

impl FromStr for Input {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "-" => Ok(Self::Standard),
            path => readable_file(path).map(Self::File),
        }
    }
}

impl Input {
    /// Whether it is typed for a guest, which gets the machine's input then.
    pub(crate) fn is_for_guest(&self) -> bool {
        *self != Self::Breaks
    }

    /// Whether someone types, who may take any time.
    pub(crate) fn is_terminal(&self) -> bool {
        *self == Self::Standard && terminal::is_there()
    }

    fn open(&self) -> Result<(Source, Option<RawTerminal>)> {
        Ok(match self {
            Self::File(file) => {
                let file = File::open(file).with_context(|| format!("can't open {}", file.display()))?;
                (Source::Bytes(Box::new(file)), None)
            }
            Self::Standard if self.is_terminal() => {
                let raw = RawTerminal::begin().context("can't have each key of the terminal")?;
                (Source::Keys(terminal::keys()), Some(raw))
            }
            Self::Standard => (Source::Bytes(Box::new(io::stdin())), None),
            Self::Breaks => (Source::Breaks, None),
        })
    }
}

/// The time before each break: the guest has said what it says at its start by then, and the line is silent.
const BETWEEN_BREAKS: Duration = Duration::from_secs(1);

enum Source {
    Bytes(Box<dyn Read + Send>),
    /// As the [`mod@line`] has it.
    Keys(Receiver<Vec<u8>>),
    Breaks,
}

impl Source {
    /// Types all of it. An error is the machine's end.
    fn copy(self, mut line: impl Write) -> io::Result<()> {
        match self {
            Self::Bytes(mut bytes) => {
                let mut buffer = [0; 4096];
                loop {
                    match bytes.read(&mut buffer)? {
                        0 => return Ok(()),
                        count => line.write_all(&line::bytes(&buffer[..count]))?,
                    }
                }
            }
            // Before guests run, which is not known here, they tell nothing.
            Self::Breaks => loop {
                thread::sleep(BETWEEN_BREAKS);
                line.write_all(line::BREAK)?;
            },
            Self::Keys(keys) => keys.into_iter().try_for_each(|keys| line.write_all(&keys)),
        }
    }
}

/// Types on a machine's line. Until it is dropped, a terminal is raw.
pub(super) struct Typist {
    idle: Option<(Source, ChildStdin)>,
    _terminal: Option<RawTerminal>,
}

impl Typist {
    /// One that is ready to type on `line`.
    ///
    /// # Errors
    /// The input can't be opened, or the terminal not be made raw.
    pub(super) fn new(input: &Input, line: ChildStdin) -> Result<Self> {
        let (source, terminal) = input.open()?;
        Ok(Self { idle: Some((source, line)), _terminal: terminal })
    }

    /// To be called when the machine has sent something: only then has it programmed its UART, which loses what it held before.
    pub(super) fn begin(&mut self) {
        if let Some((source, line)) = self.idle.take() {
            // It ends with its input or with the machine; nothing waits for it.
            thread::spawn(move || source.copy(line));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_dash_is_the_standard_input() {
        assert_eq!("-".parse(), Ok(Input::Standard));
        assert!("no/file".parse::<Input>().unwrap_err().contains("no/file: No such file"));
    }

    #[test]
    fn nothing_is_typed_before_the_machine_has_sent_something() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys");
        std::fs::write(&file, "typed").unwrap();
        let script = "echo ready; cat";
        let mut machine =
            Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (line, mut console) = (machine.stdin.take().unwrap(), machine.stdout.take().unwrap());
        let mut typist = Typist::new(&Input::File(file), line).unwrap();
        let mut ready = [0; 6];
        console.read_exact(&mut ready).unwrap();
        assert!(typist.idle.is_some());
        typist.begin();
        let mut echo = String::new();
        console.read_to_string(&mut echo).unwrap();
        assert_eq!(echo, "typed");
        assert!(machine.wait().unwrap().success());
    }
}
