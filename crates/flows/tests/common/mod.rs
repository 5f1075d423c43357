//! Events for the tests.
#![allow(dead_code, missing_docs, clippy::unwrap_used, reason = "each test file uses a part; fixed events")]

use villus_abi::{Event, bytes_of, event as abi};
use villus_flows::FlowEvent;

/// A parsed IPv4 TCP SYN from 10.0.0.1:40000 to 10.0.0.2:80, judged at the ingress of endpoint 123.
pub fn syn() -> Event {
    Event {
        time: 1_500_000_000,
        kind: abi::KIND_TRACE,
        hook: abi::HOOK_FROM_ENDPOINT,
        flags: abi::FLAG_ADDRS | abi::FLAG_PORTS,
        endpoint: 123,
        peer: 45,
        ifindex: 7,
        src_identity: 1001,
        dst_identity: 1002,
        len: 74,
        hash: 0x8a2f,
        src: [u32::from_ne_bytes([10, 0, 0, 1]), 0, 0, 0],
        dst: [u32::from_ne_bytes([10, 0, 0, 2]), 0, 0, 0],
        sport: 40000_u16.to_be(),
        dport: 80_u16.to_be(),
        proto: 6,
        tcp_flags: 0x02,
        ethertype: 0x0800_u16.to_be(),
        ..Event::default()
    }
}

pub fn drop_of(reason: u8) -> Event {
    Event { kind: abi::KIND_DROP, reason, ..syn() }
}

pub fn verdict(verdict: i32, matched: u8) -> Event {
    Event { kind: abi::KIND_VERDICT, verdict, matched, ..syn() }
}

pub fn flow(event: Event) -> FlowEvent {
    FlowEvent::decode(bytes_of(&event)).unwrap()
}

/// The words of an IPv6 address as events hold them.
pub fn words(addr: &str) -> [u32; 4] {
    let octets = addr.parse::<std::net::Ipv6Addr>().unwrap().octets();
    std::array::from_fn(|i| u32::from_ne_bytes(octets[i * 4..i * 4 + 4].try_into().unwrap()))
}
