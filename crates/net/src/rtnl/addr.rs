//! Addresses of devices.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};

use super::Rtnl;
use super::socket::family;
use crate::error::NetError;

/// An address of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// Index of the device.
    pub device: u32,
    /// The address with the length of its network's prefix.
    pub net: IpNet,
    /// Scope number of linux/rtnetlink.h: 0 global, 253 link, 254 host.
    pub scope: u8,
    /// Its uniqueness is not yet proven, or was disproven: it cannot be used.
    pub tentative: bool,
    /// It should not be used for new connections.
    pub deprecated: bool,
    /// It was made by router advertisement or DHCP and will expire.
    pub dynamic: bool,
}

// === impl Address ===

impl Address {
    /// The address alone.
    pub fn ip(&self) -> IpAddr {
        self.net.addr()
    }

    /// True if it is meant for the whole net and may be used.
    pub fn is_global(&self) -> bool {
        self.scope < 253 && !self.tentative && !self.ip().is_loopback()
    }

    pub(crate) fn from_message(message: AddressMessage) -> Option<Self> {
        let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
        let (mut local, mut address) = (None, None);
        for attribute in message.attributes {
            match attribute {
                AddressAttribute::Local(ip) => local = Some(ip),
                AddressAttribute::Address(ip) => address = Some(ip),
                AddressAttribute::Flags(all) => flags = all,
                _ => {}
            }
        }
        // IFA_LOCAL is the device's own where the link has an address for the peer as well.
        Some(Address {
            device: message.header.index,
            net: IpNet::new(local.or(address)?, message.header.prefix_len).ok()?,
            scope: message.header.scope.into(),
            tentative: flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed)
                && !flags.contains(AddressFlags::Optimistic),
            deprecated: flags.contains(AddressFlags::Deprecated),
            dynamic: !flags.contains(AddressFlags::Permanent),
        })
    }
}

// === impl Rtnl, addresses ===

impl Rtnl {
    /// All addresses of the namespace, both families.
    ///
    /// # Errors
    /// When the kernel refuses the listing.
    pub fn addresses(&mut self) -> Result<Vec<Address>, NetError> {
        let message = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let answers = self.dump(&message, || "list addresses".into())?;
        let addresses = answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewAddress(address) => Address::from_message(address),
            _ => None,
        });
        Ok(addresses.collect())
    }

    /// Gives a device an address that is usable at once (no duplicate address detection). A single address (`/32`,
    /// `/128`) brings no route along, one with a shorter prefix that to its network. Does nothing if the device has it.
    ///
    /// # Errors
    /// `EACCES` when IPv6 is switched off on the device.
    pub fn add_address(&mut self, device: u32, net: IpNet) -> Result<(), NetError> {
        let mut message = address_message(device, net);
        let mut flags = AddressFlags::Nodad;
        flags.set(AddressFlags::Noprefixroute, net.prefix_len() == net.max_prefix_len());
        message.attributes.push(AddressAttribute::Flags(flags));
        self.change(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE, || {
            format!("add address {net} to device {device}")
        })
    }

    /// Takes an address from a device.
    ///
    /// # Errors
    /// `EADDRNOTAVAIL` when the device does not have it.
    pub fn delete_address(&mut self, device: u32, net: IpNet) -> Result<(), NetError> {
        let message = address_message(device, net);
        self.change(RouteNetlinkMessage::DelAddress(message), 0, || {
            format!("delete address {net} from device {device}")
        })
    }
}

fn address_message(device: u32, net: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(net.addr());
    message.header.prefix_len = net.prefix_len();
    message.header.index = device;
    if matches!(net.addr(), IpAddr::V6(ip) if ip.is_unicast_link_local()) {
        message.header.scope = AddressScope::Link;
    }
    message.attributes = vec![AddressAttribute::Local(net.addr()), AddressAttribute::Address(net.addr())];
    message
}
