//! Fragments: the first one of a datagram remembers its ports, later ones find them.
//!
//! This is for packets whose source has been checked: nobody can speak for another's datagrams.

use villus_abi::{FragPorts, Reason, time, time::Tick};

use crate::{
    family::Family,
    parse::{Facts, Kind, SCTP, TCP, UDP, expired, message},
    work::{Pick, Room},
    world::{Net, Packet, World},
};

/// How long the ports of a fragmented datagram are remembered, seconds (the kernel's reassembly time).
const FRAGMENT_SECS: u32 = 30;

/// Completes the facts of a fragment. The reason it is refused for, or [`Reason::FORWARDED`].
#[inline(never)]
pub(crate) fn track<F: Pick, W: World + Net<F>, P: Packet>(
    w: &W,
    p: &P,
    room: &mut Room<F>,
    now: Tick,
) -> Reason {
    let direction = room.note.direction;
    let facts = &mut room.facts;
    let key = F::frag_key(&facts.src, &facts.dst, facts.id, facts.proto);
    w.count(Reason::FRAGMENTED, direction, p.len());
    if facts.later {
        return match <W as Net<F>>::ports(w, &key) {
            Some(ports) if !expired(ports.expires, now) => {
                adopt(facts, &ports);
                Reason::FORWARDED
            }
            _ => Reason::FRAGMENT_NOT_FOUND,
        };
    }
    let expires = now.wrapping_add(time::from_secs(FRAGMENT_SECS));
    let ports = FragPorts { sport: facts.sport, dport: facts.dport, expires };
    if !<W as Net<F>>::remember(w, &key, &ports) {
        w.count(Reason::FRAGMENT_UPDATE, direction, p.len());
    }
    Reason::FORWARDED
}

/// Gives a later fragment what the first one said.
#[inline(always)]
fn adopt<F: Family>(facts: &mut Facts<F>, ports: &FragPorts) {
    facts.sport = ports.sport;
    facts.dport = ports.dport;
    facts.asked = ports.dport;
    match facts.proto {
        TCP => facts.kind = Kind::Tcp,
        UDP | SCTP => facts.kind = Kind::Datagram,
        proto if proto == F::ICMP => {
            let (question, answer) = if F::V6 { (128, 129) } else { (8, 0) };
            if ports.sport == 0 && ports.dport != 0 {
                message(facts, answer, 0, ports.dport);
            } else {
                message(facts, question, 0, ports.sport);
            }
        }
        _ => {}
    }
}
