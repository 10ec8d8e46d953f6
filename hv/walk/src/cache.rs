//! The same walk again, cheap and exact.
//!
//! Exits come from few places: a loop that polls a port, an interrupt handler that writes EOI. Each time the hypervisor
//! needs the bytes at RIP, it would read the same four entries and get the same page.
//!
//! A plain cache of translations (a software TLB) would be wrong. Under nested paging the guest changes its tables, runs
//! INVLPG and loads CR3 without an exit, so nothing tells the hypervisor to drop a translation, and it would decode bytes
//! of a page that the guest's processor no longer fetches from.
//!
//! [`WalkCache`] therefore keeps not the answer alone, but what the answer depends on: the control registers, the linear
//! page, the access, and each entry's place and value. What a walk gives is a function of exactly these. If the registers
//! are as before, the first entry's place is as before; if it still holds the same value, so is the place of the second;
//! and so on down to the page. So when each place still holds what it held, a walk done now would read the same entries
//! and come to the same end; and a hit reads every one of them again, as a walk would, from the guest's memory as it is.
//!
//! What is saved is the work between the reads: turning each guest-physical address into a place in the hypervisor's own
//! address space, and the checks. That turning is the environment's, and may change (a page of the guest is taken away and
//! comes back elsewhere). For that there is [`SlotMem::generation`].

use crate::{Access, Controls, Fault, Features, Kind, Mode, Paging, PhysMem, Privilege, Rights, Step, Translation};
use addr::{Gpa, Gva, Gvn, PAGE_SIZE, PageSize};

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
    /// The place `bytes`, a multiple of 8, further on in the same 4 KiB page.
    fn advance(&self, slot: Self::Slot, bytes: u64) -> Self::Slot;
    /// Reads the eight bytes in one piece.
    fn load(&self, slot: Self::Slot) -> u64;
    /// A number that changes whenever a guest-physical address gets or loses its memory.
    fn generation(&self) -> u64;
}

/// The last walk of a vCPU, and what it depended on. See the [module's](self) text for why it is exact.
///
/// It belongs to one vCPU: [`Features`] and the memory given must be the same each time. Walks of five levels are not
/// kept, but done each time.
#[derive(Clone, Debug)]
pub struct WalkCache<S> {
    kept: Option<Kept<S>>,
}

/// Four levels at most: a shorter walk repeats its last entry, so that a hit compares four times without counting.
const ENTRIES: usize = 4;

#[derive(Clone, Debug)]
struct Kept<S> {
    controls: Controls,
    generation: u64,
    page: Gvn,
    access: Access,
    /// None without paging.
    entries: Option<[(S, u64); ENTRIES]>,
    /// The page's own first eight bytes.
    content: Option<S>,
    gpa: Gpa,
    size: PageSize,
    rights: Rights,
}

impl<S: Copy> Kept<S> {
    #[inline(always)]
    fn holds<M: SlotMem<Slot = S>>(&self, mem: &M, controls: &Controls, page: Gvn, access: Access) -> bool {
        self.page == page
            && self.controls == *controls
            && self.access == access
            && self.generation == mem.generation()
            && self.entries.iter().flatten().all(|&(slot, value)| mem.load(slot) == value)
    }
}

impl<S: Copy> Default for WalkCache<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: Copy> WalkCache<S> {
    /// An empty cache.
    pub const fn new() -> Self {
        Self { kept: None }
    }

    /// As [`translate`](crate::translate) without setting accessed bits; PAE's PDPTEs are read from memory.
    #[inline]
    pub fn translate<M: SlotMem<Slot = S>>(
        &mut self,
        mem: &M,
        controls: &Controls,
        features: &Features,
        gva: Gva,
        access: Access,
    ) -> Result<Translation, Fault> {
        if let Some(kept) = &self.kept
            && kept.holds(mem, controls, gva.frame(), access)
        {
            let gpa = kept.gpa.wrapping_add(gva.page_offset());
            return Ok(Translation { gpa, size: kept.size, rights: kept.rights });
        }
        self.walk(mem, controls, features, gva, access)
    }

    /// The first four bytes at `gva`, an instruction's, the lowest first. None if they are not all to be had at once:
    /// they lie in two pages, or the fetch faults. [`fetch`](crate::fetch) then tells more.
    #[inline]
    pub fn fetch_u32<M: SlotMem<Slot = S>>(
        &mut self,
        mem: &M,
        controls: &Controls,
        features: &Features,
        gva: Gva,
        privilege: Privilege,
    ) -> Option<u32> {
        let access = Access { kind: Kind::Fetch, privilege };
        let hit = matches!(&self.kept, Some(kept) if kept.holds(mem, controls, gva.frame(), access));
        if !hit {
            self.walk(mem, controls, features, gva, access).ok()?;
        }
        let content = self.kept.as_ref()?.content?;
        let offset = gva.page_offset();
        if offset > PAGE_SIZE - 4 {
            return None;
        }
        let word = mem.advance(content, offset & !7);
        let shift = (offset & 7) * 8;
        let low = mem.load(word) >> shift;
        if shift <= 32 {
            return Some(low as u32);
        }
        Some((low | (mem.load(mem.advance(word, 8)) << (64 - shift))) as u32)
    }

    /// A whole walk, kept for the next time if it can be.
    #[cold]
    fn walk<M: SlotMem<Slot = S>>(
        &mut self,
        mem: &M,
        controls: &Controls,
        features: &Features,
        gva: Gva,
        access: Access,
    ) -> Result<Translation, Fault> {
        self.kept = None;
        // Before the walk: should memory move meanwhile, the number kept is already out of date.
        let generation = mem.generation();
        let paging = Paging { controls: *controls, pdptes: None, features: *features };
        let (translation, steps) = crate::walk(mem, &paging, gva, access)?;
        let entries = match controls.mode() {
            Mode::Off => None,
            mode => match entries(mem, mode, steps.as_slice()) {
                None => return Ok(translation),
                entries => entries,
            },
        };
        let gpa = translation.gpa.align_down(PAGE_SIZE);
        self.kept = Some(Kept {
            controls: *controls,
            generation,
            page: gva.frame(),
            access,
            entries,
            content: mem.slot(gpa),
            gpa,
            size: translation.size,
            rights: translation.rights,
        });
        Ok(translation)
    }
}

/// Places and values of what a walk read. None if there are none, too many, one has no place, or one has changed already.
fn entries<M: SlotMem>(mem: &M, mode: Mode, steps: &[Step]) -> Option<[(M::Slot, u64); ENTRIES]> {
    let mut kept = [place(mem, mode, steps.last()?)?; ENTRIES];
    for (index, step) in steps.iter().enumerate() {
        *kept.get_mut(index)? = place(mem, mode, step)?;
    }
    Some(kept)
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
