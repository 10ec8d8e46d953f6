//! Writes of CR0 that exit though there is nested paging.

use super::guest::{Guest, HOLE, LMA, LME, PAE, PE, PG, WP};
use crate::{Event, Exit, Flow, Gpr};

/// MOV CR0, RAX.
const MOV_CR0: [u8; 3] = [0x0f, 0x22, 0xc0];
const CD: u64 = 1 << 30;
const NW: u64 = 1 << 29;
const ET: u64 = 1 << 4;

/// What becomes of CR0 when `cr0` is written by 32-bit code without paging, with these CR4 and EFER. None: #GP.
fn written(cr0: u64, cr4: u64, efer: u64) -> Option<u64> {
    let mut guest = Guest::flat_32(&MOV_CR0);
    (guest.vcpu.control.cr4, guest.vcpu.control.efer) = (cr4, efer);
    guest.set(Gpr::RAX, cr0);
    assert_eq!(guest.handle(Exit::ControlRegister), Flow::Resume);
    match guest.vcpu.event {
        Some(event) => {
            assert_eq!(event, Event::GENERAL_PROTECTION);
            None
        }
        None => Some(guest.vcpu.control.cr0),
    }
}

#[test]
fn paging_and_caching_bits_need_each_other() {
    assert_eq!(written(PE | WP, 0, 0), Some(PE | WP | ET));
    assert_eq!(written(PE | PG, 0, 0), Some(PE | PG | ET));
    assert_eq!(written(PG, 0, 0), None);
    assert_eq!(written(PE | NW, 0, 0), None);
    assert_eq!(written(PE | NW | CD, 0, 0), Some(PE | NW | CD | ET));
}

#[test]
fn long_mode_is_entered_with_pae_alone() {
    assert_eq!(written(PE | PG, 0, LME), None);
    assert_eq!(written(PE | PG, PAE, LME), Some(PE | PG | ET));
}

#[test]
fn code_of_64_bits_neither_leaves_long_mode_nor_writes_the_upper_half() {
    for cr0 in [PE, PE | PG | 1 << 32] {
        let mut guest = Guest::new(&MOV_CR0);
        assert_eq!(guest.vcpu.control.efer, LME | LMA);
        guest.set(Gpr::RAX, cr0);
        assert_eq!(guest.handle(Exit::ControlRegister), Flow::Resume);
        assert_eq!(guest.vcpu.event, Some(Event::GENERAL_PROTECTION), "{cr0:x}");
    }
}

/// A processor that holds PDPTEs finds ones there, which have reserved bits.
#[test]
fn pdptes_where_no_memory_is_are_a_general_protection_fault() {
    let mut guest = Guest::flat_32(&MOV_CR0);
    (guest.vcpu.control.cr3, guest.vcpu.control.cr4, guest.vcpu.held) = (HOLE, PAE, Some([0; 4]));
    guest.set(Gpr::RAX, PE | PG);
    guest.resumes(Exit::ControlRegister);
    assert_eq!((guest.vcpu.event, guest.vcpu.control.cr0), (Some(Event::GENERAL_PROTECTION), PE));
}
