//! Exits for control registers: the backend deals with them by itself, and enters the guest again.

use super::control_registers::{self, Refused};
use super::reason::CrAccess;
use super::unpaged::NotDone;
use super::vcpu::VmxVcpu;
use vm::{Event, Gpr, Registers, Vcpu};
use x86::vmx::vmcs::{control, guest};

impl VmxVcpu {
    /// Whether the guest goes on.
    pub(super) fn control_register(&mut self, access: CrAccess) -> bool {
        let done = match access {
            CrAccess::Write { cr: 0, gpr } => self.load_cr0(self.gpr(Gpr::new(gpr))),
            CrAccess::Write { cr: 3, gpr } => self.load_cr3(self.gpr(Gpr::new(gpr))),
            CrAccess::Write { cr: 4, gpr } => {
                let value = self.gpr(Gpr::new(gpr));
                self.shadow(control::CR4_READ_SHADOW, value, control_registers::check_cr4(value))
            }
            CrAccess::Write { cr: 8, gpr } => self.write_cr8(self.gpr(Gpr::new(gpr))),
            CrAccess::Read { cr: 3, gpr } => self.read_into(gpr, self.guest_cr3()),
            CrAccess::Read { cr: 8, gpr } => self.read_into(gpr, self.cr8),
            // The other registers and forms have no bits that exit.
            _ => Err(NotDone::Refused),
        };
        match done {
            Ok(()) => true,
            Err(NotDone::Refused) => {
                self.inject(Event::GENERAL_PROTECTION);
                true
            }
            Err(NotDone::Unsupported(what)) => {
                self.unsupported = Some(what);
                false
            }
        }
    }

    fn load_cr0(&mut self, value: u64) -> Result<(), NotDone> {
        let checked = control_registers::check_cr0(value);
        if checked.is_ok() && self.changes_mode(value) {
            self.change_mode(value)?;
            return self.skip();
        }
        self.shadow(control::CR0_READ_SHADOW, value, checked)
    }

    fn load_cr3(&mut self, value: u64) -> Result<(), NotDone> {
        match &mut self.unpaged {
            Some(unpaged) => unpaged.cr3 = value,
            None => self.vmcs.write(guest::CR3, value),
        }
        self.skip()
    }

    fn write_cr8(&mut self, value: u64) -> Result<(), NotDone> {
        if value > 15 {
            return Err(NotDone::Refused);
        }
        self.cr8 = value;
        self.skip()
    }

    fn read_into(&mut self, gpr: u8, value: u64) -> Result<(), NotDone> {
        self.set_gpr(Gpr::new(gpr), value);
        self.skip()
    }

    /// Has the guest read `value` if that passed its check; then the instruction runs again.
    fn shadow(&mut self, field: u32, value: u64, checked: Result<(), Refused>) -> Result<(), NotDone> {
        checked?;
        self.vmcs.write(field, value);
        Ok(())
    }

    fn skip(&mut self) -> Result<(), NotDone> {
        self.resume_at(self.behind());
        Ok(())
    }
}
