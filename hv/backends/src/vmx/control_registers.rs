//! CR0 and CR4: which bits are the guest's own, and what becomes of a write to the others. Pure.
//!
//! Most bits are the guest's: it changes them without an exit, and the processor makes what follows of them (long mode,
//! PDPTEs, flushes, faults). A write exits only if it changes what the guest reads of a bit that is not its own. If the
//! guest may have that value, the read shadow takes it and the instruction runs again: it changes no such bit any more, so
//! the processor carries it out, with all that it checks and loads.

use super::capabilities::Capabilities;
use arch::{
    CR0_CD, CR0_NW, CR0_PE, CR0_PG, CR4_DE, CR4_FSGSBASE, CR4_MCE, CR4_OSFXSR, CR4_OSXMMEXCPT, CR4_PAE, CR4_PCE,
    CR4_PGE, CR4_PSE, CR4_PVI, CR4_SMAP, CR4_SMEP, CR4_TSD, CR4_UMIP, CR4_VME,
};

/// What must not be on while the identity map stands in for no paging at all.
const CR4_PAGING: u64 = CR4_PSE | CR4_PAE | CR4_PGE | CR4_SMEP | CR4_SMAP;

/// The bits that need nothing from the hypervisor. A processor that lacks one answers with #GP itself.
const CR4_GUESTS: u64 = CR4_VME
    | CR4_PVI
    | CR4_TSD
    | CR4_DE
    | CR4_PSE
    | CR4_PAE
    | CR4_PGE
    | CR4_PCE
    | CR4_OSFXSR
    | CR4_OSXMMEXCPT
    | CR4_UMIP
    | CR4_FSGSBASE
    | CR4_SMEP
    | CR4_SMAP;

/// A write that the processor would answer with #GP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GeneralProtection;

/// A control register with bits that are not the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MaskedRegister {
    /// Those bits: the guest/host mask.
    pub(super) mask: u64,
    /// What they really are.
    pub(super) real: u64,
}

impl MaskedRegister {
    /// CR0: the bits fixed to 1 (but those that an unrestricted guest may clear), and the caches, which are the host's.
    pub(super) const fn cr0(capabilities: &Capabilities) -> Self {
        let free = if capabilities.features.unrestricted_guest { CR0_PE | CR0_PG } else { 0 };
        let ones = capabilities.cr0_ones & !free;
        Self { mask: ones | CR0_CD | CR0_NW, real: ones }
    }

    /// CR4: the bits fixed to 1, machine checks as the host has them, and all but those of `offered`, which the guest may set.
    pub(super) const fn cr4(capabilities: &Capabilities, host_cr4: u64, offered: u64) -> Self {
        let mask = !(CR4_GUESTS & offered) | capabilities.cr4_ones;
        Self { mask, real: capabilities.cr4_ones | host_cr4 & CR4_MCE }
    }

    /// CR4 while the guest runs unpaged on the identity map: that is of 4 MiB pages, and of nothing else that the guest sets.
    pub(super) const fn on_identity_map(self) -> Self {
        Self { mask: self.mask | CR4_PAGING, real: self.real | CR4_PSE }
    }

    /// The guest has no bit of its own: what it reads is all in the read shadow.
    pub(super) const fn whole(self) -> Self {
        Self { mask: u64::MAX, ..self }
    }

    /// The register's real value if the guest reads `value`.
    pub(super) const fn real(self, value: u64) -> u64 {
        value & !self.mask | self.real
    }

    /// What the guest reads, from the real value and the read shadow.
    pub(super) const fn guest(self, real: u64, shadow: u64) -> u64 {
        real & !self.mask | shadow & self.mask
    }
}

/// Whether CR0 takes `value`, as far as the bits that are not the guest's own have to do with it (Intel SDM vol. 2, MOV to
/// control registers).
pub(super) const fn check_cr0(value: u64) -> Result<(), GeneralProtection> {
    if value >> 32 != 0 || value & (CR0_NW | CR0_CD) == CR0_NW { Err(GeneralProtection) } else { Ok(()) }
}

/// The same for CR4, of which the guest may set the bits `offered`.
pub(super) const fn check_cr4(value: u64, offered: u64) -> Result<(), GeneralProtection> {
    if value & !((CR4_GUESTS | CR4_MCE) & offered) != 0 { Err(GeneralProtection) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmx::capabilities::tests::skylake;
    use arch::{CR0_ET, CR0_NE, CR4_VMXE};

    fn capabilities() -> Capabilities {
        Capabilities::read(skylake).expect("nothing is missing")
    }

    #[test]
    fn an_unrestricted_guest_starts_unpaged() {
        let cr0 = MaskedRegister::cr0(&capabilities());
        assert_eq!(cr0.real(CR0_PE | CR0_ET), CR0_PE | CR0_ET | CR0_NE);
        assert_eq!(cr0.guest(CR0_PE | CR0_ET | CR0_NE, CR0_PE | CR0_ET), CR0_PE | CR0_ET);
        // Caches and NE exit, paging does not.
        assert_eq!(cr0.mask, CR0_NE | CR0_CD | CR0_NW);
    }

    #[test]
    fn a_restricted_guest_exits_when_it_turns_paging_on() {
        let mut capabilities = capabilities();
        capabilities.features.unrestricted_guest = false;
        let cr0 = MaskedRegister::cr0(&capabilities);
        assert_eq!(cr0.mask & (CR0_PE | CR0_PG), CR0_PE | CR0_PG);
        assert_eq!(cr0.real(CR0_PE) & CR0_PG, CR0_PG);
    }

    #[test]
    fn vmx_and_machine_checks_are_not_the_guests() {
        let cr4 = MaskedRegister::cr4(&capabilities(), CR4_MCE, u64::MAX);
        assert_eq!(cr4.real(0x20), 0x20 | CR4_VMXE | CR4_MCE);
        assert_eq!(cr4.guest(0x20 | CR4_VMXE | CR4_MCE, 0), 0x20);
        assert_eq!(check_cr4(0x20 | CR4_MCE, u64::MAX), Ok(()));
        // VMXE, PCIDE, OSXSAVE, LA57, reserved.
        for bit in [13, 17, 18, 12, 63] {
            assert_eq!(check_cr4(1 << bit, u64::MAX), Err(GeneralProtection), "bit {bit}");
        }
    }

    #[test]
    fn bits_that_the_guest_is_not_offered_exit_and_are_refused() {
        let offered = !(CR4_SMEP | CR4_MCE);
        let cr4 = MaskedRegister::cr4(&capabilities(), 0, offered);
        assert_eq!(cr4.mask & (CR4_SMEP | CR4_SMAP), CR4_SMEP);
        assert_eq!(check_cr4(CR4_SMAP, offered), Ok(()));
        for bit in [CR4_SMEP, CR4_MCE] {
            assert_eq!(check_cr4(bit, offered), Err(GeneralProtection), "{bit:#x}");
        }
    }

    #[test]
    fn on_the_identity_map_the_guests_paging_bits_wait() {
        let cr4 = MaskedRegister::cr4(&capabilities(), 0, u64::MAX).on_identity_map();
        let wanted = CR4_PAE | CR4_PGE | 1 << 9;
        assert_eq!(cr4.real(wanted), CR4_VMXE | CR4_PSE | 1 << 9);
        assert_eq!(cr4.guest(cr4.real(wanted), wanted), wanted);
    }

    #[test]
    fn no_write_through_without_cache_disable() {
        assert_eq!(check_cr0(CR0_PE | CR0_NW), Err(GeneralProtection));
        assert_eq!(check_cr0(CR0_PE | CR0_NW | CR0_CD), Ok(()));
        assert_eq!(check_cr0(1 << 32), Err(GeneralProtection));
    }
}
