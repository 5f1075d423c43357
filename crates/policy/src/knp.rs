//! Reading a NetworkPolicy of Kubernetes, in the terms of the others (reference `policy` 3.5).

use villus_labels::{KEY_NAMESPACE, KEY_NAMESPACE_LABELS, Requirement, Selector, source};

use crate::{
    Element, Entity, PrefixBase, PrefixSet, ProblemKind, Protocol, Rule, SubjectSelector, Transport,
    element::{read_cidr, read_except},
    read::{At, Fields, Reader, Schema},
    selector::read_with_keys,
    transport::{read_port_of, read_protocol},
};

/// The label that every namespace has, its value the namespace's name.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

const SPEC: Schema = Schema {
    known: &["podSelector", "policyTypes", "ingress", "egress"],
    refused: &[],
    elsewhere: &[
        ("endpointSelector", "a NetworkPolicy selects with `podSelector`"),
        ("ingressDeny", "a NetworkPolicy only allows; write a CiliumNetworkPolicy"),
        ("egressDeny", "a NetworkPolicy only allows; write a CiliumNetworkPolicy"),
    ],
};
const INGRESS: Schema = Schema {
    known: &["from", "ports"],
    refused: &[],
    elsewhere: &[("to", "in ingress the peers are `from`"), ("toPorts", "write `ports`")],
};
const EGRESS: Schema = Schema {
    known: &["to", "ports"],
    refused: &[],
    elsewhere: &[("from", "in egress the peers are `to`"), ("toPorts", "write `ports`")],
};

/// Which directions `policyTypes` names.
#[derive(Default)]
struct Types {
    ingress: bool,
    egress: bool,
}

/// The rule of a NetworkPolicy.
pub(crate) fn read_network_policy(reader: &mut Reader<'_>, at: &At<'_>) -> Option<Rule> {
    let fields = reader.fields(at, &SPEC)?;
    let pods = match fields.get("podSelector") {
        Some(pods) => read_pods(reader, &pods),
        None => {
            let message =
                "podSelector is missing; write `podSelector: {}` to select every pod of the namespace";
            reader.problem(at, ProblemKind::Missing, message);
            None
        }
    };
    let types = fields.get("policyTypes").map(|at| read_types(reader, &at)).unwrap_or_default();
    let ingress = read_section(reader, &fields, "ingress", &INGRESS, "from");
    let egress = read_section(reader, &fields, "egress", &EGRESS, "to");
    if let (Some(section), true) =
        (fields.get("ingress"), types.egress && !types.ingress && !ingress.is_empty())
    {
        reader.warn(
            &section,
            "policyTypes names Egress only, yet the rules here are enforced; name Ingress too",
        );
    }
    let nobody =
        |name: &str| Element { path: at.path_of(name).into(), position: at.position(), ..Element::default() };
    let section = |elements: Vec<Element>, denies: bool, name: &str| match (elements.is_empty(), denies) {
        (false, _) => Some(elements),
        (true, true) => Some(vec![nobody(name)]),
        (true, false) => None,
    };
    Some(Rule {
        path: at.path.as_str().into(),
        position: at.position(),
        subject: SubjectSelector::Endpoints(pods.unwrap_or_else(Selector::everything)),
        ingress: section(ingress, types.ingress || !types.egress, "ingress"),
        egress: section(egress, types.egress, "egress"),
        ingress_deny: None,
        egress_deny: None,
        default_deny: [None, None],
        labels: villus_labels::Labels::default(),
        description: None,
    })
}

fn read_types(reader: &mut Reader<'_>, at: &At<'_>) -> Types {
    let mut types = Types::default();
    for item in reader.items(at).unwrap_or_default() {
        match reader.text(&item) {
            Some("Ingress") => types.ingress = true,
            Some("Egress") => types.egress = true,
            Some(_) => reader.invalid(&item, "unknown type; use Ingress or Egress"),
            None => {}
        }
    }
    types
}

/// The elements of a section: one for each peer of each of its rules.
fn read_section(
    reader: &mut Reader<'_>,
    fields: &Fields<'_>,
    name: &str,
    schema: &Schema,
    side: &str,
) -> Vec<Element> {
    let mut elements = Vec::new();
    for rule in fields.get(name).and_then(|at| reader.items(&at)).unwrap_or_default() {
        let Some(fields) = reader.fields(&rule, schema) else { continue };
        let transport =
            fields.get("ports").map(|at| read_ports(reader, &at)).filter(|ports| !ports.is_empty());
        let peers = fields.get(side).and_then(|at| reader.items(&at)).unwrap_or_default();
        let new = |at: &At<'_>| Element {
            path: at.path.as_str().into(),
            position: at.position(),
            transport: transport.clone(),
            ..Element::default()
        };
        if peers.is_empty() {
            elements.push(Element { entities: Some(vec![Entity::All]), ..new(&rule) });
        }
        for peer in peers {
            elements.extend(read_peer(reader, &peer, new(&peer)));
        }
    }
    elements
}

fn read_peer(reader: &mut Reader<'_>, at: &At<'_>, element: Element) -> Option<Element> {
    const SCHEMA: Schema =
        Schema { known: &["podSelector", "namespaceSelector", "ipBlock"], refused: &[], elsewhere: &[] };
    let fields = reader.fields(at, &SCHEMA)?;
    let [pods, namespaces, block] =
        ["podSelector", "namespaceSelector", "ipBlock"].map(|name| fields.get(name));
    match (pods, namespaces, block) {
        (None, None, Some(block)) => {
            let set = read_block(reader, &block)?;
            Some(Element { prefix_sets: Some(vec![set]), ..element })
        }
        (Some(_), _, Some(block)) | (_, Some(_), Some(block)) => {
            reader.invalid(&block, "`ipBlock` can't be combined with selectors; split the peer into two");
            None
        }
        (None, None, None) => {
            let message = "the peer says nothing; name podSelector, namespaceSelector or ipBlock, \
                           or leave the whole list out to mean everybody";
            reader.problem(at, ProblemKind::Missing, message);
            None
        }
        (pods, namespaces, None) => {
            let pods = pods.map(|at| read_pods(reader, &at));
            let namespaces = namespaces.map(|at| read_namespaces(reader, &at));
            let selector = match (pods, namespaces) {
                (Some(pods), Some(namespaces)) => pods?.joined(&namespaces?),
                (pods, namespaces) => pods.or(namespaces)??,
            };
            Some(Element { endpoints: Some(vec![selector]), ..element })
        }
    }
}

fn read_block(reader: &mut Reader<'_>, at: &At<'_>) -> Option<PrefixSet> {
    const SCHEMA: Schema = Schema { known: &["cidr", "except"], refused: &[], elsewhere: &[] };
    let fields = reader.fields(at, &SCHEMA)?;
    let Some(cidr) = fields.get("cidr") else {
        reader.problem(at, ProblemKind::Missing, "`cidr` is missing; write for example `cidr: 10.0.0.0/8`");
        return None;
    };
    let base = PrefixBase::Prefix(read_cidr(reader, &cidr)?);
    let except = read_except(reader, fields.get("except"), &base);
    Some(PrefixSet { base, except })
}

fn read_pods(reader: &mut Reader<'_>, at: &At<'_>) -> Option<Selector> {
    read_with_keys(reader, at, &|key| Ok(format!("{}:{}", source::K8S, plain(key)?)))
}

/// Pods by the labels of their namespace, which stand on them under a prefix.
fn read_namespaces(reader: &mut Reader<'_>, at: &At<'_>) -> Option<Selector> {
    let selector = read_with_keys(reader, at, &|key| match plain(key)? {
        NAMESPACE_NAME => Ok(format!("{}:{KEY_NAMESPACE}", source::K8S)),
        key => Ok(format!("{}:{KEY_NAMESPACE_LABELS}{key}", source::K8S)),
    })?;
    let any = Requirement::expression(&format!("{}:{KEY_NAMESPACE}", source::K8S), "Exists", []);
    any.and_then(|any| selector.and(any)).map_err(|error| reader.invalid(at, error.to_string())).ok()
}

fn plain(key: &str) -> Result<&str, String> {
    if key.contains(':') {
        return Err(
            "keys of a NetworkPolicy have no source; write the key as Kubernetes has it, without `:`".into(),
        );
    }
    Ok(key)
}

fn read_ports(reader: &mut Reader<'_>, at: &At<'_>) -> Vec<Transport> {
    const SCHEMA: Schema = Schema { known: &["port", "endPort", "protocol"], refused: &[], elsewhere: &[] };
    let mut found = Vec::new();
    for item in reader.items(at).unwrap_or_default() {
        let Some(fields) = reader.fields(&item, &SCHEMA) else { continue };
        let protocol = match fields.get("protocol") {
            None => Some(Protocol::Tcp),
            Some(at) => {
                let protocol = read_protocol(reader, &at);
                if protocol.is_some_and(|p| !matches!(p, Protocol::Tcp | Protocol::Udp | Protocol::Sctp)) {
                    reader.invalid(&at, "a NetworkPolicy has the protocols TCP, UDP and SCTP");
                }
                protocol
            }
        };
        let (port, end) = (fields.get("port"), fields.get("endPort"));
        if let (None, Some(end)) = (&port, &end) {
            reader.invalid(end, "endPort needs a port to start from; write `port: 1` for the lowest");
            continue;
        }
        found.extend(protocol.and_then(|protocol| read_port_of(reader, &item, protocol, port, end)));
    }
    found
}
