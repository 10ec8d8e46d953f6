//! Who translates a vCPU's addresses: the processor in two stages, or a shadow of the guest's tables.

use addr::Hpa;
use shadow::Registers;
use walk::{Controls, Features};

/// What a vCPU keeps for it. The question is answered by the type, so exits of the one kind have no test for the other.
pub trait Translation {
    /// The shadow's part, if there is one.
    fn shadow(&self) -> Option<&Shadow>;
    /// The same, to be changed.
    fn shadow_mut(&mut self) -> Option<&mut Shadow>;
}

/// EPT or NPT: the guest's paging registers are in the processor.
pub struct Nested;

/// The processor walks a shadow; the guest's own registers are here.
pub struct Shadow {
    pub(crate) own: Registers,
    /// Where the processor's walks start.
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
