//! Which MSRs a guest reaches without an exit (Intel SDM vol. 3, section 24.6.9). Every port exits.

/// A bit for each MSR and direction; one means exit. In this order: reads of 0 to 1fffh, reads of c000_0000h to
/// c000_1fffh, writes of both. MSRs outside always exit.
#[repr(C, align(4096))]
pub(super) struct MsrBitmap([u8; 4096]);

const WRITES: usize = 2048;

/// MSRs that entries and exits switch with the guest, or that are the guest's alone, so that it may use them freely.
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

impl MsrBitmap {
    pub(super) fn guest() -> Self {
        let mut map = Self([0xff; 4096]);
        GUESTS_OWN.into_iter().for_each(|msr| map.allow(msr));
        map
    }

    /// The byte and the bit of `msr` for reading.
    const fn position(msr: u32) -> Option<(usize, u32)> {
        let index = match msr {
            0..=0x1fff => msr,
            0xc000_0000..=0xc000_1fff => msr - 0xc000_0000 + 0x2000,
            _ => return None,
        };
        Some((index as usize / 8, index % 8))
    }

    fn allow(&mut self, msr: u32) {
        if let Some((byte, bit)) = Self::position(msr) {
            self.0[byte] &= !(1 << bit);
            self.0[WRITES + byte] &= !(1 << bit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arch::features::{FEATURES, Promise};

    fn exits(map: &MsrBitmap, msr: u32) -> (bool, bool) {
        let (byte, bit) = MsrBitmap::position(msr).expect("covered by the map");
        (map.0[byte] >> bit & 1 != 0, map.0[WRITES + byte] >> bit & 1 != 0)
    }

    #[test]
    fn msrs_exit_unless_they_are_the_guests_own() {
        let map = MsrBitmap::guest();
        for exiting in [x86::msr::IA32_EFER, x86::msr::IA32_PAT, x86::msr::TSC, x86::msr::IA32_FEATURE_CONTROL] {
            assert_eq!(exits(&map, exiting), (true, true), "{exiting:#x}");
        }
        for own in GUESTS_OWN {
            assert_eq!(exits(&map, own), (false, false), "{own:#x}");
        }
    }

    #[test]
    fn positions_are_those_of_the_manual() {
        // The reads of high MSRs start at byte 1024.
        assert_eq!(MsrBitmap::position(0x174), Some((0x2e, 4)));
        assert_eq!(MsrBitmap::position(0xc000_0080), Some((1024 + 0x10, 0)));
        assert_eq!(MsrBitmap::position(0x2000), None);
        assert_eq!(MsrBitmap::position(0xc001_0000), None);
    }

    /// Others exit: the guest never sees the host's.
    #[test]
    fn msrs_that_cpuid_promises_as_the_guests_own_do_not_exit() {
        let map = MsrBitmap::guest();
        for promise in FEATURES.iter().flat_map(|feature| feature.promises) {
            match *promise {
                Promise::OwnMsr(msr) => assert_eq!(exits(&map, msr), (false, false), "{msr:#x}"),
                Promise::Msr(msr) | Promise::ReadMsr(msr) => assert_eq!(exits(&map, msr), (true, true), "{msr:#x}"),
                Promise::Cr4(_) | Promise::Efer(_) | Promise::Instruction(_) | Promise::Instruction64(_) => {}
            }
        }
    }
}
