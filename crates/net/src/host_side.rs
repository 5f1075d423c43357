//! What the node itself must know of an endpoint: a route to each of its addresses and who is behind it, so that
//! the kernel's own stack reaches it without asking.

use std::net::IpAddr;

use crate::error::{Errors, NetError, missing_is_fine};
use crate::mac::Mac;
use crate::rtnl::{Link, Route, Rtnl};
use crate::sysctl::{Family, Sysctl};

/// Host routes and permanent neighbours of one endpoint on one device.
pub(crate) struct HostSide<'a> {
    device: u32,
    addresses: &'a [IpAddr],
    mac: Option<Mac>,
    sources: &'a [IpAddr],
}

// === impl HostSide ===

impl<'a> HostSide<'a> {
    /// `mac` is the workload's, for which the stack asks if it is not known; `sources` may hold one address of each family for the node's own connections.
    pub fn of_endpoint(
        device: &Link,
        addresses: &'a [IpAddr],
        mac: Option<Mac>,
        sources: &'a [IpAddr],
    ) -> Self {
        HostSide { device: device.index, addresses, mac, sources }
    }

    /// Installs all of it. The device must be up.
    pub fn install(&self, host: &mut Rtnl) -> Result<(), NetError> {
        for address in self.addresses {
            if let Some(mac) = self.mac {
                host.set_neighbour(self.device, *address, mac)?;
            }
            host.set_route(&self.route(*address))?;
        }
        Ok(())
    }

    /// Removes our routes and neighbours of this device that are of no address any more.
    pub fn prune(&self, host: &mut Rtnl) -> Result<(), NetError> {
        let stale = |address: &IpAddr| !self.addresses.contains(address);
        for route in host.routes()?.iter().filter(|route| route.is_ours() && route.uses(self.device)) {
            if stale(&route.destination.addr()) {
                missing_is_fine(host.delete_route(route))?;
            }
        }
        for neighbour in host.neighbours(self.device)?.iter().filter(|neighbour| neighbour.ours) {
            if stale(&neighbour.ip) {
                missing_is_fine(host.delete_neighbour(self.device, neighbour.ip))?;
            }
        }
        Ok(())
    }

    /// Removes all of it, past errors; what is not there is no error.
    pub fn remove(&self, host: &mut Rtnl) -> Errors {
        let mut errors = Errors::default();
        for address in self.addresses {
            errors.note(missing_is_fine(host.delete_route(&self.route(*address))));
            errors.note(missing_is_fine(host.delete_neighbour(self.device, *address)));
        }
        errors
    }

    fn route(&self, address: IpAddr) -> Route {
        let source = self.sources.iter().copied().find(|source| source.is_ipv4() == address.is_ipv4());
        Route { source, ..Route::to_host(address, self.device) }
    }
}

/// Puts back the routes and neighbours of an endpoint on its device: the kernel forgets them when the device is switched
/// off. Does nothing while it is. `sources` may hold one address of each family for the node's own connections.
///
/// # Errors
/// The step that failed.
pub fn restore_host_side(
    device: &Link,
    addresses: &[IpAddr],
    workload_mac: Option<Mac>,
    sources: &[IpAddr],
) -> Result<(), NetError> {
    if device.up {
        HostSide::of_endpoint(device, addresses, workload_mac, sources).install(&mut Rtnl::open()?)?;
    }
    Ok(())
}

/// Parameters of a host-side device of ours: the datapath checks sources itself, nobody speaks for others, and
/// nothing in the workload can change the node's routes. With `ipv6`, IPv6 is on even where new devices have it off.
pub(crate) fn set_parameters(device: &str, ipv6: bool) -> Result<(), NetError> {
    for parameter in ["rp_filter", "proxy_arp", "accept_redirects"] {
        Sysctl::of_device(Family::Ipv4, device, parameter).write_if_present("0")?;
    }
    if ipv6 {
        switch_ipv6_on(device)?;
    }
    for parameter in ["accept_ra", "accept_redirects", "proxy_ndp"] {
        Sysctl::of_device(Family::Ipv6, device, parameter).write_if_present("0")?;
    }
    Ok(())
}

/// Switches IPv6 on for a device of the calling thread's namespace.
pub(crate) fn switch_ipv6_on(device: &str) -> Result<(), NetError> {
    let disabled = Sysctl::of_device(Family::Ipv6, device, "disable_ipv6");
    match disabled.read_if_present()?.as_deref() {
        Some("1") => disabled.write("0"),
        _ => Ok(()),
    }
}
