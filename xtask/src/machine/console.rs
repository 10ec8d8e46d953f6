//! The bytes of a serial line, and the lines in them.

/// Collects lines out of bytes that come in any pieces.
#[derive(Debug, Default)]
pub(crate) struct Console {
    lines: Vec<String>,
    partial: Vec<u8>,
}

impl Console {
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.partial.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                self.end_line();
            }
        }
    }

    fn end_line(&mut self) {
        let line = String::from_utf8_lossy(&self.partial);
        self.lines.push(line.trim_end_matches(['\r', '\n']).to_string());
        self.partial.clear();
    }

    /// All lines, the unfinished last one too.
    pub(crate) fn into_lines(mut self) -> Vec<String> {
        if !self.partial.is_empty() {
            self.end_line();
        }
        self.lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
