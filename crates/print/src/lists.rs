//! `endpoint list`, `identity list`, `ip list`, `policy selectors`.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::{Table, table::cell};

/// Whether policy is enforced for one direction of an endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Enforcement {
    /// Nothing selects the endpoint: everything passes.
    #[default]
    Disabled,
    /// Policy decides.
    Enabled,
    /// Policy decides, but denials pass and are reported.
    Audit,
}

impl Enforcement {
    /// `Disabled`, `Enabled` or `Disabled (Audit)`.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Disabled => "Disabled",
            Self::Enabled => "Enabled",
            Self::Audit => "Disabled (Audit)",
        }
    }
}

/// An identity's number, and whether only this node knows it.
fn number(identity: u32, interim: bool) -> String {
    format!("{identity}{}", if interim { " (interim)" } else { "" })
}

/// A row of `endpoint list`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct EndpointRow {
    /// Endpoint id.
    pub id: u16,
    /// Ingress enforcement.
    pub ingress: Enforcement,
    /// Egress enforcement.
    pub egress: Enforcement,
    /// Numeric identity; 0 if it has none yet.
    pub identity: u32,
    /// Only this node knows the identity yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub interim: bool,
    /// Labels, `source:key[=value]`.
    pub labels: Vec<String>,
    /// IPv6 addresses.
    pub ipv6: Vec<Ipv6Addr>,
    /// IPv4 addresses.
    pub ipv4: Vec<Ipv4Addr>,
    /// State: `ready`, `waiting-for-identity`, …
    pub state: String,
}

/// The table of `endpoint list`: second and later labels and addresses on rows of their own.
#[must_use]
pub fn endpoint_list(rows: &[EndpointRow]) -> String {
    let mut table = Table::new([
        "ENDPOINT",
        "POLICY (ingress)",
        "POLICY (egress)",
        "IDENTITY",
        "LABELS (source:key[=value])",
        "IPv6",
        "IPv4",
        "STATUS",
    ]);
    table.row(["", "ENFORCEMENT", "ENFORCEMENT"]);
    for row in rows {
        let identity =
            if row.identity == 0 { "<no label id>".to_owned() } else { number(row.identity, row.interim) };
        let labels = if row.labels.is_empty() { cell("no labels") } else { row.labels.clone() };
        table.rows([
            cell(row.id),
            cell(row.ingress.text()),
            cell(row.egress.text()),
            cell(identity),
            labels,
            row.ipv6.iter().map(ToString::to_string).collect(),
            row.ipv4.iter().map(ToString::to_string).collect(),
            cell(&row.state),
        ]);
    }
    table.render()
}

/// A row of `identity list`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct IdentityRow {
    /// Numeric identity.
    pub id: u32,
    /// Only this node knows it yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub interim: bool,
    /// Labels.
    pub labels: Vec<String>,
    /// How many endpoints of this node have it; only with `--endpoints`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refcount: Option<u64>,
}

/// The table of `identity list`; with `REFCOUNT` when a row has one.
#[must_use]
pub fn identity_list(rows: &[IdentityRow]) -> String {
    if rows.iter().any(|row| row.refcount.is_some()) {
        let mut table = Table::new(["ID", "LABELS", "REFCOUNT"]);
        for row in rows {
            table.rows([
                cell(number(row.id, row.interim)),
                row.labels.clone(),
                cell(row.refcount.unwrap_or_default()),
            ]);
        }
        return table.render();
    }
    let mut table = Table::new(["ID", "LABELS"]);
    for row in rows {
        table.rows([cell(number(row.id, row.interim)), row.labels.clone()]);
    }
    table.render()
}

/// A row of `ip list`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct IpRow {
    /// Prefix.
    pub cidr: String,
    /// Numeric identity.
    pub identity: u32,
    /// Labels of the identity; the number is printed where they are not known, and with `-n`.
    pub labels: Vec<String>,
    /// Who said so: `agent-local`, `kvstore`, …
    pub source: String,
    /// Node behind which the address lives.
    pub host: String,
    /// Encryption key index.
    pub encrypt_key: u8,
}

/// The table of `ip list`; `verbose` adds `HOST` and `ENCRYPT_KEY`.
#[must_use]
pub fn ip_list(rows: &[IpRow], numeric: bool, verbose: bool) -> String {
    let mut table = if verbose {
        Table::new(["IP", "IDENTITY", "SOURCE", "HOST", "ENCRYPT_KEY"])
    } else {
        Table::new(["IP", "IDENTITY", "SOURCE"])
    };
    for row in rows {
        let identity = if numeric || row.labels.is_empty() { cell(row.identity) } else { row.labels.clone() };
        let (ip, source) = (cell(&row.cidr), cell(&row.source));
        if verbose {
            table.rows([ip, identity, source, cell(&row.host), cell(row.encrypt_key)]);
        } else {
            table.rows([ip, identity, source]);
        }
    }
    table.render()
}

/// A row of `node list`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct NodeRow {
    /// `<cluster>/<node>`.
    pub name: String,
    /// The addresses by which other nodes reach it.
    pub addresses: Vec<String>,
    /// The prefixes that its endpoints have addresses of.
    pub ranges: Vec<String>,
    /// Who told of it.
    pub source: String,
    /// `present`, or since when nobody stands behind it.
    pub status: String,
}

/// The table of `node list`: second and later addresses and prefixes on rows of their own.
#[must_use]
pub fn node_list(rows: &[NodeRow]) -> String {
    let mut table = Table::new(["NAME", "ADDRESSES", "ENDPOINT CIDRS", "SOURCE", "STATUS"]);
    for row in rows {
        table.rows([
            cell(&row.name),
            row.addresses.clone(),
            row.ranges.clone(),
            cell(&row.source),
            cell(&row.status),
        ]);
    }
    table.render()
}

/// A row of `policy selectors`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct SelectorRow {
    /// The selector's text.
    pub selector: String,
    /// How many rules use it.
    pub users: u64,
    /// Identities it selects now.
    pub identities: Vec<u32>,
}

/// The table of `policy selectors`.
#[must_use]
pub fn selector_list(rows: &[SelectorRow]) -> String {
    let mut table = Table::new(["SELECTOR", "USERS", "IDENTITIES"]);
    for row in rows {
        let identities = row.identities.iter().map(ToString::to_string).collect();
        table.rows([cell(&row.selector), cell(row.users), identities]);
    }
    table.render()
}
