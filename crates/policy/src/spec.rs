//! Reading one `spec`: subject and sections.

use villus_labels::{KEY_NAMESPACE, Label, Labels, Operator, Selector};

use crate::{
    Element, Kind, ProblemKind, Protocol, Rule, SubjectSelector, Transport,
    element::{FROM, Side, TO, read_element},
    read::{At, Fields, Reader, Schema},
    selector::read_selector,
};

const RULE: Schema = Schema {
    known: &[
        "endpointSelector",
        "nodeSelector",
        "ingress",
        "ingressDeny",
        "egress",
        "egressDeny",
        "enableDefaultDeny",
        "labels",
        "description",
        "log",
    ],
    refused: &[],
    elsewhere: &[],
};

/// One rule of a policy of a namespace or of none, or `None` and a problem.
pub(crate) fn read_rule(
    reader: &mut Reader<'_>,
    at: &At<'_>,
    kind: Kind,
    namespace: Option<&str>,
) -> Option<Rule> {
    let fields = reader.fields(at, &RULE)?;
    let subject = read_subject(reader, &fields, kind);
    if let (Some(subject), Some(namespace)) = (&subject, namespace) {
        warn_of_other_namespace(reader, &fields, subject.selector(), namespace);
    }
    let rule = Rule {
        path: at.path.as_str().into(),
        position: at.position(),
        subject: subject.unwrap_or_else(|| SubjectSelector::Endpoints(Selector::everything())),
        ingress: read_section(reader, &fields, "ingress", &FROM, false),
        egress: read_section(reader, &fields, "egress", &TO, false),
        ingress_deny: read_section(reader, &fields, "ingressDeny", &FROM, true),
        egress_deny: read_section(reader, &fields, "egressDeny", &TO, true),
        default_deny: fields
            .get("enableDefaultDeny")
            .map_or([None, None], |at| read_default_deny(reader, &at)),
        labels: fields.get("labels").map(|at| read_rule_labels(reader, &at)).unwrap_or_default(),
        description: fields.get("description").and_then(|at| Some(reader.text(&at)?.to_owned())),
    };
    if let Some(log) = fields.get("log") {
        reader.warn(&log, "the text is not added to flow logs");
    }
    warn_of_other_protocols(reader, at, &rule);
    let sections = [&rule.ingress, &rule.egress, &rule.ingress_deny, &rule.egress_deny];
    if sections.iter().all(|section| section.is_none()) {
        let message = "the rule has none of ingress, egress, ingressDeny, egressDeny; write `ingress: [{}]` to deny all";
        reader.problem(at, ProblemKind::Missing, message);
    }
    Some(rule)
}

/// Flows of workloads are those of protocols with ports and of ICMP; what else they send ends under its own reason.
fn warn_of_other_protocols(reader: &mut Reader<'_>, at: &At<'_>, rule: &Rule) {
    let other = |item: &Transport| matches!(item, Transport::Ports { protocol: Protocol::Other(_), .. });
    let names_other = rule.elements().any(|(.., element)| element.transport.iter().flatten().any(other));
    if names_other && matches!(rule.subject, SubjectSelector::Endpoints(_)) {
        let message = "packets of workloads that are neither TCP, UDP, SCTP nor ICMP drop whatever policy says (137); \
                       protocols without ports matter to nodes only";
        reader.warn(at, message);
    }
}

fn read_subject(reader: &mut Reader<'_>, fields: &Fields<'_>, kind: Kind) -> Option<SubjectSelector> {
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
    match (endpoints, nodes) {
        (Some(at), _) => read_selector(reader, &at).map(SubjectSelector::Endpoints),
        (None, at) => at.and_then(|at| read_selector(reader, &at)).map(SubjectSelector::Nodes),
    }
}

fn warn_of_other_namespace(
    reader: &mut Reader<'_>,
    fields: &Fields<'_>,
    subject: &Selector,
    namespace: &str,
) {
    let is_own = |operator: &Operator| match operator {
        Operator::In(values) => values.iter().any(|value| **value == *namespace),
        Operator::NotIn(values) => values.iter().all(|value| **value != *namespace),
        Operator::Exists => true,
        Operator::DoesNotExist => false,
    };
    let of_namespace = |key: &str| key == KEY_NAMESPACE;
    let foreign = subject.requirements().iter().any(|r| of_namespace(r.key.key()) && !is_own(&r.operator));
    if let (Some(at), true) = (fields.get("endpointSelector"), foreign) {
        let message = format!(
            "the policy selects endpoints of its own namespace, {namespace}, only: what the selector says of the \
             namespace is replaced; write the policy into the other namespace, or a CiliumClusterwideNetworkPolicy"
        );
        reader.warn(&at, message);
    }
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
