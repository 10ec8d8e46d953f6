//! Exits for control registers: but for CR8, the backend deals with them by itself, and enters the guest again.

use super::control_registers::{self, GeneralProtection};
use super::reason::{self, CrAccess};
use super::unpaged::NotDone;
use super::vcpu::VmxVcpu;
use crate::translation::Translation;
use vm::{Event, Events, Gpr, Registers};
use x86::vmx::vmcs::{control, guest};

impl<T: Translation> VmxVcpu<T> {
    /// Whether the guest goes on.
    pub(super) fn control_register(&mut self, access: CrAccess) -> bool {
        let done = match access {
            CrAccess::Write { cr: 0, gpr } => self.load_cr0(self.gpr(Gpr::new(gpr))),
            CrAccess::Write { cr: 3, gpr } => self.load_cr3(self.gpr(Gpr::new(gpr))),
            CrAccess::Write { cr: 4, gpr } => {
                let value = self.gpr(Gpr::new(gpr));
                self.shadow(control::CR4_READ_SHADOW, value, control_registers::check_cr4(value, self.offered_cr4))
            }
            CrAccess::Read { cr: 3, gpr } => self.store_cr3(gpr),
            // The task priority is not the backend's.
            CrAccess::Write { cr: 8, .. } | CrAccess::Read { cr: 8, .. } => return false,
            // The other registers and forms have no bits that exit.
            _ => Err(NotDone::GeneralProtection),
        };
        match done {
            Ok(()) => true,
            Err(NotDone::GeneralProtection) => {
                self.inject(Event::GENERAL_PROTECTION);
                true
            }
            Err(NotDone::NeedsPdptes) => {
                self.needs_pdptes = true;
                false
            }
        }
    }

    fn load_cr0(&mut self, value: u64) -> Result<(), NotDone> {
        let checked = control_registers::check_cr0(value);
        if checked.is_ok() && self.changes_mode(value) {
            self.change_mode(value, None)?;
            return self.skip();
        }
        self.shadow(control::CR0_READ_SHADOW, value, checked)
    }

    fn load_cr3(&mut self, value: u64) -> Result<(), NotDone> {
        self.set_guest_cr3(value);
        self.skip()
    }

    /// The general register of the MOV to CR0 that has exited.
    pub(super) fn operand_of_exit(&self) -> u64 {
        match reason::cr_access(self.qualification()) {
            CrAccess::Write { gpr, .. } => self.gpr(Gpr::new(gpr)),
            _ => self.guest_cr0(),
        }
    }

    pub(super) fn set_guest_cr3(&mut self, value: u64) {
        if self.change_own_controls(|controls| controls.cr3 = value) {
            return;
        }
        match &mut self.unpaged {
            Some(unpaged) => unpaged.cr3 = value,
            None => self.vmcs.write(guest::CR3, value),
        }
    }

    fn store_cr3(&mut self, gpr: u8) -> Result<(), NotDone> {
        self.set_gpr(Gpr::new(gpr), self.guest_cr3());
        self.skip()
    }

    /// Has the guest read `value` if that passed its check; then the instruction runs again.
    fn shadow(&mut self, field: u32, value: u64, checked: Result<(), GeneralProtection>) -> Result<(), NotDone> {
        checked?;
        self.vmcs.write(field, value);
        Ok(())
    }

    fn skip(&mut self) -> Result<(), NotDone> {
        vm::retire(self, self.behind());
        Ok(())
    }
}
