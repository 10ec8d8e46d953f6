//! The hypervisor's code, as its image's line tables tell it.

use crate::symbols;
use addr2line::Loader;
use anyhow::{Result, anyhow};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

/// A line of a source.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SourceLine {
    /// Its path within the repository.
    pub(crate) file: String,
    /// From 1 on.
    pub(crate) line: u32,
}

/// Instructions that stand for one line, side by side.
struct Stretch {
    addresses: Range<u64>,
    place: SourceLine,
    /// The function whose line it is, be it inlined into another.
    function: String,
}

/// A function, and its lines in the image.
pub(crate) struct Function<'a> {
    pub(crate) name: &'a str,
    pub(crate) places: BTreeSet<&'a SourceLine>,
}

/// The code of some crates.
pub(crate) struct Code(Vec<Stretch>);

impl Code {
    /// The code of these crates below hv/, of which `text` has the addresses.
    pub(crate) fn load(image: &Path, text: &Range<u64>, crates: &[&str]) -> Result<Self> {
        let broken = |error| anyhow!("no line tables in {}: {error}", image.display());
        let loader = Loader::new(image).map_err(broken)?;
        let prefixes: Vec<_> = crates.iter().map(|name| format!("hv/{name}/")).collect();
        let mut stretches = Vec::new();
        for (begin, length, at) in loader.find_location_range(text.start, text.end).map_err(broken)? {
            // Line 0 is code that no line of a source stands for.
            let (Some(file), Some(line @ 1..)) = (at.file, at.line) else { continue };
            let file = symbols::short(file);
            if prefixes.iter().any(|prefix| file.starts_with(prefix)) {
                let addresses = begin..begin + length;
                let function = function(&loader, begin).unwrap_or_default();
                stretches.push(Stretch { addresses, place: SourceLine { file, line }, function });
            }
        }
        Ok(Self(stretches))
    }

    /// All lines, in order.
    pub(crate) fn places(&self) -> impl Iterator<Item = &SourceLine> {
        self.0.iter().map(|stretch| &stretch.place).collect::<BTreeSet<_>>().into_iter()
    }

    /// The lines of which an instruction is at one of these addresses.
    pub(crate) fn reached(&self, addresses: &BTreeSet<u64>) -> BTreeSet<SourceLine> {
        let reached = self.0.iter().filter(|stretch| addresses.range(stretch.addresses.clone()).next().is_some());
        reached.map(|stretch| stretch.place.clone()).collect()
    }

    /// The functions, by file and line.
    pub(crate) fn functions(&self) -> impl Iterator<Item = Function<'_>> {
        let mut functions: BTreeMap<(&str, &str), BTreeSet<&SourceLine>> = BTreeMap::new();
        // A closure is named so, and not after its function.
        for stretch in self.0.iter().filter(|stretch| !stretch.function.starts_with('{')) {
            functions.entry((&stretch.place.file, &stretch.function)).or_default().insert(&stretch.place);
        }
        functions.into_iter().map(|((_, name), places)| Function { name, places })
    }
}

/// The innermost function at an address, the same for all types that it was compiled for.
fn function(loader: &Loader, address: u64) -> Option<String> {
    let frame = loader.find_frames(address).ok()?.next().ok()??;
    let function = frame.function?;
    Some(without_types(&function.demangle().ok()?).to_string())
}

/// `f` of `f<A, B<C>>`.
fn without_types(name: &str) -> &str {
    name.split('<').next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(file: &str, line: u32) -> SourceLine {
        SourceLine { file: file.to_string(), line }
    }

    #[test]
    fn a_function_is_one_for_all_types() {
        assert_eq!(without_types("dump<backends::translation::Nested>"), "dump");
        assert_eq!(without_types("eptp"), "eptp");
    }

    #[test]
    fn a_line_is_reached_by_any_of_its_instructions() {
        let stretch = |begin, line, function: &str| Stretch {
            addresses: begin..begin + 0x10,
            place: place("hv/vm/src/x.rs", line),
            function: function.to_string(),
        };
        // Line 7 is there twice: inlined into two functions.
        let code =
            Code(vec![stretch(0x100, 5, "f"), stretch(0x110, 7, "g"), stretch(0x120, 9, "f"), stretch(0x130, 7, "g")]);
        assert_eq!(code.places().map(|place| place.line).collect::<Vec<_>>(), [5, 7, 9]);
        let reached = code.reached(&BTreeSet::from([0xff, 0x10f, 0x138, 0x140]));
        assert_eq!(reached, BTreeSet::from([place("hv/vm/src/x.rs", 5), place("hv/vm/src/x.rs", 7)]));
        let functions: Vec<_> = code.functions().map(|function| (function.name, function.places.len())).collect();
        assert_eq!(functions, [("f", 2), ("g", 1)]);
    }
}
