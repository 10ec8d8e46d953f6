//! What one thread does to a page is what all see at once: a translation that another CPU has kept is a failure.

use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use core::sync::atomic::{AtomicU32, AtomicUsize};

use linux_raw_sys::general::{
    MADV_DONTNEED, MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, MREMAP_FIXED, MREMAP_MAYMOVE, PROT_NONE, PROT_READ,
    PROT_WRITE,
};

use crate::exit::{self, GuestStatus};
use crate::ktap::{NotPassed, Outcome};
use crate::probe::{Access, FaultCause, Probed, probe};
use crate::random::Random;
use crate::sys::{self, Mapping, PAGE};
use crate::thread::{self, Barrier};
use crate::{Context, check, check_eq, check_ok};

/// What the first thread does to a page that all have in their TLBs.
#[derive(Clone, Copy, Debug)]
enum Change {
    Unmap,
    Forbid,
    ForbidStores,
    Discard,
    Replace,
    MoveAway,
    Fork,
}

impl Change {
    const ALL: [Self; 7] =
        [Self::Unmap, Self::Forbid, Self::ForbidStores, Self::Discard, Self::Replace, Self::MoveAway, Self::Fork];

    /// The access that the others make after it, and what comes of it, for a page that held `word`.
    fn expected(self, word: u32) -> (Access, Probed) {
        match self {
            Self::Unmap | Self::MoveAway => (Access::Load, Probed::Faulted(FaultCause::Unmapped)),
            Self::Forbid => (Access::Load, Probed::Faulted(FaultCause::Forbidden)),
            Self::ForbidStores => (Access::Store, Probed::Faulted(FaultCause::Forbidden)),
            Self::Discard | Self::Replace => (Access::Load, Probed::Done(0)),
            Self::Fork => (Access::Store, Probed::Done(!word)),
        }
    }
}

const READ_WRITE: Mapping = Mapping {
    protection: PROT_READ | PROT_WRITE,
    flags: MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
    file: 0,
    file_page: 0,
};

/// What the threads share: a page that changes, and one beside it to which it is moved.
struct Shared<'c> {
    context: &'c Context,
    barrier: Barrier,
    failed: AtomicBool,
    /// Of [`Change::ALL`].
    change: AtomicUsize,
    word: AtomicU32,
    page: usize,
}

/// Each round: all threads store to and load from a page, one changes it, all access it.
pub(crate) fn shootdown(context: &Context) -> Outcome {
    // The window is there for its place, which is reserved again at its end.
    let _window = context.window(0)?;
    let shared = Shared {
        context,
        barrier: Barrier::new(context.words.threads),
        failed: AtomicBool::new(false),
        change: AtomicUsize::new(0),
        word: AtomicU32::new(0),
        page: context.places[0].address(1),
    };
    thread::on_all(context.words.threads, &|thread| shared.rounds(thread))
}

impl Shared<'_> {
    fn rounds(&self, thread: usize) -> Outcome {
        let mut random = Random::new(self.context.words.seed);
        for round in 0..self.context.words.operations.div_ceil(16) {
            if self.failed.load(Relaxed) {
                break;
            }
            // No thread may leave the others at a barrier.
            if self.round(thread, &mut random).is_err() {
                crate::println!("# failed in round {round}, thread {thread}");
                self.failed.store(true, Relaxed);
            }
            self.barrier.wait();
        }
        if self.failed.load(Relaxed) { Err(NotPassed::Failed) } else { Ok(()) }
    }

    fn round(&self, thread: usize, random: &mut Random) -> Outcome {
        let is_first = thread == 0;
        let mut outcome = Ok(());
        if is_first {
            outcome = self.begin(random);
        }
        self.barrier.wait();
        let word = self.word.load(Relaxed);
        // A store that changes nothing: so the TLB has a translation that permits stores.
        let cached = [probe(Access::Load, self.page, 0), probe(Access::Store, self.page, word)];
        self.barrier.wait();
        let change = Change::ALL[self.change.load(Relaxed)];
        let mut child = None;
        if is_first {
            outcome = outcome.and_then(|()| self.make(change, word).map(|made| child = made));
        }
        self.barrier.wait();
        let (access, expected) = change.expected(word);
        let probed = probe(access, self.page, !word);
        self.barrier.wait();
        outcome?;
        if let Some(child) = child {
            self.release(child)?;
        }
        check_eq!(cached, [Probed::Done(word); 2], "before {change:?}");
        check!(probed == expected, "after {change:?}: {probed:x?}, expected {expected:x?}");
        Ok(())
    }

    /// Maps a new page, and decides what is to become of it.
    fn begin(&self, random: &mut Random) -> Outcome {
        let word = random.next_u64() as u32 | 1;
        // SAFETY: the window's own memory.
        check_eq!(unsafe { sys::map(self.page, 1, READ_WRITE) }, Ok(self.page));
        check_eq!(probe(Access::Store, self.page, word), Probed::Done(word));
        self.word.store(word, Relaxed);
        self.change.store(random.below(Change::ALL.len() as u64) as usize, Relaxed);
        self.gate().store(0, Relaxed);
        Ok(())
    }

    /// Makes the change; a forked process's number.
    fn make(&self, change: Change, word: u32) -> Result<Option<usize>, NotPassed> {
        let (page, beside) = (self.page, self.page + PAGE);
        let result = match change {
            // SAFETY: the window's own memory.
            Change::Unmap => unsafe { sys::unmap(page, 1) },
            // SAFETY: as above.
            Change::Forbid => unsafe { sys::protect(page, 1, PROT_NONE) },
            // SAFETY: as above.
            Change::ForbidStores => unsafe { sys::protect(page, 1, PROT_READ) },
            // SAFETY: as above.
            Change::Discard => unsafe { sys::advise(page, 1, MADV_DONTNEED) },
            // SAFETY: as above.
            Change::Replace => unsafe { sys::map(page, 1, READ_WRITE) }.map(drop),
            // SAFETY: as above.
            Change::MoveAway => unsafe { sys::remap(page, 1, 1, MREMAP_MAYMOVE | MREMAP_FIXED, beside) }.map(drop),
            Change::Fork => return self.fork(word).map(Some),
        };
        check_eq!(result, Ok(()), "{change:?}");
        if let Change::MoveAway = change {
            check_eq!(probe(Access::Load, beside, 0), Probed::Done(word));
        }
        Ok(None)
    }

    /// Forks a process that sees none of the stores that this one's threads make from now on.
    fn fork(&self, word: u32) -> Result<usize, NotPassed> {
        let child = check_ok!(sys::fork());
        if child == 0 {
            while self.gate().load(Relaxed) == 0 {
                sys::yield_now();
            }
            let seen = probe(Access::Load, self.page, 0);
            if seen != Probed::Done(word) {
                crate::println!("# a store after the fork is seen in the child: {seen:x?}, expected {word:#x}");
                exit::end(GuestStatus::Failed);
            }
            exit::end(GuestStatus::Passed);
        }
        Ok(child)
    }

    /// Lets a forked process look at the page, and waits for it.
    fn release(&self, child: usize) -> Outcome {
        self.gate().store(1, Relaxed);
        check_eq!(check_ok!(sys::wait_for(child)), 0, "the status of a forked process");
        Ok(())
    }

    /// 0 until all threads have stored to the page; forked processes see it.
    fn gate(&self) -> &AtomicU32 {
        self.context.places[0].shared_word()
    }
}
