//! The emulated machines that tests and measurements are made on.

use super::Emulator;
use super::bochs::{self, Bochs};
use super::qemu::{Engine, Qemu};
use crate::setup::{self, Tool};
use anyhow::Result;
use clap::ValueEnum;
use std::fmt;

/// An emulator without KVM, and the virtualization that its processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Host {
    /// QEMU: SVM
    #[value(alias = "qemu")]
    QemuSvm,
    /// Bochs as an Intel processor: VMX
    BochsVmx,
    /// Bochs as an AMD processor: SVM with next-RIP save
    BochsSvm,
}

impl Host {
    /// The name on command lines and in reports.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::QemuSvm => "qemu-svm",
            Self::BochsVmx => "bochs-vmx",
            Self::BochsSvm => "bochs-svm",
        }
    }

    /// Its emulator, with the usual processor.
    pub(crate) fn emulator(self) -> Emulator {
        match self {
            Self::QemuSvm => Emulator::Qemu(Qemu::new(Engine::Tcg, None)),
            Self::BochsVmx => Emulator::Bochs(Bochs::new(bochs::VMX_CPU)),
            Self::BochsSvm => Emulator::Bochs(Bochs::new(bochs::SVM_CPU)),
        }
    }

    /// Gets the emulator where it is missing.
    pub(crate) fn ensure(self) -> Result<()> {
        setup::ensure(match self {
            Self::QemuSvm => Tool::Qemu,
            Self::BochsVmx | Self::BochsSvm => Tool::Bochs,
        })
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_one_name() {
        for host in Host::value_variants() {
            assert_eq!(host.to_possible_value().unwrap().get_name(), host.name());
        }
    }
}
