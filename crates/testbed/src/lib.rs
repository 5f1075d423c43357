//! A node with workloads and the networks around it, in network namespaces, for tests and benchmarks of the kernel
//! part. The kernel maps are filled by hand: there is no agent here, and nothing decides what a policy should say.
//!
//! Namespaces have no names and the pins lie in a bpffs that is mounted nowhere, so everything ends with the process
//! at the latest, whatever happens to it. Real servers of etcd are started here too, on loopback. What goes wrong is a panic that says where: this is for tests.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "only tests and benchmarks use this crate; a step of the set-up that fails is the end of them"
)]

mod association;
mod authority;
mod capture;
mod clock;
mod cluster;
mod dump;
mod echo;
mod etcd;
mod frame;
mod guest;
mod host;
mod node;
mod party;
mod plain;
mod residue;
mod sandbox;
mod sctp;
mod surroundings;
mod tally;
mod translate;
mod tun;
mod workload;

pub use association::SctpAssociation;
pub use authority::Authority;
pub use capture::Capture;
pub use clock::{Clock, a_jiffy_passes};
pub use cluster::{Between, Cluster, Member};
pub use echo::{Blocked, EchoServer, Exchange, Ping, TcpEcho, UdpEcho, raise_open_files, udp_socket};
pub use etcd::{EtcdServer, free_port};
pub use frame::{
    Arp, Frame, ICMP, ICMP6, IGMP, L4, SCTP, TCP, UDP, checksum, echo_request, fragment_v4, fragment_v6,
    icmp, ip, l4_checksum, neighbour_solicitation, tcp, udp, vlan_tagged,
};
pub use guest::TapGuest;
pub use host::{Host, join, run, run_ip, try_run};
pub use node::{Node, NodeSpec, UplinkKind, kernel_has_link_kind};
pub use party::{Addresses, Version, at};
pub use plain::Plain;
pub use residue::Residue;
pub use sandbox::{eventually, inside, inside_as};
pub use sctp::{SctpEcho, sctp_init, sctp_init_ack};
pub use tally::{Delta, Tally};
pub use tun::TunWire;
pub use workload::{Kind, Workload};
