//! Addresses that no Rust object has.

use core::fmt;

use addr::Gva;

use access::{call, read_byte, write_byte};

/// The end of the one-to-one map, and so of every address that a Rust object may have.
pub const IDENTITY_END: Gva = Gva::new(1 << 32);

/// Where there is neither memory nor a device: above the most memory that a guest has, and below the APICs.
pub const NOWHERE: RawGva = RawGva(Gva::new(0xd000_0000));

/// An address that tests may read, write or execute, present or not, without harm to any Rust object: in a free frame
/// of the one-to-one map ([`crate::ram::Frame::address`]), or above that map.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RawGva(Gva);

impl RawGva {
    /// An address above the one-to-one map, canonical or not.
    pub fn above_identity(at: Gva) -> Self {
        assert!(at >= IDENTITY_END, "{at} may belong to a Rust object");
        Self(at)
    }

    /// Only for addresses within free frames.
    pub(crate) fn in_frame(at: Gva) -> Self {
        Self(at)
    }

    /// The address as a register holds it.
    pub const fn raw(self) -> u64 {
        self.0.raw()
    }

    /// The address.
    pub const fn gva(self) -> Gva {
        self.0
    }

    /// The address `bytes` further on in the same page; above the one-to-one map anywhere.
    pub fn plus(self, bytes: u64) -> Self {
        let sum = self.0.wrapping_add(bytes);
        assert!(self.is_above_identity() || self.0.frame() == sum.frame(), "{sum} is another frame's");
        if self.is_above_identity() { Self::above_identity(sum) } else { Self(sum) }
    }

    /// Reads a byte, by the one instruction at [`RawGva::read_rip`].
    pub fn read(self) -> u8 {
        read_byte(self.raw())
    }

    /// Writes a byte, by the one instruction at [`RawGva::write_rip`].
    pub fn write(self, value: u8) {
        write_byte(self.raw(), value);
    }

    /// Calls the code there; a RET (0xc3) comes back.
    pub fn call(self) {
        call(self.raw());
    }

    /// Where [`RawGva::read`] accesses memory.
    pub fn read_rip() -> u64 {
        read_byte as *const () as u64
    }

    /// Where [`RawGva::write`] accesses memory.
    pub fn write_rip() -> u64 {
        write_byte as *const () as u64
    }

    /// Whether it is above the one-to-one map.
    pub fn is_above_identity(self) -> bool {
        self.0 >= IDENTITY_END
    }
}

impl fmt::Debug for RawGva {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Functions of their own, so that a fault's RIP is known to be theirs.
#[cfg(target_arch = "x86_64")]
mod access {
    use core::arch::naked_asm;

    #[unsafe(naked)]
    pub(super) extern "C" fn read_byte(at: u64) -> u8 {
        naked_asm!("mov al, [rdi]", "ret")
    }

    #[unsafe(naked)]
    pub(super) extern "C" fn write_byte(at: u64, value: u8) {
        naked_asm!("mov [rdi], sil", "ret")
    }

    #[unsafe(naked)]
    pub(super) extern "C" fn call(at: u64) {
        naked_asm!("jmp rdi")
    }
}

/// The same by the 32-bit calling convention.
#[cfg(target_arch = "x86")]
mod access {
    use core::arch::naked_asm;

    #[unsafe(naked)]
    pub(super) extern "C" fn read_byte(at: u64) -> u8 {
        naked_asm!("mov eax, [esp + 4]", "mov al, [eax]", "ret")
    }

    #[unsafe(naked)]
    pub(super) extern "C" fn write_byte(at: u64, value: u8) {
        naked_asm!("mov eax, [esp + 4]", "mov ecx, [esp + 12]", "mov [eax], cl", "ret")
    }

    #[unsafe(naked)]
    pub(super) extern "C" fn call(at: u64) {
        naked_asm!("jmp [esp + 4]")
    }
}
