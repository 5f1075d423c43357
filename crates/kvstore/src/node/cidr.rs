//! Prefixes of one family as Go writes them: an object of address and mask, or a text; nothing is null.

use base64::{Engine, prelude::BASE64_STANDARD};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::pair::mask_length;

/// A prefix of one family.
pub(super) trait Prefix: Copy {
    fn any(self) -> IpNet;
    fn of(net: IpNet) -> Option<Self>;
}

impl Prefix for Ipv4Net {
    fn any(self) -> IpNet {
        IpNet::V4(self)
    }

    fn of(net: IpNet) -> Option<Self> {
        if let IpNet::V4(net) = net { Some(net) } else { None }
    }
}

impl Prefix for Ipv6Net {
    fn any(self) -> IpNet {
        IpNet::V6(self)
    }

    fn of(net: IpNet) -> Option<Self> {
        if let IpNet::V6(net) = net { Some(net) } else { None }
    }
}

/// `{"IP": …, "Mask": base64}` or `"<address>/<length>"`.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Wire {
    Object {
        #[serde(rename = "IP")]
        ip: std::net::IpAddr,
        #[serde(rename = "Mask")]
        mask: String,
    },
    Text(String),
}

fn to_wire(net: IpNet) -> Wire {
    let mask = match net {
        IpNet::V4(net) => BASE64_STANDARD.encode(net.netmask().octets()),
        IpNet::V6(net) => BASE64_STANDARD.encode(net.netmask().octets()),
    };
    Wire::Object { ip: net.addr(), mask }
}

fn from_wire<T: Prefix>(wire: Wire) -> Result<T, String> {
    let net = match wire {
        Wire::Text(text) => text.parse::<IpNet>().map_err(|_| format!("`{text}` is no prefix"))?,
        Wire::Object { ip, mask } => {
            let bytes = BASE64_STANDARD.decode(&mask).map_err(|error| format!("the mask: {error}"))?;
            let full = if ip.is_ipv4() { 4 } else { 16 };
            let wrong = || format!("the mask `{mask}` is not one of an address like {ip}");
            let length = Some(bytes).filter(|bytes| bytes.len() == full).and_then(|b| mask_length(&b));
            IpNet::new(ip, length.ok_or_else(wrong)?).map_err(|_| wrong())?
        }
    };
    T::of(net).ok_or_else(|| format!("{net} is of the other family"))
}

pub(super) mod one {
    use super::{Deserialize, Deserializer, Prefix, Serialize, Serializer, Wire, de, from_wire, to_wire};

    pub(in super::super) fn serialize<T: Prefix, S: Serializer>(
        net: &Option<T>,
        ser: S,
    ) -> Result<S::Ok, S::Error> {
        net.map(|net| to_wire(net.any())).serialize(ser)
    }

    pub(in super::super) fn deserialize<'de, T: Prefix, D: Deserializer<'de>>(
        de: D,
    ) -> Result<Option<T>, D::Error> {
        match Option::<Wire>::deserialize(de)? {
            None => Ok(None),
            Some(Wire::Text(text)) if text.is_empty() => Ok(None),
            Some(wire) => from_wire(wire).map(Some).map_err(de::Error::custom),
        }
    }
}

pub(super) mod many {
    use super::{Deserialize, Deserializer, Prefix, Serialize, Serializer, Wire, de, from_wire, to_wire};

    pub(in super::super) fn serialize<T: Prefix, S: Serializer>(
        nets: &[T],
        ser: S,
    ) -> Result<S::Ok, S::Error> {
        let wires: Vec<Wire> = nets.iter().map(|net| to_wire(net.any())).collect();
        Some(wires).filter(|wires| !wires.is_empty()).serialize(ser)
    }

    pub(in super::super) fn deserialize<'de, T: Prefix, D: Deserializer<'de>>(
        de: D,
    ) -> Result<Vec<T>, D::Error> {
        let wires: Vec<Wire> = Option::deserialize(de)?.unwrap_or_default();
        wires.into_iter().map(from_wire).collect::<Result<_, _>>().map_err(de::Error::custom)
    }
}
