//! Carrying what is different in compiled policies into the maps: only the entries that are.

use std::{collections::BTreeMap, sync::Arc};

use villus_api::model::EndpointState;
use villus_datapath::{Edited, Edits, Shapes};
use villus_policy::{SubjectChange, SubjectId};

use crate::endpoint::Endpoint;
use crate::node::Node;

impl Node {
    /// Brings compiled policies up to date and carries what is different into the maps. Endpoints that are not
    /// concerned hold the new revision all the same.
    pub fn follow_policies(&mut self) {
        let changes: BTreeMap<SubjectId, SubjectChange> =
            self.repository.sync().into_iter().map(|change| (change.subject, change)).collect();
        if !changes.is_empty() {
            let concerns = |endpoint: &&Endpoint| endpoint.subject.is_some_and(|s| changes.contains_key(&s));
            self.endpoints.values().filter(concerns).for_each(|endpoint| self.answers.forget(endpoint.id()));
            self.read_journal();
            let whole = self.edit_policies(&changes);
            self.write_policies(whole);
        }
        self.note_revision();
        self.resolve_addresses();
    }

    /// Makes single changes where that is possible; returns the endpoints whose policies are to be written whole.
    fn edit_policies(&mut self, changes: &BTreeMap<SubjectId, SubjectChange>) -> Vec<u16> {
        let edits = self.edits(changes);
        let (mut whole, mut done, mut batch) = (Vec::new(), Vec::new(), Vec::new());
        for endpoint in self.endpoints.values() {
            let Some((change, edits)) = endpoint.subject.and_then(|s| changes.get(&s).zip(edits.get(&s)))
            else {
                continue;
            };
            if !self.is_as_of(endpoint, change) {
                whole.push(endpoint.id());
            } else if edits.is_empty() {
                done.push((endpoint.id(), change.to));
            } else {
                batch.push((endpoint.id(), edits, change.to));
            }
        }
        let maps = self.kernel.maps.clone();
        let list: Vec<(u16, &Edits)> = batch.iter().map(|(id, edits, _)| (*id, &***edits)).collect();
        let results = if list.is_empty() {
            Vec::new()
        } else {
            self.kernel.policies.apply_edits(&list, &mut &maps.endpoints).unwrap_or_else(|error| {
                tracing::warn!(%error, "policies are written whole, for single changes failed");
                list.iter().map(|(id, _)| (*id, Ok(None))).collect()
            })
        };
        let by_id: BTreeMap<u16, (bool, u64)> =
            batch.iter().map(|(id, edits, to)| (*id, (edits.restrict(), *to))).collect();
        for (id, result) in results {
            match (result, by_id.get(&id)) {
                (Ok(Some(edited)), Some((restrict, to))) => self.edited(id, &edited, *restrict, *to),
                _ => whole.push(id),
            }
        }
        for (id, version) in done {
            if let Some(endpoint) = self.endpoints.get_mut(&id) {
                endpoint.version = version;
            }
        }
        whole
    }

    /// What is to be changed for each subject; those of one change that concerns them alike share it.
    fn edits(&self, changes: &BTreeMap<SubjectId, SubjectChange>) -> BTreeMap<SubjectId, Arc<Edits>> {
        let mut last: Option<(&SubjectChange, Arc<Edits>)> = None;
        let mut all = BTreeMap::new();
        for (subject, change) in changes {
            let shapes = self.shapes_of(change);
            let like = last
                .take()
                .filter(|(like, edits)| Arc::ptr_eq(&like.edits, &change.edits) && edits.shapes() == shapes);
            let edits = like.map_or_else(|| Arc::new(edits_in(change, shapes)), |(_, edits)| edits);
            all.insert(*subject, edits.clone());
            last = Some((change, edits));
        }
        all
    }

    fn shapes_of(&self, change: &SubjectChange) -> Shapes {
        let compiled = self.repository.compiled(change.subject);
        let shapes =
            compiled.map(|(policy, _)| Shapes { mask: policy.mask(), deny_identity: policy.deny_identity() });
        shapes.unwrap_or_default()
    }

    /// Whether an endpoint's map holds what a change starts from, and nothing but policy has a say in it.
    fn is_as_of(&self, endpoint: &Endpoint, change: &SubjectChange) -> bool {
        let audit = self.repository.compiled(change.subject).map(|(policy, _)| policy.audit);
        endpoint.is_live()
            && audit == Some(endpoint.audit_default)
            && endpoint.problem.is_none()
            && change.from > 0
            && endpoint.version == change.from
            && self.repository.overflow(change.subject).is_none()
            && !self.emergency.concerns(endpoint.id())
    }

    fn edited(&mut self, id: u16, edited: &Edited, restrict: bool, version: u64) {
        let revision = self.repository.revision();
        let Some(endpoint) = self.endpoints.get_mut(&id) else { return };
        endpoint.builds += 1;
        endpoint.shapes = edited.shapes;
        endpoint.size = (u32::try_from(edited.size.0).unwrap_or(u32::MAX), edited.size.1);
        endpoint.version = version;
        // Identities come and go all the time; its log is for what somebody decided.
        if endpoint.realized != revision {
            let (added, removed) = (edited.added, edited.removed);
            let what = format!("policy of revision {revision}: {added} entries added, {removed} removed");
            endpoint.note("OK", what);
        }
        if endpoint.state == EndpointState::WaitingToRegenerate {
            endpoint.enter(EndpointState::Ready, "policy is in force");
        }
        if restrict {
            self.rejudge.insert(id);
            self.wake.rejudge.notify_one();
        }
    }
}

fn edits_in(change: &SubjectChange, shapes: Shapes) -> Edits {
    let mut edits = Edits::new(shapes);
    change.edits.iter().for_each(|edit| edits.push(edit.key, edit.before, edit.after));
    edits
}
