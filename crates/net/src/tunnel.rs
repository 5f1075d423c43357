//! The device of the tunnel between nodes.

use std::sync::Once;

use crate::endpoint::has_ipv6;
use crate::error::{NetError, missing_is_fine};
use crate::ethtool;
use crate::host_side;
use crate::journal::{Change, Recorder};
use crate::rtnl::{Link, LinkChange, Rtnl};

/// The VXLAN device of the tunnel between nodes.
pub const TUNNEL_DEVICE: &str = "villus_vxlan";

const TUNNEL_ALIAS: &str = "villus tunnel";

/// How much larger a packet is in VXLAN over IPv4: Ethernet, VXLAN, UDP and IPv4 headers, bytes.
pub const TUNNEL_OVERHEAD: u32 = 14 + 8 + 8 + 20;

/// How the tunnel's device should be. It neither learns nor asks who is where: programs on it say that of each packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// UDP port.
    pub port: u16,
    /// Largest packet that fits into it.
    pub mtu: u32,
}

// === impl Tunnel ===

impl Tunnel {
    /// Makes the device so in the calling thread's namespace, switched on and without generic receive offload of its own; what
    /// is right already is not touched. Returns its index. A kernel that leaves the offload on is warned of once.
    ///
    /// # Errors
    /// [`NetError::NameTaken`] for a device that is not ours, [`NetError::Refused`] when another device has the port.
    pub fn apply(&self, recorder: &mut Recorder<'_>) -> Result<u32, NetError> {
        let mut host = Rtnl::open()?;
        let mut there = host.link_by_name(TUNNEL_DEVICE)?;
        if let Some(link) = &there {
            own(link)?;
            // What a VXLAN device is made for does not change.
            if link.tunnel_port != Some(self.port) {
                missing_is_fine(host.delete_link(link.index))?;
                there = None;
            }
        }
        if there.is_none() {
            recorder.note(Change::Link { name: TUNNEL_DEVICE.into(), alias: TUNNEL_ALIAS.into() })?;
            host.create_tunnel(TUNNEL_DEVICE, self.port, self.mtu).map_err(|error| self.taken(error))?;
            there = host.link_by_name(TUNNEL_DEVICE)?;
        }
        let Some(link) = there else {
            return Err(NetError::NoDevice { device: TUNNEL_DEVICE.into(), namespace: "the node".into() });
        };
        let change = LinkChange {
            alias: (link.alias.as_deref() != Some(TUNNEL_ALIAS)).then_some(TUNNEL_ALIAS),
            mtu: (link.mtu != self.mtu).then_some(self.mtu),
            no_link_local: has_ipv6(),
            no_arp: true,
            ..LinkChange::default()
        };
        host.change_link(link.index, &change)?;
        host_side::set_parameters(TUNNEL_DEVICE, has_ipv6())?;
        receive_as_it_comes(link.index);
        let up = LinkChange { up: Some(true), ..LinkChange::default() };
        host.change_link(link.index, &up).map_err(|error| self.taken(error))?;
        host.wait_until_running(link.index)?;
        Ok(link.index)
    }

    fn taken(&self, error: NetError) -> NetError {
        let in_use = rustix::io::Errno::ADDRINUSE.raw_os_error();
        if !error.exists() && error.errno() != Some(in_use) {
            return error;
        }
        let reason = format!(
            "UDP port {} belongs to another tunnel or program already (`ip -d link show type vxlan`, `ss -lun`); choose \
             another `tunnel-port` on all nodes, or take that one away",
            self.port
        );
        NetError::Refused { device: TUNNEL_DEVICE.into(), reason }
    }
}

/// Switches generic receive offload off. The uplink's has put together what comes by the tunnel, for the outer headers carry no
/// sum that it would have to ask for first: a second one finds nothing more, and costs each packet a queue of its own.
fn receive_as_it_comes(device: u32) {
    static SAID: Once = Once::new();
    if let Err(error) = ethtool::switch_gro_off(device) {
        // It is only speed, and asked for again with each change of the node's network.
        SAID.call_once(
            || tracing::warn!(device = TUNNEL_DEVICE, %error, "the tunnel works, but receives more slowly"),
        );
    }
}

/// Removes the tunnel's device from the calling thread's namespace; says whether there was one of ours.
///
/// # Errors
/// When the kernel refuses.
pub fn remove_tunnel() -> Result<bool, NetError> {
    let mut host = Rtnl::open()?;
    match host.link_by_name(TUNNEL_DEVICE)? {
        Some(link) if own(&link).is_ok() => {
            missing_is_fine(host.delete_link(link.index))?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// Without the mark but of our name and kind: a crash came between making and marking.
fn own(link: &Link) -> Result<(), NetError> {
    let marked = link.alias.as_deref().is_none_or(|alias| alias == TUNNEL_ALIAS);
    if link.kind.as_deref() == Some("vxlan") && marked {
        return Ok(());
    }
    Err(NetError::NameTaken {
        device: TUNNEL_DEVICE.into(),
        namespace: "the node".into(),
        whose: "was not made by Villus".into(),
        fix: format!("remove it with `ip link delete {TUNNEL_DEVICE}` and start again"),
    })
}
