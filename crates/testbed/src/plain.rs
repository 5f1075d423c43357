//! The same two workloads without us: what the kernel's own routing does.

use std::net::IpAddr;

use crate::{
    host::{Host, join},
    party::{Addresses, Version},
};

/// Two hosts, each joined to a router by a veth pair, and no program anywhere.
#[derive(Debug)]
pub struct Plain {
    /// The router between them.
    pub router: Host,
    /// One, with `eth0`.
    pub client: Host,
    /// The other, with `eth0`.
    pub server: Host,
}

impl Default for Plain {
    fn default() -> Self {
        Self::new()
    }
}

impl Plain {
    const CLIENT: u16 = 101;
    const SERVER: u16 = 102;

    /// Builds them.
    #[must_use]
    pub fn new() -> Self {
        let (router, client, server) = (Host::new("router"), Host::new("client"), Host::new("server"));
        router.forward();
        router.ip(&format!("addr add {}/32 dev lo", Addresses::ROUTER.v4));
        router.ip(&format!("addr add {}/128 dev lo nodad", Addresses::ROUTER.v6));
        for (host, id) in [(&client, Self::CLIENT), (&server, Self::SERVER)] {
            let near = format!("veth{id}");
            join(&router, &near, host, "eth0", 1500);
            let (near_mac, mac) = (router.mac(&near), host.mac("eth0"));
            for (address, gateway) in Addresses::workload(id).all().into_iter().zip(Addresses::ROUTER.all()) {
                let (v, nodad) = if address.is_ipv4() { ("-4", "") } else { ("-6", " nodad") };
                host.ip(&format!("{v} addr add {address} dev eth0{nodad}"));
                host.ip(&format!("{v} neigh add {gateway} lladdr {near_mac} dev eth0 nud permanent"));
                host.ip(&format!("{v} route add {gateway} dev eth0 src {address}"));
                host.ip(&format!("{v} route add default via {gateway} dev eth0 src {address}"));
                router.ip(&format!("{v} neigh add {address} lladdr {mac} dev {near} nud permanent"));
                router.ip(&format!("{v} route add {address} dev {near} src {gateway}"));
            }
        }
        Self { router, client, server }
    }

    /// Address of the client.
    #[must_use]
    pub fn client_ip(&self, version: Version) -> IpAddr {
        Addresses::workload(Self::CLIENT).of(version)
    }

    /// Address of the server.
    #[must_use]
    pub fn server_ip(&self, version: Version) -> IpAddr {
        Addresses::workload(Self::SERVER).of(version)
    }
}
