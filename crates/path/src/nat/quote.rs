//! ICMP errors about masqueraded packets: the packet that they quote must be one that their receiver knows.

use villus_abi::{
    nat::{NAT_IN, NAT_OUT},
    time::Tick,
};

use crate::{
    nat::{names, port_of, rewrite_addr, store_addr, sum, sum_of},
    parse::{ETH_HLEN, SCTP, UDP, expired},
    work::{Pick, Room},
    world::{Net, Packet, World},
};

/// An error that an endpoint or the node sends about an answer: it quotes the answer as it came in on the uplink.
/// False if it could not be written.
#[inline(always)]
pub(super) fn outward<F: Pick, W: World + Net<F>, P: Packet>(
    w: &W,
    p: &mut P,
    room: &mut Room<F>,
    now: Tick,
) -> bool {
    if room.facts.fragment || !F::quoted(p, &room.facts, &mut room.quoted) {
        return true;
    }
    let (quoted, mapping) = (&room.quoted, &mut room.mapping);
    let (from, to) = ((&quoted.dst, quoted.dport), (&quoted.src, quoted.sport));
    mapping.out = F::nat_key(from, to, quoted.proto, NAT_OUT);
    match <W as Net<F>>::nat(w, &mapping.out) {
        Some(of) if !expired(of.expires.get(), now) => {
            mapping.addr = F::of_words(&of.addr.get());
            mapping.port = of.port.get();
        }
        _ => return true,
    }
    turn(p, room, true)
}

/// An error from outside about a packet that was masqueraded: it goes to who sent that, and quotes it as it was sent.
#[inline(always)]
pub(super) fn inward<F: Pick, W: World + Net<F>, P: Packet>(w: &W, p: &mut P, room: &mut Room<F>, now: Tick) {
    if room.facts.fragment
        || !F::quoted(p, &room.facts, &mut room.quoted)
        || room.quoted.src != room.facts.dst
    {
        return;
    }
    let (quoted, mapping) = (&room.quoted, &mut room.mapping);
    let (from, to) = ((&quoted.dst, quoted.dport), (&quoted.src, quoted.sport));
    mapping.back = F::nat_key(from, to, quoted.proto, NAT_IN);
    let Some(there) = <W as Net<F>>::nat(w, &mapping.back) else { return };
    mapping.addr = F::of_words(&there.addr.get());
    mapping.port = there.port.get();
    mapping.out = F::nat_key((&mapping.addr, mapping.port), from, quoted.proto, NAT_OUT);
    if let Some(of) = <W as Net<F>>::nat(w, &mapping.out)
        && names::<F>(of, &quoted.src, quoted.sport)
        && !expired(of.expires.get(), now)
    {
        turn(p, room, false);
    }
}

/// Writes the mapping's address and port into an error: out, as its source and the destination that it quotes; in, as its
/// destination and the source that it quotes. A router's error keeps its own source.
#[inline(never)]
fn turn<F: Pick, P: Packet>(p: &mut P, room: &Room<F>, out: bool) -> bool {
    let Some(difference) = requote(p, room, !out) else { return false };
    let facts = &room.facts;
    if !p.add_to_sum(facts.l4 + 2, difference, false, false) {
        return false;
    }
    if out && facts.src != room.quoted.dst {
        return true;
    }
    rewrite_addr(p, facts, out, &room.mapping.addr)
}

/// Writes the quoted packet's source or destination. What that changes in the error's checksum; `None` if it could not be
/// written.
#[inline(always)]
fn requote<F: Pick, P: Packet>(p: &mut P, room: &Room<F>, source: bool) -> Option<u32> {
    let (facts, quoted, mapping) = (&room.facts, &room.quoted, &room.mapping);
    let (addr, port) = if source { (&quoted.src, quoted.sport) } else { (&quoted.dst, quoted.dport) };
    let header = facts.l4 + 8;
    let of_addr = sum::addr::<F>(addr, &mapping.addr);
    let mut total = of_addr;
    let at = header + F::SRC_OFFSET + if source { 0 } else { F::ADDR_LEN };
    if !store_addr::<F, P>(p, at, &mapping.addr, false) {
        return None;
    }
    if !F::V6 {
        total = sum::add(total, replace(p, header + 10, of_addr)?);
    }
    let of_port = if quoted.proto == SCTP { 0 } else { sum::half(port, mapping.port) };
    if quoted.proto != SCTP && port != mapping.port {
        total = sum::add(total, of_port);
        if !p.store(quoted.l4 + port_of::<F>(quoted.proto, source), &mapping.port.to_ne_bytes(), false) {
            return None;
        }
    }
    // Routers may quote no more than eight bytes of it.
    if let Some((at, pseudo)) = sum_of::<F>(quoted.proto)
        && quoted.l4 + at + 2 <= ETH_HLEN + facts.l3_len
    {
        let at = quoted.l4 + at;
        let none = quoted.proto == UDP && matches!(p.halves::<1>(at), Some([0]));
        if !none {
            let changed = if pseudo { sum::add(of_port, of_addr) } else { of_port };
            total = sum::add(total, replace(p, at, changed)?);
        }
    }
    Some(total)
}

/// Replaces a quoted checksum; what that changes in the one around it.
#[inline(always)]
fn replace<P: Packet>(p: &mut P, at: u32, difference: u32) -> Option<u32> {
    let [old] = p.halves::<1>(at)?;
    let new = sum::replaced(old, difference);
    if p.store(at, &new.to_ne_bytes(), false) { Some(sum::half(old, new)) } else { None }
}
