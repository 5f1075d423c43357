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

/// What an operator does about a file of state that the system did not let be written.
pub fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "free space on the file system of lib-dir"
        }
        io::ErrorKind::ReadOnlyFilesystem => "mount the file system of lib-dir so that it can be written",
        _ => "run as root, or name another directory with --lib-dir",
    }
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
    let mut replacement = Replacement::begin(path, mode)?;
    replacement.write_all(content).map_err(|source| FileError {
        path: path.to_owned(),
        what: "can't be written",
        source,
    })?;
    replacement.finish()
}

/// The new content of a file, written part by part. Until [`Replacement::finish`] the old one is there; dropped before that
/// it leaves nothing behind.
#[derive(Debug)]
pub struct Replacement {
    path: PathBuf,
    temporary: PathBuf,
    file: Option<File>,
}

// === impl Replacement ===

impl Replacement {
    /// Begins; the file will have this mode.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn begin(path: &Path, mode: u32) -> Result<Self, FileError> {
        let temporary = sibling(path, &format!(".tmp-{}", std::process::id()));
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary);
        let file =
            file.map_err(|source| FileError { path: path.to_owned(), what: "can't be written", source })?;
        Ok(Self { path: path.to_owned(), temporary, file: Some(file) })
    }

    /// Puts what was written in the place of the file.
    ///
    /// # Errors
    /// When the file system refuses; the old content is then still there.
    pub fn finish(mut self) -> Result<(), FileError> {
        let failed = |what, source| FileError { path: self.path.clone(), what, source };
        if let Some(file) = &self.file {
            file.sync_all().map_err(|source| failed("can't be written", source))?;
        }
        fs::rename(&self.temporary, &self.path).map_err(|source| failed("can't be replaced", source))?;
        let synced = sync_directory(&self.path).map_err(|source| failed("can't be made durable", source));
        self.file = None;
        synced
    }
}

impl Write for Replacement {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.as_mut().map_or(Ok(0), |file| file.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), File::flush)
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            // What is left of the attempt is of no use; that it can't go either changes nothing.
            let _ = fs::remove_file(&self.temporary);
        }
    }
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
    fn a_replacement_that_is_not_finished_leaves_the_old_content_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        write_atomic(&path, b"one").unwrap();
        let mut replacement = Replacement::begin(&path, 0o600).unwrap();
        replacement.write_all(b"tw").unwrap();
        drop(replacement);
        assert_eq!(fs::read(&path).unwrap(), b"one");
        let mut replacement = Replacement::begin(&path, 0o600).unwrap();
        replacement.write_all(b"tw").unwrap();
        replacement.write_all(b"o").unwrap();
        replacement.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
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
