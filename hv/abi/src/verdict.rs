//! How runs end.

use crate::numbered::numbered;

numbered! {
    /// What a guest reports of itself. The number is what it writes to the [exit port](crate::ports::DEBUG_EXIT), where 0 is success
    /// and anything else a failure; a program under Linux exits with it.
    #[must_use]
    pub enum GuestStatus: u8 {
        /// All tests passed.
        Passed = 0, "passed";
        /// A test failed.
        Failed = 1, "failed";
        /// The guest's command line makes no sense.
        Usage = 2, "usage";
        /// The guest itself broke down: a panic, an unexpected exception, no boot information.
        Panicked = 3, "panicked";
    }
}

numbered! {
    /// How a run ended. The number is what the hypervisor writes to the [exit port](crate::ports::DEBUG_EXIT), and the exit status
    /// of `cargo xtask run`. README has the same table.
    pub enum Verdict: u8 {
        /// The guest reported success.
        Pass = 0, "pass";
        /// The guest reported failure.
        GuestFailed = 1, "guest-failed";
        /// The hypervisor's command line makes no sense.
        Usage = 2, "usage";
        /// The guest shut down by a triple fault.
        GuestTripleFault = 3, "guest-triple-fault";
        /// The guest did what can't be handled, or can never run again.
        GuestKilled = 4, "guest-killed";
        /// The hypervisor panicked.
        HvPanic = 5, "hv-panic";
        /// The machine was reset or shut down without a verdict: `xtask`'s conclusion, never printed by the hypervisor.
        HvTripleFault = 6, "hv-triple-fault";
        /// The machine lacks what the hypervisor needs.
        NoVirtualization = 7, "no-virtualization";
        /// The guest's image was refused.
        BadImage = 8, "bad-image";
        /// Frames were missing after the VM's end.
        Leak = 9, "leak";
        /// The emulator ended in some other way, without a verdict: `xtask`'s conclusion, never printed by the hypervisor.
        Unknown = 10, "no-verdict";
        /// The machine has too little memory for the VMs, or for one: known before that started.
        NoMemory = 11, "no-memory";
        /// The guest ran past its limit, or the machine past its time-out.
        Hang = 124, "hang";
    }
}

impl Verdict {
    /// Of the ends of all VMs, in their order, that which the run ends with: the first that is no pass, or else the first.
    pub fn overall<T>(ends: impl IntoIterator<Item = T>, of: impl Fn(&T) -> Self) -> Option<T> {
        let mut first = None;
        for end in ends {
            if of(&end) != Self::Pass {
                return Some(end);
            }
            first = first.or(Some(end));
        }
        first
    }

    /// The exit status.
    #[must_use]
    pub const fn status(self) -> u8 {
        self as u8
    }
}
