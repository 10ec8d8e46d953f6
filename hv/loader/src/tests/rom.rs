//! What was loaded is written again.

use super::*;
use crate::rom::{Progress, Recorder, Rom};
use core::iter;

const SIZE: u64 = 4 << 20;
const MODULE: &[u8] = &[7; 10_000];

/// A guest's memory, all of one value.
fn memory(fill: u8) -> Guest {
    let mut memory = Guest::new(ram(SIZE));
    memory.bytes.fill(fill);
    memory
}

fn load_noting<'f>(image: &'f [u8], files: &[&'f [u8]]) -> (Guest, Rom<'f>) {
    let mut guest = memory(0);
    let mut recorder = Recorder::new(&mut guest, files);
    let platform = Platform { ram: ram(SIZE), long_mode: true, acpi: None };
    let modules = [Module { bytes: MODULE, string: b"module" }];
    load(Module { bytes: image, string: b"kernel a b" }, &modules, &platform, &mut recorder).unwrap();
    let rom = recorder.finish();
    (guest, rom)
}

/// How many steps it takes, of so many bytes at most.
fn write(rom: &Rom<'_>, guest: &mut Guest, most: u64) -> usize {
    let part = |done: &Progress| rom.write_part(guest, *done, most).unwrap();
    iter::successors(Some(Progress::default()), part).count()
}

fn image() -> Vec<u8> {
    let text = Load { virtual_address: 0, physical: 0x10_0000, file_bytes: 0x80, memory: 0x3000 };
    elf(&ELF64, 0x10_0000, &[text])
}

#[test]
fn what_was_loaded_is_written_again() {
    let image = image();
    let (loaded, rom) = load_noting(&image, &[&image, MODULE]);
    for most in [u64::MAX >> 1, 4096, 333] {
        // What lies there is overwritten, zeroes of a segment among it.
        let mut anew = memory(0x5a);
        let steps = write(&rom, &mut anew, most);
        assert!(steps > 5 && (most > 1 << 32 || steps > 10_000 / most as usize), "{steps}");
        let bss = 0x10_0000 + 0x80..0x10_3000;
        assert!(anew.bytes[bss].iter().all(|&byte| byte == 0));
        let mut differ = loaded.bytes.iter().zip(&anew.bytes).filter(|(was, is)| was != is);
        assert!(differ.all(|(&was, &is)| (was, is) == (0, 0x5a)), "the rest is untouched");
        let mut zeroed = memory(0);
        write(&rom, &mut zeroed, most);
        assert!(zeroed.bytes == loaded.bytes);
    }
}

#[test]
fn files_are_not_copied() {
    let image = image();
    let (_, noted) = load_noting(&image, &[&image, MODULE]);
    let (_, copied) = load_noting(&image, &[&image]);
    assert_eq!(copied.own_bytes() - noted.own_bytes(), MODULE.len());
    assert!(noted.own_bytes() < 8 * 4096);
}

#[test]
fn memory_that_is_not_there_is_an_error() {
    let image = image();
    let (_, rom) = load_noting(&image, &[]);
    let mut small = Guest::new(ram(1 << 20));
    let mut done = Progress::default();
    let error = loop {
        match rom.write_part(&mut small, done, 4096) {
            Ok(more) => done = more.expect("the image is above 1 MiB"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, MemoryError::Outside(_)));
}
