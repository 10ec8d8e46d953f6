//! What a switch of tasks reads and writes.

use super::events::{EVENT_TYPE, EVENT_VALID, TYPE_NMI};
use super::vcpu::VmxVcpu;
use crate::translation::Translation;
use vm::{LoadedSegment, SegmentRegister, TaskState, Vcpu};
use x86::vmx::vmcs::{control, guest};

/// Access rights: the register can't be used.
const UNUSABLE: u64 = 1 << 16;

/// Access rights are bits 40 to 55 of a descriptor, without the limit among them (Intel SDM vol. 3, table 25-2).
fn access_rights(segment: &LoadedSegment) -> u64 {
    let attributes = u64::from(segment.attributes);
    let unusable = if segment.is_usable() { 0 } else { UNUSABLE };
    attributes & 0xff | (attributes & 0xf00) << 4 | unusable
}

/// The reverse. P, like all but the DPL of SS, is undefined in a register that can't be used (Intel SDM vol. 3, section 25.4.1).
pub(super) const fn attributes(access_rights: u64) -> u16 {
    let attributes = (access_rights & 0xff | access_rights >> 4 & 0xf00) as u16;
    if access_rights & UNUSABLE == 0 { attributes } else { attributes & !LoadedSegment::PRESENT }
}

impl<T: Translation> TaskState for VmxVcpu<T> {
    fn gdt(&self) -> (u64, u32) {
        (self.vmcs.read(guest::GDTR_BASE), self.vmcs.read(guest::GDTR_LIMIT) as u32)
    }

    fn idt(&self) -> (u64, u32) {
        (self.vmcs.read(guest::IDTR_BASE), self.vmcs.read(guest::IDTR_LIMIT) as u32)
    }

    fn task_register(&self) -> LoadedSegment {
        LoadedSegment {
            selector: self.vmcs.read(guest::TR_SELECTOR) as u16,
            base: self.vmcs.read(guest::TR_BASE) as u32,
            limit: self.vmcs.read(guest::TR_LIMIT) as u32,
            attributes: attributes(self.vmcs.read(guest::TR_ACCESS_RIGHTS)),
        }
    }

    fn local_table(&mut self) -> Option<(u64, u32)> {
        let is_usable = self.vmcs.read(guest::LDTR_ACCESS_RIGHTS) & UNUSABLE == 0;
        is_usable.then(|| (self.vmcs.read(guest::LDTR_BASE), self.vmcs.read(guest::LDTR_LIMIT) as u32))
    }

    fn load_segment(&mut self, register: SegmentRegister, segment: LoadedSegment) {
        let number = 2 * register.index() as u32;
        self.vmcs.write(guest::ES_SELECTOR + number, segment.selector.into());
        self.vmcs.write(guest::ES_BASE + number, segment.base.into());
        self.vmcs.write(guest::ES_LIMIT + number, segment.limit.into());
        self.vmcs.write(guest::ES_ACCESS_RIGHTS + number, access_rights(&segment));
    }

    fn load_cr3(&mut self, cr3: u64, pdptes: Option<[u64; 4]>) {
        self.write_pdptes(pdptes);
        self.set_guest_cr3(cr3);
        self.flush();
    }

    fn behind_task_switch(&self) -> Option<u64> {
        Some(self.behind())
    }

    fn complete_delivery(&mut self) {
        let event = self.vmcs.read(control::VMENTRY_INTERRUPTION_INFO_FIELD);
        self.vmcs.write(control::VMENTRY_INTERRUPTION_INFO_FIELD, 0);
        if event & (EVENT_VALID | EVENT_TYPE) == EVENT_VALID | TYPE_NMI {
            self.block_nmis(true);
        }
    }

    fn unblock_nmis(&mut self) {
        self.block_nmis(false);
    }
}

impl<T: Translation> VmxVcpu<T> {
    /// Under EPT entries take the PDPTEs from the VMCS (Intel SDM vol. 3, section 27.3.2.4); the guest's later loads are the processor's.
    pub(super) fn write_pdptes(&mut self, pdptes: Option<[u64; 4]>) {
        for (number, entry) in (0..).zip(pdptes.into_iter().flatten()) {
            self.vmcs.write(guest::PDPTE0_FULL + 2 * number, entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_rights_are_where_the_manual_draws_them() {
        let segment = |attributes| LoadedSegment { attributes, ..LoadedSegment::default() };
        assert_eq!(access_rights(&segment(0xc9b)), 0xc09b);
        assert_eq!(access_rights(&segment(0x8b)), 0x8b);
        assert_eq!(access_rights(&segment(0x60)), UNUSABLE | 0x60);
        assert_eq!([0xc09b, 0x8b, UNUSABLE | 0x60].map(attributes), [0xc9b, 0x8b, 0x60]);
        assert_eq!(attributes(UNUSABLE | 0xc0f3), 0xc73);
    }
}
