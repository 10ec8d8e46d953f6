//! Exits for control registers: but for CR8 and changes of the mode, the backend deals with them by itself, and enters the guest again.

use super::control_registers::{self, GeneralProtection};
use super::reason::CrAccess;
use super::vcpu::VmxVcpu;
use crate::translation::Translation;
use vm::{Event, Events, Gpr, Registers};
use x86::vmx::vmcs::{control, guest};

impl<T: Translation> VmxVcpu<T> {
    /// Whether the guest goes on.
    pub(super) fn control_register(&mut self, access: CrAccess) -> bool {
        let done = match access {
            CrAccess::Write { cr: 0, gpr } => {
                let value = self.gpr(Gpr::new(gpr));
                // A change of the mode is carried out by the handlers, as it may need the guest's memory.
                if self.changes_mode(value) {
                    return false;
                }
                self.shadow(control::CR0_READ_SHADOW, value, control_registers::check_cr0(value))
            }
            CrAccess::Write { cr: 3, gpr } => {
                self.set_guest_cr3(self.gpr(Gpr::new(gpr)));
                self.skip()
            }
            CrAccess::Write { cr: 4, gpr } => {
                let value = self.gpr(Gpr::new(gpr));
                self.shadow(control::CR4_READ_SHADOW, value, control_registers::check_cr4(value, self.offered_cr4))
            }
            CrAccess::Read { cr: 3, gpr } => self.store_cr3(gpr),
            // The task priority is not the backend's.
            CrAccess::Write { cr: 8, .. } | CrAccess::Read { cr: 8, .. } => return false,
            // The other registers and forms have no bits that exit.
            _ => Err(GeneralProtection),
        };
        if done.is_err() {
            self.inject(Event::GENERAL_PROTECTION);
        }
        true
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

    fn store_cr3(&mut self, gpr: u8) -> Result<(), GeneralProtection> {
        self.set_gpr(Gpr::new(gpr), self.guest_cr3());
        self.skip()
    }

    /// Has the guest read `value` if that passed its check; then the instruction runs again.
    fn shadow(
        &mut self,
        field: u32,
        value: u64,
        checked: Result<(), GeneralProtection>,
    ) -> Result<(), GeneralProtection> {
        checked?;
        self.vmcs.write(field, value);
        Ok(())
    }

    fn skip(&mut self) -> Result<(), GeneralProtection> {
        vm::retire(self, self.behind());
        Ok(())
    }
}
