//! A random walk over all operations, in one thread, and the processes that it forks.

use core::ops::Range;

use linux_raw_sys::general::{MADV_HUGEPAGE, MADV_NOHUGEPAGE};

use crate::exit::{self, GuestStatus};
use crate::ktap::Outcome;
use crate::model::{Backing, FILE_PAGES, PAGES, Protection};
use crate::probe::Access;
use crate::random::Random;
use crate::sys;
use crate::window::Window;
use crate::{check_eq, check_ok, println};

/// How deep processes fork.
const DEEPEST: u32 = 2;
/// The pages of a large page, of 2 MiB.
const LARGE: usize = 512;

/// A thread at work on its window.
pub(crate) struct Worker {
    pub(crate) window: Window,
    /// A child that is at work at the same time.
    child: Option<usize>,
    /// The process that forked this one is at work at the same time.
    is_beside_parent: bool,
    depth: u32,
}

impl Worker {
    pub(crate) fn new(window: Window) -> Self {
        Self { window, child: None, is_beside_parent: false, depth: 0 }
    }

    /// Does so many operations, and compares the whole window at the end.
    pub(crate) fn run(&mut self, operations: u32) -> Outcome {
        for operation in 0..operations {
            self.step(operations).inspect_err(|_| {
                println!("# failed at operation {operation} of {operations}, {} forks deep", self.depth);
            })?;
        }
        self.end_child()?;
        self.window.verify_all().inspect_err(|_| println!("# failed at the end, {} forks deep", self.depth))
    }

    fn step(&mut self, operations: u32) -> Outcome {
        let range = self.range();
        let window = &mut self.window;
        match window.random().below(64) {
            0..6 => {
                let protection = Protection::any(window.random());
                window.map(range, protection, Backing::Anonymous)
            }
            6..9 => self.map_file(range),
            9..13 => window.unmap(range),
            13..19 => {
                let protection = Protection::any(window.random());
                window.protect(range, protection)
            }
            19..23 => window.discard(range),
            23..27 => self.relocate(range),
            27..29 => self.grow(range),
            29..31 => self.punch(range),
            31..34 => self.advise(range),
            34..48 => window.write(range),
            48..58 => window.verify(range),
            58..62 => range.clone().step_by(1 + range.len() / 4).try_for_each(|page| window.execute(page)),
            62 => self.fork(operations / 8),
            _ => self.end_child(),
        }
    }

    /// A few pages mostly; now and then one or two large ones, in whole.
    fn range(&mut self) -> Range<usize> {
        let random = self.window.random();
        if random.one_in(12) {
            let start = random.below((PAGES / LARGE) as u64) as usize * LARGE;
            let end = start + LARGE * (1 + random.below(2) as usize);
            return start..end.min(PAGES);
        }
        let start = random.below(PAGES as u64) as usize;
        let most = 1 << random.below(6);
        start..(start + 1 + random.below(most) as usize).min(PAGES)
    }

    fn map_file(&mut self, range: Range<usize>) -> Outcome {
        let random = self.window.random();
        let count = range.len().min(FILE_PAGES);
        let first = random.below((FILE_PAGES - count + 1) as u64) as usize;
        let backing = if random.one_in(2) { Backing::Shared(first) } else { Backing::Private(first) };
        let protection = Protection::any(random);
        self.window.map(range.start..range.start + count, protection, backing)
    }

    fn relocate(&mut self, range: Range<usize>) -> Outcome {
        let to = self.window.random().below((PAGES - range.len() + 1) as u64) as usize;
        // A large page is moved as such only to where one can be.
        let to = if range.len().is_multiple_of(LARGE) { to / LARGE * LARGE } else { to };
        let keep = self.window.random().one_in(4);
        let overlap = to < range.end && range.start < to + range.len();
        if overlap { Ok(()) } else { self.window.relocate(range, to, keep) }
    }

    fn grow(&mut self, range: Range<usize>) -> Outcome {
        let model = self.window.model();
        let before = range.start.checked_sub(1).and_then(|page| model.page(page));
        let is_free = range.clone().all(|page| model.page(page).is_none());
        match before {
            Some(page) if page.backing == Backing::Anonymous && is_free => self.window.grow(range, page.protection),
            _ => Ok(()),
        }
    }

    fn punch(&mut self, range: Range<usize>) -> Outcome {
        let model = self.window.model();
        let is_shared = |page: &usize| {
            model.page(*page).is_some_and(|page| matches!(page.backing, Backing::Shared(_)))
                && model.fault(*page, Access::Store).is_none()
        };
        match range.clone().find(is_shared).filter(|_| !self.window.is_file_frozen) {
            Some(page) => self.window.punch(page..page + 1),
            None => Ok(()),
        }
    }

    /// Large pages are wanted, or not, or made at once. What the kernel says of it is its own affair: it may lack large pages, the
    /// memory for one, or a mapping in the range.
    fn advise(&mut self, range: Range<usize>) -> Outcome {
        let large = range.start / LARGE * LARGE..range.end.next_multiple_of(LARGE).min(PAGES);
        let _ = match self.window.random().below(4) {
            0 => self.window.advise(large, MADV_NOHUGEPAGE).is_ok(),
            1 => self.window.collapse(large),
            _ => self.window.advise(large, MADV_HUGEPAGE).is_ok(),
        };
        Ok(())
    }

    /// Forks a process that goes on with the window as it is. Half of the children work beside this process; the others are
    /// waited for.
    fn fork(&mut self, operations: u32) -> Outcome {
        if self.depth == DEEPEST || self.child.is_some() {
            return Ok(());
        }
        let seed = self.window.random().next_u64();
        let beside = self.window.random().one_in(2);
        let child = check_ok!(sys::fork());
        if child == 0 {
            *self.window.random() = Random::new(seed);
            self.depth += 1;
            self.is_beside_parent |= beside;
            self.freeze_file();
            let passed = self.window.verify_all().and_then(|()| self.run(operations)).is_ok();
            exit::end(if passed { GuestStatus::Passed } else { GuestStatus::Failed });
        }
        if beside {
            self.child = Some(child);
            self.freeze_file();
            return Ok(());
        }
        self.expect_success(child)
    }

    fn end_child(&mut self) -> Outcome {
        let Some(child) = self.child.take() else { return Ok(()) };
        self.freeze_file();
        self.expect_success(child)
    }

    /// Waits for a child, and sees that it changed nothing but the file.
    fn expect_success(&mut self, child: usize) -> Outcome {
        check_eq!(check_ok!(sys::wait_for(child)), 0, "the status of a forked process");
        self.window.verify_all()
    }

    /// While two processes are at work, neither writes to the file, which both see.
    fn freeze_file(&mut self) {
        self.window.is_file_frozen = self.is_beside_parent || self.child.is_some();
    }
}
