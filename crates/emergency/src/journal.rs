//! The journal: a file of JSON lines in the agent's `lib-dir`, only ever added to.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

use crate::{Allow, EmergencyError, Event, Record, State, boot_id};

/// Name of the file in `lib-dir`.
const FILE: &str = "emergency.jsonl";

/// The journal of one node. Nothing is opened or made before it is used.
#[derive(Clone, Debug)]
pub struct Journal {
    path: PathBuf,
}

/// What a journal says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Log {
    /// Lines, oldest first.
    pub records: Vec<Record>,
    /// Numbers of lines, from 1, that cannot be understood and are passed over.
    pub damaged: Vec<usize>,
}

impl Journal {
    /// The journal in the agent's `lib-dir`.
    #[must_use]
    pub fn open(lib_dir: &Path) -> Self {
        Self { path: lib_dir.join(FILE) }
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a line and waits until it is on the disk.
    ///
    /// # Errors
    /// [`EmergencyError::Journal`].
    pub fn append(&self, event: Event) -> Result<Record, EmergencyError> {
        self.locked(|file, _| self.add(file, Record::now(event)))
    }

    /// Adds a deed, giving it the next free number.
    ///
    /// # Errors
    /// [`EmergencyError::Journal`].
    pub fn append_allow(&self, mut allow: Allow) -> Result<Allow, EmergencyError> {
        self.locked(|file, log| {
            let numbers = log.records.iter().filter_map(|record| match &record.event {
                Event::Allow(allow) => Some(allow.id),
                _ => None,
            });
            allow.id = numbers.max().unwrap_or_default().saturating_add(1);
            self.add(file, Record::now(Event::Allow(allow.clone())))?;
            Ok(allow)
        })
    }

    /// Reads all of it; a journal that is not there is empty.
    ///
    /// # Errors
    /// [`EmergencyError::Journal`].
    pub fn read(&self) -> Result<Log, EmergencyError> {
        match fs::read(&self.path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Log::default()),
            result => result.map(|bytes| Log::parse(&bytes)).map_err(|e| self.failed("read", e)),
        }
    }

    /// What is in effect now, in this boot.
    ///
    /// # Errors
    /// [`EmergencyError::Journal`].
    pub fn active(&self) -> Result<State, EmergencyError> {
        Ok(State::of(&self.read()?, &boot_id()))
    }

    /// Runs `work` on the open file and what it says, with other writers kept out.
    fn locked<T>(
        &self,
        work: impl FnOnce(&mut File, &Log) -> Result<T, EmergencyError>,
    ) -> Result<T, EmergencyError> {
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
        work(&mut file, &Log::parse(&bytes))
    }

    fn add(&self, file: &mut File, record: Record) -> Result<Record, EmergencyError> {
        self.write(file, &record).map_err(|e| self.failed("write", e))?;
        Ok(record)
    }

    fn write(&self, file: &mut File, record: &Record) -> io::Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        if !ends_a_line(file)? {
            line.insert(0, b'\n');
        }
        file.write_all(&line)?;
        file.sync_data()
    }

    fn failed(&self, action: &'static str, source: io::Error) -> EmergencyError {
        EmergencyError::Journal { action, path: self.path.clone(), source }
    }
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

impl Log {
    /// Reads a journal's bytes.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Self {
        let mut log = Self::default();
        for (number, line) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            match serde_json::from_slice(line) {
                Ok(record) => log.records.push(record),
                Err(_) => log.damaged.push(number),
            }
        }
        log
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use villus_abi::{Direction, PolicyEntry, PolicyKey};

    use super::*;
    use crate::{Change, Taken};

    fn deed() -> Allow {
        let key = PolicyKey::new(298_951, 80, 6, Direction::Ingress);
        let entry = PolicyEntry { packets: 3, bytes: 180, ..PolicyEntry::DENY };
        let change =
            Change { endpoint: 794, insert: vec![PolicyKey::default()], take: vec![Taken { key, entry }] };
        Allow { by: "root".into(), changes: vec![change], ..Allow::default() }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(&dir.path().join("lib"));
        assert_eq!(journal.read().unwrap(), Log::default());
        let first = journal.append_allow(deed()).unwrap();
        let second = journal.append_allow(deed()).unwrap();
        assert_eq!((first.id, second.id), (1, 2));
        journal.append(Event::Timer { id: 1, pid: 9 }).unwrap();
        journal.append(Event::Undone { id: 1, by: "timer".into(), left: vec![] }).unwrap();
        let log = journal.read().unwrap();
        assert!(log.damaged.is_empty());
        assert_eq!(log.records.len(), 4);
        assert_eq!(log.records[1].event, Event::Allow(second));
        let text = fs::read_to_string(journal.path()).unwrap();
        assert!(
            text.contains(r#""insert":["0000000000000000"],"take":[{"key":"c78f040000500600""#),
            "{text}"
        );
    }

    #[test]
    fn a_line_cut_short_costs_only_itself() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path());
        journal.append_allow(deed()).unwrap();
        let whole = fs::read(journal.path()).unwrap();
        fs::write(journal.path(), [&whole[..], &whole[..40]].concat()).unwrap();
        journal.append(Event::Release { endpoint: 794 }).unwrap();
        let log = journal.read().unwrap();
        assert_eq!((log.records.len(), log.damaged), (2, vec![2]));
    }

    #[test]
    fn an_unreadable_journal_says_which() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let error = Journal::open(&dir.path().join("file")).append_allow(deed()).unwrap_err();
        assert!(error.to_string().contains("file/emergency.jsonl"), "{error}");
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Log::parse(&bytes);
        }

        #[test]
        fn lines_with_holes_are_passed_over(cut in 0usize..400, with in any::<u8>()) {
            let record = Record { time: String::new(), boot: "b".into(), event: Event::Allow(deed()) };
            let mut line = serde_json::to_vec(&record).unwrap();
            let at = cut % line.len();
            line[at] = with;
            let log = Log::parse(&line);
            prop_assert!(log.records.len() + log.damaged.len() <= 2);
        }
    }
}
