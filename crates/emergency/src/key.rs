//! Policy keys as text: for people, and as names of entries.

use villus_abi::{Direction, PolicyKey, bytes_of, from_bytes, policy::ICMP_TYPE_ZERO_PORT};

/// `ingress` or `egress`.
#[must_use]
pub const fn direction_text(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    }
}

/// The key in words: `ingress from ANY, ANY`, `egress to identity 298951, 80/TCP`.
#[must_use]
pub fn key_text(key: &PolicyKey) -> String {
    let way = match key.dir() {
        Direction::Ingress => "ingress from",
        Direction::Egress => "egress to",
    };
    match key.identity {
        0 => format!("{way} ANY, {}", port_text(key)),
        identity => format!("{way} identity {identity}, {}", port_text(key)),
    }
}

/// Port and protocol of a key: `80/TCP`, `8000-8063/TCP`, `ANY/UDP`, `8/ICMP`, `ANY`.
#[must_use]
pub fn port_text(key: &PolicyKey) -> String {
    let proto = match key.proto {
        0 => "ANY".to_owned(),
        1 => "ICMP".to_owned(),
        6 => "TCP".to_owned(),
        17 => "UDP".to_owned(),
        58 => "ICMPv6".to_owned(),
        132 => "SCTP".to_owned(),
        other => other.to_string(),
    };
    match (key.port(), key.block_log2()) {
        (0, 0) if key.proto == 0 => proto,
        (0, 0) => format!("ANY/{proto}"),
        (ICMP_TYPE_ZERO_PORT, 0) if matches!(key.proto, 1 | 58) => format!("0/{proto}"),
        (port, 0) => format!("{port}/{proto}"),
        (first, log2) => {
            let last = (u32::from(first) + (1_u32 << log2) - 1).min(u32::from(u16::MAX));
            format!("{first}-{last}/{proto}")
        }
    }
}

/// The name of an entry that somebody put in without the journal: `hand-794-0000000000000000`.
#[must_use]
pub fn hand_id(endpoint: u16, key: &PolicyKey) -> String {
    format!("hand-{endpoint}-{}", to_hex(bytes_of(key)))
}

/// Endpoint and key of a name that [`hand_id`] made.
#[must_use]
pub fn parse_hand_id(text: &str) -> Option<(u16, PolicyKey)> {
    let (endpoint, key) = text.strip_prefix("hand-")?.split_once('-')?;
    Some((endpoint.parse().ok()?, from_bytes(&from_hex(key)?)?))
}

pub(crate) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    text.as_bytes()
        .chunks(2)
        .map(|pair| {
            let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|d| u8::try_from(d).ok());
            Some(digit(*pair.first()?)? << 4 | digit(*pair.get(1)?)?)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_in_words() {
        for (key, text) in [
            (PolicyKey::default(), "ingress from ANY, ANY"),
            (PolicyKey::new(298_951, 80, 6, Direction::Egress), "egress to identity 298951, 80/TCP"),
            (PolicyKey::block(7, 8000, 6, 6, Direction::Ingress), "ingress from identity 7, 8000-8063/TCP"),
            (PolicyKey::new(7, 0, 17, Direction::Ingress), "ingress from identity 7, ANY/UDP"),
            (PolicyKey::new(0, 256, 1, Direction::Ingress), "ingress from ANY, 0/ICMP"),
        ] {
            assert_eq!(key_text(&key), text);
        }
    }

    proptest! {
        #[test]
        fn names_are_read_back(endpoint: u16, bytes: [u8; 8]) {
            let key: PolicyKey = from_bytes(&bytes).unwrap();
            let name = hand_id(endpoint, &key);
            prop_assert_eq!(parse_hand_id(&name), Some((endpoint, key)));
        }

        #[test]
        fn no_text_is_too_strange(text in "(hand-)?.{0,30}") {
            let _ = parse_hand_id(&text);
            let _ = from_hex(&text);
        }
    }
}
