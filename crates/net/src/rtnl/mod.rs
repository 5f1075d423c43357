//! Links, addresses, routes and neighbours over rtnetlink.
//!
//! An [`Rtnl`] belongs to the namespace of the thread that opened it, wherever it is used later.

mod addr;
mod link;
mod neigh;
mod route;
mod socket;

pub use addr::Address;
pub use link::{Link, LinkChange, VethPair};
pub use neigh::Neighbour;
pub use route::{NextHop, Route, RouteKind};
pub use socket::Rtnl;

pub(crate) use link::is_device_name;
pub(crate) use socket::{decode_all, groups};

/// The routing protocol number that marks routes and neighbours as ours (`ip route show proto 118`). Not taken in
/// iproute2's `rt_protos`; 118 is ASCII `v`.
pub const PROTOCOL: u8 = 118;

/// As [`PROTOCOL`], of routes to the prefixes of other nodes (`ip route show proto 119`).
pub const NODE_PROTOCOL: u8 = 119;
