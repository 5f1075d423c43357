//! Devices.

use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, InfoVxlan, LinkAttribute,
    LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};

use super::Rtnl;
use crate::error::NetError;
use crate::mac::Mac;
use crate::netns::Netns;

/// `ARPHRD_ETHER` of linux/if_arp.h.
const ARPHRD_ETHER: u16 = 1;

/// A device as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Link {
    /// Interface index, unique in its namespace.
    pub index: u32,
    /// Name.
    pub name: String,
    /// The driver's name for virtual devices (`veth`, `bond`, `vlan`, `tun`, …); `None` for hardware.
    pub kind: Option<String>,
    /// Ethernet address, if it is an Ethernet device.
    pub mac: Option<Mac>,
    /// Largest packet in bytes, without the link header.
    pub mtu: u32,
    /// Switched on.
    pub up: bool,
    /// Has a carrier. For a veth: both ends are switched on.
    pub carrier: bool,
    /// Takes packets: has a carrier, and the kernel has finished putting it to use.
    pub running: bool,
    /// The loopback device.
    pub loopback: bool,
    /// Speaks Ethernet (frames with MAC addresses).
    pub ethernet: bool,
    /// The bridge, bond, team or VRF it is part of.
    pub master: Option<u32>,
    /// What kind of thing `master` is: `bridge`, `bond`, ….
    pub master_kind: Option<String>,
    /// The other end of a veth, or the device below a VLAN, macvlan and the like.
    pub lower: Option<u32>,
    /// Local number of the namespace in which `lower` lives, if it is another one than this device's.
    pub lower_netns: Option<i32>,
    /// UDP port of a VXLAN device whose packets say for themselves where they go.
    pub tunnel_port: Option<u16>,
    /// Free text of the operator or of whoever made it; Villus marks its own here.
    pub alias: Option<String>,
}

/// Both ends of a veth pair to be made, switched off.
#[derive(Debug, Clone)]
pub struct VethPair<'a> {
    /// Name of the end in the namespace of the connection.
    pub name: &'a str,
    /// Its address.
    pub mac: Mac,
    /// Name of the other end.
    pub peer_name: &'a str,
    /// Its address.
    pub peer_mac: Mac,
    /// Where the other end is made; `None` for the same namespace.
    pub peer_netns: Option<&'a Netns>,
    /// MTU of both.
    pub mtu: u32,
}

/// Changes to a device, all made by one request. Default: none.
#[derive(Debug, Clone, Default)]
pub struct LinkChange<'a> {
    /// Switch on or off.
    pub up: Option<bool>,
    /// Set the free text.
    pub alias: Option<&'a str>,
    /// Set the MTU.
    pub mtu: Option<u32>,
    /// Set the Ethernet address.
    pub mac: Option<Mac>,
    /// Give the device no IPv6 link-local address by itself.
    pub no_link_local: bool,
    /// Ask nobody for the Ethernet addresses of neighbours.
    pub no_arp: bool,
}

// === impl Link ===

impl Link {
    /// True for a veth whose other end is in another namespace.
    pub fn is_veth_to_other_netns(&self) -> bool {
        self.kind.as_deref() == Some("veth") && self.lower_netns.is_some()
    }

    pub(crate) fn from_message(message: LinkMessage) -> Self {
        let flags = message.header.flags;
        let mut link = Link {
            index: message.header.index,
            up: flags.contains(LinkFlags::Up),
            carrier: flags.contains(LinkFlags::LowerUp),
            running: flags.contains(LinkFlags::Running),
            loopback: flags.contains(LinkFlags::Loopback),
            ethernet: u16::from(message.header.link_layer_type) == ARPHRD_ETHER,
            ..Link::default()
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Address(bytes) => link.mac = Mac::from_bytes(&bytes),
                LinkAttribute::Controller(index) => link.master = Some(index),
                LinkAttribute::Link(index) if index != 0 => link.lower = Some(index),
                LinkAttribute::LinkNetNsId(id) => link.lower_netns = Some(id),
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
                LinkAttribute::LinkInfo(infos) => link.take_kinds(infos),
                _ => {}
            }
        }
        if !link.ethernet {
            link.mac = None;
        }
        link
    }

    fn take_kinds(&mut self, infos: Vec<LinkInfo>) {
        for info in infos {
            match info {
                LinkInfo::Data(InfoData::Vxlan(settings))
                    if settings.contains(&InfoVxlan::CollectMetadata(true)) =>
                {
                    self.tunnel_port = settings.iter().find_map(|setting| match setting {
                        InfoVxlan::Port(port) => Some(*port),
                        _ => None,
                    });
                }
                LinkInfo::Kind(kind) => self.kind = Some(kind.to_string()),
                LinkInfo::PortKind(kind) => self.master_kind = Some(kind.to_string()),
                _ => {}
            }
        }
    }
}

// === impl Rtnl, links ===

impl Rtnl {
    /// All devices of the namespace, by index.
    ///
    /// # Errors
    /// When the kernel refuses the listing.
    pub fn links(&mut self) -> Result<Vec<Link>, NetError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        let answers = self.dump(&RouteNetlinkMessage::GetLink(message), || "list devices".into())?;
        let links = answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(link) => Some(Link::from_message(link)),
            _ => None,
        });
        Ok(links.collect())
    }

    /// The device of this name, if there is one.
    ///
    /// # Errors
    /// When the kernel refuses for another reason than its absence.
    pub fn link_by_name(&mut self, name: &str) -> Result<Option<Link>, NetError> {
        if !is_device_name(name) {
            return Ok(None);
        }
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.link(message, || format!("look up device {name}"))
    }

    /// The device of this index, if there is one.
    ///
    /// # Errors
    /// When the kernel refuses for another reason than its absence.
    pub fn link_by_index(&mut self, index: u32) -> Result<Option<Link>, NetError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.link(message, || format!("look up device {index}"))
    }

    /// The device of this index in a namespace that this one knows by a local number, such as the other end of a
    /// veth ([`Link::lower`] and [`Link::lower_netns`]).
    ///
    /// # Errors
    /// When the kernel refuses for another reason than its absence.
    pub fn link_in_netns(&mut self, netns: i32, index: u32) -> Result<Option<Link>, NetError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::IfNetnsId(netns));
        self.link(message, || format!("look up device {index} in namespace number {netns}"))
    }

    /// Waits until a device that was just given its carrier takes packets: until then the kernel drops what is sent
    /// through it. Kernels from 6.8 see to it when asked; others take some milliseconds. Gives up quietly after
    /// a tenth of a second.
    ///
    /// # Errors
    /// When the kernel refuses for another reason than the device's absence.
    pub fn wait_until_running(&mut self, index: u32) -> Result<Option<Link>, NetError> {
        let end = Instant::now() + Duration::from_millis(100);
        loop {
            let link = self.link_by_index(index)?;
            if link.as_ref().is_none_or(|link| link.running) || Instant::now() > end {
                return Ok(link);
            }
            std::thread::sleep(Duration::from_micros(500));
        }
    }

    /// The local number by which this namespace knows another: what [`Link::lower_netns`] compares with. `None` if
    /// no device leads there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn netns_number(&mut self, netns: &Netns) -> Result<Option<i32>, NetError> {
        let mut message = NsidMessage::default();
        let file = netns.as_fd().as_raw_fd();
        message.attributes.extend(u32::try_from(file).ok().map(NsidAttribute::Fd));
        let action = || format!("look up the number of namespace {}", netns.name());
        let RouteNetlinkMessage::NewNsId(answer) = self.get(RouteNetlinkMessage::GetNsId(message), action)?
        else {
            return Ok(None);
        };
        Ok(answer.attributes.iter().find_map(|attribute| match attribute {
            NsidAttribute::Id(number) if *number >= 0 => Some(*number),
            _ => None,
        }))
    }

    fn link(
        &mut self,
        mut message: LinkMessage,
        action: impl Fn() -> String,
    ) -> Result<Option<Link>, NetError> {
        message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        match self.get(RouteNetlinkMessage::GetLink(message), action) {
            Ok(RouteNetlinkMessage::NewLink(link)) => Ok(Some(Link::from_message(link))),
            Ok(_) => Ok(None),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a veth pair, each end directly in its namespace and with its final name and address.
    ///
    /// # Errors
    /// `EEXIST` when either name is taken.
    pub fn create_veth(&mut self, pair: &VethPair<'_>) -> Result<(), NetError> {
        let mut peer = LinkMessage::default();
        peer.attributes = end(pair.peer_name, pair.peer_mac, pair.mtu);
        if let Some(netns) = pair.peer_netns {
            peer.attributes.push(LinkAttribute::NetNsFd(netns.as_fd().as_raw_fd()));
        }
        let mut message = LinkMessage::default();
        message.attributes = end(pair.name, pair.mac, pair.mtu);
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        self.change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL, || {
            format!("create veth pair {} and {}", pair.name, pair.peer_name)
        })
    }

    /// Makes a VXLAN device whose packets say for themselves where they go, switched off.
    ///
    /// # Errors
    /// `EEXIST` when the name is taken, or the port by another such device.
    pub fn create_tunnel(&mut self, name: &str, port: u16, mtu: u32) -> Result<(), NetError> {
        let settings =
            vec![InfoVxlan::CollectMetadata(true), InfoVxlan::Learning(false), InfoVxlan::Port(port)];
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Vxlan),
                LinkInfo::Data(InfoData::Vxlan(settings)),
            ]),
        ];
        self.change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL, || {
            format!("create VXLAN device {name} on UDP port {port}")
        })
    }

    /// Changes a device.
    ///
    /// # Errors
    /// `ENODEV` when it does not exist.
    pub fn change_link(&mut self, index: u32, change: &LinkChange<'_>) -> Result<(), NetError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        if let Some(up) = change.up {
            message.header.change_mask = LinkFlags::Up;
            message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        }
        if change.no_arp {
            message.header.change_mask |= LinkFlags::Noarp;
            message.header.flags |= LinkFlags::Noarp;
        }
        let attributes = &mut message.attributes;
        attributes.extend(change.alias.map(|alias| LinkAttribute::IfAlias(alias.to_owned())));
        attributes.extend(change.mtu.map(LinkAttribute::Mtu));
        attributes.extend(change.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
        if change.no_link_local {
            let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
            attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])]));
        }
        self.change(RouteNetlinkMessage::SetLink(message), 0, || {
            format!("change device {index} ({change:?})")
        })
    }

    /// Deletes a device; with one end of a veth pair goes the other.
    ///
    /// # Errors
    /// `ENODEV` when it does not exist.
    pub fn delete_link(&mut self, index: u32) -> Result<(), NetError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.change(RouteNetlinkMessage::DelLink(message), 0, || format!("delete device {index}"))
    }
}

/// True for what the kernel takes as a device name: 1 to 15 bytes without `/`, `:` or white space, not `.` or `..`.
pub(crate) fn is_device_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.bytes().any(|b| b == b'/' || b == b':' || b == 0 || b.is_ascii_whitespace() || b == 0x0b)
}

fn end(name: &str, mac: Mac, mtu: u32) -> Vec<LinkAttribute> {
    vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Address(mac.0.to_vec()),
        LinkAttribute::Mtu(mtu),
    ]
}
