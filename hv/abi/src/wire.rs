//! What the lines look like: the format that the hypervisor writes and `xtask` reads.
//!
//! | line | what it is |
//! | --- | --- |
//! | `hv: text` | the hypervisor's own |
//! | `hv: NAME: text` | the hypervisor's, about VM `NAME` among several |
//! | `NAME\| text` | a line of VM `NAME` among several |
//! | `NAME\|+text` | the rest of that VM's last line, which was cut so that another line could begin |
//! | `text` | a line of the only VM |
//! | `\|+text` | the rest of its last line |
//!
//! An end of line is LF; where a line was cut, [`END`] stands for nothing that the VM wrote. A name contains no `|`. The only
//! VM's lines stand as they are, so one that begins with `|+` can't be told from a rest: there it can mislead about itself.

use core::fmt;

/// The end of a line that the hypervisor writes or cuts.
pub const END: &[u8] = b"\r\n";

/// What the hypervisor's own lines begin with.
pub const OWN: &str = "hv: ";

const FRESH: &[u8] = b"| ";
const REST: &[u8] = b"|+";

/// What is said of a line of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// It begins here.
    Fresh,
    /// It goes on here.
    Rest,
}

/// What stands before a VM's bytes. `name` is None for the only VM.
#[must_use]
pub fn mark(name: Option<&str>, part: Part) -> [&[u8]; 2] {
    match (name, part) {
        (None, Part::Fresh) => [b"", b""],
        (None, Part::Rest) => [b"", REST],
        (Some(name), Part::Fresh) => [name.as_bytes(), FRESH],
        (Some(name), Part::Rest) => [name.as_bytes(), REST],
    }
}

/// Reads a line as one of VM `name`'s (None: the only VM): whether it begins or goes on, and what the VM wrote. None: it is
/// another's.
///
/// ```
/// use abi::wire::{Part, parse};
/// assert_eq!(parse(b"a| ok 1", Some("a")), Some((Part::Fresh, &b"ok 1"[..])));
/// assert_eq!(parse(b"a|+k 1", Some("a")), Some((Part::Rest, &b"k 1"[..])));
/// assert_eq!(parse(b"b| ok 1", Some("a")), None);
/// assert_eq!(parse(b"hv: info: hello", None), None);
/// ```
pub fn parse<'a>(line: &'a [u8], name: Option<&str>) -> Option<(Part, &'a [u8])> {
    let Some(name) = name else {
        return match line.strip_prefix(REST) {
            Some(text) => Some((Part::Rest, text)),
            None if line.starts_with(OWN.as_bytes()) => None,
            None => Some((Part::Fresh, line)),
        };
    };
    let rest = line.strip_prefix(name.as_bytes())?;
    let fresh = rest.strip_prefix(FRESH).map(|text| (Part::Fresh, text));
    fresh.or_else(|| rest.strip_prefix(REST).map(|text| (Part::Rest, text)))
}

/// What the hypervisor's own lines begin with: those about the VM of this name among several, or (None) about the only VM or about
/// no VM.
///
/// ```
/// use abi::wire::Own;
/// assert_eq!(format!("{}ready", Own(None)), "hv: ready");
/// assert_eq!(format!("{}ready", Own(Some("a"))), "hv: a: ready");
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Own<'a>(pub Option<&'a str>);

impl fmt::Display for Own<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(OWN)?;
        self.0.map_or(Ok(()), |name| write!(f, "{name}: "))
    }
}

/// What the hypervisor says in a line of its own, about the VM of this name among several or (None) about the only VM or about no VM.
/// None: the line is another's, or about another.
///
/// ```
/// use abi::wire::own;
/// assert_eq!(own("hv: a: ready\r\n", Some("a")), Some("ready"));
/// assert_eq!(own("hv: a: ready", Some("b")), None);
/// assert_eq!(own("a| hv: ready", None), None);
/// ```
#[must_use]
pub fn own<'a>(line: &'a str, name: Option<&str>) -> Option<&'a str> {
    let text = line.trim_end_matches(['\r', '\n']).strip_prefix(OWN)?;
    match name {
        None => Some(text),
        Some(name) => text.strip_prefix(name)?.strip_prefix(": "),
    }
}
