//! Images with a multiboot2 header.

use super::*;
use crate::fuzz::acpi_tables;
use crate::guest_view::{GuestView, Protocol};
use arch::entry::Mode;

const MAGIC: u32 = 0xe852_50d6;
const OPTIONAL: u16 = 1;

/// A tag of the header.
pub(super) fn tag(kind: u16, flags: u16, fields: &[u32]) -> Vec<u8> {
    let mut tag = words(&[u32::from(flags) << 16 | u32::from(kind), 8 + 4 * fields.len() as u32]);
    tag.extend(words(fields));
    tag.resize(tag.len().next_multiple_of(8), 0);
    tag
}

/// A header of `architecture` with `tags` and an end tag.
fn header_for(architecture: u32, tags: &[Vec<u8>]) -> Vec<u8> {
    let tags = [&tags.concat()[..], &tag(0, 0, &[])].concat();
    let length = 16 + tags.len() as u32;
    let checksum = 0u32.wrapping_sub(MAGIC).wrapping_sub(architecture).wrapping_sub(length);
    [words(&[MAGIC, architecture, length, checksum]), tags].concat()
}

/// An ELF file with one segment at 1 MiB, and a multiboot2 header behind it.
pub(super) fn elf_with_tags(tags: &[Vec<u8>]) -> Vec<u8> {
    let mut file = elf(&ELF64, 0x10_0010, &one_load(0x40, 0x1000));
    file.truncate(ELF64.header + ELF64.program_header);
    file.resize(file.len().next_multiple_of(8), 0);
    file.extend(header_for(0, tags));
    file
}

fn load_tags(platform: &Platform, tags: &[Vec<u8>]) -> Result<(Guest, Entry), LoadError> {
    load_into(platform, &elf_with_tags(tags), b"kernel a=1  b", &[])
}

fn refused(tags: &[Vec<u8>]) -> String {
    load_tags(&platform(8 << 20), tags).unwrap_err().to_string()
}

/// The bytes of the information's tag of type `kind`, behind type and size.
fn information(guest: &Guest, entry: &Entry, kind: u32) -> Option<Vec<u8>> {
    let mut at = entry.ebx as usize + 8;
    loop {
        let [found, bytes] = [0, 4].map(|field| u32_at(&guest.bytes, at + field).unwrap());
        if found == kind {
            return Some(guest.bytes[at + 8..at + bytes as usize].to_vec());
        }
        if found == 0 {
            return None;
        }
        at += (bytes as usize).next_multiple_of(8);
    }
}

#[test]
fn the_guest_reads_in_its_information_what_was_loaded() {
    let platform = platform(8 << 20);
    let modules = [Module { bytes: &[1; 5000], string: b"one 1" }, Module { bytes: &[2], string: b"" }];
    let file = elf_with_tags(&[tag(6, 0, &[])]);
    let (guest, entry) = load_into(&platform, &file, b"kernel a=1  b", &modules).unwrap();
    let mode = Mode::Protected { gdt: None };
    assert_eq!(entry, Entry { eax: 0x36d7_6289, ebx: entry.ebx, ..Entry::at(0x10_0010, mode) });
    assert_eq!(entry.ebx % 8, 0);
    let found = GuestView::read(&guest.bytes, &entry);
    assert_eq!((found.protocol, &found.command_line[..]), (Protocol::Multiboot2, &b"a=1  b"[..]));
    assert_eq!(found.modules, [(0x10_1000..0x10_2388, b"one 1".to_vec()), (0x10_3000..0x10_3001, vec![])]);
    assert_eq!(guest.bytes[0x10_1000..0x10_2388], [1; 5000]);
    assert_eq!(found.map, MemoryMap::new(platform.ram, None).entries().collect::<Vec<_>>());
    let of = |kind| information(&guest, &entry, kind);
    assert_eq!(of(4), Some(words(&[639, 7 << 10])), "basic memory information");
    assert_eq!(of(2), Some(b"microhv\0".to_vec()), "the loader's name");
    assert_eq!([14, 15, 21].map(of), [None, None, None], "no RSDP, and no load address of a fixed image");
}

#[test]
fn both_rsdps_have_right_checksums() {
    let acpi = acpi_tables();
    let platform = Platform { acpi: Some(acpi.clone()), ..platform(8 << 20) };
    // Both are required.
    let (guest, entry) = load_tags(&platform, &[tag(1, 0, &[14, 15])]).unwrap();
    let [old, new] = [14, 15].map(|kind| information(&guest, &entry, kind).unwrap());
    let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    assert_eq!((old.len(), sum(&old)), (20, 0));
    assert_eq!((sum(&new[..20]), sum(&new[..36])), (0, 0));
    for rsdp in [&old, &new] {
        assert_eq!((&rsdp[..8], &rsdp[9..15]), (&b"RSD PTR "[..], &acpi.rsdp.oem_id[..]));
        assert_eq!(u32_at(rsdp, 16), Some(acpi.rsdp.rsdt));
    }
    assert_eq!((old[15], new[15], u32_at(&new, 20)), (0, 2, Some(36)));
    assert_eq!(new[24..32], acpi.rsdp.xsdt.to_le_bytes());
}

#[test]
fn required_information_that_there_is_not_is_named() {
    assert!(load_tags(&platform(8 << 20), &[tag(1, 0, &[1, 2, 3, 4, 6])]).is_ok());
    let reason = |kind, name| {
        format!("multiboot2 header: boot information of type {kind} ({name}) is required, and there is none")
    };
    for (kind, name) in [
        (5, "BIOS boot device"),
        (8, "framebuffer info"),
        (9, "ELF symbols"),
        (14, "ACPI old RSDP"),
        (20, "EFI 64-bit image handle"),
        (21, "image load base physical address"),
        (22, "unknown"),
        (0, "unknown"),
    ] {
        assert_eq!(refused(&[tag(1, 0, &[1, kind])]), reason(kind, name));
        assert!(load_tags(&platform(8 << 20), &[tag(1, OPTIONAL, &[1, kind])]).is_ok());
    }
}

#[test]
fn required_tags_that_can_not_be_given_are_named() {
    for (tag_type, fields, reason) in [
        (4, &[1][..], "a console is required (console flags, bit 0), and there is none"),
        (5, &[80, 25, 0], "a framebuffer is required, and there is none"),
        (11, &[], "a tag of the unknown type 11 is required"),
    ] {
        assert_eq!(refused(&[tag(tag_type, 0, fields)]), format!("multiboot2 header: {reason}"));
        assert!(load_tags(&platform(8 << 20), &[tag(tag_type, OPTIONAL, fields)]).is_ok());
    }
    // Support for EGA text, and what is for EFI.
    for (tag_type, fields) in [(4, &[2][..]), (7, &[]), (8, &[0]), (9, &[0])] {
        assert!(load_tags(&platform(8 << 20), &[tag(tag_type, 0, fields)]).is_ok());
    }
}

#[test]
fn address_tags_count_more_than_elf() {
    let (_, entry) = load_tags(&platform(8 << 20), &[tag(3, 0, &[0x10_0020])]).unwrap();
    assert_eq!(entry.eip, 0x10_0020);
    let at = ELF64.header as u32 + ELF64.program_header as u32;
    let tags = [tag(2, 0, &[0x20_0000 + at, 0x20_0000, 0, 0x20_4000]), tag(3, 0, &[0x20_0008])];
    assert_eq!(refused(&tags[..1]), "multiboot2 header: it has an address tag, but no entry address tag");
    let (guest, entry) = load_tags(&platform(8 << 20), &tags).unwrap();
    assert_eq!(entry.eip, 0x20_0008);
    let file = elf_with_tags(&tags);
    assert_eq!(guest.bytes[0x20_0000..][..file.len()], file);
}

#[test]
fn a_relocatable_image_is_moved_within_its_range() {
    let place = |ram_bytes: u64, fields: [u32; 4]| {
        let (guest, entry) = load_tags(&platform(ram_bytes), &[tag(10, 0, &fields)])?;
        let base = u32::from_le_bytes(information(&guest, &entry, 21).unwrap().try_into().unwrap());
        assert_eq!(entry.eip, base + 0x10);
        assert_eq!(guest.bytes[base as usize..][..0x40], elf_with_tags(&[])[..0x40]);
        Ok::<_, LoadError>(base)
    };
    let in_8_mib = |fields| place(8 << 20, fields);
    assert_eq!(in_8_mib([0x20_0800, 0x60_0000, 0x1000, 1]), Ok(0x20_1000), "the lowest");
    assert_eq!(in_8_mib([0x20_0800, 0x60_0000, 0x2000, 2]), Ok(0x5f_e000), "the highest");
    assert_eq!(in_8_mib([0, 0x60_0000, 0x1000, 0]), Ok(0x10_0000), "without a preference it stays");
    assert_eq!(in_8_mib([0x30_0000, 0x60_0000, 0x1000, 0]), Ok(0x30_0000), "unless it may not");
    assert_eq!(in_8_mib([0, 0xffff_ffff, 1, 1]), Ok(0x9000), "the vectors of real mode are kept");
    assert_eq!(place(1 << 20, [0, 0xffff_ffff, 1, 0]), Ok(0x9000), "or has no room");
    let refused = in_8_mib([0x20_0000, 0x20_0fff, 1, 0]).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "no room for the image in the range of its relocatable tag (0x1000 bytes) in the guest's RAM"
    );
}

#[test]
fn modules_are_below_an_image_that_leaves_no_room_above_it() {
    let modules = [Module { bytes: &[1; 5000], string: b"" }, Module { bytes: &[2], string: b"" }];
    let file = elf_with_tags(&[tag(10, 0, &[0, 0xffff_ffff, 0x1000, 2])]);
    let (guest, entry) = load_into(&platform(8 << 20), &file, b"", &modules).unwrap();
    let base = u32::from_le_bytes(information(&guest, &entry, 21).unwrap().try_into().unwrap());
    assert_eq!(base, 0x7f_f000, "the image is at the end of the RAM");
    let found = GuestView::read(&guest.bytes, &entry);
    assert_eq!(found.modules, [(0x10_0000..0x10_1388, vec![]), (0x10_2000..0x10_2001, vec![])]);
    assert_eq!(guest.bytes[0x10_0000..0x10_1388], [1; 5000]);
}

#[test]
fn a_broken_multiboot2_header_is_named() {
    let mut file = elf_with_tags(&[]);
    let at = ELF64.header + ELF64.program_header;
    set_u32(&mut file, at + 12, 1);
    assert_eq!(
        error(&file),
        format!("an image of no known kind: the multiboot2 header at offset {at:#x} has a wrong checksum")
    );
    assert_eq!(error(&header_for(4, &[])), "multiboot2 header: architecture 4: expected 0 (i386)");
    let mut cut = header_for(0, &[tag(3, 0, &[0])]);
    cut.truncate(cut.len() - 1);
    assert_eq!(error(&cut), "multiboot2 header: a length of 0x28 is impossible");
    for (kind, size) in [(3u16, 8u32), (2, 20), (10, 20), (6, 7), (6, u32::MAX)] {
        let mut broken = tag(kind, 0, &[]);
        set_u32(&mut broken, 4, size);
        broken.resize(24, 0);
        let reason = format!("multiboot2 header: the tag at 0x10 of type {kind} can't have {size:#x} bytes");
        assert_eq!(error(&header_for(0, &[broken])), reason);
    }
    assert_eq!(
        error(&header_for(0, &[tag(10, 0, &[0, 0, 3, 0])])),
        "multiboot2 header: the relocatable tag's alignment 0x3 is no power of two"
    );
    assert_eq!(error(&header_for(0, &[])), "neither an ELF file nor address fields in the multiboot header (flag 16)");
}

#[test]
fn the_multiboot2_header_is_searched_in_32_kib_at_multiples_of_8() {
    let with_header_at = |offset: usize| {
        let mut file = elf(&ELF32, 0x10_0000, &one_load(0x10, 0x10));
        file.truncate(ELF32.header + ELF32.program_header);
        file.resize(offset, 0);
        file.extend(header_for(0, &[]));
        file.resize(40_000, 0);
        load_into(&platform(8 << 20), &file, b"", &[]).is_ok()
    };
    assert_eq!([88, 32768 - 24, 32768 - 16, 32768, 92].map(with_header_at), [true, true, false, false, false]);
}

#[test]
fn an_empty_module_is_refused() {
    let modules = [Module { bytes: &[], string: b"" }];
    let error = load_into(&platform(8 << 20), &elf_with_tags(&[]), b"", &modules).unwrap_err();
    assert_eq!(error.to_string(), "module 0 is empty, and multiboot2 has no empty modules");
}

#[test]
fn multiboot2_comes_before_the_older_multiboot() {
    let mut file = elf_with_tags(&[]);
    file.extend(header(0));
    let (_, entry) = load_into(&platform(8 << 20), &file, b"", &[]).unwrap();
    assert_eq!(entry.eax, 0x36d7_6289);
}
