//! What network policies mean, and which map entries say so.
//!
//! Three steps, one-way: [`parse()`] reads files of network policies and refuses whole what can't be
//! enforced; [`Repository`] keeps the policies and the identities their selectors select; an [`EndpointPolicy`]
//! is what one endpoint's policy map should hold, each entry with the rules that asked for it.
//!
//! Policies of subjects that are acquired are kept compiled: what an identity or a policy changes touches only
//! what it affects, and [`Repository::sync`] says which entries are different.
//!
//! The datapath looks at every key that can match, any deny wins, else the most specific allow counts. So
//! nothing is spelled out for denies. The crate refuses to know about kernels, nodes and files: it gets texts and
//! labels, and gives entries.
#![forbid(unsafe_code)]

mod askers;
mod audit;
mod because;
mod budget;
mod cidr_group;
mod compile;
mod cut;
mod element;
mod endpoint;
mod entity;
mod explain;
mod icmp;
mod index;
mod knp;
mod lower;
mod metadata;
mod named_port;
mod node;
mod origin;
mod packed;
mod parse;
mod plan;
mod ports;
mod problem;
mod reach;
mod read;
mod refer;
mod referent;
mod referents;
mod repository;
mod rule;
mod rules;
mod selector;
mod selectors;
mod service;
mod settings;
mod shapes;
mod spec;
mod subject;
mod transport;
mod unresolved;

pub use audit::{AUDIT_ANNOTATION, Audit, AuditError};
pub use because::{Nearest, Reason};
pub use budget::{Cost, Overflow};
pub use cut::{Cut, MANY_SIZES};
pub use endpoint::{Edit, EndpointPolicy, Origins, Wanted};
pub use explain::{Explanation, Lookup, Verdict};
pub use lower::{Bound, Clause, Peers, ResolvedRule, resolve};
pub use named_port::{NamedPort, NamedPortError, with_named_ports};
pub use node::Position;
pub use origin::{Origin, RuleOrigin};
pub use parse::parse;
pub use ports::{PortMatch, icmp_port, proto};
pub use problem::{Problem, ProblemKind, Refused};
pub use reach::{Open, Side, open_ports, passes};
pub use referent::{Content, Referent};
pub use referents::Referents;
pub use repository::{PolicyChange, Repository};
pub use rule::{
    Element, Entity, Kind, ObjectKey, ObjectText, ParsedFile, Policy, PrefixBase, PrefixSet, Protocol, Rule,
    ServiceBase, ServiceRef, SubjectSelector, Transport,
};
pub use selectors::{SelectorCache, SelectorId, SelectorRow};
pub use settings::{EnforcementMode, Settings};
pub use subject::{SubjectChange, SubjectId};
pub use transport::is_port_name;
pub use unresolved::{Unresolved, unresolved};
