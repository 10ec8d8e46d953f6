//! One guest on one machine, with or without the hypervisor, judged.

use crate::judge::{self, Evidence, Outcome};
use crate::machine::{Boot, Finished, Image, Machine};
use crate::size::Size;
use anyhow::Result;
use clap::ValueEnum;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Memory of a machine beyond what its guest gets, and the least that a machine has.
const HV_MEMORY: Size = Size::mib(256);
const LEAST_MEMORY: Size = Size::mib(512);

/// The largest page that maps a guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Pages {
    #[value(name = "4k")]
    Small,
    #[value(name = "2m")]
    Large,
}

/// The hypervisor's image, and the words of its command line that are not about a guest.
#[derive(Clone, Debug)]
pub(crate) struct Hypervisor {
    pub(crate) file: PathBuf,
    pub(crate) words: String,
}

/// A guest and what it gets.
#[derive(Clone, Debug)]
pub(crate) struct Guest {
    pub(crate) image: Image,
    pub(crate) modules: Vec<Image>,
    pub(crate) memory: Size,
    pub(crate) pages: Pages,
}

/// A guest, a machine, and how long it may take.
#[derive(Clone, Debug)]
pub(crate) struct Trial {
    pub(crate) machine: Machine,
    /// None: the guest alone on the machine.
    pub(crate) hypervisor: Option<Hypervisor>,
    pub(crate) guest: Guest,
    pub(crate) timeout: Duration,
    /// When the hypervisor ends the guest, by the machine's own clock; None: a bit before the time-out.
    pub(crate) limit: Option<Duration>,
}

/// What came of a trial.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) outcome: Outcome,
    pub(crate) finished: Finished,
}

impl Trial {
    /// Boots, waits, judges. `live` gets the console's bytes as they come.
    pub(crate) fn carry_out(&self, live: &mut dyn FnMut(&[u8])) -> Result<Report> {
        let finished = self.machine.run(&self.boot(), self.timeout, live)?;
        let outcome = judge::judge(&Evidence {
            machine: match (&self.machine, &self.hypervisor) {
                (Machine::Qemu(_), Some(_)) => judge::Machine::QemuHv,
                (Machine::Qemu(_), None) => judge::Machine::QemuBare,
                (Machine::Bochs(_), _) => judge::Machine::BochsHv,
            },
            end: finished.end,
            console: &finished.console,
            complaints: &finished.complaints,
            processor_shut_down: finished.processor_shut_down,
        });
        Ok(Report { outcome, finished })
    }

    /// The images and command lines: the hypervisor's modules are the guest's image and then the guest's modules.
    fn boot(&self) -> Boot {
        let Guest { image, modules, memory, pages } = &self.guest;
        let Some(hypervisor) = &self.hypervisor else {
            return Boot { kernel: image.clone(), modules: modules.clone(), memory: *memory };
        };
        let pages = match pages {
            Pages::Small => "4k",
            Pages::Large => "2m",
        };
        let (count, limit) = (modules.len(), self.guest_limit().as_secs());
        let vm = format!("vm=mem={memory},pages={pages},modules={count},limit={limit}");
        let words = [hypervisor.words.trim(), &vm].join(" ").trim().to_string();
        Boot {
            kernel: Image::new(&hypervisor.file, words),
            modules: [std::slice::from_ref(image), modules].concat(),
            memory: memory.plus(HV_MEMORY).max(LEAST_MEMORY),
        }
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
        match &self.machine {
            Machine::Qemu(qemu) => write!(f, "QEMU, {}{alone}", qemu.engine),
            Machine::Bochs(bochs) => write!(f, "Bochs, {}{alone}", bochs.cpu),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::qemu::{Engine, Qemu};

    fn trial(timeout: u64) -> Trial {
        Trial {
            machine: Machine::Qemu(Qemu { engine: Engine::Tcg, cpu: None }),
            hypervisor: Some(Hypervisor { file: "hv".into(), words: "log=info".to_string() }),
            guest: Guest {
                image: Image::new("guest", "a b"),
                modules: vec![Image::new("disk", "ro"), Image::new("conf", "")],
                memory: Size::mib(64),
                pages: Pages::Small,
            },
            timeout: Duration::from_secs(timeout),
            limit: None,
        }
    }

    #[test]
    fn the_hypervisor_gets_the_guest_and_its_modules() {
        let boot = trial(60).boot();
        assert_eq!(boot.kernel.words, "log=info vm=mem=64M,pages=4k,modules=2,limit=54");
        let modules: Vec<_> =
            boot.modules.iter().map(|module| (module.file.to_str().unwrap(), &*module.words)).collect();
        assert_eq!(modules, [("guest", "a b"), ("disk", "ro"), ("conf", "")]);
        assert_eq!(boot.memory, LEAST_MEMORY);
        let large = Trial { guest: Guest { memory: Size::mib(1024), ..trial(60).guest }, ..trial(60) };
        assert_eq!(large.boot().memory, Size::mib(1280));
    }

    #[test]
    fn alone_the_guest_is_the_kernel() {
        let boot = Trial { hypervisor: None, ..trial(60) }.boot();
        assert_eq!((boot.kernel.words.as_str(), boot.modules.len()), ("a b", 2));
        assert_eq!(boot.memory, Size::mib(64));
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
