//! Events for user space.

use villus_abi::{
    Config, Reason,
    config::{FLAG_DROP_EVENTS, FLAG_TRACE, FLAG_TRACE_ALL, FLAG_VERDICT_EVENTS},
    event::{FLAG_ADDRS, FLAG_AUDITED, FLAG_PORTS, FLAG_V6, KIND_DROP, KIND_TRACE, KIND_VERDICT},
};

use crate::{
    deliver::{ETHERTYPE_IPV4, ETHERTYPE_IPV6},
    family::V4,
    outcome::Outcome,
    parse::{Facts, Kind, Parse},
    work::{Pick, Room, Work},
    world::{Packet, World},
};

/// The part of an event that is not in the packet.
#[derive(Clone, Copy, Default)]
pub(crate) struct Note {
    pub kind: u8,
    pub reason: u8,
    pub point: u8,
    pub state: u8,
    pub direction: u8,
    pub matched: u8,
    pub hook: u8,
    pub audited: bool,
    /// Bytes that were put around what was sent.
    pub around: u8,
    pub endpoint: u16,
    pub peer: u16,
    pub ifindex: u32,
    pub src_identity: u32,
    pub dst_identity: u32,
}

/// Reports a packet whose facts and note are in its room.
#[inline(always)]
pub fn emit<F: Parse, W: World, P: Packet>(w: &W, p: &P, room: &mut Room<F>) {
    let (facts, note, event) = (&room.facts, &room.note, &mut room.event);
    let mut flags = if F::V6 { FLAG_V6 } else { 0 };
    if facts.l4 != 0 {
        flags |= FLAG_ADDRS;
    }
    if facts.kind as u8 != Kind::Unknown as u8 {
        flags |= FLAG_PORTS;
    }
    if note.audited {
        flags |= FLAG_AUDITED;
    }
    event.time = w.now_ns();
    event.kind = note.kind;
    event.reason = note.reason;
    event.point = note.point;
    event.state = note.state;
    event.direction = note.direction;
    event.matched = note.matched;
    event.flags = flags;
    event.hook = note.hook;
    event.endpoint = note.endpoint;
    event.peer = note.peer;
    event.ifindex = note.ifindex;
    event.src_identity = note.src_identity;
    event.dst_identity = note.dst_identity;
    event.len = p.len() - note.around as u32;
    event.hash = p.hash();
    event.src = F::words(&facts.src);
    event.dst = F::words(&facts.dst);
    event.sport = facts.sport;
    event.dport = facts.dport;
    event.proto = facts.proto;
    event.tcp_flags = facts.tcp_flags;
    event.icmp_type = facts.icmp_type;
    event.icmp_code = facts.icmp_code;
    // A frame that was not parsed may be anything.
    event.ethertype = match (facts.l4, F::V6) {
        (0, _) => p.halves::<1>(12).unwrap_or_default()[0],
        (_, true) => ETHERTYPE_IPV6.to_be(),
        (_, false) => ETHERTYPE_IPV4.to_be(),
    };
    event.verdict = -(note.reason as i32);
    w.emit(event);
}

/// Counts a dropped packet, reports it, and says so.
#[inline(always)]
pub(crate) fn dropped<F: Pick, W: World, P: Packet>(
    w: &W,
    p: &P,
    config: &Config,
    room: &mut Room<F>,
    reason: Reason,
) -> Outcome {
    p.end(w, config, room, reason);
    Outcome::drop(reason)
}

/// Counts and reports the end of a packet.
#[inline(always)]
pub fn end<F: Pick, W: World, P: Packet>(w: &W, p: &P, config: &Config, room: &mut Room<F>, reason: Reason) {
    w.count(reason, room.note.direction, p.len());
    if config.flags & FLAG_DROP_EVENTS != 0 && reason.is_drop() {
        room.note.kind = KIND_DROP;
        room.note.reason = reason.0;
        room.note.ifindex = p.ifindex();
        emit(w, p, room);
    }
}

/// As [`dropped`] for a frame whose addresses are not known.
#[inline(always)]
pub(crate) fn dropped_frame<W: World, P: Packet>(
    w: &W,
    p: &P,
    config: &Config,
    work: &mut Work,
    reason: Reason,
    hook: (u8, u8),
    endpoint: u16,
) -> Outcome {
    let room = V4::room(work);
    room.facts = Facts::default();
    room.note = Note { hook: hook.0, endpoint, direction: hook.1, ..Note::default() };
    dropped(w, p, config, room, reason)
}

/// Reports policy's answer.
#[inline(always)]
pub(crate) fn verdict<F: Pick, W: World, P: Packet>(w: &W, p: &P, config: &Config, room: &mut Room<F>) {
    if config.flags & FLAG_VERDICT_EVENTS != 0 {
        room.note.kind = KIND_VERDICT;
        room.note.ifindex = p.ifindex();
        p.emit(w, room);
    }
}

/// Reports where a packet went, if aggregation lets it.
#[inline(always)]
pub(crate) fn trace<F: Pick, W: World, P: Packet>(
    w: &W,
    p: &P,
    config: &Config,
    room: &mut Room<F>,
    wanted: bool,
) {
    if config.flags & FLAG_TRACE != 0 && (wanted || config.flags & FLAG_TRACE_ALL != 0) {
        room.note.kind = KIND_TRACE;
        p.emit(w, room);
    }
}
