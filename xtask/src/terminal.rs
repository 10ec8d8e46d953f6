//! This terminal, whose keys go to a guest, but for those behind ctrl-a.

use crate::leash;
use crate::machine::input::line;
use crate::output::outln;
use rustix::process::getpgrp;
use rustix::termios::tcgetpgrp;
use std::io::{self, IsTerminal, Read};
use std::sync::mpsc::{self, Receiver};
use std::thread;

/// What begins a command: ctrl-a, as with QEMU.
const ESCAPE: u8 = 0x01;

const HELP: &str = "\
ctrl-a x       leave: the machine is ended
ctrl-a c       what the VM exits have cost so far (a break on the line, by which the hypervisor tells that)
ctrl-a h       this list
ctrl-a ctrl-a  ctrl-a itself, as does ctrl-a a";

/// Whether the standard input and output are a terminal, and this program is not in its background.
pub(crate) fn is_there() -> bool {
    let in_front = || tcgetpgrp(io::stdin()).is_ok_and(|group| group == getpgrp());
    io::stdin().is_terminal() && io::stdout().is_terminal() && in_front()
}

/// The keys for the guest, as they are typed. Commands are carried out meanwhile.
pub(crate) fn keys() -> Receiver<Vec<u8>> {
    outln!("what is typed goes to the guest; ctrl-a x leaves, ctrl-a h lists the keys");
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let (mut keys, mut buffer) = (Keys::default(), [0; 256]);
        while let Ok(count @ 1..) = io::stdin().read(&mut buffer) {
            let typed = buffer[..count].iter().flat_map(|&byte| carry_out(keys.typed(byte))).collect();
            if sender.send(typed).is_err() {
                return;
            }
        }
    });
    receiver
}

/// What goes to the machine's line, if anything does.
fn carry_out(key: Key) -> Vec<u8> {
    match key {
        Key::Guest(byte) => return line::bytes(&[byte]),
        Key::Report => return line::BREAK.to_vec(),
        Key::Leave => {
            outln!("\nrun: left by ctrl-a x");
            leash::leave()
        }
        Key::Help => outln!("\n{HELP}"),
        Key::Nothing => {}
    }
    Vec::new()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Guest(u8),
    Leave,
    Report,
    Help,
    Nothing,
}

/// Tells commands from what is the guest's.
#[derive(Debug, Default)]
struct Keys {
    escaped: bool,
}

impl Keys {
    fn typed(&mut self, byte: u8) -> Key {
        if !std::mem::take(&mut self.escaped) {
            self.escaped = byte == ESCAPE;
            return if self.escaped { Key::Nothing } else { Key::Guest(byte) };
        }
        match byte {
            b'x' => Key::Leave,
            b'c' => Key::Report,
            b'h' | b'?' => Key::Help,
            b'a' | ESCAPE => Key::Guest(ESCAPE),
            _ => Key::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ctrl_a_begins_a_command() {
        let mut keys = Keys::default();
        let meant: Vec<_> = b"a\x03\x01x\x01c\x01h\x01q\x01a\x01\x01x".iter().map(|&byte| keys.typed(byte)).collect();
        let meant: Vec<_> = meant.into_iter().filter(|key| *key != Key::Nothing).collect();
        let ctrl_a = Key::Guest(ESCAPE);
        let (a, ctrl_c, x) = (Key::Guest(b'a'), Key::Guest(0x03), Key::Guest(b'x'));
        assert_eq!(carry_out(ctrl_a), [1, 1], "QEMU takes one for the begin of a command");
        assert_eq!(carry_out(Key::Report), *b"\x01b");
        assert_eq!(meant, [a, ctrl_c, Key::Leave, Key::Report, Key::Help, ctrl_a, ctrl_a, x]);
    }
}
