//! The words of command lines: a VM's on the hypervisor's, `vm=KEY=VALUE,…`, and the test guests' own.

/// The word that begins a VM's keys.
pub const VM: &str = "vm";

/// The most vCPUs of one VM.
pub const MAX_VCPUS: u32 = 16;

/// The keys.
pub mod key {
    /// What the VM is called on the console.
    pub const NAME: &str = "name";
    /// The number of its vCPUs.
    pub const VCPUS: &str = "vcpus";
    /// How its memory is translated: one of [`paging`](super::paging).
    pub const PAGING: &str = "paging";
    /// The size of its memory.
    pub const SIZE: &str = "mem";
    /// When its memory gets frames: one of [`memory`](super::memory).
    pub const MEMORY: &str = "memory";
    /// The largest page that maps its memory: one of [`pages`](super::pages).
    pub const PAGES: &str = "pages";
    /// Whether it gets what the machine receives on COM1: one of [`input`](super::input).
    pub const INPUT: &str = "input";
    /// The features that its processors lack, each after a `-`, and those that they must have, after a `+`.
    pub const CPUID: &str = "cpuid";
    /// The number of its modules.
    pub const MODULES: &str = "modules";
    /// Seconds after which it ends as hung; 0 is never.
    pub const LIMIT: &str = "limit";
}

/// How a VM's memory is translated.
pub mod paging {
    /// By EPT or NPT.
    pub const NESTED: &str = "nested";
    /// By shadows of its page tables.
    pub const SHADOW: &str = "shadow";
    /// By shadows of its page tables that are dropped at each load of CR3.
    pub const VTLB: &str = "vtlb";
}

/// When a VM's memory gets frames.
pub mod memory {
    /// Page by page, when the guest first touches it.
    pub const TOUCH: &str = "touch";
    /// Before the guest starts.
    pub const RESERVE: &str = "reserve";
}

/// The largest page that maps a VM's memory.
pub mod pages {
    /// 4 KiB.
    pub const SMALL: &str = "4k";
    /// 2 MiB.
    pub const LARGE: &str = "2m";
}

/// Whether a VM gets what the machine receives on COM1.
pub mod input {
    /// It does. One VM at most.
    pub const ON: &str = "on";
    /// It does not.
    pub const OFF: &str = "off";
}

/// Words for the test guests, in their own command lines. Most are followed by a value: `--seed 7`.
pub mod guest {
    /// All that the guest tries follows from this number.
    pub const SEED: &str = "--seed";
    /// The guest ends after so many seconds.
    pub const SECONDS: &str = "--seconds";
    /// Each processor of the guest ends after so many steps.
    pub const STEPS: &str = "--ops";
    /// The hypervisor leaves out the flush of this [`FlushPoint`](crate::hypercall::FlushPoint).
    pub const SKIP_FLUSH: &str = "--skip-flush";
    /// What a hostile guest's inputs run in: one of [`mode`].
    pub const MODE: &str = "--mode";
    /// A hostile guest tries so many inputs.
    pub const INPUTS: &str = "--inputs";
    /// The hostile guest's page tables are shadowed: it has no long mode.
    pub const SHADOWED: &str = "--shadowed";
    /// The hostile guest enters no task by a gate.
    pub const WITHOUT_TASK_GATES: &str = "--without-task-gates";
    /// The guest goes on until the hypervisor ends it.
    pub const DIE: &str = "--die";

    /// All of them.
    pub const ALL: [&str; 9] = [SEED, SECONDS, STEPS, SKIP_FLUSH, MODE, INPUTS, SHADOWED, WITHOUT_TASK_GATES, DIE];

    /// What a hostile guest's inputs run in.
    pub mod mode {
        /// Real mode.
        pub const REAL: &str = "real";
        /// Protected mode, with two levels of page tables.
        pub const P32: &str = "p32";
        /// Protected mode, with PAE.
        pub const PAE: &str = "pae";
        /// 64-bit mode.
        pub const LONG: &str = "long";
        /// User mode, with each kind of page tables.
        pub const RING3: &str = "ring3";
    }
}
