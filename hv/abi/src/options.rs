//! The words of a VM on the hypervisor's command line: `vm=KEY=VALUE,…`.

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
