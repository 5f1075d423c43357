//! A certificate for every agent, and what it may do.
//!
//! [`Pki`] is a directory with an authority and what it signed: agents (each its own user, all in one group), members of
//! etcd, people. [`etcd`] prints the users and roles under which an agent writes its own node and its own addresses and nobody
//! else's; [`kubernetes`] the objects that let it read and that limit its requests.
//!
//! The crate refuses to talk to etcd or Kubernetes: it writes files and says what is to be done.
#![forbid(unsafe_code)]

mod error;
pub mod etcd;
pub mod kubernetes;
mod pki;
mod ranges;
mod read;
mod subject;

pub use error::CertsError;
pub use pki::{Issued, Pki, Renewal};
pub use ranges::{Range, RangeError};
pub use read::Found;
pub use subject::{AGENTS, Holder, agent_user};
