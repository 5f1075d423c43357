//! Judging open flows again after a change of policy: who is silent must not stay admitted.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use villus_abi::Flow;
use villus_abi::flow::{FLOW_EGRESS_ADMITTED, FLOW_INGRESS_ADMITTED};
use villus_abi::policy::Direction;
use villus_datapath::{Entries, FlowKey, Flows, Maps, Pins, is_expired, now, view_entries};
use villus_identity::Ipcache;
use villus_policy::{Audit, EndpointPolicy, icmp_port, proto};

use crate::endpoint::Endpoint;
use crate::node::Node;

/// What is needed to judge flows without holding up the agent.
pub(crate) struct Rejudge {
    pins: Arc<Pins>,
    maps: Arc<Maps>,
    ipcache: Ipcache,
    endpoints: BTreeMap<u16, Audited>,
}

/// What passes of an endpoint's denials: in which directions all of them, and in which those that no entry asks for.
#[derive(Clone, Copy, Default)]
struct Audited {
    all: Audit,
    default: [bool; 2],
}

impl Node {
    /// Takes the work that has come together; `None` when there is none, or when audit lets everything pass.
    pub fn take_rejudge(&mut self) -> Option<Rejudge> {
        let ids = std::mem::take(&mut self.rejudge);
        let endpoints = self.enforcing(ids);
        if endpoints.is_empty() {
            return None;
        }
        Some(Rejudge {
            pins: self.kernel.pins.clone(),
            maps: self.kernel.maps.clone(),
            ipcache: self.ipcache.clone(),
            endpoints,
        })
    }
}

/// Flows that were not allowed when they were looked at.
pub(crate) struct Suspects(Vec<FlowKey>);

impl Rejudge {
    /// Finds the flows that the maps do not allow any more. What an operator wrote by hand counts as everything else
    /// does.
    ///
    /// # Errors
    /// When the kernel's maps cannot be read.
    pub fn run(self) -> villus_datapath::Result<Suspects> {
        let policies = policies_of(&self.pins, &self.maps, &self.endpoints)?;
        let identity = identity_of(&self.ipcache);
        let time = now();
        let found = Flows::new(self.maps.clone()).find(|key, flow| {
            !is_expired(flow.expires, time) && is_denied(&policies, &identity, key, flow)
        })?;
        Ok(Suspects(found.into_iter().map(|(key, _)| key).collect()))
    }
}

impl Suspects {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Node {
    /// Those of some endpoints whose policies refuse packets in some direction, rather than only report them.
    fn enforcing(&self, ids: impl IntoIterator<Item = u16>) -> BTreeMap<u16, Audited> {
        let known = ids.into_iter().filter_map(|id| self.endpoints.get(&id));
        let enforcing = known.filter(|endpoint| endpoint.is_live() && endpoint.audit() != Audit::BOTH);
        let audited =
            |endpoint: &Endpoint| Audited { all: endpoint.audit(), default: endpoint.audit_default };
        enforcing.map(|endpoint| (endpoint.id(), audited(endpoint))).collect()
    }

    /// Removes the suspects that are still there and still not allowed; says how many. Policy cannot change meanwhile: a
    /// flow that a newer policy let in again would lose the replies to its first packet.
    ///
    /// # Errors
    /// When the kernel's maps cannot be read.
    pub fn cut(&mut self, suspects: &Suspects) -> villus_datapath::Result<usize> {
        let flows = Flows::new(self.kernel.maps.clone());
        let mut there = Vec::new();
        for key in &suspects.0 {
            there.extend(flows.get(key)?.map(|flow| (*key, flow)));
        }
        let ends = there.iter().flat_map(|(_, flow)| [flow.src_endpoint, flow.dst_endpoint]);
        let endpoints = self.enforcing(ends);
        let policies = policies_of(&self.kernel.pins, &self.kernel.maps, &endpoints)?;
        let identity = identity_of(&self.ipcache);
        let mut cut = 0;
        for (key, flow) in there {
            if is_denied(&policies, &identity, &key, &flow) {
                cut += usize::from(flows.remove(&key)?);
            }
        }
        Ok(cut)
    }
}

/// Policies of endpoints, and in which directions whatever they deny passes.
pub(super) type Policies = BTreeMap<u16, (Arc<EndpointPolicy>, Audit)>;

/// What the kernel's policy maps of these endpoints say now.
fn policies_of(
    pins: &Pins,
    maps: &Maps,
    endpoints: &BTreeMap<u16, Audited>,
) -> villus_datapath::Result<Policies> {
    let of = |(id, audited): (&u16, &Audited)| {
        Ok((*id, policy_of(view_entries(pins, maps, *id)?.entries, *audited)))
    };
    endpoints.iter().map(of).collect()
}

pub(super) fn identity_of(ipcache: &Ipcache) -> impl Fn(IpAddr) -> u32 {
    |ip| ipcache.lookup(ip).map_or(0, |(_, winner)| winner.mapping.identity.0)
}

/// The entries of a map as a policy that can be asked, and what of its denials passes.
fn policy_of(entries: Entries, audited: Audited) -> (Arc<EndpointPolicy>, Audit) {
    let mut policy = EndpointPolicy::of_entries(entries);
    policy.audit = audited.default;
    (Arc::new(policy), audited.all)
}

/// Whether an endpoint that admitted the flow would not do so now.
pub(super) fn is_denied(
    policies: &Policies,
    identity: &dyn Fn(IpAddr) -> u32,
    key: &FlowKey,
    flow: &Flow,
) -> bool {
    let (opener, other) = key.ends(flow);
    let port = asked_port(key.proto(), other);
    let denies = |id: u16, direction, peer: SocketAddr| {
        policies.get(&id).is_some_and(|(policy, audit)| {
            !audit.has(direction)
                && !policy.explain(direction, identity(peer.ip()), port, key.proto()).passes()
        })
    };
    (flow.flags & FLOW_EGRESS_ADMITTED != 0 && denies(flow.src_endpoint, Direction::Egress, other))
        || (flow.flags & FLOW_INGRESS_ADMITTED != 0 && denies(flow.dst_endpoint, Direction::Ingress, opener))
}

/// What policy was asked about: the port, or of ICMP the type of an echo request.
fn asked_port(protocol: u8, other: SocketAddr) -> u16 {
    match protocol {
        proto::ICMP => icmp_port(8),
        proto::ICMPV6 => icmp_port(128),
        _ => other.port(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use villus_abi::FlowKey4;
    use villus_abi::policy::{PolicyEntry, PolicyKey};

    use super::*;

    fn flow(flags: u32) -> (FlowKey, Flow) {
        let word = |text: &str| u32::from_ne_bytes(text.parse::<std::net::Ipv4Addr>().unwrap().octets());
        let key = FlowKey4 {
            lo: word("10.0.0.1"),
            hi: word("10.0.0.2"),
            lo_port: 40000_u16.to_be(),
            hi_port: 80_u16.to_be(),
            proto: 6,
            ..FlowKey4::default()
        };
        (FlowKey::V4(key), Flow { flags, src_endpoint: 1, dst_endpoint: 2, ..Flow::default() })
    }

    fn policies(id: u16, key: PolicyKey) -> Policies {
        let entries = Entries::from([(key, PolicyEntry::ALLOW)]);
        BTreeMap::from([(id, policy_of(entries, Audited::default()))])
    }

    #[test]
    fn only_what_an_endpoint_admitted_is_asked_again() {
        let identity = |ip: IpAddr| if ip.to_string() == "10.0.0.1" { 300 } else { 400 };
        let (key, admitted) = flow(FLOW_INGRESS_ADMITTED | FLOW_EGRESS_ADMITTED);
        let allows = policies(2, PolicyKey::new(300, 80, 6, Direction::Ingress));
        assert!(!is_denied(&allows, &identity, &key, &admitted));
        let other_port = policies(2, PolicyKey::new(300, 81, 6, Direction::Ingress));
        assert!(is_denied(&other_port, &identity, &key, &admitted));
        let egress = policies(1, PolicyKey::new(300, 80, 6, Direction::Egress));
        assert!(is_denied(&egress, &identity, &key, &admitted), "the other side is 400");
        let (key, by_reply) = flow(FLOW_EGRESS_ADMITTED);
        assert!(!is_denied(&other_port, &identity, &key, &by_reply));
    }
}
