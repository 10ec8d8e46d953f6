//! A cache of walks that repeats a walk cheaply and gives exactly its result.
//!
//! Most exits come from a few instructions: a loop that polls a port, an interrupt handler that writes EOI. Each time
//! the hypervisor needs the bytes at RIP, a walk would read the same four entries and find the same page.
//!
//! A plain cache of translations (a software TLB) would be wrong. Under nested paging the guest changes its tables,
//! runs INVLPG and loads CR3 without an exit, so nothing tells the hypervisor to drop a translation, and it would
//! decode bytes of a page that the guest's processor no longer fetches from.
//!
//! [`FetchCache`] therefore keeps the inputs of a walk with its result: the control registers (and the PDPTEs that the
//! processor holds), the linear page, the privilege, and the address and value of each entry. A walk's result is a
//! function of exactly these. If the registers are unchanged, so is the address of the first entry; if that entry is
//! unchanged, so is the address of the second; and so on down to the page. A hit reads every entry again from the
//! guest's memory and compares it, so it gives what a walk done now would give.
//!
//! A hit saves the checks of a walk and the translation of each guest-physical address to the hypervisor's own address
//! space. That translation may change (a page of the guest is unmapped and later mapped to another frame);
//! [`HandleMem::generation`] tells the cache when it did.

use crate::{Access, AccessKind, Controls, Fault, Features, Mode, Paging, PhysMem, Privilege, WalkStep, WalkSteps};
use addr::{Gpa, Gva, PAGE_SIZE};
use arch::CR0_PG;

/// Guest memory with handles: a handle reads the same guest-physical address again without a lookup.
///
/// A handle is valid as long as [`generation`](Self::generation) is what it was before the handle was made. A load
/// through an older handle may give any value, but it must be safe. The environment provides for that (a kernel enters
/// an RCU read section before it reads the generation, and changes the generation before it unmaps memory).
pub trait HandleMem: PhysMem {
    /// Refers to eight aligned bytes of guest memory.
    type Handle: Copy;
    /// The handle for `at`, a multiple of 8. None if there is no memory at `at`, or if reading it has side effects.
    fn handle(&self, at: Gpa) -> Option<Self::Handle>;
    /// Reads the eight bytes in one piece.
    fn load(&self, handle: Self::Handle) -> u64;
    /// Reads the four bytes, the lowest first, that begin `offset` bytes further on and end in the same 4 KiB page.
    fn load_u32(&self, handle: Self::Handle, offset: u64) -> u32;
    /// A number that changes whenever a guest-physical address gets or loses its memory.
    fn generation(&self) -> u64;
}

/// The last walks of one vCPU's instruction fetches, with their inputs. [`crate::cache`] explains why hits are exact.
///
/// All calls must give the same [`Features`] and memory, and either all or none give PDPTEs. Walks of five levels are
/// not kept.
#[derive(Clone, Debug)]
pub struct FetchCache<S> {
    /// The most recently used first.
    kept: [Kept<S>; WALKS],
}

/// The part of [`Paging`] that fetches depend on. The parts that only a walk needs are references, which saves copies.
#[derive(Clone, Copy, Debug)]
pub struct PagingRef<'a> {
    /// Without the bits of CR0 other than PG: guests toggle WP and TS often, and fetches do not depend on them.
    controls: Controls,
    pdptes: Option<&'a [u64; 4]>,
    features: &'a Features,
}

impl<'a> PagingRef<'a> {
    /// For a guest with these registers. `pdptes` are those that the processor holds, if it does.
    #[inline(always)]
    pub const fn new(controls: Controls, pdptes: Option<&'a [u64; 4]>, features: &'a Features) -> Self {
        Self { controls: Controls { cr0: controls.cr0 & CR0_PG, ..controls }, pdptes, features }
    }

    /// The value that a walk for `linear` starts from: CR3, or the PDPTE for the address.
    #[inline]
    const fn start(&self, linear: u64) -> u64 {
        match self.pdptes {
            Some(pdptes) => pdptes[(linear >> 30 & 3) as usize],
            None => self.controls.cr3,
        }
    }
}

impl<'a> From<&'a Paging> for PagingRef<'a> {
    #[inline]
    fn from(paging: &'a Paging) -> Self {
        Self::new(paging.controls, paging.pdptes.as_ref(), &paging.features)
    }
}

/// Number of walks kept: enough for the pages of an interrupt's sender, its handler and the loop that waits for it.
const WALKS: usize = 4;

/// Entries of a kept walk. A shorter walk repeats its last entry, so that a hit needs no loop counter.
const ENTRIES: usize = 4;

#[derive(Clone, Debug)]
enum Kept<S> {
    Nothing,
    /// Without paging there are no entries.
    Flat(Known<S>),
    Walk([(S, u64); ENTRIES], Known<S>),
}

#[derive(Clone, Debug)]
struct Known<S> {
    key: u64,
    /// `cr3` holds [`PagingRef::start`] instead of CR3.
    controls: Controls,
    generation: u64,
    /// The page's first eight bytes.
    page: S,
}

/// The address of the linear page, with the privilege in the offset bits.
#[inline(always)]
const fn key(gva: Gva, privilege: Privilege) -> u64 {
    let privilege = match privilege {
        Privilege::User => 0,
        Privilege::Supervisor { ac: false } => 1,
        Privilege::Supervisor { ac: true } => 2,
    };
    gva.align_down(PAGE_SIZE).raw() | privilege
}

impl<S: Copy> Known<S> {
    #[inline(always)]
    fn is_still_so<M: HandleMem<Handle = S>>(&self, mem: &M, paging: &PagingRef<'_>, key: u64) -> bool {
        let (kept, controls) = (&self.controls, &paging.controls);
        // One branch for all comparisons: they nearly always succeed, and a branch for each costs more than it saves.
        let changed = (self.key ^ key)
            | (self.generation ^ mem.generation())
            | (kept.cr0 ^ controls.cr0)
            | (kept.cr3 ^ paging.start(key))
            | (kept.cr4 ^ controls.cr4)
            | (kept.efer ^ controls.efer);
        changed == 0
    }
}

impl<S: Copy> Kept<S> {
    /// The handle of the page, if this walk is for `key` and all its inputs are unchanged.
    #[inline(always)]
    fn page<M: HandleMem<Handle = S>>(&self, mem: &M, paging: &PagingRef<'_>, key: u64) -> Option<S> {
        let (entries, known) = match self {
            Self::Nothing => return None,
            Self::Flat(known) => (&[][..], known),
            Self::Walk(entries, known) => (&entries[..], known),
        };
        let same =
            known.is_still_so(mem, paging, key) && entries.iter().all(|&(handle, value)| mem.load(handle) == value);
        same.then_some(known.page)
    }
}

impl<S: Copy> Default for FetchCache<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: Copy> FetchCache<S> {
    /// An empty cache.
    pub const fn new() -> Self {
        Self { kept: [const { Kept::Nothing }; WALKS] }
    }

    /// The four bytes of an instruction at `gva`, little-endian. None if they lie in two pages or the fetch faults; the
    /// caller then uses [`fetch`](crate::fetch).
    #[inline(always)]
    pub fn fetch_u32<M: HandleMem<Handle = S>>(
        &mut self,
        mem: &M,
        paging: PagingRef<'_>,
        gva: Gva,
        privilege: Privilege,
    ) -> Option<u32> {
        let page = self.page(mem, paging, gva, privilege, 4)?;
        Some(mem.load_u32(page, gva.page_offset()))
    }

    /// As [`fetch_u32`](Self::fetch_u32), eight bytes.
    #[inline(always)]
    pub fn fetch_u64<M: HandleMem<Handle = S>>(
        &mut self,
        mem: &M,
        paging: PagingRef<'_>,
        gva: Gva,
        privilege: Privilege,
    ) -> Option<u64> {
        let page = self.page(mem, paging, gva, privilege, 8)?;
        let half = |offset| u64::from(mem.load_u32(page, gva.page_offset() + offset));
        Some(half(0) | (half(4) << 32))
    }

    /// The handle of the page of `gva`, if `bytes` bytes from `gva` on lie in it.
    #[inline(always)]
    fn page<M: HandleMem<Handle = S>>(
        &mut self,
        mem: &M,
        paging: PagingRef<'_>,
        gva: Gva,
        privilege: Privilege,
        bytes: u64,
    ) -> Option<S> {
        if gva.page_offset() > PAGE_SIZE - bytes {
            return None;
        }
        if let kept @ Kept::Walk(..) = &self.kept[0]
            && let Some(page) = kept.page(mem, &paging, key(gva, privilege))
        {
            return Some(page);
        }
        // The slow path gets a reference to a copy, so that the compiler keeps the original in registers on the fast
        // path.
        let paging = PagingRef { ..paging };
        self.page_slow(mem, &paging, gva, privilege)
    }

    #[cold]
    fn page_slow<M: HandleMem<Handle = S>>(
        &mut self,
        mem: &M,
        paging: &PagingRef<'_>,
        gva: Gva,
        privilege: Privilege,
    ) -> Option<S> {
        let key = key(gva, privilege);
        for index in 0..WALKS {
            if let Some(page) = self.kept[index].page(mem, paging, key) {
                self.kept.swap(0, index);
                return Some(page);
            }
        }
        self.walk(mem, paging, gva, privilege).ok()?
    }

    /// Does a whole walk and keeps it if possible. Gives the handle of the page, or None if the page has no memory.
    fn walk<M: HandleMem<Handle = S>>(
        &mut self,
        mem: &M,
        by: &PagingRef<'_>,
        gva: Gva,
        privilege: Privilege,
    ) -> Result<Option<S>, Fault> {
        let PagingRef { controls, pdptes, features } = *by;
        let (pdptes, features) = (pdptes.copied(), *features);
        // Read before the walk: if memory moves during the walk, the generation kept is already outdated, and no hit
        // uses a stale handle.
        let generation = mem.generation();
        let mut steps = WalkSteps::new();
        let translation = crate::walk(
            mem,
            &Paging { controls, pdptes, features },
            gva,
            Access { kind: AccessKind::Fetch, privilege },
            &mut steps,
        )?;
        let Some(page) = mem.handle(translation.gpa.align_down(PAGE_SIZE)) else { return Ok(None) };
        let key = key(gva, privilege);
        let known = Known { key, controls: Controls { cr3: by.start(key), ..controls }, generation, page };
        self.kept.rotate_right(1);
        self.kept[0] = match controls.mode() {
            Mode::Off => Kept::Flat(known),
            mode => match entries(mem, mode, steps.as_slice()) {
                Some(entries) => Kept::Walk(entries, known),
                None => Kept::Nothing,
            },
        };
        Ok(Some(page))
    }
}

/// Handles and values of the entries that a walk read. None if there are more than [`ENTRIES`], if one has no handle,
/// or if one has changed since the walk.
fn entries<M: HandleMem>(mem: &M, mode: Mode, steps: &[WalkStep]) -> Option<[(M::Handle, u64); ENTRIES]> {
    let mut kept = [handle_and_value(mem, mode, steps.last()?)?; ENTRIES];
    let (_, above) = steps.split_last()?;
    for (index, step) in above.iter().enumerate() {
        *kept.get_mut(index)? = handle_and_value(mem, mode, step)?;
    }
    (steps.len() <= ENTRIES).then_some(kept)
}

/// The handle of an entry and the eight bytes there. A 4-byte entry is kept with its neighbour: a change of either is a
/// miss. None if the entry has changed since the walk.
fn handle_and_value<M: HandleMem>(mem: &M, mode: Mode, step: &WalkStep) -> Option<(M::Handle, u64)> {
    let handle = mem.handle(step.at.align_down(8))?;
    let value = mem.load(handle);
    let entry = match mode {
        Mode::Bits32 => (value >> ((step.at.raw() & 4) * 8)) & 0xffff_ffff,
        _ => value,
    };
    (entry == step.entry).then_some((handle, value))
}
