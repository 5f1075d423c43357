//! Changes of the cluster's policies that would touch more than `policy-change-limit` allows.
//!
//! One such change waits at most, and what the store says after it joins it: policies come into force in the order of the
//! store.

use villus_api::model::PolicyChange as ChangeReply;
use villus_api::{ApiError, ApiResult};
use villus_cluster_policy::{Changes, Mirror, ObjectName, Version};
use villus_kvstore::{Batch, Item, Relisted};
use villus_policy::{ObjectKey, ParsedFile};

use super::waiting::{REJECTED, What};
use crate::node::Node;

/// Objects and the versions that they should have; without one they should go.
type Wanted = [(ObjectName, Option<Version>)];

impl Node {
    /// Of what a batch changes, what may be done now.
    pub(super) fn gate_cluster(&mut self, batch: &Batch, before: &Mirror, changes: Changes) -> Changes {
        if batch.is_of_another_past() {
            // The same numbers may be of other contents there.
            self.forget_rejected_objects();
        }
        if !self.config.policy.change_limit.is_on() {
            return changes;
        }
        let Changes { put, gone, stale, refused } = changes;
        let mut now = Changes { stale, refused, ..Changes::default() };
        let mut wanted = self.waiting_beside(batch, before);
        let waited = self.waiting.of_the_cluster();
        for (name, version, parsed) in put {
            if before.has(&name, &version) {
                now.put.push((name, version, parsed));
            } else if self.waiting.is_rejected(&name, version.version) {
                self.withhold(before, &[(name, None)], REJECTED);
            } else {
                wanted.push((name, Some(version)));
            }
        }
        for (name, _) in gone {
            match self.waiting.is_rejected(&name, GONE) {
                true => self.withhold(before, &[(name, None)], REJECTED),
                false => wanted.push((name, None)),
            }
        }
        wanted.sort_by(|a, b| a.0.cmp(&b.0));
        let is_free = waited.is_empty() && (wanted.is_empty() || !self.sources.complete);
        let waits = !is_free && (wanted == waited || self.waits(&wanted, before));
        if waits {
            let id = self.waiting.cluster_change().unwrap_or_default();
            let reason =
                format!("it waits for `villus policy confirm {id}` on this node (policy-change-limit)");
            self.withhold(before, &wanted, &reason);
        } else {
            // Some of it has waited, and is taken in from where that began.
            self.withhold(before, &wanted, "");
            if let Err(problem) = self.admit(&wanted, &mut now) {
                // Each was read when it came.
                tracing::error!(problem, "policies of the cluster that waited cannot be used");
            }
        }
        now
    }

    /// What waits already and what a batch does not speak of.
    fn waiting_beside(&self, batch: &Batch, before: &Mirror) -> Vec<(ObjectName, Option<Version>)> {
        if batch.relisted == Some(Relisted::First) {
            return Vec::new();
        }
        let key_of = |item: &Item| match item {
            Item::Put(entry) => before.object_of(&entry.key),
            Item::Delete { key, .. } => before.object_of(key),
        };
        let touched: Vec<ObjectName> = batch.items.iter().filter_map(key_of).collect();
        let mut waited = self.waiting.of_the_cluster();
        waited.retain(|(name, _)| !touched.contains(name));
        waited
    }

    fn waits(&mut self, wanted: &Wanted, before: &Mirror) -> bool {
        let (put, gone) = told_apart(wanted, before);
        let names = wanted.iter().map(|(name, _)| name.to_string()).collect();
        let gate = self.gate(What::Cluster { objects: wanted.to_vec() }, names, move |all| {
            all.remove(|key| gone.contains(key));
            all.put(put);
        });
        gate.is_some()
    }

    /// Does what waited.
    pub(super) fn confirm_cluster(&mut self, wanted: &Wanted) -> ApiResult<ChangeReply> {
        let mut changes = Changes::default();
        self.admit(wanted, &mut changes).map_err(ApiError::conflict)?;
        self.note_cluster_refused();
        self.enforce_cluster(changes);
        self.note_cluster_stale();
        // Others are told.
        self.wake.realized.send_modify(|count| *count += 1);
        Ok(ChangeReply { revision: self.repository.revision(), ..ChangeReply::default() })
    }

    /// Keeps versions out of force that somebody has rejected.
    pub(super) fn reject_cluster(&mut self, wanted: &Wanted) {
        if let Some(now) = self.cluster_policies.as_ref().map(|policies| policies.mirror.clone()) {
            self.withhold(&now, wanted, REJECTED);
        }
        self.note_cluster_refused();
        self.wake.realized.send_modify(|count| *count += 1);
    }

    fn withhold(&mut self, before: &Mirror, wanted: &Wanted, reason: &str) {
        let Some(policies) = &mut self.cluster_policies else { return };
        for (name, _) in wanted {
            policies.mirror.withhold(before, name, reason.to_owned());
        }
    }

    fn admit(&mut self, wanted: &Wanted, changes: &mut Changes) -> Result<(), String> {
        let Some(policies) = &mut self.cluster_policies else { return Ok(()) };
        for (name, version) in wanted {
            let (parsed, gone) = policies.mirror.admit(name, version.as_ref())?;
            match (version, parsed) {
                (Some(version), Some(parsed)) => changes.put.push((name.clone(), version.clone(), parsed)),
                _ => changes.gone.push((name.clone(), gone)),
            }
        }
        Ok(())
    }
}

/// The version under which a deletion is remembered; those of the store count from 1.
pub(super) const GONE: u64 = 0;

/// Policies that come, and those that go.
fn told_apart(wanted: &Wanted, before: &Mirror) -> (ParsedFile, Vec<ObjectKey>) {
    let (mut put, mut gone) = (ParsedFile::default(), Vec::new());
    let mut mirror = before.clone();
    for (name, version) in wanted {
        // What cannot be read is not in force, and what is in force of it stays.
        let Ok((parsed, keys)) = mirror.admit(name, version.as_ref()) else { continue };
        let parsed = parsed.unwrap_or_default();
        put.policies.extend(parsed.policies);
        put.referents.extend(parsed.referents);
        gone.extend(keys);
    }
    (put, gone)
}
