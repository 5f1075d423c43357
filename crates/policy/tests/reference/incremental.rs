//! A node that follows changes one by one, and what it should hold.

use std::collections::BTreeMap;

use proptest::{prelude::*, sample::select};
use villus_abi::{PolicyEntry, PolicyKey};
use villus_labels::{Labels, NumericIdentity};
use villus_policy::{Policy, Repository, Settings, SubjectId, with_named_ports};

use crate::scene::{Scene, Workload, allocate_prefixes, any_labels, any_scene, any_settings};

/// One change of the world; indices are taken modulo what there is.
#[derive(Clone, Debug)]
pub enum Step {
    Identity(u32, Option<Labels>),
    Policy(proptest::sample::Index, bool),
    Endpoint(usize, Option<Labels>),
    Prefixes,
    /// What policies refer to is all there, or all gone.
    Objects(Scene, bool),
    Ports(u32, Workload),
    Settings(Settings),
    Sync,
}

pub fn any_step() -> impl Strategy<Value = Step> {
    let labels = || proptest::option::weighted(0.7, any_labels());
    prop_oneof![
        4 => (0..6u32, labels()).prop_map(|(id, labels)| Step::Identity(300 + id, labels)),
        3 => (any::<proptest::sample::Index>(), any::<bool>()).prop_map(|(i, add)| Step::Policy(i, add)),
        2 => (0..3usize, labels(), any_scene()).prop_map(|(id, labels, scene)| {
            let ports = scene.workloads[0].named_ports();
            Step::Endpoint(id, labels.map(|labels| with_named_ports(&labels, &ports)))
        }),
        1 => Just(Step::Prefixes),
        1 => (any_scene(), any::<bool>()).prop_map(|(scene, there)| Step::Objects(scene, there)),
        1 => (0..6u32, any_scene()).prop_map(|(id, scene)| Step::Ports(300 + id, scene.workloads[0].clone())),
        1 => (any_settings(), select(vec![3, 12, usize::MAX]))
            .prop_map(|(settings, max_entries)| Step::Settings(Settings { max_entries, ..settings })),
        3 => Just(Step::Sync),
    ]
}

/// A node: a repository, and for each endpoint what its policy map would hold had it followed the edits alone.
#[derive(Debug)]
pub struct Follower {
    pub repository: Repository,
    pub endpoints: [Option<(SubjectId, Labels)>; 3],
    pub maps: BTreeMap<SubjectId, (u64, BTreeMap<PolicyKey, PolicyEntry>)>,
}

impl Follower {
    pub fn step(&mut self, step: &Step, policies: &[Policy]) {
        let repository = &mut self.repository;
        match step {
            Step::Identity(id, Some(labels)) => repository.upsert_identity(NumericIdentity(*id), labels),
            Step::Identity(id, None) => repository.remove_identity(NumericIdentity(*id)),
            Step::Policy(which, true) => drop(repository.upsert(which.get(policies).clone())),
            Step::Policy(which, false) => drop(repository.delete([which.get(policies).key.clone()])),
            Step::Endpoint(at, labels) => {
                let new = labels.clone().map(|labels| (repository.acquire_subject(&labels), labels));
                if let Some((old, _)) = std::mem::replace(&mut self.endpoints[*at], new) {
                    repository.release_subject(old);
                }
            }
            Step::Prefixes => drop(allocate_prefixes(repository)),
            Step::Objects(scene, true) => scene.know_objects(repository),
            Step::Objects(_, false) => drop(repository.replace_referents("objects.json", Vec::new())),
            Step::Ports(id, workload) => {
                repository.set_named_ports([(NumericIdentity(*id), workload.named_ports())]);
            }
            Step::Settings(settings) => repository.set_settings(settings.clone()),
            Step::Sync => self.sync(),
        }
    }

    pub fn sync(&mut self) {
        for change in self.repository.sync() {
            let (version, map) = self.maps.entry(change.subject).or_default();
            assert_eq!(*version, change.from, "every change starts from the one before");
            *version = change.to;
            if change.from == 0 {
                let first = self.repository.compiled(change.subject);
                *map = first.map(|(policy, _)| policy.map_entries().collect()).unwrap_or_default();
            }
            for edit in change.edits.iter() {
                assert_eq!(map.get(&edit.key), edit.before.as_ref(), "{edit:?}");
                assert_ne!(edit.before, edit.after);
                match edit.after {
                    Some(entry) => map.insert(edit.key, entry),
                    None => map.remove(&edit.key),
                };
            }
        }
    }

    pub fn check(&self) -> Result<(), TestCaseError> {
        for (subject, labels) in self.endpoints.iter().flatten() {
            let most = self.repository.settings().max_entries;
            let compiled = self.repository.compiled(*subject);
            match self.repository.endpoint_policy(labels, most) {
                Ok(fresh) => {
                    let (kept, version) = compiled.unwrap();
                    prop_assert_eq!(self.repository.overflow(*subject), None);
                    prop_assert_eq!(&**kept, &fresh);
                    let (at, map) = &self.maps[subject];
                    prop_assert_eq!(*at, version);
                    let fresh: BTreeMap<_, _> = fresh.map_entries().collect();
                    prop_assert_eq!(map, &fresh);
                }
                // What fitted last stays, complete: the map holds what it held.
                Err(overflow) => {
                    prop_assert_eq!(self.repository.overflow(*subject), Some(&overflow));
                    let kept: Option<BTreeMap<_, _>> = compiled.map(|(kept, _)| kept.map_entries().collect());
                    let map = self.maps.get(subject).map(|(_, map)| map.clone()).unwrap_or_default();
                    prop_assert_eq!(kept.unwrap_or_default(), map);
                }
            }
        }
        Ok(())
    }
}
