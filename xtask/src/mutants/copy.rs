//! A copy of the workspace in which one crate has all its changes built in.

use super::rewrite::{self, Change};
use crate::project;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// Has the number of the change that is switched on.
pub(super) const VARIABLE: &str = "MUTANT";
/// Has the file to which the numbers of the changes whose code is run are written, a line each.
pub(super) const REACHED: &str = "MUTANT_REACHED";

/// The module that each copy gets. A change has a number from 1.
const SWITCH: &str = r#"
#[allow(dead_code)]
pub(crate) mod mutant {
    extern crate std;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Mutex, OnceLock};
    static CHOSEN: OnceLock<usize> = OnceLock::new();
    static FILE: OnceLock<Option<Mutex<std::fs::File>>> = OnceLock::new();
    static REACHED: [AtomicBool; 65536] = [const { AtomicBool::new(false) }; 65536];
    #[inline]
    pub(crate) fn is(number: usize) -> bool {
        if !REACHED[number].load(Ordering::Relaxed) {
            reach(number);
        }
        let read = || std::env::var("MUTANT").ok().and_then(|number| number.parse().ok()).unwrap_or(usize::MAX);
        *CHOSEN.get_or_init(read) == number
    }
    #[inline]
    pub(crate) fn truth(always: usize, never: usize, value: bool) -> bool {
        !is(never) && (value | is(always))
    }
    #[cold]
    fn reach(number: usize) {
        // Appended by one write each, as a crate that is its own dependency may be in the program twice.
        let open = || {
            let path = std::env::var_os("MUTANT_REACHED")?;
            Some(Mutex::new(std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap()))
        };
        if let (Some(file), false) = (FILE.get_or_init(open), REACHED[number].swap(true, Ordering::Relaxed)) {
            use std::io::Write;
            file.lock().unwrap().write_all(std::format!("{number}\n").as_bytes()).unwrap();
        }
    }
}
"#;

/// A change, and the file that it is in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mutant {
    pub(super) number: usize,
    pub(super) kind: super::Kind,
    /// From the repository's root.
    pub(super) file: String,
    pub(super) line: usize,
    pub(super) function: String,
    /// The source text of the line.
    pub(super) text: String,
    pub(super) change: String,
}

pub(super) struct Copy {
    pub(super) root: PathBuf,
    pub(super) mutants: Vec<Mutant>,
}

/// Makes or renews the copy. Files that stay as they were keep their times, so that cargo does not build them again.
pub(super) fn make(name: &str, refused: &BTreeSet<usize>) -> Result<Copy> {
    let from = project::root();
    let root = project::reports("mutants").join("copies").join(name);
    fs::create_dir_all(root.join("hv"))?;
    for file in ["Cargo.toml", "Cargo.lock"] {
        write(&root.join(file), &read(&from.join(file))?)?;
    }
    for folder in ["guest-tests", "xtask", "linker"] {
        link(&from.join(folder), &root.join(folder))?;
    }
    for entry in fs::read_dir(from.join("hv"))? {
        let entry = entry?;
        if entry.file_name() != name {
            link(&entry.path(), &root.join("hv").join(entry.file_name()))?;
        }
    }
    let package = Path::new("hv").join(name);
    fs::create_dir_all(root.join(&package))?;
    for entry in fs::read_dir(from.join(&package))? {
        let entry = entry?;
        if entry.file_name() != "src" {
            link(&entry.path(), &root.join(&package).join(entry.file_name()))?;
        }
    }
    let changed = modules(&from.join(&package).join("src"), "lib.rs")?;
    let mut mutants = Vec::new();
    for file in files(&from.join(&package).join("src"))? {
        let place = file.strip_prefix(&from)?;
        let source = read(&file)?;
        let mut text = source.clone();
        if changed.contains(&file) {
            let changes: Vec<Change>;
            let first = mutants.last().map_or(0, |mutant: &Mutant| mutant.number) + 1;
            (text, changes) = rewrite::rewrite(&source, first.next_multiple_of(SPAN) + 1, refused)
                .with_context(|| format!("can't read {}", place.display()))?;
            mutants.extend(changes.into_iter().map(|change| mutant(place, &source, change)));
        }
        if file.ends_with("src/lib.rs") {
            text += SWITCH;
        }
        write(&root.join(place), &text)?;
    }
    Ok(Copy { root, mutants })
}

/// Each file's numbers begin at the next multiple, so that a change that is refused or added moves no others far.
const SPAN: usize = 1000;

fn mutant(file: &Path, source: &str, change: Change) -> Mutant {
    Mutant {
        number: change.number,
        kind: change.kind,
        file: file.display().to_string(),
        line: change.line,
        function: change.function,
        text: source.lines().nth(change.line - 1).unwrap_or_default().trim().to_string(),
        change: change.words,
    }
}

/// The files of the crate's modules, without those that are there for tests alone.
fn modules(folder: &Path, file: &str) -> Result<BTreeSet<PathBuf>> {
    let path = folder.join(file);
    let mut all = BTreeSet::from([path.clone()]);
    let stem = Path::new(file).file_stem().unwrap_or_default();
    let below = if ["lib", "mod"].iter().any(|name| stem == *name) { folder.to_path_buf() } else { folder.join(stem) };
    for item in syn::parse_file(&read(&path)?).with_context(|| format!("can't read {}", path.display()))?.items {
        let syn::Item::Mod(module) = item else { continue };
        if module.content.is_some() || rewrite::is_for_tests(&module.attrs) {
            continue;
        }
        let name = module.ident.to_string();
        if below.join(format!("{name}.rs")).exists() {
            all.extend(modules(&below, &format!("{name}.rs"))?);
        } else {
            all.extend(modules(&below.join(&name), "mod.rs")?);
        }
    }
    Ok(all)
}

/// All files below, in order.
fn files(folder: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut all = BTreeSet::new();
    for entry in fs::read_dir(folder).with_context(|| format!("can't read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            all.extend(files(&path)?);
        } else {
            all.insert(path);
        }
    }
    Ok(all)
}

/// Hashes of all that decides what becomes of the crate's mutants, other crates aside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Source {
    /// Of the modules that are changed.
    pub(super) code: String,
    /// Of all else.
    pub(super) tests: String,
}

impl Source {
    pub(super) fn of(name: &str) -> Result<Self> {
        let package = project::root().join("hv").join(name);
        let code = modules(&package.join("src"), "lib.rs")?;
        let all = files(&package)?.into_iter().filter(|file| !file.ends_with("mutants.toml"));
        let tests = all.filter(|file| !code.contains(file)).collect();
        Ok(Self { code: hash(&package, &code)?, tests: hash(&package, &tests)? })
    }
}

fn hash(package: &Path, files: &BTreeSet<PathBuf>) -> Result<String> {
    let mut hasher = DefaultHasher::new();
    for file in files {
        file.strip_prefix(package)?.hash(&mut hasher);
        fs::read(file)?.hash(&mut hasher);
    }
    Ok(format!("{:016x}", hasher.finish()))
}

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).with_context(|| format!("can't read {}", file.display()))
}

fn write(file: &Path, text: &str) -> Result<()> {
    if fs::read_to_string(file).is_ok_and(|before| before == text) {
        return Ok(());
    }
    fs::create_dir_all(file.parent().unwrap_or(Path::new(".")))?;
    fs::write(file, text).with_context(|| format!("can't write {}", file.display()))
}

fn link(target: &Path, at: &Path) -> Result<()> {
    match fs::read_link(at) {
        Ok(old) if old == target => Ok(()),
        Ok(_) => bail!("{} is another repository's: remove it", at.display()),
        Err(_) => symlink(target, at).with_context(|| format!("can't link {}", at.display())),
    }
}
