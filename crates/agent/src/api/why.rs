//! Why a packet passes or does not: the packet path over the kernel's maps, and over the wanted state.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::PoisonError;

use ipnet::IpNet;
use villus_abi::policy::Direction;
use villus_api::model::{Explanation as Reply, WhyReply, WhyRequest};
use villus_api::{ApiError, ApiResult, EndpointRef};
use villus_datapath::Snapshot;
use villus_flows::PortProto;
use villus_labels::NumericIdentity;
use villus_net::{LeavesWith, device_towards};
use villus_path::memory::{Memory, prefix};
use villus_policy::Verdict;
use villus_why::{Explanation, Judgement, MASQUERADE, Masquerader, Party, Question, Rule, why};

use crate::kernel::IpcacheMap;
use crate::nat::Origin;
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
        let mut kernel = why(&Memory::from(&snapshot), &question).map_err(wrong)?;
        let mut wanted = why(&self.wanted_world(&snapshot), &question).map_err(wrong)?;
        self.ask_table(&mut kernel);
        self.ask_table(&mut wanted);
        let agree = (kernel.allowed, kernel.reason) == (wanted.allowed, wanted.reason);
        let names = |identity| self.labels_text(identity);
        Ok(WhyReply {
            question: kernel.question(),
            kernel: self.told(&kernel, kernel.reply(&names)),
            wanted: self.told(&wanted, wanted.reply(&names)),
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
        world.uplinks.extend(self.wanted_uplinks());
        world.masquerade.extend(self.wanted_prefixes().iter().map(|(key, flags)| {
            let (address, length) = prefix(key);
            (address, length, *flags)
        }));
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

    /// Names the rules behind each judgement of a policy, as far as policies ask for what was found.
    fn told(&self, explanation: &Explanation, mut reply: Reply) -> Reply {
        let judgements = explanation.passes.iter().flat_map(|pass| &pass.judgements);
        let steps = reply.steps.iter_mut().filter(|step| step.stage.ends_with(" policy"));
        for (step, judgement) in steps.zip(judgements) {
            step.because = self.because(judgement);
        }
        self.name_origins(&mut reply);
        reply
    }

    /// Whether the table of nftables lends a packet an address, where that is what masquerades: everywhere, or on the device by
    /// which it leaves.
    fn ask_table(&self, explanation: &mut Explanation) {
        let (src, dst) = (explanation.src.address, explanation.dst.address);
        let Some(leaving) = explanation.leaving.as_mut() else { return };
        let Some(table) = &self.network.masquerading else { return };
        match leaving.by {
            Masquerader::Nftables => {}
            Masquerader::Bpf if self.is_left_to_the_table(src, dst) => {
                leaving.by = Masquerader::Nftables;
                leaving.lent.clear();
            }
            Masquerader::Bpf | Masquerader::Nobody => return,
        }
        let with = table.lock().unwrap_or_else(PoisonError::into_inner).leaves_with(src, dst);
        (leaving.rule, leaving.prefix) = match with {
            LeavesWith::Lent => (Rule::Masquerade, None),
            LeavesWith::OwnTo(net) if self.is_other_node(net) => (Rule::RemoteNode, None),
            LeavesWith::OwnTo(net) => (Rule::Prefix, Some(net.to_string())),
            LeavesWith::Own => (Rule::OwnAddress, None),
        };
    }

    /// Whether a prefix is an address of another node.
    fn is_other_node(&self, net: IpNet) -> bool {
        net.prefix_len() == net.max_prefix_len()
            && self.other_nodes().iter().any(|node| node.addresses.iter().any(|a| a.ip == net.addr()))
    }

    /// Whether a packet leaves by a device that has none of our programs.
    fn is_left_to_the_table(&self, src: IpAddr, dst: IpAddr) -> bool {
        match device_towards(src, dst) {
            Ok(Some((index, _))) => !self.nat.lending.contains(&index),
            // Nothing leaves.
            Ok(None) | Err(_) => false,
        }
    }

    /// Says where a prefix comes from to which nothing is masqueraded.
    fn name_origins(&self, reply: &mut Reply) {
        let Some(leaving) = reply.leaving.as_mut().filter(|leaving| leaving.rule == Rule::Prefix.name())
        else {
            return;
        };
        let Some(prefix) = leaving.prefix.as_ref().and_then(|prefix| prefix.parse::<IpNet>().ok()) else {
            return;
        };
        let origins: Vec<(IpNet, Origin)> =
            self.kept_prefixes().into_iter().filter(|(net, _)| net.contains(&prefix)).collect();
        // Of a prefix that lies in others the nearest is named.
        if let Some((_, nearest)) = origins.iter().max_by_key(|(net, _)| net.prefix_len()) {
            leaving.rule = nearest.rule().into();
        }
        let because = origins.iter().map(|(net, origin)| match origin {
            Origin::Node => format!("{net} is of endpoints of this node"),
            Origin::OtherNode(name) => format!("{net} is of endpoints of node {name}"),
            Origin::Native(option) => format!("{net} is {option}"),
            Origin::List => match &self.config.masquerade.list {
                Some(path) => format!("{net} is in the list of ip-masq-agent ({})", path.display()),
                None => format!("{net} is in the list of ip-masq-agent"),
            },
        });
        if let Some(step) = reply.steps.iter_mut().find(|step| step.stage == MASQUERADE) {
            step.because = because.collect();
        }
    }

    fn because(&self, judgement: &Judgement) -> Vec<String> {
        let Ok(id) = u16::try_from(judgement.endpoint) else { return Vec::new() };
        let (Some(endpoint), Some(policy)) = (self.endpoints.get(&id), self.policy_of(id)) else {
            return Vec::new();
        };
        if judgement.pending {
            return Vec::new();
        }
        let direction = if judgement.is_egress() { Direction::Egress } else { Direction::Ingress };
        let asked = policy.explain(direction, judgement.identity, judgement.port, judgement.proto);
        if asked.verdict.is_allowed() != judgement.allowed {
            return vec!["no rule asks for this: the map is not as policies say".to_owned()];
        }
        let peer = self.identities.labels_of(NumericIdentity(judgement.identity));
        let what = match (asked.verdict, asked.audited) {
            (Verdict::Allowed(_), _) => "allowed by",
            (Verdict::Denied(_), false) => "denied by",
            (Verdict::Denied(_), true) => "denied, as audit, by",
            (Verdict::DeniedByDefault, false) => "default deny by",
            (Verdict::DeniedByDefault, true) => "default deny, as audit, by",
        };
        let reasons = self.repository.because(&endpoint.identity_labels, peer.as_ref(), &asked);
        let mut lines: Vec<String> = reasons.iter().map(|reason| format!("{what} {reason}")).collect();
        if let Some(peer) = &peer {
            let nearest = self.repository.nearest(&endpoint.identity_labels, peer, &asked);
            lines.extend(nearest.iter().map(|nearest| format!("nearest: {nearest}")));
        }
        lines
    }

    /// The labels of an identity.
    fn labels_text(&self, identity: u32) -> Option<String> {
        let labels = self.identities.labels_of(NumericIdentity(identity))?;
        Some(super::model::texts(&labels).join(" "))
    }
}
