//! The path against a plain reading of its rules, and against whatever bytes there are.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod lab;
#[path = "properties/masquerade.rs"]
mod masquerade;
#[path = "properties/reference.rs"]
mod reference;
#[path = "properties/topology.rs"]
mod topology;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lab::{
    addr, ifindex,
    random::{Hook, IDS, Random},
};
use proptest::prelude::*;
use topology::Topology;
use villus_path::{Action, Work, memory::Frame};

proptest! {
    /// Whatever the policies and the order of packets, the path decides, counts and remembers as the rules say.
    #[test]
    fn the_path_does_what_its_rules_say(seed in any::<u64>(), steps in 1..80_usize) {
        Topology::new(seed).agree(steps)?;
    }

    /// Packets that mean something, and broken ones, never pass an endpoint with somebody else's address.
    #[test]
    fn nothing_passes_with_a_foreign_source(seed in any::<u64>(), steps in 1..60_usize) {
        let mut random = Random::new(seed);
        let world = random.world();
        for _ in 0..steps {
            let mut step = random.step();
            let sent = step.frame.clone();
            let outcome = step.run(&world);
            if step.hook == Hook::From && outcome.action() != Action::Drop {
                prop_assert!(may_send(&sent), "{:x?} {outcome:?}", sent.bytes);
            }
        }
    }

    /// Arbitrary bytes, at every hook.
    #[test]
    fn arbitrary_bytes_do_no_harm(seed in any::<u64>(), kind in 0..4_usize, bytes in prop::collection::vec(any::<u8>(), 0..160)) {
        let (world, masquerading) = (Random::new(seed).world(), Random::new(seed).masquerading_world());
        let mut bytes = bytes;
        let kinds: [&[u8]; 4] = [&[], &[0x08, 0x00, 0x45], &[0x86, 0xdd, 0x60], &[0x08, 0x06]];
        if let Some(to) = bytes.get_mut(12..12 + kinds[kind].len()) {
            to.copy_from_slice(kinds[kind]);
        }
        for id in IDS {
            let frame = Frame::new(bytes.clone(), ifindex(id));
            let mut work = Work::default();
            let outcome = villus_path::from_endpoint(&world, &mut frame.clone(), &mut work);
            prop_assert!(outcome.action() == Action::Drop || may_send(&frame), "{outcome:?}");
            villus_path::to_endpoint(&world, &mut frame.clone(), &mut work);
            villus_path::to_endpoint(&world, &mut frame.clone().via(0), &mut work);
            villus_path::from_network(&world, &mut frame.clone(), &mut work);
            villus_path::to_network(&world, &mut frame.clone(), &mut work);
            villus_path::to_network(&world, &mut frame.clone().via(0), &mut work);
            villus_path::masquerade(&masquerading, &mut frame.clone(), &mut work);
            villus_path::masquerade(&masquerading, &mut frame.clone().via(0), &mut work);
            villus_path::unmasquerade(&masquerading, &mut frame.clone(), &mut work);
        }
    }
}

/// Whether an endpoint may have sent this: read without the path's parser.
fn may_send(frame: &Frame) -> bool {
    let id = u16::try_from(frame.ifindex - ifindex(0)).unwrap();
    let is_own = |address: IpAddr| {
        address == addr(address.is_ipv6(), id) || (id == 1 && address == IpAddr::from([10, 0, 9, 9]))
    };
    let bytes = &frame.bytes;
    match (bytes[12], bytes[13]) {
        (0x08, 0x00) => {
            let address = |at: usize| Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]);
            let (src, dst) = (address(26), address(30));
            let l4 = 14 + usize::from(bytes[14] & 15) * 4;
            let is_dhcp = bytes[23] == 17 && bytes.get(l4..l4 + 4) == Some(&[0, 68, 0, 67]);
            let is_local = src.is_unspecified() || src.is_link_local();
            is_own(src.into()) || is_local && is_dhcp && (dst.is_broadcast() || dst.is_multicast())
        }
        (0x86, 0xdd) => {
            let address = |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&bytes[at..at + 16]).unwrap());
            let (src, dst) = (address(22), address(38));
            let is_local = src.is_unspecified() || src.is_unicast_link_local();
            // Discovery stays on the link: hop limit 255, and nothing that is routed.
            let stays =
                dst.is_multicast() || dst.is_unicast_link_local() || IpAddr::from(dst) == addr(true, 0);
            is_own(src.into()) || is_local && stays
        }
        (0x08, 0x06) => {
            let sender = Ipv4Addr::new(bytes[28], bytes[29], bytes[30], bytes[31]);
            is_own(sender.into()) || sender.is_link_local()
        }
        _ => false,
    }
}
