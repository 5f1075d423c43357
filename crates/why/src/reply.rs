//! An explanation as the API and the command line carry it.

use villus_api::model::{Explanation as Reply, Leaving as Leaves, Step};

use crate::{
    judgement::{Judgement, Lookup},
    question::{Derivation, Kind, Side},
    run::{Explanation, Hook},
    words::{Names, refused},
};

/// The stage that says with whose address a packet leaves.
pub const MASQUERADE: &str = "masquerade";

impl Explanation {
    /// The question in one line: who, whom, which port.
    #[must_use]
    pub fn question(&self) -> String {
        let end = |side: &Side| side.endpoint.map(|id| format!(" (endpoint {id})")).unwrap_or_default();
        let (src, dst) = (&self.src, &self.dst);
        let asked = asked(self.port, self.proto);
        format!("{}{} -> {}{} {asked}", src.address, end(src), dst.address, end(dst))
    }

    /// The explanation as the API has it; `names` says what identities are called.
    #[must_use]
    pub fn reply(&self, names: &Names<'_>) -> Reply {
        let mut steps = vec![side("source", &self.src, names), side("destination", &self.dst, names)];
        let mut audited = false;
        for pass in &self.passes {
            audited |= pass.audited;
            steps.extend(pass.judgements.iter().map(|judgement| judged(judgement, names)));
            if pass.reason != 0 && pass.judgements.is_empty() {
                steps.push(Step {
                    stage: hook(pass.hook).into(),
                    text: refused(pass),
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
        if let Some(leaving) = &self.leaving {
            let text = format!("leaves with {}", leaving.text());
            steps.push(Step { stage: MASQUERADE.into(), text, ..Step::default() });
        }
        steps.push(Step { stage: "delivery".into(), text: self.ending(), ..Step::default() });
        let verdict = match (self.allowed, audited) {
            (false, _) => "dropped",
            (true, true) => "audited",
            (true, false) => "forwarded",
        };
        let dropped = !self.allowed;
        Reply {
            verdict: verdict.into(),
            reason: dropped.then_some(self.reason),
            reason_text: if dropped { self.text.to_owned() } else { String::new() },
            leaving: self.leaving.as_ref().map(|leaving| Leaves {
                by: leaving.by.name().into(),
                rule: leaving.rule.name().into(),
                prefix: leaving.prefix.clone(),
                addresses: leaving.lent.iter().map(ToString::to_string).collect(),
            }),
            steps,
        }
    }
}

fn side(stage: &str, side: &Side, names: &Names<'_>) -> Step {
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
    let identity = named(side.identity, side.pending, names);
    let text = format!("{} is {who}, identity {identity} by {from}", side.address);
    Step { stage: stage.into(), text, endpoint: side.endpoint, ..Step::default() }
}

fn judged(judgement: &Judgement, names: &Names<'_>) -> Step {
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
            named(judgement.identity, judgement.pending, names),
            asked(judgement.port, judgement.proto)
        ),
        endpoint: u16::try_from(judgement.endpoint).ok(),
        keys: judgement.lookups.iter().map(lookup_text).collect(),
        because: Vec::new(),
        decided: !judgement.allowed,
    }
}

/// An identity with its name.
fn named(identity: u32, pending: bool, names: &Names<'_>) -> String {
    let name = names(identity).map(|name| format!(" [{name}]")).unwrap_or_default();
    let pending = if pending { " (pending)" } else { "" };
    format!("{identity}{name}{pending}")
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
        Hook::FromOverlay => "from overlay",
        Hook::ToOverlay => "to overlay",
    }
}
