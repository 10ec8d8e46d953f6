//! What the manual says.

use arch::page_fault::{FETCH, USER, WRITE};
pub(crate) use arch::page_fault::{PRESENT, RESERVED};

use crate::combination::{Combination, Flags};
use guest32::paging::{ACCESSED, DIRTY, Mode};

/// What an access does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Read,
    Write,
    Fetch,
}

/// An access, and whose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Access {
    pub(crate) kind: Kind,
    pub(crate) user: bool,
}

impl Access {
    pub(crate) const ALL: [Self; 6] = [
        Self { kind: Kind::Read, user: false },
        Self { kind: Kind::Write, user: false },
        Self { kind: Kind::Fetch, user: false },
        Self { kind: Kind::Read, user: true },
        Self { kind: Kind::Write, user: true },
        Self { kind: Kind::Fetch, user: true },
    ];

    /// So many that each follows on each other one.
    pub(crate) fn all_pairs() -> impl Iterator<Item = Self> {
        let all = 0..Self::ALL.len();
        let there_and_back = all.clone().flat_map(move |one| (one + 1..all.end).flat_map(move |other| [one, other]));
        there_and_back.chain([0]).map(|index| Self::ALL[index])
    }
}

/// What the registers say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Controls {
    pub(crate) nxe: bool,
    pub(crate) wp: bool,
    pub(crate) smep: bool,
}

/// What has to come of an access.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    /// None: no fault.
    pub(crate) error_code: Option<u32>,
    write: bool,
}

/// Where a walk ends before its page.
enum End {
    NotPresent,
    Reserved,
}

fn step(flags: Flags, controls: Controls) -> Result<(), End> {
    match flags {
        Flags { present: false, .. } => Err(End::NotPresent),
        Flags { reserved: true, .. } => Err(End::Reserved),
        Flags { no_execute: true, .. } if !controls.nxe => Err(End::Reserved),
        _ => Ok(()),
    }
}

/// `reserved`: what error codes have for a reserved bit.
pub(crate) fn expect(
    mode: Mode,
    combination: Combination,
    access: Access,
    controls: Controls,
    reserved: u32,
) -> Expected {
    let Combination { pde, pte } = combination;
    let tells_fetches = controls.smep || mode == Mode::Pae && controls.nxe;
    let code = if access.kind == Kind::Write { WRITE } else { 0 }
        | if access.user { USER } else { 0 }
        | if access.kind == Kind::Fetch && tells_fetches { FETCH } else { 0 };
    let walk = step(pde, controls).and_then(|()| if pde.large { Ok(()) } else { step(pte, controls) });
    let levels = if pde.large { [pde, pde] } else { [pde, pte] };
    let user = levels.iter().all(|flags| flags.user);
    let writable = levels.iter().all(|flags| flags.writable);
    let executable = !levels.iter().any(|flags| flags.no_execute);
    let allowed = match (access.user, access.kind) {
        (true, Kind::Read) => user,
        (true, Kind::Write) => user && writable,
        (true, Kind::Fetch) => user && executable,
        (false, Kind::Read) => true,
        (false, Kind::Write) => writable || !controls.wp,
        (false, Kind::Fetch) => executable && !(user && controls.smep),
    };
    let error_code = match walk {
        Err(End::NotPresent) => Some(code),
        Err(End::Reserved) => Some(code | reserved),
        Ok(()) if !allowed => Some(code | PRESENT),
        Ok(()) => None,
    };
    Expected { error_code, write: access.kind == Kind::Write }
}

impl Expected {
    /// Whether an entry may have come from `before` to `after`. `leaf`: it maps a page, and its dirty bit counts.
    ///
    /// Of a walk that ends in a fault the processor may note the entries on the way as accessed, and may not.
    pub(crate) fn allows(self, before: u64, after: u64, leaf: bool) -> bool {
        let dirty = if leaf && self.write { DIRTY } else { 0 };
        match self.error_code {
            None => after == before | ACCESSED | dirty,
            Some(_) => after == before || !leaf && after == before | ACCESSED,
        }
    }
}
