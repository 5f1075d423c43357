//! What the command line prints: tables in the forms of Cilium 1.10 (`agent` reference 5.3) and the
//! machine-readable outputs.
//!
//! Every printer is a pure function from typed rows to text; the same rows, or the API's own models, give
//! `-o json|yaml|jsonpath=…` through [`Output`]. The crate refuses to know where rows come from and never
//! prints by itself.
#![forbid(unsafe_code)]

mod bpf;
mod ct;
mod lists;
mod output;
mod policy;
mod status;
mod table;

pub use bpf::{
    EndpointInfo, EndpointMapRow, IpcacheRow, MapEntryRow, MapRow, MetricsRow, bpf_endpoint_list,
    bpf_metrics_list, ipcache_get, ipcache_list, map_get, map_list, no_identity,
};
pub use ct::{CtOptions, CtRow, ct_list};
pub use lists::{
    EndpointRow, Enforcement, IdentityRow, IpRow, NodeRow, SelectorRow, endpoint_list, identity_list,
    ip_list, node_list, selector_list,
};
pub use output::{Output, OutputError};
pub use policy::{PolicyRow, policy_list};
pub use status::{StatusLine, status};
pub use table::Table;
