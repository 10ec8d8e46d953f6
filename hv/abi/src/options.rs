//! The words of command lines: a VM's on the hypervisor's, `vm=KEY=VALUE,…`, and the test guests' own.

use core::fmt;

/// Words of which one is expected, as an error names them.
///
/// ```
/// use abi::options::{self, OneOf};
///
/// assert_eq!(OneOf(&options::paging::ALL, "").to_string(), "nested, shadow or vtlb");
/// assert_eq!(OneOf(&options::ALL, "=…").to_string(), "log=…, vm=…, selftest=… or watchdog=…");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OneOf(
    /// The words.
    pub &'static [&'static str],
    /// What follows each word.
    pub &'static str,
);

impl fmt::Display for OneOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(words, behind) = self;
        for (index, word) in words.iter().enumerate() {
            let before = match index {
                0 => "",
                _ if index + 1 == words.len() => " or ",
                _ => ", ",
            };
            write!(f, "{before}{word}{behind}")?;
        }
        Ok(())
    }
}

/// The word that begins a VM's keys.
pub const VM: &str = "vm";
/// The least important messages shown on the console: one of [`level`].
pub const LOG: &str = "log";
/// The failure that the hypervisor is to test: one of [`self_test`].
pub const SELF_TEST: &str = "selftest";
/// Seconds for which a CPU may be stuck in the hypervisor.
pub const WATCHDOG: &str = "watchdog";

/// The hypervisor's words. Each is followed by `=` and a value.
pub const ALL: [&str; 4] = [LOG, VM, SELF_TEST, WATCHDOG];

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
    /// What a reset of its machine does: one of [`on_reset`](super::on_reset).
    pub const ON_RESET: &str = "on-reset";
    /// Seconds after which it ends as hung; 0 is never.
    pub const LIMIT: &str = "limit";

    /// All of them.
    pub const ALL: [&str; 11] = [NAME, VCPUS, PAGING, SIZE, MEMORY, PAGES, INPUT, CPUID, MODULES, ON_RESET, LIMIT];
}

/// How important a message is.
pub mod level {
    /// The run's result is in doubt.
    pub const ERROR: &str = "error";
    /// Something is not as it should be.
    pub const WARN: &str = "warn";
    /// What a user wants to know.
    pub const INFO: &str = "info";
    /// What a developer wants to know.
    pub const DEBUG: &str = "debug";
    /// Everything.
    pub const TRACE: &str = "trace";

    /// All of them.
    pub const ALL: [&str; 5] = [ERROR, WARN, INFO, DEBUG, TRACE];
}

/// Failures of the hypervisor that it tests.
pub mod self_test {
    /// A Rust panic.
    pub const PANIC: &str = "panic";
    /// An access to an address that is not mapped.
    pub const PAGE_FAULT: &str = "page-fault";
    /// Recursion into the stack's guard page.
    pub const STACK_OVERFLOW: &str = "stack-overflow";
    /// A double fault.
    pub const DOUBLE_FAULT: &str = "double-fault";
    /// A triple fault.
    pub const TRIPLE_FAULT: &str = "triple-fault";
    /// A CPU that stays in the hypervisor.
    pub const STUCK: &str = "stuck";

    /// All of them.
    pub const ALL: [&str; 6] = [PANIC, PAGE_FAULT, STACK_OVERFLOW, DOUBLE_FAULT, TRIPLE_FAULT, STUCK];
}

/// How a VM's memory is translated.
pub mod paging {
    /// By EPT or NPT.
    pub const NESTED: &str = "nested";
    /// By shadows of its page tables.
    pub const SHADOW: &str = "shadow";
    /// By shadows of its page tables that are dropped at each load of CR3.
    pub const VTLB: &str = "vtlb";

    /// All of them.
    pub const ALL: [&str; 3] = [NESTED, SHADOW, VTLB];
}

/// When a VM's memory gets frames.
pub mod memory {
    /// Page by page, when the guest first touches it.
    pub const TOUCH: &str = "touch";
    /// Before the guest starts.
    pub const RESERVE: &str = "reserve";

    /// All of them.
    pub const ALL: [&str; 2] = [TOUCH, RESERVE];
}

/// The largest page that maps a VM's memory.
pub mod pages {
    /// 4 KiB.
    pub const SMALL: &str = "4k";
    /// 2 MiB.
    pub const LARGE: &str = "2m";

    /// All of them.
    pub const ALL: [&str; 2] = [SMALL, LARGE];
}

/// Whether a VM gets what the machine receives on COM1.
pub mod input {
    /// It does. One VM at most.
    pub const ON: &str = "on";
    /// It does not.
    pub const OFF: &str = "off";

    /// All of them.
    pub const ALL: [&str; 2] = [ON, OFF];
}

/// What a reset of a VM's machine does.
pub mod on_reset {
    /// It ends the VM.
    pub const END: &str = "end";
    /// The VM begins anew from its image.
    pub const RESTART: &str = "restart";

    /// All of them.
    pub const ALL: [&str; 2] = [END, RESTART];
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

    /// Keys of the words `KEY=VALUE`.
    pub mod key {
        /// Which of its attacks a guest carries out.
        pub const KIND: &str = "kind";
        /// How much memory a guest gives back at once.
        pub const MIB: &str = "mib";
        /// How long a guest measures its share of the time, in milliseconds.
        pub const MILLISECONDS: &str = "ms";
        /// The least share of the time, in percent, that it has to get.
        pub const MIN_SHARE: &str = "min_share";
        /// The longest that it may not run, in microseconds.
        pub const MAX_GAP_US: &str = "max_gap_us";
        /// How much memory it gives back meanwhile.
        pub const RELEASE_MIB: &str = "release_mib";
        /// Seconds before a guest touches its memory.
        pub const WAIT: &str = "wait";
        /// How often it touches its memory.
        pub const ROUNDS: &str = "rounds";
        /// How many pages a guest writes.
        pub const PAGES: &str = "pages";
        /// The guest tries each N-th combination.
        pub const STEP: &str = "step";
        /// The first combination.
        pub const FROM: &str = "from";
        /// How many steps a 32-bit guest takes.
        pub const OPS: &str = "ops";
        /// All that a 32-bit guest tries follows from this number.
        pub const SEED: &str = "seed";
        /// What the processor does with PDPTEs; `held`: it reads them when CR3 is loaded.
        pub const PDPTES: &str = "pdptes";
        /// How tasks are switched: `exact`, as the manual says but for what Bochs does otherwise, or `emulated`, by this hypervisor.
        pub const TASKS: &str = "tasks";
        /// What becomes of breakpoints: `met`, they trap, or `untold`, they trap and DR6 has no cause.
        pub const BREAKPOINTS: &str = "breakpoints";
        /// Whether the processor checks limits of segments in real mode: `checked`.
        pub const LIMITS: &str = "limits";
        /// How many words the command line has.
        pub const WORDS: &str = "words";
        /// How many modules there are.
        pub const MODULES: &str = "modules";
        /// MiB of memory that there are.
        pub const MEM: &str = "mem";
        /// The boot protocol's name.
        pub const PROTOCOL: &str = "protocol";
        /// The boot loader's name.
        pub const LOADER: &str = "loader";
    }

    /// The keys that the guest of this name reads. It passes over other words.
    #[must_use]
    pub fn keys(guest: &str) -> &'static [&'static str] {
        use key::*;
        match guest {
            "access32" => &[STEP, FROM],
            "attack" => &[KIND, MIB],
            "attack32" => &[KIND, MIB],
            "boot" | "boot32" => &[PROTOCOL, WORDS, MODULES, MEM, LOADER],
            "conformance" => &[BREAKPOINTS],
            "far-memory" => &[MEM],
            "fair" => &[MILLISECONDS, MIN_SHARE, MAX_GAP_US, RELEASE_MIB],
            "fork-storm" => &[OPS, SEED],
            "many-pages" => &[PAGES, ROUNDS],
            "pae-toggle" => &[OPS],
            "real-mode" => &[LIMITS],
            "smoke32" => &[PDPTES],
            "stress" => &[OPS, SEED],
            "task-switch" => &[TASKS],
            "touch-all" => &[WAIT, ROUNDS],
            _ => &[],
        }
    }

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
