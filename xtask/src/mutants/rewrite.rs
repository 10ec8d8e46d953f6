//! Builds changes into the source of a crate, each switched by its number.
//!
//! Every place gets all its changes at once: `a < b` becomes `if crate::mutant::is(7) { a <= b } else { a < b }`. So a crate is built
//! once for all of them. What has to be constant (constants, `const fn`, lengths, patterns) is left as it is, and so are the arguments
//! of macros and whatever is there for tests alone.

use super::Kind;
use proc_macro2::Span;
use std::collections::BTreeSet;
use syn::spanned::Spanned;
use syn::visit_mut::{self, VisitMut};
use syn::{Attribute, BinOp, Expr, ExprLit, Lit, Stmt, UnOp, parse_quote};

/// Calls that are left out: flushes and kicks, what leads to them, and what tells another CPU of something. A name that ends with `*`
/// stands for all that begin so.
const FLUSHES: [&str; 32] = [
    "acknowledge",
    "announce",
    "bump",
    "changed",
    "clear*",
    "come_online",
    "complete",
    "defer*",
    "discard*",
    "drop",
    "enqueue",
    "expedite",
    "finish*",
    "flush*",
    "forget*",
    "hurry*",
    "invalidate*",
    "kick*",
    "mark*",
    "notify*",
    "post*",
    "publish*",
    "quiescent",
    "raise*",
    "request*",
    "retire*",
    "set_*",
    "start",
    "store*",
    "synchronize*",
    "unsync*",
    "zap*",
];

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// By which it is switched on: 1 is the first of the crate.
    pub(super) number: usize,
    pub(super) kind: Kind,
    /// From 1.
    pub(super) line: usize,
    /// `Type::name`, or `name`.
    pub(super) function: String,
    /// What it does, in words.
    pub(super) words: String,
}

/// The source with its changes, which are numbered from `first`; those in `refused` are left out, but have their numbers.
pub(super) fn rewrite(source: &str, first: usize, refused: &BTreeSet<usize>) -> syn::Result<(String, Vec<Change>)> {
    let mut file = syn::parse_file(source)?;
    let mut rewriter =
        Rewriter { source, next: first, refused, owner: None, function: String::new(), changes: Vec::new() };
    rewriter.visit_file_mut(&mut file);
    Ok((prettyplease::unparse(&file), rewriter.changes))
}

/// Whether code with these attributes is there for tests alone.
pub(super) fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let words = match &attribute.meta {
            syn::Meta::List(list) if list.path.is_ident("cfg") => list.tokens.to_string(),
            _ => return attribute.path().is_ident("test"),
        };
        words.split(|c: char| !c.is_alphanumeric()).any(|word| word == "test" || word == "fuzzing")
    })
}

struct Rewriter<'s> {
    source: &'s str,
    next: usize,
    refused: &'s BTreeSet<usize>,
    /// The type whose `impl` this is.
    owner: Option<String>,
    function: String,
    changes: Vec<Change>,
}

/// The other expressions that there may be in place of one, by their numbers.
type Others = Vec<(usize, Expr)>;

impl Rewriter<'_> {
    /// The number of a new change; none if it is refused.
    fn number(&mut self, kind: Kind, at: Span, words: String) -> Option<usize> {
        let number = self.next;
        self.next += 1;
        if self.refused.contains(&number) {
            return None;
        }
        let (line, function) = (at.start().line, self.function.clone());
        self.changes.push(Change { number, kind, line, function, words });
        Some(number)
    }

    fn other(&mut self, others: &mut Others, kind: Kind, at: Span, words: String, other: Expr) {
        others.extend(self.number(kind, at, words).map(|number| (number, other)));
    }

    fn text(&self, of: &impl Spanned) -> String {
        let text = self.source.get(of.span().byte_range()).unwrap_or_default();
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// `condition`, and the changes that make it constant. These are harder to notice than its opposite: a test that notices one of
    /// them notices the opposite too.
    fn constant(&mut self, condition: &mut Expr, at: Span, text: &str) {
        let number = |rewriter: &mut Self, value| {
            rewriter.number(Kind::Branch, at, format!("`{text}` is always {value}")).unwrap_or_default()
        };
        let (always, never) = (number(self, true), number(self, false));
        *condition = parse_quote!(crate::mutant::truth(#always, #never, #condition));
    }

    /// The number of the change by which a `let` of a condition does not match.
    fn pattern(&mut self, pattern: &mut Expr) -> Option<usize> {
        let (at, text) = (pattern.span(), self.text(pattern));
        self.visit_expr_mut(pattern);
        self.number(Kind::Branch, at, format!("`{text}` never matches"))
    }

    /// A condition: each part of it that `&&` and `||` connect. Comparisons have their changes wherever they stand.
    fn condition(&mut self, condition: &mut Expr) {
        match condition {
            Expr::Let(_) => {
                if let Some(number) = self.pattern(condition) {
                    *condition = parse_quote!(!crate::mutant::is(#number) && #condition);
                }
            }
            Expr::Paren(inner) => self.condition(&mut inner.expr),
            Expr::Binary(binary) if is_logical(&binary.op) => {
                self.condition(&mut binary.left);
                if !matches!(*binary.right, Expr::Let(_)) {
                    self.condition(&mut binary.right);
                } else if let Some(number) = self.pattern(&mut binary.right) {
                    // No parentheses: a `let` stands in a chain alone.
                    let (left, right) = (&binary.left, &binary.right);
                    *condition = parse_quote!(#left && !crate::mutant::is(#number) && #right);
                }
            }
            Expr::Binary(_) => self.visit_expr_mut(condition),
            // A rule that is broken by name has its mutants already.
            _ if is_kept(condition) => {}
            Expr::Lit(_) => {}
            _ => {
                let (at, text) = (condition.span(), self.text(condition));
                self.visit_expr_mut(condition);
                self.constant(condition, at, &text);
            }
        }
    }

    fn body(&mut self, signature: &syn::Signature, block: &mut syn::Block) {
        if signature.constness.is_some() {
            return;
        }
        let outer = std::mem::take(&mut self.function);
        let name = &signature.ident;
        self.function = self.owner.as_ref().map_or(name.to_string(), |owner| format!("{owner}::{name}"));
        let tells = matches!(&signature.output, syn::ReturnType::Type(_, ty) if is_bool(ty));
        match block.stmts.split_last_mut() {
            Some((Stmt::Expr(last, None), before)) if tells && is_plain(last) => {
                before.iter_mut().for_each(|statement| self.visit_stmt_mut(statement));
                self.condition(last);
            }
            _ => self.visit_block_mut(block),
        }
        self.function = outer;
    }

    fn ordering(&mut self, path: &Expr, method: Method) -> Others {
        let Expr::Path(path) = path else { return Vec::new() };
        let segments = &path.path.segments;
        let (Some(last), true) = (segments.last(), segments.len() >= 2) else { return Vec::new() };
        if segments[segments.len() - 2].ident != "Ordering" {
            return Vec::new();
        }
        let name = last.ident.to_string();
        let mut others = Vec::new();
        for weaker in weaker(&name, method) {
            let mut other = path.clone();
            if let Some(last) = other.path.segments.last_mut() {
                last.ident = syn::Ident::new(weaker, last.ident.span());
            }
            self.other(&mut others, Kind::Ordering, path.span(), format!("{name} is {weaker}"), Expr::Path(other));
        }
        others
    }

    /// The change by which `a |= b`, which collects what several rounds find, tells what the last one has found.
    fn collected(&mut self, statement: &Stmt) -> Option<(usize, Stmt)> {
        let Stmt::Expr(Expr::Binary(binary), _) = statement else { return None };
        let BinOp::BitOrAssign(_) = binary.op else { return None };
        let (left, right) = (&binary.left, &binary.right);
        let words = format!("`{}` has the last value alone", self.text(left));
        self.number(Kind::Bits, statement.span(), words).map(|number| (number, parse_quote!(#left = #right;)))
    }

    fn arguments(&mut self, arguments: &mut syn::punctuated::Punctuated<Expr, syn::Token![,]>, method: Method) {
        for argument in arguments {
            match argument {
                Expr::Path(_) => {
                    let others = self.ordering(argument, method);
                    choose(argument, others);
                }
                _ => self.visit_expr_mut(argument),
            }
        }
    }

    fn binary(&mut self, expr: &mut Expr) {
        let (at, text) = (expr.span(), self.text(expr));
        let Expr::Binary(before) = &*expr else { return };
        let (left_text, right_text) = (self.text(&before.left), self.text(&before.right));
        let (left_is_bits, right_is_bits) = (is_bits(&before.left), is_bits(&before.right));
        let right_is_one = is_one(&before.right);
        visit_mut::visit_expr_mut(self, expr);
        let Expr::Binary(binary) = &*expr else { return };
        let (left, right) = ((*binary.left).clone(), (*binary.right).clone());
        let mut others = Vec::new();
        match binary.op {
            BinOp::BitOr(_) | BinOp::BitAnd(_) => {
                if right_is_bits {
                    self.other(&mut others, Kind::Bits, at, format!("`{text}` is without {right_text}"), left);
                }
                if left_is_bits {
                    self.other(&mut others, Kind::Bits, at, format!("`{text}` is without {left_text}"), right);
                }
            }
            BinOp::Add(_) | BinOp::Sub(_) if right_is_one => {
                self.other(&mut others, Kind::Count, at, format!("`{text}` is `{left_text}`"), left);
            }
            BinOp::Lt(_) | BinOp::Le(_) | BinOp::Gt(_) | BinOp::Ge(_) => {
                let mut other = binary.clone();
                other.op = off_by_one(&binary.op);
                let op = quote::ToTokens::to_token_stream(&other.op);
                let words = format!("`{text}` is `{left_text} {op} {right_text}`");
                self.other(&mut others, Kind::Count, at, words, Expr::Binary(other));
            }
            _ => {}
        }
        let compares = is_comparison(&binary.op);
        choose(expr, others);
        if compares {
            self.constant(expr, at, &text);
        }
    }
}

impl VisitMut for Rewriter<'_> {
    fn visit_item_mut(&mut self, item: &mut syn::Item) {
        let attributes = match item {
            syn::Item::Fn(item) => &item.attrs,
            syn::Item::Impl(item) => &item.attrs,
            syn::Item::Mod(item) => &item.attrs,
            syn::Item::Trait(item) => &item.attrs,
            _ => return,
        };
        if !is_for_tests(attributes) {
            visit_mut::visit_item_mut(self, item);
        }
    }

    fn visit_item_impl_mut(&mut self, item: &mut syn::ItemImpl) {
        let name = match &*item.self_ty {
            syn::Type::Path(path) => path.path.segments.last().map(|segment| segment.ident.to_string()),
            _ => None,
        };
        let outer = std::mem::replace(&mut self.owner, name);
        for item in &mut item.items {
            if let syn::ImplItem::Fn(function) = item
                && !is_for_tests(&function.attrs)
            {
                self.body(&function.sig, &mut function.block);
            }
        }
        self.owner = outer;
    }

    fn visit_item_trait_mut(&mut self, item: &mut syn::ItemTrait) {
        let outer = self.owner.replace(item.ident.to_string());
        for item in &mut item.items {
            if let syn::TraitItem::Fn(function) = item
                && let Some(block) = &mut function.default
            {
                self.body(&function.sig, block);
            }
        }
        self.owner = outer;
    }

    fn visit_item_fn_mut(&mut self, item: &mut syn::ItemFn) {
        self.body(&item.sig, &mut item.block);
    }

    fn visit_type_mut(&mut self, _: &mut syn::Type) {}

    fn visit_pat_mut(&mut self, _: &mut syn::Pat) {}

    fn visit_generic_argument_mut(&mut self, _: &mut syn::GenericArgument) {}

    fn visit_attribute_mut(&mut self, _: &mut Attribute) {}

    fn visit_stmt_mut(&mut self, statement: &mut Stmt) {
        if let Stmt::Expr(expr, Some(_)) = statement
            && let Some(kind) = removable(expr)
        {
            let (at, words) = (expr.span(), format!("`{}` is left out", self.text(expr)));
            let collected = self.collected(statement);
            visit_mut::visit_stmt_mut(self, statement);
            if let Some(number) = self.number(kind, at, words) {
                *statement = parse_quote!(if !crate::mutant::is(#number) { #statement });
            }
            if let Some((number, last)) = collected {
                *statement = parse_quote!(if crate::mutant::is(#number) { #last } else { #statement });
            }
            return;
        }
        visit_mut::visit_stmt_mut(self, statement);
    }

    fn visit_arm_mut(&mut self, arm: &mut syn::Arm) {
        if is_for_tests(&arm.attrs) {
            return;
        }
        if let syn::Pat::Guard(pattern) = &mut arm.pat {
            self.condition(&mut pattern.guard);
        }
        self.visit_expr_mut(&mut arm.body);
    }

    fn visit_expr_mut(&mut self, expr: &mut Expr) {
        match expr {
            Expr::Const(_) | Expr::Macro(_) => {}
            Expr::Repeat(repeat) => self.visit_expr_mut(&mut repeat.expr),
            Expr::If(branch) => {
                self.condition(&mut branch.cond);
                let kept = rule_is_kept(&branch.cond);
                if kept != Some(false) {
                    self.visit_block_mut(&mut branch.then_branch);
                }
                if let Some((_, otherwise)) = &mut branch.else_branch
                    && kept != Some(true)
                {
                    self.visit_expr_mut(otherwise);
                }
            }
            Expr::While(whiles) => {
                self.condition(&mut whiles.cond);
                self.visit_block_mut(&mut whiles.body);
            }
            Expr::ForLoop(loops) => {
                if let Expr::Range(range) = &mut *loops.expr
                    && let (Some(end), syn::RangeLimits::HalfOpen(_)) = (&mut range.end, &range.limits)
                {
                    let (at, words) = (end.span(), format!("the loop ends one before `{}`", self.text(end)));
                    self.visit_expr_mut(end);
                    let mut others = Vec::new();
                    let other = parse_quote!((#end) - 1);
                    self.other(&mut others, Kind::Count, at, words, other);
                    choose(end, others);
                } else {
                    self.visit_expr_mut(&mut loops.expr);
                }
                self.visit_block_mut(&mut loops.body);
            }
            Expr::MethodCall(call) => {
                self.visit_expr_mut(&mut call.receiver);
                let method = Method::of(&call.method.to_string());
                self.arguments(&mut call.args, method);
            }
            Expr::Call(call) => {
                let method = if is_called(call, "fence") { Method::Fence } else { Method::Other };
                self.arguments(&mut call.args, method);
            }
            Expr::Path(_) => {
                let others = self.ordering(expr, Method::Other);
                choose(expr, others);
            }
            Expr::Binary(binary) if is_logical(&binary.op) => self.condition(expr),
            Expr::Binary(_) => self.binary(expr),
            _ => visit_mut::visit_expr_mut(self, expr),
        }
    }
}

/// What an ordering is for: not each atomic operation takes each ordering.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Method {
    Load,
    Store,
    Fence,
    Other,
}

impl Method {
    fn of(name: &str) -> Self {
        match name {
            "load" => Self::Load,
            "store" => Self::Store,
            _ => Self::Other,
        }
    }
}

/// The orderings below this one that `method` takes: the next ones, and Relaxed. A fence is left out in place of a relaxed one.
fn weaker(name: &str, method: Method) -> &'static [&'static str] {
    match (name, method) {
        ("SeqCst", Method::Load) => &["Acquire", "Relaxed"],
        ("SeqCst", Method::Store) => &["Release", "Relaxed"],
        ("SeqCst", Method::Fence) => &["AcqRel"],
        ("SeqCst", Method::Other) => &["AcqRel", "Relaxed"],
        ("AcqRel", Method::Fence) => &["Acquire", "Release"],
        ("AcqRel", _) => &["Acquire", "Release", "Relaxed"],
        ("Acquire" | "Release", Method::Load | Method::Store | Method::Other) => &["Relaxed"],
        _ => &[],
    }
}

fn choose(expr: &mut Expr, others: Others) {
    for (number, other) in others {
        let before = expr.clone();
        *expr = parse_quote!((if crate::mutant::is(#number) { #other } else { #before }));
    }
}

fn off_by_one(op: &BinOp) -> BinOp {
    match op {
        BinOp::Lt(_) => parse_quote!(<=),
        BinOp::Le(_) => parse_quote!(<),
        BinOp::Gt(_) => parse_quote!(>=),
        _ => parse_quote!(>),
    }
}

fn is_logical(op: &BinOp) -> bool {
    matches!(op, BinOp::And(_) | BinOp::Or(_))
}

fn is_comparison(op: &BinOp) -> bool {
    matches!(op, BinOp::Lt(_) | BinOp::Le(_) | BinOp::Gt(_) | BinOp::Ge(_) | BinOp::Eq(_) | BinOp::Ne(_))
}

/// Whether this is a value by itself, not blocks of which each has its own.
fn is_plain(expr: &Expr) -> bool {
    !matches!(expr, Expr::If(_) | Expr::Match(_) | Expr::Block(_) | Expr::Loop(_) | Expr::Return(_) | Expr::Macro(_))
}

fn is_bool(ty: &syn::Type) -> bool {
    matches!(ty, syn::Type::Path(path) if path.path.is_ident("bool"))
}

/// The kind of the change that leaves this statement out, if it may be left out.
fn removable(expr: &Expr) -> Option<Kind> {
    match expr {
        Expr::MethodCall(call) if is_flush(&call.method.to_string()) => Some(Kind::Flush),
        Expr::Call(call) if is_called(call, "fence") => Some(Kind::Ordering),
        Expr::Call(call) => is_flush(&called(call)?.to_string()).then_some(Kind::Flush),
        Expr::Binary(binary) => match binary.op {
            BinOp::AddAssign(_) | BinOp::SubAssign(_) => Some(Kind::Count),
            BinOp::BitOrAssign(_) | BinOp::BitAndAssign(_) => Some(Kind::Bits),
            _ => None,
        },
        _ => None,
    }
}

/// The last name of the path of the function that is called.
fn called(call: &syn::ExprCall) -> Option<&syn::Ident> {
    match &*call.func {
        Expr::Path(path) => path.path.segments.last().map(|segment| &segment.ident),
        _ => None,
    }
}

fn is_called(call: &syn::ExprCall, name: &str) -> bool {
    called(call).is_some_and(|called| called == name)
}

fn is_kept(expr: &Expr) -> bool {
    match expr {
        Expr::Unary(unary) => is_kept(&unary.expr),
        Expr::Call(call) => is_called(call, "kept"),
        _ => false,
    }
}

/// Whether this condition is that a rule is kept, or that it is broken. What is done where a rule is broken is no code of the crate: only
/// mutants by name run it.
fn rule_is_kept(condition: &Expr) -> Option<bool> {
    match condition {
        Expr::Unary(unary) if matches!(unary.op, UnOp::Not(_)) => rule_is_kept(&unary.expr).map(|kept| !kept),
        Expr::Call(call) => is_called(call, "kept").then_some(true),
        _ => None,
    }
}

fn is_one(expr: &Expr) -> bool {
    matches!(expr, Expr::Lit(ExprLit { lit: Lit::Int(number), .. }) if number.base10_digits() == "1")
}

/// Whether this names bits: a constant, several of them, a shifted bit, or the complement of such.
fn is_bits(expr: &Expr) -> bool {
    match expr {
        Expr::Path(path) => path.path.segments.last().is_some_and(|last| {
            let name = last.ident.to_string();
            name.len() > 1 && !name.contains(|c: char| c.is_lowercase())
        }),
        Expr::Unary(unary) => matches!(unary.op, UnOp::Not(_)) && is_bits(&unary.expr),
        Expr::Paren(paren) => is_bits(&paren.expr),
        Expr::Binary(binary) => match binary.op {
            BinOp::Shl(_) => true,
            BinOp::BitOr(_) => is_bits(&binary.left) || is_bits(&binary.right),
            _ => false,
        },
        _ => false,
    }
}

fn is_flush(name: &str) -> bool {
    FLUSHES.iter().any(|flush| flush.strip_suffix('*').map_or(*flush == name, |start| name.starts_with(start)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The changes of the body of a function with these arguments, as `kind: words`.
    fn changes(body: &str) -> Vec<String> {
        let source = format!("fn f() {{\n{body}\n}}");
        let (text, changes) = rewrite(&source, 1, &BTreeSet::new()).unwrap();
        let numbers: Vec<_> = changes.iter().map(|change| change.number).collect();
        assert_eq!(numbers, (1..=changes.len()).collect::<Vec<_>>());
        assert!(numbers.iter().all(|number| text.contains(&number.to_string())), "{text}");
        changes.iter().map(|change| format!("{:?}: {}", change.kind, change.words).to_lowercase()).collect()
    }

    #[test]
    fn an_ordering_is_weakened_as_far_as_its_operation_allows() {
        assert_eq!(changes("a.load(Ordering::Acquire);"), ["ordering: acquire is relaxed"]);
        assert_eq!(
            changes("a.store(1, Ordering::SeqCst)"),
            ["ordering: seqcst is release", "ordering: seqcst is relaxed"]
        );
        assert_eq!(
            changes("a.swap(1, Ordering::AcqRel)"),
            ["ordering: acqrel is acquire", "ordering: acqrel is release", "ordering: acqrel is relaxed"]
        );
        assert!(changes("a.load(Ordering::Relaxed)").is_empty());
    }

    #[test]
    fn a_fence_is_weakened_and_left_out() {
        assert_eq!(
            changes("fence(Ordering::SeqCst);"),
            ["ordering: seqcst is acqrel", "ordering: `fence(ordering::seqcst)` is left out"]
        );
        // A relaxed fence panics.
        assert_eq!(changes("fence(Ordering::Acquire);"), ["ordering: `fence(ordering::acquire)` is left out"]);
    }

    #[test]
    fn each_part_of_a_condition_is_made_constant() {
        assert_eq!(
            changes("if a.is_empty() && !b { c }"),
            [
                "branch: `a.is_empty()` is always true",
                "branch: `a.is_empty()` is always false",
                "branch: `!b` is always true",
                "branch: `!b` is always false"
            ]
        );
        assert_eq!(changes("if let Some(a) = b { a }"), ["branch: `let some(a) = b` never matches"]);
        assert!(changes("if kept(Rule::A) { a }").is_empty(), "it is broken by name");
        assert!(changes("if !kept(Rule::A) { f(a < b) }").is_empty(), "mutants by name alone run that");
        assert!(changes("if kept(Rule::A) { a } else { f(a < b) }").is_empty());
        assert_eq!(changes("if kept(Rule::A) { f(a < b) } else { c }").len(), 3);
        assert_eq!(changes("match a { b if c => d, _ => e }").len(), 2);
    }

    #[test]
    fn each_pattern_of_a_chain_stays_in_the_chain() {
        let source = "fn f() { if let Some(a) = b && let Some(c) = d && e {} }";
        let (text, changes) = rewrite(source, 1, &BTreeSet::new()).unwrap();
        assert_eq!(changes.len(), 4);
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let chain = "if !crate::mutant::is(1usize) && let Some(a) = b && !crate::mutant::is(2usize) && let Some(c) = d";
        assert!(text.contains(chain), "{text}");
    }

    #[test]
    fn a_bound_is_off_by_one() {
        assert_eq!(
            changes("let x = a < b;"),
            ["count: `a < b` is `a <= b`", "branch: `a < b` is always true", "branch: `a < b` is always false"]
        );
        assert_eq!(changes("for i in 0..n {}"), ["count: the loop ends one before `n`"]);
    }

    #[test]
    fn a_count_is_left_out() {
        assert_eq!(changes("let x = a + 1;"), ["count: `a + 1` is `a`"]);
        assert_eq!(changes("a.b -= c;"), ["count: `a.b -= c` is left out"]);
    }

    #[test]
    fn a_flush_is_left_out_and_other_calls_are_not() {
        assert_eq!(changes("gather.changed();"), ["flush: `gather.changed()` is left out"]);
        assert_eq!(changes("self.kick_stale(a);"), ["flush: `self.kick_stale(a)` is left out"]);
        assert!(changes("list.append(a);").is_empty());
    }

    #[test]
    fn bits_are_left_out() {
        assert_eq!(changes("let x = a | PRESENT;"), ["bits: `a | present` is without present"]);
        assert_eq!(changes("let x = a & !DIRTY;"), ["bits: `a & !dirty` is without !dirty"]);
        assert_eq!(changes("a |= DIRTY;"), ["bits: `a` has the last value alone", "bits: `a |= dirty` is left out"]);
        assert_eq!(
            changes("let x = a & DIRTY != 0;"),
            [
                "bits: `a & dirty` is without dirty",
                "branch: `a & dirty != 0` is always true",
                "branch: `a & dirty != 0` is always false"
            ]
        );
    }

    #[test]
    fn what_is_constant_or_for_tests_is_left_as_it_is() {
        for source in [
            "const A: u64 = B | C;",
            "const fn f(a: u64) -> u64 { a | C }",
            "#[cfg(test)] mod tests { fn f() -> u64 { a + 1 } }",
            "#[cfg(any(test, fuzzing))] fn f() -> u64 { a + 1 }",
            "fn f(a: [u64; B + 1]) {}",
        ] {
            assert_eq!(rewrite(source, 1, &BTreeSet::new()).unwrap().1, [], "{source}");
        }
    }

    #[test]
    fn a_change_says_where_it_is() {
        let source = "struct A;\nimpl A {\n    fn f(&self) -> bool {\n        self.g()\n    }\n}\n";
        let (text, changes) = rewrite(source, 5, &BTreeSet::new()).unwrap();
        assert_eq!((&*changes[0].function, changes[0].line, changes[0].number), ("A::f", 4, 5));
        assert!(text.contains("crate::mutant::truth(5usize, 6usize, self.g())"), "{text}");
    }

    #[test]
    fn a_refused_change_is_left_out_and_the_others_keep_their_numbers() {
        let source = "fn f() -> u64 {\n    a + 1 + b | BIT\n}\n";
        let (text, changes) = rewrite(source, 1, &BTreeSet::from([1])).unwrap();
        assert_eq!(changes.iter().map(|change| change.number).collect::<Vec<_>>(), [2]);
        assert!(!text.contains("is(1usize)") && text.contains("is(2usize)"), "{text}");
    }
}
