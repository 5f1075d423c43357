//! Keeping what is known of the cluster on the disk: each change before the kernel is told, the whole from time to time.

use std::borrow::Cow;
use std::io;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use villus_identity::RemoteRecord;
use villus_kvstore::{Batch, Header};
use villus_labels::{Labels, NumericIdentity, Scope};
use villus_table::{Change, Kind, Revision};

use super::SharedStore;
use super::learned::Line;
use super::snapshot::{Head, Writer};
use super::tasks::LARGE;
use crate::agent::Agent;
use crate::node::Node;
use crate::state::StateDir;

/// Between two snapshots at least, and for how many entries a second more.
const SNAPSHOT: Duration = Duration::from_secs(1);
const ENTRIES_A_SECOND: usize = 2000;
/// The first one of an agent waits no longer: until then a start has only what was learned to go by, line by line.
const FIRST: Duration = Duration::from_secs(10);
/// Addresses that are copied at once while the node is held.
const TOGETHER: usize = 4096;
/// So many bytes of changes are gathered at most before the whole is written, whether all is listed or not.
const MOST: u64 = 64 << 20;
const CONDITION: &str = "snapshot of the cluster";

/// The tables of which a snapshot was made, as they were: identities, addresses, nodes.
type Revisions = (Revision, Revision, Revision);

/// What a snapshot begins with.
struct Begun {
    of: Revisions,
    state: StateDir,
    head: Head,
    learned: u64,
    nodes: RemoteRecord,
    size: Option<NonZeroU32>,
}

impl Node {
    /// Writes down what identities have become; the kernel may be told then.
    pub fn learn_identities(&mut self, changes: &[Change<NumericIdentity, Labels>]) {
        let Some(learned) = &mut self.learned else { return };
        let of_clusters = |n: NumericIdentity| n.scope() == Scope::Global && !n.is_reserved();
        for change in changes.iter().filter(|change| of_clusters(change.key)) {
            let is_there = change.kind != Kind::Deleted && self.identities.allocator.outlives(change.key);
            let labels = is_there.then(|| Cow::Owned(change.value.to_kvstore()));
            learned.push(&Line::Identity(change.key.0, labels));
        }
        self.end_learning();
    }

    /// The same of copies that a batch tells of.
    pub fn learn_copies(&mut self, batch: &Batch) {
        let Some(learned) = &mut self.learned else { return };
        for item in &batch.items {
            let row = self.identities.allocator.copied(item.key());
            let row = row.map(|(number, labels)| (number.0, Cow::Owned(labels.to_kvstore())));
            learned.push(&Line::Copy(Cow::Borrowed(item.key()), row));
        }
        self.end_learning();
    }

    /// The same of addresses and nodes.
    pub fn learn_remote(&mut self) {
        let (Some(learned), Some(remote)) = (&mut self.learned, &mut self.remote) else { return };
        remote.take_changes(|change| learned.push(&change.into()));
        self.end_learning();
    }

    fn end_learning(&mut self) {
        let (Some(learned), Some(shared)) = (&mut self.learned, &self.identities.shared) else { return };
        // Before all is listed what was seen before the start is what a store is told by that was rewound.
        if self.awaited.is_empty()
            && let Some(Header { cluster, revision }) = shared.header()
        {
            let witness = shared.witness();
            let revision = revision.max(witness.as_ref().map_or(0, |witness| witness.revision));
            learned.push_store(Header { cluster, revision }, witness);
        }
        learned.write();
        if let Some(problem) = learned.problem() {
            let text = format!(
                "what was learned last cannot be written: {problem}; an agent that is killed now does not know it when it \
                 starts; free space on the file system of lib-dir"
            );
            self.conditions.note(CONDITION, Some(text));
        }
    }

    /// Begins to write all of it down, if there is news.
    fn begin_snapshot(&mut self, shared: &SharedStore, before: Option<Revisions>) -> Option<Begun> {
        let remote = self.remote.as_ref()?;
        let of = (self.identities.table.revision(), self.ipcache.winners().revision(), self.nodes.revision());
        let is_listed = self.awaited.is_empty() && self.identities.allocator.is_synced();
        // What was read at the start is not older than what is known before all is listed.
        let is_due = is_listed || self.learned.as_ref().is_some_and(|learned| learned.size() > MOST);
        if !is_due || before == Some(of) {
            return None;
        }
        // Of a store that was not listed the newest that is known for sure is what was seen before.
        let (header, witness) = match is_listed {
            true => (shared.header(), shared.witness()),
            false => (shared.seen, None),
        };
        // What changes while it is written goes where it is looked for afterwards.
        let learned = self.learned.as_mut()?.rotate();
        let mesh = self.mesh.as_ref().map(|mesh| mesh.store.current());
        Some(Begun {
            of,
            state: self.state.clone(),
            head: Head::new(header, witness, mesh, learned),
            learned,
            nodes: remote.record_of_nodes(),
            size: NonZeroU32::new(u32::try_from(self.nodes.len()).unwrap_or(u32::MAX)),
        })
    }
}

/// Writes down what is known of the cluster, when it has changed.
pub(crate) async fn keep_snapshot(agent: Agent, shared: Arc<SharedStore>) {
    let (mut saved, mut is_first) = (None, true);
    loop {
        let entries = agent.with(|node| node.ipcache.winners().len() + node.identities.table.len()).await;
        let Ok(entries) = entries else { return };
        tokio::time::sleep(rest(entries, is_first).mul_f64(0.9 + 0.1 * fastrand::f64())).await;
        let begun = {
            let shared = shared.clone();
            agent.with(move |node| node.begin_snapshot(&shared, saved)).await
        };
        let Ok(begun) = begun else { return };
        let Some(begun) = begun else { continue };
        is_first = false;
        let (of, learned) = (begun.of, begun.learned);
        let writer = agent.clone();
        let written = tokio::task::spawn_blocking(move || {
            let result = write(&writer, begun);
            if entries >= LARGE {
                villus_datapath::sys::return_memory();
            }
            result
        });
        let Ok(result) = written.await else { return };
        if result.is_ok() {
            saved = Some(of);
        }
        let noted = agent.with(move |node| {
            if let (Ok(()), Some(files)) = (&result, &mut node.learned) {
                files.settle(learned);
            }
            let problem = result.err();
            let problem = problem
                .map(|error| format!("it cannot be written: {error}; {}", villus_durable::remedy(&error)));
            node.conditions.note(CONDITION, problem);
        });
        if noted.await.is_err() {
            return;
        }
    }
}

/// How long to wait before so many entries are written down, or looked at for the first time whether all of them are there.
fn rest(entries: usize, is_first: bool) -> Duration {
    let rest = SNAPSHOT + Duration::from_secs((entries / ENTRIES_A_SECOND) as u64);
    if is_first { rest.min(FIRST) } else { rest }
}

/// Writes it part by part, and lets others have the node in between.
fn write(agent: &Agent, begun: Begun) -> io::Result<()> {
    let mut writer = Writer::begin(&begun.state, &begun.head)?;
    let allocator = &agent.identities.allocator;
    writer.identities(&allocator.rows())?;
    writer.copies(&allocator.copied_rows())?;
    writer.nodes(&begun.nodes)?;
    let mut last: Option<Arc<str>> = None;
    loop {
        let rows = agent.locked(|node| {
            let remote = node.remote.as_ref();
            remote.map(|remote| remote.record_behind(last.as_deref(), TOGETHER)).unwrap_or_default()
        });
        let Some((key, _)) = rows.last() else { break };
        last = Some(Arc::clone(key));
        writer.addresses(&rows)?;
    }
    writer.finish()?;
    // The start gate goes by it.
    begun.size.map_or(Ok(()), |nodes| begun.state.remember_size(nodes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_one_of_a_large_cluster_comes_soon_and_the_others_seldom() {
        let rests = |is_first| [0, 10_000, 320_000].map(|entries| rest(entries, is_first).as_secs());
        assert_eq!(rests(true), [1, 6, 10]);
        assert_eq!(rests(false), [1, 6, 161]);
    }
}
