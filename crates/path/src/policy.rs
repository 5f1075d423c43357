//! Asking a policy map: every key that can match is looked at, any deny wins, else the most specific allow
//! decides and counts.

use villus_abi::{
    Config, Direction, Endpoint, PolicyCell, PolicyKey, Reason,
    config::FLAG_AUDIT,
    endpoint::{
        FLAG_AUDIT_DEFAULT_EGRESS, FLAG_AUDIT_DEFAULT_INGRESS, FLAG_AUDIT_EGRESS, FLAG_AUDIT_INGRESS,
        FLAG_DENY_ID_EGRESS, FLAG_DENY_ID_INGRESS, MASK_PROTO,
    },
    event::matched,
    policy::{DIRECTION_BLOCK_SHIFT, ENTRY_AUDIT, ENTRY_DENY},
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
    /// Nothing is counted.
    pub peek: bool,
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
    /// Port (network order), protocol, direction and the `ASK_*` flags, from bit 0 up; the endpoint's flags from bit
    /// `ASK_FLAGS_SHIFT`.
    pub rest: u64,
}

/// Bit of [`Ask::rest`]: the identity is pending.
pub const ASK_PENDING: u64 = 1 << 32;
/// Bit of [`Ask::rest`]: every denial passes as audit, for the node is audited.
pub const ASK_AUDIT_ALL: u64 = 1 << 33;
/// Bit of [`Ask::rest`]: nothing is counted.
pub const ASK_PEEK: u64 = 1 << 34;
/// From this bit of [`Ask::rest`] on stand the endpoint's flags.
pub const ASK_FLAGS_SHIFT: u32 = 40;

impl Ask {
    /// The question about a packet to an endpoint.
    #[inline(always)]
    #[must_use]
    pub fn new(config: &Config, endpoint: &Endpoint, q: &Question) -> Self {
        // What flags mean is found out where it is asked: here the verifier would walk it for every way that leads here.
        let whole_node = (config.flags as u64 >> FLAG_AUDIT.trailing_zeros()) & 1;
        let mut rest = q.port as u64 | (q.proto as u64) << 16 | (q.direction as u64) << 24;
        rest |= (endpoint.flags as u64) << ASK_FLAGS_SHIFT;
        rest |= whole_node * ASK_AUDIT_ALL;
        if q.pending {
            rest |= ASK_PENDING;
        }
        if q.peek {
            rest |= ASK_PEEK;
        }
        let mask = endpoint.mask[q.direction as usize];
        Self { policy: endpoint.policy, mask, identity: q.identity, bytes: q.bytes, rest }
    }

    /// Whether the endpoint has the flag of the asked direction.
    #[inline(always)]
    fn has(&self, ingress: u16, egress: u16) -> bool {
        let flag = if (self.rest >> 24) & 1 == 0 { ingress } else { egress };
        (self.rest >> ASK_FLAGS_SHIFT) & flag as u64 != 0
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

/// The entry that allowed a packet. Without padding, which the verifier does not like to see copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Grant {
    /// Its key.
    pub key: PolicyKey,
    /// `villus_abi::event::matched`: as what it was found.
    pub how: u32,
}

/// The answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// Why not, or [`Reason::FORWARDED`].
    pub reason: Reason,
    /// `villus_abi::event::matched`: the shape of the entry that decided.
    pub matched: u8,
    /// It is a denial, and audit lets the packet pass.
    pub audited: bool,
}

impl Verdict {
    /// An answer that audit does not touch.
    #[must_use]
    pub const fn plain(reason: Reason, matched: u8) -> Self {
        Self { reason, matched, audited: false }
    }

    /// The answer as a register.
    #[must_use]
    pub const fn to_bits(self) -> u32 {
        self.reason.0 as u32 | (self.matched as u32) << 8 | (self.audited as u32) << 16
    }

    /// The answer from a register.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self { reason: Reason(bits as u8), matched: (bits >> 8) as u8, audited: (bits >> 16) & 1 != 0 }
    }

    /// Whether the packet may pass.
    #[must_use]
    pub const fn allowed(self) -> bool {
        self.reason.0 == 0
    }
}

/// The entries found so far: the most specific allow and the most specific deny, one that holds before one of audit.
#[derive(Clone, Copy, Default)]
struct Found<'a> {
    allow: Option<&'a PolicyCell>,
    deny: Option<&'a PolicyCell>,
    /// The key of the allow.
    key: PolicyKey,
    allow_how: u8,
    deny_how: u8,
}

impl<'a> Found<'a> {
    /// Whether a deny was found that nothing overrules.
    #[inline(always)]
    fn holds(&self) -> bool {
        matches!(self.deny, Some(cell) if cell.flags & ENTRY_AUDIT == 0)
    }

    #[inline(always)]
    fn see(&mut self, cell: Option<&'a PolicyCell>, key: &PolicyKey, how: u8) {
        let Some(cell) = cell else { return };
        if cell.flags & ENTRY_DENY != 0 {
            if self.deny.is_none_or(|deny| deny.flags & ENTRY_AUDIT > cell.flags & ENTRY_AUDIT) {
                self.deny = Some(cell);
                self.deny_how = how;
            }
        } else if self.allow.is_none() {
            self.allow = Some(cell);
            self.key = *key;
            self.allow_how = how;
        }
    }
}

/// Asks a policy map, and counts on the entry that decides. Where the world remembers which entry allowed the same before, that
/// one alone is looked up; it allows as long as it is there and allows.
#[inline(always)]
pub fn verdict<W: World>(w: &W, ask: &Ask) -> Verdict {
    let Some(map) = w.policy(ask.policy) else {
        return Verdict::plain(Reason::NO_POLICY_MAP, matched::NONE);
    };
    if let Some(grant) = w.granted(ask)
        && let Some(cell) = map.entry(&grant.key)
        && cell.flags == 0
    {
        count(w, ask, cell);
        return Verdict::plain(Reason::FORWARDED, grant.how as u8);
    }
    let pending = ask.pending();
    let mut key = ask.key();
    // Before anything is found: the verifier walks the loops once for each state that leads to them.
    let mut block = Found::default();
    if ask.mask & !MASK_PROTO != 0 {
        if !pending {
            blocks(&map, ask, ask.identity, matched::L3_L4, &mut block);
        }
        blocks(&map, ask, 0, matched::L4, &mut block);
    }

    let mut found = Found::default();
    if !pending {
        found.see(map.entry(&key), &key, matched::L3_L4);
    }
    key.identity = 0;
    found.see(map.entry(&key), &key, matched::L4);
    found.see(block.deny, &block.key, block.deny_how);
    found.see(block.allow, &block.key, block.allow_how);
    key.dport = 0;
    if ask.mask & MASK_PROTO != 0 {
        if !pending {
            key.identity = ask.identity;
            found.see(map.entry(&key), &key, matched::L3_PROTO);
            key.identity = 0;
        }
        found.see(map.entry(&key), &key, matched::PROTO);
    }
    key.proto = 0;
    if !pending {
        key.identity = ask.identity;
        found.see(map.entry(&key), &key, matched::L3);
        key.identity = 0;
    }
    found.see(map.entry(&key), &key, matched::ALL);

    decide(w, ask, &found)
}

#[inline(always)]
fn decide<W: World>(w: &W, ask: &Ask, found: &Found<'_>) -> Verdict {
    if let Some(cell) = found.deny {
        count(w, ask, cell);
        return denial(ask, Reason::POLICY_DENY, found.deny_how, cell.flags & ENTRY_AUDIT != 0);
    }
    // An identity-specific deny might be the one that would have matched.
    let deny_id = ask.pending() && ask.has(FLAG_DENY_ID_INGRESS, FLAG_DENY_ID_EGRESS);
    if ask.pending() && (found.allow.is_none() || deny_id) {
        return denial(ask, Reason::IDENTITY_PENDING, matched::NONE, !deny_id && audits_default(ask));
    }
    let Some(cell) = found.allow else {
        return denial(ask, Reason::POLICY, matched::NONE, audits_default(ask));
    };
    count(w, ask, cell);
    w.grants(ask, &Grant { key: found.key, how: found.allow_how as u32 });
    Verdict::plain(Reason::FORWARDED, found.allow_how)
}

/// A denial, which passes if it is one of audit or if the whole direction is audited.
#[inline(always)]
fn denial(ask: &Ask, reason: Reason, matched: u8, audited: bool) -> Verdict {
    let all = ask.rest & ASK_AUDIT_ALL != 0 || ask.has(FLAG_AUDIT_INGRESS, FLAG_AUDIT_EGRESS);
    Verdict { reason, matched, audited: audited || all }
}

/// Whether what no entry decides passes as audit.
#[inline(always)]
fn audits_default(ask: &Ask) -> bool {
    ask.has(FLAG_AUDIT_DEFAULT_INGRESS, FLAG_AUDIT_DEFAULT_EGRESS)
}

/// Counts the packet on the entry that decides.
#[inline(always)]
fn count<W: World>(w: &W, ask: &Ask, cell: &PolicyCell) {
    if ask.rest & ASK_PEEK == 0 {
        w.add(&cell.packets, 1);
        w.add(&cell.bytes, ask.bytes as u64);
    }
}

/// The first allow and the first deny among an identity's port blocks, smallest size first; a deny that holds before one of
/// audit.
#[inline(never)]
fn blocks<'a, M: PolicyMap>(map: &'a M, ask: &Ask, identity: u32, how: u8, found: &mut Found<'a>) {
    let mut key = ask.key();
    let (port, direction) = (u16::from_be(key.dport) as u32, key.direction);
    key.identity = identity;
    let mut log2 = 1;
    while log2 < 16 && !found.holds() {
        if ask.mask & (1 << log2) != 0 {
            key.dport = ((port >> log2 << log2) as u16).to_be();
            key.direction = direction | (log2 << DIRECTION_BLOCK_SHIFT) as u8;
            found.see(map.entry(&key), &key, how);
        }
        log2 += 1;
    }
}
