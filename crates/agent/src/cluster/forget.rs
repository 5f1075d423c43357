//! Nodes as the API shows them, and the operator's word that one does not come back.

use std::time::SystemTime;

use villus_api::model::{ClusterNode, NodeForget, NodeForgotten};
use villus_api::{ApiError, ApiResult};
use villus_identity::{Layer, NodeName, end_keys, leased_keys, use_key, uses_of};
use villus_kvstore::StoreError;

use crate::agent::Agent;
use crate::node::Node;

/// What is known of a node.
struct Known {
    name: NodeName,
    /// Keys and values: those of its addresses, then its own.
    keys: Vec<(String, String)>,
    /// Keys by which it may say that it uses the numbers of its addresses.
    uses: Vec<String>,
    /// How such keys name it.
    users: Vec<String>,
}

impl Node {
    /// All nodes, by name.
    pub fn list_nodes(&self) -> Vec<ClusterNode> {
        let rows = self.nodes.snapshot();
        let row = |(name, node): (&NodeName, &villus_identity::Node)| ClusterNode {
            name: name.to_string(),
            local: node.is_local(),
            addresses: [true, false]
                .iter()
                .filter_map(|v4| node.entry.address(*v4))
                .map(|ip| ip.to_string())
                .collect(),
            ranges: node.entry.ranges().map(|range| range.to_string()).collect(),
            source: node.rank.name().to_owned(),
            silent_since: node.stale.map(time_text).unwrap_or_default(),
        };
        rows.iter().map(row).collect()
    }

    fn known_of(&self, forget: &NodeForget) -> ApiResult<Known> {
        let name = match forget.name.split_once('/') {
            Some((cluster, name)) => NodeName::new(cluster, name),
            None => NodeName::new(&self.cluster, &forget.name),
        };
        let Some(row) = self.nodes.get(&name) else {
            return Err(
                ApiError::not_found(format!("no node {name} is known")).hint("`villus node list` shows all")
            );
        };
        if row.is_local() {
            return Err(ApiError::conflict(format!("{name} is this node")).field("name"));
        }
        let layer = self.remote.as_ref().and_then(|remote| remote.layer_of(&name));
        if layer.is_some_and(|layer| layer != Layer::State) {
            return Err(ApiError::conflict(format!("{name} is another cluster's node, known by a copy"))
                .field("name")
                .hint("forget it in its own cluster: the copy follows"));
        }
        if row.stale.is_none() && !forget.force {
            return Err(ApiError::conflict(format!("{name} is not silent: its key is in the store"))
                .field("name")
                .hint("if the machine is dead and only its lease lasts, say --force; an agent that lives writes its keys again"));
        }
        let keys = self.remote.as_ref().map(|remote| remote.keys_of(&name)).unwrap_or_default();
        let (numbers, users) = self.remote.as_ref().map(|remote| remote.used_by(&name)).unwrap_or_default();
        let labels = numbers.iter().filter_map(|number| self.identities.table.get(number));
        let labels: Vec<String> = labels.map(|labels| labels.to_kvstore()).collect();
        let uses = users.iter().flat_map(|user| labels.iter().map(|labels| use_key(labels, user))).collect();
        Ok(Known { name, keys, uses, users })
    }
}

/// Ends a node for the whole cluster: its keys are deleted so that everybody sees that this is meant, and its leases end.
pub(crate) async fn forget(agent: &Agent, forget: NodeForget) -> ApiResult<NodeForgotten> {
    let dry_run = forget.dry_run;
    let Known { name, mut keys, uses, users } = agent.with(move |node| node.known_of(&forget)).await??;
    if let Some(shared) = &agent.identities.shared {
        // Who may not end it is refused at its first address, before anything has changed; and until its own key goes, which
        // is the last, all of this can be said again.
        let before_own = keys.len().saturating_sub(1);
        let store = shared.store.as_ref();
        let mut used = leased_keys(store, &uses).await.map_err(failed)?;
        if used.is_empty() {
            // Its addresses went before it, or it has none of those numbers: whatever it uses lies under a lease all the same.
            used = uses_of(store, &users).await.map_err(failed)?;
        }
        keys.splice(before_own..before_own, used);
    }
    let mut forgotten = NodeForgotten { name: name.to_string(), ..NodeForgotten::default() };
    forgotten.keys = keys.iter().map(|(key, _)| key.clone()).collect();
    if dry_run {
        forgotten.values = keys.into_iter().map(|(_, value)| value).collect();
        return Ok(forgotten);
    }
    let Some(shared) = &agent.identities.shared else {
        return Err(ApiError::conflict("this node has a store of its own: there are no others"));
    };
    forgotten.leases = end_keys(shared.store.as_ref(), &keys).await.map_err(failed)?;
    tracing::warn!(node = %name, keys = keys.len(), "an operator says that a node does not come back");
    agent.with(move |node| node.drop_forgotten(&name)).await?;
    Ok(forgotten)
}

/// Why nothing, or not all of it, was done; it is not tried again.
fn failed(error: StoreError) -> ApiError {
    match error {
        StoreError::Denied { reason, .. } => {
            let said =
                format!("the store does not permit this agent to delete another node's keys: {reason}");
            ApiError::unavailable(said).hint(
                "say it as a user who may: `villus node forget NAME --kvstore-opt etcd.config=FILE` with an operator's \
                 certificate",
            )
        }
        StoreError::Unavailable { what, reason } => {
            ApiError::unavailable(format!("the store is not available for `{what}`: {reason}"))
                .hint("say it again when the store is there")
        }
        other => ApiError::unavailable(other.to_string()),
    }
}

impl Node {
    fn drop_forgotten(&mut self, name: &NodeName) {
        if let Some(remote) = &mut self.remote {
            remote.forget(name);
        }
        self.carry_remote();
        self.note_silent();
    }
}

fn time_text(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time)
        .and_then(|time| jiff::Timestamp::from_second(time.as_second()))
        .map(|time| time.to_string())
        .unwrap_or_default()
}
