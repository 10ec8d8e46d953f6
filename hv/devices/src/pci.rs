//! PCI configuration mechanism 1 (PCI 2.3, section 3.2.2.3.2), and the functions on bus 0: an i440FX host bridge, and a PIIX3's ISA
//! bridge with a PIIX4's power management beside it, as QEMU's `pc` has them.
//!
//! A [`Function`] is its registers and which of their bits a guest can write. A base address register needs no more: the bits below
//! a range's size are not writable, by which software finds the size.

use crate::Size;
use crate::bus::{DwordWrite, part};
use crate::pm;
use abi::irq::SCI;

/// Bit 31 of the address register: the data ports access what bits 23:2 name.
const ENABLE: u32 = 1 << 31;
/// The bits of the address register that there are.
const ADDRESS: u32 = ENABLE | 0x00ff_fffc;

const REGISTERS: usize = 64;

/// Offsets of dwords in the configuration header (PCI 2.3, section 6.1).
mod register {
    pub(super) const ID: u8 = 0x00;
    pub(super) const COMMAND: u8 = 0x04;
    pub(super) const CLASS: u8 = 0x08;
    pub(super) const HEADER: u8 = 0x0c;
    pub(super) const INTERRUPT: u8 = 0x3c;
}

/// Of the command register: I/O space, memory space, bus master; parity errors and SERR# answers.
const COMMAND_WRITABLE: u32 = 0x0147;
/// The header type of a function of several.
const MULTIFUNCTION: u32 = 0x80 << 16;

/// A register that is not zero, or not read-only: its offset, its value after reset, and its writable bits.
type Register = (u8, u32, u32);

/// What a function is.
struct Identity {
    /// Device and function number, as in bits 15:8 of the address register.
    at: u8,
    registers: &'static [Register],
}

const fn at(device: u8, function: u8) -> u8 {
    device << 3 | function
}

const fn id(vendor: u16, device: u16) -> Register {
    (register::ID, (device as u32) << 16 | vendor as u32, 0)
}

const fn class(class: u32, revision: u8) -> Register {
    (register::CLASS, class << 8 | revision as u32, 0)
}

const FUNCTIONS: usize = 3;

static IDENTITIES: [Identity; FUNCTIONS] = [
    // Intel 440FX (290549): host bridge. The registers for memory that firmware sets up are not there.
    Identity {
        at: at(0, 0),
        registers: &[id(0x8086, 0x1237), (register::COMMAND, 0x0006, COMMAND_WRITABLE), class(0x06_00_00, 0x02)],
    },
    // Intel PIIX3 (290550): PCI to ISA bridge.
    Identity {
        at: at(1, 0),
        registers: &[
            id(0x8086, 0x7000),
            (register::COMMAND, 0x0200_0007, 0),
            class(0x06_01_00, 0x00),
            (register::HEADER, MULTIFUNCTION, 0),
            // PIRQA to PIRQD, each off.
            (0x60, 0x8080_8080, 0x8f8f_8f8f),
            // DLC: passive release is on, as firmware leaves it.
            (0x80, 0x0002_0000, 0x000f_0000),
        ],
    },
    // Intel PIIX4 (290562), function 3: power management. Its I/O range can't be moved.
    Identity {
        at: at(1, 3),
        registers: &[
            id(0x8086, 0x7113),
            (register::COMMAND, 0x0280_0001, 0),
            class(0x06_80_00, 0x03),
            (register::INTERRUPT, 0x0100 | SCI as u32, 0xff),
            // PMBASE, an I/O range; PMREGMISC: it is on.
            (0x40, pm::BASE as u32 | 1, 0),
            (0x80, 1, 0),
        ],
    },
];

/// A function's configuration registers.
#[derive(Debug)]
struct Function {
    values: [u32; REGISTERS],
    writable: [u32; REGISTERS],
}

impl Function {
    fn new(identity: &Identity) -> Self {
        let mut function = Self { values: [0; REGISTERS], writable: [0; REGISTERS] };
        for &(offset, value, writable) in identity.registers {
            function.values[usize::from(offset / 4)] = value;
            function.writable[usize::from(offset / 4)] = writable;
        }
        function
    }
}

/// The bus and its address register.
#[derive(Debug)]
pub(crate) struct Pci {
    address: u32,
    functions: [Function; FUNCTIONS],
}

impl Pci {
    pub(crate) fn new() -> Self {
        Self { address: 0, functions: core::array::from_fn(|n| Function::new(&IDENTITIES[n])) }
    }

    /// Reads a dword at port 0xcf8.
    pub(crate) fn address(&self) -> u32 {
        self.address
    }

    /// Writes a dword at port 0xcf8.
    pub(crate) fn set_address(&mut self, value: u32) {
        self.address = value & ADDRESS;
    }

    /// Reads data `port`, 0xcfc to 0xcff. A function that is absent reads as ones.
    pub(crate) fn read(&self, port: u16, size: Size) -> u32 {
        match self.selected() {
            Some((n, register)) => part(self.functions[n].values[register], port, size),
            None => size.ones(),
        }
    }

    /// Writes data `port`.
    pub(crate) fn write(&mut self, port: u16, size: Size, value: u32) {
        if let Some((n, register)) = self.selected() {
            let Function { values, writable } = &mut self.functions[n];
            values[register] = DwordWrite::new(port, size, value).onto(values[register], writable[register]);
        }
    }

    /// The function that the address register names, and the number of its register.
    fn selected(&self) -> Option<(usize, usize)> {
        let [register, function, bus, _] = self.address.to_le_bytes();
        if self.address & ENABLE == 0 || bus != 0 {
            return None;
        }
        let n = IDENTITIES.iter().position(|identity| identity.at == function)?;
        Some((n, usize::from(register >> 2)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn select(pci: &mut Pci, device: u8, function: u8, register: u8) {
        pci.set_address(ENABLE | u32::from(at(device, function)) << 8 | u32::from(register));
    }

    fn read(pci: &mut Pci, device: u8, function: u8, register: u8) -> u32 {
        select(pci, device, function, register);
        pci.read(0xcfc, Size::Dword)
    }

    #[test]
    fn a_scan_finds_three_functions() {
        let mut pci = Pci::new();
        let mut found = Vec::new();
        for function in 0..=255 {
            let id = read(&mut pci, function >> 3, function & 7, 0);
            if id != 0xffff_ffff {
                let class = read(&mut pci, function >> 3, function & 7, 8) >> 8;
                found.push((function, id, class));
            }
        }
        assert_eq!(
            found,
            [(0x00, 0x1237_8086, 0x06_0000), (0x08, 0x7000_8086, 0x06_0100), (0x0b, 0x7113_8086, 0x06_8000)]
        );
        assert_eq!(read(&mut pci, 1, 0, 0x0c) >> 16 & 0xff, 0x80, "a scan goes on to function 3");
    }

    #[test]
    fn other_buses_and_a_disabled_address_are_absent() {
        let mut pci = Pci::new();
        for address in [0x0000_0000, 0x8001_0000, 0x80ff_0000] {
            pci.set_address(address);
            assert_eq!(pci.read(0xcfc, Size::Dword), 0xffff_ffff);
            pci.write(0xcfc, Size::Dword, 0);
        }
        assert_eq!(read(&mut pci, 0, 0, 0), 0x1237_8086);
    }

    #[test]
    fn bytes_and_words_are_parts_of_the_dword() {
        let mut pci = Pci::new();
        select(&mut pci, 1, 3, 0);
        assert_eq!([0xcfc, 0xcfe].map(|port| pci.read(port, Size::Word)), [0x8086, 0x7113]);
        assert_eq!([0xcfc, 0xcfd, 0xcfe, 0xcff].map(|port| pci.read(port, Size::Byte)), [0x86, 0x80, 0x13, 0x71]);
    }

    #[test]
    fn the_address_keeps_its_bits_and_no_others() {
        let mut pci = Pci::new();
        pci.set_address(0xffff_ffff);
        assert_eq!(pci.address(), 0x80ff_fffc);
    }

    #[test]
    fn power_management_tells_its_ports_and_its_interrupt() {
        let mut pci = Pci::new();
        assert_eq!(read(&mut pci, 1, 3, 0x40), 0x601);
        assert_eq!(read(&mut pci, 1, 3, 0x80) & 1, 1);
        assert_eq!(read(&mut pci, 1, 3, 0x3c), 0x0109);
        pci.write(0xcfc, Size::Byte, 0x0b);
        assert_eq!(read(&mut pci, 1, 3, 0x3c), 0x010b, "the line is software's note");
    }

    proptest! {
        #[test]
        fn only_writable_bits_change(function in 0usize..FUNCTIONS, register in 0u8..64, value: u32) {
            let mut pci = Pci::new();
            let of = IDENTITIES[function].at;
            let before = read(&mut pci, of >> 3, of & 7, register * 4);
            pci.write(0xcfc, Size::Dword, value);
            let writable = pci.functions[function].writable[usize::from(register)];
            let after = read(&mut pci, of >> 3, of & 7, register * 4);
            prop_assert_eq!(after, before & !writable | value & writable);
        }
    }
}
