//! ACPICA's compiler `iasl` disassembles all tables but the RSDP, which it does not know, and compiles what it gets, without an
//! error or a warning. Debian has it in `acpica-tools`; `cargo xtask setup` installs it.

use bios::{PcConfig, Processor, Tables};
use std::path::Path;
use std::process::Command;

fn dword(bytes: &[u8], at: usize) -> u64 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes")).into()
}

/// The tables that the RSDP leads to, by their signatures.
fn files(tables: &Tables) -> Vec<(String, Vec<u8>)> {
    let at = |address: u64| &tables.bytes()[(address - tables.range().start.raw()) as usize..];
    let table = |address: u64| at(address)[..dword(at(address), 4) as usize].to_vec();
    let rsdp = at(tables.rsdp().raw());
    let (rsdt, xsdt) = (table(dword(rsdp, 16)), table(dword(rsdp, 24)));
    let mut found: Vec<_> = rsdt[36..].chunks(4).map(|address| table(dword(address, 0))).collect();
    let fadt = found.iter().find(|table| table.starts_with(b"FACP")).expect("a FADT").clone();
    found.extend([table(dword(&fadt, 36)), table(dword(&fadt, 40)), rsdt, xsdt]);
    found.into_iter().map(|table| (String::from_utf8_lossy(&table[..4]).into_owned(), table)).collect()
}

/// Runs iasl in `directory`: what it prints.
fn iasl(directory: &Path, arguments: &[&str]) -> String {
    let output = Command::new("iasl").current_dir(directory).args(arguments).output();
    let output = output.expect("iasl is missing: `cargo xtask setup` installs it (Debian: acpica-tools)");
    let printed = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "iasl {arguments:?}: {printed}");
    printed
}

fn assert_no_complaint(printed: &str, about: &str) {
    let complains = |line: &str| {
        let line = line.to_ascii_lowercase();
        ["error", "warning"].into_iter().any(|word| line.contains(word) && !line.contains(&format!(" 0 {word}s")))
    };
    let complaints: Vec<_> = printed.lines().filter(|line| complains(line)).collect();
    assert!(complaints.is_empty(), "{about}: {complaints:#?} in\n{printed}");
}

fn check(machine: &PcConfig) {
    let directory = tempfile::tempdir().expect("a directory");
    let files = files(&Tables::new(machine));
    let mut expected = vec!["APIC", "DSDT", "FACP", "FACS", "RSDT", "XSDT"];
    expected.extend(machine.hpet.map(|_| "HPET"));
    expected.sort_unstable();
    let mut names: Vec<_> = files.iter().map(|(name, _)| &**name).collect();
    names.sort_unstable();
    assert_eq!(names, expected);
    for (name, table) in &files {
        std::fs::write(directory.path().join(format!("{name}.dat")), table).expect("a file");
        assert_no_complaint(&iasl(directory.path(), &["-d", &format!("{name}.dat")]), name);
        let source = directory.path().join(format!("{name}.dsl"));
        assert!(source.is_file(), "iasl has disassembled no {name}");
        assert_no_complaint(&iasl(directory.path(), &["-we", &format!("{name}.dsl")]), name);
        let compiled = std::fs::read(directory.path().join(format!("{name}.aml"))).expect("iasl has compiled it");
        assert_eq!(compiled.len(), table.len(), "{name}: as it was");
    }
}

fn machine(vcpus: u8) -> PcConfig {
    let processor = Processor { signature: 0x00a2_0f10, features: 0x078b_fbff };
    PcConfig { vcpus, processor, ioapic: true, hpet: Some(0x8086_a201), pci_gsis: [16, 17, 18, 19] }
}

#[test]
fn all_tables_are_disassembled_and_compiled_without_a_complaint() {
    check(&machine(1));
    check(&machine(64));
    check(&PcConfig { ioapic: false, hpet: None, ..machine(2) });
}
