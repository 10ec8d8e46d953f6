//! The repository's pages: each link leads to a file that is there, and what it names in code font is in that file.

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};
use std::fs;
use std::path::{Path, PathBuf};

/// A link of a page.
struct Link {
    target: String,
    text: String,
    /// Whether the text is in code font alone.
    code: bool,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is in the workspace").into()
}

/// The Markdown files below `directory`, without those of builds.
fn pages(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path()) {
        let name = entry.file_name().unwrap_or_default();
        if entry.is_dir() && name != "target" && name != ".git" {
            pages(&entry, found);
        } else if entry.extension().is_some_and(|extension| extension == "md") {
            found.push(entry);
        }
    }
}

fn parser(page: &str) -> Parser<'_> {
    Parser::new_ext(page, Options::ENABLE_TABLES)
}

fn links(page: &str) -> Vec<Link> {
    let (mut links, mut open) = (Vec::new(), None);
    for event in parser(page) {
        match (event, &mut open) {
            (Event::Start(Tag::Link { dest_url, .. }), _) => {
                open = Some(Link { target: dest_url.into_string(), text: String::new(), code: false });
            }
            (Event::Code(text), Some(link)) => {
                link.code = link.text.is_empty();
                link.text.push_str(&text);
            }
            (Event::Text(text), Some(link)) => {
                link.code = false;
                link.text.push_str(&text);
            }
            (Event::End(TagEnd::Link), _) => links.extend(open.take()),
            _ => {}
        }
    }
    links
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(page: &str) -> Vec<String> {
    let (mut anchors, mut heading) = (Vec::new(), None);
    for event in parser(page) {
        match (event, &mut heading) {
            (Event::Start(Tag::Heading { .. }), _) => heading = Some(String::new()),
            (Event::Text(text) | Event::Code(text), Some(heading)) => heading.push_str(&text),
            (Event::End(TagEnd::Heading(_)), _) => {
                let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
                let text = heading.take().unwrap_or_default().to_lowercase();
                anchors.push(text.chars().filter(kept).map(|c| if c == ' ' { '-' } else { c }).collect());
            }
            _ => {}
        }
    }
    anchors
}

/// What is wrong with a link of the page `path`, if anything.
fn fault(path: &Path, link: &Link) -> Option<String> {
    if link.target.contains("://") {
        return None;
    }
    let (file, anchor) = link.target.split_once('#').unwrap_or((&link.target, ""));
    let file = if file.is_empty() { path.into() } else { path.parent()?.join(file) };
    if !file.exists() {
        return Some(format!("{} is not there", link.target));
    }
    let text = fs::read_to_string(&file).unwrap_or_default();
    if !anchor.is_empty() && !anchors(&text).iter().any(|heading| heading == anchor) {
        return Some(format!("{} has no heading of that name", link.target));
    }
    let name = link.text.rsplit("::").next().unwrap_or_default();
    let names_an_item = link.code && file.is_file() && !link.text.contains(['/', ' ', '.']);
    (names_an_item && !text.contains(name)).then(|| format!("{} has no `{name}`", link.target))
}

fn faults(path: &Path) -> Vec<String> {
    let page = fs::read_to_string(path).expect("a page is text");
    links(&page)
        .iter()
        .filter_map(|link| fault(path, link).map(|fault| format!("{}: {fault}", path.display())))
        .collect()
}

#[test]
fn links_of_pages_lead_to_what_they_name() {
    let mut found = Vec::new();
    pages(&root(), &mut found);
    assert!(found.iter().any(|page| page.ends_with("README.md")));
    let faults: Vec<_> = found.iter().flat_map(|page| faults(page)).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_link_that_leads_nowhere_is_found() {
    let directory = tempfile::tempdir().expect("a directory");
    let page = directory.path().join("page.md");
    let text = "# One\n[a](gone.rs) [b](#two) [`missing`](page.rs) [c](page.rs) [d](#one) [`there`](page.rs)";
    fs::write(&page, text).expect("written");
    fs::write(directory.path().join("page.rs"), "fn there() {}").expect("written");
    let faults = faults(&page);
    assert_eq!(faults.len(), 3, "{faults:?}");
    for (fault, named) in faults.iter().zip(["gone.rs", "#two", "`missing`"]) {
        assert!(fault.contains(named), "{fault}");
    }
}
