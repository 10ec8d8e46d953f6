//! Chooses the next byte to send.

use crate::ring::{self, Consumer, Producer, ring};
use abi::wire::{self, Part};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::alloc::Layout;
use core::fmt::{self, Write};

/// The most bytes of a VM that are sent in one turn while other sources wait. A longer line is cut.
pub const QUANTUM: usize = 256;

/// How long a line without an end is held back to wait for its end, in nanoseconds.
pub const HOLD: u64 = 20_000_000;

/// Dropped bytes of a VM that has more to send are reported once in this time at most, in nanoseconds.
pub(crate) const DROPPED_PERIOD: u64 = 1_000_000_000;

/// The longest name of a VM. Longer ones are cut.
const MAX_NAME: usize = 32;

/// Sends bytes: a UART.
pub trait Transmitter {
    /// How many bytes can be sent now without waiting.
    fn room(&mut self) -> usize;
    /// Sends a byte. There must be [`room`](Self::room).
    fn send(&mut self, byte: u8);
}

/// How many bytes a CPU sends at a time, before it does something else.
pub const BUDGET: usize = 512;

/// What follows a burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Burst {
    /// Another one, at once.
    More,
    /// None, for now. This is when the bytes that are left are due, in nanoseconds, if there are any.
    Last(Option<u64>),
}

/// The producers of a VM's queues.
pub struct VmQueues {
    /// The VM's output.
    pub output: Producer,
    /// The hypervisor's messages about the VM, which are sent after all of the VM's output.
    pub log: Producer,
}

/// The consumers of all queues, and the state of the serial line.
pub struct Mux {
    own: Consumer,
    vms: Vec<Vm>,
    /// The current turn, which ends with its line, after [`QUANTUM`] bytes, or when the source has no more bytes.
    turn: Option<Turn>,
    /// The source whose line has begun on the wire and not ended.
    open: Option<Source>,
    /// The VM that had the last turn of a VM.
    last: usize,
    /// Bytes to be sent before all others: ends of cut lines, and marks.
    framing: Framing,
    /// Only the hypervisor's own lines are sent from now on.
    only_own: bool,
}

/// A source of lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// The hypervisor.
    Own,
    /// The VM of this number.
    Vm(usize),
    /// The hypervisor, about this VM.
    Log(usize),
}

struct Turn {
    source: Source,
    spent: usize,
}

struct Vm {
    /// None: it is the only VM.
    name: Option<Box<str>>,
    output: Consumer,
    log: Consumer,
    /// The last line was cut: the next bytes are its rest.
    is_cut: bool,
    /// Since when the output waits for its turn, in nanoseconds.
    held: Option<u64>,
    /// When dropped bytes were last reported, in nanoseconds.
    reported: u64,
}

impl Vm {
    /// Whether the output is to be sent now. `is_open`: its line has begun on the wire.
    fn is_ready(&self, is_open: bool, now: u64) -> bool {
        let is_over = |since: u64| now.saturating_sub(since) >= HOLD;
        let is_due = self.name.is_none() || is_open || self.held.is_some_and(is_over);
        self.output.has_line() || self.output.len() >= QUANTUM || (is_due && !self.output.is_empty())
    }

    fn has_dropped(&self) -> bool {
        self.output.has_dropped() || self.log.has_dropped()
    }

    /// Whether dropped bytes are to be reported although there is more to send: a flood may have no end.
    fn report_is_due(&self, now: u64) -> bool {
        self.has_dropped() && now.saturating_sub(self.reported) >= DROPPED_PERIOD
    }
}

impl Mux {
    /// A multiplexer for the hypervisor alone, with a queue of at least `capacity` bytes.
    pub fn new(capacity: usize) -> (Self, Producer) {
        let (producer, own) = ring(capacity);
        let mux =
            Self { own, vms: Vec::new(), turn: None, open: None, last: 0, framing: Framing::new(), only_own: false };
        (mux, producer)
    }

    /// Adds a VM, with queues of at least these capacities in bytes. `name` is None for the only VM.
    pub fn add_vm(&mut self, name: Option<&str>, output: usize, log: usize) -> VmQueues {
        let short = |name: &str| name.chars().take(MAX_NAME).collect();
        let (output, log) = (ring(output.max(QUANTUM)), ring(log));
        self.vms.push(Vm {
            name: name.map(short),
            output: output.1,
            log: log.1,
            is_cut: false,
            held: None,
            reported: 0,
        });
        VmQueues { output: output.0, log: log.0 }
    }

    /// The allocations of [`add_vm`](Self::add_vm), at most.
    pub fn vm_allocations(output: usize, log: usize) -> impl Iterator<Item = Layout> {
        // The list of VMs may be reallocated with twice its size.
        let listed = [Layout::new::<[u8; MAX_NAME]>(), Layout::new::<Vm>(), Layout::new::<Vm>()];
        ring::allocations(output.max(QUANTUM)).into_iter().chain(ring::allocations(log)).chain(listed)
    }

    /// Sends as many bytes as are due at `now` (in nanoseconds) and as `transmitter` has room for. Returns their number.
    pub fn burst(&mut self, now: u64, transmitter: &mut impl Transmitter) -> usize {
        if self.due(now).is_none_or(|due| due > now) {
            return 0;
        }
        let room = transmitter.room();
        (0..room).map_while(|_| self.next(now)).map(|byte| transmitter.send(byte)).count()
    }

    /// Sends a burst that is one of several, of [`BUDGET`] bytes together: `left` is what is left of them. Where the UART is an emulator's,
    /// which is always ready, a CPU would else send without end.
    pub fn next_burst(&mut self, now: u64, transmitter: &mut impl Transmitter, left: &mut usize) -> Burst {
        let sent = self.burst(now, transmitter);
        *left = left.saturating_sub(sent);
        if sent == 0 || *left == 0 { Burst::Last(self.due(now)) } else { Burst::More }
    }

    /// Whether `byte`, of the only VM, may be sent at once, because nothing waits before it: then it counts as sent. It need not pass
    /// through the VM's queue, which costs several times as much.
    #[inline]
    pub fn pass(&mut self, byte: u8) -> bool {
        let [vm] = &self.vms[..] else { return false };
        let is_quiet = self.framing.is_empty() && self.own.is_quiet() && vm.output.is_quiet() && vm.log.is_quiet();
        let is_its_line = matches!(self.open, None | Some(Source::Vm(_))) && vm.name.is_none() && !vm.is_cut;
        if !is_quiet || !is_its_line || self.only_own {
            return false;
        }
        let source = Source::Vm(0);
        let spent = match &self.turn {
            Some(turn) if turn.source == source && turn.spent < QUANTUM => turn.spent,
            _ => 0,
        };
        let line_goes_on = byte != b'\n';
        self.turn = line_goes_on.then_some(Turn { source, spent: spent + 1 });
        self.open = line_goes_on.then_some(source);
        true
    }

    /// When [`burst`](Self::burst) has bytes to send next. None if no bytes wait.
    pub fn due(&mut self, now: u64) -> Option<u64> {
        if !self.framing.is_empty() || self.turn_continues(now) || self.find(now).is_some() {
            return Some(now);
        }
        self.vms
            .iter()
            .filter_map(|vm| vm.held)
            .min()
            .map(|since| since.saturating_add(HOLD))
            .filter(|_| !self.only_own)
    }

    /// From now on only the hypervisor's own lines are sent. Returns the number of bytes of VMs that are left in the queues.
    pub fn silence_vms(&mut self) -> usize {
        self.only_own = true;
        self.vms.iter().map(|vm| vm.output.len() + vm.log.len()).sum()
    }

    /// For a hypervisor that is about to write to the wire directly: whether a line is open, which counts as ended from now on.
    pub fn end_line(&mut self) -> bool {
        self.framing = Framing::new();
        self.turn = None;
        self.open.take().is_some()
    }

    /// The next byte to send.
    fn next(&mut self, now: u64) -> Option<u8> {
        if self.framing.is_empty() && !self.turn_continues(now) {
            let source = self.find(now)?;
            self.give_turn(source, now);
        }
        self.framing.pop().or_else(|| self.take())
    }

    /// Whether the current turn continues.
    fn turn_continues(&mut self, now: u64) -> bool {
        let Some(Turn { source, spent }) = self.turn else { return false };
        if !self.has_bytes(source) || (self.only_own && source != Source::Own) {
            return false;
        }
        match source {
            Source::Vm(vm) if spent >= QUANTUM => {
                !self.vms[vm].report_is_due(now) && self.find(now) == Some(source) && self.restart_turn()
            }
            _ => true,
        }
    }

    /// Lets the turn last for another [`QUANTUM`], because no other source has bytes to send. True.
    fn restart_turn(&mut self) -> bool {
        if let Some(turn) = &mut self.turn {
            turn.spent = 0;
        }
        true
    }

    fn has_bytes(&self, source: Source) -> bool {
        match source {
            Source::Own => !self.own.is_empty(),
            Source::Vm(vm) => !self.vms[vm].output.is_empty(),
            Source::Log(vm) => !self.vms[vm].log.is_empty(),
        }
    }

    /// The source of the next turn: the hypervisor, otherwise the first VM with bytes after the one that had the last turn.
    fn find(&mut self, now: u64) -> Option<Source> {
        if !self.own.is_empty() || self.own.has_dropped() {
            return Some(Source::Own);
        }
        if self.only_own {
            return None;
        }
        let (count, next) = (self.vms.len(), self.last + 1);
        (next..next + count).find_map(|number| self.find_of(number % count, now))
    }

    /// The source of a VM's next turn: its output, otherwise the messages about it.
    fn find_of(&mut self, number: usize, now: u64) -> Option<Source> {
        let is_open = self.open == Some(Source::Vm(number));
        let vm = &mut self.vms[number];
        if !vm.output.is_empty() {
            vm.held = vm.held.or(Some(now));
            return vm.is_ready(is_open, now).then_some(Source::Vm(number));
        }
        vm.held = None;
        (!vm.log.is_empty() || vm.has_dropped()).then_some(Source::Log(number))
    }

    /// Ends the open line of another source, and begins a line of `source`.
    fn give_turn(&mut self, source: Source, now: u64) {
        let reports = matches!(source, Source::Vm(vm) if self.vms[vm].report_is_due(now));
        let continues = self.open == Some(source) && !reports;
        if !continues {
            self.cut();
        }
        if reports {
            self.report_dropped(source, now);
        }
        match source {
            Source::Vm(number) => {
                self.last = number;
                let vm = &mut self.vms[number];
                vm.held = None;
                if !continues {
                    let part = if core::mem::take(&mut vm.is_cut) { Part::Rest } else { Part::Fresh };
                    wire::mark(vm.name.as_deref(), part).into_iter().for_each(|bytes| self.framing.push(bytes));
                }
            }
            Source::Log(number) => self.last = number,
            Source::Own => {}
        }
        self.turn = self.has_bytes(source).then_some(Turn { source, spent: 0 });
        if self.turn.is_none() {
            self.report_dropped(source, now);
        }
    }

    /// Ends the open line.
    fn cut(&mut self) {
        if let Some(open) = self.open.take() {
            self.framing.push(wire::END);
            if let Source::Vm(vm) = open {
                self.vms[vm].is_cut = true;
            }
        }
    }

    /// Queues a line that reports the number of bytes dropped since the last report: of the hypervisor, or of a VM's two queues.
    fn report_dropped(&mut self, source: Source, now: u64) {
        let (name, count) = match source {
            Source::Own => (None, self.own.newly_dropped()),
            Source::Vm(vm) | Source::Log(vm) => {
                let vm = &mut self.vms[vm];
                vm.reported = now;
                (vm.name.as_deref(), vm.output.newly_dropped().wrapping_add(vm.log.newly_dropped()))
            }
        };
        let framing = &mut self.framing;
        // `Framing` has room for the longest name and number.
        let _ = write!(framing, "{}console: {count} bytes dropped\r\n", wire::Own(name));
    }

    /// Takes a byte of the source that has the turn.
    fn take(&mut self) -> Option<u8> {
        let turn = self.turn.as_mut()?;
        let byte = match turn.source {
            Source::Own => self.own.pop(),
            Source::Vm(vm) => self.vms[vm].output.pop(),
            Source::Log(vm) => self.vms[vm].log.pop(),
        }?;
        turn.spent += 1;
        self.open = Some(turn.source);
        if byte == b'\n' {
            self.open = None;
            self.turn = None;
        }
        Some(byte)
    }
}

/// A few bytes to be sent before all others.
struct Framing {
    bytes: [u8; Self::CAPACITY],
    start: usize,
    end: usize,
}

impl Framing {
    /// Room for an end of line, the longest report of dropped bytes, and the longest mark.
    const CAPACITY: usize = 2 * 4 * MAX_NAME + 80;

    const fn new() -> Self {
        Self { bytes: [0; Self::CAPACITY], start: 0, end: 0 }
    }

    const fn is_empty(&self) -> bool {
        self.start == self.end
    }

    fn push(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if let Some(free) = self.bytes.get_mut(self.end) {
                *free = byte;
                self.end += 1;
            }
        }
    }

    fn pop(&mut self) -> Option<u8> {
        if self.is_empty() {
            *self = Self::new();
            return None;
        }
        let byte = self.bytes[self.start];
        self.start += 1;
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
        }
        Some(byte)
    }
}

impl fmt::Write for Framing {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push(text.as_bytes());
        Ok(())
    }
}
