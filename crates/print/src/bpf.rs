//! `bpf ipcache`, `bpf endpoint list`, `bpf metrics list`, `map list|get`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};
use villus_abi::{
    Direction, Endpoint, IpcacheKey, IpcacheValue, Reason,
    ipcache::{FAMILY_V4, FLAG_PENDING, FLAG_ROUTED, STATIC_BITS},
};

use crate::{Table, table::cell};

/// A row of `bpf ipcache list`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct IpcacheRow {
    /// Address of the prefix.
    pub address: IpAddr,
    /// Length of the prefix.
    pub length: u8,
    /// Numeric identity.
    pub identity: u32,
    /// Encryption key index.
    pub key: u8,
    /// Node behind which the address lives, `0.0.0.0` if none.
    pub tunnel: Ipv4Addr,
    /// The prefix belongs to a cluster, and its addresses have identities of their own.
    pub pending: bool,
    /// Endpoints of other nodes have it, to and from which packets travel past the host's stack.
    #[serde(default)]
    pub routed: bool,
}

impl IpcacheRow {
    /// The row of a map entry.
    #[must_use]
    pub fn new(key: &IpcacheKey, value: &IpcacheValue) -> Self {
        let v6 = Ipv6Addr::from(key.addr);
        let [a, b, c, d, ..] = key.addr;
        let v4 = key.family == FAMILY_V4;
        Self {
            address: if v4 { Ipv4Addr::new(a, b, c, d).into() } else { v6.into() },
            length: u8::try_from(key.prefixlen.saturating_sub(STATIC_BITS)).unwrap_or(u8::MAX),
            identity: value.identity,
            key: value.key,
            tunnel: Ipv4Addr::from(value.tunnel.to_ne_bytes()),
            pending: value.flags & FLAG_PENDING != 0,
            routed: value.flags & FLAG_ROUTED != 0,
        }
    }

    /// The value as Cilium 1.10 prints it: identity, key, tunnel endpoint; ours adds `pending` and `routed`.
    #[must_use]
    pub fn value(&self) -> String {
        let pending = if self.pending { " pending" } else { "" };
        let routed = if self.routed { " routed" } else { "" };
        format!("{} {} {}{pending}{routed}", self.identity, self.key, self.tunnel)
    }
}

/// The table of `bpf ipcache list`.
#[must_use]
pub fn ipcache_list(rows: &[IpcacheRow]) -> String {
    let mut table = Table::new(["IP PREFIX/ADDRESS", "IDENTITY"]);
    for row in rows {
        table.row([format!("{}/{}", row.address, row.length), row.value()]);
    }
    table.render()
}

/// The answer of `bpf ipcache get`: `10.2.6.113 maps to identity 298951 0 0.0.0.0`.
#[must_use]
pub fn ipcache_get(address: IpAddr, row: &IpcacheRow) -> String {
    format!("{address} maps to identity {}\n", row.value())
}

/// The answer of `bpf ipcache get` when no prefix covers the address.
#[must_use]
pub fn no_identity(address: IpAddr) -> String {
    format!("{address} does not map to any identity\n")
}

/// A row of `bpf endpoint list`: an address and whose it is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EndpointMapRow {
    /// The address.
    pub address: IpAddr,
    /// The endpoint; `None` for the node's own addresses.
    pub endpoint: Option<EndpointInfo>,
}

/// What the kernel knows of an endpoint.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EndpointInfo {
    /// Endpoint id.
    pub id: u16,
    /// Numeric identity.
    pub identity: u32,
    /// `villus_abi::endpoint::FLAG_*`.
    pub flags: u16,
    /// Host-side interface index.
    pub ifindex: u32,
    /// MAC of the endpoint.
    pub mac: String,
    /// MAC of the host side.
    pub node_mac: String,
}

impl EndpointMapRow {
    /// The row of an address of an endpoint, or of the node where `endpoint` is `None`.
    #[must_use]
    pub fn new(address: IpAddr, endpoint: Option<&Endpoint>) -> Self {
        let endpoint = endpoint.map(|endpoint| EndpointInfo {
            id: endpoint.id,
            identity: endpoint.identity,
            flags: endpoint.flags,
            ifindex: endpoint.ifindex,
            mac: mac(endpoint.mac),
            node_mac: mac(endpoint.node_mac),
        });
        Self { address, endpoint }
    }
}

fn mac([a, b, c, d, e, f]: [u8; 6]) -> String {
    format!("{a:02X}:{b:02X}:{c:02X}:{d:02X}:{e:02X}:{f:02X}")
}

/// The table of `bpf endpoint list`.
#[must_use]
pub fn bpf_endpoint_list(rows: &[EndpointMapRow]) -> String {
    let mut table = Table::new(["IP ADDRESS", "LOCAL ENDPOINT INFO"]);
    for row in rows {
        let info = row.endpoint.as_ref().map_or_else(
            || "(localhost)".to_owned(),
            |info| {
                format!(
                    "id={:<5} sec_id={:<5} flags=0x{:04X} ifindex={:<3} mac={} nodemac={}",
                    info.id, info.identity, info.flags, info.ifindex, info.mac, info.node_mac
                )
            },
        );
        table.row([row.address.to_string(), info]);
    }
    table.render()
}

/// A row of `bpf metrics list`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MetricsRow {
    /// Number of the reason.
    pub reason: u8,
    /// Text of the reason.
    pub text: String,
    /// `INGRESS` or `EGRESS`.
    pub direction: String,
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

impl MetricsRow {
    /// The row of a reason and direction.
    #[must_use]
    pub fn new(reason: Reason, direction: Direction, packets: u64, bytes: u64) -> Self {
        let text = match reason.text() {
            "Unknown reason" => format!("Unknown reason {}", reason.0),
            text => text.to_owned(),
        };
        let direction = direction.name().to_ascii_uppercase();
        Self { reason: reason.0, text, direction, packets, bytes }
    }
}

/// The table of `bpf metrics list`, in the order of the texts.
#[must_use]
pub fn bpf_metrics_list(rows: &[MetricsRow]) -> String {
    let mut rows: Vec<_> = rows.iter().collect();
    rows.sort_by(|a, b| (&a.text, &a.direction).cmp(&(&b.text, &b.direction)));
    let mut table = Table::new(["REASON", "DIRECTION", "PACKETS", "BYTES"]);
    for row in rows {
        table.rows([cell(&row.text), cell(&row.direction), cell(row.packets), cell(row.bytes)]);
    }
    table.render()
}

/// A row of `map list`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MapRow {
    /// Name under which the map is pinned.
    pub name: String,
    /// Entries it should hold.
    pub entries: u64,
    /// Entries that could not be written.
    pub errors: u64,
    /// Whether the agent knows what it should hold.
    pub cached: bool,
}

/// The table of `map list`.
#[must_use]
pub fn map_list(rows: &[MapRow]) -> String {
    let mut table = Table::new(["Name", "Num entries", "Num errors", "Cache enabled"]);
    for row in rows {
        table.rows([cell(&row.name), cell(row.entries), cell(row.errors), cell(row.cached)]);
    }
    table.render()
}

/// A row of `map get`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct MapEntryRow {
    /// The key's text.
    pub key: String,
    /// The value's text.
    pub value: String,
    /// `sync`, `to-be-inserted`, `to-be-deleted`.
    pub state: String,
    /// Last error, empty if none.
    pub error: String,
}

/// The table of `map get`.
#[must_use]
pub fn map_get(rows: &[MapEntryRow]) -> String {
    let mut table = Table::new(["Key", "Value", "State", "Error"]);
    for row in rows {
        table.row([&row.key, &row.value, &row.state, &row.error]);
    }
    table.render()
}
