//! Reading one `spec`: subject, sections, elements.

use ipnet::IpNet;
use villus_labels::{Label, Labels, Requirement, Selector, nearest, parse_prefix};

use crate::{
    Element, Entity, Kind, PrefixSet, ProblemKind, Rule, Transport,
    read::{At, Fields, Reader, Schema},
    transport::read_transport,
};

const RULE: Schema = Schema {
    known: &[
        "endpointSelector",
        "ingress",
        "ingressDeny",
        "egress",
        "egressDeny",
        "enableDefaultDeny",
        "labels",
        "description",
        "log",
    ],
    refused: &[(
        "nodeSelector",
        "host policies are not enforced; select endpoints with `endpointSelector`, or remove the rule",
    )],
    elsewhere: &[],
};

const AUTHENTICATION: &str =
    "mutual authentication is not enforced; remove the field if plain identity is enough for this rule";
const GROUPS: &str = "cloud groups are not resolved; list their addresses in a CIDR set";
const REQUIRES: &str =
    "requirements are not enforced; add the labels to each selector of the endpoints instead";
const NODES: &str = "node labels are not matched; use the entities `host` and `remote-node`, or a CIDR";

const INGRESS: Schema = Schema {
    known: &["fromEndpoints", "fromEntities", "fromCIDR", "fromCIDRSet", "toPorts", "icmps"],
    refused: &[
        ("fromRequires", REQUIRES),
        ("fromGroups", GROUPS),
        ("fromNodes", NODES),
        ("authentication", AUTHENTICATION),
    ],
    elsewhere: &[
        ("toEndpoints", "in ingress the peers are `fromEndpoints`"),
        ("toEntities", "in ingress the peers are `fromEntities`"),
        ("toCIDR", "in ingress the peers are `fromCIDR`"),
        ("toCIDRSet", "in ingress the peers are `fromCIDRSet`"),
        ("toFQDNs", "names can be asked for in egress only"),
        ("toServices", "services can be asked for in egress only"),
        ("ports", "put it under `toPorts`"),
    ],
};

const EGRESS: Schema = Schema {
    known: &["toEndpoints", "toEntities", "toCIDR", "toCIDRSet", "toPorts", "icmps"],
    refused: &[
        ("toRequires", REQUIRES),
        ("toGroups", GROUPS),
        ("toNodes", NODES),
        (
            "toServices",
            "services are not resolved; select their endpoints by labels, or list addresses in `toCIDR`",
        ),
        ("toFQDNs", "DNS names are not enforced; list the addresses in `toCIDR`"),
        ("authentication", AUTHENTICATION),
    ],
    elsewhere: &[
        ("fromEndpoints", "in egress the peers are `toEndpoints`"),
        ("fromEntities", "in egress the peers are `toEntities`"),
        ("fromCIDR", "in egress the peers are `toCIDR`"),
        ("fromCIDRSet", "in egress the peers are `toCIDRSet`"),
        ("ports", "put it under `toPorts`"),
    ],
};

/// Names of the fields of one side.
struct Side {
    schema: &'static Schema,
    endpoints: &'static str,
    entities: &'static str,
    prefixes: &'static str,
    prefix_sets: &'static str,
}

const SIDES: [Side; 2] = [
    Side {
        schema: &INGRESS,
        endpoints: "fromEndpoints",
        entities: "fromEntities",
        prefixes: "fromCIDR",
        prefix_sets: "fromCIDRSet",
    },
    Side {
        schema: &EGRESS,
        endpoints: "toEndpoints",
        entities: "toEntities",
        prefixes: "toCIDR",
        prefix_sets: "toCIDRSet",
    },
];

/// One rule, or `None` and a problem.
pub(crate) fn read_rule(reader: &mut Reader<'_>, at: &At<'_>, kind: Kind) -> Option<Rule> {
    let fields = reader.fields(at, &RULE)?;
    let subject = read_subject(reader, &fields, kind);
    let [ingress_side, egress_side] = &SIDES;
    let rule = Rule {
        path: at.path.as_str().into(),
        position: at.position(),
        subject: subject.unwrap_or_else(Selector::everything),
        ingress: read_section(reader, &fields, "ingress", ingress_side, false),
        egress: read_section(reader, &fields, "egress", egress_side, false),
        ingress_deny: read_section(reader, &fields, "ingressDeny", ingress_side, true),
        egress_deny: read_section(reader, &fields, "egressDeny", egress_side, true),
        default_deny: fields
            .get("enableDefaultDeny")
            .map_or([None, None], |at| read_default_deny(reader, &at)),
        labels: fields.get("labels").map(|at| read_rule_labels(reader, &at)).unwrap_or_default(),
        description: fields.get("description").and_then(|at| Some(reader.text(&at)?.to_owned())),
    };
    if let Some(log) = fields.get("log") {
        reader.warn(&log, "the text is not added to flow logs");
    }
    let sections = [&rule.ingress, &rule.egress, &rule.ingress_deny, &rule.egress_deny];
    if sections.iter().all(|section| section.is_none()) {
        let message = "the rule has none of ingress, egress, ingressDeny, egressDeny; write `ingress: [{}]` to deny all";
        reader.problem(at, ProblemKind::Missing, message);
    }
    Some(rule)
}

fn read_subject(reader: &mut Reader<'_>, fields: &Fields<'_>, kind: Kind) -> Option<Selector> {
    let (endpoints, nodes) = (fields.get("endpointSelector"), fields.get("nodeSelector"));
    match (&endpoints, &nodes) {
        (Some(_), Some(nodes)) => {
            reader.invalid(nodes, "a rule selects endpoints or nodes, not both; split it into two rules");
        }
        (None, Some(nodes)) if kind == Kind::CiliumNetworkPolicy => {
            reader.invalid(nodes, "nodes can be selected by a CiliumClusterwideNetworkPolicy only");
        }
        (None, None) => {
            let message =
                "endpointSelector is missing; write `endpointSelector: {}` to select every endpoint";
            reader.problem(fields.at(), ProblemKind::Missing, message);
        }
        _ => {}
    }
    endpoints.and_then(|at| read_selector(reader, &at))
}

fn read_default_deny(reader: &mut Reader<'_>, at: &At<'_>) -> [Option<bool>; 2] {
    const SCHEMA: Schema = Schema { known: &["ingress", "egress"], refused: &[], elsewhere: &[] };
    let Some(fields) = reader.fields(at, &SCHEMA) else { return [None, None] };
    ["ingress", "egress"].map(|name| fields.get(name).and_then(|at| reader.boolean(&at)))
}

fn read_rule_labels(reader: &mut Reader<'_>, at: &At<'_>) -> Labels {
    const SCHEMA: Schema = Schema { known: &["key", "value", "source"], refused: &[], elsewhere: &[] };
    let mut labels = Vec::new();
    for item in reader.items(at).unwrap_or_default() {
        let Some(fields) = reader.fields(&item, &SCHEMA) else { continue };
        let mut text = |name| fields.get(name).and_then(|at| reader.text(&at)).unwrap_or_default();
        let (key, value, source) = (text("key"), text("value"), text("source"));
        let source = if source.is_empty() { villus_labels::source::UNSPEC } else { source };
        match Label::new(source, key, value) {
            Ok(label) => labels.push(label),
            Err(error) => reader.invalid(&item, error.to_string()),
        }
    }
    Labels::new(labels).unwrap_or_else(|error| {
        reader.invalid(at, error.to_string());
        Labels::default()
    })
}

fn read_section(
    reader: &mut Reader<'_>,
    fields: &Fields<'_>,
    name: &str,
    side: &Side,
    deny: bool,
) -> Option<Vec<Element>> {
    let at = fields.get(name)?;
    let items = reader.items(&at)?;
    if items.is_empty() {
        let advice = if deny { "remove it" } else { "write `[{}]` to deny all, or remove it" };
        reader.warn(&at, format!("an empty list has no effect; {advice}"));
    }
    Some(items.iter().filter_map(|item| read_element(reader, item, side, deny)).collect())
}

fn read_element(reader: &mut Reader<'_>, at: &At<'_>, side: &Side, deny: bool) -> Option<Element> {
    let fields = reader.fields(at, side.schema)?;
    let element = Element {
        path: at.path.as_str().into(),
        position: at.position(),
        endpoints: read_list(reader, &fields, side.endpoints, read_selector),
        entities: read_list(reader, &fields, side.entities, read_entity),
        prefixes: read_list(reader, &fields, side.prefixes, read_cidr),
        prefix_sets: read_list(reader, &fields, side.prefix_sets, read_prefix_set),
        transport: read_element_transport(reader, &fields, deny),
    };
    let counts = [
        (side.endpoints, element.endpoints.as_ref().map_or(0, Vec::len)),
        (side.entities, element.entities.as_ref().map_or(0, Vec::len)),
        (side.prefixes, element.prefixes.as_ref().map_or(0, Vec::len)),
        (side.prefix_sets, element.prefix_sets.as_ref().map_or(0, Vec::len)),
    ];
    let used: Vec<&str> = counts.iter().filter(|(_, count)| *count > 0).map(|(name, _)| *name).collect();
    if let [first, second, ..] = used.as_slice() {
        reader.invalid(
            at,
            format!("`{first}` and `{second}` can't be combined in one element; split it into two"),
        );
    }
    Some(element)
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

fn read_cidr(reader: &mut Reader<'_>, at: &At<'_>) -> Option<IpNet> {
    let text = reader.text(at)?;
    parse_prefix(text).map_err(|error| reader.invalid(at, error.to_string())).ok()
}

fn read_prefix_set(reader: &mut Reader<'_>, at: &At<'_>) -> Option<PrefixSet> {
    const GROUP: &str = "CIDR groups are not resolved; list the prefixes here with `cidr`";
    const SCHEMA: Schema = Schema {
        known: &["cidr", "except"],
        refused: &[("cidrGroupRef", GROUP), ("cidrGroupSelector", GROUP)],
        elsewhere: &[],
    };
    let before = reader.problems.len();
    let fields = reader.fields(at, &SCHEMA)?;
    let Some(prefix) = fields.get("cidr") else {
        if reader.problems.len() == before {
            reader.problem(
                at,
                ProblemKind::Missing,
                "`cidr` is missing; write for example `cidr: 10.0.0.0/8`",
            );
        }
        return None;
    };
    let prefix = read_cidr(reader, &prefix)?;
    let mut except = Vec::new();
    for item in fields.get("except").and_then(|at| reader.items(&at)).unwrap_or_default() {
        let Some(inner) = read_cidr(reader, &item) else { continue };
        if !prefix.contains(&inner) {
            reader.invalid(&item, format!("{inner} does not lie inside {prefix}; remove it or widen `cidr`"));
        }
        except.push(inner);
    }
    Some(PrefixSet { prefix, except })
}

fn read_selector(reader: &mut Reader<'_>, at: &At<'_>) -> Option<Selector> {
    const SCHEMA: Schema = Schema {
        known: &["matchLabels", "matchExpressions"],
        refused: &[],
        elsewhere: &[("labels", "write `matchLabels`")],
    };
    let before = reader.problems.len();
    let fields = reader.fields(at, &SCHEMA)?;
    let mut requirements = Vec::new();
    if let Some(labels) = fields.get("matchLabels") {
        for (key, node) in reader.entries(&labels).unwrap_or_default() {
            let item = labels.key(&key.text, node);
            let Some(value) = reader.text(&item) else { continue };
            collect(reader, &item, Requirement::equals(&key.text, value), &mut requirements);
        }
    }
    for item in fields.get("matchExpressions").and_then(|at| reader.items(&at)).unwrap_or_default() {
        let requirement = read_expression(reader, &item);
        requirements.extend(requirement);
    }
    if reader.problems.len() > before {
        return None;
    }
    Selector::new(requirements).map_err(|error| reader.invalid(at, error.to_string())).ok()
}

fn collect(
    reader: &mut Reader<'_>,
    at: &At<'_>,
    requirement: Result<Requirement, villus_labels::SelectorError>,
    requirements: &mut Vec<Requirement>,
) {
    match requirement {
        Ok(requirement) => requirements.push(requirement),
        Err(error) => reader.invalid(at, error.to_string()),
    }
}

fn read_expression(reader: &mut Reader<'_>, at: &At<'_>) -> Option<Requirement> {
    const SCHEMA: Schema = Schema { known: &["key", "operator", "values"], refused: &[], elsewhere: &[] };
    let fields = reader.fields(at, &SCHEMA)?;
    let mut required = |name: &str| {
        let field = fields.get(name);
        if field.is_none() {
            reader.problem(at, ProblemKind::Missing, format!("`{name}` is missing"));
        }
        field.and_then(|at| reader.text(&at))
    };
    let (key, operator) = (required("key"), required("operator"));
    let mut values = Vec::new();
    for item in fields.get("values").and_then(|at| reader.items(&at)).unwrap_or_default() {
        values.push(reader.text(&item)?);
    }
    let requirement = Requirement::expression(key?, operator?, values);
    requirement.map_err(|error| reader.invalid(at, error.to_string())).ok()
}
