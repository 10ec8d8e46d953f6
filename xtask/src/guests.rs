//! The guests that a command line asks for.

use crate::build::{self, Images};
use crate::demands::Demands;
use crate::machine::Image;
use crate::machine::input::Input;
use crate::size::Size;
use crate::trial::{Backing, Guest, OnReset, Pages, Paging};
use abi::options::{self, MAX_VCPUS, OneOf, key};
use anyhow::Result;
use arch::features::{FEATURES, FeatureChoice};
use clap::ValueEnum;
use std::fs::File;
use std::path::PathBuf;
use std::str::FromStr;

/// What `--vm` takes, for its help and its errors.
fn vm_keys() -> String {
    let words = |all: &[&str]| all.join("|");
    let keys = [
        ("guest", "FILE".to_string()),
        (key::NAME, "NAME".to_string()),
        (key::VCPUS, "N".to_string()),
        (key::SIZE, "SIZE".to_string()),
        (key::MEMORY, words(&options::memory::ALL)),
        (key::PAGING, words(&options::paging::ALL)),
        (key::PAGES, words(&options::pages::ALL)),
        (key::CPUID, "FEATURES".to_string()),
        (key::INPUT, "FILE".to_string()),
        (key::ON_RESET, words(&options::on_reset::ALL)),
        ("initrd", "FILE".to_string()),
        ("module", "FILE WORDS".to_string()),
    ];
    let keys = keys.map(|(key, value)| format!("{key}={value}")).join(", ");
    format!("{keys}, and last cmdline=WORDS")
}

/// The help of `--pages`.
fn pages_help() -> String {
    let (small, large) = (options::pages::SMALL, options::pages::LARGE);
    format!(
        "The largest page that maps the guest's memory [default: {small} for exit-latency, which touches such pages; else {large}]"
    )
}

/// The help of `--vm`.
fn vm_help() -> String {
    format!(
        "A VM of its own, beside others; may be repeated. KEYS, with commas between them: {}, which takes the rest. \
         module= may be repeated, and one VM alone has input=",
        vm_keys()
    )
}

/// What guests there are to be, and what they get.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct GuestArgs {
    /// Image to run (Linux bzImage, multiboot, multiboot2 or PVH), or the name of one of our guests, which a wrong name lists
    #[arg(long, value_name = "FILE")]
    guest: Option<GuestImage>,
    /// Words for the guest's command line, after its name
    #[arg(long, value_name = "WORDS", default_value = "", allow_hyphen_values = true)]
    cmdline: String,
    /// The guest's initial RAM disk: its first module
    #[arg(long, value_name = "FILE", value_parser = readable_file)]
    initrd: Option<PathBuf>,
    /// A module for the guest, and the words for its string; may be repeated
    #[arg(long, value_name = "FILE WORDS", value_parser = parse_module)]
    module: Vec<Image>,
    /// The guest's virtual processors, 16 at most
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_VCPUS)))]
    vcpus: u32,
    /// The guest's memory
    #[arg(long, value_name = "SIZE", default_value_t = Guest::MEMORY)]
    mem: Size,
    /// When the guest's memory gets its frames
    #[arg(long, value_enum, default_value = options::memory::TOUCH)]
    memory: Backing,
    /// How the guest's memory is translated
    #[arg(long, value_enum, default_value = options::paging::NESTED)]
    paging: Paging,
    #[arg(long, value_enum, help = pages_help())]
    pages: Option<Pages>,
    /// Features of CPUID that the guest's processors lack, each after a `-`, and those without which it does not start, after a `+`:
    /// -x2apic,+rdrand
    #[arg(long, value_name = "FEATURES", default_value = "", hide_default_value = true, allow_hyphen_values = true, value_parser = parse_cpuid)]
    cpuid: String,
    /// What is typed on the guest's COM1; `-` is the standard input [default: this terminal's keys, for a guest by its FILE alone]
    #[arg(long, value_name = "FILE")]
    input: Option<Input>,
    /// What becomes of the guest when it resets its machine, by a triple fault among other ways
    #[arg(long, value_enum, default_value = options::on_reset::END)]
    on_reset: OnReset,
    #[arg(long, value_name = "KEYS", help = vm_help(), conflicts_with_all = ["guest", "cmdline", "initrd", "module", "vcpus", "mem", "memory", "paging", "pages", "cpuid", "input", "on_reset"])]
    vm: Vec<Wanted>,
    /// Of each guest.
    #[command(flatten)]
    demands: Demands,
}

impl GuestArgs {
    /// The guests of one machine: those of `--vm`, or `--guest`, or else this one of ours.
    pub(crate) fn wanted(&self, default: &str) -> Vec<Wanted> {
        if !self.vm.is_empty() {
            let demands = &self.demands;
            return self.vm.iter().map(|vm| Wanted { demands: demands.clone(), ..vm.clone() }).collect();
        }
        let Self {
            guest,
            cmdline,
            initrd,
            module,
            vcpus,
            mem,
            memory,
            paging,
            pages,
            cpuid,
            input,
            on_reset,
            demands,
            ..
        } = self.clone();
        let modules = initrd.map(|file| Image::new(file, "")).into_iter().chain(module).collect();
        let guest = guest.unwrap_or_else(|| GuestImage::Ours(default.to_string()));
        vec![Wanted {
            name: None,
            guest,
            words: cmdline,
            modules,
            vcpus,
            mem,
            memory,
            paging,
            pages,
            cpuid,
            input,
            on_reset,
            demands,
        }]
    }

    /// Whether anything is demanded of the guests' consoles.
    pub(crate) fn demands_any(&self) -> bool {
        self.demands.are_any()
    }

    /// Whether a guest is named.
    pub(crate) fn names_any(&self) -> bool {
        self.guest.is_some() || !self.vm.is_empty()
    }
}

/// The image of a guest that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum GuestImage {
    /// One of our guests, by its name.
    Ours(String),
    /// A file that was there, and could be read.
    File(PathBuf),
}

impl FromStr for GuestImage {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = build::guest_names().map_err(|error| format!("{error:#}"))?;
        if names.iter().any(|name| name == text) {
            return Ok(Self::Ours(text.to_string()));
        }
        let file = readable_file(text)
            .map_err(|error| format!("{error}, and none of our guests has this name ({})", names.join(", ")))?;
        Ok(Self::File(file))
    }
}

/// A guest that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    name: Option<String>,
    guest: GuestImage,
    words: String,
    modules: Vec<Image>,
    vcpus: u32,
    mem: Size,
    memory: Backing,
    paging: Paging,
    pages: Option<Pages>,
    cpuid: String,
    input: Option<Input>,
    on_reset: OnReset,
    demands: Demands,
}

impl Wanted {
    /// What it is, for people.
    pub(crate) fn title(&self) -> String {
        match &self.guest {
            GuestImage::Ours(name) => name.clone(),
            GuestImage::File(file) => file.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        }
    }

    /// Gives it the keys of this terminal, if there is one, unless it has other input, or is one of ours, which want none.
    pub(crate) fn take_keys(&mut self) {
        if self.input.is_none() && !self.is_ours() && Input::Standard.is_terminal() {
            self.input = Some(Input::Standard);
        }
    }

    /// Whether the contents of a file are typed for it.
    pub(crate) fn has_file_for_input(&self) -> bool {
        matches!(self.input, Some(Input::File(_)))
    }

    /// Whether something is typed for it.
    pub(crate) fn has_input(&self) -> bool {
        self.input.as_ref().is_some_and(Input::is_for_guest)
    }

    /// Whether it is one of our guests, rather than a file.
    pub(crate) fn is_ours(&self) -> bool {
        matches!(self.guest, GuestImage::Ours(_))
    }

    /// The VM with this number. `images` has our guests, where they were built.
    pub(crate) fn resolve(&self, number: usize, images: Option<&Images>) -> Guest {
        let file = match &self.guest {
            GuestImage::Ours(name) => images.map_or_else(|| PathBuf::from(name), |images| images.guest(name)),
            GuestImage::File(file) => file.clone(),
        };
        let small = self.guest == GuestImage::Ours("exit-latency".to_string());
        Guest {
            name: self.name.clone().unwrap_or_else(|| format!("vm{number}")),
            image: Image::new(file, self.words.clone()),
            modules: self.modules.clone(),
            vcpus: self.vcpus,
            memory: self.mem,
            backing: self.memory,
            pages: self.pages.unwrap_or(if small { Pages::Small } else { Pages::Large }),
            paging: self.paging,
            cpuid: self.cpuid.clone(),
            input: self.input.clone(),
            on_reset: self.on_reset,
            demands: self.demands.clone(),
        }
    }
}

impl FromStr for Wanted {
    type Err = String;

    /// Reads `KEY=VALUE,…,cmdline=the rest, with its commas`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (keys, words) = match text.split_once(",cmdline=") {
            Some((keys, words)) => (keys, words),
            None => text.strip_prefix("cmdline=").map_or((text, ""), |words| ("", words)),
        };
        let guest = keys.split(',').find_map(|word| word.strip_prefix("guest="));
        let guest = guest.ok_or_else(|| format!("guest=FILE is missing; expected {}", vm_keys()))?;
        let mut vm = Self {
            name: None,
            guest: guest.parse()?,
            words: words.to_string(),
            modules: Vec::new(),
            vcpus: 1,
            mem: Guest::MEMORY,
            memory: Backing::Touch,
            paging: Paging::Nested,
            pages: None,
            cpuid: String::new(),
            input: None,
            on_reset: OnReset::End,
            demands: Demands::default(),
        };
        keys.split(',').try_for_each(|word| vm.set(word))?;
        Ok(vm)
    }
}

impl Wanted {
    fn set(&mut self, word: &str) -> Result<(), String> {
        let (key, value) = word.split_once('=').ok_or_else(|| format!("'{word}': expected {}", vm_keys()))?;
        match key {
            "guest" => self.guest = value.parse()?,
            key::NAME => self.name = Some(value.to_string()),
            key::VCPUS => {
                let count = value.parse().ok().filter(|count| (1..=MAX_VCPUS).contains(count));
                self.vcpus = count.ok_or_else(|| format!("vcpus={value}: expected a number from 1 to {MAX_VCPUS}"))?;
            }
            key::SIZE => self.mem = value.parse()?,
            key::MEMORY => {
                self.memory = Backing::from_str(value, false).map_err(|_| expected(word, &options::memory::ALL))?;
            }
            key::PAGING => {
                self.paging = Paging::from_str(value, false).map_err(|_| expected(word, &options::paging::ALL))?;
            }
            key::PAGES => {
                self.pages = Some(Pages::from_str(value, false).map_err(|_| expected(word, &options::pages::ALL))?);
            }
            key::CPUID => self.cpuid = parse_cpuid(value)?,
            key::ON_RESET => {
                self.on_reset = OnReset::from_str(value, false).map_err(|_| expected(word, &options::on_reset::ALL))?;
            }
            key::INPUT => self.input = Some(value.parse()?),
            "initrd" => self.modules.insert(0, Image::new(readable_file(value)?, "")),
            "module" => self.modules.push(parse_module(value)?),
            _ => return Err(format!("'{word}': expected {}", vm_keys())),
        }
        Ok(())
    }
}

fn expected(word: &str, words: &'static [&'static str]) -> String {
    format!("{word}: expected {}", OneOf(words, ""))
}

/// Names of features, each with its sign, with or without commas between them: as the hypervisor reads them, without.
fn parse_cpuid(features: &str) -> Result<String, String> {
    let features = features.replace(',', "");
    match FeatureChoice::parse(&features) {
        Ok(_) => Ok(features),
        Err(word) => {
            let known: Vec<_> = FEATURES.iter().map(|feature| feature.name).collect();
            Err(format!("'{word}': expected names of features, each after a - or a +, of: {}", known.join(", ")))
        }
    }
}

/// `FILE WORDS`: a file whose path has a blank is given by a path without one.
fn parse_module(module: &str) -> Result<Image, String> {
    let (file, words) = module.split_once(' ').unwrap_or((module, ""));
    Ok(Image::new(readable_file(file)?, words))
}

/// The path of a file that can be read. What can't be is refused here, where the command line is read: before anything is built,
/// and with the option's name.
pub(crate) fn readable_file(path: &str) -> Result<PathBuf, String> {
    let opened = File::open(path).and_then(|file| file.metadata()).map_err(|error| format!("{path}: {error}"))?;
    if opened.is_file() { Ok(PathBuf::from(path)) } else { Err(format!("{path}: it is not a regular file")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that is there wherever the tests run.
    const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");

    #[test]
    fn a_module_is_a_file_and_words() {
        let module = parse_module(&format!("{FILE} root=1 ro")).unwrap();
        assert_eq!((module.file, module.words.as_str()), (PathBuf::from(FILE), "root=1 ro"));
        assert_eq!(parse_module(FILE).unwrap().words, "");
    }

    #[test]
    fn files_that_can_not_be_used_say_why() {
        for (path, why) in
            [("no/file", "No such file"), ("/", "not a regular file"), ("/dev/null", "not a regular file")]
        {
            for error in [parse_module(path).unwrap_err(), path.parse::<GuestImage>().unwrap_err()] {
                assert!(error.contains(path) && error.contains(why), "{error}");
            }
        }
    }

    #[test]
    fn a_vm_is_read_key_by_key() {
        let text = format!(
            "guest=balloon,name=a,vcpus=2,mem=128M,memory=reserve,paging=nested,pages=4k,cpuid=-x2apic+sse2,input={FILE},on-reset=restart,module={FILE} x,cmdline=--seed 1,mem=2,b"
        );
        let vm: Wanted = text.parse().unwrap();
        let guest = vm.resolve(0, None);
        assert!(vm.is_ours());
        assert_eq!((guest.name.as_str(), guest.vcpus, guest.memory), ("a", 2, Size::mib(128)));
        assert_eq!((guest.pages, guest.backing, guest.modules.len()), (Pages::Small, Backing::Reserve, 1));
        assert_eq!(guest.on_reset, OnReset::Restart);
        assert_eq!(guest.image, Image::new("balloon", "--seed 1,mem=2,b"));
        assert_eq!(guest.input, Some(Input::File(FILE.into())));
        assert_eq!(
            (guest.cpuid.as_str(), parse_cpuid("-x2apic,+sse2").as_deref()),
            ("-x2apic+sse2", Ok("-x2apic+sse2"))
        );
        let modules = |text: String| text.parse::<Wanted>().unwrap().modules;
        let two = [Image::new(FILE, ""), Image::new(FILE, "x")];
        assert_eq!(modules(format!("guest=smoke,module={FILE} x,initrd={FILE}")), two);
        let plain: Wanted = format!("guest={FILE}").parse().unwrap();
        let guest = plain.resolve(1, None);
        assert!(!plain.is_ours());
        assert_eq!((guest.name.as_str(), guest.vcpus, guest.memory), ("vm1", 1, Guest::MEMORY));
        assert_eq!((plain.title().as_str(), guest.pages), ("Cargo.toml", Pages::Large));
    }

    #[test]
    fn a_vm_that_makes_no_sense_says_why() {
        for (text, why) in [
            ("", "expected guest=FILE"),
            ("mem=64M", "guest=FILE is missing"),
            ("guest=smoke,vcpus=17", "from 1 to 16"),
            ("guest=smoke,vcpus=0", "from 1 to 16"),
            ("guest=smoke,mem=64", "is no size"),
            ("guest=smoke,pages=1g", "4k or 2m"),
            ("guest=smoke,memory=all", "touch or reserve"),
            ("guest=smoke,on-reset=reboot", "end or restart"),
            ("guest=smoke,paging=x", "expected nested"),
            ("guest=smoke,cpus=2", "expected guest=FILE"),
            ("guest=smoke,module=no/file", "no/file: No such file"),
            ("guest=no/file", "no/file: No such file"),
            ("guest=smoke,input=no/file", "no/file: No such file"),
            ("guest=smoke,cpuid=-x3apic", "'-x3apic': expected names of features"),
            ("guest=smoke,cpuid=smep", "'smep': expected names"),
        ] {
            let error = text.parse::<Wanted>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
