//! What other clusters say of themselves: the numbers that their identities have.
//!
//! A mesh checks what it copies. An agent reads what lies in the store, whoever wrote it, and checks it again by the
//! configurations of the clusters that lie beside it.

use std::{
    collections::BTreeMap,
    ops::RangeInclusive,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use tokio::sync::watch;
use villus_kvstore::{Batch, ClusterConfig, Item, keys};
use villus_labels::{MaxConnectedClusters, NumericIdentity};

use crate::remote::Layer;

/// How long entries of other clusters wait for these clusters' configurations.
const PATIENCE: Duration = Duration::from_secs(10);

/// Other clusters' ids and ranges, as far as their configurations were read. Clones share it.
#[derive(Clone, Debug)]
pub struct Clusters(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    own: String,
    own_id: u32,
    numbering: MaxConnectedClusters,
    /// In the store that nodes share, of entries in [`Layer::State`] and [`Layer::Cache`].
    shared: Told,
    /// Among the copies of [`Layer::Mesh`].
    mesh: Told,
}

/// What the configurations of one store tell.
#[derive(Debug)]
struct Told {
    known: RwLock<Known>,
    /// 0 until they were listed; moves when a cluster has other numbers than before.
    version: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Known {
    ids: BTreeMap<String, u32>,
    /// Clusters that say the id of another one: theirs as soon as that has it no more.
    waiting: BTreeMap<String, u32>,
}

// === impl Clusters ===

impl Default for Clusters {
    /// Of who knows no other cluster and hears of none.
    fn default() -> Self {
        Self::with("", 0, MaxConnectedClusters::default(), 1)
    }
}

impl Clusters {
    /// As this cluster sees them; nothing was read yet.
    pub fn new(own: &str, own_id: u32, numbering: MaxConnectedClusters) -> Self {
        Self::with(own, own_id, numbering, 0)
    }

    fn with(own: &str, own_id: u32, numbering: MaxConnectedClusters, version: u64) -> Self {
        let told = || Told { known: RwLock::default(), version: watch::Sender::new(version) };
        Self(Arc::new(Inner { own: own.to_owned(), own_id, numbering, shared: told(), mesh: told() }))
    }

    /// Takes in changes of configurations. Returns the key of each that was looked at, and what is wrong with it.
    pub fn apply(&self, layer: Layer, batch: &Batch) -> Vec<(Arc<str>, Result<(), String>)> {
        let told = self.told(layer);
        let mut known = told.known.write().unwrap_or_else(PoisonError::into_inner);
        let before = known.ids.clone();
        let mut outcomes = Vec::new();
        for item in &batch.items {
            let (key, value) = match item {
                Item::Put(entry) => (&entry.key, Some(&entry.value)),
                Item::Delete { key, .. } => (key, None),
            };
            let name = key.strip_prefix(keys::CLUSTER_CONFIG).and_then(|rest| rest.strip_prefix('/'));
            let Some(name) = name.filter(|name| *name != self.0.own) else { continue };
            let outcome = match value {
                None => {
                    known.ids.remove(name);
                    known.waiting.remove(name);
                    Ok(())
                }
                Some(value) => self.read(name, value).and_then(|id| known.take(name, id)),
            };
            outcomes.push((Arc::clone(key), outcome));
            for (name, id) in std::mem::take(&mut known.waiting) {
                if known.take(&name, id).is_ok() {
                    outcomes.push((ClusterConfig::key(&name).into(), Ok(())));
                }
            }
        }
        let moved = known.ids != before;
        drop(known);
        let first = batch.relisted.is_some() && *told.version.borrow() == 0;
        if first || (moved && *told.version.borrow() > 0) {
            told.version.send_modify(|version| *version += 1);
        }
        outcomes
    }

    /// Whether it is this node's cluster.
    pub fn is_own(&self, cluster: &str) -> bool {
        cluster == self.0.own
    }

    /// Moves when entries should be looked at again.
    pub fn changes(&self, layer: Layer) -> watch::Receiver<u64> {
        self.told(layer).version.subscribe()
    }

    /// Waits until configurations were listed, but not for ever: who may not read them goes without.
    pub async fn heard(&self, layer: Layer) {
        let mut version = self.changes(layer);
        // An error means that the sender is gone, which `self` prevents.
        let _ = tokio::time::timeout(PATIENCE, version.wait_for(|version| *version > 0)).await;
    }

    /// Configurations of this layer will not be listed for now: nobody has to wait for them.
    pub fn untold(&self, layer: Layer) {
        self.told(layer).version.send_if_modified(|version| {
            let first = *version == 0;
            *version = (*version).max(1);
            first
        });
    }

    /// Whether an entry of a cluster in this layer may have the identity, as far as that can be told.
    ///
    /// # Errors
    /// It is another cluster's; of which one and why is said.
    pub fn may_have(&self, layer: Layer, cluster: &str, number: NumericIdentity) -> Result<(), String> {
        if cluster == self.0.own || cluster == keys::DEFAULT_ADDRESS_SPACE {
            return Ok(());
        }
        if (NumericIdentity::USER_RESERVED_MIN..NumericIdentity::ALLOCATED_MIN).contains(&number) {
            return Err(format!(
                "{number} is fixed by cluster {cluster} for itself (fixed-identity-mapping) and means nothing here"
            ));
        }
        if number.is_reserved() {
            return Ok(());
        }
        let known = self.told(layer).known.read().unwrap_or_else(PoisonError::into_inner);
        let ids = &known.ids;
        let has = |id: u32| self.range(id).is_some_and(|range| range.contains(&number.0));
        if let Some(id) = ids.get(cluster) {
            let range = self.range(*id).unwrap_or(0..=0);
            return match range.contains(&number.0) {
                true => Ok(()),
                false => Err(format!(
                    "{number} is no identity of cluster {cluster}, whose configuration says id {id}: {} to {}",
                    range.start(),
                    range.end()
                )),
            };
        }
        match ids.iter().find(|(_, id)| has(**id)) {
            Some((other, id)) => Err(format!(
                "{number} is an identity of cluster {other}, which has id {id}, not of {cluster}"
            )),
            None => Ok(()),
        }
    }

    /// Whether a node of a cluster may say this id, as far as that can be told; 0 is none.
    ///
    /// # Errors
    /// The cluster's configuration says another.
    pub fn may_say(&self, layer: Layer, cluster: &str, id: u32) -> Result<(), String> {
        let known = self.told(layer).known.read().unwrap_or_else(PoisonError::into_inner);
        match known.ids.get(cluster).filter(|said| id != 0 && **said != id) {
            None => Ok(()),
            Some(said) => Err(format!(
                "a node of cluster {cluster} says cluster-id {id}, the cluster's configuration says {said}"
            )),
        }
    }

    fn read(&self, name: &str, value: &[u8]) -> Result<u32, String> {
        let config = ClusterConfig::read(value)?;
        let own = ClusterConfig::new(config.id, self.0.numbering.max_cluster_id());
        if let Some(how) = own.differs(&config) {
            return Err(format!("identities of cluster {name} are numbered differently: {how}"));
        }
        let id = config.id;
        if id == 0 || self.range(id).is_none() {
            let most = self.0.numbering.max_cluster_id();
            return Err(format!("cluster {name} has id {id}; ids of clusters are 1 to {most}"));
        }
        if id == self.0.own_id {
            return Err(format!(
                "cluster {name} has id {id}, which is this cluster's; give one of them another"
            ));
        }
        Ok(id)
    }

    fn range(&self, id: u32) -> Option<RangeInclusive<u32>> {
        self.0.numbering.range(id).ok()
    }

    fn told(&self, layer: Layer) -> &Told {
        match layer {
            Layer::State | Layer::Cache => &self.0.shared,
            Layer::Mesh => &self.0.mesh,
        }
    }
}

// === impl Known ===

impl Known {
    /// The cluster has this id, unless another one has it already.
    fn take(&mut self, name: &str, id: u32) -> Result<(), String> {
        let other = self.ids.iter().find(|(other, has)| **has == id && *other != name);
        if let Some((other, _)) = other {
            let problem =
                format!("cluster {name} has id {id}, which cluster {other} has; give one of them another");
            self.waiting.insert(name.to_owned(), id);
            return Err(problem);
        }
        self.waiting.remove(name);
        self.ids.insert(name.to_owned(), id);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use villus_kvstore::{Entry, Relisted};

    use super::*;

    fn batch(items: &[(&str, Option<&str>)], relisted: Option<Relisted>) -> Batch {
        let item = |(name, value): &(&str, Option<&str>)| {
            let key: Arc<str> = ClusterConfig::key(name).into();
            match value {
                None => Item::Delete { key, revision: 1, leased: false },
                Some(value) => Item::Put(Arc::new(Entry {
                    key,
                    value: value.to_string().into(),
                    create_revision: 1,
                    mod_revision: 1,
                    version: 1,
                    lease: None,
                })),
            }
        };
        Batch { revision: 1, items: items.iter().map(item).collect(), relisted }
    }

    #[test]
    fn a_cluster_has_its_range_and_no_others() {
        let clusters = Clusters::new("c1", 1, MaxConnectedClusters::C255);
        let may = |layer, cluster, number: u32| clusters.may_have(layer, cluster, NumericIdentity(number));
        assert!(may(Layer::Cache, "c2", 3 << 16).is_ok(), "nothing is known");
        let told = [("c1", Some(r#"{"id":9}"#)), ("c2", Some(r#"{"id":2}"#)), ("c3", Some(r#"{"id":3}"#))];
        let said = clusters.apply(Layer::State, &batch(&told, Some(Relisted::First)));
        assert_eq!(said.len(), 2, "this cluster's own is none of the others'");
        for (cluster, number, good) in [
            ("c2", 2 << 16, true),
            ("c2", (3 << 16) - 1, true),
            ("c2", 3 << 16, false),
            ("c2", 1 << 16, false),
            ("c2", 6, true),
            ("c4", 2 << 16, false),
            ("c4", 4 << 16, true),
            ("c1", 3 << 16, true),
            ("default", 3 << 16, true),
        ] {
            for layer in [Layer::State, Layer::Cache] {
                assert_eq!(may(layer, cluster, number).is_ok(), good, "{cluster} {number}");
            }
            assert!(may(Layer::Mesh, cluster, number).is_ok(), "the mesh has told nothing");
        }
        let error = may(Layer::Mesh, "c2", 128).unwrap_err();
        assert!(error.contains("128") && error.contains("cluster c2"), "{error}");
        assert!(may(Layer::State, "c1", 128).is_ok() && may(Layer::State, "default", 128).is_ok());
        let error = may(Layer::Cache, "c2", 3 << 16).unwrap_err();
        assert!(error.contains("c2") && error.contains("131072 to 196607"), "{error}");
        let error = may(Layer::Cache, "c4", 2 << 16).unwrap_err();
        assert!(error.contains("of cluster c2") && error.contains("not of c4"), "{error}");
        assert!(
            clusters.may_say(Layer::Cache, "c2", 2).is_ok()
                && clusters.may_say(Layer::Cache, "c2", 0).is_ok()
        );
        let error = clusters.may_say(Layer::State, "c2", 5).unwrap_err();
        assert!(error.contains('5') && error.contains('2'), "{error}");
    }

    #[test]
    fn what_cannot_be_is_refused_and_replaces_nothing() {
        let clusters = Clusters::new("c1", 1, MaxConnectedClusters::C255);
        clusters.apply(Layer::Mesh, &batch(&[("c2", Some(r#"{"id":2}"#))], Some(Relisted::First)));
        for (value, says) in [
            ("{", "EOF"),
            (r#"{"id":0}"#, "1 to 255"),
            (r#"{"id":256}"#, "1 to 255"),
            (r#"{"id":1}"#, "this cluster's"),
            (r#"{"id":2}"#, "which cluster c2 has"),
            (r#"{"id":3,"capabilities":{"maxConnectedClusters":511}}"#, "511"),
        ] {
            let said = clusters.apply(Layer::Mesh, &batch(&[("c3", Some(value))], None));
            let error = said[0].1.clone().unwrap_err();
            assert!(error.contains(says), "{value}: {error}");
            if value != r#"{"id":2}"# {
                clusters.apply(Layer::Mesh, &batch(&[("c2", Some(value))], None));
            }
            assert!(clusters.may_have(Layer::Mesh, "c2", NumericIdentity(2 << 16)).is_ok(), "{value}");
            assert!(clusters.may_have(Layer::Mesh, "c2", NumericIdentity(4 << 16)).is_err(), "{value}");
        }
    }

    #[test]
    fn entries_are_looked_at_again_when_a_cluster_has_other_numbers() {
        let clusters = Clusters::new("c1", 1, MaxConnectedClusters::C511);
        let version = clusters.changes(Layer::Cache);
        let now = || *version.borrow();
        let c2 = |id: u32| format!(r#"{{"id":{id},"capabilities":{{"maxConnectedClusters":511}}}}"#);
        clusters.apply(Layer::Cache, &batch(&[("c2", Some(&c2(2)))], Some(Relisted::First)));
        assert_eq!(now(), 1);
        clusters
            .apply(Layer::Cache, &batch(&[("c2", Some(&c2(2))), ("c9", None)], Some(Relisted::Compacted)));
        assert_eq!(now(), 1, "nothing is otherwise");
        clusters.apply(Layer::Cache, &batch(&[("c2", Some(&c2(300)))], None));
        assert_eq!(now(), 2);
        assert!(clusters.may_have(Layer::Cache, "c2", NumericIdentity(300 << 15)).is_ok());
        clusters.apply(Layer::Cache, &batch(&[("c2", None)], None));
        assert_eq!(now(), 3);
        assert!(
            clusters.may_have(Layer::Cache, "c2", NumericIdentity(2 << 15)).is_ok(),
            "nobody says otherwise"
        );
    }

    #[test]
    fn an_id_passes_to_who_waits_for_it() {
        let clusters = Clusters::new("c1", 1, MaxConnectedClusters::C255);
        let ids = [("c2", Some(r#"{"id":2}"#)), ("c3", Some(r#"{"id":2}"#))];
        let said = clusters.apply(Layer::State, &batch(&ids, Some(Relisted::First)));
        assert_eq!(said.iter().map(|(_, outcome)| outcome.is_ok()).collect::<Vec<_>>(), [true, false]);
        assert!(clusters.may_have(Layer::State, "c3", NumericIdentity(2 << 16)).is_err());
        let said = clusters.apply(Layer::State, &batch(&[("c2", Some(r#"{"id":4}"#))], None));
        assert_eq!(said.iter().filter(|(_, outcome)| outcome.is_ok()).count(), 2);
        assert!(clusters.may_have(Layer::State, "c3", NumericIdentity(2 << 16)).is_ok());
        assert!(clusters.may_have(Layer::State, "c2", NumericIdentity(2 << 16)).is_err());
    }

    proptest! {
        #[test]
        fn no_configuration_panics(name in ".{0,8}", value in prop::collection::vec(any::<u8>(), 0..60), id in 0..600u32, number: u32) {
            let clusters = Clusters::new("c1", 1, MaxConnectedClusters::C511);
            for value in [value.as_slice(), format!(r#"{{"id":{id}}}"#).as_bytes()] {
                let value = String::from_utf8_lossy(value).into_owned();
                clusters.apply(Layer::State, &batch(&[(&name, Some(&value))], None));
                let _ = clusters.may_have(Layer::State, &name, NumericIdentity(number));
            }
        }
    }
}
