//! Measures what exits cost and how large the image is, and holds both against the figures kept in the repository.

use crate::build::Images;
use crate::figures::{Figures, Unit};
use crate::image_size;
use crate::machine::bochs::{self, Bochs};
use crate::machine::qemu::{Engine, Qemu};
use crate::machine::{Emulator, Image};
use crate::output::outln;
use crate::progress::Step;
use crate::project;
use crate::setup::{self, Tool};
use crate::trial::{Guest, Hypervisor, Pages, Paging, Trial};
use abi::Verdict;
use abi::options::level;
use anyhow::Result;
use clap::ValueEnum;
use std::process::ExitCode;
use std::time::Duration;

/// Ample: a run takes seconds.
const TIMEOUT: Duration = Duration::from_secs(120);

/// A machine on which a tick is an instruction, so that figures repeat exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Host {
    /// QEMU with --icount: SVM
    QemuSvm,
    /// Bochs as an Intel processor: VMX
    BochsVmx,
    /// The same with two processors and two virtual ones: what they tell each other
    BochsVmxSmp,
    /// Bochs as an AMD processor: SVM with next-RIP save
    BochsSvm,
    /// QEMU with --icount, and a 32-bit guest with shadow tables
    QemuSvmShadow,
    /// Bochs as an Intel processor, and a 32-bit guest with shadow tables
    BochsVmxShadow,
}

impl Host {
    /// The name in figures and in the names of the files that keep them.
    const fn name(self) -> &'static str {
        match self {
            Self::QemuSvm => "qemu-svm-icount",
            Self::BochsVmx => "bochs-vmx",
            Self::BochsVmxSmp => "bochs-vmx-smp",
            Self::BochsSvm => "bochs-svm",
            Self::QemuSvmShadow => "qemu-svm-shadow-icount",
            Self::BochsVmxShadow => "bochs-vmx-shadow",
        }
    }

    /// The guest that measures, and how its addresses are translated.
    const fn guest(self) -> (&'static str, Paging) {
        match self {
            Self::QemuSvmShadow | Self::BochsVmxShadow => ("exit-latency32", Paging::Shadow),
            _ => ("exit-latency", Paging::Nested),
        }
    }

    /// The report's name below target/bench/.
    const fn report(self) -> &'static str {
        match self {
            Self::QemuSvm => "exit-latency.json",
            Self::BochsVmx => "exit-latency-bochs-vmx.json",
            Self::BochsVmxSmp => "exit-latency-bochs-vmx-smp.json",
            Self::BochsSvm => "exit-latency-bochs-svm.json",
            Self::QemuSvmShadow => "exit-latency-shadow.json",
            Self::BochsVmxShadow => "exit-latency-bochs-vmx-shadow.json",
        }
    }

    fn machine(self) -> Emulator {
        let bochs = |cpu: &str| Emulator::Bochs(Bochs::new(cpu));
        match self {
            Self::QemuSvm | Self::QemuSvmShadow => Emulator::Qemu(Qemu::new(Engine::ICOUNT, None)),
            Self::BochsVmx | Self::BochsVmxSmp | Self::BochsVmxShadow => bochs(bochs::VMX_CPU),
            Self::BochsSvm => bochs(bochs::SVM_CPU),
        }
    }

    /// The guest's virtual processors, and the machine's own.
    const fn processors(self) -> u32 {
        match self {
            // QEMU with --icount runs one processor after the other, for as long as it pleases.
            Self::BochsVmxSmp => 2,
            _ => 1,
        }
    }

    const fn tool(self) -> Tool {
        match self {
            Self::QemuSvm | Self::QemuSvmShadow => Tool::Qemu,
            Self::BochsVmx | Self::BochsVmxSmp | Self::BochsSvm | Self::BochsVmxShadow => Tool::Bochs,
        }
    }
}

/// Measure what exits cost, and compare
///
/// Boots the exit-latency guests where a tick is an instruction (QEMU with --icount, and Bochs), twice on each machine: the
/// figures have to be the same. Writes target/bench/exit-latency.json (QEMU's; Bochs's beside it), and fails where a
/// figure is more than 5 % above the one kept in xtask/baseline/, or the hypervisor's image more than 2 % larger than kept there.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask bench                    measure on all machines, and compare
  cargo xtask bench --host bochs-vmx   on one
  cargo xtask bench --save             keep the figures as those to compare with

Exit status: 0 if all is well; 1 after a regression, or if two runs differ; 2 if something has to be installed; if the
guest does not pass, the status of its run (see `cargo xtask run --help`).")]
pub(crate) struct Args {
    /// Measure on this machine alone; may be repeated
    #[arg(long, value_enum)]
    host: Vec<Host>,
    /// Keep the measured figures in the repository, in place of comparing
    #[arg(long)]
    save: bool,
}

pub(crate) fn command(args: &Args) -> Result<ExitCode> {
    let hosts = if args.host.is_empty() { Host::value_variants() } else { &args.host };
    hosts.iter().try_for_each(|host| setup::ensure(host.tool()))?;
    let images = Images::build()?;
    let mut status = image_size::check(&images.hv(), args.save)?;
    for host in hosts {
        let bench = Bench { host: *host, save: args.save }.carry_out(&images)?;
        status = if status == 0 { bench } else { status };
    }
    Ok(ExitCode::from(status))
}

/// The measuring of one host.
struct Bench {
    host: Host,
    save: bool,
}

impl Bench {
    /// Measures twice, writes and compares; the exit status.
    fn carry_out(&self, images: &Images) -> Result<u8> {
        let name = self.host.name();
        let trial = trial(self.host, images);
        let (first, second) = match (self.measure(&trial, "first")?, self.measure(&trial, "second")?) {
            (Ok(first), Ok(second)) => (first, second),
            (Err(verdict), _) | (_, Err(verdict)) => return Ok(verdict.status()),
        };
        let kept_file = project::root().join(format!("xtask/baseline/exit-latency-{name}.json"));
        let kept = if self.save || !kept_file.exists() { None } else { Some(Figures::load(&kept_file)?) };
        outln!("exit latency in instructions, as the guest sees it ({name})\n{}", first.table(kept.as_ref()));
        let file = project::reports("bench").join(self.host.report());
        first.save(&file)?;
        outln!("bench: written to {}", project::short(&file));

        if first != second {
            outln!("bench: {name}: FAILED: two runs differ; the second:\n{}", second.table(Some(&first)));
            return Ok(1);
        }
        if self.save {
            first.save(&kept_file)?;
            outln!("bench: kept in {}\n", project::short(&kept_file));
            return Ok(0);
        }
        let Some(kept) = kept else {
            outln!("bench: {name}: FAILED: nothing to compare with; `cargo xtask bench --save` keeps these figures\n");
            return Ok(1);
        };
        let regressions = first.regressions(&kept)?;
        for regression in &regressions {
            outln!("bench: {name}: FAILED: {regression}");
        }
        if regressions.is_empty() {
            outln!("bench: {name}: two runs are the same, and nothing is more than 5 % above the figures kept\n");
        }
        Ok(u8::from(!regressions.is_empty()))
    }

    /// The figures of one run, or how it ended if it did not pass.
    fn measure(&self, trial: &Trial, which: &str) -> Result<Result<Figures, Verdict>> {
        let step = Step::begin(format!("measuring on {}, {which} run", self.host.name()));
        let report = trial.carry_out(&mut |_| ())?;
        step.end(report.outcome.verdict.name());
        if report.outcome.verdict != Verdict::Pass {
            report.finished.console.iter().chain(&report.finished.complaints).for_each(|line| outln!("{line}"));
            outln!("bench: {}: {}", self.host.name(), report.outcome);
            return Ok(Err(report.outcome.verdict));
        }
        Figures::read(self.host.name(), Unit::Instructions, report.finished.console.iter().map(String::as_str)).map(Ok)
    }
}

fn trial(host: Host, images: &Images) -> Trial {
    let (guest, paging) = host.guest();
    let guest = Guest {
        paging,
        // So that a first touch is that of a 4 KiB page.
        pages: Pages::Small,
        vcpus: host.processors(),
        ..Guest::new(Image::new(images.guest(guest), ""))
    };
    Trial {
        machine: host.machine(),
        cpus: Some(host.processors()),
        ram: None,
        hypervisor: Some(Hypervisor::new(images.hv(), level::INFO, "")),
        guests: vec![guest],
        timeout: TIMEOUT,
        limit: None,
    }
}
