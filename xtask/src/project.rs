//! Where things are.

use std::env;
use std::path::{Path, PathBuf};

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    // At run time, so that a build directory shared by several clones serves each with its own sources.
    let package =
        env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    package.parent().expect("xtask/ lies in the repository").to_path_buf()
}

/// Where cargo builds for the host: `target/`, or what `CARGO_TARGET_DIR` names.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Where images are built: apart, so that neither kind of build evicts the other's.
pub(crate) fn bare_target() -> PathBuf {
    target().join("bare")
}

/// Where reports go: always `target/NAME` of the repository, as the README says.
pub(crate) fn reports(name: &str) -> PathBuf {
    root().join("target").join(name)
}

/// The cargo that runs us, or the one on the path.
pub(crate) fn cargo() -> PathBuf {
    env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
}

/// The full path of a program on `PATH`, or of a file given by its path.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(|path| path.exists());
    }
    // Administrators' programs are often missing from a user's path.
    let usual = ["/usr/local/bin", "/usr/bin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).chain(usual).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// The path as the user would type it: relative to the working directory where it lies below.
pub(crate) fn short(path: &Path) -> String {
    let here = env::current_dir().unwrap_or_default();
    path.strip_prefix(here).unwrap_or(path).display().to_string()
}
