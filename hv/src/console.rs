//! The machine's console: COM1, polled, `log` on top of it, and the VMs' output beside that.
//!
//! Output is queued in [`serial`]. Bytes leave the queues while the UART takes them at once: when
//! a line is put, whenever a CPU was interrupted, and before it sleeps ([`poll`]); a CPU's timer is armed for what is left
//! ([`next_poll`]). No CPU waits for the UART while guests run, and the lock on it is held for what its FIFO takes.
//!
//! Input is the affair of one VM at most, whose devices look for it ([`Output`]). What it does not take stays in the UART, which is
//! all the flow control that there is: an emulator holds the rest back, a cable loses what comes while the FIFO is full.
//!
//! Before guests run a line waits until it is sent, so that it is seen if the next step hangs. A hypervisor that ends or panics
//! [takes](take_line) the line for good and writes by itself.

use crate::cpus;
use crate::lapic;
use crate::timer;
use abi::options::level;
use abi::ports::COM1;
use abi::uart::{BAUD, FIFO};
use abi::wire;
use core::alloc::Layout;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use devices::Nanoseconds;
use log::{LevelFilter, Log, Metadata, Record};
use sched::Instant;
use serial::{
    Attention, BUDGET, Burst, Mux, Producer, QUANTUM, Receiver, Transmitter, Uart, UartPorts, VmQueues, line_status,
};
use spin::{Mutex, Once};
use x86::io::{inb, outb};

/// How long it takes to send a FIFO, in nanoseconds: ten bits for each byte.
const FIFO_TIME: u64 = FIFO as u64 * 10 * 1_000_000_000 / BAUD;

/// How often the VM with the input looks for it: before the receiver's FIFO, which is as large and as fast as the transmitter's, can
/// have become full.
const INPUT_PERIOD: Nanoseconds = Nanoseconds(1_000_000);
const _: () = assert!(INPUT_PERIOD.0 < FIFO_TIME);

/// Queues, in bytes: of the hypervisor's own lines, of a VM's output, and of the hypervisor's lines about a VM, which at its end
/// has a few KiB of them.
const OWN_QUEUE: usize = 8 << 10;
const OUTPUT_QUEUE: usize = 4 << 10;
const LOG_QUEUE: usize = 8 << 10;

/// COM1's registers, which are the console's alone.
struct Com1;

impl UartPorts for Com1 {
    #[inline]
    fn read(&self, register: u16) -> u8 {
        // SAFETY: a read takes what was received, for the caller to use, and clears error bits; no interrupt is enabled that it could
        // take back.
        unsafe { inb(COM1 + register) }
    }

    #[inline]
    fn write(&self, register: u16, value: u8) {
        // SAFETY: the port has no effect but on the line.
        unsafe { outb(COM1 + register, value) };
    }

    /// Each CPU is interrupted, so that its vCPUs add to the report that the break asks for.
    #[cold]
    #[inline(never)]
    fn heed_break(&self) {
        RECEIVER.expect_zero();
        if SHARED.load(Ordering::Relaxed) {
            BREAKS.fetch_add(1, Ordering::Relaxed);
            (0..cpus::online()).for_each(lapic::kick);
        }
    }
}

struct Console {
    line: Mutex<Line>,
    own: Mutex<Producer>,
}

struct Line {
    uart: Uart<Com1>,
    mux: Mux,
}

static CONSOLE: Once<Console> = Once::new();
static ATTENTION: Attention = Attention::new();

/// How often a break was received while guests ran: each asks for what the exits have cost so far (as a break on a serial console
/// begins a command to Linux, by SysRq).
static BREAKS: AtomicU32 = AtomicU32::new(0);
static RECEIVER: Receiver = Receiver::new();

/// Guests run: no CPU waits for the UART.
static SHARED: AtomicBool = AtomicBool::new(false);
/// The hypervisor comes to its end, and writes by itself. Read with the line held.
static TAKEN: AtomicBool = AtomicBool::new(false);

impl Console {
    /// Sends what the UART takes at once. Whether something is left.
    fn send(&self) -> bool {
        let mut left = BUDGET;
        loop {
            // The holder of the lock may miss what was queued just now.
            let Some(mut line) = self.line.try_lock() else { return true };
            if TAKEN.load(Ordering::Relaxed) {
                return false;
            }
            ATTENTION.look();
            let (Line { uart, mux }, now) = (&mut *line, now());
            if let Burst::Last(due) = mux.next_burst(now, uart, &mut left) {
                due.inspect(|&due| ATTENTION.again(due));
                return due.is_some();
            }
        }
    }

    /// Sends this byte of the only VM, if nothing waits. Whether it did.
    fn pass(&self, byte: u8) -> bool {
        let Some(mut line) = self.line.try_lock() else { return false };
        let Line { uart, mux } = &mut *line;
        let passes = !TAKEN.load(Ordering::Relaxed) && uart.room() != 0 && mux.pass(byte);
        if passes {
            uart.send(byte);
        }
        passes
    }

    /// The same as [`send`](Self::send), and sees to it that what is left is sent later.
    fn send_and_attend(&self) {
        if self.send() {
            attend();
        }
    }
}

/// Heeds a break that has come while nothing was printed or typed. Called once a second by the watchdog.
pub(crate) fn look_for_break() {
    line_status(&Com1);
}

/// How many reports were asked for.
#[inline]
pub(crate) fn breaks() -> u32 {
    BREAKS.load(Ordering::Relaxed)
}

/// Something waits to be sent.
fn attend() {
    if ATTENTION.wanted() {
        lapic::kick_self();
    }
}

fn now() -> u64 {
    timer::nanoseconds(timer::tsc())
}

struct ConsoleLog;

impl Log for ConsoleLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            // `Error`, the first of them, is 1.
            let level = level::ALL[record.level() as usize - 1];
            report!("{level}: {}", record.args());
        }
    }

    fn flush(&self) {}
}

/// Programs the port and makes it `log`'s destination.
pub(crate) fn init(level: LevelFilter) {
    CONSOLE.call_once(|| {
        let (mux, own) = Mux::new(OWN_QUEUE);
        Console { line: Mutex::new(Line { uart: Uart::program(Com1), mux }), own: Mutex::new(own) }
    });
    // The only error is a second logger: `init` is called once, at boot.
    let _ = log::set_logger(&ConsoleLog);
    log::set_max_level(level);
}

/// Prints whole lines without a level: the reports that every run shows. A line for which the queue has no room is dropped, and
/// counted there.
pub(crate) fn print(text: fmt::Arguments<'_>) {
    let Some(console) = CONSOLE.get() else { return };
    if TAKEN.load(Ordering::Relaxed) {
        // A `Uart` never returns an error.
        let _ = console.line.lock().uart.write_fmt(text);
        return;
    }
    console.own.lock().write_lines("", &text);
    if SHARED.load(Ordering::Relaxed) {
        console.send_and_attend();
    } else {
        while console.send() {
            core::hint::spin_loop();
        }
    }
}

/// From here on no line waits until it is sent: guests run.
pub(crate) fn share() {
    SHARED.store(true, Ordering::Relaxed);
}

/// What [`add_vm`] allocates.
pub(crate) fn vm_allocations() -> impl Iterator<Item = Layout> {
    Mux::vm_allocations(OUTPUT_QUEUE, LOG_QUEUE)
}

/// A VM's console, its queues allocated. `name` is None if it is the only one. `input`: it gets what the machine receives, which no
/// other VM does.
pub(crate) fn add_vm(name: Option<&str>, input: bool) -> (Output, Producer) {
    // `init` was the first thing that was done.
    let line = CONSOLE.get().map(|console| console.line.lock());
    let Some(mut line) = line else { unreachable!("the console is set up before a VM is made") };
    let VmQueues { output, log } = line.mux.add_vm(name, OUTPUT_QUEUE, LOG_QUEUE);
    (Output { output, alone: name.is_none(), input }, log)
}

/// Where a VM's output goes, and where its input comes from.
pub(crate) struct Output {
    output: Producer,
    /// What it prints is sent at once, rather than line by line.
    alone: bool,
    /// It has the machine's input.
    input: bool,
}

impl devices::Sink for Output {
    fn put(&mut self, byte: u8) {
        if self.alone && CONSOLE.get().is_some_and(|console| console.pass(byte)) {
            return;
        }
        self.output.put(byte);
        let is_due = self.alone || byte == b'\n' || self.output.len() >= QUANTUM;
        match CONSOLE.get() {
            Some(console) if is_due => console.send_and_attend(),
            _ => attend(),
        }
    }

    fn has_room(&mut self) -> bool {
        if self.output.room() == 0
            && let Some(console) = CONSOLE.get()
        {
            console.send_and_attend();
        }
        self.output.room() != 0
    }

    fn take(&mut self) -> Option<u8> {
        if self.input { RECEIVER.receive(&Com1) } else { None }
    }

    fn input_period(&self) -> Option<Nanoseconds> {
        self.input.then_some(INPUT_PERIOD)
    }
}

/// Puts `text` into `queue`, line by line, each behind `prefix`.
pub(crate) fn report_to(queue: &mut Producer, prefix: &str, text: &dyn fmt::Display) {
    queue.write_lines(prefix, text);
    CONSOLE.get().inspect(|console| console.send_and_attend());
}

/// Sends what waits and the UART takes at once. To be called when the CPU was interrupted and before it sleeps; before it enters
/// a guest or sleeps it arms its timer for [`next_poll`].
#[inline]
pub(crate) fn poll() {
    if ATTENTION.disarm() {
        send();
    }
}

#[cold]
fn send() {
    if let Some(console) = CONSOLE.get() {
        console.send();
    }
}

/// When this CPU has to [`poll`] at the latest, as it arms its timer anew.
#[inline]
pub(crate) fn next_poll() -> Instant {
    ATTENTION.arm().map_or(Instant::NEVER, next_poll_for)
}

#[cold]
fn next_poll_for(due: u64) -> Instant {
    Instant::new(timer::ticks(due.max(now() + FIFO_TIME)))
}

/// Whether something waits.
pub(crate) fn is_pending() -> bool {
    CONSOLE.get().is_some_and(|console| console.line.lock().mux.due(now()).is_some())
}

/// Takes the line for good: ends what is open on it and sends the hypervisor's own lines, but not the VMs'. What is printed from
/// then on is written at once.
pub(crate) fn take_line() {
    let Some(console) = CONSOLE.get() else { return };
    let mut line = console.line.lock();
    if TAKEN.swap(true, Ordering::Relaxed) {
        return;
    }
    let Line { uart, mux } = &mut *line;
    let lost = mux.silence_vms();
    while mux.due(now()).is_some() {
        mux.burst(now(), uart);
    }
    if mux.end_line() {
        uart.write_bytes(wire::END);
    }
    if lost != 0 {
        // A `Uart` never returns an error.
        let _ = writeln!(uart, "{}console: {lost} bytes of VMs dropped", wire::OWN);
    }
}

/// Takes the line for a panic, whichever CPU holds it.
///
/// # Safety
/// No other CPU may be running the hypervisor any more, and the caller never returns to the holder.
pub(crate) unsafe fn seize() {
    if let Some(console) = CONSOLE.get() {
        // SAFETY: passed on to the caller.
        unsafe { console.line.force_unlock() };
    }
    take_line();
}

/// Waits until the last byte has left the port: an emulator that ends before loses it.
pub(crate) fn drain() {
    if let Some(console) = CONSOLE.get() {
        console.line.lock().uart.drain();
    }
}

/// A line of the hypervisor's report, marked as its own.
macro_rules! report {
    ($($arg:tt)*) => { $crate::console::print(format_args!("{}{}\n", abi::wire::OWN, format_args!($($arg)*))) };
}
pub(crate) use report;
