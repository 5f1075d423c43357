//! Policies for all nodes of a cluster, without Kubernetes.
//!
//! The shared store holds each object's current version and those before it ([`Policies`]); every agent of the cluster
//! follows the current ones ([`Mirror`]) and says how far it has realised them ([`NodeReport`]).
//!
//! The crate refuses to know what a policy means and what a node does with it.
#![forbid(unsafe_code)]

mod error;
mod held;
mod mirror;
mod name;
mod policies;
mod report;
mod version;

pub use error::ClusterPolicyError;
pub use held::{Kept, Stale};
pub use mirror::{Changes, Mirror, ORIGIN};
pub use name::ObjectName;
pub use policies::{Change, KEPT, Policies, Standing, Wanted};
pub use report::{Lost, NodeReport, Realised};
pub use version::Version;

/// Below it lie policies: `<cluster>/current/…` and `<cluster>/history/…`.
pub const POLICIES: &str = "villus/policies/v1";
/// `<cluster>/<node>`: how far a node has realised the cluster's policies.
pub const REALISED: &str = "villus/realised/v1";
