//! The least policy that lets observed flows pass.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ipnet::IpNet;
use serde::Serialize;
use villus_flows::Direction;
use villus_labels::{Labels, Selector};

use crate::{
    Count, Observation, Observations, Peer, Seen,
    select::{Labelled, PeerKeys, subject_labels},
    yaml,
};

/// For whom a policy is drafted, and how.
#[derive(Clone, Debug)]
pub struct Choice {
    /// Whom the policy selects: endpoints whose identity's labels these select.
    pub subject: Selector,
    /// The subject's labels as the policy should write them, where they are known; else the selector is written.
    pub subject_labels: Option<Labels>,
    /// Name of the policy.
    pub name: String,
    /// Namespace of the policy; without it that of the observed endpoints.
    pub namespace: Option<String>,
    /// Directions that are drafted.
    pub directions: Vec<Direction>,
    /// Only what audit mode let pass: an addition to the policies that there are.
    pub audited_only: bool,
    /// Also what policy denied.
    pub denied_too: bool,
    /// How addresses outside are written.
    pub world: World,
    /// Which labels name a peer.
    pub keys: PeerKeys,
}

/// How addresses outside are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum World {
    /// Each by itself, `192.0.2.1/32`.
    #[default]
    Addresses,
    /// All that is outside: the entity `world`.
    Entity,
}

/// A drafted policy.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Draft {
    /// The policy, as YAML with comments.
    pub text: String,
    /// Name, with its namespace.
    pub name: String,
    /// What it is drafted from.
    pub flows: Count,
    /// What it lets pass, as elements of rules.
    pub elements: usize,
    /// How often an address outside is named by itself.
    pub addresses: usize,
    /// Observations that no policy can express.
    pub skipped: Vec<Skipped>,
}

/// An observation that is not in the draft.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Skipped {
    /// It.
    pub observation: Observation,
    /// Why.
    pub reason: &'static str,
}

/// Why nothing can be drafted.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LearnError {
    /// Nothing was seen.
    #[error(
        "no flow that counts is from or to {subject}; there are {observed} different ones of others: choose the subject's labels as \
         flows show them, or observe for longer"
    )]
    Nothing {
        /// Whom the draft is for.
        subject: String,
        /// How many observations there are.
        observed: usize,
    },
    /// A policy has one namespace.
    #[error("endpoints of several namespaces are selected ({}); choose one with --namespace", .0.join(", "))]
    Namespaces(Vec<String>),
    /// The name is none that Kubernetes takes.
    #[error("{0:?} is no name for a policy; use lower-case letters, digits, `-` and `.`")]
    Name(String),
}

/// What a rule's element asks of the transport; one kind at a time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Port {
    /// First and last port of a protocol.
    Range { protocol: u8, first: u16, last: u16 },
    /// An ICMP type.
    Icmp { v6: bool, kind: u8 },
}

/// Whom an element names. Kinds cannot be mixed in one element.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Party {
    Endpoints(Labelled),
    Entity(&'static str),
    Prefix(IpNet),
}

/// One element of a draft.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Element {
    pub parties: Vec<(Party, Count)>,
    pub ports: Vec<(Port, Count)>,
}

/// Both sections of a draft; `None` where the direction is not spoken about.
pub(crate) struct Sections {
    pub ingress: Option<Vec<Element>>,
    pub egress: Option<Vec<Element>>,
}

/// Drafts the least policy that lets the chosen flows pass. The same observations and choice give the same text.
///
/// # Errors
/// Nothing was observed of the subject, it lies in several namespaces, or the name is none.
pub fn learn(observations: &Observations, choice: &Choice) -> Result<Draft, LearnError> {
    if !is_name(&choice.name) {
        return Err(LearnError::Name(choice.name.clone()));
    }
    let namespace = namespace_of(observations, choice)?;
    let mut flows = Count::default();
    let mut skipped = Vec::new();
    let mut section = |direction: Direction| {
        if !choice.directions.contains(&direction) {
            return None;
        }
        let mut table = Table::default();
        for (observation, seen) in observations.iter() {
            let count = chosen(choice, seen, direction);
            if count.count == 0 || !is_subject(choice, namespace.as_deref(), observation, direction) {
                continue;
            }
            match table.add(observation, count, direction, choice, namespace.as_deref()) {
                Ok(()) => flows.add(count),
                Err(reason) => skipped.push(Skipped { observation: observation.clone(), reason }),
            }
        }
        let elements = table.elements();
        // An addition leaves alone what it has nothing to say about.
        (!elements.is_empty() || !choice.audited_only).then_some(elements)
    };
    let sections = Sections { ingress: section(Direction::Ingress), egress: section(Direction::Egress) };
    let all = || [&sections.ingress, &sections.egress].into_iter().flatten().flatten();
    let parties = all().flat_map(|element| &element.parties);
    let addresses = parties.filter(|(party, _)| matches!(party, Party::Prefix(_))).count();
    let elements = all().count();
    if flows.count == 0 {
        return Err(LearnError::Nothing {
            subject: choice.subject.to_string(),
            observed: observations.len(),
        });
    }
    let name = match &namespace {
        Some(namespace) => format!("{namespace}/{}", choice.name),
        None => choice.name.clone(),
    };
    let subject = subject_labels(choice.subject_labels.as_ref(), &choice.subject, namespace.is_some());
    let text = yaml::policy(&choice.name, namespace.as_deref(), &subject, &sections, flows, skipped.len());
    Ok(Draft { text, name, flows, elements, addresses, skipped })
}

/// How often a direction let an observation pass, as far as the choice wants it.
fn chosen(choice: &Choice, seen: &Seen, direction: Direction) -> Count {
    let own = crate::observe::side(direction);
    if choice.audited_only {
        return seen.audited[own];
    }
    let mut count = seen.through(direction);
    if choice.denied_too {
        count.add(seen.denied[own]);
    }
    count
}

fn end(observation: &Observation, direction: Direction) -> (&Peer, &Peer) {
    match direction {
        Direction::Ingress => (&observation.destination, &observation.source),
        Direction::Egress => (&observation.source, &observation.destination),
    }
}

fn selected<'a>(choice: &Choice, observation: &'a Observation, direction: Direction) -> Option<&'a Labels> {
    let (subject, _) = end(observation, direction);
    subject.labels().filter(|labels| subject.is_workload() && choice.subject.matches(labels))
}

fn is_subject(
    choice: &Choice,
    namespace: Option<&str>,
    observation: &Observation,
    direction: Direction,
) -> bool {
    selected(choice, observation, direction)
        .is_some_and(|labels| namespace.is_none() || labels.namespace() == namespace)
}

fn namespace_of(observations: &Observations, choice: &Choice) -> Result<Option<String>, LearnError> {
    if choice.namespace.is_some() {
        return Ok(choice.namespace.clone());
    }
    if let Some(labels) = &choice.subject_labels {
        return Ok(labels.namespace().map(str::to_owned));
    }
    let mut found = BTreeSet::new();
    for (observation, _) in observations.iter() {
        for direction in &choice.directions {
            let labels = selected(choice, observation, *direction);
            found.extend(labels.map(|labels| labels.namespace().map(str::to_owned)));
        }
    }
    if found.len() > 1 {
        let names = found.into_iter().map(|name| name.unwrap_or_else(|| "none".to_owned()));
        return Err(LearnError::Namespaces(names.collect()));
    }
    Ok(found.into_iter().next().flatten())
}

fn is_name(name: &str) -> bool {
    let end = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    name.len() <= 253
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
        && end(name.as_bytes().first())
        && end(name.as_bytes().last())
}

/// Who was seen on which port.
#[derive(Default)]
struct Table(BTreeMap<Party, BTreeMap<Port, Count>>);

impl Table {
    fn add(
        &mut self,
        observation: &Observation,
        count: Count,
        direction: Direction,
        choice: &Choice,
        namespace: Option<&str>,
    ) -> Result<(), &'static str> {
        let (_, peer) = end(observation, direction);
        let port = port_of(observation.protocol, observation.port)?;
        let party = party_of(peer, choice, namespace)?;
        self.0.entry(party).or_default().entry(port).or_default().add(count);
        Ok(())
    }

    /// Parties of one kind that were seen on the same ports share an element.
    fn elements(self) -> Vec<Element> {
        let mut groups: BTreeMap<(usize, Vec<Port>), Element> = BTreeMap::new();
        for (party, ports) in self.0 {
            let kind = match &party {
                Party::Endpoints(_) => 0,
                Party::Entity(_) => 1,
                Party::Prefix(_) => 2,
            };
            let (icmp, ranged): (Vec<_>, Vec<_>) =
                ports.into_iter().partition(|(port, _)| matches!(port, Port::Icmp { .. }));
            for ports in [merged(ranged), icmp] {
                if ports.is_empty() {
                    continue;
                }
                let mut all = Count::default();
                ports.iter().for_each(|(_, count)| all.add(*count));
                let key = ports.iter().map(|(port, _)| *port).collect();
                let element = groups.entry((kind, key)).or_insert_with(|| Element {
                    parties: Vec::new(),
                    ports: ports.iter().map(|(port, _)| (*port, Count::default())).collect(),
                });
                element.parties.push((party.clone(), all));
                for ((_, sum), (_, count)) in element.ports.iter_mut().zip(&ports) {
                    sum.add(*count);
                }
            }
        }
        groups.into_values().collect()
    }
}

/// Three neighbouring ports and more become a range: nothing is allowed that was not seen.
fn merged(ports: Vec<(Port, Count)>) -> Vec<(Port, Count)> {
    const LEAST: usize = 3;
    let mut runs: Vec<Vec<(Port, Count)>> = Vec::new();
    for item in ports {
        let follows = |run: &Vec<(Port, Count)>| match (run.last(), item.0) {
            (Some((Port::Range { protocol: a, last, .. }, _)), Port::Range { protocol: b, first, .. }) => {
                *a == b && last.checked_add(1) == Some(first)
            }
            _ => false,
        };
        match runs.last_mut().filter(|run| follows(run)) {
            Some(run) => run.push(item),
            None => runs.push(vec![item]),
        }
    }
    let mut out = Vec::new();
    for run in runs {
        match (run.first(), run.last()) {
            (Some((Port::Range { protocol, first, .. }, _)), Some((Port::Range { last, .. }, _)))
                if run.len() >= LEAST =>
            {
                let mut all = Count::default();
                run.iter().for_each(|(_, count)| all.add(*count));
                out.push((Port::Range { protocol: *protocol, first: *first, last: *last }, all));
            }
            _ => out.extend(run),
        }
    }
    out
}

fn port_of(protocol: u8, port: u16) -> Result<Port, &'static str> {
    match protocol {
        1 | 58 => {
            let kind = u8::try_from(port).map_err(|_| "an ICMP type is at most 255")?;
            Ok(Port::Icmp { v6: protocol == 58, kind })
        }
        6 | 17 | 132 if port == 0 => Err("port 0 would mean all ports"),
        6 | 17 | 132 => Ok(Port::Range { protocol, first: port, last: port }),
        _ => Err("policies have no word for the protocol"),
    }
}

fn party_of(peer: &Peer, choice: &Choice, namespace: Option<&str>) -> Result<Party, &'static str> {
    /// The most telling first: the API server is also a remote node.
    const ENTITIES: [&str; 7] =
        ["kube-apiserver", "host", "remote-node", "health", "ingress", "init", "unmanaged"];
    match (peer, choice.world) {
        (Peer::World(_), World::Entity) => Ok(Party::Entity("world")),
        (Peer::World(address), World::Addresses) => Ok(Party::Prefix(IpNet::from(*address))),
        (Peer::Identity(labels) | Peer::Node { labels, .. }, _) if !peer.is_workload() => ENTITIES
            .into_iter()
            .find(|name| labels.has_reserved(name))
            .map(Party::Entity)
            .ok_or("policies have no word for the peer's reserved identity"),
        (Peer::Identity(labels) | Peer::Node { labels, .. }, _) => {
            Labelled::of_peer(labels, &choice.keys, namespace)
                .map(Party::Endpoints)
                .ok_or("no label of the peer can be written in a selector")
        }
    }
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Observation { source, destination, protocol, port } = &self.observation;
        write!(f, "{source} -> {destination}, protocol {protocol}, port {port}: {}", self.reason)
    }
}
