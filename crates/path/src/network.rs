//! The hook from-network: what comes in on an uplink.

use villus_abi::{
    Config, Endpoint, Reason,
    config::{FLAG_HOST_POLICY, FLAG_IPSEC},
    endpoint::{FLAG_ACTIVE, SLOT_HOST},
    event::{HOOK_FROM_NETWORK, POINT_TO_ENDPOINT},
};

use crate::{
    deliver::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, route, too_big, way_to},
    family::{Family, V4, V6},
    flow, host,
    judge::{Case, Side, find_sender, judge, known},
    outcome::{Action, Outcome},
    parse::{ETH_HLEN, UDP},
    report::{self, Note, dropped},
    work::{Pick, Room, Work},
    world::{Net, Packet, Tunnel, World},
};

/// What comes in on an uplink: nobody outside may use an address of this node or its endpoints as a source;
/// where no NAT is wanted, or none of what its sender sends, packets for an endpoint are judged and handed over here; if policy
/// selects the node, packets for the node are judged here. Everything else is the stack's; all for endpoints is while IPsec has
/// policies, which the stack asks whether it may come in the clear.
#[inline(always)]
pub fn from_network<W: World, P: Packet>(w: &W, p: &mut P, work: &mut Work) -> Outcome {
    let Some(config) = w.config() else { return Outcome::PASS };
    // A tagged frame is for a VLAN device, which is an uplink of its own.
    if config.flags == 0 || p.vlan() {
        return Outcome::PASS;
    }
    let Some(eth) = p.halves::<7>(0) else { return Outcome::PASS };
    match u16::from_be(eth[6]) {
        ETHERTYPE_IPV4 if is_for_tunnel(p, config) => Outcome::PASS,
        ETHERTYPE_IPV4 if config.flags & V4::ENABLED != 0 => ip(w, p, V4::room(work), config),
        ETHERTYPE_IPV6 if config.flags & V6::ENABLED != 0 => ip(w, p, V6::room(work), config),
        _ => Outcome::PASS,
    }
}

/// Whether an IPv4 packet is the tunnel's and all that is to be asked about it is asked when it has been unwrapped, who sent it
/// too. With options or as a fragment it takes the long way, which ends the same.
#[inline(always)]
fn is_for_tunnel<P: Packet>(p: &P, config: &Config) -> bool {
    const PLAIN: u32 = 0x45;
    if config.tunnel_source == 0 || config.flags & FLAG_HOST_POLICY != 0 {
        return false;
    }
    let Some(h) = p.words::<6>(ETH_HLEN) else { return false };
    let [_, _, to_high, to_low] = h[5].to_ne_bytes();
    h[4] == config.tunnel_source
        && u32::from_be(h[0]) >> 24 == PLAIN
        && u32::from_be(h[1]) & 0x3fff == 0
        && (u32::from_be(h[2]) >> 16) as u8 == UDP
        && u16::from_ne_bytes([to_high, to_low]) == config.tunnel_port
}

#[inline(never)]
fn ip<F: Pick, W: World + Net<F>, P: Packet>(
    w: &W,
    p: &mut P,
    room: &mut Room<F>,
    config: &Config,
) -> Outcome {
    room.note = Note { hook: HOOK_FROM_NETWORK, ..Note::default() };
    let reason = p.parse(room, true);
    if reason.0 != 0 {
        return dropped(w, p, config, room, reason);
    }
    if <W as Net<F>>::local(w, &room.facts.src).is_some() {
        return dropped(w, p, config, room, Reason::SOURCE_IP);
    }
    let local = <W as Net<F>>::local(w, &room.facts.dst);
    if config.flags & FLAG_HOST_POLICY != 0 && host::is_for_host(p, &room.facts, local) {
        return host::ingress(w, p, room, config);
    }
    let Some(local) = local else { return Outcome::PASS };
    if local.slot == SLOT_HOST {
        return Outcome::PASS;
    }
    find_sender(w, room);
    if config.overlay_ifindex != 0 && room.sender.tunnelled {
        // What it sends to an endpoint comes by the tunnel, where it is known which node sends it.
        return dropped(w, p, config, room, Reason::UNKNOWN_SENDER);
    }
    if config.flags & FLAG_IPSEC != 0 || config.flags & F::DIRECT == 0 && !room.sender.routed {
        return Outcome::PASS;
    }
    let Some(endpoint) = w.endpoint(local.slot) else { return Outcome::PASS };
    if endpoint.flags & FLAG_ACTIVE == 0 {
        return Outcome::PASS;
    }
    shortcut(w, p, room, config, endpoint)
}

/// Parses a packet for an endpoint, whose sender has been found out, judges it and hands it over.
#[inline(never)]
fn shortcut<F: Pick, W: World + Net<F>, P: Packet>(
    w: &W,
    p: &mut P,
    room: &mut Room<F>,
    config: &Config,
    endpoint: &Endpoint,
) -> Outcome {
    room.note = Note { hook: HOOK_FROM_NETWORK, endpoint: endpoint.id, ..Note::default() };
    let reason = p.parse(room, false);
    if reason.0 != 0 {
        return dropped(w, p, config, room, reason);
    }
    room.tunnel = Tunnel::default();
    hand_over(w, p, room, config, endpoint)
}

/// Judges a packet for an endpoint, whose sender has been found out, and hands it over past the stack, unless its flow belongs
/// to the stack, or may: what no tunnel has brought and does not open a flow may be for the host's NAT to turn back.
#[inline(always)]
pub(crate) fn hand_over<F: Pick, W: World + Net<F>, P: Packet>(
    w: &W,
    p: &mut P,
    room: &mut Room<F>,
    config: &Config,
    endpoint: &Endpoint,
) -> Outcome {
    room.note.endpoint = endpoint.id;
    room.note.src_identity = room.sender.identity;
    room.note.dst_identity = endpoint.identity;
    let now = w.now();
    let known = match known(w, p, room, now) {
        Ok(known) => known,
        Err(reason) => return dropped(w, p, config, room, reason),
    };
    let Some(action) = way_to(endpoint) else { return Outcome::PASS };
    if known.via_stack() || room.facts.ttl <= 1 || too_big(p, &room.facts, endpoint.mtu) {
        return Outcome::PASS;
    }
    if known.flow.is_none() && room.tunnel.from == 0 && !flow::opens(&room.facts) {
        return Outcome::PASS;
    }
    room.note.state = known.state;
    let (src, dst, tunnel) = (Side::sender(room.sender), Side::endpoint(endpoint, true), room.tunnel.from);
    let case = Case { known, src, dst, config, now, way: 0, account: true, tunnel };
    let wanted = match judge(w, p, room, &case) {
        Ok(wanted) => wanted,
        Err(reason) => return dropped(w, p, config, room, reason),
    };
    if !route(p, &room.facts, &endpoint.mac, &endpoint.node_mac) {
        return dropped(w, p, config, room, Reason::WRITE);
    }
    w.count(Reason::FORWARDED, 0, p.len());
    room.note.direction = 0;
    room.note.point = POINT_TO_ENDPOINT;
    room.note.endpoint = endpoint.id;
    room.note.ifindex = endpoint.ifindex;
    report::trace(w, p, config, room, wanted);
    Outcome::leave(
        match action {
            Action::Peer => Action::Peer,
            _ => Action::Device,
        },
        endpoint.ifindex,
    )
}
