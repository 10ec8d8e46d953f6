//! Measures what exits cost and how large the image is, and holds both against the figures kept in the repository.

use crate::build::Images;
use crate::figures::{Figures, Unit};
use crate::image_size;
use crate::machine::qemu::{Engine, Qemu};
use crate::machine::{Emulator, Host, Image};
use crate::output::outln;
use crate::progress::Step;
use crate::project;
use crate::trial::{Guest, Hypervisor, Pages, Paging, Trial};
use abi::Verdict;
use abi::options::level;
use anyhow::Result;
use clap::ValueEnum;
use std::process::ExitCode;
use std::time::Duration;

/// Ample: a run takes seconds.
const TIMEOUT: Duration = Duration::from_secs(120);

/// What is measured: a host on which a tick is an instruction, so that figures repeat exactly, and a guest on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Setup {
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

impl Setup {
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

    const fn host(self) -> Host {
        match self {
            Self::QemuSvm | Self::QemuSvmShadow => Host::QemuSvm,
            Self::BochsVmx | Self::BochsVmxSmp | Self::BochsVmxShadow => Host::BochsVmx,
            Self::BochsSvm => Host::BochsSvm,
        }
    }

    /// The host, where its processors count instructions.
    fn machine(self) -> Emulator {
        match self.host() {
            Host::QemuSvm => Emulator::Qemu(Qemu::new(Engine::ICOUNT, None)),
            host => host.emulator(),
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
    host: Vec<Setup>,
    /// Keep the measured figures in the repository, in place of comparing
    #[arg(long)]
    save: bool,
}

pub(crate) fn command(args: &Args) -> Result<ExitCode> {
    let setups = if args.host.is_empty() { Setup::value_variants() } else { &args.host };
    setups.iter().try_for_each(|setup| setup.host().ensure())?;
    let images = Images::build()?;
    let mut status = image_size::check(&images.hv(), args.save)?;
    for setup in setups {
        let bench = Bench { setup: *setup, save: args.save }.carry_out(&images)?;
        status = if status == 0 { bench } else { status };
    }
    Ok(ExitCode::from(status))
}

/// The measuring of one setup.
struct Bench {
    setup: Setup,
    save: bool,
}

impl Bench {
    /// Measures twice, writes and compares; the exit status.
    fn carry_out(&self, images: &Images) -> Result<u8> {
        let name = self.setup.name();
        let trial = trial(self.setup, images);
        let (first, second) = match (self.measure(&trial, "first")?, self.measure(&trial, "second")?) {
            (Ok(first), Ok(second)) => (first, second),
            (Err(verdict), _) | (_, Err(verdict)) => return Ok(verdict.status()),
        };
        let kept_file = project::root().join(format!("xtask/baseline/exit-latency-{name}.json"));
        let kept = if self.save || !kept_file.exists() { None } else { Some(Figures::load(&kept_file)?) };
        outln!("exit latency in instructions, as the guest sees it ({name})\n{}", first.table(kept.as_ref()));
        let file = project::reports("bench").join(self.setup.report());
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
        let step = Step::begin(format!("measuring on {}, {which} run", self.setup.name()));
        let report = trial.carry_out(&mut |_| ())?;
        step.end(report.outcome.verdict.name());
        if report.outcome.verdict != Verdict::Pass {
            report.finished.console.iter().chain(&report.finished.complaints).for_each(|line| outln!("{line}"));
            outln!("bench: {}: {}", self.setup.name(), report.outcome);
            return Ok(Err(report.outcome.verdict));
        }
        Figures::read(self.setup.name(), Unit::Instructions, report.finished.console.iter().map(String::as_str)).map(Ok)
    }
}

fn trial(setup: Setup, images: &Images) -> Trial {
    let (guest, paging) = setup.guest();
    let guest = Guest {
        paging,
        // So that a first touch is that of a 4 KiB page.
        pages: Pages::Small,
        vcpus: setup.processors(),
        ..Guest::new(Image::new(images.guest(guest), ""))
    };
    Trial {
        machine: setup.machine(),
        cpus: Some(setup.processors()),
        ram: None,
        hypervisor: Some(Hypervisor::new(images.hv(), level::INFO, "")),
        guests: vec![guest],
        timeout: TIMEOUT,
        limit: None,
    }
}
