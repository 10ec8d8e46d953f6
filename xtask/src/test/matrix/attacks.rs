//! Guests that do one thing to the hypervisor for ever. Each is named once; its rows have it run with each kind of paging, on one CPU
//! and on as many as there are vCPUs.

use super::{Expected, FAIR, PASS, PAST_LIMIT, PATIENT, Row, Source};
use crate::trial::{OnReset, Pages, Paging};
use abi::{Verdict, reasons};
use std::time::Duration;

/// All rows of attacks.
pub(super) fn rows() -> impl Iterator<Item = &'static Row> + Clone {
    let groups = [WITNESSES, DELIVERY_WITNESSES, MEASURED, FAULTING, DELIVERY_MEASURED, SHADOWED, &[OTHERS]];
    groups.into_iter().flatten().copied().flatten()
}

/// The guest that attacks, which is ended at its limit. A CPU that is held up for two seconds counts as stuck.
const fn attack(words: &'static str) -> Row {
    let hypervised = Expected::saying(Verdict::Hang, PAST_LIMIT);
    let (source, limit) = (Source::Guest("attack"), Some(Duration::from_secs(1)));
    Row { source, words, hypervised, hv_words: "watchdog=2", limit, ..PATIENT }
}

/// An attack that only a 32-bit guest has.
const fn attack32(words: &'static str) -> Row {
    Row { source: Source::Guest("attack32"), ..attack(words) }
}

/// The same by a 32-bit guest, with shadows of its tables.
const fn shadow(attack: Row) -> Row {
    Row { source: Source::Guest("attack32"), paging: Paging::Shadow, rare_on: &["bochs-svm"], ..attack }
}

/// The same where the attack is one that shadows can't follow: the hypervisor ends the guest at once.
const fn ended_shadow(attack: Row) -> Row {
    Row { hypervised: Expected::saying(Verdict::GuestKilled, reasons::DELIVERY_WRITES), ..shadow(attack) }
}

const fn vtlb(attack: Row) -> Row {
    Row { source: Source::Guest("attack32"), paging: Paging::Vtlb, rare_on: &["bochs-vmx", "bochs-svm"], ..attack }
}

const fn vtlb_on_qemu(attack: Row) -> Row {
    Row { only: Some("qemu-svm"), ..vtlb(attack) }
}

/// On one CPU, beside a guest that measures what is left for it: half of the time, by slices of 5 ms.
const fn shared(name: &'static str, attack: Row) -> Row {
    let beside = Some((FAIR, "ms=400 min_share=45 max_gap_us=10000"));
    Row { name, beside, cpus: Some(1), icount: true, ..attack }
}

/// The same with a CPU for each vCPU. The limit is that of the guest beside, too, which in real time may have to wait.
const fn apart(name: &'static str, attack: Row) -> Row {
    let beside = Some((FAIR, "ms=400 min_share=95 max_gap_us=10000"));
    let beside_in_real_time = Some("ms=400 max_gap_us=500000");
    Row { name, beside, beside_in_real_time, limit_in_real_time: Some(Duration::from_secs(2)), ..attack }
}

/// Beside a guest that has to pass, for long enough that the watchdog finds a CPU that is held up.
const fn watched(name: &'static str, attack: Row) -> Row {
    let [limit, limit_in_real_time] = [Some(Duration::from_secs(3)), Some(Duration::from_secs(4))];
    Row { name, beside: Some(("smoke", "")), limit, limit_in_real_time, ..attack }
}

const fn watched_on_one_cpu(name: &'static str, attack: Row) -> Row {
    Row { cpus: Some(1), ..watched(name, attack) }
}

/// The rows `fair-…` of each attack: with nested paging, and by these two functions without.
macro_rules! beside_fair {
    ($shadow:ident, $vtlb:ident; $($name:literal: $attack:expr),* $(,)?) => { &[$(&[
        shared(concat!("fair-", $name), $attack),
        apart(concat!("fair-", $name, "-apart"), $attack),
        shared(concat!("fair-", $name, "-shadow"), $shadow($attack)),
        apart(concat!("fair-", $name, "-shadow-apart"), $shadow($attack)),
        shared(concat!("fair-", $name, "-vtlb"), $vtlb($attack)),
        apart(concat!("fair-", $name, "-vtlb-apart"), $vtlb($attack)),
    ]),*] };
}

/// The same without nested paging alone.
macro_rules! shadowed_beside_fair {
    ($($name:literal: $attack:expr),* $(,)?) => { &[$(&[
        shared(concat!("fair-", $name, "-shadow"), shadow($attack)),
        apart(concat!("fair-", $name, "-shadow-apart"), shadow($attack)),
        shared(concat!("fair-", $name, "-vtlb"), vtlb($attack)),
        apart(concat!("fair-", $name, "-vtlb-apart"), vtlb($attack)),
    ]),*] };
}

/// The rows of what once held a CPU up for ever.
macro_rules! witnesses {
    ($shadow:ident; $($name:literal: $attack:expr),* $(,)?) => { &[$(&[
        watched($name, $attack),
        watched_on_one_cpu(concat!($name, "-shared"), $attack),
        watched(concat!($name, "-shadow"), $shadow($attack)),
        watched_on_one_cpu(concat!($name, "-shadow-shared"), $shadow($attack)),
        watched(concat!($name, "-vtlb"), vtlb($attack)),
        watched_on_one_cpu(concat!($name, "-vtlb-shared"), vtlb($attack)),
    ]),*] };
}

const STRING_IO: Row = attack("kind=string-io");
const IDLE: Row = attack("kind=idle");
/// The page directory maps itself, and #UD is delivered on a stack in it.
const DELIVERY: Row = attack32("kind=delivery");

const WITNESSES: &[&[Row]] = witnesses! { shadow;
    // Each exit takes long, so that a look of the watchdog mostly finds the CPU in the hypervisor.
    "string-io": STRING_IO,
    "sleep": IDLE,
};

const DELIVERY_WITNESSES: &[&[Row]] = witnesses! { ended_shadow; "delivery": DELIVERY };
const DELIVERY_MEASURED: &[&[Row]] = beside_fair! { ended_shadow, vtlb; "delivery": DELIVERY };

/// Their exits are the same with either kind of shadow, of which one is enough on Bochs, which takes long.
const MEASURED: &[&[Row]] = beside_fair! { shadow, vtlb_on_qemu;
    "idle": IDLE,
    // Bochs's SVM keeps the host's interrupts back while the guest spins with its own off.
    "spin": Row { except: Some("bochs-svm"), ..attack("kind=spin") },
    "hypercall": HYPERCALLS,
    "timer": attack("kind=timer"),
    "masked-timer": MASKED_TIMER,
    "interrupted-sleep": attack("kind=interrupted-sleep"),
    "deadline": DEADLINE,
    "nmi": NMI,
    "ipi": Row { vcpus: 2, ..attack("kind=ipi") },
    "console": CONSOLE,
    "string-io": STRING_IO,
};

/// They have the hypervisor change its tables, or switch between them.
const FAULTING: &[&[Row]] = beside_fair! { shadow, vtlb;
    "dirty-log": attack("kind=dirty-log"),
    "give-back-2m": attack("kind=give-back"),
    // The copy of a large page is one step. Bochs counts each eight bytes of it as an instruction: a turn that ends in the midst is
    // 12.8 ms long there.
    "collapse": Row { only: Some("qemu-svm"), ..attack("kind=collapse") },
    "control-registers": attack("kind=control-registers"),
    // Not all: it would take longer than is measured.
    "give-back-4k": Row { pages: Pages::Small, ..attack("kind=give-back mib=16") },
    "first-touch": Row { pages: Pages::Small, ..attack("kind=first-touch") },
    "nowhere": attack("kind=nowhere"),
    // Nearly all of its time goes to the hypervisor, which takes its memory away and writes its image again.
    "reset": RESET,
};

const SHADOWED: &[&[Row]] = shadowed_beside_fair! {
    "remap": attack32("kind=remap"),
    "switch": attack32("kind=switch"),
    "one-table": attack32("kind=one-table"),
    // A hypervisor's large pages would need no tables.
    "fill": Row { pages: Pages::Small, ..attack32("kind=fill") },
};

const RESET: Row = Row { on_reset: OnReset::Restart, ..attack("kind=reset") };
const CONSOLE: Row = attack("kind=console");
const DEADLINE: Row = attack("kind=deadline");
const HYPERCALLS: Row = attack("kind=hypercall");
/// Two vCPUs to each other.
const NMI: Row = Row { vcpus: 2, ..attack("kind=nmi") };
/// Its CPU neither sleeps nor enters it.
const MASKED_TIMER: Row = attack("kind=masked-timer");
/// It touches all of its memory by small pages, and ends while the guest beside it measures.
const ENDS: Row = Row {
    source: Source::Guest("touch-all"),
    pages: Pages::Small,
    beside: Some((FAIR, "ms=1500 max_gap_us=10000")),
    beside_in_real_time: Some("ms=1500 max_gap_us=500000"),
    hypervised: PASS,
    limit: None,
    ..attack("")
};

const OTHERS: &[Row] = &[
    Row { name: "fair-ends", cpus: Some(1), icount: true, ..ENDS },
    Row { name: "fair-ends-apart", ..ENDS },
    watched("console-flood", CONSOLE),
    watched("deadline-writes", DEADLINE),
    watched("hypercalls", HYPERCALLS),
    watched("nmi-storm", NMI),
    // The guest beside it needs grace periods, which wait for all CPUs.
    Row {
        pages: Pages::Small,
        beside: Some((FAIR, "ms=1000 release_mib=16 max_gap_us=1000000")),
        ..watched("masked-timer", MASKED_TIMER)
    },
    // On Bochs's SVM the debug trap is pending at the exit, and taken by the hypervisor.
    watched("single-step", attack("kind=single-step")),
    // QEMU's TCG turns the host's paging off at such an exit.
    watched("long-mode-enable", attack32("kind=long-mode-enable")),
    // QEMU's TCG meets them in its own accesses to the VMCB, and leaves an exit half done.
    watched("data-breakpoints", attack32("kind=data-breakpoints")),
];
