//! Builds the images: the hypervisor and the guests.

use crate::exit_path;
use crate::output::outln;
use crate::project;
use crate::toolchain::{Target, Toolchain};
use crate::vectors;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Build the hypervisor and the guests
///
/// Checks as well that no instruction of the hypervisor touches floating-point or vector state, and that no common VM exit
/// reaches the allocator or the formatter.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  cargo xtask build\n\nThe images are in target/bare/*/release/: multiboot1 ELF files that GRUB and `qemu -kernel` load."
)]
pub(crate) struct Args {}

pub(crate) fn command(_: &Args) -> Result<ExitCode> {
    let images = Images::build()?;
    let scan = images.check_vectors()?;
    outln!("no-vector check: {} instructions, none touches x87, MMX, SSE or AVX state", scan.instructions);
    let walk = images.check_exit_path()?;
    outln!("exit-path check: {} functions behind a VM exit, none allocates or formats", walk.reached);
    for image in std::iter::once(images.hv()).chain(guest_names()?.iter().map(|name| images.guest(name))) {
        let size = fs::metadata(&image).with_context(|| format!("{} was not built", image.display()))?.len();
        outln!("{:>8} KiB  {}", size.div_ceil(1024), project::short(&image));
    }
    Ok(ExitCode::SUCCESS)
}

/// The built images.
#[derive(Clone, Debug)]
pub(crate) struct Images {
    folder: PathBuf,
    /// 32-bit guests.
    folder32: PathBuf,
}

impl Images {
    /// Builds what has changed.
    pub(crate) fn build() -> Result<Self> {
        Self::build_with(&["--package", "hv", "--package", "guest-tests"])?.and_guests32()
    }

    /// Builds the hypervisor with fault injection and gives the path of its image. A caller that needs the usual image too
    /// must build it after this, because this build replaces it.
    pub(crate) fn build_with_fault_injection() -> Result<PathBuf> {
        let built = Self::build_with(&["--package", "hv", "--features", "hv/fault-injection"])?.hv();
        let file = built.with_file_name("hv-fault-injection");
        fs::copy(&built, &file).with_context(|| format!("can't write {}", file.display()))?;
        Ok(file)
    }

    /// Builds the guests alone, which is all that is needed to run them without the hypervisor.
    pub(crate) fn build_guests() -> Result<Self> {
        Self::build_with(&["--package", "guest-tests"])?.and_guests32()
    }

    fn and_guests32(self) -> Result<Self> {
        build_for(Target::Bits32, &["--package", "guest-tests-32"])?;
        Ok(self)
    }

    fn build_with(arguments: &[&str]) -> Result<Self> {
        build_for(Target::Bits64, arguments)?;
        let [folder, folder32] = [Target::Bits64, Target::Bits32].map(release_folder);
        Ok(Self { folder, folder32 })
    }

    pub(crate) fn hv(&self) -> PathBuf {
        self.folder.join("hv")
    }

    /// The image of one of our guests.
    pub(crate) fn guest(&self, name: &str) -> PathBuf {
        let is_32_bit = program_names(GUESTS32).is_ok_and(|names| names.iter().any(|guest| guest == name));
        if is_32_bit { &self.folder32 } else { &self.folder }.join(name)
    }

    /// Fails if the hypervisor holds an instruction that touches floating-point or vector state.
    pub(crate) fn check_vectors(&self) -> Result<vectors::Scan> {
        let scan = vectors::scan(&self.hv())?;
        if !scan.findings.is_empty() {
            let list: Vec<_> = scan.findings.iter().map(|finding| format!("  {finding}")).collect();
            bail!("the hypervisor must not touch the guest's vector state:\n{}", list.join("\n"));
        }
        Ok(scan)
    }

    /// Fails if a common VM exit may reach the allocator or the formatter.
    pub(crate) fn check_exit_path(&self) -> Result<exit_path::Walk> {
        let walk = exit_path::walk(&self.hv())?;
        if !walk.findings.is_empty() {
            let list: Vec<_> = walk.findings.iter().map(|finding| format!("  {finding}")).collect();
            bail!("a common VM exit must not allocate or format:\n{}", list.join("\n"));
        }
        // Only functions of the image itself are never inlined: whether the others are left is the compiler's choice.
        let unused: Vec<_> = walk.unused.iter().filter(|prefix| prefix.contains("hv::")).collect();
        ensure!(unused.is_empty(), "exempt from the check of the exit path, and not there: {unused:?}");
        Ok(walk)
    }
}

fn build_for(target: Target, arguments: &[&str]) -> Result<()> {
    let toolchain = Toolchain::find_or_get(target)?;
    let mut cargo = toolchain.cargo("build");
    cargo.args(["--release", "--bins"]).args(arguments);
    if !cargo.status().context("can't run cargo")?.success() {
        bail!("the images could not be built (with {toolchain})");
    }
    Ok(())
}

fn release_folder(target: Target) -> PathBuf {
    project::bare_target().join(target.name()).join("release")
}

/// Builds the stress program for Linux guests, and gives its file. It makes system calls itself, so that it takes no other toolchain
/// than the guests for the bare machine do.
pub(crate) fn linux_stress(target: Target) -> Result<PathBuf> {
    build_for(target, &["--package", "guest-tests-linux"])?;
    Ok(release_folder(target).join("stress"))
}

/// Where the guests' programs are.
const GUESTS: &str = "guest-tests/src/bin";
const GUESTS32: &str = "guest-tests/x86-32/src/bin";

/// The names of our guests.
pub(crate) fn guest_names() -> Result<Vec<String>> {
    let mut names = [program_names(GUESTS)?, program_names(GUESTS32)?].concat();
    names.sort();
    Ok(names)
}

/// The names of the programs whose sources are in this folder of the repository.
pub(crate) fn program_names(folder: &str) -> Result<Vec<String>> {
    let folder = project::root().join(folder);
    let entries = fs::read_dir(&folder).with_context(|| format!("can't read {}", folder.display()))?;
    Ok(entries.filter_map(|entry| program_name(&entry.ok()?.path())).collect())
}

fn program_name(path: &Path) -> Option<String> {
    let is_program = path.is_dir() || path.extension().is_some_and(|extension| extension == "rs");
    is_program.then(|| Some(path.file_stem()?.to_str()?.to_string())).flatten()
}
