//! A queue of bytes between one producer and one consumer, without locks.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::alloc::Layout;
use core::fmt::{self, Write};
use model::sync::{AtomicU8, AtomicUsize, Ordering};

/// The queue. Positions count bytes since the start, modulo 2⁶⁴; the byte at one is at the position modulo the capacity.
struct Ring {
    bytes: Box<[AtomicU8]>,
    /// Where the producer publishes next. Written by the producer alone.
    end: AtomicUsize,
    /// Ends of line that were published. Written by the producer alone, after the bytes.
    lines: AtomicUsize,
    /// Where the consumer takes next. Written by the consumer alone.
    start: AtomicUsize,
    /// Bytes for which there was no room. Written by the producer alone.
    dropped: AtomicUsize,
}

impl Ring {
    fn at(&self, position: usize) -> &AtomicU8 {
        // The capacity is a power of two, so positions may wrap around.
        &self.bytes[position & (self.bytes.len() - 1)]
    }
}

/// What such a queue allocates.
pub(crate) fn allocations(capacity: usize) -> [Layout; 2] {
    // Reference counts stand before what they count.
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
    (Producer { ring: Arc::clone(&ring) }, Consumer { ring, lines: 0, told: 0 })
}

/// Where a source's bytes go in. `&mut self` makes it one producer: sharers need a lock.
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
        // Acquire: what the consumer has taken is read by the time its place is written again.
        self.ring.end.load(Ordering::Relaxed).wrapping_sub(self.ring.start.load(Ordering::Acquire))
    }

    /// Whether all is sent.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes a byte. False if there is no room: then it is dropped, and counted.
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

    /// Takes `text` line by line, each behind `prefix` and with the serial line's end. A line that there is no room for is
    /// dropped as a whole, and counted. Nothing is allocated.
    pub fn write_lines(&mut self, prefix: &str, text: &dyn fmt::Display) {
        let end = self.ring.end.load(Ordering::Relaxed);
        let room = self.room();
        let mut lines = Lines { producer: self, prefix, end, room, length: 0 };
        // Only a `Display` that fails by itself makes this fail; what it has written until then stands.
        let _ = write!(lines, "{text}");
        lines.finish();
    }

    /// The bytes before `end` are the consumer's, and so many `lines` end among them.
    fn publish(&self, end: usize, lines: usize) {
        self.ring.end.store(end, Ordering::Release);
        if lines != 0 {
            // Behind the bytes: an end of line that the consumer knows of is one that it finds.
            self.ring.lines.store(self.ring.lines.load(Ordering::Relaxed).wrapping_add(lines), Ordering::Release);
        }
    }

    fn drop_bytes(&self, count: usize) {
        self.ring.dropped.store(self.ring.dropped.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
    }
}

/// A line under way: it is in the ring, but not yet the consumer's.
struct Lines<'a> {
    producer: &'a mut Producer,
    prefix: &'a str,
    /// Where the line begins.
    end: usize,
    /// How long it can get, and how long it is.
    room: usize,
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

/// Where the bytes come out.
pub(crate) struct Consumer {
    ring: Arc<Ring>,
    /// Ends of line that were taken.
    lines: usize,
    /// Of the bytes that were dropped, those that were told of.
    told: usize,
}

impl Consumer {
    /// How many bytes there are. It may grow at any moment.
    pub(crate) fn len(&self) -> usize {
        self.ring.end.load(Ordering::Acquire).wrapping_sub(self.ring.start.load(Ordering::Relaxed))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
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
        // Release: the byte is read before its place is free.
        self.ring.start.store(start.wrapping_add(1), Ordering::Release);
        Some(byte)
    }

    /// How many bytes were dropped since this was last asked.
    pub(crate) fn newly_dropped(&mut self) -> usize {
        let dropped = self.ring.dropped.load(Ordering::Relaxed);
        dropped.wrapping_sub(core::mem::replace(&mut self.told, dropped))
    }

    /// Whether bytes were dropped since then.
    pub(crate) fn has_dropped(&self) -> bool {
        self.ring.dropped.load(Ordering::Relaxed) != self.told
    }
}
