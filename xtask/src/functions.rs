//! The functions of an ELF image, as its symbols bound them.

use crate::symbols;
use anyhow::{Result, ensure};
use object::{Object, ObjectSection, ObjectSymbol, SectionKind, SymbolKind};
use std::collections::BTreeMap;

/// The section that starts in 32-bit mode.
const SECTION_32_BIT: &str = ".boot";

/// The code from one symbol to the next.
#[derive(Debug)]
pub(crate) struct Function<'f> {
    /// The symbol, as in the source.
    pub(crate) name: String,
    /// Its first address.
    pub(crate) address: u64,
    /// 32 or 64.
    pub(crate) bitness: u32,
    /// Its bytes.
    pub(crate) code: &'f [u8],
}

/// All functions of the executable sections, in the order of their addresses within each section.
pub(crate) fn of<'f>(file: &object::File<'f>) -> Result<Vec<Function<'f>>> {
    let mut functions = Vec::new();
    for section in file.sections().filter(|section| section.kind() == SectionKind::Text) {
        let (start, name) = (section.address(), section.name()?);
        let bitness = if name == SECTION_32_BIT { 32 } else { 64 };
        let code = section.data()?;
        let end = start + code.len() as u64;
        // Every symbol starts afresh, so that data between functions can't put the decoder out of step for long. The
        // linker script's own symbols may lie outside the section that they are said to be in.
        let mut starts: BTreeMap<u64, &str> = BTreeMap::from([(start, name)]);
        for symbol in file.symbols().filter(|symbol| symbol.section_index() == Some(section.index())) {
            let is_code = matches!(symbol.kind(), SymbolKind::Text | SymbolKind::Label | SymbolKind::Unknown);
            if is_code && (start..end).contains(&symbol.address()) {
                starts.extend(symbol.name().ok().filter(|name| !name.is_empty()).map(|name| (symbol.address(), name)));
            }
        }
        let ends = starts.keys().copied().skip(1).chain([end]);
        for ((&address, &symbol), to) in starts.iter().zip(ends) {
            let range = usize::try_from(address - start)?..usize::try_from(to - start)?;
            functions.push(Function { name: symbols::demangle(symbol), address, bitness, code: &code[range] });
        }
    }
    ensure!(!functions.is_empty(), "no code was found");
    Ok(functions)
}
