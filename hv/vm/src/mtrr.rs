//! Memory type range registers (Intel SDM vol. 3, section 12.11): kept for the guest, and without effect. Memory types come from
//! the nested tables.

use crate::msr::MsrError;
use abi::mmio;
use arch::features::{FIXED_MTRRS, VARIABLE_MTRRS};
use arch::memory_type::{UNCACHED, WRITE_BACK, WRITE_PROTECTED};
use x86::msr;

/// IA32_MTRRCAP: eight variable ranges, fixed ranges, and write-combining as a type.
const CAPABILITIES: u64 = (VARIABLE_MTRRS / 2) as u64 | 1 << 8 | 1 << 10;
/// IA32_MTRR_DEF_TYPE: the type of all other memory, and whether fixed ranges, and all, are in use.
const DEFAULT_TYPE: u64 = 0xff;
const FIXED_ENABLED: u64 = 1 << 10;
const ENABLED: u64 = 1 << 11;
/// The lowest bits of each half of a variable range: a type, and whether the range is in use.
const BASE_TYPE: u64 = 0xff;
const MASK_VALID: u64 = 1 << 11;

/// A value with this type in all eight fields.
const fn all(kind: u64) -> u64 {
    kind * 0x0101_0101_0101_0101
}

/// One vCPU's.
#[derive(Clone, Debug)]
pub(crate) struct Mtrrs {
    default: u64,
    fixed: [u64; FIXED_MTRRS.len()],
    /// A base and a mask in turn.
    variable: [u64; VARIABLE_MTRRS],
    /// The bits above 12 that an address can have.
    addresses: u64,
}

impl Mtrrs {
    /// As a PC's firmware leaves them: RAM is write-back, video memory and the PCI hole below 4 GiB are uncacheable, ROMs are
    /// write-protected. `maxphyaddr` is CPUID's, 36 to 52.
    pub(crate) fn new(maxphyaddr: u8) -> Self {
        const HOLE: u64 = mmio::PCI_WINDOW.start as u64;
        const HOLE_SIZE: u64 = (1 << 32) - HOLE;
        let addresses = (1 << maxphyaddr) - (1 << 12);
        // 64 KiB registers from 0 on, 16 KiB ones from 512 KiB, 4 KiB ones from 768 KiB.
        let fixed = FIXED_MTRRS.map(|register| match register {
            0x250 | 0x258 => all(WRITE_BACK),
            0x259 => all(UNCACHED),
            _ => all(WRITE_PROTECTED),
        });
        let mut variable = [0; VARIABLE_MTRRS];
        variable[0] = HOLE | UNCACHED;
        variable[1] = !(HOLE_SIZE - 1) & addresses | MASK_VALID;
        Self { default: ENABLED | FIXED_ENABLED | WRITE_BACK, fixed, variable, addresses }
    }

    /// RDMSR. None: no MTRR.
    pub(crate) fn read(&self, register: u32) -> Option<u64> {
        match register {
            msr::IA32_MTRRCAP => Some(CAPABILITIES),
            msr::IA32_MTRR_DEF_TYPE => Some(self.default),
            _ => match fixed(register) {
                Some(index) => Some(self.fixed[index]),
                None => self.variable.get(variable(register)?).copied(),
            },
        }
    }

    /// WRMSR.
    ///
    /// # Errors
    /// [`MsrError::Unknown`] if this is no MTRR, [`MsrError::Value`] for reserved bits and types.
    pub(crate) fn write(&mut self, register: u32, value: u64) -> Result<(), MsrError> {
        let (place, valid) = if register == msr::IA32_MTRR_DEF_TYPE {
            let reserved = value & !(DEFAULT_TYPE | FIXED_ENABLED | ENABLED);
            (&mut self.default, reserved == 0 && is_type(value & DEFAULT_TYPE))
        } else if register == msr::IA32_MTRRCAP {
            return Err(MsrError::Value);
        } else if let Some(index) = fixed(register) {
            (&mut self.fixed[index], value.to_le_bytes().into_iter().all(|kind| is_type(kind.into())))
        } else {
            let index = variable(register).ok_or(MsrError::Unknown)?;
            let valid = match index % 2 {
                0 => value & !(self.addresses | BASE_TYPE) == 0 && is_type(value & BASE_TYPE),
                _ => value & !(self.addresses | MASK_VALID) == 0,
            };
            (&mut self.variable[index], valid)
        };
        if !valid {
            return Err(MsrError::Value);
        }
        *place = value;
        Ok(())
    }
}

/// Which of the fixed ranges' registers this is.
fn fixed(register: u32) -> Option<usize> {
    FIXED_MTRRS.iter().position(|&fixed| fixed == register)
}

/// Which of the variable ranges' registers this is.
fn variable(register: u32) -> Option<usize> {
    let index = register.checked_sub(msr::IA32_MTRR_PHYSBASE0)? as usize;
    (index < VARIABLE_MTRRS).then_some(index)
}

/// UC, WC, WT, WP and WB (Intel SDM vol. 3, table 12-8).
const fn is_type(kind: u64) -> bool {
    matches!(kind, 0 | 1 | 4 | 5 | 6)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAXPHYADDR: u8 = 40;

    #[test]
    fn firmware_leaves_ram_cacheable_and_the_hole_not() {
        let mtrrs = Mtrrs::new(MAXPHYADDR);
        assert_eq!(mtrrs.read(0xfe), Some(0x508));
        assert_eq!(mtrrs.read(0x2ff), Some(0xc06));
        assert_eq!((mtrrs.read(0x200), mtrrs.read(0x201)), (Some(0xc000_0000), Some(0xff_c000_0800)));
        assert_eq!([0x250, 0x259, 0x268].map(|register| mtrrs.read(register)), [Some(all(6)), Some(0), Some(all(5))]);
        assert_eq!([0x1ff, 0x210, 0x251, 0x270].map(|register| mtrrs.read(register)), [None; 4]);
    }

    #[test]
    fn what_is_written_is_read() {
        let mut mtrrs = Mtrrs::new(MAXPHYADDR);
        let values = [
            (0x2ff, 0x800),
            (0x250, 0x0605_0401_0006_0504),
            (0x26f, all(4)),
            (0x20e, 0xff_ffff_f001),
            (0x20f, 0xff_ffff_f800),
        ];
        for (register, value) in values {
            assert_eq!(mtrrs.write(register, value), Ok(()), "{register:#x}");
            assert_eq!(mtrrs.read(register), Some(value), "{register:#x}");
        }
    }

    #[test]
    fn reserved_bits_and_types_are_refused() {
        let mut mtrrs = Mtrrs::new(MAXPHYADDR);
        let wrong = [
            (0xfe, 0x508),
            (0x2ff, 0xc02),
            (0x2ff, 0xd06),
            (0x2ff, 1 << 12 | 6),
            (0x250, 2),
            (0x250, 7 << 56),
            (0x200, 0x100),
            (0x200, 3),
            (0x200, 1 << 40),
            (0x201, 0x801),
            (0x201, 1 << 40 | 0x800),
        ];
        for (register, value) in wrong {
            let before = mtrrs.read(register);
            assert_eq!(mtrrs.write(register, value), Err(MsrError::Value), "{register:#x} = {value:#x}");
            assert_eq!(mtrrs.read(register), before);
        }
        assert_eq!(mtrrs.write(0x210, 0), Err(MsrError::Unknown));
    }
}
