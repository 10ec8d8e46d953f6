//! A panic takes the line.

use crate::{Taken, Takeover};

#[test]
fn the_first_cpu_takes_the_line_and_the_others_stop() {
    let takeover = Takeover::new();
    assert!(!takeover.is_taken());
    assert_eq!(takeover.take(3), Taken::Now);
    assert!(takeover.is_taken());
    assert_eq!([0, 3, 4].map(|cpu| takeover.take(cpu)), [Taken::ByAnother, Taken::Before, Taken::ByAnother]);
}

#[test]
fn a_cpu_that_stopped_uses_the_line_when_it_is_called() {
    let takeover = Takeover::new();
    assert_eq!(takeover.take(0), Taken::Now);
    takeover.stop(2);
    takeover.stop(63);
    assert_eq!([1, 2, 63].map(|cpu| takeover.has_stopped(cpu)), [false, true, true]);
    takeover.call(2);
    assert_eq!([1, 2, 63].map(|cpu| takeover.is_called(cpu)), [false, true, false]);
    assert!(!takeover.has_answered());
    takeover.answer();
    assert!(takeover.has_answered() && !takeover.is_called(2));
}
