//! Names of the exceptions (Intel SDM vol. 3, table 6-1; AMD APM vol. 2, table 8-1).

/// The name of vector 8.
pub const DOUBLE_FAULT: &str = "#DF double fault";
/// The name of vector 14.
pub const PAGE_FAULT: &str = "#PF page fault";

const NAMES: [&str; 32] = [
    "#DE divide error",
    "#DB debug",
    "NMI",
    "#BP breakpoint",
    "#OF overflow",
    "#BR bound range",
    "#UD invalid opcode",
    "#NM device not available",
    DOUBLE_FAULT,
    "coprocessor segment overrun",
    "#TS invalid TSS",
    "#NP segment not present",
    "#SS stack fault",
    "#GP general protection",
    PAGE_FAULT,
    "reserved",
    "#MF x87 error",
    "#AC alignment check",
    "#MC machine check",
    "#XM SIMD error",
    "#VE virtualization",
    "#CP control protection",
    "reserved",
    "reserved",
    "reserved",
    "reserved",
    "reserved",
    "reserved",
    "#HV hypervisor injection",
    "#VC VMM communication",
    "#SX security",
    "reserved",
];

/// The name of the exception with this vector; None if the vector is an interrupt's.
///
/// ```
/// use arch::exceptions::{self, PAGE_FAULT};
///
/// assert_eq!(exceptions::name(14), Some(PAGE_FAULT));
/// assert_eq!(exceptions::name(32), None);
/// ```
#[must_use]
pub fn name(vector: u64) -> Option<&'static str> {
    NAMES.get(usize::try_from(vector).ok()?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_begin_with_the_manuals_mnemonics() {
        for (vector, exception) in (0..).zip(&x86::irq::EXCEPTIONS) {
            assert!(name(vector).unwrap().starts_with(exception.mnemonic), "{exception}");
        }
        assert_eq!(name(u64::MAX), None);
    }

    #[test]
    fn a_name_is_one_exceptions() {
        for (vector, exception) in NAMES.iter().enumerate().filter(|(_, name)| **name != "reserved") {
            assert_eq!(NAMES.iter().position(|other| other == exception), Some(vector));
        }
    }
}
