//! Small numbers that have names: where a packet was seen, how it belongs to its flow, how policy matched.

use std::{fmt, str::FromStr};

use villus_abi::event as abi;

macro_rules! named {
    ($(#[$doc:meta])* $ty:ident { $($(#[$vdoc:meta])* $name:ident = $value:expr, $text:literal;)+ }) => {
        $(#[$doc])*
        ///
        /// A number without a name is kept and printed as `unknown-N`.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
        pub struct $ty(pub u8);

        impl $ty {
            $($(#[$vdoc])* pub const $name: Self = Self($value);)+

            /// Its name, if it has one.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$name => Some($text),)+
                    _ => None,
                }
            }
        }

        impl fmt::Display for $ty {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.name() {
                    Some(name) => f.write_str(name),
                    None => write!(f, "unknown-{}", self.0),
                }
            }
        }

        impl FromStr for $ty {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($text => Ok(Self::$name),)+
                    _ => text
                        .strip_prefix("unknown-")
                        .and_then(|number| number.parse().ok())
                        .map(Self)
                        .ok_or_else(|| {
                            format!("{text:?} is none of {}", [$($text),+].join(", "))
                        }),
                }
            }
        }
    };
}

named! {
    /// Where a packet was seen; numbers and names of Cilium's trace records (`datapath` reference 4.6).
    Point {
        /// Handed to an endpoint.
        TO_ENDPOINT = abi::POINT_TO_ENDPOINT, "to-endpoint";
        /// Handed to a proxy.
        TO_PROXY = 1, "to-proxy";
        /// Handed to the host's stack as its destination.
        TO_HOST = abi::POINT_TO_HOST, "to-host";
        /// Handed to the host's stack to be forwarded.
        TO_STACK = abi::POINT_TO_STACK, "to-stack";
        /// Handed to a tunnel.
        TO_OVERLAY = abi::POINT_TO_OVERLAY, "to-overlay";
        /// Sent by an endpoint.
        FROM_ENDPOINT = abi::POINT_FROM_ENDPOINT, "from-endpoint";
        /// Sent by a proxy.
        FROM_PROXY = 6, "from-proxy";
        /// Sent by the host.
        FROM_HOST = 7, "from-host";
        /// Came from the host's stack.
        FROM_STACK = 8, "from-stack";
        /// Came from a tunnel.
        FROM_OVERLAY = 9, "from-overlay";
        /// Received from the network.
        FROM_NETWORK = abi::POINT_FROM_NETWORK, "from-network";
        /// Sent to the network.
        TO_NETWORK = abi::POINT_TO_NETWORK, "to-network";
    }
}

named! {
    /// How a packet belongs to its flow; numbers and names of Cilium's trace reasons.
    State {
        /// First packet of a flow.
        NEW = abi::STATE_NEW, "new";
        /// Packet in the opener's direction.
        ESTABLISHED = abi::STATE_ESTABLISHED, "established";
        /// Packet of the answering direction.
        REPLY = abi::STATE_REPLY, "reply";
        /// ICMP error about a flow.
        RELATED = abi::STATE_RELATED, "related";
        /// Not known.
        UNKNOWN = abi::STATE_UNKNOWN, "unknown";
    }
}

named! {
    /// How the deciding policy entry matched; numbers and names of Cilium's verdict records.
    Match {
        /// Nothing matched.
        NONE = abi::matched::NONE, "none";
        /// By identity alone.
        L3 = abi::matched::L3, "L3-Only";
        /// By identity, port and protocol.
        L3_L4 = abi::matched::L3_L4, "L3-L4";
        /// By port and protocol, whoever it is.
        L4 = abi::matched::L4, "L4-Only";
        /// By the entry for everything.
        ALL = abi::matched::ALL, "all";
        /// By identity and protocol.
        L3_PROTO = abi::matched::L3_PROTO, "L3-Proto";
        /// By protocol, whoever it is.
        PROTO = abi::matched::PROTO, "Proto-Only";
    }
}

named! {
    /// The program that reported.
    Hook {
        /// Ingress of an endpoint's host-side device.
        FROM_ENDPOINT = abi::HOOK_FROM_ENDPOINT, "from-endpoint";
        /// Egress of an endpoint's host-side device.
        TO_ENDPOINT = abi::HOOK_TO_ENDPOINT, "to-endpoint";
        /// Ingress of an uplink.
        FROM_NETWORK = abi::HOOK_FROM_NETWORK, "from-network";
        /// Egress of an uplink.
        TO_NETWORK = abi::HOOK_TO_NETWORK, "to-network";
        /// Ingress of the tunnel's device.
        FROM_OVERLAY = abi::HOOK_FROM_OVERLAY, "from-overlay";
        /// Egress of the tunnel's device.
        TO_OVERLAY = abi::HOOK_TO_OVERLAY, "to-overlay";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_survives_its_text() {
        for number in 0..=u8::MAX {
            assert_eq!(Point(number).to_string().parse(), Ok(Point(number)));
            assert_eq!(State(number).to_string().parse(), Ok(State(number)));
            assert_eq!(Match(number).to_string().parse(), Ok(Match(number)));
            assert_eq!(Hook(number).to_string().parse(), Ok(Hook(number)));
        }
    }

    #[test]
    fn a_wrong_name_lists_the_right_ones() {
        let error = "to-nowhere".parse::<Point>().unwrap_err();
        assert!(error.contains("to-endpoint"), "{error}");
    }
}
