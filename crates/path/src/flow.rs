//! The flow table: finding a packet's flow, opening one, keeping its state.

use villus_abi::{
    Config, Flow, FlowCell,
    endpoint::SLOT_HOST,
    event::{STATE_ESTABLISHED, STATE_NEW, STATE_RELATED, STATE_REPLY},
    flow::{
        FLOW_EITHER, FLOW_FWD_CLOSING, FLOW_HI_OPENED, FLOW_REV_CLOSING, FLOW_SEEN_NON_SYN, FLOW_VIA_STACK,
    },
    time::Tick,
};

use crate::{
    family::Family,
    parse::{Facts, Kind, expired, tcp},
    world::{Net, World},
};

/// How a packet relates to its flow.
#[derive(Clone, Copy, Default)]
pub(crate) struct Relation {
    /// `STATE_*` of an event: new, established (the opener's direction), reply or related.
    pub state: u8,
    /// Whether the packet travels in the opener's direction.
    pub forward: bool,
    /// Whether the packet's source is an end of the flow. Errors may come from routers in between.
    pub from_end: bool,
}

/// How a packet relates to the flow table. Flat, because the verifier does not like to see the unused half of
/// an enum moved about.
#[derive(Clone, Copy)]
pub(crate) struct Known<'a> {
    /// The valid flow, if there is one.
    pub flow: Option<&'a FlowCell>,
    /// `STATE_*` of an event: new, established (the opener's direction), reply or related.
    pub state: u8,
    /// Whether the packet travels in the opener's direction.
    pub forward: bool,
    /// Whether the packet's source is an end of the flow. Errors may come from routers in between.
    pub from_end: bool,
}

impl Known<'_> {
    /// No valid flow.
    pub(crate) const NEW: Self = Self { flow: None, state: STATE_NEW, forward: true, from_end: true };

    /// Whether the flow is one that came through the host's stack.
    #[inline(always)]
    pub(crate) fn via_stack(&self) -> bool {
        match self.flow {
            None => false,
            Some(flow) => flow.flags.get() & FLOW_VIA_STACK != 0,
        }
    }

    /// The slot of the endpoint that the packet goes to, as the flow has it; [`SLOT_HOST`] when it has none.
    #[inline(always)]
    pub(crate) fn dst_slot(&self) -> u32 {
        match self.flow {
            None => SLOT_HOST,
            Some(flow) if self.forward => flow.dst_endpoint.get() as u32,
            Some(flow) => flow.src_endpoint.get() as u32,
        }
    }
}

/// A flow's key, and whether the packet's source is the end called `hi`.
#[derive(Clone, Copy, Default)]
pub(crate) struct Key<F: Family> {
    pub(crate) key: F::FlowKey,
    pub(crate) from_hi: bool,
    pub(crate) tcp: bool,
}

/// Fills in the key of a packet's flow.
#[inline(always)]
pub(crate) fn key_of<F: Family>(facts: &Facts<F>, key: &mut Key<F>) {
    let from_hi =
        if facts.src == facts.dst { facts.sport > facts.dport } else { F::less(&facts.dst, &facts.src) };
    key.key = if from_hi {
        F::flow_key(&facts.dst, &facts.src, facts.dport, facts.sport, facts.proto)
    } else {
        F::flow_key(&facts.src, &facts.dst, facts.sport, facts.dport, facts.proto)
    };
    key.from_hi = from_hi;
    key.tcp = facts.kind as u8 == Kind::Tcp as u8;
}

/// Whether TCP flags are those of a connection's first segment: a SYN alone.
#[inline(always)]
pub(crate) fn opens_tcp(flags: u8) -> bool {
    flags & (tcp::SYN | tcp::ACK | tcp::RST) == tcp::SYN
}

/// Whether a packet of no known flow is certainly the first of one. Any other may be an answer to what the host's NAT has
/// turned to where it comes from, or be about to be turned back by it.
#[inline(always)]
pub(crate) fn opens<F: Family>(facts: &Facts<F>) -> bool {
    match facts.kind {
        Kind::Tcp => !facts.later && opens_tcp(facts.tcp_flags),
        Kind::Question => true,
        _ => false,
    }
}

/// Finds the flow of a packet that could have one.
#[inline(always)]
pub(crate) fn find<'a, F: Family, W: Net<F>>(
    w: &'a W,
    facts: &Facts<F>,
    key: &Key<F>,
    now: Tick,
) -> Known<'a> {
    let Some(flow) = w.flow(&key.key, key.tcp) else { return Known::NEW };
    if expired(flow.expires.get(), now) {
        return Known::NEW;
    }
    let flags = flow.flags.get();
    let forward = (flags & FLOW_HI_OPENED != 0) == key.from_hi;
    // After a close, from the side that did not open the old one, and where nobody knew who did.
    let opens = key.tcp && !facts.later && opens_tcp(facts.tcp_flags);
    if opens && (!forward || flags & (FLOW_FWD_CLOSING | FLOW_REV_CLOSING | FLOW_EITHER) != 0) {
        return Known::NEW;
    }
    // A question is no reply, whoever has sent answers nobody asked for.
    if !forward && !facts.later && facts.kind as u8 == Kind::Question as u8 {
        return Known::NEW;
    }
    // Written long before the counters beside it, so that these are not waited for: another CPU may have them.
    (if forward { &flow.fwd_seen } else { &flow.rev_seen }).set(now);
    let state = if forward { STATE_ESTABLISHED } else { STATE_REPLY };
    Known { flow: Some(flow), state, forward, from_end: true }
}

/// Finds the flow that an ICMP error is about. It must travel to the sender of the packet it quotes.
#[inline(always)]
pub(crate) fn related<'a, F: Family, W: Net<F>>(
    w: &'a W,
    facts: &Facts<F>,
    quoted: &Facts<F>,
    key: &Key<F>,
    now: Tick,
) -> Known<'a> {
    if quoted.src != facts.dst {
        return Known::NEW;
    }
    let Some(flow) = w.flow(&key.key, key.tcp) else { return Known::NEW };
    if expired(flow.expires.get(), now) {
        return Known::NEW;
    }
    // The quoted packet's direction, turned round.
    let quoted_forward = (flow.flags.get() & FLOW_HI_OPENED != 0) == key.from_hi;
    let from_end = quoted.dst == facts.src;
    Known { flow: Some(flow), state: STATE_RELATED, forward: !quoted_forward, from_end }
}

/// The state bits that a packet's TCP flags bring about.
#[inline(always)]
pub(crate) fn tcp_state<F: Family>(facts: &Facts<F>, flags: u32, forward: bool) -> u32 {
    if facts.kind as u8 != Kind::Tcp as u8 || facts.later {
        return flags;
    }
    let mut flags = flags;
    if facts.tcp_flags & tcp::SYN == 0 {
        flags |= FLOW_SEEN_NON_SYN;
    }
    if facts.tcp_flags & tcp::RST != 0 {
        flags |= FLOW_FWD_CLOSING | FLOW_REV_CLOSING;
    } else if facts.tcp_flags & tcp::FIN != 0 {
        flags |= if forward { FLOW_FWD_CLOSING } else { FLOW_REV_CLOSING };
    }
    flags
}

/// How long a flow with these state bits lives after a packet.
#[inline(always)]
pub(crate) fn lifetime(config: &Config, tcp: bool, flags: u32) -> Tick {
    if !tcp {
        config.any
    } else if flags & (FLOW_FWD_CLOSING | FLOW_REV_CLOSING) == FLOW_FWD_CLOSING | FLOW_REV_CLOSING {
        config.tcp_fin
    } else if flags & FLOW_SEEN_NON_SYN != 0 {
        config.tcp
    } else {
        config.tcp_syn
    }
}

/// Fills in a new flow for its first packet. `flags` are the admissions and the way it went.
#[inline(always)]
pub(crate) fn open<F: Family>(
    flow: &mut Flow,
    facts: &Facts<F>,
    key: &Key<F>,
    config: &Config,
    now: Tick,
    flags: u32,
    bytes: u32,
) {
    let mut flags = tcp_state(facts, flags, true);
    if key.from_hi {
        flags |= FLOW_HI_OPENED;
    }
    // Fields that are never anything but zero stay as the room was made.
    flow.fwd_packets = 1;
    flow.fwd_bytes = bytes as u64;
    flow.rev_packets = 0;
    flow.rev_bytes = 0;
    flow.expires = now.wrapping_add(lifetime(config, key.tcp, flags));
    flow.created = now;
    flow.fwd_seen = now;
    flow.fwd_report = now;
    flow.rev_seen = 0;
    flow.rev_report = 0;
    flow.flags = flags;
    flow.fwd_tcp_flags = facts.tcp_flags;
    flow.rev_tcp_flags = 0;
}

/// Brings a flow up to date with a packet. Returns whether aggregation wants the packet reported.
#[inline(always)]
pub(crate) fn touch<F: Family, W: World>(
    w: &W,
    flow: &FlowCell,
    facts: &Facts<F>,
    config: &Config,
    now: Tick,
    forward: bool,
    account: Option<u32>,
) -> bool {
    let old = flow.flags.get();
    let flags = tcp_state(facts, old, forward);
    if flags != old {
        flow.flags.set(flags);
    }
    let expires = now.wrapping_add(lifetime(config, facts.kind as u8 == Kind::Tcp as u8, flags));
    if flow.expires.get() != expires {
        flow.expires.set(expires);
    }
    let (packets, bytes, seen, report) = if forward {
        (&flow.fwd_packets, &flow.fwd_bytes, &flow.fwd_tcp_flags, &flow.fwd_report)
    } else {
        (&flow.rev_packets, &flow.rev_bytes, &flow.rev_tcp_flags, &flow.rev_report)
    };
    if let Some(len) = account {
        w.add(packets, 1);
        w.add(bytes, len as u64);
    }
    let fresh = facts.tcp_flags & !seen.get();
    if fresh != 0 {
        seen.set(seen.get() | fresh);
    }
    let due = now.wrapping_sub(report.get()) >= config.report;
    if due || fresh as u32 & config.report_flags != 0 {
        report.set(now);
        return true;
    }
    false
}
