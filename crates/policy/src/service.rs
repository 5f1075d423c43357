//! Reading services of Kubernetes and their backends. Only what policies need is read; the rest is nobody's business
//! here and may be anything.

use std::{net::IpAddr, sync::Arc};

use villus_labels::{Requirement, Selector};

use crate::{
    Kind, ObjectKey, ProblemKind, Referent,
    metadata::{check_version, normalised, read_key, read_own_labels},
    node::Value,
    read::{At, Fields, Reader},
    referent::Content,
};

/// The label by which a slice names its service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// A Service, Endpoints or EndpointSlice.
pub(crate) fn read_service_object(reader: &mut Reader<'_>, at: &At<'_>, kind: Kind) -> Option<Referent> {
    let before = reader.problems.len();
    reader.entries(at)?;
    let fields = Fields::unchecked(at)?;
    let version = if kind == Kind::EndpointSlice { "discovery.k8s.io/v1" } else { "v1" };
    check_version(reader, at, fields.get("apiVersion"), &[version]);
    let key = read_key(reader, at, fields.get("metadata"), kind);
    let content = match kind {
        Kind::Service => read_service(reader, &fields),
        Kind::Endpoints => read_endpoints(reader, &fields, key.as_ref()),
        _ => read_slice(reader, at, &fields),
    };
    let key = key.filter(|_| reader.problems.len() == before)?;
    let object = normalised(at.node, &key);
    Some(Referent { key, content: content?, object })
}

fn read_service(reader: &mut Reader<'_>, fields: &Fields<'_>) -> Option<Content> {
    let labels = read_own_labels(reader, fields);
    let selector = fields.get("spec").and_then(|spec| Fields::unchecked(&spec)?.get("selector"));
    let Some(selector) = selector else { return Some(Content::Service { labels, pods: None }) };
    let mut requirements = Vec::new();
    for (key, node) in reader.entries(&selector)? {
        let item = selector.key(&key.text, node);
        match Requirement::equals(&format!("k8s:{}", key.text), reader.text(&item)?) {
            Ok(requirement) => requirements.push(requirement),
            Err(error) => reader.invalid(&item, error.to_string()),
        }
    }
    let pods =
        Selector::new(requirements).map_err(|error| reader.invalid(&selector, error.to_string())).ok()?;
    Some(Content::Service { labels, pods: (!pods.is_everything()).then_some(pods) })
}

fn read_endpoints(reader: &mut Reader<'_>, fields: &Fields<'_>, key: Option<&ObjectKey>) -> Option<Content> {
    let mut addresses = Vec::new();
    for subset in fields.get("subsets").and_then(|at| reader.items(&at)).unwrap_or_default() {
        let Some(fields) = Fields::unchecked(&subset) else { continue };
        for item in fields.get("addresses").and_then(|at| reader.items(&at)).unwrap_or_default() {
            let ip = Fields::unchecked(&item).and_then(|fields| fields.get("ip"));
            addresses.extend(ip.and_then(|at| read_address(reader, &at)));
        }
    }
    backends(key?.name.clone(), addresses)
}

fn read_slice(reader: &mut Reader<'_>, at: &At<'_>, fields: &Fields<'_>) -> Option<Content> {
    let labels = read_own_labels(reader, fields);
    let Some(service) = labels.get(SERVICE_NAME) else {
        let message =
            format!("the slice names no service; it is the label `{SERVICE_NAME}` under `metadata.labels`");
        reader.problem(at, ProblemKind::Missing, message);
        return None;
    };
    let by_name = fields.get("addressType").is_some_and(|at| at.node.as_str() == Some("FQDN"));
    let mut addresses = Vec::new();
    for endpoint in fields.get("endpoints").and_then(|at| reader.items(&at)).unwrap_or_default() {
        let Some(fields) = Fields::unchecked(&endpoint) else { continue };
        let ready = fields.get("conditions").and_then(|at| Fields::unchecked(&at)?.get("ready"));
        if by_name || ready.is_some_and(|at| matches!(at.node.value, Value::Bool(false))) {
            continue;
        }
        for item in fields.get("addresses").and_then(|at| reader.items(&at)).unwrap_or_default() {
            addresses.extend(read_address(reader, &item));
        }
    }
    backends(service.value().into(), addresses)
}

fn backends(service: Arc<str>, mut addresses: Vec<IpAddr>) -> Option<Content> {
    addresses.sort_unstable();
    addresses.dedup();
    Some(Content::Backends { service, addresses })
}

fn read_address(reader: &mut Reader<'_>, at: &At<'_>) -> Option<IpAddr> {
    let text = reader.text(at)?;
    text.parse().map_err(|_| reader.invalid(at, "must be an IP address")).ok()
}
