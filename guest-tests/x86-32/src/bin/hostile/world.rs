//! The memory that inputs start with: descriptor tables, task states, page tables, code and data, which are put right again
//! after each input.

use abi::mmio;
use core::sync::atomic::Ordering::Relaxed;

use guest32::descriptors::{CODE, CODE64, DATA, USER_CODE, USER_DATA};
use guest32::memory::{Page, peek, store};

use crate::enter::{self, PLAN};
use crate::input::ram_end;
use x86::irq::NONMASKABLE_INTERRUPT_VECTOR;

/// Selectors of [`GDT`] beyond those of the library, whose numbers its own ones have, too.
pub(crate) const USER_CODE64: u16 = 0x30 | 3;
pub(crate) const CODE16: u16 = 0x38;
/// The task register's: what the library has for the second processor, so that this one still knows itself by it.
pub(crate) const TASK: u16 = 0x40;
pub(crate) const DATA16: u16 = 0x50;
/// Where the selectors begin that inputs write at will, and how many bytes of them there are.
pub(crate) const FREE_SELECTORS: u16 = 0x58;
pub(crate) const FREE_SELECTORS_END: u16 = 0x100;

/// Where things are: at 8 MiB and above, as only that is user mode's as well.
pub(crate) const GDT: u32 = 0x80_0000;
pub(crate) const IDT: u32 = 0x80_1000;
pub(crate) const LONG_IDT: u32 = 0x80_2000;
pub(crate) const TSS: u32 = 0x80_3000;
pub(crate) const OTHER_TSS: u32 = TSS + 0x400;
pub(crate) const LONG_TSS: u32 = 0x80_6000;
pub(crate) const LDT: u32 = 0x80_9000;
pub(crate) const PML4: u32 = 0x80_a000;
pub(crate) const PDPT: u32 = 0x80_b000;
/// PDPTEs of PAE, which have no R/W and no U/S.
pub(crate) const PAE_PDPT: u32 = 0x80_c000;
/// Four directories, shared by PAE and long mode.
pub(crate) const DIRECTORIES: u32 = 0x80_d000;
/// The directory of two-level paging.
pub(crate) const DIRECTORY: u32 = 0x81_1000;
/// A table of the last level, of pages from [`DATA_AREA`] on, for inputs that lead to it.
pub(crate) const TABLE: u32 = 0x81_2000;
/// The IDT between inputs, and behind it the one while long mode is left.
const HARNESS_IDT: u32 = 0x81_3000;
const LEAVE_IDT: u32 = HARNESS_IDT + 0x800;
/// Two pages, from the middle of the first of which code runs.
pub(crate) const CODE_AREA: u32 = 0x81_4000;
pub(crate) const STACK_TOP: u32 = 0x81_8000;
/// What user mode's exceptions run on.
const KERNEL_STACK_TOP: u32 = 0x81_a000;
/// Tables of the first 4 MiB: one of two-level paging, and two that PAE and long mode share.
const LOW_TABLE: u32 = 0x81_b000;
const WIDE_LOW_TABLES: u32 = 0x81_c000;
/// What linear addresses stand for that lead nowhere else.
const ELSEWHERE: u32 = 0x40_0000;
const ELSEWHERE_SIZE: u32 = 4 << 20;
/// What virtual-8086 mode has: code, stack and data of real mode.
const VIRTUAL_8086: core::ops::Range<u32> = REAL_CODE_AREA..0x4_0000;
/// Where the image is: read-only.
const IMAGE: core::ops::Range<u32> = 0x10_0000..0x20_0000;
pub(crate) const DATA_AREA: u32 = 0x82_0000;
/// Real mode's code, which is as long; its data.
pub(crate) const REAL_CODE_AREA: u32 = 0x1_0000;
pub(crate) const REAL_DATA: u16 = 0x3000;
/// Where what other code of this guest has below 1 MiB begins.
const LOW_FREE_END: u32 = 0x8000;
/// What is below is the supervisor's alone.
const USER_START: u32 = 8 << 20;

pub(crate) const PRESENT: u32 = 1 << 0;
pub(crate) const TABLE_FLAGS: u32 = 7;
pub(crate) const LARGE: u32 = 1 << 7;

const IST: u32 = 1;
const INT3: u32 = 0xcccc_cccc;

/// A doubleword that an input has before it starts, and that is put right afterwards.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Edit {
    pub(crate) at: u32,
    pub(crate) value: u32,
}

impl Edit {
    /// Makes it, and gives the edit that undoes it.
    pub(crate) fn apply(self) -> Self {
        let before = Self { at: self.at, value: peek(self.at) };
        store(self.at, self.value);
        before
    }
}

/// Builds everything.
pub(crate) fn init() {
    enter::init(HARNESS_IDT, LEAVE_IDT);
    for page in (GDT..DATA_AREA + 0x8000).step_by(4096) {
        Page::new(page).clear();
    }
    // Code that loses its way comes to its end.
    let free = [
        0x500..LOW_FREE_END,
        0x9200..REAL_CODE_AREA,
        REAL_CODE_AREA + 0x2000..0x2_0000,
        0x4_0000..0xa_0000,
        0xc_0000..0x10_0000,
        ELSEWHERE..ELSEWHERE + ELSEWHERE_SIZE,
        0xb0_0000..0xb0_1000,
    ];
    for word in free.into_iter().flat_map(|range| range.step_by(4)) {
        put(word, INT3);
    }
    write_all();
    PLAN.gdtr.set(FREE_SELECTORS_END - 1, GDT);
}

/// Writes everything as it has to be; what is so already stays unwritten, as a write may cost an exit.
pub(crate) fn write_all() {
    write_gdt();
    write_idts();
    write_task_states();
    write_tables();
    enter::write_low();
    for offset in (0..0x2000).step_by(4) {
        put(CODE_AREA + offset, INT3);
        put(REAL_CODE_AREA + offset, INT3);
    }
}

/// Writes `value` unless it is there.
pub(crate) fn put(at: u32, value: u32) {
    if peek(at) != value {
        store(at, value);
    }
}

fn put_wide(at: u32, value: u64) {
    put(at, value as u32);
    put(at + 4, (value >> 32) as u32);
}

fn write_gdt() {
    let flat = |selector: u16, low: u64| put_wide(GDT + u32::from(selector & !3), low);
    flat(CODE, 0x00cf_9b00_0000_ffff);
    flat(DATA, 0x00cf_9300_0000_ffff);
    flat(USER_DATA, 0x00cf_f300_0000_ffff);
    flat(USER_CODE, 0x00cf_fb00_0000_ffff);
    flat(CODE64, 0x00af_9b00_0000_ffff);
    flat(USER_CODE64, 0x00af_fb00_0000_ffff);
    flat(CODE16, 0x0000_9b00_0000_ffff);
    flat(DATA16, 0x0000_9300_0000_ffff);
    // Some of each kind that inputs may load, or change first: segments, an LDT, task states, gates.
    let free = [
        0x00cf_9300_0000_ffff,
        0x0040_f301_0000_0fff,
        system_descriptor(LDT, 0xfff, 0x82),
        0,
        system_descriptor(OTHER_TSS, 0x67, 0x89),
        0,
        u64::from(CODE) << 16
            | 0xec00_0000_0000
            | u64::from(enter::recover() & 0xffff)
            | u64::from(enter::recover() >> 16) << 48,
        u64::from(FREE_SELECTORS + 32) << 16 | 0xe500_0000_0000,
    ];
    for (index, descriptor) in free.into_iter().enumerate() {
        put_wide(GDT + u32::from(FREE_SELECTORS) + 8 * index as u32, descriptor);
    }
}

/// A descriptor of an LDT or a TSS.
const fn system_descriptor(base: u32, limit: u32, kind: u64) -> u64 {
    let (base, limit) = (base as u64, limit as u64);
    limit & 0xffff | (base & 0xff_ffff) << 16 | kind << 40 | (limit >> 16 & 0xf) << 48 | (base >> 24) << 56
}

/// Has the task register's descriptor name the task state of this kind of mode, not busy.
pub(crate) fn write_task_descriptor(is_long: bool) {
    let base = if is_long { LONG_TSS } else { TSS };
    put_wide(GDT + u32::from(TASK), system_descriptor(base, 0x20ff, 0x89));
    put_wide(GDT + u32::from(TASK) + 8, 0);
}

fn write_idts() {
    for vector in 0..256 {
        // User mode may raise breakpoints and a few more.
        let access: u32 = if vector % 5 == 3 { 0xee00 } else { 0x8e00 };
        let gate = |at: u32, handler: u32, selector: u16, access: u32| {
            put(at, u32::from(selector) << 16 | handler & 0xffff);
            put(at + 4, handler & 0xffff_0000 | access);
        };
        gate(IDT + 8 * vector, enter::recover(), CODE, access);
        gate(LONG_IDT + 16 * vector, enter::recover_long(), CODE64, access | IST);
        put_wide(LONG_IDT + 16 * vector + 8, 0);
        let between = if vector == NMI { enter::return_at_once() } else { enter::recover() };
        gate(HARNESS_IDT + 8 * vector, between, CODE, 0x8e00);
    }
    // Only an NMI comes while long mode is left. Its gate in long mode and its gate without do not overlap.
    let gate = |at: u32, handler: u32, selector: u16| {
        put(at, u32::from(selector) << 16 | handler & 0xffff);
        put(at + 4, handler & 0xffff_0000 | 0x8e00);
    };
    gate(LEAVE_IDT + 8 * NMI, enter::return_at_once(), CODE);
    gate(LEAVE_IDT + 16 * NMI, enter::return_at_once_long(), CODE64);
}

const NMI: u32 = NONMASKABLE_INTERRUPT_VECTOR as u32;

fn write_task_states() {
    // The I/O permission bitmap is behind it, with ports that user mode has and others.
    put(TSS + 0x64, 0x68 << 16);
    put(LONG_TSS + 4, KERNEL_STACK_TOP);
    put(LONG_TSS + 0x24, KERNEL_STACK_TOP);
    put(LONG_TSS + 0x64, 0x68 << 16);
}

/// Has what task gates lead to, and the task that comes back from there, go on with the way back.
pub(crate) fn write_tasks(root: u32) {
    for (task, (offset, value)) in
        [TSS, OTHER_TSS].into_iter().flat_map(|task| way_back(root).map(|field| (task, field)))
    {
        put(task + offset, value);
    }
}

fn way_back(root: u32) -> [(u32, u32); 13] {
    [
        (4, KERNEL_STACK_TOP),
        (8, DATA.into()),
        (0x1c, root),
        (0x20, enter::recover()),
        (0x24, 2),
        (0x38, STACK_TOP),
        (0x48, DATA.into()),
        (0x4c, CODE.into()),
        (0x50, DATA.into()),
        (0x54, DATA.into()),
        (0x58, DATA.into()),
        (0x5c, DATA.into()),
        (0x60, 0),
    ]
}

/// Memory and devices one to one, by large pages, and elsewhere memory again, so that a wild pointer ends an input and not the VM.
/// What is below 8 MiB is not user mode's, but for virtual-8086 mode's, and the image is read-only.
fn write_tables() {
    put_wide(PML4, u64::from(PDPT | TABLE_FLAGS));
    for index in 0..4 {
        let directory = u64::from(DIRECTORIES + 4096 * index);
        put_wide(PDPT + 8 * index, directory | u64::from(TABLE_FLAGS));
        put_wide(PAE_PDPT + 8 * index, directory | u64::from(PRESENT));
        put(PAE_PDPT + 32 + 4 * index, 0);
    }
    let low_table = |table: u32| table | TABLE_FLAGS;
    for index in 0..2048 {
        let entry = if index < 2 { low_table(WIDE_LOW_TABLES + 4096 * index) } else { large_entry(index << 21) };
        put_if_other(DIRECTORIES + 8 * index, entry);
        put(DIRECTORIES + 8 * index + 4, 0);
    }
    for index in 0..1024 {
        let entry = if index == 0 { low_table(LOW_TABLE) } else { large_entry(index << 22) };
        put_if_other(DIRECTORY + 4 * index, entry);
        let linear = index << 12;
        let entry = match linear {
            _ if IMAGE.contains(&linear) => linear | PRESENT,
            _ if VIRTUAL_8086.contains(&linear) => linear | TABLE_FLAGS,
            _ => linear | 3,
        };
        put_if_other(LOW_TABLE + 4 * index, entry);
        put_if_other(WIDE_LOW_TABLES + 8 * index, entry);
        put(WIDE_LOW_TABLES + 8 * index + 4, 0);
    }
    // An entry of PAE, and for two-level paging one and a hole.
    for index in 0..512 {
        put_if_other(TABLE + 8 * index, (DATA_AREA + ((index % 8) << 12)) | TABLE_FLAGS);
        put(TABLE + 8 * index + 4, 0);
    }
}

fn large_entry(linear: u32) -> u32 {
    // Memory, and the page of the IOAPIC and the local APIC.
    let is_itself = linear < ram_end() || linear & !0x3f_ffff == mmio::IOAPIC;
    let physical = if is_itself { linear } else { ELSEWHERE | linear & (ELSEWHERE_SIZE - 1) };
    physical | LARGE | if linear < USER_START { 3 } else { TABLE_FLAGS }
}

/// The same as [`put`], for an entry in which the processor may have set the accessed and the dirty bit.
fn put_if_other(at: u32, value: u32) {
    const ACCESSED_DIRTY: u32 = 3 << 5;
    if peek(at) & !ACCESSED_DIRTY != value {
        store(at, value);
    }
}

/// Puts code at `at`, and gives it back to INT3 on drop.
pub(crate) struct Written {
    start: u32,
    end: u32,
}

impl Written {
    pub(crate) fn new(at: u32, bytes: &[u8]) -> Self {
        let (start, end) = (at & !3, (at + bytes.len() as u32).next_multiple_of(4));
        for word in (start..end).step_by(4) {
            let byte = |at_byte: u32| at_byte.checked_sub(at).and_then(|index| bytes.get(index as usize)).copied();
            let bytes = [word, word + 1, word + 2, word + 3].map(|at_byte| byte(at_byte).unwrap_or(0xcc));
            store(word, u32::from_le_bytes(bytes));
        }
        Self { start, end }
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        (self.start..self.end).step_by(4).for_each(|word| store(word, INT3));
    }
}

/// The counters of [`PLAN`] that an input has.
pub(crate) fn plan(field: &core::sync::atomic::AtomicU32, value: u32) {
    field.store(value, Relaxed);
}
