//! The JSON that says which identity an address has (reference `kvstore` 1.3).

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::keys::{self, join_key};

/// Value of a key below [`keys::IPS`]. Field names are Cilium's, to the letter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpIdentityPair {
    /// The address.
    #[serde(rename = "IP")]
    pub ip: IpAddr,
    /// The mask of a prefix, base64 of its 4 or 16 bytes; `null` for a single address.
    #[serde(rename = "Mask", default, with = "mask")]
    pub mask: Option<Vec<u8>>,
    /// Address of the node behind which it lives.
    #[serde(rename = "HostIP", default, with = "crate::maybe")]
    pub host_ip: Option<IpAddr>,
    /// Numeric identity.
    #[serde(rename = "ID")]
    pub id: u32,
    /// Index of the encryption key, 0 for none.
    #[serde(rename = "Key", default)]
    pub key: u8,
    /// For people.
    #[serde(rename = "Metadata", default)]
    pub metadata: String,
    /// Namespace of the pod.
    #[serde(rename = "K8sNamespace", default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Name of the pod.
    #[serde(rename = "K8sPodName", default, skip_serializing_if = "String::is_empty")]
    pub pod: String,
    /// Service account of the pod.
    #[serde(rename = "K8sServiceAccount", default, skip_serializing_if = "String::is_empty")]
    pub service_account: String,
    /// Ports with names, sorted by name.
    #[serde(
        rename = "NamedPorts",
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "nullable"
    )]
    pub named_ports: Vec<NamedPort>,
}

/// A port with a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NamedPort {
    /// Its name.
    #[serde(rename = "Name")]
    pub name: String,
    /// Its number.
    #[serde(rename = "Port")]
    pub port: u16,
    /// `TCP`, `UDP` or `SCTP`.
    #[serde(rename = "Protocol")]
    pub protocol: String,
}

/// Why a key and its value were refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PairError {
    /// Not JSON, or not of this shape.
    #[error("`{key}`: the value can't be read: {reason}")]
    Json {
        /// The key.
        key: String,
        /// What the parser said.
        reason: String,
    },
    /// The mask does not fit.
    #[error("`{key}`: the mask is not one of an address like {ip}")]
    Mask {
        /// The key.
        key: String,
        /// The address.
        ip: IpAddr,
    },
    /// Key and value speak of different addresses.
    #[error("`{key}`: the value is for {value}; key and value must name the same address")]
    KeyDiffers {
        /// The key.
        key: String,
        /// What the value's key would end in.
        value: String,
    },
    /// The key is not below the prefix of addresses.
    #[error("`{key}` is not `{}/<address space>/<address>`", keys::IPS)]
    BadKey {
        /// The key.
        key: String,
    },
}

// === impl IpIdentityPair ===

impl IpIdentityPair {
    /// A single address.
    pub fn new(ip: IpAddr, id: u32, host_ip: Option<IpAddr>) -> Self {
        Self {
            ip,
            mask: None,
            host_ip,
            id,
            key: 0,
            metadata: String::new(),
            namespace: String::new(),
            pod: String::new(),
            service_account: String::new(),
            named_ports: Vec::new(),
        }
    }

    /// Reads the value of `key` and checks that both speak of the same address. Returns the address space too.
    ///
    /// # Errors
    /// When the key has another shape, the value is not JSON of this kind, or they differ.
    pub fn read<'k>(key: &'k str, value: &[u8]) -> Result<(&'k str, Self), PairError> {
        let bad_key = || PairError::BadKey { key: key.to_owned() };
        let rest = key.strip_prefix(keys::IPS).and_then(|rest| rest.strip_prefix('/'));
        let (space, address) = rest.and_then(|rest| rest.split_once('/')).ok_or_else(bad_key)?;
        if space.is_empty() || address.is_empty() {
            return Err(bad_key());
        }
        let pair: Self = serde_json::from_slice(value)
            .map_err(|e| PairError::Json { key: key.to_owned(), reason: e.to_string() })?;
        if pair.prefix().is_none() {
            return Err(PairError::Mask { key: key.to_owned(), ip: pair.ip });
        }
        let wanted = pair.suffix();
        if address != wanted {
            return Err(PairError::KeyDiffers { key: key.to_owned(), value: wanted });
        }
        Ok((space, pair))
    }

    /// The prefix; `None` when the mask is not one of the address's family.
    pub fn prefix(&self) -> Option<IpNet> {
        let full = if self.ip.is_ipv4() { 32 } else { 128 };
        let len = match &self.mask {
            None => full,
            Some(mask) if mask.len() * 8 == usize::from(full) => mask_length(mask)?,
            Some(_) => return None,
        };
        IpNet::new(self.ip, len).ok()
    }

    /// The last part of the key: the address, with `/length` when there is a mask.
    pub fn suffix(&self) -> String {
        match (&self.mask, self.prefix()) {
            (Some(_), Some(prefix)) => format!("{}/{}", self.ip, prefix.prefix_len()),
            _ => self.ip.to_string(),
        }
    }

    /// The key in this address space.
    pub fn key(&self, space: &str) -> String {
        join_key([keys::IPS, space, &self.suffix()])
    }

    /// The value.
    pub fn to_json(&self) -> String {
        // Strings, numbers and lists only: this can't fail, and an empty value would be refused by readers.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// How many bits of a mask are ones; `None` if they are not its first.
pub(crate) fn mask_length(mask: &[u8]) -> Option<u8> {
    let bits = mask.iter().fold(0u128, |bits, byte| bits << 8 | u128::from(*byte)) << (128 - mask.len() * 8);
    let len = bits.leading_ones();
    // A mask is ones, then zeros.
    (bits.checked_shl(len).unwrap_or(0) == 0).then_some(len as u8)
}

fn nullable<'de, D: serde::Deserializer<'de>>(de: D) -> Result<Vec<NamedPort>, D::Error> {
    Ok(Option::deserialize(de)?.unwrap_or_default())
}

/// Bytes as base64 with padding, or null.
mod mask {
    use base64::{Engine, prelude::BASE64_STANDARD};
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

    pub(super) fn serialize<S: Serializer>(mask: &Option<Vec<u8>>, ser: S) -> Result<S::Ok, S::Error> {
        mask.as_deref().map(|mask| BASE64_STANDARD.encode(mask)).serialize(ser)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(de: D) -> Result<Option<Vec<u8>>, D::Error> {
        let text: Option<String> = Option::deserialize(de)?;
        match text.as_deref() {
            None | Some("") => Ok(None),
            Some(text) => BASE64_STANDARD.decode(text).map(Some).map_err(de::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As it is printed in the field.
    const EXAMPLE: &str = r#"{"IP":"10.3.192.65","Mask":null,"HostIP":"10.3.9.10","ID":15614229,"Key":0,"Metadata":"cilium-global:cluster1:node1:2404","K8sNamespace":"ns1","K8sPodName":"pod1"}"#;
    const KEY: &str = "cilium/state/ip/v1/cluster1/10.3.192.65";

    #[test]
    fn the_published_line_reads_and_writes_byte_for_byte() {
        let (space, pair) = IpIdentityPair::read(KEY, EXAMPLE.as_bytes()).unwrap();
        assert_eq!((space, pair.id, pair.pod.as_str()), ("cluster1", 15_614_229, "pod1"));
        assert_eq!(pair.to_json(), EXAMPLE);
        assert_eq!(pair.key("cluster1"), KEY);
    }

    #[test]
    fn prefixes_carry_their_mask() {
        let json = r#"{"IP":"10.2.0.0","Mask":"//8AAA==","HostIP":null,"ID":7,"Later":{"field":1}}"#;
        let (_, pair) =
            IpIdentityPair::read("cilium/state/ip/v1/default/10.2.0.0/16", json.as_bytes()).unwrap();
        assert_eq!(pair.prefix().unwrap().to_string(), "10.2.0.0/16");
        assert_eq!(pair.suffix(), "10.2.0.0/16");
        assert!(pair.to_json().contains(r#""Mask":"//8AAA==""#));
        for (bytes, len) in [(vec![0; 4], Some(0)), (vec![255; 4], Some(32)), (vec![255, 0, 255, 0], None)] {
            assert_eq!(mask_length(&bytes), len);
        }
        assert_eq!((mask_length(&[255; 16]), mask_length(&[0; 16])), (Some(128), Some(0)));
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_key() {
        let value = |text: &str| EXAMPLE.replace("null", text);
        for (key, value, part) in [
            ("cilium/state/ip/v1/cluster1/10.3.192.66", EXAMPLE.to_owned(), "10.3.192.65"),
            ("cilium/state/ip/v1/10.3.192.65", EXAMPLE.to_owned(), "address space"),
            ("cilium/state/nodes/v1/c/n", EXAMPLE.to_owned(), "address space"),
            (KEY, "{".to_owned(), "can't be read"),
            (KEY, "[]".to_owned(), "can't be read"),
            (KEY, value("\"###\""), "can't be read"),
            (KEY, value("\"//8=\""), "mask"),
            (KEY, value("\"AP8A/w==\""), "mask"),
            (KEY, EXAMPLE.replace("15614229", "-1"), "can't be read"),
            (KEY, EXAMPLE.replace("\"Key\":0", "\"Key\":256"), "can't be read"),
        ] {
            let error = IpIdentityPair::read(key, value.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains(key), "{error}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(ProptestConfig::default().cases * 500 / 256) })]

        #[test]
        fn no_bytes_panic(key in ".{0,60}", value in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = IpIdentityPair::read(&key, &value);
            let _ = IpIdentityPair::read(KEY, &value);
        }

        #[test]
        fn no_json_of_any_shape_panics(at in 0..EXAMPLE.len(), with in "[\"{}:,0-9a-z/=]{0,4}") {
            let mut text = EXAMPLE.to_owned();
            text.replace_range(at..at + 1, &with);
            let _ = IpIdentityPair::read(KEY, text.as_bytes());
        }

        #[test]
        fn what_is_written_is_read(ip: IpAddr, id: u32, key: u8, host: Option<IpAddr>, len in prop::option::of(0u8..=32)) {
            let mut pair = IpIdentityPair { key, ..IpIdentityPair::new(ip, id, host) };
            if let (Some(len), true) = (len, ip.is_ipv4()) {
                let mask = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
                pair.mask = Some(mask.to_be_bytes().to_vec());
            }
            let (_, read) = IpIdentityPair::read(&pair.key("default"), pair.to_json().as_bytes()).unwrap();
            prop_assert_eq!(read, pair);
        }
    }
}
