//! Names of drop reasons in Hubble's protocol.

use villus_abi::Reason;

/// The name that `drop_reason_desc` has for a reason; `None` for those that only Villus has.
pub(crate) const fn reason_name(reason: Reason) -> Option<&'static str> {
    Some(match reason.0 {
        130 => "INVALID_SOURCE_MAC",
        131 => "INVALID_DESTINATION_MAC",
        132 => "INVALID_SOURCE_IP",
        133 => "POLICY_DENIED",
        134 => "INVALID_PACKET_DROPPED",
        135 => "CT_TRUNCATED_OR_INVALID_HEADER",
        136 => "CT_MISSING_TCP_ACK_FLAG",
        137 => "CT_UNKNOWN_L4_PROTOCOL",
        138 => "CT_CANNOT_CREATE_ENTRY_FROM_PACKET",
        139 => "UNSUPPORTED_L3_PROTOCOL",
        140 => "MISSED_TAIL_CALL",
        141 => "ERROR_WRITING_TO_PACKET",
        142 => "UNKNOWN_L4_PROTOCOL",
        150 => "UNKNOWN_L3_TARGET_ADDRESS",
        151 => "STALE_OR_UNROUTABLE_IP",
        152 => "NO_MATCHING_LOCAL_CONTAINER_FOUND",
        155 => "CT_MAP_INSERTION_FAILED",
        156 => "INVALID_IPV6_EXTENSION_HEADER",
        157 => "IP_FRAGMENTATION_NOT_SUPPORTED",
        158 => "SERVICE_BACKEND_NOT_FOUND",
        162 => "REACHED_EDT_RATE_LIMITING_DROP_HORIZON",
        164 => "LOCAL_HOST_IS_UNREACHABLE",
        169 => "FIB_LOOKUP_FAILED",
        171 => "INVALID_IDENTITY",
        175 => "FIRST_LOGICAL_DATAGRAM_FRAGMENT_NOT_FOUND",
        176 => "FORBIDDEN_ICMPV6_MESSAGE",
        181 => "POLICY_DENY",
        182 => "VLAN_FILTERED",
        189 => "AUTH_REQUIRED",
        196 => "TTL_EXCEEDED",
        202 => "DROP_HOST_NOT_READY",
        203 => "DROP_EP_NOT_READY",
        _ => return None,
    })
}

/// The number of a name that [`reason_name`] gives.
pub(crate) fn reason_number(name: &str) -> Option<u8> {
    (130..=u8::MAX).find(|number| reason_name(Reason(*number)) == Some(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_leads_back_to_its_number() {
        let named: Vec<(u8, &str)> =
            (0..=u8::MAX).filter_map(|n| Some((n, reason_name(Reason(n))?))).collect();
        assert!(named.iter().all(|(number, name)| reason_number(name) == Some(*number)), "{named:?}");
        assert_eq!(reason_number("POLICY_DENIED"), Some(Reason::POLICY.0));
        assert_eq!(reason_number("SOMETHING"), None);
    }
}
