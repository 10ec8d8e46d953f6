//! The rules: whole lines, nothing lost unseen, bounded delay.

use super::reader::joined;
use super::{CAPACITY, Machine};
use crate::{HOLD, QUANTUM};
use abi::wire::{self, Part};
use proptest::prelude::*;
use std::string::String;
use std::vec::Vec;

const A: usize = 0;
const B: usize = 1;

fn two() -> Machine {
    Machine::new(&[Some("a"), Some("b")])
}

#[test]
fn lines_are_sent_whole_and_with_their_names() {
    let mut machine = two();
    machine.print(A, b"one\nthr");
    machine.print(B, b"two\n");
    machine.log("zero");
    assert_eq!(machine.send().sent(), "hv: zero\r\nb| two\na| one\n");
    machine.print(A, b"ee\n");
    assert_eq!(machine.send().sent(), "a| three\n");
}

#[test]
fn the_only_vm_is_heard_at_once_and_the_hypervisor_begins_at_column_0() {
    let mut machine = Machine::new(&[None]);
    machine.print(A, b"login: ");
    assert_eq!(machine.send().sent(), "login: ");
    machine.log("a word");
    assert_eq!(machine.send().sent(), "\r\nhv: a word\r\n");
    machine.print(A, b"root\nhello\n");
    assert_eq!(machine.send().sent(), "|+root\nhello\n");
}

#[test]
fn a_line_without_an_end_is_kept_back_for_a_bounded_time() {
    let mut machine = two();
    machine.print(A, b"login: ");
    assert_eq!(machine.mux.due(7), Some(7 + HOLD));
    assert_eq!(machine.send().sent(), "");
    machine.now = 7 + HOLD;
    assert_eq!(machine.send().sent(), "a| login: ");
    machine.print(A, b"r");
    assert_eq!(machine.send().sent(), "r", "its line is open");
    machine.print(B, b"x\n");
    machine.print(A, b"oot\n");
    assert_eq!(machine.send().sent(), "oot\nb| x\n", "its end is there already");
}

#[test]
fn an_open_line_is_ended_before_anothers_begins() {
    let mut machine = two();
    machine.print(A, b"not ");
    assert_eq!(machine.send_all().sent(), "a| not ");
    machine.print(B, b"x\n");
    assert_eq!(machine.send().sent(), "\r\nb| x\n");
    machine.print(A, b"ok 1\n");
    assert_eq!(machine.send().sent(), "a|+ok 1\n");
    machine.print(A, b"ok 2\n");
    assert_eq!(machine.send().sent(), "a| ok 2\n");
}

#[test]
fn a_flood_without_ends_is_cut_for_others_alone() {
    let mut machine = two();
    machine.print(A, &[b'x'; 600]);
    assert_eq!(machine.send_all().sent().lines().count(), 1, "no other source has anything to send");
    machine.print(A, &[b'y'; 600]);
    machine.print(B, b"ok\n");
    let sent = machine.send().sent();
    let left = QUANTUM - 600 % QUANTUM;
    let lines: Vec<&str> = sent.lines().collect();
    assert_eq!(lines, [&*"y".repeat(left), "b| ok", &*std::format!("a|+{}", "y".repeat(600 - left))]);
}

#[test]
fn what_is_said_about_a_vm_comes_behind_its_output() {
    let mut machine = two();
    machine.print(A, b"bye");
    machine.vms[A].about.write_lines("hv: a: ", &"verdict: pass 0\nreally");
    assert_eq!(machine.send_all().sent(), "a| bye\r\nhv: a: verdict: pass 0\r\nhv: a: really\r\n");
    assert_eq!(machine.mux.due(machine.now), None);
}

#[test]
fn a_vm_waits_for_room_and_what_it_puts_regardless_is_told() {
    let mut machine = two();
    assert_eq!(machine.print(A, &[b'x'; CAPACITY + 10]), CAPACITY);
    assert_eq!((machine.vms[A].output.room(), machine.vms[A].output.put(b'y')), (0, false));
    let sent = machine.send_all().sent();
    assert_eq!(sent, std::format!("a| {}\r\nhv: a: console: 1 bytes dropped\r\n", "x".repeat(CAPACITY)));
    assert_eq!(machine.send_all().sent(), "");
}

#[test]
fn a_line_of_the_hypervisors_is_dropped_as_a_whole_and_told() {
    let mut machine = two();
    (0..2).for_each(|_| machine.log(&"x".repeat(CAPACITY - 100)));
    machine.log("short");
    let sent = machine.send().sent();
    let lines: Vec<&str> = sent.lines().map(|line| &line[..8.min(line.len())]).collect();
    assert_eq!(lines, ["hv: xxxx", "hv: shor", "hv: cons"]);
    assert!(sent.ends_with(&std::format!("hv: console: {} bytes dropped\r\n", CAPACITY - 100 + 6)), "{sent}");
}

#[test]
fn lines_of_a_text_have_the_prefix_and_empty_ones_too() {
    let mut machine = two();
    machine.log("one\n\ntwo\n");
    machine.log("");
    assert_eq!(machine.send().sent(), "hv: one\r\nhv: \r\nhv: two\r\n");
}

#[test]
fn a_dying_hypervisor_ends_the_open_line_and_sends_its_own_first() {
    let mut machine = two();
    machine.print(A, b"and then");
    machine.send_all();
    machine.print(A, b" more\n");
    machine.print(B, b"x\n");
    machine.log("trouble");
    assert_eq!(machine.mux.silence_vms(), b" more\nx\n".len());
    assert_eq!(machine.send_all().sent(), "a| and then\r\nhv: trouble\r\n");
    assert_eq!((machine.mux.due(machine.now), machine.mux.end_line()), (None, false));
}

#[test]
fn a_line_that_is_open_when_the_hypervisor_writes_by_itself_is_ended_once() {
    let mut machine = two();
    machine.print(A, b"and then");
    machine.send_all();
    assert!(machine.mux.end_line());
    assert!(!machine.mux.end_line());
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

/// What happens at a machine.
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
    // Ends of line, and what could be taken for one, for a mark, or for the hypervisor's word.
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

/// Carries the steps out, and gives what each VM has printed and how many lines the hypervisor has.
fn carry_out(machine: &mut Machine, steps: &[Step]) -> (Vec<Vec<u8>>, usize) {
    let mut printed = std::vec![Vec::new(); machine.vms.len()];
    let mut own = 0;
    for step in steps {
        match step {
            Step::Print { vm, bytes } => {
                let taken = machine.print(*vm, bytes);
                printed[*vm].extend(&bytes[..taken]);
            }
            Step::About { vm } => {
                machine.vms[*vm].about.write_lines("hv: ", &"about");
                own += 1;
            }
            Step::Log => {
                machine.log("own");
                own += 1;
            }
            Step::Send { room, later } => {
                machine.now += later;
                machine.line.room = *room;
                machine.mux.burst(machine.now, &mut machine.line);
            }
        }
    }
    machine.line.room = 16;
    machine.send_all();
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
        let mut machine = Machine::new(&NAMES);
        let (printed, own) = carry_out(&mut machine, &steps);
        // Ends the last line.
        machine.log("end");
        machine.send();
        let wire = &machine.line.bytes;
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
        let mut machine = Machine::new(&[None]);
        let harmless = |step: &Step| match step {
            Step::Print { bytes, .. } => !bytes.windows(2).any(|bytes| bytes == b"hv" || bytes == b"|+"),
            _ => true,
        };
        let steps: Vec<Step> = steps.into_iter().filter(harmless).collect();
        let (printed, _) = carry_out(&mut machine, &steps);
        machine.log("end");
        machine.send();
        let wire = &machine.line.bytes;
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
        let mut machine = Machine::new(&NAMES);
        let no_b = |step: &Step| !matches!(step, Step::Print { vm: B, .. } | Step::About { .. });
        let before: Vec<Step> = before.into_iter().filter(no_b).collect();
        carry_out(&mut machine, &before);
        let flood = flood.concat();
        let fill = |machine: &mut Machine| [A, 2].map(|vm| while machine.print(vm, &flood) == flood.len() {});
        fill(&mut machine);
        machine.sent_bytes();
        // The one under way goes on for a turn at most.
        machine.line.room = 100;
        machine.mux.burst(machine.now, &mut machine.line);
        machine.print(B, b"here I am\n");
        machine.sent_bytes();
        machine.line.room = 1;
        let mut sent = 0;
        while !machine.line.bytes.ends_with(b"b| here I am\n") {
            fill(&mut machine);
            sent += machine.mux.burst(machine.now, &mut machine.line);
            prop_assert!(sent <= 3 * (QUANTUM + FRAMING) + b"b| here I am\n".len(), "{}", sent);
        }
        // The hypervisor's own waits for one turn alone.
        machine.log("own");
        machine.sent_bytes();
        while !machine.line.bytes.ends_with(b"hv: own\r\n") {
            fill(&mut machine);
            machine.mux.burst(machine.now, &mut machine.line);
            prop_assert!(machine.line.bytes.len() <= QUANTUM + 2 * FRAMING + b"hv: own\r\n".len());
        }
    }
}

impl Machine {
    /// What was sent so far is of no interest.
    fn sent_bytes(&mut self) {
        self.line.bytes.clear();
    }
}
