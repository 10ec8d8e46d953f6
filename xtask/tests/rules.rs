//! `hv/DESIGN.md` has a row for each rule that a mutant breaks: its text, its code, its model and the mutant.

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// What a cell of a table has in code font, and what it links to.
#[derive(Default)]
struct Cell {
    names: Vec<String>,
    links: Vec<String>,
}

/// A row of a table below a heading that names a crate.
struct Row {
    package: String,
    rule: String,
    cells: Vec<Cell>,
}

/// A page as far as it tells of rules.
#[derive(Default)]
struct Page {
    rows: Vec<Row>,
    /// The rules that it names anywhere.
    named: Vec<String>,
}

/// The variants of each crate's `Rule`.
type Rules = BTreeMap<String, Vec<String>>;

fn variant(code: &str) -> Option<&str> {
    code.strip_prefix("Rule::")
}

fn read_page(text: &str) -> Page {
    let (mut page, mut package, mut cells) = (Page::default(), None, Vec::<Cell>::new());
    let mut in_heading = false;
    for event in Parser::new_ext(text, Options::ENABLE_TABLES) {
        match event {
            Event::Start(Tag::Heading { .. }) => (in_heading, package) = (true, None),
            Event::End(TagEnd::Heading(_)) => in_heading = false,
            Event::Start(Tag::TableRow) => cells.clear(),
            Event::Start(Tag::TableCell) => cells.push(Cell::default()),
            Event::Start(Tag::Link { dest_url, .. }) => {
                if let Some(cell) = cells.last_mut() {
                    cell.links.push(dest_url.into_string());
                }
            }
            Event::Code(code) => {
                page.named.extend(variant(&code).map(str::to_string));
                if in_heading {
                    package = Some(code.to_string());
                } else if let Some(cell) = cells.last_mut() {
                    cell.names.push(code.into_string());
                }
            }
            Event::End(TagEnd::TableRow) => page.rows.extend(row(package.as_deref(), &mut cells)),
            _ => {}
        }
    }
    page
}

fn row(package: Option<&str>, cells: &mut Vec<Cell>) -> Option<Row> {
    let cells = std::mem::take(cells);
    let rule = variant(cells.first()?.names.first()?)?.to_string();
    Some(Row { package: package?.to_string(), rule, cells })
}

/// The variants of the crates in `folder`.
fn rules(folder: &Path) -> Rules {
    let mut rules = Rules::new();
    for package in entries(folder).into_iter().filter(|path| path.join("src").is_dir()) {
        let found = sources(&package.join("src")).iter().find_map(|source| variants(source));
        let name = package.file_name().expect("a name").to_string_lossy().into_owned();
        rules.extend(found.map(|found| (name, found)));
    }
    rules
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()).collect()
}

/// The texts of the Rust files below `folder`.
fn sources(folder: &Path) -> Vec<String> {
    let (folders, files): (Vec<_>, Vec<_>) = entries(folder).into_iter().partition(|path| path.is_dir());
    let is_rust = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "rs");
    let texts = files.into_iter().filter(is_rust).map(|file| fs::read_to_string(file).expect("text"));
    texts.chain(folders.iter().flat_map(|folder| sources(folder))).collect()
}

fn tokens(text: &str) -> Vec<TokenTree> {
    text.parse::<TokenStream>().expect("Rust").into_iter().collect()
}

/// The variants of the file's `enum Rule`, if it has one outside of its modules.
fn variants(source: &str) -> Option<Vec<String>> {
    if !source.contains("enum Rule") {
        return None;
    }
    tokens(source).windows(3).find_map(|window| match window {
        [TokenTree::Ident(word), TokenTree::Ident(name), TokenTree::Group(group)]
            if word == "enum" && name == "Rule" =>
        {
            // The contents of attributes and doc comments are groups.
            let idents = group.stream().into_iter().filter(|token| matches!(token, TokenTree::Ident(_)));
            Some(idents.map(|ident| ident.to_string()).collect())
        }
        _ => None,
    })
}

/// The item `name` among `tokens`: the first `[…]` or `{…}` behind its name, which is the body of a function, or the list of rules
/// that a mutant in `loom_tests!` breaks.
fn item(tokens: &[TokenTree], name: &str) -> Option<TokenStream> {
    tokens.iter().enumerate().find_map(|(index, token)| match token {
        TokenTree::Ident(ident) if ident == name => tokens[index + 1..].iter().find_map(body),
        TokenTree::Group(group) => item(&group.stream().into_iter().collect::<Vec<_>>(), name),
        _ => None,
    })
}

fn body(token: &TokenTree) -> Option<TokenStream> {
    match token {
        TokenTree::Group(group) if group.delimiter() != Delimiter::Parenthesis => Some(group.stream()),
        _ => None,
    }
}

fn mentions(tokens: TokenStream, word: &str) -> bool {
    tokens.into_iter().any(|token| match token {
        TokenTree::Ident(ident) => ident == word,
        TokenTree::Group(group) => mentions(group.stream(), word),
        _ => false,
    })
}

/// What is wrong with a row, whose links are relative to `folder`.
fn faults_of_row(folder: &Path, row: &Row) -> Vec<String> {
    let [_, code, .., models] = &*row.cells else { return vec!["has neither code nor model".to_string()] };
    let mut faults = Vec::new();
    for cell in &row.cells[1..] {
        faults.extend(
            cell.links.iter().filter(|link| !folder.join(link).is_file()).map(|link| format!("{link} is not there")),
        );
        let files = files(folder, cell);
        let is_missing = |name: &&String| !files.iter().any(|file| has_word(file, name));
        faults.extend(cell.names.iter().filter(is_missing).map(|name| format!("no linked file has `{name}`")));
    }
    if !files(folder, code).iter().any(|file| has_word(file, &row.rule)) {
        faults.push("no linked file of its code asks for it".to_string());
    }
    let files = files(folder, models);
    let breaks = |name: &String| {
        let items = files.iter().filter_map(|file| item(&tokens(file), name));
        name.starts_with("mutant_") && items.into_iter().any(|item| mentions(item, &row.rule))
    };
    if !models.names.iter().any(breaks) {
        faults.push("no mutant breaks it".to_string());
    }
    faults
}

/// The linked files that are there.
fn files(folder: &Path, cell: &Cell) -> Vec<String> {
    cell.links.iter().filter_map(|link| fs::read_to_string(folder.join(link)).ok()).collect()
}

/// Whether Rust code has the last word of the path `name`.
fn has_word(source: &str, name: &str) -> bool {
    let word = name.rsplit("::").next().unwrap_or_default();
    mentions(source.parse().expect("Rust"), word)
}

/// What is wrong with what a page says of the rules of the crates beside it.
fn faults(path: &Path) -> Vec<String> {
    let folder = path.parent().expect("a folder");
    let page = read_page(&fs::read_to_string(path).expect("text"));
    let rules = rules(folder);
    let mut faults = Vec::new();
    for (package, rule) in rules.iter().flat_map(|(package, rules)| rules.iter().map(move |rule| (package, rule))) {
        if !page.rows.iter().any(|row| row.package == *package && row.rule == *rule) {
            faults.push(format!("{package}: Rule::{rule} has no row"));
        }
    }
    for row in &page.rows {
        let Row { package, rule, .. } = row;
        if !rules.get(package).is_some_and(|rules| rules.contains(rule)) {
            faults.push(format!("{package}: Rule::{rule} is no variant"));
        }
        faults.extend(faults_of_row(folder, row).iter().map(|fault| format!("{package}: Rule::{rule}: {fault}")));
    }
    for rule in page.named.iter().filter(|rule| !rules.values().flatten().any(|known| known == *rule)) {
        faults.push(format!("Rule::{rule} is no crate's"));
    }
    faults
}

#[test]
fn each_rule_is_in_the_design_with_its_code_and_its_mutant() {
    let hv = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is in the workspace").join("hv");
    assert!(rules(&hv).len() >= 5, "crates with rules are not found");
    let faults = faults(&hv.join("DESIGN.md"));
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// A crate `kit` with two rules, and a page with these lines about it.
fn faults_of(lines: &[&str]) -> Vec<String> {
    let folder = tempfile::tempdir().expect("a folder");
    let source = folder.path().join("kit/src");
    fs::create_dir_all(&source).expect("made");
    let files = [
        ("rules.rs", "pub enum Rule { /// Its text.\n First, #[cfg(loom)] Second }"),
        ("code.rs", "fn publish() { if kept(Rule::First) {} } fn look() { kept(Rule::Second) }"),
        ("models.rs", "loom_tests! { loom_all = all; mutant_one breaks [First], mutant_two hangs_without [Second] }"),
        ("random.rs", "mod random { #[test] fn mutant_three() { must_fail(&[Rule::First], all) } }"),
    ];
    files.iter().for_each(|(name, text)| fs::write(source.join(name), text).expect("written"));
    let page = folder.path().join("page.md");
    let table = ["# Rules of `kit`", "", "| rule | code | model |", "| --- | --- | --- |"];
    fs::write(&page, [&table, lines].concat().join("\n")).expect("written");
    faults(&page)
}

const FIRST: &str =
    "| `Rule::First`: holds. | [`publish`](kit/src/code.rs) | [`loom_all`](kit/src/models.rs), `mutant_one` |";
const SECOND: &str =
    "| `Rule::Second`: holds. | [`look`](kit/src/code.rs) | [`loom_all`](kit/src/models.rs), `mutant_two` |";

#[test]
fn a_page_with_all_rules_is_right() {
    assert_eq!(faults_of(&[FIRST, SECOND]), [""; 0]);
    assert_eq!(faults_of(&[&FIRST.replace("`mutant_one`", "[`mutant_three`](kit/src/random.rs)"), SECOND]), [""; 0]);
}

#[test]
fn a_rule_without_a_row_is_found() {
    assert_eq!(faults_of(&[FIRST]), ["kit: Rule::Second has no row"]);
    assert_eq!(faults_of(&[FIRST, "", "# Rules", "", SECOND]), ["kit: Rule::Second has no row"]);
}

#[test]
fn a_rule_that_is_no_variant_is_found() {
    let row = FIRST.replace("Rule::First", "Rule::Third");
    let found = faults_of(&[FIRST, SECOND, &row]);
    assert!(found.contains(&"kit: Rule::Third is no variant".to_string()), "{found:?}");
    assert_eq!(faults_of(&[FIRST, SECOND, "", "See `Rule::Fourth`."]), ["Rule::Fourth is no crate's"]);
}

#[test]
fn a_linked_file_that_is_not_there_is_found() {
    let row = FIRST.replace("| [`loom_all`]", "| [`publish`](kit/src/gone.rs), [`loom_all`]");
    let found = faults_of(&[&row, SECOND]);
    assert_eq!(
        found,
        ["kit: Rule::First: kit/src/gone.rs is not there", "kit: Rule::First: no linked file has `publish`"]
    );
}

#[test]
fn a_name_that_the_linked_file_does_not_have_is_found() {
    let found = faults_of(&[&FIRST.replace("loom_all", "loom_none"), SECOND]);
    assert_eq!(found, ["kit: Rule::First: no linked file has `loom_none`"]);
    let found = faults_of(&[&FIRST.replace("publish", "hide"), SECOND]);
    assert_eq!(found, ["kit: Rule::First: no linked file has `hide`"]);
}

#[test]
fn code_and_mutants_of_another_rule_are_found() {
    let found = faults_of(&[&FIRST.replace("mutant_one", "mutant_two"), SECOND]);
    assert_eq!(found, ["kit: Rule::First: no mutant breaks it"]);
    let found = faults_of(&[&FIRST.replace("[`publish`](kit/src/code.rs)", "[`all`](kit/src/models.rs)"), SECOND]);
    assert_eq!(found, [""; 0], "the model itself may ask");
    let found = faults_of(&[FIRST, &SECOND.replace("[`look`](kit/src/code.rs)", "[`random`](kit/src/random.rs)")]);
    assert_eq!(found, ["kit: Rule::Second: no linked file of its code asks for it"]);
}
