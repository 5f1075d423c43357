//! What a policy refers to and nobody knows, so that it means nobody for now.

use std::fmt;

use crate::{
    Element, Policy, Position, PrefixBase, Referents, Rule, ServiceBase, Transport, ports::protocol_numbers,
};

/// Something that a policy names and that is not there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unresolved {
    /// The element that names it: `spec.ingress[0]`.
    pub path: String,
    /// Where that stands in the policy's file.
    pub position: Option<Position>,
    /// `CIDR group vpn`, `service shop/web`, `port http`.
    pub what: String,
    /// It is a port, which workloads have and not objects.
    pub is_port: bool,
}

impl fmt::Display for Unresolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} names {}, which nobody has yet: it means nobody", self.path, self.what)
    }
}

/// What a policy refers to by name and is not there now; as soon as it is, the policy means it.
#[must_use]
pub fn unresolved(policy: &Policy, referents: &Referents) -> Vec<Unresolved> {
    if !policy.refers() {
        return Vec::new();
    }
    let elements = policy.rules.iter().flat_map(Rule::elements).map(|(.., element)| element);
    elements
        .flat_map(|element| {
            let of = |(what, is_port)| {
                let path = element.path.to_string();
                Unresolved { path, position: element.position, what, is_port }
            };
            let objects = missing(element, referents).into_iter().map(|what| (what, false));
            let ports = missing_ports(element, referents).into_iter().map(|what| (what, true));
            objects.chain(ports).map(of).collect::<Vec<_>>()
        })
        .collect()
}

fn missing(element: &Element, referents: &Referents) -> Vec<String> {
    let mut found = Vec::new();
    for set in element.prefix_sets.iter().flatten() {
        match &set.base {
            PrefixBase::Group(name) if referents.group(name).is_none() => {
                found.push(format!("CIDR group {name}"))
            }
            PrefixBase::Groups(selector) if referents.groups(selector).next().is_none() => {
                found.push(format!("CIDR groups with labels {selector}"));
            }
            PrefixBase::Prefix(_) | PrefixBase::Group(_) | PrefixBase::Groups(_) => {}
        }
    }
    for service in element.services.iter().flatten().filter(|service| !referents.has_service(service)) {
        let namespace = service.namespace.as_deref().unwrap_or("*");
        found.push(match &service.which {
            ServiceBase::Name(name) => format!("service {namespace}/{name}"),
            ServiceBase::Labels(selector) => format!("services of {namespace} with labels {selector}"),
        });
    }
    found
}

fn missing_ports(element: &Element, referents: &Referents) -> Vec<String> {
    let mut found = Vec::new();
    for item in element.transport.iter().flatten() {
        let Transport::Named { protocol, name } = item else { continue };
        let mut protocols = protocol_numbers(*protocol).into_iter().flatten();
        if protocols.all(|proto| referents.ports_of(name, proto).next().is_none()) {
            found.push(format!("port {name}"));
        }
    }
    found
}
