//! The first part of a page fault, common to both shadows: the walk of the guest's own tables.

use crate::{Backing, BackingPage, FaultOutcome, Reason, Registers};
use addr::{Gpa, Gva, PageSize};
use mmu::Rights;
use walk::{Access, AccessKind, Fault, Mode, PhysMem, SetAccessedDirty, WalkSteps, missing, trace};

/// The translation of an access that the guest's tables allow.
pub(crate) struct Resolved {
    /// The guest-physical address of the access.
    pub(crate) gpa: Gpa,
    /// The size of the guest's page; the largest if the guest has no paging.
    pub(crate) size: PageSize,
    /// The most rights that a shadow entry may give. None: no entry can allow the access ([`Reason::WriteProtect`]).
    pub(crate) rights: Option<Rights>,
    /// The guest's entries that the walk has read.
    pub(crate) steps: WalkSteps,
}

/// Walks the guest's tables as the processor does for this access, and sets accessed and dirty bits there.
pub(crate) fn resolve<M: PhysMem>(
    mem: &M,
    registers: &Registers,
    gva: Gva,
    access: Access,
) -> Result<Resolved, FaultOutcome> {
    let found = match missing(mem, registers.paging(), gva, access) {
        Some(fault) => Err(fault),
        None => trace(mem, registers.paging(), gva, access, SetAccessedDirty::Yes),
    };
    let (found, steps) = found.map_err(|fault| match fault {
        Fault::Page { error_code, address } => FaultOutcome::Inject { error_code, address },
        Fault::Unbacked(gpa) => FaultOutcome::Unbacked(gpa),
        // `NonCanonical` happens in long mode only.
        Fault::NonCanonical | Fault::Contended => FaultOutcome::Retry,
    })?;
    let rights = rights(registers, found.rights, steps.is_dirty(), access);
    let size = if registers.paging().controls.mode() == Mode::Off { PageSize::Size4M } else { found.size };
    Ok(Resolved { gpa: found.gpa, size, rights, steps })
}

impl Resolved {
    /// The frame and the rights of a shadow entry for the page, whose memory is `backing`; or why the access must be emulated.
    pub(crate) fn entry(&self, backing: Backing, write: bool) -> Result<(BackingPage, Rights), FaultOutcome> {
        let emulate = |reason| FaultOutcome::Emulate { gpa: self.gpa, reason };
        let rights = self.rights.ok_or(emulate(Reason::WriteProtect))?;
        let backing = match backing {
            Backing::Page(page) => page,
            Backing::Pending => return Err(FaultOutcome::Retry),
            Backing::None => return Err(emulate(Reason::Mmio)),
        };
        if write && !backing.write {
            return Err(emulate(Reason::ReadOnly));
        }
        Ok((backing, Rights { write: rights.write && backing.write, ..rights }))
    }
}

/// The rights of a shadow entry on a processor with CR0.WP set, which must not allow more than the guest's tables.
///
/// Only the supervisor may write a read-only page, and only while the guest's CR0.WP is clear. The entry becomes a supervisor's one
/// then, until the user's next access (as in KVM, `FNAME(fetch)`). With SMEP it is not executable. With SMAP no entry can express
/// this, because the access depends on EFLAGS.AC.
fn rights(registers: &Registers, page: walk::Rights, dirty: bool, access: Access) -> Option<Rights> {
    if page.writable || access.kind != AccessKind::Write {
        return Some(Rights { write: page.writable && dirty, execute: page.executable, user: page.user });
    }
    let was_user = page.user;
    let allowed = !(was_user && registers.smap());
    allowed.then_some(Rights { write: true, execute: page.executable && !(was_user && registers.smep()), user: false })
}
