//! What the packet path does, rule by rule.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "path/admission.rs"]
mod admission;
#[path = "path/errors.rs"]
mod errors;
#[path = "path/flows.rs"]
mod flows;
#[path = "path/forward.rs"]
mod forward;
#[path = "path/fragments.rs"]
mod fragments;
#[path = "path/host.rs"]
mod host;
mod lab;
#[path = "path/nat.rs"]
mod nat;
#[path = "path/neighbours.rs"]
mod neighbours;
#[path = "path/overlay.rs"]
mod overlay;
#[path = "path/parsing.rs"]
mod parsing;
#[path = "path/policy.rs"]
mod policy;
#[path = "path/reports.rs"]
mod reports;
#[path = "path/source.rs"]
mod source;
#[path = "path/wrap.rs"]
mod wrap;
