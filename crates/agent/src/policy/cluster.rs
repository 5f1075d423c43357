//! Policies of the cluster: those that the shared store holds for all nodes, and how far this node has realised them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use bytes::Bytes;
use villus_api::model::StalePolicy;
use villus_cluster_policy::{Changes, Mirror, NodeReport, ObjectName, Version};
use villus_kvstore::Batch;
use villus_policy::{ObjectKey, ParsedFile};

use super::cluster_kept::{Seen, Unwritten};
use super::import::merge;
use crate::node::Node;
use crate::state::timestamp;

/// So many objects are named at once.
const NAMED: usize = 5;

/// The cluster's policies on this node.
#[derive(Debug)]
pub(crate) struct ClusterPolicies {
    pub(super) mirror: Mirror,
    /// What others are told; nothing before the store was listed.
    report: Option<NodeReport>,
    pub(super) loaded: bool,
    pub(super) unwritten: Unwritten,
    /// Files that could not be read, and why; without those whose objects the store has settled since.
    pub(super) unread: BTreeMap<PathBuf, String>,
}

impl ClusterPolicies {
    /// Nothing is known of this cluster's policies yet.
    pub fn new(cluster: &str) -> Self {
        let (unwritten, unread) = (Unwritten::default(), BTreeMap::new());
        Self { mirror: Mirror::new(cluster), report: None, loaded: false, unwritten, unread }
    }

    /// The version of a policy that is in force.
    pub fn version_of(&self, key: &ObjectKey) -> Option<u64> {
        self.mirror.version_of(&ObjectName::from(key))
    }

    /// Policies that are in force though the store has lost them.
    pub fn stale(&self) -> Vec<StalePolicy> {
        let row =
            |(name, version, stale): (&ObjectName, &Version, villus_cluster_policy::Stale)| StalePolicy {
                policy: name.to_string(),
                key: name.suffix(),
                version: version.version,
                author: version.author.clone(),
                time: version.time.clone(),
                stored: stale.stored.unwrap_or_default(),
                object: version.object.as_ref().map(ToString::to_string).unwrap_or_default(),
            };
        self.mirror.stale().map(row).collect()
    }
}

impl Node {
    /// Takes over what the store says of the cluster's policies.
    pub fn apply_cluster_policies(&mut self, batch: &Batch, seen: Option<Seen>) {
        let Some(policies) = &mut self.cluster_policies else { return };
        let before = policies.mirror.clone();
        let changes = policies.mirror.apply(batch);
        let changes = self.gate_cluster(batch, &before, changes);
        self.note_cluster_refused();
        for (key, reason) in &changes.refused {
            tracing::warn!(key, reason, "a policy of the cluster cannot be used");
        }
        self.heard_of_cluster_policies(batch, seen);
        self.enforce_cluster(changes);
        self.note_cluster_stale();
    }

    /// Says which of the cluster's policies are in force though the store has lost them.
    pub(super) fn note_cluster_stale(&mut self) {
        let stale: Vec<String> = self
            .cluster_policies
            .iter()
            .flat_map(|policies| policies.mirror.stale())
            .map(|(name, version, stale)| match stale.stored {
                Some(stored) => format!("{name} (version {}; the store has {stored})", version.version),
                None => format!("{name} (version {})", version.version),
            })
            .collect();
        self.conditions.set_if("lost policies of the cluster", !stale.is_empty(), || {
            let more = match stale.len().saturating_sub(NAMED) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            format!(
                "the store has lost {} that stay in force (stale): {}{more}; `villus policy restore --cluster` on this node \
                 writes them back, `villus policy apply --cluster` and `villus policy delete --cluster` say otherwise",
                stale.len(),
                stale.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ")
            )
        });
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
        let gone = changes.gone.into_iter().map(|(name, _)| name);
        let changed = gone.chain(changes.stale).chain(changes.put.iter().map(|(name, ..)| name.clone()));
        self.keep_cluster_objects(changed.collect::<Vec<_>>());
        for (_, _, parsed) in changes.put {
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

    pub(super) fn put_objects(&mut self, parsed: ParsedFile) -> Option<villus_policy::PolicyChange> {
        let mut all = None;
        merge(&mut all, self.repository.upsert_referents(parsed.referents));
        for policy in parsed.policies {
            merge(&mut all, self.repository.upsert(policy));
        }
        all
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
        let time = old.time.clone();
        let mut report =
            NodeReport { revision: reached, problem, frozen, refused, time, ..NodeReport::default() };
        report.tell_stale(&policies.mirror);
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
