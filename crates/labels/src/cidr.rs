//! IP prefixes as labels (reference `kvstore` 1.6).

use std::net::IpAddr;

use ipnet::IpNet;

use crate::{Label, LabelError, Labels, source, text::excerpt};

/// Reads `10.0.0.0/8`, `2001:db8::/32`, or an address alone (then the whole address counts). Bits behind the
/// prefix are cleared.
///
/// # Errors
/// What is not an address, or a length beyond the family's.
pub fn parse_prefix(text: &str) -> Result<IpNet, LabelError> {
    let bad = |why: String| LabelError::BadPrefix { text: excerpt(text), why };
    let (address, len) = match text.split_once('/') {
        Some((address, len)) => (address, Some(len)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().map_err(|_| {
        bad("the part before `/` is not an IP address; write for example `10.0.0.0/8`".into())
    })?;
    let max = if address.is_ipv4() { 32 } else { 128 };
    let len = match len {
        None => max,
        Some(digits) => digits
            .parse::<u8>()
            .ok()
            .filter(|len| *len <= max && digits.bytes().all(|b| b.is_ascii_digit()))
            .ok_or_else(|| bad(format!("the length after `/` must be a number from 0 to {max}")))?,
    };
    IpNet::new(address, len).map(|net| net.trunc()).map_err(|e| bad(e.to_string()))
}

/// Key of the label of a prefix: `10.0.0.0/8`; in IPv6 `:` becomes `-` and no end of the address is a `-`.
fn cidr_key(prefix: IpNet) -> String {
    let prefix = prefix.trunc();
    let address = prefix.network().to_string().replace(':', "-");
    let front = if address.starts_with('-') { "0" } else { "" };
    let back = if address.ends_with('-') { "0" } else { "" };
    format!("{front}{address}{back}/{}", prefix.prefix_len())
}

/// The label of one prefix; a prefix of length 0 is all that is outside in its family, `reserved:world-ipv4` or
/// `reserved:world-ipv6`.
#[must_use]
pub fn cidr_label(prefix: IpNet) -> Label {
    if prefix.prefix_len() == 0 { world_of(prefix) } else { Label::known(source::CIDR, &cidr_key(prefix)) }
}

fn world_of(prefix: IpNet) -> Label {
    let name = if prefix.addr().is_ipv4() { "world-ipv4" } else { "world-ipv6" };
    Label::known(source::RESERVED, name)
}

/// The labels of the identity of a prefix: every prefix that covers it, itself included, `reserved:world` and the
/// world of its family. So `0.0.0.0/0` never means an IPv6 address.
#[must_use]
pub fn cidr_labels(prefix: IpNet) -> Labels {
    let prefix = prefix.trunc();
    let covering = (1..=prefix.prefix_len())
        .filter_map(|len| IpNet::new(prefix.network(), len).ok())
        .map(cidr_label)
        .chain([Label::known(source::RESERVED, "world"), world_of(prefix)]);
    Labels::of_known(covering)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_have_the_labels_of_the_field() {
        for (prefix, label) in [
            ("10.0.0.0/8", "cidr:10.0.0.0/8"),
            ("10.1.2.3/8", "cidr:10.0.0.0/8"),
            ("192.0.2.1", "cidr:192.0.2.1/32"),
            ("2001:db8::/32", "cidr:2001-db8--0/32"),
            ("::1/128", "cidr:0--1/128"),
            ("8000::/1", "cidr:8000--0/1"),
            ("::/1", "cidr:0--0/1"),
            ("0.0.0.0/0", "reserved:world-ipv4"),
            ("::/0", "reserved:world-ipv6"),
        ] {
            assert_eq!(cidr_label(parse_prefix(prefix).unwrap()).to_string(), label, "{prefix}");
        }
    }

    #[test]
    fn an_identity_of_a_prefix_carries_all_that_cover_it() {
        let labels = cidr_labels("10.128.0.0/9".parse().unwrap());
        assert_eq!(labels.len(), 11);
        assert!(labels.get("10.0.0.0/8").is_some() && labels.get("0.0.0.0/1").is_some());
        assert!(labels.get("10.128.0.0/9").is_some() && labels.has_reserved("world"));
        assert_eq!(cidr_labels("2001:db8::1/128".parse().unwrap()).len(), 130);
        assert_eq!(
            cidr_labels("0.0.0.0/0".parse().unwrap()).to_string(),
            "reserved:world,reserved:world-ipv4"
        );
    }

    #[test]
    fn what_is_not_a_prefix_is_refused_with_the_reason() {
        for (text, why) in [
            ("10.0.0.0/33", "from 0 to 32"),
            ("10.0.0.0/-1", "from 0 to 32"),
            ("10.0.0.0/+8", "from 0 to 32"),
            ("::/129", "from 0 to 128"),
            ("10.0.0/8", "not an IP address"),
            ("", "not an IP address"),
            ("web", "not an IP address"),
        ] {
            let error = parse_prefix(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
