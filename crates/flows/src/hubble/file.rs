//! A file of lines that is renamed when it is full; a bounded number of renamed ones is kept.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use flate2::{Compression, write::GzEncoder};
use jiff::Timestamp;

/// How much of the disk is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Most bytes of one file.
    pub file: u64,
    /// How many full files are kept beside the one that is written.
    pub backups: usize,
    /// Compress full files with gzip.
    pub compress: bool,
}

/// The file that lines are appended to: `flows.log`, when full renamed to `flows-2026-01-31T10-00-00.000.log`.
#[derive(Debug)]
pub struct ExportFile {
    path: PathBuf,
    limits: Limits,
    file: File,
    len: u64,
}

impl ExportFile {
    /// Opens the file, or makes it and the directories above it; what it holds stays.
    ///
    /// # Errors
    /// It cannot be made or written.
    pub fn open(path: &Path, limits: Limits) -> io::Result<Self> {
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            fs::create_dir_all(directory)?;
        }
        let file = appending(path)?;
        let len = file.metadata()?.len();
        let mut opened = Self { path: path.to_owned(), limits, file, len };
        opened.end_last_line()?;
        Ok(opened)
    }

    /// Appends whole lines. They are not split between two files; only lines that are larger together than a file may
    /// be make one that is larger.
    ///
    /// # Errors
    /// As of the file system. Lines may then be there in part; the next ones begin on a line of their own.
    pub fn append(&mut self, lines: &[u8], now: Timestamp) -> io::Result<()> {
        let more = lines.len() as u64;
        if !self.is_in_place() {
            self.file = appending(&self.path)?;
            self.len = self.file.metadata()?.len();
        }
        if self.len > 0 && self.len + more > self.limits.file {
            self.rotate(now)?;
        }
        let written = self.file.write_all(lines);
        self.len = self.file.metadata().map_or(self.len + more, |metadata| metadata.len());
        if written.is_err() {
            // Half a line must not swallow the next one; if that fails too, the reader counts one bad line.
            let _ = self.end_last_line();
        }
        written
    }

    /// The files that there are, oldest first, the current one last.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn all(path: &Path) -> io::Result<Vec<PathBuf>> {
        let mut files = backups_of(path)?;
        if path.exists() {
            files.push(path.to_owned());
        }
        Ok(files)
    }

    /// Whether nobody has moved or removed the file, as logrotate does.
    fn is_in_place(&self) -> bool {
        use std::os::unix::fs::MetadataExt;
        let number = |metadata: io::Result<fs::Metadata>| metadata.ok().map(|m| (m.dev(), m.ino()));
        number(fs::metadata(&self.path)) == number(self.file.metadata())
    }

    fn rotate(&mut self, now: Timestamp) -> io::Result<()> {
        let full = self.free_name(now);
        fs::rename(&self.path, &full)?;
        self.file = appending(&self.path)?;
        self.len = 0;
        if self.limits.compress {
            compress(&full)?;
        }
        let backups = backups_of(&self.path)?;
        let surplus = backups.len().saturating_sub(self.limits.backups);
        backups.iter().take(surplus).try_for_each(fs::remove_file)
    }

    fn free_name(&self, now: Timestamp) -> PathBuf {
        let (stem, end) = parts(&self.path);
        let mut at = now;
        loop {
            let name = format!("{stem}-{}{end}", at.strftime("%Y-%m-%dT%H-%M-%S.%3f"));
            let path = self.path.with_file_name(name);
            if !path.exists() && !zipped(&path).exists() {
                return path;
            }
            at = at.saturating_add(jiff::SignedDuration::from_millis(1)).unwrap_or(Timestamp::MAX);
        }
    }

    /// A crash may have left half a line.
    fn end_last_line(&mut self) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        let len = self.file.metadata()?.len();
        let mut last = [b'\n'];
        if len > 0 {
            self.file.read_exact_at(&mut last, len - 1)?;
        }
        if last != *b"\n" {
            self.file.write_all(b"\n")?;
        }
        self.len = self.file.metadata()?.len();
        Ok(())
    }
}

fn appending(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new().create(true).append(true).read(true).mode(0o640).open(path)
}

/// `flows` and `.log` of `/x/flows.log`.
fn parts(path: &Path) -> (String, String) {
    let text = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
    let end = text(path.extension());
    (text(path.file_stem()), if end.is_empty() { end } else { format!(".{end}") })
}

fn zipped(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".gz");
    name.into()
}

/// Full files, oldest first: their names sort by time.
fn backups_of(path: &Path) -> io::Result<Vec<PathBuf>> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (stem, end) = parts(path);
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?.path();
        let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let plain = name.strip_suffix(".gz").unwrap_or(&name);
        let time = plain
            .strip_prefix(&stem)
            .and_then(|rest| rest.strip_prefix('-'))
            .and_then(|rest| rest.strip_suffix(&end));
        if time.is_some_and(is_time) {
            found.push(entry);
        }
    }
    found.sort();
    Ok(found)
}

/// Whether it looks like `2026-01-31T10-00-00.000`: nothing else in the directory is touched.
fn is_time(text: &str) -> bool {
    const SHAPE: &[u8] = b"0000-00-00T00-00-00.000";
    text.len() == SHAPE.len()
        && text.bytes().zip(SHAPE).all(|(byte, shape)| match shape {
            b'0' => byte.is_ascii_digit(),
            other => byte == *other,
        })
}

fn compress(path: &Path) -> io::Result<()> {
    let target = zipped(path);
    let half = target.with_extension("gz.part");
    let mut encoder = GzEncoder::new(File::create(&half)?, Compression::fast());
    io::copy(&mut File::open(path)?, &mut encoder)?;
    encoder.finish()?.sync_all()?;
    fs::rename(&half, &target)?;
    fs::remove_file(path)
}
