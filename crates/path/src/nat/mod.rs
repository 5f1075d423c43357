//! Masquerading on the uplinks: what endpoints send out of the cluster leaves with the uplink's address and a port that tells
//! its answers apart; answers and errors about it are turned back before anything else looks at them.
//!
//! A mapping lives as long as a flow would. The node's own packets are left alone, unless a mapping has their port already. What the
//! host's NAT has lent the address for others that it forwards is mapped as well, and keeps its port if nobody has it.

mod lend;
mod quote;
pub(crate) mod sum;

use villus_abi::{
    Config, Nat, NatCell, Reason,
    event::{HOOK_FROM_NETWORK, HOOK_TO_NETWORK},
    nat::{MASQUERADE_FROM, MASQUERADE_NOT_TO, NAT_IN, NAT_LEAST, NAT_OUT},
    time::Tick,
};

use crate::{
    deliver::{ETHERTYPE_IPV4, ETHERTYPE_IPV6},
    family::{Family, V4, V6},
    flow,
    host::{is_routed, is_tunnel},
    judge::{key, look_up},
    outcome::Outcome,
    overlay::is_node,
    parse::{ETH_HLEN, Facts, Kind, SCTP, TCP, UDP, expired},
    report::{Note, dropped},
    work::{Pick, Room, Work},
    world::{Net, Packet, World},
};
pub use lend::lend;

/// A packet's mapping: its keys, and the address and port that it is lent (network order).
#[derive(Clone, Copy, Default)]
pub(crate) struct Mapping<F: Family> {
    pub(crate) out: F::NatKey,
    pub(crate) back: F::NatKey,
    pub(crate) addr: F::Addr,
    pub(crate) port: u16,
}

/// What goes out on an uplink: packets from the prefixes that are masqueraded get an address of the node, if they leave the
/// cluster. What cannot be told apart from others drops; everything else passes as it is.
#[inline(always)]
pub fn masquerade<W: World, P: Packet>(w: &W, p: &mut P, work: &mut Work) -> Outcome {
    let Some(config) = w.config() else { return Outcome::PASS };
    // A tagged frame was translated on its VLAN device.
    if p.vlan() || is_routed(p) {
        return Outcome::PASS;
    }
    let Some(eth) = p.halves::<7>(0) else { return Outcome::PASS };
    match u16::from_be(eth[6]) {
        ETHERTYPE_IPV4 if config.flags & V4::MASQUERADE != 0 => outward(w, p, V4::room(work), config),
        ETHERTYPE_IPV6 if config.flags & V6::MASQUERADE != 0 => outward(w, p, V6::room(work), config),
        _ => Outcome::PASS,
    }
}

#[inline(never)]
fn outward<F: Pick, W: World + Net<F>, P: Packet>(
    w: &W,
    p: &mut P,
    room: &mut Room<F>,
    config: &Config,
) -> Outcome {
    room.note = Note { hook: HOOK_TO_NETWORK, direction: 1, ..Note::default() };
    // What is malformed was refused when its sender sent it.
    if p.parse(room, false).0 != 0 {
        return Outcome::PASS;
    }
    let now = w.now();
    if room.facts.kind as u8 == Kind::Error as u8 {
        let written = quote::outward(w, p, room, now);
        return done(w, p, room, config, written);
    }
    let made = p.ingress_ifindex() == 0;
    // What is forwarded with the uplink's address has it of the host's NAT.
    let own = made || <W as Net<F>>::masquerades(w, &room.facts.src) & MASQUERADE_FROM == 0;
    if own && !may_collide(w, p, config, &room.facts) {
        return Outcome::PASS;
    }
    let reason = key(w, p, room, now);
    let maps = reason.0 == 0 && matches!(room.facts.kind, Kind::Tcp | Kind::Datagram | Kind::Question);
    if !(maps && is_mapped(w, room, now)) {
        let reason = if own {
            // Sockets are looked up where ports are lent; what the host's NAT lends cannot be, and is written down.
            let counts = if made { is_lent(w, room) } else { leaves_the_cluster(w, config, &room.facts) };
            if !counts {
                return Outcome::PASS;
            }
            Reason::FORWARDED
        } else {
            if !leaves_the_cluster(w, config, &room.facts) || is_answer(w, p, room, reason, now) {
                return Outcome::PASS;
            }
            refusal(&room.facts, reason)
        };
        if reason.0 != 0 {
            return dropped(w, p, config, room, reason);
        }
        if !lend::open(w, p, room, config, now) {
            return dropped(w, p, config, room, Reason::NAT_NO_MAPPING);
        }
    }
    let written = send(w, p, room, config, now);
    done(w, p, room, config, written)
}

/// Whether an endpoint's packet answers one that came in under the endpoint's own address.
#[inline(always)]
fn is_answer<F: Pick, W: World + Net<F>, P: Packet>(
    w: &W,
    p: &P,
    room: &mut Room<F>,
    reason: Reason,
    now: Tick,
) -> bool {
    if reason.0 != 0 {
        return false;
    }
    if room.facts.kind as u8 == Kind::Answer as u8 {
        return true;
    }
    let known = look_up(w, p, room, now);
    known.flow.is_some() && !known.forward
}

/// Why a packet that must be masqueraded cannot be; `reason` is why it belongs to no flow.
#[inline(always)]
fn refusal<F: Family>(facts: &Facts<F>, reason: Reason) -> Reason {
    if reason.0 == Reason::CT_UNKNOWN_L4.0 || facts.kind as u8 == Kind::Message as u8 {
        Reason::NAT_PROTOCOL
    } else {
        reason
    }
}

/// Ends a packet whose headers may have been written.
#[inline(always)]
fn done<F: Pick, W: World, P: Packet>(
    w: &W,
    p: &P,
    room: &mut Room<F>,
    config: &Config,
    written: bool,
) -> Outcome {
    if written { Outcome::PASS } else { dropped(w, p, config, room, Reason::WRITE) }
}

/// Whether a packet that bears the uplink's address already may have a port that an endpoint's packets have been lent.
#[inline(always)]
fn may_collide<F: Pick, W: World + Net<F>, P: Packet>(
    w: &W,
    p: &P,
    config: &Config,
    facts: &Facts<F>,
) -> bool {
    let lendable = match facts.proto {
        TCP | UDP => u16::from_be(facts.sport) >= NAT_LEAST,
        _ => facts.kind as u8 == Kind::Question as u8 && facts.proto == F::ICMP,
    };
    lendable
        && !facts.fragment
        && matches!(w.uplink(p.ifindex()), Some(uplink) if F::of_uplink(&uplink) == facts.src)
        && !is_tunnel(w, config, facts, &facts.dst)
}

/// Whether somebody has been lent the very address and port that a packet of the node's own bears.
#[inline(always)]
fn is_lent<F: Pick, W: Net<F>>(w: &W, room: &Room<F>) -> bool {
    let facts = &room.facts;
    let (from, to) = ((&facts.dst, facts.dport), (&facts.src, facts.sport));
    <W as Net<F>>::nat(w, &F::nat_key(from, to, facts.proto, NAT_IN)).is_some()
}

/// Whether a packet goes where endpoints' own addresses mean nothing.
#[inline(always)]
fn leaves_the_cluster<F: Pick, W: World + Net<F>>(w: &W, config: &Config, facts: &Facts<F>) -> bool {
    if F::is_multicast(&facts.dst) || <W as Net<F>>::masquerades(w, &facts.dst) & MASQUERADE_NOT_TO != 0 {
        return false;
    }
    // Other nodes have routes to endpoints' addresses where there is no tunnel.
    config.overlay_ifindex != 0
        || !matches!(<W as Net<F>>::remote(w, &facts.dst), Some(row) if is_node(row.identity))
}

/// Finds the valid mapping of a packet on its way out; what it is lent is then in the room. A way back that has been
/// forgotten is written again.
#[inline(always)]
fn is_mapped<F: Pick, W: World + Net<F>>(w: &W, room: &mut Room<F>, now: Tick) -> bool {
    let (facts, mapping) = (&room.facts, &mut room.mapping);
    mapping.out = F::nat_key((&facts.src, facts.sport), (&facts.dst, facts.dport), facts.proto, NAT_OUT);
    let Some(of) = <W as Net<F>>::nat(w, &mapping.out) else { return false };
    if expired(of.expires.get(), now) {
        return false;
    }
    mapping.addr = F::of_words(&of.addr.get());
    mapping.port = of.port.get();
    mapping.back = F::nat_key((&facts.dst, facts.dport), (&mapping.addr, mapping.port), facts.proto, NAT_IN);
    match <W as Net<F>>::nat(w, &mapping.back) {
        Some(there) => names::<F>(there, &facts.src, facts.sport),
        None => <W as Net<F>>::claim(w, &mapping.back, &way_back(facts, now)),
    }
}

/// Whether an entry has an address and port.
#[inline(always)]
fn names<F: Family>(entry: &NatCell, addr: &F::Addr, port: u16) -> bool {
    entry.port.get() == port && F::of_words(&entry.addr.get()) == *addr
}

/// The entry that lends an address and port to a flow, made for a packet that is `forward` or an answer.
#[inline(always)]
fn way_out<F: Family>(
    facts: &Facts<F>,
    addr: &F::Addr,
    port: u16,
    config: &Config,
    now: Tick,
    forward: bool,
) -> Nat {
    let flags = flow::tcp_state(facts, 0, forward);
    let expires = now.wrapping_add(life(facts, config, flags));
    Nat { addr: F::words(addr), port, pad: 0, flags, expires, created: now }
}

/// How long a packet keeps a mapping alive.
#[inline(always)]
fn life<F: Family>(facts: &Facts<F>, config: &Config, flags: u32) -> Tick {
    flow::lifetime(config, facts.kind as u8 == Kind::Tcp as u8, flags)
}

/// The entry under which answers to a packet find back.
#[inline(always)]
pub(crate) fn way_back<F: Family>(facts: &Facts<F>, now: Tick) -> Nat {
    Nat { addr: F::words(&facts.src), port: facts.sport, created: now, ..Nat::default() }
}

/// Keeps a mapping alive for a packet.
#[inline(always)]
fn touch<F: Family>(of: &NatCell, facts: &Facts<F>, config: &Config, now: Tick, forward: bool) {
    let old = of.flags.get();
    let flags = flow::tcp_state(facts, old, forward);
    if flags != old {
        of.flags.set(flags);
    }
    let expires = now.wrapping_add(life(facts, config, flags));
    if of.expires.get() != expires {
        of.expires.set(expires);
    }
}

/// Gives a packet on its way out what its mapping lends it.
#[inline(always)]
fn send<F: Pick, W: World + Net<F>, P: Packet>(
    w: &W,
    p: &mut P,
    room: &mut Room<F>,
    config: &Config,
    now: Tick,
) -> bool {
    let (facts, mapping) = (&room.facts, &room.mapping);
    if let Some(of) = <W as Net<F>>::nat(w, &mapping.out) {
        touch(of, facts, config, now, true);
    }
    rewrite(p, facts, true, &mapping.addr, mapping.port)
}

/// What comes in on an uplink: an answer to a masqueraded packet, or an error about one, gets the endpoint's address back.
/// Everything else is left as it is.
#[inline(always)]
pub fn unmasquerade<W: World, P: Packet>(w: &W, p: &mut P, work: &mut Work) {
    let Some(config) = w.config() else { return };
    if p.vlan() {
        return;
    }
    let Some(eth) = p.halves::<7>(0) else { return };
    match u16::from_be(eth[6]) {
        ETHERTYPE_IPV4 if config.flags & V4::MASQUERADE != 0 => inward(w, p, V4::room(work), config),
        ETHERTYPE_IPV6 if config.flags & V6::MASQUERADE != 0 => inward(w, p, V6::room(work), config),
        _ => {}
    }
}

#[inline(never)]
fn inward<F: Pick, W: World + Net<F>, P: Packet>(w: &W, p: &mut P, room: &mut Room<F>, config: &Config) {
    room.note = Note { hook: HOOK_FROM_NETWORK, ..Note::default() };
    if p.parse(room, false).0 != 0 || F::is_multicast(&room.facts.dst) {
        return;
    }
    let now = w.now();
    if room.facts.kind as u8 == Kind::Error as u8 {
        quote::inward(w, p, room, now);
        return;
    }
    if room.facts.fragment {
        let own = matches!(w.uplink(p.ifindex()), Some(uplink) if F::of_uplink(&uplink) == room.facts.dst);
        if !own || key(w, p, room, now).0 != 0 {
            return;
        }
    }
    let facts = &room.facts;
    if !matches!(facts.kind, Kind::Tcp | Kind::Datagram | Kind::Question | Kind::Answer) {
        return;
    }
    let mapping = &mut room.mapping;
    let to = (&facts.dst, facts.dport);
    mapping.back = F::nat_key((&facts.src, facts.sport), to, facts.proto, NAT_IN);
    let Some(there) = <W as Net<F>>::nat(w, &mapping.back) else { return };
    mapping.addr = F::of_words(&there.addr.get());
    mapping.port = there.port.get();
    let owner = (&mapping.addr, mapping.port);
    mapping.out = F::nat_key(owner, (&facts.src, facts.sport), facts.proto, NAT_OUT);
    match <W as Net<F>>::nat(w, &mapping.out) {
        Some(of) => {
            if !names::<F>(of, &facts.dst, facts.dport) || expired(of.expires.get(), now) {
                return;
            }
            touch(of, facts, config, now, false);
        }
        None => {
            // The table was full and forgot one half.
            let way_out = way_out(facts, &facts.dst, facts.dport, config, now, false);
            <W as Net<F>>::claim(w, &mapping.out, &way_out);
        }
    }
    rewrite(p, facts, false, &mapping.addr, mapping.port);
}

/// Where a transport's checksum is, from its header on, and whether it covers the addresses. SCTP's covers nothing that
/// changes here.
#[inline(always)]
pub(crate) fn sum_of<F: Family>(proto: u8) -> Option<(u32, bool)> {
    match proto {
        TCP => Some((16, true)),
        UDP => Some((6, true)),
        proto if proto == F::ICMP => Some((2, F::V6)),
        _ => None,
    }
}

/// Where a transport's port is, from its header on: an echo's id is its only one.
#[inline(always)]
pub(crate) fn port_of<F: Family>(proto: u8, source: bool) -> u32 {
    if proto == F::ICMP {
        4
    } else if source {
        0
    } else {
        2
    }
}

/// Writes another source or destination into a packet: address, port, and all checksums. False if that failed.
#[inline(always)]
fn rewrite<F: Pick, P: Packet>(p: &mut P, facts: &Facts<F>, source: bool, addr: &F::Addr, port: u16) -> bool {
    let old_port = if source { facts.sport } else { facts.dport };
    if !facts.later && old_port != port && facts.proto != SCTP {
        if let Some((at, _)) = sum_of::<F>(facts.proto)
            && !p.add_to_sum(facts.l4 + at, sum::half(old_port, port), false, facts.proto == UDP)
        {
            return false;
        }
        if !p.store(facts.l4 + port_of::<F>(facts.proto, source), &port.to_ne_bytes(), false) {
            return false;
        }
    }
    rewrite_addr(p, facts, source, addr)
}

/// Writes another source or destination address into a packet's own header, and what it changes in checksums.
#[inline(always)]
pub(crate) fn rewrite_addr<F: Pick, P: Packet>(
    p: &mut P,
    facts: &Facts<F>,
    source: bool,
    addr: &F::Addr,
) -> bool {
    let old = if source { &facts.src } else { &facts.dst };
    let difference = sum::addr::<F>(old, addr);
    if !facts.later
        && let Some((at, true)) = sum_of::<F>(facts.proto)
        && !p.add_to_sum(facts.l4 + at, difference, true, facts.proto == UDP)
    {
        return false;
    }
    if !F::V6 && !p.add_to_ip_sum(ETH_HLEN + 10, difference) {
        return false;
    }
    let at = ETH_HLEN + F::SRC_OFFSET + if source { 0 } else { F::ADDR_LEN };
    store_addr::<F, P>(p, at, addr, F::V6)
}

/// Writes an address. `counted` says that its change is not balanced by that of a checksum in the header.
#[inline(always)]
pub(crate) fn store_addr<F: Family, P: Packet>(p: &mut P, at: u32, addr: &F::Addr, counted: bool) -> bool {
    let words = F::words(addr);
    if !F::V6 {
        return p.store(at, &words[0].to_ne_bytes(), counted);
    }
    let mut bytes = [0; 16];
    let mut i = 0;
    while i < 4 {
        let word = words[i].to_ne_bytes();
        bytes[i * 4] = word[0];
        bytes[i * 4 + 1] = word[1];
        bytes[i * 4 + 2] = word[2];
        bytes[i * 4 + 3] = word[3];
        i += 1;
    }
    p.store(at, &bytes, counted)
}
