//! Finds, or gets, a Rust toolchain that builds for the bare machine: `x86_64-unknown-none`, and `i586-unknown-linux-musl` for
//! guests of 32 bits, which has no SSE and of which nothing but `core` is used.
//!
//! In this order:
//! 1. the target's libraries are installed beside the active rustc;
//! 2. `rustup target add`, given [`RUSTUP_TIMEOUT`]. Where that fails (no network) it is not tried again for
//!    [`RUSTUP_PAUSE`], as long as another way works;
//! 3. `-Zbuild-std` from an installed source tree: of the active toolchain (rustup's `rust-src`), or of one of the
//!    system's (Debian's `rust-web-src`, Ubuntu's `rust-1.NN-src`);
//! 4. the same, after installing Debian's `rustc-web cargo-web rust-web-src`.

use crate::failure::usage;
use crate::progress::Step;
use crate::project;
use crate::setup::{self, Tool};
use anyhow::{Context, Result};
use std::env;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// What images are built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// The hypervisor and 64-bit guests.
    Bits64,
    /// 32-bit guests.
    Bits32,
}

impl Target {
    /// Its name.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Bits64 => "x86_64-unknown-none",
            Self::Bits32 => "i586-unknown-linux-musl",
        }
    }

    /// The variable by which cargo is told its linker.
    fn linker_variable(self) -> String {
        format!("CARGO_TARGET_{}_LINKER", self.name().to_uppercase().replace('-', "_"))
    }
}

/// How long `rustup target add` may take.
const RUSTUP_TIMEOUT: Duration = Duration::from_secs(90);
/// How long its failure is remembered.
const RUSTUP_PAUSE: Duration = Duration::from_secs(6 * 3600);
/// The oldest minor version of Rust 1 that builds the workspace (`rust-version` in Cargo.toml).
const OLDEST_MINOR: u32 = 88;
/// Debian's packages for way 4; Ubuntu has the like under names with a version, found if installed.
const APT_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];

/// A cargo with its rustc, and how they build for the bare machine.
#[derive(Debug)]
pub(crate) struct Toolchain {
    target: Target,
    cargo: PathBuf,
    rustc: PathBuf,
    library: Library,
    /// None: rustc finds its own rust-lld.
    linker: Option<PathBuf>,
}

/// Where `core` and `alloc` come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Library {
    Installed,
    BuiltFromSource,
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let library = match self.library {
            Library::Installed => "its installed target",
            Library::BuiltFromSource => "core and alloc built from source",
        };
        write!(f, "{}, {library}", self.rustc.display())
    }
}

impl Toolchain {
    /// A toolchain that builds images for `target`; gets what is missing where it can.
    pub(crate) fn find_or_get(target: Target) -> Result<Self> {
        let active = Compiler::active()?;
        if active.has(target) {
            return active.with(target, Library::Installed);
        }
        let with_source = Compiler::all_with_source(&active);
        let pause = FailureMark::new(target);
        if (with_source.is_none() || !pause.is_recent()) && active.is_rustups() {
            if rustup_add(&active, "target", target.name()) && active.has(target) {
                return active.with(target, Library::Installed);
            }
            pause.set();
        }
        if let Some(compiler) = with_source {
            return compiler.with(target, Library::BuiltFromSource);
        }
        let apt = setup::apt_install(&APT_PACKAGES);
        match Compiler::all_with_source(&active) {
            Some(compiler) => compiler.with(target, Library::BuiltFromSource),
            None => {
                let why = apt.err().map(|error| format!(" ({error:#})")).unwrap_or_default();
                Err(usage(format!("no way to build for {}{why}; {}", target.name(), advice(target))))
            }
        }
    }

    /// A cargo command that builds for the bare machine, in its own build directory.
    pub(crate) fn cargo(&self, subcommand: &str) -> Command {
        let mut command = Command::new(&self.cargo);
        command.current_dir(project::root()).env("RUSTC", &self.rustc);
        // What the cargo and rustup that started us set for their own toolchain; and flags from outside, which would
        // replace those in .cargo/config.toml.
        for variable in [
            "CARGO",
            "RUSTUP_TOOLCHAIN",
            "RUSTDOC",
            "LD_LIBRARY_PATH",
            "RUSTFLAGS",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_BUILD_RUSTFLAGS",
            "CARGO_BUILD_TARGET",
        ] {
            command.env_remove(variable);
        }
        command.args([subcommand, "--target", self.target.name(), "--target-dir"]).arg(project::bare_target());
        if self.library == Library::BuiltFromSource {
            command.env("RUSTC_BOOTSTRAP", "1").arg("-Zbuild-std=core,alloc,compiler_builtins");
            command.arg("-Zbuild-std-features=compiler-builtins-mem");
        }
        if let Some(linker) = &self.linker {
            command.env(self.target.linker_variable(), linker);
        }
        command
    }
}

/// The name of the target that is this machine.
pub(crate) fn host() -> Result<String> {
    Compiler::active()?.about("host: ")
}

/// LLVM's tools for coverage, of the version that rustc has: they read no other's profiles.
#[derive(Debug)]
pub(crate) struct Llvm {
    pub(crate) profdata: PathBuf,
    pub(crate) cov: PathBuf,
}

impl Llvm {
    /// Of rustup's toolchain, or else of the system.
    pub(crate) fn find_or_get() -> Result<Self> {
        let active = Compiler::active()?;
        let host = active.about("host: ")?;
        let version = active.about("LLVM version: ")?;
        let package = format!("llvm-{}", version.split('.').next().unwrap_or_default());
        let folders = [active.rustlib().join(host).join("bin"), Path::new("/usr/lib").join(&package).join("bin")];
        let find = || {
            let tools = folders.iter().map(|folder| ["llvm-profdata", "llvm-cov"].map(|name| folder.join(name)));
            tools.into_iter().find(|tools| tools.iter().all(|file| file.is_file()))
        };
        if find().is_none() && active.is_rustups() {
            rustup_add(&active, "component", "llvm-tools");
        }
        if find().is_none() {
            // Whether it is there now is what counts.
            let _ = setup::apt_install(&[&package]);
        }
        let [profdata, cov] = find().ok_or_else(|| {
            usage(format!(
                "llvm-cov is missing, of LLVM {version}: rustup component add llvm-tools, or install {package}"
            ))
        })?;
        Ok(Self { profdata, cov })
    }
}

fn advice(target: Target) -> String {
    format!(
        "one of these will do:\n  rustup target add {}\n  rustup component add rust-src\n  Debian: apt-get install --no-install-recommends {}",
        target.name(),
        APT_PACKAGES.join(" ")
    )
}

/// A rustc with the cargo that belongs to it.
#[derive(Clone, Debug)]
struct Compiler {
    cargo: PathBuf,
    rustc: PathBuf,
    sysroot: PathBuf,
    minor: u32,
}

impl Compiler {
    /// The one that builds this program.
    fn active() -> Result<Self> {
        let cargo = project::cargo();
        let beside = cargo.with_file_name("rustc");
        let rustc = env::var_os("RUSTC")
            .map(PathBuf::from)
            .unwrap_or_else(|| if cargo.is_absolute() && beside.is_file() { beside } else { PathBuf::from("rustc") });
        Self::ask(cargo, rustc).context("can't find out which rustc is active")
    }

    fn ask(cargo: PathBuf, rustc: PathBuf) -> Result<Self> {
        let output = |argument: &[&str]| -> Result<String> {
            // Without the variables of another toolchain, and outside of any folder that names one.
            let mut command = Command::new(&rustc);
            if rustc.is_absolute() {
                command.env_remove("LD_LIBRARY_PATH");
            }
            let output = command.args(argument).output()?;
            anyhow::ensure!(output.status.success(), "{} fails", rustc.display());
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_string())
        };
        let sysroot = PathBuf::from(output(&["--print", "sysroot"])?);
        let minor = minor_version(&output(&["--version"])?).context("rustc tells no version")?;
        Ok(Self { cargo, rustc, sysroot, minor })
    }

    /// The first with the sources of its library: the active one, then the system's.
    fn all_with_source(active: &Self) -> Option<Self> {
        let system = system_compilers().into_iter().filter_map(|(cargo, rustc)| Self::ask(cargo, rustc).ok());
        std::iter::once(active.clone()).chain(system).find(Self::has_source)
    }

    /// What `rustc -vV` says behind this key.
    fn about(&self, key: &str) -> Result<String> {
        let output = Command::new(&self.rustc).arg("-vV").output().context("can't run rustc")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let value = text.lines().find_map(|line| line.strip_prefix(key));
        value.map(str::to_string).with_context(|| format!("rustc -vV has no '{key}'"))
    }

    fn rustlib(&self) -> PathBuf {
        self.sysroot.join("lib/rustlib")
    }

    fn has(&self, target: Target) -> bool {
        self.rustlib().join(target.name()).join("lib").is_dir()
    }

    fn has_source(&self) -> bool {
        self.minor >= OLDEST_MINOR && self.rustlib().join("src/rust/library/core/src/lib.rs").is_file()
    }

    fn is_rustups(&self) -> bool {
        self.sysroot.parent().is_some_and(|folder| folder.ends_with("toolchains"))
            && project::find_program("rustup").is_some()
    }

    fn with(self, target: Target, library: Library) -> Result<Toolchain> {
        let linker = if rust_lld(&self.sysroot).is_some() { None } else { Some(find_linker()?) };
        Ok(Toolchain { target, cargo: self.cargo, rustc: self.rustc, library, linker })
    }
}

/// N of `rustc 1.N.…`.
fn minor_version(version: &str) -> Option<u32> {
    version.strip_prefix("rustc 1.")?.split('.').next()?.parse().ok()
}

/// The distribution's compilers: Debian's and others' plain names, then Ubuntu's with a version, the newest first.
fn system_compilers() -> Vec<(PathBuf, PathBuf)> {
    let folder = Path::new("/usr/bin");
    let mut versions: Vec<u32> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_prefix("rustc-1.")?.parse().ok())
        .collect();
    versions.sort_unstable_by(|a, b| b.cmp(a));
    let named = versions.into_iter().map(|minor| format!("-1.{minor}"));
    std::iter::once(String::new())
        .chain(named)
        .map(|suffix| (folder.join(format!("cargo{suffix}")), folder.join(format!("rustc{suffix}"))))
        .filter(|(cargo, rustc)| cargo.is_file() && rustc.is_file())
        .collect()
}

fn rust_lld(sysroot: &Path) -> Option<PathBuf> {
    let hosts = fs::read_dir(sysroot.join("lib/rustlib")).ok()?;
    hosts.filter_map(|entry| Some(entry.ok()?.path().join("bin/rust-lld"))).find(|file| file.is_file())
}

/// A linker for a toolchain that has none: of another toolchain, the system's, or apt's.
fn find_linker() -> Result<PathBuf> {
    let rustup = env::var_os("RUSTUP_HOME").map(PathBuf::from);
    let rustup = rustup.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".rustup")));
    let sysroots = rustup.and_then(|home| fs::read_dir(home.join("toolchains")).ok()).into_iter().flatten();
    let other = sysroots.filter_map(|entry| rust_lld(&entry.ok()?.path())).next();
    if let Some(linker) = other.or_else(|| project::find_program("ld.lld")) {
        return Ok(linker);
    }
    setup::ensure(Tool::Lld)?;
    project::find_program("ld.lld").context("lld brought no ld.lld")
}

/// Whether `rustup KIND add NAME` did it.
fn rustup_add(active: &Compiler, kind: &str, name: &str) -> bool {
    let step = Step::begin(format!("rustup {kind} add {name}"));
    let toolchain = active.sysroot.file_name().unwrap_or_default();
    let child = Command::new("rustup")
        .args([kind, "add", name, "--toolchain"])
        .arg(toolchain)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let done = child.is_ok_and(|mut child| {
        let deadline = Instant::now() + RUSTUP_TIMEOUT;
        loop {
            match child.try_wait() {
                Ok(Some(status)) => break status.success(),
                Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(50)),
                Ok(None) | Err(_) => {
                    // Both fail only if it has ended by itself meanwhile.
                    let _ = child.kill();
                    let _ = child.wait();
                    break false;
                }
            }
        }
    });
    step.end(if done { "done" } else { "failed; there are other ways" });
    done
}

/// An empty file whose age tells when `rustup target add` last failed.
struct FailureMark(PathBuf);

impl FailureMark {
    fn new(target: Target) -> Self {
        Self(project::bare_target().join(format!("rustup-target-add-{}.failed", target.name())))
    }

    fn is_recent(&self) -> bool {
        let modified = fs::metadata(&self.0).and_then(|file| file.modified());
        modified.is_ok_and(|then| SystemTime::now().duration_since(then).is_ok_and(|age| age < RUSTUP_PAUSE))
    }

    fn set(&self) {
        // Not being able to remember costs time alone.
        let _ = fs::create_dir_all(project::bare_target()).and_then(|()| fs::write(&self.0, ""));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(minor_version("rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)"), Some(96));
        assert_eq!(minor_version("rustc 1.88.0-nightly"), Some(88));
        assert_eq!(minor_version("gcc 12"), None);
    }
}
