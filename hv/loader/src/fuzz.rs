//! The fuzz targets, which property tests run too.

use crate::guest_view::{GuestView, Protocol};
use crate::*;
use addr::{Gpa, Hpa, PAGE_SIZE};
use alloc::{string::ToString, vec, vec::Vec};
use core::{fmt, ops::Range};

/// The memory of a guest or machine in one vector, with a record of the ranges written.
pub(crate) struct Guest {
    pub(crate) ram: GuestRam,
    pub(crate) bytes: Vec<u8>,
    pub(crate) written: Vec<Range<u64>>,
}

impl Guest {
    pub(crate) fn new(ram: GuestRam) -> Self {
        Self { ram, bytes: vec![0; ram.bytes() as usize], written: vec![] }
    }

    pub(crate) fn with_bytes(bytes: Vec<u8>) -> Self {
        Self { ram: GuestRam::default(), bytes, written: vec![] }
    }

    fn at(&mut self, at: Gpa, bytes: u64) -> Result<&mut [u8], MemoryError> {
        let range = at.raw()..at.raw().checked_add(bytes).ok_or(MemoryError::Outside(at))?;
        let part = self.bytes.get_mut(range.start as usize..range.end as usize).ok_or(MemoryError::Outside(at))?;
        self.written.push(range);
        Ok(part)
    }
}

/// Without its memory.
impl fmt::Debug for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a guest with {:?}, written {:x?}", self.ram, self.written)
    }
}

impl Guest {
    /// Checks that what was written is in usable RAM and was written once, but for the firmware's traces, which come first.
    pub(crate) fn check_writes(&self, platform: &Platform) {
        let usable = MemoryMap::new(platform.ram, platform.acpi.as_ref()).usable();
        let mut written: Vec<_> =
            self.written[bios_data::PAGES as usize..].iter().filter(|range| !range.is_empty()).collect();
        written.sort_by_key(|range| range.start);
        assert!(written.windows(2).all(|pair| pair[0].end <= pair[1].start), "{written:x?}");
        for range in written {
            assert!(usable.iter().any(|part| part.start <= range.start && range.end <= part.end), "{range:x?}");
        }
    }
}

impl GuestMemory for Guest {
    fn write(&mut self, at: Gpa, bytes: &[u8]) -> Result<(), MemoryError> {
        self.at(at, bytes.len() as u64)?.copy_from_slice(bytes);
        Ok(())
    }

    fn zero(&mut self, at: Gpa, bytes: u64) -> Result<(), MemoryError> {
        self.at(at, bytes)?.fill(0);
        Ok(())
    }
}

impl PhysRead for Guest {
    fn read(&self, at: Hpa, into: &mut [u8]) -> Result<(), Unreadable> {
        let start = usize::try_from(at.raw()).map_err(|_| Unreadable)?;
        let from = self.bytes.get(start..).and_then(|rest| rest.get(..into.len())).ok_or(Unreadable)?;
        into.copy_from_slice(from);
        Ok(())
    }
}

/// Loads any bytes as an image, with a module of the same length, in a guest with ACPI tables and in one without.
///
/// # Panics
/// If something is written outside of the guest's RAM or twice, or if the guest can't read its boot information.
pub fn loader_image(file: &[u8]) {
    for acpi in [None, Some(acpi_tables())] {
        let platform = Platform { ram: GuestRam::new(RAM).unwrap(), long_mode: acpi.is_some(), acpi };
        load_any(file, &platform);
    }
}

/// Loads a bzImage whose setup header is `data`, but for its magic numbers.
///
/// # Panics
/// As [`loader_image`].
pub fn loader_linux(data: &[u8]) {
    let mut file = vec![0; linux::header::START];
    file.extend(data);
    file.resize(file.len().max(0x1000), 0x90);
    file[linux::header::BOOT_FLAG..][..2].copy_from_slice(&[0x55, 0xaa]);
    file[linux::header::MAGIC..][..4].copy_from_slice(b"HdrS");
    loader_image(&file);
}

/// Loads a multiboot2 image whose tags are `data`, and with all that follows.
///
/// # Panics
/// As [`loader_image`].
pub fn loader_multiboot2(data: &[u8]) {
    const MAGIC: u32 = 0xe852_50d6;
    let length = 16 + data.len() as u32;
    let checksum = 0u32.wrapping_sub(MAGIC).wrapping_sub(length);
    let mut file: Vec<u8> = [MAGIC, 0, length, checksum].iter().flat_map(|word| word.to_le_bytes()).collect();
    file.extend(data);
    loader_image(&file);
}

/// Loads an ELF file whose program headers and contents are `data`, behind a PVH note.
///
/// # Panics
/// As [`loader_image`].
pub fn loader_pvh(data: &[u8]) {
    const HEADER: usize = 52;
    const PROGRAM_HEADER: usize = 32;
    const HEADERS: usize = 3;
    let notes = (HEADER + HEADERS * PROGRAM_HEADER) as u32;
    let mut file = b"\x7fELF\x01\x01\x01".to_vec();
    file.resize(16, 0);
    let words = |words: &[u32]| -> Vec<u8> { words.iter().flat_map(|word| word.to_le_bytes()).collect() };
    // Type 2 and machine 3, version, entry, offset of program headers, of section headers, flags.
    file.extend(words(&[3 << 16 | 2, 1, 0, HEADER as u32, 0, 0]));
    // Sizes of header and program header, count, sections.
    file.extend(words(&[(PROGRAM_HEADER << 16 | HEADER) as u32, HEADERS as u32, 0]));
    // A note with the entry point, and what `data` says.
    file.extend(words(&[4, notes, 0, 0, 20, 20, 4, 4]));
    let (headers, rest) = data.split_at(data.len().min((HEADERS - 1) * PROGRAM_HEADER));
    file.extend(headers);
    file.resize(notes as usize, 0);
    file.extend(words(&[4, 4, 18, u32::from_le_bytes(*b"Xen\0"), 0x10_0000]));
    file.extend(rest);
    loader_image(&file);
}

/// The RAM of the guests.
const RAM: u64 = 4 << 20;

/// Tables at the end of RAM.
pub(crate) fn acpi_tables() -> AcpiTables {
    AcpiTables {
        rsdp_at: Gpa::new(0xe_0000),
        rsdp: Rsdp { oem_id: *b"MICROH", rsdt: 0x3e_0000, xsdt: 0x3e_0040 },
        reclaimable: Gpa::new(0x3e_0000)..Gpa::new(0x3f_0000),
        nvs: Gpa::new(0x3f_0000)..Gpa::new(0x40_0000),
    }
}

fn load_any(file: &[u8], platform: &Platform) {
    let mut guest = Guest::new(platform.ram);
    let image = Module { bytes: file, string: b"guest a=b" };
    let module = Module { bytes: file, string: b"module with words" };
    let entry = match load(image, &[module], platform, &mut guest) {
        Ok(entry) => entry,
        Err(LoadError::Memory(error)) => panic!("checked before: {error}"),
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    guest.check_writes(platform);
    assert!(guest.written.iter().any(|range| range.contains(&entry.eip.into())));

    let found = GuestView::read(&guest.bytes, &entry);
    assert!(found.command_line == b"a=b" || found.command_line == b"guest a=b");
    assert_eq!(found.map, MemoryMap::new(platform.ram, platform.acpi.as_ref()).entries().collect::<Vec<_>>());
    let has_acpi = platform.acpi.is_some();
    assert!(match found.protocol {
        Protocol::Multiboot => found.rsdp.is_none(),
        // From version 2.14 on.
        Protocol::Linux => found.rsdp.is_none() || has_acpi,
        Protocol::Multiboot2 | Protocol::Pvh => found.rsdp.is_some() == has_acpi,
    });
    let [(range, string)] = &found.modules[..] else { panic!("{} modules", found.modules.len()) };
    assert!(found.protocol == Protocol::Linux || string == module.string);
    assert_eq!(range.start as u64 % PAGE_SIZE, 0);
    assert_eq!(&guest.bytes[range.clone()], file);
}

/// Reads any bytes as boot information of a machine with 512 bytes of memory.
///
/// # Panics
/// If memory is reported as usable that is not.
pub fn loader_boot_info(data: &[u8]) {
    let mut bytes = data.to_vec();
    bytes.resize(512, 0);
    match BootInfo::parse(Hpa::new(0), &Guest::with_bytes(bytes)) {
        Ok(read) => usable_is_usable(&read, &(Hpa::new(0x10_0000)..Hpa::new(0x18_0123))),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

pub(crate) fn usable_is_usable(read: &BootInfo, image: &Range<Hpa>) {
    let usable = read.usable_ranges(image);
    assert!(usable.windows(2).all(|pair| pair[0].end < pair[1].start));
    for range in usable {
        assert!(range.start < range.end && range.start.raw() >= 0x10_0000);
        assert!(range.start.is_aligned(PAGE_SIZE) && range.end.is_aligned(PAGE_SIZE));
        let last = Hpa::new(range.end.raw() - 1);
        for at in [range.start, last] {
            let in_region =
                |usable| read.regions.iter().any(|r| (r.kind == RegionKind::Usable) == usable && r.range.contains(&at));
            assert!(in_region(true) && !in_region(false) && !image.contains(&at));
            assert!(!read.modules.iter().any(|module| module.range.contains(&at)));
        }
    }
}

/// Reads any bytes as a command line, and assigns as many modules as it has bytes to VMs.
///
/// # Panics
/// If two VMs share a module or a name, if a module belongs to no VM, or if there are too many vCPUs.
pub fn loader_config(data: &[u8]) {
    let Ok(text) = core::str::from_utf8(data) else { return };
    let plan = Config::parse(text).and_then(|config| config.plan(text.len()));
    match plan {
        Ok(plan) => {
            let dealt: Vec<_> =
                plan.iter().flat_map(|vm| core::iter::once(vm.image).chain(vm.modules.clone())).collect();
            assert!(dealt.into_iter().eq(0..text.len()));
            let mut names: Vec<_> = plan.iter().map(|vm| vm.config.name.to_string()).collect();
            names.sort_unstable();
            assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
            assert!(plan.iter().all(|vm| (1..=config::MAX_VCPUS).contains(&vm.config.vcpus)));
            assert!(plan.iter().map(|vm| vm.config.vcpus).sum::<usize>() <= config::MAX_ALL_VCPUS);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
