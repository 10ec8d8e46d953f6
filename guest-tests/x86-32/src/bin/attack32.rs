//! Does one thing that is dear or dangerous to its hypervisor, most of them by its page tables, again and again, without an end: the hypervisor has to end it at its
//! limit, and what runs beside it has to get its time.
//!
//! Words: `kind=` and one of [`KINDS`].
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

use guest32::boot::Boot;
use guest32::exit::Verdict;
use guest32::memory::{self, Page, Pages};
use guest32::paging::{Mode, PRESENT, Space, WRITABLE};
use guest32::{console, cpuid, interrupts, println, processor};

guest32::main!(main);

/// It takes for ever.
type Attack = fn() -> !;

/// The attacks by their names.
const KINDS: [(&str, Attack); 5] = [
    ("delivery", delivery),
    ("remap", remap),
    ("switch", switch),
    ("long-mode-enable", long_mode_enable),
    ("data-breakpoints", data_breakpoints),
];

/// Above what the spaces map one to one.
const AT: u32 = 1 << 30;

fn main(boot: &Boot) -> Verdict {
    let wanted = boot.words().find_map(|word| word.strip_prefix("kind=")).unwrap_or_default();
    let Some((name, attack)) = KINDS.iter().find(|(name, _)| *name == wanted) else {
        println!("Bail out! kind={wanted}: there is no such attack");
        return Verdict::FAILED;
    };
    println!("# attack: {name}");
    console::drain();
    // A hypervisor's own interrupts then get through on any host.
    interrupts::enable();
    attack()
}

/// Exceptions whose frames are written to the page directory, which a large page of its own maps: to entries that nothing uses.
fn delivery() -> ! {
    let space = Space::new(Mode::TwoLevel, &mut Pages::from(memory::START));
    space.enter();
    interrupts::raise_for_ever(Page::new(space.cr3()), 4096)
}

/// EFER.LME without CR4.PAE, with paging off, at exits.
fn long_mode_enable() -> ! {
    loop {
        processor::set_long_mode_enable(true);
        cpuid::cpuid(0, 0);
        processor::set_long_mode_enable(false);
    }
}

/// Data breakpoints on each page's ES, CS, SS and DS, as if it were a VMCB (AMD64 APM vol. 2, table B-2), and exits.
fn data_breakpoints() -> ! {
    const SEGMENTS: [u32; 4] = [0x400, 0x410, 0x420, 0x430];
    /// Each of them on reads and writes of four bytes.
    const DR7_ENABLED: u32 = 0xffff_04ff;
    const DR7_DISABLED: u32 = 0x400;
    /// Where hypervisors may have their memory, but for where this guest's own is.
    const IMAGE_END: u32 = 2 << 20;
    const HYPERVISOR_END: u32 = 64 << 20;
    loop {
        for page in (IMAGE_END..HYPERVISOR_END).step_by(4096) {
            processor::set_breakpoints(SEGMENTS.map(|offset| page + offset), DR7_ENABLED);
            cpuid::cpuid(0, 0);
            processor::set_breakpoints([0; 4], DR7_DISABLED);
        }
    }
}

/// Pages that are mapped, touched and unmapped again.
fn remap() -> ! {
    const PAGES: u32 = 256;
    let mut pages = Pages::from(memory::START);
    let space = Space::new(Mode::Pae, &mut pages);
    let data = pages.take();
    let entries = |n: u32, pages: &mut Pages| space.pte(AT + n * 4096, pages);
    space.enter();
    loop {
        for n in 0..PAGES {
            entries(n, &mut pages).set(u64::from(data.address()) | PRESENT | WRITABLE);
            memory::store(AT + n * 4096, n);
        }
        for n in 0..PAGES {
            entries(n, &mut pages).set(0);
            processor::invlpg(AT + n * 4096);
        }
    }
}

/// As many address spaces as there is memory for, by turns.
fn switch() -> ! {
    const SPACES: usize = 64;
    let mut pages = Pages::from(memory::START);
    let spaces: [Space; SPACES] = core::array::from_fn(|_| Space::new(Mode::Pae, &mut pages));
    let data = pages.take();
    for space in spaces {
        space.pte(AT, &mut pages).set(u64::from(data.address()) | PRESENT | WRITABLE);
    }
    spaces[0].enter();
    loop {
        for (n, space) in spaces.iter().enumerate() {
            space.load();
            memory::store(AT, n as u32);
        }
    }
}
