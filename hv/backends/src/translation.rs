//! How the processor translates a vCPU's addresses: in two stages (nested paging), or by shadow tables.

use addr::Hpa;
use shadow::Registers;
use walk::{Controls, Features};

/// A vCPU's state for its kind of translation. The kind is a type parameter, so the exit path of nested paging has no test for
/// shadow paging.
pub trait Translation {
    /// The state of shadow paging; None with nested paging.
    fn shadow(&self) -> Option<&Shadow>;
    /// The same, mutable.
    fn shadow_mut(&mut self) -> Option<&mut Shadow>;
}

/// Nested paging (EPT or NPT): the processor holds the guest's own paging registers.
pub struct Nested;

/// Shadow paging: the processor walks shadow tables, and the guest's own paging registers are here.
pub struct Shadow {
    pub(crate) own: Registers,
    /// The root of the shadow tables.
    pub(crate) root: Hpa,
}

impl Shadow {
    /// A vCPU's with these features, that has not started.
    pub(crate) const fn new(root: Hpa, features: Features) -> Self {
        Self { own: Registers::new(features), root }
    }

    /// What the processor's registers must be.
    pub(crate) fn host(&self) -> Controls {
        Controls { cr3: self.root.raw(), ..self.own.host() }
    }
}

impl Translation for Nested {
    #[inline]
    fn shadow(&self) -> Option<&Shadow> {
        None
    }

    #[inline]
    fn shadow_mut(&mut self) -> Option<&mut Shadow> {
        None
    }
}

impl Translation for Shadow {
    #[inline]
    fn shadow(&self) -> Option<&Shadow> {
        Some(self)
    }

    #[inline]
    fn shadow_mut(&mut self) -> Option<&mut Shadow> {
        Some(self)
    }
}
