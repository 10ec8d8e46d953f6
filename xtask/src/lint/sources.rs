//! The Rust sources of the repository, as tokens: what stands in comments and strings does not count.

use crate::project;
use anyhow::{Context, Result};
use proc_macro2::TokenStream;
use std::fs;
use std::path::Path;

/// A source file.
pub(super) struct Source {
    /// Its path within the repository.
    pub(super) path: String,
    /// What is in it.
    pub(super) tokens: TokenStream,
}

impl Source {
    /// # Errors
    /// This is not Rust.
    pub(super) fn new(path: impl Into<String>, text: &str) -> Result<Self> {
        let path = path.into();
        let tokens = text.parse().map_err(|error| anyhow::anyhow!("{path}: {error}"))?;
        Ok(Self { path, tokens })
    }
}

/// All sources in a folder of the repository, in the order of their paths.
pub(super) fn in_folder(folder: &str) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    collect(&project::root().join(folder), &mut sources)?;
    sources.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(sources)
}

fn collect(folder: &Path, sources: &mut Vec<Source>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("can't read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            if path.file_name().is_none_or(|name| name != "target") {
                collect(&path, sources)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
            let name = path.strip_prefix(project::root())?.display().to_string();
            sources.push(Source::new(name, &text)?);
        }
    }
    Ok(())
}
