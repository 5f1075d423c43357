//! External resources: what no agent starts and every agent must know. Virtual machines, bare metal, pods of other
//! networks.
//!
//! A resource is a name with addresses and labels ([`Wanted`]), read from YAML, JSON or the body of a request
//! ([`read_objects`], [`read_spec`], [`read_batch`]). [`Externals`] writes it into the store as the keys that a pod has, so that agents
//! of Cilium and of Villus know it and need to know nothing else. What time and mishaps make of them is put right by
//! whoever leads the cluster's operators ([`Keeper`]).
//!
//! The crate refuses to know what policies select and how packets reach a resource.
#![forbid(unsafe_code)]

mod error;
mod externals;
mod job;
mod keeper;
mod nodes;
mod problem;
mod read;
mod record;
mod spec;
mod write;

pub use error::{ExternalError, Refusal};
pub use externals::{ExternalConfig, Externals, Outcome, Writing};
pub use job::What;
pub use keeper::{Keeper, KeeperConfig, Kept};
pub use problem::{MAX_PROBLEMS, Problem, Problems};
pub use read::{API_VERSION, KIND, MAX_TEXT, doubles, read_batch, read_names, read_objects, read_spec};
pub use record::{EXTERNAL, Record};
pub use spec::{Kind, MAX_ADDRESSES, MAX_LABELS, MAX_NAME, Place, Spec, TTL, Wanted};
