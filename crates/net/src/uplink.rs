//! Which devices connect the node to the world, and which addresses the node has.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::error::NetError;
use crate::mac::Mac;
use crate::node::{ROUTER_DEVICE, ROUTER_PEER, is_endpoint_device};
use crate::rtnl::{Address, Link, Route, Rtnl};

/// The node's devices, addresses and routes at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeState {
    /// All devices.
    pub links: Vec<Link>,
    /// All addresses, both families.
    pub addresses: Vec<Address>,
    /// The main routing table, both families.
    pub routes: Vec<Route>,
}

/// The operator's choice of uplinks (`--devices`): names, with `+` or `*` for any rest and `?` for one character;
/// with `!` in front, devices that are never used. Without any name to use, uplinks are detected.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceChoice {
    use_only: Vec<String>,
    never: Vec<String>,
}

/// A device that connects the node to the world.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uplink {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its Ethernet address.
    pub mac: Option<Mac>,
    /// Its MTU.
    pub mtu: u32,
    /// An IPv4 default route leads through it.
    pub default_v4: bool,
    /// An IPv6 default route leads through it.
    pub default_v6: bool,
    /// Its global addresses.
    pub addresses: Vec<IpAddr>,
}

/// What uplink detection found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uplinks {
    /// The uplinks, by index.
    pub used: Vec<Uplink>,
    /// All other devices, each with the reason.
    pub unused: Vec<(String, String)>,
    /// Names of the operator's choice that no usable device has.
    pub unmatched: Vec<String>,
}

/// An address of the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeAddress {
    /// The address.
    pub ip: IpAddr,
    /// Name of its device.
    pub device: String,
    /// The node is known to others by it: it is of an uplink, global and not deprecated.
    pub external: bool,
}

// === impl DeviceChoice ===

impl DeviceChoice {
    /// From a list as the option gives it.
    ///
    /// # Errors
    /// When an item is empty, or no device could ever have the name.
    pub fn new<'a>(items: impl IntoIterator<Item = &'a str>) -> Result<Self, NetError> {
        let mut choice = DeviceChoice::default();
        for item in items.into_iter().map(str::trim) {
            let (list, pattern) = match item.strip_prefix('!') {
                Some(rest) => (&mut choice.never, rest),
                None => (&mut choice.use_only, item),
            };
            if !crate::rtnl::is_device_name(pattern) {
                return Err(NetError::Invalid {
                    field: "devices",
                    reason: format!(
                        "`{item}` cannot match any device; give names such as eth0, eth+ or !eth1"
                    ),
                });
            }
            list.push(pattern.to_owned());
        }
        Ok(choice)
    }
}

// === impl NodeState ===

impl NodeState {
    /// Reads the state of the calling thread's namespace.
    ///
    /// # Errors
    /// When the kernel refuses a listing.
    pub fn read() -> Result<Self, NetError> {
        let mut host = Rtnl::open()?;
        Ok(NodeState { links: host.links()?, addresses: host.addresses()?, routes: host.routes()? })
    }

    /// Finds the uplinks.
    pub fn uplinks(&self, choice: &DeviceChoice) -> Uplinks {
        let mut found = Uplinks::default();
        for link in &self.links {
            match self.judge(link, choice) {
                Ok(()) => found.used.push(self.uplink(link)),
                Err(reason) => found.unused.push((link.name.clone(), reason)),
            }
        }
        let unmatched = choice.use_only.iter().filter(|p| !found.used.iter().any(|u| matches(p, &u.name)));
        found.unmatched = unmatched.cloned().collect();
        found
    }

    /// The node's usable addresses but those of endpoints' devices and loopback.
    pub fn node_addresses(&self, uplinks: &Uplinks) -> Vec<NodeAddress> {
        let mut addresses = Vec::new();
        for address in self.addresses.iter().filter(|a| !a.tentative && !a.ip().is_loopback()) {
            let Some(link) = self.links.iter().find(|link| link.index == address.device) else { continue };
            if is_endpoint_device(&link.name) {
                continue;
            }
            let on_uplink = uplinks.used.iter().any(|uplink| uplink.index == link.index);
            addresses.push(NodeAddress {
                ip: address.ip(),
                device: link.name.clone(),
                external: on_uplink && address.is_global() && !address.deprecated,
            });
        }
        addresses
    }

    /// The address of each family by which the node should be known: the source that its best default route gives,
    /// else the first external one.
    pub fn primary_address(&self, uplinks: &Uplinks, ipv4: bool) -> Option<IpAddr> {
        let external: Vec<_> = self
            .node_addresses(uplinks)
            .into_iter()
            .filter(|a| a.external && a.ip.is_ipv4() == ipv4)
            .collect();
        let mut defaults: Vec<_> =
            self.routes.iter().filter(|r| r.is_default() && is_ipv4(r) == ipv4).collect();
        defaults.sort_by_key(|route| route.metric);
        let of_route = |route: &&Route| {
            let source = route.source.filter(|source| external.iter().any(|address| address.ip == *source));
            let device = route.hops.first()?.device;
            let link = self.links.iter().find(|link| link.index == device)?;
            source.or_else(|| external.iter().find(|address| address.device == link.name).map(|a| a.ip))
        };
        defaults.iter().find_map(of_route).or_else(|| external.first().map(|address| address.ip))
    }

    fn uplink(&self, link: &Link) -> Uplink {
        Uplink {
            index: link.index,
            name: link.name.clone(),
            mac: link.mac,
            mtu: link.mtu,
            default_v4: self.has_default(link, true),
            default_v6: self.has_default(link, false),
            addresses: self.global_addresses(link).map(Address::ip).collect(),
        }
    }

    /// `Ok` for an uplink, else the reason why it is none.
    fn judge(&self, link: &Link, choice: &DeviceChoice) -> Result<(), String> {
        if choice.never.iter().any(|pattern| matches(pattern, &link.name)) {
            return Err("excluded by `devices`".into());
        }
        self.judge_kind(link)?;
        if !choice.use_only.is_empty() {
            let chosen = choice.use_only.iter().any(|pattern| matches(pattern, &link.name));
            return if chosen { Ok(()) } else { Err("not named in `devices`".into()) };
        }
        if !link.up {
            return Err("switched off".into());
        }
        let has_default = self.has_default(link, true) || self.has_default(link, false);
        match link.kind.as_deref() {
            _ if has_default => Ok(()),
            // What containers and virtual machines hang on has an address as well, but no way to the world.
            Some("veth") => Err("a container's veth: no default route leads through it".into()),
            Some(kind @ ("bridge" | "tun" | "ifb" | "dummy" | "openvswitch")) => {
                Err(format!("a {kind} through which no default route leads"))
            }
            _ if self.global_addresses(link).next().is_some() => Ok(()),
            _ => Err("no default route and no global address".into()),
        }
    }

    fn judge_kind(&self, link: &Link) -> Result<(), String> {
        if link.name == ROUTER_DEVICE || link.name == ROUTER_PEER || is_endpoint_device(&link.name) {
            return Err("Villus's own".into());
        }
        if link.loopback {
            return Err("loopback".into());
        }
        if let Some(master) = link.master {
            let kind = link.master_kind.as_deref().unwrap_or("master");
            let name = self.links.iter().find(|other| other.index == master).map_or("?", |other| &other.name);
            return Err(match kind {
                "bond" | "team" => format!("part of {kind} {name}, which is looked at instead"),
                _ => format!("part of {kind} {name}"),
            });
        }
        if !link.ethernet {
            let kind = link.kind.as_deref().unwrap_or("device");
            return Err(format!("a {kind} that does not speak Ethernet"));
        }
        match link.kind.as_deref() {
            Some(kind @ ("vxlan" | "geneve" | "gretap" | "ip6gretap" | "erspan")) => {
                Err(format!("a {kind} tunnel"))
            }
            _ => Ok(()),
        }
    }

    fn has_default(&self, link: &Link, ipv4: bool) -> bool {
        self.routes.iter().any(|route| route.is_default() && is_ipv4(route) == ipv4 && route.uses(link.index))
    }

    fn global_addresses(&self, link: &Link) -> impl Iterator<Item = &Address> {
        let index = link.index;
        self.addresses.iter().filter(move |address| address.device == index && address.is_global())
    }
}

fn is_ipv4(route: &Route) -> bool {
    route.destination.addr().is_ipv4()
}

/// Compares a name with a pattern in which `+` at the end and `*` stand for anything and `?` for one character.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    fn rest(pattern: &[u8], name: &[u8]) -> bool {
        match pattern.split_first() {
            None => name.is_empty(),
            Some((b'+', [])) => true,
            Some((b'*', after)) => (0..=name.len()).any(|skip| rest(after, &name[skip..])),
            Some((b'?', after)) => !name.is_empty() && rest(after, &name[1..]),
            Some((byte, after)) => name.first() == Some(byte) && rest(after, &name[1..]),
        }
    }
    rest(pattern.as_bytes(), name.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rtnl::NextHop;
    use proptest::prelude::*;

    fn device(index: u32, name: &str, kind: Option<&str>) -> Link {
        Link {
            index,
            name: name.into(),
            kind: kind.map(str::to_owned),
            mac: Some(Mac([2, 0, 0, 0, 0, index as u8])),
            mtu: 1500,
            up: true,
            carrier: true,
            ethernet: true,
            ..Link::default()
        }
    }

    fn with_address(device: u32, net: &str) -> Address {
        let net = net.parse().unwrap();
        Address { device, net, scope: 0, tentative: false, deprecated: false, dynamic: false }
    }

    fn default_route(device: u32, metric: u32) -> Route {
        Route { hops: vec![NextHop { device, gateway: None }], metric, ..Route::default() }
    }

    /// A server with about everything that a server can have.
    fn server() -> NodeState {
        let part_of =
            |link, master, kind: &str| Link { master: Some(master), master_kind: Some(kind.into()), ..link };
        NodeState {
            links: vec![
                Link { loopback: true, ethernet: false, ..device(1, "lo", None) },
                part_of(device(2, "eth0", None), 4, "bond"),
                part_of(device(3, "eth1", None), 4, "bond"),
                device(4, "bond0", Some("bond")),
                device(5, "bond0.100", Some("vlan")),
                device(6, "docker0", Some("bridge")),
                part_of(device(7, "veth12ab", Some("veth")), 6, "bridge"),
                Link { ethernet: false, ..device(8, "wg0", Some("wireguard")) },
                device(9, "lxc0123456789ab", Some("veth")),
                device(10, "villus_host", Some("veth")),
                device(11, "vnet0", Some("tun")),
                device(12, "flannel.1", Some("vxlan")),
                Link { up: false, ..device(13, "eth2", None) },
                device(14, "eth3", None),
                device(15, "lxcbr0", Some("bridge")),
                device(16, "br0", Some("bridge")),
                device(17, "vethx", Some("veth")),
            ],
            addresses: vec![
                with_address(4, "192.0.2.1/24"),
                with_address(5, "198.51.100.1/24"),
                with_address(6, "172.17.0.1/16"),
                with_address(8, "10.8.0.1/24"),
                with_address(10, "10.9.0.1/32"),
                with_address(12, "10.244.0.0/32"),
                with_address(15, "10.0.3.1/24"),
                with_address(17, "10.5.0.1/24"),
                Address { scope: 253, ..with_address(14, "fe80::1/64") },
            ],
            routes: vec![default_route(16, 100), default_route(4, 10)],
        }
    }

    #[test]
    fn uplinks_are_what_leads_to_the_world_and_every_other_device_has_its_reason() {
        let found = server().uplinks(&DeviceChoice::default());
        let used: Vec<_> = found.used.iter().map(|uplink| uplink.name.as_str()).collect();
        assert_eq!(used, ["bond0", "bond0.100", "br0"]);
        let reason =
            |name: &str| found.unused.iter().find(|(n, _)| n == name).map(|(_, reason)| reason.as_str());
        for (name, expected) in [
            ("lo", "loopback"),
            ("eth0", "part of bond bond0, which is looked at instead"),
            ("docker0", "a bridge through which no default route leads"),
            ("veth12ab", "part of bridge docker0"),
            ("wg0", "a wireguard that does not speak Ethernet"),
            ("lxc0123456789ab", "Villus's own"),
            ("villus_host", "Villus's own"),
            ("vnet0", "a tun through which no default route leads"),
            ("flannel.1", "a vxlan tunnel"),
            ("eth2", "switched off"),
            ("eth3", "no default route and no global address"),
            ("lxcbr0", "a bridge through which no default route leads"),
            ("vethx", "a container's veth: no default route leads through it"),
        ] {
            assert_eq!(reason(name), Some(expected), "{name}");
        }
        assert_eq!(found.used.len() + found.unused.len(), server().links.len());
    }

    #[test]
    fn the_operators_choice_overrides_but_not_what_cannot_work() {
        let choose = |items: &[&str]| {
            let found = server().uplinks(&DeviceChoice::new(items.iter().copied()).unwrap());
            (found.used.into_iter().map(|uplink| uplink.name).collect::<Vec<_>>(), found.unmatched)
        };
        let none = Vec::<String>::new();
        assert_eq!(choose(&["eth3"]), (vec!["eth3".into()], none.clone()));
        assert_eq!(choose(&["bond+"]), (vec!["bond0".into(), "bond0.100".into()], none.clone()));
        assert_eq!(choose(&["bond+", "!bond0.*"]), (vec!["bond0".into()], none.clone()));
        assert_eq!(choose(&["!br0"]), (vec!["bond0".into(), "bond0.100".into()], none.clone()));
        assert_eq!(choose(&["eth0", "br0"]), (vec!["br0".into()], vec!["eth0".into()]));
        assert!(DeviceChoice::new([""]).is_err() && DeviceChoice::new(["!"]).is_err());
        assert!(DeviceChoice::new(["a name"]).is_err());
    }

    #[test]
    fn the_primary_address_is_of_the_best_default_route() {
        let mut state = server();
        let uplinks = state.uplinks(&DeviceChoice::default());
        assert_eq!(state.primary_address(&uplinks, true), Some("192.0.2.1".parse().unwrap()));
        assert_eq!(state.primary_address(&uplinks, false), None);
        state.addresses.push(with_address(4, "192.0.2.9/24"));
        state.routes[1].source = Some("192.0.2.9".parse().unwrap());
        assert_eq!(state.primary_address(&uplinks, true), Some("192.0.2.9".parse().unwrap()));
        state.routes.clear();
        assert_eq!(state.primary_address(&uplinks, true), Some("192.0.2.1".parse().unwrap()));
    }

    #[test]
    fn node_addresses_leave_endpoints_and_unusable_ones_out() {
        let mut state = server();
        state.addresses.push(Address { tentative: true, ..with_address(4, "2001:db8::1/64") });
        state.addresses.push(Address { deprecated: true, ..with_address(4, "2001:db8::2/64") });
        state.addresses.push(with_address(9, "192.0.2.77/32"));
        let uplinks = state.uplinks(&DeviceChoice::default());
        let addresses = state.node_addresses(&uplinks);
        let external: Vec<_> = addresses.iter().filter(|a| a.external).map(|a| a.ip.to_string()).collect();
        assert_eq!(external, ["192.0.2.1", "198.51.100.1"]);
        assert!(addresses.iter().any(|a| a.ip.to_string() == "10.9.0.1" && !a.external));
        assert!(addresses.iter().any(|a| a.ip.to_string() == "2001:db8::2" && !a.external));
        assert!(
            !addresses.iter().any(|a| ["2001:db8::1", "192.0.2.77"].contains(&a.ip.to_string().as_str()))
        );
    }

    proptest! {
        #[test]
        fn any_pattern_and_name_compare(pattern in "[a-c+*?!]{0,8}", name in "[a-c]{0,15}") {
            let _ = matches(&pattern, &name);
            prop_assert!(matches("*", &name));
            prop_assert!(matches(&name, &name));
        }
    }
}
