//! `hv/DESIGN.md` has a row for each rule that a mutant breaks: its text, its code, its test, its model and the mutant. Each row of a
//! table with a column for tests names one that exists. (Those that are rows of the matrix are compared where the matrix is.)

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// What a cell of a table has in code font, and what it links to.
#[derive(Default)]
struct Cell {
    text: String,
    names: Vec<String>,
    links: Vec<String>,
    /// Names of rows of the matrix, which stand behind the word.
    rows: Vec<String>,
    /// Such a name follows.
    rows_follow: bool,
}

impl Cell {
    fn text(&mut self, text: &str) {
        let mut words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
        if let Some(last) = words.next_back() {
            self.rows_follow = matches!(last, "row" | "rows" | "and") && (self.rows_follow || last != "and");
        }
        self.text.push_str(text);
    }

    fn code(&mut self, code: String) {
        self.text.push_str(&code);
        if self.rows_follow { &mut self.rows } else { &mut self.names }.push(code);
    }
}

/// A row of a table.
struct Row {
    /// The crate and its rule, below a heading that names the crate.
    rule: Option<(String, String)>,
    /// Where its tests are named.
    tests: Option<usize>,
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
    let (mut page, mut package, mut cells, mut tests) = (Page::default(), None, Vec::<Cell>::new(), None);
    let mut in_heading = false;
    for event in Parser::new_ext(text, Options::ENABLE_TABLES) {
        match event {
            Event::Start(Tag::Heading { .. }) => (in_heading, package) = (true, None),
            Event::End(TagEnd::Heading(_)) => in_heading = false,
            Event::Start(Tag::TableHead | Tag::TableRow) => cells.clear(),
            Event::Start(Tag::TableCell) => cells.push(Cell::default()),
            Event::Start(Tag::Link { dest_url, .. }) => {
                if let Some(cell) = cells.last_mut() {
                    cell.links.push(dest_url.into_string());
                    cell.rows_follow = false;
                }
            }
            Event::Text(text) => cells.last_mut().into_iter().for_each(|cell| cell.text(&text)),
            Event::Code(code) => {
                page.named.extend(variant(&code).map(str::to_string));
                if in_heading {
                    package = Some(code.to_string());
                } else if let Some(cell) = cells.last_mut() {
                    cell.code(code.into_string());
                }
            }
            Event::End(TagEnd::TableHead) => tests = cells.iter().position(|cell| cell.text == "test"),
            Event::End(TagEnd::TableRow) => page.rows.push(row(package.as_deref(), tests, &mut cells)),
            Event::End(TagEnd::Table) => cells.clear(),
            _ => {}
        }
    }
    page
}

fn row(package: Option<&str>, tests: Option<usize>, cells: &mut Vec<Cell>) -> Row {
    let cells = std::mem::take(cells);
    let name = cells.first().and_then(|cell| variant(cell.names.first()?));
    let rule = package.zip(name).map(|(package, name)| (package.to_string(), name.to_string()));
    Row { rule, tests, cells }
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

/// Whether `tokens` have the function `name` with `#[test]` and perhaps other attributes before it.
fn is_test(tokens: &[TokenTree], name: &str) -> bool {
    let is_word =
        |token: Option<&TokenTree>, word: &str| matches!(token, Some(TokenTree::Ident(ident)) if ident == word);
    let is_marked = |before: &[TokenTree]| {
        let attributes = before.rchunks_exact(2).map_while(|pair| match pair {
            [TokenTree::Punct(hash), TokenTree::Group(group)] if hash.as_char() == '#' => Some(group.stream()),
            _ => None,
        });
        attributes.into_iter().any(|attribute| attribute.to_string() == "test")
    };
    tokens.iter().enumerate().any(|(index, token)| match token {
        TokenTree::Ident(word) if word == "fn" => is_word(tokens.get(index + 1), name) && is_marked(&tokens[..index]),
        TokenTree::Group(group) => is_test(&group.stream().into_iter().collect::<Vec<_>>(), name),
        _ => false,
    })
}

/// What is wrong with the tests that a row names.
fn faults_of_tests(folder: &Path, row: &Row) -> Vec<String> {
    let Some(cell) = row.tests.and_then(|column| row.cells.get(column)) else { return Vec::new() };
    if cell.names.is_empty() && cell.rows.is_empty() {
        return vec!["has no test".to_string()];
    }
    let files: Vec<_> = files(folder, cell).iter().map(|file| tokens(file)).collect();
    let is_none = |name: &&String| !files.iter().any(|file| is_test(file, name));
    cell.names.iter().filter(is_none).map(|name| format!("no linked file has a test `{name}`")).collect()
}

/// What is wrong with a rule's row, whose links are relative to `folder`.
fn faults_of_rule(folder: &Path, row: &Row, rule: &str) -> Vec<String> {
    if row.tests.is_none() {
        return vec!["its table has no column for tests".to_string()];
    }
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
    if !files(folder, code).iter().any(|file| has_word(file, rule)) {
        faults.push("no linked file of its code asks for it".to_string());
    }
    let files = files(folder, models);
    let breaks = |name: &String| {
        let items = files.iter().filter_map(|file| item(&tokens(file), name));
        name.starts_with("mutant_") && items.into_iter().any(|item| mentions(item, rule))
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
        let is_its = |row: &Row| row.rule.as_ref().is_some_and(|(its, named)| its == package && named == rule);
        if !page.rows.iter().any(is_its) {
            faults.push(format!("{package}: Rule::{rule} has no row"));
        }
    }
    for row in &page.rows {
        let wrong = faults_of_tests(folder, row);
        let Some((package, rule)) = &row.rule else {
            let text = row.cells.first().map(|cell| &*cell.text).unwrap_or_default();
            faults.extend(wrong.iter().map(|fault| format!("{text:.20}: {fault}")));
            continue;
        };
        if !rules.get(package).is_some_and(|rules| rules.contains(rule)) {
            faults.push(format!("{package}: Rule::{rule} is no variant"));
        }
        let wrong = faults_of_rule(folder, row, rule).into_iter().chain(wrong);
        faults.extend(wrong.map(|fault| format!("{package}: Rule::{rule}: {fault}")));
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
        (
            "tests.rs",
            "#[test] fn holds() {} fn helps() {} proptest! { #[should_panic] #[test] fn holds_always(n: u8) {} }",
        ),
        ("random.rs", "mod random { #[test] fn mutant_three() { must_fail(&[Rule::First], all) } }"),
    ];
    files.iter().for_each(|(name, text)| fs::write(source.join(name), text).expect("written"));
    let page = folder.path().join("page.md");
    let table = ["# Rules of `kit`", "", "| rule | code | test | model |", "| --- | --- | --- | --- |"];
    fs::write(&page, [&table, lines].concat().join("\n")).expect("written");
    faults(&page)
}

const FIRST: &str = "| `Rule::First`: holds. | [`publish`](kit/src/code.rs) | [`holds`](kit/src/tests.rs) | [`loom_all`](kit/src/models.rs), `mutant_one` |";
const SECOND: &str = "| `Rule::Second`: holds. | [`look`](kit/src/code.rs) | rows `a` and `b` | [`loom_all`](kit/src/models.rs), `mutant_two` |";

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
fn a_rule_without_a_test_is_found() {
    let second = |tests: &str| SECOND.replace("rows `a` and `b`", tests);
    assert_eq!(faults_of(&[FIRST, &second("")]), ["kit: Rule::Second: has no test"]);
    let other = "kit: Rule::Second: no linked file has a test `helps`";
    assert_eq!(faults_of(&[FIRST, &second("[`helps`](kit/src/tests.rs)")]), [other], "a function without #[test]");
    assert_eq!(faults_of(&[FIRST, &second("[`holds_always`](kit/src/tests.rs)")]), [""; 0]);
    let table = ["", "# Others", "", "| rule | test |", "| --- | --- |", "| **Bounded.** It ends. | |"];
    assert_eq!(faults_of(&[&[FIRST, SECOND], &table[..]].concat()), ["Bounded. It ends.: has no test"]);
    let table = ["", "# Rules of `kit`", "", "| rule | code | model |", "| --- | --- | --- |", SECOND];
    let found = faults_of(&[&[FIRST], &table[..]].concat());
    assert_eq!(found, ["kit: Rule::Second: its table has no column for tests"]);
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
