//! What the command line promises, by running the program.

use std::process::{Command, Output};

fn xtask(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xtask")).args(arguments).output().expect("xtask runs")
}

#[test]
fn every_command_has_help_with_an_example() {
    for command in [
        "setup", "build", "run", "linux", "iso", "test", "stress", "hostile", "bench", "fairness", "coverage",
        "mutants", "fuzz", "lint",
    ] {
        let output = xtask(&[command, "--help"]);
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(0));
        assert!(text.contains(&format!("  cargo xtask {command}")) && text.contains("Example"), "{text}");
    }
}

#[test]
fn usage_errors_have_status_2() {
    for arguments in [
        &[][..],
        &["nonsense"],
        &["run", "--nonsense"],
        &["run", "--mem", "64"],
        &["run", "--timeout", "0"],
        &["run", "--accel", "hvf"],
        &["run", "--guest", "no/such/file"],
        &["run", "--host", "bochs", "--icount"],
        &["run", "--host", "bochs", "--bare"],
        &["run", "--vcpus", "17"],
        &["run", "--vm", "guest=smoke", "--guest", "smoke"],
        &["run", "--vm", "guest=no/such/file"],
        &["run", "--vm", "guest=smoke,vcpus=0"],
        &["run", "--bare", "--vm", "guest=smoke", "--vm", "guest=smoke"],
        &["run", "--initrd", "no/such/file"],
        &["run", "--input", "no/such/file"],
        &["run", "--vm", "guest=smoke", "--input", "Cargo.toml"],
        &["linux"],
        &["linux", "--arch", "arm64", "--bare"],
        &["linux", "--bare", "--kernel", "no/such/file"],
        &["linux", "--bare", "--run", "true", "--initrd", "Cargo.toml"],
        &["stress", "--vcpus", "1"],
        &["stress", "--skip-flush", "all"],
        &["stress", "--host", "bochs", "--accel", "kvm"],
        &["iso", "--guest", "no/such/file"],
        &["iso", "--expect", "text"],
        &["iso", "--input", "Cargo.toml"],
        &["iso", "--vm", "guest=smoke,name=a,input=-", "--vm", "guest=smoke,name=b,input=-"],
        &["fairness", "no-such-attack"],
        &["fairness", "--host", "no-such-machine"],
        &["coverage", "no-such-row"],
        &["coverage", "--host", "alone"],
        &["mutants", "--crate", "no-such-crate"],
        &["mutants", "--only", "xtask/src/main.rs:1"],
        &["fuzz", "no_such_target"],
        &["fuzz", "--input", "no/such/file", "emul_decode"],
        &["fuzz", "--seconds", "0"],
    ] {
        let output = xtask(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(!output.stderr.is_empty(), "{arguments:?}");
    }
}
