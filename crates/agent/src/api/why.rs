//! Why a packet passes or does not: the packet path over the kernel's maps, and over the wanted state.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use villus_api::model::{Explanation as Reply, Step, WhyReply, WhyRequest};
use villus_api::{ApiError, ApiResult, EndpointRef};
use villus_datapath::Snapshot;
use villus_flows::PortProto;
use villus_labels::NumericIdentity;
use villus_path::memory::Memory;
use villus_why::{Derivation, Explanation, Hook, Judgement, Kind, Lookup, Party, Question, Side, why};

use crate::kernel::IpcacheMap;
use crate::node::Node;

impl Node {
    /// Answers a question, twice.
    pub(super) fn why(&mut self, request: &WhyRequest) -> ApiResult<WhyReply> {
        let port: PortProto =
            request.port.parse().map_err(|error| ApiError::bad_field("port", format!("{error}")))?;
        let question = Question {
            src: self.party("src", &request.src)?,
            dst: self.party("dst", &request.dst)?,
            port: port.port,
            proto: port.proto,
        };
        let snapshot =
            Snapshot::without_flows(&self.kernel.pins, &self.kernel.maps).map_err(ApiError::internal)?;
        let wrong = |error: villus_why::Error| ApiError::bad_request(error.to_string());
        let kernel = why(&Memory::from(&snapshot), &question).map_err(wrong)?;
        let wanted = why(&self.wanted_world(&snapshot), &question).map_err(wrong)?;
        let agree = (kernel.allowed, kernel.reason) == (wanted.allowed, wanted.reason);
        let end = |side: &Side| side.endpoint.map(|id| format!(" (endpoint {id})")).unwrap_or_default();
        Ok(WhyReply {
            question: format!(
                "{}{} -> {}{} {}",
                kernel.src.address,
                end(&kernel.src),
                kernel.dst.address,
                end(&kernel.dst),
                asked(port.port, port.proto)
            ),
            kernel: self.reply(&kernel),
            wanted: self.reply(&wanted),
            agree,
        })
    }

    fn party(&self, field: &str, text: &str) -> ApiResult<Party> {
        let reference: EndpointRef =
            text.parse().map_err(|error| ApiError::bad_field(field, format!("{error}")))?;
        match (self.find(&reference), reference) {
            (Ok(id), EndpointRef::Ip(_))
                if self.endpoints.get(&id).is_some_and(|e| e.file.addresses.len() > 1) =>
            {
                // This very address, not the endpoint's first.
                text.trim_start_matches("ipv4:")
                    .trim_start_matches("ipv6:")
                    .parse()
                    .map(Party::Address)
                    .map_err(|_| ApiError::bad_field(field, format!("`{text}` is no address")))
            }
            (Ok(id), _) => Ok(Party::Endpoint(id)),
            (Err(_), EndpointRef::Ip(address)) => Ok(Party::Address(address)),
            (Err(error), _) => Err(error.field(field)),
        }
    }

    /// The world as it should be, at the time of a snapshot.
    fn wanted_world(&self, snapshot: &Snapshot) -> Memory {
        let mut world = Memory::default();
        world.config = Some(self.wanted_config());
        world.set_clock(villus_abi::time::to_ns(snapshot.taken));
        world.endpoints.extend(self.wanted_records());
        world.devices.extend(self.wanted_devices());
        let v4 = self.wanted_addrs4().into_iter();
        world.addrs.extend(v4.map(|(ip, local)| (IpAddr::V4(Ipv4Addr::from(ip.to_ne_bytes())), local)));
        let v6 = self.wanted_addrs6().into_iter();
        world.addrs.extend(v6.map(|(ip, local)| (IpAddr::V6(Ipv6Addr::from(ip)), local)));
        for (key, value) in IpcacheMap::wanted(&self.ipcache.snapshot()) {
            world.ipcache.insert(key, value);
        }
        for (id, endpoint) in &self.endpoints {
            let Some(policy) = self.policy_of(*id).filter(|_| endpoint.is_live()) else { continue };
            // What policy asks for, whatever was done by hand.
            world.set_policy(u32::from(*id), policy.map_entries());
            let slot = u32::from(*id);
            if let Some(record) = world.endpoints.get_mut(&slot) {
                record.mask = policy.mask();
            }
        }
        world
    }

    fn reply(&self, explanation: &Explanation) -> Reply {
        let mut steps =
            vec![self.side("source", &explanation.src), self.side("destination", &explanation.dst)];
        let mut audited = false;
        for pass in &explanation.passes {
            audited |= pass.audited;
            steps.extend(pass.judgements.iter().map(|judgement| self.judged(judgement)));
            if pass.reason != 0 && pass.judgements.is_empty() {
                steps.push(Step {
                    stage: hook(pass.hook).into(),
                    text: format!("refused before any policy is asked: {} ({})", pass.text, pass.reason),
                    endpoint: pass.endpoint,
                    decided: true,
                    ..Step::default()
                });
            }
            if pass.audited {
                let text = "audit mode lets it pass and reports it".into();
                steps.push(Step { stage: "audit".into(), text, endpoint: pass.endpoint, ..Step::default() });
            }
        }
        // Where nobody denies, the last who was asked has decided.
        if !steps.iter().any(|step| step.decided)
            && let Some(last) = steps.iter_mut().rfind(|step| step.stage.ends_with("policy"))
        {
            last.decided = true;
        }
        steps.push(Step { stage: "delivery".into(), text: explanation.ending(), ..Step::default() });
        let verdict = match (explanation.allowed, audited) {
            (false, _) => "dropped",
            (true, true) => "audited",
            (true, false) => "forwarded",
        };
        let dropped = !explanation.allowed;
        Reply {
            verdict: verdict.into(),
            reason: dropped.then_some(explanation.reason),
            reason_text: if dropped { explanation.text.to_owned() } else { String::new() },
            steps,
        }
    }

    fn side(&self, stage: &str, side: &Side) -> Step {
        let who = match (side.kind, side.endpoint) {
            (Kind::Endpoint, Some(id)) => format!("endpoint {id}"),
            (Kind::Host, _) => "this node".to_owned(),
            _ => "outside this node".to_owned(),
        };
        let from = match &side.derived {
            Derivation::Endpoint => "the endpoint's record".to_owned(),
            Derivation::Node => "an address of this node".to_owned(),
            Derivation::Ipcache { prefix } => format!("{prefix} in the ipcache"),
            Derivation::NoPrefix => "no prefix in the ipcache".to_owned(),
        };
        let identity = self.named(side.identity, side.pending);
        let text = format!("{} is {who}, identity {identity} by {from}", side.address);
        Step { stage: stage.into(), text, endpoint: side.endpoint, ..Step::default() }
    }

    fn judged(&self, judgement: &Judgement) -> Step {
        let towards = if judgement.is_egress() { "to" } else { "from" };
        let outcome = match (judgement.allowed, judgement.lookups.iter().any(|lookup| lookup.decided)) {
            (true, _) => "allowed".to_owned(),
            (false, true) => format!("{} ({})", judgement.text, judgement.reason),
            (false, false) => format!("{} ({}): no entry matches", judgement.text, judgement.reason),
        };
        Step {
            stage: format!("{} policy", judgement.direction.to_lowercase()),
            text: format!(
                "{towards} identity {}, {}: {outcome}",
                self.named(judgement.identity, judgement.pending),
                asked(judgement.port, judgement.proto)
            ),
            endpoint: u16::try_from(judgement.endpoint).ok(),
            keys: judgement.lookups.iter().map(lookup_text).collect(),
            decided: !judgement.allowed,
        }
    }

    /// An identity with its labels.
    fn named(&self, identity: u32, pending: bool) -> String {
        let labels = self.identities.labels_of(NumericIdentity(identity));
        let labels = labels.map(|labels| format!(" [{}]", super::model::texts(&labels).join(" ")));
        let pending = if pending { " (pending)" } else { "" };
        format!("{identity}{}{pending}", labels.unwrap_or_default())
    }
}

fn lookup_text(lookup: &Lookup) -> String {
    let who = if lookup.identity == 0 { "any".to_owned() } else { lookup.identity.to_string() };
    let what = match (lookup.proto, lookup.ports) {
        (0, _) => "any port".to_owned(),
        (proto, 0) => format!("ANY/{}", protocol(proto)),
        (proto, 1) => format!("{}/{}", lookup.port, protocol(proto)),
        (proto, ports) => {
            format!("{}-{}/{}", lookup.port, u32::from(lookup.port) + ports - 1, protocol(proto))
        }
    };
    let found = lookup.entry.unwrap_or("-");
    let decided = if lookup.decided { "  <- decides" } else { "" };
    format!("{}  identity {who}, {what}: {found}{decided}", lookup.hex)
}

fn protocol(number: u8) -> String {
    villus_flows::protocol_name(number).map_or_else(|| number.to_string(), str::to_owned)
}

fn asked(port: u16, proto: u8) -> String {
    format!("{port}/{}", protocol(proto))
}

fn hook(hook: Hook) -> &'static str {
    match hook {
        Hook::FromEndpoint => "from endpoint",
        Hook::ToEndpoint => "to endpoint",
        Hook::FromNetwork => "from network",
        Hook::ToNetwork => "to network",
    }
}
