//! `bpf policy get`.

use serde::{Deserialize, Serialize};
use villus_abi::{PolicyEntry, PolicyKey, policy::ICMP_TYPE_ZERO_PORT};

use crate::{Table, table::cell};

/// A row of `bpf policy get`: one entry of an endpoint's policy map.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PolicyRow {
    /// `Allow` or `Deny`.
    pub policy: String,
    /// `Ingress` or `Egress`.
    pub direction: String,
    /// Identity of the other side; 0 is any.
    pub identity: u32,
    /// Labels of that identity, if they are known.
    pub labels: Vec<String>,
    /// `80/TCP`, `8000-8063/TCP`, `ANY/UDP`, `8/ICMP`, `ANY`.
    pub port_proto: String,
    /// Proxy port, 0 for none.
    pub proxy_port: u16,
    /// Bytes that the entry decided, if counted.
    pub bytes: Option<u64>,
    /// Packets that the entry decided, if counted.
    pub packets: Option<u64>,
}

impl PolicyRow {
    /// The row of a map entry.
    #[must_use]
    pub fn new(key: &PolicyKey, entry: &PolicyEntry, labels: Vec<String>) -> Self {
        Self {
            policy: if entry.is_deny() { "Deny" } else { "Allow" }.to_owned(),
            direction: key.dir().name().to_owned(),
            identity: key.identity,
            labels,
            port_proto: port_proto(key),
            proxy_port: u16::from_be(entry.proxy_port),
            bytes: Some(entry.bytes),
            packets: Some(entry.packets),
        }
    }
}

/// What a key says about port and protocol.
fn port_proto(key: &PolicyKey) -> String {
    let proto = match key.proto {
        0 => "ANY".to_owned(),
        1 => "ICMP".to_owned(),
        6 => "TCP".to_owned(),
        17 => "UDP".to_owned(),
        58 => "ICMPv6".to_owned(),
        132 => "SCTP".to_owned(),
        other => other.to_string(),
    };
    let (port, log2) = (key.port(), key.block_log2());
    match (port, log2) {
        (0, 0) if key.proto == 0 => proto,
        (0, 0) => format!("ANY/{proto}"),
        (ICMP_TYPE_ZERO_PORT, 0) if matches!(key.proto, 1 | 58) => format!("0/{proto}"),
        (port, 0) => format!("{port}/{proto}"),
        (first, log2) => {
            let last = u32::from(first) + (1_u32 << log2) - 1;
            format!("{first}-{}/{proto}", last.min(u32::from(u16::MAX)))
        }
    }
}

/// The table of `bpf policy get`; `numeric` prints identities instead of labels.
#[must_use]
pub fn policy_list(rows: &[PolicyRow], numeric: bool) -> String {
    if rows.is_empty() {
        return "Policy stats empty. Perhaps the policy enforcement is disabled?\n".to_owned();
    }
    let who = if numeric { "IDENTITY" } else { "LABELS (source:key[=value])" };
    let mut table = Table::new(["POLICY", "DIRECTION", who, "PORT/PROTO", "PROXY PORT", "BYTES", "PACKETS"]);
    let count = |count: Option<u64>| count.map_or_else(|| "-".to_owned(), |count| count.to_string());
    for row in rows {
        let who = match row.identity {
            0 => cell("ANY"),
            identity if numeric || row.labels.is_empty() => cell(identity),
            _ => row.labels.clone(),
        };
        table.rows([
            cell(&row.policy),
            cell(&row.direction),
            who,
            cell(&row.port_proto),
            if row.proxy_port == 0 { cell("NONE") } else { cell(row.proxy_port) },
            cell(count(row.bytes)),
            cell(count(row.packets)),
        ]);
    }
    table.render()
}
