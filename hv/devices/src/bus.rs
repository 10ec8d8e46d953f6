//! The bus: which device has a port or an address, and accesses to registers of 32 bits.

use crate::Size;
use abi::mmio;
use abi::ports::{
    DEBUG_CONSOLE, DEBUG_EXIT, DEBUG_EXIT_SIZE, FW_CFG_DATA, FW_CFG_SELECTOR, KEYBOARD_COMMAND, KEYBOARD_DATA,
    PCI_ADDRESS, PCI_DATA, PICS, PIT, PIT_COMMAND, PM_TIMER, PM1_CONTROL, PM1_EVENT, PORT_B, RTC,
};
use addr::Gpa;

/// A device on the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Device {
    MasterPic,
    SlavePic,
    Pit,
    KeyboardData,
    KeyboardCommand,
    Speaker,
    Rtc,
    /// Ports that kernels write to pass time.
    Delay,
    Port92,
    TestScratch,
    TestFlush,
    TestIrqs,
    DebugConsole,
    DebugExit,
    FwCfg,
    PowerManagement,
    /// PCI's address register, which is one for dwords alone: the reset control register is among its bytes.
    PciAddress,
    PciData,
}

impl Device {
    /// Whether a write may bring the next interrupt of a timer nearer: it sets the timer, or lets its interrupt through. Not the delay
    /// ports: kernels write them after many accesses.
    pub(crate) const fn moves_deadline(self) -> bool {
        use Device::{MasterPic, Pit, PowerManagement, Rtc, SlavePic, Speaker};
        matches!(self, MasterPic | SlavePic | Pit | Speaker | Rtc | PowerManagement)
    }
}

/// How a device takes an access of more than a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wide {
    /// As bytes at consecutive ports, the lowest first, as on an ISA bus.
    Bytes,
    /// As a whole, if it lies in one aligned dword of the device's ports; as bytes otherwise.
    Whole,
    /// As a whole, if it is a dword at the first port; as bytes otherwise.
    Dword,
}

/// The ports of a device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Range {
    first: u16,
    last: u16,
    wide: Wide,
    pub(crate) device: Device,
}

const fn range(first: u16, last: u16, wide: Wide, device: Device) -> Range {
    Range { first, last, wide, device }
}

/// In ascending order, for the search. The ports that are accessed most often (COM1, ELCR) are not here: a
/// [`Board`](crate::Board) tests for them first, as it does for reads of timers.
static PORTS: [Range; 21] = [
    range(PICS[0], PICS[0] + 1, Wide::Bytes, Device::MasterPic),
    range(PIT, PIT_COMMAND, Wide::Bytes, Device::Pit),
    range(KEYBOARD_DATA, KEYBOARD_DATA, Wide::Bytes, Device::KeyboardData),
    range(PORT_B, PORT_B, Wide::Bytes, Device::Speaker),
    range(KEYBOARD_COMMAND, KEYBOARD_COMMAND, Wide::Bytes, Device::KeyboardCommand),
    range(RTC, RTC + 1, Wide::Bytes, Device::Rtc),
    range(0x80, 0x80, Wide::Bytes, Device::Delay),
    range(0x92, 0x92, Wide::Bytes, Device::Port92),
    range(PICS[1], PICS[1] + 1, Wide::Bytes, Device::SlavePic),
    range(0xe0, 0xe3, Wide::Whole, Device::TestScratch),
    range(0xe4, 0xe7, Wide::Whole, Device::TestFlush),
    range(DEBUG_CONSOLE, DEBUG_CONSOLE, Wide::Bytes, Device::DebugConsole),
    range(0xed, 0xed, Wide::Bytes, Device::Delay),
    range(DEBUG_EXIT, DEBUG_EXIT + DEBUG_EXIT_SIZE - 1, Wide::Whole, Device::DebugExit),
    range(FW_CFG_SELECTOR, FW_CFG_DATA, Wide::Whole, Device::FwCfg),
    range(PM1_EVENT, PM1_EVENT + 3, Wide::Whole, Device::PowerManagement),
    range(PM1_CONTROL, PM1_CONTROL + 1, Wide::Whole, Device::PowerManagement),
    range(PM_TIMER, PM_TIMER + 3, Wide::Whole, Device::PowerManagement),
    range(PCI_ADDRESS, PCI_ADDRESS + 3, Wide::Dword, Device::PciAddress),
    range(PCI_DATA, PCI_DATA + 3, Wide::Whole, Device::PciData),
    range(0x2000, 0x2017, Wide::Bytes, Device::TestIrqs),
];

const _: () = {
    let mut n = 0;
    while n < PORTS.len() {
        assert!(PORTS[n].first <= PORTS[n].last);
        assert!(n == 0 || PORTS[n - 1].last < PORTS[n].first);
        n += 1;
    }
};

/// The range that has `port`.
pub(crate) fn find(port: u16) -> Option<&'static Range> {
    let range = &PORTS[PORTS.partition_point(|range| range.last < port).min(PORTS.len() - 1)];
    (range.first..=range.last).contains(&port).then_some(range)
}

impl Range {
    /// Whether the device takes this access, which begins at one of its ports, as a whole.
    pub(crate) fn takes_whole(&self, port: u16, size: Size) -> bool {
        let bytes = size as u16;
        match self.wide {
            Wide::Bytes => size == Size::Byte,
            Wide::Whole => (port & 3) + bytes <= 4 && port - self.first + bytes <= self.last - self.first + 1,
            Wide::Dword => size == Size::Byte || port == self.first && size == Size::Dword,
        }
    }
}

/// A page of a device's that is mapped to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Page {
    IoApic,
    Hpet,
    TestMemory,
}

static PAGES: [(u64, Page); 3] =
    [(mmio::IOAPIC as u64, Page::IoApic), (mmio::HPET as u64, Page::Hpet), (0xff00_0000, Page::TestMemory)];

/// The page that has guest-physical address `at`, and the offset in it.
pub(crate) fn find_page(at: Gpa) -> Option<(Page, u16)> {
    let start = at.align_down(addr::PAGE_SIZE).raw();
    let &(_, page) = PAGES.iter().find(|&&(first, _)| first == start)?;
    Some((page, at.page_offset() as u16))
}

/// A write of some bytes of a register of 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DwordWrite {
    /// The bits written, each at its place in the register.
    pub(crate) value: u32,
    mask: u32,
}

impl DwordWrite {
    /// A write at `port`, whose lowest two bits are the byte in the register.
    pub(crate) fn new(port: u16, size: Size, value: u32) -> Self {
        let shift = 8 * u32::from(port & 3);
        Self { value: (value & size.ones()) << shift, mask: size.ones() << shift }
    }

    /// What becomes of a register that is `old`, of which these bits are `writable`.
    pub(crate) fn onto(self, old: u32, writable: u32) -> u32 {
        let mask = self.mask & writable;
        old & !mask | self.value & mask
    }
}

/// The part of a register of 32 bits that a read at `port` gives.
pub(crate) fn part(register: u32, port: u16, size: Size) -> u32 {
    register >> (8 * u32::from(port & 3)) & size.ones()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_port_has_the_device_whose_range_it_is_in() {
        for port in 0..=u16::MAX {
            let wanted = PORTS.iter().find(|range| range.first <= port && port <= range.last);
            assert_eq!(find(port).map(|range| range.device), wanted.map(|range| range.device), "{port:#x}");
        }
    }

    #[test]
    fn no_range_hides_a_port_that_the_board_tests_for_first() {
        assert!((0x3f8..=0x3ff).chain(0x4d0..=0x4d1).all(|port| find(port).is_none()));
    }

    proptest! {
        #[test]
        fn a_write_reads_back_in_parts_and_leaves_the_rest(old: u32, value: u32, byte in 0u16..4, wide: bool) {
            let size = if wide { Size::Word } else { Size::Byte };
            prop_assume!(byte + size as u16 <= 4);
            let new = DwordWrite::new(byte, size, value).onto(old, u32::MAX);
            prop_assert_eq!(part(new, byte, size), value & size.ones());
            let written = size.ones() << (8 * byte);
            prop_assert_eq!(new & !written, old & !written);
            prop_assert_eq!(DwordWrite::new(byte, size, value).onto(old, 0), old);
        }
    }
}
