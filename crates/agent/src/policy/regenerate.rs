//! Compiling endpoints' policies and writing them into their maps.

use std::sync::Arc;
use std::time::{Duration, Instant};

use villus_api::model::EndpointState;
use villus_datapath::policy_pin;
use villus_datapath::{Applied, Entries, ROOM};
use villus_policy::{EndpointPolicy, Overflow};
use villus_table::Backoff;

use crate::endpoint::Endpoint;
use crate::node::Node;

impl Node {
    /// What an endpoint's policy map should hold.
    ///
    /// # Errors
    /// It would not fit.
    pub fn compile(&self, endpoint: &Endpoint) -> Result<EndpointPolicy, Overflow> {
        let most = (self.config.datapath.policy_map_max as usize).saturating_sub(ROOM);
        self.repository.endpoint_policy(&endpoint.identity_labels, most)
    }

    /// Compiles these endpoints' policies and writes what differs, all replacements within one grace period. What
    /// does not fit or fails leaves the map as it was, and is tried again.
    pub fn regenerate(&mut self, ids: impl IntoIterator<Item = u16>) {
        let mut batch: Vec<(u16, Entries)> = Vec::new();
        let ids: Vec<u16> = ids.into_iter().collect();
        if !ids.is_empty() {
            self.read_journal();
        }
        for id in ids {
            let Some(endpoint) = self.endpoints.get(&id) else { continue };
            let compiled = self.compile(endpoint);
            let Some(endpoint) = self.endpoints.get_mut(&id) else { continue };
            endpoint.builds += 1;
            match compiled {
                Ok(policy) => {
                    endpoint.wanted = Some(Arc::new(policy));
                    let live = endpoint.is_live();
                    if live && !self.is_held(id) {
                        self.adopt_put_back(id);
                        batch.extend(self.wanted_entries(id).map(|entries| (id, entries)));
                    }
                }
                Err(overflow) => endpoint.fail_policy(overflow.to_string(), None),
            }
        }
        if batch.is_empty() {
            self.note_policy_conditions();
            return;
        }
        let wanted: Vec<(u16, &Entries)> = batch.iter().map(|(id, entries)| (*id, entries)).collect();
        let maps = self.kernel.maps.clone();
        match self.kernel.policies.apply_all(&wanted, &mut &maps.endpoints) {
            Ok(results) => {
                for (id, result) in results {
                    self.applied(id, result);
                }
            }
            Err(error) => {
                for (id, _) in &batch {
                    self.failed(*id, error.to_string());
                }
            }
        }
        self.note_policy_conditions();
        self.wake.realized.send_modify(|count| *count += 1);
        self.wake.rejudge.notify_one();
    }

    fn applied(&mut self, id: u16, result: villus_datapath::Result<Applied>) {
        let applied = match result {
            Ok(applied) => applied,
            Err(error) => return self.failed(id, error.to_string()),
        };
        let Some(endpoint) = self.endpoints.get_mut(&id) else { return };
        endpoint.shapes = applied.shapes;
        endpoint.hand_made = applied.hand_made.len();
        let entries = endpoint.wanted.as_ref().map_or(0, |policy| policy.entries.len()) + endpoint.hand_made;
        endpoint.size = (u32::try_from(entries).unwrap_or(u32::MAX), applied.capacity);
        endpoint.realized = endpoint.wanted.as_ref().map_or(0, |policy| policy.revision);
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
            endpoint.failures = endpoint.failures.saturating_add(1);
            let wait = retry_after(endpoint.failures);
            endpoint.fail_policy(reason, Some(wait));
        }
    }

    /// Endpoints that a change did not concern hold its revision all the same.
    pub fn bump_unaffected(&mut self) {
        let revision = self.repository.revision();
        for endpoint in self.endpoints.values_mut() {
            if endpoint.problem.is_none() && endpoint.wanted.is_some() {
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

    fn note_policy_conditions(&mut self) {
        for (id, endpoint) in &self.endpoints {
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
