//! The node itself as an endpoint: what comes in on an uplink for it and what it sends out there, judged by its own
//! policy, and the hook to-network.
//!
//! What goes from the host to an endpoint of this node or back meets only the endpoint's hooks and is judged there.
//! A packet is the host's own if it was made on this node; what the stack forwards keeps the interface it came in by,
//! also when the stack's NAT has lent it an address of the node.

use villus_abi::{
    Config, Endpoint, Local, Reason,
    config::{FLAG_AUDIT as CONFIG_AUDIT, FLAG_HOST_POLICY},
    endpoint::{
        FLAG_ACTIVE, FLAG_AUDIT_DEFAULT_EGRESS, FLAG_AUDIT_DEFAULT_INGRESS, FLAG_AUDIT_EGRESS,
        FLAG_AUDIT_INGRESS, HOST_ID, SLOT_HOST,
    },
    event::{HOOK_FROM_NETWORK, HOOK_TO_NETWORK, POINT_TO_HOST, POINT_TO_NETWORK, STATE_RELATED},
    flow::{FLOW_TRANSLATED, FLOW_VIA_STACK},
    time::Tick,
};

use crate::{
    deliver::{ETHERTYPE_IPV4, ETHERTYPE_IPV6},
    endpoint::trace_sent,
    family::{Family, V4, V6},
    flow::{self, Known},
    judge::{Case, HOST, Side, find_sender, judge, key, look_up},
    outcome::{MARK_MASK, MARK_OPENED, MARK_ROUTED, Outcome},
    parse::{Facts, IGMP, Kind, UDP},
    report::{self, Note, dropped},
    work::{Pick, Room, Work},
    world::{Net, Packet, World},
};

/// The node's record, if it is in use.
#[inline(always)]
pub(crate) fn record<W: World>(w: &W) -> Option<&Endpoint> {
    let record = w.endpoint(SLOT_HOST)?;
    if record.flags & FLAG_ACTIVE == 0 { None } else { Some(record) }
}

/// Whether a packet from outside is for the node: one of its addresses, the link's own addresses, or everybody's.
#[inline(always)]
pub(crate) fn is_for_host<F: Family, P: Packet>(p: &P, facts: &Facts<F>, local: Option<Local>) -> bool {
    if let Some(local) = local {
        return local.slot == SLOT_HOST;
    }
    if F::V6 && F::is_link_local(&facts.dst) {
        return true;
    }
    // The lowest bit of a MAC's first byte is that of groups: multicast and any broadcast.
    matches!(p.halves::<1>(0), Some([first]) if first.to_ne_bytes()[0] & 1 != 0)
}

/// What policy has no say in, or the node would lose its network: neighbour and router discovery, memberships of groups,
/// DHCP of the node's own client.
#[inline(always)]
fn is_free<F: Family>(facts: &Facts<F>, ingress: bool) -> bool {
    if F::V6 && facts.proto == F::ICMP {
        // Discovery comes from this link or not at all: routers would have taken one from 255.
        return match facts.icmp_type {
            133..=137 => facts.ttl == 255,
            130..=132 | 143 => true,
            _ => false,
        };
    }
    if !F::V6 && facts.proto == IGMP {
        return true;
    }
    let (server, client) = if F::V6 { (547_u16, 546_u16) } else { (67, 68) };
    let (from, to) = if ingress { (server, client) } else { (client, server) };
    facts.proto == UDP && !facts.later && facts.sport == from.to_be() && facts.dport == to.to_be()
}

/// Whether a packet is one of the tunnel between nodes, to or from `other`.
#[inline(never)]
pub(crate) fn is_tunnel<F: Family, W: World>(
    w: &W,
    config: &Config,
    facts: &Facts<F>,
    other: &F::Addr,
) -> bool {
    config.overlay_ifindex != 0
        && facts.proto == UDP
        && !facts.later
        && facts.dport == config.tunnel_port
        && w.node(&F::mapped(other)).is_some()
}

/// Protocols without ports are the host's as well, and are judged without flows.
#[inline(always)]
fn is_portless<F: Family>(facts: &Facts<F>) -> bool {
    facts.kind as u8 == Kind::Unknown as u8 && !facts.fragment
}

#[inline(always)]
fn is_translated(known: &Known<'_>) -> bool {
    matches!(known.flow, Some(flow) if flow.flags.get() & FLOW_TRANSLATED != 0)
}

/// Whether what may not pass in a direction does so all the same. Where only some policies are audited, what the others
/// deny, or may deny, does not.
#[inline(always)]
fn is_audited(host: &Endpoint, config: &Config, direction: u8, reason: Reason) -> bool {
    let (all, default) = if direction == 0 {
        (FLAG_AUDIT_INGRESS, FLAG_AUDIT_DEFAULT_INGRESS)
    } else {
        (FLAG_AUDIT_EGRESS, FLAG_AUDIT_DEFAULT_EGRESS)
    };
    let held = reason.0 == Reason::POLICY_DENY.0 || reason.0 == Reason::IDENTITY_PENDING.0;
    config.flags & CONFIG_AUDIT != 0 || host.flags & all != 0 || (host.flags & default != 0 && !held)
}

/// Drops what may not pass. In audit mode nothing of the host's is dropped, for whatever reason.
#[inline(always)]
fn refuse<F: Pick, W: World, P: Packet>(
    w: &W,
    p: &P,
    config: &Config,
    room: &mut Room<F>,
    host: &Endpoint,
    reason: Reason,
) -> Outcome {
    if !is_audited(host, config, room.note.direction, reason) {
        return dropped(w, p, config, room, reason);
    }
    w.count(Reason::FORWARDED, room.note.direction, p.len());
    room.note.reason = reason.0;
    room.note.audited = true;
    report::verdict(w, p, config, room);
    Outcome::PASS
}

/// A packet from outside for the node: its ingress policy is asked. What other nodes send to the tunnel's port passes: what
/// is in it meets its own hook.
#[inline(never)]
pub(crate) fn ingress<F: Pick, W: World + Net<F>, P: Packet>(
    w: &W,
    p: &P,
    room: &mut Room<F>,
    config: &Config,
) -> Outcome {
    let Some(host) = record(w) else { return Outcome::PASS };
    room.note = Note { hook: HOOK_FROM_NETWORK, dst_identity: HOST, ..Note::default() };
    let reason = p.parse(room, false);
    if reason.0 != 0 {
        return refuse(w, p, config, room, host, reason);
    }
    if is_free(&room.facts, true) || is_tunnel(w, config, &room.facts, &room.facts.src) {
        return Outcome::PASS;
    }
    find_sender(w, room);
    judge_ingress(w, p, room, config, host)
}

/// A packet for the node, parsed, whose sender has been found out: its ingress policy is asked.
#[inline(always)]
pub(crate) fn judge_ingress<F: Pick, W: World + Net<F>, P: Packet>(
    w: &W,
    p: &P,
    room: &mut Room<F>,
    config: &Config,
    host: &Endpoint,
) -> Outcome {
    room.note.dst_identity = HOST;
    let now = w.now();
    let reason = key(w, p, room, now);
    if reason.0 != 0 && !is_portless(&room.facts) {
        return refuse(w, p, config, room, host, reason);
    }
    let known = look_up(w, p, room, now);
    if is_translated(&known) && !known.forward {
        // The answer to a forwarded packet; where it goes in the end it is judged.
        if let Some(flow) = known.flow
            && known.state != STATE_RELATED
        {
            flow::touch(w, flow, &room.facts, config, now, false, Some(p.len()));
        }
        return Outcome::PASS;
    }
    room.note.state = known.state;
    let (src, dst) = (Side::sender(room.sender), Side::host(w, config));
    room.note.src_identity = src.identity;
    let case = Case { known, src, dst, config, now, way: FLOW_VIA_STACK, account: true, tunnel: 0 };
    match judge(w, p, room, &case) {
        Ok(wanted) => passed(w, p, room, config, 0, POINT_TO_HOST, wanted),
        Err(reason) => refuse(w, p, config, room, host, reason),
    }
}

/// A packet from an address of an endpoint to the node, which policy selects: the endpoint's egress and the node's ingress
/// policy are asked.
#[inline(never)]
pub(crate) fn from_endpoint<F: Pick, W: World + Net<F>, P: Packet>(
    w: &W,
    p: &P,
    room: &mut Room<F>,
    endpoint: &Endpoint,
    config: &Config,
) -> Outcome {
    trace_sent(w, p, room, config);
    let now = w.now();
    let reason = key(w, p, room, now);
    if reason.0 != 0 {
        return dropped(w, p, config, room, reason);
    }
    let known = look_up(w, p, room, now);
    room.note.state = known.state;
    room.note.dst_identity = HOST;
    let (src, dst) = (Side::endpoint(endpoint, true), Side::host(w, config));
    let judged = dst.judged.is_some();
    let case = Case { known, src, dst, config, now, way: FLOW_VIA_STACK, account: true, tunnel: 0 };
    let wanted = match judge(w, p, room, &case) {
        Ok(wanted) => wanted,
        Err(reason) => return dropped(w, p, config, room, reason),
    };
    if judged {
        w.count(Reason::FORWARDED, 0, p.len());
    }
    w.count(Reason::FORWARDED, 1, p.len());
    room.note.point = POINT_TO_HOST;
    room.note.direction = 1;
    room.note.endpoint = endpoint.id;
    room.note.peer = HOST_ID;
    room.note.ifindex = 0;
    report::trace(w, p, config, room, wanted);
    Outcome::PASS
}

/// Counts and reports what the host's policy let pass.
#[inline(always)]
fn passed<F: Pick, W: World, P: Packet>(
    w: &W,
    p: &P,
    room: &mut Room<F>,
    config: &Config,
    direction: u8,
    point: u8,
    wanted: bool,
) -> Outcome {
    w.count(Reason::FORWARDED, direction, p.len());
    room.note.direction = direction;
    room.note.point = point;
    room.note.ifindex = p.ifindex();
    report::trace(w, p, config, room, wanted);
    Outcome::PASS
}

/// Whether an endpoint sends the packet past the stack.
#[inline(always)]
pub(crate) fn is_routed<P: Packet>(p: &P) -> bool {
    p.mark() & MARK_MASK == MARK_ROUTED && p.ingress_ifindex() != 0
}

/// What goes out on an uplink: the node's own packets are judged by its egress policy, if policy selects the node; for
/// what it forwards under its own address the answers are let through. Everything else passes.
#[inline(always)]
pub fn to_network<W: World, P: Packet>(w: &W, p: &mut P, work: &mut Work) -> Outcome {
    let Some(config) = w.config() else { return Outcome::PASS };
    // A tagged frame was judged on its VLAN device.
    if config.flags & FLAG_HOST_POLICY == 0 || p.vlan() || is_routed(p) {
        return Outcome::PASS;
    }
    let Some(eth) = p.halves::<7>(0) else { return Outcome::PASS };
    match u16::from_be(eth[6]) {
        ETHERTYPE_IPV4 if config.flags & V4::ENABLED != 0 => egress(w, p, V4::room(work), config),
        ETHERTYPE_IPV6 if config.flags & V6::ENABLED != 0 => egress(w, p, V6::room(work), config),
        _ => Outcome::PASS,
    }
}

#[inline(never)]
fn egress<F: Pick, W: World + Net<F>, P: Packet>(
    w: &W,
    p: &P,
    room: &mut Room<F>,
    config: &Config,
) -> Outcome {
    let Some(host) = record(w) else { return Outcome::PASS };
    room.note = Note { hook: HOOK_TO_NETWORK, direction: 1, src_identity: HOST, ..Note::default() };
    let made_here = p.ingress_ifindex() == 0;
    let mut reason = p.parse(room, true);
    if reason.0 == 0 {
        let own = match <W as Net<F>>::local(w, &room.facts.src) {
            Some(local) => local.slot == SLOT_HOST,
            None => F::V6 && made_here && F::is_link_local(&room.facts.src),
        };
        if !own {
            return Outcome::PASS;
        }
        reason = p.parse(room, false);
    }
    if reason.0 != 0 {
        return if made_here { refuse(w, p, config, room, host, reason) } else { Outcome::PASS };
    }
    if is_free(&room.facts, false) || is_tunnel(w, config, &room.facts, &room.facts.dst) {
        return Outcome::PASS;
    }
    judge_egress(w, p, room, (config, host), made_here)
}

/// A packet with an address of the node as its source, parsed: if it was made here the node's egress policy is asked.
#[inline(always)]
pub(crate) fn judge_egress<F: Pick, W: World + Net<F>, P: Packet>(
    w: &W,
    p: &P,
    room: &mut Room<F>,
    (config, host): (&Config, &Endpoint),
    made_here: bool,
) -> Outcome {
    let now = w.now();
    if !made_here {
        return forwarded(w, p, room, config, now, host);
    }
    let reason = key(w, p, room, now);
    if reason.0 != 0 && !is_portless(&room.facts) {
        return refuse(w, p, config, room, host, reason);
    }
    let mut known = look_up(w, p, room, now);
    if is_translated(&known) {
        if known.state == STATE_RELATED {
            return Outcome::PASS;
        }
        // The NAT has given the port back, and the host itself uses it.
        known = Known::NEW;
    }
    room.note.state = known.state;
    let dst = Side::remote::<F, W>(w, &room.facts.dst);
    let mut src = Side::host(w, config);
    // A router's errors about flows belong to those.
    if known.state == STATE_RELATED && !known.from_end {
        src.judged = None;
    }
    room.note.dst_identity = dst.identity;
    let case = Case { known, src, dst, config, now, way: FLOW_VIA_STACK, account: true, tunnel: 0 };
    match judge(w, p, room, &case) {
        Ok(wanted) => passed(w, p, room, config, 1, POINT_TO_NETWORK, wanted),
        Err(reason) => refuse(w, p, config, room, host, reason),
    }
}

/// A packet that the stack forwards under one of the node's addresses. If it belongs to a flow that somebody behind the
/// node opened, the flow is remembered, so that its answers are not taken for the host's. Otherwise it is an answer itself,
/// to what the host's policy judged when it came in.
#[inline(always)]
fn forwarded<F: Pick, W: World + Net<F>, P: Packet>(
    w: &W,
    p: &P,
    room: &mut Room<F>,
    config: &Config,
    now: Tick,
    host: &Endpoint,
) -> Outcome {
    if key(w, p, room, now).0 != 0 {
        return Outcome::PASS;
    }
    let known = look_up(w, p, room, now);
    if let Some(flow) = known.flow
        && (!known.forward || known.state == STATE_RELATED || is_translated(&known))
    {
        if known.state != STATE_RELATED {
            flow::touch(w, flow, &room.facts, config, now, known.forward, Some(p.len()));
        }
        return Outcome::PASS;
    }
    if opens(w, p, &room.facts, is_audited(host, config, 0, Reason::FORWARDED)) {
        let flow = &mut room.row.flow;
        flow::open(flow, &room.facts, &room.key, config, now, FLOW_TRANSLATED | FLOW_VIA_STACK, p.len());
        flow.src_identity = HOST;
        flow.dst_identity = 0;
        flow.src_endpoint = 0;
        flow.dst_endpoint = 0;
        flow.tunnel = 0;
        // Without it the answers are judged as the host's; there is nothing else to be done.
        <W as Net<F>>::create(w, &room.key.key, room.key.tcp, &room.row);
    }
    Outcome::PASS
}

/// Whether a forwarded packet of no known flow comes from the side that opened it. Endpoints' packets say so by their mark;
/// of others only a first packet does, and in audit mode also what was open before policy selected the node.
#[inline(always)]
fn opens<F: Family, W: World, P: Packet>(w: &W, p: &P, facts: &Facts<F>, audited: bool) -> bool {
    if !matches!(facts.kind, Kind::Tcp | Kind::Datagram | Kind::Question) {
        return false;
    }
    if w.device(p.ingress_ifindex()).is_some() {
        return p.mark() & MARK_MASK == MARK_OPENED;
    }
    audited || facts.kind as u8 != Kind::Tcp as u8 || flow::opens_tcp(facts.tcp_flags)
}
