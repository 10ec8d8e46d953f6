//! The rules: lines stay whole, losses are reported, and delays are bounded.

use super::reader::joined;
use super::{CAPACITY, Console};
use crate::mux::DROPPED_PERIOD;
use crate::{BUDGET, Burst, HOLD, Mux, QUANTUM, Transmitter};
use abi::wire::{self, Part};
use proptest::prelude::*;
use std::string::{String, ToString};
use std::vec::Vec;

const A: usize = 0;
const B: usize = 1;

fn two() -> Console {
    Console::new(&[Some("a"), Some("b")])
}

#[test]
fn lines_are_sent_whole_and_with_their_names() {
    let mut console = two();
    console.print(A, b"one\nthr");
    console.print(B, b"two\n");
    console.log("zero");
    assert_eq!(console.send().sent(), "hv: zero\r\nb| two\na| one\n");
    console.print(A, b"ee\n");
    assert_eq!(console.send().sent(), "a| three\n");
}

#[test]
fn the_only_vms_output_is_sent_at_once_and_the_hypervisors_lines_begin_at_column_0() {
    let mut console = Console::new(&[None]);
    console.print(A, b"login: ");
    assert_eq!(console.send().sent(), "login: ");
    console.log("a word");
    assert_eq!(console.send().sent(), "\r\nhv: a word\r\n");
    console.print(A, b"root\nhello\n");
    assert_eq!(console.send().sent(), "|+root\nhello\n");
}

proptest! {
    /// What passes by its queue is sent as if it had been in it.
    #[test]
    fn a_byte_that_passes_is_sent_as_if_it_were_queued(
        steps in prop::collection::vec((0..4_u8, prop::sample::select(&b"ab\n"[..]), prop::bool::ANY), 1..60),
    ) {
        let [mut passes, mut queues] = [(); 2].map(|()| Console::new(&[None]));
        for (what, byte, is_ready) in steps {
            for (console, may_pass) in [(&mut passes, is_ready), (&mut queues, false)] {
                match what {
                    0 => console.log("own"),
                    1 => console.vms[A].log.write_lines("hv: ", &"about"),
                    _ if may_pass && console.mux.pass(byte) => console.line.bytes.push(byte),
                    _ => _ = console.print(A, &[byte]),
                }
                if is_ready {
                    console.send();
                }
            }
        }
        prop_assert_eq!(passes.send().sent(), queues.send().sent());
    }
}

#[test]
fn a_byte_passes_where_nothing_waits() {
    let mut console = Console::new(&[None]);
    assert!(console.mux.pass(b'x'));
    console.log("own");
    assert!(!console.mux.pass(b'x'), "a line of the hypervisor's waits");
    console.send();
    assert!(!console.mux.pass(b'x'), "its line was cut: the rest is marked");
    console.print(A, b"x\n");
    assert!(!console.mux.pass(b'x'), "the byte before it waits");
    console.send();
    assert!(console.mux.pass(b'x'));
    assert!(!two().mux.pass(b'x'), "another VM may have a line open");
}

#[test]
fn a_line_without_an_end_is_held_back_for_a_bounded_time() {
    let mut console = two();
    console.print(A, b"login: ");
    assert_eq!(console.mux.due(7), Some(7 + HOLD));
    assert_eq!(console.send().sent(), "");
    console.now = 7 + HOLD;
    assert_eq!(console.send().sent(), "a| login: ");
    console.print(A, b"r");
    assert_eq!(console.send().sent(), "r", "its line is open");
    console.print(B, b"x\n");
    console.print(A, b"oot\n");
    assert_eq!(console.send().sent(), "oot\nb| x\n", "its end is there already");
}

#[test]
fn an_open_line_is_ended_before_anothers_begins() {
    let mut console = two();
    console.print(A, b"not ");
    assert_eq!(console.send_all().sent(), "a| not ");
    console.print(B, b"x\n");
    assert_eq!(console.send().sent(), "\r\nb| x\n");
    console.print(A, b"ok 1\n");
    assert_eq!(console.send().sent(), "a|+ok 1\n");
    console.print(A, b"ok 2\n");
    assert_eq!(console.send().sent(), "a| ok 2\n");
}

#[test]
fn a_flood_without_ends_is_cut_only_if_other_sources_wait() {
    let mut console = two();
    console.print(A, &[b'x'; 600]);
    assert_eq!(console.send_all().sent().lines().count(), 1, "no other source has anything to send");
    console.print(A, &[b'y'; 600]);
    console.print(B, b"ok\n");
    let sent = console.send().sent();
    let left = QUANTUM - 600 % QUANTUM;
    let lines: Vec<&str> = sent.lines().collect();
    assert_eq!(lines, [&*"y".repeat(left), "b| ok", &*std::format!("a|+{}", "y".repeat(600 - left))]);
}

#[test]
fn messages_about_a_vm_come_after_its_output() {
    let mut console = two();
    console.print(A, b"bye");
    console.vms[A].log.write_lines("hv: a: ", &"verdict: pass 0\nreally");
    assert_eq!(console.send_all().sent(), "a| bye\r\nhv: a: verdict: pass 0\r\nhv: a: really\r\n");
    assert_eq!(console.mux.due(console.now), None);
}

#[test]
fn a_vm_waits_for_room_and_dropped_bytes_are_reported() {
    let mut console = two();
    assert_eq!(console.print(A, &[b'x'; CAPACITY + 10]), CAPACITY);
    assert_eq!((console.vms[A].output.room(), console.vms[A].output.put(b'y')), (0, false));
    let sent = console.send_all().sent();
    assert_eq!(sent, std::format!("a| {}\r\nhv: a: console: 1 bytes dropped\r\n", "x".repeat(CAPACITY)));
    assert_eq!(console.send_all().sent(), "");
}

#[test]
fn dropped_bytes_of_a_flood_are_reported_while_it_goes_on() {
    for line in [&b"0123456789abcde\n"[..], &b"x"[..]] {
        let mut console = two();
        let mut reported = Vec::new();
        // Ten seconds, of which each tenth has more output than is sent.
        for _ in 0..100 {
            console.now += DROPPED_PERIOD / 10;
            console.print(A, &line.repeat(CAPACITY));
            assert!(!console.vms[A].output.put(b'y'));
            (0..CAPACITY / 2 / console.line.room).for_each(|_| _ = console.mux.burst(console.now, &mut console.line));
            let sent = console.sent();
            reported
                .extend(sent.split('\n').filter(|line| line.starts_with("hv: a: console: ")).map(ToString::to_string));
        }
        assert_eq!(reported.len(), 10, "{reported:?}");
        assert_eq!(reported[1], "hv: a: console: 10 bytes dropped\r");
    }
}

#[test]
fn a_line_of_the_hypervisor_is_dropped_as_a_whole_and_reported() {
    let mut console = two();
    (0..2).for_each(|_| console.log(&"x".repeat(CAPACITY - 100)));
    console.log("short");
    let sent = console.send().sent();
    let lines: Vec<&str> = sent.lines().map(|line| &line[..8.min(line.len())]).collect();
    assert_eq!(lines, ["hv: xxxx", "hv: shor", "hv: cons"]);
    assert!(sent.ends_with(&std::format!("hv: console: {} bytes dropped\r\n", CAPACITY - 100 + 6)), "{sent}");
}

#[test]
fn lines_of_a_text_have_the_prefix_and_empty_ones_too() {
    let mut console = two();
    console.log("one\n\ntwo\n");
    console.log("");
    assert_eq!(console.send().sent(), "hv: one\r\nhv: \r\nhv: two\r\n");
}

#[test]
fn a_hypervisor_that_panics_ends_the_open_line_and_sends_only_its_own() {
    let mut console = two();
    console.print(A, b"and then");
    console.send_all();
    console.print(A, b" more\n");
    console.print(B, b"x\n");
    console.log("trouble");
    assert_eq!(console.mux.silence_vms(), b" more\nx\n".len());
    assert_eq!(console.send_all().sent(), "a| and then\r\nhv: trouble\r\n");
    assert_eq!((console.mux.due(console.now), console.mux.end_line()), (None, false));
}

#[test]
fn a_line_that_is_open_when_the_hypervisor_writes_by_itself_is_ended_once() {
    let mut console = two();
    console.print(A, b"and then");
    console.send_all();
    assert!(console.mux.end_line());
    assert!(!console.mux.end_line());
}

#[test]
fn a_mark_is_read_as_it_was_written() {
    for name in [None, Some("a"), Some("disk-test.2")] {
        for part in [Part::Fresh, Part::Rest] {
            let line = [&wire::mark(name, part).concat()[..], b"| text"].concat();
            assert_eq!(wire::parse(&line, name), Some((part, &b"| text"[..])), "{name:?} {part:?}");
        }
    }
    assert_eq!(wire::parse(b"ab| text", Some("a")), None);
    assert_eq!(wire::parse(b"hv: a: text", Some("a")), None);
    assert_eq!(wire::parse(b"a|", Some("a")), None);
}

/// What happens at a console.
#[derive(Clone, Debug)]
enum Step {
    Print {
        vm: usize,
        bytes: Vec<u8>,
    },
    About {
        vm: usize,
    },
    Log,
    /// The transmitter takes so many bytes, some time later.
    Send {
        room: usize,
        later: u64,
    },
}

fn text() -> impl Strategy<Value = Vec<u8>> {
    // Ends of line, and text that resembles an end, a mark, or a line of the hypervisor.
    let piece = prop_oneof![
        Just(&b"\n"[..]),
        Just(&b"\r\n"[..]),
        Just(&b"\r"[..]),
        Just(&b"a|+"[..]),
        Just(&b"b| not ok 1"[..]),
        Just(&b"hv: verdict: pass 0"[..]),
        Just(&b"\xff\x00"[..]),
        Just(&[b'x'; 100][..]),
        Just(&b"x"[..]),
    ];
    prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

fn step(vms: usize) -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..vms, text()).prop_map(|(vm, bytes)| Step::Print { vm, bytes }),
        1 => (0..vms).prop_map(|vm| Step::About { vm }),
        1 => Just(Step::Log),
        4 => (0usize..40, prop_oneof![Just(0), 0..2 * HOLD]).prop_map(|(room, later)| Step::Send { room, later }),
    ]
}

const NAMES: [Option<&str>; 3] = [Some("a"), Some("b"), Some("c")];

/// Carries the steps out. Returns the output of each VM, and the number of the hypervisor's lines.
fn carry_out(console: &mut Console, steps: &[Step]) -> (Vec<Vec<u8>>, usize) {
    let mut printed = std::vec![Vec::new(); console.vms.len()];
    let mut own = 0;
    for step in steps {
        match step {
            Step::Print { vm, bytes } => {
                let taken = console.print(*vm, bytes);
                printed[*vm].extend(&bytes[..taken]);
            }
            Step::About { vm } => {
                console.vms[*vm].log.write_lines("hv: ", &"about");
                own += 1;
            }
            Step::Log => {
                console.log("own");
                own += 1;
            }
            Step::Send { room, later } => {
                console.now += later;
                console.line.room = *room;
                console.mux.burst(console.now, &mut console.line);
            }
        }
    }
    console.line.room = 16;
    console.send_all();
    (printed, own)
}

/// A last line without an end gets one when the line is read.
fn ended(mut printed: Vec<u8>, wire: &[u8]) -> Vec<u8> {
    if !printed.is_empty() && !printed.ends_with(b"\n") && wire.ends_with(b"\n") {
        printed.extend(b"\r\n");
    }
    printed
}

proptest! {
    #[test]
    fn every_vms_bytes_are_joined_exactly(steps in prop::collection::vec(step(3), 0..60)) {
        let mut console = Console::new(&NAMES);
        let (printed, own) = carry_out(&mut console, &steps);
        // Ends the last line.
        console.log("end");
        console.send();
        let wire = &console.line.bytes;
        for (name, printed) in NAMES.into_iter().zip(printed) {
            prop_assert_eq!(joined(wire, name), ended(printed, wire));
        }
        let is_own = |line: &&[u8]| [&b"hv: about\r\n"[..], b"hv: own\r\n", b"hv: end\r\n"].contains(line);
        let lines: Vec<&[u8]> = wire.split_inclusive(|&byte| byte == b'\n').collect();
        prop_assert_eq!(lines.iter().filter(|line| is_own(line)).count(), own + 1);
        let is_vms = |line: &[u8]| NAMES.iter().any(|name| wire::parse(line, *name).is_some());
        prop_assert!(lines.iter().all(|line| is_own(line) || is_vms(line)), "{}", String::from_utf8_lossy(wire));
    }

    #[test]
    fn the_only_vms_bytes_are_joined_exactly(steps in prop::collection::vec(step(1), 0..60)) {
        let mut console = Console::new(&[None]);
        let harmless = |step: &Step| match step {
            Step::Print { bytes, .. } => !bytes.windows(2).any(|bytes| bytes == b"hv" || bytes == b"|+"),
            _ => true,
        };
        let steps: Vec<Step> = steps.into_iter().filter(harmless).collect();
        let (printed, _) = carry_out(&mut console, &steps);
        console.log("end");
        console.send();
        let wire = &console.line.bytes;
        prop_assert_eq!(joined(wire, None), ended(printed.concat(), wire));
    }

    #[test]
    fn a_flood_delays_a_line_by_a_turn_of_each_other(
        before in prop::collection::vec(step(3), 0..30),
        mut flood in prop::collection::vec(text(), 1..4),
    ) {
        /// What a turn costs beside its bytes: the end of a line that is cut, and a mark.
        const FRAMING: usize = 2 + 3;
        flood.push(b"x".to_vec());
        let mut console = Console::new(&NAMES);
        let no_b = |step: &Step| !matches!(step, Step::Print { vm: B, .. } | Step::About { .. });
        let before: Vec<Step> = before.into_iter().filter(no_b).collect();
        carry_out(&mut console, &before);
        let flood = flood.concat();
        let fill = |console: &mut Console| [A, 2].map(|vm| while console.print(vm, &flood) == flood.len() {});
        fill(&mut console);
        console.sent_bytes();
        // The one under way goes on for a turn at most.
        console.line.room = 100;
        console.mux.burst(console.now, &mut console.line);
        console.print(B, b"here I am\n");
        console.sent_bytes();
        console.line.room = 1;
        let mut sent = 0;
        while !console.line.bytes.ends_with(b"b| here I am\n") {
            fill(&mut console);
            sent += console.mux.burst(console.now, &mut console.line);
            prop_assert!(sent <= 3 * (QUANTUM + FRAMING) + b"b| here I am\n".len(), "{}", sent);
        }
        // The hypervisor's own waits for one turn alone.
        console.log("own");
        console.sent_bytes();
        while !console.line.bytes.ends_with(b"hv: own\r\n") {
            fill(&mut console);
            console.mux.burst(console.now, &mut console.line);
            prop_assert!(console.line.bytes.len() <= QUANTUM + 2 * FRAMING + b"hv: own\r\n".len());
        }
    }
}

impl Console {
    /// What was sent so far is of no interest.
    fn sent_bytes(&mut self) {
        self.line.bytes.clear();
    }
}

/// An emulator's UART.
struct Ready(usize);

impl Transmitter for Ready {
    fn room(&mut self) -> usize {
        16
    }

    fn send(&mut self, _: u8) {
        self.0 += 1;
    }
}

#[test]
fn a_cpu_leaves_a_line_that_is_always_ready() {
    let (mut mux, mut own) = Mux::new(2 * BUDGET);
    own.write_lines("", &"x".repeat(BUDGET + 100));
    let (mut line, mut left) = (Ready(0), BUDGET);
    let last = loop {
        match mux.next_burst(7, &mut line, &mut left) {
            Burst::More => {}
            Burst::Last(due) => break due,
        }
    };
    assert!(last.is_some_and(|due| due <= 7), "the rest is due now");
    assert_eq!(line.0, BUDGET);
    let mut left = BUDGET;
    while mux.next_burst(7, &mut line, &mut left) == Burst::More {}
    assert_eq!(line.0, BUDGET + 102);
    assert_eq!(mux.next_burst(7, &mut line, &mut left), Burst::Last(None));
}
