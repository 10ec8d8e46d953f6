//! The first MiB as a PC's firmware leaves it: interrupt vectors, the BIOS data area and the extended BIOS data area. Kernels read
//! them without being told to: one places its start-up code for other processors by the size of base memory, for instance.

use crate::memory::{GuestMemory, MemoryError};
use crate::memory_map::EBDA;
use addr::Gpa;

/// Where every interrupt vector of real mode points to: F000:FF53, an IRET in IBM's BIOS and in those compatible with it.
const IRET_AT: Gpa = Gpa::new(0xf_ff53);
const IRET: u8 = 0xcf;
const VECTOR: [u8; 4] = [0x53, 0xff, 0x00, 0xf0];
const VECTORS: usize = 256;

/// The BIOS data area is behind the vectors.
const BIOS_DATA: usize = 0x400;
const BIOS_DATA_BYTES: usize = 0x100;

/// Fields of the BIOS data area: address and value (IBM PS/2 and PC BIOS Interface Technical Reference, section 3; the same in
/// Linux's `arch/x86/include/asm/bios_ebda.h` and SeaBIOS's `src/std/bda.h`). The devices that are not there have zero.
const FIELDS: [(usize, &[u8]); 18] = [
    // COM1's port.
    (0x400, &[0xf8, 0x03]),
    // The segment of the extended BIOS data area.
    (0x40e, &((EBDA.start >> 4) as u16).to_le_bytes()),
    // Equipment: an x87, colour text of 80 columns, one serial port.
    (0x410, &[0x22, 0x02]),
    // KiB of base memory.
    (0x413, &((EBDA.start >> 10) as u16).to_le_bytes()),
    // Head and tail of the keyboard's buffer, as offsets from 0x400: it is empty.
    (0x41a, &[0x1e, 0x00]),
    (0x41c, &[0x1e, 0x00]),
    // Video mode 3, its columns, and the bytes of a page.
    (0x449, &[0x03]),
    (0x44a, &[80, 0]),
    (0x44c, &[0x00, 0x10]),
    // The cursor's last and first line.
    (0x460, &[0x07, 0x06]),
    // The port of the display's controller.
    (0x463, &[0xd4, 0x03]),
    // Ticks of 18.2 Hz since midnight.
    (0x46c, &[0; 4]),
    // Start and end of the keyboard's buffer.
    (0x480, &[0x1e, 0x00]),
    (0x482, &[0x3e, 0x00]),
    // The last row, and the height of a character.
    (0x484, &[24]),
    (0x485, &[16, 0]),
    // A VGA with a colour display.
    (0x487, &[0x60]),
    // A keyboard with 101 or 102 keys.
    (0x496, &[0x10]),
];

/// Writes all of that to the first MiB. An image's own segments may replace any of it.
///
/// # Errors
/// [`MemoryError`].
pub(crate) fn write(memory: &mut impl GuestMemory) -> Result<(), MemoryError> {
    let mut low = [0; BIOS_DATA + BIOS_DATA_BYTES];
    let (vectors, _) = low.as_chunks_mut();
    vectors[..VECTORS].fill(VECTOR);
    for (at, value) in FIELDS {
        low[at..][..value.len()].copy_from_slice(value);
    }
    memory.write(Gpa::new(0), &low)?;
    // The first byte is the area's size in KiB.
    memory.write(Gpa::new(EBDA.start), &[((EBDA.end - EBDA.start) >> 10) as u8])?;
    memory.write(IRET_AT, &[IRET])
}

/// The pages that [`write`] touches, each by one write.
pub(crate) const PAGES: u64 = 3;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GuestRam;
    use crate::fuzz::Guest;
    use crate::multiboot::u32_at;

    fn written() -> Guest {
        let mut guest = Guest::new(GuestRam::new(GuestRam::MIN_BYTES).unwrap());
        write(&mut guest).unwrap();
        guest
    }

    #[test]
    fn every_vector_points_to_an_iret() {
        let bytes = written().bytes;
        for vector in 0..256 {
            let [offset, segment] = [0, 2].map(|half| {
                let at = 4 * vector + half;
                usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
            });
            assert_eq!(bytes[segment * 16 + offset], 0xcf, "vector {vector}");
        }
    }

    #[test]
    fn base_memory_ends_where_the_ebda_begins() {
        let bytes = written().bytes;
        let half = |at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
        assert_eq!((half(0x40e), half(0x413)), (0x9fc0, 639));
        assert_eq!(half(0x40e) * 16, half(0x413) * 1024);
        assert_eq!(bytes[half(0x40e) * 16], 1, "the EBDA's size in KiB");
    }

    #[test]
    fn the_data_area_names_the_devices_that_are_there() {
        let bytes = written().bytes;
        assert_eq!(u32_at(&bytes, 0x400), Some(0x3f8), "COM1, and no COM2");
        assert_eq!(u32_at(&bytes, 0x410).unwrap() & 0xffff, 0x0222);
        // The keyboard's buffer is empty and has room for 16 keys.
        assert_eq!((u32_at(&bytes, 0x41a), u32_at(&bytes, 0x480)), (Some(0x001e_001e), Some(0x003e_001e)));
        assert_eq!((bytes[0x449], bytes[0x44a], bytes[0x484]), (3, 80, 24));
        assert!(bytes[0x500..0x9_fc00].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn the_pages_written_are_counted() {
        let mut pages: alloc::vec::Vec<_> = written().written.iter().map(|range| range.start >> 12).collect();
        pages.dedup();
        assert_eq!(pages.len() as u64, PAGES);
    }
}
