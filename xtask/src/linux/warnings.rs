//! What a kernel warns of that it does not warn of on QEMU alone.
//!
//! The list was made by the script of [`script`], as the rows of the matrix run it: once under the hypervisor, and once on QEMU alone by
//! `cargo xtask linux --bare --run`, for each of the three kernels; for Intel's processors, which Bochs has, by `--bare --cpu
//! Skylake-Client`. It has what comes in both, and what comes of a machine that lacks a device or is kept waiting by the one that
//! emulates it.

/// The kernel's messages of these levels, KERN_EMERG to KERN_WARNING, as `dmesg -r` has them.
const LEVELS: [&str; 5] = ["<0>[", "<1>[", "<2>[", "<3>[", "<4>["];

/// Behind the last warning.
pub(crate) const NO_MORE_WARNINGS: &str = "# the kernel has no more warnings";

/// Warnings that are no finding: how the text begins, and why it is there.
const ALLOWED: [(&str, &str); 16] = [
    ("tsc: Unable to calibrate against PIT", "QEMU alone: port 0x61's timer output is read too seldom by an emulator"),
    ("Speculative Return Stack Overflow:", "QEMU alone: no processor of an emulator has the microcode"),
    (" #", "QEMU alone: the numbers of processors that come up, which continue a line of another level"),
    ("Unstable clock detected", "QEMU alone: an emulator's TSC is not announced as invariant"),
    ("If you want to keep using the local clock", "continues that"),
    ("  \"trace_clock=local\"", "continues that"),
    ("on the kernel command line", "continues that"),
    ("APIC calibration not consistent", "QEMU alone: an emulator's time is that of the machine that runs it"),
    ("hpet: Lost", "QEMU alone: as above"),
    ("mtrr: your CPUs had inconsistent", "QEMU alone: it has no firmware that sets the other processors'"),
    ("acpi resource window", "QEMU alone: its PCI window above 4 GiB, in a kernel without PAE"),
    (
        "RETBleed: WARNING:",
        "QEMU alone with --cpu Skylake-Client: no emulator has what mitigates this on Intel's processors",
    ),
    ("L1TF: Kernel not compiled for PAE", "QEMU alone with --cpu Skylake-Client: a kernel without PAE"),
    ("acpi PNP0A03:00: fail to add MMCONFIG", "QEMU alone with --cpu Skylake-Client: such a PC has no MMCONFIG"),
    ("hrtimer: interrupt took", "a processor waits for its turn on the machine that emulates it"),
    ("i8042: PNP: PS/2 appears to have AUX port disabled", "a VM has no mouse"),
];

/// What runs the stress program with these arguments, and then prints all warnings.
pub(crate) fn script(stress: &str) -> String {
    format!("stress {stress}\nstatus=$?\ndmesg -r | grep '^<[0-4]>'\necho '{NO_MORE_WARNINGS}'\nexit $status\n")
}

/// The first warning on this console that is a finding.
pub(crate) fn unexpected<'l>(lines: impl IntoIterator<Item = &'l str>) -> Option<&'l str> {
    lines
        .into_iter()
        .find(|line| text(line).is_some_and(|text| !ALLOWED.iter().any(|(start, _)| text.starts_with(start))))
}

/// The text of a warning, without its level and time.
fn text(line: &str) -> Option<&str> {
    LEVELS.iter().find(|level| line.starts_with(**level))?;
    let (_, text) = line.trim_end().split_once("] ")?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_findings_but_for_those_that_are_allowed() {
        let allowed = [
            "[    0.1] BUG, which the demands look for",
            "<6>[    0.2] Booting paravirtualized kernel",
            "<4>[    0.598182]  #2",
            "<4>[    5.951516]   \"trace_clock=local\"\r",
            "<3>[    0.059445] Speculative Return Stack Overflow: WARNING: kernel not compiled with CPU_SRSO.",
        ];
        assert_eq!(unexpected(allowed), None);
        for finding in
            ["<4>[    1.0] WARNING: CPU: 0 PID: 1 at arch/x86/x.c:5", "<0>[   12.5] Oops: tsc: Unable to calibrate"]
        {
            assert_eq!(unexpected(allowed.into_iter().chain([finding])), Some(finding));
        }
    }
}
