//! Workloads of the node: devices of three kinds with a host behind each.

use std::{collections::BTreeMap, net::IpAddr};

use villus_net::{
    AdoptSpec, AdoptedLink, CONTAINER_DEVICE, Delivery, EndpointLink, EndpointLinkSpec, Mac, Rtnl, Sysctl,
    adopt_interface, create_endpoint_link, host_device_name, release_interface, remove_endpoint_link,
};

use crate::{
    frame::L4,
    guest::TapGuest,
    host::{Host, join},
    node::Node,
    party::{Addresses, Version},
    sandbox::eventually,
};

/// How a workload is connected.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Kind {
    /// A veth pair of ours into the workload's namespace.
    #[default]
    Veth,
    /// A tap, as of a virtual machine.
    Tap,
    /// A veth with both ends on the node, the other one in a bridge that leads to the workload.
    VethOnNode,
}

/// The device on the node, as it must be taken away again.
#[derive(Debug)]
enum Device {
    Made(EndpointLink),
    Adopted(AdoptedLink, Option<TapGuest>),
}

/// A workload with its endpoint.
#[derive(Debug)]
pub struct Workload {
    /// Id of its endpoint.
    pub id: u16,
    /// Its identity.
    pub identity: u32,
    /// Its addresses.
    pub addresses: Addresses,
    /// Its own namespace, with the device `eth0`.
    pub host: Host,
    /// Address of `eth0`.
    pub mac: Mac,
    /// Name of the device on the node.
    pub node_device: String,
    /// Its index.
    pub ifindex: u32,
    /// Its address: the workload's gateway.
    pub node_mac: Mac,
    /// MTU of the device on the node.
    pub mtu: u32,
    device: Device,
}

impl Workload {
    pub(crate) fn make(node: &Node, id: u16, identity: u32, kind: Kind, mtu: u32) -> Self {
        let addresses = Addresses::workload(id);
        let host = Host::new(&format!("workload {id}"));
        match kind {
            Kind::Veth => Self::veth(node, id, identity, addresses, host, mtu),
            Kind::Tap => {
                let name = format!("tap{id}");
                let guest = TapGuest::open(&node.host, &name, &host);
                Self::adopted(node, id, identity, addresses, host, name, Some(guest))
            }
            Kind::VethOnNode => {
                let (name, other) = (format!("near{id}"), format!("far{id}"));
                node.host.ip(&format!("link add {name} type veth peer name {other}"));
                node.host.ip(&format!("link add br{id} type bridge mcast_snooping 0"));
                join(&node.host, &format!("leg{id}"), &host, CONTAINER_DEVICE, 1500);
                for port in [&other, &format!("leg{id}")] {
                    node.host.ip(&format!("link set {port} master br{id}"));
                }
                node.host.ip(&format!("link set {name} addrgenmode none"));
                // Rules for routed packets are not for those that the bridge switches.
                for rules in ["iptables", "ip6tables"] {
                    let call = Sysctl::at(&format!("net/bridge/bridge-nf-call-{rules}"));
                    node.host.run(|| call.write_if_present("0")).unwrap();
                }
                // The bridge only switches: the node has no business on it.
                for device in [&other, &format!("leg{id}"), &format!("br{id}")] {
                    node.host.sysctl(&format!("net/ipv6/conf/{device}/disable_ipv6"), "1");
                }
                node.host.sysctl(&format!("net/ipv4/conf/br{id}/arp_ignore"), "8");
                for device in [&name, &other, &format!("br{id}")] {
                    node.host.ip(&format!("link set {device} up"));
                }
                Self::adopted(node, id, identity, addresses, host, name, None)
            }
        }
    }

    fn veth(node: &Node, id: u16, identity: u32, addresses: Addresses, host: Host, mtu: u32) -> Self {
        let owner = format!("test-{id}");
        let name = host_device_name(&owner);
        let (node_mac, mac) =
            (Mac::from_seed(&format!("node {owner}")), Mac::from_seed(&format!("workload {owner}")));
        let all = addresses.all();
        let spec = EndpointLinkSpec {
            owner: &owner,
            host_name: &name,
            host_mac: node_mac,
            netns: host.netns(),
            container_name: CONTAINER_DEVICE,
            container_mac: mac,
            mtu,
            route_mtu: None,
            addresses: &all,
            gateway_v4: Some(Addresses::ROUTER.v4),
            gateway_v6: Some(Addresses::ROUTER.v6),
            host_sources: &Addresses::ROUTER.all(),
        };
        let link = node
            .host
            .run(|| {
                create_endpoint_link(&spec, |link| {
                    node.install(id, identity, addresses, link.host_index, link.mtu, mac, node_mac, 0);
                    Ok::<_, String>(())
                })
            })
            .unwrap();
        node.deliver_by(id, link.delivery);
        Self {
            id,
            identity,
            addresses,
            host,
            mac,
            node_device: name,
            ifindex: link.host_index,
            node_mac,
            mtu,
            device: Device::Made(link),
        }
    }

    fn adopted(
        node: &Node,
        id: u16,
        identity: u32,
        addresses: Addresses,
        host: Host,
        name: String,
        guest: Option<TapGuest>,
    ) -> Self {
        let mac = host.mac(CONTAINER_DEVICE);
        let (ifindex, node_mac) = (node.host.index(&name), node.host.mac(&name));
        node.host.sysctl(&format!("net/ipv4/conf/{name}/rp_filter"), "0");
        node.install(id, identity, addresses, ifindex, 1500, mac, node_mac, villus_abi::endpoint::FLAG_DHCP);
        let all = addresses.all();
        let spec = AdoptSpec {
            device: &name,
            owner: &name,
            addresses: &all,
            workload_mac: Some(mac),
            host_sources: &Addresses::ROUTER.all(),
        };
        let link = node.host.run(|| adopt_interface(&spec, &BTreeMap::new())).unwrap();
        assert_eq!(link.delivery, Delivery::Device, "{name} takes no redirects to its peer");
        node.deliver_by(id, link.delivery);
        for (address, gateway) in all.into_iter().zip(Addresses::ROUTER.all()) {
            let (v, nodad) = if address.is_ipv4() { ("-4", "") } else { ("-6", " nodad") };
            host.ip(&format!("{v} addr add {address} dev {CONTAINER_DEVICE}{nodad}"));
            host.ip(&format!("{v} route add {gateway} dev {CONTAINER_DEVICE} src {address}"));
            host.ip(&format!("{v} route add default via {gateway} dev {CONTAINER_DEVICE} src {address}"));
        }
        Self {
            id,
            identity,
            addresses,
            host,
            mac,
            node_device: name,
            ifindex,
            node_mac,
            mtu: 1500,
            device: Device::Adopted(link, guest),
        }
    }

    /// Its address of a family.
    #[must_use]
    pub const fn ip(&self, version: Version) -> IpAddr {
        self.addresses.of(version)
    }

    /// The headers of a packet that it sends to an address through its gateway.
    #[must_use]
    pub fn to(&self, dst: IpAddr) -> L4 {
        L4 { from: self.mac, to: self.node_mac, src: self.ip(Version::of(dst)), dst, ttl: 64 }
    }

    /// Takes the device away, as the agent would.
    pub(crate) fn remove(self, node: &Host) {
        match self.device {
            Device::Made(link) => node.run(|| remove_endpoint_link(&link)).unwrap(),
            Device::Adopted(link, guest) => {
                node.run(|| release_interface(&link)).unwrap();
                if let Some(guest) = guest {
                    drop(guest);
                    // A process that another test starts just then has a copy of it until it is another program.
                    let find = || Rtnl::open().unwrap().link_by_name(&self.node_device).unwrap();
                    eventually("the tap is gone", || node.run(find).is_none());
                }
                if guest_is_a_bridge(&self.node_device) {
                    for device in [&self.node_device, &format!("br{}", self.id), &format!("leg{}", self.id)] {
                        node.ip(&format!("link del {device}"));
                    }
                }
            }
        }
    }
}

fn guest_is_a_bridge(device: &str) -> bool {
    device.starts_with("near")
}
