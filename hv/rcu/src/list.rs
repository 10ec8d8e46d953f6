//! Lists of pages, linked through their descriptors.

use crate::Platform;
use addr::Pfn;
use model::const_unless_loom;
use model::sync::{AtomicU64, Ordering};

/// The link of a page descriptor, by which a page is queued for its grace period. Eight bytes.
///
/// It lies in the caller's descriptor array and not in the page, because CPUs may still walk the page and use its
/// entries.
pub struct Head(AtomicU64);

/// The end of a list. No frame has this number.
const END: u64 = u64::MAX;
/// The page is on no list.
const IDLE: u64 = u64::MAX - 1;

impl Head {
    const_unless_loom! {
        /// The link of a page that is not queued.
        pub fn new() -> Self {
            Self(AtomicU64::new(IDLE))
        }
    }

    /// Whether the page is queued for a grace period.
    pub fn is_queued(&self) -> bool {
        self.0.load(Ordering::Relaxed) != IDLE
    }

    #[inline]
    fn next(&self) -> Option<Pfn> {
        decode(self.0.load(Ordering::Relaxed))
    }

    #[inline]
    fn set_next(&self, next: Option<Pfn>) {
        self.0.store(encode(next), Ordering::Relaxed);
    }
}

impl Default for Head {
    fn default() -> Self {
        Self::new()
    }
}

fn encode(page: Option<Pfn>) -> u64 {
    page.map_or(END, Pfn::raw)
}

fn decode(link: u64) -> Option<Pfn> {
    (link != END).then(|| Pfn::new(link))
}

/// A list of pages in FIFO order. Only one CPU uses it, so its links need no memory ordering.
#[derive(Clone, Copy, Default)]
pub(crate) struct List {
    ends: Option<(Pfn, Pfn)>,
    len: u64,
}

impl List {
    #[inline]
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.ends.is_none()
    }

    /// # Panics
    /// If the page is on a list already: it would be freed twice.
    pub(crate) fn push(&mut self, platform: &impl Platform, page: Pfn) {
        let head = platform.head(page);
        assert!(!head.is_queued(), "{page:?} is deferred twice");
        head.set_next(None);
        self.append(platform, Self { ends: Some((page, page)), len: 1 });
    }

    pub(crate) fn pop(&mut self, platform: &impl Platform) -> Option<Pfn> {
        let (first, last) = self.ends?;
        let head = platform.head(first);
        self.ends = head.next().map(|next| (next, last));
        self.len -= 1;
        head.0.store(IDLE, Ordering::Relaxed);
        Some(first)
    }

    pub(crate) fn append(&mut self, platform: &impl Platform, other: Self) {
        self.ends = match (self.ends, other.ends) {
            (Some((first, last)), Some((next, end))) => {
                platform.head(last).set_next(Some(next));
                Some((first, end))
            }
            (ours, theirs) => ours.or(theirs),
        };
        self.len += other.len;
    }
}

/// The pages of CPUs that went offline. Any CPU pushes a list, and any CPU takes all of them at once, so there is no
/// ABA problem.
pub(crate) struct Orphans(AtomicU64);

impl Orphans {
    const_unless_loom! {
        pub(crate) fn new() -> Self {
            Self(AtomicU64::new(END))
        }
    }

    /// Releases the links of the list to the CPU that takes it. The next exchange goes on with what this one has released, in whatever
    /// order it is.
    pub(crate) fn push(&self, platform: &impl Platform, list: List) {
        let Some((first, last)) = list.ends else { return };
        let mut top = self.0.load(Ordering::Relaxed);
        loop {
            platform.head(last).set_next(decode(top));
            match self.0.compare_exchange(top, first.raw(), Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => top = now,
            }
        }
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.load(Ordering::Relaxed) == END
    }

    pub(crate) fn take(&self, platform: &impl Platform) -> List {
        if self.is_empty() {
            return List::default();
        }
        let Some(first) = decode(self.0.swap(END, Ordering::Acquire)) else { return List::default() };
        let (mut last, mut len) = (first, 1);
        while let Some(next) = platform.head(last).next() {
            (last, len) = (next, len + 1);
        }
        List { ends: Some((first, last)), len }
    }
}

/// A CPU's deferred pages, in the order of their grace periods (Linux's `rcu_segcblist`).
///
/// Grace periods run one at a time, so three lists are enough: a page deferred while period `n` runs waits for `n + 1`.
/// When a page is added that waits for `n + 2`, period `n` is over, and the pages that waited for it can be freed.
#[derive(Clone, Copy, Default)]
pub(crate) struct Segments {
    ripe: List,
    wait: Segment,
    next: Segment,
}

/// Pages that wait for the same grace period.
#[derive(Clone, Copy, Default)]
pub(crate) struct Segment {
    pub(crate) pages: List,
    pub(crate) grace: u64,
}

impl Segments {
    #[inline]
    pub(crate) fn len(&self) -> u64 {
        self.ripe.len() + self.wait.pages.len() + self.next.pages.len()
    }

    /// The last grace period that a page waits for, if any.
    pub(crate) fn wanted(&self) -> Option<u64> {
        let waits = |segment: &Segment| !segment.pages.is_empty();
        [self.next, self.wait].into_iter().find(waits).map(|segment| segment.grace)
    }

    /// Adds pages that wait for `grace`, which is never below the grace period of pages added before.
    pub(crate) fn add(&mut self, platform: &impl Platform, pages: List, grace: u64) {
        if self.next.grace != grace {
            self.ripe.append(platform, self.wait.pages);
            self.wait = self.next;
            self.next = Segment { pages: List::default(), grace };
        }
        self.next.pages.append(platform, pages);
    }

    /// Moves the pages that waited for grace periods up to `completed` to the ripe list.
    pub(crate) fn ripen(&mut self, platform: &impl Platform, completed: u64) {
        for segment in [&mut self.wait, &mut self.next] {
            if segment.grace <= completed {
                self.ripe.append(platform, core::mem::take(&mut segment.pages));
            }
        }
    }

    pub(crate) fn pop(&mut self, platform: &impl Platform) -> Option<Pfn> {
        self.ripe.pop(platform)
    }

    /// All pages, ripe or not, in one list.
    pub(crate) fn into_list(mut self, platform: &impl Platform) -> List {
        self.ripen(platform, u64::MAX);
        self.ripe
    }
}
