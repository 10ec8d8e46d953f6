//! Tests with images built by hand, a guest's memory in one vector, and boot information read back by its parser.

mod acpi;
mod linux;
mod memory_map;
mod multiboot2;
mod pvh;
mod rom;
mod seeds;

use super::*;
use crate::fuzz::{self, Guest};
use crate::image::{Image, Segment};
use crate::kernel::Kernel;
use crate::multiboot::{MAP_ENTRY_BYTES, flag, info, u32_at};
use addr::{Gpa, Hpa};
use alloc::{format, string::String, string::ToString, vec, vec::Vec};
use arch::Entry;
use proptest::prelude::*;

const MAGIC: u32 = 0x1bad_b002;

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn header(flags: u32) -> Vec<u8> {
    words(&[MAGIC, flags, 0u32.wrapping_sub(MAGIC.wrapping_add(flags))])
}

fn set_u32(file: &mut [u8], at: usize, value: u32) {
    file[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn ram(bytes: u64) -> GuestRam {
    GuestRam::new(bytes).unwrap()
}

/// The sizes and offsets of a class's headers.
struct Class {
    ident: u8,
    header: usize,
    program_header: usize,
}
const ELF32: Class = Class { ident: 1, header: 52, program_header: 32 };
const ELF64: Class = Class { ident: 2, header: 64, program_header: 56 };

#[derive(Clone, Copy)]
struct Load {
    virtual_address: u64,
    physical: u64,
    file_bytes: u64,
    memory: u64,
}

/// An ELF file with the multiboot header right after the program headers, and segments that all start at offset 0.
fn elf(class: &Class, entry: u64, loads: &[Load]) -> Vec<u8> {
    let wide = class.ident == 2;
    let mut file = vec![0x7f, b'E', b'L', b'F', class.ident, 1, 1];
    file.resize(16, 0);
    let address = |file: &mut Vec<u8>, value: u64| file.extend(&value.to_le_bytes()[..if wide { 8 } else { 4 }]);
    file.extend(2u16.to_le_bytes());
    file.extend(if wide { 62u16 } else { 3 }.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    address(&mut file, entry);
    address(&mut file, class.header as u64);
    address(&mut file, 0);
    file.extend(0u32.to_le_bytes());
    for half in [class.header, class.program_header, loads.len(), 0, 0, 0] {
        file.extend((half as u16).to_le_bytes());
    }
    assert_eq!(file.len(), class.header);
    for load in loads {
        file.extend(1u32.to_le_bytes());
        if wide {
            file.extend(5u32.to_le_bytes());
        }
        for value in [0, load.virtual_address, load.physical, load.file_bytes, load.memory] {
            address(&mut file, value);
        }
        if !wide {
            file.extend(5u32.to_le_bytes());
        }
        address(&mut file, 4096);
    }
    file.extend(header(0));
    file.resize(file.len() + 32, 0xcc);
    file
}

fn one_load(file_bytes: u64, memory: u64) -> [Load; 1] {
    [Load { virtual_address: 0x10_0000, physical: 0x10_0000, file_bytes, memory }]
}

/// A flat image with address fields: 16 bytes, the header, 64 bytes.
fn flat(load: u32, load_end: u32, bss_end: u32, entry: u32) -> Vec<u8> {
    let mut file = vec![0x90; 16];
    file.extend(header(1 << 16));
    file.extend(words(&[load + 16, load, load_end, bss_end, entry]));
    file.resize(file.len() + 64, 0xcc);
    file
}

/// The image in `file`, of the older multiboot or PVH.
fn image(file: &[u8]) -> Image<'_> {
    match Kernel::parse(file) {
        Ok(Kernel::Multiboot(image) | Kernel::Pvh(image)) => image,
        other => panic!("{other:?}"),
    }
}

/// A VM with `bytes` of RAM, in which nothing else is.
fn platform(bytes: u64) -> Platform {
    Platform { ram: ram(bytes), long_mode: true, acpi: None }
}

/// Loads `file` and `modules` into a new guest.
fn load_into(
    platform: &Platform,
    file: &[u8],
    string: &[u8],
    modules: &[Module<'_>],
) -> Result<(Guest, Entry), LoadError> {
    let mut guest = Guest::new(platform.ram);
    let entry = load(Module { bytes: file, string }, modules, platform, &mut guest)?;
    guest.check_writes(platform);
    Ok((guest, entry))
}

fn error(file: &[u8]) -> String {
    load_into(&platform(64 << 20), file, b"guest", &[]).unwrap_err().to_string()
}

#[test]
fn elf_segments_go_to_their_physical_addresses() {
    let loads = [
        Load { virtual_address: 0xffff_ffff_8010_0000, physical: 0x10_0000, file_bytes: 0x40, memory: 0x40 },
        Load { virtual_address: 0xffff_ffff_8010_1000, physical: 0x10_1000, file_bytes: 0x10, memory: 0x2000 },
        Load { virtual_address: 0xffff_ffff_8020_0000, physical: 0, file_bytes: 0, memory: 0 },
    ];
    let file = elf(&ELF64, 0xffff_ffff_8010_0020, &loads);
    let image = image(&file);
    assert_eq!(image.entry(), 0x10_0020, "a virtual entry point is translated");
    let at = |n: usize| (image.segments()[n].start.raw(), image.segments()[n].bytes, image.segments()[n].size);
    assert_eq!(image.segments().len(), 2, "an empty segment is none");
    assert_eq!(at(0), (0x10_0000, &file[..0x40], 0x40));
    assert_eq!(at(1), (0x10_1000, &file[..0x10], 0x2000));
}

#[test]
fn both_classes_load_alike() {
    for class in [&ELF32, &ELF64] {
        let file = elf(class, 0x10_0004, &one_load(0x30, 0x1000));
        let mut guest = Guest::new(ram(4 << 20));
        guest.bytes.fill(0xaa);
        let image = Module { bytes: &file, string: b"guest.elf a b" };
        let entry = load(image, &[], &platform(4 << 20), &mut guest).unwrap();
        assert_eq!((entry.eip, entry.eax), (0x10_0004, 0x2bad_b002));
        assert_eq!(guest.bytes[0x10_0000..0x10_0030], file[..0x30]);
        assert!(guest.bytes[0x10_0030..0x10_1000].iter().all(|&byte| byte == 0), "bss is zeroed");
        assert_eq!(guest.bytes[0x10_1000], 0xaa, "and nothing after it");
    }
}

#[test]
fn address_fields_count_more_than_elf() {
    let file = flat(0x10_0000, 0x10_0040, 0x10_2000, 0x10_0010);
    let image = image(&file);
    let segment = Segment { start: Gpa::new(0x10_0000), bytes: &file[..0x40], size: 0x2000 };
    assert_eq!((image.segments(), image.entry()), (&[segment][..], 0x10_0010));
}

#[test]
fn a_load_end_of_zero_is_the_files_end_and_a_bss_end_of_zero_is_no_bss() {
    let file = flat(0x10_0000, 0, 0, 0x10_0000);
    let image = image(&file);
    assert_eq!((image.segments()[0].bytes, image.segments()[0].size), (&file[..], file.len() as u64));
}

#[test]
fn the_flat_image_may_start_behind_the_files_start() {
    let mut file = vec![0; 0x1000];
    file.extend(flat(0x10_0000, 0, 0, 0x10_0000));
    let image = image(&file);
    assert_eq!(image.segments()[0].bytes, &file[0x1000..]);
}

#[test]
fn the_header_is_searched_in_8192_bytes_at_multiples_of_4() {
    let with_header_at = |offset: usize| {
        let mut file = elf(&ELF32, 0x10_0000, &one_load(0x10, 0x10));
        file.truncate(ELF32.header + ELF32.program_header);
        file.resize(offset, 0);
        file.extend(header(3));
        file.resize(9000, 0);
        match Kernel::parse(&file) {
            Ok(Kernel::Multiboot(image)) => Ok(image.entry()),
            other => Err(other.err()),
        }
    };
    assert_eq!(with_header_at(8192 - 12), Ok(0x10_0000));
    for offset in [8192 - 8, 8192, 102] {
        assert_eq!(with_header_at(offset), Err(Some(ImageError::Unknown { bad_checksum: None })), "{offset}");
    }
}

#[test]
fn a_broken_header_is_named() {
    assert_eq!(
        error(b""),
        "an image of no known kind: no Linux boot header at offset 0x202, no multiboot2 header in the first 32768 bytes, \
         no multiboot header in the first 8192 bytes, no ELF file with a PVH entry point"
    );
    let mut file = elf(&ELF32, 0x10_0000, &one_load(0x10, 0x10));
    set_u32(&mut file, 84 + 8, 1);
    assert_eq!(error(&file), "an image of no known kind: the multiboot header at offset 0x54 has a wrong checksum");
    assert_eq!(error(&header(0x8)), "the multiboot header requires unknown features 0x8");
    // A video mode is not set, but that is no reason to refuse the kernel.
    assert_eq!(error(&header(0x4)), "neither an ELF file nor address fields in the multiboot header (flag 16)");
    assert_eq!(error(&header(0x1_0000)), "the file ends within the multiboot header's address fields");
    assert_eq!(error(&header(0)), "neither an ELF file nor address fields in the multiboot header (flag 16)");
}

#[test]
fn broken_address_fields_are_named() {
    let order = |file: Vec<u8>| error(&file);
    let mut below = flat(0x10_0000, 0, 0, 0x10_0000);
    set_u32(&mut below, 28, 0xf_0000);
    assert_eq!(order(below), "multiboot header: load_addr 0x100000 lies above header_addr 0xf0000");
    let mut before = flat(0x10_0000, 0, 0, 0x10_0000);
    set_u32(&mut before, 28, 0x10_0020);
    assert_eq!(
        order(before),
        "multiboot header: load_addr is 0x20 bytes before the header, which is at 0x10 in the file"
    );
    assert_eq!(
        order(flat(0x10_0000, 0xf_ffff, 0, 0x10_0000)),
        "multiboot header: load_addr 0x100000 lies above load_end_addr 0xfffff"
    );
    assert_eq!(
        order(flat(0x10_0000, 0x10_0040, 0x10_0020, 0x10_0000)),
        "segment 0: 0x40 bytes in the file for 0x20 in memory"
    );
    assert_eq!(
        order(flat(0x10_0000, 0x20_0000, 0, 0x10_0000)),
        "segment 0: 0x100000 bytes at 0x0 lie beyond the file's end at 0x70"
    );
    assert_eq!(order(flat(0x10_0000, 0, 0, 0x20_0000)), "the entry point 0x200000 lies in no segment");
}

#[test]
fn a_truncated_elf_says_what_is_missing() {
    let whole = elf(&ELF32, 0x10_0000, &one_load(0x70, 0x1000));
    // The header comes first, so that a truncated file still has it.
    let mut file = whole[..52].to_vec();
    file.extend(header(0));
    assert_eq!(error(&file), "program headers: 0x20 bytes at 0x34 lie beyond the file's end at 0x40");
    assert_eq!(error(&whole[..0x60]), "segment 0: 0x70 bytes at 0x0 lie beyond the file's end at 0x60");
}

#[test]
fn an_elf_for_something_else_is_refused() {
    let with = |at: usize, byte: u8| {
        let mut file = elf(&ELF32, 0x10_0000, &one_load(0x10, 0x10));
        file[at] = byte;
        error(&file)
    };
    assert_eq!(with(18, 40), "ELF machine 40: expected 3 (i386) or 62 (x86-64)");
    assert_eq!(with(16, 3), "ELF type 3: expected 2 (executable at fixed addresses)");
    assert_eq!(with(42, 31), "ELF size of a program header 31: expected 32 for ELF32, 56 for ELF64");
    assert_eq!(with(44, 0), "nothing to load");
    assert!(with(5, 2).starts_with("ELF class, byte order and version"));
}

#[test]
fn segments_that_do_not_fit_are_refused_with_figures() {
    let place = |physical: u64, memory: u64| {
        let load = Load { virtual_address: physical, physical, file_bytes: 0x10, memory };
        error(&elf(&ELF64, physical, &[load]))
    };
    assert_eq!(place(0x10_0000, 0x7f0_0000), "segment 0: 0x100000..0x8000000 lies beyond the guest's 64 MiB");
    assert_eq!(place(0x9_f000, 0x2000), "segment 0: 0x9f000..0xa1000 lies in the hole from 0xa0000 to 0x100000");
    assert_eq!(place(0xb_8000, 0x10), "segment 0: 0xb8000..0xb8010 lies in the hole from 0xa0000 to 0x100000");
    assert_eq!(
        place(0x10_0000, u64::MAX),
        "segment 0: 0xffffffffffffffff bytes at 0x100000 pass the end of the address space"
    );
    assert_eq!(place(0x10_0000, 1), "segment 0: 0x10 bytes in the file for 0x1 in memory");
}

#[test]
fn overlapping_segments_are_refused() {
    let at = |physical| Load { virtual_address: physical, physical, file_bytes: 0x10, memory: 0x1000 };
    let file = elf(&ELF64, 0x10_0000, &[at(0x10_0000), at(0x20_0000), at(0x10_0fff)]);
    assert_eq!(error(&file), "segments 0 and 2 overlap: 0x100fff..0x101000");
}

#[test]
fn a_crowd_of_segments_is_refused() {
    let loads: Vec<_> = (0..65)
        .map(|n| Load { virtual_address: 0, physical: 0x10_0000 + n * 0x1000, file_bytes: 0, memory: 0x1000 })
        .collect();
    assert_eq!(error(&elf(&ELF32, 0, &loads)), "more than 64 segments to load");
}

#[test]
fn the_guest_reads_in_its_boot_information_what_was_loaded() {
    let file = elf(&ELF32, 0x10_0000, &one_load(0x10, 0x1800));
    let (first, second) = (vec![1; 5000], vec![2; 1]);
    let modules = [Module { bytes: &first, string: b"initrd one" }, Module { bytes: &second, string: b"" }];
    let (guest, entry) = load_into(&platform(8 << 20), &file, b"guest.elf a=1  b", &modules).unwrap();

    let read = BootInfo::parse(Hpa::new(entry.ebx.into()), &guest).unwrap();
    assert_eq!(read.command_line, "guest.elf a=1  b");
    let region = |start, end, kind| Region { range: Hpa::new(start)..Hpa::new(end), kind };
    assert_eq!(
        read.regions,
        [
            region(0, 0x9_fc00, RegionKind::Usable),
            region(0x9_fc00, 0xa_0000, RegionKind::Reserved),
            region(0xf_0000, 0x10_0000, RegionKind::Reserved),
            region(0x10_0000, 8 << 20, RegionKind::Usable),
            region(0xfffb_c000, 4 << 30, RegionKind::Reserved),
        ]
    );
    let range = |start, end| Hpa::new(start)..Hpa::new(end);
    assert_eq!(
        read.modules,
        [
            BootModule { range: range(0x10_2000, 0x10_3388), string: b"initrd one".to_vec() },
            BootModule { range: range(0x10_4000, 0x10_4001), string: vec![] }
        ]
    );
    assert_eq!(guest.bytes[0x10_2000..0x10_3388], first);
    assert_eq!(entry.ebx, 0x9000, "where QEMU has it");
    let fields = &guest.bytes[0x9000..];
    assert_eq!((u32_at(fields, info::MEM_LOWER), u32_at(fields, info::MEM_UPPER)), (Some(639), Some(7 << 10)));
    let name = u32_at(fields, info::LOADER_NAME).unwrap() as usize;
    assert!(guest.bytes[name..].starts_with(b"microhv\0"));
}

#[test]
fn boot_information_gives_way_to_an_image_in_low_memory() {
    let load_at = |physical, memory| [Load { virtual_address: physical, physical, file_bytes: 0x10, memory }];
    for (loads, expected) in [(load_at(0x8000, 0x2000), 0xa000), (load_at(0, 0x9_fc00), 0x10_0000)] {
        let file = elf(&ELF32, loads[0].physical, &loads);
        assert_eq!(load_into(&platform(4 << 20), &file, b"", &[]).unwrap().1.ebx, expected);
    }
}

#[test]
fn a_module_without_room_is_an_error() {
    let file = elf(&ELF32, 0x10_0000, &one_load(0x10, 0x10));
    let big = vec![0; 1 << 20];
    let modules = [Module { bytes: &big, string: b"big" }];
    let refused = load_into(&platform(2 << 20), &file, b"", &modules).unwrap_err();
    assert_eq!(refused.to_string(), "no room for a module (0x100000 bytes) in the guest's RAM");
}

/// Physical memory of 64 KiB with an information structure at 0x1000.
fn boot(fields: &[(usize, u32)], pieces: &[(usize, &[u8])]) -> Result<BootInfo, BootInfoError> {
    let mut memory = Guest::with_bytes(vec![0; 0x1_0000]);
    for &(offset, value) in fields {
        set_u32(&mut memory.bytes, 0x1000 + offset, value);
    }
    for &(at, bytes) in pieces {
        memory.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }
    BootInfo::parse(Hpa::new(0x1000), &memory)
}

fn map_entry(size: u32, base: u64, bytes: u64, kind: u32) -> Vec<u8> {
    [&size.to_le_bytes()[..], &base.to_le_bytes(), &bytes.to_le_bytes(), &kind.to_le_bytes()].concat()
}

fn boot_with_map(map: &[u8]) -> Result<BootInfo, BootInfoError> {
    let fields = [(info::FLAGS, flag::MEMORY_MAP), (info::MAP_ADDR, 0x2000), (info::MAP_LENGTH, map.len() as u32)];
    boot(&fields, &[(0x2000, map)])
}

#[test]
fn only_flagged_fields_are_read() {
    let garbage = [info::COMMAND_LINE, info::MODULES_COUNT, info::MODULES_ADDR, info::MAP_ADDR, info::MAP_LENGTH];
    let mut fields: Vec<_> = garbage.iter().map(|&offset| (offset, 0xffff_fff0)).collect();
    fields.extend([(info::FLAGS, flag::MEMORY), (info::MEM_LOWER, 640), (info::MEM_UPPER, 1024)]);
    let read = boot(&fields, &[]).unwrap();
    assert_eq!((read.command_line.as_str(), read.modules.len()), ("", 0));
    assert_eq!(read.regions[1].range, Hpa::new(0x10_0000)..Hpa::new(0x20_0000));
    assert_eq!(boot(&[], &[]), Err(BootInfoError::NoMemoryInformation));
}

#[test]
fn impossible_map_entries_are_left_out_or_refused() {
    let mut map = map_entry(24, 0x1000, 0x1000, 4);
    map.extend([0; 4]);
    map.extend(map_entry(20, u64::MAX, 2, 1));
    map.extend(map_entry(20, 0x5000, 0, 1));
    map.extend(map_entry(20, 0x8000, 0x1000, 77));
    let read = boot_with_map(&map).unwrap();
    let kinds: Vec<_> = read.regions.iter().map(|region| region.kind).collect();
    assert_eq!(kinds, [RegionKind::AcpiNvs, RegionKind::Reserved]);
    let reasons: Vec<_> = read.malformed.iter().map(ToString::to_string).collect();
    assert_eq!(
        reasons,
        [
            "memory map entry 1: 0x2 bytes at 0xffffffffffffffff are not a range",
            "memory map entry 2: 0x0 bytes at 0x5000 are not a range"
        ]
    );
    for size in [0, 19, 21, u32::MAX] {
        let refused = boot_with_map(&map_entry(size, 0, 0x1000, 1)).unwrap_err();
        assert_eq!(refused, BootInfoError::MapEntrySize { index: 0, size });
    }
}

#[test]
fn garbage_for_tables_is_refused() {
    let modules = |at, count, pieces: &[(usize, &[u8])]| {
        let fields =
            [(info::FLAGS, flag::MODULES | flag::MEMORY), (info::MODULES_ADDR, at), (info::MODULES_COUNT, count)];
        boot(&fields, pieces).unwrap_err().to_string()
    };
    assert_eq!(modules(0xff_fff0, 2, &[]), "boot information: the module table at 0xfffff0 can't be read");
    assert_eq!(modules(0x2000, 0x1_0000, &[]), "boot information: modules: 65536 is above the limit of 1024");
    let backwards = words(&[0x5000, 0x4000, 0, 0]);
    let reason = modules(0x2000, 1, &[(0x2000, &backwards)]);
    assert_eq!(reason, "boot information: module 0 starts at 0x5000, above its end at 0x4000");
    let command_line =
        |at| boot(&[(info::FLAGS, flag::COMMAND_LINE), (info::COMMAND_LINE, at)], &[(0x3000, &[b'x'; 0x8000])]);
    assert_eq!(command_line(0x3000), Err(BootInfoError::EndlessString { at: Hpa::new(0x3000) }));
    assert!(matches!(command_line(0xffff_fff0), Err(BootInfoError::Unreadable { .. })));
}

#[test]
fn a_string_may_end_where_memory_ends() {
    let fields = [(info::FLAGS, flag::COMMAND_LINE | flag::MEMORY), (info::COMMAND_LINE, 0xfffd)];
    assert_eq!(boot(&fields, &[(0xfffd, b"ab\0")]).unwrap().command_line, "ab");
}

#[test]
fn usable_memory_is_ram_without_what_is_in_use() {
    let mut read = boot(&[(info::FLAGS, flag::MEMORY)], &[]).unwrap();
    read.regions = [
        (0, 0x9_fc00, RegionKind::Usable),
        (0x10_0000, 0x100_0000, RegionKind::Usable),
        (0x80_0800, 0x80_0900, RegionKind::AcpiNvs),
        (0x200_0000, 0x200_2fff, RegionKind::Usable),
    ]
    .map(|(start, end, kind)| Region { range: Hpa::new(start)..Hpa::new(end), kind })
    .to_vec();
    read.modules = vec![BootModule { range: Hpa::new(0x40_0000)..Hpa::new(0x40_0001), string: vec![] }];
    let usable = read.usable_ranges(&(Hpa::new(0x10_0000)..Hpa::new(0x20_0000)));
    let raw: Vec<_> = usable.iter().map(|range| (range.start.raw(), range.end.raw())).collect();
    assert_eq!(
        raw,
        [(0x20_0000, 0x40_0000), (0x40_1000, 0x80_0000), (0x80_1000, 0x100_0000), (0x200_0000, 0x200_2000)]
    );
}

#[test]
fn a_page_is_free_if_all_of_it_is_ram_without_a_module() {
    let mut read = boot(&[(info::FLAGS, flag::MEMORY)], &[]).unwrap();
    read.regions = [(0, 0x9_fc00, RegionKind::Usable), (0x9_fc00, 0x10_0000, RegionKind::Reserved)]
        .map(|(start, end, kind)| Region { range: Hpa::new(start)..Hpa::new(end), kind })
        .to_vec();
    read.modules = vec![BootModule { range: Hpa::new(0x9fff)..Hpa::new(0xa001), string: vec![] }];
    let free: Vec<_> = (0..0xa8u64).filter(|page| read.is_free_page(Hpa::new(page << 12))).collect();
    assert_eq!(free, (0..0x9f).filter(|page| ![9, 10].contains(page)).collect::<Vec<_>>());
    assert_eq!(read.memory_ranges(), [Hpa::new(0)..Hpa::new(0x9_fc00)]);
}

/// The setup header of a bzImage, for the fuzz target.
fn setup_header() -> Vec<u8> {
    linux::bz_image(&[])[crate::linux::header::START..0x26c].to_vec()
}

/// The offset of a field in that.
fn linux_field(field: usize) -> usize {
    field - crate::linux::header::START
}

fn any_image() -> impl Strategy<Value = Vec<u8>> {
    let loads = prop::collection::vec((0u64..0x40_0000, 0u64..0x80, 0u64..0x1_0000), 0..4);
    let valid = (any::<bool>(), 0u64..0x40_0000, loads).prop_map(|(wide, entry, loads)| {
        let loads: Vec<_> = loads
            .into_iter()
            .map(|(physical, file_bytes, memory)| Load { virtual_address: physical, physical, file_bytes, memory })
            .collect();
        elf(if wide { &ELF64 } else { &ELF32 }, entry, &loads)
    });
    let flat = any::<[u32; 4]>().prop_map(|[load, end, bss, entry]| flat(load & 0x3f_ffff, end, bss, entry));
    let good = prop::sample::select(seeds::seeds().map(|(_, _, image)| image).to_vec());
    prop_oneof![valid, flat, good]
}

fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let mutations = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    (any_image(), mutations, any::<prop::sample::Index>(), any::<bool>()).prop_map(|(mut file, mutations, end, cut)| {
        for (index, byte) in mutations {
            let index = index.index(file.len());
            file[index] = byte;
        }
        if cut {
            file.truncate(end.index(file.len()));
        }
        file
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_mutated_image_is_refused_or_stays_in_the_guests_memory(file in mutated()) {
        fuzz::loader_image(&file);
    }

    #[test]
    fn any_boot_information_is_read_or_refused(
        fields in prop::collection::vec((0usize..29, any::<u32>(), any::<bool>()), 0..12),
        rest in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        let mut bytes = vec![0; 29 * 4];
        for (field, value, small) in fields {
            set_u32(&mut bytes, field * 4, if small { value & 0x1ff } else { value });
        }
        fuzz::loader_boot_info(&[bytes, rest].concat());
    }

    #[test]
    fn any_memory_map_is_read_or_refused(
        map in prop::collection::vec((any::<u64>(), any::<u64>(), 0u32..7), 0..20),
        shift in 0u32..64,
    ) {
        let entries = map.iter().flat_map(|&(base, bytes, kind)| map_entry(20, base >> shift, bytes >> shift, kind));
        let bytes: Vec<u8> = entries.collect();
        let read = boot_with_map(&bytes).unwrap();
        prop_assert_eq!(read.regions.len() + read.malformed.len(), bytes.len() / MAP_ENTRY_BYTES);
        fuzz::usable_is_usable(&read, &(Hpa::new(0)..Hpa::new(0)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_linux_header_is_refused_or_stays_in_the_guests_memory(
        fields in prop::collection::vec((0usize..0x7b, any::<u8>()), 0..8),
        small in any::<[u8; 3]>(),
    ) {
        let [pref, init_size, alignment] = small;
        let mut data = setup_header();
        data[linux_field(crate::linux::header::PREF_ADDRESS) + 2] = pref >> 1;
        data[linux_field(crate::linux::header::INIT_SIZE) + 2] = init_size >> 2;
        data[linux_field(crate::linux::header::KERNEL_ALIGNMENT) + 1] = 1 << (alignment & 7);
        for (at, byte) in fields {
            data[at] = byte;
        }
        fuzz::loader_linux(&data);
    }

    #[test]
    fn any_multiboot2_tags_are_refused_or_stay_in_the_guests_memory(
        tags in prop::collection::vec((0u16..12, 0u16..2, prop::collection::vec(0u32..0x50_0000, 0..5)), 0..4),
        rest in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let tags: Vec<_> = tags.iter().map(|(kind, flags, fields)| multiboot2::tag(*kind, *flags, fields)).collect();
        fuzz::loader_multiboot2(&[tags.concat(), rest].concat());
    }

    #[test]
    fn any_pvh_segments_are_refused_or_stay_in_the_guests_memory(
        loads in prop::collection::vec((0u32..0x40, 0u32..0x50_0000, 0u32..0x40, 0u32..0x1_0000), 0..3),
        rest in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let headers = loads.iter().flat_map(|&(offset, at, file, memory)| words(&[1, offset, at, at, file, memory, 7, 4]));
        fuzz::loader_pvh(&headers.chain(rest).collect::<Vec<_>>());
    }
}
