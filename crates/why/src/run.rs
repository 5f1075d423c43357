//! The first packet of a flow on its way through the hooks.

use std::net::{IpAddr, SocketAddr};

use villus_abi::Endpoint;
use villus_path::{
    Action, MARK_OPENED, MARK_ROUTED, Outcome, Tunnel, Work, from_endpoint, from_network, from_overlay,
    masquerade,
    memory::{Build, FlowKey, Frame, Memory, NatKey, NextHop, Step, Transport},
    to_endpoint, to_network, to_overlay,
};

use crate::{
    judgement::{Judgement, judgements},
    leaving::{Leaving, Masquerader, Rule, kept, source_of},
    question::{Error, Kind, Question, Side, addresses, record, side, source},
};

/// An interface that is no endpoint's: the uplink of a packet from outside.
const UPLINK: u32 = u32::MAX;
const SYN: u8 = 2;

/// Where a packet meets the path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hook {
    /// What an endpoint sends.
    FromEndpoint,
    /// What the host's stack delivers to an endpoint.
    ToEndpoint,
    /// What comes in on an uplink.
    FromNetwork,
    /// What goes out on an uplink.
    ToNetwork,
    /// What the tunnel between nodes brings.
    FromOverlay,
    /// What the host's stack sends into the tunnel.
    ToOverlay,
}

/// Whether the packet belonged to a flow when a hook saw it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flow {
    /// The hook did not ask.
    NotAsked,
    /// There was none.
    New,
    /// There was one.
    Known,
}

/// What one hook did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pass {
    /// Which hook.
    pub hook: Hook,
    /// The endpoint whose device it is on; `None` on an uplink.
    pub endpoint: Option<u16>,
    /// What it found in the flow table.
    pub flow: Flow,
    /// The policies that were asked.
    pub judgements: Vec<Judgement>,
    /// Number of the drop reason; 0 if it was not dropped.
    pub reason: u8,
    /// The reason in the field's words.
    pub text: &'static str,
    /// A denial passed because the endpoint, or the node, only audits.
    pub audited: bool,
}

/// What becomes of the packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// Handed to the endpoint straight from the sender's hook.
    HandedOver,
    /// Delivered to the endpoint by the host's stack.
    DeliveredByStack,
    /// Given to the host's stack, which is its destination.
    DeliveredToHost,
    /// Given to the host's stack, which forwards it out of the node.
    LeavesByStack,
    /// Sent to a neighbour on the network past the stack.
    LeavesDirectly,
    /// Sent through the tunnel to the node behind which its destination lives.
    LeavesByTunnel,
    /// Dropped.
    Dropped,
}

/// The answer to a [`Question`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Explanation {
    /// Who sends.
    pub src: Side,
    /// For whom.
    pub dst: Side,
    /// Destination port, or the ICMP type.
    pub port: u16,
    /// IP protocol.
    pub proto: u8,
    /// The hooks that the packet meets, in order.
    pub passes: Vec<Pass>,
    /// Whether it arrives, as far as Villus decides.
    pub allowed: bool,
    /// What becomes of it.
    pub fate: Fate,
    /// With whose address it leaves the node, if it is an endpoint's and leaves it beside the tunnel.
    pub leaving: Option<Leaving>,
    /// Number of the drop reason; 0 if it was not dropped.
    pub reason: u8,
    /// The reason in the field's words.
    pub text: &'static str,
}

/// Takes the first packet of a flow through the path. The flows of `world` are as they were before when it returns;
/// its counters are not.
///
/// # Errors
/// [`Error`], when the question does not concern this node.
pub fn why(world: &Memory, question: &Question) -> Result<Explanation, Error> {
    let (from, to) = addresses(world, question)?;
    let (src, dst) = (source(world, from), side(world, to));
    let is_judged = |side: &Side| match side.kind {
        Kind::Endpoint => true,
        Kind::Host => side.endpoint.is_some(),
        Kind::Outside => false,
    };
    // What the node sends itself meets no hook.
    let stays = src.kind == Kind::Host && dst.kind == Kind::Host;
    if stays || !is_judged(&src) && !is_judged(&dst) {
        return Err(Error::NotOurs { src: from, dst: to });
    }
    let packet = packet(world, question, &src, &dst);
    let mut run =
        Run { world, passes: Vec::new(), opened: Vec::new(), lent: Vec::new(), packet, leaving: None };
    let fate = run.go(&src, &dst);
    for key in &run.opened {
        world.remove_flow(key);
    }
    run.give_back();
    let (reason, text) = run.passes.last().map_or((0, ""), |pass| (pass.reason, pass.text));
    Ok(Explanation {
        src,
        dst,
        port: question.port,
        proto: question.proto,
        passes: run.passes,
        allowed: fate != Fate::Dropped,
        fate,
        leaving: run.leaving,
        reason,
        text,
    })
}

/// The first packet of a flow that the world does not know yet.
fn packet(world: &Memory, question: &Question, src: &Side, dst: &Side) -> Build {
    let (from, to) = (src.address, dst.address);
    let flows = world.flows();
    let is_icmp = question.proto == if from.is_ipv6() { 58 } else { 1 };
    let dport = if is_icmp { 0 } else { question.port };
    let is_free = |sport: &u16| {
        let key = FlowKey::between(SocketAddr::new(from, *sport), SocketAddr::new(to, dport), question.proto);
        !key.is_some_and(|(key, _)| flows.contains_key(&key))
    };
    let sport = (49152..=u16::MAX).find(is_free).unwrap_or(u16::MAX);
    let transport = match question.proto {
        6 => Transport::Tcp { sport, dport, flags: SYN, options: Vec::new() },
        17 => Transport::Udp { sport, dport },
        132 => Transport::Sctp { sport, dport, tag: 0 },
        _ if is_icmp => {
            let [hi, lo] = sport.to_be_bytes();
            Transport::Icmp { kind: question.port as u8, code: 0, rest: [hi, lo, 0, 1] }
        }
        other => Transport::Other(other),
    };
    let mut packet = Build::new(from, to, transport);
    if let Some(sender) = src.endpoint.and_then(|id| record(world, u32::from(id))) {
        packet.smac = sender.mac;
        packet.dmac = sender.node_mac;
    }
    packet
}

struct Run<'a> {
    world: &'a Memory,
    passes: Vec<Pass>,
    opened: Vec<FlowKey>,
    lent: Vec<NatKey>,
    packet: Build,
    leaving: Option<Leaving>,
}

type HookFn = fn(&Memory, &mut Frame, &mut Work) -> Outcome;

impl Run<'_> {
    fn go(&mut self, src: &Side, dst: &Side) -> Fate {
        let mut ingress = 0;
        if src.kind == Kind::Host {
            if dst.kind == Kind::Outside {
                if self.tunnel_of(self.packet.dst).is_some() {
                    let frame = self.frame(UPLINK, 0);
                    return match self.pass(Hook::ToOverlay, to_overlay, frame, src.endpoint) {
                        Action::Drop => Fate::Dropped,
                        _ => Fate::LeavesByTunnel,
                    };
                }
                let frame = self.frame(UPLINK, 0);
                return match self.pass(Hook::ToNetwork, to_network, frame, src.endpoint) {
                    Action::Drop => Fate::Dropped,
                    _ => Fate::LeavesByStack,
                };
            }
        } else if let Some(sender) = self.record_of(src) {
            ingress = sender.ifindex;
            let frame = self.frame(sender.ifindex, sender.ifindex);
            match self.pass(Hook::FromEndpoint, from_endpoint, frame, Some(sender.id)) {
                Action::Drop => return Fate::Dropped,
                Action::Peer | Action::Device => return Fate::HandedOver,
                Action::Neighbour => return self.leaves(sender, Fate::LeavesDirectly),
                Action::Tunnel => return Fate::LeavesByTunnel,
                Action::Pass if dst.kind == Kind::Outside => return self.leaves(sender, Fate::LeavesByStack),
                Action::Pass => {}
            }
        } else if src.kind == Kind::Outside {
            ingress = UPLINK;
            let tunnel = self.tunnel_of(self.packet.src);
            let frame = Frame { tunnel, ..self.frame(UPLINK, UPLINK) };
            let (hook, run): (Hook, HookFn) = match tunnel {
                Some(_) => (Hook::FromOverlay, from_overlay),
                None => (Hook::FromNetwork, from_network),
            };
            match self.pass(hook, run, frame, None) {
                Action::Drop => return Fate::Dropped,
                Action::Peer | Action::Device => return Fate::HandedOver,
                Action::Neighbour | Action::Tunnel | Action::Pass => {}
            }
        }
        if dst.kind == Kind::Host {
            return Fate::DeliveredToHost;
        }
        let Some(receiver) = self.record_of(dst) else { return Fate::LeavesByStack };
        if ingress != 0 {
            self.packet.ttl -= 1;
        }
        let frame = self.frame(receiver.ifindex, ingress);
        match self.pass(Hook::ToEndpoint, to_endpoint, frame, Some(receiver.id)) {
            Action::Drop => Fate::Dropped,
            _ => Fate::DeliveredByStack,
        }
    }

    /// What an endpoint sends out of the node, on the uplinks that it may leave by.
    fn leaves(&mut self, sender: Endpoint, fate: Fate) -> Fate {
        let v6 = self.packet.dst.is_ipv6();
        let by = Masquerader::of(self.world, v6);
        let direct = fate == Fate::LeavesDirectly;
        let rule = if by == Masquerader::Nftables && !direct { Rule::NotKnown } else { Rule::OwnAddress };
        let mut leaving = Leaving { by, rule, prefix: None, lent: Vec::new() };
        if by == Masquerader::Bpf && !self.world.uplinks.is_empty() {
            self.packet.ttl -= 1;
            let mark = if direct { MARK_ROUTED } else { MARK_OPENED };
            let uplinks: Vec<u32> = self.world.uplinks.keys().copied().collect();
            for (nth, uplink) in uplinks.into_iter().enumerate() {
                let mut frame = Frame { mark, ..self.frame(uplink, sender.ifindex) };
                // Of the first uplink everything is told, of others what they lend.
                let (action, steps) =
                    self.meets(Hook::ToNetwork, send, &mut frame, Some(sender.id), nth == 0);
                self.give_back();
                if action == Action::Drop {
                    if nth == 0 {
                        return Fate::Dropped;
                    }
                    continue;
                }
                match source_of(&frame.bytes, v6).filter(|source| *source != self.packet.src) {
                    Some(source) => {
                        leaving.rule = Rule::Masquerade;
                        if !leaving.lent.contains(&source) {
                            leaving.lent.push(source);
                        }
                    }
                    None => (leaving.rule, leaving.prefix) = kept(&steps, self.packet.dst),
                }
            }
        }
        self.leaving = Some(leaving);
        fate
    }

    /// Forgets what was lent.
    fn give_back(&mut self) {
        for key in self.lent.drain(..) {
            self.world.remove_mapping(&key);
        }
    }

    /// What the tunnel between nodes says of packets from an address that lives behind it.
    fn tunnel_of(&self, address: IpAddr) -> Option<Tunnel> {
        let (_, row) = self.world.ipcache.longest(address)?;
        let tunnelled = self.world.config.is_some_and(|config| config.overlay_ifindex != 0);
        (tunnelled && row.tunnel != 0).then_some(Tunnel { from: row.tunnel, identity: 0 })
    }

    fn record_of(&self, side: &Side) -> Option<Endpoint> {
        record(self.world, u32::from(side.endpoint?)).copied()
    }

    fn frame(&self, ifindex: u32, ingress_ifindex: u32) -> Frame {
        let next_hop = Some(NextHop { mtu: u32::MAX, ..NextHop::default() });
        Frame { next_hop, ..Frame::new(self.packet.frame(), ifindex).via(ingress_ifindex) }
    }

    fn pass(&mut self, hook: Hook, run: HookFn, mut frame: Frame, endpoint: Option<u16>) -> Action {
        self.meets(hook, run, &mut frame, endpoint, true).0
    }

    /// A hook: what it decided, and what it looked at. What is `told` is one of the passes.
    fn meets(
        &mut self,
        hook: Hook,
        run: HookFn,
        frame: &mut Frame,
        endpoint: Option<u16>,
        told: bool,
    ) -> (Action, Vec<Step>) {
        self.world.record();
        let outcome = run(self.world, frame, &mut Work::default());
        let steps = self.world.take_walk();
        if told {
            self.tell(hook, outcome, &steps, endpoint);
        }
        for step in &steps {
            match step {
                Step::Create { key, .. } => self.opened.push(*key),
                Step::Claim { key, stored: true, .. } => self.lent.push(*key),
                _ => {}
            }
        }
        (outcome.action(), steps)
    }

    fn tell(&mut self, hook: Hook, outcome: Outcome, steps: &[Step], endpoint: Option<u16>) {
        let reason = outcome.reason();
        let dropped = outcome.action() == Action::Drop;
        let judgements = judgements(steps);
        self.passes.push(Pass {
            hook,
            endpoint,
            flow: flow_of(steps),
            audited: !dropped && judgements.iter().any(|judgement| !judgement.allowed),
            judgements,
            reason: reason.0,
            text: if dropped { reason.text() } else { "" },
        });
    }
}

/// Egress of an uplink where endpoints are masqueraded.
fn send(world: &Memory, frame: &mut Frame, work: &mut Work) -> Outcome {
    let outcome = to_network(world, frame, work);
    if outcome.action() == Action::Pass { masquerade(world, frame, work) } else { outcome }
}

fn flow_of(steps: &[Step]) -> Flow {
    let found = steps.iter().find_map(|step| match step {
        Step::Flow { answer, .. } => Some(answer.is_some()),
        _ => None,
    });
    match found {
        None => Flow::NotAsked,
        Some(true) => Flow::Known,
        Some(false) => Flow::New,
    }
}
