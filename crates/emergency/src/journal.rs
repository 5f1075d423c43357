//! The journal: a file of JSON lines in the agent's `lib-dir`, only ever added to.

use std::path::Path;

use crate::{Allow, EmergencyError, Event, Lines, Parsed, Record, State, boot_id};

/// Name of the file in `lib-dir`.
const FILE: &str = "emergency.jsonl";

/// The journal of one node. Nothing is opened or made before it is used.
#[derive(Clone, Debug)]
pub struct Journal {
    lines: Lines<Record>,
}

/// What a journal says.
pub type Log = Parsed<Record>;

impl Journal {
    /// The journal in the agent's `lib-dir`.
    #[must_use]
    pub fn open(lib_dir: &Path) -> Self {
        Self { lines: Lines::open(lib_dir.join(FILE)) }
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.lines.path()
    }

    /// Adds a line and waits until it is on the disk.
    ///
    /// # Errors
    /// [`EmergencyError::Journal`].
    pub fn append(&self, event: Event) -> Result<Record, EmergencyError> {
        self.lines.add(|_| Record::now(event))
    }

    /// Adds a deed, giving it the next free number.
    ///
    /// # Errors
    /// [`EmergencyError::Journal`].
    pub fn append_allow(&self, mut allow: Allow) -> Result<Allow, EmergencyError> {
        let number = |log: &Log| {
            let numbers = log.records.iter().filter_map(|record| match &record.event {
                Event::Allow(allow) => Some(allow.id),
                _ => None,
            });
            numbers.max().unwrap_or_default().saturating_add(1)
        };
        self.lines.add(|log| {
            allow.id = number(log);
            Record::now(Event::Allow(allow.clone()))
        })?;
        Ok(allow)
    }

    /// Reads all of it; a journal that is not there is empty.
    ///
    /// # Errors
    /// [`EmergencyError::Journal`].
    pub fn read(&self) -> Result<Log, EmergencyError> {
        self.lines.read()
    }

    /// What is in effect now, in this boot.
    ///
    /// # Errors
    /// [`EmergencyError::Journal`].
    pub fn active(&self) -> Result<State, EmergencyError> {
        Ok(State::of(&self.read()?, &boot_id()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

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
