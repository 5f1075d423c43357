//! Policies of the cluster: those that the shared store holds for all nodes, and how far this node has realised them.

use std::io;
use std::path::PathBuf;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use villus_cluster_policy::{Changes, Mirror, NodeReport, ObjectName, Version};
use villus_kvstore::Batch;
use villus_policy::{ObjectKey, ParsedFile};

use super::import::merge;
use crate::node::Node;
use crate::state::{timestamp, write_atomic};

/// Below `lib-dir`, the last good version of each object.
const KEPT: &str = "cluster-policies";

/// The cluster's policies on this node.
#[derive(Debug)]
pub(crate) struct ClusterPolicies {
    pub(super) mirror: Mirror,
    /// What others are told; nothing before the store was listed.
    report: Option<NodeReport>,
    loaded: bool,
}

/// An object as it is kept for a start without the store.
#[derive(Serialize, Deserialize)]
struct Kept {
    name: ObjectName,
    version: Version,
}

impl ClusterPolicies {
    /// Nothing is known of this cluster's policies yet.
    pub fn new(cluster: &str) -> Self {
        Self { mirror: Mirror::new(cluster), report: None, loaded: false }
    }

    /// The version of a policy that is in force.
    pub fn version_of(&self, key: &ObjectKey) -> Option<u64> {
        self.mirror.version_of(&ObjectName::from(key))
    }
}

impl Node {
    /// Takes over what was in force before the start: it stays until the store was listed.
    pub fn load_cluster_policies(&mut self) {
        let Some(policies) = self.cluster_policies.as_mut().filter(|policies| !policies.loaded) else {
            return;
        };
        policies.loaded = true;
        let (mut good, mut damaged) = (Vec::new(), Vec::new());
        for path in files(&self.state.path(KEPT)) {
            let mut read = || {
                let bytes = std::fs::read(&path).map_err(|error| error.to_string())?;
                let kept: Kept = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
                policies.mirror.restore(&kept.name, &kept.version)
            };
            match read() {
                Ok(parsed) => good.push(parsed),
                Err(reason) => damaged.push(format!("{}: {reason}", path.display())),
            }
        }
        for parsed in good {
            let _ = self.put_objects(parsed);
        }
        self.conditions.set_if("kept policies of the cluster", !damaged.is_empty(), || {
            format!("until the store answers these are not in force: {}", damaged.join("; "))
        });
    }

    /// Takes over what the store says of the cluster's policies.
    pub fn apply_cluster_policies(&mut self, batch: &Batch) {
        let Some(policies) = &mut self.cluster_policies else { return };
        let before = policies.mirror.clone();
        let changes = policies.mirror.apply(batch);
        let changes = self.gate_cluster(batch, &before, changes);
        self.note_cluster_refused();
        for (key, reason) in &changes.refused {
            tracing::warn!(key, reason, "a policy of the cluster cannot be used");
        }
        self.conditions.note("kept policies of the cluster", None);
        self.enforce_cluster(changes);
    }

    /// Says which of the cluster's policies are not in force in the version that the store has.
    pub(super) fn note_cluster_refused(&mut self) {
        let Some(policies) = &self.cluster_policies else { return };
        let refused: Vec<String> =
            policies.mirror.refused().map(|(name, reason)| format!("{name}: {reason}")).collect();
        self.conditions.set_if("policies of the cluster", !refused.is_empty(), || {
            format!("the last good versions stay in force: {}", refused.join("; "))
        });
    }

    pub(super) fn enforce_cluster(&mut self, changes: Changes) {
        let mut all = None;
        let gone: Vec<ObjectKey> = changes.gone.iter().flat_map(|(_, keys)| keys.clone()).collect();
        merge(&mut all, self.repository.delete_referents(&gone));
        merge(&mut all, self.repository.delete(gone));
        for (name, _) in &changes.gone {
            self.keep_cluster_policy(name, None);
        }
        for (name, version, parsed) in changes.put {
            self.keep_cluster_policy(&name, Some(version));
            if let Some(change) = self.put_objects(parsed) {
                merge(&mut all, change);
            }
        }
        if self.sources.complete {
            match all.filter(|change| !change.is_empty()) {
                Some(change) => self.realize(&change),
                // What is missing or in a shadow may be different all the same.
                None => self.note_policies(),
            }
        }
    }

    fn put_objects(&mut self, parsed: ParsedFile) -> Option<villus_policy::PolicyChange> {
        let mut all = None;
        merge(&mut all, self.repository.upsert_referents(parsed.referents));
        for policy in parsed.policies {
            merge(&mut all, self.repository.upsert(policy));
        }
        all
    }

    /// Keeps a version for a start without the store; without one forgets the object.
    fn keep_cluster_policy(&self, name: &ObjectName, version: Option<Version>) {
        let directory = self.state.path(KEPT);
        // None of the parts can hold a `_`.
        let path = directory.join(format!("{}.json", name.suffix().replace('/', "_")));
        let result = match version {
            Some(version) => std::fs::create_dir_all(&directory)
                .and_then(|()| {
                    serde_json::to_vec(&Kept { name: name.clone(), version }).map_err(io::Error::other)
                })
                .and_then(|bytes| write_atomic(&path, &bytes)),
            None => std::fs::remove_file(&path).or_else(|error| match error.kind() {
                io::ErrorKind::NotFound => Ok(()),
                _ => Err(error),
            }),
        };
        if let Err(error) = result {
            tracing::warn!(policy = %name, %error, "a policy of the cluster cannot be kept for a restart");
        }
    }

    /// Brings what others are told up to date.
    pub fn report_cluster_policies(&mut self) {
        let behind = self.behind(self.repository.revision());
        let complete = self.sources.complete;
        let frozen = self.freeze.reason();
        let Some(policies) = &mut self.cluster_policies else { return };
        // 0: the store was not listed yet.
        let revision = policies.mirror.revision();
        if revision == 0 && frozen.is_none() && policies.report.is_none() {
            return;
        }
        let old = policies.report.clone().unwrap_or_default();
        let refused =
            policies.mirror.refused().map(|(name, reason)| (name.to_owned(), reason.to_owned())).collect();
        let problem = match (complete, behind.as_slice()) {
            (false, _) => "not all sources of policy of the node were read yet".to_owned(),
            (true, []) => String::new(),
            (true, ids) => {
                let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
                format!("endpoints that are not at the newest policy: {}", ids.join(", "))
            }
        };
        let reached = if problem.is_empty() { revision } else { old.revision.min(revision) };
        let report = NodeReport { revision: reached, problem, frozen, refused, time: old.time.clone() };
        if policies.report.is_none() || report != old {
            policies.report = Some(NodeReport { time: timestamp(), ..report });
            self.wake.publish.notify_one();
        }
    }

    /// What this node says of the cluster's policies, as a key of the store.
    pub fn policy_report(&self) -> Option<(String, Bytes)> {
        let report = self.cluster_policies.as_ref()?.report.as_ref()?;
        Some((NodeReport::key(&self.cluster, &self.name), report.to_json().into()))
    }
}

fn files(directory: &std::path::Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths.filter(|path| path.extension().is_some_and(|end| end == "json")).collect()
}
