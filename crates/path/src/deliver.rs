//! The hook to-endpoint, and how packets are handed over.

use villus_abi::{
    Config, Endpoint, Reason,
    endpoint::{FLAG_ACTIVE, FLAG_DELIVER_DEVICE, FLAG_DELIVER_PEER, FLAG_DHCP, SLOT_HOST},
    event::{HOOK_TO_ENDPOINT, POINT_TO_ENDPOINT, STATE_RELATED},
    flow::{FLOW_EGRESS_ADMITTED, FLOW_INGRESS_ADMITTED, FLOW_VIA_STACK},
};

use crate::{
    family::{Family, V4, V6},
    judge::{Case, Side, judge, known},
    outcome::{Action, MARK_JUDGED, MARK_MASK, Outcome},
    parse::{ETH_HLEN, Facts, IGMP, UDP},
    report::{self, Note, dropped, dropped_frame},
    work::{Pick, Room, Work},
    world::{Net, Packet, World},
};

pub(crate) const ETHERTYPE_IPV4: u16 = 0x0800;
pub(crate) const ETHERTYPE_ARP: u16 = 0x0806;
pub(crate) const ETHERTYPE_IPV6: u16 = 0x86dd;
pub(crate) const ETHERTYPE_VLAN: u16 = 0x8100;
pub(crate) const ETHERTYPE_QINQ: u16 = 0x88a8;

/// Whether a packet, or each segment of a train, is larger than a device takes.
#[inline(always)]
pub(crate) fn too_big<F: Family, P: Packet>(p: &P, facts: &Facts<F>, mtu: u32) -> bool {
    mtu != 0 && largest(p, facts) > mtu
}

/// The layer-3 length of a packet, or of the segments that a train is cut into.
#[inline(always)]
pub(crate) fn largest<F: Family, P: Packet>(p: &P, facts: &Facts<F>) -> u32 {
    let segment = p.gso_size();
    if segment == 0 {
        return facts.l3_len;
    }
    facts.l4 - ETH_HLEN + facts.l4_len as u32 + segment
}

/// How an endpoint can be handed a packet without the stack.
#[inline(always)]
pub(crate) fn way_to(endpoint: &Endpoint) -> Option<Action> {
    if endpoint.has(FLAG_DELIVER_PEER) {
        Some(Action::Peer)
    } else if endpoint.has(FLAG_DELIVER_DEVICE) {
        Some(Action::Device)
    } else {
        None
    }
}

/// Sets both MACs and takes one from the TTL, as a router does.
#[inline(always)]
pub(crate) fn route<F: Family, P: Packet>(p: &mut P, facts: &Facts<F>, to: &[u8; 6], from: &[u8; 6]) -> bool {
    let ttl = facts.ttl.wrapping_sub(1);
    if F::V6 {
        let macs =
            [to[0], to[1], to[2], to[3], to[4], to[5], from[0], from[1], from[2], from[3], from[4], from[5]];
        return p.store::<1>(ETH_HLEN + F::TTL_OFFSET, &[ttl], true) && p.store::<12>(0, &macs, false);
    }
    // RFC 1624: one less in the high byte of a word is 0x0100 more in the checksum.
    let sum = facts.check as u32 + 0x0100;
    let check = ((sum + (sum >= 0xffff) as u32) as u16).to_be_bytes();
    // One call for both headers: what lies between them is written as it is.
    let Some(h) = p.halves::<4>(ETH_HLEN) else { return false };
    let (a, b, c, d) = (h[0].to_ne_bytes(), h[1].to_ne_bytes(), h[2].to_ne_bytes(), h[3].to_ne_bytes());
    let bytes = [
        to[0],
        to[1],
        to[2],
        to[3],
        to[4],
        to[5],
        from[0],
        from[1],
        from[2],
        from[3],
        from[4],
        from[5],
        0x08,
        0,
        a[0],
        a[1],
        b[0],
        b[1],
        c[0],
        c[1],
        d[0],
        d[1],
        ttl,
        facts.proto,
        check[0],
        check[1],
    ];
    p.store::<26>(0, &bytes, false)
}

/// Everything the host's stack delivers to an endpoint: the endpoint's ingress policy is asked.
#[inline(always)]
pub fn to_endpoint<W: World, P: Packet>(w: &W, p: &mut P, work: &mut Work) -> Outcome {
    if p.mark() & MARK_MASK == MARK_JUDGED {
        return Outcome::PASS;
    }
    let Some(config) = w.config() else { return Outcome::drop(Reason::NOT_READY) };
    let Some(endpoint) = endpoint_of(w, p.ifindex()) else {
        return dropped_frame(w, p, config, work, Reason::NO_ENDPOINT, (HOOK_TO_ENDPOINT, 0), 0);
    };
    if config.flags == 0 {
        return dropped_frame(w, p, config, work, Reason::NOT_READY, (HOOK_TO_ENDPOINT, 0), endpoint.id);
    }
    let Some(eth) = p.halves::<7>(0) else {
        return dropped_frame(w, p, config, work, Reason::INVALID, (HOOK_TO_ENDPOINT, 0), endpoint.id);
    };
    match u16::from_be(eth[6]) {
        ETHERTYPE_IPV4 if config.flags & V4::ENABLED != 0 => ip(w, p, V4::room(work), endpoint, config),
        ETHERTYPE_IPV6 if config.flags & V6::ENABLED != 0 => ip(w, p, V6::room(work), endpoint, config),
        ETHERTYPE_ARP => {
            w.count(Reason::FORWARDED, 0, p.len());
            Outcome::PASS
        }
        _ => dropped_frame(w, p, config, work, Reason::UNSUPPORTED_L3, (HOOK_TO_ENDPOINT, 0), endpoint.id),
    }
}

/// The active endpoint of an interface.
#[inline(always)]
pub(crate) fn endpoint_of<W: World>(w: &W, ifindex: u32) -> Option<&Endpoint> {
    let endpoint = w.endpoint_on(ifindex)?;
    if endpoint.flags & FLAG_ACTIVE == 0 { None } else { Some(endpoint) }
}

#[inline(never)]
fn ip<F: Pick, W: World + Net<F>, P: Packet>(
    w: &W,
    p: &mut P,
    room: &mut Room<F>,
    endpoint: &Endpoint,
    config: &Config,
) -> Outcome {
    room.note = Note { hook: HOOK_TO_ENDPOINT, endpoint: endpoint.id, ..Note::default() };
    let reason = p.parse(room, false);
    if reason.0 != 0 {
        return dropped(w, p, config, room, reason);
    }
    let ingress = p.ingress_ifindex();
    let src = if ingress == 0 {
        if let Some(end) = from_host(&room.facts, endpoint) {
            return finish(w, p, config, room, end);
        }
        Side::host(w, config)
    } else if let Some(source) = endpoint_of(w, ingress) {
        Side::endpoint(source, false)
    } else {
        match <W as Net<F>>::local(w, &room.facts.src) {
            None => Side::remote::<F, W>(w, &room.facts.src),
            // The host's own SNAT has hidden who it was; `host` is only what was made here. Such a source from
            // outside was dropped on the uplink.
            Some(local) if local.slot == SLOT_HOST => Side::world(),
            Some(_) => return dropped(w, p, config, room, Reason::SOURCE_IP),
        }
    };
    room.note.src_identity = src.identity;
    room.note.dst_identity = endpoint.identity;

    let now = w.now();
    let known = match known(w, p, room, now) {
        Ok(known) => known,
        Err(reason) => return dropped(w, p, config, room, reason),
    };
    room.note.state = known.state;
    // The host as a router: its errors about flows belong to those.
    let by_host = src.judged.is_some();
    let mut src = src;
    if known.state == STATE_RELATED && !known.from_end {
        src.judged = None;
    }
    // What a local sender's own hook counted under this flow is not counted again.
    let account = src.id == 0
        || match known.flow {
            Some(flow) => {
                let bit = if known.forward { FLOW_EGRESS_ADMITTED } else { FLOW_INGRESS_ADMITTED };
                flow.flags.get() & bit == 0
            }
            None => true,
        };
    let dst = Side::endpoint(endpoint, true);
    let case = Case { known, src, dst, config, now, way: FLOW_VIA_STACK, account, tunnel: 0 };
    match judge(w, p, room, &case) {
        Ok(wanted) => {
            w.count(Reason::FORWARDED, 0, p.len());
            if by_host {
                w.count(Reason::FORWARDED, 1, p.len());
            }
            room.note.direction = 0;
            room.note.point = POINT_TO_ENDPOINT;
            room.note.endpoint = endpoint.id;
            room.note.peer = src.id;
            room.note.ifindex = endpoint.ifindex;
            report::trace(w, p, config, room, wanted);
            Outcome::PASS
        }
        Err(reason) => dropped(w, p, config, room, reason),
    }
}

/// Neighbour discovery, DHCP and multicast of the host itself: the reason they end with, 0 to let them pass;
/// `None` for everything that policy judges.
#[inline(always)]
fn from_host<F: Family>(facts: &Facts<F>, endpoint: &Endpoint) -> Option<Reason> {
    let dhcp = endpoint.flags & FLAG_DHCP != 0;
    if F::V6 && facts.proto == F::ICMP {
        match facts.icmp_type {
            133 => return Some(Reason::ROUTER_SOLICITATION),
            134 if !dhcp => return Some(Reason::FORBIDDEN_ICMP6),
            134..=137 => return Some(Reason::FORWARDED),
            130..=132 | 143 => return Some(Reason::MLD),
            _ => {}
        }
    }
    if !F::V6 && facts.proto == IGMP {
        return Some(Reason::IGMP);
    }
    let (server, client) = if F::V6 { (547_u16, 546_u16) } else { (67, 68) };
    if facts.proto == UDP && facts.sport == server.to_be() && facts.dport == client.to_be() {
        return Some(if dhcp { Reason::FORWARDED } else { Reason::DHCP });
    }
    if F::is_multicast(&facts.dst) {
        return Some(Reason::MULTICAST);
    }
    None
}

/// Ends a packet that policy has no say in.
#[inline(always)]
pub(crate) fn finish<F: Pick, W: World, P: Packet>(
    w: &W,
    p: &P,
    config: &Config,
    room: &mut Room<F>,
    end: Reason,
) -> Outcome {
    if end.0 == 0 {
        w.count(Reason::FORWARDED, room.note.direction, p.len());
        return Outcome::PASS;
    }
    dropped(w, p, config, room, end)
}
