//! The middle of every hook: a packet whose two sides are known is judged by their policies, once each, and
//! its flow is opened, kept or forgotten.

use villus_abi::{
    Config, Direction, Endpoint, IpcacheValue, Reason,
    config::{FLAG_ALLOW_FRAG_NEEDED, FLAG_HOST_POLICY},
    endpoint::HOST_ID,
    event::{STATE_ESTABLISHED, STATE_RELATED},
    flow::{FLOW_AUDITED, FLOW_EGRESS_ADMITTED, FLOW_EITHER, FLOW_INGRESS_ADMITTED},
    ipcache::{FLAG_PENDING, FLAG_ROUTED},
    time::Tick,
};

use crate::{
    family::Family,
    flow::{self, Known, Relation},
    fragment, host,
    parse::{Facts, Kind},
    policy::{Ask, Question, Verdict},
    report,
    work::{Pick, Room},
    world::{Net, Packet, World},
};

/// Identity of the node itself.
pub(crate) const HOST: u32 = 1;
/// Identity of everything that has no other.
pub(crate) const WORLD: u32 = 2;

/// One side of a packet.
#[derive(Clone, Copy)]
pub(crate) struct Side<'a> {
    /// The endpoint, if this pass judges for it.
    pub judged: Option<&'a Endpoint>,
    /// Id of the endpoint, judged here or not; 0 if it is not one of this node's.
    pub id: u16,
    /// Its identity.
    pub identity: u32,
    /// Its identity has not arrived.
    pub pending: bool,
}

impl<'a> Side<'a> {
    /// An endpoint of this node.
    #[inline(always)]
    pub(crate) fn endpoint(endpoint: &'a Endpoint, judged: bool) -> Self {
        Self {
            judged: if judged { Some(endpoint) } else { None },
            id: endpoint.id,
            identity: endpoint.identity,
            pending: false,
        }
    }

    /// This node, not judged.
    #[inline(always)]
    pub(crate) const fn host_as_peer() -> Self {
        Self { judged: None, id: HOST_ID, identity: HOST, pending: false }
    }

    /// This node, judged if policy selects it.
    #[inline(always)]
    pub(crate) fn host<W: World>(w: &'a W, config: &Config) -> Self {
        let judged = if config.flags & FLAG_HOST_POLICY == 0 { None } else { host::record(w) };
        Self { judged, ..Self::host_as_peer() }
    }

    /// Somebody elsewhere whose identity has been found out.
    #[inline(always)]
    pub(crate) const fn sender(sender: Sender) -> Self {
        Self { judged: None, id: 0, identity: sender.identity, pending: sender.pending }
    }

    /// Somebody without an identity of their own.
    #[inline(always)]
    pub(crate) const fn world() -> Self {
        Self { judged: None, id: 0, identity: WORLD, pending: false }
    }

    /// An address elsewhere.
    #[inline(always)]
    pub(crate) fn remote<F: Family, W: Net<F>>(w: &W, addr: &F::Addr) -> Self {
        Self::of_row(&w.remote(addr).unwrap_or_default())
    }

    /// Whoever a row of the ipcache says; of one that says nothing, the world.
    #[inline(always)]
    pub(crate) const fn of_row(row: &IpcacheValue) -> Self {
        Self {
            judged: None,
            id: 0,
            identity: if row.identity == 0 { WORLD } else { row.identity },
            pending: row.flags & FLAG_PENDING != 0,
        }
    }
}

/// Who sends a packet from elsewhere.
#[derive(Clone, Copy, Default)]
pub(crate) struct Sender {
    pub identity: u32,
    pub pending: bool,
    /// It is an endpoint of another node, and the network brings its packets as they were sent.
    pub routed: bool,
    /// It lives behind a tunnel.
    pub tunnelled: bool,
}

/// Notes who sends a packet from elsewhere, as the ipcache says.
#[inline(never)]
pub(crate) fn find_sender<F: Pick, W: Net<F>>(w: &W, room: &mut Room<F>) {
    let row = <W as Net<F>>::remote(w, &room.facts.src).unwrap_or_default();
    let Side { identity, pending, .. } = Side::of_row(&row);
    let (routed, tunnelled) = (row.flags & FLAG_ROUTED != 0, row.tunnel != 0);
    room.sender = Sender { identity, pending, routed, tunnelled };
}

/// A packet's flow and its two sides.
pub(crate) struct Case<'a> {
    pub known: Known<'a>,
    pub src: Side<'a>,
    pub dst: Side<'a>,
    pub config: &'a Config,
    pub now: Tick,
    /// `FLOW_VIA_STACK` or 0, for a flow that this packet opens.
    pub way: u32,
    /// Whether this pass counts the packet on its flow.
    pub account: bool,
    /// The node from which a tunnel brought the packet, or 0.
    pub tunnel: u32,
}

/// What a packet, its source checked, is to the flow table. `Err` for what flows cannot be made of.
#[inline(always)]
pub(crate) fn known<'a, F: Pick, W: World + Net<F>, P: Packet>(
    w: &'a W,
    p: &P,
    room: &mut Room<F>,
    now: Tick,
) -> Result<Known<'a>, Reason> {
    let reason = key(w, p, room, now);
    if reason.0 != 0 { Err(reason) } else { Ok(look_up(w, p, room, now)) }
}

/// Fills in the key of a packet's flow, of a fragment with what the first one said. The reason is that of what flows
/// cannot be made of.
#[inline(always)]
pub(crate) fn key<F: Pick, W: World + Net<F>, P: Packet>(
    w: &W,
    p: &P,
    room: &mut Room<F>,
    now: Tick,
) -> Reason {
    if room.facts.fragment {
        let reason = fragment::track(w, p, room, now);
        if reason.0 != 0 {
            return reason;
        }
    }
    flow::key_of(&room.facts, &mut room.key);
    if room.facts.kind as u8 == Kind::Unknown as u8 { Reason::CT_UNKNOWN_L4 } else { Reason::FORWARDED }
}

/// What a packet whose key is filled in is to the flow table.
#[inline(always)]
pub(crate) fn look_up<'a, F: Pick, W: World + Net<F>, P: Packet>(
    w: &'a W,
    p: &P,
    room: &mut Room<F>,
    now: Tick,
) -> Known<'a> {
    let known = match room.facts.kind {
        Kind::Unknown | Kind::Message => Known::NEW,
        Kind::Error => {
            if F::quoted(p, &room.facts, &mut room.quoted) {
                flow::key_of(&room.quoted, &mut room.key);
                flow::related(w, &room.facts, &room.quoted, &room.key, now)
            } else {
                Known::NEW
            }
        }
        _ => flow::find(w, &room.facts, &room.key, now),
    };
    room.known = Relation { state: known.state, forward: known.forward, from_end: known.from_end };
    room.settle();
    let Relation { state, forward, from_end } = room.known;
    Known { flow: known.flow, state, forward, from_end }
}

/// Judges. `Ok` says whether aggregation wants the packet reported.
#[inline(always)]
pub(crate) fn judge<F: Pick, W: World + Net<F>, P: Packet>(
    w: &W,
    p: &P,
    room: &mut Room<F>,
    case: &Case<'_>,
) -> Result<bool, Reason> {
    let (egress, ingress) = questions(&room.facts, case);
    room.judged = Judged { egress, ingress, admitted: 0 };
    room.settle();
    if room.judged.egress
        && let Some(endpoint) = case.src.judged
    {
        room.judged.admitted |= FLOW_EGRESS_ADMITTED | ask(w, p, room, case, endpoint, Direction::Egress)?;
        room.settle();
    }
    if room.judged.ingress
        && let Some(endpoint) = case.dst.judged
    {
        room.judged.admitted |= FLOW_INGRESS_ADMITTED | ask(w, p, room, case, endpoint, Direction::Ingress)?;
        room.settle();
    }
    let facts = &room.facts;
    let segment = facts.kind as u8 == Kind::Tcp as u8 && !facts.later;
    if segment && case.known.flow.is_none() && !flow::opens_tcp(facts.tcp_flags) {
        room.judged.admitted |= could_be_answer(w, room, case);
        room.settle();
    }
    let admitted = room.judged.admitted;
    record(w, p, room, case, admitted)
}

/// A segment from the middle of a connection that nobody remembers may come from either end. Asks whether the other end
/// could have opened it too: `FLOW_EITHER` if policy allows that as well, else 0.
#[inline(always)]
fn could_be_answer<F: Pick, W: World>(w: &W, room: &Room<F>, case: &Case<'_>) -> u32 {
    let question = |peer: &Side<'_>, direction| Question {
        identity: peer.identity,
        pending: peer.pending,
        port: room.facts.sport,
        proto: room.facts.proto,
        direction,
        bytes: 0,
        peek: true,
    };
    let (src, dst) = (case.src.judged, case.dst.judged);
    let allows = |judged: Option<&Endpoint>, peer, direction| match judged {
        None => true,
        Some(endpoint) => w.ask(&Ask::new(case.config, endpoint, &question(peer, direction))).allowed(),
    };
    let either = (src.is_some() || dst.is_some())
        && allows(src, &case.dst, Direction::Ingress)
        && allows(dst, &case.src, Direction::Egress);
    if either { FLOW_EITHER } else { 0 }
}

/// Which policies are asked about a packet, and what they have said.
#[derive(Clone, Copy, Default)]
pub(crate) struct Judged {
    egress: bool,
    ingress: bool,
    /// `FLOW_*`.
    admitted: u32,
}

/// Whose policies are to be asked: a reply or an error about a flow passes where the flow was admitted.
#[inline(always)]
fn questions<F: Family>(facts: &Facts<F>, case: &Case<'_>) -> (bool, bool) {
    let always = case.config.flags & FLAG_ALLOW_FRAG_NEEDED != 0
        && facts.kind as u8 == Kind::Error as u8
        && if F::V6 { facts.icmp_type == 2 } else { facts.icmp_type == 3 && facts.icmp_code == 4 };
    if always {
        return (false, false);
    }
    let Some(flow) = case.known.flow else { return (true, true) };
    if case.known.state == STATE_ESTABLISHED {
        return (true, true);
    }
    let (src_bit, dst_bit) = if case.known.forward {
        (FLOW_EGRESS_ADMITTED, FLOW_INGRESS_ADMITTED)
    } else {
        (FLOW_INGRESS_ADMITTED, FLOW_EGRESS_ADMITTED)
    };
    let flags = flow.flags.get();
    if flags & FLOW_EITHER != 0 && case.known.state != STATE_RELATED {
        return (true, true);
    }
    // An admission is that of an end: a router's policy is asked about the errors it sends.
    (flags & src_bit == 0 || !case.known.from_end, flags & dst_bit == 0)
}

/// Asks one endpoint. `Ok` carries `FLOW_AUDITED` when only audit let the packet pass.
#[inline(always)]
fn ask<F: Pick, W: World + Net<F>, P: Packet>(
    w: &W,
    p: &P,
    room: &mut Room<F>,
    case: &Case<'_>,
    endpoint: &Endpoint,
    direction: Direction,
) -> Result<u32, Reason> {
    let (peer, own) = match direction {
        Direction::Egress => (&case.dst, &case.src),
        Direction::Ingress => (&case.src, &case.dst),
    };
    let question = Question {
        identity: peer.identity,
        pending: peer.pending,
        port: room.facts.asked,
        proto: room.facts.proto,
        direction,
        bytes: p.len(),
        peek: false,
    };
    let answer = w.ask(&Ask::new(case.config, endpoint, &question));
    room.note.direction = direction as u8;
    room.note.endpoint = own.id;
    room.note.peer = peer.id;
    let first = is_first(case, direction);
    if answer.allowed() {
        if first {
            tell(w, p, room, case, answer);
        }
        return Ok(0);
    }
    if first || !(answer.audited && is_audited(case)) {
        tell(w, p, room, case, answer);
    }
    if answer.audited {
        return Ok(FLOW_AUDITED);
    }
    if case.known.state == STATE_ESTABLISHED {
        // Its replies are judged as new from now on.
        <W as Net<F>>::remove(w, &room.key.key, room.key.tcp);
    }
    Err(answer.reason)
}

/// Reports a verdict.
#[inline(always)]
fn tell<F: Pick, W: World + Net<F>, P: Packet>(
    w: &W,
    p: &P,
    room: &mut Room<F>,
    case: &Case<'_>,
    answer: Verdict,
) {
    room.note.matched = answer.matched;
    room.note.reason = answer.reason.0;
    room.note.audited = answer.audited;
    report::verdict(w, p, case.config, room);
    room.note.audited = false;
    room.note.reason = 0;
}

/// Whether this is the first time that the flow's policy in this direction is asked.
#[inline(always)]
fn is_first(case: &Case<'_>, direction: Direction) -> bool {
    let Some(flow) = case.known.flow else { return true };
    let bit = match direction {
        Direction::Egress => FLOW_EGRESS_ADMITTED,
        Direction::Ingress => FLOW_INGRESS_ADMITTED,
    };
    case.known.state == STATE_ESTABLISHED && flow.flags.get() & bit == 0
}

/// Whether it has been reported that only audit lets the flow live: with its first packet, not with each.
#[inline(always)]
fn is_audited(case: &Case<'_>) -> bool {
    match case.known.flow {
        None => false,
        Some(flow) => !case.known.forward || flow.flags.get() & FLOW_AUDITED != 0,
    }
}

/// Opens the flow of an admitted packet or brings it up to date.
#[inline(always)]
fn record<F: Pick, W: World + Net<F>, P: Packet>(
    w: &W,
    p: &P,
    room: &mut Room<F>,
    case: &Case<'_>,
    admitted: u32,
) -> Result<bool, Reason> {
    let account = if case.account { Some(p.len()) } else { None };
    let Some(flow) = case.known.flow else {
        if matches!(room.facts.kind, Kind::Error | Kind::Message | Kind::Unknown) {
            return Ok(true);
        }
        let flow = &mut room.row.flow;
        flow::open(flow, &room.facts, &room.key, case.config, case.now, admitted | case.way, p.len());
        flow.src_identity = case.src.identity;
        flow.dst_identity = case.dst.identity;
        flow.src_endpoint = case.src.id;
        flow.dst_endpoint = case.dst.id;
        flow.tunnel = case.tunnel;
        if !<W as Net<F>>::create(w, &room.key.key, room.key.tcp, &room.row) {
            return Err(Reason::CT_INSERT);
        }
        return Ok(true);
    };
    if case.known.state == STATE_RELATED {
        return Ok(true);
    }
    let flags = flow.flags.get();
    // The second endpoint's first packet, after the first endpoint opened the flow and the stack forwarded it.
    let first = case.known.forward && admitted & !flags != 0;
    if first {
        flow.flags.set(flags | admitted);
    }
    let due = flow::touch(w, flow, &room.facts, case.config, case.now, case.known.forward, account);
    Ok(first || due)
}
