//! Writing endpoints' policies into their maps, whole.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use villus_api::model::EndpointState;
use villus_datapath::policy_pin;
use villus_datapath::{Applied, Entries};
use villus_policy::EndpointPolicy;
use villus_table::Backoff;

use crate::endpoint::Endpoint;
use crate::node::Node;

/// Endpoints whose whole policies are in memory at once, beside what is kept of them.
const TOGETHER: usize = 64;

impl Node {
    /// What an endpoint's policy map should hold, as far as policies say.
    pub fn policy_of(&self, id: u16) -> Option<&Arc<EndpointPolicy>> {
        self.compiled_of(id).map(|(policy, _)| policy)
    }

    fn compiled_of(&self, id: u16) -> Option<(&Arc<EndpointPolicy>, u64)> {
        self.repository.compiled(self.endpoints.get(&id)?.subject?)
    }

    /// From now on the policy of an endpoint with its labels of now is kept compiled.
    pub fn track(&mut self, id: u16) {
        self.answers.forget(id);
        let Some(endpoint) = self.endpoints.get_mut(&id) else { return };
        let subject = self.repository.acquire_subject(&endpoint.subject_labels());
        if let Some(before) = endpoint.subject.replace(subject) {
            self.repository.release_subject(before);
        }
        endpoint.version = 0;
    }

    /// An endpoint has no policy any more.
    pub fn untrack(&mut self, id: u16) {
        self.answers.forget(id);
        if let Some(endpoint) = self.endpoints.get_mut(&id)
            && let Some(before) = endpoint.subject.take()
        {
            self.repository.release_subject(before);
        }
    }

    /// Writes these endpoints' policies into their maps, whatever they hold.
    pub fn regenerate(&mut self, ids: impl IntoIterator<Item = u16>) {
        self.follow_policies();
        self.write_policies(ids.into_iter().collect());
        self.note_revision();
    }

    /// Writes what differs, the replacements of [`TOGETHER`] endpoints within one grace period. What does not fit or fails
    /// leaves the map as it was, and is tried again.
    pub(super) fn write_policies(&mut self, ids: Vec<u16>) {
        if ids.is_empty() {
            return;
        }
        self.read_journal();
        ids.chunks(TOGETHER).for_each(|ids| self.write_some(ids));
        self.note_policy_conditions(&ids);
    }

    fn write_some(&mut self, ids: &[u16]) {
        let mut batch: Vec<(u16, Entries)> = Vec::new();
        for id in ids.iter().copied() {
            let Some(endpoint) = self.endpoints.get_mut(&id) else { continue };
            endpoint.builds += 1;
            let overflow = endpoint.subject.and_then(|subject| self.repository.overflow(subject));
            if let Some(overflow) = overflow {
                endpoint.fail_policy(overflow.to_string(), None);
            } else if endpoint.is_live() && !self.is_held(id) {
                self.adopt_put_back(id);
                batch.extend(self.wanted_entries(id).map(|entries| (id, entries)));
            }
        }
        self.apply(&batch);
    }

    fn apply(&mut self, batch: &[(u16, Entries)]) {
        if batch.is_empty() {
            return;
        }
        let audits: BTreeMap<u16, [bool; 2]> =
            batch.iter().map(|(id, _)| (*id, self.announce_audit(*id))).collect();
        let wanted: Vec<(u16, &Entries)> = batch.iter().map(|(id, entries)| (*id, entries)).collect();
        let maps = self.kernel.maps.clone();
        match self.kernel.policies.apply_all(&wanted, &mut &maps.endpoints) {
            Ok(results) => {
                for (id, result) in results {
                    self.applied(id, result);
                }
            }
            Err(error) => {
                for (id, _) in batch {
                    self.failed(*id, error.to_string());
                }
            }
        }
        for (id, before) in audits {
            self.settle_audit(id, before);
        }
        self.wake.rejudge.notify_one();
    }

    /// What no entry decides passes where the old or the new policy says so, while one takes the other's place. Returns
    /// what was before.
    fn announce_audit(&mut self, id: u16) -> [bool; 2] {
        let wanted = self.policy_of(id).map_or([false; 2], |policy| policy.audit);
        let before = self.endpoints.get(&id).map_or([false; 2], |endpoint| endpoint.audit_default);
        self.set_audit_default(id, [before[0] || wanted[0], before[1] || wanted[1]]);
        before
    }

    /// The new policy is in force, or the old one still is.
    fn settle_audit(&mut self, id: u16, before: [bool; 2]) {
        let wanted = self.policy_of(id).map_or([false; 2], |policy| policy.audit);
        let failed = self.endpoints.get(&id).is_some_and(|endpoint| endpoint.problem.is_some());
        let now = if failed { before } else { wanted };
        self.set_audit_default(id, now);
        if before != now {
            self.rejudge.insert(id);
        }
    }

    fn set_audit_default(&mut self, id: u16, audit: [bool; 2]) {
        let Some(endpoint) = self.endpoints.get_mut(&id) else { return };
        if std::mem::replace(&mut endpoint.audit_default, audit) == audit {
            return;
        }
        let result = self.write_record(id);
        self.conditions
            .note(&format!("record of endpoint {id}"), result.err().map(|error| error.to_string()));
    }

    fn applied(&mut self, id: u16, result: villus_datapath::Result<Applied>) {
        let applied = match result {
            Ok(applied) => applied,
            Err(error) => return self.failed(id, error.to_string()),
        };
        let (entries, version) =
            self.compiled_of(id).map_or((0, 0), |(policy, version)| (policy.len(), version));
        let Some(endpoint) = self.endpoints.get_mut(&id) else { return };
        endpoint.shapes = applied.shapes;
        endpoint.hand_made = applied.hand_made.len();
        let entries = entries + endpoint.hand_made;
        endpoint.size = (u32::try_from(entries).unwrap_or(u32::MAX), applied.capacity);
        endpoint.realized = self.repository.revision();
        endpoint.version = version;
        endpoint.problem = None;
        endpoint.failures = 0;
        endpoint.retry = None;
        if applied.added + applied.removed + applied.altered > 0 || applied.swapped {
            self.rejudge.insert(id);
        }
        if applied.added + applied.removed + applied.altered > 0 {
            let what = format!(
                "policy of revision {}: {} entries added, {} removed, {} altered",
                endpoint.realized, applied.added, applied.removed, applied.altered
            );
            endpoint.note("OK", what);
        }
        if endpoint.state == EndpointState::WaitingToRegenerate {
            endpoint.enter(EndpointState::Ready, "policy is in force");
        }
    }

    fn failed(&mut self, id: u16, reason: String) {
        if let Some(endpoint) = self.endpoints.get_mut(&id) {
            endpoint.version = 0;
            endpoint.failures = endpoint.failures.saturating_add(1);
            let wait = retry_after(endpoint.failures);
            endpoint.fail_policy(reason, Some(wait));
        }
    }

    /// Endpoints whose maps hold what the newest revision asks for hold that revision, whether it concerned them or not.
    pub(super) fn note_revision(&mut self) {
        let revision = self.repository.revision();
        for endpoint in self.endpoints.values_mut().filter(|endpoint| endpoint.problem.is_none()) {
            let version =
                endpoint.subject.and_then(|s| self.repository.compiled(s)).map(|(_, version)| version);
            if version == Some(endpoint.version) {
                endpoint.realized = revision;
            }
        }
        self.wake.realized.send_modify(|count| *count += 1);
    }

    /// Tries what failed again, when its time has come.
    pub fn retry_policies(&mut self, now: Instant) {
        let due: Vec<u16> = self
            .endpoints
            .values()
            .filter(|endpoint| endpoint.retry.is_some_and(|at| at <= now))
            .map(Endpoint::id)
            .collect();
        if !due.is_empty() {
            self.regenerate(due);
        }
    }

    fn note_policy_conditions(&mut self, ids: &[u16]) {
        for id in ids {
            let Some(endpoint) = self.endpoints.get(id) else { continue };
            let problem = endpoint
                .problem
                .as_ref()
                .map(|problem| format!("{} keeps its previous entries: {problem}", policy_pin(*id)));
            self.conditions.note(&format!("policy of endpoint {id}"), problem);
        }
    }
}

impl Endpoint {
    fn fail_policy(&mut self, reason: String, retry: Option<Duration>) {
        self.note("Failure", reason.clone());
        self.problem = Some(reason);
        self.retry = retry.map(|wait| Instant::now() + wait);
    }
}

/// Longer with each failure, up to half a minute.
fn retry_after(failures: u32) -> Duration {
    Backoff::try_new(Duration::from_millis(500), Duration::from_secs(30), 0.5)
        .map_or(Duration::from_secs(5), |backoff| backoff.delay(failures, &mut fastrand::Rng::new()))
}
