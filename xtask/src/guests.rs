//! The guests that a command line asks for.

use crate::build::{self, Images};
use crate::machine::Image;
use crate::size::Size;
use crate::trial::{Backing, Guest, Pages, Paging};
use anyhow::Result;
use clap::ValueEnum;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The most vCPUs of a VM.
const MAX_VCPUS: u32 = 16;
/// What `--vm` takes, for its help and its errors.
const VM_KEYS: &str = "guest=FILE, name=NAME, vcpus=N, mem=SIZE, memory=touch|reserve, paging=nested|shadow|vtlb, pages=4k|2m, \
                       module=FILE WORDS, and last cmdline=WORDS";

/// What guests there are to be, and what they get.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct GuestArgs {
    /// Multiboot ELF to run, or the name of one of our guests
    #[arg(long, value_name = "FILE")]
    guest: Option<String>,
    /// Words for the guest's command line, after its name
    #[arg(long, value_name = "WORDS", default_value = "", allow_hyphen_values = true)]
    cmdline: String,
    /// A module for the guest, and the words for its string; may be repeated
    #[arg(long, value_name = "FILE WORDS")]
    module: Vec<String>,
    /// The guest's virtual processors
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_VCPUS)))]
    vcpus: u32,
    /// The guest's memory
    #[arg(long, value_name = "SIZE", default_value_t = Guest::MEMORY)]
    mem: Size,
    /// When the guest's memory gets its frames
    #[arg(long, value_enum, default_value = "touch")]
    memory: Backing,
    /// How the guest's memory is translated
    #[arg(long, value_enum, default_value = "nested")]
    paging: Paging,
    /// The largest page that maps the guest's memory [default: 4k for exit-latency, which touches such pages; else 2m]
    #[arg(long, value_enum)]
    pages: Option<Pages>,
    /// A VM of its own, beside others; may be repeated. KEYS, with commas between them: guest=FILE, name=NAME, vcpus=N,
    /// mem=SIZE, memory=touch|reserve, paging=nested|shadow|vtlb, pages=4k|2m, module=FILE WORDS (may be repeated), and last
    /// cmdline=WORDS, which takes the rest
    #[arg(long, value_name = "KEYS", conflicts_with_all = ["guest", "cmdline", "module", "vcpus", "mem", "memory", "paging", "pages"])]
    vm: Vec<Wanted>,
}

impl GuestArgs {
    /// The guests of one machine: those of `--vm`, or `--guest`, or else this one.
    pub(crate) fn wanted(&self, default: &str) -> Vec<Wanted> {
        if !self.vm.is_empty() {
            return self.vm.clone();
        }
        let Self { cmdline, vcpus, mem, memory, paging, pages, .. } = self.clone();
        let guest = self.guest.as_deref().unwrap_or(default).to_string();
        let modules = self.module.iter().map(|module| parse_module(module)).collect();
        vec![Wanted { name: None, guest, words: cmdline, modules, vcpus, mem, memory, paging, pages }]
    }

    /// Whether a guest is named.
    pub(crate) fn names_any(&self) -> bool {
        self.guest.is_some() || !self.vm.is_empty()
    }
}

/// A guest that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    name: Option<String>,
    guest: String,
    words: String,
    modules: Vec<Image>,
    vcpus: u32,
    mem: Size,
    memory: Backing,
    paging: Paging,
    pages: Option<Pages>,
}

impl Wanted {
    /// What it is, for people.
    pub(crate) fn title(&self) -> String {
        Path::new(&self.guest).file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Whether it is one of our guests, rather than a file.
    ///
    /// # Errors
    /// It is neither.
    pub(crate) fn is_ours(&self) -> Result<bool> {
        build::is_our_guest(&self.guest)
    }

    /// The VM with this number. `images` has our guests, where they were built.
    pub(crate) fn resolve(&self, number: usize, images: Option<&Images>) -> Guest {
        let ours = images.filter(|_| self.is_ours().unwrap_or(false));
        let file = ours.map_or_else(|| PathBuf::from(&self.guest), |images| images.guest(&self.guest));
        let small = self.guest == "exit-latency";
        Guest {
            name: self.name.clone().unwrap_or_else(|| format!("vm{number}")),
            image: Image::new(file, self.words.clone()),
            modules: self.modules.clone(),
            vcpus: self.vcpus,
            memory: self.mem,
            backing: self.memory,
            pages: self.pages.unwrap_or(if small { Pages::Small } else { Pages::Large }),
            paging: self.paging,
        }
    }
}

impl FromStr for Wanted {
    type Err = String;

    /// Reads `KEY=VALUE,…,cmdline=the rest, with its commas`.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut vm = Self {
            name: None,
            guest: String::new(),
            words: String::new(),
            modules: Vec::new(),
            vcpus: 1,
            mem: Guest::MEMORY,
            memory: Backing::Touch,
            paging: Paging::Nested,
            pages: None,
        };
        let mut rest = Some(text);
        while let Some(text) = rest {
            if let Some(words) = text.strip_prefix("cmdline=") {
                vm.words = words.to_string();
                break;
            }
            let (word, after) = text.split_once(',').map_or((text, None), |(word, after)| (word, Some(after)));
            vm.set(word)?;
            rest = after;
        }
        if vm.guest.is_empty() { Err("guest=FILE is missing".to_string()) } else { Ok(vm) }
    }
}

impl Wanted {
    fn set(&mut self, word: &str) -> Result<(), String> {
        let (key, value) = word.split_once('=').ok_or_else(|| format!("'{word}': expected {VM_KEYS}"))?;
        match key {
            "guest" => self.guest = value.to_string(),
            "name" => self.name = Some(value.to_string()),
            "vcpus" => {
                let count = value.parse().ok().filter(|count| (1..=MAX_VCPUS).contains(count));
                self.vcpus = count.ok_or_else(|| format!("vcpus={value}: expected a number from 1 to {MAX_VCPUS}"))?;
            }
            "mem" => self.mem = value.parse()?,
            "memory" => {
                self.memory =
                    Backing::from_str(value, false).map_err(|_| format!("{word}: expected touch or reserve"))?
            }
            "paging" => {
                self.paging =
                    Paging::from_str(value, false).map_err(|_| format!("{word}: expected nested, shadow or vtlb"))?
            }
            "pages" => {
                self.pages = Some(Pages::from_str(value, false).map_err(|_| format!("{word}: expected 4k or 2m"))?);
            }
            "module" => self.modules.push(parse_module(value)),
            _ => return Err(format!("'{word}': expected {VM_KEYS}")),
        }
        Ok(())
    }
}

/// `FILE WORDS`: a file whose path has a blank is given by a path without one.
fn parse_module(module: &str) -> Image {
    let (file, words) = module.split_once(' ').unwrap_or((module, ""));
    Image::new(file, words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_a_file_and_words() {
        let module = parse_module("a/b.img root=1 ro");
        assert_eq!((module.file, module.words.as_str()), (PathBuf::from("a/b.img"), "root=1 ro"));
        assert_eq!(parse_module("x").words, "");
    }

    #[test]
    fn a_vm_is_read_key_by_key() {
        let text = "guest=balloon,name=a,vcpus=2,mem=128M,memory=reserve,paging=nested,pages=4k,module=m x,cmdline=--seed 1,mem=2,b";
        let vm: Wanted = text.parse().unwrap();
        let guest = vm.resolve(0, None);
        assert_eq!((guest.name.as_str(), guest.vcpus, guest.memory), ("a", 2, Size::mib(128)));
        assert_eq!((guest.pages, guest.backing, guest.modules.len()), (Pages::Small, Backing::Reserve, 1));
        assert_eq!(guest.image, Image::new("balloon", "--seed 1,mem=2,b"));
        let plain: Wanted = "guest=x/smoke".parse().unwrap();
        let guest = plain.resolve(1, None);
        assert_eq!((guest.name.as_str(), guest.vcpus, guest.memory), ("vm1", 1, Guest::MEMORY));
        assert_eq!((plain.title().as_str(), guest.pages), ("smoke", Pages::Large));
    }

    #[test]
    fn a_vm_that_makes_no_sense_says_why() {
        for (text, why) in [
            ("", "expected guest=FILE"),
            ("mem=64M", "guest=FILE is missing"),
            ("guest=a,vcpus=17", "from 1 to 16"),
            ("guest=a,vcpus=0", "from 1 to 16"),
            ("guest=a,mem=64", "is no size"),
            ("guest=a,pages=1g", "4k or 2m"),
            ("guest=a,memory=all", "touch or reserve"),
            ("guest=a,paging=x", "expected nested"),
            ("guest=a,cpus=2", "expected guest=FILE"),
        ] {
            let error = text.parse::<Wanted>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
