//! What the loader handed over, against the Multiboot specification 0.6.96, sections 3.2 and 3.3.
//!
//! Words of the command line say what to expect, each checked if given:
//! `words=N` (words behind the image's name), `modules=N`, `mem=MIB` (where memory ends, in MiB), `loader=NAME`.
//! A module's string may have a word `sum=HEX` (its bytes' sum modulo 2^32) and a word `size=BYTES`.
#![no_std]
#![no_main]

use abi::multiboot::LOADER_EAX;
use abi::options::guest::key;
use addr::Gpa;
use guest::boot::{self, Boot, HEADER_MAGIC, Module, Region, flag};
use guest::exit::Verdict;
use guest::ktap::{self, Outcome, Stop};
use guest::{cases, check, check_eq, println, ram, skip_unless};

guest::main!(main);

const EFLAGS_IF: u32 = 1 << 9;
const EFLAGS_VM: u32 = 1 << 17;
const CR0_PE: u32 = 1 << 0;
const CR0_PG: u32 = 1 << 31;
const A20: u64 = 1 << 20;
const MIB: u64 = 1 << 20;

fn main(boot: &Boot) -> Verdict {
    ktap::run(
        boot,
        cases![
            magic_number,
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
        ],
    )
}

fn magic_number(boot: &Boot) -> Outcome {
    check_eq!(boot.entry().magic, LOADER_EAX);
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
        return Err(Stop::Skipped("no two such frames are free"));
    };
    odd.write(0, 1);
    even.write(0, 2);
    check_eq!((odd.read(0), even.read(0)), (1, 2));
    Ok(())
}

fn lower_and_upper_memory(boot: &Boot) -> Outcome {
    check!(boot.flags() & flag::MEMORY != 0);
    check!(boot.mem_lower().is_some_and(|kib| (1..=640).contains(&kib)), "{:?} KiB", boot.mem_lower());
    check!(boot.mem_upper().is_some_and(|kib| kib > 0), "{:?} KiB", boot.mem_upper());
    Ok(())
}

fn command_line(boot: &Boot) -> Outcome {
    check!(boot.flags() & flag::COMMAND_LINE != 0);
    println!("# command line: {:?}", boot.command_line());
    check!(boot.command_line().is_some(), "it is not UTF-8 or never ends");
    if let Some(expected) = boot.word::<usize>(key::WORDS) {
        check_eq!(boot.words().count(), expected);
    }
    Ok(())
}

fn loader_name(boot: &Boot) -> Outcome {
    skip_unless!(boot.flags() & flag::LOADER_NAME != 0, "it has none");
    println!("# loader: {:?}", boot.loader_name());
    check!(boot.loader_name().is_some_and(|name| !name.is_empty()));
    if let Some(expected) = boot.text_word(key::LOADER) {
        check_eq!(boot.loader_name(), Some(expected));
    }
    Ok(())
}

fn memory_map_is_whole(boot: &Boot) -> Outcome {
    check!(boot.flags() & flag::MEMORY_MAP != 0);
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
        return Err(Stop::Skipped("no word `mem=`"));
    };
    let end = boot.memory_map().filter(Region::is_available).map(|region| region.end().raw()).max();
    check!(end.is_some_and(|end| (mib * MIB - FIRMWARE..=mib * MIB).contains(&end)), "it ends at {end:x?}");
    Ok(())
}

fn number_of_modules(boot: &Boot) -> Outcome {
    let Some(expected) = boot.word::<usize>(key::MODULES) else {
        return Err(Stop::Skipped("no word `modules=`"));
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

fn in_available_memory(boot: &Boot, start: Gpa, length: u64) -> bool {
    boot.memory_map()
        .any(|region| region.is_available() && region.start <= start && start.raw() + length <= region.end().raw())
}
