//! Workloads and their labels, out of what `kubectl` or `villus endpoint list` printed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;
use villus_labels::{
    KEY_CLUSTER, KEY_NAMESPACE, KEY_NAMESPACE_LABELS, KEY_SERVICE_ACCOUNT, Label, Labels, source,
};

/// A text that is no dump.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DumpError {
    /// Not JSON.
    #[error("{file}: it is no JSON: {reason}; write it with `-o json`")]
    Json {
        /// The file.
        file: String,
        /// What the parser said.
        reason: String,
    },
    /// JSON of something else.
    #[error(
        "{file}: {what}; it must hold what `kubectl get pods -A -o json` or `villus endpoint list -o json` prints"
    )]
    Shape {
        /// The file.
        file: String,
        /// What it holds instead.
        what: String,
    },
}

/// A workload and all its labels, before any filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// How people call it.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
}

/// Something in the dump that needs no identity, or whose labels cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// How people call it.
    pub name: String,
    /// Why it does not count.
    pub reason: String,
}

/// What a dump holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dump {
    /// Workloads with an identity.
    pub workloads: Vec<Workload>,
    /// What does not count.
    pub skipped: Vec<Skipped>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Object {
    kind: String,
    metadata: Metadata,
    spec: PodSpec,
    status: PodStatus,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Metadata {
    name: String,
    namespace: String,
    labels: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct PodSpec {
    service_account_name: String,
    host_network: bool,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct PodStatus {
    phase: String,
}

#[derive(Deserialize)]
struct Endpoint {
    id: u16,
    status: EndpointStatus,
}

#[derive(Deserialize)]
struct EndpointStatus {
    #[serde(default)]
    labels: EndpointLabels,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "kebab-case")]
struct EndpointLabels {
    derived: Vec<String>,
    security_relevant: Vec<String>,
}

// === impl Dump ===

impl Dump {
    /// Adds what a file holds. Pods get the labels that the agent gives them: namespace, service account, cluster, and
    /// those of their namespace where the dump holds namespaces too.
    ///
    /// # Errors
    /// It holds something else.
    pub fn read(&mut self, file: &str, text: &str, cluster: &str) -> Result<(), DumpError> {
        let value: Value = serde_json::from_str(text)
            .map_err(|error| DumpError::Json { file: file.to_owned(), reason: error.to_string() })?;
        let shape = |what: String| DumpError::Shape { file: file.to_owned(), what };
        match value {
            Value::Array(list) => self.endpoints(list).map_err(shape),
            Value::Object(mut object) => match object.remove("items") {
                Some(Value::Array(list)) => self.objects(list, cluster).map_err(shape),
                _ if object.contains_key("metadata") => {
                    self.objects(vec![Value::Object(object)], cluster).map_err(shape)
                }
                _ if object.contains_key("id") => self.endpoints(vec![Value::Object(object)]).map_err(shape),
                _ => Err(shape("it holds no list of items".to_owned())),
            },
            _ => Err(shape("it holds no list".to_owned())),
        }
    }

    fn endpoints(&mut self, list: Vec<Value>) -> Result<(), String> {
        for (number, value) in list.into_iter().enumerate() {
            let endpoint: Endpoint = serde_json::from_value(value)
                .map_err(|error| format!("element {number} is no endpoint: {error}"))?;
            let labels = endpoint.status.labels;
            let texts = labels.security_relevant.iter().chain(&labels.derived);
            let labels = texts.map(|text| Label::parse_with_source(text, source::UNSPEC));
            self.add(format!("endpoint {}", endpoint.id), labels.collect());
        }
        Ok(())
    }

    fn objects(&mut self, list: Vec<Value>, cluster: &str) -> Result<(), String> {
        let mut pods = Vec::new();
        let mut namespaces = BTreeMap::new();
        for (number, value) in list.into_iter().enumerate() {
            let object: Object =
                serde_json::from_value(value).map_err(|error| format!("items[{number}]: {error}"))?;
            match object.kind.as_str() {
                "Pod" | "Namespace" if object.metadata.name.is_empty() => {
                    return Err(format!("items[{number}] has no metadata.name"));
                }
                "Pod" => pods.push(object),
                "Namespace" => drop(namespaces.insert(object.metadata.name, object.metadata.labels)),
                other => {
                    return Err(format!("items[{number}] is of kind {other:?}, not a Pod or a Namespace"));
                }
            }
        }
        let none = BTreeMap::new();
        for pod in pods {
            let name = format!("{}/{}", pod.metadata.namespace, pod.metadata.name);
            let reason = match pod.status.phase.as_str() {
                _ if pod.spec.host_network => "it is in the network of its node",
                "Succeeded" | "Failed" => "it has ended",
                _ => "",
            };
            if !reason.is_empty() {
                self.skipped.push(Skipped { name, reason: reason.to_owned() });
                continue;
            }
            let of_namespace = namespaces.get(&pod.metadata.namespace).unwrap_or(&none);
            self.add(name, pod_labels(&pod, of_namespace, cluster));
        }
        Ok(())
    }

    fn add(&mut self, name: String, labels: Result<Vec<Label>, villus_labels::LabelError>) {
        match labels.and_then(Labels::new) {
            Ok(labels) => self.workloads.push(Workload { name, labels }),
            Err(error) => self.skipped.push(Skipped { name, reason: error.to_string() }),
        }
    }
}

fn pod_labels(
    pod: &Object,
    of_namespace: &BTreeMap<String, String>,
    cluster: &str,
) -> Result<Vec<Label>, villus_labels::LabelError> {
    let account = match pod.spec.service_account_name.as_str() {
        "" => "default",
        name => name,
    };
    let own = pod.metadata.labels.iter().map(|(key, value)| (key.clone(), value.as_str()));
    let copied =
        of_namespace.iter().map(|(key, value)| (format!("{KEY_NAMESPACE_LABELS}{key}"), value.as_str()));
    let given = [
        (KEY_NAMESPACE.to_owned(), pod.metadata.namespace.as_str()),
        (KEY_CLUSTER.to_owned(), cluster),
        (KEY_SERVICE_ACCOUNT.to_owned(), account),
    ];
    own.chain(copied).chain(given).map(|(key, value)| Label::new(source::K8S, &key, value)).collect()
}
