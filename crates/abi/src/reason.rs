//! Drop reasons and the other counted outcomes: Cilium's numbers and texts, ours from 230.
//!
//! Source: `datapath` reference 4.5. Reasons above 130 are drops, except the quiet ends from 240, which
//! finish a packet that was answered or has no business further on and is no loss.

/// Why a packet ended where it ended; the number that drop events and `villus_metrics_v1` carry.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(transparent)]
pub struct Reason(pub u8);

impl Reason {
    /// Forwarded.
    pub const FORWARDED: Self = Self(0);
    /// A fragmented packet was seen (counted, not a drop).
    pub const FRAGMENTED: Self = Self(9);
    /// The ports of a first fragment could not be remembered (counted, not a drop).
    pub const FRAGMENT_UPDATE: Self = Self(10);
    /// The frame's source MAC is not the endpoint's.
    pub const SOURCE_MAC: Self = Self(130);
    /// The source address is not the sender's, or is ours and came from outside.
    pub const SOURCE_IP: Self = Self(132);
    /// No policy entry allows it.
    pub const POLICY: Self = Self(133);
    /// Malformed.
    pub const INVALID: Self = Self(134);
    /// A transport header is cut short or malformed.
    pub const CT_INVALID: Self = Self(135);
    /// A transport protocol that flows cannot be made for.
    pub const CT_UNKNOWN_L4: Self = Self(137);
    /// Neither ARP nor an IP family that is on.
    pub const UNSUPPORTED_L3: Self = Self(139);
    /// The packet's headers could not be written.
    pub const WRITE: Self = Self(141);
    /// The tunnel's device does not say who sent a packet, or takes no word of where to send it.
    pub const TUNNEL_KEY: Self = Self(147);
    /// Neighbour resolution for an address that is nobody's here, or a tunnel's packet for one.
    pub const UNKNOWN_TARGET: Self = Self(150);
    /// The destination's endpoint is going away.
    pub const STALE: Self = Self(151);
    /// The flow table refused a new flow.
    pub const CT_INSERT: Self = Self(155);
    /// IPv6 extension headers that cannot be followed.
    pub const EXTENSION_HEADER: Self = Self(156);
    /// A packet into the tunnel for an address behind no node.
    pub const NO_TUNNEL: Self = Self(160);
    /// Every port that was tried for a packet to be masqueraded is in use, or its uplink has no address.
    pub const NAT_NO_MAPPING: Self = Self(167);
    /// A packet to be masqueraded of a protocol that has no answers to be told apart.
    pub const NAT_PROTOCOL: Self = Self(168);
    /// A tunnel's packet whose sender may not have the identity that it shows.
    pub const IDENTITY: Self = Self(171);
    /// A tunnel's packet from no node, or from an address that lives elsewhere.
    pub const UNKNOWN_SENDER: Self = Self(172);
    /// A later fragment whose first one was not seen.
    pub const FRAGMENT_NOT_FOUND: Self = Self(175);
    /// An ICMPv6 message that an endpoint may not send.
    pub const FORBIDDEN_ICMP6: Self = Self(176);
    /// A policy entry denies it.
    pub const POLICY_DENY: Self = Self(181);
    /// A VLAN tag in an endpoint's frame.
    pub const VLAN: Self = Self(182);
    /// The agent has not configured the path yet.
    pub const NOT_READY: Self = Self(202);
    /// The other side's identity has not arrived yet and nothing allows it without one.
    pub const IDENTITY_PENDING: Self = Self(230);
    /// Multicast or broadcast that is not neighbour discovery, MLD, IGMP or permitted DHCP.
    pub const MULTICAST: Self = Self(231);
    /// The program is attached to an interface that no endpoint has.
    pub const NO_ENDPOINT: Self = Self(232);
    /// The endpoint's slot holds no policy map.
    pub const NO_POLICY_MAP: Self = Self(233);
    /// ARP or neighbour discovery that claims another's address.
    pub const ARP_SPOOF: Self = Self(234);
    /// DHCP from an endpoint that may not use it.
    pub const DHCP: Self = Self(235);
    /// An IPv4 option asks for a route of the sender's choice.
    pub const SOURCE_ROUTE: Self = Self(236);
    /// What the tunnel puts around a packet could not be written.
    pub const WRAP: Self = Self(237);
    /// Quiet end: the path itself answered for the gateway.
    pub const ANSWERED: Self = Self(240);
    /// Quiet end: router solicitation.
    pub const ROUTER_SOLICITATION: Self = Self(241);
    /// Quiet end: multicast listener discovery.
    pub const MLD: Self = Self(242);
    /// Quiet end: IGMP.
    pub const IGMP: Self = Self(243);
    /// Quiet end: an endpoint announced or probed its own address.
    pub const ANNOUNCED: Self = Self(244);
    /// Events that the ring had no room for (counted, not a drop).
    pub const EVENTS_LOST: Self = Self(248);

    /// Whether packets counted under this reason were dropped.
    #[must_use]
    pub const fn is_drop(self) -> bool {
        self.0 >= 130 && self.0 < 240
    }

    /// The text that `monitor` and `bpf metrics list` print.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self.0 {
            0 => "Success",
            2 => "Invalid packet",
            3 => "Interface",
            4 => "Interface Decrypted",
            5 => "LB: No backend slot entry found",
            6 => "LB: No backend entry found",
            7 => "LB: Reverse entry update failed",
            8 => "LB: Reverse entry stale",
            9 => "Fragmented packet",
            10 => "Fragmented packet entry update failed",
            11 => "Missed tail call to custom program",
            12 => "Interface Decrypting",
            13 => "Interface Encrypting",
            14 => "LB: Sock cgroup: Reverse entry delete succeeded",
            15 => "MTU error message",
            130 => "Invalid source mac",
            131 => "Invalid destination mac",
            132 => "Invalid source ip",
            133 => "Policy denied",
            134 => "Invalid packet",
            135 => "CT: Truncated or invalid header",
            136 => "Fragmentation needed",
            137 => "CT: Unknown L4 protocol",
            138 => "CT: Can't create entry from packet",
            139 => "Unsupported L3 protocol",
            140 => "Missed tail call",
            141 => "Error writing to packet",
            142 => "Unknown L4 protocol",
            143 => "Unknown ICMPv4 code",
            144 => "Unknown ICMPv4 type",
            145 => "Unknown ICMPv6 code",
            146 => "Unknown ICMPv6 type",
            147 => "Error retrieving tunnel key",
            148 => "Error retrieving tunnel options",
            149 => "Invalid Geneve option",
            150 => "Unknown L3 target address",
            151 => "Stale or unroutable IP",
            152 => "No matching local container found",
            153 => "Error while correcting L3 checksum",
            154 => "Error while correcting L4 checksum",
            155 => "CT: Map insertion failed",
            156 => "Invalid IPv6 extension header",
            157 => "IP fragmentation not supported",
            158 => "Service backend not found",
            159 => "Service protocol not supported",
            160 => "No tunnel/encapsulation endpoint (datapath BUG!)",
            161 => "NAT 46/64 not enabled",
            162 => "Reached EDT rate-limiting drop horizon",
            163 => "Unknown connection tracking state",
            164 => "Local host is unreachable",
            165 => "No configuration available to perform policy decision",
            166 => "Unsupported L2 protocol",
            167 => "No mapping for NAT masquerade",
            168 => "Unsupported protocol for NAT masquerade",
            169 => "FIB lookup failed",
            170 => "Encapsulation traffic is prohibited",
            171 => "Invalid identity",
            172 => "Unknown sender",
            173 => "NAT not needed",
            174 => "Is a ClusterIP",
            175 => "First logical datagram fragment not found",
            176 => "Forbidden ICMPv6 message",
            177 => "Denied by LB src range check",
            178 => "Socket lookup failed",
            179 => "Socket assign failed",
            180 => "Proxy redirection not supported for protocol",
            181 => "Policy denied by denylist",
            182 => "VLAN traffic disallowed by VLAN filter",
            183 => "Incorrect VNI from VTEP",
            184 => "Failed to update or lookup TC buffer",
            185 => "No SID was found for the IP address",
            186 => "SRv6 state was removed during tail call",
            187 => "L3 translation from IPv4 to IPv6 failed (NAT46)",
            188 => "L3 translation from IPv6 to IPv4 failed (NAT64)",
            189 => "Authentication required",
            190 => "No conntrack map found",
            191 => "No nat map found",
            192 => "Invalid ClusterID",
            193 => "Unsupported packet protocol for DSR encapsulation",
            194 => "No egress gateway found",
            195 => "Traffic is unencrypted",
            196 => "TTL exceeded",
            197 => "No node ID found",
            198 => "Rate limited",
            199 => "IGMP handled",
            200 => "IGMP subscribed",
            201 => "Multicast handled",
            202 => "Host datapath not ready",
            203 => "Endpoint policy program not available",
            204 => "No Egress IP configured",
            205 => "Punt to proxy",
            206 => "No device",
            207 => "First logical datagram fragment not found from world",
            230 => "Identity pending",
            231 => "Multicast or broadcast not supported",
            232 => "No endpoint on this interface",
            233 => "No policy map for endpoint",
            234 => "ARP for an address that is not the sender's",
            235 => "DHCP not allowed",
            236 => "IPv4 source routing",
            237 => "Headers of the tunnel could not be written",
            240 => "Neighbour answered",
            241 => "Router solicitation ended",
            242 => "MLD ended",
            243 => "IGMP ended",
            244 => "Neighbour announcement ended",
            248 => "Events lost",
            _ => "Unknown reason",
        }
    }
}

impl core::fmt::Display for Reason {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_those_of_the_field() {
        assert_eq!(Reason::POLICY.text(), "Policy denied");
        assert_eq!(Reason::POLICY_DENY.text(), "Policy denied by denylist");
        assert_eq!(Reason(207).text(), "First logical datagram fragment not found from world");
        assert_eq!(Reason(255).text(), "Unknown reason");
    }

    #[test]
    fn quiet_ends_are_no_drops() {
        assert!(Reason::POLICY.is_drop() && Reason::IDENTITY_PENDING.is_drop());
        assert!(!Reason::ANSWERED.is_drop() && !Reason::FORWARDED.is_drop());
    }
}
