//! Images that GRUB boots: for Bochs, and for real machines.

use super::{Images, gather};
use crate::leash::Leashed;
use crate::project;
use anyhow::{Context, Result, bail};
use std::fmt::Write;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// The programs that make an ISO, by the names they have in distributions.
const MKRESCUE: [&str; 3] = ["grub-mkrescue", "grub2-mkrescue", "i686-elf-grub-mkrescue"];

/// The program that makes ISOs, where it is installed.
pub(crate) fn find_mkrescue() -> Option<PathBuf> {
    MKRESCUE.into_iter().find_map(project::find_program)
}

/// GRUB's modules for the BIOS, where installed.
pub(crate) fn find_bios_modules() -> Option<PathBuf> {
    let folders = ["/usr/lib/grub/i386-pc", "/usr/lib/grub2/i386-pc", "/usr/local/lib/grub/i386-pc"];
    folders.into_iter().map(PathBuf::from).find(|folder| folder.is_dir())
}

/// Makes an ISO that boots `images`, with its parts laid out in `folder`.
pub(crate) fn make(images: &Images, folder: &Path, iso: &Path) -> Result<()> {
    let tree = folder.join("iso");
    let files = tree.join("boot");
    fs::create_dir_all(files.join("grub"))?;
    let names = gather(images, &files, |from, to| fs::copy(from, to))?;
    fs::write(files.join("grub/grub.cfg"), configuration(images, &names))?;

    let mkrescue = find_mkrescue().context("grub-mkrescue is not installed")?;
    let errors = folder.join("mkrescue.log");
    let log = File::create(&errors)?;
    let mut making = Leashed::spawn(&mkrescue, |command| {
        if let Some(modules) = find_bios_modules() {
            command.arg("-d").arg(modules);
        }
        command.args([
            "--install-modules=multiboot normal iso9660 biosdisk part_msdos",
            "--locales=",
            "--fonts=",
            "--themes=",
        ]);
        // Its temporary files are in `folder`, which goes when a signal ends it half-way.
        command.arg("-o").arg(iso).arg(&tree).env("TMPDIR", folder);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    })?;
    if !making.child.wait()?.success() {
        bail!("grub-mkrescue failed:\n{}", String::from_utf8_lossy(&fs::read(errors)?));
    }
    Ok(())
}

/// GRUB hands on the words after a file's name, so the name is said twice to be the first of them, as QEMU does.
fn configuration(images: &Images, names: &[String]) -> String {
    let mut text = String::from("set timeout=0\nset default=0\nmenuentry hypervisor {\n");
    let kernel = std::iter::once(("multiboot", &images.kernel));
    let all = kernel.chain(images.modules.iter().map(|module| ("module", module)));
    for ((command, image), name) in all.zip(names) {
        let words: String = image.words.split_whitespace().fold(String::new(), |mut all, word| {
            let _ = write!(all, " {}", quote(word));
            all
        });
        let _ = writeln!(text, "    {command} /boot/{name} {name}{words}");
    }
    text + "    boot\n}\n"
}

/// A word as GRUB's script language takes it literally.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Image;

    #[test]
    fn grub_is_told_each_name_twice() {
        let images = Images {
            kernel: Image::new("/x/hv", "log=info vm=mem=64M,modules=1"),
            modules: vec![Image::new("/x/guest", "it's $HOME"), Image::new("/x/data", "")],
        };
        let names = ["hv", "guest", "data"].map(str::to_string);
        let text = configuration(&images, &names);
        assert!(text.contains("multiboot /boot/hv hv 'log=info' 'vm=mem=64M,modules=1'\n"), "{text}");
        assert!(text.contains(r"module /boot/guest guest 'it'\''s' '$HOME'"), "{text}");
        assert!(text.contains("module /boot/data data\n"), "{text}");
    }
}
