//! What the hypervisor says about a VM: whole lines, which name the VM if there are several.

use crate::console;
use abi::wire;
use alloc::boxed::Box;
use alloc::string::ToString;
use core::alloc::Layout;
use core::fmt;
use loader::VmName;
use serial::Producer;
use spin::Mutex;

/// A guest's console.
pub(super) use crate::console::Output as Console;

/// The hypervisor's lines about one VM.
pub(super) struct VmLog {
    queue: Mutex<Producer>,
    prefix: Box<str>,
}

impl VmLog {
    /// Prints a text of one or several lines. Nothing is allocated.
    pub(super) fn report(&self, text: &dyn fmt::Display) {
        console::report_to(&mut self.queue.lock(), &self.prefix, text);
    }
}

/// What [`console()`] allocates.
pub(super) fn allocations() -> impl Iterator<Item = Layout> {
    console::vm_allocations().chain([Layout::new::<[u8; PREFIX]>()])
}

/// The prefix of a VM's lines, in bytes at most: `hv: `, its name, and `: `, in a string that has grown.
const PREFIX: usize = 64;

/// A console for a VM, and the hypervisor's words about it. `input`: it gets what the machine receives.
pub(super) fn console(name: Option<VmName>, input: bool) -> (Console, VmLog) {
    let name = name.as_ref().map(VmName::as_str);
    let (console, queue) = console::add_vm(name, input);
    let prefix = wire::Own(name).to_string().into();
    (console, VmLog { queue: Mutex::new(queue), prefix })
}
