//! ARP and neighbour discovery of endpoints: the gateway is answered for, claims are checked.

use villus_abi::{
    Config, Endpoint, Reason,
    endpoint::{ADDR_GATEWAY, SLOT_HOST},
    event::HOOK_FROM_ENDPOINT,
};

use crate::{
    deliver::finish,
    endpoint::owns,
    family::{Family, V4, V6},
    outcome::{Action, Outcome},
    parse::{ETH_HLEN, Facts},
    report::{Note, dropped_frame},
    work::{Pick, Room, Work},
    world::{Net, Packet, World},
};

/// ARP from an endpoint.
#[inline(never)]
pub(crate) fn arp<W: World, P: Packet>(
    w: &W,
    p: &mut P,
    work: &mut Work,
    endpoint: &Endpoint,
    config: &Config,
) -> Outcome {
    let reason = 'ended: {
        let Some(h) = p.load::<28>(ETH_HLEN) else { break 'ended Reason::INVALID };
        if h[0] != 0 || h[1] != 1 || h[2] != 8 || h[3] != 0 || h[4] != 6 || h[5] != 4 || h[6] != 0 {
            break 'ended Reason::INVALID;
        }
        let sender = u32::from_ne_bytes([h[14], h[15], h[16], h[17]]);
        let target = u32::from_ne_bytes([h[24], h[25], h[26], h[27]]);
        let own = owns::<V4, W>(w, endpoint, &sender);
        if !own && sender != 0 && !V4::is_link_local(&sender) {
            break 'ended Reason::ARP_SPOOF;
        }
        if h[7] == 2 {
            if !own {
                break 'ended Reason::ARP_SPOOF;
            }
            w.count(Reason::FORWARDED, 1, p.len());
            return Outcome::PASS;
        }
        if h[7] != 1 {
            break 'ended Reason::INVALID;
        }
        if target == sender || owns::<V4, W>(w, endpoint, &target) || V4::is_link_local(&target) {
            break 'ended Reason::ANNOUNCED;
        }
        let gateway = matches!(Net::<V4>::local(w, &target), Some(local) if local.flags & ADDR_GATEWAY != 0);
        if !gateway {
            break 'ended Reason::UNKNOWN_TARGET;
        }
        if sender == 0 {
            // A probe for the gateway's address: somebody wants to take it.
            break 'ended Reason::ARP_SPOOF;
        }
        let m = endpoint.node_mac;
        let frame = [
            h[8], h[9], h[10], h[11], h[12], h[13], m[0], m[1], m[2], m[3], m[4], m[5], 0x08, 0x06, 0, 1, 8,
            0, 6, 4, 0, 2, m[0], m[1], m[2], m[3], m[4], m[5], h[24], h[25], h[26], h[27], h[8], h[9], h[10],
            h[11], h[12], h[13], h[14], h[15], h[16], h[17],
        ];
        if !p.store::<42>(0, &frame, false) {
            break 'ended Reason::WRITE;
        }
        w.count(Reason::ANSWERED, 1, p.len());
        return Outcome::leave(Action::Device, endpoint.ifindex);
    };
    dropped_frame(w, p, config, work, reason, (HOOK_FROM_ENDPOINT, 1), endpoint.id)
}

/// Neighbour solicitations and advertisements from an endpoint.
#[inline(never)]
pub(crate) fn discovery<F: Pick, W: World + Net<F>, P: Packet>(
    w: &W,
    p: &mut P,
    room: &mut Room<F>,
    endpoint: &Endpoint,
    config: &Config,
) -> Outcome {
    room.note = Note { hook: HOOK_FROM_ENDPOINT, endpoint: endpoint.id, direction: 1, ..Note::default() };
    room.note.src_identity = endpoint.identity;
    let facts = &room.facts;
    let src = F::words(&facts.src);
    let reason = 'ended: {
        let Some(h) = p.load::<24>(facts.l4) else { break 'ended Reason::CT_INVALID };
        if facts.ttl != 255 || facts.icmp_code != 0 || facts.later {
            break 'ended Reason::INVALID;
        }
        let target = [
            u32::from_ne_bytes([h[8], h[9], h[10], h[11]]),
            u32::from_ne_bytes([h[12], h[13], h[14], h[15]]),
            u32::from_ne_bytes([h[16], h[17], h[18], h[19]]),
            u32::from_ne_bytes([h[20], h[21], h[22], h[23]]),
        ];
        let unspecified = V6::is_unspecified(&src);
        let own = owns::<V6, W>(w, endpoint, &src);
        if !own && !unspecified && !V6::is_link_local(&src) {
            break 'ended Reason::SOURCE_IP;
        }
        let target_own = owns::<V6, W>(w, endpoint, &target);
        let target_link_local = V6::is_link_local(&target);
        if facts.icmp_type == 136 {
            if !target_own && !target_link_local {
                break 'ended Reason::ARP_SPOOF;
            }
            break 'ended if F::is_multicast(&facts.dst) {
                Reason::ANNOUNCED
            } else {
                on_link::<F, W>(w, facts)
            };
        }
        if unspecified {
            // Duplicate address detection.
            break 'ended if target_own || target_link_local { Reason::ANNOUNCED } else { Reason::ARP_SPOOF };
        }
        if target_own {
            break 'ended Reason::ANNOUNCED;
        }
        let gateway = matches!(Net::<V6>::local(w, &target), Some(local) if local.flags & ADDR_GATEWAY != 0);
        if !gateway {
            break 'ended if target_link_local { on_link::<F, W>(w, facts) } else { Reason::UNKNOWN_TARGET };
        }
        return match answer(p, endpoint, &src, &target) {
            true => {
                w.count(Reason::ANSWERED, 1, p.len());
                Outcome::leave(Action::Device, endpoint.ifindex)
            }
            false => finish(w, p, config, room, Reason::WRITE),
        };
    };
    finish(w, p, config, room, reason)
}

/// Lets neighbour discovery pass to the host's own stack, and nowhere further: policy has no say in it.
#[inline(always)]
fn on_link<F: Family, W: Net<F>>(w: &W, facts: &Facts<F>) -> Reason {
    let dst = &facts.dst;
    let near = F::is_multicast(dst)
        || F::is_link_local(dst)
        || matches!(w.local(dst), Some(local) if local.slot == SLOT_HOST);
    if near { Reason::FORWARDED } else { Reason::UNKNOWN_TARGET }
}

/// Turns a solicitation, whatever options it has, into its advertisement.
#[inline(always)]
fn answer<P: Packet>(p: &mut P, endpoint: &Endpoint, to: &[u32; 4], target: &[u32; 4]) -> bool {
    const L4: u32 = ETH_HLEN + 40;
    let Some(asker) = p.load::<6>(6) else { return false };
    if p.len() != L4 + 32 && !p.resize(L4 + 32) {
        return false;
    }
    let m = endpoint.node_mac;
    let c = advertisement_sum(to, target, &m).to_ne_bytes();
    // Ethernet addresses; IPv6 header with 32 bytes of ICMPv6 and hop limit 255; type and flags (router, solicited,
    // override), the target; one option: the target's link address.
    p.store::<12>(
        0,
        &[asker[0], asker[1], asker[2], asker[3], asker[4], asker[5], m[0], m[1], m[2], m[3], m[4], m[5]],
        false,
    ) && p.store::<8>(ETH_HLEN, &[0x60, 0, 0, 0, 0, 32, V6::ICMP, 255], false)
        && p.store::<16>(ETH_HLEN + 8, &words(target), false)
        && p.store::<16>(ETH_HLEN + 24, &words(to), false)
        && p.store::<8>(L4, &[136, 0, c[0], c[1], 0xe0, 0, 0, 0], false)
        && p.store::<16>(L4 + 8, &words(target), false)
        && p.store::<8>(L4 + 24, &[2, 1, m[0], m[1], m[2], m[3], m[4], m[5]], false)
}

/// The bytes of an address.
#[inline(always)]
fn words(addr: &[u32; 4]) -> [u8; 16] {
    let (a, b) = (addr[0].to_ne_bytes(), addr[1].to_ne_bytes());
    let (c, d) = (addr[2].to_ne_bytes(), addr[3].to_ne_bytes());
    [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]]
}

/// Checksum of the advertisement: pseudo-header (target to asker, 32 bytes, 58) and message, in the
/// machine's order as the one's-complement sum allows.
#[inline(always)]
fn advertisement_sum(to: &[u32; 4], target: &[u32; 4], mac: &[u8; 6]) -> u16 {
    let mut sum: u64 = 0;
    // The target is summed twice: as the packet's source and in the message.
    let mut i = 0;
    while i < 4 {
        sum += to[i] as u64 + 2 * target[i] as u64;
        i += 1;
    }
    sum += u32::from_ne_bytes([0, 0, 0, 32]) as u64 + u32::from_ne_bytes([0, 0, 0, 58]) as u64;
    sum += u32::from_ne_bytes([136, 0, 0, 0]) as u64 + u32::from_ne_bytes([0xe0, 0, 0, 0]) as u64;
    sum += u32::from_ne_bytes([2, 1, mac[0], mac[1]]) as u64;
    sum += u32::from_ne_bytes([mac[2], mac[3], mac[4], mac[5]]) as u64;
    let mut folded = (sum & 0xffff_ffff) + (sum >> 32);
    folded = (folded & 0xffff) + (folded >> 16);
    folded = (folded & 0xffff) + (folded >> 16);
    folded = (folded & 0xffff) + (folded >> 16);
    !(folded as u16)
}
