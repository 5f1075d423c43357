//! Why a packet passes or does not.

use serde::{Deserialize, Serialize};
use villus_flows::WhyQuery;

use super::is_default;

/// Body of `POST /villus/why`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct WhyRequest {
    /// Who sends: an address or any form that names an endpoint.
    pub src: String,
    /// Whom to: an address or any form that names an endpoint.
    pub dst: String,
    /// `PORT[/PROTO]`; for ICMP the message's type.
    pub port: String,
    /// Source port; a free one if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
}

impl From<WhyQuery> for WhyRequest {
    fn from(query: WhyQuery) -> Self {
        Self {
            src: query.src.to_string(),
            dst: query.dst.to_string(),
            port: query.port.to_string(),
            source_port: None,
        }
    }
}

/// The answer: the packet path over the kernel's maps, and beside it over what they should hold.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct WhyReply {
    /// The question in full, names resolved: `10.0.0.1:40000 (endpoint 5) -> 10.0.0.2:80/tcp (endpoint 7)`.
    pub question: String,
    /// Over the kernel's maps as they are.
    pub kernel: Explanation,
    /// Over the maps as they should be.
    pub wanted: Explanation,
    /// Both come to the same verdict.
    pub agree: bool,
}

/// A verdict and the steps to it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Explanation {
    /// `forwarded`, `dropped` or `audited`.
    pub verdict: String,
    /// Number of the drop reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<u8>,
    /// Its text.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason_text: String,
    /// With whose address it leaves the node, if an endpoint sends it out of the node and not through the tunnel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leaving: Option<Leaving>,
    /// The steps, in the order in which the path takes them.
    pub steps: Vec<Step>,
}

/// With whose address a packet of an endpoint leaves the node.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Leaving {
    /// Who masquerades: `bpf`, `nftables` or `nobody`.
    pub by: String,
    /// What decided: `masquerade` lends it the node's address. It keeps its own by `node-prefix`, `other-nodes-prefix`,
    /// `native-routing-cidr` and `ip-masq-agent`, or `prefix` where only the kernel's maps say so; by `remote-node`; and by
    /// `own-address`, where nothing says that it is masqueraded. `not-known` if the agent is not there to say.
    pub rule: String,
    /// The prefix that decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// The addresses that it is lent, one for each uplink that lends another; empty where the device by which it leaves says.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
}

/// One step of the packet path.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Step {
    /// `source`, `flow`, `identity`, `egress policy`, `ingress policy`, `delivery`, …
    pub stage: String,
    /// What was found, in a sentence.
    pub text: String,
    /// The endpoint whose rules were asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<u16>,
    /// Map keys that were looked up, each with what was found.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<String>,
    /// The rules that decided, each with its file, line and selector; for a default deny also what nearly allows.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub because: Vec<String>,
    /// This step decided.
    #[serde(skip_serializing_if = "is_default")]
    pub decided: bool,
}
