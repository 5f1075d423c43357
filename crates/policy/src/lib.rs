//! What network policies mean, and which map entries say so.
//!
//! Three steps, one-way: [`parse()`] reads files of network policies and refuses whole what can't be
//! enforced; [`Repository`] keeps the policies and the identities their selectors select; an [`EndpointPolicy`]
//! is what one endpoint's policy map should hold, each entry with the rules that asked for it.
//!
//! The datapath looks at every key that can match, any deny wins, else the most specific allow counts. So
//! nothing is spelled out for denies. The crate refuses to know about kernels, nodes and files: it gets texts and
//! labels, and gives entries.
#![forbid(unsafe_code)]

mod budget;
mod cidr_group;
mod element;
mod endpoint;
mod entity;
mod explain;
mod icmp;
mod knp;
mod lower;
mod metadata;
mod named_port;
mod node;
mod origin;
mod parse;
mod ports;
mod problem;
mod read;
mod refer;
mod referent;
mod referents;
mod repository;
mod rule;
mod selector;
mod selectors;
mod service;
mod settings;
mod spec;
mod transport;
mod unresolved;

pub use budget::{Cost, Overflow};
pub use endpoint::{EndpointPolicy, Origins, Wanted};
pub use explain::{Explanation, Lookup, Verdict};
pub use lower::{Clause, Peers, ResolvedRule, resolve};
pub use named_port::{NamedPort, NamedPortError, with_named_ports};
pub use node::Position;
pub use origin::{Origin, RuleOrigin};
pub use parse::parse;
pub use ports::{PortMatch, icmp_port, proto};
pub use problem::{Problem, ProblemKind, Refused};
pub use referent::{Content, Referent};
pub use referents::Referents;
pub use repository::{IdentityChange, PolicyChange, Repository};
pub use rule::{
    Element, Entity, Kind, ObjectKey, ParsedFile, Policy, PrefixBase, PrefixSet, Protocol, Rule, ServiceBase,
    ServiceRef, SubjectSelector, Transport,
};
pub use selectors::{SelectorCache, SelectorRow};
pub use settings::{EnforcementMode, Settings};
pub use transport::is_port_name;
pub use unresolved::{Unresolved, unresolved};
