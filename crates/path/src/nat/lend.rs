//! Which port a new mapping is lent.

use villus_abi::{
    Config,
    nat::{NAT_IN, NAT_LEAST, NAT_OUT, NAT_TRIES},
    time::Tick,
};

use crate::{
    family::Family,
    nat::{names, way_back, way_out},
    parse::{Facts, SCTP, expired},
    work::{Pick, Room},
    world::{Net, Packet, World},
};

/// How long half a mapping counts as one whose other half is being written, ticks.
const YOUNG: Tick = 2;

/// Makes a mapping for the packet in the room, whose keys are there. The packet's own port is lent if it can be, else one that the
/// flow's ends and the node's number name, so that a flow that was forgotten most likely gets the same again. False when no port
/// that was tried is free, or the uplink has no address.
#[inline(never)]
pub(crate) fn open<F: Pick, W: World + Net<F>, P: Packet>(
    w: &W,
    p: &mut P,
    room: &mut Room<F>,
    config: &Config,
    now: Tick,
) -> bool {
    let Some(uplink) = w.uplink(p.ifindex()) else { return false };
    let addr = F::of_uplink(&uplink);
    if F::is_unspecified(&addr) {
        return false;
    }
    let (facts, mapping) = (&room.facts, &mut room.mapping);
    mapping.addr = addr;
    mapping.out = F::nat_key((&facts.src, facts.sport), (&facts.dst, facts.dport), facts.proto, NAT_OUT);
    <W as Net<F>>::release(w, &mapping.out);
    let kept = u16::from_be(facts.sport);
    let addressed = facts.proto == SCTP;
    let keep = addressed || facts.proto == F::ICMP || kept >= NAT_LEAST;
    let start = start(config.nat_seed, facts);
    let own = facts.src == mapping.addr;
    let mut found = keep && p.lend(w, room, kept, own);
    let mut tried = 0;
    while !found && !addressed && tried < NAT_TRIES {
        found = p.lend(w, room, NAT_LEAST | start.wrapping_add(tried), false);
        tried += 1;
    }
    if !found {
        return false;
    }
    let (facts, mapping) = (&room.facts, &room.mapping);
    let nat = way_out(facts, &mapping.addr, mapping.port, config, now, true);
    // Another CPU may have made the same mapping for another packet of the flow.
    let made = <W as Net<F>>::claim(w, &mapping.out, &nat)
        || matches!(<W as Net<F>>::nat(w, &mapping.out), Some(of) if names::<F>(of, &mapping.addr, mapping.port));
    if !made {
        <W as Net<F>>::release(w, &mapping.back);
    }
    made
}

/// Tries to lend a port (host order) to the packet in the room. `own` says that it has the address and port already.
#[inline(always)]
pub fn lend<F: Pick, W: World + Net<F>, P: Packet>(
    w: &W,
    p: &mut P,
    room: &mut Room<F>,
    port: u16,
    own: bool,
) -> bool {
    let now = w.now();
    let (facts, mapping) = (&room.facts, &mut room.mapping);
    let port = port.to_be();
    mapping.port = port;
    mapping.back = F::nat_key((&facts.dst, facts.dport), (&mapping.addr, port), facts.proto, NAT_IN);
    if let Some(there) = <W as Net<F>>::nat(w, &mapping.back) {
        if names::<F>(there, &facts.src, facts.sport) {
            return true;
        }
        let owner = (&F::of_words(&there.addr.get()), there.port.get());
        let out = F::nat_key(owner, (&facts.dst, facts.dport), facts.proto, NAT_OUT);
        let lives = match <W as Net<F>>::nat(w, &out) {
            // What its owner has been lent since may be another port.
            Some(of) => names::<F>(of, &mapping.addr, port) && !expired(of.expires.get(), now),
            None => now.wrapping_sub(there.created.get()) < YOUNG,
        };
        if lives {
            return false;
        }
        <W as Net<F>>::release(w, &mapping.back);
    }
    if !own && is_hosts(p, facts, &mapping.addr, port) {
        return false;
    }
    <W as Net<F>>::claim(w, &mapping.back, &way_back(facts, now))
}

/// Whether answers to an address and port would be for a socket of the host.
#[inline(always)]
fn is_hosts<F: Family, P: Packet>(p: &mut P, facts: &Facts<F>, addr: &F::Addr, port: u16) -> bool {
    let (own, peer) = (F::words(addr), F::words(&facts.dst));
    if F::V6 {
        p.is_hosts6(facts.proto, (&own, port), (&peer, facts.dport))
    } else {
        p.is_hosts4(facts.proto, (own[0], port), (peer[0], facts.dport))
    }
}

/// Where the search for a port begins.
#[inline(always)]
fn start<F: Family>(seed: u32, facts: &Facts<F>) -> u16 {
    let (src, dst) = (F::words(&facts.src), F::words(&facts.dst));
    let ports = (facts.sport as u32) << 16 | facts.dport as u32;
    let mut hash = seed ^ facts.proto as u32;
    let mut mix = |word: u32| {
        hash = (hash ^ word).wrapping_mul(0x9e37_79b1);
        hash ^= hash >> 15;
    };
    let mut i = 0;
    while i < if F::V6 { 4 } else { 1 } {
        mix(src[i]);
        mix(dst[i]);
        i += 1;
    }
    mix(ports);
    hash as u16
}
