//! An endpoint as the path sees it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use villus_abi::endpoint::{
    FLAG_ACTIVE, FLAG_AUDIT_DEFAULT_EGRESS, FLAG_AUDIT_DEFAULT_INGRESS, FLAG_AUDIT_EGRESS,
    FLAG_AUDIT_INGRESS, FLAG_CHECK_MAC, FLAG_DELIVER_DEVICE, FLAG_DELIVER_PEER, FLAG_DHCP,
};
use villus_net::Delivery;

use super::Endpoint;

impl Endpoint {
    /// Its record; `None` while it has no device.
    pub fn record(&self) -> Option<villus_abi::Endpoint> {
        if self.is_host() {
            return self.is_live().then(|| self.host_record());
        }
        let device = self.file.device.as_ref().filter(|_| self.is_live())?;
        // To whom it is to be sent is asked by the stack, until it is known.
        let delivery = match (device.mac(), device.delivery()) {
            (None, _) => 0,
            (Some(_), Delivery::Peer) => FLAG_DELIVER_PEER,
            (Some(_), Delivery::Device) => FLAG_DELIVER_DEVICE,
        };
        let flags = [(self.file.allow_dhcp, FLAG_DHCP), (!device.is_adopted(), FLAG_CHECK_MAC)];
        let mut record = villus_abi::Endpoint {
            id: self.file.id,
            flags: flags
                .iter()
                .filter(|(on, _)| *on)
                .fold(FLAG_ACTIVE | delivery | self.audit_flags(), |all, (_, flag)| all | flag),
            identity: self.file.identity,
            ifindex: device.index(),
            mtu: device.mtu(),
            mac: device.mac().unwrap_or_default().0,
            node_mac: device.host_mac().0,
            policy: u32::from(self.file.id),
            ..Default::default()
        };
        for address in self.file.addresses.iter().rev() {
            match address {
                IpAddr::V4(v4) => record.ipv4 = word_of(*v4),
                IpAddr::V6(v6) => record.ipv6 = words_of(*v6),
            }
        }
        self.shapes.store(&mut record);
        Some(record)
    }

    fn audit_flags(&self) -> u16 {
        let audit = self.audit();
        let flags = [
            (audit.ingress, FLAG_AUDIT_INGRESS),
            (audit.egress, FLAG_AUDIT_EGRESS),
            (self.audit_default[0], FLAG_AUDIT_DEFAULT_INGRESS),
            (self.audit_default[1], FLAG_AUDIT_DEFAULT_EGRESS),
        ];
        flags.iter().filter(|(on, _)| *on).fold(0, |all, (_, flag)| all | flag)
    }

    fn host_record(&self) -> villus_abi::Endpoint {
        let audit = self.audit_flags();
        let mut record = villus_abi::Endpoint {
            id: self.file.id,
            flags: FLAG_ACTIVE | audit,
            identity: self.file.identity,
            policy: u32::from(self.file.id),
            ..Default::default()
        };
        self.shapes.store(&mut record);
        record
    }
}

/// An IPv4 address as the maps hold it: network order.
pub(crate) fn word_of(address: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}

fn words_of(address: Ipv6Addr) -> [u32; 4] {
    let octets = address.octets();
    std::array::from_fn(|i| {
        u32::from_ne_bytes([octets[4 * i], octets[4 * i + 1], octets[4 * i + 2], octets[4 * i + 3]])
    })
}
