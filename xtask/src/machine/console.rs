//! The bytes of a serial line, and the lines in them.

use abi::wire::{self, Part};

/// Collects lines out of bytes that come in any pieces, and joins the pieces of a VM's line that was cut so that another could
/// begin ([`abi::wire`]). The whole line stands where its first piece was.
#[derive(Debug, Default)]
pub(crate) struct Console {
    vms: Vec<Vm>,
    /// With their ends.
    lines: Vec<Vec<u8>>,
    partial: Vec<u8>,
}

/// A VM whose lines are on the console.
#[derive(Debug)]
struct Vm {
    /// None: there is no other, and its lines have no mark.
    name: Option<String>,
    /// The index of its last line.
    last: Option<usize>,
}

impl Console {
    /// A console with the lines of these VMs.
    pub(crate) fn new(vms: &[Option<String>]) -> Self {
        let vms = vms.iter().map(|name| Vm { name: name.clone(), last: None }).collect();
        Self { vms, ..Self::default() }
    }

    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.partial.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                self.end_line();
            }
        }
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.partial);
        let parse = |vm: &Vm| wire::parse(&line, vm.name.as_deref());
        if let Some((vm, (part, text))) = self.vms.iter_mut().find_map(|vm| parse(vm).map(|parsed| (vm, parsed))) {
            if let (Part::Rest, Some(last)) = (part, vm.last) {
                let whole = &mut self.lines[last];
                whole.truncate(whole.strip_suffix(wire::END).map_or(whole.len(), <[u8]>::len));
                return whole.extend_from_slice(text);
            }
            vm.last = Some(self.lines.len());
        }
        self.lines.push(line);
    }

    /// All lines, the unfinished last one too.
    pub(crate) fn into_lines(mut self) -> Vec<String> {
        if !self.partial.is_empty() {
            self.end_line();
        }
        let text = |line: &Vec<u8>| String::from_utf8_lossy(line).trim_end_matches(['\r', '\n']).to_string();
        self.lines.iter().map(text).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(vms: &[Option<&str>], bytes: &[u8]) -> Vec<String> {
        let vms: Vec<_> = vms.iter().map(|name| name.map(str::to_string)).collect();
        let mut console = Console::new(&vms);
        console.feed(bytes);
        console.into_lines()
    }

    #[test]
    fn lines_come_together_from_pieces() {
        let mut console = Console::default();
        for piece in ["on", "e\r\ntwo\n\nth", "ree"] {
            console.feed(piece.as_bytes());
        }
        console.feed(b" \xff");
        assert_eq!(console.into_lines(), ["one", "two", "", "three \u{fffd}"]);
        assert!(Console::default().into_lines().is_empty());
    }

    #[test]
    fn cut_lines_are_joined() {
        let cut = b"a| not \r\nb| x\na|+ok\xe2\r\nhv: b: y\r\na|+\x80\xa6\na| next";
        let joined = ["a| not ok\u{2026}", "b| x", "hv: b: y", "a| next"];
        assert_eq!(lines(&[Some("a"), Some("b")], cut), joined);
        assert_eq!(lines(&[None], b"login: \r\nhv: x\r\n|+root\r\nyes\n"), ["login: root", "hv: x", "yes"]);
    }

    #[test]
    fn what_is_no_vms_stays_as_it_is() {
        let odd = b"a|+rest of nothing\nc| x\nc|+y\nb|\n|+z";
        let same = ["a|+rest of nothing", "c| x", "c|+y", "b|", "|+z"];
        assert_eq!(lines(&[Some("a"), Some("b")], odd), same);
        assert_eq!(lines(&[], odd), same);
    }
}
