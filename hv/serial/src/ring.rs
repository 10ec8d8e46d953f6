//! A queue of bytes between one producer and one consumer, without locks.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::alloc::Layout;
use core::fmt::{self, Write};
use model::sync::{AtomicU8, AtomicUsize, Ordering};

/// The queue. A position is a count of bytes since the start, modulo 2⁶⁴; its index in `bytes` is the position modulo the capacity.
struct Ring {
    bytes: Box<[AtomicU8]>,
    /// The position behind the last published byte. Only the producer writes it.
    end: AtomicUsize,
    /// The number of published ends of line. Only the producer writes it, after the bytes.
    lines: AtomicUsize,
    /// The position of the next byte to take. Only the consumer writes it.
    start: AtomicUsize,
    /// The number of bytes that were dropped for lack of room. Only the producer writes it.
    dropped: AtomicUsize,
}

impl Ring {
    fn at(&self, position: usize) -> &AtomicU8 {
        // The capacity is a power of two, so positions may wrap around.
        &self.bytes[position & (self.bytes.len() - 1)]
    }
}

/// The allocations of a queue.
pub(crate) fn allocations(capacity: usize) -> [Layout; 2] {
    // An `Arc` has its two reference counts before the value.
    let bytes = Layout::array::<AtomicU8>(capacity.next_power_of_two()).unwrap_or(Layout::new::<()>());
    [bytes, Layout::new::<(usize, usize, Ring)>()]
}

/// A queue of at least `capacity` bytes: its two ends.
pub(crate) fn ring(capacity: usize) -> (Producer, Consumer) {
    let bytes = (0..capacity.next_power_of_two()).map(|_| AtomicU8::new(0)).collect();
    let ring = Arc::new(Ring {
        bytes,
        end: AtomicUsize::new(0),
        lines: AtomicUsize::new(0),
        start: AtomicUsize::new(0),
        dropped: AtomicUsize::new(0),
    });
    (Producer { ring: Arc::clone(&ring) }, Consumer { ring, lines: 0, reported: 0 })
}

/// The producer's end of a queue. Its methods take `&mut self`, so sources that share it need a lock.
pub struct Producer {
    ring: Arc<Ring>,
}

impl Producer {
    /// How many bytes there is room for. It may grow at any moment.
    pub fn room(&self) -> usize {
        self.ring.bytes.len() - self.len()
    }

    /// How many bytes wait to be sent. It may shrink at any moment.
    pub fn len(&self) -> usize {
        // Acquire: the consumer has read a byte before its place is written again.
        self.ring.end.load(Ordering::Relaxed).wrapping_sub(self.ring.start.load(Ordering::Acquire))
    }

    /// Whether all bytes are taken.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts a byte into the queue. False if there is no room: then the byte is dropped and counted.
    pub fn put(&mut self, byte: u8) -> bool {
        if self.room() == 0 {
            self.drop_bytes(1);
            return false;
        }
        let end = self.ring.end.load(Ordering::Relaxed);
        self.ring.at(end).store(byte, Ordering::Relaxed);
        self.publish(end.wrapping_add(1), usize::from(byte == b'\n'));
        true
    }

    /// Puts `text` into the queue line by line, each with `prefix` and with the wire's end of line. A line without room is dropped
    /// as a whole and counted. Nothing is allocated.
    pub fn write_lines(&mut self, prefix: &str, text: &dyn fmt::Display) {
        let end = self.ring.end.load(Ordering::Relaxed);
        let room = self.room();
        let mut lines = Lines { producer: self, prefix, end, room, length: 0 };
        // This fails only if `text`'s `Display` fails; what it has written before stays.
        let _ = write!(lines, "{text}");
        lines.finish();
    }

    /// Publishes the bytes before `end`, which contain `lines` more ends of line.
    fn publish(&self, end: usize, lines: usize) {
        self.ring.end.store(end, Ordering::Release);
        if lines != 0 {
            // After the bytes: when the consumer sees the new count, it also finds the end of line.
            self.ring.lines.store(self.ring.lines.load(Ordering::Relaxed).wrapping_add(lines), Ordering::Release);
        }
    }

    fn drop_bytes(&self, count: usize) {
        self.ring.dropped.store(self.ring.dropped.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
    }
}

/// A line that is being written to the ring, and not published yet.
struct Lines<'a> {
    producer: &'a mut Producer,
    prefix: &'a str,
    /// The position of the line's start.
    end: usize,
    /// The room for the line, in bytes.
    room: usize,
    /// The line's length so far, which may exceed the room.
    length: usize,
}

impl Lines<'_> {
    fn push(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if self.length < self.room {
                self.producer.ring.at(self.end.wrapping_add(self.length)).store(byte, Ordering::Relaxed);
            }
            self.length += 1;
        }
    }

    fn end_line(&mut self) {
        if self.length == 0 {
            self.push(self.prefix.as_bytes());
        }
        self.push(abi::wire::END);
        if self.length <= self.room {
            self.end = self.end.wrapping_add(self.length);
            self.room -= self.length;
            self.producer.publish(self.end, 1);
        } else {
            self.producer.drop_bytes(self.length);
        }
        self.length = 0;
    }

    /// Ends a last line that has no end of its own.
    fn finish(mut self) {
        if self.length != 0 {
            self.end_line();
        }
    }
}

impl Write for Lines<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for piece in text.split_inclusive('\n') {
            let line = piece.strip_suffix('\n');
            if self.length == 0 && line != Some("") {
                self.push(self.prefix.as_bytes());
            }
            self.push(line.unwrap_or(piece).as_bytes());
            if line.is_some() {
                self.end_line();
            }
        }
        Ok(())
    }
}

/// The consumer's end of a queue.
pub(crate) struct Consumer {
    ring: Arc<Ring>,
    /// The number of ends of line that were taken.
    lines: usize,
    /// The number of dropped bytes that were reported.
    reported: usize,
}

impl Consumer {
    /// How many bytes are in the queue. It may grow at any moment.
    pub(crate) fn len(&self) -> usize {
        self.ring.end.load(Ordering::Acquire).wrapping_sub(self.ring.start.load(Ordering::Relaxed))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether there is nothing to send: neither bytes, nor a report of those that were dropped.
    pub(crate) fn is_quiet(&self) -> bool {
        self.is_empty() && !self.has_dropped()
    }

    /// Whether an end of line is among the bytes.
    pub(crate) fn has_line(&self) -> bool {
        self.ring.lines.load(Ordering::Acquire) != self.lines
    }

    pub(crate) fn pop(&mut self) -> Option<u8> {
        if self.is_empty() {
            return None;
        }
        let start = self.ring.start.load(Ordering::Relaxed);
        let byte = self.ring.at(start).load(Ordering::Relaxed);
        self.lines = self.lines.wrapping_add(usize::from(byte == b'\n'));
        // Release: the byte is read before the producer can write its place again.
        self.ring.start.store(start.wrapping_add(1), Ordering::Release);
        Some(byte)
    }

    /// The number of bytes dropped since the last call.
    pub(crate) fn newly_dropped(&mut self) -> usize {
        let dropped = self.ring.dropped.load(Ordering::Relaxed);
        dropped.wrapping_sub(core::mem::replace(&mut self.reported, dropped))
    }

    /// Whether bytes were dropped since the last call of [`newly_dropped`](Self::newly_dropped).
    pub(crate) fn has_dropped(&self) -> bool {
        self.ring.dropped.load(Ordering::Relaxed) != self.reported
    }
}
