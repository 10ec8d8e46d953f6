//! Does one thing that is dear or dangerous to its hypervisor, many of them by its page tables, again and again, without an end: the
//! hypervisor has to end it at its limit, and what runs beside it has to get its time.
//!
//! Words: `kind=` and one of [`KINDS`] or of [`attack::KINDS`], and the words of that.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

use core::sync::atomic::Ordering::Relaxed;

use guest32::attack::{self, Kind};
use guest32::boot::Boot;
use guest32::exit::GuestStatus;
use guest32::memory::{self, END, Page, Pages};
use guest32::paging::{self, LARGE_PAGE, Mode, PRESENT, Space, TABLE, WRITABLE};
use guest32::{cpuid, interrupts, port, processor, smp};

guest32::main!(main);

/// The attacks that only 32-bit guests have, or whose code differs with the mode.
const KINDS: [Kind; 9] = [
    ("string-io", string_io),
    ("control-registers", control_registers),
    ("delivery", delivery),
    ("remap", remap),
    ("switch", switch),
    ("one-table", one_table),
    ("fill", fill),
    ("long-mode-enable", long_mode_enable),
    ("data-breakpoints", data_breakpoints),
];

/// A port without a device.
const NO_DEVICE: u16 = 0x80;
/// Above what the spaces map one to one.
const AT: u32 = 1 << 30;
/// The last large page of two-level paging.
const LAST: u32 = 0xffc0_0000;

/// With paging, so that hypervisors without nested paging have its translations to follow.
fn main(boot: &Boot) -> GuestStatus {
    smp::start_all();
    // It fails on none.
    let _ = smp::run_on_all(|_| {
        paging::enter_flat();
        Ok(())
    });
    attack::run(boot, &KINDS)
}

/// REP OUTSB, each of 4096 bytes.
fn string_io(_: &Boot) {
    interrupts::enable();
    loop {
        port::rep_outsb(NO_DEVICE, Page::new(memory::START));
    }
}

/// Bits of CR0 and CR4 that hypervisors look at, off and on.
fn control_registers(_: &Boot) {
    interrupts::enable();
    for on in [true, false].into_iter().cycle() {
        paging::set_write_protect(on);
        processor::set_caching(on);
        paging::set_global_pages(on);
    }
}

/// Exceptions whose frames are written to the page directory, which a large page of its own maps: to entries that nothing uses.
fn delivery(_: &Boot) {
    interrupts::enable();
    let space = Space::new(Mode::TwoLevel, &mut Pages::from(memory::START));
    space.enter();
    interrupts::raise_for_ever(Page::new(space.cr3()), 4096)
}

/// EFER.LME without CR4.PAE, with paging off, at exits.
fn long_mode_enable(_: &Boot) {
    paging::leave();
    interrupts::enable();
    loop {
        processor::set_long_mode_enable(true);
        cpuid::cpuid(0, 0);
        processor::set_long_mode_enable(false);
    }
}

/// Data breakpoints on each page's ES, CS, SS and DS, as if it were a VMCB (AMD64 APM vol. 2, table B-2), and exits.
fn data_breakpoints(_: &Boot) {
    paging::leave();
    interrupts::enable();
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
fn remap(_: &Boot) {
    interrupts::enable();
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
fn switch(_: &Boot) {
    interrupts::enable();
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

/// One page table in all entries of the page directory, and all entries of that table for one frame: the frame is written by each,
/// becomes a page table and a page directory, to be write-protected in each, and is written again.
fn one_table(_: &Boot) {
    let mut pages = Pages::from(memory::START);
    let [space, other] = [(); 2].map(|()| Space::new(Mode::TwoLevel, &mut pages));
    let (table, frame) = (pages.take(), other.root());
    let to_table = u64::from(table.address()) | TABLE;
    for at in large_pages() {
        space.pde(at).set(to_table);
    }
    for n in 0..1024 {
        table.dword(n).store(frame.address() | (PRESENT | WRITABLE) as u32, Relaxed);
    }
    // What is written is a good entry of the frame's as a page directory: its last.
    let write = |at: u32| memory::store(at + 4092, to_table as u32);
    space.enter();
    interrupts::enable();
    loop {
        (0..1024).for_each(|n| write(AT + n * 4096));
        large_pages().for_each(write);
        space.pde(LAST).set(u64::from(frame.address()) | TABLE);
        memory::load(LAST);
        other.load();
        write(LAST);
        space.load();
        space.pde(LAST).set(to_table);
    }
}

/// Address spaces of large pages that all are one: in small pages they take as many tables as there can be, which the load of
/// another space, or the next fault, has to give up.
fn fill(_: &Boot) {
    const SPACES: usize = 8;
    /// Above the spaces' tables.
    const DATA: u32 = 16 << 20;
    let mut pages = Pages::from(memory::START);
    let spaces: [Space; SPACES] = core::array::from_fn(|_| Space::new(Mode::TwoLevel, &mut pages));
    for space in spaces {
        large_pages().for_each(|at| space.pde(at).set(u64::from(DATA) | LARGE_PAGE));
    }
    spaces[0].enter();
    interrupts::enable();
    loop {
        for space in spaces {
            space.load();
            // A hypervisor's own tables are of half the size.
            large_pages().for_each(|at| [at, at + (2 << 20)].into_iter().for_each(|half| memory::store(half, half)));
        }
    }
}

/// Where two-level paging has large pages, above what the spaces map one to one.
fn large_pages() -> impl Iterator<Item = u32> {
    (END..=LAST).step_by(Mode::TwoLevel.large_page() as usize)
}
