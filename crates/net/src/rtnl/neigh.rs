//! Neighbours: the Ethernet addresses behind IP addresses.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteProtocol, RouteType};

use super::socket::family;
use super::{PROTOCOL, Rtnl};
use crate::error::{NetError, missing_is_fine};
use crate::mac::Mac;

/// An entry of a device's neighbour table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// Index of the device.
    pub device: u32,
    /// The neighbour's IP address.
    pub ip: IpAddr,
    /// Its Ethernet address, where known.
    pub mac: Option<Mac>,
    /// Set by hand: never asked for, never forgotten.
    pub permanent: bool,
    /// Made by Villus ([`PROTOCOL`]).
    pub ours: bool,
}

// === impl Neighbour ===

impl Neighbour {
    pub(crate) fn from_message(message: NeighbourMessage) -> Option<Self> {
        let (mut ip, mut mac, mut ours) = (None, None, false);
        for attribute in message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => ip = Some(IpAddr::V4(v4)),
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => ip = Some(IpAddr::V6(v6)),
                NeighbourAttribute::LinkLayerAddress(bytes) => mac = Mac::from_bytes(&bytes),
                NeighbourAttribute::Protocol(protocol) => ours = protocol == RouteProtocol::Other(PROTOCOL),
                _ => {}
            }
        }
        if message.header.flags.contains(NeighbourFlags::Proxy) {
            return None;
        }
        let permanent = message.header.state == NeighbourState::Permanent;
        Some(Neighbour { device: message.header.ifindex, ip: ip?, mac, permanent, ours })
    }
}

// === impl Rtnl, neighbours ===

impl Rtnl {
    /// All neighbours of a device.
    ///
    /// # Errors
    /// When the kernel refuses the listing.
    pub fn neighbours(&mut self, device: u32) -> Result<Vec<Neighbour>, NetError> {
        let message = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
        let answers = self.dump(&message, || "list neighbours".into())?;
        let neighbours = answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewNeighbour(neighbour) => Neighbour::from_message(neighbour),
            _ => None,
        });
        Ok(neighbours.filter(|neighbour| neighbour.device == device).collect())
    }

    /// Has the kernel find out whether neighbours of these devices that it has not heard of for a while are still who they were, as it
    /// does when its own stack sends to them; how many. What is sent past the stack it does not notice.
    ///
    /// # Errors
    /// When the kernel refuses. That a neighbour is gone meanwhile is none.
    pub fn confirm_neighbours(&mut self, devices: &[u32]) -> Result<usize, NetError> {
        let message = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
        let mut asked = 0;
        for answer in self.dump(&message, || "list neighbours".into())? {
            let RouteNetlinkMessage::NewNeighbour(stale) = answer else { continue };
            if stale.header.state != NeighbourState::Stale || !devices.contains(&stale.header.ifindex) {
                continue;
            }
            let Some(Neighbour { device, ip, .. }) = Neighbour::from_message(stale) else { continue };
            let mut message = neighbour_message(device, ip);
            message.header.flags = NeighbourFlags::Use;
            let message = RouteNetlinkMessage::NewNeighbour(message);
            missing_is_fine(self.change(message, 0, || format!("ask neighbour {ip} on device {device}")))?;
            asked += 1;
        }
        Ok(asked)
    }

    /// Makes or replaces a permanent neighbour.
    ///
    /// # Errors
    /// `ENODEV` when the device does not exist.
    pub fn set_neighbour(&mut self, device: u32, ip: IpAddr, mac: Mac) -> Result<(), NetError> {
        let mut message = neighbour_message(device, ip);
        message.header.state = NeighbourState::Permanent;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
        message.attributes.push(NeighbourAttribute::Protocol(RouteProtocol::Other(PROTOCOL)));
        self.change(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE, || {
            format!("set neighbour {ip} to {mac} on device {device}")
        })
    }

    /// Removes a neighbour.
    ///
    /// # Errors
    /// `ENOENT` when there is none.
    pub fn delete_neighbour(&mut self, device: u32, ip: IpAddr) -> Result<(), NetError> {
        let message = neighbour_message(device, ip);
        self.change(RouteNetlinkMessage::DelNeighbour(message), 0, || {
            format!("delete neighbour {ip} of device {device}")
        })
    }
}

fn neighbour_message(device: u32, ip: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(ip);
    message.header.ifindex = device;
    message.header.kind = RouteType::Unicast;
    message.attributes.push(NeighbourAttribute::Destination(match ip {
        IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
        IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
    }));
    message
}
