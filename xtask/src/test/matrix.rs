//! What is booted where, and what has to come of it: a row for each guest, a column for each kind of machine.

mod attacks;
mod linux;

use super::images::Change;
use crate::judge::NO_VERDICT_WITHIN;
use crate::linux::Arch;
use crate::machine::bochs::Bochs;
use crate::machine::qemu::{Accel, Engine, Needs, Qemu};
use crate::machine::{Emulator, Host};
use crate::size::Size;
use crate::trial::{Guest, OnReset, Pages, Paging};
use abi::Verdict;
use abi::reasons::{self, NO_FRAME, PAST_LIMIT};
use arch::exceptions;
use clap::ValueEnum;
use std::iter;
use std::time::Duration;

/// A column of the matrix: a kind of machine, with the hypervisor or without.
#[derive(Clone, Debug)]
pub(super) struct Column {
    pub(super) name: &'static str,
    machine: Emulator,
    /// Otherwise it is the guest alone, by which the hypervisor is measured.
    pub(super) with_hypervisor: bool,
}

/// The machines that there are here.
pub(super) fn hosts() -> Vec<Column> {
    let alone = Column { name: "alone", machine: Host::QemuSvm.emulator(), with_hypervisor: false };
    let emulated = Host::value_variants().iter().map(|host| Column {
        name: host.name(),
        machine: host.emulator(),
        with_hypervisor: true,
    });
    let mut hosts: Vec<_> = iter::once(alone).chain(emulated).collect();
    if Accel::Kvm.resolve(false, Needs::Virtualization).is_ok() {
        let machine = Emulator::Qemu(Qemu::new(Engine::Kvm, None));
        hosts.push(Column { name: "kvm", machine, with_hypervisor: true });
    }
    hosts
}

impl Column {
    /// The machine for this row.
    pub(super) fn machine(&self, row: &Row) -> Emulator {
        let cpu = row.cpu.map(str::to_string);
        match &self.machine {
            Emulator::Qemu(Qemu { engine, .. }) => {
                let engine = if row.icount && *engine == Engine::Tcg { SLOW_ICOUNT } else { *engine };
                Emulator::Qemu(Qemu { is_paused: row.paused, ..Qemu::new(engine, cpu) })
            }
            Emulator::Bochs(usual) => Emulator::Bochs(Bochs::new(cpu.unwrap_or_else(|| usual.cpu.clone()))),
        }
    }

    /// Whether what is typed gets to a guest.
    pub(super) const fn takes_input(&self) -> bool {
        self.machine.takes_input()
    }

    /// Whether it is Bochs, which takes long.
    pub(super) const fn is_bochs(&self) -> bool {
        matches!(self.machine, Emulator::Bochs(_))
    }
}

/// Where an image comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// One of our guests.
    Guest(&'static str),
    /// One of our guests, changed.
    Changed(&'static str, Change),
    /// Debian's memtest86+.
    Memtest,
    /// Debian's kernel, which runs the stress program with the row's words.
    Linux(Arch),
}

/// What has to come of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Expected {
    pub(super) verdict: Verdict,
    /// Has to occur in the verdict's text.
    pub(super) text: &'static str,
    /// Has to occur in the names of a panic's backtrace, or on a line of the console's.
    pub(super) line: &'static str,
}

impl Row {
    /// Whether it boots Linux.
    pub(super) const fn is_linux(&self) -> bool {
        matches!(self.source, Source::Linux(_))
    }

    /// Whether it boots what is in one of Debian's packages: it is skipped where that can't be had.
    pub(super) const fn is_packaged(&self) -> bool {
        matches!(self.source, Source::Linux(_) | Source::Memtest)
    }

    /// The guest that takes the row's words: one of ours, whose image is booted, or changed, or Linux's stress program.
    pub(super) const fn guest(&self) -> Option<&'static str> {
        match self.source {
            Source::Guest(name) | Source::Changed(name, _) => Some(name),
            Source::Linux(_) => Some("stress"),
            Source::Memtest => None,
        }
    }
}

impl Expected {
    const fn just(verdict: Verdict) -> Self {
        Self { verdict, text: "", line: "" }
    }

    const fn saying(verdict: Verdict, text: &'static str) -> Self {
        Self { verdict, text, line: "" }
    }
}

/// A guest and how it is booted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) source: Source,
    /// The guest's command line.
    pub(super) words: &'static str,
    /// Another one for Bochs, which carries out far fewer instructions in the same time.
    pub(super) bochs_words: Option<&'static str>,
    /// Virtual processors.
    pub(super) vcpus: u32,
    /// The machine's processors; None: as many as the guests have.
    pub(super) cpus: Option<u32>,
    /// A guest in a second VM, and its command line; it has to pass, whatever becomes of the first.
    pub(super) beside: Option<(&'static str, &'static str)>,
    /// Another command line for that guest, on a machine whose time is not counted in instructions: what else runs on the machine
    /// that runs all this takes part of it.
    pub(super) beside_in_real_time: Option<&'static str>,
    /// A broken image in a VM of its own, and what occurs in the text of its refusal.
    pub(super) refused_beside: Option<(Change, &'static str)>,
    /// So many more VMs of the first's kind.
    pub(super) more: u32,
    /// The memory of the first VM, and of those of its kind.
    pub(super) memory: Size,
    /// The memory of the VM beside it is reserved.
    pub(super) reserved_beside: bool,
    /// The machine's memory.
    pub(super) ram: Option<Size>,
    /// Files of these contents, with strings that say so.
    pub(super) modules: &'static [&'static [u8]],
    /// [`abi::typed`] is typed on the guest's COM1; only where the machine takes input.
    pub(super) typed: bool,
    /// Breaks are sent on COM1; only where the machine takes input.
    pub(super) sends_breaks: bool,
    pub(super) pages: Pages,
    pub(super) paging: Paging,
    /// Features of the first VM's processors, as in `--cpuid`, without commas.
    pub(super) cpuid: &'static str,
    /// What becomes of the first VM when its machine is reset.
    pub(super) on_reset: OnReset,
    /// Words for the hypervisor.
    pub(super) hv_words: &'static str,
    /// The one host that the row is about, if it is about one.
    pub(super) only: Option<&'static str>,
    /// A host whose emulator can't do it.
    pub(super) except: Option<&'static str>,
    /// Hosts where the row is booted with `--all` alone, or by its name: it takes long there, for little that others do not show.
    pub(super) rare_on: &'static [&'static str],
    /// The processor that the row is about, as that host calls it.
    pub(super) cpu: Option<&'static str>,
    /// QEMU's TCG counts instructions ([`SLOW_ICOUNT`]), which takes a machine of one processor.
    pub(super) icount: bool,
    /// The machine is stopped and continued again and again, which QEMU alone can do.
    pub(super) paused: bool,
    /// The hypervisor is built with fault injection.
    pub(super) fault_injection: bool,
    /// Booted from an ISO, the same on all hosts.
    pub(super) iso: bool,
    pub(super) timeout: Duration,
    /// When the hypervisor has to end the guest, if not a bit before the time-out.
    pub(super) limit: Option<Duration>,
    /// Another limit on a machine whose time is not counted in instructions.
    pub(super) limit_in_real_time: Option<Duration>,
    pub(super) hypervised: Expected,
    /// None: it makes no sense without the hypervisor.
    pub(super) alone: Option<Expected>,
}

/// Few instructions in a virtual second, which takes the shorter: an exit takes many thousand times as long as an instruction. Still
/// twice as many as on Bochs.
const SLOW_ICOUNT: Engine = Engine::TcgIcount { shift: 3 };

const PASS: Expected = Expected::just(Verdict::Pass);

/// What most rows have in common.
const USUAL: Row = Row {
    name: "",
    source: Source::Guest("smoke"),
    words: "",
    bochs_words: None,
    vcpus: 1,
    cpus: None,
    beside: None,
    beside_in_real_time: None,
    refused_beside: None,
    more: 0,
    memory: Guest::MEMORY,
    reserved_beside: false,
    ram: None,
    modules: &[],
    typed: false,
    sends_breaks: false,
    pages: Pages::Large,
    paging: Paging::Nested,
    cpuid: "",
    on_reset: OnReset::End,
    hv_words: "",
    only: None,
    except: None,
    rare_on: &[],
    cpu: None,
    icount: false,
    paused: false,
    fault_injection: false,
    iso: false,
    timeout: Duration::from_secs(60),
    limit: None,
    limit_in_real_time: None,
    hypervised: PASS,
    alone: Some(PASS),
};

/// A guest that never ends by itself, given a short time alone and, by the hypervisor, an even shorter one.
const ENDLESS: Row =
    Row { timeout: Duration::from_secs(20), limit: Some(Duration::from_secs(2)), alone: None, ..USUAL };

/// The same where it may be long until the limit by the machine's own clock: on Bochs.
const PATIENT: Row = Row { timeout: Duration::from_secs(120), ..ENDLESS };

/// A guest with many processors, which take turns where the machine that runs all this has fewer.
const LONG: Row = Row { timeout: Duration::from_secs(120), ..USUAL };

/// The guest that looks at what its loader has handed over.
const fn boot(name: &'static str) -> Row {
    let modules: &[&[u8]] = &[b"a module, and its commas\n", &[0xa5; 10_000]];
    Row { name, source: Source::Guest("boot"), modules, alone: None, ..USUAL }
}

const MULTIBOOT: Row = Row {
    source: Source::Changed("boot", Change::NoMultiboot2),
    words: "protocol=multiboot words=4 modules=2 mem=64",
    ..boot("multiboot")
};
const MULTIBOOT2: Row =
    Row { words: "protocol=multiboot2 loader=microhv words=5 modules=2 mem=64", ..boot("multiboot2") };
const PVH: Row =
    Row { source: Source::Changed("boot", Change::Pvh), words: "protocol=pvh words=4 modules=2 mem=64", ..boot("pvh") };

/// The same with its image of 32 bits, without nested paging.
const fn of_32_bits(name: &'static str, row: Row) -> Row {
    let source = match row.source {
        Source::Changed(_, change) => Source::Changed("boot32", change),
        _ => Source::Guest("boot32"),
    };
    shadowed(name, Paging::Shadow, Row { source, ..row })
}

/// A guest that the hypervisor must refuse.
const fn refused(name: &'static str, change: Change) -> Row {
    let hypervised = Expected::just(Verdict::BadImage);
    Row { name, source: Source::Changed("smoke", change), hypervised, alone: None, ..USUAL }
}

/// A hypervisor that fails on purpose; the function that did it has to be named.
const fn self_test(name: &'static str, hv_words: &'static str, text: &'static str, backtrace: &'static str) -> Row {
    let hypervised = Expected { verdict: Verdict::HvPanic, text, line: backtrace };
    Row { name, hv_words, hypervised, alone: None, ..USUAL }
}

/// A processor that lacks what the hypervisor needs.
const fn lacking(name: &'static str, cpu: &'static str, text: &'static str) -> Row {
    let hypervised = Expected::saying(Verdict::NoVirtualization, text);
    Row { name, only: Some("qemu-svm"), cpu: Some(cpu), hypervised, alone: None, ..USUAL }
}

/// A guest that attacks the hypervisor from four vCPUs for a few seconds; on Bochs for a number of operations.
const fn stress(guest: &'static str) -> Row {
    let source = Source::Guest(guest);
    Row { name: guest, source, words: "--seconds 3", bochs_words: Some("--ops 200"), vcpus: 4, ..LONG }
}

/// A guest that has to detect a flush that is left out. Only on QEMU do guests stay in guest mode long enough.
const fn unflushed(name: &'static str, guest: &'static str, words: &'static str) -> Row {
    let hypervised = Expected::just(Verdict::GuestFailed);
    let row = Row { name, source: Source::Guest(guest), words, vcpus: 4, hypervised, alone: None, ..LONG };
    Row { fault_injection: true, only: Some("qemu-svm"), ..row }
}

/// A guest that spins with interrupts off, which the hypervisor itself has to end.
const fn hang_limit(name: &'static str, host: &'static str) -> Row {
    let hypervised = Expected::saying(Verdict::Hang, PAST_LIMIT);
    Row { name, source: Source::Guest("hang"), only: Some(host), hypervised, ..ENDLESS }
}

/// A 32-bit guest, on Bochs with fewer things to try.
const fn guest32(guest: &'static str, bochs_words: &'static str) -> Row {
    Row { name: guest, source: Source::Guest(guest), bochs_words: Some(bochs_words), ..LONG }
}

/// The same without nested paging.
const fn shadowed(name: &'static str, paging: Paging, row: Row) -> Row {
    Row { name, paging, alone: None, ..row }
}

/// One of Bochs's processors; see its documentation for what each lacks.
const fn model(name: &'static str, host: &'static str, model: &'static str, hypervised: Expected) -> Row {
    Row { name, only: Some(host), cpu: Some(model), hypervised, alone: None, ..USUAL }
}

/// Each eleventh of the combinations on Bochs: a number that has nothing to do with how they are numbered.
/// All of it takes a minute and a half with shadow tables on QEMU where the machine has other work.
const ACCESS32: Row = Row { timeout: Duration::from_secs(300), ..guest32("access32", "step=11") };
const SMOKE32: Row = guest32("smoke32", "");
/// What only a processor without nested paging promises.
const SMOKE32_SHADOWED: Row = Row { words: "pdptes=held", ..guest32("smoke32", "pdptes=held") };
/// QEMU's TCG is not exact.
const TASK_SWITCH: Row = guest32("task-switch", "tasks=exact");
/// QEMU's SVM carries out switches of tasks although they are intercepted, and loads the guest's CR3.
const TASK_SWITCH_SHADOWED: Row = Row { except: Some("qemu-svm"), ..guest32("task-switch", "tasks=emulated") };
/// ... which ends the VM, and no other. All of the guest's other ways to switch tasks are behind the first.
const TASK_SWITCH_UNTOLD: Row = Row {
    only: Some("qemu-svm"),
    except: None,
    beside: Some(("smoke", "")),
    limit: Some(Duration::from_secs(10)),
    hypervised: Expected::saying(Verdict::GuestKilled, reasons::SWITCHED_TASKS),
    ..TASK_SWITCH_SHADOWED
};
/// On QEMU this hypervisor withholds a guest's breakpoints.
const CONFORMANCE: Row = Row { except: Some("bochs-svm"), ..guest32("conformance", "breakpoints=met") };
/// Bochs's SVM does not tell in DR6 why a #DB exits.
const CONFORMANCE_UNTOLD: Row =
    Row { name: "conformance-untold", only: Some("bochs-svm"), ..guest32("conformance", "breakpoints=untold") };
/// The code is the second vCPU's.
const REAL_MODE: Row = Row { vcpus: 2, ..guest32("real-mode", "limits=checked") };
/// (The other vCPUs are never started.)
const SELF_MAP: Row = Row { vcpus: 4, ..guest32("self-map", "") };
const PAE_TOGGLE: Row = Row { words: "ops=1000", vcpus: 4, ..guest32("pae-toggle", "ops=100") };
/// Far more writable pages than there are entries in a small shadow's lists. (On Bochs it would take minutes.)
const MANY_PAGES: Row =
    Row { words: "pages=40000 rounds=2", memory: Size::mib(256), ..guest32("many-pages", "pages=1000 rounds=2") };
const FORK_STORM: Row = Row { words: "ops=1000", vcpus: 4, ..guest32("fork-storm", "ops=60") };
/// The guest that measures how much of the time it gets.
pub(super) const FAIR: &str = "fair";
/// Few inputs, of those that leave a guest alive, beside the one that must not notice; `cargo xtask hostile` has them all.
const HOSTILE: Row = Row {
    vcpus: 2,
    beside: Some(("victim", "--seconds 2")),
    alone: None,
    words: "--mode ring3 --inputs 100",
    ..guest32("hostile", "--mode ring3 --inputs 30")
};
const EXIT_LATENCY32: Row = guest32("exit-latency32", "");

/// The MSRs that the guest asks for most are listed.
const PROMISES: Row = Row {
    name: "promises",
    source: Source::Guest("promises"),
    hypervised: Expected {
        line: "MSRs that the guest does not have: 0x4856000b 12 times, 0x4856000a 11 times",
        ..PASS
    },
    ..USUAL
};
const PROMISES32: Row = Row { name: "promises32", source: Source::Guest("promises32"), ..PROMISES };
/// The processor has them all the same: bits of CR4 and EFER, MSRs, instructions.
const FEW: &str =
    "-x2apic-tsc_deadline-tsc_adjust-vme-de-tsc-mce-pge-smep-smap-umip-fsgsbase-mtrr-mca-nx-rdtscp-rdrand";

const TOUCH_ALL: Row = Row { source: Source::Guest("touch-all"), ..USUAL };

/// A guest that resets its machine, which begins anew. It does that by all ways.
const RESET: Row = Row {
    name: "reset",
    source: Source::Guest("reset"),
    vcpus: 3,
    on_reset: OnReset::Restart,
    hypervised: Expected { line: "reset 5: triple fault in the guest; the VM begins anew", ..PASS },
    ..LONG
};
const RESET32: Row = Row { name: "reset32", source: Source::Guest("reset32"), ..RESET };

/// All rows.
pub(super) fn rows() -> impl Iterator<Item = &'static Row> + Clone {
    ROWS.iter().chain(attacks::rows()).chain(linux::ROWS)
}

const ROWS: &[Row] = &[
    Row { name: "smoke", ..USUAL },
    Row { name: "smoke-4k", pages: Pages::Small, alone: None, ..USUAL },
    Row { name: "iso", iso: true, alone: None, ..USUAL },
    Row { name: "smoke-elf32", source: Source::Changed("smoke", Change::Elf32), ..USUAL },
    Row { name: "exit-latency", source: Source::Guest("exit-latency"), pages: Pages::Small, ..USUAL },
    Row { alone: Some(PASS), ..MULTIBOOT },
    MULTIBOOT2,
    PVH,
    of_32_bits("multiboot-shadow", MULTIBOOT),
    of_32_bits("multiboot2-shadow", MULTIBOOT2),
    of_32_bits("pvh-shadow", PVH),
    // QEMU has one file for PVH's modules, without a string.
    Row {
        name: "pvh-without-modules",
        words: "protocol=pvh words=4 modules=0 mem=64",
        modules: &[],
        alone: Some(PASS),
        ..PVH
    },
    Row {
        source: Source::Changed("boot", Change::RequiresSmbios),
        hypervised: Expected::saying(Verdict::BadImage, "boot information of type 13 (SMBIOS tables) is required"),
        ..boot("multiboot2-requires-smbios")
    },
    Row { name: "keys", source: Source::Guest("keys"), typed: true, ..USUAL },
    // vCPUs that run and such as have not started add to it, while nothing is printed or typed.
    Row {
        name: "exits-so-far",
        source: Source::Guest("hang"),
        sends_breaks: true,
        vcpus: 3,
        limit: Some(Duration::from_secs(5)),
        hypervised: Expected { line: reasons::EXITS_SO_FAR, ..Expected::saying(Verdict::Hang, PAST_LIMIT) },
        ..ENDLESS
    },
    Row {
        name: "fail",
        source: Source::Guest("fail"),
        hypervised: Expected::just(Verdict::GuestFailed),
        alone: Some(Expected::just(Verdict::GuestFailed)),
        ..USUAL
    },
    Row {
        name: "triple-fault",
        source: Source::Guest("triple-fault"),
        hypervised: Expected::just(Verdict::GuestTripleFault),
        alone: Some(Expected::just(Verdict::GuestTripleFault)),
        ..USUAL
    },
    RESET,
    Row { name: "reset-4k", pages: Pages::Small, vcpus: 1, beside: Some(("smoke", "")), alone: None, ..RESET },
    RESET32,
    shadowed("reset32-shadow", Paging::Shadow, RESET32),
    shadowed("reset32-vtlb", Paging::Vtlb, RESET32),
    // By default it ends.
    Row {
        name: "reset-ends",
        on_reset: OnReset::End,
        hypervised: Expected::saying(Verdict::GuestKilled, "the guest asked for a reset"),
        alone: None,
        ..RESET
    },
    // Bochs's SVM gives the host no interrupt while the guest has its own off: an INIT does not reach a vCPU that spins so.
    Row { name: "apic", source: Source::Guest("apic"), vcpus: 4, except: Some("bochs-svm"), ..LONG },
    Row { name: "apic-alone", source: Source::Guest("apic"), only: Some("bochs-svm"), alone: None, ..LONG },
    Row {
        name: "apic-without-x2apic",
        source: Source::Guest("apic"),
        vcpus: 2,
        cpuid: "-x2apic-tsc_deadline",
        except: Some("bochs-svm"),
        alone: None,
        ..LONG
    },
    Row {
        name: "no-such-feature",
        cpuid: "+sse2+clwb",
        only: Some("qemu-svm"),
        hypervised: Expected::saying(Verdict::NoVirtualization, "the feature clwb"),
        alone: None,
        ..USUAL
    },
    PROMISES,
    Row { name: "promises-of-few", cpuid: FEW, alone: None, ..PROMISES },
    PROMISES32,
    Row { name: "promises32-of-few", cpuid: FEW, alone: None, ..PROMISES32 },
    shadowed("promises32-shadow", Paging::Shadow, PROMISES32),
    shadowed("promises32-vtlb", Paging::Vtlb, PROMISES32),
    Row { cpuid: FEW, ..shadowed("promises32-of-few-shadow", Paging::Shadow, PROMISES32) },
    stress("balloon"),
    stress("collapse-storm"),
    stress("shootdown"),
    stress("walker"),
    stress("ipi-storm"),
    // A processor that is interrupted by its emulator takes no interrupt twice.
    Row { name: "ipi-storm-paused", paused: true, only: Some("qemu-svm"), alone: None, ..stress("ipi-storm") },
    stress("timer-storm"),
    stress("oom"),
    Row { name: "victim", source: Source::Guest("victim"), ..USUAL },
    HOSTILE,
    shadowed(
        "hostile-shadow",
        Paging::Shadow,
        Row {
            words: "--mode ring3 --inputs 100 --shadowed --without-task-gates",
            // Bochs panics at an exit of SVM from virtual-8086 mode ("VM is set in long mode"), and at a guest's shutdown.
            except: Some("bochs-svm"),
            ..HOSTILE
        },
    ),
    SMOKE32,
    shadowed("smoke32-shadow", Paging::Shadow, SMOKE32_SHADOWED),
    shadowed("smoke32-vtlb", Paging::Vtlb, SMOKE32_SHADOWED),
    TASK_SWITCH,
    shadowed("task-switch-shadow", Paging::Shadow, TASK_SWITCH_SHADOWED),
    shadowed("task-switch-vtlb", Paging::Vtlb, TASK_SWITCH_SHADOWED),
    shadowed("task-switch-untold-shadow", Paging::Shadow, TASK_SWITCH_UNTOLD),
    shadowed("task-switch-untold-vtlb", Paging::Vtlb, TASK_SWITCH_UNTOLD),
    CONFORMANCE,
    shadowed("conformance-shadow", Paging::Shadow, CONFORMANCE),
    shadowed("conformance-vtlb", Paging::Vtlb, CONFORMANCE),
    CONFORMANCE_UNTOLD,
    shadowed("conformance-untold-shadow", Paging::Shadow, CONFORMANCE_UNTOLD),
    shadowed("conformance-untold-vtlb", Paging::Vtlb, CONFORMANCE_UNTOLD),
    REAL_MODE,
    shadowed("real-mode-shadow", Paging::Shadow, REAL_MODE),
    shadowed("real-mode-vtlb", Paging::Vtlb, REAL_MODE),
    ACCESS32,
    shadowed("access32-shadow", Paging::Shadow, ACCESS32),
    shadowed("access32-vtlb", Paging::Vtlb, ACCESS32),
    SELF_MAP,
    shadowed("self-map-shadow", Paging::Shadow, SELF_MAP),
    shadowed("self-map-vtlb", Paging::Vtlb, SELF_MAP),
    PAE_TOGGLE,
    shadowed("pae-toggle-shadow", Paging::Shadow, PAE_TOGGLE),
    shadowed("pae-toggle-vtlb", Paging::Vtlb, PAE_TOGGLE),
    Row { vcpus: 1, ..shadowed("pae-toggle-shadow-alone", Paging::Shadow, PAE_TOGGLE) },
    MANY_PAGES,
    shadowed("many-pages-shadow", Paging::Shadow, MANY_PAGES),
    shadowed("many-pages-vtlb", Paging::Vtlb, MANY_PAGES),
    FORK_STORM,
    shadowed("fork-storm-shadow", Paging::Shadow, FORK_STORM),
    shadowed("fork-storm-vtlb", Paging::Vtlb, FORK_STORM),
    Row { vcpus: 1, ..shadowed("fork-storm-shadow-alone", Paging::Shadow, FORK_STORM) },
    // A 64-bit guest is told, and so are its users.
    Row {
        hypervised: Expected { line: reasons::ASKS_FOR_LONG_MODE, ..Expected::just(Verdict::GuestTripleFault) },
        ..shadowed("smoke-shadow", Paging::Shadow, USUAL)
    },
    EXIT_LATENCY32,
    shadowed("exit-latency32-shadow", Paging::Shadow, EXIT_LATENCY32),
    shadowed("exit-latency32-vtlb", Paging::Vtlb, EXIT_LATENCY32),
    Row {
        name: "oom-die",
        source: Source::Guest("oom"),
        words: "--die",
        beside: Some(("smoke", "")),
        hypervised: Expected::saying(Verdict::GuestKilled, NO_FRAME),
        alone: None,
        ..USUAL
    },
    unflushed("no-flush-release", "shootdown", "--seconds 5 --skip-flush release"),
    unflushed("no-flush-log-dirty", "collapse-storm", "--seconds 5 --skip-flush log-dirty"),
    unflushed("no-flush-replace", "shootdown", "--seconds 5 --skip-flush replace"),
    unflushed("no-flush-collapse", "collapse-storm", "--seconds 5 --skip-flush collapse"),
    Row {
        name: "misconfigured",
        source: Source::Guest("misconfigured"),
        pages: Pages::Small,
        fault_injection: true,
        hypervised: Expected {
            line: reasons::NESTED_PATH,
            ..Expected::saying(Verdict::GuestKilled, reasons::MISCONFIGURED)
        },
        alone: None,
        ..USUAL
    },
    // A VM's end leaves the other one running.
    Row { name: "two-vms", beside: Some(("exit-latency", "")), vcpus: 2, alone: None, ..USUAL },
    // A line that never ends takes none of the other VM's lines with it.
    Row {
        name: "endless-line",
        source: Source::Guest("endless-line"),
        beside: Some(("smoke", "")),
        alone: None,
        ..LONG
    },
    Row {
        name: "two-vms-one-dead",
        source: Source::Guest("triple-fault"),
        beside: Some(("smoke", "")),
        hypervised: Expected::just(Verdict::GuestTripleFault),
        alone: None,
        ..USUAL
    },
    Row { name: "halt", source: Source::Guest("halt"), hypervised: Expected::just(Verdict::GuestKilled), ..ENDLESS },
    // Bochs's SVM keeps the host's interrupts back while the guest spins with its own off: there the time-out ends it.
    Row { name: "hang", source: Source::Guest("hang"), hypervised: Expected::just(Verdict::Hang), ..ENDLESS },
    hang_limit("hang-limit-svm", "qemu-svm"),
    hang_limit("hang-limit-vmx", "bochs-vmx"),
    Row { name: FAIR, source: Source::Guest(FAIR), words: "ms=100", alone: None, ..USUAL },
    Row {
        name: "hang-outer",
        source: Source::Guest("hang"),
        timeout: Duration::from_secs(4),
        limit: Some(Duration::ZERO),
        hypervised: Expected::saying(Verdict::Hang, NO_VERDICT_WITHIN),
        alone: Some(Expected::saying(Verdict::Hang, NO_VERDICT_WITHIN)),
        ..USUAL
    },
    refused("truncated", Change::Truncated),
    refused("beyond-memory", Change::BeyondMemory),
    Row {
        hypervised: Expected::saying(
            Verdict::BadImage,
            "no Linux boot header at offset 0x202, no multiboot2 header in the first 32768 bytes, no multiboot header in the first \
             8192 bytes, no ELF file with a PVH entry point",
        ),
        ..refused("not-an-elf", Change::NotAnElf)
    },
    refused("no-header", Change::NoHeader),
    Row { name: "touch-all", ..TOUCH_ALL },
    // More than is below the hole for PCI, and far more than the machine has.
    Row {
        name: "far-memory",
        source: Source::Guest("far-memory"),
        words: "mem=5120",
        memory: Size::mib(5120),
        ram: Some(Size::mib(256)),
        alone: None,
        ..USUAL
    },
    // The machine as well has frames from 4 GiB on.
    Row {
        name: "far-memory-backed",
        source: Source::Guest("far-memory"),
        words: "mem=5120",
        memory: Size::mib(5120),
        ram: Some(Size::mib(6144)),
        only: Some("qemu-svm"),
        alone: None,
        ..USUAL
    },
    Row { name: "low-memory", source: Source::Guest("low-memory"), memory: Size::mib(1), alone: None, ..USUAL },
    // Each finds the frames that it starts with, and the pre-zeroed frames of others leave it those that it touches. (On Bochs
    // their turns take minutes.)
    Row { name: "many-vms", more: 63, memory: Size::mib(2), only: Some("qemu-svm"), alone: None, ..TOUCH_ALL },
    // Their metadata is counted, and the heap grows by that.
    Row { name: "many-shadows", more: 2, vcpus: 16, ..shadowed("", Paging::Shadow, SMOKE32) },
    Row {
        name: "many-roots",
        more: 15,
        memory: Size::mib(16),
        only: Some("qemu-svm"),
        ..shadowed("", Paging::Shadow, SMOKE32)
    },
    // One does not get what the other was promised, though that lies idle; the other finds it then.
    Row {
        name: "reserved",
        memory: Size::mib(210),
        ram: Some(Size::mib(256)),
        beside: Some(("touch-all", "wait=1 rounds=3")),
        reserved_beside: true,
        hypervised: Expected { line: reasons::OVERCOMMITTED, ..Expected::saying(Verdict::GuestKilled, NO_FRAME) },
        alone: None,
        ..TOUCH_ALL
    },
    // ... and what is promised has to be there.
    Row {
        name: "too-much-reserved",
        memory: Size::mib(16),
        ram: Some(Size::mib(64)),
        beside: Some(("touch-all", "")),
        reserved_beside: true,
        hypervised: Expected::saying(Verdict::NoMemory, "beside needs 16425 frames for its memory, which is reserved"),
        alone: None,
        ..TOUCH_ALL
    },
    Row {
        name: "too-many-shadows",
        more: 3,
        vcpus: 16,
        ram: Some(Size::mib(21)),
        hypervised: Expected::saying(Verdict::NoMemory, reasons::HEAP),
        ..shadowed("", Paging::Shadow, SMOKE32)
    },
    // What one takes beyond its need is not missing when another is loaded.
    Row {
        name: "few-frames",
        more: 3,
        vcpus: 16,
        ram: Some(Size::mib(26)),
        only: Some("qemu-svm"),
        ..shadowed("", Paging::Shadow, SMOKE32)
    },
    // Each refused VM is told why, and the good one runs.
    Row {
        beside: Some(("smoke", "")),
        refused_beside: Some((Change::NoHeader, "the multiboot header at offset 0x1000 has a wrong checksum")),
        hypervised: Expected::saying(Verdict::BadImage, "vm0: segment 0"),
        ..refused("two-refused", Change::Truncated)
    },
    // All tests without an error: before the last one, which waits for minutes, 94 % of them are done.
    Row {
        name: "memtest",
        source: Source::Memtest,
        words: "console=ttyS0,115200 nopause nobench",
        vcpus: 2,
        memory: Size::mib(16),
        limit: Some(Duration::from_secs(60)),
        hypervised: Expected {
            line: "| Pass:  0        Errors: 0           \x1b[2;35H\x1b[0m 94% #",
            ..Expected::saying(Verdict::Hang, PAST_LIMIT)
        },
        alone: None,
        only: Some("qemu-svm"),
        rare_on: &["qemu-svm"],
        ..LONG
    },
    lacking("no-svm", "qemu64,-svm", reasons::SVM),
    lacking("no-npt", "EPYC,+svm,-npt", reasons::NESTED_PAGING),
    Row {
        words: "step=7",
        only: Some("qemu-svm"),
        cpu: Some("EPYC,+svm,-npt"),
        ..shadowed("no-npt-shadow", Paging::Shadow, ACCESS32)
    },
    model("model-haswell", "bochs-vmx", "corei7_haswell_4770", PASS),
    model("model-sandy-bridge", "bochs-vmx", "corei7_sandy_bridge_2600k", PASS),
    // No unrestricted guest.
    model("model-lynnfield", "bochs-vmx", "corei5_lynnfield_750", PASS),
    // ... so that the processors' start in real mode is emulated.
    Row {
        source: Source::Guest("apic"),
        vcpus: 2,
        ..model("model-lynnfield-smp", "bochs-vmx", "corei5_lynnfield_750", PASS)
    },
    // ... and entries demand more of the segments that a new task has not loaded.
    Row {
        source: Source::Guest("task-switch"),
        words: "tasks=emulated",
        ..model("model-lynnfield-task-switch", "bochs-vmx", "corei5_lynnfield_750", PASS)
    },
    // ... and other code in real mode.
    Row {
        only: Some("bochs-vmx"),
        cpu: Some("corei5_lynnfield_750"),
        alone: None,
        name: "model-lynnfield-real-mode",
        ..REAL_MODE
    },
    // No EPT.
    model("model-penryn", "bochs-vmx", "core2_penryn_t9600", Expected::saying(Verdict::NoVirtualization, reasons::EPT)),
    Row {
        only: Some("bochs-vmx"),
        cpu: Some("core2_penryn_t9600"),
        ..shadowed("model-penryn-vtlb", Paging::Vtlb, ACCESS32)
    },
    // Alone: Bochs can keep kicks back from a guest in a loop, and this model has no preemption timer to end that.
    Row {
        vcpus: 1,
        only: Some("bochs-vmx"),
        cpu: Some("core2_penryn_t9600"),
        ..shadowed("model-penryn-shadow", Paging::Shadow, PAE_TOGGLE)
    },
    // Neither next-RIP save nor flushes by ASID.
    model("model-phenom", "bochs-svm", "phenom_8650_toliman", PASS),
    model("model-trinity", "bochs-svm", "trinity_apu", PASS),
    self_test("hv-panic", "selftest=panic", reasons::SELF_TEST, "hv::selftest::fail"),
    self_test("hv-page-fault", "selftest=page-fault", exceptions::PAGE_FAULT, "hv::selftest::page_fault"),
    self_test("hv-overflow", "selftest=stack-overflow", exceptions::DOUBLE_FAULT, "hv::selftest::overflow"),
    self_test("hv-double-fault", "selftest=double-fault", exceptions::DOUBLE_FAULT, "hv::selftest::"),
    Row { vcpus: 3, ..self_test("hv-panic-smp", "selftest=panic", reasons::SELF_TEST, "hv::selftest::fail") },
    Row { vcpus: 3, ..self_test("hv-stuck", "selftest=stuck watchdog=1", "CPU 1 is stuck", "hv::selftest::get_stuck") },
    Row {
        name: "hv-stuck-alone",
        hv_words: "selftest=stuck",
        hypervised: Expected::saying(Verdict::Usage, reasons::ONE_CPU),
        alone: None,
        ..USUAL
    },
    Row {
        name: "hv-triple-fault",
        hv_words: "selftest=triple-fault",
        hypervised: Expected::just(Verdict::HvTripleFault),
        alone: None,
        ..USUAL
    },
    Row {
        name: "hv-usage",
        hv_words: "vm=mem=much",
        hypervised: Expected::saying(Verdict::Usage, "mem=much"),
        alone: None,
        ..USUAL
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build;
    use abi::options::{self, self_test};
    use abi::reasons::{Feature, Segment, Stuck};

    /// The guests and their command lines.
    fn command_lines() -> impl Iterator<Item = (&'static str, &'static str)> {
        rows().flat_map(|row| {
            let own = [Some(row.words), row.bochs_words].map(|words| row.guest().zip(words));
            let (beside, words) = row.beside.unzip();
            let others = [words, row.beside_in_real_time].map(|words| beside.zip(words));
            own.into_iter().chain(others).flatten()
        })
    }

    #[test]
    fn guests_know_the_words_of_their_rows() {
        for (guest, words) in command_lines() {
            for word in words.split_whitespace() {
                let is_known = match word.split_once('=') {
                    Some((key, _)) => options::guest::keys(guest).contains(&key),
                    None => !word.starts_with("--") || options::guest::ALL.contains(&word),
                };
                assert!(is_known, "{guest} does not know {word}");
            }
        }
    }

    #[test]
    fn the_hypervisor_knows_the_words_of_its_rows() {
        for word in rows().flat_map(|row| row.hv_words.split_whitespace()) {
            let (key, value) = word.split_once('=').unwrap();
            assert!(options::ALL.contains(&key), "{word}");
            assert!(key != options::SELF_TEST || self_test::ALL.contains(&value), "{word}");
        }
    }

    /// Where numbers stand in the text.
    #[test]
    fn rows_say_what_the_hypervisor_says() {
        let row = |name| rows().find(|row| row.name == name).unwrap();
        assert_eq!(row("no-such-feature").hypervised.text, Feature("clwb").to_string());
        assert_eq!(row("hv-stuck").hypervised.text, Stuck(1).to_string());
        assert!(row("two-refused").hypervised.text.ends_with(&Segment(0).to_string()));
        assert!(row("reset").hypervised.line.ends_with(reasons::BEGINS_ANEW));
        assert!(row("too-much-reserved").hypervised.text.ends_with(reasons::RESERVED));
        assert!(row("two-refused").refused_beside.unwrap().1.ends_with(reasons::WRONG_CHECKSUM));
    }

    /// The names of rows on a page, which stand behind the word.
    fn named_on(page: &str) -> Vec<&str> {
        let mut names = Vec::new();
        for list in page.split("row `").chain(page.split("rows `")).filter(|list| !page.starts_with(list)) {
            let mut parts = list.split('`');
            names.extend(parts.next());
            while let (Some(", " | " and "), Some(name)) = (parts.next(), parts.next()) {
                names.push(name);
            }
        }
        names
    }

    /// `fair-…` are all that begin so.
    #[test]
    fn the_design_names_rows_that_exist() {
        assert_eq!(named_on("row `a`, rows `b`, `c-…` and `d`; `e`"), ["a", "b", "c-…", "d"]);
        let names = named_on(include_str!("../../../hv/DESIGN.md"));
        assert!(names.len() > 10, "{names:?}");
        for name in names {
            let is_named =
                |row: &Row| name.strip_suffix('…').map_or(row.name == name, |start| row.name.starts_with(start));
            assert!(rows().any(is_named), "there is no row {name}");
        }
    }

    #[test]
    fn every_guest_has_a_row() {
        for guest in build::guest_names().unwrap() {
            let booted = rows().any(|row| matches!(row.source, Source::Guest(name) if name == guest));
            assert!(booted, "{guest} is never booted");
        }
    }

    #[test]
    fn a_row_is_usual_on_one_of_its_hosts() {
        let names = ["qemu-svm", "bochs-vmx", "bochs-svm"];
        for row in rows().filter(|row| !matches!(row.source, Source::Linux(_))) {
            assert!(
                row.rare_on.iter().chain(&row.only).chain(&row.except).all(|host| names.contains(host)),
                "{}",
                row.name
            );
            let usual = |host: &&str| row.only.is_none_or(|only| only == *host) && !row.rare_on.contains(host);
            let is_usual = names.iter().any(usual);
            assert!(is_usual || row.source == Source::Memtest, "{} is never booted", row.name);
        }
    }

    #[test]
    fn names_are_distinct() {
        for (at, row) in rows().enumerate() {
            assert!(rows().take(at).all(|earlier| earlier.name != row.name), "{}", row.name);
        }
    }
}
