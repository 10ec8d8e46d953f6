//! The fuzzer's entry point, which the property tests use, too.

use crate::{Board, BoardConfig, Clock, Effect, Nanoseconds, Sink, Size};
use addr::Gpa;
use core::cell::Cell;

struct At<'a>(&'a Cell<u64>);

impl Clock for At<'_> {
    fn now(&self) -> Nanoseconds {
        Nanoseconds(self.0.get())
    }
}

/// A console that is full after each byte, until it has been asked once. Its input never ends.
#[derive(Default)]
struct Full {
    is_full: bool,
}

impl Sink for Full {
    fn put(&mut self, _: u8) {
        assert!(!self.is_full, "a byte was printed without room");
        self.is_full = true;
    }

    fn has_room(&mut self) -> bool {
        !core::mem::take(&mut self.is_full)
    }

    fn take(&mut self) -> Option<u8> {
        Some(0x5a)
    }

    fn input_period(&self) -> Option<Nanoseconds> {
        Some(Nanoseconds(1_000_000))
    }
}

const ACCESS_BYTES: usize = 8;

/// Pages of devices: the I/O APIC's, the HPET's, the test device's memory, and one that is none.
const PAGES: [u64; 4] = [0xfec0_0000, 0xfed0_0000, 0xff00_0000, 0xfed4_0000];

/// The I/O APIC's inputs. Each has at most one message.
const PINS: usize = 24;

/// Accesses to ports and pages of one board, in any order, while time runs. Each is eight bytes: kind and width, the port or the
/// offset in a page (2 bytes), the value (4 bytes), and the time that passes, as a power of two.
///
/// # Panics
/// If a value is wider than its access, a deadline is not in the future or comes nearer by a port that changes none, a byte is
/// printed without room, or the I/O APIC has more messages than inputs.
pub fn devices_ports(data: &[u8]) {
    let time = Cell::new(0);
    let config = BoardConfig { ram_bytes: 64 << 20, cpus: 2, boot_time: 1 << 30 };
    let mut board = Board::new(config, Full::default(), At(&time));
    for &[kind, port_low, port_high, v0, v1, v2, v3, step] in data.as_chunks::<ACCESS_BYTES>().0 {
        let port = u16::from_le_bytes([port_low, port_high]);
        let value = u32::from_le_bytes([v0, v1, v2, v3]);
        let size = [Size::Byte, Size::Byte, Size::Word, Size::Dword][usize::from(kind & 3)];
        let page = PAGES[usize::from(port_high >> 4 & 3)];
        let at = Gpa::new(page | u64::from(port & 0xfff));
        let bytes = &mut [v0, v1, v2, v3, v3, v2, v1, v0][..1 << (kind & 3)];
        let before = board.next_deadline();
        match kind >> 2 & 0xf {
            0..=2 => assert_eq!(board.read(port, size) & !size.ones(), 0),
            3..=5 => match board.write(port, size, value) {
                Effect::Exit(verdict) => {
                    assert!((0xf4..0xf8).contains(&port) || port.abs_diff(0xf4) < 4 && verdict <= 0xff)
                }
                Effect::PowerOff => assert!((0x601..=0x605).contains(&port)),
                Effect::Continue | Effect::Reset | Effect::Wait => {}
            },
            6 => board.set_gsi(v0 & 0x1f, v1 & 1 != 0),
            7 => drop(board.receive(v0)),
            8 => board.eoi(v0),
            9..=10 => assert_eq!(board.read_mmio(at, bytes), page != PAGES[3]),
            _ => assert_eq!(board.write_mmio(at, bytes), page != PAGES[3]),
        }
        let moved = board.take_deadline_moved();
        if let (0..=5, Some(after)) = (kind >> 2 & 0xf, board.next_deadline()) {
            let is_nearer = before.is_none_or(|before| after < before);
            assert!(!is_nearer || moved, "{port:#x}");
        }
        time.set(time.get().saturating_add(1 << (step & 0x2f)));
        board.advance();
        assert!(board.next_deadline().is_none_or(|deadline| deadline.0 > time.get()));
        if board.interrupt_pending() && kind >> 7 != 0 {
            board.acknowledge_interrupt();
        }
        assert!((0..=PINS).any(|_| board.take_message().is_none()) && !board.has_message());
    }
}

/// One access for [`devices_ports`], mostly to a port or a register that a device has.
#[cfg(test)]
pub(crate) fn access() -> impl proptest::strategy::Strategy<Value = [u8; ACCESS_BYTES]> {
    use proptest::prelude::*;
    // Behind the ports: the I/O APIC's window, registers of the HPET.
    const CLAIMED: [u16; 40] = [
        0x20, 0x21, 0x40, 0x41, 0x42, 0x43, 0x60, 0x61, 0x64, 0x70, 0x71, 0x92, 0xa0, 0xa1, 0xe0, 0xf4, 0x3f8, 0x3f9,
        0x3fa, 0x3fc, 0x4d0, 0x4d1, 0x510, 0x511, 0x600, 0x602, 0x604, 0x608, 0xcf8, 0xcf9, 0xcfc, 0x2009, 0x000,
        0x010, 0x040, 0x1010, 0x10f0, 0x1100, 0x1108, 0x1128,
    ];
    let port = prop_oneof![4 => prop::sample::select(&CLAIMED[..]), 1 => any::<u16>()];
    (any::<u8>(), port, any::<[u8; 4]>(), any::<u8>()).prop_map(|(kind, port, [v0, v1, v2, v3], step)| {
        let [low, high] = port.to_le_bytes();
        [kind, low, high, v0, v1, v2, v3, step]
    })
}
