//! Gives the bare-metal images their linker script.

use std::env;
use std::path::Path;

fn main() {
    let script = Path::new(&env::var("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("../linker/guest.ld");
    println!("cargo:rerun-if-changed={}", script.display());
    // On a host target the images are only checked, never linked.
    if env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        println!("cargo:rustc-link-arg-bins=-T{}", script.display());
        println!("cargo:rustc-link-arg-bin=low-memory=--defsym=__base=0x10000");
    }
}
