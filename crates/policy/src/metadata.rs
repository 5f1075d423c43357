//! Reading `apiVersion` and `metadata`: what an object is known by.

use std::sync::Arc;

use villus_labels::{Label, Labels, source};

use crate::{
    AUDIT_ANNOTATION, Audit, AuditError, Kind, ObjectKey, ObjectText, ProblemKind,
    node::{Node, Value},
    read::{At, Fields, Reader},
};

const DEFAULT_NAMESPACE: &str = "default";

/// Checks that `apiVersion` is one of those the kind has, the newest first.
pub(crate) fn check_version(
    reader: &mut Reader<'_>,
    at: &At<'_>,
    version: Option<At<'_>>,
    versions: &[&str],
) {
    let wanted = versions.join("` or `");
    match version {
        Some(version) if version.node.as_str().is_some_and(|text| versions.contains(&text)) => {}
        Some(version) => reader.invalid(&version, format!("must be `{wanted}`")),
        None => {
            let message = format!("apiVersion is missing; write `{wanted}`");
            reader.problem(at, ProblemKind::Missing, message);
        }
    }
}

/// The key of an object, which the reader then names in its problems.
pub(crate) fn read_key(
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
        Some((read_name(reader, &at)?, at))
    };
    let (name, namespace) = (field("name"), field("namespace"));
    if !entries.iter().any(|(key, _)| key.text == "name") {
        reader.problem(&metadata, ProblemKind::Missing, "the object has no name; write `metadata.name`");
    }
    let namespace = match namespace {
        Some((namespace, _)) if kind.is_namespaced() => Some(namespace),
        None if kind.is_namespaced() => Some(DEFAULT_NAMESPACE.into()),
        None => None,
        Some((_, at)) => {
            let advice = match kind {
                Kind::CiliumClusterwideNetworkPolicy => {
                    "a clusterwide policy is in no namespace; remove the field or write a CiliumNetworkPolicy"
                }
                _ => "objects of this kind are in no namespace; remove the field",
            };
            reader.invalid(&at, advice);
            None
        }
    };
    let key = ObjectKey { kind, namespace, name: name?.0, origin: reader.file.into() };
    reader.object = Some(key.to_string());
    Some(key)
}

/// A name of an object or namespace.
pub(crate) fn read_name(reader: &mut Reader<'_>, at: &At<'_>) -> Option<Arc<str>> {
    let text = reader.text(at)?;
    if !is_object_name(text) {
        let message = "must be a name of Kubernetes: up to 253 lower-case letters, digits, `-` and `.`, \
                       the ends a letter or digit";
        reader.invalid(at, message);
        return None;
    }
    Some(text.into())
}

fn is_object_name(text: &str) -> bool {
    let end = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    text.len() <= 253
        && text.bytes().all(inner)
        && end(text.as_bytes().first())
        && end(text.as_bytes().last())
}

/// `metadata.labels`, their source Kubernetes.
pub(crate) fn read_own_labels(reader: &mut Reader<'_>, fields: &Fields<'_>) -> Labels {
    let Some(metadata) = fields.get("metadata") else { return Labels::default() };
    let Some(node) = metadata.node.get("labels").filter(|node| !matches!(node.value, Value::Null)) else {
        return Labels::default();
    };
    let at = metadata.field("labels", node);
    let mut labels = Vec::new();
    for (key, node) in reader.entries(&at).unwrap_or_default() {
        let item = at.key(&key.text, node);
        let Some(value) = reader.text(&item) else { continue };
        match Label::new(source::K8S, &key.text, value) {
            Ok(label) => labels.push(label),
            Err(error) => reader.invalid(&item, error.to_string()),
        }
    }
    Labels::new(labels).unwrap_or_else(|error| {
        reader.invalid(&at, error.to_string());
        Labels::default()
    })
}

/// The annotation by which a policy is audited.
pub(crate) fn read_audit(reader: &mut Reader<'_>, fields: &Fields<'_>) -> Audit {
    let place = fields.get("metadata").and_then(|metadata| {
        let node = metadata.node.get("annotations")?;
        let annotation = node.get(AUDIT_ANNOTATION).filter(|node| !matches!(node.value, Value::Null))?;
        Some(metadata.field("annotations", node).key(AUDIT_ANNOTATION, annotation))
    });
    let Some(at) = place else { return Audit::NONE };
    let Some(text) = reader.text(&at) else { return Audit::NONE };
    text.parse().unwrap_or_else(|error: AuditError| {
        reader.invalid(&at, error.to_string());
        Audit::NONE
    })
}

/// The object as JSON with its namespace, without its status and what the API server adds for itself.
pub(crate) fn normalised(node: &Node, key: &ObjectKey) -> ObjectText {
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
    object.into()
}
