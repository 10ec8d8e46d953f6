//! The machines that images are booted on.

pub(crate) mod bochs;
pub(crate) mod console;
mod host;
pub(crate) mod input;
pub(crate) mod iso;
mod pauses;
pub(crate) mod qemu;
pub(crate) mod trace;

use crate::gzip;
use crate::judge::End;
use crate::leash::Folder;
use crate::project;
use crate::size::Size;
use anyhow::{Context, Result};
use console::Console;
pub(crate) use host::Host;
use input::Input;
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use trace::Trace;

/// A multiboot image or module, and the words that follow its name in its command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Image {
    pub(crate) file: PathBuf,
    pub(crate) words: String,
}

impl Image {
    pub(crate) fn new(file: impl Into<PathBuf>, words: impl Into<String>) -> Self {
        Self { file: file.into(), words: words.into() }
    }
}

/// A machine's size, and what it boots.
#[derive(Clone, Debug)]
pub(crate) struct Boot {
    pub(crate) from: Medium,
    pub(crate) memory: Size,
    pub(crate) cpus: u32,
    /// The VMs whose lines are on the console, by the names that mark these; None: the only one's have no mark.
    pub(crate) vms: Vec<Option<String>>,
    /// What is typed on its COM1.
    pub(crate) input: Option<Input>,
    /// A reset does not end it.
    pub(crate) is_reset: bool,
}

/// What a machine boots from.
#[derive(Clone, Debug)]
pub(crate) enum Medium {
    /// A kernel and its modules, loaded in whatever way the machine has.
    Images(Images),
    /// An ISO that boots by itself.
    Iso(PathBuf),
}

/// A multiboot kernel and its modules.
#[derive(Clone, Debug)]
pub(crate) struct Images {
    pub(crate) kernel: Image,
    pub(crate) modules: Vec<Image>,
}

/// A machine to boot on.
#[derive(Clone, Debug)]
pub(crate) enum Emulator {
    Qemu(qemu::Qemu),
    Bochs(bochs::Bochs),
}

/// A machine that is no more.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) end: End,
    pub(crate) console: Vec<String>,
    /// What the emulator itself had to say.
    pub(crate) complaints: Vec<String>,
    pub(crate) processor_shut_down: bool,
    pub(crate) elapsed: Duration,
}

impl fmt::Display for Emulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Qemu(qemu) => write!(f, "QEMU, {}", qemu.engine),
            Self::Bochs(bochs) => write!(f, "Bochs, {}", bochs.cpu),
        }
    }
}

impl Emulator {
    /// Whether its time is what its processors do, and not what passes meanwhile.
    pub(crate) const fn counts_instructions(&self) -> bool {
        match self {
            Self::Qemu(qemu) => matches!(qemu.engine, qemu::Engine::TcgIcount { .. }),
            Self::Bochs(_) => true,
        }
    }

    /// Whether it is QEMU's emulation.
    pub(crate) const fn is_qemu_emulation(&self) -> bool {
        matches!(self, Self::Qemu(qemu) if !matches!(qemu.engine, qemu::Engine::Kvm))
    }

    /// Whether what is typed on its COM1 gets there: Bochs drops what comes while its UART is full.
    pub(crate) const fn takes_input(&self) -> bool {
        matches!(self, Self::Qemu(_))
    }

    /// Notes in `trace` what the processors carry out of its image.
    pub(crate) fn trace(&mut self, trace: &Trace) {
        match self {
            Self::Qemu(qemu) => qemu.trace = Some(trace.clone()),
            Self::Bochs(bochs) => bochs.trace = Some(trace.clone()),
        }
    }

    /// Boots, and waits for the end, for `timeout` at most. `live` gets the console's bytes as they come.
    pub(crate) fn run(&self, boot: &Boot, timeout: Duration, live: &mut dyn FnMut(&[u8])) -> Result<Finished> {
        let folder = run_folder()?;
        let started = Instant::now();
        let mut console = Console::new(&boot.vms);
        let mut output = |bytes: &[u8]| {
            console.feed(bytes);
            live(bytes);
        };
        let deadline = started + timeout;
        let stop = match self {
            Self::Qemu(qemu) => qemu.run(boot, folder.path(), deadline, &mut output)?,
            Self::Bochs(bochs) => bochs.run(boot, folder.path(), deadline, &mut output)?,
        };
        Ok(Finished {
            end: stop.exit.map_or(End::TimedOut(timeout), End::Exited),
            console: console.into_lines(),
            complaints: stop.complaints,
            processor_shut_down: stop.processor_shut_down,
            elapsed: started.elapsed(),
        })
    }
}

/// How an emulator stopped: what each kind reports to [`Emulator::run`].
struct EmulatorExit {
    /// The exit status; None inside if by a signal. None: it was killed at its deadline.
    exit: Option<Option<i32>>,
    complaints: Vec<String>,
    processor_shut_down: bool,
}

/// A folder for one run's files, gone with the value.
pub(crate) fn run_folder() -> Result<Folder> {
    let parent = project::target().join("run");
    fs::create_dir_all(&parent).with_context(|| format!("can't make {}", parent.display()))?;
    Folder::new_in(&parent)
}

/// Puts the kernel and its modules into `folder`, under names without blanks or commas, which neither QEMU's module list
/// nor multiboot strings can carry, and gives those names. `put` links or copies a file; one that gzip compressed is unpacked, as
/// GRUB does.
fn gather<T>(images: &Images, folder: &Path, put: fn(&Path, &Path) -> io::Result<T>) -> Result<Vec<String>> {
    let mut names: Vec<String> = Vec::new();
    for image in std::iter::once(&images.kernel).chain(&images.modules) {
        let file = image.file.canonicalize().with_context(|| format!("can't find {}", image.file.display()))?;
        let mut name = plain_name(image.file.file_name().unwrap_or_default());
        if names.contains(&name) {
            name = format!("{name}.{}", names.len());
        }
        let there = folder.join(&name);
        let gathered = if gzip::is_gzip(&file)? { gzip::unpack(&file, &there) } else { put(&file, &there).map(drop) };
        gathered.with_context(|| format!("can't put {} where it is booted", file.display()))?;
        names.push(name);
    }
    Ok(names)
}

fn plain_name(name: &OsStr) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._+-".contains(c) { c } else { '_' };
    name.to_string_lossy().chars().map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use tempfile::TempDir;

    #[test]
    fn names_are_made_plain_and_distinct() {
        let sources = TempDir::new().unwrap();
        let folder = TempDir::new().unwrap();
        let image = |name: &str, words: &str| {
            let file = sources.path().join(name);
            fs::write(&file, "x").unwrap();
            Image::new(file, words)
        };
        let kernel = image("my guest,v2.elf", "");
        let images = Images { kernel, modules: vec![image("a", ""), image("a", "b")] };
        assert_eq!(
            gather(&images, folder.path(), |from, to| symlink(from, to)).unwrap(),
            ["my_guest_v2.elf", "a", "a.2"]
        );
        assert!(folder.path().join("a.2").exists());
    }

    #[test]
    fn compressed_images_are_unpacked() {
        let sources = TempDir::new().unwrap();
        let folder = TempDir::new().unwrap();
        let file = sources.path().join("guest.gz");
        gzip::tests::pack(b"an image", &file);
        let images = Images { kernel: Image::new(&file, ""), modules: Vec::new() };
        assert_eq!(gather(&images, folder.path(), |from, to| symlink(from, to)).unwrap(), ["guest.gz"]);
        assert_eq!(fs::read(folder.path().join("guest.gz")).unwrap(), b"an image");
    }
}
