//! Interrupts that arrived at this processor, in their order.

use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering::Relaxed};

use guest::apic::Apic;
use guest::clock;
use guest::interrupts::{self, handle};
use guest::ktap::Outcome;
use guest::smp::{Cpu, PerCpu};

/// More than any test lets in.
const MOST: usize = 4096;

struct Log {
    vectors: [AtomicU8; MOST],
    length: AtomicUsize,
}

static LOGS: PerCpu<Log> = PerCpu::new(
    [const { Log { vectors: [const { AtomicU8::new(0) }; MOST], length: AtomicUsize::new(0) } }; Cpu::MOST],
);

/// From now on `vector` is logged on whichever processor it arrives.
pub(crate) fn expect(vector: u8) {
    handle(vector, |vector| {
        log(vector);
        Apic::here().end_of_interrupt();
    });
}

/// Logs the interrupt, without its end.
pub(crate) fn log(vector: u8) {
    let log = LOGS.here();
    let at = log.length.fetch_add(1, Relaxed);
    log.vectors[at % MOST].store(vector, Relaxed);
}

/// How many `cpu` has had.
pub(crate) fn count(cpu: Cpu) -> usize {
    LOGS.of(cpu).length.load(Relaxed)
}

/// Runs `body` on a processor that has had none so far.
pub(crate) fn afresh(body: impl FnOnce() -> Outcome) -> Outcome {
    for log in LOGS.iter() {
        log.length.store(0, Relaxed);
    }
    body()
}

/// The vectors that this processor has had, as a slice of `room`.
pub(crate) fn here(room: &mut [u8; 16]) -> &[u8] {
    let log = LOGS.here();
    let length = log.length.load(Relaxed).min(room.len());
    for (to, from) in room.iter_mut().zip(&log.vectors[..length]) {
        *to = from.load(Relaxed);
    }
    &room[..length]
}

/// Lets interrupts in for a while that is long for what is pending already.
pub(crate) fn let_in() {
    interrupts::enable();
    clock::wait(clock::microseconds(100));
    interrupts::disable();
}

/// Lets interrupts in until there were `count`, but not for ever. Whether there were.
pub(crate) fn let_in_until(count_wanted: usize) -> bool {
    interrupts::enable();
    let came = clock::wait_for(clock::seconds(20), || count(Cpu::current()) >= count_wanted);
    interrupts::disable();
    came
}
