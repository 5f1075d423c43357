//! How packets can be handed to an endpoint's device: asked of the device itself.

use serde::{Deserialize, Serialize};

use crate::error::NetError;
use crate::rtnl::{Link, Rtnl};

/// How an endpoint is delivered to. `bpf_redirect_peer` loses packets without a trace unless the device is a veth
/// whose other end is switched on in another namespace, so only then it is [`Delivery::Peer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Delivery {
    /// Redirect to the other end of the veth.
    Peer,
    /// Redirect to the device.
    Device,
}

// === impl Delivery ===

impl Delivery {
    /// How this device can be delivered to, as it is now.
    pub fn of(link: &Link) -> Self {
        // The carrier of a veth says that both ends are up.
        if link.is_veth_to_other_netns() && link.up && link.carrier {
            Delivery::Peer
        } else {
            Delivery::Device
        }
    }
}

/// Asks a device of the calling thread's namespace how it can be delivered to. Ask again on its link events.
///
/// # Errors
/// [`NetError::NoDevice`] when it does not exist.
pub fn delivery_of(ifindex: u32) -> Result<Delivery, NetError> {
    let link = Rtnl::open()?.link_by_index(ifindex)?.ok_or_else(|| NetError::NoDevice {
        device: format!("index {ifindex}"),
        namespace: "this namespace".into(),
    })?;
    Ok(Delivery::of(&link))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn veth(up: bool, carrier: bool, lower_netns: Option<i32>) -> Link {
        Link { kind: Some("veth".into()), up, carrier, lower: Some(2), lower_netns, ..Link::default() }
    }

    #[test]
    fn only_a_veth_up_in_another_namespace_takes_peer_redirects() {
        let cases = [
            (veth(true, true, Some(0)), Delivery::Peer),
            (veth(true, false, Some(0)), Delivery::Device),
            (veth(false, false, Some(0)), Delivery::Device),
            (veth(true, true, None), Delivery::Device),
            (Link { kind: Some("tun".into()), up: true, carrier: true, ..Link::default() }, Delivery::Device),
            (Link { kind: Some("macvlan".into()), ..veth(true, true, Some(1)) }, Delivery::Device),
        ];
        for (link, expected) in cases {
            assert_eq!(Delivery::of(&link), expected, "{link:?}");
        }
    }
}
