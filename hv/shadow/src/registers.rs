//! The registers that a guest's paging depends on, and the effects of writing them.

use arch::{
    CR0_CD, CR0_NW, CR0_PG, CR0_WP, CR4_PAE, CR4_PGE, CR4_PSE, CR4_SMAP, CR4_SMEP, EFER_LMA, EFER_LME, EFER_NXE,
};
use core::error::Error;
use core::fmt;
use walk::{Controls, Features, Mode, Paging, PdpteError, PhysMem, load_pdptes};

/// Bits 31:12, with two levels.
const CR3_FRAME: u64 = 0xffff_f000;

/// Bits whose change loads the PDPTEs, if PAE paging is on afterwards (SDM vol. 3, 4.4.1).
const LOAD_CR0: u64 = CR0_CD | CR0_NW | CR0_PG;
const LOAD_CR4: u64 = CR4_PAE | CR4_PGE | CR4_PSE | CR4_SMEP;
/// Bits that the meaning of the guest's entries depends on, and so the content of shadow entries.
const MEANING_CR0: u64 = CR0_PG | CR0_WP;
const MEANING_CR4: u64 = CR4_PSE | CR4_PAE | CR4_SMEP | CR4_SMAP;

/// A vCPU's paging registers: the control registers as the guest has them, and the PDPTEs as they were loaded last.
#[derive(Clone, Debug)]
pub struct Registers {
    paging: Paging,
}

/// The identity of an address space, as a shadow caches it: where the guest's tables are, and what their entries mean.
///
/// Features are not a part: all vCPUs of a guest have the same [`Features`].
#[derive(Clone, Copy, Debug, Eq)]
pub(crate) struct Context {
    /// The bits of CR0, CR4 and EFER that the meaning of entries depends on, which are all different bits.
    meaning: u64,
    /// The PDPTEs; or CR3's frame, with two levels.
    root: [u64; 4],
}

/// Without branches: a load of CR3 compares with each cached context, and most of these differ in one word only.
impl PartialEq for Context {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        let ([a, b, c, d], [e, f, g, h]) = (self.root, other.root);
        (self.meaning ^ other.meaning) | (a ^ e) | (b ^ f) | (c ^ g) | (d ^ h) == 0
    }
}

impl Context {
    /// The context of a vCPU without paging.
    pub(crate) const UNPAGED: Self = Self { meaning: 0, root: [0; 4] };
}

/// The effect of a register write on translations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the shadow must load a new context"]
pub enum Change {
    /// Translations stay valid.
    None,
    /// The guest has another address space, or has flushed its TLB: call the shadow's `load`.
    Context,
}

/// Why a register can't be written. The registers are unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadError {
    /// The write loads PDPTEs, and they are invalid (the guest gets #GP(0)) or not in memory.
    Pdptes(PdpteError),
    /// The write enables long mode, which is not supported with shadow paging.
    LongMode,
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pdptes(PdpteError::Reserved) => f.write_str("a PDPTE has a reserved bit set"),
            Self::Pdptes(PdpteError::Unbacked(gpa)) => write!(f, "there is no memory at {gpa} for the PDPTEs"),
            Self::LongMode => f.write_str("long mode is not supported with shadow paging"),
        }
    }
}

impl Error for LoadError {}

impl Registers {
    /// The registers after a reset: no paging.
    pub const fn new(features: Features) -> Self {
        Self { paging: Paging { controls: Controls { cr0: 0, cr3: 0, cr4: 0, efer: 0 }, pdptes: None, features } }
    }

    /// Resets the registers, for INIT or a SIPI: no paging.
    pub fn reset(&mut self, cr0: u64) {
        self.paging.controls = Controls { cr0: cr0 & !CR0_PG, cr3: 0, cr4: 0, efer: 0 };
        self.paging.pdptes = None;
    }

    /// Changes the registers while paging is off; CR0.PG stays clear.
    pub fn write_unpaged(&mut self, change: impl FnOnce(&mut Controls)) {
        change(&mut self.paging.controls);
        self.paging.controls.cr0 &= !CR0_PG;
        self.paging.pdptes = None;
    }

    /// The guest writes CR3. Any value is allowed.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn write_cr3<M: PhysMem>(&mut self, mem: &M, cr3: u64) -> Result<Change, LoadError> {
        self.load(mem, Controls { cr3, ..self.paging.controls }, true)?;
        Ok(Change::Context)
    }

    /// The guest writes CR0, CR4 or EFER, or several registers at once (a task switch, a reset), which become `controls`. CR3 may
    /// change as well; but for MOV to CR3 use [`write_cr3`](Self::write_cr3), which loads even if the value is the same.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn write<M: PhysMem>(&mut self, mem: &M, controls: Controls) -> Result<Change, LoadError> {
        let old = self.paging.controls;
        let (cr0, cr4) = (old.cr0 ^ controls.cr0, old.cr4 ^ controls.cr4);
        let load = cr0 & LOAD_CR0 | cr4 & LOAD_CR4 | (old.cr3 ^ controls.cr3) != 0;
        self.load(mem, controls, load)?;
        // A change of CR4.PGE flushes the TLB (SDM vol. 3, 4.10.4.1): it is in `LOAD_CR4`.
        let changed = load || cr0 & MEANING_CR0 | cr4 & MEANING_CR4 | (old.efer ^ controls.efer) & EFER_NXE != 0;
        Ok(if changed { Change::Context } else { Change::None })
    }

    fn load<M: PhysMem>(&mut self, mem: &M, controls: Controls, pdptes: bool) -> Result<(), LoadError> {
        let paging = &mut self.paging;
        match controls.mode() {
            Mode::Off | Mode::Bits32 => paging.pdptes = None,
            Mode::Pae if pdptes => {
                let pdptes = load_pdptes(mem, &Paging { controls, ..*paging }).map_err(LoadError::Pdptes)?;
                paging.pdptes = Some(pdptes);
            }
            // They were loaded when the mode became this one.
            Mode::Pae => {}
            Mode::Long4 | Mode::Long5 => return Err(LoadError::LongMode),
        }
        paging.controls = controls;
        Ok(())
    }

    /// The registers as walks of the guest's tables need them.
    pub const fn paging(&self) -> &Paging {
        &self.paging
    }

    /// The processor's registers while it walks the shadow, except for CR3. Bits that paging does not depend on are the
    /// guest's.
    ///
    /// Paging is on, with PAE, NX and CR0.WP. If the guest's paging is off, SMEP and SMAP are off as well, because all shadow
    /// entries are user pages then.
    pub const fn host(&self) -> Controls {
        let Controls { cr0, cr3, cr4, efer } = self.paging.controls;
        let off = if cr0 & CR0_PG == 0 { CR4_SMEP | CR4_SMAP } else { 0 };
        Controls {
            cr0: cr0 | CR0_PG | CR0_WP,
            cr3,
            cr4: (cr4 | CR4_PAE) & !(CR4_PGE | off),
            efer: (efer | EFER_NXE) & !(EFER_LME | EFER_LMA),
        }
    }

    pub(crate) fn context(&self) -> Context {
        match self.meaning() {
            0 => Context::UNPAGED,
            meaning => {
                let root = self.paging.pdptes.unwrap_or([self.paging.controls.cr3 & CR3_FRAME, 0, 0, 0]);
                Context { meaning, root }
            }
        }
    }

    /// [`Context::meaning`]: 0 without paging, otherwise with CR0.PG.
    pub(crate) const fn meaning(&self) -> u64 {
        let Controls { cr0, cr4, efer, .. } = self.paging.controls;
        match cr0 & CR0_PG {
            0 => 0,
            _ => cr0 & MEANING_CR0 | cr4 & MEANING_CR4 | efer & EFER_NXE,
        }
    }

    pub(crate) const fn smep(&self) -> bool {
        self.paging.controls.cr4 & CR4_SMEP != 0
    }

    pub(crate) const fn smap(&self) -> bool {
        self.paging.controls.cr4 & CR4_SMAP != 0
    }
}
