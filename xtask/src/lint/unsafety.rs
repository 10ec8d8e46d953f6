//! `unsafe` stands in named files alone.

use super::sources::Source;
use proc_macro2::{TokenStream, TokenTree};

/// The files below `hv/` that may have `unsafe`: those that touch the processor, its structures, or guest memory, and tests that
/// stand in for them. All others are safe Rust.
const ALLOWED: [&str; 48] = [
    "hv/backends/src/lib.rs",
    "hv/backends/src/page.rs",
    "hv/backends/src/svm/backend.rs",
    "hv/backends/src/svm/host.rs",
    "hv/backends/src/svm/switch.rs",
    "hv/backends/src/svm/vcpu.rs",
    "hv/backends/src/unswitched.rs",
    "hv/backends/src/unswitched/vector.rs",
    "hv/backends/src/vmx/backend.rs",
    "hv/backends/src/vmx/dump.rs",
    "hv/backends/src/vmx/host.rs",
    "hv/backends/src/vmx/pat.rs",
    "hv/backends/src/vmx/switch.rs",
    "hv/backends/src/vmx/vcpu.rs",
    "hv/backends/src/vmx/vmcs.rs",
    "hv/bios/tests/read_back.rs",
    "hv/emul/tests/host.rs",
    "hv/firmware/src/handler.rs",
    "hv/firmware/src/tests.rs",
    "hv/loader/tests/heap.rs",
    "hv/memory/src/account.rs",
    "hv/memory/src/arena.rs",
    "hv/memory/src/host.rs",
    "hv/memory/src/raw.rs",
    "hv/memory/src/test_calls.rs",
    "hv/memory/src/view.rs",
    "hv/memory/src/vm_memory.rs",
    "hv/mmu/benches/speed.rs",
    "hv/rcu/tests/loom.rs",
    "hv/shadow/tests/heap.rs",
    "hv/src/acpi_tables.rs",
    "hv/src/boot/mod.rs",
    "hv/src/console.rs",
    "hv/src/cpu/mod.rs",
    "hv/src/cpu/traps.rs",
    "hv/src/frames.rs",
    "hv/src/heap.rs",
    "hv/src/lapic.rs",
    "hv/src/main.rs",
    "hv/src/paging.rs",
    "hv/src/panic.rs",
    "hv/src/rcu_domain.rs",
    "hv/src/selftest.rs",
    "hv/src/smp.rs",
    "hv/src/timer.rs",
    "hv/src/verdict.rs",
    "hv/src/vms/mod.rs",
    "hv/src/vms/work.rs",
];

/// What is wrong: `unsafe` where it may not stand, and names in the list that are not needed.
pub(super) fn check(sources: &[Source]) -> Vec<String> {
    check_against(&ALLOWED, sources)
}

fn check_against(allowed: &[&str], sources: &[Source]) -> Vec<String> {
    let users: Vec<_> = sources.iter().filter(|source| is_unsafe(&source.tokens)).map(|source| &*source.path).collect();
    let strays = users.iter().filter(|path| !allowed.contains(path));
    let unused = allowed.iter().filter(|name| !users.contains(name));
    let strays = strays.map(|path| format!("{path}: `unsafe`, in a file that is not listed for it"));
    strays.chain(unused.map(|name| format!("{name}: listed for `unsafe`, but has none"))).collect()
}

fn is_unsafe(tokens: &TokenStream) -> bool {
    tokens.clone().into_iter().any(|token| match token {
        TokenTree::Ident(word) => word == "unsafe",
        TokenTree::Group(group) => is_unsafe(&group.stream()),
        TokenTree::Punct(_) | TokenTree::Literal(_) => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(text: &str) -> Vec<String> {
        check_against(
            &["hv/raw.rs", "hv/msr.rs"],
            &[
                Source::new("hv/safe.rs", text).unwrap(),
                Source::new("hv/raw.rs", "unsafe fn f() {}").unwrap(),
                Source::new("hv/msr.rs", "fn f() { unsafe { g() } }").unwrap(),
            ],
        )
    }

    #[test]
    fn unsafe_in_a_file_that_is_not_listed_is_found() {
        for text in [
            "fn f() { unsafe { g() } }",
            "unsafe impl Sync for S {}",
            "#[unsafe(no_mangle)] fn f() {}",
            "make! { fn f() { unsafe { g() } } }",
        ] {
            assert_eq!(complaints(text), ["hv/safe.rs: `unsafe`, in a file that is not listed for it"]);
        }
    }

    #[test]
    fn comments_strings_and_lints_are_not_unsafe() {
        let text = "#![forbid(unsafe_code)]\n//! unsafe\nfn f() -> &'static str { /* unsafe */ \"unsafe\" }";
        assert_eq!(complaints(text), [""; 0]);
    }

    #[test]
    fn a_listed_file_without_unsafe_is_found() {
        let sources = [Source::new("hv/raw.rs", "fn f() {}").unwrap()];
        assert_eq!(check_against(&["hv/raw.rs"], &sources), ["hv/raw.rs: listed for `unsafe`, but has none"]);
    }
}
