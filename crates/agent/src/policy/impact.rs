//! How much of this node a change of policies would touch.

use std::net::IpAddr;

use villus_api::model::{Impact, Part};
use villus_datapath::{FlowKey, Flows, is_expired, now};
use villus_flows::protocol_name;
use villus_labels::NumericIdentity;
use villus_policy::{Audit, EndpointPolicy};
use villus_rollout::{Numbers, Objects, Side};

use super::rejudge::{Policies, identity_of, is_denied};
use crate::node::Node;

/// How many flows that would be cut are named.
const NAMED: usize = 5;

impl Node {
    /// Policies and what they refer to, with the numbers that identities and prefixes have.
    pub fn numbers(&self) -> Numbers {
        let table = self.identities.table.snapshot();
        let identities = table.iter().filter(|(identity, _)| !identity.is_local());
        Numbers::new(
            identities.map(|(identity, labels)| (*identity, labels.clone())),
            self.prefixes.iter().map(|(prefix, identity)| (*prefix, *identity)),
        )
        .with_node_prefixes(self.config.policy.cidr_matches_nodes)
    }

    /// What a change would touch. The more identities and policies there are, the longer it takes: everything is compiled
    /// once.
    ///
    /// # Errors
    /// The flow tables cannot be read.
    pub fn impact(&self, change: impl FnOnce(&mut Objects)) -> villus_datapath::Result<Impact> {
        let mut objects = Objects::of(&self.repository);
        change(&mut objects);
        let settings = self.repository.settings().clone();
        let most = settings.max_entries;
        let mut side = Side::new(settings, objects, &mut self.numbers(), most);
        let (mut before, mut after) = (Policies::new(), Policies::new());
        let mut impact = Impact::default();
        for endpoint in self.endpoints.values().filter(|endpoint| endpoint.is_live()) {
            let Some(old) = self.policy_of(endpoint.id()) else { continue };
            // What would not fit changes nothing.
            let new = side.policy_of(&endpoint.subject_labels()).unwrap_or_else(|_| old.clone());
            let part = difference(old, &new);
            if part.touched > 0 {
                impact.endpoints.push(endpoint.id());
            }
            impact.entries.touched += part.touched;
            impact.entries.all += part.all;
            let audit = endpoint.audit();
            if audit != Audit::BOTH {
                before.insert(endpoint.id(), (old.clone(), audit));
                after.insert(endpoint.id(), (new, audit));
            }
        }
        self.flows_cut(&before, &after, &side, &mut impact)?;
        Ok(impact)
    }

    /// Judges open flows as after a change of policy, now and then.
    fn flows_cut(
        &self,
        before: &Policies,
        after: &Policies,
        side: &Side,
        impact: &mut Impact,
    ) -> villus_datapath::Result<()> {
        let identity = identity_of(&self.ipcache);
        let then = |ip: IpAddr| match NumericIdentity(identity(ip)) {
            outside if outside.is_world() || outside.is_local() => side.identity_of_address(ip).0,
            known => known.0,
        };
        let time = now();
        for (key, flow) in Flows::new(self.kernel.maps.clone()).list()? {
            if is_expired(flow.expires, time) {
                continue;
            }
            impact.flows.all += 1;
            if is_denied(after, &then, &key, &flow) && !is_denied(before, &identity, &key, &flow) {
                impact.flows.touched += 1;
                if impact.cut.len() < NAMED {
                    impact.cut.push(named(&key, &flow));
                }
            }
        }
        Ok(())
    }
}

/// Entries that are new, gone or turned round, and all that there are before or after.
fn difference(old: &EndpointPolicy, new: &EndpointPolicy) -> Part {
    let (mut touched, mut added) = (0, 0);
    for (key, entry) in new.map_entries() {
        match old.entry(&key) {
            None => added += 1,
            Some(before) => touched += u64::from(before.is_deny() != entry.is_deny()),
        }
    }
    touched += old.keys().filter(|key| new.entry(key).is_none()).count() as u64;
    Part { touched: touched + added, all: old.len() as u64 + added }
}

/// `10.0.0.1:40000 -> 10.0.0.2:80/tcp`.
fn named(key: &FlowKey, flow: &villus_abi::Flow) -> String {
    let (opener, other) = key.ends(flow);
    let protocol = protocol_name(key.proto()).map_or_else(|| key.proto().to_string(), str::to_owned);
    format!("{opener} -> {other}/{protocol}")
}
