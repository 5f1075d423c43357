//! Who a workload is: labels, sets of them, selectors over them, and the number that stands for a set.
//!
//! The crate knows the texts (label lists, the kvstore's label string, filter rules) and the number ranges. It
//! refuses to know where labels come from, who allocates a number, or what a policy does with either.
#![forbid(unsafe_code)]

mod cidr;
mod error;
mod filter;
mod identity;
mod label;
mod requirement;
mod selector;
mod set;
mod text;

pub use cidr::{cidr_label, cidr_labels, parse_prefix};
pub use error::LabelError;
pub use filter::{FilterError, FilterRule, LabelFilter};
pub use identity::{IdentityError, MaxConnectedClusters, NumericIdentity, Scope};
pub use label::{KNOWN_SOURCES, Label, source};
pub use requirement::{KeySource, Operator, Requirement, SelectorError, SelectorKey};
pub use selector::Selector;
pub use set::Labels;
pub use text::nearest;

/// Label key of a pod's namespace.
pub const KEY_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// Prefix of the keys under which a namespace's own labels are copied onto its pods.
pub const KEY_NAMESPACE_LABELS: &str = "io.cilium.k8s.namespace.labels.";
/// Label key of the cluster a workload belongs to.
pub const KEY_CLUSTER: &str = "io.cilium.k8s.policy.cluster";
/// Label key by which a workload asks for an identity whose number the operator has fixed; the value is its name.
pub const KEY_FIXED_IDENTITY: &str = "io.cilium.fixed-identity";
/// Label key of a pod's service account.
pub const KEY_SERVICE_ACCOUNT: &str = "io.cilium.k8s.policy.serviceaccount";
