//! From what people and machines write to resources: YAML and JSON, each field checked.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use serde_json::{Map, Value};
use villus_config::duration;
use villus_labels::{KNOWN_SOURCES, Label, Labels, nearest, source};

use crate::{
    problem::{MAX_PROBLEMS, Problem, Problems},
    spec::{Kind, MAX_ADDRESSES, MAX_LABELS, Place, Spec, Wanted, check_address, check_name, check_ttl},
};

/// `apiVersion` of the objects.
pub const API_VERSION: &str = "villus.io/v1alpha1";
/// `kind` of the objects.
pub const KIND: &str = "ExternalResource";
/// Largest text that is read, in bytes.
pub const MAX_TEXT: usize = 64 << 20;

/// Fields of a resource's spec.
const SPEC: [&str; 6] = ["kind", "addresses", "labels", "node", "host", "ttl"];
/// What callers may believe they can choose.
const IDENTITY: [&str; 5] = ["identity", "id", "identityId", "securityIdentity", "numericIdentity"];
/// Sources of labels that are given by an agent, never by whoever has them.
const DERIVED: [&str; 4] = [source::RESERVED, source::CIDR, source::CIDR_GROUP, source::FQDN];

/// Reads a text of objects of kind `ExternalResource`: YAML of any number of documents, or JSON; lists of objects
/// included. `file` names the text in what is said about it.
///
/// # Errors
/// All that is wrong, up to 100 problems; then nothing of it is returned.
pub fn read_objects(file: &str, text: &str) -> Result<Vec<Wanted>, Problems> {
    let whole = |reason: String, fix: &str| {
        let (field, fix) = (String::new(), fix.to_owned());
        Problems(vec![Problem { place: file.to_owned(), name: None, field, reason, fix }])
    };
    if text.len() > MAX_TEXT {
        let reason = format!("has {} bytes, at most {MAX_TEXT} are read", text.len());
        return Err(whole(reason, "split it"));
    }
    let documents = documents(text).map_err(|reason| whole(reason, "mend the text"))?;
    let mut reader = Reader::default();
    let mut wanted = Vec::new();
    for (n, document) in documents.iter().enumerate() {
        reader.place = format!("{file}: document {}", n + 1);
        match document {
            Value::Array(items) => reader.all(items, &mut wanted),
            document => reader.object(document, &mut wanted),
        }
    }
    reader.doubles(&wanted);
    reader.end(wanted)
}

/// Reads the body of a request that names the resource elsewhere: its spec, or its whole object.
///
/// # Errors
/// All that is wrong.
pub fn read_spec(name: &str, body: &[u8]) -> Result<Wanted, Problems> {
    let mut reader = Reader::default();
    let value = reader.json(body)?;
    let mut wanted = Vec::new();
    match &value {
        Value::Object(fields) if fields.contains_key("apiVersion") => {
            reader.object(&value, &mut wanted);
            if let Some(other) = wanted.first().filter(|one: &&Wanted| one.name != name) {
                let reason = format!("is `{}`, but the path names `{name}`", other.name);
                reader.wrong("metadata.name", reason, "write the same name in both");
            }
        }
        _ => wanted.extend(reader.flat(&value, Some(name))),
    }
    let mut wanted = reader.end(wanted)?;
    // Nothing wrong was found, so there is one.
    wanted.pop().ok_or_else(|| Problems(Vec::new()))
}

/// Reads the body of a request with many resources: a list, or `{"items": […]}`, of specs with a `name` or of whole
/// objects.
///
/// # Errors
/// All that is wrong, up to 100 problems.
pub fn read_batch(body: &[u8]) -> Result<Vec<Wanted>, Problems> {
    let mut reader = Reader::default();
    let value = reader.json(body)?;
    let items = match &value {
        Value::Array(items) => items,
        Value::Object(fields) => match fields.get("items") {
            Some(Value::Array(items)) => items,
            _ => {
                reader.wrong(
                    "items",
                    "is missing or no list",
                    "write a list of resources, or {\"items\": […]}",
                );
                return reader.end(Vec::new());
            }
        },
        _ => {
            reader.wrong("", "the body is no list", "write a list of resources, or {\"items\": […]}");
            return reader.end(Vec::new());
        }
    };
    let mut wanted = Vec::with_capacity(items.len());
    for (n, item) in items.iter().enumerate() {
        reader.place = format!("items[{n}]");
        match item {
            Value::Object(fields) if fields.contains_key("apiVersion") => reader.object(item, &mut wanted),
            item => wanted.extend(reader.flat(item, None)),
        }
    }
    reader.doubles(&wanted);
    reader.end(wanted)
}

/// Reads the body of a request that names resources: `{"names": […]}`.
///
/// # Errors
/// All that is wrong.
pub fn read_names(body: &[u8]) -> Result<BTreeSet<String>, Problems> {
    let mut reader = Reader::default();
    let value = reader.json(body)?;
    let mut names = BTreeSet::new();
    match value.get("names") {
        Some(Value::Array(items)) if value.as_object().is_some_and(|fields| fields.len() == 1) => {
            for (n, item) in items.iter().enumerate() {
                let field = format!("names[{n}]");
                names.extend(reader.name(&field, item));
            }
        }
        _ => reader.wrong("names", "is missing, no list, or not alone", "write {\"names\": [\"NAME\", …]}"),
    }
    reader.end(names)
}

/// Names and addresses that are there twice.
pub fn doubles(wanted: &[Wanted]) -> Vec<Problem> {
    let mut reader = Reader::default();
    reader.doubles(wanted);
    reader.problems
}

/// The documents of a text: JSON where it begins so, else YAML. Empty ones are left out.
fn documents(text: &str) -> Result<Vec<Value>, String> {
    let documents: Vec<Value> = if text.trim_start().starts_with(['{', '[']) {
        let json: Result<_, _> = serde_json::Deserializer::from_str(text).into_iter::<Value>().collect();
        // YAML in flow style begins so, too.
        match json {
            Ok(documents) => documents,
            Err(error) => yaml(text).map_err(|_| format!("is neither JSON nor YAML: {error}"))?,
        }
    } else {
        yaml(text).map_err(|error| format!("is no YAML: {error}"))?
    };
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}

fn yaml(text: &str) -> Result<Vec<Value>, String> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: 12_000_000,
            max_nodes: 6_000_000,
            max_documents: 400_000,
            max_aliases: 1_000,
            max_anchors: 1_000,
            max_depth: 16,
            flow_nesting_limit: 16,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 50_000,
            max_replay_stack_depth: 8,
            max_alias_expansions_per_anchor: 1_000,
        },
        strict_booleans: true,
        with_snippet: false,
    };
    serde_saphyr::from_str_multiple_with_options::<Value, Vec<_>>(text, options)
        .map_err(|error| error.without_snippet().to_string())
}

/// Collects what is wrong.
#[derive(Default)]
struct Reader {
    place: String,
    name: Option<String>,
    /// Stands before the names of fields.
    prefix: &'static str,
    problems: Vec<Problem>,
}

// === impl Reader ===

impl Reader {
    fn end<T>(self, value: T) -> Result<T, Problems> {
        if self.problems.is_empty() { Ok(value) } else { Err(Problems(self.problems)) }
    }

    fn wrong(&mut self, field: &str, reason: impl Into<String>, fix: impl Into<String>) {
        if self.problems.len() >= MAX_PROBLEMS {
            return;
        }
        self.problems.push(Problem {
            place: self.place.clone(),
            name: self.name.clone(),
            field: format!("{}{field}", self.prefix),
            reason: reason.into(),
            fix: fix.into(),
        });
    }

    fn json(&mut self, body: &[u8]) -> Result<Value, Problems> {
        serde_json::from_slice(body).map_err(|error| {
            self.wrong("", format!("the body is no JSON: {error}"), "send one JSON value");
            Problems(std::mem::take(&mut self.problems))
        })
    }

    fn all(&mut self, items: &[Value], wanted: &mut Vec<Wanted>) {
        let place = self.place.clone();
        for (n, item) in items.iter().enumerate() {
            self.place = format!("{place}, item {}", n + 1);
            self.object(item, wanted);
        }
        self.place = place;
    }

    /// An object of our kind, or a list of them.
    fn object(&mut self, value: &Value, wanted: &mut Vec<Wanted>) {
        (self.name, self.prefix) = (None, "");
        let Value::Object(fields) = value else {
            let reason = format!("is {} instead of an object", kind_of(value));
            return self.wrong("", reason, format!("write apiVersion: {API_VERSION} and kind: {KIND}"));
        };
        let text = |name: &str| fields.get(name).and_then(Value::as_str).unwrap_or_default();
        let (version, kind) = (text("apiVersion"), text("kind"));
        if matches!((version, kind), ("v1", "List") | (API_VERSION, "ExternalResourceList")) {
            return match fields.get("items") {
                Some(Value::Array(items)) => self.all(items, wanted),
                _ => self.wrong("items", "is missing or no list", "write the objects below items"),
            };
        }
        if kind != KIND {
            let reason = if kind.is_empty() { "is missing".to_owned() } else { format!("is `{kind}`") };
            return self.wrong("kind", reason, format!("write kind: {KIND}; policies go to `villus policy`"));
        }
        let name = self.metadata(fields.get("metadata"));
        self.name.clone_from(&name);
        if version != API_VERSION {
            let reason = if version.is_empty() { "is missing".to_owned() } else { format!("is `{version}`") };
            self.wrong("apiVersion", reason, format!("write apiVersion: {API_VERSION}"));
        }
        // What lists print can be read again: the status is the cluster's.
        self.known(fields, &["apiVersion", "kind", "metadata", "spec", "status"]);
        let Some(Value::Object(spec)) = fields.get("spec") else {
            return self.wrong("spec", "is missing or no mapping", "write spec with addresses and labels");
        };
        self.prefix = "spec.";
        self.known(spec, &SPEC);
        let spec = self.spec(spec);
        self.prefix = "";
        wanted.extend(name.zip(spec).map(|(name, spec)| Wanted { name, spec }));
    }

    fn metadata(&mut self, value: Option<&Value>) -> Option<String> {
        let Some(Value::Object(fields)) = value else {
            self.wrong("metadata", "is missing or no mapping", "write metadata with a name");
            return None;
        };
        self.prefix = "metadata.";
        for name in fields.keys().filter(|name| *name != "name") {
            let fix = match name.as_str() {
                "namespace" => "write it as the label k8s:io.kubernetes.pod.namespace of the spec",
                "labels" => "write them as spec.labels, a list of SOURCE:KEY=VALUE",
                _ => "leave it out",
            };
            self.wrong(name, "is no field of an external resource's metadata", fix);
        }
        let name = fields.get("name").unwrap_or(&Value::Null);
        let name = self.name("name", name);
        self.prefix = "";
        name
    }

    /// A spec with its name among the fields, if it is not given elsewhere.
    fn flat(&mut self, value: &Value, given: Option<&str>) -> Option<Wanted> {
        self.name = given.map(str::to_owned);
        let Value::Object(fields) = value else {
            let reason = format!("is {} instead of an object", kind_of(value));
            self.wrong("", reason, "write an object with addresses and labels");
            return None;
        };
        let named = fields.get("name");
        let name = match given {
            None => self.name("name", named.unwrap_or(&Value::Null)),
            Some(given) => {
                if named.is_some_and(|name| name.as_str() != Some(given)) {
                    let reason = format!("is not `{given}`, which the path names");
                    self.wrong("name", reason, "leave it out, or write the same name in both");
                }
                self.name("name", &Value::String(given.to_owned()))
            }
        };
        self.name.clone_from(&name);
        let mut known = SPEC.to_vec();
        known.push("name");
        self.known(fields, &known);
        let spec = self.spec(fields);
        name.zip(spec).map(|(name, spec)| Wanted { name, spec })
    }

    fn known(&mut self, fields: &Map<String, Value>, known: &[&str]) {
        for name in fields.keys().filter(|name| !known.contains(&name.as_str())) {
            if IDENTITY.contains(&name.as_str()) {
                let fix = "leave it out; the number follows from the labels";
                self.wrong(name, "an identity is not chosen by who asks", fix);
                continue;
            }
            let fix = match nearest(name, known.iter().copied()) {
                Some(meant) => format!("write `{meant}`, or leave it out"),
                None => format!("leave it out; known are {}", known.join(", ")),
            };
            let shown: String = name.chars().take(64).flat_map(char::escape_debug).collect();
            self.wrong(&shown, "is no field of an external resource", fix);
        }
    }

    fn name(&mut self, field: &str, value: &Value) -> Option<String> {
        let Value::String(name) = value else {
            let reason = if value.is_null() { "is missing" } else { "is no text" };
            self.wrong(field, reason, "give the resource a name");
            return None;
        };
        match check_name(name) {
            Ok(()) => Some(name.clone()),
            Err((reason, fix)) => {
                self.wrong(field, reason, fix);
                None
            }
        }
    }

    fn spec(&mut self, fields: &Map<String, Value>) -> Option<Spec> {
        let before = self.problems.len();
        let spec = Spec {
            kind: self.kind(fields.get("kind")),
            addresses: self.addresses(fields.get("addresses")),
            labels: self.labels(fields.get("labels")),
            place: self.where_it_lives(fields),
            ttl: self.ttl(fields.get("ttl")),
        };
        (self.problems.len() == before && before < MAX_PROBLEMS).then_some(spec)
    }

    fn kind(&mut self, value: Option<&Value>) -> Kind {
        let Some(value) = value else { return Kind::default() };
        value.as_str().and_then(Kind::of).unwrap_or_else(|| {
            let names: Vec<&str> = Kind::NAMES.iter().map(|(name, _)| *name).collect();
            self.wrong("kind", format!("{} is no kind", shown(value)), format!("write {}", names.join(", ")));
            Kind::default()
        })
    }

    fn addresses(&mut self, value: Option<&Value>) -> BTreeSet<IpAddr> {
        let fix = "write a list of IPv4 and IPv6 addresses";
        let mut all = BTreeSet::new();
        match value {
            None => self.wrong("addresses", "is missing", fix),
            Some(Value::Array(items)) if items.is_empty() => self.wrong("addresses", "is empty", fix),
            Some(Value::Array(items)) if items.len() > MAX_ADDRESSES => {
                let reason = format!("has {} addresses, at most {MAX_ADDRESSES}", items.len());
                self.wrong("addresses", reason, "make several resources of it");
            }
            Some(Value::Array(items)) => {
                for (n, item) in items.iter().enumerate() {
                    let field = format!("addresses[{n}]");
                    if let Some(address) = self.address(&field, item)
                        && !all.insert(address)
                    {
                        self.wrong(&field, format!("{address} is there twice"), "keep one of them");
                    }
                }
            }
            Some(_) => self.wrong("addresses", "is no list", fix),
        }
        all
    }

    fn address(&mut self, field: &str, value: &Value) -> Option<IpAddr> {
        let fix = "write the address that the resource sends from, such as 10.9.0.5 or fd00:9::5";
        let Some(text) = value.as_str() else {
            self.wrong(field, format!("{} is no text", kind_of(value)), fix);
            return None;
        };
        let Ok(address) = text.parse::<IpAddr>() else {
            let (reason, fix) = match text.split_once('/') {
                Some(_) => ("is a range", "write each address; a range is selected by CIDR in policies"),
                None => ("is no address", fix),
            };
            self.wrong(field, format!("{} {reason}", shown(value)), fix);
            return None;
        };
        match check_address(address) {
            Ok(()) => Some(address),
            Err(reason) => {
                self.wrong(field, format!("{address} {reason}"), fix);
                None
            }
        }
    }

    fn labels(&mut self, value: Option<&Value>) -> Labels {
        let fix = "write a list of SOURCE:KEY=VALUE, such as k8s:app=db";
        let mut labels = Vec::new();
        match value {
            None => self.wrong("labels", "is missing", fix),
            Some(Value::Array(items)) if items.is_empty() => self.wrong("labels", "is empty", fix),
            Some(Value::Array(items)) if items.len() > MAX_LABELS => {
                let reason = format!("has {} labels, at most {MAX_LABELS}", items.len());
                self.wrong("labels", reason, "keep those that policies select by");
            }
            Some(Value::Array(items)) => {
                for (n, item) in items.iter().enumerate() {
                    labels.extend(self.label(&format!("labels[{n}]"), item));
                }
            }
            Some(_) => self.wrong("labels", "is no list", fix),
        }
        Labels::new(labels).unwrap_or_else(|error| {
            self.wrong("labels", error.to_string(), "keep one label of each key");
            Labels::default()
        })
    }

    fn label(&mut self, field: &str, value: &Value) -> Option<Label> {
        let Some(text) = value.as_str() else {
            self.wrong(field, format!("{} is no text", kind_of(value)), "write SOURCE:KEY=VALUE");
            return None;
        };
        let read = Label::parse_with_source(text, source::K8S)
            .and_then(|label| label.check_kubernetes_lengths().map(|()| label));
        let label = match read {
            Ok(label) => label,
            Err(error) => {
                self.wrong(field, error.to_string(), "write SOURCE:KEY=VALUE, such as k8s:app=db");
                return None;
            }
        };
        if DERIVED.contains(&label.source()) {
            let reason = format!("`{label}`: labels of the source `{}` are given by agents", label.source());
            self.wrong(field, reason, "use another source, such as k8s");
            return None;
        }
        if label.source() == source::ANY || !KNOWN_SOURCES.contains(&label.source()) {
            let reason = format!("`{label}`: `{}` is no source that a label can have", label.source());
            self.wrong(field, reason, "use another source, such as k8s");
            return None;
        }
        Some(label)
    }

    fn where_it_lives(&mut self, fields: &Map<String, Value>) -> Option<Place> {
        let (host, node) = (fields.get("host"), fields.get("node"));
        match (host, node) {
            (Some(_), Some(_)) => {
                let reason = "stands beside `node`";
                self.wrong("host", reason, "write the node's address, or its name, or neither");
                None
            }
            (Some(host), None) => self.address("host", host).map(Place::Host),
            (None, Some(Value::String(name)))
                if !name.is_empty() && name.len() <= 253 && !name.contains('/') =>
            {
                Some(Place::Node(name.clone()))
            }
            (None, Some(_)) => {
                self.wrong("node", "is no name of a node", "write one of `villus node list`");
                None
            }
            (None, None) => None,
        }
    }

    fn ttl(&mut self, value: Option<&Value>) -> Option<std::time::Duration> {
        let fix = "write for example 1h or 30m, at least 10s; leave it out for ever";
        let text = match value? {
            Value::String(text) => text,
            other => {
                self.wrong("ttl", format!("{} is no text", kind_of(other)), fix);
                return None;
            }
        };
        match duration::parse(text).and_then(|ttl| check_ttl(ttl).map(|()| ttl)) {
            Ok(ttl) => Some(ttl),
            Err(reason) => {
                self.wrong("ttl", format!("`{}`: {reason}", text.escape_debug()), fix);
                None
            }
        }
    }

    /// Names and addresses that are there twice.
    fn doubles(&mut self, wanted: &[Wanted]) {
        (self.place, self.name, self.prefix) = (String::new(), None, "");
        let mut names: HashMap<&str, usize> = HashMap::new();
        let mut addresses: BTreeMap<IpAddr, &str> = BTreeMap::new();
        for one in wanted {
            let times = names.entry(&one.name).or_default();
            *times += 1;
            if *times == 2 {
                self.name = Some(one.name.clone());
                self.wrong("name", "is there twice", "keep one of them");
            }
            for address in &one.spec.addresses {
                if let Some(other) = addresses.insert(*address, &one.name).filter(|other| *other != one.name)
                {
                    self.name = Some(one.name.clone());
                    let reason = format!("{address} is also one of resource {other}");
                    self.wrong("addresses", reason, "give it to one of them");
                }
            }
        }
        self.name = None;
    }
}

/// A value of the wrong kind, for an error.
fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    }
}

/// The beginning of a text, for an error.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => {
            let start: String = text.chars().take(64).flat_map(char::escape_debug).collect();
            format!("`{start}`")
        }
        other => kind_of(other).to_owned(),
    }
}
