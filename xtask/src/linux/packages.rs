//! Debian's kernels, its static busybox and its memtest86+, by apt-get: into `target/linux/`, once.
//!
//! apt gets lists of its own, of the architecture that is wanted: nothing of the system is changed, and no right to it is needed.

use crate::failure::usage;
use crate::leash::Folder;
use crate::progress::Step;
use crate::project;
use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// One of Debian's kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Arch {
    /// 64 bits
    #[value(name = "amd64")]
    Amd64,
    /// 32 bits with PAE
    #[value(name = "686-pae")]
    Pae,
    /// 32 bits without PAE
    #[value(name = "686")]
    I686,
}

impl Arch {
    /// Its name, as in `linux-image-NAME`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Pae => "686-pae",
            Self::I686 => "686",
        }
    }

    /// What Debian calls the architecture of its programs.
    const fn debian(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Pae | Self::I686 => "i386",
        }
    }
}

/// A file of a package.
#[derive(Clone, Copy, Debug)]
pub(crate) enum File {
    Kernel,
    Busybox,
    Memtest,
}

impl File {
    /// Its name in our folder.
    const fn name(self) -> &'static str {
        match self {
            Self::Kernel => "vmlinuz",
            Self::Busybox => "busybox",
            Self::Memtest => "memtest86+",
        }
    }

    /// What tar is to take out of the package.
    const fn pattern(self) -> &'static str {
        match self {
            Self::Kernel => "./boot/vmlinuz-*",
            Self::Busybox => "./*bin/busybox",
            Self::Memtest => "./boot/memtest86+x64.bin",
        }
    }

    /// The option with which it is not needed.
    const fn option(self) -> &'static str {
        match self {
            Self::Kernel => "--kernel",
            Self::Busybox => "--initrd",
            Self::Memtest => "run --guest",
        }
    }
}

/// The file, which is got where it is missing.
pub(crate) fn find_or_get(file: File, arch: Arch) -> Result<PathBuf> {
    let folder = project::target().join("linux").join(arch.name());
    let there = folder.join(file.name());
    if there.is_file() {
        return Ok(there);
    }
    for program in ["apt-get", "dpkg-deb", "tar"] {
        if project::find_program(program).is_none() {
            let option = file.option();
            return Err(usage(format!("Debian's packages need {program}, which is missing: give a file by {option}")));
        }
    }
    fs::create_dir_all(&folder).with_context(|| format!("can't make {}", folder.display()))?;
    let step = Step::begin(format!("getting Debian's {} for {}", file.name(), arch.name()));
    let got = get(file, arch, &folder, &there);
    step.end(if got.is_ok() { "done" } else { "failed" });
    got.map_err(|error| usage(format!("can't get it: {} takes a file: {error:#}", file.option())))?;
    Ok(there)
}

fn get(file: File, arch: Arch, folder: &Path, to: &Path) -> Result<()> {
    let work = Folder::new_in(folder)?;
    let apt = Apt::new(arch, work.path())?;
    // A list that can't be had now is missed when the package is not in another.
    let updated = apt.run("apt-get", &["update"]);
    let package = match file {
        File::Kernel => apt.kernel_package(arch),
        File::Busybox => Ok("busybox-static".to_string()),
        File::Memtest => Ok("memtest86+".to_string()),
    };
    let package = package.map_err(|error| updated.err().unwrap_or(error))?;
    apt.run("apt-get", &["download", &package])?;
    let archive = fs::read_dir(work.path())?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get download left no package")?;
    take(&archive, file.pattern(), to)
}

/// An apt for one architecture, whose files are in a folder.
struct Apt<'f> {
    folder: &'f Path,
    options: Vec<String>,
}

impl<'f> Apt<'f> {
    fn new(arch: Arch, folder: &'f Path) -> Result<Self> {
        for part in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(folder.join(part))?;
        }
        let (here, debian) = (folder.display(), arch.debian());
        let options = [
            format!("APT::Architecture={debian}"),
            format!("APT::Architectures={debian}"),
            format!("Dir::State={here}"),
            format!("Dir::State::Lists={here}/lists"),
            "Dir::State::status=/dev/null".to_string(),
            format!("Dir::Cache={here}"),
            // Of root's apt-get: the folder is not open to the user that it would become.
            "APT::Sandbox::User=root".to_string(),
        ];
        Ok(Self { folder, options: options.into_iter().flat_map(|option| ["-o".to_string(), option]).collect() })
    }

    fn run(&self, program: &str, words: &[&str]) -> Result<String> {
        let mut command = Command::new(program);
        command.args(&self.options).arg("-q").args(words).current_dir(self.folder).stdin(Stdio::null());
        let output = command.output().with_context(|| format!("can't run {program}"))?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{program} {} failed: {}", words.join(" "), errors.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The package with the newest kernel: `linux-image-amd64` is empty, but depends on it.
    fn kernel_package(&self, arch: Arch) -> Result<String> {
        let newest = format!("linux-image-{}", arch.name());
        let about = self.run("apt-cache", &["show", "--no-all-versions", &newest])?;
        dependency(&about).map(str::to_string).with_context(|| format!("{newest} depends on no kernel"))
    }
}

/// The kernel's package that this one depends on, by what `apt-cache show` says.
fn dependency(about: &str) -> Option<&str> {
    let names = about.lines().find_map(|line| line.strip_prefix("Depends: "))?;
    names.split(", ").find(|name| name.starts_with("linux-image-"))?.split(' ').next()
}

/// Takes the one file that fits the pattern out of a package.
fn take(package: &Path, pattern: &str, to: &Path) -> Result<()> {
    let tree = package.with_extension("tree");
    fs::create_dir_all(&tree)?;
    let mut unpacking = Command::new("dpkg-deb").arg("--fsys-tarfile").arg(package).stdout(Stdio::piped()).spawn()?;
    let files = unpacking.stdout.take().context("dpkg-deb has no output")?;
    let tar = Command::new("tar").args(["-x", "--wildcards", pattern]).current_dir(&tree).stdin(files).output()?;
    ensure!(unpacking.wait()?.success() && tar.status.success(), "{} has no {pattern}", package.display());
    let found = only_file(&tree)?.with_context(|| format!("{} has no {pattern}", package.display()))?;
    // Not before it is whole does it have the name that is looked for.
    fs::rename(&found, to).with_context(|| format!("can't write {}", to.display()))
}

/// A file in this folder or below.
fn only_file(folder: &Path) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_file() {
            return Ok(Some(path));
        }
        if let Some(file) = path.is_dir().then(|| only_file(&path)).transpose()?.flatten() {
            return Ok(Some(file));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_what_its_package_depends_on() {
        let about =
            "Package: linux-image-686\nVersion: 6.1.176-1\nDepends: x (>= 1), linux-image-6.1.0-50-686 (= 6.1.176-1)\n";
        assert_eq!(dependency(about), Some("linux-image-6.1.0-50-686"));
        assert_eq!(dependency("Package: linux-image-x\nDepends: linux-base\n"), None);
        assert_eq!(dependency("Package: linux-image-x\n"), None);
    }
}
