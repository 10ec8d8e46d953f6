//! Pages whose contents are known: each word that is written follows from the seed, its address and how often the page was
//! written; all others are 0.

use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::check_eq;
use crate::ktap::Outcome;
use crate::ram::{Area, Frame};
use crate::random::mix;

/// As many pages as can be told apart: 128 MiB.
pub const MOST_PAGES: usize = 32 << 10;

/// How often each page was written since it was last given back.
static GENERATIONS: [AtomicU32; MOST_PAGES] = [const { AtomicU32::new(0) }; MOST_PAGES];

/// Every so many words one is written.
const STRIDE: usize = 32;

/// The pages of an area. Each page is one processor's at a time.
pub struct Pattern {
    seed: u64,
    area: Area,
}

impl Pattern {
    /// `area`'s pages, all of them 0 so far. There is one pattern at a time, of [`MOST_PAGES`] at most.
    pub fn new(seed: u64, area: Area) -> Self {
        assert!(area.frames() as usize <= MOST_PAGES);
        GENERATIONS.iter().for_each(|generation| generation.store(0, Relaxed));
        Self { seed, area }
    }

    /// Where it is.
    pub fn area(&self) -> Area {
        self.area
    }

    /// Writes the next generation. Whether the page was 0 before.
    pub fn write(&self, page: u64) -> bool {
        let frame = self.area.frame(page);
        let before = GENERATIONS[page as usize].fetch_add(1, Relaxed);
        for word in (0..Frame::WORDS).step_by(STRIDE) {
            frame.write(word, self.value(frame, word, before + 1));
        }
        before == 0
    }

    /// Fails unless the written words are what they were; if `whole`, all others, too.
    pub fn verify(&self, page: u64, whole: bool) -> Outcome {
        let frame = self.area.frame(page);
        let generation = GENERATIONS[page as usize].load(Relaxed);
        for word in (0..Frame::WORDS).step_by(if whole { 1 } else { STRIDE }) {
            let written = generation > 0 && word % STRIDE == 0;
            let expected = if written { self.value(frame, word, generation) } else { 0 };
            check_eq!(frame.read(word), expected, "word {word} of {}, generation {generation}", frame.gpa());
        }
        Ok(())
    }

    /// Whether it was written since it was last given back.
    pub fn is_written(&self, page: u64) -> bool {
        GENERATIONS[page as usize].load(Relaxed) > 0
    }

    /// Notes that the page was given back, and is 0.
    pub fn forget(&self, page: u64) {
        GENERATIONS[page as usize].store(0, Relaxed);
    }

    fn value(&self, frame: Frame, word: usize, generation: u32) -> u64 {
        mix(self.seed ^ mix(frame.gpa().raw() + word as u64) ^ u64::from(generation))
    }
}
