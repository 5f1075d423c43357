//! What network policies mean, and which map entries say so.
//!
//! Three steps, one-way: [`parse()`] reads files of CiliumNetworkPolicy objects and refuses whole what can't be
//! enforced; [`Repository`] keeps the policies and the identities their selectors select; an [`EndpointPolicy`]
//! is what one endpoint's policy map should hold, each entry with the rules that asked for it.
//!
//! The datapath looks at every key that can match, any deny wins, else the most specific allow counts. So
//! nothing is spelled out for denies. The crate refuses to know about kernels, nodes and files: it gets texts and
//! labels, and gives entries.
#![forbid(unsafe_code)]

mod budget;
mod endpoint;
mod explain;
mod icmp;
mod lower;
mod node;
mod parse;
mod ports;
mod problem;
mod read;
mod repository;
mod rule;
mod selectors;
mod spec;
mod transport;

pub use budget::{Cost, Overflow};
pub use endpoint::{EndpointPolicy, Origins, Wanted};
pub use explain::{Explanation, Lookup, Verdict};
pub use lower::{Clause, EnforcementMode, Origin, Peers, ResolvedRule, RuleOrigin, Settings, resolve};
pub use node::Position;
pub use parse::parse;
pub use ports::{PortMatch, icmp_port, proto};
pub use problem::{Problem, ProblemKind, Refused};
pub use repository::{IdentityChange, PolicyChange, Repository};
pub use rule::{Element, Entity, Kind, ObjectKey, ParsedFile, Policy, PrefixSet, Protocol, Rule, Transport};
pub use selectors::{SelectorCache, SelectorRow};
