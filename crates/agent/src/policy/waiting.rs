//! Changes of policies that would touch more than `policy-change-limit` allows: they wait to be confirmed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use villus_api::model::{Impact, PolicyChange as ChangeReply, PolicyDelete, PolicyImport, WaitingChange};
use villus_api::{ApiError, ApiResult};
use villus_cluster_policy::{ObjectName, Version};
use villus_policy::ParsedFile;
use villus_rollout::Objects;

use super::import::{name_of, objects, parse_import};
use crate::node::Node;
use crate::state::timestamp;

/// Where they are kept.
const FILE: &str = "waiting-policies.json";

/// Changes that wait, and versions of files that were rejected.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Waiting {
    last: u64,
    changes: Vec<Held>,
    rejected: BTreeMap<PathBuf, u64>,
    /// Versions of the cluster's policies that were rejected; 0 stands for a deletion.
    #[serde(default)]
    rejected_objects: Vec<(ObjectName, u64)>,
}

/// A change that waits.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Held {
    told: WaitingChange,
    what: What,
}

/// What would be done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum What {
    /// An import.
    Import { file: String, text: String },
    /// A deletion of what was imported.
    Delete(Deletion),
    /// Another version of a file of the directory, by its fingerprint; [`GONE`] is its removal.
    File { path: PathBuf, fingerprint: u64 },
    /// Versions of the cluster's policies that the store holds; without one, a deletion.
    Cluster { objects: Vec<(ObjectName, Option<Version>)> },
}

/// What a deletion picks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Deletion {
    pub name: String,
    pub namespace: String,
    pub labels: String,
    pub all: bool,
}

/// Why a file's version is not in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stays {
    /// It waits to be confirmed.
    Waits,
    /// Somebody has rejected it.
    Rejected,
}

/// What is said of a rejected version.
pub(super) const REJECTED: &str = "the change was rejected";

/// Fingerprint of a file that is not there.
pub(super) const GONE: u64 = 0;

impl Waiting {
    /// What waits.
    pub fn told(&self) -> Vec<WaitingChange> {
        self.changes.iter().map(|held| held.told.clone()).collect()
    }

    /// Files of the directory whose removal waits or was rejected.
    pub fn removals(&self) -> Vec<PathBuf> {
        let waiting = self.changes.iter().filter_map(|held| match &held.what {
            What::File { path, fingerprint: GONE } => Some(path.clone()),
            _ => None,
        });
        let rejected = self.rejected.iter().filter(|(_, version)| **version == GONE);
        waiting.chain(rejected.map(|(path, _)| path.clone())).collect()
    }

    /// Whether this version of a file is known to be out of force.
    pub(super) fn of_file(&self, path: &Path, version: u64) -> Option<Stays> {
        let it = |what: &What| matches!(what, What::File { path: p, fingerprint } if p == path && *fingerprint == version);
        if self.rejected.get(path) == Some(&version) {
            return Some(Stays::Rejected);
        }
        self.changes.iter().any(|held| it(&held.what)).then_some(Stays::Waits)
    }

    /// What waits of the cluster's policies.
    pub(super) fn of_the_cluster(&self) -> Vec<(ObjectName, Option<Version>)> {
        let objects = self.changes.iter().filter_map(|held| match &held.what {
            What::Cluster { objects } => Some(objects.clone()),
            _ => None,
        });
        objects.flatten().collect()
    }

    /// Whether this version of an object of the cluster, 0 for its deletion, was rejected. Another version is another
    /// matter: what was rejected before is forgotten.
    pub(super) fn is_rejected(&mut self, name: &ObjectName, version: u64) -> bool {
        self.rejected_objects.retain(|(known, rejected)| known != name || *rejected == version);
        self.rejected_objects.iter().any(|(known, _)| known == name)
    }

    /// The change of the cluster's policies that waits.
    pub(super) fn cluster_change(&self) -> Option<u64> {
        let of_the_cluster = |held: &&Held| matches!(held.what, What::Cluster { .. });
        self.changes.iter().find(of_the_cluster).map(|held| held.told.id)
    }

    /// Removes what a newer change of the same policies takes the place of; says which.
    fn supersede(&mut self, what: &What, policies: &[String]) -> Vec<u64> {
        let mut gone = Vec::new();
        self.changes.retain(|held| {
            let same = match (&held.what, what) {
                (What::File { path: a, .. }, What::File { path: b, .. }) => a == b,
                // There is one at most: the newer one holds what is left of the other.
                (What::Cluster { .. }, What::Cluster { .. }) => true,
                (What::File { .. } | What::Cluster { .. }, _)
                | (_, What::File { .. } | What::Cluster { .. }) => false,
                _ => held.told.policies.iter().any(|name| policies.contains(name)),
            };
            if same {
                gone.push(held.told.id);
            }
            !same
        });
        if let What::File { path, .. } = what {
            self.rejected.remove(path);
        }
        gone
    }
}

impl Node {
    /// Reads what waited before the start.
    pub fn load_waiting(&mut self) {
        match self.state.load::<Waiting>(FILE) {
            Ok(Ok(waiting)) => self.waiting = waiting.unwrap_or_default(),
            Ok(Err(damaged)) => self.conditions.note(
                "waiting policies",
                Some(format!("they were damaged ({}) and lie in {}", damaged.reason, damaged.kept.display())),
            ),
            Err(error) => self.conditions.note("waiting policies", Some(error.to_string())),
        }
        for told in self.waiting.told() {
            self.conditions.note(&condition(told.id), Some(message(&told)));
        }
    }

    /// Whether a change has to wait; then it does, and this is what it would do.
    pub(super) fn gate(
        &mut self,
        what: What,
        policies: Vec<String>,
        change: impl FnOnce(&mut Objects),
    ) -> Option<WaitingChange> {
        let limit = self.config.policy.change_limit;
        let had = !self.waiting.changes.is_empty()
            || !self.waiting.rejected.is_empty()
            || !self.waiting.rejected_objects.is_empty();
        for id in self.waiting.supersede(&what, &policies) {
            self.conditions.note(&condition(id), None);
        }
        let impact = if limit.is_on() { self.measured(change) } else { Impact::default() };
        let over = limit.flows.is_some_and(|most| impact.flows.share() > most)
            || limit.entries.is_some_and(|most| impact.entries.share() > most);
        if !over {
            if had {
                self.save_waiting();
            }
            return None;
        }
        self.waiting.last += 1;
        let told = WaitingChange {
            id: self.waiting.last,
            source: what.source(),
            policies,
            since: timestamp(),
            impact,
        };
        self.conditions.note(&condition(told.id), Some(message(&told)));
        self.waiting.changes.push(Held { told: told.clone(), what });
        self.save_waiting();
        Some(told)
    }

    /// What cannot be measured counts as touching everything.
    fn measured(&self, change: impl FnOnce(&mut Objects)) -> Impact {
        self.impact(change).unwrap_or_else(|error| {
            tracing::warn!(%error, "what a change of policies would touch cannot be told, so it waits");
            Impact::unknown()
        })
    }

    pub(super) fn save_waiting(&mut self) {
        let result = self.state.save(FILE, &self.waiting);
        self.conditions.note("waiting policies", result.err().map(|error| error.to_string()));
    }

    /// Versions of the cluster's policies that were rejected are asked about anew.
    pub(super) fn forget_rejected_objects(&mut self) {
        if !std::mem::take(&mut self.waiting.rejected_objects).is_empty() {
            self.save_waiting();
        }
    }

    fn take_waiting(&mut self, id: u64) -> ApiResult<Held> {
        let at = self.waiting.changes.iter().position(|held| held.told.id == id).ok_or_else(|| {
            ApiError::not_found(format!("no change {id} of policies waits"))
                .hint("`villus policy get` shows those that do")
        })?;
        let held = self.waiting.changes.remove(at);
        self.conditions.note(&condition(id), None);
        Ok(held)
    }

    /// Does what waited.
    pub fn confirm_policies(&mut self, id: u64) -> ApiResult<ChangeReply> {
        self.must_not_be_frozen()?;
        self.must_be_complete()?;
        let held = self.take_waiting(id)?;
        tracing::info!(
            change = id,
            source = held.told.source,
            "a change of policies that waited is confirmed"
        );
        let result = match held.what.clone() {
            What::Import { file, text } => {
                parse_import(&file, &text).and_then(|parsed| self.import_now(parsed, ChangeReply::default()))
            }
            What::Delete(deletion) => {
                let keys = self.imported(&deletion.name, &deletion.namespace, &deletion.labels);
                keys.and_then(|keys| self.delete_now(keys, ChangeReply::default()))
            }
            What::File { path, fingerprint } => self.confirm_file(&path, fingerprint),
            What::Cluster { objects } => self.confirm_cluster(&objects),
        };
        if result.is_err() {
            self.conditions.note(&condition(id), Some(message(&held.told)));
            self.waiting.changes.push(held);
        }
        self.save_waiting();
        result
    }

    /// Forgets what waited. A file's rejected version stays out of force until the file changes.
    pub fn reject_policies(&mut self, id: u64) -> ApiResult<ChangeReply> {
        let held = self.take_waiting(id)?;
        tracing::info!(
            change = id,
            source = held.told.source,
            "a change of policies that waited is rejected"
        );
        if let What::Cluster { objects } = &held.what {
            let version = |version: &Option<Version>| version.as_ref().map_or(0, |version| version.version);
            let rejected = objects.iter().map(|(name, wanted)| (name.clone(), version(wanted)));
            self.waiting.rejected_objects.extend(rejected);
            self.reject_cluster(objects);
        }
        if let What::File { path, fingerprint } = held.what {
            let problem = format!("its last good version stays in force: {REJECTED}");
            self.conditions.note(&format!("policy file {}", path.display()), Some(problem));
            if let Some(state) = self.sources.files.get_mut(&path) {
                state.problem = Some(REJECTED.to_owned());
            }
            self.waiting.rejected.insert(path, fingerprint);
        }
        self.save_waiting();
        Ok(ChangeReply { revision: self.repository.revision(), ..ChangeReply::default() })
    }

    fn confirm_file(&mut self, path: &Path, fingerprint: u64) -> ApiResult<ChangeReply> {
        self.take_over_confirmed(path, fingerprint).map_err(|problem| {
            ApiError::conflict(format!("{}: {problem}", path.display()))
                .hint("it is looked at anew; see `villus policy get`")
        })?;
        Ok(ChangeReply { revision: self.repository.revision(), ..ChangeReply::default() })
    }

    /// Whether an import has to wait.
    pub(super) fn import_waits(
        &mut self,
        import: &PolicyImport,
        parsed: &ParsedFile,
    ) -> Option<WaitingChange> {
        let what = What::Import { file: import.file.clone(), text: import.text.clone() };
        let names = objects(parsed).map(|(key, _)| name_of(key)).collect();
        let parsed = parsed.clone();
        self.gate(what, names, move |all| all.put(parsed))
    }

    /// Whether a deletion has to wait.
    pub(super) fn deletion_waits(
        &mut self,
        delete: &PolicyDelete,
        keys: &[villus_policy::ObjectKey],
    ) -> Option<WaitingChange> {
        let what = What::Delete(Deletion {
            name: delete.name.clone(),
            namespace: delete.namespace.clone(),
            labels: delete.labels.clone(),
            all: delete.all,
        });
        let names = keys.iter().map(name_of).collect();
        self.gate(what, names, |all| {
            all.remove(|key| keys.contains(key));
        })
    }

    /// Whether another version of a file stays out of force; without one, its removal.
    pub(super) fn file_stays(&mut self, path: &Path, fingerprint: u64, parsed: &ParsedFile) -> Option<Stays> {
        if self.config.policy.change_limit.is_on()
            && let Some(known) = self.waiting.of_file(path, fingerprint)
        {
            return Some(known);
        }
        if !self.sources.complete {
            return None;
        }
        let name = path.display().to_string();
        let names = objects(parsed).map(|(key, _)| name_of(key)).collect();
        let parsed = parsed.clone();
        let what = What::File { path: path.to_owned(), fingerprint };
        let gate = self.gate(what, names, move |all| {
            all.remove(|key| *key.origin == *name);
            all.put(parsed);
        });
        gate.map(|_| Stays::Waits)
    }
}

impl What {
    fn source(&self) -> String {
        match self {
            Self::Import { file, .. } if file.is_empty() => "import".to_owned(),
            Self::Import { file, .. } => format!("import of {file}"),
            Self::Delete(_) => "deletion".to_owned(),
            Self::File { path, fingerprint: GONE } => format!("removal of {}", path.display()),
            Self::File { path, .. } => format!("file {}", path.display()),
            Self::Cluster { .. } => "the cluster's store".to_owned(),
        }
    }
}

fn condition(id: u64) -> String {
    format!("policy change {id}")
}

fn message(told: &WaitingChange) -> String {
    format!("{told}; `villus policy confirm {0}` does it, `villus policy reject {0}` drops it", told.id)
}
