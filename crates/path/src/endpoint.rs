//! The hook from-endpoint: everything an endpoint sends.

use villus_abi::{
    Config, Endpoint, IpcacheValue, Reason,
    config::{FLAG_HOST_POLICY, FLAG_IPSEC, FLAG_TRACE_ALL},
    endpoint::{FLAG_ACTIVE, FLAG_CHECK_MAC, FLAG_DHCP, SLOT_HOST},
    event::{
        HOOK_FROM_ENDPOINT, POINT_FROM_ENDPOINT, POINT_TO_ENDPOINT, POINT_TO_HOST, POINT_TO_NETWORK,
        POINT_TO_OVERLAY, POINT_TO_STACK, STATE_UNKNOWN,
    },
    flow::FLOW_VIA_STACK,
    ipcache::FLAG_ROUTED,
};

use crate::{
    deliver::{
        ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ, ETHERTYPE_VLAN, endpoint_of, finish,
        largest, route, too_big, way_to,
    },
    family::{Family, V4, V6},
    flow::{self, Known},
    host,
    judge::{Case, Side, judge, known},
    neighbour,
    outcome::{Action, Outcome},
    parse::{Facts, IGMP, Kind, UDP},
    report::{self, Note, dropped, dropped_frame},
    work::{Pick, Room, Work},
    world::{Neighbour, Net, Packet, World},
};

/// Everything an endpoint sends: its source is checked, its egress policy asked, and the destination's
/// ingress policy too if the packet is handed over directly.
#[inline(always)]
pub fn from_endpoint<W: World, P: Packet>(w: &W, p: &mut P, work: &mut Work) -> Outcome {
    let Some(config) = w.config() else { return Outcome::drop(Reason::NOT_READY) };
    let Some(endpoint) = endpoint_of(w, p.ifindex()) else {
        return dropped_frame(w, p, config, work, Reason::NO_ENDPOINT, (HOOK_FROM_ENDPOINT, 1), 0);
    };
    let reason = 'refused: {
        if config.flags == 0 {
            break 'refused Reason::NOT_READY;
        }
        if p.vlan() {
            break 'refused Reason::VLAN;
        }
        let Some(eth) = p.halves::<7>(0) else { break 'refused Reason::INVALID };
        if endpoint.flags & FLAG_CHECK_MAC != 0 && !same_mac(&eth, &endpoint.mac) {
            break 'refused Reason::SOURCE_MAC;
        }
        match u16::from_be(eth[6]) {
            ETHERTYPE_IPV4 if config.flags & V4::ENABLED != 0 => {
                return ip(w, p, V4::room(work), endpoint, config);
            }
            ETHERTYPE_IPV6 if config.flags & V6::ENABLED != 0 => {
                return ip(w, p, V6::room(work), endpoint, config);
            }
            ETHERTYPE_ARP if config.flags & V4::ENABLED != 0 => {
                return neighbour::arp(w, p, work, endpoint, config);
            }
            ETHERTYPE_VLAN | ETHERTYPE_QINQ => Reason::VLAN,
            _ => Reason::UNSUPPORTED_L3,
        }
    };
    dropped_frame(w, p, config, work, reason, (HOOK_FROM_ENDPOINT, 1), endpoint.id)
}

#[inline(always)]
fn same_mac(eth: &[u16; 7], mac: &[u8; 6]) -> bool {
    eth[3] == u16::from_ne_bytes([mac[0], mac[1]])
        && eth[4] == u16::from_ne_bytes([mac[2], mac[3]])
        && eth[5] == u16::from_ne_bytes([mac[4], mac[5]])
}

/// Whether an address is the endpoint's own.
#[inline(always)]
pub(crate) fn owns<F: Family, W: Net<F>>(w: &W, endpoint: &Endpoint, addr: &F::Addr) -> bool {
    if F::is_unspecified(addr) {
        return false;
    }
    if F::first_of(endpoint) == *addr {
        return true;
    }
    matches!(w.local(addr), Some(local) if local.slot == endpoint.id as u32 && local.slot != SLOT_HOST)
}

/// Parses an endpoint's packet, checks its source, and ends what policy has no say in.
#[inline(always)]
fn ip<F: Pick, W: World + Net<F>, P: Packet>(
    w: &W,
    p: &mut P,
    room: &mut Room<F>,
    endpoint: &Endpoint,
    config: &Config,
) -> Outcome {
    room.note = Note { hook: HOOK_FROM_ENDPOINT, endpoint: endpoint.id, direction: 1, ..Note::default() };
    room.note.src_identity = endpoint.identity;
    let reason = p.parse(room, false);
    if reason.0 != 0 {
        return dropped(w, p, config, room, reason);
    }
    let own = owns::<F, W>(w, endpoint, &room.facts.src);
    let icmp = room.facts.icmp_type;
    let discovery = F::V6 && room.facts.proto == F::ICMP && (130..=143).contains(&icmp);
    if own && !discovery && !F::is_multicast(&room.facts.dst) {
        if config.flags & FLAG_HOST_POLICY != 0
            && matches!(<W as Net<F>>::local(w, &room.facts.dst), Some(local) if local.slot == SLOT_HOST)
        {
            return host::from_endpoint(w, p, room, endpoint, config);
        }
        return unicast(w, p, room, endpoint, config);
    }
    if discovery && (icmp == 135 || icmp == 136) {
        return neighbour::discovery(w, p, room, endpoint, config);
    }
    let end = special(&room.facts, endpoint, own);
    finish(w, p, config, room, end)
}

/// A packet from an address of the endpoint to somebody.
#[inline(never)]
fn unicast<F: Pick, W: World + Net<F>, P: Packet>(
    w: &W,
    p: &mut P,
    room: &mut Room<F>,
    endpoint: &Endpoint,
    config: &Config,
) -> Outcome {
    trace_sent(w, p, room, config);
    let now = w.now();
    let known = match known(w, p, room, now) {
        Ok(known) => known,
        Err(reason) => return dropped(w, p, config, room, reason),
    };
    room.note.state = known.state;

    let mut way = Way { point: POINT_TO_STACK, action: Action::Pass, flow: FLOW_VIA_STACK };
    let expiring = room.facts.ttl <= 1;
    let (local, to) = local_of::<F, W>(w, &known, &room.facts.dst);
    let dst = match local {
        Some(SLOT_HOST) => {
            way.point = POINT_TO_HOST;
            Side::host_as_peer()
        }
        Some(_) => {
            let Some(to) = to else {
                return dropped(w, p, config, room, Reason::STALE);
            };
            if let Some(action) = way_to(to)
                && !known.via_stack()
            {
                way.flow = 0;
                if !expiring && !too_big(p, &room.facts, to.mtu) {
                    way.point = POINT_TO_ENDPOINT;
                    way.action = action;
                    room.next = Neighbour { ifindex: to.ifindex, mac: to.mac, own_mac: to.node_mac };
                }
            }
            Side::endpoint(to, way.point == POINT_TO_ENDPOINT)
        }
        None => {
            let row = <W as Net<F>>::remote(w, &room.facts.dst).unwrap_or_default();
            room.via = tunnel_to(config, &known, &row);
            if room.via != 0 {
                way.flow = 0;
                if !expiring && !known.via_stack() && !too_big(p, &room.facts, config.overlay_mtu) {
                    way = Way { point: POINT_TO_OVERLAY, action: Action::Tunnel, flow: 0 };
                    // Ethernet addresses mean nothing in the tunnel.
                    let mac = endpoint.node_mac;
                    room.next = Neighbour { ifindex: config.overlay_ifindex, mac, own_mac: mac };
                }
            } else if !known.via_stack() && is_past_stack(config, &known, &room.facts, &row) {
                way.flow = 0;
                if !expiring && neighbour_of(p, &room.facts, &mut room.next) {
                    way = Way { point: POINT_TO_NETWORK, action: Action::Neighbour, flow: 0 };
                }
            }
            Side::of_row(&row)
        }
    };
    room.note.dst_identity = dst.identity;
    room.way = way;
    room.settle();
    let way = room.way;
    let src = Side::endpoint(endpoint, true);
    let case = Case { known, src, dst, config, now, way: way.flow, account: true, tunnel: 0 };
    let wanted = match judge(w, p, room, &case) {
        Ok(wanted) => wanted,
        Err(reason) => return dropped(w, p, config, room, reason),
    };
    room.note.point = way.point;
    room.note.direction = 1;
    room.note.endpoint = endpoint.id;
    room.note.peer = dst.id;
    room.note.ifindex = 0;
    let mut outcome = Outcome::up(config.flags & FLAG_HOST_POLICY != 0, known.forward);
    if way.action as u8 != Action::Pass as u8 {
        if way.action as u8 == Action::Tunnel as u8 {
            outcome = p.by_tunnel(w, room, endpoint.identity);
            if outcome.action() as u8 == Action::Drop as u8 {
                return dropped(w, p, config, room, outcome.reason());
            }
        } else {
            if !route(p, &room.facts, &room.next.mac, &room.next.own_mac) {
                return dropped(w, p, config, room, Reason::WRITE);
            }
            outcome = Outcome::leave(way.action, room.next.ifindex);
        }
        room.note.ifindex = room.next.ifindex;
        if way.point == POINT_TO_ENDPOINT {
            w.count(Reason::FORWARDED, 0, p.len());
            room.note.direction = 0;
            room.note.endpoint = dst.id;
            room.note.peer = endpoint.id;
        }
    }
    w.count(Reason::FORWARDED, 1, p.len() - room.note.around as u32);
    report::trace(w, p, config, room, wanted);
    outcome
}

/// Reports a packet as an endpoint sends it, if every packet is wanted.
#[inline(always)]
pub(crate) fn trace_sent<F: Pick, W: World, P: Packet>(w: &W, p: &P, room: &mut Room<F>, config: &Config) {
    if config.flags & FLAG_TRACE_ALL != 0 {
        room.note.point = POINT_FROM_ENDPOINT;
        room.note.state = STATE_UNKNOWN;
        room.note.ifindex = p.ifindex();
        report::trace(w, p, config, room, true);
    }
}

/// Whose address on this node a packet goes to: the slot, and its endpoint if that is in use. The flow knows it;
/// it is believed where the endpoint's record bears the address.
#[inline(always)]
fn local_of<'a, F: Family, W: World + Net<F>>(
    w: &'a W,
    known: &Known<'_>,
    dst: &F::Addr,
) -> (Option<u32>, Option<&'a Endpoint>) {
    let slot = known.dst_slot();
    if slot != SLOT_HOST
        && let Some(to) = active(w, slot)
        && F::first_of(to) == *dst
    {
        return (Some(slot), Some(to));
    }
    match <W as Net<F>>::local(w, dst) {
        Some(local) => (Some(local.slot), active(w, local.slot)),
        None => (None, None),
    }
}

/// The endpoint of a slot, if it is in use.
#[inline(always)]
fn active<W: World>(w: &W, slot: u32) -> Option<&Endpoint> {
    let endpoint = w.endpoint(slot)?;
    if endpoint.flags & FLAG_ACTIVE == 0 { None } else { Some(endpoint) }
}

/// Where a packet of an endpoint is going, and how.
#[derive(Clone, Copy, Default)]
pub(crate) struct Way {
    /// `POINT_*` of its trace.
    point: u8,
    /// How it leaves; [`Action::Pass`] is up the stack.
    action: Action,
    /// `FLOW_VIA_STACK` or 0 for a flow it opens.
    flow: u32,
}

/// The node through whose tunnel a packet goes that is for no address of this node; 0 if none. What a tunnel has opened
/// returns to the node that it came from, though the ipcache may not know yet who lives there.
#[inline(always)]
fn tunnel_to(config: &Config, known: &Known<'_>, row: &IpcacheValue) -> u32 {
    if config.overlay_ifindex == 0 {
        return 0;
    }
    if row.tunnel != 0 {
        return row.tunnel;
    }
    match known.flow {
        Some(flow) if !known.forward => flow.tunnel.get(),
        _ => 0,
    }
}

/// Whether a packet for no address of this node belongs past the stack. What came past it goes back so, where no NAT is wanted.
/// What an endpoint opens goes up, where the host's own DNAT may have a say, unless it is for an endpoint of another node:
/// services have other addresses. What is of no known flow and opens none may be an answer that the host's NAT must turn back.
/// Nothing does while IPsec has policies, of which only the stack knows.
#[inline(always)]
fn is_past_stack<F: Family>(
    config: &Config,
    known: &Known<'_>,
    facts: &Facts<F>,
    row: &IpcacheValue,
) -> bool {
    if config.flags & FLAG_IPSEC != 0 {
        return false;
    }
    let routed = row.flags & FLAG_ROUTED != 0;
    if known.flow.is_some() {
        return routed || config.flags & F::DIRECT != 0;
    }
    routed && (facts.kind as u8 == Kind::Datagram as u8 || flow::opens(facts))
}

/// Asks the routing table where a packet goes; false when the stack must see it.
#[inline(always)]
fn neighbour_of<F: Family, P: Packet>(p: &mut P, facts: &Facts<F>, next: &mut Neighbour) -> bool {
    let (src, dst) = (F::words(&facts.src), F::words(&facts.dst));
    let len = largest(p, facts);
    if F::V6 { p.neighbour6(&src, &dst, len, next) } else { p.neighbour4(src[0], dst[0], len, next) }
}

/// Link-local protocols, foreign sources and multicast: how they end. Reason 0 lets them pass to the stack.
#[inline(always)]
fn special<F: Family>(facts: &Facts<F>, endpoint: &Endpoint, own: bool) -> Reason {
    let dhcp = endpoint.flags & FLAG_DHCP != 0;
    let unspecified = F::is_unspecified(&facts.src);
    let (client, server) = if F::V6 { (546_u16, 547_u16) } else { (68, 67) };
    let local_source = own || unspecified || F::is_link_local(&facts.src);
    if local_source {
        if F::V6 && facts.proto == F::ICMP {
            match facts.icmp_type {
                133 if dhcp => return Reason::FORWARDED,
                133 => return Reason::ROUTER_SOLICITATION,
                130..=132 | 143 => return Reason::MLD,
                134 | 137..=142 => return Reason::FORBIDDEN_ICMP6,
                _ => {}
            }
        }
        if !F::V6 && facts.proto == IGMP {
            return Reason::IGMP;
        }
        // What a client sends to one server goes the way of all packets.
        let to_all = F::is_multicast(&facts.dst);
        if to_all && facts.proto == UDP && facts.sport == client.to_be() && facts.dport == server.to_be() {
            return if dhcp { Reason::FORWARDED } else { Reason::DHCP };
        }
    }
    if !own { Reason::SOURCE_IP } else { Reason::MULTICAST }
}
