//! The guest's state that neither entries nor exits switch, and that the hypervisor does not use: x87 and SSE registers, DR0 to
//! DR3, DR6, CR2, and some MSRs.
//!
//! It stays in the processor across exits. Each CPU has a [`GuestStateOwner`], which tells the vCPU that the state in the
//! processor belongs to. Another vCPU of the CPU saves it before it loads its own (as the kernel's lazy FPU switching did).

pub(crate) mod vector;

use alloc::rc::Rc;
use arch::reset;
use core::arch::asm;
use core::cell::RefCell;
use x86::controlregs::{Cr4, cr2, cr2_write, cr4, cr4_write};
use x86::msr::{rdmsr, wrmsr};

/// The owner of the state in this CPU. Its vCPUs share one of these.
#[derive(Clone, Default)]
pub(crate) struct GuestStateOwner(Rc<RefCell<Option<SharedState>>>);

/// One vCPU's state, current only while another vCPU owns the processor's.
pub(crate) type SharedState = Rc<RefCell<UnswitchedState>>;

impl GuestStateOwner {
    /// Makes the vCPU of `state` the owner: saves the previous owner's state, and loads `state`. False if it was the owner
    /// already.
    pub(crate) fn acquire(&self, state: &SharedState) -> bool {
        let mut owner = self.0.borrow_mut();
        if owner.as_ref().is_some_and(|owner| Rc::ptr_eq(owner, state)) {
            return false;
        }
        if let Some(previous) = owner.replace(Rc::clone(state)) {
            previous.borrow_mut().save();
        }
        state.borrow().load();
        true
    }

    /// Whether every vCPU of this CPU has been dropped.
    pub(crate) fn is_alone(&self) -> bool {
        Rc::strong_count(&self.0) == 1
    }

    /// The vCPU of `state` is dropped: the processor's state has no owner any more, if that was it.
    pub(crate) fn release(&self, state: &SharedState) {
        self.0.borrow_mut().take_if(|owner| Rc::ptr_eq(owner, state));
    }
}

/// FXSAVE's area (Intel SDM vol. 1, section 10.5.1). All the vector state that there is: no guest is offered XSETBV.
#[repr(C, align(16))]
struct Fxsave([u8; 512]);

impl Fxsave {
    /// As FNINIT leaves the x87, and reset MXCSR.
    const fn new() -> Self {
        let mut area = [0; 512];
        [area[0], area[1]] = reset::FCW.to_le_bytes();
        [area[24], area[25], area[26], area[27]] = reset::MXCSR.to_le_bytes();
        Self(area)
    }
}

/// How many MSRs a backend may leave in the processor.
const MSRS: usize = 6;

/// The state of one vCPU.
pub(crate) struct UnswitchedState {
    vector: Fxsave,
    /// DR0 to DR3.
    breakpoints: [u64; 4],
    dr6: u64,
    cr2: u64,
    msrs: &'static [u32],
    values: [u64; MSRS],
}

impl UnswitchedState {
    /// As after reset. `msrs` are the model-specific registers among them, at most [`MSRS`].
    pub(crate) fn new(msrs: &'static [u32]) -> SharedState {
        Rc::new(RefCell::new(Self::after_reset(msrs)))
    }

    const fn after_reset(msrs: &'static [u32]) -> Self {
        Self { vector: Fxsave::new(), breakpoints: [0; 4], dr6: reset::DR6, cr2: 0, msrs, values: [0; MSRS] }
    }

    /// RESET: the registers of the processor, whose owner this state's vCPU is, are as after reset.
    // In this module, whose code alone may touch these registers (`cargo xtask build`).
    #[inline(never)]
    pub(crate) fn power_on(&mut self) {
        *self = Self::after_reset(self.msrs);
        self.load();
    }

    /// Reads the registers of the processor.
    fn save(&mut self) {
        // SAFETY: the area is 512 bytes, aligned to 16; FXSAVE is there in long mode.
        unsafe { asm!("fxsave64 [{}]", in(reg) &raw mut self.vector, options(nostack, preserves_flags)) };
        self.breakpoints = breakpoints();
        self.dr6 = dr6();
        // SAFETY: reading has no effect.
        self.cr2 = unsafe { cr2() } as u64;
        for (value, &register) in self.values.iter_mut().zip(self.msrs) {
            // SAFETY: the backend has seen that the register is there.
            *value = unsafe { rdmsr(register) };
        }
    }

    /// Writes them to the processor.
    ///
    /// AMD's FXRSTOR loads the addresses of the last x87 instruction only with an exception pending (CVE-2006-1056): an
    /// instruction of the hypervisor's takes the place of the previous guest's.
    fn load(&self) {
        // SAFETY: the area is one that FXSAVE has written or could have: nothing reserved is set. The hypervisor has no vector
        // state of its own.
        unsafe {
            asm!(
                "fnclex",
                "emms",
                "fild dword ptr [{0}]",
                "fxrstor64 [{0}]",
                in(reg) &raw const self.vector,
                options(nostack, preserves_flags, readonly)
            );
        }
        set_breakpoints(self.breakpoints);
        set_dr6(self.dr6);
        // SAFETY: the hypervisor takes no page fault that it would survive.
        unsafe { cr2_write(self.cr2) };
        for (&value, &register) in self.values.iter().zip(self.msrs) {
            // SAFETY: the register is there (as above), is not used by the hypervisor, and had this value or has it after reset.
            unsafe { wrmsr(register, value) };
        }
    }
}

/// Does to the processor's registers what INIT does: x87, SSE and MSRs are kept (Intel SDM vol. 3, table 10-1).
pub(crate) fn init() {
    set_breakpoints([0; 4]);
    set_dr6(reset::DR6);
    // SAFETY: the hypervisor takes no page fault that it would survive.
    unsafe { cr2_write(0) };
}

/// Lets FXSAVE have the SSE registers.
pub(crate) fn enable_fxsave() {
    // SAFETY: reading has no effect.
    let cr4 = unsafe { cr4() };
    // SAFETY: every processor with long mode has it; code without vector instructions sees nothing of it.
    unsafe { cr4_write(cr4 | Cr4::CR4_ENABLE_SSE) };
}

/// The loaded vCPU's DR0 to DR3.
pub(crate) fn breakpoints() -> [u64; 4] {
    let (dr0, dr1, dr2, dr3);
    // SAFETY: reading has no effect; an exit has cleared DR7, so it raises nothing.
    unsafe {
        asm!(
            "mov {}, dr0", "mov {}, dr1", "mov {}, dr2", "mov {}, dr3",
            out(reg) dr0, out(reg) dr1, out(reg) dr2, out(reg) dr3,
            options(nomem, nostack, preserves_flags)
        );
    }
    [dr0, dr1, dr2, dr3]
}

fn set_breakpoints([dr0, dr1, dr2, dr3]: [u64; 4]) {
    // SAFETY: without a breakpoint that DR7 enables (exits clear it) the addresses mean nothing.
    unsafe {
        asm!(
            "mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}",
            in(reg) dr0, in(reg) dr1, in(reg) dr2, in(reg) dr3,
            options(nomem, nostack, preserves_flags)
        );
    }
}

/// The loaded vCPU's DR0 to DR3, of which one changes.
pub(crate) fn set_breakpoint(index: usize, address: u64) {
    let mut all = breakpoints();
    if let Some(register) = all.get_mut(index) {
        *register = address;
        set_breakpoints(all);
    }
}

pub(crate) fn dr6() -> u64 {
    let value;
    // SAFETY: reading it has no effect.
    unsafe { asm!("mov {}, dr6", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

pub(crate) fn set_dr6(value: u64) {
    // SAFETY: it only tells of the past; values are those of the processor itself, or what it holds after reset.
    unsafe { asm!("mov dr6, {}", in(reg) value, options(nomem, nostack, preserves_flags)) };
}
