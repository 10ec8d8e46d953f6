//! Unpaged code on a processor that can't turn a guest's paging off (one without unrestricted guest): paging stays on, over
//! an identity map; real mode is carried out in software, with the registers as they would be on that map. The guest reads of CR0, CR3, CR4 and EFER what it wrote.

use super::control_registers::GeneralProtection;
use super::vcpu::{Detour, VmxVcpu};
use crate::FixedPage;
use crate::translation::Translation;
use addr::{Gpa, Hpa};
use arch::paging::{ACCESSED, DIRTY, LARGE, PDPTE_RESERVED, PRESENT, USER, WRITABLE};
use arch::{CR0_CD, CR0_NW, CR0_PE, CR0_PG, CR4_PAE, CR4_PCIDE, EFER_LMA, EFER_LME};
use vm::{Segment, Vcpu};
use x86::vmx::vmcs::control::{self, EntryControls, PrimaryControls};
use x86::vmx::vmcs::guest;

/// Where the identity map is in guest memory.
pub(super) const IDENTITY_MAP: Gpa = Gpa::new(abi::mmio::IDENTITY_MAP as u64);

/// What the guest has in the registers that the identity map takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unpaged {
    pub(super) cr3: u64,
    pub(super) efer: u64,
}

/// 32-bit paging's directory of 4 MiB pages that map each address to itself. A guest that writes to it harms itself alone.
pub(super) fn identity_map() -> FixedPage {
    const PAGE: u32 = (PRESENT | WRITABLE | USER | ACCESSED | DIRTY | LARGE) as u32;
    let mut content = [0; 4096];
    for (index, entry) in (0u32..).zip(content.chunks_exact_mut(4)) {
        entry.copy_from_slice(&(index << 22 | PAGE).to_le_bytes());
    }
    FixedPage { at: IDENTITY_MAP, content }
}

/// The four top entries of PAE paging.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pdptes([u64; 4]);

impl Pdptes {
    /// The entries as they are in memory (Intel SDM vol. 3, section 4.4.1).
    ///
    /// # Errors
    /// [`GeneralProtection`] if one that is present has reserved bits set.
    pub(super) fn new(bytes: &[u8; 32], physical_bits: u8) -> Result<Self, GeneralProtection> {
        let mut entries = [0; 4];
        for (entry, bytes) in entries.iter_mut().zip(bytes.as_chunks().0) {
            *entry = u64::from_le_bytes(*bytes);
        }
        let reserved = u64::MAX << physical_bits | PDPTE_RESERVED;
        if entries.iter().any(|entry| entry & PRESENT != 0 && entry & reserved != 0) {
            Err(GeneralProtection)
        } else {
            Ok(Self(entries))
        }
    }
}

/// Why a write to CR0 is not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotDone {
    /// The processor would answer with #GP.
    GeneralProtection,
    /// It would be right, but PAE's four top entries have to come from the guest's memory first.
    NeedsPdptes,
}

impl From<GeneralProtection> for NotDone {
    fn from(_: GeneralProtection) -> Self {
        Self::GeneralProtection
    }
}

/// How the guest's paging is when CR0.PG is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PagingMode {
    ThirtyTwoBit,
    Pae,
    Long,
}

/// What turning paging on with these registers leads to (Intel SDM vol. 2, MOV to CR0; vol. 3, section 4.1.2).
fn paging_mode(cr4: u64, efer: u64, code_has_l: bool) -> Result<PagingMode, NotDone> {
    match (efer & EFER_LME != 0, cr4 & CR4_PAE != 0) {
        (true, true) if !code_has_l => Ok(PagingMode::Long),
        (true, _) => Err(NotDone::GeneralProtection),
        (false, true) => Ok(PagingMode::Pae),
        (false, false) => Ok(PagingMode::ThirtyTwoBit),
    }
}

impl<T: Translation> VmxVcpu<T> {
    /// Whether a write of `value` to CR0 is more than the processor can carry out by itself.
    pub(super) fn changes_mode(&self, value: u64) -> bool {
        const MODE: u64 = CR0_PE | CR0_PG;
        self.cr0.mask & MODE != 0 && (value ^ self.guest_cr0()) & MODE != 0
    }

    /// Carries out a MOV to CR0 of `value`, which turns paging or protected mode on or off.
    /// `pdptes` are the four top entries of PAE paging, if they are known.
    pub(super) fn change_mode(&mut self, value: u64, pdptes: Option<Pdptes>) -> Result<(), NotDone> {
        match (value & CR0_PE != 0, value & CR0_PG != 0) {
            // Without paging a shadow is an identity map.
            (_, false) if self.translation.shadow().is_some() => {}
            (true, true) => self.turn_paging_on(pdptes)?,
            (_, false) => self.turn_paging_off()?,
            (false, true) => return Err(NotDone::GeneralProtection),
        }
        self.write_cr0(value);
        self.set_detour(Detour::RealMode, value & CR0_PE == 0);
        Ok(())
    }

    /// The identity map comes in, with `cr4` as what the guest has.
    pub(super) fn enter_identity_map(&mut self, unpaged: Unpaged, cr4: u64) {
        self.cr4 = self.paged_cr4.on_identity_map();
        self.write_cr4(cr4);
        self.vmcs.write(guest::CR3, IDENTITY_MAP.raw());
        self.vmcs.write(guest::IA32_EFER_FULL, unpaged.efer & !(EFER_LME | EFER_LMA));
        self.intercept_cr3(true);
        self.unpaged = Some(unpaged);
    }

    fn turn_paging_on(&mut self, pdptes: Option<Pdptes>) -> Result<(), NotDone> {
        let Some(unpaged) = self.unpaged else { return Ok(()) };
        let cr4 = self.guest_cr4();
        let mode = paging_mode(cr4, unpaged.efer, self.segment(Segment::Cs).long)?;
        if mode == PagingMode::Pae {
            let pdptes = pdptes.ok_or(NotDone::NeedsPdptes)?;
            // Under EPT entries take them from here (SDM section 27.3.2.4); the guest's later loads are the processor's.
            for (number, entry) in (0..).zip(pdptes.0) {
                self.vmcs.write(guest::PDPTE0_FULL + 2 * number, entry);
            }
        }
        self.unpaged = None;
        self.cr4 = self.paged_cr4;
        self.write_cr4(cr4);
        self.vmcs.write(guest::CR3, unpaged.cr3);
        self.intercept_cr3(false);
        self.set_long_mode(mode == PagingMode::Long, unpaged.efer);
        Ok(())
    }

    fn turn_paging_off(&mut self) -> Result<(), NotDone> {
        if self.unpaged.is_some() {
            return Ok(());
        }
        let (cr3, cr4, efer) = (self.vmcs.read(guest::CR3), self.guest_cr4(), self.vmcs.read(guest::IA32_EFER_FULL));
        if efer & EFER_LMA != 0 && self.code_is_64_bit() || cr4 & CR4_PCIDE != 0 {
            return Err(NotDone::GeneralProtection);
        }
        self.set_long_mode(false, efer);
        self.enter_identity_map(Unpaged { cr3, efer: efer & !EFER_LMA }, cr4);
        Ok(())
    }

    /// Has the guest read `value`, and the register be what that means.
    pub(super) fn write_cr0(&mut self, value: u64) {
        if self.change_own_controls(|controls| controls.cr0 = value) {
            return;
        }
        self.vmcs.write(guest::CR0, self.cr0.real(value));
        self.vmcs.write(control::CR0_READ_SHADOW, value);
    }

    pub(super) fn write_cr4(&mut self, value: u64) {
        if self.change_own_controls(|controls| controls.cr4 = value) {
            return;
        }
        self.vmcs.write(guest::CR4, self.cr4.real(value));
        self.vmcs.write(control::CR4_READ_SHADOW, value);
        self.vmcs.write(control::CR4_GUEST_HOST_MASK, self.cr4.mask);
    }

    /// Has the processor walk the shadow, with what that needs, and the guest read what it wrote.
    #[inline]
    pub(super) fn write_shadow_paging(&mut self, root: Option<Hpa>) {
        let Some(shadow) = self.translation.shadow_mut() else { return };
        shadow.root = root.unwrap_or(shadow.root);
        let (host, own) = (shadow.host(), shadow.own.paging().controls);
        let cr0 = host.cr0 & !(CR0_CD | CR0_NW) | self.capabilities.cr0_ones;
        for (field, value) in [
            (guest::CR0, cr0),
            (control::CR0_READ_SHADOW, own.cr0),
            (guest::CR3, host.cr3),
            (guest::CR4, self.paged_cr4.real(host.cr4)),
            (control::CR4_READ_SHADOW, own.cr4),
        ] {
            self.vmcs.write(field, value);
        }
        // Without its controls it is the hypervisor's, which has NXE, too, and entries clear LME and LMA.
        if self.capabilities.features.efer {
            self.vmcs.write(guest::IA32_EFER_FULL, host.efer);
        }
        self.set_detour(Detour::RealMode, own.cr0 & CR0_PE == 0);
    }

    fn intercept_cr3(&mut self, wanted: bool) {
        let exits = PrimaryControls::CR3_LOAD_EXITING | PrimaryControls::CR3_STORE_EXITING;
        self.set_primary(exits.bits(), wanted);
    }

    pub(super) fn set_long_mode(&mut self, on: bool, efer: u64) {
        let bit = u64::from(EntryControls::IA32E_MODE_GUEST.bits());
        let entry = self.vmcs.read(control::VMENTRY_CONTROLS) & !bit;
        let (entry, efer) = if on { (entry | bit, efer | EFER_LMA) } else { (entry, efer & !EFER_LMA) };
        self.vmcs.write(control::VMENTRY_CONTROLS, entry);
        if self.capabilities.features.efer {
            self.vmcs.write(guest::IA32_EFER_FULL, efer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_map_maps_each_address_to_itself() {
        let page = identity_map();
        let entry = |index: usize| {
            let bytes = &page.content[index * 4..][..4];
            u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
        };
        assert_eq!((entry(0), entry(1), entry(1023)), (0xe7, 0x0040_00e7, 0xffc0_00e7));
    }

    #[test]
    fn paging_comes_on_as_the_registers_say() {
        assert_eq!(paging_mode(0, 0, false), Ok(PagingMode::ThirtyTwoBit));
        assert_eq!(paging_mode(CR4_PAE, EFER_LME, false), Ok(PagingMode::Long));
        assert_eq!(paging_mode(0, EFER_LME, false), Err(NotDone::GeneralProtection));
        assert_eq!(paging_mode(CR4_PAE, EFER_LME, true), Err(NotDone::GeneralProtection));
        assert_eq!(paging_mode(CR4_PAE, 0, false), Ok(PagingMode::Pae));
    }

    #[test]
    fn pdptes_have_reserved_bits() {
        let mut bytes = [0; 32];
        bytes[8..16].copy_from_slice(&0x0000_000f_1234_5001u64.to_le_bytes());
        // Not present: it may be anything.
        bytes[24..32].copy_from_slice(&(!1u64).to_le_bytes());
        assert_eq!(Pdptes::new(&bytes, 36), Ok(Pdptes([0, 0x0000_000f_1234_5001, 0, !1])));
        assert_eq!(Pdptes::new(&bytes, 35), Err(GeneralProtection));
        bytes[8] |= 2;
        assert_eq!(Pdptes::new(&bytes, 36), Err(GeneralProtection));
    }
}
