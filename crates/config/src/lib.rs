//! The agent's options: where they come from, what they mean, which are still to come.
//!
//! One table ([`registry`]) knows every option by the name it has in Cilium: those that Villus serves, those
//! whose feature is still to come, those that it has no use for. [`Sources`] collects what flags, the
//! environment, a directory of one file per option and a YAML file say; [`Config::load`] resolves them in
//! that order of precedence into a typed [`Config`] whose every value was checked and remembers its
//! [`Origin`]. What nobody knows, what is no value, and what asks for a feature that is not there is
//! refused with source, option, value, reason and fix, all at once ([`Report`]); nothing is ignored silently.
//!
//! The crate reads files and nothing else: it does not ask the kernel, the network or other programs, so a
//! directory can be checked on any machine.
#![forbid(unsafe_code)]

pub mod args;
pub mod config;
pub mod docs;
pub mod duration;
mod finding;
pub mod kind;
mod label_file;
pub mod limit;
pub mod net;
pub mod rate;
pub mod registry;
mod resolve;
pub mod share;
pub mod source;
pub mod spec;
mod suggest;
pub mod value;

pub use config::Config;
pub use finding::{Error, Finding, Report, Severity};
pub use label_file::read as read_label_file;
pub use resolve::Setting;
pub use source::{Origin, Sources};
pub use spec::{Group, OptionSpec, Support};
pub use value::Value;
