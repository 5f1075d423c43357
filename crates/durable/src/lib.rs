//! Files of state that are whole or not there.
//!
//! The crate knows how a file is replaced so that a crash leaves the old content or the new, and how one that cannot
//! be understood is kept for who wants to look at it. It refuses to know what files hold.
#![forbid(unsafe_code)]

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use thiserror::Error;

/// Why a file of state could not be read or written.
#[derive(Debug, Error)]
#[error("{path:?}: {what}: {source}")]
pub struct FileError {
    /// The file.
    pub path: PathBuf,
    /// What was tried.
    pub what: &'static str,
    /// What the system said.
    pub source: io::Error,
}

/// Replaces a file (mode 0600) so that after a crash at any time, a power cut included, either the old or the
/// new content is there.
///
/// # Errors
/// When the file system refuses; the old content is then still there.
pub fn write_atomic(path: &Path, content: &[u8]) -> Result<(), FileError> {
    write_atomic_as(path, content, 0o600)
}

/// [`write_atomic`] with another mode than 0600.
///
/// # Errors
/// When the file system refuses; the old content is then still there.
pub fn write_atomic_as(path: &Path, content: &[u8], mode: u32) -> Result<(), FileError> {
    let failed = |what| move |source| FileError { path: path.to_owned(), what, source };
    let temporary = sibling(path, &format!(".tmp-{}", std::process::id()));
    let written = write_synced(&temporary, content, mode).map_err(failed("can't be written"));
    let renamed = written
        .and_then(|()| fs::rename(&temporary, path).map_err(failed("can't be replaced")))
        .and_then(|()| sync_directory(path).map_err(failed("can't be made durable")));
    if renamed.is_err() {
        // What is left of the attempt is of no use; that it can't go either changes nothing.
        let _ = fs::remove_file(&temporary);
    }
    renamed
}

/// Moves an unreadable file to `<file>.damaged-<unix seconds>` and says where it is.
///
/// # Errors
/// When the file system refuses.
pub fn set_aside(path: &Path) -> Result<PathBuf, FileError> {
    let secs = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let aside = sibling(path, &format!(".damaged-{secs}"));
    fs::rename(path, &aside).map_err(|source| FileError {
        path: path.to_owned(),
        what: "is damaged and can't be moved aside",
        source,
    })?;
    Ok(aside)
}

fn write_synced(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or_else(|| Path::new(".")))?.sync_all()
}

fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_nothing_is_left_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        write_atomic(&path, b"one").unwrap();
        write_atomic(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failure_names_the_file_and_keeps_the_old_content() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("no/state.json");
        let error = write_atomic(&path, b"x").unwrap_err().to_string();
        assert!(error.contains("no/state.json"), "{error}");
        let blocked = directory.path().join("blocked");
        fs::create_dir(&blocked).unwrap();
        assert!(write_atomic(&blocked, b"x").is_err());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
