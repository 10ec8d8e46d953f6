//! bzImages.

use super::*;
use crate::fuzz::acpi_tables;
use crate::guest_view::{GuestView, Protocol};
use crate::linux::{header, params};
use arch::entry::{self, Mode};

const MIB: u64 = 1 << 20;
/// The bytes of the protected-mode kernels here.
const CODE: usize = 0x1000;

/// A field of the header: its offset, and its bytes.
type Field = (usize, Vec<u8>);

fn half(offset: usize, value: u16) -> Field {
    (offset, value.to_le_bytes().to_vec())
}

fn word(offset: usize, value: u32) -> Field {
    (offset, value.to_le_bytes().to_vec())
}

fn long(offset: usize, value: u64) -> Field {
    (offset, value.to_le_bytes().to_vec())
}

/// A bzImage as Linux 6.1 is one, but for its size, with `changes` in its header. It has one sector of real-mode code.
pub(super) fn bz_image(changes: &[Field]) -> Vec<u8> {
    let mut file = vec![0x5a; 0x400];
    file[header::START..0x26c].fill(0);
    let fields = [
        (header::SETUP_SECTS, vec![1]),
        half(header::BOOT_FLAG, 0xaa55),
        (header::JUMP - 1, vec![0xeb, 0x6a]),
        (header::MAGIC, b"HdrS".to_vec()),
        half(header::VERSION, 0x20f),
        (header::LOADFLAGS, vec![1]),
        word(header::CODE32_START, 0x10_0000),
        word(header::INITRD_ADDR_MAX, 0x7fff_ffff),
        word(header::KERNEL_ALIGNMENT, 0x20_0000),
        (header::RELOCATABLE, vec![1]),
        half(header::XLOADFLAGS, 0x7f),
        word(header::CMDLINE_SIZE, 2047),
        long(header::PREF_ADDRESS, 0x100_0000),
        word(header::INIT_SIZE, 0x30_0000),
    ];
    for (offset, value) in fields.iter().chain(changes) {
        file[*offset..][..value.len()].copy_from_slice(value);
    }
    file.resize(file.len() + CODE, 0xcc);
    file
}

fn load_linux(platform: &Platform, changes: &[Field], modules: &[Module<'_>]) -> Result<(Guest, Entry), LoadError> {
    load_into(platform, &bz_image(changes), b"vmlinuz  console=ttyS0  quiet ", modules)
}

fn refused(changes: &[Field]) -> String {
    load_linux(&platform(64 * MIB), changes, &[]).unwrap_err().to_string()
}

fn param(guest: &Guest, entry: &Entry, field: usize) -> u32 {
    u32_at(&guest.bytes, entry.esi as usize + field).unwrap()
}

fn long_at(guest: &Guest, at: u64) -> u64 {
    u64::from_le_bytes(guest.bytes[at as usize..][..8].try_into().unwrap())
}

#[test]
fn the_32_bit_entry_is_as_the_protocol_has_it() {
    let platform = Platform { long_mode: false, ..platform(64 * MIB) };
    let (guest, entry) = load_linux(&platform, &[], &[]).unwrap();
    assert_eq!(entry.eip, 0x100_0000, "the preferred address");
    assert_eq!(guest.bytes[0x100_0000..][..CODE], [0xcc; CODE]);
    let Mode::Protected { gdt: Some(gdt) } = entry.mode else { panic!("{entry:?}") };
    for (index, descriptor) in (0..).zip(entry::gdt(false)) {
        assert_eq!(long_at(&guest, u64::from(gdt) + 8 * index), descriptor);
    }
    // "%ebp, %edi and %ebx must be zero", %esi is the address of boot_params.
    assert_eq!(entry, Entry { esi: entry.esi, ..Entry::at(entry.eip, entry.mode) });
    assert!(entry.esi >= 0x9000 && entry.esi.is_multiple_of(4096));
}

#[test]
fn boot_params_have_the_header_and_what_the_loader_adds() {
    let (guest, entry) = load_linux(&platform(64 * MIB), &[], &[]).unwrap();
    let file = bz_image(&[]);
    let params = &guest.bytes[entry.esi as usize..][..params::BYTES];
    assert_eq!(params[header::VERSION..header::TYPE_OF_LOADER], file[header::VERSION..header::TYPE_OF_LOADER]);
    assert_eq!(params[header::KERNEL_ALIGNMENT..0x26c], file[header::KERNEL_ALIGNMENT..0x26c]);
    assert!(params[0x26c..0x2d0].iter().all(|&byte| byte == 0), "nothing behind the header is copied");
    assert_eq!(params[header::TYPE_OF_LOADER], 0xff);
    assert_eq!(param(&guest, &entry, header::CODE32_START), entry.eip - 0x200);
    assert_eq!(params[0x1ef], 0, "the sentinel says that the rest was zeroed");
    assert_eq!(param(&guest, &entry, params::ALT_MEM_K), 63 << 10);
    let found = GuestView::read(&guest.bytes, &entry);
    assert_eq!((found.protocol, &found.command_line[..]), (Protocol::Linux, &b"console=ttyS0  quiet "[..]));
    assert_eq!(found.map[..3], [(0, 0x9_fc00, 1), (0x9_fc00, 0x400, 2), (0xf_0000, 0x1_0000, 2)]);
    assert_eq!((found.modules, found.rsdp), (vec![], None));
}

/// Walks the tables at `cr3` with pages of 2 MiB.
fn translate(guest: &Guest, cr3: u64, address: u64) -> Option<u64> {
    let mut table = cr3;
    for shift in [39, 30, 21] {
        let entry = long_at(guest, table + 8 * (address >> shift & 511));
        if entry & 3 != 3 {
            return None;
        }
        if entry & 0x80 != 0 {
            return Some((entry & 0x000f_ffff_ffe0_0000) + (address & 0x1f_ffff));
        }
        table = entry & 0x000f_ffff_ffff_f000;
    }
    None
}

#[test]
fn the_64_bit_entry_has_an_identity_map_of_4_gib() {
    let (guest, entry) = load_linux(&platform(64 * MIB), &[], &[]).unwrap();
    let Mode::Long { gdt, cr3 } = entry.mode else { panic!("{entry:?}") };
    assert_eq!(entry.eip, 0x100_0200);
    assert_eq!(long_at(&guest, u64::from(gdt) + 16), entry::gdt(true)[2]);
    for address in [0, entry.esi.into(), entry.eip.into(), 0x7fff_ffff, 0xffff_ffff] {
        assert_eq!(translate(&guest, cr3.into(), address), Some(address));
    }
    assert_eq!(translate(&guest, cr3.into(), 4 << 30), None);
}

#[test]
fn without_the_flag_or_its_version_the_entry_is_32_bit() {
    for changes in [[half(header::XLOADFLAGS, 0x7e)], [half(header::VERSION, 0x20b)]] {
        let (_, entry) = load_linux(&platform(64 * MIB), &changes, &[]).unwrap();
        assert_eq!((entry.eip, matches!(entry.mode, Mode::Protected { .. })), (0x100_0000, true));
    }
}

#[test]
fn a_relocatable_kernel_goes_where_there_is_room() {
    let platform = Platform { long_mode: false, ..platform(8 * MIB) };
    let (_, entry) = load_linux(&platform, &[], &[]).unwrap();
    assert_eq!(entry.eip, 0x20_0000, "the lowest multiple of its alignment");
    let fixed = [(header::RELOCATABLE, vec![0])];
    let error = load_linux(&platform, &fixed, &[]).unwrap_err();
    assert_eq!(error.to_string(), "no room for the kernel (0x300000 bytes) in the guest's RAM");
    let large = [word(header::INIT_SIZE, 0x60_0001)];
    assert!(matches!(load_linux(&platform, &large, &[]), Err(LoadError::NoRoom { what: "the kernel", .. })));
}

#[test]
fn a_kernel_of_version_2_06_is_loaded_to_1_mib() {
    let old = [half(header::VERSION, 0x206), (header::JUMP, vec![0x3a]), (header::RELOCATABLE, vec![0])];
    let (guest, entry) = load_linux(&platform(8 * MIB), &old, &[]).unwrap();
    assert_eq!(entry.eip, 0x10_0000);
    let params = &guest.bytes[entry.esi as usize..];
    assert!(params[0x23c..0x290].iter().all(|&byte| byte == 0), "its header ends at 0x23c");
}

#[test]
fn the_initrd_is_as_high_as_it_may_be() {
    let bytes: Vec<u8> = (0..5000).map(|n| n as u8).collect();
    let initrd = [Module { bytes: &bytes, string: b"initrd.gz" }];
    let place = |limit: u32| {
        let changes = [word(header::INITRD_ADDR_MAX, limit)];
        let (guest, entry) = load_linux(&platform(64 * MIB), &changes, &initrd).unwrap();
        let [(range, _)] = &GuestView::read(&guest.bytes, &entry).modules[..] else { panic!("no initrd") };
        assert_eq!(guest.bytes[range.clone()], bytes);
        range.start
    };
    assert_eq!(place(u32::MAX), 0x400_0000 - 0x2000);
    // The limit is the highest address that it may occupy: 5000 bytes end there.
    assert_eq!(place(0x200_0000 + 4999), 0x200_0000);
    assert_eq!(place(0x200_0000 + 4998), 0x1ff_f000);
    let low = [word(header::INITRD_ADDR_MAX, 0xf_ffff)];
    let error = load_linux(&platform(64 * MIB), &low, &initrd).unwrap_err();
    assert_eq!(error.to_string(), "no room for the initrd (0x1388 bytes) in the guest's RAM");
}

#[test]
fn an_initrd_does_not_touch_what_the_kernel_needs() {
    // The kernel needs 16 MiB to 19 MiB, and RAM ends at 20 MiB.
    let bytes = vec![1; 1 << 20];
    let initrd = |bytes| [Module { bytes, string: b"initrd" }];
    let (guest, entry) = load_linux(&platform(20 * MIB), &[], &initrd(&bytes)).unwrap();
    assert_eq!(GuestView::read(&guest.bytes, &entry).modules[0].0.start, 19 << 20);
    let (guest, entry) = load_linux(&platform(20 * MIB), &[], &initrd(&vec![1; (1 << 20) + 1])).unwrap();
    assert!(GuestView::read(&guest.bytes, &entry).modules[0].0.end <= 16 << 20);
}

#[test]
fn a_command_line_has_a_limit() {
    let platform = platform(64 * MIB);
    let limited = bz_image(&[word(header::CMDLINE_SIZE, 4)]);
    let (guest, entry) = load_into(&platform, &limited, b"kernel abcd", &[]).unwrap();
    assert_eq!(GuestView::read(&guest.bytes, &entry).command_line, b"abcd");
    let error = load_into(&platform, &limited, b"kernel abcde", &[]).unwrap_err();
    assert_eq!(error.to_string(), "a command line of 5 bytes: the image takes at most 4");
    let (guest, entry) = load_into(&platform, &limited, b"kernel", &[]).unwrap();
    assert_eq!(GuestView::read(&guest.bytes, &entry).command_line, b"");
}

#[test]
fn a_second_module_is_refused() {
    let module = Module { bytes: b"x", string: b"x" };
    let error = load_linux(&platform(64 * MIB), &[], &[module, module]).unwrap_err();
    assert_eq!(error.to_string(), "2 modules: Linux's boot protocol has room for 1");
}

#[test]
fn the_rsdp_is_told_from_version_2_14_on() {
    let acpi = acpi_tables();
    let platform = Platform { acpi: Some(acpi.clone()), ..platform(64 * MIB) };
    let rsdp = |version| {
        let (guest, entry) = load_linux(&platform, &[half(header::VERSION, version)], &[]).unwrap();
        GuestView::read(&guest.bytes, &entry).rsdp
    };
    assert_eq!((rsdp(0x20e), rsdp(0x20d)), (Some(acpi.rsdp_at.raw()), None));
}

#[test]
fn a_broken_linux_header_is_named() {
    assert_eq!(refused(&[half(header::VERSION, 0x205)]), "Linux boot header: version 2.05: expected 2.06 or later");
    assert_eq!(
        refused(&[(header::LOADFLAGS, vec![0])]),
        "Linux boot header: a zImage (loadflags bit 0 is clear), which is loaded below 640 KiB"
    );
    assert_eq!(refused(&[(header::JUMP, vec![0x61])]), "Linux boot header: it ends at 0x263, before 0x264");
    for alignment in [0, 3] {
        let error = refused(&[word(header::KERNEL_ALIGNMENT, alignment)]);
        assert_eq!(error, format!("Linux boot header: kernel_alignment {alignment:#x} is no power of two"));
    }
    let no_kernel = "Linux boot header: the file ends before the protected-mode kernel";
    assert_eq!(refused(&[(header::SETUP_SECTS, vec![9])]), no_kernel);
    // Without a number there are 4 sectors.
    let mut file = bz_image(&[(header::SETUP_SECTS, vec![0])]);
    file.truncate(5 * 512);
    assert_eq!(error(&file), no_kernel);
    file.push(0);
    assert!(load_into(&platform(64 * MIB), &file, b"", &[]).is_ok());
    file.truncate(0x250);
    assert_eq!(error(&file), "Linux boot header: it ends at 0x250, before 0x264");
}
