//! Which CPUs of a machine run guests.

/// How many of `cpus` CPUs run no guests, counted from CPU 0: one where QEMU emulates SVM, unless it is the only one. Other CPUs can
/// undo a change of the boot CPU's flags there.
///
/// ```
/// use abi::cpus::spared_cpus;
/// assert_eq!([spared_cpus(true, 1), spared_cpus(true, 2), spared_cpus(false, 2)], [0, 1, 0]);
/// ```
#[must_use]
pub const fn spared_cpus(is_qemu_emulation: bool, cpus: usize) -> usize {
    if is_qemu_emulation && cpus > 1 { 1 } else { 0 }
}
