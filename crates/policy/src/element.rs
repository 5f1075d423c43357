//! Reading one element of a section: peers and ports.

use ipnet::IpNet;
use villus_labels::{nearest, parse_prefix};

use crate::{
    Element, Entity, PrefixBase, PrefixSet, ProblemKind, ServiceBase, ServiceRef, Transport,
    metadata::read_name,
    read::{At, Fields, Reader, Schema},
    selector::read_selector,
    transport::read_transport,
};

const AUTHENTICATION: &str =
    "mutual authentication is not enforced; remove the field if plain identity is enough for this rule";
const GROUPS: &str = "cloud groups are not resolved; list their addresses in a CIDR set";

const INGRESS: Schema = Schema {
    known: &[
        "fromEndpoints",
        "fromRequires",
        "fromNodes",
        "fromEntities",
        "fromCIDR",
        "fromCIDRSet",
        "toPorts",
        "icmps",
    ],
    refused: &[("fromGroups", GROUPS), ("authentication", AUTHENTICATION), ("auth", AUTHENTICATION)],
    elsewhere: &[
        ("toEndpoints", "in ingress the peers are `fromEndpoints`"),
        ("toRequires", "in ingress the peers are `fromRequires`"),
        ("toNodes", "in ingress the peers are `fromNodes`"),
        ("toEntities", "in ingress the peers are `fromEntities`"),
        ("toCIDR", "in ingress the peers are `fromCIDR`"),
        ("toCIDRSet", "in ingress the peers are `fromCIDRSet`"),
        ("toFQDNs", "names can be asked for in egress only"),
        ("toServices", "services can be asked for in egress only"),
        ("ports", "put it under `toPorts`"),
    ],
};

const EGRESS: Schema = Schema {
    known: &[
        "toEndpoints",
        "toRequires",
        "toNodes",
        "toEntities",
        "toCIDR",
        "toCIDRSet",
        "toServices",
        "toPorts",
        "icmps",
    ],
    refused: &[
        ("toGroups", GROUPS),
        ("toFQDNs", "DNS names are not enforced; list the addresses in `toCIDR`"),
        ("authentication", AUTHENTICATION),
        ("auth", AUTHENTICATION),
    ],
    elsewhere: &[
        ("fromEndpoints", "in egress the peers are `toEndpoints`"),
        ("fromRequires", "in egress the peers are `toRequires`"),
        ("fromNodes", "in egress the peers are `toNodes`"),
        ("fromEntities", "in egress the peers are `toEntities`"),
        ("fromCIDR", "in egress the peers are `toCIDR`"),
        ("fromCIDRSet", "in egress the peers are `toCIDRSet`"),
        ("ports", "put it under `toPorts`"),
    ],
};

/// Names of the fields of one side.
pub(crate) struct Side {
    schema: &'static Schema,
    endpoints: &'static str,
    requires: &'static str,
    nodes: &'static str,
    entities: &'static str,
    prefixes: &'static str,
    prefix_sets: &'static str,
    services: &'static str,
}

pub(crate) const FROM: Side = Side {
    schema: &INGRESS,
    endpoints: "fromEndpoints",
    requires: "fromRequires",
    nodes: "fromNodes",
    entities: "fromEntities",
    prefixes: "fromCIDR",
    prefix_sets: "fromCIDRSet",
    services: "",
};

pub(crate) const TO: Side = Side {
    schema: &EGRESS,
    endpoints: "toEndpoints",
    requires: "toRequires",
    nodes: "toNodes",
    entities: "toEntities",
    prefixes: "toCIDR",
    prefix_sets: "toCIDRSet",
    services: "toServices",
};

pub(crate) fn read_element(reader: &mut Reader<'_>, at: &At<'_>, side: &Side, deny: bool) -> Option<Element> {
    let fields = reader.fields(at, side.schema)?;
    let element = Element {
        path: at.path.as_str().into(),
        position: at.position(),
        endpoints: read_list(reader, &fields, side.endpoints, read_selector),
        requires: read_list(reader, &fields, side.requires, read_selector),
        nodes: read_list(reader, &fields, side.nodes, read_selector),
        entities: read_list(reader, &fields, side.entities, read_entity),
        prefixes: read_list(reader, &fields, side.prefixes, read_cidr),
        prefix_sets: read_list(reader, &fields, side.prefix_sets, read_prefix_set),
        services: read_list(reader, &fields, side.services, read_service),
        transport: read_element_transport(reader, &fields, deny),
    };
    let counts = [
        (side.endpoints, element.endpoints.as_ref().map_or(0, Vec::len)),
        (side.nodes, element.nodes.as_ref().map_or(0, Vec::len)),
        (side.entities, element.entities.as_ref().map_or(0, Vec::len)),
        (side.prefixes, element.prefixes.as_ref().map_or(0, Vec::len)),
        (side.prefix_sets, element.prefix_sets.as_ref().map_or(0, Vec::len)),
        (side.services, element.services.as_ref().map_or(0, Vec::len)),
    ];
    let used: Vec<&str> = counts.iter().filter(|(_, count)| *count > 0).map(|(name, _)| *name).collect();
    if let [first, second, ..] = used.as_slice() {
        reader.invalid(
            at,
            format!("`{first}` and `{second}` can't be combined in one element; split it into two"),
        );
    }
    if let (Some(requires), true) = (fields.get(side.requires), element.endpoints.is_none()) {
        warn_of_lone_requirement(reader, &requires, side, &element);
    }
    Some(element)
}

fn warn_of_lone_requirement(reader: &mut Reader<'_>, at: &At<'_>, side: &Side, element: &Element) {
    if element.transport.is_some() {
        let message = format!(
            "a requirement grants nothing by itself and is not tied to ports: those here have no effect without `{}`",
            side.endpoints
        );
        reader.warn(at, message);
    }
}

fn read_element_transport(
    reader: &mut Reader<'_>,
    fields: &Fields<'_>,
    deny: bool,
) -> Option<Vec<Transport>> {
    let (ports, icmps) = (fields.get("toPorts"), fields.get("icmps"));
    if let (Some(_), Some(icmps)) = (&ports, &icmps) {
        reader.invalid(icmps, "`toPorts` and `icmps` can't be combined in one element; split it into two");
    }
    let transport = read_transport(reader, ports, icmps, deny);
    (!transport.is_empty()).then_some(transport)
}

fn read_list<T>(
    reader: &mut Reader<'_>,
    fields: &Fields<'_>,
    name: &str,
    read: impl Fn(&mut Reader<'_>, &At<'_>) -> Option<T>,
) -> Option<Vec<T>> {
    if let Some(empty) = fields.get_null(name) {
        let message =
            "nothing is written here, which is as if the field were not there; write `[]` to mean nobody";
        reader.warn(&empty, message);
    }
    let items = reader.items(&fields.get(name)?)?;
    Some(items.iter().filter_map(|item| read(reader, item)).collect())
}

fn read_entity(reader: &mut Reader<'_>, at: &At<'_>) -> Option<Entity> {
    let name = reader.text(at)?;
    let entity = Entity::from_name(name);
    if entity.is_none() {
        let hint = nearest(name, Entity::NAMES.iter().copied());
        let hint = hint.map(|name| format!("; did you mean `{name}`?")).unwrap_or_default();
        reader.invalid(at, format!("unknown entity{hint} (known: {})", Entity::NAMES.join(", ")));
    }
    entity
}

/// A prefix, or an address for itself alone.
pub(crate) fn read_cidr(reader: &mut Reader<'_>, at: &At<'_>) -> Option<IpNet> {
    let text = reader.text(at)?;
    parse_prefix(text).map_err(|error| reader.invalid(at, error.to_string())).ok()
}

fn read_prefix_set(reader: &mut Reader<'_>, at: &At<'_>) -> Option<PrefixSet> {
    const SCHEMA: Schema = Schema {
        known: &["cidr", "cidrGroupRef", "cidrGroupSelector", "except"],
        refused: &[],
        elsewhere: &[],
    };
    let fields = reader.fields(at, &SCHEMA)?;
    let given = ["cidr", "cidrGroupRef", "cidrGroupSelector"].map(|name| fields.get(name));
    if let [first, second, ..] = given.iter().flatten().collect::<Vec<_>>().as_slice() {
        let name = |at: &At<'_>| at.path.rsplit('.').next().unwrap_or_default().to_owned();
        let message =
            format!("`{}` and `{}` can't be combined; split the item into two", name(first), name(second));
        reader.invalid(at, message);
        return None;
    }
    let base = match given {
        [Some(cidr), _, _] => PrefixBase::Prefix(read_cidr(reader, &cidr)?),
        [_, Some(name), _] => PrefixBase::Group(read_name(reader, &name)?),
        [_, _, Some(selector)] => PrefixBase::Groups(read_selector(reader, &selector)?),
        [None, None, None] => {
            let message = "`cidr` is missing; write for example `cidr: 10.0.0.0/8`, or name a group with `cidrGroupRef`";
            reader.problem(at, ProblemKind::Missing, message);
            return None;
        }
    };
    let except = read_except(reader, fields.get("except"), &base);
    Some(PrefixSet { base, except })
}

/// The prefixes of `except`; beside a prefix each must lie inside.
pub(crate) fn read_except(reader: &mut Reader<'_>, at: Option<At<'_>>, base: &PrefixBase) -> Vec<IpNet> {
    let mut except = Vec::new();
    for item in at.and_then(|at| reader.items(&at)).unwrap_or_default() {
        let Some(inner) = read_cidr(reader, &item) else { continue };
        if let PrefixBase::Prefix(prefix) = base
            && !prefix.contains(&inner)
        {
            reader.invalid(&item, format!("{inner} does not lie inside {prefix}; remove it or widen `cidr`"));
        }
        except.push(inner);
    }
    except
}

fn read_service(reader: &mut Reader<'_>, at: &At<'_>) -> Option<ServiceRef> {
    const SCHEMA: Schema =
        Schema { known: &["k8sService", "k8sServiceSelector"], refused: &[], elsewhere: &[] };
    const BY_NAME: Schema = Schema { known: &["serviceName", "namespace"], refused: &[], elsewhere: &[] };
    const BY_LABELS: Schema = Schema { known: &["selector", "namespace"], refused: &[], elsewhere: &[] };
    let fields = reader.fields(at, &SCHEMA)?;
    let (place, schema, field) = match (fields.get("k8sService"), fields.get("k8sServiceSelector")) {
        (Some(by_name), None) => (by_name, &BY_NAME, "serviceName"),
        (None, Some(by_labels)) => (by_labels, &BY_LABELS, "selector"),
        (Some(_), Some(_)) => {
            reader.invalid(
                at,
                "`k8sService` and `k8sServiceSelector` can't be combined; split the item into two",
            );
            return None;
        }
        (None, None) => {
            reader.problem(
                at,
                ProblemKind::Missing,
                "name services with `k8sService` or `k8sServiceSelector`",
            );
            return None;
        }
    };
    let fields = reader.fields(&place, schema)?;
    let namespace = match fields.get("namespace").filter(|at| at.node.as_str() != Some("")) {
        Some(at) => Some(read_name(reader, &at)?),
        None => None,
    };
    let Some(which) = fields.get(field) else {
        reader.problem(&place, ProblemKind::Missing, format!("`{field}` is missing"));
        return None;
    };
    let which = match field {
        "selector" => ServiceBase::Labels(read_selector(reader, &which)?),
        _ => ServiceBase::Name(read_name(reader, &which)?),
    };
    Some(ServiceRef { namespace, which })
}
