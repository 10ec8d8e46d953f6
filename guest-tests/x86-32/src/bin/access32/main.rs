//! Every access to pages of every kind: is there a fault, with which error code, CR2, and what do accessed and dirty bits say
//! afterwards, compared with a model of the manual's rules (Intel SDM vol. 3, sections 4.6 to 4.8). Each access is the first to
//! entries just written; then, where any is allowed, each comes after each other one, and CR0.WP is switched in between.
//!
//! `step=N` takes each N-th combination alone, and `from=M` begins with the M-th.
#![no_std]
#![no_main]

mod combination;
mod model;

use abi::options::guest::key;
use combination::{Combination, Entries, Flags};
use guest32::boot::Boot;
use guest32::exit::GuestStatus;
use guest32::interrupts::{Fault, PAGE_FAULT, SOFTWARE, expect_fault};
use guest32::ktap::{self, Case, Outcome};
use guest32::memory::{self, Page, Pages};
use guest32::paging::{self, ACCESSED, Entry, LARGE, Mode, PRESENT, Space, USER};
use guest32::{check, processor, skip_unless, user};
use model::{Access, Controls, Expected, Kind};

guest32::main!(main);

/// The linear address that is accessed: the first of an entry of the page directory.
const AT: u32 = 1 << 30;
/// Where user mode's code is, when it is the data that is accessed.
const USER_CODE: u32 = AT + (16 << 20);
/// A large page of either kind, and the small one that entries of page tables lead to.
const FRAME: u32 = memory::START;
const TABLES: u32 = memory::START + (4 << 20);

/// Offsets in the page: where the supervisor's fetch comes back, and the user's.
const RETURN: u32 = 0;
const GIVE_UP: u32 = 16;
/// Offsets of user mode's code.
const LOAD: u32 = 0;
const STORE: u32 = 16;

/// What the page begins with, and what is written there.
const RET: u8 = 0xc3;

struct Bench {
    step: usize,
    from: usize,
}

fn main(boot: &Boot) -> GuestStatus {
    let bench = Bench { step: boot.word(key::STEP).unwrap_or(1).max(1), from: boot.word(key::FROM).unwrap_or(0) };
    let page = Page::new(FRAME);
    page.clear();
    // RET; INT 0x80.
    page.write(RETURN as usize, &[RET]);
    page.write(GIVE_UP as usize, &[0xcd, 0x80]);
    ktap::run(&bench, CASES)
}

macro_rules! cases {
    ($($name:ident = $mode:ident $nxe:literal $wp:literal $smep:literal;)+) => {
        const CASES: &[Case<Bench>] = &[$(Case { name: stringify!($name), run: $name }),+];
        $(fn $name(bench: &Bench) -> Outcome {
            run(bench, Mode::$mode, Controls { nxe: $nxe, wp: $wp, smep: $smep })
        })+
    };
}

cases! {
    two_level = TwoLevel false false false;
    two_level_wp = TwoLevel false true false;
    two_level_smep = TwoLevel false false true;
    two_level_wp_smep = TwoLevel false true true;
    pae = Pae false false false;
    pae_wp = Pae false true false;
    pae_smep = Pae false false true;
    pae_wp_smep = Pae false true true;
    pae_nx = Pae true false false;
    pae_nx_wp = Pae true true false;
    pae_nx_smep = Pae true false true;
    pae_nx_wp_smep = Pae true true true;
}

/// The entries of the page that is accessed.
struct Target {
    mode: Mode,
    pde: Entry,
    /// In the table that `pde` leads to, if it is no large page's.
    pte: Entry,
    table: u32,
    /// What error codes have for a reserved bit.
    reserved: u32,
}

fn run(bench: &Bench, mode: Mode, controls: Controls) -> Outcome {
    skip_unless!(!controls.smep || processor::has_smep(), "no SMEP");
    skip_unless!(!controls.nxe || processor::has_nx(), "no NX");
    if processor::has_nx() {
        processor::set_nx(controls.nxe);
    }
    let pages = &mut Pages::from(TABLES);
    let space = Space::new(mode, pages);
    let code = pages.take();
    // MOV EAX, [ECX]; INT 0x80. MOV BYTE PTR [ECX], RET; INT 0x80.
    code.write(LOAD as usize, &[0x8b, 0x01, 0xcd, 0x80]);
    code.write(STORE as usize, &[0xc6, 0x01, RET, 0xcd, 0x80]);
    space.pte(USER_CODE, pages).set(u64::from(code.address()) | PRESENT | USER | ACCESSED);
    let table = pages.take();
    let (pde, pte) = (space.pde(AT), Entry::of(table, 0, mode));
    space.enter();
    let target = Target { mode, pde, pte, table: table.address(), reserved: reserved_code(pde, mode) };
    paging::set_write_protect(controls.wp);
    if controls.smep {
        paging::set_smep(true);
    }
    let outcome = target.check_all(bench, controls);
    if controls.smep {
        paging::set_smep(false);
    }
    paging::set_write_protect(false);
    paging::leave();
    outcome
}

impl Target {
    fn check_all(&self, bench: &Bench, controls: Controls) -> Outcome {
        for combination in Combination::all(self.mode).skip(bench.from).step_by(bench.step) {
            for access in Access::ALL {
                self.set(combination);
                self.check(combination, access, controls)?;
            }
            if Access::ALL.into_iter().any(|access| self.expect(combination, access, controls).error_code.is_none()) {
                self.check_in_turn(combination, controls)?;
            }
        }
        Ok(())
    }

    /// What an access leaves behind gives the next one no right, and keeps none from it.
    fn check_in_turn(&self, combination: Combination, controls: Controls) -> Outcome {
        self.set(combination);
        for access in Access::all_pairs() {
            self.check(combination, access, controls)?;
        }
        if !controls.wp {
            self.set(combination);
            for wp in [false, true, false] {
                paging::set_write_protect(wp);
                for access in Access::ALL {
                    self.check(combination, access, Controls { wp, ..controls })?;
                }
            }
        }
        Ok(())
    }

    fn set(&self, combination: Combination) {
        let Entries { pde, pte } = combination.entries(self.mode, FRAME, self.table);
        self.pde.set(pde);
        self.pte.set(pte);
        processor::invlpg(AT);
    }

    fn entries(&self) -> Entries {
        Entries { pde: self.pde.get(), pte: self.pte.get() }
    }

    fn expect(&self, combination: Combination, access: Access, controls: Controls) -> Expected {
        model::expect(self.mode, combination, access, controls, self.reserved)
    }

    fn check(&self, combination: Combination, access: Access, controls: Controls) -> Outcome {
        let before = self.entries();
        let fault = perform(access);
        let after = self.entries();
        let expected = self.expect(combination, access, controls);
        let seen = fault.filter(|fault| fault.frame.vector != SOFTWARE);
        let why = || Mismatch { combination, access, before, after, seen, expected };
        match (seen, expected.error_code) {
            (None, None) => {}
            (Some(fault), Some(code)) => {
                check!(fault.frame.vector == PAGE_FAULT && fault.frame.error == code, "{:x?}", why());
                let address = match access.kind {
                    Kind::Fetch => AT + access.fetch_offset(),
                    Kind::Read | Kind::Write => AT,
                };
                check!(fault.cr2 == address, "{:x?}", why());
            }
            _ => check!(false, "{:x?}", why()),
        }
        let large = before.pde & LARGE != 0;
        check!(expected.allows(before.pde, after.pde, large), "page directory: {:x?}", why());
        check!(large || expected.allows(before.pte, after.pte, true), "page table: {:x?}", why());
        Ok(())
    }
}

/// All that is known of a combination that came out wrong.
#[derive(Debug)]
#[expect(dead_code, reason = "read by people, when it is printed")]
struct Mismatch {
    combination: Combination,
    access: Access,
    before: Entries,
    after: Entries,
    seen: Option<Fault>,
    expected: Expected,
}

/// What this processor's error codes have for a reserved bit: P and RSVD, says the manual. QEMU's TCG leaves P out.
fn reserved_code(pde: Entry, mode: Mode) -> u32 {
    let flags = Flags { present: true, large: true, reserved: true, ..Flags::default() };
    pde.set(Combination { pde: flags, pte: Flags::default() }.entries(mode, FRAME, 0).pde);
    processor::invlpg(AT);
    match expect_fault(|| memory::load(AT)) {
        Some(Fault { frame, .. }) if frame.error == model::RESERVED => model::RESERVED,
        _ => model::PRESENT | model::RESERVED,
    }
}

impl Access {
    const fn fetch_offset(self) -> u32 {
        if self.user { GIVE_UP } else { RETURN }
    }
}

fn perform(access: Access) -> Option<Fault> {
    match (access.user, access.kind) {
        (true, Kind::Read) => Some(user::run(USER_CODE + LOAD, AT)),
        (true, Kind::Write) => Some(user::run(USER_CODE + STORE, AT)),
        (true, Kind::Fetch) => Some(user::run(AT + GIVE_UP, 0)),
        (false, Kind::Read) => expect_fault(|| memory::load(AT)),
        (false, Kind::Write) => expect_fault(|| memory::store(AT, RET.into())),
        (false, Kind::Fetch) => expect_fault(|| _ = memory::call(AT + RETURN)),
    }
}
