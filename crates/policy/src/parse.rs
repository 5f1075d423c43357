//! From a file's text to policy objects: documents, kinds, metadata.

use std::{collections::HashMap, sync::Arc};

use villus_labels::{KEY_NAMESPACE, Label, source};

use crate::{
    Kind, ObjectKey, ParsedFile, Policy, Problem, ProblemKind, Refused,
    node::{Node, Value, read_documents},
    read::{At, Reader, Schema},
    spec::read_rule,
};

const API_VERSION: &str = "cilium.io/v2";
const DEFAULT_NAMESPACE: &str = "default";
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
        let mut policies = Vec::new();
        read_object(&mut reader, &At::root(node), &mut policies);
        for (policy, at) in policies {
            if let Some(first) = seen.insert(policy.key.clone(), index + 1) {
                reader.object = Some(policy.key.to_string());
                let message = format!("the object is also in document {first} of this file; keep one");
                reader.problem(&at, ProblemKind::Duplicate, message);
            }
            parsed.policies.push(policy);
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

fn read_object<'n>(reader: &mut Reader<'_>, at: &At<'n>, policies: &mut Vec<(Policy, At<'n>)>) {
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
    match kind {
        "CiliumNetworkPolicy" => read_policy(reader, at, Kind::CiliumNetworkPolicy, policies),
        "CiliumClusterwideNetworkPolicy" => {
            read_policy(reader, at, Kind::CiliumClusterwideNetworkPolicy, policies);
        }
        "List" | "CiliumNetworkPolicyList" | "CiliumClusterwideNetworkPolicyList" => {
            if let Some(items) = at.node.get("items") {
                for item in reader.items(&at.field("items", items)).unwrap_or_default() {
                    read_object(reader, &item, policies);
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
            format!("{kind} is not enforced; write a CiliumNetworkPolicy or CiliumClusterwideNetworkPolicy"),
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
        || (version.starts_with("networking.k8s.io/") && kind == "NetworkPolicy")
        || (version.starts_with("policy.networking.k8s.io/"))
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

fn read_policy<'n>(reader: &mut Reader<'_>, at: &At<'n>, kind: Kind, policies: &mut Vec<(Policy, At<'n>)>) {
    let before = reader.problems.len();
    let Some(fields) = reader.fields(at, &OBJECT) else { return };
    match fields.get("apiVersion").as_ref().map(|version| (version, version.node.as_str())) {
        Some((_, Some(API_VERSION))) => {}
        Some((version, _)) => reader.invalid(version, format!("must be `{API_VERSION}`")),
        None => {
            reader.problem(at, ProblemKind::Missing, format!("apiVersion is missing; write `{API_VERSION}`"))
        }
    }
    let key = read_metadata(reader, at, fields.get("metadata"), kind);
    let mut rules = Vec::new();
    let (spec, specs) = (fields.get("spec"), fields.get("specs"));
    if spec.is_none() && specs.is_none() {
        reader.problem(
            at,
            ProblemKind::Missing,
            "there is neither `spec` nor `specs`; a policy needs a rule",
        );
    }
    rules.extend(spec.and_then(|spec| read_rule(reader, &spec, kind)));
    for spec in specs.and_then(|specs| reader.items(&specs)).unwrap_or_default() {
        rules.extend(read_rule(reader, &spec, kind));
    }
    if let Some(key) = key.filter(|_| reader.problems.len() == before) {
        let object = normalised(at.node, &key);
        let label = |namespace: &Arc<str>| Label::new(source::K8S, KEY_NAMESPACE, namespace);
        match key.namespace.as_ref().map(label).transpose() {
            Ok(namespace) => policies.push((Policy { key, namespace, rules, object }, at.clone())),
            Err(error) => reader.invalid(at, error.to_string()),
        }
    }
}

fn read_metadata(
    reader: &mut Reader<'_>,
    at: &At<'_>,
    metadata: Option<At<'_>>,
    kind: Kind,
) -> Option<ObjectKey> {
    let Some(metadata) = metadata else {
        reader.problem(at, ProblemKind::Missing, "metadata is missing; the object needs `metadata.name`");
        return None;
    };
    let entries = reader.entries(&metadata)?;
    let mut field = |name: &str| {
        let (_, node) =
            entries.iter().find(|(key, node)| key.text == name && !matches!(node.value, Value::Null))?;
        let at = metadata.field(name, node);
        let text = reader.text(&at)?;
        if !is_object_name(text) {
            reader.invalid(
                &at,
                "must be a name of Kubernetes: up to 253 lower-case letters, digits, `-` and `.`, \
                 the ends a letter or digit",
            );
            return None;
        }
        Some((Arc::<str>::from(text), at))
    };
    let (name, namespace) = (field("name"), field("namespace"));
    if !entries.iter().any(|(key, _)| key.text == "name") {
        reader.problem(&metadata, ProblemKind::Missing, "the object has no name; write `metadata.name`");
    }
    let namespace = match (kind, namespace) {
        (Kind::CiliumNetworkPolicy, Some((namespace, _))) => Some(namespace),
        (Kind::CiliumNetworkPolicy, None) => Some(DEFAULT_NAMESPACE.into()),
        (Kind::CiliumClusterwideNetworkPolicy, None) => None,
        (Kind::CiliumClusterwideNetworkPolicy, Some((_, at))) => {
            reader.invalid(
                &at,
                "a clusterwide policy is in no namespace; remove the field or write a CiliumNetworkPolicy",
            );
            None
        }
    };
    let key = ObjectKey { kind, namespace, name: name?.0, origin: reader.file.into() };
    reader.object = Some(key.to_string());
    Some(key)
}

fn is_object_name(text: &str) -> bool {
    let end = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    text.len() <= 253
        && text.bytes().all(inner)
        && end(text.as_bytes().first())
        && end(text.as_bytes().last())
}

/// The object as JSON with its namespace, without its status and what the API server adds for itself.
fn normalised(node: &Node, key: &ObjectKey) -> serde_json::Value {
    let mut object = node.to_json();
    if let Some(map) = object.as_object_mut() {
        map.remove("status");
    }
    if let Some(metadata) = object.get_mut("metadata").and_then(|metadata| metadata.as_object_mut()) {
        metadata.remove("managedFields");
        if let Some(namespace) = &key.namespace {
            metadata.insert("namespace".to_owned(), namespace.as_ref().into());
        }
    }
    object
}
