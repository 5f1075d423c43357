//! Addresses of the testbed, of both families.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// An address family.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Version {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Version {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// Of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// Somebody's address of each family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Addresses {
    /// IPv4.
    pub v4: Ipv4Addr,
    /// IPv6.
    pub v6: Ipv6Addr,
}

impl Addresses {
    /// The router of the node, which is the workloads' gateway.
    pub const ROUTER: Self = Self::new([10, 9, 0, 1], [0xfd09, 0, 0, 1]);
    /// The node on its uplink.
    pub const NODE: Self = Self::new([192, 0, 2, 2], [0x2001, 0xdb8, 0, 2]);
    /// The host at the other end of the uplink: another node, and the router to what is beyond.
    pub const OUTSIDE: Self = Self::new([192, 0, 2, 1], [0x2001, 0xdb8, 0, 1]);
    /// The same host on its network beyond.
    pub const OUTSIDE_FAR: Self = Self::new([198, 51, 100, 1], [0x2001, 0xdb8, 1, 1]);
    /// A host behind it.
    pub const BEYOND: Self = Self::new([198, 51, 100, 2], [0x2001, 0xdb8, 1, 2]);

    const fn new(v4: [u8; 4], v6: [u16; 4]) -> Self {
        Self {
            v4: Ipv4Addr::new(v4[0], v4[1], v4[2], v4[3]),
            v6: Ipv6Addr::new(v6[0], v6[1], v6[2], 0, 0, 0, 0, v6[3]),
        }
    }

    /// Of the workload with this endpoint id (below 200).
    #[must_use]
    pub fn workload(id: u16) -> Self {
        Self::new([10, 9, 0, u8::try_from(id).expect("ids below 200")], [0xfd09, 0, 0, id])
    }

    /// A virtual address that the host's own nftables translates.
    #[must_use]
    pub fn virtual_ip(number: u8) -> Self {
        Self::new([10, 96, 0, number], [0xfd96, 0, 0, u16::from(number)])
    }

    /// The one of a family.
    #[must_use]
    pub const fn of(&self, version: Version) -> IpAddr {
        match version {
            Version::V4 => IpAddr::V4(self.v4),
            Version::V6 => IpAddr::V6(self.v6),
        }
    }

    /// Both.
    #[must_use]
    pub const fn all(&self) -> [IpAddr; 2] {
        [IpAddr::V4(self.v4), IpAddr::V6(self.v6)]
    }
}

/// An address from its text.
#[must_use]
pub fn at(text: &str, port: u16) -> SocketAddr {
    SocketAddr::new(text.parse().unwrap(), port)
}
