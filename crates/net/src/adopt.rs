//! Endpoints on devices that somebody else made: a tap of a virtual machine, a veth of another runtime.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::delivery::Delivery;
use crate::error::{Errors, NetError, missing_is_fine};
use crate::host_side::HostSide;
use crate::mac::Mac;
use crate::rtnl::{Link, Rtnl};

/// A device to be adopted, in the calling thread's namespace.
#[derive(Debug, Clone)]
pub struct AdoptSpec<'a> {
    /// Name of the device.
    pub device: &'a str,
    /// Whose it becomes.
    pub owner: &'a str,
    /// The workload's addresses.
    pub addresses: &'a [IpAddr],
    /// The workload's Ethernet address. Without it the other end of a veth is asked, and what is behind a tap says it when
    /// the node first sends to it: [`learn_workload_mac`].
    pub workload_mac: Option<Mac>,
    /// Source addresses of the node's own connections to the workload. They must exist.
    pub host_sources: &'a [IpAddr],
}

/// An adopted device. Serialisable, for it is needed again to let go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdoptedLink {
    /// Whose it is.
    pub owner: String,
    /// Name of the device.
    pub device: String,
    /// Its index.
    pub index: u32,
    /// Its own Ethernet address.
    pub host_mac: Mac,
    /// The workload's; none until it is learned.
    pub workload_mac: Option<Mac>,
    /// Nobody gave the workload's: the device or the workload itself said it.
    #[serde(default)]
    pub learned: bool,
    /// Index of the other end in its namespace, for a veth.
    pub peer_index: Option<u32>,
    /// Its MTU.
    pub mtu: u32,
    /// The workload's addresses.
    pub addresses: Vec<IpAddr>,
    /// How it can be delivered to.
    pub delivery: Delivery,
}

/// Adopts a device: installs the routes to the workload's addresses and its neighbour entries, nothing else.
/// `taken` tells which devices (by index) are some endpoint's already; adopting again for the same owner is fine.
///
/// # Errors
/// [`NetError::NoDevice`]; [`NetError::Refused`] with the reason; else the step that failed, with nothing left.
pub fn adopt_interface(spec: &AdoptSpec<'_>, taken: &BTreeMap<u32, String>) -> Result<AdoptedLink, NetError> {
    let mut host = Rtnl::open()?;
    let (link, host_mac, workload_mac) = fit(spec, taken, &mut host)?;
    let side = HostSide::of_endpoint(&link, spec.addresses, workload_mac, spec.host_sources);
    if let Err(cause) = side.install(&mut host) {
        return Err(match side.remove(&mut host).into_result() {
            Ok(()) => cause,
            Err(leftover) => NetError::NotUndone { cause: Box::new(cause), leftover },
        });
    }
    Ok(AdoptedLink {
        owner: spec.owner.to_owned(),
        index: link.index,
        host_mac,
        workload_mac,
        learned: spec.workload_mac.is_none(),
        peer_index: link.lower.filter(|_| link.kind.as_deref() == Some("veth")),
        mtu: link.mtu,
        addresses: spec.addresses.to_vec(),
        delivery: Delivery::of(&link),
        device: link.name,
    })
}

/// Whether [`adopt_interface`] would take the device as it is now. Nothing is changed.
///
/// # Errors
/// Why it would not.
pub fn check_adoptable(spec: &AdoptSpec<'_>, taken: &BTreeMap<u32, String>) -> Result<(), NetError> {
    fit(spec, taken, &mut Rtnl::open()?).map(drop)
}

/// The device, its Ethernet address, and the workload's if it is known.
fn fit(
    spec: &AdoptSpec<'_>,
    taken: &BTreeMap<u32, String>,
    host: &mut Rtnl,
) -> Result<(Link, Mac, Option<Mac>), NetError> {
    let link = host.link_by_name(spec.device)?.ok_or_else(|| NetError::NoDevice {
        device: spec.device.to_owned(),
        namespace: "the node's namespace".into(),
    })?;
    let refused = |reason: String| NetError::Refused { device: spec.device.to_owned(), reason };
    if let Some(reason) = why_unfit(&link, spec, taken, host)? {
        return Err(refused(reason));
    }
    let host_mac = link.mac.ok_or_else(|| refused("it has no Ethernet address".into()))?;
    let workload_mac = workload_mac(&link, spec, host)?;
    if let Some(mac) = workload_mac.filter(|mac| !mac.is_unicast()) {
        return Err(refused(format!("{mac} is not the address of a single device")));
    }
    Ok((link, host_mac, workload_mac))
}

/// Lets go of an adopted device: removes our routes and neighbours and leaves the rest as it is. Goes on past errors
/// and returns them all; a device that is gone is no error.
///
/// # Errors
/// All steps that failed.
pub fn release_interface(adopted: &AdoptedLink) -> Result<(), Errors> {
    let mut host = Rtnl::open().map_err(|error| Errors(vec![error]))?;
    match host.link_by_index(adopted.index) {
        Err(error) => Err(Errors(vec![error])),
        Ok(Some(link)) if link.name == adopted.device || link.mac == Some(adopted.host_mac) => {
            HostSide::of_endpoint(&link, &adopted.addresses, adopted.workload_mac, &[])
                .remove(&mut host)
                .into_result()
        }
        Ok(_) => Ok(()),
    }
}

/// The workload's Ethernet address, where nobody has given it: that of a veth's other end, or what the workload has said
/// when the node's stack asked for it, as it does when it first sends to one of the workload's addresses. `None` until then.
///
/// # Errors
/// When the kernel refuses the listing.
pub fn learn_workload_mac(adopted: &AdoptedLink) -> Result<Option<Mac>, NetError> {
    let mut host = Rtnl::open()?;
    if let Some(link) = host.link_by_index(adopted.index)?
        && let Some(mac) = other_end(&link, &mut host)?
    {
        return Ok(Some(mac));
    }
    let neighbours = host.neighbours(adopted.index)?;
    let said = neighbours.iter().filter(|n| !n.ours && adopted.addresses.contains(&n.ip));
    Ok(said.filter_map(|neighbour| neighbour.mac).find(|mac| mac.is_unicast()))
}

/// Forgets the workload's Ethernet address on the node, so that its stack asks again.
///
/// # Errors
/// The step that failed; what is not there is no error.
pub fn forget_workload_mac(adopted: &AdoptedLink) -> Result<(), NetError> {
    let mut host = Rtnl::open()?;
    for address in &adopted.addresses {
        missing_is_fine(host.delete_neighbour(adopted.index, *address))?;
    }
    Ok(())
}

/// Why a device cannot be an endpoint's, if so.
fn why_unfit(
    link: &Link,
    spec: &AdoptSpec<'_>,
    taken: &BTreeMap<u32, String>,
    host: &mut Rtnl,
) -> Result<Option<String>, NetError> {
    if let Some(owner) = taken.get(&link.index).filter(|owner| *owner != spec.owner) {
        return Ok(Some(format!(
            "it belongs to endpoint {owner}; `villus endpoint delete {owner}` sets it free"
        )));
    }
    if link.loopback || !link.ethernet {
        return Ok(Some("it does not speak Ethernet; a tap or veth is needed".into()));
    }
    if let Some(master) = link.master {
        let master = host.link_by_index(master)?.map_or_else(|| format!("device {master}"), |link| link.name);
        let kind = link.master_kind.as_deref().unwrap_or("master");
        return Ok(Some(format!(
            "it is part of {kind} {master}, which would take its packets; take it out with `ip link set {} nomaster`",
            link.name
        )));
    }
    if let Some(kind @ ("bridge" | "bond" | "team" | "vrf" | "vlan" | "vxlan" | "geneve")) =
        link.kind.as_deref()
    {
        return Ok(Some(format!("it is a {kind}, not the device of one workload")));
    }
    if !link.up {
        return Ok(Some(format!("it is switched off; do `ip link set {} up` first", link.name)));
    }
    if let Some(address) = host.addresses()?.into_iter().find(|a| a.device == link.index && a.is_global()) {
        return Ok(Some(format!("the node itself uses it, with address {}", address.net)));
    }
    if host.routes()?.iter().any(|route| route.is_default() && route.uses(link.index)) {
        return Ok(Some("the node's default route leads through it".into()));
    }
    Ok(None)
}

fn workload_mac(link: &Link, spec: &AdoptSpec<'_>, host: &mut Rtnl) -> Result<Option<Mac>, NetError> {
    match spec.workload_mac {
        Some(mac) => Ok(Some(mac)),
        None => other_end(link, host),
    }
}

/// The Ethernet address of a veth's other end, in whichever namespace it is.
fn other_end(link: &Link, host: &mut Rtnl) -> Result<Option<Mac>, NetError> {
    let peer = match (link.lower, link.lower_netns) {
        _ if link.kind.as_deref() != Some("veth") => None,
        (Some(index), Some(netns)) => host.link_in_netns(netns, index)?,
        (Some(index), None) => host.link_by_index(index)?,
        (None, _) => None,
    };
    Ok(peer.and_then(|peer| peer.mac))
}
