//! Models as rows of the tables that the command line prints.

use std::net::{Ipv4Addr, Ipv6Addr};

use villus_print::{EndpointRow, Enforcement, IdentityRow, IpRow, MapEntryRow, MapRow, NodeRow, SelectorRow};

use crate::model::{
    BpfMap, BpfMapEntry, ClusterNode, Endpoint, Identity, IdentityEndpoints, IpListEntry, PolicyEnabled,
    Selector,
};

impl PolicyEnabled {
    /// Enforcement of ingress and egress as tables print it.
    #[must_use]
    pub const fn enforcement(self) -> (Enforcement, Enforcement) {
        use Enforcement::{Audit, Disabled, Enabled};
        match self {
            Self::None => (Disabled, Disabled),
            Self::Ingress => (Enabled, Disabled),
            Self::Egress => (Disabled, Enabled),
            Self::Both => (Enabled, Enabled),
            Self::AuditIngress => (Audit, Disabled),
            Self::AuditEgress => (Disabled, Audit),
            Self::AuditBoth => (Audit, Audit),
        }
    }
}

impl From<&Endpoint> for EndpointRow {
    fn from(endpoint: &Endpoint) -> Self {
        let status = &endpoint.status;
        let (mut ingress, mut egress) = status.policy.realized.policy_enabled.enforcement();
        for (direction, side) in [("ingress", &mut ingress), ("egress", &mut egress)] {
            if status.villus.audited.iter().any(|audited| audited == direction) {
                *side = Enforcement::Audit;
            }
        }
        let (identity, labels, interim) =
            status.identity.as_ref().map_or_else(Default::default, |identity| {
                (identity.id, identity.labels.clone(), identity.interim)
            });
        let addressing = &status.networking.addressing;
        Self {
            id: endpoint.id,
            ingress,
            egress,
            identity,
            interim,
            labels,
            ipv6: addressing.iter().filter_map(|pair| pair.ipv6).collect::<Vec<Ipv6Addr>>(),
            ipv4: addressing.iter().filter_map(|pair| pair.ipv4).collect::<Vec<Ipv4Addr>>(),
            state: status.state.to_string(),
        }
    }
}

impl From<&Identity> for IdentityRow {
    fn from(identity: &Identity) -> Self {
        Self { id: identity.id, interim: identity.interim, labels: identity.labels.clone(), refcount: None }
    }
}

impl From<&IdentityEndpoints> for IdentityRow {
    fn from(endpoints: &IdentityEndpoints) -> Self {
        Self { refcount: Some(endpoints.ref_count), ..Self::from(&endpoints.identity) }
    }
}

impl From<&IpListEntry> for IpRow {
    /// Without labels, which the entry does not carry.
    fn from(entry: &IpListEntry) -> Self {
        Self {
            cidr: entry.cidr.clone(),
            identity: entry.identity,
            labels: Vec::new(),
            source: match (entry.metadata.pending, entry.metadata.waits_for.as_str()) {
                (false, _) if entry.metadata.interim => format!("{} (interim)", entry.metadata.source),
                (false, _) => entry.metadata.source.clone(),
                (true, "") => format!("{} (pending)", entry.metadata.source),
                (true, what) => format!("{} (pending: {what})", entry.metadata.source),
            },
            host: entry.host_ip.clone(),
            encrypt_key: entry.encrypt_key,
        }
    }
}

impl From<&ClusterNode> for NodeRow {
    fn from(node: &ClusterNode) -> Self {
        Self {
            name: format!("{}{}", node.name, if node.local { " (local)" } else { "" }),
            addresses: node.addresses.clone(),
            ranges: node.ranges.clone(),
            source: node.source.clone(),
            status: match node.silent_since.as_str() {
                "" => "present".to_owned(),
                since => format!("silent since {since}"),
            },
        }
    }
}

impl From<&Selector> for SelectorRow {
    fn from(selector: &Selector) -> Self {
        Self {
            selector: selector.selector.clone(),
            users: selector.users,
            identities: selector.identities.clone(),
        }
    }
}

impl From<&BpfMap> for MapRow {
    fn from(map: &BpfMap) -> Self {
        Self { name: map.name().to_owned(), entries: map.entries, errors: map.errors, cached: true }
    }
}

impl From<&BpfMapEntry> for MapEntryRow {
    fn from(entry: &BpfMapEntry) -> Self {
        let state = match entry.desired_action.as_str() {
            "ok" | "" => "sync",
            "insert" => "to-be-inserted",
            "delete" => "to-be-deleted",
            other => other,
        };
        Self {
            key: entry.key.clone(),
            value: entry.value.clone(),
            state: state.to_owned(),
            error: entry.last_error.clone(),
        }
    }
}
