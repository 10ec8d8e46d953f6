//! Chooses the next byte to send.

use crate::ring::{self, Consumer, Producer, ring};
use abi::wire::{self, Part};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::alloc::Layout;
use core::fmt::{self, Write};

/// How many bytes of a VM's line are sent while others wait; a line that is longer is cut.
pub const QUANTUM: usize = 256;

/// How long a line without an end is kept back in the hope of its end, in nanoseconds.
pub const HOLD: u64 = 20_000_000;

/// The longest name of a VM. Longer ones are cut.
const MAX_NAME: usize = 32;

/// What sends bytes: a UART.
pub trait Transmitter {
    /// How many bytes can be sent now, without waiting.
    fn room(&mut self) -> usize;
    /// Sends one, where there is [`room`](Self::room).
    fn send(&mut self, byte: u8);
}

/// Where a VM's bytes go in.
pub struct VmQueues {
    /// What the VM prints.
    pub output: Producer,
    /// What the hypervisor says about the VM, sent when all that the VM has printed is.
    pub about: Producer,
}

/// The queues' other ends, and the state of the serial line.
pub struct Mux {
    own: Consumer,
    vms: Vec<Vm>,
    /// Whose turn it is, until its line ends, it had its [`QUANTUM`], or it has nothing while another has.
    turn: Option<Turn>,
    /// Whose line has begun on the serial line, and not ended.
    open: Option<Speaker>,
    /// The VM that had the last turn of a VM.
    last: usize,
    /// What has to be sent before anything else: ends of cut lines, and marks.
    framing: Framing,
    /// VM output is no longer sent.
    only_own: bool,
}

/// A source of lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speaker {
    /// The hypervisor.
    Own,
    /// The VM of this number.
    Vm(usize),
    /// The hypervisor, about this VM.
    About(usize),
}

struct Turn {
    speaker: Speaker,
    spent: usize,
}

struct Vm {
    /// None: it is the only one.
    name: Option<Box<str>>,
    output: Consumer,
    about: Consumer,
    /// Its last line was cut: what comes next is the rest.
    is_cut: bool,
    /// Since when what it has printed waits for its turn.
    held: Option<u64>,
}

impl Vm {
    /// Whether what it has printed is to be sent now. `is_open`: its line has begun already.
    fn is_ready(&self, is_open: bool, now: u64) -> bool {
        let is_over = |since: u64| now.saturating_sub(since) >= HOLD;
        let is_due = self.name.is_none() || is_open || self.held.is_some_and(is_over);
        self.output.has_line() || self.output.len() >= QUANTUM || (is_due && !self.output.is_empty())
    }

    fn has_dropped(&self) -> bool {
        self.output.has_dropped() || self.about.has_dropped()
    }
}

impl Mux {
    /// A line for the hypervisor alone, with a queue of at least `capacity` bytes.
    pub fn new(capacity: usize) -> (Self, Producer) {
        let (producer, own) = ring(capacity);
        let mux =
            Self { own, vms: Vec::new(), turn: None, open: None, last: 0, framing: Framing::new(), only_own: false };
        (mux, producer)
    }

    /// One VM more, with queues of at least these capacities. `name` is None for the only VM.
    pub fn add_vm(&mut self, name: Option<&str>, output: usize, about: usize) -> VmQueues {
        let short = |name: &str| name.chars().take(MAX_NAME).collect();
        let (output, about) = (ring(output.max(QUANTUM)), ring(about));
        self.vms.push(Vm { name: name.map(short), output: output.1, about: about.1, is_cut: false, held: None });
        VmQueues { output: output.0, about: about.0 }
    }

    /// What [`add_vm`](Self::add_vm) allocates, at most.
    pub fn vm_allocations(output: usize, about: usize) -> impl Iterator<Item = Layout> {
        // The list of VMs is moved when it grows, to twice its size.
        let listed = [Layout::new::<[u8; MAX_NAME]>(), Layout::new::<Vm>(), Layout::new::<Vm>()];
        ring::allocations(output.max(QUANTUM)).into_iter().chain(ring::allocations(about)).chain(listed)
    }

    /// Sends as much as there is and `transmitter` takes at once; `now` is in nanoseconds. Returns how much that was.
    pub fn burst(&mut self, now: u64, transmitter: &mut impl Transmitter) -> usize {
        if self.due(now).is_none_or(|due| due > now) {
            return 0;
        }
        let room = transmitter.room();
        (0..room).map_while(|_| self.next(now)).map(|byte| transmitter.send(byte)).count()
    }

    /// When there is something to send: [`burst`](Self::burst) has nothing before. None if nothing waits.
    pub fn due(&mut self, now: u64) -> Option<u64> {
        if !self.framing.is_empty() || self.goes_on(now) || self.find(now).is_some() {
            return Some(now);
        }
        self.vms
            .iter()
            .filter_map(|vm| vm.held)
            .min()
            .map(|since| since.saturating_add(HOLD))
            .filter(|_| !self.only_own)
    }

    /// From now on the hypervisor's own lines are sent, and nothing else. How many bytes of the VMs that leaves.
    pub fn silence_vms(&mut self) -> usize {
        self.only_own = true;
        self.vms.iter().map(|vm| vm.output.len() + vm.about.len()).sum()
    }

    /// Whether a line is open, which counts as ended from now on: for the hypervisor that is about to write by itself.
    pub fn end_line(&mut self) -> bool {
        self.framing = Framing::new();
        self.turn = None;
        self.open.take().is_some()
    }

    /// The next byte to be sent.
    fn next(&mut self, now: u64) -> Option<u8> {
        if self.framing.is_empty() && !self.goes_on(now) {
            let speaker = self.find(now)?;
            self.give_turn(speaker);
        }
        self.framing.pop().or_else(|| self.take())
    }

    /// Whether the turn goes on.
    fn goes_on(&mut self, now: u64) -> bool {
        let Some(Turn { speaker, spent }) = self.turn else { return false };
        if !self.has_bytes(speaker) || (self.only_own && speaker != Speaker::Own) {
            return false;
        }
        match speaker {
            Speaker::Vm(_) if spent >= QUANTUM => self.find(now) == Some(speaker) && self.restart_turn(),
            _ => true,
        }
    }

    /// No other source has anything to send.
    fn restart_turn(&mut self) -> bool {
        if let Some(turn) = &mut self.turn {
            turn.spent = 0;
        }
        true
    }

    fn has_bytes(&self, speaker: Speaker) -> bool {
        match speaker {
            Speaker::Own => !self.own.is_empty(),
            Speaker::Vm(vm) => !self.vms[vm].output.is_empty(),
            Speaker::About(vm) => !self.vms[vm].about.is_empty(),
        }
    }

    /// Who is to speak next: the hypervisor, or else the first VM after the last that did.
    fn find(&mut self, now: u64) -> Option<Speaker> {
        if !self.own.is_empty() || self.own.has_dropped() {
            return Some(Speaker::Own);
        }
        if self.only_own {
            return None;
        }
        let (count, next) = (self.vms.len(), self.last + 1);
        (next..next + count).find_map(|number| self.find_of(number % count, now))
    }

    /// What the VM has printed, or else what there is to be said about it.
    fn find_of(&mut self, number: usize, now: u64) -> Option<Speaker> {
        let is_open = self.open == Some(Speaker::Vm(number));
        let vm = &mut self.vms[number];
        if !vm.output.is_empty() {
            vm.held = vm.held.or(Some(now));
            return vm.is_ready(is_open, now).then_some(Speaker::Vm(number));
        }
        vm.held = None;
        (!vm.about.is_empty() || vm.has_dropped()).then_some(Speaker::About(number))
    }

    /// Ends another's open line, and begins that of `speaker`.
    fn give_turn(&mut self, speaker: Speaker) {
        let continues = self.open == Some(speaker);
        if !continues {
            self.cut();
        }
        match speaker {
            Speaker::Vm(number) => {
                self.last = number;
                let vm = &mut self.vms[number];
                vm.held = None;
                if !continues {
                    let part = if core::mem::take(&mut vm.is_cut) { Part::Rest } else { Part::Fresh };
                    wire::mark(vm.name.as_deref(), part).into_iter().for_each(|bytes| self.framing.push(bytes));
                }
            }
            Speaker::About(number) => self.last = number,
            Speaker::Own => {}
        }
        self.turn = self.has_bytes(speaker).then_some(Turn { speaker, spent: 0 });
        if self.turn.is_none() {
            self.tell_dropped(speaker);
        }
    }

    /// Ends the open line.
    fn cut(&mut self) {
        if let Some(open) = self.open.take() {
            self.framing.push(wire::END);
            if let Speaker::Vm(vm) = open {
                self.vms[vm].is_cut = true;
            }
        }
    }

    /// A line on what was dropped of the hypervisor's words, or of a VM's and those about it.
    fn tell_dropped(&mut self, speaker: Speaker) {
        let (name, count) = match speaker {
            Speaker::Own => (None, self.own.newly_dropped()),
            Speaker::Vm(vm) | Speaker::About(vm) => {
                let vm = &mut self.vms[vm];
                (vm.name.as_deref(), vm.output.newly_dropped().wrapping_add(vm.about.newly_dropped()))
            }
        };
        let framing = &mut self.framing;
        // There is room for the longest name and number.
        let _ = write!(framing, "{}console: {count} bytes dropped\r\n", wire::Own(name));
    }

    /// A byte of the source whose turn it is.
    fn take(&mut self) -> Option<u8> {
        let turn = self.turn.as_mut()?;
        let byte = match turn.speaker {
            Speaker::Own => self.own.pop(),
            Speaker::Vm(vm) => self.vms[vm].output.pop(),
            Speaker::About(vm) => self.vms[vm].about.pop(),
        }?;
        turn.spent += 1;
        self.open = Some(turn.speaker);
        if byte == b'\n' {
            self.open = None;
            self.turn = None;
        }
        Some(byte)
    }
}

/// A few bytes that wait to be sent before all others.
struct Framing {
    bytes: [u8; Self::CAPACITY],
    start: usize,
    end: usize,
}

impl Framing {
    /// An end of line, and the longest line on what was dropped.
    const CAPACITY: usize = 4 * MAX_NAME + 64;

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
