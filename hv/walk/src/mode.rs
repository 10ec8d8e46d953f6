//! Paging modes: how the control registers select one, and the format of its entries.

use crate::{Access, AccessKind, ErrorCode, PhysMem, Privilege, Rights};
use addr::{Gpa, Gva, PageSize};
use arch::paging::{ACCESSED, LARGE, NO_EXECUTE, PDPTE_RESERVED, PRESENT};
use arch::{CR0_PG, CR0_WP, CR4_LA57, CR4_PAE, CR4_PSE, CR4_SMAP, CR4_SMEP, EFER_LMA, EFER_NXE};
use core::fmt;

/// The registers that select and root a guest's paging, as the guest has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Controls {
    /// CR0: PG, WP.
    pub cr0: u64,
    /// CR3: the root, and bits that are ignored here.
    pub cr3: u64,
    /// CR4: PSE, PAE, LA57, SMEP, SMAP.
    pub cr4: u64,
    /// EFER: LMA, NXE.
    pub efer: u64,
}

/// The paging features in the guest's CPUID. Constant for a virtual machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Width of physical addresses in bits, 32 to 52 (CPUID 8000_0008 EAX bits 7:0).
    pub maxphyaddr: u8,
    /// 1 GiB pages in long mode (CPUID 8000_0001 EDX bit 26).
    pub pages_1g: bool,
    /// 40-bit addresses of 4 MiB pages (CPUID 1 EDX bit 17).
    pub pse36: bool,
    /// Bit 8 of entries in the two top levels of long mode is reserved, as AMD has it; Intel ignores it.
    pub pml4e_bit8_reserved: bool,
}

/// All inputs of a walk besides memory.
#[derive(Clone, Copy, Debug)]
pub struct Paging {
    /// The guest's control registers.
    pub controls: Controls,
    /// PAE's four PDPTEs, if the processor loaded them with CR3 (VMX, shadow paging); the load has checked them. None
    /// if the processor reads them at each walk: SVM with nested paging (APM vol. 2, 15.25.10).
    pub pdptes: Option<[u64; 4]>,
    /// The features of the guest's processor.
    pub features: Features,
}

/// A paging mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// CR0.PG is clear: linear addresses are physical.
    Off,
    /// Two levels of 4-byte entries.
    Bits32,
    /// Four PDPTEs and two levels of 8-byte entries.
    Pae,
    /// Four levels, 48-bit linear addresses.
    Long4,
    /// Five levels, 57-bit linear addresses.
    Long5,
}

/// Bits `low..=high`; none if `low > high`.
const fn bits(low: u32, high: u32) -> u64 {
    if low > high { 0 } else { (u64::MAX >> (63 - (high - low))) << low }
}

impl Controls {
    /// The mode that is on.
    #[inline]
    pub const fn mode(&self) -> Mode {
        if self.cr0 & CR0_PG == 0 {
            Mode::Off
        } else if self.efer & EFER_LMA != 0 {
            if self.cr4 & CR4_LA57 != 0 { Mode::Long5 } else { Mode::Long4 }
        } else if self.cr4 & CR4_PAE != 0 {
            Mode::Pae
        } else {
            Mode::Bits32
        }
    }

    const fn nx(&self) -> bool {
        self.efer & EFER_NXE != 0 && self.cr4 & CR4_PAE != 0
    }

    /// The bits of a fault's error code that describe the access (SDM vol. 3, 4.7).
    #[inline(always)]
    pub(crate) fn describe(&self, access: Access) -> ErrorCode {
        let mut code = ErrorCode::empty();
        code.set(ErrorCode::WRITE, access.kind == AccessKind::Write);
        code.set(ErrorCode::USER, access.privilege == Privilege::User);
        code.set(ErrorCode::FETCH, access.kind == AccessKind::Fetch && (self.nx() || self.cr4 & CR4_SMEP != 0));
        code
    }

    /// Whether `rights` allow the access (SDM vol. 3, 4.6.1).
    #[inline(always)]
    pub(crate) fn permit(&self, rights: Rights, access: Access) -> bool {
        match (access.privilege, access.kind) {
            (Privilege::User, AccessKind::Read) => rights.user,
            (Privilege::User, AccessKind::Write) => rights.user && rights.writable,
            (Privilege::User, AccessKind::Fetch) => rights.user && rights.executable,
            (Privilege::Supervisor { .. }, AccessKind::Fetch) => {
                rights.executable && !(rights.user && self.cr4 & CR4_SMEP != 0)
            }
            (Privilege::Supervisor { ac }, kind) => {
                let smap = rights.user && self.cr4 & CR4_SMAP != 0 && !ac;
                let protected = kind == AccessKind::Write && !rights.writable && self.cr0 & CR0_WP != 0;
                !smap && !protected
            }
        }
    }
}

impl Mode {
    #[inline(always)]
    pub(crate) const fn levels(self) -> u32 {
        match self {
            Self::Off => 0,
            Self::Bits32 => 2,
            Self::Pae => 3,
            Self::Long4 => 4,
            Self::Long5 => 5,
        }
    }

    const fn is_long(self) -> bool {
        matches!(self, Self::Long4 | Self::Long5)
    }

    #[inline(always)]
    pub(crate) const fn entry_bytes(self) -> u64 {
        if matches!(self, Self::Bits32) { 4 } else { 8 }
    }

    /// The linear address, truncated to 32 bits outside of long mode; None if it is not canonical.
    #[inline(always)]
    pub(crate) const fn linear(self, gva: Gva) -> Option<u64> {
        let raw = gva.raw();
        let unused = match self {
            Self::Long4 => 64 - 48,
            Self::Long5 => 64 - 57,
            Self::Off | Self::Bits32 | Self::Pae => return Some(raw & 0xffff_ffff),
        };
        if ((raw << unused).cast_signed() >> unused).cast_unsigned() == raw { Some(raw) } else { None }
    }

    /// The index into the table of `level` (1 is the last). PAE's top level has four entries.
    #[inline(always)]
    pub(crate) const fn index(self, linear: u64, level: u32) -> u64 {
        match self {
            Self::Bits32 => (linear >> (12 + 10 * (level - 1))) & 0x3ff,
            _ => (linear >> (12 + 9 * (level - 1))) & 0x1ff,
        }
    }

    /// Whether entries of `level` have rights and an accessed bit: all have but PAE's PDPTEs.
    #[inline(always)]
    pub(crate) const fn has_rights(self, level: u32) -> bool {
        !(matches!(self, Self::Pae) && level == 3)
    }

    /// The physical address of the page of `size` that the leaf `entry` maps.
    #[inline(always)]
    pub(crate) const fn page_address(self, entry: u64, size: PageSize) -> u64 {
        let low = entry & crate::ADDRESS & !(size.bytes() - 1);
        // PSE-36: bits 20:13 are address bits 39:32; they are zero, or reserved and refused, on processors without.
        let high = if matches!(size, PageSize::Size4M) { (entry & bits(13, 20)) << (32 - 13) } else { 0 };
        low | high
    }
}

impl Paging {
    /// Where the top table is.
    #[inline(always)]
    pub(crate) const fn root(&self, mode: Mode) -> u64 {
        let mask = match mode {
            Mode::Off => 0,
            Mode::Bits32 => bits(12, 31),
            Mode::Pae => bits(5, 31),
            Mode::Long4 | Mode::Long5 => bits(12, self.features.maxphyaddr as u32 - 1),
        };
        self.controls.cr3 & mask
    }

    /// The entry at `level` if it is a PDPTE that the processor holds.
    #[inline(always)]
    pub(crate) fn held(&self, mode: Mode, level: u32, index: u64) -> Option<u64> {
        match self.pdptes {
            Some(pdptes) if mode == Mode::Pae && level == 3 => Some(pdptes[index as usize]),
            _ => None,
        }
    }

    /// The page size if the present `entry` at `level` maps a page, None if it points to a table.
    #[inline(always)]
    pub(crate) const fn is_leaf(&self, mode: Mode, level: u32, entry: u64) -> Option<PageSize> {
        let ps = entry & LARGE != 0;
        match (mode, level) {
            (_, 1) => Some(PageSize::Size4K),
            (Mode::Bits32, 2) if ps && self.controls.cr4 & CR4_PSE != 0 => Some(PageSize::Size4M),
            (Mode::Pae | Mode::Long4 | Mode::Long5, 2) if ps => Some(PageSize::Size2M),
            (Mode::Long4 | Mode::Long5, 3) if ps && self.features.pages_1g => Some(PageSize::Size1G),
            _ => None,
        }
    }

    /// The bits that must be zero in a present entry of `level` (SDM vol. 3, 4.3 to 4.5; APM vol. 2, 5.3).
    #[inline(always)]
    pub(crate) const fn reserved(&self, mode: Mode, level: u32, leaf: Option<PageSize>) -> u64 {
        let maxphyaddr = self.features.maxphyaddr as u32;
        if matches!(mode, Mode::Bits32) {
            return match leaf {
                Some(PageSize::Size4M) => bits(self.width_4m() - 19, 21),
                _ => 0,
            };
        }
        let nx = if self.controls.nx() { 0 } else { NO_EXECUTE };
        let address = bits(maxphyaddr, if mode.is_long() { 51 } else { 62 }) | nx;
        let low = match (level, leaf) {
            (_, Some(size)) => bits(13, size.shift() - 1),
            // Bit 5 is reserved too, but QEMU's walk takes it for an accessed bit and sets it in the guest's memory.
            (3, None) if matches!(mode, Mode::Pae) => return self.pdpte_reserved() & !ACCESSED,
            (3, None) => LARGE,
            (4.., None) if self.features.pml4e_bit8_reserved => LARGE | 1 << 8,
            (4.., None) => LARGE,
            _ => 0,
        };
        address | low
    }

    const fn pdpte_reserved(&self) -> u64 {
        PDPTE_RESERVED | bits(self.features.maxphyaddr as u32, 63)
    }

    /// Width of a 4 MiB page's physical address: the manual's M of PSE-36 (SDM vol. 3, 4.3).
    const fn width_4m(&self) -> u32 {
        let maxphyaddr = self.features.maxphyaddr as u32;
        match self.features.pse36 {
            false => 32,
            true if maxphyaddr < 40 => maxphyaddr,
            true => 40,
        }
    }
}

/// Why PDPTEs can't be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PdpteError {
    /// A present PDPTE has a reserved bit set: the instruction that loads it gets #GP(0).
    Reserved,
    /// There is no memory at the address in CR3.
    Unbacked(Gpa),
}

impl fmt::Display for PdpteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reserved => f.write_str("a present PDPTE has a reserved bit set"),
            Self::Unbacked(at) => write!(f, "there is no memory for the PDPTE at {at}"),
        }
    }
}

impl core::error::Error for PdpteError {}

/// Reads PAE's four PDPTEs as a load of CR3 does, and checks them (SDM vol. 3, 4.4.1).
pub fn load_pdptes<M: PhysMem>(mem: &M, paging: &Paging) -> Result<[u64; 4], PdpteError> {
    let table = paging.root(Mode::Pae);
    let mut pdptes = [0; 4];
    for (index, pdpte) in (0..).zip(&mut pdptes) {
        let at = Gpa::new(table + index * 8);
        *pdpte = mem.read_u64(at).ok_or(PdpteError::Unbacked(at))?;
        if *pdpte & PRESENT != 0 && *pdpte & paging.pdpte_reserved() != 0 {
            return Err(PdpteError::Reserved);
        }
    }
    Ok(pdptes)
}
