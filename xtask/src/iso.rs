//! Makes an ISO that boots the hypervisor and guests, on real machines as well.

use crate::build::Images;
use crate::guests::GuestArgs;
use crate::machine;
use crate::project;
use crate::run::HvWords;
use crate::setup::{self, Tool};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Make an ISO that boots the hypervisor with guests: target/hv.iso
///
/// For a PC's BIOS, by GRUB; it can be written to a disc or, as it is, to a USB stick. Without --guest and --vm: the smoke
/// test.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask iso                                              the smoke test
  cargo xtask iso --guest exit-latency                         what exits cost
  cargo xtask iso --guest my.elf --cmdline \"a b\" --output x.iso
  sudo dd if=target/hv.iso of=/dev/sdX bs=4M conv=fsync        to the USB stick sdX, whose contents are lost

The console is COM1, 115200 baud, 8n1; the verdict is its last line, after which the machine stands still.")]
pub(crate) struct Args {
    #[command(flatten)]
    guests: GuestArgs,
    #[command(flatten)]
    words: HvWords,
    /// Let the hypervisor end a guest after this time; 0 is never
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    limit: u32,
    /// Where to write it [default: target/hv.iso]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(crate) fn command(args: &Args) -> Result<ExitCode> {
    setup::ensure(Tool::Bochs)?;
    let guests = args.guests.wanted("smoke");
    for guest in &guests {
        guest.is_ours()?;
    }
    let images = Images::build()?;
    let guests: Vec<_> =
        guests.iter().enumerate().map(|(number, guest)| guest.resolve(number, Some(&images))).collect();
    let images = args.words.hypervisor(&images).images(&guests, Duration::from_secs(args.limit.into()));
    let file = args.output.clone().unwrap_or_else(|| project::reports("hv.iso"));
    make(&images, &file)?;
    let size = fs::metadata(&file)?.len();
    println!("{}: {} MiB; it boots: {}", project::short(&file), size.div_ceil(1 << 20), images.kernel.words);
    Ok(ExitCode::SUCCESS)
}

/// Makes an ISO of these images.
pub(crate) fn make(images: &machine::Images, file: &Path) -> Result<()> {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).with_context(|| format!("can't make {}", parent.display()))?;
    machine::iso::make(images, machine::run_folder()?.path(), file)
}
