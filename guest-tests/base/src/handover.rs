//! What the loader handed over, against the Multiboot specification 0.6.96, sections 3.2 and 3.3, the Multiboot2 specification 2.0,
//! sections 3.3 and 3.6, and Xen's docs/misc/pvh.pandoc. The image has [a header of each](crate::boot_headers).
//!
//! Words of the command line say what to expect, each checked if given:
//! `protocol=multiboot|multiboot2|pvh`, `words=N` (words behind the image's name), `modules=N`, `mem=MIB` (where memory ends, in
//! MiB), `loader=NAME`.
//! A module's string may have a word `sum=HEX` (its bytes' sum modulo 2^32) and a word `size=BYTES`.

use abi::multiboot::HEADER_MAGIC;
use abi::options::guest::key;
use addr::Gpa;

use crate::boot::{self, Boot, Module, Protocol, Region};
use crate::exit::GuestStatus;
use crate::ktap::{self, NotPassed, Outcome};
use crate::{cases, check, check_eq, println, ram, skip_unless};

/// The headers of multiboot2 and PVH, for an image that has that of multiboot as well. Multiboot2's has an information request
/// (command line, loader's name, modules, basic memory, memory map, the RSDPs of ACPI 1.0 and of later versions), and wants modules
/// at page boundaries. PVH's note is the address of 32-bit code, of as many bits as the ELF file has (XEN_ELFNOTE_PHYS32_ENTRY).
#[macro_export]
macro_rules! boot_headers {
    () => {
        core::arch::global_asm!(
            r#"
.section .multiboot, "a"
.balign 8
multiboot2_header:
    .long {magic}, {i386}, multiboot2_end - multiboot2_header, -({magic} + multiboot2_end - multiboot2_header)
    .short {request}, 0
    .long 36, {command_line}, {loader_name}, {modules}, {memory}, {memory_map}, {acpi_old}, {acpi_new}
    .balign 8
    .short {module_alignment}, 0
    .long 8
    .short {end}, 0
    .long 8
multiboot2_end:

.section .note.Xen, "a", @note
.balign 4
    .long 4, {bytes}, 18
    .asciz "Xen"
    .long _start
    .fill {bytes} / 4 - 1, 4, 0
.text
"#,
            bytes = const size_of::<usize>(),
            magic = const $crate::boot::multiboot2_header::HEADER_MAGIC,
            i386 = const $crate::boot::multiboot2_header::I386,
            request = const $crate::boot::multiboot2_header::header_tag::INFORMATION_REQUEST,
            module_alignment = const $crate::boot::multiboot2_header::header_tag::MODULE_ALIGNMENT,
            end = const $crate::boot::multiboot2_header::header_tag::END,
            command_line = const $crate::boot::multiboot2_header::information::COMMAND_LINE,
            loader_name = const $crate::boot::multiboot2_header::information::LOADER_NAME,
            modules = const $crate::boot::multiboot2_header::information::MODULES,
            memory = const $crate::boot::multiboot2_header::information::MEMORY,
            memory_map = const $crate::boot::multiboot2_header::information::MEMORY_MAP,
            acpi_old = const $crate::boot::multiboot2_header::information::ACPI_OLD,
            acpi_new = const $crate::boot::multiboot2_header::information::ACPI_NEW,
        );
    };
}

const EFLAGS_IF: u32 = 1 << 9;
const EFLAGS_VM: u32 = 1 << 17;
const CR0_PE: u32 = 1 << 0;
const CR0_PG: u32 = 1 << 31;
const A20: u64 = 1 << 20;
const MIB: u64 = 1 << 20;

/// Runs all tests.
pub fn run(boot: &Boot) -> GuestStatus {
    ktap::run(
        boot,
        cases![
            protocol,
            protected_mode_without_paging,
            interrupts_are_off,
            segments_have_base_0,
            a20_is_on,
            lower_and_upper_memory,
            command_line,
            loader_name,
            memory_map_is_whole,
            memory_map_regions_do_not_overlap,
            memory_map_agrees_with_upper_memory,
            image_is_in_available_memory,
            memory_ends_where_it_should,
            number_of_modules,
            modules_are_page_aligned,
            modules_lie_apart,
            modules_hold_what_they_should,
            rsdps_are_whole,
        ],
    )
}

fn protocol(boot: &Boot) -> Outcome {
    println!("# loaded by {}", boot.protocol().name());
    if let Some(expected) = boot.text_word(key::PROTOCOL) {
        check_eq!(boot.protocol().name(), expected);
    }
    Ok(())
}

fn protected_mode_without_paging(boot: &Boot) -> Outcome {
    check_eq!(boot.entry().cr0 & (CR0_PE | CR0_PG), CR0_PE);
    Ok(())
}

fn interrupts_are_off(boot: &Boot) -> Outcome {
    check_eq!(boot.entry().eflags & (EFLAGS_IF | EFLAGS_VM), 0);
    Ok(())
}

/// Each segment register shows the same memory as the physical address does.
fn segments_have_base_0(boot: &Boot) -> Outcome {
    check_eq!(boot.entry().through, [HEADER_MAGIC; 6], "through CS, DS, ES, FS, GS, SS");
    let [cs, data @ ..] = boot.entry().selectors;
    check!(cs & !7 != 0 && data.iter().all(|selector| selector & !7 != 0), "null selectors in {cs:x} {data:x?}");
    Ok(())
}

/// Two frames whose addresses differ in nothing else are two frames.
fn a20_is_on(boot: &Boot) -> Outcome {
    let odd = ram::free(boot).find(|frame| frame.gpa().raw() & A20 != 0);
    let even = odd.and_then(|odd| ram::free(boot).find(|even| even.gpa().raw() == odd.gpa().raw() ^ A20));
    let (Some(odd), Some(even)) = (odd, even) else {
        return Err(NotPassed::Skipped("no two such frames are free"));
    };
    odd.write(0, 1);
    even.write(0, 2);
    check_eq!((odd.read(0), even.read(0)), (1, 2));
    Ok(())
}

fn lower_and_upper_memory(boot: &Boot) -> Outcome {
    skip_unless!(boot.protocol() != Protocol::Pvh, "the map tells it alone");
    check!(boot.mem_lower().is_some_and(|kib| (1..=640).contains(&kib)), "{:?} KiB", boot.mem_lower());
    check!(boot.mem_upper().is_some_and(|kib| kib > 0), "{:?} KiB", boot.mem_upper());
    Ok(())
}

fn command_line(boot: &Boot) -> Outcome {
    println!("# command line: {:?}", boot.command_line());
    check!(boot.command_line().is_some(), "it is not UTF-8 or never ends");
    if let Some(expected) = boot.word::<usize>(key::WORDS) {
        check_eq!(boot.words().count(), expected);
    }
    Ok(())
}

fn loader_name(boot: &Boot) -> Outcome {
    skip_unless!(boot.loader_name().is_some(), "it has none");
    println!("# loader: {:?}", boot.loader_name());
    check!(boot.loader_name().is_some_and(|name| !name.is_empty()));
    if let Some(expected) = boot.text_word(key::LOADER) {
        check_eq!(boot.loader_name(), Some(expected));
    }
    Ok(())
}

fn memory_map_is_whole(boot: &Boot) -> Outcome {
    for region in boot.memory_map() {
        println!("# memory {:#012x}..{:#012x} type {}", region.start.raw(), region.end().raw(), region.kind);
    }
    check!(boot.memory_map_is_whole(), "its entries' sizes don't add up to its length");
    check!(boot.memory_map().any(|region| region.is_available()));
    check!(boot.memory_map().all(|region| region.start.checked_add(region.length).is_some()), "a region wraps around");
    Ok(())
}

/// Memory that is available must be nothing else's.
fn memory_map_regions_do_not_overlap(boot: &Boot) -> Outcome {
    for (index, one) in boot.memory_map().enumerate() {
        for other in boot.memory_map().skip(index + 1) {
            let apart = one.end() <= other.start || other.end() <= one.start;
            check!(apart || !(one.is_available() || other.is_available()), "{one:x?} and {other:x?}");
        }
    }
    Ok(())
}

/// Upper memory is what the map says of the memory from 1 MiB to the first hole.
fn memory_map_agrees_with_upper_memory(boot: &Boot) -> Outcome {
    skip_unless!(boot.mem_upper().is_some(), "the map tells it alone");
    let upper = boot.memory_map().find(|region| region.is_available() && region.start == Gpa::new(MIB));
    let upper_kib = upper.map(|region| region.length >> 10);
    check!(
        upper_kib.zip(boot.mem_upper()).is_some_and(|(map, field)| u64::from(field).abs_diff(map) <= 1024),
        "the map says {upper_kib:?} KiB, mem_upper says {:?}",
        boot.mem_upper()
    );
    Ok(())
}

fn image_is_in_available_memory(boot: &Boot) -> Outcome {
    let image = boot::image();
    check!(in_available_memory(boot, Gpa::new(image.start), image.end - image.start), "{image:x?}");
    Ok(())
}

/// Firmware may keep some at the end.
fn memory_ends_where_it_should(boot: &Boot) -> Outcome {
    const FIRMWARE: u64 = MIB;
    let Some(mib) = boot.word::<u64>(key::MEM) else {
        return Err(NotPassed::Skipped("no word `mem=`"));
    };
    let end = boot.memory_map().filter(Region::is_available).map(|region| region.end().raw()).max();
    check!(end.is_some_and(|end| (mib * MIB - FIRMWARE..=mib * MIB).contains(&end)), "it ends at {end:x?}");
    Ok(())
}

fn number_of_modules(boot: &Boot) -> Outcome {
    let Some(expected) = boot.word::<usize>(key::MODULES) else {
        return Err(NotPassed::Skipped("no word `modules=`"));
    };
    check_eq!(boot.modules().count(), expected);
    Ok(())
}

/// The image's header asks for it.
fn modules_are_page_aligned(boot: &Boot) -> Outcome {
    for module in boot.modules() {
        check_eq!(module.start.page_offset(), 0, "of {module:?}", module = module.string);
    }
    Ok(())
}

fn modules_lie_apart(boot: &Boot) -> Outcome {
    for (index, one) in boot.modules().enumerate() {
        check!(in_available_memory(boot, one.start, one.bytes.len() as u64), "module {index}");
        check!(one.start.raw() >= boot::image().end, "module {index} is in the image");
        for other in boot.modules().skip(index + 1) {
            let end = |module: &Module| module.start.raw() + module.bytes.len() as u64;
            check!(end(&one) <= other.start.raw() || end(&other) <= one.start.raw(), "module {index} and another");
        }
    }
    Ok(())
}

fn modules_hold_what_they_should(boot: &Boot) -> Outcome {
    for module in boot.modules() {
        println!("# module: {:?}, {} bytes", module.string, module.bytes.len());
        check!(module.string.is_some(), "it is not UTF-8 or never ends");
        let string = module.string.unwrap_or_default();
        let word = |key| string.split_ascii_whitespace().find_map(|word| word.strip_prefix(key));
        if let Some(expected) = word("sum=") {
            let sum = module.bytes.iter().fold(0, |sum: u32, byte| sum.wrapping_add((*byte).into()));
            check_eq!(Ok(sum), u32::from_str_radix(expected, 16));
        }
        if let Some(expected) = word("size=") {
            check_eq!(Ok(module.bytes.len()), expected.parse());
        }
    }
    Ok(())
}

/// Signature, checksums, and the table that each leads to (ACPI 6.5, section 5.2.5.3).
fn rsdps_are_whole(boot: &Boot) -> Outcome {
    let [old, new] = boot.rsdps();
    match boot.protocol() {
        Protocol::Multiboot => return Err(NotPassed::Skipped("the protocol has none")),
        Protocol::Multiboot2 => check!(old.is_some() && new.is_some(), "{old:x?} and {new:x?}"),
        Protocol::Pvh => check!(old.is_some() || new.is_some(), "none"),
    }
    for rsdp in [old, new].into_iter().flatten() {
        println!("# RSDP: {rsdp:02x?}");
        check!(rsdp.starts_with(b"RSD PTR ") && rsdp.len() >= 20, "{rsdp:x?}");
        check_eq!(sum(&rsdp[..20]), 0, "of the first 20 bytes");
        check_eq!(table(&rsdp[16..20], b"RSDT"), Ok(()));
    }
    if let Some(rsdp) = new {
        check_eq!((rsdp[15], &rsdp[20..24]), (2, &[36, 0, 0, 0][..]), "revision and length");
        check_eq!(sum(rsdp), 0, "of all bytes");
        check_eq!(&rsdp[28..32], &[0; 4], "the upper half of the XSDT's address");
        check_eq!(table(&rsdp[24..28], b"XSDT"), Ok(()));
    }
    Ok(())
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// Whether there is a table with a right checksum at the address in `field`.
fn table(field: &[u8], signature: &[u8; 4]) -> Result<(), &'static str> {
    let address = field.iter().rfold(0, |word, byte| word << 8 | u32::from(*byte));
    let table = boot::acpi_table(address, signature).ok_or("another signature")?;
    if sum(table) == 0 { Ok(()) } else { Err("a wrong checksum") }
}

fn in_available_memory(boot: &Boot, start: Gpa, length: u64) -> bool {
    boot.memory_map()
        .any(|region| region.is_available() && region.start <= start && start.raw() + length <= region.end().raw())
}
