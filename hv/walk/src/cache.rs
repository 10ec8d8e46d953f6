//! The same walk again, cheap and exact.
//!
//! Exits come from few places: a loop that polls a port, an interrupt handler that writes EOI. Each time the hypervisor
//! needs the bytes at RIP, it would read the same four entries and get the same page.
//!
//! A plain cache of translations (a software TLB) would be wrong. Under nested paging the guest changes its tables, runs
//! INVLPG and loads CR3 without an exit, so nothing tells the hypervisor to drop a translation, and it would decode bytes
//! of a page that the guest's processor no longer fetches from.
//!
//! [`FetchCache`] therefore keeps not the answer alone, but what the answer depends on: the control registers (and PDPTEs that
//! the processor holds), the linear page, the privilege, and each entry's place and value. What a walk gives is a function of exactly these. If the registers
//! are as before, the first entry's place is as before; if it still holds the same value, so is the place of the second;
//! and so on down to the page. So when each place still holds what it held, a walk done now would read the same entries
//! and come to the same end; and a hit reads every one of them again, as a walk would, from the guest's memory as it is.
//!
//! What is saved is the work between the reads: turning each guest-physical address into a place in the hypervisor's own
//! address space, and the checks. That turning is the environment's, and may change (a page of the guest is taken away and
//! comes back elsewhere). For that there is [`SlotMem::generation`].

use crate::mode::CR0_PG;
use crate::{Access, Controls, Fault, Features, Kind, Mode, Paging, PhysMem, Privilege, Step, Steps};
use addr::{Gpa, Gva, PAGE_SIZE};

/// Guest memory with handles, so that the same place can be read again without looking up its address.
///
/// A handle is good for as long as [`generation`](Self::generation) stays what it was before the handle was made. To
/// load through an older one must still be safe, whatever it gives; that is the environment's to see to (for a kernel:
/// by entering an RCU read section before asking for the generation, and changing it before memory is unmapped).
pub trait SlotMem: PhysMem {
    /// A place of eight aligned bytes of guest memory.
    type Slot: Copy;
    /// The place of `at`, a multiple of 8. None if there is no memory, or reading it has effects.
    fn slot(&self, at: Gpa) -> Option<Self::Slot>;
    /// Reads the eight bytes in one piece.
    fn load(&self, slot: Self::Slot) -> u64;
    /// Reads the four bytes, the lowest first, that begin `offset` bytes further on and end in the same 4 KiB page.
    fn load_u32(&self, slot: Self::Slot, offset: u64) -> u32;
    /// A number that changes whenever a guest-physical address gets or loses its memory.
    fn generation(&self) -> u64;
}

/// The last walks that a vCPU's instruction fetches needed, and what they depended on. See [`crate::cache`] for why they are
/// exact.
///
/// It belongs to one vCPU: [`Features`] and the memory given must be the same each time, and PDPTEs are either
/// always held or never. Walks of five levels are not kept, but done each time.
#[derive(Clone, Debug)]
pub struct FetchCache<S> {
    /// The first is what was used last.
    kept: [Kept<S>; WALKS],
}

/// What of [`Paging`] fetches depend on; what is seldom asked for stays where it is.
#[derive(Clone, Copy, Debug)]
pub struct PagingRef<'a> {
    /// Of CR0 there is PG alone: systems toggle WP and TS, and no fetch asks for them.
    controls: Controls,
    pdptes: Option<&'a [u64; 4]>,
    features: &'a Features,
}

impl<'a> PagingRef<'a> {
    /// Of a guest with these registers, whose PDPTEs the processor holds if they are given.
    #[inline(always)]
    pub const fn new(controls: Controls, pdptes: Option<&'a [u64; 4]>, features: &'a Features) -> Self {
        Self { controls: Controls { cr0: controls.cr0 & CR0_PG, ..controls }, pdptes, features }
    }

    /// Where a walk for `linear` starts: at CR3, or at the one PDPTE that it needs.
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

/// As many pages as code may go around in between two exits: an interrupt's sender, its handler, the loop that waits for it.
const WALKS: usize = 4;

/// Four levels at most: a shorter walk repeats its last entry, so that a hit compares four times without counting.
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
    /// With the walk's start in CR3's place.
    controls: Controls,
    generation: u64,
    /// The page's first bytes.
    page: S,
}

/// The linear page, and in its offset bits the privilege.
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
    fn is_still_so<M: SlotMem<Slot = S>>(&self, mem: &M, paging: &PagingRef<'_>, key: u64) -> bool {
        let (kept, controls) = (&self.controls, &paging.controls);
        // All at once: it nearly always is, and a jump for each would cost more than it saves.
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
    /// The place of the page, if it is that of `key` and a walk done now would come to it.
    #[inline(always)]
    fn page<M: SlotMem<Slot = S>>(&self, mem: &M, paging: &PagingRef<'_>, key: u64) -> Option<S> {
        let (entries, known) = match self {
            Self::Nothing => return None,
            Self::Flat(known) => (&[][..], known),
            Self::Walk(entries, known) => (&entries[..], known),
        };
        let same = known.is_still_so(mem, paging, key) && entries.iter().all(|&(slot, value)| mem.load(slot) == value);
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

    /// The first four bytes at `gva`, an instruction's, the lowest first. None if they are not all to be had at once:
    /// they lie in two pages, or the fetch faults. [`fetch`](crate::fetch) then tells more.
    #[inline(always)]
    pub fn fetch_u32<M: SlotMem<Slot = S>>(
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
    pub fn fetch_u64<M: SlotMem<Slot = S>>(
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

    /// The place of the page of `gva`, if `bytes` bytes from there on lie in it.
    #[inline(always)]
    fn page<M: SlotMem<Slot = S>>(
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
        // A copy, so that the other is never referred to, and stays in registers on the way that is short.
        let paging = PagingRef { ..paging };
        self.page_slow(mem, &paging, gva, privilege)
    }

    #[cold]
    fn page_slow<M: SlotMem<Slot = S>>(
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

    /// A whole walk, kept for the next time if it can be; and the place of the page, if it has one.
    fn walk<M: SlotMem<Slot = S>>(
        &mut self,
        mem: &M,
        by: &PagingRef<'_>,
        gva: Gva,
        privilege: Privilege,
    ) -> Result<Option<S>, Fault> {
        let PagingRef { controls, pdptes, features } = *by;
        let (pdptes, features) = (pdptes.copied(), *features);
        // Before the walk: should memory move meanwhile, the number kept is already out of date.
        let generation = mem.generation();
        let mut steps = Steps::new();
        let translation = crate::walk(
            mem,
            &Paging { controls, pdptes, features },
            gva,
            Access { kind: Kind::Fetch, privilege },
            &mut steps,
        )?;
        let Some(page) = mem.slot(translation.gpa.align_down(PAGE_SIZE)) else { return Ok(None) };
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

/// Places and values of what a walk read. None if it read too much, a place can't be had, or an entry changed meanwhile.
fn entries<M: SlotMem>(mem: &M, mode: Mode, steps: &[Step]) -> Option<[(M::Slot, u64); ENTRIES]> {
    let mut kept = [place(mem, mode, steps.last()?)?; ENTRIES];
    let (_, above) = steps.split_last()?;
    for (index, step) in above.iter().enumerate() {
        *kept.get_mut(index)? = place(mem, mode, step)?;
    }
    (steps.len() <= ENTRIES).then_some(kept)
}

/// Where an entry is, and the eight bytes there. A 4-byte entry is kept with its neighbour: a change of either drops it.
fn place<M: SlotMem>(mem: &M, mode: Mode, step: &Step) -> Option<(M::Slot, u64)> {
    let slot = mem.slot(step.at.align_down(8))?;
    let value = mem.load(slot);
    let entry = match mode {
        Mode::Bits32 => (value >> ((step.at.raw() & 4) * 8)) & 0xffff_ffff,
        _ => value,
    };
    (entry == step.entry).then_some((slot, value))
}
