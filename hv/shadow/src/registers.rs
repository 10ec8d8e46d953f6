//! The registers that a guest's paging depends on, as the guest has them, and what follows when it writes them.

use walk::{Controls, Features, Mode, Paging, PdpteError, PhysMem, load_pdptes};

const CR0_WP: u64 = 1 << 16;
const CR0_NW: u64 = 1 << 29;
const CR0_CD: u64 = 1 << 30;
const CR0_PG: u64 = 1 << 31;
/// Bits 31:12, with two levels.
const CR3_FRAME: u64 = 0xffff_f000;
const CR4_PSE: u64 = 1 << 4;
const CR4_PAE: u64 = 1 << 5;
const CR4_PGE: u64 = 1 << 7;
const CR4_SMEP: u64 = 1 << 20;
const CR4_SMAP: u64 = 1 << 21;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const EFER_NXE: u64 = 1 << 11;

/// Bits whose change loads the PDPTEs, if PAE paging is on afterwards (SDM vol. 3, 4.4.1).
const LOAD_CR0: u64 = CR0_CD | CR0_NW | CR0_PG;
const LOAD_CR4: u64 = CR4_PAE | CR4_PGE | CR4_PSE | CR4_SMEP;
/// Bits that change what a shadow entry has to be.
const MEANING_CR0: u64 = CR0_PG | CR0_WP;
const MEANING_CR4: u64 = CR4_PSE | CR4_PAE | CR4_SMEP | CR4_SMAP;

/// A vCPU's paging registers: control registers, and the PDPTEs that a processor holds since they were loaded.
#[derive(Clone, Debug)]
pub struct Registers {
    paging: Paging,
}

/// What the shadow of an address space depends on: where its tables are, and what their entries mean.
///
/// All vCPUs of a guest have the same [`Features`].
#[derive(Clone, Copy, Debug, Eq)]
pub(crate) struct Context {
    /// What entries mean, wherever they are: bits of CR0, CR4 and EFER, of which no two are the same.
    meaning: u64,
    /// The PDPTEs, or CR3's frame.
    root: [u64; 4],
}

/// All at once: each load of CR3 compares with many, of which most differ in one word.
impl PartialEq for Context {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        let ([a, b, c, d], [e, f, g, h]) = (self.root, other.root);
        (self.meaning ^ other.meaning) | (a ^ e) | (b ^ f) | (c ^ g) | (d ^ h) == 0
    }
}

impl Context {
    /// Of a vCPU without paging.
    pub(crate) const UNPAGED: Self = Self { meaning: 0, root: [0; 4] };
}

/// What a write of a register has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the shadow has to be told of a new context"]
pub enum Change {
    /// Nothing that translations depend on.
    None,
    /// Translations from before are not used any more: tell the shadow, by its `load`.
    Context,
}

/// Why a register can't be written. The registers are as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadError {
    /// The PDPTEs that it would load: the guest gets #GP(0), or there is no memory.
    Pdptes(PdpteError),
    /// Long mode, which has no shadow here.
    LongMode,
}

impl Registers {
    /// As after a processor's reset: no paging.
    pub const fn new(features: Features) -> Self {
        Self { paging: Paging { controls: Controls { cr0: 0, cr3: 0, cr4: 0, efer: 0 }, pdptes: None, features } }
    }

    /// The registers after INIT or a start: no paging.
    pub fn reset(&mut self, cr0: u64) {
        self.paging.controls = Controls { cr0: cr0 & !CR0_PG, cr3: 0, cr4: 0, efer: 0 };
        self.paging.pdptes = None;
    }

    /// Changes them while there is no paging; CR0.PG stays clear.
    pub fn write_unpaged(&mut self, change: impl FnOnce(&mut Controls)) {
        change(&mut self.paging.controls);
        self.paging.controls.cr0 &= !CR0_PG;
        self.paging.pdptes = None;
    }

    /// The guest writes CR3, with whatever value.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn write_cr3<M: PhysMem>(&mut self, mem: &M, cr3: u64) -> Result<Change, LoadError> {
        self.load(mem, Controls { cr3, ..self.paging.controls }, true)?;
        Ok(Change::Context)
    }

    /// The guest writes CR0, CR4 or EFER, or several at once (a task switch, a reset): they are `controls` from now on. CR3
    /// may be among them where it is not written by the guest; a guest's write of CR3 is [`write_cr3`](Self::write_cr3).
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn write<M: PhysMem>(&mut self, mem: &M, controls: Controls) -> Result<Change, LoadError> {
        let old = self.paging.controls;
        let (cr0, cr4) = (old.cr0 ^ controls.cr0, old.cr4 ^ controls.cr4);
        let load = cr0 & LOAD_CR0 | cr4 & LOAD_CR4 | (old.cr3 ^ controls.cr3) != 0;
        self.load(mem, controls, load)?;
        // A change of PGE flushes (SDM vol. 3, 4.10.4.1).
        let changed = load || cr0 & MEANING_CR0 | cr4 & MEANING_CR4 | (old.efer ^ controls.efer) & EFER_NXE != 0;
        Ok(if changed { Change::Context } else { Change::None })
    }

    fn load<M: PhysMem>(&mut self, mem: &M, controls: Controls, pdptes: bool) -> Result<(), LoadError> {
        let paging = &mut self.paging;
        match controls.mode() {
            Mode::Off | Mode::Bits32 => paging.pdptes = None,
            Mode::Pae if pdptes || paging.pdptes.is_none() => {
                let pdptes = load_pdptes(mem, &Paging { controls, ..*paging }).map_err(LoadError::Pdptes)?;
                paging.pdptes = Some(pdptes);
            }
            Mode::Pae => {}
            Mode::Long4 | Mode::Long5 => return Err(LoadError::LongMode),
        }
        paging.controls = controls;
        Ok(())
    }

    /// What walks of the guest's tables go by.
    pub const fn paging(&self) -> &Paging {
        &self.paging
    }

    /// What the processor's registers must be, apart from CR3, for it to walk a shadow in the place of the guest's tables: in
    /// the bits that paging depends on; all others are the guest's.
    ///
    /// Paging is on, PAE with NX, and read-only pages are read-only for the supervisor, too. Without paging the guest has
    /// neither SMEP nor SMAP: all of its pages are user pages then.
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

    /// [`Context::meaning`]: CR0.PG and others; none without paging.
    pub(crate) const fn meaning(&self) -> u64 {
        let Controls { cr0, cr4, efer, .. } = self.paging.controls;
        match cr0 & CR0_PG {
            0 => 0,
            _ => cr0 & MEANING_CR0 | cr4 & MEANING_CR4 | efer & EFER_NXE,
        }
    }

    pub(crate) const fn wp(&self) -> bool {
        self.paging.controls.cr0 & CR0_WP != 0
    }

    pub(crate) const fn smep(&self) -> bool {
        self.paging.controls.cr4 & CR4_SMEP != 0
    }

    pub(crate) const fn smap(&self) -> bool {
        self.paging.controls.cr4 & CR4_SMAP != 0
    }
}
