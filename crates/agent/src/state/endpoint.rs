//! The file of one endpoint: `endpoints/<id>.json`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use villus_net::{AdoptedLink, Delivery, EndpointLink, Link, Mac};
use villus_policy::{Audit, NamedPort};

/// Everything about an endpoint that outlives the agent. One JSON object.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct EndpointFile {
    /// Version of this format.
    pub format: u32,
    /// The boot in which the device was made.
    pub boot_id: String,
    /// Id on this node.
    pub id: u16,
    /// Numeric identity.
    pub identity: u32,
    /// Labels as they were given, with those that the agent added.
    pub labels: Vec<String>,
    /// Ports by the names that the workload gives them.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub named_ports: BTreeSet<NamedPort>,
    /// The workload's addresses.
    pub addresses: Vec<IpAddr>,
    /// Names under which others know it.
    pub names: Names,
    /// The addresses stay with the owner.
    #[serde(default)]
    pub sticky: bool,
    /// Audit mode of this endpoint alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<Audit>,
    /// DHCP and router advertisements pass.
    #[serde(default)]
    pub allow_dhcp: bool,
    /// Its device; none while it waits to be created again.
    pub device: Option<Device>,
    /// When it was created, RFC 3339.
    pub created: String,
}

/// Names under which others know an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub(crate) struct Names {
    /// The name that its addresses belong to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Namespace: a name below `/run/netns` or a path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub netns: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub docker_endpoint_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub docker_network_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub k8s_namespace: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub k8s_pod_name: Option<String>,
}

/// An endpoint's device.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Device {
    /// A veth pair of ours.
    Made(EndpointLink),
    /// Somebody else's device.
    Adopted(AdoptedLink),
}

impl EndpointFile {
    /// The version that is written.
    pub const FORMAT: u32 = 1;
}

impl Device {
    /// Index of the host-side device.
    pub fn index(&self) -> u32 {
        match self {
            Self::Made(link) => link.host_index,
            Self::Adopted(link) => link.index,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Self::Made(link) => &link.host_name,
            Self::Adopted(link) => &link.device,
        }
    }

    /// Ethernet address of the host side.
    pub fn host_mac(&self) -> Mac {
        match self {
            Self::Made(link) => link.host_mac,
            Self::Adopted(link) => link.host_mac,
        }
    }

    /// Ethernet address of the workload; none until that of an adopted device is learned.
    pub fn mac(&self) -> Option<Mac> {
        match self {
            Self::Made(link) => Some(link.container_mac),
            Self::Adopted(link) => link.workload_mac,
        }
    }

    /// Name of the device inside, where it is known.
    pub fn inner_name(&self) -> Option<&str> {
        match self {
            Self::Made(link) => Some(&link.container_name),
            Self::Adopted(_) => None,
        }
    }

    /// Largest layer-3 packet.
    pub fn mtu(&self) -> u32 {
        match self {
            Self::Made(link) => link.mtu,
            Self::Adopted(link) => link.mtu,
        }
    }

    /// How it is delivered to.
    pub fn delivery(&self) -> Delivery {
        match self {
            Self::Made(link) => link.delivery,
            Self::Adopted(link) => link.delivery,
        }
    }

    /// Notes what the kernel says of it now; says whether something is new.
    pub fn follow(&mut self, link: &Link) -> bool {
        let (name, mtu, delivery) = match self {
            Self::Made(made) => (&mut made.host_name, &mut made.mtu, &mut made.delivery),
            Self::Adopted(adopted) => (&mut adopted.device, &mut adopted.mtu, &mut adopted.delivery),
        };
        let now = Delivery::of(link);
        let changed = *name != link.name || *mtu != link.mtu || *delivery != now;
        (*mtu, *delivery) = (link.mtu, now);
        name.clone_from(&link.name);
        changed
    }

    /// The device as it was adopted, if it was.
    pub fn adopted_mut(&mut self) -> Option<&mut AdoptedLink> {
        match self {
            Self::Made(_) => None,
            Self::Adopted(link) => Some(link),
        }
    }

    /// Whether somebody else made it.
    pub fn is_adopted(&self) -> bool {
        matches!(self, Self::Adopted(_))
    }
}
