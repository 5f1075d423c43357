//! Policies in force, who is at which revision, and selectors.

use std::time::Duration;

use villus_api::model::{
    Policy, PolicyOrigin, PolicyQuery, PolicySettings, PolicyWait, PolicyWaitQuery, Selector,
};
use villus_api::{ApiError, ApiResult};
use villus_cluster_policy::ORIGIN;
use villus_labels::Selector as LabelSelector;
use villus_policy::ObjectKey;

use crate::agent::Agent;
use crate::node::Node;
use crate::policy::ClusterPolicies;

impl Node {
    /// The policies in force that a query picks, and the groups and services; labels are those of policies.
    pub(super) fn policies(&mut self, query: &PolicyQuery) -> ApiResult<Policy> {
        let selector = match query.labels.as_str() {
            "" => LabelSelector::everything(),
            text => LabelSelector::parse(text)
                .map_err(|error| ApiError::bad_field("labels", error.to_string()))?,
        };
        let policies = self.repository.policies().filter(|policy| selector.matches(&policy.labels()));
        let referents = self.repository.referents().in_force().filter(|_| query.labels.is_empty());
        let (objects, keys): (Vec<&str>, Vec<&ObjectKey>) = policies
            .map(|policy| (policy.object.text(), &policy.key))
            .chain(referents.map(|referent| (referent.object.text(), &referent.key)))
            .filter(|(_, key)| query.name.is_empty() || *key.name == *query.name)
            .filter(|(_, key)| {
                query.namespace.is_empty() || key.namespace.as_deref() == Some(query.namespace.as_str())
            })
            .unzip();
        if objects.is_empty()
            && !(query.name.is_empty() && query.labels.is_empty() && query.namespace.is_empty())
        {
            return Err(ApiError::not_found("no policy is meant")
                .hint("`villus policy get` without a name shows all"));
        }
        let policy = format!("[{}]", objects.join(","));
        let origins = keys.into_iter().map(|key| self.origin_of(key)).collect();
        let (revision, waiting) = (self.repository.revision(), self.waiting.told());
        let stale = self.cluster_policies.iter().flat_map(ClusterPolicies::stale).collect();
        Ok(Policy { policy, revision, waiting, origins, stale, settings: self.policy_settings() })
    }

    fn policy_settings(&self) -> PolicySettings {
        let settings = self.repository.settings();
        PolicySettings {
            enforcement: settings.mode.name().to_owned(),
            cluster_name: settings.cluster.value().to_owned(),
            allow_localhost: settings.allow_localhost,
            default_local_cluster: settings.default_local_cluster,
            host_is_workload: settings.host_is_workload,
        }
    }

    fn origin_of(&self, key: &ObjectKey) -> PolicyOrigin {
        let cluster = self.cluster_policies.as_ref().filter(|_| *key.origin == *ORIGIN);
        let version = cluster.and_then(|policies| policies.version_of(key)).unwrap_or_default();
        PolicyOrigin { policy: key.to_string(), origin: key.origin.to_string(), version }
    }

    /// Selectors in use.
    pub(super) fn selectors(&mut self) -> Vec<Selector> {
        let rows = self.repository.selectors().rows();
        rows.into_iter()
            .map(|row| Selector {
                users: row.users as u64,
                identities: row.identities.iter().map(|identity| identity.0).collect(),
                labels: self.users_of(&row.selector),
                selector: row.selector.to_string(),
            })
            .collect()
    }

    /// Policies that use a selector.
    fn users_of(&self, selector: &LabelSelector) -> Vec<String> {
        let uses = |policy: &&villus_policy::Policy| {
            self.repository.rules(&policy.key).flat_map(|rule| &rule.clauses).any(|clause| {
                matches!(&clause.peers, villus_policy::Peers::Selected(all) if all.contains(selector))
            })
        };
        let mut names: Vec<String> = self
            .repository
            .policies()
            .filter(uses)
            .map(|policy| match &policy.key.namespace {
                Some(namespace) => format!("{namespace}/{}", policy.key.name),
                None => policy.key.name.to_string(),
            })
            .collect();
        names.dedup();
        names
    }

    /// Endpoints that do not hold a revision yet.
    pub(crate) fn behind(&self, revision: u64) -> Vec<u16> {
        let behind =
            |e: &&crate::endpoint::Endpoint| e.is_live() && (e.realized < revision || e.problem.is_some());
        self.endpoints.values().filter(behind).map(|e| e.id()).collect()
    }
}

/// Waits until every endpoint holds a revision, or the time is up.
pub(super) async fn wait(agent: &Agent, query: PolicyWaitQuery) -> ApiResult<PolicyWait> {
    let mut realized = agent.wake.realized.subscribe();
    let revision = match query.revision {
        0 => agent.with(|node| node.repository.revision()).await?,
        revision => revision,
    };
    let end = tokio::time::Instant::now() + Duration::from_secs(u64::from(query.timeout));
    loop {
        realized.mark_unchanged();
        let (waiting, newest) =
            agent.with(move |node| (node.behind(revision), node.repository.revision())).await?;
        let done = waiting.is_empty() && newest >= revision;
        if done || tokio::time::Instant::now() >= end {
            return Ok(PolicyWait { revision, realized: done, waiting });
        }
        let _ = tokio::time::timeout_at(end, realized.changed()).await;
    }
}
