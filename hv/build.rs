//! Gives the linker the hypervisor's script.

use std::path::Path;

fn main() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../linker/hv.ld");
    println!("cargo:rerun-if-changed={}", script.display());
    // The host's own linker is asked only by tools that check the sources (clippy), and never links.
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        println!("cargo:rustc-link-arg-bins=-T{}", script.display());
        println!("cargo:rustc-link-arg-bins=-zmax-page-size=4096");
    }
}
