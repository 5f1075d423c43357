//! Options from a directory with one file per option.
//!
//! A directory that Kubernetes mounts from a ConfigMap holds a link `..data` to a dated subdirectory and one
//! link per option into it: names that begin with a dot and subdirectories are skipped, links are followed.

use super::{Origin, Sources, error, text_of};
use crate::finding::{Finding, Severity};
use std::path::{Path, PathBuf};

/// Endings of the copies that editors and package tools leave behind.
const LEFTOVERS: [&str; 9] =
    ["~", ".swp", ".swo", ".bak", ".orig", ".old", ".rpmsave", ".rpmnew", ".dpkg-old"];

/// Reads every option of a directory into `sources`.
pub(super) fn read(dir: &Path, sources: &mut Sources) {
    let mut files = match list(dir) {
        Ok(files) => files,
        Err(e) => {
            let origin = Origin::Dir { path: dir.into() };
            let fix = "name an existing directory with --config-dir, or leave the flag out".into();
            return sources.find(error(origin, "config-dir", format!("cannot be read: {e}"), fix));
        }
    };
    files.sort();
    for path in files {
        take(path, sources);
    }
}

fn list(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let hidden = path.file_name().is_none_or(|n| n.as_encoded_bytes().starts_with(b"."));
        if !hidden && !path.is_dir() {
            files.push(path);
        }
    }
    Ok(files)
}

fn take(path: PathBuf, sources: &mut Sources) {
    let origin = Origin::Dir { path: path.clone() };
    let Some(name) = path.file_name().and_then(|n| n.to_str()) else {
        let shown = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let fix = origin.removal();
        return sources.find(error(origin, &shown, "the file's name is not UTF-8 text".into(), fix));
    };
    if LEFTOVERS.iter().any(|end| name.len() > end.len() && name.ends_with(end)) {
        return sources.find(Finding {
            severity: Severity::Warning,
            option: name.into(),
            value: None,
            fix: origin.removal(),
            origin,
            reason: "looks like a copy that an editor left behind; it is ignored".into(),
        });
    }
    match text_of(&path) {
        Ok(text) => sources.push(name, &text, origin),
        Err((reason, fix)) => sources.find(error(origin, name, reason, fix)),
    }
}
