//! ELF files with a PVH note.

use super::*;
use crate::fuzz::acpi_tables;
use crate::guest_view::{GuestView, Protocol};
use arch::entry::Mode;

/// An ELF file of `class` with one segment at 1 MiB and `notes`, the bytes of a segment of notes.
pub(super) fn elf_with_notes(class: &Class, notes: &[u8]) -> Vec<u8> {
    let at = class.header + 2 * class.program_header;
    let load = Load { virtual_address: 0xc010_0000, physical: 0x10_0000, file_bytes: 0x40, memory: 0x1000 };
    let none = Load { virtual_address: 0, physical: 0, file_bytes: notes.len() as u64, memory: 0 };
    let mut file = elf(class, 0xc010_0000, &[load, none]);
    file.truncate(at);
    let header = class.header + class.program_header;
    set_u32(&mut file, header, 4);
    let offset = if class.ident == 2 { 8 } else { 4 };
    set_u32(&mut file, header + offset, at as u32);
    let align = if class.ident == 2 { 48 } else { 28 };
    set_u32(&mut file, header + align, 4);
    file.extend(notes);
    file
}

fn note(name: &[u8], kind: u32, desc: &[u8]) -> Vec<u8> {
    let mut note = words(&[name.len() as u32, desc.len() as u32, kind]);
    for part in [name, desc] {
        note.extend(part);
        note.resize(note.len().next_multiple_of(4), 0);
    }
    note
}

/// Notes that have the entry point behind another.
pub(super) fn xen_notes(entry: &[u8]) -> Vec<u8> {
    [note(b"GNU\0", 3, &[7; 20]), note(b"Xen\0", 6, b"generic\0"), note(b"Xen\0", 18, entry)].concat()
}

#[test]
fn both_classes_are_entered_at_the_notes_address() {
    let wide = elf_with_notes(&ELF64, &xen_notes(&0x10_0010u64.to_le_bytes()));
    let narrow = elf_with_notes(&ELF32, &xen_notes(&0x10_0010u32.to_le_bytes()));
    for file in [wide, narrow] {
        let (guest, entry) = load_into(&platform(8 << 20), &file, b"vmlinux console=ttyS0", &[]).unwrap();
        let expected = Entry { ebx: entry.ebx, ..Entry::at(0x10_0010, Mode::Protected { gdt: None }) };
        assert_eq!(entry, expected);
        assert_eq!(guest.bytes[0x10_0000..][..0x40], file[..0x40]);
        let found = GuestView::read(&guest.bytes, &entry);
        assert_eq!((found.protocol, &found.command_line[..]), (Protocol::Pvh, &b"console=ttyS0"[..]));
    }
}

#[test]
fn start_info_has_modules_the_memory_map_and_the_rsdp() {
    let file = elf_with_notes(&ELF64, &xen_notes(&0x10_0010u64.to_le_bytes()));
    let acpi = acpi_tables();
    let platform = Platform { acpi: Some(acpi.clone()), ..platform(8 << 20) };
    let (first, second) = (vec![1; 5000], vec![2; 1]);
    let modules = [Module { bytes: &first, string: b"one 1" }, Module { bytes: &second, string: b"" }];
    let (guest, entry) = load_into(&platform, &file, b"kernel", &modules).unwrap();
    let found = GuestView::read(&guest.bytes, &entry);
    assert_eq!(found.modules, [(0x10_1000..0x10_2388, b"one 1".to_vec()), (0x10_3000..0x10_3001, vec![])]);
    assert_eq!(guest.bytes[0x10_1000..0x10_2388], first);
    assert_eq!(found.map, MemoryMap::new(platform.ram, Some(&acpi)).entries().collect::<Vec<_>>());
    assert_eq!(found.rsdp, Some(0xe_0000));
}

#[test]
fn an_elf_file_without_that_note_is_unknown() {
    for notes in [vec![], note(b"Xen\0", 6, b"generic\0"), note(b"XeN\0", 18, &[0; 4]), vec![0xff; 64]] {
        let file = elf_with_notes(&ELF64, &notes);
        assert!(error(&file).starts_with("an image of no known kind: "));
    }
}

#[test]
fn a_broken_note_is_named() {
    assert_eq!(error(&elf_with_notes(&ELF64, &xen_notes(&[0; 6]))), "the PVH entry point has 6 bytes: expected 4 or 8");
    let far = elf_with_notes(&ELF64, &xen_notes(&0x1_0010_0000u64.to_le_bytes()));
    assert_eq!(error(&far), "the entry point 0x100100000 lies in no segment");
    let mut cut = elf_with_notes(&ELF64, &xen_notes(&[0; 8]));
    cut.truncate(cut.len() - 1);
    assert!(error(&cut).starts_with("notes: "), "{}", error(&cut));
}
