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
