//! The README's tables of exit costs show the medians that `cargo xtask bench` compares with.

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

const EXITS: [(&str, &str); 15] = [
    ("CPUID", "cpuid"),
    ("hypercall", "hypercall"),
    ("IN", "pio_in"),
    ("OUT", "pio_out"),
    ("RDMSR", "rdmsr"),
    ("WRMSR", "wrmsr"),
    ("first touch of a page", "first_touch_4k"),
    ("APIC register read, MMIO", "apic_read_mmio"),
    ("APIC register write, MMIO", "apic_write_mmio"),
    ("... by RDMSR", "apic_read_msr"),
    ("... by WRMSR", "apic_write_msr"),
    ("MOV to CR8", "mov_to_cr8"),
    ("self-IPI to its handler", "self_ipi"),
    ("timer expiry to its handler", "timer_expiry"),
    ("HLT wake-up by the timer", "hlt_wakeup"),
];
const SHADOW: [(&str, &str); 5] = [
    ("the guest's own page fault, to its handler", "page_fault"),
    ("a page installed, and touched", "install_touch"),
    ("INVLPG of a page in use", "invlpg"),
    ("CR3 loaded, and a page touched", "cr3_touch"),
    ("CR0.WP switched", "cr0_wp"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is in the workspace").into()
}

fn median(host: &str, exit: &str) -> String {
    let file = root().join(format!("xtask/baseline/exit-latency-{host}.json"));
    let kept: Value = serde_json::from_str(&fs::read_to_string(file).expect("kept figures")).expect("JSON");
    kept["exits"][exit]["median"].to_string()
}

#[test]
fn the_readme_shows_the_figures_that_are_kept() {
    let readme = fs::read_to_string(root().join("README.md")).expect("the README");
    let rows: Vec<Vec<&str>> = readme.lines().map(|line| line.split('|').map(str::trim).collect()).collect();
    let check = |label: &str, exit: &str, hosts: &[&str]| {
        let row = rows.iter().find(|row| row.get(1) == Some(&label)).unwrap_or_else(|| panic!("no row of {label}"));
        let kept: Vec<String> = hosts.iter().map(|host| median(host, exit)).collect();
        assert_eq!(row[2..2 + hosts.len()], kept, "{label}");
    };
    for (label, exit) in EXITS {
        check(label, exit, &["qemu-svm-icount", "bochs-vmx", "bochs-svm"]);
    }
    for (label, exit) in SHADOW {
        check(label, exit, &["qemu-svm-shadow-icount", "bochs-vmx-shadow"]);
    }
}
