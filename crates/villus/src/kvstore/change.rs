//! What a command changes in the store: planned from what is there, written only if that is still there.

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use villus_kvstore::{Compare, Entry, LeaseId, MAX_TXN_BYTES, Op, Store, StoreError, Txn};

use super::{
    WriteArgs,
    journal::{Deed, Journal},
    open::Shared,
};
use crate::failure::Failure;

/// Changes in one transaction; etcd takes 128 operations on each branch and as many conditions.
const TOGETHER: usize = 100;
/// Bytes of values in one transaction.
const BYTES: usize = MAX_TXN_BYTES / 2;

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The key.
    pub key: String,
    /// What is there; nothing if the key is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old: Option<Content>,
    /// What shall be there; nothing if the key shall go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new: Option<Content>,
    /// Revision of what is there.
    #[serde(skip)]
    pub revision: u64,
}

/// A value with the lease that it lies under.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// The value, if it is text.
    pub value: Text,
    /// The lease, hexadecimal as etcd prints it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<String>,
}

/// A value: as text if it is UTF-8, else as hexadecimal bytes behind `\x`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Text(pub Vec<u8>);

// === impl Text ===

impl Text {
    /// For people.
    pub fn shown(&self) -> String {
        match std::str::from_utf8(&self.0) {
            Ok(text) => text.to_owned(),
            Err(_) => self.0.iter().fold("\\x".to_owned(), |text, byte| text + &format!("{byte:02x}")),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Hex {
    hex: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Either {
    Text(String),
    Hex(Hex),
}

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, ser: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => text.serialize(ser),
            Err(_) => Hex { hex: self.0.iter().map(|byte| format!("{byte:02x}")).collect() }.serialize(ser),
        }
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(de: D) -> Result<Self, D::Error> {
        match Either::deserialize(de)? {
            Either::Text(text) => Ok(Self(text.into_bytes())),
            Either::Hex(Hex { hex }) => {
                let digits: Option<Vec<u8>> =
                    hex.chars().map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
                let pairs = digits.filter(|digits| digits.len() % 2 == 0);
                let pairs = pairs.ok_or_else(|| de::Error::custom("not hexadecimal bytes"))?;
                Ok(Self(pairs.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()))
            }
        }
    }
}

// === impl Content ===

impl Content {
    pub fn of(entry: &Entry) -> Self {
        let lease = entry.lease.map(|lease| lease.to_string());
        Self { value: Text(entry.value.to_vec()), lease }
    }

    fn lease(&self) -> Option<LeaseId> {
        self.lease.as_deref().and_then(|text| u64::from_str_radix(text, 16).ok()).map(LeaseId)
    }
}

// === impl Change ===

impl Change {
    /// A change of what is there now.
    pub fn of(key: &str, old: Option<&Entry>, new: Option<Content>) -> Self {
        let revision = old.map_or(0, |entry| entry.mod_revision);
        Self { key: key.to_owned(), old: old.map(Content::of), new, revision }
    }

    pub fn is_none(&self) -> bool {
        self.old == self.new
    }

    /// Two or three lines for people.
    pub fn shown(&self, would: bool) -> String {
        let would = if would { "would be " } else { "" };
        let what = match (&self.old, &self.new) {
            (None, _) => "created",
            (Some(_), None) => "deleted",
            (Some(_), Some(_)) => "replaced",
        };
        let mut text = format!("{} {would}{what}\n", self.key);
        for (sign, content) in [("-", &self.old), ("+", &self.new)] {
            if let Some(content) = content {
                let lease = content.lease.as_ref().map(|id| format!("   [lease {id}]")).unwrap_or_default();
                text.push_str(&format!("  {sign} {}{lease}\n", content.value.shown()));
            }
        }
        text
    }

    fn condition(&self) -> Compare {
        match self.revision {
            0 => Compare::Absent(self.key.clone()),
            revision => Compare::ModRevision(self.key.clone(), revision),
        }
    }

    fn op(&self) -> Op {
        match &self.new {
            None => Op::Delete(self.key.clone()),
            Some(new) => Op::put(self.key.as_str(), new.value.0.clone(), new.lease()),
        }
    }

    fn size(&self) -> usize {
        self.key.len() * 2 + self.new.as_ref().map_or(0, |new| new.value.0.len())
    }
}

/// What a command did or would do.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub dry_run: bool,
    /// The number of the deed in the journal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deed: Option<u64>,
    pub changes: Vec<Change>,
    /// What whoever asked may want to know.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// What is to be done, and how it came about.
pub struct Plan {
    pub verb: &'static str,
    pub undoes: Option<u64>,
    pub forced: bool,
    pub changes: Vec<Change>,
    pub notes: Vec<String>,
}

/// Writes a plan into the journal and carries it out, or only says what it would do.
pub fn carry_out(shared: &Shared, args: &WriteArgs, plan: Plan) -> Result<(), Failure> {
    let Plan { verb, undoes, forced, changes, notes } = plan;
    let mut report = Report { dry_run: args.dry_run, deed: None, changes, notes };
    if !args.dry_run && !report.changes.is_empty() {
        let journal = Journal::open(args.lib_dir.as_deref())?;
        let deed = journal.write(Deed {
            id: 0,
            time: String::new(),
            by: shared.author(),
            verb: verb.to_owned(),
            store: shared.endpoints.clone(),
            undoes,
            forced,
            changes: report.changes.clone(),
        })?;
        report.deed = Some(deed.id);
        let (done, outcome) = shared.run(write(&shared.store, &report.changes));
        if let Err(why) = outcome {
            let failure = match why {
                Stopped::Changed(key) => {
                    Failure::new(format!("{key} was changed by somebody else meanwhile"))
                        .fix("look at it again, then repeat the command")
                }
                Stopped::Failed(StoreError::LeaseNotFound(lease)) => {
                    Failure::new(format!("lease {lease} is gone")).fix("its owner must write the key again")
                }
                Stopped::Failed(error) => shared.failed(&error),
            };
            journal.stopped(deed.id, done, &failure.what)?;
            let all = report.changes.len();
            let done = if done > 0 {
                format!("; {done} of {all} keys were done, as deed {}", deed.id)
            } else {
                String::new()
            };
            return Err(Failure { what: failure.what + &done, ..failure });
        }
    }
    args.output.print(&report, || shown(&report))
}

fn shown(report: &Report) -> String {
    let mut text: String = report.changes.iter().map(|change| change.shown(report.dry_run)).collect();
    report.notes.iter().for_each(|note| text.push_str(&format!("Note: {note}\n")));
    if report.changes.is_empty() {
        text.push_str("nothing changes\n");
    }
    if let Some(deed) = report.deed {
        text.push_str(&format!("Deed {deed}: `villus kvstore undo {deed}` takes it back\n"));
    }
    text
}

enum Stopped {
    /// This key is not as it was.
    Changed(String),
    Failed(StoreError),
}

/// Carries changes out, as many at once as a transaction takes. Returns how many were done.
async fn write(store: &Arc<dyn Store>, changes: &[Change]) -> (usize, Result<(), Stopped>) {
    let mut done = 0;
    while done < changes.len() {
        let mut bytes = 0;
        let fits = |change: &&Change| {
            bytes += change.size();
            bytes <= BYTES
        };
        let count = changes[done..].iter().take(TOGETHER).take_while(fits).count().max(1);
        let batch = &changes[done..done + count];
        let txn = batch.iter().fold(Txn::new(), |txn, change| txn.when(change.condition()).then(change.op()));
        match store.txn(txn).await {
            Ok(outcome) if outcome.held => done += count,
            Ok(_) => return (done, Err(Stopped::Changed(changed(store, batch).await))),
            Err(error) => return (done, Err(Stopped::Failed(error))),
        }
    }
    (done, Ok(()))
}

/// The first key of a batch that is not as it was.
async fn changed(store: &Arc<dyn Store>, batch: &[Change]) -> String {
    for change in batch {
        if store
            .get(&change.key)
            .await
            .is_ok_and(|now| now.map_or(0, |now| now.mod_revision) != change.revision)
        {
            return change.key.clone();
        }
    }
    "one of the keys".to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_value_is_read_back(value in prop::collection::vec(any::<u8>(), 0..40)) {
            let content = Content { value: Text(value), lease: Some("7f".to_owned()) };
            let text = serde_json::to_string(&content).unwrap();
            prop_assert_eq!(serde_json::from_str::<Content>(&text).unwrap(), content);
        }

        #[test]
        fn no_line_panics(text in "[\\[\\]{}\":,a-z0-9]{0,60}") {
            let _ = serde_json::from_str::<super::super::journal::Event>(&text);
            let _ = serde_json::from_str::<Text>(&format!("{{\"hex\":\"{}\"}}", text.replace('"', "")));
        }
    }
}
