//! What both shadows do first with a page fault: the guest's own tables are asked.

use crate::{Backing, Outcome, Reason, Registers};
use addr::{Gpa, Gva, PageSize};
use mmu::Rights;
use walk::{Access, Fault, Kind, Mode, PhysMem, Privilege, SetAccessedDirty, Steps, missing, trace};

/// A page that the access may reach.
pub(crate) struct Resolved {
    /// The very byte.
    pub(crate) gpa: Gpa,
    /// The guest's page; the largest where the guest has no paging.
    pub(crate) size: PageSize,
    /// What an entry for it gives, at most. None: no entry can give what the access needs ([`Reason::WriteProtect`]).
    pub(crate) rights: Option<Rights>,
    /// The guest's entries that say so.
    pub(crate) steps: Steps,
}

/// Walks the guest's tables as the processor does for this access, accessed and dirty bits included.
pub(crate) fn resolve<M: PhysMem>(
    mem: &M,
    registers: &Registers,
    gva: Gva,
    access: Access,
) -> Result<Resolved, Outcome> {
    let found = match missing(mem, registers.paging(), gva, access) {
        Some(fault) => Err(fault),
        None => trace(mem, registers.paging(), gva, access, SetAccessedDirty::Yes),
    };
    let (found, steps) = found.map_err(|fault| match fault {
        Fault::Page { error_code, address } => Outcome::Inject { error_code, address },
        Fault::Unbacked(gpa) => Outcome::Unbacked(gpa),
        // The first is long mode's alone.
        Fault::NonCanonical | Fault::Contended => Outcome::Retry,
    })?;
    let rights = rights(registers, found.rights, steps.is_dirty(), access);
    let size = if registers.paging().controls.mode() == Mode::Off { PageSize::Size4M } else { found.size };
    Ok(Resolved { gpa: found.gpa, size, rights, steps })
}

impl Resolved {
    /// What an entry for the page gives, which is in `backing`; or why the access has to be emulated.
    pub(crate) fn entry(&self, backing: Option<Backing>, write: bool) -> Result<(Backing, Rights), Outcome> {
        let emulate = |reason| Outcome::Emulate { gpa: self.gpa, reason };
        let rights = self.rights.ok_or(emulate(Reason::WriteProtect))?;
        let backing = backing.ok_or(emulate(Reason::Mmio))?;
        if write && !backing.write {
            return Err(emulate(Reason::ReadOnly));
        }
        Ok((backing, Rights { write: rights.write && backing.write, ..rights }))
    }
}

/// What an entry may give under a processor that has CR0.WP set, so that it gives no more than the guest's tables do.
///
/// A page that the supervisor may write only because the guest's CR0.WP is clear becomes a page of the supervisor's alone,
/// until the user's next access. With SMEP it can't be executed then; with SMAP no entry does, as it could not tell whether
/// EFLAGS.AC is set.
fn rights(registers: &Registers, page: walk::Rights, dirty: bool, access: Access) -> Option<Rights> {
    let supervisor_writes = access.kind == Kind::Write && access.privilege != Privilege::User;
    if page.writable || registers.wp() || !supervisor_writes {
        return Some(Rights { write: page.writable && dirty, execute: page.executable, user: page.user });
    }
    let was_user = page.user;
    let allowed = !(was_user && registers.smap());
    allowed.then_some(Rights { write: true, execute: page.executable && !(was_user && registers.smep()), user: false })
}
