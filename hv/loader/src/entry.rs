//! The state in which a multiboot image is entered (section 3.2 of the specification, "Machine state").

use addr::Gpa;

/// The registers that differ between guests. All others may have any value; they are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Physical address of the first instruction.
    pub eip: u32,
    /// The magic number of multiboot loaders: [`EAX`].
    pub eax: u32,
    /// The physical address of the boot information.
    pub ebx: u32,
}

impl Entry {
    pub(crate) fn new(eip: u32, info: Gpa) -> Self {
        // The information is in RAM, which ends below 4 GiB.
        Self { eip, eax: EAX, ebx: info.raw() as u32 }
    }
}

/// A segment register at entry, with its hidden part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The selector. "Exact values are undefined": there is no descriptor table for them to index.
    pub selector: u16,
    /// First linear address.
    pub base: u32,
    /// Offset of the last byte.
    pub limit: u32,
    /// Type, S, DPL, P in bits 0 to 7 and AVL, L, D/B, G in bits 12 to 15: bits 40 to 55 of a descriptor, and the lower
    /// half of the access rights in a VMCS.
    pub access: u16,
}

/// "The value 0x2BADB002 indicates to the operating system that it was loaded by a Multiboot-compliant boot loader."
pub const EAX: u32 = 0x2bad_b002;
/// PE set, PG clear; ET is always set since the i486.
pub const CR0: u32 = 0x11;
/// IF and VM clear; bit 1 is always set.
pub const EFLAGS: u32 = 0x2;
/// CS: a 32-bit read and execute segment over the whole 4 GiB.
pub const CODE: Segment = Segment { selector: 0x08, base: 0, limit: 0xffff_ffff, access: 0xc09b };
/// DS, ES, FS, GS, SS: a 32-bit read and write segment over the whole 4 GiB.
pub const DATA: Segment = Segment { selector: 0x10, base: 0, limit: 0xffff_ffff, access: 0xc093 };
/// TR: a busy 32-bit TSS. The specification does not mention TR, but VM entry demands it.
pub const TASK: Segment = Segment { selector: 0, base: 0, limit: 0x67, access: 0x008b };
/// GDTR and IDTR: "may be invalid". With this limit every use leads to a triple fault.
pub const TABLE_LIMIT: u16 = 0;
