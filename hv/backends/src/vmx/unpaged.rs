//! Unpaged code on a processor that can't turn a guest's paging off (one without unrestricted guest): paging stays on, over
//! an identity map; real mode is carried out in software, with the registers as they would be on that map. The guest reads of CR0, CR3, CR4 and EFER what it wrote.

use super::vcpu::{Detour, VmxVcpu};
use crate::FixedPage;
use crate::translation::Translation;
use addr::{Gpa, Hpa};
use arch::paging::{ACCESSED, DIRTY, LARGE, PRESENT, USER, WRITABLE};
use arch::{CR0_CD, CR0_NW, CR0_PE, CR0_PG, EFER_LMA, EFER_LME};
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

impl<T: Translation> VmxVcpu<T> {
    /// Whether a write of `value` to CR0 is more than the processor can carry out by itself.
    pub(super) fn changes_mode(&self, value: u64) -> bool {
        const MODE: u64 = CR0_PE | CR0_PG;
        self.cr0.mask & MODE != 0 && (value ^ self.guest_cr0()) & MODE != 0
    }

    /// CR0 of a guest with nested paging is `value` from now on, which may turn paging or protected mode on or off. `pdptes` are the four
    /// top entries of PAE paging, if that comes on.
    pub(super) fn load_cr0(&mut self, value: u64, pdptes: Option<[u64; 4]>) {
        if self.changes_mode(value) {
            match (value & CR0_PG != 0, self.unpaged) {
                (true, Some(unpaged)) => self.turn_paging_on(unpaged, pdptes),
                (false, None) => self.turn_paging_off(),
                (true, None) | (false, Some(_)) => {}
            }
            self.set_detour(Detour::RealMode, value & CR0_PE == 0);
        }
        self.write_cr0(value);
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

    fn turn_paging_on(&mut self, unpaged: Unpaged, pdptes: Option<[u64; 4]>) {
        let cr4 = self.guest_cr4();
        self.write_pdptes(pdptes);
        self.unpaged = None;
        self.cr4 = self.paged_cr4;
        self.write_cr4(cr4);
        self.vmcs.write(guest::CR3, unpaged.cr3);
        self.intercept_cr3(false);
        self.set_long_mode(unpaged.efer & EFER_LME != 0, unpaged.efer);
    }

    fn turn_paging_off(&mut self) {
        let (cr3, cr4, efer) = (self.vmcs.read(guest::CR3), self.guest_cr4(), self.vmcs.read(guest::IA32_EFER_FULL));
        self.set_long_mode(false, efer);
        self.enter_identity_map(Unpaged { cr3, efer: efer & !EFER_LMA }, cr4);
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
}
