//! The inputs that the fuzzer of `loader_image` begins with: one image for each way to be loaded.

use super::*;
use crate::guest_view::{GuestView, Protocol};
use std::{env, fs, path::PathBuf};

/// Where the fuzzer finds them.
fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds/loader_image")
}

pub(super) fn seeds() -> [(&'static str, Protocol, Vec<u8>); 8] {
    use super::multiboot2::{elf_with_tags, tag};
    let address = [tag(2, 0, &[0x10_0078, 0x10_0000, 0, 0x10_2000]), tag(3, 0, &[0x10_0010])];
    let relocatable = [tag(1, 0, &[1, 3, 6]), tag(6, 0, &[]), tag(10, 0, &[0x20_0000, 0x40_0000, 0x1000, 1])];
    let small = [
        (crate::linux::header::PREF_ADDRESS, vec![0, 0, 0x10, 0]),
        (crate::linux::header::INIT_SIZE, vec![0, 0x20, 0, 0]),
    ];
    [
        ("multiboot-elf32", Protocol::Multiboot, elf(&ELF32, 0x10_0004, &one_load(0x30, 0x1000))),
        ("multiboot-elf64", Protocol::Multiboot, elf(&ELF64, 0x10_0004, &one_load(0x30, 0x1000))),
        ("multiboot-flat", Protocol::Multiboot, flat(0x10_0000, 0x10_0040, 0x10_2000, 0x10_0010)),
        ("multiboot2-address", Protocol::Multiboot2, elf_with_tags(&address)),
        ("multiboot2-relocatable", Protocol::Multiboot2, elf_with_tags(&relocatable)),
        ("linux", Protocol::Linux, super::linux::bz_image(&small)),
        ("pvh-elf32", Protocol::Pvh, super::pvh::elf_with_notes(&ELF32, &super::pvh::xen_notes(&[0x10, 0, 0x10, 0]))),
        (
            "pvh-elf64",
            Protocol::Pvh,
            super::pvh::elf_with_notes(&ELF64, &super::pvh::xen_notes(&[0, 0, 0x10, 0, 0, 0, 0, 0])),
        ),
    ]
}

/// Set `WRITE_SEEDS` to write the files anew.
#[test]
fn each_seed_is_loaded_by_its_protocol_and_is_in_its_file() {
    let folder = folder();
    for (name, protocol, image) in seeds() {
        let (guest, entry) = load_into(&platform(4 << 20), &image, b"seed", &[]).unwrap();
        assert_eq!(GuestView::read(&guest.bytes, &entry).protocol, protocol, "{name}");
        let file = folder.join(name);
        if env::var_os("WRITE_SEEDS").is_some() {
            fs::create_dir_all(&folder).unwrap();
            fs::write(&file, &image).unwrap();
        }
        assert!(fs::read(&file).is_ok_and(|bytes| bytes == image), "{} is not up to date", file.display());
    }
}
