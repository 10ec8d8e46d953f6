//! Makes an ISO that boots the hypervisor and guests, on real machines as well.

use crate::build::Images;
use crate::failure::usage;
use crate::guests::{GuestArgs, Wanted};
use crate::machine;
use crate::output::outln;
use crate::project;
use crate::run::{HvWords, ONE_INPUT};
use crate::setup::{self, Tool};
use anyhow::Result;
use std::fs::{self, File};
use std::io;
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

The console is COM1, 115200 baud, 8n1; the verdict is its last line, after which the machine stands still. With --input - the
guest gets what COM1 receives. --expect, --fail-on and the file of an --input are for `cargo xtask run`, and refused here.")]
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
    check_guests(&args.guests)?;
    let file = args.output.clone().unwrap_or_else(|| project::reports("hv.iso"));
    check_writable(&file).map_err(|error| usage(format!("--output {}: {error}", file.display())))?;
    setup::ensure(Tool::Bochs)?;
    let guests = args.guests.wanted("smoke");
    let images = Images::build()?;
    let guests: Vec<_> =
        guests.iter().enumerate().map(|(number, guest)| guest.resolve(number, Some(&images))).collect();
    let images = args.words.hypervisor(&images).images(&guests, Duration::from_secs(args.limit.into()));
    make(&images, &file)?;
    let size = fs::metadata(&file)?.len();
    outln!("{}: {} MiB; it boots: {}", project::short(&file), size.div_ceil(1 << 20), images.kernel.words);
    Ok(ExitCode::SUCCESS)
}

/// Fails where something is asked for that takes somebody at the other end of the console.
fn check_guests(args: &GuestArgs) -> Result<()> {
    let guests = args.wanted("smoke");
    if args.demands_any() {
        return Err(usage(
            "--expect and --fail-on are for `cargo xtask run`: an ISO's console has no reader who would judge it",
        ));
    }
    if guests.iter().any(Wanted::has_file_for_input) {
        return Err(usage(
            "an ISO types no file: with --input - (input=- among a VM's keys) the guest gets what COM1 receives",
        ));
    }
    if guests.iter().filter(|guest| guest.has_input()).count() > 1 {
        return Err(usage(ONE_INPUT));
    }
    Ok(())
}

/// Fails where an ISO can't be written to this path. Makes its folder, and changes nothing else.
fn check_writable(file: &Path) -> io::Result<()> {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent)?;
    match File::options().write(true).open(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => tempfile::tempfile_in(parent).map(drop),
        opened => opened.map(drop),
    }
}

/// Makes an ISO of these images.
pub(crate) fn make(images: &machine::Images, file: &Path) -> Result<()> {
    machine::iso::make(images, machine::run_folder()?.path(), file)
}
