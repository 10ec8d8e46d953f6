//! Breakpoints, which a guest must not set on QEMU.
//!
//! QEMU (as of 7.2) keeps a guest's breakpoints over an exit, and compares data breakpoints with physical addresses, too: it loads
//! and stores the VMCB's segments by accesses to memory whose address space has no translation (`svm_load_seg_cache` with
//! `MMU_PHYS_IDX`). Where a breakpoint names the VMCB or the host-save area, `do_vmexit` (svm_helper.c, line 851) is left by
//! `cpu_check_watchpoint` (physmem.c, line 955) between the host's CR3 and the host's RIP: the processor fetches at the guest's RIP
//! from the hypervisor's tables, and shuts down. Four instructions of any guest were enough for that.
//!
//! There MOV to DR0 to DR3 and DR7 exits, and the registers get their values by ways on which QEMU sets no breakpoint: VMRUN's,
//! for DR7, and MOV while the host's DR7 is loaded, for the others. The guest reads what it wrote, and no breakpoint is met.

use super::SvmVcpu;
use crate::translation::Translation;
use crate::unswitched;

impl<T: Translation> SvmVcpu<T> {
    /// DR0 to DR3 or DR7 is `value` from now on.
    pub(super) fn load_debug_register(&mut self, register: u8, value: u64) {
        if register == 7 {
            self.vmcb.save.dr7 = value;
        } else {
            unswitched::set_breakpoint(register.into(), value);
        }
    }
}
