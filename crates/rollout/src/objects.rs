//! Policies together with what they refer to.

use std::collections::{BTreeMap, BTreeSet};

use villus_labels::{Labels, NumericIdentity};
use villus_policy::{NamedPort, ObjectKey, ObjectText, ParsedFile, Policy, Referent, Repository};

/// Every object that has a part in what policies say.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Objects {
    /// Policies.
    pub policies: Vec<Policy>,
    /// Groups of prefixes, services and their backends.
    pub referents: Vec<Referent>,
    /// Named ports of the workloads of identities.
    pub ports: BTreeMap<NumericIdentity, BTreeSet<NamedPort>>,
    /// The labels of the node itself, where they are more than that it is one.
    pub host: Option<Labels>,
}

impl Objects {
    /// All of a repository.
    #[must_use]
    pub fn of(repository: &Repository) -> Self {
        Self {
            policies: repository.policies().cloned().collect(),
            referents: repository.referents().objects().cloned().collect(),
            ports: repository.referents().all_ports().clone(),
            host: repository.selectors().labels_of(NumericIdentity::HOST).cloned(),
        }
    }

    /// Puts the objects of a file in place, in place of others with their keys.
    pub fn put(&mut self, file: ParsedFile) {
        self.remove(|key| {
            file.policies.iter().any(|new| new.key == *key)
                || file.referents.iter().any(|new| new.key == *key)
        });
        self.policies.extend(file.policies);
        self.referents.extend(file.referents);
    }

    /// Removes the objects for which `which` is true; says whether there were any.
    pub fn remove(&mut self, which: impl Fn(&ObjectKey) -> bool) -> bool {
        let before = self.policies.len() + self.referents.len();
        self.policies.retain(|policy| !which(&policy.key));
        self.referents.retain(|referent| !which(&referent.key));
        self.policies.len() + self.referents.len() < before
    }

    /// Objects by their keys, for comparing.
    pub(crate) fn by_key(&self) -> BTreeMap<&ObjectKey, &ObjectText> {
        let policies = self.policies.iter().map(|policy| (&policy.key, &policy.object));
        policies.chain(self.referents.iter().map(|referent| (&referent.key, &referent.object))).collect()
    }

    pub(crate) fn into_repository(self, settings: villus_policy::Settings) -> Repository {
        let mut repository = Repository::new(settings);
        repository.upsert_referents(self.referents);
        repository.set_named_ports(self.ports);
        for policy in self.policies {
            repository.upsert(policy);
        }
        repository
    }
}
