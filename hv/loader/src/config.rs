//! The hypervisor's command line.
//!
//! Words separated by blanks:
//!
//! | word | meaning | default |
//! | --- | --- | --- |
//! | `log=error\|warn\|info\|debug\|trace` | least important messages shown on the console | `info` |
//! | `vm=KEY=VALUE,…` | the n-th such word configures the n-th VM | |
//! | `selftest=panic\|page-fault\|stack-overflow\|double-fault\|triple-fault\|stuck` | the hypervisor fails in this way, to test that it reports the failure | none |
//! | `watchdog=SECONDS` | the time that a CPU may be stuck in the hypervisor before the hypervisor ends; 0 is no limit | 10 |
//!
//! and the keys of a VM:
//!
//! | key | meaning | default |
//! | --- | --- | --- |
//! | `name=NAME` | its name on the console: up to 15 letters, digits, `-`, `_` or `.`; names must differ | `vm0`, `vm1`, … |
//! | `vcpus=N` | virtual processors, 1 to 16; 64 in all VMs together | 1 |
//! | `paging=nested\|shadow\|vtlb` | how its addresses are translated: by EPT or NPT, or (32-bit guests) by shadows of its page tables, which are cached, or dropped at each load of CR3 | `nested` |
//! | `mem=64M` | RAM: whole 4 KiB pages from 1 MiB to 64 GiB, K, M or G for the power of 1024 | 64M |
//! | `memory=touch\|reserve` | when frames are allocated for it: when the guest first touches a page, or all before it starts | `touch` |
//! | `pages=4k\|2m` | the largest pages that map its memory | 2m |
//! | `input=on\|off` | whether its COM1 receives what the machine's COM1 receives; for one VM at most | `off` |
//! | `cpuid=-x2apic+rdrand` | the features of CPUID that its processors lack, each after a `-`, and those without which it does not start, after a `+` | none |
//! | `modules=N` | the number of modules of the hypervisor, after the guest's image, that the guest gets | 0 |
//! | `on-reset=end\|restart` | whether a reset of its machine, or a triple fault, ends it, or has it begin anew from its image | `end` |
//! | `limit=SECONDS` | after this time the guest is ended as hung; 0 is never | 0 |
//!
//! The first word is skipped if it is the hypervisor's own name, which QEMU puts there and GRUB 2 does not: if it has
//! no `=`, or a `/` before it.

use crate::GuestRam;
use abi::options::{self, OneOf, key, level, self_test};
use addr::PageSize;
use alloc::{borrow::ToOwned, format, string::String, vec::Vec};
use arch::features::FeatureChoice;
use core::{fmt, num::NonZeroU32, ops::Range};
use log::LevelFilter;

/// The most vCPUs that one VM can have.
pub const MAX_VCPUS: usize = options::MAX_VCPUS as usize;
/// The most vCPUs that all VMs together can have.
pub const MAX_ALL_VCPUS: usize = 64;

/// The settings on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Least important messages shown.
    pub log: LevelFilter,
    /// One for each `vm=` word; a VM without one has the defaults.
    pub vms: Vec<VmConfig>,
    /// The failure to test, if any.
    pub selftest: Option<SelfTest>,
    /// The seconds after which a CPU that stays in the hypervisor counts as stuck; 0 is never.
    pub watchdog: u32,
}

/// Failures of the hypervisor, for tests of its reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SelfTest {
    /// A Rust panic.
    Panic,
    /// An access to an address that is not mapped.
    PageFault,
    /// Recursion into the stack's guard page.
    StackOverflow,
    /// A double fault.
    DoubleFault,
    /// A triple fault, which resets the machine.
    TripleFault,
    /// A stuck CPU. This needs two CPUs.
    Stuck,
}

/// The configuration of one VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmConfig {
    /// Its name on the console. The names of all VMs of a plan differ.
    pub name: VmName,
    /// The number of its vCPUs: 1 to [`MAX_VCPUS`].
    pub vcpus: usize,
    /// How its memory is translated.
    pub paging: Paging,
    /// Its memory.
    pub ram: GuestRam,
    /// When frames are allocated for its memory.
    pub backing: Backing,
    /// The largest leaf in its nested tables: 4 KiB or 2 MiB.
    pub pages: PageSize,
    /// Whether its COM1 receives what the machine's does.
    pub input: bool,
    /// The features of its processors.
    pub cpuid: FeatureChoice,
    /// The number of its modules.
    pub modules: usize,
    /// What a reset does.
    pub on_reset: OnReset,
    /// The seconds after which it is ended as hung.
    pub limit: Option<NonZeroU32>,
}

/// How a guest's memory is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paging {
    /// By the processor, from tables of guest physical addresses: EPT or NPT.
    Nested,
    /// By shadows of the guest's tables that follow their changes. 32-bit guests only.
    Shadow,
    /// By shadows of the guest's tables that each vCPU drops when it loads CR3, like a TLB. 32-bit guests only.
    Vtlb,
}

/// What becomes of a VM whose guest resets its machine, or makes its processor shut down by a triple fault, which resets a PC as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnReset {
    /// It ends.
    End,
    /// It begins anew, from its image: memory as at first start, devices and vCPUs as after a reset.
    Restart,
}

/// When frames are allocated for a guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// When the guest first touches a page. All guests together may have more memory than the machine; a guest that
    /// touches a page when no frame is left is ended.
    Touch,
    /// Before the guest starts, with the frames for the tables that map its memory.
    Reserve,
}

/// A VM's name: 1 to 15 letters, digits, `-`, `_` or `.`.
///
/// ```
/// use loader::VmName;
/// assert_eq!(VmName::new("disk-test.2").unwrap().as_str(), "disk-test.2");
/// assert!(VmName::new("two words").is_none());
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct VmName {
    /// The name, padded by zeros.
    bytes: [u8; Self::MAX_LEN],
}

/// A VM's configuration, and the hypervisor's modules that it uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmPlan {
    /// The configuration.
    pub config: VmConfig,
    /// The index of the module that is its image.
    pub image: usize,
    /// The indices of the modules that it gets.
    pub modules: Range<usize>,
}

/// The values that a word or key can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Words.
    OneOf(&'static [&'static str]),
    /// The numbers from 1 to this one.
    UpTo(usize),
    /// Others.
    Others(&'static str),
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::OneOf(words) => OneOf(words, "").fmt(f),
            Self::UpTo(most) => write!(f, "a number from 1 to {most}"),
            Self::Others(text) => f.write_str(text),
        }
    }
}

/// An error in the command line, or in the modules that it refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// An unknown word.
    UnknownWord(String),
    /// A key of `vm=` that is unknown or has no `=`.
    UnknownKey(String),
    /// A word or key with an invalid value.
    BadValue {
        /// The word or the key with its value.
        word: String,
        /// The valid values.
        expected: Expected,
    },
    /// Two VMs have the same name.
    SameName(VmName),
    /// Two VMs are to have the machine's input.
    SharedInput(VmName, VmName),
    /// All VMs together have more than [`MAX_ALL_VCPUS`] vCPUs.
    TooManyVcpus {
        /// Their number.
        vcpus: usize,
    },
    /// There is no module, so no guest.
    NoImage,
    /// There are more `vm=` words than guest images.
    NoImageFor {
        /// The VM, counted from 1.
        vm: usize,
    },
    /// There are fewer modules left than a VM should get.
    TooFewModules {
        /// The VM, counted from 1.
        vm: usize,
        /// The number that it should get.
        wanted: usize,
        /// The number of modules after its image.
        left: usize,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownWord(word) => write!(f, "`{word}`: expected {}", OneOf(&options::ALL, "=…")),
            Self::UnknownKey(word) => write!(f, "`{word}` in vm=…: expected {}", OneOf(&key::ALL, "=…")),
            Self::BadValue { word, expected } => write!(f, "`{word}`: expected {expected}"),
            Self::SameName(name) => write!(f, "two VMs are called {name}: give them name=… that differ"),
            Self::SharedInput(first, second) => write!(f, "input=on for {first} and {second}: expected one VM at most"),
            Self::TooManyVcpus { vcpus } => write!(f, "{vcpus} vCPUs in all VMs: expected {MAX_ALL_VCPUS} at most"),
            Self::NoImage => f.write_str("no guest: expected its image as the first module"),
            Self::NoImageFor { vm } => write!(f, "vm=… number {vm}: expected a module that is its image"),
            Self::TooFewModules { vm, wanted, left } => {
                write!(f, "VM {vm}: modules={wanted}, but only {left} follow its image")
            }
        }
    }
}

impl core::error::Error for ConfigError {}

impl Default for Config {
    fn default() -> Self {
        Self { log: LevelFilter::Info, vms: Vec::new(), selftest: None, watchdog: 10 }
    }
}

impl VmName {
    const MAX_LEN: usize = 15;

    /// None if `name` is too short, too long, or has other characters.
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if name.is_empty() || !name.bytes().all(plain) {
            return None;
        }
        let mut bytes = [0; Self::MAX_LEN];
        bytes.get_mut(..name.len())?.copy_from_slice(name.as_bytes());
        Some(Self { bytes })
    }

    /// `vm0` for the first VM, and so on.
    fn nth(vm: usize) -> Self {
        Self::new(&format!("vm{vm}")).expect("modules are too few for so many digits")
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        let len = self.bytes.iter().position(|byte| *byte == 0).unwrap_or(Self::MAX_LEN);
        core::str::from_utf8(&self.bytes[..len]).unwrap_or_default()
    }
}

impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl Config {
    /// Parses the command line.
    ///
    /// # Errors
    /// [`ConfigError`], for the first invalid word.
    pub fn parse(command_line: &str) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        let mut words = command_line.split_ascii_whitespace().peekable();
        words.next_if(|first| names_the_image(first));
        for word in words {
            match word.split_once('=') {
                Some((options::LOG, level)) => config.log = parse_level(level).ok_or_else(|| bad_level(word))?,
                Some((options::VM, keys)) => config.vms.push(VmConfig::parse(keys, config.vms.len())?),
                Some((options::SELF_TEST, how)) => {
                    config.selftest = Some(SelfTest::parse(how).ok_or_else(|| bad_selftest(word))?);
                }
                Some((options::WATCHDOG, seconds)) => {
                    config.watchdog = seconds.parse().map_err(|_| bad_watchdog(word))?
                }
                _ => return Err(ConfigError::UnknownWord(word.to_owned())),
            }
        }
        Ok(config)
    }

    /// Assigns `modules` modules to VMs: an image, its modules, the next image, and so on.
    ///
    /// # Errors
    /// [`ConfigError`]: there is no image, or not one for each `vm=` word, or fewer modules than a VM should get; two
    /// VMs have the same name, or both the input, or all VMs together have too many vCPUs.
    pub fn plan(&self, modules: usize) -> Result<Vec<VmPlan>, ConfigError> {
        let mut plan = Vec::new();
        let mut next = 0;
        while next < modules {
            let config = self.vms.get(plan.len()).copied().unwrap_or_else(|| VmConfig::nth(plan.len()));
            let (image, left) = (next, modules - next - 1);
            if config.modules > left {
                return Err(ConfigError::TooFewModules { vm: plan.len() + 1, wanted: config.modules, left });
            }
            next += 1 + config.modules;
            plan.push(VmPlan { config, image, modules: image + 1..next });
        }
        if plan.is_empty() {
            return Err(ConfigError::NoImage);
        }
        if self.vms.len() > plan.len() {
            return Err(ConfigError::NoImageFor { vm: plan.len() + 1 });
        }
        check_all(&plan)?;
        Ok(plan)
    }
}

/// The names by which the console tells these VMs apart: none for the only one.
pub fn console_names(plans: &[VmPlan]) -> impl Iterator<Item = Option<VmName>> {
    let several = plans.len() > 1;
    plans.iter().map(move |plan| several.then_some(plan.config.name))
}

/// Checks the limits that concern several VMs.
fn check_all(plan: &[VmPlan]) -> Result<(), ConfigError> {
    for (at, vm) in plan.iter().enumerate() {
        if plan[..at].iter().any(|earlier| earlier.config.name == vm.config.name) {
            return Err(ConfigError::SameName(vm.config.name));
        }
    }
    let mut with_input = plan.iter().filter(|vm| vm.config.input).map(|vm| vm.config.name);
    if let (Some(first), Some(second)) = (with_input.next(), with_input.next()) {
        return Err(ConfigError::SharedInput(first, second));
    }
    let vcpus = plan.iter().map(|vm| vm.config.vcpus).sum();
    if vcpus > MAX_ALL_VCPUS { Err(ConfigError::TooManyVcpus { vcpus }) } else { Ok(()) }
}

impl VmConfig {
    /// The defaults of the VM with this number, counted from 0.
    #[must_use]
    pub fn nth(vm: usize) -> Self {
        Self {
            name: VmName::nth(vm),
            vcpus: 1,
            paging: Paging::Nested,
            ram: GuestRam::default(),
            backing: Backing::Touch,
            pages: PageSize::Size2M,
            input: false,
            cpuid: FeatureChoice::default(),
            modules: 0,
            on_reset: OnReset::End,
            limit: None,
        }
    }

    /// Parses the `KEY=VALUE,…` of the VM with this number.
    fn parse(keys: &str, number: usize) -> Result<Self, ConfigError> {
        let mut vm = Self::nth(number);
        for word in keys.split(',').filter(|word| !word.is_empty()) {
            let bad = |expected| ConfigError::BadValue { word: word.to_owned(), expected };
            let bad_value = |expected| bad(Expected::Others(expected));
            match word.split_once('=') {
                Some((key::NAME, name)) => {
                    vm.name = VmName::new(name).ok_or_else(|| bad_value("1 to 15 letters, digits, -, _ or ."))?;
                }
                Some((key::VCPUS, count)) => {
                    vm.vcpus = parse_vcpus(count).ok_or_else(|| bad(Expected::UpTo(MAX_VCPUS)))?
                }
                Some((key::PAGING, how)) => {
                    vm.paging = parse_paging(how).ok_or_else(|| bad(Expected::OneOf(&options::paging::ALL)))?
                }
                Some((key::SIZE, size)) => {
                    vm.ram = parse_size(size)
                        .and_then(GuestRam::new)
                        .ok_or_else(|| bad_value("a multiple of 4K from 1M to 64G, such as 64M, 1G or 0x4000000"))?;
                }
                Some((key::MEMORY, when)) => {
                    vm.backing = parse_backing(when).ok_or_else(|| bad(Expected::OneOf(&options::memory::ALL)))?
                }
                Some((key::PAGES, size)) => {
                    vm.pages = parse_pages(size).ok_or_else(|| bad(Expected::OneOf(&options::pages::ALL)))?
                }
                Some((key::CPUID, features)) => {
                    let expected = "names of features, each after a - or a +, as in -x2apic+rdrand";
                    vm.cpuid = FeatureChoice::parse(features).map_err(|_| bad_value(expected))?;
                }
                Some((key::INPUT, input)) => {
                    vm.input = parse_input(input).ok_or_else(|| bad(Expected::OneOf(&options::input::ALL)))?
                }
                Some((key::MODULES, count)) => {
                    vm.modules = count.parse().map_err(|_| bad_value("a number of modules"))?
                }
                Some((key::ON_RESET, what)) => {
                    vm.on_reset = parse_on_reset(what).ok_or_else(|| bad(Expected::OneOf(&options::on_reset::ALL)))?
                }
                Some((key::LIMIT, seconds)) => {
                    vm.limit = NonZeroU32::new(seconds.parse().map_err(|_| bad_value("a number of seconds"))?);
                }
                _ => return Err(ConfigError::UnknownKey(word.to_owned())),
            }
        }
        Ok(vm)
    }
}

impl SelfTest {
    fn parse(how: &str) -> Option<Self> {
        Some(match how {
            self_test::PANIC => Self::Panic,
            self_test::PAGE_FAULT => Self::PageFault,
            self_test::STACK_OVERFLOW => Self::StackOverflow,
            self_test::DOUBLE_FAULT => Self::DoubleFault,
            self_test::TRIPLE_FAULT => Self::TripleFault,
            self_test::STUCK => Self::Stuck,
            _ => return None,
        })
    }
}

fn names_the_image(first: &str) -> bool {
    match first.split_once('=') {
        Some((before, _)) => before.contains('/'),
        None => true,
    }
}

fn bad_level(word: &str) -> ConfigError {
    ConfigError::BadValue { word: word.to_owned(), expected: Expected::OneOf(&level::ALL) }
}

fn bad_selftest(word: &str) -> ConfigError {
    ConfigError::BadValue { word: word.to_owned(), expected: Expected::OneOf(&self_test::ALL) }
}

fn bad_watchdog(word: &str) -> ConfigError {
    ConfigError::BadValue { word: word.to_owned(), expected: Expected::Others("a number of seconds") }
}

fn parse_level(word: &str) -> Option<LevelFilter> {
    Some(match word {
        level::ERROR => LevelFilter::Error,
        level::WARN => LevelFilter::Warn,
        level::INFO => LevelFilter::Info,
        level::DEBUG => LevelFilter::Debug,
        level::TRACE => LevelFilter::Trace,
        _ => return None,
    })
}

fn parse_vcpus(count: &str) -> Option<usize> {
    count.parse().ok().filter(|count| (1..=MAX_VCPUS).contains(count))
}

fn parse_paging(how: &str) -> Option<Paging> {
    match how {
        options::paging::NESTED => Some(Paging::Nested),
        options::paging::SHADOW => Some(Paging::Shadow),
        options::paging::VTLB => Some(Paging::Vtlb),
        _ => None,
    }
}

fn parse_backing(when: &str) -> Option<Backing> {
    match when {
        options::memory::TOUCH => Some(Backing::Touch),
        options::memory::RESERVE => Some(Backing::Reserve),
        _ => None,
    }
}

fn parse_on_reset(what: &str) -> Option<OnReset> {
    match what {
        options::on_reset::END => Some(OnReset::End),
        options::on_reset::RESTART => Some(OnReset::Restart),
        _ => None,
    }
}

fn parse_pages(size: &str) -> Option<PageSize> {
    match size {
        options::pages::SMALL => Some(PageSize::Size4K),
        options::pages::LARGE => Some(PageSize::Size2M),
        _ => None,
    }
}

fn parse_input(input: &str) -> Option<bool> {
    match input {
        options::input::ON => Some(true),
        options::input::OFF => Some(false),
        _ => None,
    }
}

/// A number of bytes: decimal, or hexadecimal after `0x`, times 1024, 1024² or 1024³ by a suffix K, M or G of either
/// case.
pub fn parse_size(text: &str) -> Option<u64> {
    let (number, shift) = match text.as_bytes().last()? {
        b'k' | b'K' => (&text[..text.len() - 1], 10),
        b'm' | b'M' => (&text[..text.len() - 1], 20),
        b'g' | b'G' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let (digits, radix) = match number.strip_prefix("0x") {
        Some(digits) => (digits, 16),
        None => (number, 10),
    };
    // `from_str_radix` would accept a sign.
    if !digits.bytes().next()?.is_ascii_alphanumeric() {
        return None;
    }
    u64::from_str_radix(digits, radix).ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz;
    use alloc::{format, string::ToString, vec};
    use proptest::prelude::*;

    fn error(command_line: &str) -> String {
        Config::parse(command_line).unwrap_err().to_string()
    }

    #[test]
    fn the_only_vm_has_no_name_on_the_console() {
        let names = |words: &str, modules| {
            let plan = Config::parse(words).unwrap().plan(modules).unwrap();
            console_names(&plan).map(|name| name.map(|name| name.to_string())).collect::<Vec<_>>()
        };
        assert_eq!(names("vm=name=a", 1), [None]);
        assert_eq!(names("vm=name=a", 2), ["a", "vm1"].map(|name| Some(name.to_string())));
    }

    #[test]
    fn nothing_asked_for_is_the_defaults() {
        let config = Config::parse("").unwrap();
        assert_eq!(config, Config { log: LevelFilter::Info, vms: vec![], selftest: None, watchdog: 10 });
        let vm = Config::parse("hv vm=").unwrap().vms[0];
        assert_eq!((vm.ram.bytes(), vm.pages, vm.modules, vm.limit), (64 << 20, PageSize::Size2M, 0, None));
        assert_eq!((vm.name.as_str(), vm.vcpus, vm.paging), ("vm0", 1, Paging::Nested));
        assert_eq!((vm.backing, vm.on_reset), (Backing::Touch, OnReset::End));
    }

    #[test]
    fn every_word_and_key_is_read() {
        let config = Config::parse(
            "/boot/hv log=trace vm=name=a,vcpus=4,paging=nested,mem=128M,memory=reserve,pages=4k,cpuid=-x2apic+sse2,input=on,modules=2,on-reset=restart,limit=30 \
             watchdog=3 selftest=stack-overflow vm=mem=0x300000",
        )
        .unwrap();
        assert_eq!(config.log, LevelFilter::Trace);
        assert_eq!((config.selftest, config.watchdog), (Some(SelfTest::StackOverflow), 3));
        let first = VmConfig {
            name: VmName::new("a").unwrap(),
            vcpus: 4,
            paging: Paging::Nested,
            ram: GuestRam::new(128 << 20).unwrap(),
            backing: Backing::Reserve,
            pages: PageSize::Size4K,
            cpuid: FeatureChoice::parse("-x2apic+sse2").unwrap(),
            input: true,
            modules: 2,
            on_reset: OnReset::Restart,
            limit: NonZeroU32::new(30),
        };
        let second = VmConfig { ram: GuestRam::new(3 << 20).unwrap(), ..VmConfig::nth(1) };
        assert_eq!(config.vms, [first, second]);
    }

    #[test]
    fn the_first_word_may_be_the_images_name() {
        for name in ["hv", "/a=b/hv", "placeholder"] {
            assert_eq!(Config::parse(&format!("{name} log=warn")).unwrap().log, LevelFilter::Warn);
        }
        assert_eq!(Config::parse("log=warn").unwrap().log, LevelFilter::Warn);
        assert_eq!(error("lgo=warn"), "`lgo=warn`: expected log=…, vm=…, selftest=… or watchdog=…");
    }

    #[test]
    fn errors_name_the_word_and_what_was_expected() {
        assert_eq!(error("hv quiet"), "`quiet`: expected log=…, vm=…, selftest=… or watchdog=…");
        assert_eq!(error("log=loud"), "`log=loud`: expected error, warn, info, debug or trace");
        let keys =
            "name=…, vcpus=…, paging=…, mem=…, memory=…, pages=…, input=…, cpuid=…, modules=…, on-reset=… or limit=…";
        assert_eq!(error("vm=cpus=2"), format!("`cpus=2` in vm=…: expected {keys}"));
        assert_eq!(error("vm=mem"), format!("`mem` in vm=…: expected {keys}"));
        assert_eq!(error("vm=name="), "`name=`: expected 1 to 15 letters, digits, -, _ or .");
        assert_eq!(error("vm=vcpus=17"), "`vcpus=17`: expected a number from 1 to 16");
        assert_eq!(error("vm=paging=fast"), "`paging=fast`: expected nested, shadow or vtlb");
        assert_eq!(error("vm=memory=all"), "`memory=all`: expected touch or reserve");
        assert_eq!(error("vm=pages=1g"), "`pages=1g`: expected 4k or 2m");
        let features = "names of features, each after a - or a +, as in -x2apic+rdrand";
        assert_eq!(error("vm=cpuid=-x3apic"), format!("`cpuid=-x3apic`: expected {features}"));
        assert_eq!(error("vm=input=yes"), "`input=yes`: expected on or off");
        assert_eq!(error("vm=modules=-1"), "`modules=-1`: expected a number of modules");
        assert_eq!(error("vm=on-reset=reboot"), "`on-reset=reboot`: expected end or restart");
        assert_eq!(error("vm=limit=1s"), "`limit=1s`: expected a number of seconds");
        assert_eq!(
            error("selftest=x"),
            "`selftest=x`: expected panic, page-fault, stack-overflow, double-fault, triple-fault or stuck"
        );
        assert_eq!(error("watchdog=-1"), "`watchdog=-1`: expected a number of seconds");
        for mem in ["1020K", "65G", "2M1", "2097153", "", "-2M", "+4M", "64MB", "0x", "M", "99999999999G"] {
            assert!(error(&format!("vm=mem={mem}")).contains("expected a multiple of 4K from 1M to 64G"), "{mem}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_size("4096"), Some(4096));
        assert_eq!(parse_size("64M"), Some(64 << 20));
        assert_eq!(parse_size("1g"), Some(1 << 30));
        assert_eq!(parse_size("0x100000"), Some(1 << 20));
        assert_eq!(parse_size("0x10k"), Some(16 << 10));
    }

    #[test]
    fn names_are_short_and_plain() {
        for name in ["a", "0", "vm.2_x-Y", "fifteen-letters"] {
            assert_eq!(VmName::new(name).unwrap().to_string(), name);
        }
        for name in ["", "two words", "a|b", "a:b", "sixteen--letters", "é"] {
            assert_eq!(VmName::new(name), None, "{name}");
        }
        for (vm, name) in [(0, "vm0"), (9, "vm9"), (10, "vm10"), (123_456, "vm123456")] {
            assert_eq!(VmName::nth(vm).as_str(), name);
        }
    }

    #[test]
    fn no_two_vms_are_called_the_same() {
        let same = |words: &str, modules| Config::parse(words).unwrap().plan(modules).unwrap_err().to_string();
        let message = |name: &str| format!("two VMs are called {name}: give them name=… that differ");
        assert_eq!(same("vm=name=a vm=name=b vm=name=a", 3), message("a"));
        assert_eq!(same("vm=name=vm1", 2), message("vm1"), "the second has this name by default");
    }

    #[test]
    fn one_vm_at_most_has_the_input() {
        let plan = |words: &str| Config::parse(words).unwrap().plan(3);
        let dealt: Vec<_> = plan("vm= vm=input=on vm=input=off").unwrap().iter().map(|vm| vm.config.input).collect();
        assert_eq!(dealt, [false, true, false]);
        let error = plan("vm=name=a,input=on vm= vm=name=b,input=on").unwrap_err().to_string();
        assert_eq!(error, "input=on for a and b: expected one VM at most");
    }

    #[test]
    fn vcpus_are_limited_in_each_vm_and_in_all() {
        for count in ["0", "17", "-1", "", "two"] {
            assert!(error(&format!("vm=vcpus={count}")).contains("expected a number from 1 to 16"), "{count}");
        }
        let four = Config::parse(&"vm=vcpus=16 ".repeat(4)).unwrap();
        assert_eq!(four.plan(4).unwrap().iter().map(|vm| vm.config.vcpus).sum::<usize>(), MAX_ALL_VCPUS);
        assert_eq!(four.plan(5), Err(ConfigError::TooManyVcpus { vcpus: 65 }));
    }

    #[test]
    fn modules_are_dealt_out_in_order() {
        let config = Config::parse("vm=modules=2 vm=modules=1").unwrap();
        let plan = config.plan(6).unwrap();
        let dealt: Vec<_> = plan.iter().map(|vm| (vm.image, vm.modules.clone())).collect();
        assert_eq!(dealt, [(0, 1..3), (3, 4..5), (5, 6..6)]);
        assert_eq!(config.plan(2), Err(ConfigError::TooFewModules { vm: 1, wanted: 2, left: 1 }));
        assert_eq!(config.plan(3), Err(ConfigError::NoImageFor { vm: 2 }));
        assert_eq!(Config::default().plan(0), Err(ConfigError::NoImage));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,200}") {
            fuzz::loader_config(text.as_bytes());
        }

        #[test]
        fn any_words_are_read_or_refused(text in "(log|vm|selftest|watchdog)=((name|vcpus|paging|mem|memory|pages|input|modules|on-reset|limit)?=?[0-9a-zA-Z,=]{0,8}){0,4}( vm=modules=[0-9]{1,2}){0,3}") {
            fuzz::loader_config(text.as_bytes());
        }
    }
}
