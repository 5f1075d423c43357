//! The packet path: what happens to a packet, from parsing to verdict.
//!
//! It is `no_std`, holds no maps and calls no helpers; it is generic over [`World`] (what can be looked up
//! and changed) and [`Packet`] (what can be read and written). The kernel gives it BPF maps and an
//! `__sk_buff`, the tests give it hash maps and byte vectors, `villus why` a snapshot of the kernel's maps.
//! It refuses to know where it runs.
//!
//! Six hooks enter it: [`from_endpoint`] and [`to_endpoint`], [`from_network`] and [`to_network`], [`from_overlay`] and
//! [`to_overlay`]. Each returns an [`Outcome`]: what to do with the packet, which by then carries its new headers. Where endpoints
//! are masqueraded here, [`unmasquerade`] comes before from-network and [`masquerade`] after to-network.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(feature = "memory")]
extern crate std;

mod deliver;
mod endpoint;
mod family;
mod flow;
mod fragment;
mod host;
mod judge;
#[cfg(feature = "memory")]
pub mod memory;
mod nat;
mod neighbour;
mod network;
mod outcome;
mod overlay;
mod parse;
mod policy;
mod report;
mod work;
mod world;
mod wrap;

pub use deliver::to_endpoint;
pub use endpoint::from_endpoint;
pub use family::{Family, V4, V6};
pub use host::to_network;
pub use nat::{lend, masquerade, unmasquerade};
pub use network::from_network;
pub use outcome::{Action, MARK_JUDGED, MARK_MASK, MARK_OPENED, MARK_OVERLAY, MARK_ROUTED, Outcome};
pub use overlay::{from_overlay, to_overlay};
pub use parse::{ETH_HLEN, Facts, Kind, Parse};
pub use policy::{Ask, Grant, Question, Verdict, verdict};
pub use report::{emit, end};
pub use work::{Pick, Room, Work};
pub use world::{Neighbour, Net, Packet, PolicyMap, Tunnel, World};
pub use wrap::{AROUND, HALVES, Headers, Wrapping, by_tunnel};
