//! What nodes say about the cluster's policies, and what that comes to.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};
use villus_kvstore::{Store, StoreError, keys};

use crate::{REALISED, policies::Standing};

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
}

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

    /// Why this node does not have what stands in the store, if it does not.
    fn lacks(&self, standing: &Standing) -> Option<String> {
        if let Some(reason) = self.refused.get(&standing.name.suffix()) {
            return Some(format!("it cannot use it: {reason}"));
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
        let mut reports = BTreeMap::new();
        let prefix = format!("{REALISED}/{cluster}/");
        for entry in store.list_prefix(&prefix).await?.entries {
            let report =
                serde_json::from_slice::<NodeReport>(&entry.value).map_err(|error| error.to_string());
            reports.insert(entry.key[prefix.len()..].to_owned(), report);
        }
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
