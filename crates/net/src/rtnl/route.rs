//! Routes.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteNextHop,
    RouteProtocol, RouteScope, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::socket::family;
use super::{NODE_PROTOCOL, PROTOCOL, Rtnl};
use crate::error::NetError;

/// The table that holds ordinary routes.
const MAIN: u32 = RouteHeader::RT_TABLE_MAIN as u32;

/// IPv6 gives this metric to a route made with metric 0.
const IPV6_DEFAULT_METRIC: u32 = 1024;

/// What a route does with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RouteKind {
    /// Sends it on.
    #[default]
    Unicast,
    /// Answers that the host is unreachable.
    Unreachable,
    /// Drops it silently.
    Blackhole,
    /// Anything else, by its number in linux/rtnetlink.h.
    Other(u8),
}

/// Where a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextHop {
    /// Index of the device, 0 if none is named.
    pub device: u32,
    /// The router, unless the destination is on the link.
    pub gateway: Option<IpAddr>,
}

/// A route. The default describes one to everywhere over IPv4 through nothing: fill in what is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Destination prefix; `0.0.0.0/0` and `::/0` are default routes.
    pub destination: IpNet,
    /// What it does.
    pub kind: RouteKind,
    /// Where it leads; several for a multipath route, none for [`RouteKind::Unreachable`] and the like.
    pub hops: Vec<NextHop>,
    /// Source address that local processes get by default.
    pub source: Option<IpAddr>,
    /// Smaller wins.
    pub metric: u32,
    /// MTU of the route, where it differs from the device's.
    pub mtu: Option<u32>,
    /// The gateway is on the link though no address says so.
    pub onlink: bool,
    /// Routing table, 254 for the main one.
    pub table: u32,
    /// Who made it: 2 the kernel, 9 router advertisement, 16 DHCP, [`PROTOCOL`] and [`NODE_PROTOCOL`] Villus.
    pub protocol: u8,
}

// === impl Route ===

impl Default for Route {
    fn default() -> Self {
        Route {
            destination: IpNet::V4(ipnet::Ipv4Net::default()),
            kind: RouteKind::Unicast,
            hops: Vec::new(),
            source: None,
            metric: 0,
            mtu: None,
            onlink: false,
            table: MAIN,
            protocol: PROTOCOL,
        }
    }
}

impl Route {
    /// A route to a single address on the link of a device.
    pub fn to_host(ip: IpAddr, device: u32) -> Self {
        Route {
            destination: IpNet::from(ip),
            hops: vec![NextHop { device, gateway: None }],
            ..Route::default()
        }
    }

    /// A route to everywhere through a gateway that is on the link of a device.
    pub fn default_via(gateway: IpAddr, device: u32) -> Self {
        Route {
            destination: everywhere(gateway),
            hops: vec![NextHop { device, gateway: Some(gateway) }],
            onlink: true,
            ..Route::default()
        }
    }

    /// A route that makes a prefix unreachable as far as no longer prefix says otherwise.
    pub fn unreachable(destination: IpNet) -> Self {
        Route { destination, kind: RouteKind::Unreachable, ..Route::default() }
    }

    /// True for a route to everywhere.
    pub fn is_default(&self) -> bool {
        self.destination.prefix_len() == 0
    }

    /// True if Villus made it.
    pub fn is_ours(&self) -> bool {
        matches!(self.protocol, PROTOCOL | NODE_PROTOCOL)
    }

    /// True if it leads through this device.
    pub fn uses(&self, device: u32) -> bool {
        self.hops.iter().any(|hop| hop.device == device)
    }

    pub(crate) fn from_message(message: RouteMessage) -> Option<Self> {
        let header = message.header;
        let unspecified = match header.address_family {
            AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            _ => return None,
        };
        let mut destination = unspecified;
        let mut route = Route {
            kind: kind_of(header.kind),
            onlink: header.flags.contains(RouteFlags::Onlink),
            table: u32::from(header.table),
            protocol: header.protocol.into(),
            ..Route::default()
        };
        let mut hop = NextHop { device: 0, gateway: None };
        for attribute in message.attributes {
            match attribute {
                RouteAttribute::Destination(to) => destination = ip_of(to)?,
                RouteAttribute::Gateway(to) => hop.gateway = ip_of(to),
                RouteAttribute::Via(via) => hop.gateway = via_of(via),
                RouteAttribute::Oif(device) => hop.device = device,
                RouteAttribute::PrefSource(from) => route.source = ip_of(from),
                RouteAttribute::Priority(metric) => route.metric = metric,
                RouteAttribute::Table(table) => route.table = table,
                RouteAttribute::Metrics(metrics) => route.mtu = metrics.iter().find_map(mtu_of),
                RouteAttribute::MultiPath(hops) => route.hops.extend(hops.into_iter().map(next_hop_of)),
                _ => {}
            }
        }
        if hop.device != 0 && route.hops.is_empty() && route.kind == RouteKind::Unicast {
            route.hops.push(hop);
        }
        route.destination = IpNet::new(destination, header.destination_prefix_length).ok()?;
        Some(route)
    }

    fn to_message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        let header = &mut message.header;
        header.address_family = family(self.destination.addr());
        header.destination_prefix_length = self.destination.prefix_len();
        header.table = RouteHeader::RT_TABLE_UNSPEC;
        header.protocol = RouteProtocol::from(self.protocol);
        header.kind = kind_number(self.kind);
        let on_link = self.kind == RouteKind::Unicast && self.hops.iter().all(|hop| hop.gateway.is_none());
        header.scope = if on_link { RouteScope::Link } else { RouteScope::Universe };
        if self.onlink {
            header.flags = RouteFlags::Onlink;
        }
        let attributes = &mut message.attributes;
        attributes.push(RouteAttribute::Table(self.table));
        if !self.is_default() {
            attributes.push(RouteAttribute::Destination(self.destination.network().into()));
        }
        if let Some(hop) = self.hops.first() {
            attributes.push(RouteAttribute::Oif(hop.device));
            attributes.extend(hop.gateway.map(|gateway| RouteAttribute::Gateway(gateway.into())));
        }
        attributes.extend(self.source.map(|source| RouteAttribute::PrefSource(source.into())));
        attributes.extend(self.mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
        if self.metric != 0 {
            attributes.push(RouteAttribute::Priority(self.metric));
        }
        message
    }

    /// True if the kernel would take the other route for the same one when adding.
    fn same_key(&self, other: &Route) -> bool {
        let metric = |route: &Route| match (route.destination, route.metric) {
            (IpNet::V6(_), 0) => IPV6_DEFAULT_METRIC,
            (_, metric) => metric,
        };
        self.destination == other.destination && self.table == other.table && metric(self) == metric(other)
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            RouteKind::Unicast => {}
            RouteKind::Unreachable => f.write_str("unreachable ")?,
            RouteKind::Blackhole => f.write_str("blackhole ")?,
            RouteKind::Other(number) => write!(f, "type {number} ")?,
        }
        write!(f, "{}", self.destination)?;
        for hop in &self.hops {
            if let Some(gateway) = hop.gateway {
                write!(f, " via {gateway}")?;
            }
            write!(f, " device {}", hop.device)?;
        }
        write!(f, " protocol {}", self.protocol)
    }
}

// === impl Rtnl, routes ===

impl Rtnl {
    /// All routes of the main table, both families.
    ///
    /// # Errors
    /// When the kernel refuses the listing.
    pub fn routes(&mut self) -> Result<Vec<Route>, NetError> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            message.attributes.push(RouteAttribute::Table(MAIN));
            let answers = match self.dump(&RouteNetlinkMessage::GetRoute(message), || "list routes".into()) {
                // The family is not compiled in or switched off at boot.
                Err(error) if error.errno() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error()) => {
                    continue;
                }
                answers => answers?,
            };
            routes.extend(answers.into_iter().filter_map(|answer| match answer {
                RouteNetlinkMessage::NewRoute(route) => Route::from_message(route),
                _ => None,
            }));
        }
        routes.retain(|route| route.table == MAIN);
        Ok(routes)
    }

    /// Makes a route, or replaces ours to the same destination through the same device.
    ///
    /// # Errors
    /// [`NetError::ForeignRoute`] when somebody else's route is in its place, or ours through another device, as
    /// for an address that another endpoint has.
    pub fn set_route(&mut self, route: &Route) -> Result<(), NetError> {
        match self.add_route(route, NLM_F_EXCL) {
            Err(error) if error.exists() => {}
            done => return done,
        }
        let device = |hop: &NextHop| hop.device;
        let existing = self.routes()?.into_iter().find(|other| other.same_key(route));
        match existing {
            Some(other)
                if !other.is_ours() || other.hops.first().map(device) != route.hops.first().map(device) =>
            {
                Err(NetError::ForeignRoute {
                    destination: route.destination.to_string(),
                    existing: self.describe(&other),
                })
            }
            _ => self.add_route(route, NLM_F_REPLACE),
        }
    }

    fn describe(&mut self, route: &Route) -> String {
        let device = route.hops.first().map(|hop| hop.device);
        let name = device.and_then(|device| self.link_by_index(device).ok().flatten()).map(|link| link.name);
        name.map_or_else(|| route.to_string(), |name| format!("{route}, which is {name}"))
    }

    fn add_route(&mut self, route: &Route, flags: u16) -> Result<(), NetError> {
        let message = RouteNetlinkMessage::NewRoute(route.to_message());
        self.change(message, NLM_F_CREATE | flags, || format!("add route {route}"))
    }

    /// As [`Self::set_route`], but also through another device than that of ours which is there.
    ///
    /// # Errors
    /// [`NetError::ForeignRoute`] when somebody else's route is in its place.
    pub fn move_route(&mut self, route: &Route) -> Result<(), NetError> {
        match self.add_route(route, NLM_F_EXCL) {
            Err(error) if error.exists() => {}
            done => return done,
        }
        match self.routes()?.into_iter().find(|other| other.same_key(route)) {
            Some(other) if !other.is_ours() => Err(NetError::ForeignRoute {
                destination: route.destination.to_string(),
                existing: self.describe(&other),
            }),
            _ => self.add_route(route, NLM_F_REPLACE),
        }
    }

    /// The way that a packet to an address would take now; `None` where it could not leave.
    ///
    /// # Errors
    /// When the kernel's answer cannot be read.
    pub fn route_to(&mut self, ip: IpAddr) -> Result<Option<Route>, NetError> {
        self.look_up(ip, &[])
    }

    /// The way that a packet would take now that came in by a device from `src`; `None` where it could not leave.
    ///
    /// # Errors
    /// When the kernel's answer cannot be read.
    pub fn route_of(&mut self, src: IpAddr, device: u32, dst: IpAddr) -> Result<Option<Route>, NetError> {
        self.look_up(dst, &[RouteAttribute::Source(src.into()), RouteAttribute::Iif(device)])
    }

    fn look_up(&mut self, ip: IpAddr, more: &[RouteAttribute]) -> Result<Option<Route>, NetError> {
        let source = more.iter().any(|attribute| matches!(attribute, RouteAttribute::Source(_)));
        let mut message = RouteMessage::default();
        message.header.address_family = family(ip);
        message.header.destination_prefix_length = if ip.is_ipv4() { 32 } else { 128 };
        if source {
            message.header.source_prefix_length = message.header.destination_prefix_length;
        }
        message.attributes.push(RouteAttribute::Destination(ip.into()));
        message.attributes.extend_from_slice(more);
        match self.get(RouteNetlinkMessage::GetRoute(message), || format!("look up the route to {ip}")) {
            Ok(RouteNetlinkMessage::NewRoute(route)) => Ok(Route::from_message(route)),
            Ok(_) => Ok(None),
            Err(error @ NetError::Answer { .. }) => Err(error),
            Err(_) => Ok(None),
        }
    }

    /// Waits until the namespace takes packets to an address of its own. For IPv6 the kernel gets there some time
    /// after the address was added, even without duplicate address detection. Gives up quietly after a tenth of
    /// a second.
    ///
    /// # Errors
    /// When the kernel's answer cannot be read.
    pub fn wait_until_local(&mut self, ip: IpAddr) -> Result<(), NetError> {
        let end = Instant::now() + Duration::from_millis(100);
        while !self.is_local(ip)? && Instant::now() < end {
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    }

    fn is_local(&mut self, ip: IpAddr) -> Result<bool, NetError> {
        const LOCAL: u8 = 2;
        Ok(self.route_to(ip)?.is_some_and(|route| route.kind == RouteKind::Other(LOCAL)))
    }

    /// Removes a route.
    ///
    /// # Errors
    /// `ESRCH` when there is none.
    pub fn delete_route(&mut self, route: &Route) -> Result<(), NetError> {
        let message = RouteNetlinkMessage::DelRoute(route.to_message());
        self.change(message, 0, || format!("delete route {route}"))
    }
}

fn everywhere(like: IpAddr) -> IpNet {
    match like {
        IpAddr::V4(_) => IpNet::V4(ipnet::Ipv4Net::default()),
        IpAddr::V6(_) => IpNet::V6(ipnet::Ipv6Net::default()),
    }
}

fn ip_of(address: RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(v4.into()),
        RouteAddress::Inet6(v6) => Some(v6.into()),
        _ => None,
    }
}

fn via_of(via: RouteVia) -> Option<IpAddr> {
    match via {
        RouteVia::Inet(v4) => Some(v4.into()),
        RouteVia::Inet6(v6) => Some(v6.into()),
        _ => None,
    }
}

fn mtu_of(metric: &RouteMetric) -> Option<u32> {
    match metric {
        RouteMetric::Mtu(mtu) => Some(*mtu),
        _ => None,
    }
}

fn next_hop_of(hop: RouteNextHop) -> NextHop {
    let gateway = hop.attributes.into_iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(gateway) => ip_of(gateway),
        RouteAttribute::Via(via) => via_of(via),
        _ => None,
    });
    NextHop { device: hop.interface_index, gateway }
}

fn kind_of(kind: RouteType) -> RouteKind {
    match kind {
        RouteType::Unicast => RouteKind::Unicast,
        RouteType::Unreachable => RouteKind::Unreachable,
        RouteType::BlackHole => RouteKind::Blackhole,
        other => RouteKind::Other(other.into()),
    }
}

fn kind_number(kind: RouteKind) -> RouteType {
    match kind {
        RouteKind::Unicast => RouteType::Unicast,
        RouteKind::Unreachable => RouteType::Unreachable,
        RouteKind::Blackhole => RouteType::BlackHole,
        RouteKind::Other(number) => RouteType::from(number),
    }
}
