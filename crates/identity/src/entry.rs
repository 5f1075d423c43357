//! Entries of the shared store, checked before somebody writes them by hand.
//!
//! Agents leave out what they cannot read, so a mistake is silent in the store. Here each has a name: the key, the
//! part of it or field of the value, what is wrong, and what to write instead.

use std::net::IpAddr;

use serde_json::Value as Json;
use thiserror::Error;
use villus_kvstore::{Entry, IpIdentityPair, NodeEntry, NodeError, PairError, Store, StoreError, keys};
use villus_labels::{Labels, MaxConnectedClusters, NumericIdentity, Scope};

use crate::allocator::slave_prefix;

/// The most bytes a value may have. etcd takes half as much again, for the key and all else of a request.
pub const MAX_VALUE: usize = 1 << 20;

/// Why an entry should not be written.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("`{key}`: {field}: {reason}; {fix}")]
pub struct EntryError {
    /// The key.
    pub key: String,
    /// The part of the key or the field of the value.
    pub field: String,
    /// What is wrong with it.
    pub reason: String,
    /// What to do.
    pub fix: String,
}

/// What an entry says, and whom it concerns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// Master key of an identity.
    Identity(NumericIdentity, Labels),
    /// A node uses an identity.
    Use(NumericIdentity, Labels),
    /// The identity of an address or a prefix.
    Address(Box<IpIdentityPair>),
    /// A node.
    Node,
    /// A shared service.
    Service,
    /// The configuration of a cluster.
    ClusterConfig,
    /// Something that has no rules here.
    Free,
}

/// Says what an entry means, or why no agent could use it.
///
/// # Errors
/// The first thing that is wrong.
pub fn check_entry(key: &str, value: &[u8], clusters: MaxConnectedClusters) -> Result<Meaning, EntryError> {
    let check = Check { key, value, clusters };
    if key.is_empty() || key.ends_with('/') || key.starts_with('/') || key.chars().any(char::is_control) {
        return check.wrong("the key", "no agent looks for such a key", "write it as `cilium/state/…/name`");
    }
    if value.len() > MAX_VALUE {
        let reason = format!("{} bytes are more than {MAX_VALUE}", value.len());
        return check.wrong("the value", reason, "no entry needs that many; see what is in it");
    }
    let below = |prefix: &str| key.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('/'));
    if let Some(number) = below(keys::IDENTITY_IDS) {
        return check.identity(number);
    }
    if let Some(rest) = below(keys::IDENTITY_VALUES) {
        return check.usage(rest);
    }
    if below(keys::IDENTITY_LOCKS).is_some() {
        return check.wrong("the key", "locks are taken by agents", "leave it to them");
    }
    if below(keys::IPS).is_some() {
        return check.address();
    }
    if let Some(rest) = below(keys::NODES) {
        return check.node(rest);
    }
    if let Some(rest) = below(keys::SERVICES) {
        let parts = [("cluster", "cluster"), ("namespace", "namespace"), ("name", "name")];
        return check.object(rest, &parts, Meaning::Service);
    }
    if let Some(cluster) = below(keys::CLUSTER_CONFIG) {
        return check.cluster_config(cluster);
    }
    if below(keys::STATE).is_some() {
        return check.wrong(
            "the key",
            "agents do not read anything there",
            format!(
                "write below {}/id, {}/value, {}, {} or {}",
                keys::IDENTITIES,
                keys::IDENTITIES,
                keys::IPS,
                keys::NODES,
                keys::SERVICES
            ),
        );
    }
    Ok(Meaning::Free)
}

struct Check<'a> {
    key: &'a str,
    value: &'a [u8],
    clusters: MaxConnectedClusters,
}

// === impl Check ===

impl Check<'_> {
    fn wrong<T>(
        &self,
        field: impl Into<String>,
        reason: impl Into<String>,
        fix: impl Into<String>,
    ) -> Result<T, EntryError> {
        let (field, reason, fix) = (field.into(), reason.into(), fix.into());
        Err(EntryError { key: self.key.to_owned(), field, reason, fix })
    }

    fn text(&self) -> Result<&str, EntryError> {
        match std::str::from_utf8(self.value) {
            Ok(text) => Ok(text),
            Err(_) => self.wrong("the value", "it is not UTF-8 text", "write it as text"),
        }
    }

    fn identity(&self, number: &str) -> Result<Meaning, EntryError> {
        let number = self.number("the number in the key", number)?;
        let labels = self.labels("the value", self.text()?)?;
        Ok(Meaning::Identity(number, labels))
    }

    fn usage(&self, rest: &str) -> Result<Meaning, EntryError> {
        let Some((labels, node)) = rest.rsplit_once('/') else {
            let fix = format!("write {}/LABELS/ADDRESS OF THE NODE", keys::IDENTITY_VALUES);
            return self.wrong("the key", "it names no node", fix);
        };
        let labels = self.labels("the labels in the key", labels)?;
        if node.parse::<IpAddr>().is_err() {
            let reason = format!("`{node}` is no address");
            return self.wrong("the node in the key", reason, "end the key with the address of the node");
        }
        Ok(Meaning::Use(self.number("the value", self.text()?)?, labels))
    }

    fn labels(&self, field: &str, text: &str) -> Result<Labels, EntryError> {
        let example = "write `source:key=value;` for each, sorted by key, the last `;` too";
        let labels = match Labels::parse_kvstore(text) {
            Ok(labels) => labels,
            Err(error) => return self.wrong(field, error.to_string(), example),
        };
        if labels.is_empty() {
            return self.wrong(field, "there are no labels", example);
        }
        let sorted = labels.to_kvstore();
        if sorted != text {
            return self.wrong(field, "the labels are not sorted by key", format!("write `{sorted}`"));
        }
        Ok(labels)
    }

    /// The number of an identity that clusters allocate.
    fn number(&self, field: &str, text: &str) -> Result<NumericIdentity, EntryError> {
        let range = "write a number from 256 to 16777215, of the range of your cluster";
        let number = text.parse().ok().map(NumericIdentity).filter(|number| number.to_string() == text);
        let Some(number) = number else {
            return self.wrong(field, format!("`{text}` is no identity"), range);
        };
        if number.is_reserved() {
            return self.wrong(field, format!("{number} is reserved for everybody"), range);
        }
        self.of_a_cluster(field, number)
    }

    fn of_a_cluster(&self, field: &str, number: NumericIdentity) -> Result<NumericIdentity, EntryError> {
        if number.scope() == Scope::Global {
            return Ok(number);
        }
        let reason = format!("{number} is known to one node only");
        self.wrong(field, reason, "write a number that is at most 16777215")
    }

    fn address(&self) -> Result<Meaning, EntryError> {
        let pair = match IpIdentityPair::read(self.key, self.value) {
            Ok((_, pair)) => pair,
            Err(error) => return self.not_a_pair(&error),
        };
        let number = NumericIdentity(pair.id);
        if number == NumericIdentity::UNKNOWN {
            return self.wrong("ID", "0 is nobody's identity", "write the number of an identity");
        }
        self.of_a_cluster("ID", number)?;
        for port in &pair.named_ports {
            if !["TCP", "UDP", "SCTP"].contains(&port.protocol.as_str()) {
                let reason = format!("`{}` is no protocol with ports", port.protocol);
                return self.wrong("NamedPorts", reason, "write TCP, UDP or SCTP");
            }
            if port.port == 0 || port.name.is_empty() {
                let reason = format!("`{}` is port {}", port.name, port.port);
                return self.wrong("NamedPorts", reason, "write a name and a number from 1 to 65535");
            }
        }
        Ok(Meaning::Address(Box::new(pair)))
    }

    fn not_a_pair<T>(&self, error: &PairError) -> Result<T, EntryError> {
        match error {
            PairError::Json { reason, .. } => self.wrong(
                "the value",
                reason,
                r#"write {"IP":"10.0.0.1","Mask":null,"HostIP":"…","ID":…,"Key":0,"Metadata":""}"#,
            ),
            PairError::Mask { ip, .. } => {
                let reason = format!("it is not one of an address like {ip}");
                self.wrong("Mask", reason, "write null, or the mask's 4 or 16 bytes as base64")
            }
            PairError::KeyDiffers { value, .. } => {
                let reason = format!("the value is for {value}");
                self.wrong("IP", reason, "name the same address in key and value")
            }
            PairError::BadKey { .. } => {
                let fix = format!(
                    "write {}/ADDRESS SPACE/ADDRESS, for example {}/default/10.0.0.1",
                    keys::IPS,
                    keys::IPS
                );
                self.wrong("the key", "it is not one of an address", fix)
            }
        }
    }

    /// JSON that says again what its key says.
    fn object(&self, rest: &str, parts: &[(&str, &str)], meaning: Meaning) -> Result<Meaning, EntryError> {
        let shape: Vec<&str> = parts.iter().map(|(_, part)| *part).collect();
        let in_key: Vec<&str> = rest.split('/').collect();
        if in_key.len() != parts.len() || in_key.iter().any(|part| part.is_empty()) {
            let prefix = self.key.strip_suffix(rest).unwrap_or_default();
            let fix = format!("write {prefix}{}", shape.join("/").to_uppercase());
            return self.wrong("the key", "it has too few or too many parts", fix);
        }
        let json = self.json()?;
        for ((field, _), wanted) in parts.iter().zip(in_key) {
            let said = json.get(*field).and_then(Json::as_str).unwrap_or_default();
            if said != wanted {
                let reason =
                    if said.is_empty() { "it is missing".to_owned() } else { format!("it is `{said}`") };
                return self.wrong(*field, reason, format!("write `{wanted}`, as the key says"));
            }
        }
        Ok(meaning)
    }

    fn node(&self, rest: &str) -> Result<Meaning, EntryError> {
        let meaning = self.object(rest, &[("Cluster", "cluster"), ("Name", "node")], Meaning::Node)?;
        match NodeEntry::read(self.key, self.value) {
            Ok(_) => Ok(meaning),
            Err(NodeError::Json { reason, .. }) => self.wrong(
                "the value",
                reason,
                r#"write addresses as [{"Type":"InternalIP","IP":"10.0.0.1"}]"#,
            ),
            Err(error) => self.wrong("the value", error.to_string(), "write what an agent writes of itself"),
        }
    }

    fn json(&self) -> Result<serde_json::Map<String, Json>, EntryError> {
        match serde_json::from_slice(self.value) {
            Ok(object) => Ok(object),
            Err(error) => self.wrong("the value", error.to_string(), "write a JSON object"),
        }
    }

    fn cluster_config(&self, cluster: &str) -> Result<Meaning, EntryError> {
        if cluster.contains('/') {
            return self.wrong("the key", "it has too many parts", "end it with the name of a cluster");
        }
        let json = self.json()?;
        let max = self.clusters.max_cluster_id();
        let id = json.get("id").map_or(Some(0), Json::as_u64);
        if id.is_none_or(|id| id > u64::from(max)) {
            return self.wrong("id", "it is no id of a cluster", format!("write a number from 1 to {max}"));
        }
        Ok(Meaning::ClusterConfig)
    }
}

/// What the rest of the store says about an entry that is right by itself: sentences for who writes it.
///
/// # Errors
/// When the store is not there.
pub async fn beside(store: &dyn Store, meaning: &Meaning) -> Result<Vec<String>, StoreError> {
    let mut notes = Vec::new();
    match meaning {
        Meaning::Identity(number, labels) => {
            let old = master(store, *number).await?;
            if let Some(old) = old.as_ref().and_then(Entry::text).filter(|old| *old != labels.to_kvstore()) {
                notes.push(format!("identity {number} is `{old}` now; all its workloads get other labels"));
            }
        }
        Meaning::Use(number, labels) => match master(store, *number).await? {
            None => notes.push(format!("no master key says what identity {number} is; write it first")),
            Some(old) if old.text() != Some(&labels.to_kvstore()) => {
                let old = old.text().unwrap_or("not text");
                notes.push(format!("identity {number} is `{old}`, not these labels: no agent takes it"));
            }
            Some(_) => {}
        },
        Meaning::Address(pair) => {
            let number = NumericIdentity(pair.id);
            if !number.is_reserved() && master(store, number).await?.is_none() {
                notes.push(format!(
                    "nobody has defined identity {number}: {} is pending until somebody does",
                    pair.suffix()
                ));
            }
        }
        Meaning::Node | Meaning::Service | Meaning::ClusterConfig | Meaning::Free => {}
    }
    Ok(notes)
}

/// How many nodes say that they use an identity.
///
/// # Errors
/// When the store is not there.
pub async fn users(store: &dyn Store, number: NumericIdentity, labels: &str) -> Result<usize, StoreError> {
    let prefix = slave_prefix(labels);
    let listing = store.list_prefix(&prefix).await?;
    let uses = |entry: &&Entry| {
        entry.key.get(prefix.len()..).is_some_and(|node| !node.contains('/'))
            && entry.text() == Some(&number.to_string())
    };
    Ok(listing.entries.iter().filter(uses).count())
}

async fn master(store: &dyn Store, number: NumericIdentity) -> Result<Option<Entry>, StoreError> {
    store.get(&format!("{}/{number}", keys::IDENTITY_IDS)).await
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use villus_kvstore::Memory;

    use super::*;

    const PAIR: &str = r#"{"IP":"10.3.192.65","Mask":null,"HostIP":"10.3.9.10","ID":15614229,"Key":0,"Metadata":"cilium-global:cluster1:node1:2404","K8sNamespace":"ns1","K8sPodName":"pod1"}"#;
    const LABELS: &str = "k8s:app=app1;k8s:io.cilium.k8s.policy.cluster=cluster1;";

    fn check(key: &str, value: &str) -> Result<Meaning, EntryError> {
        check_entry(key, value.as_bytes(), MaxConnectedClusters::C255)
    }

    #[test]
    fn what_agents_understand_is_let_through() {
        let labels = Labels::parse_kvstore(LABELS).unwrap();
        let number = NumericIdentity(15_614_229);
        let id = format!("{}/{number}", keys::IDENTITY_IDS);
        assert_eq!(check(&id, LABELS), Ok(Meaning::Identity(number, labels.clone())));
        let slave = format!("{}/{LABELS}/10.3.9.10", keys::IDENTITY_VALUES);
        assert_eq!(check(&slave, "15614229"), Ok(Meaning::Use(number, labels)));
        let slashes = format!("{}/k8s:path=/a/b=c;/fd00::1", keys::IDENTITY_VALUES);
        assert!(matches!(check(&slashes, "300"), Ok(Meaning::Use(_, _))));
        for space in ["cluster1", "default"] {
            let meaning = check(&format!("{}/{space}/10.3.192.65", keys::IPS), PAIR);
            assert!(matches!(meaning, Ok(Meaning::Address(pair)) if pair.id == 15_614_229));
        }
        let host = PAIR.replace("15614229", "1");
        assert!(
            check(&format!("{}/default/10.3.192.65", keys::IPS), &host).is_ok(),
            "reserved ones have addresses"
        );
        for (key, value, meaning) in [
            ("cilium/state/nodes/v1/c1/n1", r#"{"Name":"n1","Cluster":"c1","Later":1}"#, Meaning::Node),
            (
                "cilium/state/services/v1/c1/ns/web",
                r#"{"cluster":"c1","namespace":"ns","name":"web"}"#,
                Meaning::Service,
            ),
            ("cilium/cluster-config/c1", r#"{"id":255,"capabilities":{}}"#, Meaning::ClusterConfig),
            ("cilium/.heartbeat", "2026-01-01T00:00:00Z", Meaning::Free),
            ("mine/x", "", Meaning::Free),
        ] {
            assert_eq!(check(key, value), Ok(meaning), "{key}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_key_field_and_fix() {
        let ip = "cilium/state/ip/v1/cluster1/10.3.192.65";
        let pair = |old: &str, new: &str| PAIR.replace(old, new);
        for (key, value, field, says) in [
            ("cilium/state/identities/v1/id/300", "k8s:a=b".to_owned(), "the value", "`;`"),
            ("cilium/state/identities/v1/id/300", String::new(), "the value", "no labels"),
            (
                "cilium/state/identities/v1/id/300",
                "k8s:b=1;k8s:a=1;".to_owned(),
                "the value",
                "k8s:a=1;k8s:b=1;",
            ),
            ("cilium/state/identities/v1/id/2", LABELS.to_owned(), "the number in the key", "reserved"),
            ("cilium/state/identities/v1/id/0300", LABELS.to_owned(), "the number in the key", "no identity"),
            (
                "cilium/state/identities/v1/id/16777300",
                LABELS.to_owned(),
                "the number in the key",
                "16777215",
            ),
            ("cilium/state/identities/v1/id/300/x", LABELS.to_owned(), "the number in the key", "300/x"),
            (
                "cilium/state/identities/v1/value/k8s:a=b/10.0.0.1",
                "300".to_owned(),
                "the labels in the key",
                "`;`",
            ),
            ("cilium/state/identities/v1/value/k8s:a=b;", "300".to_owned(), "the key", "ADDRESS"),
            (
                "cilium/state/identities/v1/value/k8s:a=b;/node1",
                "300".to_owned(),
                "the node in the key",
                "node1",
            ),
            (
                "cilium/state/identities/v1/value/k8s:a=b;/10.0.0.1",
                "k8s".to_owned(),
                "the value",
                "no identity",
            ),
            ("cilium/state/identities/v1/locks/x", String::new(), "the key", "agents"),
            ("cilium/state/ip/v1/10.0.0.1", PAIR.to_owned(), "the key", "ADDRESS SPACE"),
            (ip, "{".to_owned(), "the value", "HostIP"),
            (ip, pair("192.65", "192.66"), "IP", "10.3.192.66"),
            (ip, pair("null", "\"//8=\""), "Mask", "base64"),
            (ip, pair("15614229", "16777217"), "ID", "16777215"),
            (ip, pair("15614229", "0"), "ID", "nobody"),
            (
                ip,
                pair("}", r#","NamedPorts":[{"Name":"web","Port":80,"Protocol":"HTTP"}]}"#),
                "NamedPorts",
                "TCP",
            ),
            (
                ip,
                pair("}", r#","NamedPorts":[{"Name":"web","Port":0,"Protocol":"TCP"}]}"#),
                "NamedPorts",
                "65535",
            ),
            ("cilium/state/nodes/v1/c1/n1", r#"{"Name":"n2","Cluster":"c1"}"#.to_owned(), "Name", "n1"),
            ("cilium/state/nodes/v1/c1/n1", r#"{"Name":"n1"}"#.to_owned(), "Cluster", "missing"),
            (
                "cilium/state/nodes/v1/c1/n1",
                r#"{"Name":"n1","Cluster":"c1","IPAddresses":[{"Type":"InternalIP","IP":"x"}]}"#.to_owned(),
                "the value",
                "IP address",
            ),
            ("cilium/state/nodes/v1/c1", "{}".to_owned(), "the key", "CLUSTER/NODE"),
            ("cilium/state/nodes/v1/c1/n1", "[]".to_owned(), "the value", "JSON object"),
            ("cilium/cluster-config/c1", r#"{"id":256}"#.to_owned(), "id", "255"),
            ("cilium/state/other/v1/x", "x".to_owned(), "the key", keys::NODES),
            ("cilium/state/ip/v1/", "x".to_owned(), "the key", "no agent"),
            ("mine/large", "x".repeat(MAX_VALUE + 1), "the value", "bytes"),
        ] {
            let error = check(key, &value).unwrap_err();
            let text = error.to_string();
            assert_eq!((error.field.as_str(), error.key.as_str()), (field, key), "{text}");
            assert!(text.contains(says) && !error.fix.is_empty(), "{text}");
        }
    }

    #[tokio::test]
    async fn what_the_rest_of_the_store_says_is_noted() {
        let store = Memory::new().unwrap();
        let of = async |key: &str, value: &str| {
            let meaning = check(key, value).unwrap();
            beside(&store, &meaning).await.unwrap().join("\n")
        };
        let ip = "cilium/state/ip/v1/cluster1/10.3.192.65";
        let slave = format!("{}/{LABELS}/10.3.9.10", keys::IDENTITY_VALUES);
        let id = "cilium/state/identities/v1/id/15614229";
        assert!(of(ip, PAIR).await.contains("pending"));
        assert!(of(&slave, "15614229").await.contains("write it first"));
        assert_eq!(of(id, LABELS).await, "");
        store.update(id, LABELS.into(), None).await.unwrap();
        assert_eq!(of(ip, PAIR).await + &of(&slave, "15614229").await + &of(id, LABELS).await, "");
        assert!(of(id, "k8s:a=b;").await.contains(LABELS));
        assert!(of(&slave.replace(LABELS, "k8s:a=b;"), "15614229").await.contains("no agent takes it"));
        store.update(&slave, "15614229".into(), None).await.unwrap();
        assert_eq!(users(&store, NumericIdentity(15_614_229), LABELS).await.unwrap(), 1);
        assert_eq!(users(&store, NumericIdentity(300), LABELS).await.unwrap(), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(ProptestConfig::default().cases * 300 / 256) })]

        #[test]
        fn nothing_panics(
            kind in prop::sample::select(vec!["", "identities/v1/id/", "identities/v1/value/", "ip/v1/", "nodes/v1/", "services/v1/"]),
            rest in "[a-z0-9:=;/.é]{0,30}", value in prop::collection::vec(any::<u8>(), 0..60), text in "[\\[\\]{}\":,a-zA-Z0-9;=/]{0,40}",
        ) {
            let key = format!("cilium/state/{kind}{rest}");
            for value in [value.as_slice(), text.as_bytes()] {
                if let Ok(Meaning::Identity(number, labels)) = check_entry(&key, value, MaxConnectedClusters::C511) {
                    prop_assert_eq!(labels.to_kvstore().into_bytes(), value);
                    prop_assert!(key.ends_with(&number.to_string()));
                }
            }
        }
    }
}
