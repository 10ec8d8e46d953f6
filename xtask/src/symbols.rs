//! Turns the addresses of a panic's backtrace into names.

use addr2line::Loader;
use anyhow::{Result, anyhow};
use std::path::Path;

/// The line that the hypervisor prints: return addresses, after the address of the fault if there was one.
const PREFIX: &str = "hv: backtrace:";

/// The addresses on a console line, if it is a backtrace.
fn addresses(line: &str) -> Option<Vec<u64>> {
    let words = line.trim_end().strip_prefix(PREFIX)?.split_whitespace();
    words.map(|word| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok()).collect()
}

/// An image's symbols and line numbers.
pub(crate) struct Symbols(Loader);

impl Symbols {
    pub(crate) fn load(image: &Path) -> Result<Self> {
        Loader::new(image).map(Self).map_err(|error| anyhow!("no symbols in {}: {error}", image.display()))
    }

    /// The names for a backtrace line, a line each; none for other lines.
    pub(crate) fn explain(&self, line: &str) -> Vec<String> {
        addresses(line).unwrap_or_default().into_iter().flat_map(|address| self.name(address)).collect()
    }

    /// The functions at a return address, the innermost of inlined ones first.
    fn name(&self, address: u64) -> Vec<String> {
        // A call is the instruction before the one that it returns to.
        let probe = address.saturating_sub(1);
        let mut lines = Vec::new();
        let mut frames = self.0.find_frames(probe).ok();
        while let Some(Ok(Some(frame))) = frames.as_mut().map(|frames| frames.next()) {
            let function = frame.function.as_ref().and_then(|name| Some(name.demangle().ok()?.into_owned()));
            let function = function.unwrap_or_else(|| self.symbol(probe));
            let place = frame.location.and_then(|at| Some(format!(" at {}:{}", at.file?, at.line.unwrap_or(0))));
            lines.push(format!("    {address:#x} {function}{}", place.unwrap_or_default()));
        }
        if lines.is_empty() {
            lines.push(format!("    {address:#x} {}", self.symbol(probe)));
        }
        lines
    }

    fn symbol(&self, probe: u64) -> String {
        let name = self.0.find_symbol(probe).unwrap_or("?");
        addr2line::demangle_auto(name.into(), None).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use object::{Object, ObjectSymbol};

    #[test]
    fn backtrace_lines_are_read() {
        assert_eq!(addresses("hv: backtrace: 0xffffffff80101234 0x10\r"), Some(vec![0xffff_ffff_8010_1234, 0x10]));
        assert_eq!(addresses("hv: backtrace:"), Some(vec![]));
        assert_eq!(addresses("hv: backtrace: here"), None);
        assert_eq!(addresses("backtrace: 0x10"), None);
    }

    #[test]
    fn addresses_get_names_and_places() {
        let program = std::env::current_exe().unwrap();
        let bytes = std::fs::read(&program).unwrap();
        let file = object::File::parse(&*bytes).unwrap();
        let wanted =
            file.symbols().find(|symbol| symbol.name().is_ok_and(|name| name.contains("landmark_of_the_test")));
        let address = wanted.expect("the landmark is in this program").address() + 1;
        landmark_of_the_test();
        let lines = Symbols::load(&program).unwrap().explain(&format!("hv: backtrace: {address:#x}"));
        assert!(lines[0].contains("xtask::symbols::tests::landmark_of_the_test at "), "{lines:?}");
        assert!(lines[0].contains("symbols.rs:"), "{lines:?}");
        assert_eq!(
            Symbols::load(&program).unwrap().explain("hv: backtrace: 0xffffffffdeadbeef"),
            ["    0xffffffffdeadbeef ?"]
        );
    }

    #[inline(never)]
    fn landmark_of_the_test() {
        std::hint::black_box(());
    }
}
