//! Files of JSON lines that several processes add to.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    marker::PhantomData,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};
use serde::{Serialize, de::DeserializeOwned};

use crate::EmergencyError;

/// A file with one record per line, only ever added to. Nothing is opened or made before it is used.
#[derive(Clone, Debug)]
pub struct Lines<T> {
    path: PathBuf,
    records: PhantomData<T>,
}

/// What such a file says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parsed<T> {
    /// Lines, oldest first.
    pub records: Vec<T>,
    /// Numbers of lines, from 1, that cannot be understood and are passed over.
    pub damaged: Vec<usize>,
}

// === impl Lines ===

impl<T: Serialize + DeserializeOwned> Lines<T> {
    /// The file at this path; its directory is made when something is written.
    #[must_use]
    pub fn open(path: PathBuf) -> Self {
        Self { path, records: PhantomData }
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds the line that `make` makes of what is there, with other writers kept out, and waits until it is on the disk.
    ///
    /// # Errors
    /// [`EmergencyError::Journal`].
    pub fn add(&self, make: impl FnOnce(&Parsed<T>) -> T) -> Result<T, EmergencyError> {
        if let Some(dir) = self.path.parent() {
            fs::create_dir_all(dir).map_err(|e| self.failed("make the directory of", e))?;
        }
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&self.path)
            .map_err(|e| self.failed("open", e))?;
        flock(&file, FlockOperation::LockExclusive).map_err(|e| self.failed("lock", e.into()))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(|e| self.failed("read", e))?;
        let record = make(&Parsed::parse(&bytes));
        write(&mut file, &record).map_err(|e| self.failed("write", e))?;
        Ok(record)
    }

    /// Reads all of it; a file that is not there is empty.
    ///
    /// # Errors
    /// [`EmergencyError::Journal`].
    pub fn read(&self) -> Result<Parsed<T>, EmergencyError> {
        match fs::read(&self.path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Parsed::default()),
            result => result.map(|bytes| Parsed::parse(&bytes)).map_err(|e| self.failed("read", e)),
        }
    }

    fn failed(&self, action: &'static str, source: io::Error) -> EmergencyError {
        EmergencyError::Journal { action, path: self.path.clone(), source }
    }
}

fn write<T: Serialize>(file: &mut File, record: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(record)?;
    line.push(b'\n');
    if !ends_a_line(file)? {
        line.insert(0, b'\n');
    }
    file.write_all(&line)?;
    file.sync_data()
}

/// Whether the last line is complete; one that a crash cut short must not swallow the next.
fn ends_a_line(file: &mut File) -> io::Result<bool> {
    if file.seek(SeekFrom::End(0))? == 0 {
        return Ok(true);
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last == [b'\n'])
}

// === impl Parsed ===

impl<T> Default for Parsed<T> {
    fn default() -> Self {
        Self { records: Vec::new(), damaged: Vec::new() }
    }
}

impl<T: DeserializeOwned> Parsed<T> {
    /// Reads the bytes of such a file.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Self {
        let mut parsed = Self::default();
        for (number, line) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            match serde_json::from_slice(line) {
                Ok(record) => parsed.records.push(record),
                Err(_) => parsed.damaged.push(number),
            }
        }
        parsed
    }
}
