//! Routes to the prefixes of other nodes.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::error::{NetError, missing_is_fine};
use crate::rtnl::{NODE_PROTOCOL, NextHop, Route, RouteKind, Rtnl};

/// Where endpoints of another node are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeHop {
    /// Index of the device.
    pub device: u32,
    /// The node's address on that device's network; `None` through a tunnel.
    pub gateway: Option<IpAddr>,
    /// Source that this node's own connections get.
    pub source: Option<IpAddr>,
    /// Largest packet, where that is not the device's.
    pub mtu: Option<u32>,
}

/// The routes to prefixes of other nodes that Villus has made, in the calling thread's namespace.
///
/// # Errors
/// When the kernel refuses the listing.
pub fn node_routes() -> Result<Vec<(IpNet, NodeHop)>, NetError> {
    let routes = Rtnl::open()?.routes()?;
    let ours = routes.into_iter().filter(|route| route.protocol == NODE_PROTOCOL);
    Ok(ours
        .map(|route| {
            let hop = route.hops.first().copied().unwrap_or(NextHop { device: 0, gateway: None });
            let (source, mtu) = (route.source, route.mtu);
            (route.destination, NodeHop { device: hop.device, gateway: hop.gateway, source, mtu })
        })
        .collect())
}

/// An IPv4 route to which somebody has given an MTU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NarrowRoute {
    /// Where it leads.
    pub destination: IpNet,
    /// Index of a device by which it does.
    pub device: u32,
    /// Largest packet.
    pub mtu: u32,
}

/// The IPv4 routes of the main table, in the calling thread's namespace, to which somebody has given an MTU; one for each device
/// of a route.
///
/// # Errors
/// When the kernel refuses the listing.
pub fn narrow_routes() -> Result<Vec<NarrowRoute>, NetError> {
    let routes = Rtnl::open()?.routes()?;
    let narrow = routes.into_iter().filter(|route| route.destination.addr().is_ipv4() && !route.is_ours());
    Ok(narrow
        .filter_map(|route| Some((route.mtu?, route)))
        .flat_map(|(mtu, route)| {
            let destination = route.destination;
            route.hops.into_iter().map(move |hop| NarrowRoute { destination, device: hop.device, mtu })
        })
        .collect())
}

/// Makes a route to a prefix of another node, or changes ours.
///
/// # Errors
/// [`NetError::ForeignRoute`] when somebody else's is in its place.
pub fn set_node_route(destination: IpNet, hop: &NodeHop) -> Result<(), NetError> {
    Rtnl::open()?.move_route(&route(destination, hop))
}

/// Removes a route that [`node_routes`] lists; that it is gone is no error.
///
/// # Errors
/// When the kernel refuses.
pub fn remove_node_route(destination: IpNet, hop: &NodeHop) -> Result<(), NetError> {
    missing_is_fine(Rtnl::open()?.delete_route(&route(destination, hop)))
}

/// The device by which an address is reached that is on a network of this node; `None` if it is behind a router, this
/// node's own, or nowhere.
///
/// # Errors
/// When the kernel's answer cannot be read.
pub fn device_on_link(ip: IpAddr) -> Result<Option<u32>, NetError> {
    let route = Rtnl::open()?.route_to(ip)?;
    Ok(route.filter(|route| route.kind == RouteKind::Unicast).and_then(|route| {
        let hop = route.hops.first()?;
        hop.gateway.is_none().then_some(hop.device)
    }))
}

/// The device by which a packet that a workload sends would leave this node now, with its name; `None` if it is for this node or
/// goes nowhere. Rules that ask for marks are not regarded.
///
/// # Errors
/// When the kernel's answer cannot be read.
pub fn device_towards(src: IpAddr, dst: IpAddr) -> Result<Option<(u32, String)>, NetError> {
    let mut host = Rtnl::open()?;
    let device = |route: Option<Route>| {
        let route = route.filter(|route| route.kind == RouteKind::Unicast)?;
        Some(route.hops.first()?.device)
    };
    let comes_by = device(host.route_to(src)?);
    let forwarded = match comes_by {
        Some(comes_by) => device(host.route_of(src, comes_by, dst)?),
        None => None,
    };
    let Some(device) = forwarded.or(device(host.route_to(dst)?)) else { return Ok(None) };
    Ok(host.link_by_index(device)?.map(|link| (device, link.name)))
}

fn route(destination: IpNet, hop: &NodeHop) -> Route {
    Route {
        destination: destination.trunc(),
        hops: vec![NextHop { device: hop.device, gateway: hop.gateway }],
        source: hop.source,
        mtu: hop.mtu,
        protocol: NODE_PROTOCOL,
        ..Route::default()
    }
}
