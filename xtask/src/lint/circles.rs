//! The files of the hypervisor's image use each other in no circle.
//!
//! A file uses another if a path in it leads there: by `crate::`, by `super::`, or from a `mod.rs` by the name of a module that it
//! declares. A name that `use` brings in counts where `use` stands.

use super::sources::Source;
use proc_macro2::{Delimiter, TokenStream, TokenTree};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// What is wrong: a shortest circle through each file that is in one, but for files of circles that were told before.
///
/// `root` is the folder of the crate's `main.rs`, with a slash at its end.
pub(super) fn check(root: &str, sources: &[&Source]) -> Vec<String> {
    let modules: BTreeMap<Vec<String>, &str> =
        sources.iter().map(|source| (module_of(root, &source.path), &*source.path)).collect();
    let uses: BTreeMap<&str, BTreeSet<&str>> =
        sources.iter().map(|source| (&*source.path, used_by(root, source, &modules))).collect();
    let mut told = BTreeSet::new();
    let mut circles = Vec::new();
    for &file in uses.keys() {
        if !told.contains(file)
            && let Some(circle) = circle_through(file, &uses)
        {
            told.extend(circle.iter().copied());
            circles.push(format!("a circle of files: {} -> {file}", circle.join(" -> ")));
        }
    }
    circles
}

/// The path of a file's module: none for `main.rs`.
fn module_of(root: &str, path: &str) -> Vec<String> {
    let path = path.strip_prefix(root).unwrap_or(path);
    let path = path.strip_suffix(".rs").unwrap_or(path);
    let path = path.strip_suffix("/mod").unwrap_or(path);
    path.split('/').filter(|&name| name != "main").map(str::to_string).collect()
}

/// The files that `source` uses, without itself.
fn used_by<'s>(root: &str, source: &'s Source, modules: &BTreeMap<Vec<String>, &'s str>) -> BTreeSet<&'s str> {
    let mut paths = Vec::new();
    let module = module_of(root, &source.path);
    collect(&source.tokens, &module, &BTreeSet::new(), &mut paths);
    let file_of = |path: &Vec<String>| (0..=path.len()).rev().find_map(|length| modules.get(&path[..length]).copied());
    paths.iter().filter_map(file_of).filter(|&file| file != source.path).collect()
}

/// The paths in `tokens`, which stand in `module`, from the crate's root. `children`: the modules that it declares outside of
/// `tokens`.
fn collect(tokens: &TokenStream, module: &[String], children: &BTreeSet<String>, paths: &mut Vec<Vec<String>>) {
    let tokens: Vec<TokenTree> = tokens.clone().into_iter().collect();
    let declared = tokens.windows(3).filter_map(declared_module);
    let children: BTreeSet<String> = children.iter().cloned().chain(declared).collect();
    let mut index = 0;
    while index < tokens.len() {
        match &tokens[index] {
            TokenTree::Ident(word) if !follows_path(&tokens, index) => {
                let start = match &*word.to_string() {
                    "crate" => Some(Vec::new()),
                    "self" => Some(module.to_vec()),
                    "super" => Some(module[..module.len().saturating_sub(1)].to_vec()),
                    name if children.contains(name) => Some([module, &[name.to_string()]].concat()),
                    _ => None,
                };
                if let Some(start) = start {
                    follow(&tokens[index + 1..], start, paths);
                }
            }
            TokenTree::Group(group) => match inner_module(&tokens, index, module) {
                Some(inner) => collect(&group.stream(), &inner, &BTreeSet::new(), paths),
                None => collect(&group.stream(), module, &children, paths),
            },
            _ => {}
        }
        index += 1;
    }
}

/// The module that `mod name;` declares.
fn declared_module(tokens: &[TokenTree]) -> Option<String> {
    match tokens {
        [TokenTree::Ident(word), TokenTree::Ident(name), TokenTree::Punct(end)]
            if word == "mod" && end.as_char() == ';' =>
        {
            Some(name.to_string())
        }
        _ => None,
    }
}

/// The module of `mod name { … }`, if that is the group at `index`.
fn inner_module(tokens: &[TokenTree], index: usize, module: &[String]) -> Option<Vec<String>> {
    let [TokenTree::Ident(word), TokenTree::Ident(name)] = tokens.get(index.checked_sub(2)?..index)? else {
        return None;
    };
    (word == "mod").then(|| [module, &[name.to_string()]].concat())
}

/// Whether the token at `index` stands behind `::`.
fn follows_path(tokens: &[TokenTree], index: usize) -> bool {
    matches!(index.checked_sub(1).map(|before| &tokens[before]), Some(TokenTree::Punct(colon)) if colon.as_char() == ':')
        && index >= 2
        && matches!(&tokens[index - 2], TokenTree::Punct(colon) if colon.as_char() == ':')
}

/// Follows `::name`, `::super` and `::{…}` behind `path`.
fn follow(tokens: &[TokenTree], mut path: Vec<String>, paths: &mut Vec<Vec<String>>) {
    let mut rest = tokens;
    let mut is_path = false;
    while let [TokenTree::Punct(first), TokenTree::Punct(second), next, after @ ..] = rest
        && first.as_char() == ':'
        && second.as_char() == ':'
    {
        is_path = true;
        match next {
            TokenTree::Ident(word) if word == "super" => drop(path.pop()),
            TokenTree::Ident(word) => path.push(word.to_string()),
            TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => {
                let list: Vec<_> = group.stream().into_iter().collect();
                for item in list.split(|token| matches!(token, TokenTree::Punct(comma) if comma.as_char() == ',')) {
                    if let [TokenTree::Ident(word), after @ ..] = item {
                        let inner = if word == "self" { path.clone() } else { [&*path, &[word.to_string()]].concat() };
                        paths.push(inner.clone());
                        follow(after, inner, paths);
                    }
                }
                return;
            }
            _ => break,
        }
        rest = after;
    }
    if is_path {
        paths.push(path);
    }
}

/// A shortest circle from `file` back to it, by the files on it.
fn circle_through<'s>(file: &'s str, uses: &BTreeMap<&'s str, BTreeSet<&'s str>>) -> Option<Vec<&'s str>> {
    let mut ways = BTreeMap::from([(file, vec![file])]);
    let mut queue = VecDeque::from([file]);
    while let Some(from) = queue.pop_front() {
        for &to in uses.get(from)? {
            if to == file {
                return ways.remove(from);
            }
            if !ways.contains_key(to) {
                ways.insert(to, [&*ways[from], &[to]].concat());
                queue.push_back(to);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn circles(files: &[(&str, &str)]) -> Vec<String> {
        let sources: Vec<_> =
            files.iter().map(|(name, text)| Source::new(format!("src/{name}"), text).unwrap()).collect();
        check("src/", &sources.iter().collect::<Vec<_>>())
    }

    #[test]
    fn a_circle_is_found_and_told_once() {
        let found = circles(&[
            ("main.rs", "mod a; mod b; mod c; mod d; fn main() { a::f() }"),
            ("a.rs", "use crate::{d, b::f};"),
            ("b.rs", "fn f() { crate::c::g(1) }"),
            ("c.rs", "mod tests { use crate::a::f; }"),
            ("d.rs", "use core::fmt;"),
        ]);
        assert_eq!(found, ["a circle of files: src/a.rs -> src/b.rs -> src/c.rs -> src/a.rs"]);
    }

    #[test]
    fn a_circle_by_super_is_found() {
        let found = circles(&[
            ("main.rs", "mod vms;"),
            ("vms/mod.rs", "mod vcpu; mod work; use vcpu::Vcpu;"),
            ("vms/vcpu.rs", "use super::work::SLICE;"),
            ("vms/work.rs", "fn f(vcpu: super::vcpu::Vcpu) {}"),
        ]);
        assert_eq!(found, ["a circle of files: src/vms/vcpu.rs -> src/vms/work.rs -> src/vms/vcpu.rs"]);
    }

    #[test]
    fn a_module_that_uses_its_parents_items_is_in_a_circle_with_it() {
        let found = circles(&[
            ("main.rs", "mod vms;"),
            ("vms/mod.rs", "mod vcpu; fn f() { vcpu::g() } struct VmId;"),
            ("vms/vcpu.rs", "use super::VmId;"),
        ]);
        assert_eq!(found, ["a circle of files: src/vms/mod.rs -> src/vms/vcpu.rs -> src/vms/mod.rs"]);
    }

    #[test]
    fn comments_tests_of_the_file_itself_and_visibility_make_no_circle() {
        let found = circles(&[
            ("main.rs", "mod a; mod b;"),
            ("a.rs", "pub(crate) fn f() { b() } use crate::b::b; mod tests { use super::f; }"),
            ("b.rs", "/// See [`f`](crate::a::f).\npub(super) fn b() -> &'static str { \"crate::a\" }"),
        ]);
        assert_eq!(found, [""; 0]);
    }
}
