//! Policies.

use std::fmt;

use serde::{Deserialize, Serialize};
use villus_flows::hubble::ReadReport;
use villus_rollout::Observations;

use super::is_default;

/// The rules in effect.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Policy {
    /// The policies in force, then the groups and services that they can refer to, as a JSON array in a string.
    pub policy: String,
    /// Number of the last change.
    pub revision: u64,
    /// Changes that wait for `policy confirm`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub waiting: Vec<WaitingChange>,
    /// Where the objects come from, in their order: a file, `api`, `cluster`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub origins: Vec<PolicyOrigin>,
    /// Policies of the cluster that are in force although the shared store has lost them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stale: Vec<StalePolicy>,
    /// What options make of the policies.
    pub settings: PolicySettings,
}

/// A policy, group or service of the cluster that is in force although the shared store has lost it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct StalePolicy {
    /// The policy: `CiliumNetworkPolicy shop/web`.
    pub policy: String,
    /// The same as its key ends: `CiliumNetworkPolicy/shop/web`.
    pub key: String,
    /// The version that is in force.
    pub version: u64,
    /// Who applied it.
    pub author: String,
    /// When, by the author's clock.
    pub time: String,
    /// The version that the store has instead; 0 if it has none.
    #[serde(skip_serializing_if = "is_default")]
    pub stored: u64,
    /// The object, as JSON in a string.
    pub object: String,
}

/// Options on which the meaning of policies depends.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct PolicySettings {
    /// `default`, `always` or `never`.
    pub enforcement: String,
    /// Name of the local cluster.
    pub cluster_name: String,
    /// Whether the node itself may always reach its endpoints.
    pub allow_localhost: bool,
    /// Whether selectors that name no cluster mean the local one.
    pub default_local_cluster: bool,
    /// Whether policies of workloads select the node itself by its labels.
    #[serde(skip_serializing_if = "is_default")]
    pub host_is_workload: bool,
}

/// Where a policy, group or service comes from.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PolicyOrigin {
    /// The policy: `CiliumNetworkPolicy shop/web`.
    pub policy: String,
    /// A file, `api` for what was imported, `cluster` for what the shared store holds for all nodes.
    pub origin: String,
    /// Its version, where the origin counts them.
    #[serde(skip_serializing_if = "is_default")]
    pub version: u64,
}

/// Query of `GET /policy`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyQuery {
    /// Only policies of this name.
    #[serde(skip_serializing_if = "is_default")]
    pub name: String,
    /// Only policies of this namespace.
    #[serde(skip_serializing_if = "is_default")]
    pub namespace: String,
    /// Only rules with these labels, separated by commas.
    #[serde(skip_serializing_if = "is_default")]
    pub labels: String,
}

/// Query of `PUT /policy` and `POST /villus/policy/validate`, whose body is YAML or JSON text.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct PolicyImport {
    /// Name of the file the text comes from, for messages.
    #[serde(skip_serializing_if = "is_default")]
    pub file: String,
    /// Say what would be done, and do nothing.
    #[serde(skip_serializing_if = "is_default")]
    pub dry_run: bool,
    /// The text; not part of the query.
    #[serde(skip)]
    pub text: String,
}

/// Query of `DELETE /policy`: what is to go. One of `name`, `labels` and `all` must be given.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct PolicyDelete {
    /// Name of the policy.
    #[serde(skip_serializing_if = "is_default")]
    pub name: String,
    /// Its namespace.
    #[serde(skip_serializing_if = "is_default")]
    pub namespace: String,
    /// Rules with these labels, separated by commas.
    #[serde(skip_serializing_if = "is_default")]
    pub labels: String,
    /// All that were imported.
    #[serde(skip_serializing_if = "is_default")]
    pub all: bool,
    /// Say what would be done, and do nothing.
    #[serde(skip_serializing_if = "is_default")]
    pub dry_run: bool,
}

/// A selector whose endpoints are audited, those of now and those to come.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct SelectorAudit {
    /// Labels that endpoints must have, separated by commas.
    pub selector: String,
    /// `true`, `ingress` or `egress`.
    pub audit: String,
    /// Since when, RFC 3339.
    pub created: String,
    /// The endpoints of this node that it selects now.
    pub endpoints: Vec<u16>,
}

/// Body of `PUT /villus/policy/audit`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct SelectorAuditRequest {
    /// Labels that endpoints must have, separated by commas.
    pub selector: String,
    /// `true` (if empty), `ingress` or `egress`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub audit: String,
    /// Say what would be, and change nothing.
    #[serde(skip_serializing_if = "is_default")]
    pub dry_run: bool,
}

/// Query of `DELETE /villus/policy/audit`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct SelectorAuditDelete {
    /// The selector, as it was given.
    pub selector: String,
    /// Say what would be, and change nothing.
    #[serde(skip_serializing_if = "is_default")]
    pub dry_run: bool,
}

/// The answer to a change of policies.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct PolicyChange {
    /// Number of the change, for `policy wait`.
    pub revision: u64,
    /// Policies that are new, `namespace/name`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub added: Vec<String>,
    /// Policies that took the place of older ones of their name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub replaced: Vec<String>,
    /// Policies that are gone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deleted: Vec<String>,
    /// What people should know, though it was done.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Nothing was done.
    #[serde(skip_serializing_if = "is_default")]
    pub dry_run: bool,
    /// Nothing was done yet: the change touches more than `policy-change-limit` allows, and waits to be confirmed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting: Option<WaitingChange>,
}

/// A change of policies that waits to be confirmed.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct WaitingChange {
    /// Its number, for `policy confirm` and `policy reject`.
    pub id: u64,
    /// Where it comes from: an import, a deletion, a file of the directory.
    pub source: String,
    /// The policies it is about, `namespace/name`.
    pub policies: Vec<String>,
    /// When it came, RFC 3339.
    pub since: String,
    /// What it would touch.
    pub impact: Impact,
}

/// What a change of policies would touch on a node.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Impact {
    /// Open flows that would be cut, of all.
    pub flows: Part,
    /// Entries of policy maps that would be new, gone or turned round, of all that there are before or after.
    pub entries: Part,
    /// Endpoints whose maps would change.
    pub endpoints: Vec<u16>,
    /// Some of the flows that would be cut.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cut: Vec<String>,
}

/// A part of a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Part {
    /// How many are touched.
    pub touched: u64,
    /// How many there are.
    pub all: u64,
}

impl Part {
    /// From 0 to 1; of nothing, nothing is touched.
    #[must_use]
    pub fn share(&self) -> f64 {
        if self.all == 0 { 0.0 } else { self.touched as f64 / self.all as f64 }
    }
}

impl Impact {
    /// Of what cannot be told: everything may be touched.
    #[must_use]
    pub fn unknown() -> Self {
        let whole = Part { touched: 1, all: 1 };
        Self { flows: whole, entries: whole, ..Self::default() }
    }
}

impl fmt::Display for WaitingChange {
    /// `import of web.yaml (shop/web) would cut 3 of 4 open flows and change 5 of 9 entries of 2 endpoints`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Impact { flows, entries, endpoints, cut } = &self.impact;
        write!(
            f,
            "{} ({}) would cut {} of {} open flows",
            self.source,
            self.policies.join(", "),
            flows.touched,
            flows.all
        )?;
        write!(
            f,
            " and change {} of {} entries of {} endpoints",
            entries.touched,
            entries.all,
            endpoints.len()
        )?;
        if !cut.is_empty() {
            write!(f, "; flows such as {}", cut.join(", "))?;
        }
        Ok(())
    }
}

/// The answer of `policy validate`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct PolicyValidation {
    /// No problem is an error.
    pub valid: bool,
    /// What the text holds.
    pub policies: Vec<PolicySummary>,
    /// What is wrong with it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<PolicyProblem>,
}

/// A policy in a text.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct PolicySummary {
    /// `CiliumNetworkPolicy`, …
    pub kind: String,
    /// Namespace, empty for cluster-wide ones.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Number of rules.
    pub rules: u64,
    /// Endpoints of this node that it selects now.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<u16>,
}

/// Something wrong in a text.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct PolicyProblem {
    /// Name of the file.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub file: String,
    /// Line from 1; 0 is not known.
    #[serde(skip_serializing_if = "is_default")]
    pub line: u64,
    /// Policy it is in, `namespace/name`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub policy: String,
    /// Path of the field.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub hint: String,
    /// It works all the same.
    #[serde(skip_serializing_if = "is_default")]
    pub warning: bool,
}

/// Query of `GET /villus/policy/wait`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct PolicyWaitQuery {
    /// Wait until every endpoint is at this revision; 0 for the newest.
    pub revision: u64,
    /// Give up after so many seconds; 0 answers at once.
    pub timeout: u32,
}

/// The answer of `policy wait`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct PolicyWait {
    /// The revision that was waited for.
    pub revision: u64,
    /// Every endpoint is there.
    pub realized: bool,
    /// Endpoints that are not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub waiting: Vec<u16>,
}

/// A selector that rules use, and whom it selects now.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Selector {
    /// The selector's text.
    pub selector: String,
    /// How many rules use it.
    pub users: u64,
    /// Identities.
    pub identities: Vec<u32>,
    /// Policies that use it, `namespace/name`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
}

/// What an agent has observed of late.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct ObservedFlows {
    /// The flows, added up.
    pub observations: Observations,
    /// Where they come from: a file, or the agent's memory.
    pub source: String,
    /// What was read.
    pub report: ReadReport,
}

/// Body of `POST /villus/policy/preview`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct PreviewRequest {
    /// Policies that would be imported.
    pub files: Vec<PolicyText>,
    /// Imported policies that would be deleted.
    pub delete: Vec<PolicyName>,
    /// Flows to judge; without them those that the agent has observed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observations: Option<Observations>,
    /// Judge as if audit mode were off.
    pub enforced: bool,
}

/// A file of policies.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyText {
    /// Name, for messages.
    pub file: String,
    /// What it holds.
    pub text: String,
}

/// A policy by its name.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyName {
    /// Name.
    pub name: String,
    /// Namespace; empty for one of any or of none.
    pub namespace: String,
}
