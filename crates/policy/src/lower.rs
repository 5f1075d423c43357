//! What policies mean: namespace scoping, entities, emptiness, default deny (reference `policy` 3.2 to 3.4).

use std::{collections::BTreeSet, sync::Arc};

use ipnet::IpNet;
use villus_abi::Direction;
use villus_labels::{KEY_CLUSTER, KEY_NAMESPACE, KEY_NAMESPACE_LABELS, KeySource, Labels, Selector, source};

use crate::{
    Audit, Element, NamedPort, Origin, Policy, Position, PrefixBase, PrefixSet, Referents, Rule, RuleOrigin,
    ServiceRef, Settings, SubjectSelector, Transport,
    entity::entity_selectors,
    ports::{PortMatch, merged, port_matches, protocol_numbers},
};

/// Whom a clause speaks about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Peers {
    /// Everybody, known or not: identity 0.
    Any,
    /// The identities that one of these selects; none if there are none.
    Selected(Vec<Selector>),
}

/// What binds a clause beside its own peers and ports.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Bound {
    /// Nothing.
    Free,
    /// Its peers are endpoints: they must meet every requirement that binds the subject in the same section.
    Required,
    /// It is a requirement itself (`fromRequires`): each of its selectors must be met. It asks for nothing.
    Requirement,
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
    /// On which ports, sorted, none of them overlapping; none only for a requirement.
    pub ports: Vec<PortMatch>,
    /// What else must be.
    pub bound: Bound,
    /// Where it comes from.
    pub origin: Origin,
}

/// A rule, or the part of one that speaks about subjects with a certain named port, its meaning resolved.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ResolvedRule {
    /// Which endpoints.
    pub subject: Selector,
    /// Whether it switches a direction to default deny: ingress, egress.
    pub default_deny: [bool; 2],
    /// In which directions its policy is audited.
    pub audit: Audit,
    /// What switched it on, for explanations.
    pub origin: Origin,
    /// Its elements that speak about somebody.
    pub clauses: Vec<Clause>,
    /// The prefixes that need identities of their own.
    pub prefixes: Vec<IpNet>,
}

impl ResolvedRule {
    /// Whether it speaks about this subject.
    #[must_use]
    pub fn selects(&self, subject: &Labels) -> bool {
        self.subject.matches(subject)
    }
}

/// Resolves every rule of a policy, as things are now: what it refers to by name may come, change and go.
#[must_use]
pub fn resolve(policy: &Policy, settings: &Settings, referents: &Referents) -> Vec<ResolvedRule> {
    policy.rules.iter().flat_map(|rule| Resolver { policy, rule, settings, referents }.resolve()).collect()
}

struct Resolver<'a> {
    policy: &'a Policy,
    rule: &'a Rule,
    settings: &'a Settings,
    referents: &'a Referents,
}

impl Resolver<'_> {
    fn resolve(&self) -> Vec<ResolvedRule> {
        let rule = self.rule;
        let mut clauses = Vec::new();
        let mut prefixes = Vec::new();
        for (direction, deny, element) in rule.elements() {
            clauses.extend(self.clauses(element, direction, deny));
            prefixes.extend(self.element_prefixes(element));
        }
        prefixes.sort_unstable();
        prefixes.dedup();
        let has =
            |section: &Option<Vec<Element>>| section.as_ref().is_some_and(|elements| !elements.is_empty());
        let [ingress, egress] = rule.default_deny;
        let whole = ResolvedRule {
            subject: self.subject(),
            default_deny: [
                ingress.unwrap_or(has(&rule.ingress) || has(&rule.ingress_deny)),
                egress.unwrap_or(has(&rule.egress) || has(&rule.egress_deny)),
            ],
            audit: self.policy.audit,
            origin: self.origin(&rule.path, rule.position, false),
            clauses,
            prefixes,
        };
        let by_port = self.by_named_port(&whole);
        std::iter::once(whole).chain(by_port).collect()
    }

    fn origin(&self, path: &Arc<str>, position: Option<Position>, deny: bool) -> Origin {
        let (policy, path) = (self.policy.key.clone(), path.clone());
        Origin::Rule(Arc::new(RuleOrigin { policy, path, position, deny }))
    }

    /// What an element says to every subject; nothing for one that speaks about nobody.
    fn clauses(&self, element: &Element, direction: Direction, deny: bool) -> Vec<Clause> {
        let mut clauses = Vec::new();
        let new = |peers, ports, bound| {
            let origin = self.origin(&element.path, element.position, deny);
            Clause { direction, deny, peers, ports, bound, origin }
        };
        let required: Vec<Selector> =
            element.requires.iter().flatten().map(|selector| self.peer_selector(selector)).collect();
        if !required.is_empty() {
            clauses.push(new(Peers::Selected(required), Vec::new(), Bound::Requirement));
        }
        let Some(peers) = self.peers(element) else { return clauses };
        let ports: Vec<PortMatch> = match &element.transport {
            Some(transport) => merged(transport.iter().flat_map(port_matches).collect()),
            None => vec![PortMatch::ALL],
        };
        if direction == Direction::Egress {
            let named = self.named_ports(element);
            clauses.extend(
                named.map(|port| new(having(&peers, &port), vec![port.matches()], bound_of(element))),
            );
        }
        if !ports.is_empty() {
            clauses.push(new(peers, ports, bound_of(element)));
        }
        clauses
    }

    /// Named ports in ingress are the subject's own: for each number that a name has somewhere, what the rule says to
    /// subjects that have it.
    fn by_named_port(&self, whole: &ResolvedRule) -> Vec<ResolvedRule> {
        let ingress = || self.rule.elements().filter(|(direction, ..)| *direction == Direction::Ingress);
        let ports: BTreeSet<NamedPort> =
            ingress().flat_map(|(.., element)| self.named_ports(element)).collect();
        let of_port = |port: NamedPort| {
            let clauses = ingress().filter(|(.., element)| self.named_ports(element).any(|own| own == port));
            let clauses = clauses.filter_map(|(direction, deny, element)| {
                let origin = self.origin(&element.path, element.position, deny);
                let (ports, bound) = (vec![port.matches()], bound_of(element));
                Some(Clause { direction, deny, peers: self.peers(element)?, ports, bound, origin })
            });
            ResolvedRule {
                clauses: clauses.collect(),
                subject: whole.subject.joined(&port.selector()),
                default_deny: [false; 2],
                audit: whole.audit,
                origin: whole.origin.clone(),
                prefixes: Vec::new(),
            }
        };
        ports.into_iter().map(of_port).collect()
    }

    /// Every port that somebody has under a name that the element asks for.
    fn named_ports<'e>(&'e self, element: &'e Element) -> impl Iterator<Item = NamedPort> + 'e {
        element.transport.iter().flatten().flat_map(|item| match item {
            Transport::Named { protocol, name } => protocol_numbers(*protocol)
                .into_iter()
                .flatten()
                .flat_map(|proto| self.referents.ports_of(name, proto))
                .collect(),
            Transport::Ports { .. } | Transport::Icmp { .. } => Vec::new(),
        })
    }

    /// Whom an element speaks about. No peer field at all: everybody if it names ports, else nobody.
    fn peers(&self, element: &Element) -> Option<Peers> {
        let Element { endpoints, nodes, entities, prefixes, prefix_sets, services, .. } = element;
        if !element.names_peers() {
            return element.transport.is_some().then_some(Peers::Any);
        }
        let mut selectors: Vec<Selector> = Vec::new();
        selectors.extend(endpoints.iter().flatten().map(|selector| self.peer_selector(selector)));
        selectors.extend(nodes.iter().flatten().map(|selector| selector.with_reserved("remote-node")));
        for entity in entities.iter().flatten() {
            selectors.extend(entity_selectors(*entity, &self.settings.cluster));
        }
        selectors.extend(prefixes.iter().flatten().map(|prefix| Selector::prefix(*prefix, &[])));
        for set in prefix_sets.iter().flatten() {
            selectors
                .extend(self.set_prefixes(set).map(|(prefix, except)| Selector::prefix(prefix, &except)));
        }
        selectors.extend(services.iter().flatten().flat_map(|service| self.service_selectors(service)));
        selectors.sort_unstable();
        selectors.dedup();
        if selectors.iter().any(Selector::is_everything) {
            return Some(Peers::Any);
        }
        (!selectors.is_empty()).then_some(Peers::Selected(selectors))
    }

    /// The prefixes of a set, each with what is excepted inside it.
    fn set_prefixes<'e>(&'e self, set: &'e PrefixSet) -> impl Iterator<Item = (IpNet, Vec<IpNet>)> + 'e {
        let prefixes: Vec<IpNet> = match &set.base {
            PrefixBase::Prefix(prefix) => vec![*prefix],
            PrefixBase::Group(name) => self.referents.group(name).unwrap_or_default().to_vec(),
            PrefixBase::Groups(selector) => self.referents.groups(selector).flatten().copied().collect(),
        };
        let whole = |prefix: &IpNet| !set.except.iter().any(|except| except.contains(prefix));
        let inside = |prefix: IpNet| set.except.iter().copied().filter(move |except| prefix.contains(except));
        prefixes.into_iter().filter(whole).map(move |prefix| (prefix, inside(prefix).collect()))
    }

    /// The backends of services: the pods that they select, or the addresses that are written down.
    fn service_selectors(&self, service: &ServiceRef) -> Vec<Selector> {
        let addresses = self.referents.backend_prefixes(service);
        let pods = self.referents.backend_pods(service);
        pods.chain(addresses.map(|prefix| Selector::prefix(prefix, &[]))).collect()
    }

    fn element_prefixes(&self, element: &Element) -> Vec<IpNet> {
        let mut found: Vec<IpNet> = element.prefixes.iter().flatten().copied().collect();
        for set in element.prefix_sets.iter().flatten() {
            found.extend(
                self.set_prefixes(set).flat_map(|(prefix, except)| std::iter::once(prefix).chain(except)),
            );
        }
        let services = element.services.iter().flatten();
        found.extend(services.flat_map(|service| self.referents.backend_prefixes(service)));
        found
    }

    /// The subject, tied to the policy's namespace; workloads and the node itself are never mixed, unless the node is the
    /// workload.
    fn subject(&self) -> Selector {
        match (&self.rule.subject, &self.policy.namespace) {
            (SubjectSelector::Nodes(nodes), _) => nodes.with_reserved("host"),
            (SubjectSelector::Endpoints(subject), Some(namespace)) if !has_reserved_key(subject) => {
                subject.requiring(namespace)
            }
            (SubjectSelector::Endpoints(subject), _) if self.settings.host_is_workload => subject.clone(),
            (SubjectSelector::Endpoints(subject), _) => subject.without_reserved("host"),
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

const fn bound_of(element: &Element) -> Bound {
    if element.endpoints.is_some() { Bound::Required } else { Bound::Free }
}

/// Those of the peers that have a port under its name.
fn having(peers: &Peers, port: &NamedPort) -> Peers {
    match peers {
        Peers::Any => Peers::Selected(vec![port.selector()]),
        Peers::Selected(selectors) => {
            Peers::Selected(selectors.iter().map(|selector| selector.joined(&port.selector())).collect())
        }
    }
}

fn has_reserved_key(selector: &Selector) -> bool {
    selector.has_key(|key| matches!(key.source(), KeySource::Is(name) if **name == *source::RESERVED))
}

fn selects_init(subject: &SubjectSelector) -> bool {
    matches!(subject, SubjectSelector::Endpoints(selector)
        if selector.has_key(|key| key.key() == "init" && key.source_name() == source::RESERVED))
}
