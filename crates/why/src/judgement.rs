//! One question to one policy map: the keys that were looked up, and the one that decided.

use villus_abi::{Direction, PolicyEntry, PolicyKey, Reason, bytes_of, policy::ICMP_TYPE_ZERO_PORT};
use villus_path::memory::Step;

/// A key that was looked up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lookup {
    /// Identity, 0 for any.
    pub identity: u32,
    /// Port (the first of a block) or ICMP type, 0 for any.
    pub port: u16,
    /// How many ports the key covers; 0 for any.
    pub ports: u32,
    /// IP protocol, 0 for any.
    pub proto: u8,
    /// The key's eight bytes as `bpftool` takes and prints them.
    pub hex: String,
    /// What stands there: `allow`, `deny` or nothing.
    pub entry: Option<&'static str>,
    /// Packets that entry has decided.
    pub packets: u64,
    /// Whether this entry decided.
    pub decided: bool,
}

/// What one endpoint's policy said in one direction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Judgement {
    /// The endpoint whose policy was asked.
    pub endpoint: u32,
    /// `Ingress` or `Egress`.
    pub direction: &'static str,
    /// Identity of the other side.
    pub identity: u32,
    /// The other side's identity has not arrived: only keys for any identity were looked up.
    pub pending: bool,
    /// Destination port, or the ICMP type.
    pub port: u16,
    /// IP protocol.
    pub proto: u8,
    /// The keys, in the order in which they were looked up.
    pub lookups: Vec<Lookup>,
    /// Whether policy allows it.
    pub allowed: bool,
    /// Number of the reason when it does not.
    pub reason: u8,
    /// The reason in the field's words.
    pub text: &'static str,
}

/// The judgements in a record of steps.
pub(crate) fn judgements(steps: &[Step]) -> Vec<Judgement> {
    let mut all = Vec::new();
    let mut open: Option<Judgement> = None;
    for step in steps {
        match step {
            Step::Ask(ask) => {
                let key = ask.key();
                open = Some(Judgement {
                    endpoint: ask.policy,
                    direction: key.dir().name(),
                    identity: key.identity,
                    pending: ask.pending(),
                    port: asked_port(&key),
                    proto: key.proto,
                    lookups: Vec::new(),
                    allowed: false,
                    reason: 0,
                    text: "",
                });
            }
            Step::Entry { key, answer, .. } => {
                if let Some(judgement) = &mut open {
                    judgement.see(key, answer.as_ref());
                }
            }
            Step::Verdict(verdict) => {
                if let Some(mut judgement) = open.take() {
                    judgement.decide(verdict.reason);
                    all.push(judgement);
                }
            }
            _ => {}
        }
    }
    all
}

/// The port a key asks for; ICMP type 0 has a number of its own there.
fn asked_port(key: &PolicyKey) -> u16 {
    let is_icmp = matches!(key.proto, 1 | 58);
    if is_icmp && key.port() == ICMP_TYPE_ZERO_PORT { 0 } else { key.port() }
}

impl Judgement {
    /// Adds a key; blocks are looked up for denies and allows, which is one look-up to a reader.
    fn see(&mut self, key: &PolicyKey, entry: Option<&PolicyEntry>) {
        let hex = bytes_of(key).iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
        if self.lookups.iter().any(|lookup| lookup.hex == hex) {
            return;
        }
        let ports = if key.dport == 0 && key.block_log2() == 0 { 0 } else { 1 << key.block_log2() };
        self.lookups.push(Lookup {
            identity: key.identity,
            port: asked_port(key),
            ports,
            proto: key.proto,
            hex,
            entry: entry.map(|entry| if entry.is_deny() { "deny" } else { "allow" }),
            packets: entry.map_or(0, |entry| entry.packets),
            decided: false,
        });
    }

    /// Marks what decided: the first deny, else the first allow.
    fn decide(&mut self, reason: Reason) {
        self.allowed = reason == Reason::FORWARDED;
        self.reason = reason.0;
        self.text = if self.allowed { "allowed" } else { reason.text() };
        let kind = match reason {
            Reason::FORWARDED => "allow",
            Reason::POLICY_DENY => "deny",
            _ => return,
        };
        if let Some(lookup) = self.lookups.iter_mut().find(|lookup| lookup.entry == Some(kind)) {
            lookup.decided = true;
        }
    }

    /// The direction again.
    #[must_use]
    pub fn is_egress(&self) -> bool {
        self.direction == Direction::Egress.name()
    }
}
