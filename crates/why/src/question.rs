//! Who asks to reach whom, and what the world knows of the two.

use std::{fmt, net::IpAddr};

use villus_abi::{
    Endpoint,
    config::FLAG_HOST_POLICY,
    endpoint::{FLAG_ACTIVE, HOST_ID, SLOT_HOST},
    ipcache::FLAG_PENDING,
};
use villus_path::memory::{Memory, address4, address6, prefix};

/// Why a question cannot be answered.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    /// No endpoint has this id.
    #[error("endpoint {0}: there is none with this id on this node; `villus endpoint list` shows them")]
    NoEndpoint(u16),
    /// The endpoint has no address that the other side could be reached with.
    #[error("endpoint {0}: it has no address of the other side's family")]
    NoAddress(u16),
    /// One side is IPv4, the other IPv6.
    #[error("{src} and {dst}: one is IPv4, the other IPv6; give two addresses of one family")]
    Families {
        /// The source.
        src: IpAddr,
        /// The destination.
        dst: IpAddr,
    },
    /// Neither side is judged.
    #[error(
        "{src} and {dst}: neither is an endpoint of this node, nor does a policy select the node itself, so Villus does \
         not judge this traffic here"
    )]
    NotOurs {
        /// The source.
        src: IpAddr,
        /// The destination.
        dst: IpAddr,
    },
}

/// One side of a question.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Party {
    /// An endpoint of this node.
    Endpoint(u16),
    /// Any address.
    Address(IpAddr),
}

impl From<IpAddr> for Party {
    fn from(address: IpAddr) -> Self {
        Self::Address(address)
    }
}

/// May the first packet of a flow from here to there pass?
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Question {
    /// Who opens the flow.
    pub src: Party,
    /// Whom it is for.
    pub dst: Party,
    /// Destination port, or the ICMP type.
    pub port: u16,
    /// IP protocol.
    pub proto: u8,
}

/// What a side is to this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// An endpoint of this node.
    Endpoint,
    /// This node.
    Host,
    /// Everybody else.
    Outside,
}

/// Where an identity comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Derivation {
    /// The endpoint's record.
    Endpoint,
    /// It is an address of this node.
    Node,
    /// The longest prefix of the ipcache that covers the address.
    Ipcache {
        /// That prefix.
        prefix: String,
    },
    /// No prefix of the ipcache covers the address.
    NoPrefix,
}

/// One side, as the path sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Side {
    /// Its address.
    pub address: IpAddr,
    /// What it is.
    pub kind: Kind,
    /// The endpoint, if it is one of this node's; the node itself while a policy selects it.
    pub endpoint: Option<u16>,
    /// Its identity.
    pub identity: u32,
    /// The identity has not arrived yet.
    pub pending: bool,
    /// Where the identity comes from.
    pub derived: Derivation,
}

const HOST: u32 = 1;
const WORLD: u32 = 2;

/// The addresses of a question.
pub(crate) fn addresses(world: &Memory, question: &Question) -> Result<(IpAddr, IpAddr), Error> {
    let (src, dst) = match (question.src, question.dst) {
        (Party::Address(src), Party::Address(dst)) => (src, dst),
        (Party::Endpoint(id), Party::Address(dst)) => (of_family(world, id, dst.is_ipv6())?, dst),
        (Party::Address(src), Party::Endpoint(id)) => (src, of_family(world, id, src.is_ipv6())?),
        (Party::Endpoint(from), Party::Endpoint(to)) => {
            let v4 = of_family(world, from, false).and_then(|src| Ok((src, of_family(world, to, false)?)));
            match v4 {
                Ok(pair) => pair,
                Err(_) => (of_family(world, from, true)?, of_family(world, to, true)?),
            }
        }
    };
    if src.is_ipv6() != dst.is_ipv6() { Err(Error::Families { src, dst }) } else { Ok((src, dst)) }
}

/// An address of an endpoint: its first, else the smallest.
fn of_family(world: &Memory, id: u16, v6: bool) -> Result<IpAddr, Error> {
    let endpoint = record(world, u32::from(id)).ok_or(Error::NoEndpoint(id))?;
    let first = if v6 { address6(&endpoint.ipv6) } else { address4(endpoint.ipv4) };
    if !first.is_unspecified() {
        return Ok(first);
    }
    let others = world.addrs.iter().filter(|(_, local)| local.slot == u32::from(id));
    let mut others: Vec<IpAddr> =
        others.map(|(address, _)| *address).filter(|address| address.is_ipv6() == v6).collect();
    others.sort();
    others.first().copied().ok_or(Error::NoAddress(id))
}

/// The record of a slot, if it is in use.
pub(crate) fn record(world: &Memory, slot: u32) -> Option<&Endpoint> {
    world.endpoints.get(&slot).filter(|endpoint| endpoint.has(FLAG_ACTIVE))
}

/// Whether a policy selects the node itself.
fn is_node_judged(world: &Memory) -> bool {
    let flags = world.config.map_or(0, |config| config.flags);
    flags & FLAG_HOST_POLICY != 0 && record(world, SLOT_HOST).is_some()
}

/// Who sends from an address: its endpoint is the one that owns it, also when the address map has lost it.
pub(crate) fn source(world: &Memory, address: IpAddr) -> Side {
    let owner = world.endpoints.values().find(|endpoint| {
        endpoint.has(FLAG_ACTIVE)
            && !address.is_unspecified()
            && (address4(endpoint.ipv4) == address || address6(&endpoint.ipv6) == address)
    });
    match owner {
        Some(endpoint) if endpoint.id != HOST_ID => of_endpoint(address, endpoint),
        _ => side(world, address),
    }
}

/// Whom an address reaches.
pub(crate) fn side(world: &Memory, address: IpAddr) -> Side {
    match world.addrs.get(&address) {
        Some(local) if local.slot == SLOT_HOST => Side {
            address,
            kind: Kind::Host,
            endpoint: is_node_judged(world).then_some(HOST_ID),
            identity: HOST,
            pending: false,
            derived: Derivation::Node,
        },
        Some(local) if record(world, local.slot).is_some() => {
            record(world, local.slot).map_or_else(|| outside(world, address), |e| of_endpoint(address, e))
        }
        _ => outside(world, address),
    }
}

fn of_endpoint(address: IpAddr, endpoint: &Endpoint) -> Side {
    Side {
        address,
        kind: Kind::Endpoint,
        endpoint: Some(endpoint.id),
        identity: endpoint.identity,
        pending: false,
        derived: Derivation::Endpoint,
    }
}

fn outside(world: &Memory, address: IpAddr) -> Side {
    let (identity, pending, derived) = match world.ipcache.longest(address) {
        Some((key, value)) => {
            let (network, length) = prefix(&key);
            let prefix = format!("{network}/{length}");
            let identity = if value.identity == 0 { WORLD } else { value.identity };
            (identity, value.flags & FLAG_PENDING != 0, Derivation::Ipcache { prefix })
        }
        None => (WORLD, false, Derivation::NoPrefix),
    };
    Side { address, kind: Kind::Outside, endpoint: None, identity, pending, derived }
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Endpoint(id) => write!(f, "endpoint {id}"),
            Self::Address(address) => address.fmt(f),
        }
    }
}
