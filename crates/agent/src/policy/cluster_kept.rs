//! What is kept of the cluster's policies for a start without the store: the last good version of each object, and which
//! store said so.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use villus_cluster_policy::{Kept, Mirror, ObjectName};
use villus_kvstore::{Batch, Header, Witness};

use crate::node::Node;
use crate::state::{StateDir, write_atomic};

/// Below `lib-dir`, the last good version of each object.
const KEPT: &str = "cluster-policies";
/// In their names, for the `/` of keys: none of the parts can hold it.
const SEPARATOR: &str = "_";
/// In `lib-dir`, which store said so.
const SEEN: &str = "cluster-policies.json";
/// What could not be read at the start.
const UNREAD: &str = "kept policies of the cluster";
/// What could not be written.
const UNWRITTEN: &str = "keeping of the cluster's policies";

/// The store that said so, as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seen {
    /// The cluster whose store it is; a version that did not write it down had no other than the agent's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cluster: Option<String>,
    store: u64,
    revision: u64,
    witness: Option<Witness>,
}

/// What is still to be written.
#[derive(Debug, Default)]
pub(super) struct Unwritten {
    /// Objects whose files are not as they should be, and why.
    objects: BTreeMap<ObjectName, String>,
    /// It is written after these: to who begins with an older one, what the store has lost is lost once more.
    seen: Option<Seen>,
}

// === impl Seen ===

impl Seen {
    /// As of a batch.
    pub fn new(cluster: &str, header: Header, witness: Option<Witness>) -> Self {
        let cluster = Some(cluster.to_owned());
        Self { cluster, store: header.cluster, revision: header.revision, witness }
    }

    /// For who follows the store of this cluster again; nothing if it was another's.
    pub fn past(self, cluster: &str) -> (Option<Header>, Option<Witness>) {
        match self.is_of(cluster) {
            true => (Some(Header { cluster: self.store, revision: self.revision }), self.witness),
            false => (None, None),
        }
    }

    fn is_of(&self, cluster: &str) -> bool {
        self.cluster.as_deref().is_none_or(|own| own == cluster)
    }
}

// === impl Unwritten ===

impl Unwritten {
    /// Tries to write all of it. Says what is wrong if not all is written.
    fn write(&mut self, state: &StateDir, mirror: &Mirror) -> Option<String> {
        self.objects.retain(|name, problem| match write(state, name, mirror.kept(name)) {
            Ok(()) => false,
            Err(error) => {
                *problem = format!("{name}: {error}; {}", villus_durable::remedy(&error));
                true
            }
        });
        if let Some(problem) = self.objects.values().next() {
            return Some(format!("{} of them, {problem}", self.objects.len()));
        }
        let error = state.save(SEEN, self.seen.as_ref()?).err();
        if error.is_none() {
            self.seen = None;
        }
        error.map(|error| format!("{SEEN}: {error}; {}", villus_durable::remedy(&error)))
    }
}

impl Node {
    /// Takes over what was in force before the start: it stays until the store was listed. What was in force in another
    /// cluster goes as soon as the store of this one has answered.
    pub fn load_cluster_policies(&mut self) {
        let is_of_another = self.cluster_policies_seen().is_some_and(|seen| !seen.is_of(&self.cluster));
        let Some(policies) = self.cluster_policies.as_mut().filter(|policies| !policies.loaded) else {
            return;
        };
        policies.loaded = true;
        if is_of_another {
            let names = files(&self.state.path(KEPT)).into_iter().filter_map(|path| named(&path));
            policies.unwritten.objects.extend(names.map(|name| (name, String::new())));
            tracing::warn!(cluster = self.cluster, "kept policies are of another cluster and count no more");
            self.forget_rejected_objects();
            return;
        }
        let mut good = Vec::new();
        for path in files(&self.state.path(KEPT)) {
            let mut read = || {
                let bytes = std::fs::read(&path).map_err(|error| error.to_string())?;
                let kept: Kept = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
                policies.mirror.restore(&kept)
            };
            match read() {
                Ok(parsed) => good.push(parsed),
                Err(reason) => drop(policies.unread.insert(path, reason)),
            }
        }
        for parsed in good {
            let _ = self.put_objects(parsed);
        }
        self.note_unread_copies();
        self.note_cluster_stale();
    }

    /// Says which files could not be read and are still what is known of their objects.
    fn note_unread_copies(&mut self) {
        let Some(policies) = &mut self.cluster_policies else { return };
        policies.unread.retain(|path, _| path.exists());
        let files = policies.unread.iter().map(|(path, reason)| format!("{}: {reason}", path.display()));
        let files = files.collect::<Vec<_>>().join("; ");
        let is_listed = policies.mirror.revision() > 0;
        self.conditions.set_if(UNREAD, !files.is_empty(), || match is_listed {
            false => format!("until the store answers these are not in force: {files}"),
            true => format!(
                "these are not in force, and nothing that the store has is in their place: {files}; apply the objects again \
                 (`villus policy apply --cluster`), or remove the files of those that are to be gone"
            ),
        });
    }

    /// Which store said what was in force before the start; of a version that did not write it down, nothing.
    pub fn cluster_policies_seen(&mut self) -> Option<Seen> {
        match self.state.load::<Seen>(SEEN) {
            Ok(Ok(seen)) => seen,
            Ok(Err(damaged)) => {
                tracing::warn!(file = SEEN, reason = damaged.reason, "is damaged");
                None
            }
            Err(error) => {
                tracing::warn!(file = SEEN, %error, "cannot be read");
                None
            }
        }
    }

    /// The store was listed, or has said something: what could not be read of that is of no matter any more, and `seen` is
    /// what it is known by after the next start.
    pub(super) fn heard_of_cluster_policies(&mut self, batch: &Batch, seen: Option<Seen>) {
        let Some(policies) = &mut self.cluster_policies else { return };
        policies.unwritten.seen = seen.or(policies.unwritten.seen.take());
        let said = batch.items.iter().filter_map(|item| policies.mirror.object_of(item.key()));
        let unread = said.filter(|name| policies.unread.contains_key(&path_of(&self.state, name)));
        // Another version may be there and out of force.
        let settled = unread.filter(|name| policies.mirror.refused().all(|(end, _)| end != name.suffix()));
        let settled = settled.map(|name| (name, String::new())).collect::<Vec<_>>();
        policies.unwritten.objects.extend(settled);
    }

    /// Objects have changed: they are kept as they are now.
    pub(super) fn keep_cluster_objects(&mut self, names: impl IntoIterator<Item = ObjectName>) {
        if let Some(policies) = &mut self.cluster_policies {
            policies.unwritten.objects.extend(names.into_iter().map(|name| (name, String::new())));
            for name in policies.unwritten.objects.keys() {
                policies.unread.remove(&path_of(&self.state, name));
            }
        }
        self.note_unread_copies();
        if !self.keep_cluster_policies() {
            self.wake.keep.notify_one();
        }
    }

    /// Writes what is not written yet. Says whether all is; else it is to be tried again.
    pub fn keep_cluster_policies(&mut self) -> bool {
        let Some(policies) = &mut self.cluster_policies else { return true };
        let problem = policies.unwritten.write(&self.state, &policies.mirror);
        let is_done = problem.is_none();
        let problem = problem.map(|problem| {
            format!(
                "what is in force cannot be written ({problem}); an agent that starts without the store enforces what was \
                 written before; it is tried again"
            )
        });
        self.conditions.note(UNWRITTEN, problem);
        is_done
    }
}

/// Writes the file of an object; without one removes it.
fn write(state: &StateDir, name: &ObjectName, kept: Option<Kept>) -> io::Result<()> {
    let path = path_of(state, name);
    match kept {
        Some(kept) => {
            std::fs::create_dir_all(state.path(KEPT))?;
            write_atomic(&path, &serde_json::to_vec(&kept).map_err(io::Error::other)?)
        }
        None => std::fs::remove_file(&path).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        }),
    }
}

/// The file of an object.
fn path_of(state: &StateDir, name: &ObjectName) -> PathBuf {
    state.path(KEPT).join(format!("{}.json", name.suffix().replace('/', SEPARATOR)))
}

/// The object whose file this is.
fn named(path: &Path) -> Option<ObjectName> {
    ObjectName::of_suffix(&path.file_stem()?.to_str()?.replace(SEPARATOR, "/"))
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths.filter(|path| path.extension().is_some_and(|end| end == "json")).collect()
}
