//! The fuzz targets, which property tests run too.

use crate::*;
use addr::{Gpa, Hpa, PAGE_SIZE};
use alloc::{string::ToString, vec, vec::Vec};
use core::ops::Range;

/// The memory of a guest or machine in one vector, with a record of the ranges written.
pub(crate) struct Guest {
    pub(crate) ram: GuestRam,
    pub(crate) bytes: Vec<u8>,
    written: Vec<Range<u64>>,
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
        if !self.ram.holds(&range) {
            return Err(MemoryError::Outside(at));
        }
        self.written.push(range.clone());
        Ok(&mut self.bytes[range.start as usize..range.end as usize])
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

/// Loads any bytes as an image, with a module of the same length.
///
/// # Panics
/// If something is written outside of the guest's RAM or twice, or if the guest can't read its boot information.
pub fn loader_image(file: &[u8]) {
    let mut guest = Guest::new(GuestRam::new(4 << 20).unwrap());
    let modules = [Module { bytes: file, string: b"module with words" }];
    let entry = match load(Module { bytes: file, string: b"guest a=b" }, &modules, guest.ram, &mut guest) {
        Ok(entry) => entry,
        Err(LoadError::Memory(error)) => panic!("checked before: {error}"),
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    assert!(guest.ram.backs(Gpa::new(entry.eip.into())));
    let mut written: Vec<_> = guest.written.iter().filter(|range| !range.is_empty()).collect();
    written.sort_by_key(|range| range.start);
    assert!(written.windows(2).all(|pair| pair[0].end <= pair[1].start));

    let read = BootInfo::parse(Hpa::new(entry.ebx.into()), &guest).unwrap();
    assert_eq!(read.command_line, "guest a=b");
    let module = &read.modules[0];
    assert_eq!(module.string, modules[0].string);
    assert!(module.range.start.is_aligned(PAGE_SIZE));
    assert_eq!(&guest.bytes[module.range.start.raw() as usize..module.range.end.raw() as usize], file);
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
