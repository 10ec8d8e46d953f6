//! Models of the ring, of [`Attention`] and of [`Takeover`], in every interleaving and with every stale read, up to loom's
//! preemption bound. Run them with `RUSTFLAGS="--cfg loom" cargo test -p serial --release --lib`.

use crate::Attention;
use crate::ring::{Producer, ring};
use crate::rules::Rule;
use crate::{Taken, Takeover};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use model::{Explorer, loom_tests};
use std::vec::Vec;

const EXPLORER: Explorer = Explorer { preemptions: 2, signs: &[] };

fn put_all(producer: &mut Producer, bytes: &[u8]) {
    for &byte in bytes {
        while producer.room() == 0 {
            thread::yield_now();
        }
        assert!(producer.put(byte));
    }
}

/// A ring that is too small for all bytes keeps their order, and an end of line is found when the ring has reported it.
#[test]
fn loom_bytes_come_out_as_they_went_in() {
    EXPLORER.explore(|| {
        let (mut producer, mut consumer) = ring(2);
        let writer = thread::spawn(move || put_all(&mut producer, b"a\nb"));
        let mut all = Vec::new();
        while all.len() < 3 {
            let (has_line, before) = (consumer.has_line(), all.len());
            all.extend(core::iter::from_fn(|| consumer.pop()));
            assert!(!has_line || all[before..].contains(&b'\n'));
            thread::yield_now();
        }
        writer.join().unwrap();
        assert_eq!(all, b"a\nb");
    });
}

/// The consumer does not see a line of the hypervisor before it is complete.
#[test]
fn loom_lines_are_published_whole() {
    EXPLORER.explore(|| {
        let (mut producer, mut consumer) = ring(8);
        let writer = thread::spawn(move || producer.write_lines("h", &"i"));
        let seen = consumer.len();
        assert!(seen == 0 || seen == 4);
        writer.join().unwrap();
        assert_eq!(core::iter::from_fn(|| consumer.pop()).collect::<Vec<_>>(), b"hi\r\n");
    });
}

/// Polls the queue. Whether it has bytes. The transmitter is busy, so nothing is sent.
fn look(attention: &Attention, consumer: &loom::sync::Mutex<crate::ring::Consumer>) -> bool {
    let consumer = consumer.lock().unwrap();
    attention.look();
    if !consumer.is_empty() {
        attention.again(1);
    }
    !consumer.is_empty()
}

/// A CPU is interrupted, polls, and arms its timer. Whether it is armed for another poll.
fn poll(attention: &Attention, consumer: &loom::sync::Mutex<crate::ring::Consumer>) -> bool {
    if attention.disarm() {
        look(attention, consumer);
    }
    attention.arm().is_some()
}

/// A byte is put while another CPU polls: one of the two CPUs polls afterwards.
#[test]
fn loom_what_waits_is_looked_at() {
    EXPLORER.explore(|| {
        let attention = Arc::new(Attention::new());
        let (mut producer, consumer) = ring(2);
        let consumer = Arc::new(loom::sync::Mutex::new(consumer));
        // The CPU was armed for bytes that are sent by now.
        let _ = attention.wanted();
        let poller = {
            let (attention, consumer) = (Arc::clone(&attention), Arc::clone(&consumer));
            thread::spawn(move || {
                let polls = poll(&attention, &consumer);
                // The timer is programmed again for another reason.
                let arms = attention.arm().is_some();
                (polls, arms)
            })
        };
        assert!(producer.put(b'x'));
        let interrupts_itself = attention.wanted();
        let (_, is_armed) = poller.join().unwrap();
        assert!(interrupts_itself || is_armed);
    });
}

/// As above, but another CPU polls as well, because it has put bytes: it interrupts itself if no CPU is armed by then.
#[test]
fn loom_what_waits_is_looked_at_while_another_sends() {
    EXPLORER.explore(|| {
        let attention = Arc::new(Attention::new());
        let (mut producer, consumer) = ring(2);
        let consumer = Arc::new(loom::sync::Mutex::new(consumer));
        assert!(attention.wanted());
        let sender = {
            let (attention, consumer) = (Arc::clone(&attention), Arc::clone(&consumer));
            thread::spawn(move || look(&attention, &consumer) && attention.wanted())
        };
        let poller = {
            let attention = Arc::clone(&attention);
            thread::spawn(move || attention.arm().is_some())
        };
        assert!(producer.put(b'x'));
        let interrupts_itself = attention.wanted();
        let (another_does, is_armed) = (sender.join().unwrap(), poller.join().unwrap());
        assert!(interrupts_itself || another_does || is_armed);
    });
}

/// Two CPUs panic at once.
fn two_take_the_line() {
    let takeover = Arc::new(Takeover::new());
    let other = {
        let takeover = Arc::clone(&takeover);
        thread::spawn(move || takeover.take(1))
    };
    let both = [takeover.take(0), other.join().unwrap()];
    assert!(matches!(both, [Taken::Now, Taken::ByAnother] | [Taken::ByAnother, Taken::Now]), "{both:?}");
}

loom_tests! {
    /// One of them has the line.
    loom_two_take_the_line = two_take_the_line;
    mutant_line_taken_twice breaks [TakeAtOnce]
}

/// Uses the line: loom finds an access that is not ordered with another.
fn write(line: &UnsafeCell<()>) {
    line.with_mut(|_| ());
}

/// A CPU that used the line is stopped, and called.
fn speaker_vs_stopped() {
    let shared = Arc::new((Takeover::new(), UnsafeCell::new(())));
    let other = {
        let shared = Arc::clone(&shared);
        thread::spawn(move || {
            let (takeover, line) = &*shared;
            write(line);
            takeover.stop(1);
            while !takeover.is_called(1) {
                thread::yield_now();
            }
            write(line);
            takeover.answer();
        })
    };
    let (takeover, line) = &*shared;
    assert_eq!(takeover.take(0), Taken::Now);
    while !takeover.has_stopped(1) {
        thread::yield_now();
    }
    write(line);
    takeover.call(1);
    while !takeover.has_answered() {
        thread::yield_now();
    }
    write(line);
    other.join().unwrap();
}

loom_tests! {
    /// One CPU at a time uses the line.
    loom_speaker_vs_stopped = speaker_vs_stopped;
    mutant_stop_without_release breaks [StopReleases],
    mutant_answer_without_release breaks [AnswerReleases]
}
