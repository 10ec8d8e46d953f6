//! Turns the addresses of a panic's backtrace into names.

use crate::project;
use abi::lines::Backtrace;
use abi::wire;
use addr2line::Loader;
use anyhow::{Result, anyhow};
use std::path::Path;

/// The addresses on a console line, if it is a backtrace.
fn addresses(line: &str) -> Option<Vec<u64>> {
    let Backtrace(addresses) = Backtrace::parse(wire::own(line, None)?)?.ok()?;
    Some(addresses.collect())
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
        let mut names = Vec::new();
        let mut frames = self.0.find_frames(probe).ok();
        while let Some(Ok(Some(frame))) = frames.as_mut().map(|frames| frames.next()) {
            let function = frame.function.as_ref().and_then(|name| Some(name.demangle().ok()?.into_owned()));
            let place = frame.location.and_then(|at| Some(format!(" at {}:{}", short(at.file?), at.line.unwrap_or(0))));
            names.push((function.unwrap_or_default(), place.unwrap_or_default()));
        }
        // The function that the others were inlined into: unlike line tables, its symbol has the whole path.
        match names.last_mut() {
            Some((function, _)) => *function = self.symbol(probe),
            None => names.push((self.symbol(probe), String::new())),
        }
        names.into_iter().map(|(function, place)| format!("    {address:#x} {function}{place}")).collect()
    }

    fn symbol(&self, probe: u64) -> String {
        let name = self.0.find_symbol(probe).unwrap_or("?");
        demangle(name)
    }
}

/// A symbol's name as in the source.
pub(crate) fn demangle(symbol: &str) -> String {
    format!("{:#}", rustc_demangle::demangle(symbol))
}

/// A source's path within the repository.
pub(crate) fn short(file: &str) -> String {
    let root = project::root();
    Path::new(file).strip_prefix(root).unwrap_or(Path::new(file)).display().to_string()
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
