//! `villus kvstore journal`, and the journal itself.

use clap::Args;
use serde::{Deserialize, Serialize};
use villus_emergency::{Lines, rfc3339};
use villus_print::Table;

use super::{change::Change, open};
use crate::{connect::Host, failure::Failure, out::OutputArgs};

/// Name of the file in `lib-dir`.
const FILE: &str = "kvstore.jsonl";

#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  villus kvstore journal\n\nThe journal is the file kvstore.jsonl in --lib-dir, one deed a line, and only of this node."
)]
pub struct JournalArgs {
    /// Directory of the journal [env: VILLUS_LIB_DIR] [default: /var/lib/villus].
    #[arg(long, value_name = "PATH", value_hint = clap::ValueHint::DirPath, help_heading = "Places")]
    lib_dir: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
}

/// One deed, written down before it is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deed {
    /// Its number, from 1.
    pub id: u64,
    /// When, RFC 3339, UTC.
    pub time: String,
    /// Who did it, and where.
    pub by: String,
    /// `set`, `delete`, `undo`.
    pub verb: String,
    /// Members of the store.
    pub store: String,
    /// The deed that this one takes back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undoes: Option<u64>,
    /// Checks were passed over.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub forced: bool,
    /// What it changes.
    pub changes: Vec<Change>,
}

/// A line of the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A deed is about to be done.
    Deed(Deed),
    /// How a deed ended, if not as it was meant: changes from this one on were not done.
    Stopped {
        /// The deed.
        id: u64,
        /// How many of its changes were done.
        done: usize,
        /// Why.
        why: String,
    },
}

/// The journal of a node.
pub struct Journal(Lines<Event>);

// === impl Journal ===

impl Journal {
    pub fn open(lib_dir: Option<&str>) -> Result<Self, Failure> {
        Ok(Self(Lines::open(open::lib_dir(lib_dir)?.join(FILE))))
    }

    /// Writes a deed down, giving it the next free number and the time.
    pub fn write(&self, mut deed: Deed) -> Result<Deed, Failure> {
        deed.time = rfc3339(std::time::SystemTime::now());
        self.0.add(|log| {
            let last = log.records.iter().filter_map(|event| match event {
                Event::Deed(deed) => Some(deed.id),
                Event::Stopped { .. } => None,
            });
            deed.id = last.max().unwrap_or_default().saturating_add(1);
            Event::Deed(deed.clone())
        })?;
        Ok(deed)
    }

    /// Writes down that a deed was not done to its end.
    pub fn stopped(&self, id: u64, done: usize, why: &str) -> Result<(), Failure> {
        self.0.add(|_| Event::Stopped { id, done, why: why.to_owned() })?;
        Ok(())
    }

    /// All deeds with how many of their changes were done, oldest first. Lines that cannot be read are named.
    pub fn deeds(&self) -> Result<Vec<(Deed, usize)>, Failure> {
        let log = self.0.read()?;
        if !log.damaged.is_empty() {
            let lines: Vec<String> = log.damaged.iter().map(ToString::to_string).collect();
            let (lines, file) = (lines.join(", "), self.0.path().display());
            crate::out::complain(&format!(
                "villus: {file}: lines {lines} cannot be read and are passed over"
            ));
        }
        let mut deeds: Vec<(Deed, usize)> = Vec::new();
        for event in log.records {
            match event {
                Event::Deed(deed) => {
                    let all = deed.changes.len();
                    deeds.push((deed, all));
                }
                Event::Stopped { id, done, .. } => {
                    deeds.iter_mut().filter(|(deed, _)| deed.id == id).for_each(|(_, all)| *all = done);
                }
            }
        }
        Ok(deeds)
    }
}

pub fn run(_: &Host, args: &JournalArgs) -> Result<(), Failure> {
    let journal = Journal::open(args.lib_dir.as_deref())?;
    let deeds = journal.deeds()?;
    let undone =
        |id: u64| deeds.iter().any(|(deed, done)| deed.undoes == Some(id) && *done == deed.changes.len());
    let list: Vec<&Deed> = deeds.iter().map(|(deed, _)| deed).collect();
    args.output.print(&list, || {
        let mut table = Table::new(["ID", "TIME", "BY", "WHAT", "KEYS", "FIRST KEY"]);
        for (deed, done) in &deeds {
            let mut what = match deed.undoes {
                Some(of) => format!("undo {of}"),
                None => deed.verb.clone(),
            };
            if *done < deed.changes.len() {
                what.push_str(&format!(" (stopped after {done})"));
            }
            if undone(deed.id) {
                what.push_str(" (undone)");
            }
            let first = deed.changes.first().map(|change| change.key.clone()).unwrap_or_default();
            let keys = deed.changes.len().to_string();
            table.row([deed.id.to_string(), deed.time.clone(), deed.by.clone(), what, keys, first]);
        }
        table.render()
    })
}
