//! Which ports and MSRs a guest reaches without an exit (APM vol. 2, sections 15.10 and 15.11).

/// A bit for each port; one means exit. Every port exits.
#[repr(C, align(4096))]
pub(super) struct IoPermissions([u8; 3 * 4096]);

impl IoPermissions {
    pub(super) const fn intercept_all() -> Self {
        Self([0xff; 3 * 4096])
    }
}

/// Two bits for each MSR, read and write; one means exit.
#[repr(C, align(4096))]
pub(super) struct MsrPermissions([u8; 2 * 4096]);

/// MSRs that VMRUN, VMLOAD and VMSAVE switch with the guest, or that are the guest's alone, so that it may use them freely.
const GUESTS_OWN: [u32; 11] = [
    x86::msr::IA32_SYSENTER_CS,
    x86::msr::IA32_SYSENTER_ESP,
    x86::msr::IA32_SYSENTER_EIP,
    x86::msr::IA32_STAR,
    x86::msr::IA32_LSTAR,
    x86::msr::IA32_CSTAR,
    x86::msr::IA32_FMASK,
    x86::msr::IA32_FS_BASE,
    x86::msr::IA32_GS_BASE,
    x86::msr::IA32_KERNEL_GSBASE,
    x86::msr::IA32_TSC_AUX,
];

impl MsrPermissions {
    pub(super) fn guest() -> Self {
        let mut map = Self([0xff; 2 * 4096]);
        GUESTS_OWN.into_iter().for_each(|msr| map.allow(msr));
        map
    }

    /// The byte and the shift of `msr`'s two bits.
    const fn position(msr: u32) -> Option<(usize, u32)> {
        let index = match msr {
            0..=0x1fff => msr,
            0xc000_0000..=0xc000_1fff => msr - 0xc000_0000 + 0x2000,
            0xc001_0000..=0xc001_1fff => msr - 0xc001_0000 + 0x4000,
            _ => return None,
        };
        Some((index as usize / 4, index % 4 * 2))
    }

    fn allow(&mut self, msr: u32) {
        if let Some((byte, shift)) = Self::position(msr) {
            self.0[byte] &= !(0b11 << shift);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arch::features::{FEATURES, Promise};

    fn exits(map: &MsrPermissions, msr: u32) -> (bool, bool) {
        let (byte, shift) = MsrPermissions::position(msr).expect("covered by the map");
        let bits = map.0[byte] >> shift;
        (bits & 1 != 0, bits & 2 != 0)
    }

    #[test]
    fn msrs_exit_unless_they_are_the_guests_own() {
        let map = MsrPermissions::guest();
        assert_eq!(exits(&map, x86::msr::IA32_EFER), (true, true));
        assert_eq!(exits(&map, x86::msr::IA32_PAT), (true, true));
        assert_eq!(exits(&map, x86::msr::IA32_FS_BASE), (false, false));
        assert_eq!(exits(&map, x86::msr::TSC), (true, true));
        assert_eq!(exits(&map, 0xc001_0114), (true, true));
    }

    #[test]
    fn positions_are_those_of_the_manual() {
        // APM table 15-5: the second range starts at byte 800h, the third at 1000h.
        assert_eq!(MsrPermissions::position(0x1), Some((0, 2)));
        assert_eq!(MsrPermissions::position(0xc000_0080), Some((0x820, 0)));
        assert_eq!(MsrPermissions::position(0xc001_0000), Some((0x1000, 0)));
        assert_eq!(MsrPermissions::position(0x2000), None);
    }

    /// Others exit: the guest never sees the host's.
    #[test]
    fn msrs_that_cpuid_promises_as_the_guests_own_do_not_exit() {
        let map = MsrPermissions::guest();
        for promise in FEATURES.iter().flat_map(|feature| feature.promises) {
            match *promise {
                Promise::OwnMsr(msr) => assert_eq!(exits(&map, msr), (false, false), "{msr:#x}"),
                Promise::Msr(msr) | Promise::ReadMsr(msr) => assert_eq!(exits(&map, msr), (true, true), "{msr:#x}"),
                Promise::Cr4(_) | Promise::Efer(_) | Promise::Instruction(_) | Promise::Instruction64(_) => {}
            }
        }
    }
}
