//! What policies mean: namespace scoping, entities, emptiness, default deny (reference `policy` 3.2 to 3.4).

use std::{fmt, sync::Arc};

use ipnet::IpNet;
use serde::{Serialize, Serializer};
use villus_abi::Direction;
use villus_labels::{
    KEY_CLUSTER, KEY_NAMESPACE, KEY_NAMESPACE_LABELS, KeySource, Label, LabelError, Selector, source,
};

use crate::{
    Element, Entity, ObjectKey, Policy, Position, PrefixSet, Rule,
    ports::{PortMatch, port_matches},
};

/// What the meaning of a policy depends on beside its text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// `enable-policy`.
    pub mode: EnforcementMode,
    /// Whether the node itself may always reach its endpoints (`allow-localhost`, already decided).
    pub allow_localhost: bool,
    /// The label of the local cluster, `k8s:io.cilium.k8s.policy.cluster=<cluster-name>`.
    pub cluster: Label,
    /// Selectors that name no cluster mean the local one (`policy-default-local-cluster`).
    pub default_local_cluster: bool,
}

impl Settings {
    /// Mode `default`, localhost by policy, selectors mean any cluster.
    ///
    /// # Errors
    /// A cluster name that can't be a label's value.
    pub fn new(cluster_name: &str) -> Result<Self, LabelError> {
        Ok(Self {
            mode: EnforcementMode::Default,
            allow_localhost: false,
            cluster: Label::new(source::K8S, KEY_CLUSTER, cluster_name)?,
            default_local_cluster: false,
        })
    }
}

/// When endpoints are enforced.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EnforcementMode {
    /// An endpoint is free in a direction until a rule selects it there.
    #[default]
    Default,
    /// Every endpoint is enforced.
    Always,
    /// None is.
    Never,
}

impl EnforcementMode {
    /// Reads the option's value.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "default" => Some(Self::Default),
            "always" => Some(Self::Always),
            "never" => Some(Self::Never),
            _ => None,
        }
    }
}

/// Whom a clause speaks about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Peers {
    /// Everybody, known or not: identity 0.
    Any,
    /// The identities that one of these selects; none if there are none.
    Selected(Vec<Selector>),
}

/// Where an entry of a policy map comes from.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Origin {
    /// An element of a rule of a policy.
    Rule(Arc<RuleOrigin>),
    /// The direction is not enforced.
    NotEnforced,
    /// `allow-localhost`.
    AllowLocalhost,
    /// `enable-policy=always`.
    AlwaysEnforced,
    /// The endpoint's labels are not known yet.
    Init,
}

/// An element of a rule of a policy.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RuleOrigin {
    /// The policy.
    pub policy: ObjectKey,
    /// `spec.ingress[0]`.
    pub path: Arc<str>,
    /// Where it stands in the policy's file.
    pub position: Option<Position>,
    /// Whether it denies.
    pub deny: bool,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule(rule) => {
                write!(f, "{} {} ({}", rule.policy, rule.path, rule.policy.origin)?;
                if let Some(position) = rule.position {
                    write!(f, ":{}", position.line)?;
                }
                f.write_str(")")
            }
            Self::NotEnforced => f.write_str("no policy selects the endpoint in this direction"),
            Self::AllowLocalhost => f.write_str("option allow-localhost"),
            Self::AlwaysEnforced => f.write_str("option enable-policy=always"),
            Self::Init => f.write_str("the endpoint's labels are not known yet (reserved:init)"),
        }
    }
}

impl Serialize for Origin {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Shape<'a> {
            text: String,
            #[serde(skip_serializing_if = "Option::is_none")]
            policy: Option<&'a ObjectKey>,
            #[serde(skip_serializing_if = "Option::is_none")]
            path: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            position: Option<Position>,
            #[serde(skip_serializing_if = "Option::is_none")]
            deny: Option<bool>,
        }
        let rule = match self {
            Self::Rule(rule) => Some(rule),
            _ => None,
        };
        Shape {
            text: self.to_string(),
            policy: rule.map(|rule| &rule.policy),
            path: rule.map(|rule| &*rule.path),
            position: rule.and_then(|rule| rule.position),
            deny: rule.map(|rule| rule.deny),
        }
        .serialize(serializer)
    }
}

/// One element of a rule, its meaning resolved.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Clause {
    /// Which direction.
    pub direction: Direction,
    /// Whether it denies.
    pub deny: bool,
    /// Whom.
    pub peers: Peers,
    /// On which ports; never empty.
    pub ports: Vec<PortMatch>,
    /// Where it comes from.
    pub origin: Origin,
}

/// A rule, its meaning resolved.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ResolvedRule {
    /// Which endpoints.
    pub subject: Selector,
    /// Whether it switches a direction to default deny: ingress, egress.
    pub default_deny: [bool; 2],
    /// What switched it on, for explanations.
    pub origin: Origin,
    /// Its elements that speak about somebody.
    pub clauses: Vec<Clause>,
    /// The prefixes that need identities of their own.
    pub prefixes: Vec<IpNet>,
}

/// Resolves every rule of a policy.
#[must_use]
pub fn resolve(policy: &Policy, settings: &Settings) -> Vec<ResolvedRule> {
    policy.rules.iter().map(|rule| Resolver { policy, rule, settings }.resolve()).collect()
}

struct Resolver<'a> {
    policy: &'a Policy,
    rule: &'a Rule,
    settings: &'a Settings,
}

impl Resolver<'_> {
    fn resolve(&self) -> ResolvedRule {
        let rule = self.rule;
        let mut clauses = Vec::new();
        let mut prefixes = Vec::new();
        for (direction, deny, section) in [
            (Direction::Ingress, false, &rule.ingress),
            (Direction::Ingress, true, &rule.ingress_deny),
            (Direction::Egress, false, &rule.egress),
            (Direction::Egress, true, &rule.egress_deny),
        ] {
            for element in section.iter().flatten() {
                clauses.extend(self.clause(element, direction, deny));
                prefixes.extend(element_prefixes(element));
            }
        }
        prefixes.sort_unstable();
        prefixes.dedup();
        let has =
            |section: &Option<Vec<Element>>| section.as_ref().is_some_and(|elements| !elements.is_empty());
        let [ingress, egress] = rule.default_deny;
        ResolvedRule {
            subject: self.subject(),
            default_deny: [
                ingress.unwrap_or(has(&rule.ingress) || has(&rule.ingress_deny)),
                egress.unwrap_or(has(&rule.egress) || has(&rule.egress_deny)),
            ],
            origin: self.origin(&rule.path, rule.position, false),
            clauses,
            prefixes,
        }
    }

    fn origin(&self, path: &Arc<str>, position: Option<Position>, deny: bool) -> Origin {
        let (policy, path) = (self.policy.key.clone(), path.clone());
        Origin::Rule(Arc::new(RuleOrigin { policy, path, position, deny }))
    }

    /// `None` for an element that speaks about nobody.
    fn clause(&self, element: &Element, direction: Direction, deny: bool) -> Option<Clause> {
        let peers = self.peers(element)?;
        let ports = match &element.transport {
            Some(transport) => transport.iter().flat_map(|item| port_matches(*item)).collect(),
            None => vec![PortMatch::ALL],
        };
        let origin = self.origin(&element.path, element.position, deny);
        Some(Clause { direction, deny, peers, ports, origin })
    }

    /// Whom an element speaks about. No peer field at all: everybody if it names ports, else nobody.
    fn peers(&self, element: &Element) -> Option<Peers> {
        let Element { endpoints, entities, prefixes, prefix_sets, transport, .. } = element;
        if endpoints.is_none() && entities.is_none() && prefixes.is_none() && prefix_sets.is_none() {
            return transport.is_some().then_some(Peers::Any);
        }
        let mut selectors: Vec<Selector> = Vec::new();
        selectors.extend(endpoints.iter().flatten().map(|selector| self.peer_selector(selector)));
        for entity in entities.iter().flatten() {
            selectors.extend(entity_selectors(*entity, &self.settings.cluster));
        }
        selectors.extend(prefixes.iter().flatten().map(|prefix| Selector::prefix(*prefix, &[])));
        selectors.extend(prefix_sets.iter().flatten().map(|set| Selector::prefix(set.prefix, &set.except)));
        selectors.sort_unstable();
        selectors.dedup();
        if selectors.iter().any(Selector::is_everything) {
            return Some(Peers::Any);
        }
        (!selectors.is_empty()).then_some(Peers::Selected(selectors))
    }

    /// The subject, tied to the policy's namespace.
    fn subject(&self) -> Selector {
        let subject = &self.rule.subject;
        match &self.policy.namespace {
            Some(namespace) if !has_reserved_key(subject) => subject.requiring(namespace),
            _ => subject.clone(),
        }
    }

    /// A selector of endpoints as peers, tied to the policy's namespace where it names none.
    fn peer_selector(&self, selector: &Selector) -> Selector {
        if has_reserved_key(selector) {
            return selector.clone();
        }
        let namespaced =
            selector.has_key(|key| key.key() == KEY_NAMESPACE || key.key().starts_with(KEY_NAMESPACE_LABELS));
        let scoped = match &self.policy.namespace {
            _ if namespaced => selector.clone(),
            Some(namespace) => selector.requiring(namespace),
            None if selects_init(&self.rule.subject) => selector.clone(),
            None => selector.requiring_key(source::K8S, KEY_NAMESPACE),
        };
        if self.settings.default_local_cluster && !selector.has_key(|key| key.key() == KEY_CLUSTER) {
            return scoped.requiring(&self.settings.cluster);
        }
        scoped
    }
}

fn has_reserved_key(selector: &Selector) -> bool {
    selector.has_key(|key| matches!(key.source(), KeySource::Is(name) if **name == *source::RESERVED))
}

fn selects_init(subject: &Selector) -> bool {
    subject.has_key(|key| key.key() == "init" && key.source_name() == source::RESERVED)
}

fn element_prefixes(element: &Element) -> impl Iterator<Item = IpNet> + '_ {
    let sets = element.prefix_sets.iter().flatten();
    let sets = sets.flat_map(|PrefixSet { prefix, except }| std::iter::once(prefix).chain(except));
    element.prefixes.iter().flatten().chain(sets).copied()
}

/// What an entity stands for; everybody is the empty selector.
fn entity_selectors(entity: Entity, cluster: &Label) -> Vec<Selector> {
    let reserved = |names: &[&str]| names.iter().map(|name| Selector::reserved(name)).collect();
    match entity {
        Entity::All => vec![Selector::everything()],
        Entity::World => reserved(&["world", "world-ipv4", "world-ipv6"]),
        Entity::WorldIpv4 => reserved(&["world-ipv4"]),
        Entity::WorldIpv6 => reserved(&["world-ipv6"]),
        Entity::Cluster => {
            let mut selectors: Vec<Selector> = reserved(&CLUSTER_ENTITIES);
            selectors.push(Selector::label(cluster));
            selectors
        }
        Entity::ClusterMesh => {
            let mut selectors: Vec<Selector> = reserved(&CLUSTER_ENTITIES);
            selectors.push(Selector::everything().requiring_key(source::K8S, KEY_CLUSTER));
            selectors
        }
        Entity::Host => reserved(&["host"]),
        Entity::RemoteNode => reserved(&["remote-node"]),
        Entity::KubeApiserver => reserved(&["kube-apiserver"]),
        Entity::Ingress => reserved(&["ingress"]),
        Entity::Init => reserved(&["init"]),
        Entity::Health => reserved(&["health"]),
        Entity::Unmanaged => reserved(&["unmanaged"]),
        Entity::None => Vec::new(),
    }
}

/// The reserved identities that belong to a cluster.
const CLUSTER_ENTITIES: [&str; 7] =
    ["host", "remote-node", "init", "ingress", "health", "unmanaged", "kube-apiserver"];
