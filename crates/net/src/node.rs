//! The node itself: the router device, the pools' routes, forwarding and the parameters around it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Command;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::endpoint::has_ipv6;
use crate::error::{Errors, NetError, missing_is_fine};
use crate::host_side;
use crate::journal::{Change, Recorder};
use crate::mac::Mac;
use crate::rtnl::{Link, LinkChange, Route, RouteKind, Rtnl, VethPair};
use crate::sysctl::{Family, Sysctl};
use crate::tunnel::TUNNEL_DEVICE;

/// The device that holds the router addresses.
pub const ROUTER_DEVICE: &str = "villus_host";

/// Its other end, in the same namespace.
pub const ROUTER_PEER: &str = "villus_net";

const ROUTER_ALIAS: &str = "villus router";

/// How the node's network should be.
#[derive(Debug, Clone)]
pub struct NodeNetwork {
    /// The workloads' IPv4 gateway, an address of this node.
    pub router_v4: Option<Ipv4Addr>,
    /// The workloads' IPv6 gateway, an address of this node.
    pub router_v6: Option<Ipv6Addr>,
    /// The prefixes from which workloads get addresses; those not given to any are unreachable.
    pub pools: Vec<IpNet>,
    /// MTU of the router device.
    pub mtu: u32,
    /// Names of the uplinks: they go on heeding router advertisements if they did before.
    pub uplinks: Vec<String>,
    /// Where other parts of the system look for their configuration.
    pub system: SystemPaths,
}

/// Files of systemd that must know of our devices. The default is Debian's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemPaths {
    /// Exists where networkd runs.
    pub networkd_state: PathBuf,
    /// Where networkd looks for configuration that ends with a boot.
    pub networkd_dir: PathBuf,
    /// Exists where udev runs, which sets parameters of devices anew when they appear.
    pub udev_state: PathBuf,
    /// Where systemd-sysctl looks for configuration that ends with a boot.
    pub sysctl_dir: PathBuf,
    /// Tell networkd to read its files again when ours came or went.
    pub reload: bool,
}

/// The router device as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterDevice {
    /// Index of [`ROUTER_DEVICE`].
    pub index: u32,
    /// Its Ethernet address.
    pub mac: Mac,
    /// Index of [`ROUTER_PEER`].
    pub peer_index: u32,
    /// Its Ethernet address.
    pub peer_mac: Mac,
}

// === impl SystemPaths ===

impl Default for SystemPaths {
    fn default() -> Self {
        SystemPaths {
            networkd_state: "/run/systemd/netif/state".into(),
            networkd_dir: "/run/systemd/network".into(),
            udev_state: "/run/udev/control".into(),
            sysctl_dir: "/run/sysctl.d".into(),
            reload: true,
        }
    }
}

// === impl NodeNetwork ===

impl NodeNetwork {
    /// Makes the calling thread's namespace so, writing down each change before it is made. What is right already
    /// is not touched. After an error the journal holds what was done so far; apply again or restore.
    ///
    /// # Errors
    /// [`NetError::Invalid`] before anything is touched; else the step that failed.
    pub fn apply(&self, recorder: &mut Recorder<'_>) -> Result<RouterDevice, NetError> {
        self.check()?;
        let mut host = Rtnl::open()?;
        self.write_files(recorder)?;
        let router = self.router_device(&mut host, recorder)?;
        self.router_addresses(&mut host, router.index)?;
        self.pool_routes(&mut host, recorder)?;
        filter_per_device(&mut host, recorder)?;
        self.forward(&mut host, recorder)?;
        Ok(router)
    }

    fn check(&self) -> Result<(), NetError> {
        let invalid = |field, reason: String| Err(NetError::Invalid { field, reason });
        if !(1280..=65535).contains(&self.mtu) {
            return invalid("mtu", format!("{} is not between 1280 and 65535", self.mtu));
        }
        for pool in &self.pools {
            if pool.prefix_len() < 8 {
                return invalid("pool", format!("{pool} is too large; give a prefix of 8 bits or longer"));
            }
        }
        let needs = |v4: bool| self.pools.iter().any(|pool| pool.addr().is_ipv4() == v4);
        if needs(true) && self.router_v4.is_none() || needs(false) && self.router_v6.is_none() {
            return invalid("router", "each family with a pool needs a router address".into());
        }
        if self.router_v6.is_some() && !has_ipv6() {
            return invalid("router", "the kernel has no IPv6; set `enable-ipv6` to false".into());
        }
        Ok(())
    }

    /// The router's addresses, both families.
    pub fn router_ips(&self) -> Vec<IpAddr> {
        let v4 = self.router_v4.map(IpAddr::from);
        v4.into_iter().chain(self.router_v6.map(IpAddr::from)).collect()
    }

    fn write_files(&self, recorder: &mut Recorder<'_>) -> Result<(), NetError> {
        let system = &self.system;
        if system.networkd_state.exists() {
            let file = system.networkd_dir.join("00-villus.network");
            if recorder.write_file(&file, &networkd_file())? && system.reload {
                reload_networkd();
            }
        }
        if system.udev_state.exists() {
            recorder.write_file(&system.sysctl_dir.join("99-zz-villus.conf"), &sysctl_file())?;
        }
        Ok(())
    }

    fn router_device(&self, host: &mut Rtnl, recorder: &mut Recorder<'_>) -> Result<RouterDevice, NetError> {
        let (mac, peer_mac) = (Mac::from_seed(ROUTER_DEVICE), Mac::from_seed(ROUTER_PEER));
        if host.link_by_name(ROUTER_DEVICE)?.is_none() {
            recorder.note(Change::Link { name: ROUTER_DEVICE.into(), alias: ROUTER_ALIAS.into() })?;
            host.create_veth(&VethPair {
                name: ROUTER_DEVICE,
                mac,
                peer_name: ROUTER_PEER,
                peer_mac,
                peer_netns: None,
                mtu: self.mtu,
            })?;
        }
        let near = router_end(host, ROUTER_DEVICE, mac)?;
        let far = router_end(host, ROUTER_PEER, peer_mac)?;
        for link in [&near, &far] {
            let change = LinkChange {
                alias: (link.alias.as_deref() != Some(ROUTER_ALIAS)).then_some(ROUTER_ALIAS),
                no_link_local: has_ipv6(),
                mtu: (link.mtu != self.mtu).then_some(self.mtu),
                ..LinkChange::default()
            };
            host.change_link(link.index, &change)?;
            host_side::set_parameters(&link.name, self.router_v6.is_some())?;
            host.change_link(link.index, &LinkChange { up: Some(true), ..LinkChange::default() })?;
        }
        for link in [&near, &far] {
            host.wait_until_running(link.index)?;
        }
        Ok(RouterDevice { index: near.index, mac, peer_index: far.index, peer_mac })
    }

    /// The router's addresses and no others: the device is ours alone.
    fn router_addresses(&self, host: &mut Rtnl, device: u32) -> Result<(), NetError> {
        let wanted = self.router_ips();
        for address in host.addresses()?.into_iter().filter(|address| address.device == device) {
            if !wanted.contains(&address.ip()) {
                missing_is_fine(host.delete_address(device, address.net))?;
            }
        }
        for ip in wanted {
            host.add_address(device, IpNet::from(ip))?;
            host.wait_until_local(ip)?;
        }
        Ok(())
    }

    /// Addresses of a pool that no workload has are unreachable, and never leave through an uplink.
    fn pool_routes(&self, host: &mut Rtnl, recorder: &mut Recorder<'_>) -> Result<(), NetError> {
        for route in host.routes()? {
            let stale = route.is_ours()
                && route.kind == RouteKind::Unreachable
                && !self.pools.iter().any(|pool| pool.trunc() == route.destination);
            if stale {
                missing_is_fine(host.delete_route(&route))?;
                recorder.forget_route(route.destination);
            }
        }
        for pool in &self.pools {
            recorder.note(Change::Unreachable { destination: pool.trunc() })?;
            host.set_route(&Route::unreachable(pool.trunc()))?;
        }
        Ok(())
    }

    fn forward(&self, host: &mut Rtnl, recorder: &mut Recorder<'_>) -> Result<(), NetError> {
        if self.router_v4.is_some() {
            switch_forwarding_on(Family::Ipv4, host, recorder)?;
        }
        if self.router_v6.is_some() {
            // Before: the kernel throws away what it learned from them at the moment forwarding is switched on.
            heed_advertisements(&self.uplinks, recorder)?;
            switch_forwarding_on(Family::Ipv6, host, recorder)?;
        }
        Ok(())
    }
}

/// Lets uplinks that heed router advertisements go on with it though the node forwards: the kernel wants a 2 for that.
///
/// # Errors
/// The step that failed.
pub fn heed_advertisements(uplinks: &[String], recorder: &mut Recorder<'_>) -> Result<(), NetError> {
    for uplink in uplinks {
        let accept_ra = Sysctl::of_device(Family::Ipv6, uplink, "accept_ra");
        if accept_ra.read_if_present()?.as_deref() == Some("1") {
            recorder.set(accept_ra, "2")?;
        }
    }
    Ok(())
}

/// Removes from the calling thread's namespace all that carries Villus's mark, without a journal: devices of
/// endpoints, the router device, routes and neighbours. Goes on past errors and returns them all.
///
/// # Errors
/// All steps that failed.
pub fn remove_all_marked() -> Result<(), Errors> {
    let mut errors = Errors::default();
    let mut host = Rtnl::open().map_err(|error| Errors(vec![error]))?;
    let links = match host.links() {
        Ok(links) => links,
        Err(error) => return Err(Errors(vec![error])),
    };
    let ours = |link: &Link| link.alias.as_deref().is_some_and(|alias| alias.starts_with("villus "));
    for link in links.iter().filter(|link| ours(link)) {
        errors.note(missing_is_fine(host.delete_link(link.index)));
    }
    match host.routes() {
        Ok(routes) => {
            for route in routes.iter().filter(|route| route.is_ours()) {
                errors.note(missing_is_fine(host.delete_route(route)));
            }
        }
        Err(error) => errors.note(Err(error)),
    }
    for link in links.iter().filter(|link| !ours(link)) {
        match host.neighbours(link.index) {
            Ok(neighbours) => {
                for neighbour in neighbours.iter().filter(|neighbour| neighbour.ours) {
                    errors.note(missing_is_fine(host.delete_neighbour(link.index, neighbour.ip)));
                }
            }
            Err(error) => errors.note(Err(error)),
        }
    }
    errors.into_result()
}

fn router_end(host: &mut Rtnl, name: &str, mac: Mac) -> Result<Link, NetError> {
    let link = host.link_by_name(name)?;
    // Without the mark, but with the address that only we give: a crash came between making and marking.
    let ours = |link: &Link| {
        link.kind.as_deref() == Some("veth")
            && (link.alias.as_deref() == Some(ROUTER_ALIAS) || link.alias.is_none() && link.mac == Some(mac))
    };
    match link {
        Some(link) if ours(&link) => Ok(link),
        other => Err(NetError::NameTaken {
            device: name.to_owned(),
            namespace: "the node".into(),
            whose: if other.is_some() { "was not made by Villus" } else { "has lost its other end" }.into(),
            fix: format!("remove it with `ip link delete {ROUTER_DEVICE}` and start again"),
        }),
    }
}

/// Source filtering is the larger of `all` and the device's own value, so `all` keeps our devices from having none.
/// Its value moves to each device that exists and to those to come.
fn filter_per_device(host: &mut Rtnl, recorder: &mut Recorder<'_>) -> Result<(), NetError> {
    let key = |device: &str| Sysctl::of_device(Family::Ipv4, device, "rp_filter");
    let all = key("all").read()?;
    if all == "0" {
        return Ok(());
    }
    let names = host.links()?.into_iter().map(|link| link.name).filter(|name| !is_own_device(name));
    for device in names.chain(["default".to_owned()]) {
        // "0" < "1" (strict), but 2 (loose) counts as the larger in the kernel's eyes too.
        if key(&device).read_if_present()?.is_some_and(|own| own < all) {
            recorder.set(key(&device), &all)?;
        }
    }
    recorder.set(key("all"), "0")
}

fn switch_forwarding_on(
    family: Family,
    host: &mut Rtnl,
    recorder: &mut Recorder<'_>,
) -> Result<(), NetError> {
    let all = Sysctl::of_device(family, "all", "forwarding");
    if all.read()? == "1" {
        return Ok(());
    }
    let mut devices = vec!["default".to_owned()];
    devices.extend(host.links()?.into_iter().map(|link| link.name).filter(|name| !is_own_device(name)));
    let mut on = Vec::new();
    for device in devices {
        if Sysctl::of_device(family, &device, "forwarding").read_if_present()?.as_deref() == Some("1") {
            on.push(device);
        }
    }
    // Which the kernel switches off with it for IPv4, and on again.
    let redirects = match family {
        Family::Ipv4 => Sysctl::of_device(family, "all", "accept_redirects").read_if_present()?,
        Family::Ipv6 => None,
    };
    recorder.note(Change::Forwarding { family, devices: on, redirects })?;
    all.write("1")
}

fn is_own_device(name: &str) -> bool {
    name == ROUTER_DEVICE || name == ROUTER_PEER || name == TUNNEL_DEVICE || is_endpoint_device(name)
}

/// `lxc` and twelve hex digits; `lxcbr0` and the like are not ours.
pub(crate) fn is_endpoint_device(name: &str) -> bool {
    let digits = name.strip_prefix(crate::endpoint::HOST_PREFIX);
    digits.is_some_and(|digits| digits.len() == 12 && digits.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn endpoint_device_glob() -> String {
    format!("{}{}", crate::endpoint::HOST_PREFIX, "[0-9a-f]".repeat(12))
}

fn networkd_file() -> String {
    format!(
        "# Villus's own devices: networkd leaves them alone. `villus cleanup` removes this file.\n\
         [Match]\nName={} villus_*\nDriver=veth vxlan\n\n[Link]\nUnmanaged=yes\n",
        endpoint_device_glob()
    )
}

fn sysctl_file() -> String {
    format!(
        "# Villus checks the sources of its devices itself. `villus cleanup` removes this file.\n\
         -net.ipv4.conf.{}.rp_filter = 0\n-net.ipv4.conf.villus_*.rp_filter = 0\n",
        endpoint_device_glob()
    )
}

/// Best effort: without it networkd heeds the file from its next start.
fn reload_networkd() {
    if !Path::new("/usr/bin/networkctl").exists() {
        return;
    }
    match Command::new("/usr/bin/networkctl").arg("reload").output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => tracing::warn!(status = %output.status, "networkctl reload failed"),
        Err(error) => tracing::warn!(%error, "networkctl reload failed"),
    }
}
