//! What was learned of the cluster since its state was written down: a line each, appended before the kernel is told, so that
//! an agent that is killed knows after its start all that the kernel knew.
//!
//! Lines are in the hands of the kernel, not on the disk: who loses power loses the kernel's maps with them. A line says how
//! something is now, so that lines can be taken in over any older state, and twice. There is a file for each state that was
//! written down, with what came after; those that neither of the last two states needs are removed.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use villus_identity::{AddressRecord, Layer, RecordChange, read_row};
use villus_kvstore::{Header, NodeEntry, Witness};

use crate::state::StateDir;

const PREFIX: &str = "cluster-learned-";
const SUFFIX: &str = ".jsonl";
/// So much is gathered at most before it is written.
const CHUNK: usize = 256 << 10;
/// What the line of an address that is there begins with.
const ADDRESS: &[u8] = br#"{"address":"#;

/// How something is now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Line<'a> {
    /// Which store says so, a revision that it has reached, and a write of it.
    Store(u64, u64, Option<Cow<'a, Witness>>),
    /// An identity: its number, and its labels unless it is gone.
    Identity(u32, Option<Cow<'a, str>>),
    /// A copy of another cluster's identity by its key: number and labels unless it is gone.
    Copy(#[serde(borrow)] Cow<'a, str>, Option<(u32, Cow<'a, str>)>),
    /// An address by its key, unless it is gone.
    Address(#[serde(borrow)] Cow<'a, str>, Option<Cow<'a, AddressRecord>>),
    /// What each layer says of a node, and whether its key is under a lease there; gone without any.
    Node(#[serde(borrow)] Cow<'a, str>, Vec<(Layer, Cow<'a, NodeEntry>, bool)>),
}

/// The files, and the one that is written.
#[derive(Debug)]
pub(crate) struct Learned {
    state: StateDir,
    /// Number of the file that the next line goes to.
    number: u64,
    file: Option<File>,
    /// Lines that are not written yet.
    gathered: Vec<u8>,
    /// Bytes that came after the newest state.
    size: u64,
    /// The first file that the newest state needs.
    needed: u64,
    /// What was said last of the store.
    store: Option<(Header, Option<Witness>)>,
    /// Why something that was learned is not in the files.
    problem: Option<String>,
}

/// Everything that files say, the last word on each.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Changes {
    pub store: Option<(Header, Option<Witness>)>,
    pub identities: BTreeMap<u32, Option<String>>,
    pub copies: BTreeMap<String, Option<(u32, String)>>,
    pub addresses: BTreeMap<Arc<str>, Option<AddressRecord>>,
    pub nodes: BTreeMap<String, Vec<(Layer, NodeEntry, bool)>>,
    /// When the last of them was written.
    pub written: Option<Timestamp>,
}

// === impl Line ===

impl<'a> From<RecordChange<'a>> for Line<'a> {
    fn from(change: RecordChange<'a>) -> Self {
        match change {
            RecordChange::Address(key, address) => {
                Self::Address(Cow::Borrowed(key), address.map(Cow::Borrowed))
            }
            RecordChange::Node(key, words) => {
                let words =
                    words.into_iter().map(|(layer, entry, leased)| (layer, Cow::Borrowed(entry), leased));
                Self::Node(Cow::Borrowed(key), words.collect())
            }
        }
    }
}

// === impl Learned ===

impl Learned {
    /// Reads what was learned after the state that needs the files from this number on; without one, none of them. New lines
    /// go to a file of their own. Also says what could not be read.
    pub fn open(state: &StateDir, from: Option<u64>) -> (Self, Changes, Vec<String>) {
        let (mut changes, mut problems) = (Changes::default(), Vec::new());
        let files = files(state);
        let number = files.keys().next_back().map_or(1, |last| last + 1).max(from.unwrap_or_default());
        if let Some(from) = from {
            for path in files.range(from..).map(|(_, path)| path) {
                if let Err(problem) = changes.read(path) {
                    problems.push(format!("{}: {problem}", path.display()));
                }
            }
        }
        let needed = from.unwrap_or(number);
        let (state, gathered) = (state.clone(), Vec::new());
        let learned =
            Self { state, number, file: None, gathered, size: 0, needed, store: None, problem: None };
        (learned, changes, problems)
    }

    /// Something is different.
    pub fn push(&mut self, line: &Line<'_>) {
        if let Err(error) = serde_json::to_writer(&mut self.gathered, line) {
            self.problem = Some(error.to_string());
        }
        self.gathered.push(b'\n');
        if self.gathered.len() >= CHUNK {
            self.write();
        }
    }

    /// What is learned from here on is of this store.
    pub fn push_store(&mut self, header: Header, witness: Option<Witness>) {
        let now = Some((header, witness));
        if self.store != now && !self.gathered.is_empty() {
            let witness = now.as_ref().and_then(|(_, witness)| witness.as_ref());
            self.push(&Line::Store(header.cluster, header.revision, witness.map(Cow::Borrowed)));
            self.store = now;
        }
    }

    /// From now on the kernel may be told.
    pub fn write(&mut self) {
        if self.gathered.is_empty() {
            return;
        }
        if let Err(error) = self.try_write() {
            self.problem = Some(error.to_string());
            // What came to the disk of it may end in the middle of a line.
            self.file = None;
            self.number += 1;
        }
        self.size += self.gathered.len() as u64;
        self.gathered.clear();
        self.gathered.shrink_to(CHUNK);
    }

    fn try_write(&mut self) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let path = path(&self.state, self.number);
                let new = OpenOptions::new().append(true).create_new(true).mode(0o600).open(path)?;
                self.file.insert(new)
            }
        };
        file.write_all(&self.gathered)
    }

    /// The state is about to be written down: what is learned from now on goes to another file, whose number the state has to
    /// know.
    pub fn rotate(&mut self) -> u64 {
        self.write();
        if self.file.take().is_some() {
            self.number += 1;
        }
        self.number
    }

    /// The state that needs the files from this number on is on the disk, and has taken the place of the one before.
    pub fn settle(&mut self, from: u64) {
        let before = std::mem::replace(&mut self.needed, from);
        for path in files(&self.state).range(..before).map(|(_, path)| path) {
            if let Err(error) = fs::remove_file(path) {
                tracing::warn!(file = %path.display(), %error, "what was learned long ago stays on the disk");
            }
        }
        self.problem = None;
        self.size = 0;
    }

    /// Bytes that were written since the newest state was.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Why an agent that is killed now would not know all of it.
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }
}

fn path(state: &StateDir, number: u64) -> PathBuf {
    state.path(&format!("{PREFIX}{number}{SUFFIX}"))
}

/// All files there are, by number.
fn files(state: &StateDir) -> BTreeMap<u64, PathBuf> {
    let entries = fs::read_dir(state.path("")).into_iter().flatten().flatten();
    let numbered = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let number = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.parse().ok()?;
        Some((number, entry.path()))
    });
    numbered.collect()
}

// === impl Changes ===

impl Changes {
    /// Whether nothing was learned.
    pub fn is_empty(&self) -> bool {
        self.written.is_none()
    }

    fn read(&mut self, path: &PathBuf) -> Result<(), String> {
        let file = File::open(path).map_err(|error| error.to_string())?;
        let written = file.metadata().and_then(|found| found.modified());
        let written = written.ok().and_then(|time| Timestamp::try_from(time).ok());
        self.written = self.written.max(written);
        self.read_lines(BufReader::new(file))
    }

    /// Takes in lines up to the first that cannot be read. One without its end is none: whoever wrote it was killed.
    fn read_lines(&mut self, mut from: impl BufRead) -> Result<(), String> {
        let mut line = Vec::new();
        for count in 1.. {
            line.clear();
            from.read_until(b'\n', &mut line).map_err(|error| error.to_string())?;
            if line.pop() != Some(b'\n') {
                break;
            }
            // Nearly all are of addresses.
            if let Some((key, address, b"}")) = line.strip_prefix(ADDRESS).and_then(read_row) {
                self.addresses.insert(key, Some(address));
                continue;
            }
            let read = serde_json::from_slice(&line);
            self.take(
                read.map_err(|error| format!("line {count} and those after it are left out: {error}"))?,
            );
        }
        Ok(())
    }

    fn take(&mut self, line: Line<'_>) {
        match line {
            Line::Store(cluster, revision, witness) => {
                self.store = Some((Header { cluster, revision }, witness.map(Cow::into_owned)));
            }
            Line::Identity(number, labels) => {
                self.identities.insert(number, labels.map(Cow::into_owned));
            }
            Line::Copy(key, row) => {
                self.copies
                    .insert(key.into_owned(), row.map(|(number, labels)| (number, labels.into_owned())));
            }
            Line::Address(key, address) => {
                self.addresses.insert((*key).into(), address.map(Cow::into_owned));
            }
            Line::Node(key, words) => {
                let words =
                    words.into_iter().map(|(layer, entry, leased)| (layer, entry.into_owned(), leased));
                self.nodes.insert(key.into_owned(), words.collect());
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address(last: u8) -> AddressRecord {
        serde_json::from_value(serde_json::json!({
            "prefix": format!("10.0.0.{last}/32"), "identity": 300, "host": "10.9.0.1", "leased": true,
        }))
        .unwrap()
    }

    fn lines() -> Vec<Line<'static>> {
        vec![
            Line::Identity(300, Some("k8s:a=b;".into())),
            Line::Address("ip/1".into(), Some(Cow::Owned(address(1)))),
            Line::Store(7, 100, None),
            Line::Copy("copy".into(), Some((131_073, "k8s:c=d;".into()))),
            Line::Node("nodes/a".into(), vec![(Layer::State, Cow::Owned(NodeEntry::new("c1", "a")), true)]),
            Line::Address("ip/1".into(), None),
            Line::Identity(300, None),
        ]
    }

    fn taken(lines: &[Line<'static>]) -> Changes {
        let mut changes = Changes::default();
        lines.iter().for_each(|line| changes.take(line.clone()));
        changes
    }

    fn open(state: &StateDir, from: Option<u64>) -> (Learned, Changes) {
        let (learned, changes, problems) = Learned::open(state, from);
        assert_eq!(problems, Vec::<String>::new());
        (learned, Changes { written: None, ..changes })
    }

    #[test]
    fn what_was_written_is_read_after_a_kill_and_files_go_when_no_state_needs_them() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let (mut learned, nothing) = open(&state, Some(0));
        assert_eq!(
            (nothing, files(&state).len()),
            (Changes::default(), 0),
            "a file is made when there is need"
        );
        let all = lines();
        all[..2].iter().for_each(|line| learned.push(line));
        learned.write();
        learned.push(&all[2]);
        // Killed: what was not written is not known, nor was the kernel told.
        let (mut learned, found) = open(&state, Some(0));
        assert_eq!(found, taken(&all[..2]));
        all[2..4].iter().for_each(|line| learned.push(line));
        learned.write();
        assert_eq!(open(&state, Some(0)).1, taken(&all[..4]), "over two files");
        let first = learned.rotate();
        all[4..].iter().for_each(|line| learned.push(line));
        learned.write();
        learned.settle(first);
        assert_eq!(open(&state, Some(first)).1, taken(&all[4..]));
        assert_eq!(open(&state, Some(0)).1, taken(&all), "the state before needs them still");
        let second = learned.rotate();
        learned.settle(second);
        assert_eq!(files(&state).keys().copied().collect::<Vec<_>>(), [first]);
        assert_eq!(open(&state, Some(second)).1, Changes::default());
        // A state of a version that knew no such files.
        assert_eq!(open(&state, None).1, Changes::default());
    }

    #[test]
    fn a_line_that_cannot_be_read_ends_its_file_and_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let good = serde_json::to_string(&lines()[0]).unwrap();
        fs::write(path(&state, 3), format!("{good}\n{{\"identity\":[1]}}\n{good}\n")).unwrap();
        let last = serde_json::to_string(&lines()[1]).unwrap();
        fs::write(path(&state, 4), format!("{last}\n{}", &good[..9])).unwrap();
        let (learned, changes, problems) = Learned::open(&state, Some(3));
        assert!(
            matches!(&problems[..], [problem] if problem.contains("learned-3.jsonl: line 2")),
            "{problems:?}"
        );
        assert_eq!(Changes { written: None, ..changes }, taken(&lines()[..2]));
        assert_eq!(learned.number, 5);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_file_cut_anywhere_gives_the_lines_before_the_cut(share in 0.0..=1.0) {
            let texts: Vec<String> = lines().iter().map(|line| serde_json::to_string(line).unwrap() + "\n").collect();
            let text = texts.concat();
            let cut = (text.len() as f64 * share) as usize;
            let mut changes = Changes::default();
            changes.read_lines(&text.as_bytes()[..cut]).unwrap();
            let whole = text[..cut].matches('\n').count();
            prop_assert_eq!(changes, taken(&lines()[..whole]));
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..80), text in "(\\{\"(address|identity|node|copy|store)\":\\[[0-9a-z\",\\[\\]]{0,20}\\]?\\}?\n){0,3}") {
            let _ = Changes::default().read_lines(&*bytes);
            let _ = Changes::default().read_lines(text.as_bytes());
        }
    }
}
