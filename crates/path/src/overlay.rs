//! The hooks of the tunnel between nodes: what it brings, and what the host's stack sends into it.
//!
//! A tunnel's packet shows its sender's identity. It is believed if a node sent it and its source lives on that node, or
//! nobody knows where.

use villus_abi::{
    Config, Endpoint, IpcacheValue, Node, Reason,
    config::FLAG_HOST_POLICY,
    endpoint::{FLAG_ACTIVE, SLOT_HOST},
    event::{HOOK_FROM_OVERLAY, HOOK_TO_OVERLAY},
    flow::FLOW_VIA_STACK,
    ipcache::FLAG_PENDING,
};

use crate::{
    deliver::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, endpoint_of},
    family::{Family, V4, V6},
    flow, host,
    judge::{HOST, Sender, Side, WORLD, find_sender, known},
    network::hand_over,
    outcome::{Action, MARK_MASK, MARK_OVERLAY, Outcome},
    parse::{Facts, IGMP, Kind},
    report::{Note, dropped, dropped_frame},
    work::{Pick, Room, Work},
    world::{Net, Packet, Tunnel, World},
};

/// Identity of other nodes, which is what this one is to them.
pub(crate) const REMOTE_NODE: u32 = 6;
/// Identities of all addresses of a family that have no other.
const WORLD_V4: u32 = 9;
const WORLD_V6: u32 = 10;
/// What the highest byte of an identity says: it is of a prefix, or of an endpoint whose identity has not been agreed on; of
/// another node.
const LOCAL_SCOPE: u32 = 1;
const NODE_SCOPE: u32 = 2;

/// Whether an identity is that of another node, whichever or a known one.
#[inline(always)]
pub(crate) const fn is_node(identity: u32) -> bool {
    identity == REMOTE_NODE || identity >> 24 == NODE_SCOPE
}

/// What the tunnel brings: its sender must be a node, its source an address of that node or of nobody known. Packets for
/// endpoints are judged and handed over here, those for the node go up the stack, judged if policy selects the node.
#[inline(always)]
pub fn from_overlay<W: World, P: Packet>(w: &W, p: &mut P, work: &mut Work) -> Outcome {
    let Some(config) = w.config() else { return Outcome::drop(Reason::NOT_READY) };
    let reason = 'refused: {
        if config.flags == 0 || config.overlay_ifindex == 0 {
            break 'refused Reason::NOT_READY;
        }
        let Some(tunnel) = p.tunnel() else { break 'refused Reason::TUNNEL_KEY };
        if tunnel.identity == HOST {
            break 'refused Reason::IDENTITY;
        }
        let Some(node) = w.node(&villus_abi::node::mapped(tunnel.from)) else {
            break 'refused Reason::UNKNOWN_SENDER;
        };
        let tunnel = Tunnel { from: node.tunnel, identity: tunnel.identity };
        let Some(eth) = p.halves::<7>(0) else { break 'refused Reason::INVALID };
        match u16::from_be(eth[6]) {
            ETHERTYPE_IPV4 if config.flags & V4::ENABLED != 0 => {
                let room = V4::room(work);
                room.tunnel = tunnel;
                return brought(w, p, room, config);
            }
            ETHERTYPE_IPV6 if config.flags & V6::ENABLED != 0 => {
                let room = V6::room(work);
                room.tunnel = tunnel;
                return brought(w, p, room, config);
            }
            _ => Reason::UNSUPPORTED_L3,
        }
    };
    dropped_frame(w, p, config, work, reason, (HOOK_FROM_OVERLAY, 0), 0)
}

#[inline(never)]
fn brought<F: Pick, W: World + Net<F>, P: Packet>(
    w: &W,
    p: &mut P,
    room: &mut Room<F>,
    config: &Config,
) -> Outcome {
    room.note = Note { hook: HOOK_FROM_OVERLAY, src_identity: room.tunnel.identity, ..Note::default() };
    let mut reason = p.parse(room, false);
    if reason.0 == 0 {
        reason = refusal(w, room);
    }
    if reason.0 != 0 {
        return dropped(w, p, config, room, reason);
    }
    let shown = room.tunnel.identity;
    if shown == 0 || shown == REMOTE_NODE {
        find_sender(w, room);
    }
    // This node may tell others apart, which they do not know.
    let is_told = shown == REMOTE_NODE && room.sender.identity >> 24 == NODE_SCOPE;
    if shown != 0 && !is_told {
        room.sender = Sender { identity: shown, ..Sender::default() };
    }
    let Some(local) = <W as Net<F>>::local(w, &room.facts.dst) else {
        return dropped(w, p, config, room, Reason::UNKNOWN_TARGET);
    };
    if local.slot == SLOT_HOST {
        return match host::record(w) {
            Some(record) if config.flags & FLAG_HOST_POLICY != 0 => {
                host::judge_ingress(w, p, room, config, record)
            }
            _ => Outcome::PASS,
        };
    }
    let endpoint = match w.endpoint(local.slot) {
        Some(endpoint) if endpoint.flags & FLAG_ACTIVE != 0 => endpoint,
        _ => return dropped(w, p, config, room, Reason::STALE),
    };
    hand_over(w, p, room, config, endpoint)
}

/// Why a packet may not come by the tunnel.
#[inline(always)]
fn refusal<F: Pick, W: World + Net<F>>(w: &W, room: &Room<F>) -> Reason {
    let facts = &room.facts;
    if is_of_link(facts) {
        return Reason::FORBIDDEN_ICMP6;
    }
    if <W as Net<F>>::local(w, &facts.src).is_some() {
        return Reason::SOURCE_IP;
    }
    if lives_there::<F, W>(w, &facts.src, room.tunnel.from) {
        Reason::FORWARDED
    } else {
        Reason::UNKNOWN_SENDER
    }
}

/// Discovery of neighbours, routers and groups is a matter of one link.
#[inline(always)]
fn is_of_link<F: Family>(facts: &Facts<F>) -> bool {
    F::V6 && facts.proto == F::ICMP && matches!(facts.icmp_type, 130..=137 | 143)
}

/// Whether an address lives behind a node, or nobody knows where.
#[inline(always)]
fn lives_there<F: Family, W: World + Net<F>>(w: &W, addr: &F::Addr, tunnel: u32) -> bool {
    let row = <W as Net<F>>::remote(w, addr).unwrap_or_default();
    if row.tunnel != 0 {
        return row.tunnel == tunnel;
    }
    is_nobodys(&row) || matches!(w.node(&F::mapped(addr)), Some(Node { tunnel: of, .. }) if of == tunnel)
}

/// Whether a row of the ipcache says nothing of who has its addresses.
#[inline(always)]
fn is_nobodys(row: &IpcacheValue) -> bool {
    row.flags & FLAG_PENDING != 0
        || matches!(row.identity, 0 | WORLD | WORLD_V4 | WORLD_V6)
        || row.identity >> 24 == LOCAL_SCOPE
}

/// What the host's stack sends into the tunnel: it is told where to and who from. What an endpoint sends there directly has
/// been.
#[inline(always)]
pub fn to_overlay<W: World, P: Packet>(w: &W, p: &mut P, work: &mut Work) -> Outcome {
    if p.mark() & MARK_MASK == MARK_OVERLAY {
        return Outcome::PASS;
    }
    let Some(config) = w.config() else { return Outcome::drop(Reason::NOT_READY) };
    let reason = 'refused: {
        if config.flags == 0 || config.overlay_ifindex == 0 {
            break 'refused Reason::NOT_READY;
        }
        let Some(eth) = p.halves::<7>(0) else { break 'refused Reason::INVALID };
        match u16::from_be(eth[6]) {
            ETHERTYPE_IPV4 if config.flags & V4::ENABLED != 0 => return sent(w, p, V4::room(work), config),
            ETHERTYPE_IPV6 if config.flags & V6::ENABLED != 0 => return sent(w, p, V6::room(work), config),
            _ => Reason::UNSUPPORTED_L3,
        }
    };
    dropped_frame(w, p, config, work, reason, (HOOK_TO_OVERLAY, 1), 0)
}

#[inline(never)]
fn sent<F: Pick, W: World + Net<F>, P: Packet>(
    w: &W,
    p: &mut P,
    room: &mut Room<F>,
    config: &Config,
) -> Outcome {
    room.note = Note { hook: HOOK_TO_OVERLAY, direction: 1, ..Note::default() };
    let reason = p.parse(room, false);
    if reason.0 != 0 {
        return dropped(w, p, config, room, reason);
    }
    if is_of_link(&room.facts) {
        return dropped(w, p, config, room, Reason::MLD);
    }
    if room.facts.proto == IGMP {
        return dropped(w, p, config, room, Reason::IGMP);
    }
    let row = <W as Net<F>>::remote(w, &room.facts.dst).unwrap_or_default();
    if row.tunnel == 0 {
        return dropped(w, p, config, room, Reason::NO_TUNNEL);
    }
    let ingress = p.ingress_ifindex();
    let identity = match <W as Net<F>>::local(w, &room.facts.src) {
        Some(local) if local.slot == SLOT_HOST => {
            if config.flags & FLAG_HOST_POLICY != 0
                && let Some(record) = host::record(w)
            {
                room.note.src_identity = HOST;
                let outcome = host::judge_egress(w, p, room, (config, record), ingress == 0);
                if outcome.action() as u8 == Action::Drop as u8 {
                    return outcome;
                }
            }
            // What others sent has one of our addresses by the stack's NAT.
            if ingress == 0 { REMOTE_NODE } else { WORLD }
        }
        Some(local) => match endpoint_of(w, ingress) {
            Some(endpoint) if endpoint.id as u32 == local.slot => {
                let reason = remember(w, p, room, (config, endpoint));
                if reason.0 != 0 {
                    return dropped(w, p, config, room, reason);
                }
                endpoint.identity
            }
            _ => return dropped(w, p, config, room, Reason::SOURCE_IP),
        },
        None => WORLD,
    };
    if !p.encapsulate(row.tunnel, identity) {
        return dropped(w, p, config, room, Reason::TUNNEL_KEY);
    }
    Outcome::PASS
}

/// An endpoint's packet that has gone through the stack was judged when it was sent. If the stack has given it another
/// destination its flow is written down under that, so that answers go up the stack, which turns them back.
#[inline(always)]
fn remember<F: Pick, W: World + Net<F>, P: Packet>(
    w: &W,
    p: &P,
    room: &mut Room<F>,
    (config, endpoint): (&Config, &Endpoint),
) -> Reason {
    let now = w.now();
    room.note.src_identity = endpoint.identity;
    room.note.endpoint = endpoint.id;
    let known = match known(w, p, room, now) {
        Ok(known) => known,
        Err(reason) => return reason,
    };
    if known.flow.is_some() || !matches!(room.facts.kind, Kind::Tcp | Kind::Datagram | Kind::Question) {
        return Reason::FORWARDED;
    }
    let dst_identity = Side::remote::<F, W>(w, &room.facts.dst).identity;
    let flow = &mut room.row.flow;
    flow::open(flow, &room.facts, &room.key, config, now, FLOW_VIA_STACK, p.len());
    flow.src_identity = endpoint.identity;
    flow.dst_identity = dst_identity;
    flow.src_endpoint = endpoint.id;
    flow.dst_endpoint = 0;
    flow.tunnel = 0;
    if <W as Net<F>>::create(w, &room.key.key, room.key.tcp, &room.row) {
        Reason::FORWARDED
    } else {
        Reason::CT_INSERT
    }
}
