//! The state in which a boot protocol enters a guest's first processor: ring 0, flat segments, interrupts off, caches on.
//!
//! The boot loader chooses an [`Entry`], and each backend loads it into its own structures. The rest of the state is that after
//! INIT ([`reset`](crate::reset)).

use crate::segment::{self, FlatSegment};
use crate::{CR0_PE, CR0_PG, CR4_PAE, EFER_LME};

/// Where a guest is entered, in which mode, and with what in its general registers. Boot protocols pass only addresses below
/// 4 GiB; the upper halves of the registers are zero. R8 to R15 are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the registers' own names")]
pub struct Entry {
    pub mode: Mode,
    pub eip: u32,
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
    pub esi: u32,
    pub edi: u32,
    pub ebp: u32,
    pub esp: u32,
}

/// The mode of the processor at entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// 32-bit protected mode, with paging off.
    Protected {
        /// The address of a [`gdt`] in guest memory; None if the protocol asks for none.
        gdt: Option<u32>,
    },
    /// 64-bit mode. A processor with shadow paging can't be entered so.
    Long {
        /// The address of a [`gdt`] in guest memory.
        gdt: u32,
        /// The address of the top page table (PML4) in guest memory.
        cr3: u32,
    },
}

/// The bits of the control registers that are set at entry, in addition to those after INIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the registers' own names")]
pub struct Controls {
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
}

/// The limit of the TSS that TR refers to: a 32-bit TSS without an I/O permission bitmap, as PVH demands it ("direct boot
/// ABI": "base of '0' and a limit of '0x67'").
pub const TSS_LIMIT: u16 = 0x67;

/// The selectors of Linux's boot protocol, `__BOOT_CS` and `__BOOT_DS` (Documentation/arch/x86/boot.rst, "32-bit Boot
/// Protocol").
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;

/// The global descriptor table that an [`Entry`] with one refers to: two null descriptors, code, data.
pub const fn gdt(is_long: bool) -> [u64; 4] {
    let code = if is_long { segment::CODE_64 } else { segment::CODE_32 };
    [0, 0, code.descriptor(), segment::DATA_32.descriptor()]
}

impl Entry {
    /// Entry at `eip` in `mode`, with zero in all general registers.
    pub const fn at(eip: u32, mode: Mode) -> Self {
        Self { mode, eip, eax: 0, ebx: 0, ecx: 0, edx: 0, esi: 0, edi: 0, ebp: 0, esp: 0 }
    }

    /// EAX to EDI in the order of their encoding (Intel SDM vol. 2, table 2-2), as registers of 64 bits.
    pub fn general_registers(&self) -> [u64; 8] {
        let Self { eax, ecx, edx, ebx, esp, ebp, esi, edi, .. } = *self;
        [eax, ecx, edx, ebx, esp, ebp, esi, edi].map(u64::from)
    }
}

impl Mode {
    /// What the control registers hold.
    pub fn controls(self) -> Controls {
        match self {
            Self::Protected { .. } => Controls { cr0: CR0_PE, cr3: 0, cr4: 0, efer: 0 },
            Self::Long { cr3, .. } => Controls { cr0: CR0_PE | CR0_PG, cr3: cr3.into(), cr4: CR4_PAE, efer: EFER_LME },
        }
    }

    /// The selector of CS, and its segment.
    pub const fn code(self) -> (u16, FlatSegment) {
        match self {
            Self::Protected { gdt: None } => (0x08, segment::CODE_32),
            Self::Protected { gdt: Some(_) } => (BOOT_CS, segment::CODE_32),
            Self::Long { .. } => (BOOT_CS, segment::CODE_64),
        }
    }

    /// The selector of DS, ES, FS, GS and SS, and their segment.
    pub const fn data(self) -> (u16, FlatSegment) {
        match self {
            Self::Protected { gdt: None } => (0x10, segment::DATA_32),
            _ => (BOOT_DS, segment::DATA_32),
        }
    }

    /// Base and limit of GDTR. Without a table, GDTR is as after INIT.
    pub const fn gdtr(self) -> (u32, u16) {
        match self {
            Self::Protected { gdt: None } => (0, crate::reset::LIMIT),
            Self::Protected { gdt: Some(base) } | Self::Long { gdt: base, .. } => {
                (base, size_of_val(&gdt(false)) as u16 - 1)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_those_of_the_manual() {
        assert_eq!(gdt(false), [0, 0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff]);
        assert_eq!(gdt(true)[2], 0x00af_9b00_0000_ffff);
    }

    #[test]
    fn selectors_refer_to_the_segments_in_the_table() {
        for mode in [Mode::Protected { gdt: Some(0x9000) }, Mode::Long { gdt: 0x9000, cr3: 0xa000 }] {
            let table = gdt(matches!(mode, Mode::Long { .. }));
            for (selector, segment) in [mode.code(), mode.data()] {
                assert_eq!(table[usize::from(selector) / 8], segment.descriptor());
                assert!(selector < mode.gdtr().1);
            }
            assert_eq!(mode.gdtr(), (0x9000, 31));
        }
        assert_eq!(Mode::Protected { gdt: None }.gdtr(), (0, 0xffff));
    }

    #[test]
    fn registers_are_in_the_order_of_their_encoding() {
        let mode = Mode::Protected { gdt: None };
        let entry = Entry { ebx: 3, esp: 4, ebp: 5, esi: 6, edi: 7, ecx: 1, edx: 2, ..Entry::at(0x10_0000, mode) };
        assert_eq!(entry.general_registers(), [0, 1, 2, 3, 4, 5, 6, 7]);
    }
}
