//! Asking a policy map: every key that can match is looked at, any deny wins, else the most specific allow
//! decides and counts.

use villus_abi::{
    Direction, Endpoint, PolicyCell, PolicyKey, Reason,
    endpoint::{FLAG_DENY_ID_EGRESS, FLAG_DENY_ID_INGRESS, MASK_PROTO},
    event::matched,
    policy::{DIRECTION_BLOCK_SHIFT, ENTRY_DENY},
};

use crate::world::{PolicyMap, World};

/// What a packet asks of one endpoint's policy in one direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Question {
    /// Identity of the other side.
    pub identity: u32,
    /// The other side's identity has not arrived: only keys for any identity match.
    pub pending: bool,
    /// Destination port or ICMP type, network order.
    pub port: u16,
    /// Transport protocol.
    pub proto: u8,
    /// Which side of the endpoint.
    pub direction: Direction,
    /// Bytes to account.
    pub bytes: u32,
}

/// One question to one endpoint's policy, in the shape of five registers: the kernel asks it in a function of
/// its own, which the verifier looks at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ask {
    /// Slot of the policy map.
    pub policy: u32,
    /// Which key shapes may exist beside the classic ones.
    pub mask: u32,
    /// Identity of the other side.
    pub identity: u32,
    /// Bytes to account.
    pub bytes: u32,
    /// Port (network order), protocol, direction, `ASK_PENDING` and `ASK_DENY_ID`, from bit 0 up.
    pub rest: u64,
}

/// Bit of [`Ask::rest`]: the identity is pending.
pub const ASK_PENDING: u64 = 1 << 32;
/// Bit of [`Ask::rest`]: the map holds denies of specific identities in this direction.
pub const ASK_DENY_ID: u64 = 1 << 33;

impl Ask {
    /// The question about a packet to an endpoint.
    #[inline(always)]
    #[must_use]
    pub fn new(endpoint: &Endpoint, q: &Question) -> Self {
        let (mask, flag) = match q.direction {
            Direction::Ingress => (endpoint.mask[0], FLAG_DENY_ID_INGRESS),
            Direction::Egress => (endpoint.mask[1], FLAG_DENY_ID_EGRESS),
        };
        let mut rest = q.port as u64 | (q.proto as u64) << 16 | (q.direction as u64) << 24;
        if q.pending {
            rest |= ASK_PENDING;
        }
        if endpoint.flags & flag != 0 {
            rest |= ASK_DENY_ID;
        }
        Self { policy: endpoint.policy, mask, identity: q.identity, bytes: q.bytes, rest }
    }

    /// Whether the other side's identity has not arrived.
    #[inline(always)]
    #[must_use]
    pub fn pending(&self) -> bool {
        self.rest & ASK_PENDING != 0
    }

    /// The most specific key that can match.
    #[inline(always)]
    #[must_use]
    pub fn key(&self) -> PolicyKey {
        PolicyKey {
            identity: self.identity,
            dport: self.rest as u16,
            proto: (self.rest >> 16) as u8,
            direction: (self.rest >> 24) as u8,
        }
    }
}

/// The answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// Why not, or [`Reason::FORWARDED`].
    pub reason: Reason,
    /// `villus_abi::event::matched`: the shape of the entry that decided.
    pub matched: u8,
}

impl Verdict {
    /// The answer as a register.
    #[must_use]
    pub const fn to_bits(self) -> u32 {
        self.reason.0 as u32 | (self.matched as u32) << 8
    }

    /// The answer from a register.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self { reason: Reason(bits as u8), matched: (bits >> 8) as u8 }
    }

    /// Whether the packet may pass.
    #[must_use]
    pub const fn allowed(self) -> bool {
        self.reason.0 == 0
    }
}

/// The entries found so far: the most specific allow and the most specific deny.
#[derive(Clone, Copy, Default)]
struct Found<'a> {
    allow: Option<&'a PolicyCell>,
    deny: Option<&'a PolicyCell>,
    allow_how: u8,
    deny_how: u8,
}

impl<'a> Found<'a> {
    #[inline(always)]
    fn see(&mut self, cell: Option<&'a PolicyCell>, how: u8) {
        let Some(cell) = cell else { return };
        if cell.flags & ENTRY_DENY != 0 {
            if self.deny.is_none() {
                self.deny = Some(cell);
                self.deny_how = how;
            }
        } else if self.allow.is_none() {
            self.allow = Some(cell);
            self.allow_how = how;
        }
    }
}

/// Asks a policy map, and counts on the entry that decides.
#[inline(always)]
pub fn verdict<W: World>(w: &W, ask: &Ask) -> Verdict {
    let Some(map) = w.policy(ask.policy) else {
        return Verdict { reason: Reason::NO_POLICY_MAP, matched: matched::NONE };
    };
    let pending = ask.pending();
    let mut found = Found::default();
    let mut key = ask.key();

    if !pending {
        found.see(map.entry(&key), matched::L3_L4);
    }
    key.identity = 0;
    found.see(map.entry(&key), matched::L4);
    if ask.mask & !MASK_PROTO != 0 {
        blocks(&map, ask, &mut found);
    }
    key.dport = 0;
    if ask.mask & MASK_PROTO != 0 {
        if !pending {
            key.identity = ask.identity;
            found.see(map.entry(&key), matched::L3_PROTO);
            key.identity = 0;
        }
        found.see(map.entry(&key), matched::PROTO);
    }
    key.proto = 0;
    if !pending {
        key.identity = ask.identity;
        found.see(map.entry(&key), matched::L3);
        key.identity = 0;
    }
    found.see(map.entry(&key), matched::ALL);

    decide(w, ask, &found)
}

#[inline(always)]
fn decide<W: World>(w: &W, ask: &Ask, found: &Found<'_>) -> Verdict {
    if let Some(cell) = found.deny {
        w.add(&cell.packets, 1);
        w.add(&cell.bytes, ask.bytes as u64);
        return Verdict { reason: Reason::POLICY_DENY, matched: found.deny_how };
    }
    // An identity-specific deny might be the one that would have matched.
    if ask.pending() && (found.allow.is_none() || ask.rest & ASK_DENY_ID != 0) {
        return Verdict { reason: Reason::IDENTITY_PENDING, matched: matched::NONE };
    }
    let Some(cell) = found.allow else {
        return Verdict { reason: Reason::POLICY, matched: matched::NONE };
    };
    w.add(&cell.packets, 1);
    w.add(&cell.bytes, ask.bytes as u64);
    Verdict { reason: Reason::FORWARDED, matched: found.allow_how }
}

/// Port blocks: an identity's own before those for any, the smallest size first.
#[inline(always)]
fn blocks<'a, M: PolicyMap>(map: &'a M, ask: &Ask, found: &mut Found<'a>) {
    if !ask.pending() {
        found.see(block(map, ask, ask.identity, ENTRY_DENY), matched::L3_L4);
        if found.allow.is_none() {
            found.see(block(map, ask, ask.identity, 0), matched::L3_L4);
        }
    }
    found.see(block(map, ask, 0, ENTRY_DENY), matched::L4);
    if found.allow.is_none() {
        found.see(block(map, ask, 0, 0), matched::L4);
    }
}

/// The first entry of a kind (`ENTRY_DENY` or 0) among an identity's port blocks, smallest size first.
#[inline(never)]
fn block<'a, M: PolicyMap>(map: &'a M, ask: &Ask, identity: u32, kind: u8) -> Option<&'a PolicyCell> {
    let exact = ask.key();
    let port = u16::from_be(exact.dport) as u32;
    let mut log2 = 1;
    while log2 < 16 {
        if ask.mask & (1 << log2) != 0 {
            let start = (port >> log2) << log2;
            let key = PolicyKey {
                identity,
                dport: (start as u16).to_be(),
                proto: exact.proto,
                direction: exact.direction | (log2 << DIRECTION_BLOCK_SHIFT) as u8,
            };
            if let Some(cell) = map.entry(&key)
                && cell.flags & ENTRY_DENY == kind
            {
                return Some(cell);
            }
        }
        log2 += 1;
    }
    None
}
