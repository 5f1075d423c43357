//! From a file's text to policy objects: documents, kinds, metadata.

use std::{collections::HashMap, sync::Arc};

use villus_labels::{KEY_NAMESPACE, Label, source};

use crate::{
    Kind, ObjectKey, ParsedFile, Policy, Problem, ProblemKind, Referent, Refused, Rule,
    cidr_group::read_group,
    knp::read_network_policy,
    metadata::{check_version, normalised, read_audit, read_key},
    node::{Node, Value, read_documents},
    read::{At, Fields, Reader, Schema},
    service::read_service_object,
    spec::read_rule,
};

/// Most problems that are listed for one file.
const MAX_PROBLEMS: usize = 100;

/// Reads a file of policies: YAML or JSON, any number of documents, lists of objects included.
///
/// `file` names the source in errors and becomes the origin of the policies.
///
/// # Errors
/// One bad object refuses the file: then nothing of it is returned but what is wrong with it, up to 100 problems.
pub fn parse(file: &str, text: &str) -> Result<ParsedFile, Refused> {
    let documents = read_documents(text).map_err(|error| {
        let (object, path, kind) = (None, String::new(), ProblemKind::Syntax);
        let (position, message) = (error.position, error.message);
        Refused {
            problems: vec![Problem {
                file: file.to_owned(),
                document: 0,
                object,
                path,
                position,
                kind,
                message,
            }],
        }
    })?;
    let mut parsed = ParsedFile::default();
    let mut problems = Vec::new();
    let mut seen: HashMap<ObjectKey, usize> = HashMap::new();
    for (index, node) in documents.iter().enumerate() {
        let mut reader =
            Reader { file, document: index + 1, object: None, problems: Vec::new(), warnings: Vec::new() };
        let mut objects = Vec::new();
        read_object(&mut reader, &At::root(node), &mut objects);
        for (object, at) in objects {
            if let Some(first) = seen.insert(object.key().clone(), index + 1) {
                reader.object = Some(object.key().to_string());
                let message = format!("the object is also in document {first} of this file; keep one");
                reader.problem(&at, ProblemKind::Duplicate, message);
            }
            match object {
                Object::Policy(policy) => parsed.policies.push(policy),
                Object::Referent(referent) => parsed.referents.push(referent),
            }
        }
        problems.append(&mut reader.problems);
        parsed.warnings.append(&mut reader.warnings);
        if problems.len() > MAX_PROBLEMS {
            problems.truncate(MAX_PROBLEMS);
            break;
        }
    }
    if problems.is_empty() { Ok(parsed) } else { Err(Refused { problems }) }
}

/// One object of a file.
enum Object {
    Policy(Policy),
    Referent(Referent),
}

impl Object {
    fn key(&self) -> &ObjectKey {
        match self {
            Self::Policy(policy) => &policy.key,
            Self::Referent(referent) => &referent.key,
        }
    }
}

fn read_object<'n>(reader: &mut Reader<'_>, at: &At<'n>, objects: &mut Vec<(Object, At<'n>)>) {
    reader.object = None;
    if !matches!(at.node.value, Value::Mapping(_)) {
        return reader.invalid(
            at,
            format!("must be an object with apiVersion and kind, but is {}", at.node.value.kind()),
        );
    }
    let text = |name: &str| at.node.get(name).and_then(Node::as_str).unwrap_or_default();
    let (version, kind) = (text("apiVersion"), text("kind"));
    reader.object = Some(describe(at.node, kind));
    let policy = |policy: Option<Policy>| policy.map(Object::Policy);
    let referent = |referent: Option<Referent>| referent.map(Object::Referent);
    let object = match kind {
        "CiliumNetworkPolicy" => policy(read_policy(reader, at, Kind::CiliumNetworkPolicy)),
        "CiliumClusterwideNetworkPolicy" => {
            policy(read_policy(reader, at, Kind::CiliumClusterwideNetworkPolicy))
        }
        "NetworkPolicy" => policy(read_policy(reader, at, Kind::NetworkPolicy)),
        "CiliumCIDRGroup" => referent(read_group(reader, at)),
        "Service" if matches!(version, "v1" | "") => referent(read_service_object(reader, at, Kind::Service)),
        "Endpoints" => referent(read_service_object(reader, at, Kind::Endpoints)),
        "EndpointSlice" => referent(read_service_object(reader, at, Kind::EndpointSlice)),
        _ => return read_list_or_refuse(reader, at, version, kind, objects),
    };
    objects.extend(object.map(|object| (object, at.clone())));
}

/// The kinds that are no single object that is read: lists, and what is refused.
fn read_list_or_refuse<'n>(
    reader: &mut Reader<'_>,
    at: &At<'n>,
    version: &str,
    kind: &str,
    objects: &mut Vec<(Object, At<'n>)>,
) {
    match kind {
        "List"
        | "CiliumNetworkPolicyList"
        | "CiliumClusterwideNetworkPolicyList"
        | "NetworkPolicyList"
        | "CiliumCIDRGroupList"
        | "ServiceList"
        | "EndpointsList"
        | "EndpointSliceList" => {
            if let Some(items) = at.node.get("items") {
                for item in reader.items(&at.field("items", items)).unwrap_or_default() {
                    read_object(reader, &item, objects);
                }
            }
        }
        "" => {
            let bare = at.node.get("endpointSelector").is_some() || at.node.get("nodeSelector").is_some();
            let advice = if bare {
                "this is a bare rule; put it under `spec` of an object with `apiVersion: cilium.io/v2`, \
                 `kind: CiliumNetworkPolicy` and a name"
            } else {
                "the object has no kind; write for example `kind: CiliumNetworkPolicy`"
            };
            reader.problem(at, ProblemKind::Missing, advice);
        }
        _ if is_policy_of_another_kind(version, kind) => reader.problem(
            &at.field("kind", at.node.get("kind").unwrap_or(at.node)),
            ProblemKind::NotEnforced,
            format!(
                "{kind} is not enforced; write a CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy or NetworkPolicy"
            ),
        ),
        _ => reader.problem(
            &at.field("kind", at.node.get("kind").unwrap_or(at.node)),
            ProblemKind::NotAPolicy,
            format!("{kind} is not a policy; move the object out of this file"),
        ),
    }
}

/// `CiliumNetworkPolicy default/web` of what is there, for messages.
fn describe(node: &Node, kind: &str) -> String {
    let meta = |name| node.get("metadata").and_then(|meta| meta.get(name)).and_then(Node::as_str);
    let name = meta("name").unwrap_or("without name");
    let text = match meta("namespace") {
        Some(namespace) => format!("{kind} {namespace}/{name}"),
        None => format!("{kind} {name}"),
    };
    text.trim_start().chars().take(160).flat_map(char::escape_debug).collect()
}

fn is_policy_of_another_kind(version: &str, kind: &str) -> bool {
    version.starts_with("cilium.io/")
        || version.starts_with("policy.networking.k8s.io/")
        || kind.ends_with("NetworkPolicy")
}

const OBJECT: Schema = Schema {
    known: &["apiVersion", "kind", "metadata", "spec", "specs", "status"],
    refused: &[],
    elsewhere: &[
        ("endpointSelector", "put it under `spec`"),
        ("ingress", "put it under `spec`"),
        ("egress", "put it under `spec`"),
    ],
};

fn read_policy(reader: &mut Reader<'_>, at: &At<'_>, kind: Kind) -> Option<Policy> {
    let before = reader.problems.len();
    let fields = reader.fields(at, &OBJECT)?;
    let version = if kind == Kind::NetworkPolicy { "networking.k8s.io/v1" } else { "cilium.io/v2" };
    check_version(reader, at, fields.get("apiVersion"), &[version]);
    let key = read_key(reader, at, fields.get("metadata"), kind);
    let namespace = key.as_ref().and_then(|key| key.namespace.as_deref());
    let audit = read_audit(reader, &fields);
    let rules = match kind {
        Kind::NetworkPolicy => read_one(reader, at, &fields),
        _ => read_rules(reader, at, &fields, kind, namespace),
    };
    let key = key.filter(|_| reader.problems.len() == before)?;
    let object = normalised(at.node, &key);
    let label = |namespace: &Arc<str>| Label::new(source::K8S, KEY_NAMESPACE, namespace);
    match key.namespace.as_ref().map(label).transpose() {
        Ok(namespace) => Some(Policy { key, namespace, audit, rules, object }),
        Err(error) => {
            reader.invalid(at, error.to_string());
            None
        }
    }
}

fn read_one(reader: &mut Reader<'_>, at: &At<'_>, fields: &Fields<'_>) -> Vec<Rule> {
    if let Some(specs) = fields.get("specs") {
        reader.problem(&specs, ProblemKind::UnknownField, "a NetworkPolicy has one `spec`");
    }
    match fields.get("spec") {
        Some(spec) => read_network_policy(reader, &spec).into_iter().collect(),
        None => {
            reader.problem(at, ProblemKind::Missing, "there is no `spec`; a policy needs one");
            Vec::new()
        }
    }
}

fn read_rules(
    reader: &mut Reader<'_>,
    at: &At<'_>,
    fields: &Fields<'_>,
    kind: Kind,
    namespace: Option<&str>,
) -> Vec<Rule> {
    let mut rules = Vec::new();
    let (spec, specs) = (fields.get("spec"), fields.get("specs"));
    if spec.is_none() && specs.is_none() {
        let message = "there is neither `spec` nor `specs`; a policy needs a rule";
        reader.problem(at, ProblemKind::Missing, message);
    }
    rules.extend(spec.and_then(|spec| read_rule(reader, &spec, kind, namespace)));
    for spec in specs.and_then(|specs| reader.items(&specs)).unwrap_or_default() {
        rules.extend(read_rule(reader, &spec, kind, namespace));
    }
    rules
}
