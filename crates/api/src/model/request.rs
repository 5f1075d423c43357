//! Requests about endpoints.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use serde::{Deserialize, Serialize};

use super::{EndpointState, Mac, is_default};

/// Body of `PUT /endpoint/{id}`: Cilium's fields, and ours at the end.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct EndpointChangeRequest {
    /// One address of each family.
    #[serde(skip_serializing_if = "is_default")]
    pub addressing: AddressPair,
    /// Container id.
    #[serde(skip_serializing_if = "is_default")]
    pub container_id: Option<String>,
    /// Name of the interface inside the namespace; `eth0` if not given.
    #[serde(skip_serializing_if = "is_default")]
    pub container_interface_name: Option<String>,
    /// Container name.
    #[serde(skip_serializing_if = "is_default")]
    pub container_name: Option<String>,
    /// Path of the network namespace.
    #[serde(skip_serializing_if = "is_default")]
    pub container_netns_path: Option<String>,
    /// Switches of the datapath.
    #[serde(skip_serializing_if = "is_default")]
    pub datapath_configuration: DatapathConfiguration,
    /// Taken for compatibility, without effect.
    #[serde(skip_serializing_if = "is_default")]
    pub datapath_map_id: u32,
    /// Taken for compatibility, without effect.
    #[serde(skip_serializing_if = "is_default")]
    pub disable_legacy_identifiers: bool,
    /// Endpoint id at docker's plugin.
    #[serde(skip_serializing_if = "is_default")]
    pub docker_endpoint_id: Option<String>,
    /// Network id at docker's plugin.
    #[serde(skip_serializing_if = "is_default")]
    pub docker_network_id: Option<String>,
    /// MAC of the host side.
    #[serde(skip_serializing_if = "is_default")]
    pub host_mac: Option<Mac>,
    /// Wanted id; 0 for any.
    #[serde(skip_serializing_if = "is_default")]
    pub id: u16,
    /// Index of the host-side interface, if it exists.
    #[serde(skip_serializing_if = "is_default")]
    pub interface_index: u32,
    /// Name of the host-side interface, if it exists.
    #[serde(skip_serializing_if = "is_default")]
    pub interface_name: Option<String>,
    /// Kubernetes namespace.
    #[serde(skip_serializing_if = "is_default")]
    pub k8s_namespace: Option<String>,
    /// Pod name.
    #[serde(skip_serializing_if = "is_default")]
    pub k8s_pod_name: Option<String>,
    /// Pod uid.
    #[serde(skip_serializing_if = "is_default")]
    pub k8s_uid: Option<String>,
    /// Labels, `source:key[=value]`.
    #[serde(skip_serializing_if = "is_default")]
    pub labels: Vec<String>,
    /// MAC of the endpoint.
    #[serde(skip_serializing_if = "is_default")]
    pub mac: Option<Mac>,
    /// Cookie of the network namespace, decimal.
    #[serde(skip_serializing_if = "is_default")]
    pub netns_cookie: Option<String>,
    /// Index of the parent of the interface.
    #[serde(skip_serializing_if = "is_default")]
    pub parent_interface_index: u32,
    /// Process in the namespace.
    #[serde(skip_serializing_if = "is_default")]
    pub pid: u32,
    /// Taken for compatibility, without effect: policy is enforced where rules say so.
    #[serde(skip_serializing_if = "is_default")]
    pub policy_enabled: bool,
    /// Properties of newer versions, without effect.
    #[serde(skip_serializing_if = "is_default")]
    pub properties: BTreeMap<String, serde_json::Value>,
    /// State that the caller expects; without effect.
    #[serde(skip_serializing_if = "is_default")]
    pub state: Option<EndpointState>,
    /// Answer only when the endpoint is ready.
    #[serde(skip_serializing_if = "is_default")]
    pub sync_build_endpoint: bool,

    /// Network namespace: a name below `/run/netns` or a path.
    #[serde(skip_serializing_if = "is_default")]
    pub netns: Option<String>,
    /// Ports by name, for policies that name ports: `http=80/TCP`.
    #[serde(skip_serializing_if = "is_default")]
    pub named_ports: Vec<String>,
    /// Addresses beyond those of `addressing`.
    #[serde(skip_serializing_if = "is_default")]
    pub addresses: Vec<IpAddr>,
    /// The name that the addresses belong to.
    #[serde(skip_serializing_if = "is_default")]
    pub owner: Option<String>,
    /// The same owner gets the same addresses again.
    #[serde(skip_serializing_if = "is_default")]
    pub sticky: bool,
    /// Take this host-side interface instead of making a veth pair.
    #[serde(skip_serializing_if = "is_default")]
    pub adopt_interface: Option<String>,
    /// Whether DHCP and router advertisements pass; by default only for adopted interfaces.
    #[serde(skip_serializing_if = "is_default")]
    pub allow_dhcp: Option<bool>,
    /// Largest layer-3 packet; the node's if not given.
    #[serde(skip_serializing_if = "is_default")]
    pub mtu: Option<u32>,
    /// Say what would be done, and do nothing.
    #[serde(skip_serializing_if = "is_default")]
    pub dry_run: bool,
}

impl EndpointChangeRequest {
    /// All requested addresses, in order, each once.
    #[must_use]
    pub fn requested_addresses(&self) -> Vec<IpAddr> {
        let pair = [self.addressing.ipv4.map(IpAddr::V4), self.addressing.ipv6.map(IpAddr::V6)];
        let mut found = Vec::new();
        for address in pair.into_iter().flatten().chain(self.addresses.iter().copied()) {
            if !found.contains(&address) {
                found.push(address);
            }
        }
        found
    }
}

/// One address of each family, as Cilium's requests carry it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct AddressPair {
    /// IPv4 address.
    #[serde(skip_serializing_if = "is_default")]
    pub ipv4: Option<Ipv4Addr>,
    /// Taken for compatibility, without effect.
    #[serde(skip_serializing_if = "is_default")]
    pub ipv4_expiration_uuid: Option<String>,
    /// Pool of the IPv4 address.
    #[serde(skip_serializing_if = "is_default")]
    pub ipv4_pool_name: Option<String>,
    /// IPv6 address.
    #[serde(skip_serializing_if = "is_default")]
    pub ipv6: Option<Ipv6Addr>,
    /// Taken for compatibility, without effect.
    #[serde(skip_serializing_if = "is_default")]
    pub ipv6_expiration_uuid: Option<String>,
    /// Pool of the IPv6 address.
    #[serde(skip_serializing_if = "is_default")]
    pub ipv6_pool_name: Option<String>,
}

/// Switches of the datapath that Cilium's requests carry.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
#[allow(missing_docs, reason = "the names are the field's")]
pub struct DatapathConfiguration {
    #[serde(skip_serializing_if = "is_default")]
    pub disable_sip_verification: bool,
    #[serde(skip_serializing_if = "is_default")]
    pub external_ipam: bool,
    #[serde(skip_serializing_if = "is_default")]
    pub install_endpoint_route: bool,
    #[serde(skip_serializing_if = "is_default")]
    pub require_arp_passthrough: bool,
    #[serde(skip_serializing_if = "is_default")]
    pub require_egress_prog: bool,
    #[serde(skip_serializing_if = "is_default")]
    pub require_routing: Option<bool>,
}

/// Body of `PATCH /endpoint/{id}`: a change of labels. `labels` replaces all, the others add and remove.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct EndpointPatch {
    /// The labels from now on.
    #[serde(skip_serializing_if = "is_default")]
    pub labels: Option<Vec<String>>,
    /// Labels to add or replace by key.
    #[serde(skip_serializing_if = "is_default")]
    pub add_labels: Vec<String>,
    /// Labels to remove: `source:key`.
    #[serde(skip_serializing_if = "is_default")]
    pub delete_labels: Vec<String>,
    /// Say what would be done, and do nothing.
    #[serde(skip_serializing_if = "is_default")]
    pub dry_run: bool,
}

/// Body of `PATCH /endpoint/{id}/config`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct EndpointConfigPatch {
    /// Options to set, for example `PolicyAuditMode: "true"`.
    pub options: BTreeMap<String, String>,
}

/// Body of `DELETE /endpoint`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct EndpointBatchDelete {
    /// All endpoints of this container go.
    pub container_id: String,
}
