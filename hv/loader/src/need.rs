//! The memory that the VMs need before the first of them starts, and a check that the machine has it.

use crate::config::{Backing, Paging, VmConfig, VmName, VmPlan};
use crate::load;
use crate::memory::GuestRam;
use abi::reasons;
use addr::{PAGE_SIZE, PageSize};
use core::alloc::Layout;
use core::fmt;

/// The number of address spaces that the shadow of a VM keeps, besides those per vCPU.
const KEPT: usize = 16;
/// The number of address spaces that it keeps per vCPU, each for a process.
const KEPT_EACH: usize = 4;
/// The frames of a large page.
const LARGE: u64 = PageSize::Size2M.frames();
/// So many small frames a VM takes at once, if as many as [`FEW`] are free.
pub const BATCH: u64 = LARGE;
/// With fewer free frames than this, 32 MiB, VMs take them one by one.
pub const FEW: u64 = 16 * BATCH;
/// The number of tables of a walk to a page: one of each level.
const LEVELS: u64 = 4;
/// The most tables that an operation of a vCPU allocates in advance.
const SPARE: u64 = 4;

/// The memory that one VM needs before it starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// Bytes of the hypervisor's heap.
    pub heap: u64,
    /// Frames for its memory and for the tables that map it, by 4 KiB pages.
    pub frames: u64,
    /// The same if each page that it is loaded to is the largest that its configuration allows.
    pub frames_by_large_pages: u64,
    /// Frames below 4 GiB for the roots of shadow tables.
    pub roots: u64,
}

/// The numbers of free frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Free {
    /// All free frames.
    pub frames: u64,
    /// The free frames below 4 GiB.
    pub low: u64,
}

/// The kind of memory that is short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Frames for the hypervisor's heap.
    Heap,
    /// Frames for the VM's memory.
    Memory(Backing),
    /// Frames below 4 GiB.
    Roots,
}

/// There is not enough memory for a VM and all VMs before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// The first such VM.
    pub vm: VmName,
    /// The kind of memory.
    pub kind: Resource,
    /// The number of frames that the VM needs.
    pub needed: u64,
    /// The number of frames that the VMs before it left.
    pub left: u64,
    /// The number of frames before the first VM.
    pub of: u64,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vm, kind, needed, left, of } = self;
        let what = match kind {
            Resource::Heap => reasons::HEAP,
            Resource::Memory(Backing::Touch) => "for its image and modules",
            Resource::Memory(Backing::Reserve) => reasons::RESERVED,
            Resource::Roots => "below 4 GiB for the roots of its shadow tables",
        };
        write!(f, "{vm} needs {needed} frames {what}: {left} of {of} are left")
    }
}

impl core::error::Error for Shortage {}

impl VmConfig {
    /// The number of trees of its shadows. Each has a root below 4 GiB.
    #[must_use]
    pub const fn trees(&self) -> usize {
        match self.paging {
            Paging::Nested => 0,
            Paging::Vtlb => self.vcpus,
            Paging::Shadow => KEPT + KEPT_EACH * self.vcpus,
        }
    }

    /// The number of frames that are reserved for it until it ends: none, or those for all of its memory and for the
    /// tables that map it by 4 KiB pages, without shadow tables.
    #[must_use]
    pub const fn promise(&self) -> u64 {
        match self.backing {
            Backing::Touch => 0,
            Backing::Reserve => pages(self.ram) + tables(self.ram) + SPARE * self.vcpus as u64,
        }
    }

    /// The memory that it needs before it starts, with these allocations on the hypervisor's heap, and with files of these sizes, in
    /// bytes: its image, its modules, and the firmware's tables.
    #[must_use]
    pub fn need(&self, files: impl IntoIterator<Item = u64>, heap: impl IntoIterator<Item = Layout>) -> Need {
        let heap = heap.into_iter().map(|layout| heap_block(layout) as u64).sum();
        let (small, large) = files.into_iter().fold((load::PAGES + LEVELS, LEVELS + LARGE), |(small, large), bytes| {
            (small + frames_of_file(bytes), large + (bytes.div_ceil(PageSize::Size2M.bytes()) + 1) * LARGE)
        });
        let frames = match self.backing {
            Backing::Touch => small,
            Backing::Reserve => self.promise(),
        };
        let frames_by_large_pages = match self.pages {
            PageSize::Size4K => frames,
            _ => large.min(pages(self.ram) + tables(self.ram)).max(frames),
        };
        Need { heap, frames, frames_by_large_pages, roots: self.trees() as u64 }
    }
}

/// The number of bytes that the hypervisor's heap takes for an allocation: a buddy allocator's block.
#[must_use]
pub fn heap_block(layout: Layout) -> usize {
    layout.size().next_power_of_two().max(layout.align()).max(size_of::<usize>())
}

/// The number of frames for a file of `bytes` bytes, and for the tables that map it by 4 KiB pages, wherever it begins.
const fn frames_of_file(bytes: u64) -> u64 {
    bytes.div_ceil(PAGE_SIZE) + bytes.div_ceil(PageSize::Size2M.bytes()) + 1
}

/// The number of pages of RAM.
pub(crate) const fn pages(ram: GuestRam) -> u64 {
    ram.bytes() / PAGE_SIZE
}

/// The number of tables that map RAM, and one page outside of it, by 4 KiB pages.
const fn tables(ram: GuestRam) -> u64 {
    let last = ram.bytes().div_ceil(PageSize::Size2M.bytes());
    let above = ram.bytes().div_ceil(PageSize::Size1G.bytes());
    2 + above + last + 2
}

/// Why the VMs do not start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is not enough memory for one of them.
    Shortage(Shortage),
    /// There are not this many frames in a row below 4 GiB, for all roots of shadow tables.
    Roots(usize),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shortage(shortage) => shortage.fmt(f),
            Self::Roots(count) => {
                write!(f, "the machine lacks {count} frames in a row below 4 GiB, for the roots of shadow tables")
            }
        }
    }
}

impl core::error::Error for Refusal {}

/// What is to be told, or done, before VMs start for which there is enough memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remark {
    /// The VMs may use this many frames for their memory beyond those that there are.
    Overcommitted(u64),
    /// These free frames are too few for large pages: the VMs get [small ones](use_small_pages).
    SmallPages(u64),
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Overcommitted(missing) => {
                write!(f, "the VMs have {missing} {}: one that finds none left ends", reasons::OVERCOMMITTED)
            }
            Self::SmallPages(frames) => {
                write!(f, "the VMs get small pages: {frames} frames are too few for large ones")
            }
        }
    }
}

/// Has these VMs use small pages only.
pub fn use_small_pages<'p>(vms: impl IntoIterator<Item = &'p mut VmPlan>) {
    vms.into_iter().for_each(|plan| plan.config.pages = PageSize::Size4K);
}

/// Checks that the VMs, in their order, can start with these free frames. `keep_roots` sets as many frames in a row below 4 GiB aside as
/// it is told, or can't. Returns what the caller has to tell.
///
/// # Errors
/// [`Refusal`].
pub fn admit(
    vms: &[(VmConfig, Need)],
    free: Free,
    keep_roots: impl FnOnce(usize) -> bool,
) -> Result<impl Iterator<Item = Remark>, Refusal> {
    check(vms.iter().copied(), free).map_err(Refusal::Shortage)?;
    let roots = vms.iter().map(|(config, _)| config.trees()).sum();
    if roots != 0 && !keep_roots(roots) {
        return Err(Refusal::Roots(roots));
    }
    let overcommitted = overcommitted(vms.iter().map(|(config, _)| *config), free.frames).map(Remark::Overcommitted);
    let has_room = has_room_for_large_pages(vms.iter().map(|(_, need)| *need), free);
    Ok(overcommitted.into_iter().chain((!has_room).then_some(Remark::SmallPages(free.frames))))
}

/// Checks that there is enough memory for all VMs, in their order.
///
/// # Errors
/// [`Shortage`], for the first VM without enough memory.
fn check(vms: impl IntoIterator<Item = (VmConfig, Need)>, free: Free) -> Result<(), Shortage> {
    let mut left = free;
    for (config, need) in vms {
        let heap = need.heap.div_ceil(PAGE_SIZE);
        let shortage = |kind, needed, left, of| Err(Shortage { vm: config.name, kind, needed, left, of });
        if need.roots > left.low.min(left.frames) {
            return shortage(Resource::Roots, need.roots, left.low.min(left.frames), free.low);
        }
        left = Free { frames: left.frames - need.roots, low: left.low - need.roots };
        if heap > left.frames {
            return shortage(Resource::Heap, heap, left.frames, free.frames);
        }
        left.frames -= heap;
        if need.frames > left.frames {
            return shortage(Resource::Memory(config.backing), need.frames, left.frames, free.frames);
        }
        left.frames = match config.backing {
            // The last batch may be more than it needs.
            Backing::Touch if left.frames >= FEW => left.frames.saturating_sub(need.frames.next_multiple_of(BATCH)),
            _ => left.frames - need.frames,
        };
    }
    Ok(())
}

/// Whether the VMs can be loaded to large pages: then what one takes beyond its need is not missing when another is loaded.
fn has_room_for_large_pages(vms: impl IntoIterator<Item = Need>, free: Free) -> bool {
    let of = |need: Need| need.frames_by_large_pages + need.roots + need.heap.div_ceil(PAGE_SIZE);
    vms.into_iter().map(of).sum::<u64>() <= free.frames
}

/// The number of frames that the VMs may use for their memory beyond those that are `free`; None if there are enough.
fn overcommitted(vms: impl IntoIterator<Item = VmConfig>, free: u64) -> Option<u64> {
    let all: u64 = vms.into_iter().map(|vm| pages(vm.ram)).sum();
    all.checked_sub(free).filter(|&missing| missing > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec::Vec;

    fn vm(number: usize, paging: Paging, backing: Backing) -> VmConfig {
        VmConfig { paging, backing, ..VmConfig::nth(number) }
    }

    /// An allocation of so many bytes.
    fn bytes(size: usize) -> [Layout; 1] {
        [Layout::from_size_align(size, 1).unwrap()]
    }

    const FREE: Free = Free { frames: 20_000, low: 100 };

    #[test]
    fn memory_that_is_touched_need_not_be_there_and_what_is_reserved_must() {
        let touch = vm(0, Paging::Nested, Backing::Touch);
        let large = 2 * 512 + 512 + 4;
        assert_eq!(
            touch.need([8193], bytes(5000)),
            Need { heap: 8192, frames: 3 + 2 + 11 + 4, frames_by_large_pages: large, roots: 0 }
        );
        assert_eq!(
            touch.need([5 << 20, 1], []).frames,
            (1280 + 3 + 1) + (1 + 1 + 1) + 11 + 4,
            "each file has its tables"
        );
        assert_eq!(touch.promise(), 0);
        let reserve = vm(0, Paging::Nested, Backing::Reserve);
        // 64 MiB: 32 tables of the last level, one above them, the root and the one below, two for a page elsewhere.
        assert_eq!(reserve.promise(), 16_384 + 32 + 1 + 2 + 2 + 4);
        assert_eq!(reserve.need([8193], []).frames, reserve.promise());
        let many = [0, 1, 2].map(|n| vm(n, Paging::Nested, Backing::Touch));
        assert_eq!(check(many.map(|vm| (vm, vm.need([], []))), FREE), Ok(()));
        assert_eq!(overcommitted(many, FREE.frames), Some(3 * 16_384 - 20_000));
        assert_eq!(overcommitted([touch], FREE.frames), None);
    }

    #[test]
    fn large_pages_are_for_machines_with_room_for_those_of_all_vms() {
        let large = vm(0, Paging::Nested, Backing::Touch);
        let small = VmConfig { pages: PageSize::Size4K, ..large };
        let frames = |vm: VmConfig| vm.need([8193], bytes(4096)).frames_by_large_pages;
        assert_eq!((frames(large), frames(small)), (1540, 20));
        let tiny = VmConfig { ram: GuestRam::new(1 << 20).unwrap(), ..large };
        assert_eq!(frames(tiny), 256 + tables(tiny.ram), "no more than all of its memory");
        let has_room = |vm: VmConfig, frames| {
            has_room_for_large_pages([vm, vm].map(|vm| vm.need([8193], bytes(4096))), Free { frames, low: 0 })
        };
        assert!(has_room(large, 2 * 1541) && !has_room(large, 2 * 1541 - 1));
        assert!(has_room(small, 2 * 21));
    }

    #[test]
    fn a_vm_takes_frames_by_many_at_a_time_where_there_are_many() {
        let need = |frames| Need { heap: 0, frames, frames_by_large_pages: frames, roots: 0 };
        let check = |frames, second| {
            let vms = [need(20), need(second)].map(|need| (vm(0, Paging::Nested, Backing::Touch), need));
            check(vms, Free { frames, low: 0 }).is_ok()
        };
        assert!(check(FEW - 1, FEW - 21) && !check(FEW - 1, FEW - 20));
        assert!(check(FEW, FEW - BATCH) && !check(FEW, FEW - BATCH + 1));
    }

    #[test]
    fn a_shortage_tells_which_vm_lacks_what() {
        let text = |vms: &[(VmConfig, Need)]| check(vms.iter().copied(), FREE).unwrap_err().to_string();
        let reserved = [0, 1].map(|n| vm(n, Paging::Nested, Backing::Reserve)).map(|vm| (vm, vm.need([], bytes(4096))));
        let needed = reserved[1].0.promise();
        let left = 20_000 - needed - 2;
        assert_eq!(
            text(&reserved),
            alloc::format!("vm1 needs {needed} frames for its memory, which is reserved: {left} of 20000 are left")
        );
        let shadowed =
            [0, 1, 2, 3, 4, 5].map(|n| vm(n, Paging::Shadow, Backing::Touch)).map(|vm| (vm, vm.need([], [])));
        assert_eq!(
            text(&shadowed),
            "vm5 needs 20 frames below 4 GiB for the roots of its shadow tables: 0 of 100 are left"
        );
        let hungry = vm(7, Paging::Nested, Backing::Touch);
        assert_eq!(
            text(&[(hungry, hungry.need([], bytes(100 << 20)))]),
            "vm7 needs 32768 frames of the hypervisor's heap: 20000 of 20000 are left"
        );
        assert_eq!(
            text(&[(hungry, hungry.need([100 << 20], []))]),
            "vm7 needs 25666 frames for its image and modules: 20000 of 20000 are left"
        );
    }

    #[test]
    fn the_roots_of_the_largest_plan_are_counted() {
        let largest = VmConfig { vcpus: 16, ..vm(0, Paging::Shadow, Backing::Touch) };
        assert_eq!(largest.trees(), 80);
        assert_eq!(VmConfig { paging: Paging::Vtlb, ..largest }.trees(), 16);
        assert_eq!(VmConfig { paging: Paging::Nested, ..largest }.trees(), 0);
    }

    #[test]
    fn vms_are_admitted_with_what_is_to_be_told() {
        let admitted = |vms: &[(VmConfig, Need)], free| {
            admit(vms, free, |_| panic!("no shadow tables")).map(|remarks| remarks.collect::<Vec<_>>())
        };
        let small = vm(0, Paging::Nested, Backing::Touch);
        let vms = [(small, small.need([4096], bytes(4096)))];
        let need = vms[0].1;
        let enough = Free { frames: pages(small.ram) + need.frames_by_large_pages, low: 0 };
        assert_eq!(admitted(&vms, enough), Ok(Vec::new()));
        let few = Free { frames: need.frames_by_large_pages, low: 0 };
        let missing = pages(small.ram) - few.frames;
        let heap = need.heap.div_ceil(PAGE_SIZE);
        assert!(heap > 0);
        assert_eq!(
            admitted(&vms, few),
            Ok([Remark::Overcommitted(missing), Remark::SmallPages(few.frames)].to_vec()),
            "the heap's frames are missing"
        );
        let none = Free { frames: 0, low: 0 };
        assert!(matches!(admitted(&vms, none), Err(Refusal::Shortage(_))));
        assert_eq!(
            Remark::Overcommitted(3).to_string(),
            alloc::format!("the VMs have 3 {}: one that finds none left ends", reasons::OVERCOMMITTED)
        );
    }

    #[test]
    fn roots_are_set_aside_at_once_for_all_vms() {
        let shadowed = [0, 1].map(|n| vm(n, Paging::Shadow, Backing::Touch)).map(|vm| (vm, vm.need([], [])));
        let each = shadowed[0].0.trees();
        let mut asked = Vec::new();
        let mut ask = |roots| {
            asked.push(roots);
            true
        };
        assert!(admit(&shadowed, FREE, &mut ask).is_ok());
        assert_eq!(asked, [2 * each]);
        let refused = admit(&shadowed, FREE, |_| false).err();
        assert_eq!(refused, Some(Refusal::Roots(2 * each)));
        assert_eq!(
            refused.unwrap().to_string(),
            alloc::format!(
                "the machine lacks {} frames in a row below 4 GiB, for the roots of shadow tables",
                2 * each
            )
        );
    }
}
