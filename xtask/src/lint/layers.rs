//! Which crate may use which: the picture of `hv/DESIGN.md` as a table.

use crate::project;
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::process::Command;

/// The crates of the repository, the lowest first, and those of them that each may use. A crate uses only what stands above it
/// here, so there is no circle. Tests may use others (`[dev-dependencies]`).
const LAYERS: [(&str, &[&str]); 28] = [
    ("abi", &[]),
    ("addr", &[]),
    ("arch", &["abi"]),
    ("model", &[]),
    ("buddy", &[]),
    ("clock", &["abi"]),
    ("sched", &["model"]),
    ("firmware", &["abi", "addr"]),
    ("direct-map", &["addr", "arch"]),
    ("devices", &["abi", "addr"]),
    ("bios", &["abi", "addr", "arch"]),
    ("apic", &["abi", "arch", "model"]),
    ("loader", &["abi", "addr", "arch", "bios"]),
    ("serial", &["abi", "model"]),
    ("emul", &["addr", "arch"]),
    ("walk", &["addr", "arch"]),
    ("rcu", &["addr", "model"]),
    ("mmu", &["addr", "arch", "model", "rcu"]),
    ("shadow", &["addr", "arch", "mmu", "model", "rcu", "walk"]),
    ("vm", &["abi", "addr", "apic", "arch", "devices", "emul", "loader", "sched", "shadow", "walk"]),
    ("memory", &["abi", "addr", "buddy", "loader", "mmu", "model", "rcu", "sched", "shadow", "vm", "walk"]),
    ("backends", &["abi", "addr", "arch", "emul", "mmu", "shadow", "vm", "walk"]),
    (
        "hv",
        &[
            "abi",
            "addr",
            "arch",
            "backends",
            "bios",
            "buddy",
            "clock",
            "devices",
            "direct-map",
            "emul",
            "firmware",
            "loader",
            "memory",
            "mmu",
            "rcu",
            "sched",
            "serial",
            "shadow",
            "vm",
            "walk",
        ],
    ),
    ("base", &["abi", "addr", "arch"]),
    ("guest-tests", &["abi", "addr", "arch", "base"]),
    ("guest-tests-32", &["abi", "addr", "arch", "base"]),
    ("guest-tests-linux", &["abi", "arch"]),
    ("xtask", &["abi", "arch"]),
];

/// What is wrong.
///
/// # Errors
/// Cargo can't tell the crates.
pub(super) fn check() -> Result<Vec<String>> {
    Ok(check_against(&LAYERS, &packages()?))
}

/// A crate, as `cargo metadata` describes it.
#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    /// `dev`, `build`, or none for an ordinary one.
    kind: Option<String>,
    /// Where it is, if it is not from a registry.
    path: Option<String>,
}

fn packages() -> Result<Vec<Package>> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
    }
    let mut command = Command::new(project::cargo());
    command.current_dir(project::root()).args(["metadata", "--no-deps", "--format-version", "1"]);
    let output = command.output().context("can't run cargo")?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice::<Metadata>(&output.stdout)?.packages)
}

fn check_against(layers: &[(&str, &[&str])], packages: &[Package]) -> Vec<String> {
    let allowed: BTreeMap<&str, &[&str]> = layers.iter().copied().collect();
    let mut wrong = Vec::new();
    for (index, (name, uses)) in layers.iter().enumerate() {
        let is_above = |used: &&&str| layers[..index].iter().any(|(above, _)| above == *used);
        wrong.extend(
            uses.iter().filter(|used| !is_above(used)).map(|used| format!("the table has {used} below {name}")),
        );
        if !packages.iter().any(|package| package.name == *name) {
            wrong.push(format!("the table has {name}, which is no crate"));
        }
    }
    for Package { name, dependencies } in packages {
        let Some(allowed) = allowed.get(&**name) else {
            wrong.push(format!("{name} is not in the table"));
            continue;
        };
        let ours = dependencies.iter().filter(|used| used.path.is_some() && used.kind.as_deref() != Some("dev"));
        let used: Vec<_> = ours.map(|used| &*used.name).collect();
        wrong.extend(
            used.iter().filter(|used| !allowed.contains(used)).map(|used| format!("{name} must not use {used}")),
        );
        let unused = allowed.iter().filter(|allowed| !used.contains(allowed));
        wrong.extend(unused.map(|unused| format!("{name} may use {unused}, but does not")));
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: [(&str, &[&str]); 3] = [("addr", &[]), ("rcu", &["addr"]), ("mmu", &["addr", "rcu"])];

    fn package(name: &str, used: &[&str]) -> Package {
        let dependency = |used: &&str| Dependency { name: used.to_string(), kind: None, path: Some("/".into()) };
        Package { name: name.to_string(), dependencies: used.iter().map(dependency).collect() }
    }

    fn all() -> [Package; 3] {
        [package("addr", &[]), package("rcu", &["addr"]), package("mmu", &["rcu", "addr"])]
    }

    #[test]
    fn crates_as_in_the_table_are_right() {
        assert_eq!(check_against(&TABLE, &all()), [""; 0]);
    }

    #[test]
    fn a_crate_that_uses_what_it_must_not_is_found() {
        let [addr, rcu, mmu] = all();
        let mut rcu = rcu;
        rcu.dependencies.extend(package("", &["mmu"]).dependencies);
        assert_eq!(check_against(&TABLE, &[addr, rcu, mmu]), ["rcu must not use mmu"]);
    }

    #[test]
    fn tests_and_crates_from_elsewhere_are_free() {
        let [mut addr, rcu, mmu] = all();
        addr.dependencies.push(Dependency { name: "mmu".into(), kind: Some("dev".into()), path: Some("/".into()) });
        addr.dependencies.push(Dependency { name: "bitflags".into(), kind: None, path: None });
        assert_eq!(check_against(&TABLE, &[addr, rcu, mmu]), [""; 0]);
    }

    #[test]
    fn a_circle_in_the_table_is_found() {
        let table: [(&str, &[&str]); 2] = [("a", &["b"]), ("b", &[])];
        let packages = [package("a", &["b"]), package("b", &[])];
        assert_eq!(check_against(&table, &packages), ["the table has b below a"]);
    }

    #[test]
    fn a_table_that_is_out_of_date_is_found() {
        let packages = [package("addr", &[]), package("rcu", &["addr"]), package("new", &[])];
        let wrong = check_against(&TABLE, &packages);
        assert_eq!(wrong, ["the table has mmu, which is no crate", "new is not in the table"]);
        let [addr, _, mmu] = all();
        assert_eq!(check_against(&TABLE, &[addr, package("rcu", &[]), mmu]), ["rcu may use addr, but does not"]);
    }
}
