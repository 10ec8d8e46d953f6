//! Guests on a machine, with or without the hypervisor, judged.

use crate::demands::Demands;
use crate::judge::{self, Evidence, Outcome, VmReport};
use crate::machine::input::Input;
use crate::machine::trace::Trace;
use crate::machine::{Boot, Emulator, Finished, Image, Images, Medium, run_folder};
use crate::size::Size;
use abi::cpus::spared_cpus;
use abi::options::{self, key};
use anyhow::{Result, bail};
use clap::ValueEnum;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Memory of a machine beyond what its guests get, and the least that a machine has.
const HV_MEMORY: Size = Size::mib(256);
const LEAST_MEMORY: Size = Size::mib(512);
/// How much longer QEMU may take when it logs what it translates, and Bochs when it prints each instruction.
const QEMU_TRACE_SLOWNESS: u32 = 3;
const BOCHS_TRACE_SLOWNESS: u32 = 100;
/// The most processors that a machine gets unasked.
const MOST_CPUS: u32 = 8;

/// The largest page that maps a guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Pages {
    #[value(name = options::pages::SMALL)]
    Small,
    #[value(name = options::pages::LARGE)]
    Large,
}

/// How a guest's memory is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Paging {
    /// By EPT or NPT
    #[value(name = options::paging::NESTED)]
    Nested,
    /// By shadows of its page tables: 32-bit guests alone
    #[value(name = options::paging::SHADOW)]
    Shadow,
    /// By shadows of its page tables that are dropped at each load of CR3: 32-bit guests alone
    #[value(name = options::paging::VTLB)]
    Vtlb,
}

/// When a guest's memory gets its frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Backing {
    /// Page by page, when the guest first touches it
    #[value(name = options::memory::TOUCH)]
    Touch,
    /// Before the guest starts
    #[value(name = options::memory::RESERVE)]
    Reserve,
}

/// What becomes of a guest that resets its machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnReset {
    /// It ends
    #[value(name = options::on_reset::END)]
    End,
    /// It begins anew from its image
    #[value(name = options::on_reset::RESTART)]
    Restart,
}

/// The hypervisor's image, and the words of its command line that are not about a guest.
#[derive(Clone, Debug)]
pub(crate) struct Hypervisor {
    pub(crate) file: PathBuf,
    pub(crate) words: String,
}

impl Hypervisor {
    /// The hypervisor in `file`, which shows messages down to this [level](options::level), with more words for it.
    pub(crate) fn new(file: PathBuf, level: &str, words: &str) -> Self {
        Self { file, words: format!("{}={level} {words}", options::LOG) }
    }

    /// Its image and command line for these guests. The modules are a guest's image, that guest's modules, the next guest's…
    pub(crate) fn images(&self, guests: &[Guest], limit: Duration) -> Images {
        let vms = guests.iter().map(|guest| guest.word(limit));
        let words: Vec<_> = std::iter::once(self.words.trim().to_string()).chain(vms).collect();
        let parts = |guest: &Guest| [std::slice::from_ref(&guest.image), &guest.modules].concat();
        Images {
            kernel: Image::new(&self.file, words.join(" ").trim()),
            modules: guests.iter().flat_map(parts).collect(),
        }
    }
}

/// A guest and what it gets.
#[derive(Clone, Debug)]
pub(crate) struct Guest {
    /// What the VM is called on the console.
    pub(crate) name: String,
    pub(crate) image: Image,
    pub(crate) modules: Vec<Image>,
    pub(crate) vcpus: u32,
    pub(crate) memory: Size,
    pub(crate) backing: Backing,
    pub(crate) pages: Pages,
    pub(crate) paging: Paging,
    /// Features of its processors: those that they lack, each after a `-`, and those that they must have, after a `+`.
    pub(crate) cpuid: String,
    /// What is typed on its console: one guest's at most.
    pub(crate) input: Option<Input>,
    pub(crate) on_reset: OnReset,
    /// What its console must have, and must not have.
    pub(crate) demands: Demands,
}

impl Guest {
    /// A guest's memory if nothing else is said.
    pub(crate) const MEMORY: Size = Size::mib(64);

    /// The first guest of a machine, with what guests get if nothing else is said.
    pub(crate) fn new(image: Image) -> Self {
        Self {
            name: "vm0".to_string(),
            image,
            modules: Vec::new(),
            vcpus: 1,
            memory: Self::MEMORY,
            backing: Backing::Touch,
            pages: Pages::Large,
            paging: Paging::Nested,
            cpuid: String::new(),
            input: None,
            on_reset: OnReset::End,
            demands: Demands::default(),
        }
    }

    /// The hypervisor's word for its VM.
    fn word(&self, limit: Duration) -> String {
        let keys = [
            (key::NAME, self.name.clone()),
            (key::VCPUS, self.vcpus.to_string()),
            (key::PAGING, word_of(self.paging)),
            (key::SIZE, self.memory.to_string()),
            (key::MEMORY, word_of(self.backing)),
            (key::PAGES, word_of(self.pages)),
            (
                key::INPUT,
                if self.input.as_ref().is_some_and(Input::is_for_guest) {
                    options::input::ON
                } else {
                    options::input::OFF
                }
                .to_string(),
            ),
            (key::MODULES, self.modules.len().to_string()),
            (key::ON_RESET, word_of(self.on_reset)),
            (key::LIMIT, limit.as_secs().to_string()),
        ];
        let cpuid = (!self.cpuid.is_empty()).then(|| (key::CPUID, self.cpuid.clone()));
        let keys = keys.into_iter().chain(cpuid).map(|(key, value)| format!("{key}={value}"));
        format!("{}={}", options::VM, keys.collect::<Vec<_>>().join(","))
    }
}

/// The value as it is written on a command line.
pub(crate) fn word_of(value: impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_string()).unwrap_or_default()
}

/// Guests, a machine, and how long it may take.
#[derive(Clone, Debug)]
pub(crate) struct Trial {
    pub(crate) machine: Emulator,
    /// The processors that run guests; None: as many as the guests have, up to a limit.
    pub(crate) cpus: Option<u32>,
    /// The machine's memory; None: what the guests have and some more.
    pub(crate) ram: Option<Size>,
    /// None: one guest alone on the machine.
    pub(crate) hypervisor: Option<Hypervisor>,
    /// One at least.
    pub(crate) guests: Vec<Guest>,
    pub(crate) timeout: Duration,
    /// When the hypervisor ends a guest, by the machine's own clock; None: a bit before the time-out.
    pub(crate) limit: Option<Duration>,
}

/// What came of a trial.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) outcome: Outcome,
    pub(crate) vms: Vec<VmReport>,
    pub(crate) finished: Finished,
}

impl Report {
    /// Whether a guest's own tests failed, by their names, rather than the guest as a whole.
    pub(crate) fn guests_failed_tests(&self) -> bool {
        self.vms.iter().any(|vm| vm.ktap.failed().next().is_some())
    }
}

impl Trial {
    /// Boots, waits, judges. `live` gets the console's bytes as they come.
    pub(crate) fn carry_out(&self, live: &mut dyn FnMut(&[u8])) -> Result<Report> {
        self.carry_out_from(Medium::Images(self.images()), live)
    }

    /// The same from an ISO of this trial's images.
    pub(crate) fn carry_out_from_iso(&self, iso: &Path, live: &mut dyn FnMut(&[u8])) -> Result<Report> {
        self.carry_out_from(Medium::Iso(iso.to_path_buf()), live)
    }

    /// Boots with the console on this terminal, and waits for the end, which is not judged: QEMU alone can do that.
    pub(crate) fn take_over(&self) -> Result<()> {
        let Emulator::Qemu(qemu) = &self.machine else { bail!("{} takes no input", self.machine) };
        qemu.take_over(&self.boot(Medium::Images(self.images())), run_folder()?.path())
    }

    fn boot(&self, from: Medium) -> Boot {
        let input = self.guests.iter().find_map(|guest| guest.input.clone());
        Boot {
            from,
            memory: self.memory(),
            cpus: self.machine_cpus(),
            vms: self.marks(),
            input,
            is_reset: self.hypervisor.is_none() && self.guests.iter().any(|guest| guest.on_reset == OnReset::Restart),
        }
    }

    fn carry_out_from(&self, from: Medium, live: &mut dyn FnMut(&[u8])) -> Result<Report> {
        let finished = self.machine.run(&self.boot(from), self.timeout, live)?;
        let vms: Vec<String> = self.guests.iter().map(|guest| guest.name.clone()).collect();
        let demands: Vec<_> = self.guests.iter().map(|guest| guest.demands.clone()).collect();
        let judgement = judge::judge(&Evidence {
            protocol: match (&self.machine, &self.hypervisor) {
                (Emulator::Qemu(_), Some(_)) => judge::ExitProtocol::QemuHv,
                (Emulator::Qemu(_), None) => judge::ExitProtocol::QemuBare,
                (Emulator::Bochs(_), _) => judge::ExitProtocol::BochsHv,
            },
            vms: &vms,
            demands: &demands,
            end: finished.end,
            console: &finished.console,
            complaints: &finished.complaints,
            processor_shut_down: finished.processor_shut_down,
        });
        Ok(Report { outcome: judgement.outcome, vms: judgement.vms, finished })
    }

    /// The same trial with the hypervisor's instructions noted in `trace`. That takes time on the wall, but none of the machine's.
    pub(crate) fn traced(mut self, trace: &Trace) -> Self {
        self.limit = Some(self.guest_limit());
        self.timeout *= match self.machine {
            Emulator::Qemu(_) => QEMU_TRACE_SLOWNESS,
            Emulator::Bochs(_) => BOCHS_TRACE_SLOWNESS,
        };
        self.machine.trace(trace);
        self
    }

    /// The images to boot.
    pub(crate) fn images(&self) -> Images {
        match &self.hypervisor {
            Some(hypervisor) => hypervisor.images(&self.guests, self.guest_limit()),
            None => Images { kernel: self.guests[0].image.clone(), modules: self.guests[0].modules.clone() },
        }
    }

    /// What marks the VMs' lines.
    fn marks(&self) -> Vec<Option<String>> {
        match (&self.hypervisor, &self.guests[..]) {
            (None, _) => Vec::new(),
            (Some(_), [_]) => vec![None],
            (Some(_), several) => several.iter().map(|guest| Some(guest.name.clone())).collect(),
        }
    }

    fn memory(&self) -> Size {
        let guests = self.guests.iter().fold(Size::mib(0), |sum, guest| sum.plus(guest.memory));
        let unasked = if self.hypervisor.is_some() { guests.plus(HV_MEMORY).max(LEAST_MEMORY) } else { guests };
        self.ram.unwrap_or(unasked)
    }

    fn cpus(&self) -> u32 {
        let vcpus = self.guests.iter().map(|guest| guest.vcpus).sum::<u32>();
        self.cpus.unwrap_or(if self.hypervisor.is_some() { vcpus.min(MOST_CPUS) } else { vcpus })
    }

    /// As many processors as the machine needs for that many to run guests.
    fn machine_cpus(&self) -> u32 {
        let spared = match &self.hypervisor {
            Some(_) => spared_cpus(self.machine.is_qemu_emulation(), self.cpus() as usize),
            None => 0,
        };
        self.cpus() + spared as u32
    }

    /// A tenth less than the time-out, and a second at least, so that it is the hypervisor that says where a guest hangs.
    fn guest_limit(&self) -> Duration {
        let margin = (self.timeout / 10).max(Duration::from_secs(1));
        self.limit.unwrap_or_else(|| self.timeout.saturating_sub(margin).max(Duration::from_secs(1)))
    }
}

impl fmt::Display for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let alone = if self.hypervisor.is_none() { ", without the hypervisor" } else { "" };
        write!(f, "{}", self.machine)?;
        match self.cpus() {
            1 => f.write_str(alone),
            cpus => write!(f, ", {cpus} processors{alone}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::qemu::{Engine, Qemu};

    fn guest() -> Guest {
        let modules = vec![Image::new("disk", "ro"), Image::new("conf", "")];
        Guest { modules, pages: Pages::Small, ..Guest::new(Image::new("guest", "a b")) }
    }

    fn trial(timeout: u64) -> Trial {
        Trial {
            machine: Emulator::Qemu(Qemu::new(Engine::Tcg, None)),
            cpus: None,
            ram: None,
            hypervisor: Some(Hypervisor::new("hv".into(), options::level::INFO, "")),
            guests: vec![guest()],
            timeout: Duration::from_secs(timeout),
            limit: None,
        }
    }

    fn files(images: &Images) -> Vec<(&str, &str)> {
        images.modules.iter().map(|module| (module.file.to_str().unwrap(), &*module.words)).collect()
    }

    #[test]
    fn the_hypervisor_gets_the_guest_and_its_modules() {
        let images = trial(60).images();
        assert_eq!(
            images.kernel.words,
            "log=info vm=name=vm0,vcpus=1,paging=nested,mem=64M,memory=touch,pages=4k,input=off,modules=2,on-reset=end,limit=54"
        );
        assert_eq!(files(&images), [("guest", "a b"), ("disk", "ro"), ("conf", "")]);
        assert_eq!((trial(60).memory(), trial(60).cpus()), (LEAST_MEMORY, 1));
    }

    /// The hypervisor reads what this program writes, whatever the guest is to have.
    #[test]
    fn the_hypervisor_understands_the_words_for_a_vm() {
        for (&paging, &backing) in Paging::value_variants()
            .iter()
            .flat_map(|paging| Backing::value_variants().iter().map(move |backing| (paging, backing)))
        {
            for ((&pages, limit), input) in
                Pages::value_variants().iter().zip([0, 54]).zip([None, Some(Input::Standard)])
            {
                let has_input = input.is_some();
                let wanted = Guest { name: "b-1".into(), vcpus: 3, paging, backing, pages, input, ..guest() };
                let word = wanted.word(Duration::from_secs(limit));
                let read = loader::Config::parse(&word).unwrap().vms[0];
                let paging = match paging {
                    Paging::Nested => loader::Paging::Nested,
                    Paging::Shadow => loader::Paging::Shadow,
                    Paging::Vtlb => loader::Paging::Vtlb,
                };
                let backing = match backing {
                    Backing::Touch => loader::Backing::Touch,
                    Backing::Reserve => loader::Backing::Reserve,
                };
                let pages = match pages {
                    Pages::Small => addr::PageSize::Size4K,
                    Pages::Large => addr::PageSize::Size2M,
                };
                assert_eq!((read.name.as_str(), read.vcpus, read.modules), ("b-1", 3, 2), "{word}");
                assert_eq!((read.paging, read.backing, read.pages), (paging, backing, pages), "{word}");
                assert_eq!(read.input, has_input, "{word}");
                assert_eq!(read.ram.bytes(), Guest::MEMORY.in_mib() << 20, "{word}");
                assert_eq!(read.limit.map_or(0, |limit| u64::from(limit.get())), limit, "{word}");
            }
        }
    }

    #[test]
    fn several_guests_follow_one_another() {
        let second =
            Guest { name: "b".into(), vcpus: 3, memory: Size::mib(1024), ..Guest::new(Image::new("other", "c")) };
        let two = Trial { guests: vec![guest(), second.clone()], ..trial(60) };
        let images = two.images();
        assert!(images.kernel.words.contains(
            "limit=54 vm=name=b,vcpus=3,paging=nested,mem=1G,memory=touch,pages=2m,input=off,modules=0,on-reset=end,"
        ));
        assert_eq!(files(&images), [("guest", "a b"), ("disk", "ro"), ("conf", ""), ("other", "c")]);
        assert_eq!((two.memory(), two.cpus()), (Size::mib(64 + 1024 + 256), 4));
        assert_eq!(Trial { ram: Some(Size::mib(128)), ..two.clone() }.memory(), Size::mib(128));
        assert_eq!(two.to_string(), "QEMU, TCG, 4 processors");
        assert_eq!(Trial { cpus: Some(2), ..two.clone() }.cpus(), 2);
        assert_eq!(Trial { cpus: Some(2), ..two.clone() }.machine_cpus(), 3);
        assert_eq!(Trial { cpus: Some(1), ..two.clone() }.machine_cpus(), 1);
        assert_eq!(Trial { guests: vec![Guest { vcpus: 16, ..second }], ..two }.cpus(), MOST_CPUS);
    }

    #[test]
    fn alone_the_guest_is_the_kernel() {
        let alone = Trial { hypervisor: None, ..trial(60) };
        let images = alone.images();
        assert_eq!((images.kernel.words.as_str(), images.modules.len()), ("a b", 2));
        assert_eq!(alone.memory(), Size::mib(64));
    }

    #[test]
    fn the_limit_comes_before_the_time_out() {
        for (timeout, limit) in [(60, 54), (600, 540), (5, 4), (2, 1), (1, 1)] {
            assert_eq!(trial(timeout).guest_limit().as_secs(), limit);
        }
        let own = Trial { limit: Some(Duration::from_secs(7)), ..trial(60) };
        assert_eq!(own.guest_limit().as_secs(), 7);
    }
}
