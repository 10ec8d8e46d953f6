//! The memory that is free.

use core::ptr;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use addr::{Gfn, Gpa, Gva, PAGE_SIZE, PageSize};

use crate::boot::{Boot, Region};
use crate::raw_gva::{IDENTITY_END, RawGva};

/// Where memory begins again above the real mode's first MiB and its holes.
pub const HIGH_MEMORY: Gpa = Gpa::new(1 << 20);

/// A frame of free memory: in the loader's memory map, and neither the image's nor the loader's. Two holders of one
/// frame see each other's writes, as two pieces of hardware would.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame(Gfn);

impl Frame {
    /// The frame's address.
    pub fn gpa(self) -> Gpa {
        self.0.start()
    }

    /// `offset` in the frame, by the one-to-one map.
    pub fn address(self, offset: u64) -> RawGva {
        assert!(offset < PAGE_SIZE);
        RawGva::in_frame(Gva::new(self.gpa().raw() + offset))
    }

    /// The `index`th 64-bit word.
    pub fn read(self, index: usize) -> u64 {
        // SAFETY: the frame is RAM that no Rust object has, mapped one to one, and `word` stays in it.
        unsafe { ptr::read_volatile(self.word(index)) }
    }

    /// Sets the `index`th 64-bit word.
    pub fn write(self, index: usize, value: u64) {
        // SAFETY: as for `read`.
        unsafe { ptr::write_volatile(self.word(index), value) }
    }

    /// Copies `bytes` to the frame from `offset` on.
    pub fn write_bytes(self, offset: u64, bytes: &[u8]) {
        for (at, byte) in (offset..).zip(bytes) {
            self.address(at).write(*byte);
        }
    }

    fn word(self, index: usize) -> *mut u64 {
        assert!(index < Self::WORDS);
        ptr::with_exposed_provenance_mut(self.gpa().raw() as usize + index * size_of::<u64>())
    }

    /// 64-bit words in a frame.
    pub const WORDS: usize = PAGE_SIZE as usize / size_of::<u64>();
}

/// 2 MiB of free frames, aligned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Block(Gfn);

impl Block {
    /// The address.
    pub fn gpa(self) -> Gpa {
        self.0.start()
    }

    /// The `index`th frame.
    pub fn frame(self, index: u64) -> Frame {
        assert!(index < PageSize::Size2M.frames());
        Frame(self.0.add(index))
    }
}

/// Free frames in a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Area {
    first: Gfn,
    frames: u64,
}

impl From<Frame> for Area {
    fn from(Frame(first): Frame) -> Self {
        Self { first, frames: 1 }
    }
}

impl From<Block> for Area {
    fn from(Block(first): Block) -> Self {
        Self { first, frames: PageSize::Size2M.frames() }
    }
}

impl Area {
    /// The address.
    pub fn gpa(self) -> Gpa {
        self.first.start()
    }

    /// How many frames.
    pub fn frames(self) -> u64 {
        self.frames
    }

    /// How many bytes.
    pub fn bytes(self) -> u64 {
        self.frames * PAGE_SIZE
    }

    /// The `index`th frame.
    pub fn frame(self, index: u64) -> Frame {
        assert!(index < self.frames);
        Frame(self.first.add(index))
    }

    /// Writes its own number into each frame.
    pub fn touch(self) {
        (0..self.frames).for_each(|index| self.frame(index).write(0, index));
    }

    /// `frames` of it from the `index`th on.
    pub fn part(self, index: u64, frames: u64) -> Self {
        assert!(
            index.checked_add(frames).is_some_and(|end| end <= self.frames),
            "{frames} from {index} on in {self:?}"
        );
        Self { first: self.first.add(index), frames }
    }

    /// The aligned 2 MiB blocks in it.
    pub fn blocks(self) -> impl Iterator<Item = Block> {
        let each = PageSize::Size2M.frames();
        let end = self.first.raw() + self.frames;
        (self.first.raw().next_multiple_of(each)..end)
            .step_by(each as usize)
            .filter(move |first| first + each <= end)
            .map(|first| Block(Gfn::new(first)))
    }
}

/// The longest row of free frames above 1 MiB.
pub fn largest_area(boot: &Boot) -> Area {
    let mut longest = Area { first: Gfn::new(0), frames: 0 };
    let mut row = longest;
    for Frame(gfn) in free(boot).filter(|frame| frame.gpa() >= HIGH_MEMORY) {
        row = if gfn == row.first.add(row.frames) {
            Area { frames: row.frames + 1, ..row }
        } else {
            Area { first: gfn, frames: 1 }
        };
        if row.frames > longest.frames {
            longest = row;
        }
    }
    longest
}

/// The first 2 MiB that are all free; None in a small memory.
pub fn free_block(boot: &Boot) -> Option<Block> {
    let (mut first, mut length) = (Gfn::new(0), 0);
    for Frame(gfn) in free(boot) {
        if gfn.raw() % PageSize::Size2M.frames() == 0 {
            (first, length) = (gfn, 0);
        }
        length = if gfn == first.add(length) { length + 1 } else { 0 };
        if length == PageSize::Size2M.frames() {
            return Some(Block(first));
        }
    }
    None
}

/// All free frames below 4 GiB, from low to high addresses within each region of the loader's map. The first frame of
/// memory, with the real mode's tables, is left alone.
pub fn free(boot: &Boot) -> impl Iterator<Item = Frame> {
    let limit = IDENTITY_END.raw();
    boot.memory_map()
        .filter(|region| region.is_available())
        .flat_map(move |region| {
            let start = region.start.raw().clamp(PAGE_SIZE, limit).next_multiple_of(PAGE_SIZE);
            let end = region.end().raw().min(limit);
            start / PAGE_SIZE..end / PAGE_SIZE
        })
        .map(Gfn::new)
        .filter(|&gfn| !boot.is_in_use(gfn))
        .map(Frame)
}

/// All available frames from 4 GiB on, where the image and the loader's information never are. The one-to-one map does not have
/// them: they are to be mapped.
pub fn above_identity(boot: &Boot) -> impl Iterator<Item = Frame> {
    let limit = IDENTITY_END.raw();
    let regions = boot.memory_map().filter(move |region| region.is_available() && region.start.raw() >= limit);
    let frames = |region: Region| region.start.raw().div_ceil(PAGE_SIZE)..region.end().raw() / PAGE_SIZE;
    regions.flat_map(frames).map(Gfn::new).map(Frame)
}

/// The frame at `gpa`, which is in no region of the loader's map: there is nothing.
pub fn absent(boot: &Boot, gpa: Gpa) -> Frame {
    let frame = Frame(gpa.frame());
    let (start, end) = (frame.gpa(), frame.0.add(1).start());
    assert!(boot.memory_map().all(|region| region.end() <= start || end <= region.start), "{gpa} is in a region");
    frame
}

/// A free frame above 1 MiB that was not handed out before, so that its first touch is yet to come.
pub fn fresh(boot: &Boot) -> Frame {
    static NEXT: AtomicU64 = AtomicU64::new(HIGH_MEMORY.frame().raw());
    let next = NEXT.load(Relaxed);
    let frame = free(boot).find(|frame| frame.0.raw() >= next).expect("free memory is left");
    NEXT.store(frame.0.raw() + 1, Relaxed);
    frame
}
