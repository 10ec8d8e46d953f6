//! All memory that is free.

use guest::boot::Boot;
use guest::ktap::Outcome;
use guest::ram::{self, Frame};
use guest::{check, check_eq, println};

/// What the `index`th word of `frame` gets: no two words the same.
fn pattern(frame: Frame, index: usize) -> u64 {
    let address = frame.gpa().raw() + (index * size_of::<u64>()) as u64;
    address ^ !address << 32
}

/// Each page gets its own pattern, first and last word, and all have it when all are written. It comes last, for it
/// takes even the frames of earlier tests.
pub(crate) fn every_page_keeps_its_own(boot: &Boot) -> Outcome {
    const ENDS: [usize; 2] = [0, Frame::WORDS - 1];
    for frame in ram::free(boot) {
        for index in ENDS {
            frame.write(index, pattern(frame, index));
        }
    }
    let mut pages = 0;
    for frame in ram::free(boot) {
        for index in ENDS {
            check_eq!(frame.read(index), pattern(frame, index), "at {:?}, word {index}", frame.gpa());
        }
        pages += 1;
    }
    println!("# {pages} pages");
    check!(pages > 1024, "too few for any memory");
    Ok(())
}
