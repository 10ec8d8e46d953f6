//! Writes of CR4 that exit though there is nested paging.

use super::guest::{Guest, PAE};
use crate::{Event, Exit, Flow, Gpr};
use arch::{CR4_PGE, CR4_VMXE};

/// MOV CR4, RAX.
const MOV_CR4: [u8; 3] = [0x0f, 0x22, 0xe0];

/// What becomes of CR4 when `guest` writes `cr4`. None: #GP.
fn written(mut guest: Guest, cr4: u64) -> Option<u64> {
    guest.set(Gpr::RAX, cr4);
    assert_eq!(guest.handle(Exit::ControlRegister), Flow::Resume);
    match guest.vcpu.event {
        Some(event) => {
            assert_eq!(event, Event::GENERAL_PROTECTION);
            None
        }
        None => Some(guest.vcpu.control.cr4),
    }
}

#[test]
fn bits_that_cpuid_offers_are_taken_and_no_others() {
    assert_eq!(written(Guest::flat_32(&MOV_CR4), PAE | CR4_PGE), Some(PAE | CR4_PGE));
    assert_eq!(written(Guest::flat_32(&MOV_CR4), CR4_PGE | CR4_VMXE), None);
    // Code of 32 bits writes so many.
    assert_eq!(written(Guest::flat_32(&MOV_CR4), 1 << 40 | CR4_PGE), Some(CR4_PGE));
    assert_eq!(written(Guest::new(&MOV_CR4), PAE | 1 << 40), None);
}

#[test]
fn long_mode_keeps_pae() {
    assert_eq!(written(Guest::new(&MOV_CR4), PAE | CR4_PGE), Some(PAE | CR4_PGE));
    assert_eq!(written(Guest::new(&MOV_CR4), CR4_PGE), None);
}
