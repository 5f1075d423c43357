//! The veth pair of an endpoint: made, configured on both sides, removed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::delivery::Delivery;
use crate::error::{Errors, NetError, missing_is_fine};
use crate::host_side::{self, HostSide};
use crate::mac::{Mac, fnv1a};
use crate::netns::{Netns, NetnsId};
use crate::rtnl::{Link, LinkChange, Route, Rtnl, VethPair, is_device_name};
use crate::sysctl::{Family, Sysctl};

/// What the names of host-side devices begin with.
pub const HOST_PREFIX: &str = "lxc";

/// The usual name of the device inside a container.
pub const CONTAINER_DEVICE: &str = "eth0";

/// What the free text of a host-side device begins with; the owner follows. It tells ours from others'.
const ALIAS_PREFIX: &str = "villus endpoint ";

/// The least MTU with which the kernel does IPv6.
const LEAST_MTU: u32 = 1280;

/// An endpoint's link to be made.
#[derive(Debug)]
pub struct EndpointLinkSpec<'a> {
    /// Whose it is: a text that stays the same for the endpoint, such as a container id. At most 200 bytes.
    pub owner: &'a str,
    /// Name of the host-side device: see [`host_device_name`].
    pub host_name: &'a str,
    /// Ethernet address of the host side, which the workload knows as its gateway's.
    pub host_mac: Mac,
    /// The workload's namespace, not the caller's.
    pub netns: &'a Netns,
    /// Name of the device in there.
    pub container_name: &'a str,
    /// Its Ethernet address.
    pub container_mac: Mac,
    /// MTU of both devices, 1280 to 65535.
    pub mtu: u32,
    /// MTU of the workload's routes, where it must be less than the devices'.
    pub route_mtu: Option<u32>,
    /// The workload's addresses, any number of each family; the first of a family is its preferred source.
    pub addresses: &'a [IpAddr],
    /// The workload's IPv4 gateway; needed with IPv4 addresses. No need to be on any network of the workload.
    pub gateway_v4: Option<Ipv4Addr>,
    /// The workload's IPv6 gateway; needed with IPv6 addresses. If it is link-local, the host side gets it.
    pub gateway_v6: Option<Ipv6Addr>,
    /// Source addresses of the node's own connections to the workload: usually the router's. They must exist.
    pub host_sources: &'a [IpAddr],
}

/// An endpoint's link as it was made. Serialisable, for it is needed again to remove it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointLink {
    /// Whose it is.
    pub owner: String,
    /// Name of the host-side device.
    pub host_name: String,
    /// Index of the host-side device in the node's namespace.
    pub host_index: u32,
    /// Its Ethernet address.
    pub host_mac: Mac,
    /// The workload's namespace.
    pub netns: NetnsId,
    /// Name of the workload's device.
    pub container_name: String,
    /// Index of the workload's device, in its own namespace.
    pub container_index: u32,
    /// Its Ethernet address.
    pub container_mac: Mac,
    /// MTU of both devices.
    pub mtu: u32,
    /// The workload's addresses.
    pub addresses: Vec<IpAddr>,
    /// How it can be delivered to.
    pub delivery: Delivery,
}

/// The name of the host-side device of an endpoint: `lxc` and 12 hex digits made from its owner text. The same text
/// has the same name for ever.
pub fn host_device_name(owner: &str) -> String {
    let hash = fnv1a(owner.as_bytes());
    format!("{HOST_PREFIX}{:012x}", (hash ^ (hash >> 48)) & 0xffff_ffff_ffff)
}

/// Makes an endpoint's link, or brings one that exists already for the same owner, namespace and addresses to what
/// the request says. `prepare` is called when both devices exist with their addresses and before either can carry
/// a packet: the place to attach programs. It runs on the calling thread and may be called for a link that is up
/// already. On any error everything that was made is removed again.
///
/// # Errors
/// [`NetError::Invalid`] before anything is touched; [`NetError::NameTaken`] when a name is in use;
/// [`NetError::Prepare`] with what `prepare` returned; else the step that failed.
pub fn create_endpoint_link<E: std::fmt::Display>(
    spec: &EndpointLinkSpec<'_>,
    prepare: impl FnOnce(&EndpointLink) -> Result<(), E>,
) -> Result<EndpointLink, NetError> {
    spec.check()?;
    let mut host = Rtnl::open()?;
    let existing = existing_host_side(spec, &mut host)?;
    let mut created = false;
    let cause = match finish(spec, existing, &mut host, &mut created, prepare) {
        Ok(link) => return Ok(link),
        Err(cause) => cause,
    };
    match undo(spec, &mut host, created) {
        Ok(()) => Err(cause),
        Err(leftover) => {
            Err(NetError::NotUndone { cause: Box::new(cause), leftover: Errors(vec![leftover]) })
        }
    }
}

/// With the host-side device goes all that was made.
fn undo(spec: &EndpointLinkSpec<'_>, host: &mut Rtnl, created: bool) -> Result<(), NetError> {
    match host.link_by_name(spec.host_name)? {
        Some(link) if created => missing_is_fine(host.delete_link(link.index)),
        _ => Ok(()),
    }
}

/// Removes what [`create_endpoint_link`] made: devices, routes and neighbours. Goes on past errors and returns
/// them all. What is gone already is no error, nor is a dead namespace.
///
/// # Errors
/// All steps that failed. A device of that name that is not the endpoint's is left alone, which is an error too.
pub fn remove_endpoint_link(link: &EndpointLink) -> Result<(), Errors> {
    let mut errors = Errors::default();
    let mut host = Rtnl::open().map_err(|error| Errors(vec![error]))?;
    match host.link_by_name(&link.host_name) {
        Err(error) => errors.note(Err(error)),
        Ok(None) => {}
        Ok(Some(found)) if !is_of_owner(&found, &link.owner) => errors.note(Err(taken(&found, "the node"))),
        Ok(Some(found)) => {
            let side = HostSide::of_endpoint(&found, &link.addresses, Some(link.container_mac), &[]);
            errors.0.extend(side.remove(&mut host).0);
            errors.note(missing_is_fine(host.delete_link(found.index)));
        }
    }
    errors.into_result()
}

/// All host-side devices of the calling thread's namespace that carry Villus's mark, with their owners: those that
/// no endpoint claims any more are left over from a crash.
///
/// # Errors
/// When the devices cannot be listed.
pub fn endpoint_devices() -> Result<Vec<(Link, String)>, NetError> {
    let links = Rtnl::open()?.links()?.into_iter();
    Ok(links.filter_map(|link| owner_of(&link).map(str::to_owned).map(|owner| (link, owner))).collect())
}

// === impl EndpointLinkSpec ===

impl EndpointLinkSpec<'_> {
    fn check(&self) -> Result<(), NetError> {
        let invalid = |field, reason: String| Err(NetError::Invalid { field, reason });
        if self.owner.is_empty() || self.owner.len() > 200 || self.owner.contains('\0') {
            return invalid("owner", "must be 1 to 200 bytes of text".into());
        }
        for (field, name) in [("host device", self.host_name), ("container device", self.container_name)] {
            if !is_device_name(name) {
                let rule = "must be 1 to 15 bytes without spaces, `/` and `:`";
                return invalid(field, format!("`{name}` is not a device name; it {rule}"));
            }
        }
        for (field, mac) in [("host MAC", self.host_mac), ("container MAC", self.container_mac)] {
            if !mac.is_unicast() {
                return invalid(field, format!("{mac} is not the address of a single device"));
            }
        }
        if self.host_mac == self.container_mac {
            return invalid("container MAC", format!("{} is the host side's as well", self.host_mac));
        }
        if !(LEAST_MTU..=65535).contains(&self.mtu) {
            return invalid("mtu", format!("{} is not between {LEAST_MTU} and 65535", self.mtu));
        }
        if let Some(mtu) = self.route_mtu.filter(|mtu| !(LEAST_MTU..=self.mtu).contains(mtu)) {
            return invalid(
                "route mtu",
                format!("{mtu} is not between {LEAST_MTU} and the device's {}", self.mtu),
            );
        }
        self.check_addresses()?;
        if Netns::current()?.id() == self.netns.id() {
            return invalid("netns", format!("{} is the node's own namespace", self.netns.name()));
        }
        Ok(())
    }

    fn check_addresses(&self) -> Result<(), NetError> {
        let invalid = |reason: String| Err(NetError::Invalid { field: "addresses", reason });
        for (n, address) in self.addresses.iter().enumerate() {
            let unfit = match address {
                IpAddr::V4(v4) => {
                    v4.is_unspecified() || v4.is_multicast() || v4.is_broadcast() || v4.is_loopback()
                }
                IpAddr::V6(v6) => v6.is_unspecified() || v6.is_multicast() || v6.is_loopback(),
            };
            if unfit {
                return invalid(format!("{address} cannot be the address of a workload"));
            }
            if self.addresses[..n].contains(address) {
                return invalid(format!("{address} is given twice"));
            }
        }
        if self.addresses.iter().any(IpAddr::is_ipv4) && self.gateway_v4.is_none() {
            return invalid("there are IPv4 addresses but no IPv4 gateway".into());
        }
        if self.addresses.iter().any(IpAddr::is_ipv6) && self.gateway_v6.is_none() {
            return invalid("there are IPv6 addresses but no IPv6 gateway".into());
        }
        Ok(())
    }

    /// The gateways of the families that the workload has addresses of, each with the first of these.
    fn gateways(&self) -> Vec<(IpAddr, IpAddr)> {
        let first = |v4: bool| self.addresses.iter().copied().find(|address| address.is_ipv4() == v4);
        let v4 = self.gateway_v4.map(IpAddr::from).zip(first(true));
        let v6 = self.gateway_v6.map(IpAddr::from).zip(first(false));
        v4.into_iter().chain(v6).collect()
    }
}

// === making ===

fn finish<E: std::fmt::Display>(
    spec: &EndpointLinkSpec<'_>,
    existing: Option<Link>,
    host: &mut Rtnl,
    created: &mut bool,
    prepare: impl FnOnce(&EndpointLink) -> Result<(), E>,
) -> Result<EndpointLink, NetError> {
    let (container, mut inside) =
        spec.netns.run(|| container_side(spec, existing.as_ref(), host, created))??;
    let found = host.link_by_name(spec.host_name)?.ok_or_else(|| NetError::NoDevice {
        device: spec.host_name.to_owned(),
        namespace: "the node's namespace".into(),
    })?;
    let mut link = EndpointLink {
        owner: spec.owner.to_owned(),
        host_name: found.name.clone(),
        host_index: found.index,
        host_mac: spec.host_mac,
        netns: spec.netns.id(),
        container_name: container.name,
        container_index: container.index,
        container_mac: spec.container_mac,
        mtu: spec.mtu,
        addresses: spec.addresses.to_vec(),
        delivery: Delivery::of(&found),
    };
    mark(spec, &found, host)?;
    prepare(&link)
        .map_err(|error| NetError::Prepare { device: link.host_name.clone(), reason: error.to_string() })?;
    host.change_link(found.index, &LinkChange { up: Some(true), ..LinkChange::default() })?;
    if let Some(gateway) = spec.gateway_v6.filter(Ipv6Addr::is_unicast_link_local) {
        host.add_address(found.index, link_local_net(gateway)?)?;
    }
    let side = HostSide::of_endpoint(&found, spec.addresses, Some(spec.container_mac), spec.host_sources);
    if !*created {
        side.prune(host)?;
    }
    side.install(host)?;
    raise_loopback(&mut inside)?;
    inside.wait_until_running(link.container_index)?;
    spec.addresses.iter().try_for_each(|address| inside.wait_until_local(*address))?;
    if let Some(now) = host.wait_until_running(found.index)? {
        link.delivery = Delivery::of(&now);
    }
    Ok(link)
}

/// Marks the host side as ours and sets its parameters, before it is switched on.
fn mark(spec: &EndpointLinkSpec<'_>, device: &Link, host: &mut Rtnl) -> Result<(), NetError> {
    let alias = format!("{ALIAS_PREFIX}{}", spec.owner);
    let change = LinkChange {
        alias: (device.alias.as_ref() != Some(&alias)).then_some(&alias),
        mtu: (device.mtu != spec.mtu).then_some(spec.mtu),
        no_link_local: has_ipv6(),
        ..LinkChange::default()
    };
    host.change_link(device.index, &change)?;
    host_side::set_parameters(spec.host_name, spec.addresses.iter().any(IpAddr::is_ipv6))
}

/// Runs inside the workload's namespace; `host` still speaks to the node's.
fn container_side(
    spec: &EndpointLinkSpec<'_>,
    existing: Option<&Link>,
    host: &mut Rtnl,
    created: &mut bool,
) -> Result<(Link, Rtnl), NetError> {
    let mut inside = Rtnl::open()?;
    let present = inside.link_by_name(spec.container_name)?;
    let device = match (existing, present) {
        (None, None) => {
            create_pair(spec, host)?;
            *created = true;
            let made = inside.link_by_name(spec.container_name)?;
            made.ok_or_else(|| NetError::NoDevice {
                device: spec.container_name.to_owned(),
                namespace: spec.netns.name().to_string(),
            })?
        }
        (Some(host_side), Some(device)) if is_pair(host_side, &device, spec, host)? => device,
        (Some(host_side), None) => return Err(elsewhere(host_side, spec)),
        (_, Some(device)) => return Err(taken(&device, &spec.netns.name().to_string())),
    };
    configure_container(spec, &device, &mut inside)?;
    Ok((device, inside))
}

fn create_pair(spec: &EndpointLinkSpec<'_>, host: &mut Rtnl) -> Result<(), NetError> {
    host.create_veth(&VethPair {
        name: spec.host_name,
        mac: spec.host_mac,
        peer_name: spec.container_name,
        peer_mac: spec.container_mac,
        peer_netns: Some(spec.netns),
        mtu: spec.mtu,
    })
}

fn configure_container(
    spec: &EndpointLinkSpec<'_>,
    device: &Link,
    inside: &mut Rtnl,
) -> Result<(), NetError> {
    container_parameters(spec)?;
    inside.change_link(
        device.index,
        &LinkChange {
            up: Some(true),
            mtu: (device.mtu != spec.mtu).then_some(spec.mtu),
            mac: (device.mac != Some(spec.container_mac)).then_some(spec.container_mac),
            ..LinkChange::default()
        },
    )?;
    for address in spec.addresses {
        inside.add_address(device.index, IpNet::from(*address))?;
    }
    for (gateway, source) in spec.gateways() {
        inside.set_neighbour(device.index, gateway, spec.host_mac)?;
        let to_gateway = Route { source: Some(source), ..Route::to_host(gateway, device.index) };
        // Link-local gateways are reached without a route of their own.
        if !matches!(gateway, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
            inside.set_route(&to_gateway)?;
        }
        let out = Route::default_via(gateway, device.index);
        inside.set_route(&Route { source: Some(source), mtu: spec.route_mtu, ..out })?;
    }
    Ok(())
}

/// The last step, so that it need not be undone.
fn raise_loopback(inside: &mut Rtnl) -> Result<(), NetError> {
    match inside.link_by_name("lo")? {
        Some(link) if !link.up => {
            inside.change_link(link.index, &LinkChange { up: Some(true), ..LinkChange::default() })
        }
        _ => Ok(()),
    }
}

/// Inside the workload's namespace, before its device is switched on: no waiting for duplicate addresses, no
/// routes from advertisements, and IPv6 on even where the runtime switched it off by default.
fn container_parameters(spec: &EndpointLinkSpec<'_>) -> Result<(), NetError> {
    let name = spec.container_name;
    Sysctl::of_device(Family::Ipv4, name, "rp_filter").write_if_present("0")?;
    for parameter in ["accept_dad", "accept_ra"] {
        Sysctl::of_device(Family::Ipv6, name, parameter).write_if_present("0")?;
    }
    if spec.addresses.iter().any(IpAddr::is_ipv6) {
        host_side::switch_ipv6_on("lo")?;
        host_side::switch_ipv6_on(name)?;
    }
    Ok(())
}

/// Indices alone may be equal by chance, in different namespaces.
fn is_pair(
    host_side: &Link,
    device: &Link,
    spec: &EndpointLinkSpec<'_>,
    host: &mut Rtnl,
) -> Result<bool, NetError> {
    Ok(host_side.lower == Some(device.index) && host_side.lower_netns == host.netns_number(spec.netns)?)
}

fn existing_host_side(spec: &EndpointLinkSpec<'_>, host: &mut Rtnl) -> Result<Option<Link>, NetError> {
    let Some(link) = host.link_by_name(spec.host_name)? else { return Ok(None) };
    // Without a mark it is what a crash between making and marking left.
    let ours = is_of_owner(&link, spec.owner) || link.alias.is_none();
    if !ours || link.kind.as_deref() != Some("veth") || link.mac != Some(spec.host_mac) {
        return Err(taken(&link, "the node"));
    }
    Ok(Some(link))
}

fn owner_of(link: &Link) -> Option<&str> {
    link.alias.as_deref()?.strip_prefix(ALIAS_PREFIX)
}

fn is_of_owner(link: &Link, owner: &str) -> bool {
    owner_of(link) == Some(owner)
}

fn taken(link: &Link, namespace: &str) -> NetError {
    let whose = match (owner_of(link), link.kind.as_deref()) {
        (Some(owner), _) => format!("belongs to endpoint {owner}"),
        (None, Some(kind)) => format!("is somebody else's {kind} device"),
        (None, None) => "is somebody else's device".into(),
    };
    let fix = match owner_of(link) {
        Some(_) => "delete that endpoint first, or choose another name".into(),
        None => format!(
            "remove it with `ip link delete {}` if nobody needs it, or choose another name",
            link.name
        ),
    };
    NetError::NameTaken { device: link.name.clone(), namespace: namespace.to_owned(), whose, fix }
}

fn elsewhere(link: &Link, spec: &EndpointLinkSpec<'_>) -> NetError {
    NetError::NameTaken {
        device: link.name.clone(),
        namespace: "the node".into(),
        whose: format!("its other end is not {} in {}", spec.container_name, spec.netns.name()),
        fix: "delete the endpoint and create it again".into(),
    }
}

fn link_local_net(gateway: Ipv6Addr) -> Result<IpNet, NetError> {
    IpNet::new(gateway.into(), 64)
        .map_err(|error| NetError::Invalid { field: "IPv6 gateway", reason: error.to_string() })
}

pub(crate) fn has_ipv6() -> bool {
    std::path::Path::new("/proc/sys/net/ipv6").exists()
}
