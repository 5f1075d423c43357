//! What nodes say about the cluster's policies, and what that comes to.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use villus_kvstore::{Entry, Store, StoreError, keys};

use crate::{Mirror, ObjectName, REALISED, policies::Standing};

/// So many lost objects a node names: after the loss of a store all nodes of a cluster say all that they have at once.
const NAMED: usize = 32;

/// Value of a node's key below [`REALISED`], under the node's lease.
///
/// It says up to which revision of the store everything is realised, so its size does not depend on how many policies
/// there are. Fields that a reader does not know are left out by it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeReport {
    /// Every policy that was in force at this revision is realised on the node, but those in `refused`.
    pub revision: u64,
    /// When, RFC 3339, UTC.
    pub time: String,
    /// Why the node is not further.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub problem: String,
    /// The node stands still at its operator's word, for the reason given; empty if none was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frozen: Option<String>,
    /// Objects that the node cannot use, as their keys end, with the reason.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub refused: BTreeMap<String, String>,
    /// Objects that are in force on the node though the store has lost them, as their keys end, with the version; not all if
    /// they are many.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub stale: BTreeMap<String, u64>,
    /// The highest version of those that are not named; 0 if all are.
    #[serde(skip_serializing_if = "is_zero")]
    pub more_stale: u64,
}

/// Which nodes have realised a version.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Realised {
    /// Nodes that have.
    pub nodes: Vec<String>,
    /// Nodes that have not, with the reason.
    pub missing: BTreeMap<String, String>,
    /// Nodes that stand still, whether they have or not, with the reason that was given; empty if none was.
    pub frozen: BTreeMap<String, String>,
    /// Nodes that enforce a version that the store has lost, with that version.
    pub stale: BTreeMap<String, u64>,
}

/// What nodes say is in force there although the store has lost it.
#[derive(Clone, Debug, Default)]
pub struct Lost {
    /// By the ends of keys, then by node.
    named: BTreeMap<String, BTreeMap<String, u64>>,
    /// The highest version of those that nodes do not name; 0 if they name all.
    more: u64,
}

/// What nodes have said, or why it cannot be read.
type Reports = BTreeMap<String, Result<NodeReport, String>>;

// === impl NodeReport ===

impl NodeReport {
    /// The key of a node.
    pub fn key(cluster: &str, node: &str) -> String {
        format!("{REALISED}/{cluster}/{node}")
    }

    /// The value.
    pub fn to_json(&self) -> String {
        // Strings and numbers only: this can't fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Says what is in force though the store has lost it.
    pub fn tell_stale(&mut self, mirror: &Mirror) {
        let mut all: Vec<_> =
            mirror.stale().map(|(name, version, stale)| (name, version.version, stale)).collect();
        // Of what the store has in an older version somebody may ask whether it is realised.
        all.sort_by_key(|(_, _, stale)| stale.stored.is_none());
        let more = all.split_off(all.len().min(NAMED));
        self.stale = all.into_iter().map(|(name, version, _)| (name.suffix(), version)).collect();
        self.more_stale = more.into_iter().map(|(_, version, _)| version).max().unwrap_or_default();
    }

    /// Why this node does not have what stands in the store, if it does not.
    fn lacks(&self, standing: &Standing) -> Option<String> {
        if let Some(reason) = self.refused.get(&standing.name.suffix()) {
            return Some(format!("it cannot use it: {reason}"));
        }
        if let Some(version) = self.stale.get(&standing.name.suffix()) {
            return Some(format!("it goes on with version {version}, which the store has lost"));
        }
        if self.more_stale > 0 {
            return Some("it goes on with more policies that the store has lost than it can name".to_owned());
        }
        let behind = || match self.problem.as_str() {
            "" => format!("it is at revision {} of the store, this is {}", self.revision, standing.revision),
            problem => problem.to_owned(),
        };
        (self.revision < standing.revision).then(|| match self.frozen.as_deref() {
            None => behind(),
            Some("") => format!("it is frozen until `villus thaw` there: {}", behind()),
            Some(reason) => format!("it is frozen ({reason}) until `villus thaw` there: {}", behind()),
        })
    }
}

// === impl Realised ===

impl Realised {
    /// Asks the store: all nodes of the cluster that are there, whether they said anything or not.
    ///
    /// # Errors
    /// When the store is not there.
    pub async fn of(store: &Arc<dyn Store>, cluster: &str, standing: &Standing) -> Result<Self, StoreError> {
        let reports = reports(store, cluster).await?;
        let prefix = format!("{}/{cluster}/", keys::NODES);
        let nodes = store.list_prefix(&prefix).await?.entries;
        let names = nodes.iter().map(|entry| entry.key[prefix.len()..].to_owned());
        let mut all: Vec<String> = names.chain(reports.keys().cloned()).collect();
        all.sort_unstable();
        all.dedup();
        let mut realised = Self::default();
        for node in all {
            let lacks = match reports.get(&node) {
                None => Some("it has not said anything".to_owned()),
                Some(Err(error)) => Some(format!("what it says cannot be read: {error}")),
                Some(Ok(report)) => {
                    let frozen = report.frozen.clone().map(|reason| (node.clone(), reason));
                    realised.frozen.extend(frozen);
                    let stale = report.stale.get(&standing.name.suffix());
                    realised.stale.extend(stale.map(|version| (node.clone(), *version)));
                    report.lacks(standing)
                }
            };
            match lacks {
                None => realised.nodes.push(node),
                Some(reason) => drop(realised.missing.insert(node, reason)),
            }
        }
        Ok(realised)
    }
}

// === impl Lost ===

impl Lost {
    /// Asks the store.
    ///
    /// # Errors
    /// When it is not there.
    pub async fn of(store: &Arc<dyn Store>, cluster: &str) -> Result<Self, StoreError> {
        let mut lost = Self::default();
        for (node, report) in reports(store, cluster).await? {
            // Of one that cannot be read `Realised` tells.
            let Ok(report) = report else { continue };
            for (name, version) in report.stale {
                lost.named.entry(name).or_default().insert(node.clone(), version);
            }
            lost.more = lost.more.max(report.more_stale);
        }
        Ok(lost)
    }

    /// Objects that are named, and which version which nodes have.
    pub fn objects(&self) -> impl Iterator<Item = (ObjectName, &BTreeMap<String, u64>)> {
        self.named.iter().filter_map(|(name, nodes)| Some((ObjectName::of_suffix(name)?, nodes)))
    }

    /// Whether there are more than nodes name.
    pub fn is_cut_off(&self) -> bool {
        self.more > 0
    }

    /// The highest version of an object that may be in force somewhere although the store has lost it.
    pub fn version_of(&self, name: &ObjectName) -> Option<u64> {
        let named = self.latest(name).map(|(_, version)| version);
        named.max(self.is_cut_off().then_some(self.more))
    }

    /// The node that is known to have the highest version of an object, and that version.
    pub fn latest(&self, name: &ObjectName) -> Option<(&str, u64)> {
        let nodes = self.named.get(&name.suffix())?;
        nodes.iter().max_by_key(|(_, version)| **version).map(|(node, version)| (node.as_str(), *version))
    }

    /// Objects that a name may mean.
    pub(crate) fn meant_by(&self, text: &str) -> BTreeSet<ObjectName> {
        let named = self.objects().map(|(name, _)| name).filter(|name| name.is_meant_by(text));
        let whole = ObjectName::of_suffix(text).filter(|_| self.is_cut_off());
        named.chain(whole).collect()
    }
}

async fn reports(store: &Arc<dyn Store>, cluster: &str) -> Result<Reports, StoreError> {
    let prefix = format!("{REALISED}/{cluster}/");
    let entries = store.list_prefix(&prefix).await?.entries;
    let read = |entry: &Entry| {
        let report = serde_json::from_slice(&entry.value).map_err(|error| error.to_string());
        (entry.key[prefix.len()..].to_owned(), report)
    };
    Ok(entries.iter().map(read).collect())
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}
