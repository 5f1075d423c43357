//! The kernel beside what is wanted: what differs is mended and counted.

use std::time::Instant;

use villus_datapath::{Differences, Shapes, policy_pin, view_policy};

use crate::kernel::make_equal;
use crate::node::Node;

/// Seconds in which every policy map is compared once.
const ROUND: usize = 5;

/// Totals since the start.
#[derive(Debug, Default, Clone)]
pub(crate) struct Counts {
    /// Entries that reconciliation mended.
    pub repaired: u64,
    /// Comparisons of everything.
    pub compared: u64,
    /// Open flows that were cut after a change of policy.
    pub cut_flows: u64,
    /// Expired flows that were collected.
    pub collected_flows: u64,
    /// Flows that the last collection left.
    pub alive_flows: u64,
    /// Entries of masqueraded packets at the last collection, and those that it has ever taken.
    pub alive_mappings: u64,
    pub collected_mappings: u64,
}

impl Node {
    /// Compares all maps with what is wanted and mends them, but for what operators did by hand.
    pub fn reconcile(&mut self) {
        if !self.sources.complete {
            return;
        }
        self.counts.compared += 1;
        self.read_journal();
        self.follow_host();
        let result = self.reconcile_maps();
        self.conditions.note("comparison with the kernel", result.err().map(|error| error.to_string()));
        let ids: Vec<u16> = self.endpoints.values().filter(|e| e.is_live()).map(|e| e.id()).collect();
        for id in ids {
            self.reconcile_policy(id);
        }
        self.note_hand_made();
        self.counts.repaired += self.mend_programs() as u64;
    }

    /// A part of the comparison, so that a few seconds see all of it: the next `share` of the endpoints, and after the
    /// last of them the other maps.
    pub fn reconcile_some(&mut self) {
        if !self.sources.complete {
            return;
        }
        self.read_journal();
        let live: Vec<u16> = self.endpoints.values().filter(|e| e.is_live()).map(|e| e.id()).collect();
        let share = live.len().div_ceil(ROUND).max(1);
        let next: Vec<u16> = live.iter().copied().filter(|id| *id > self.compared_to).take(share).collect();
        for id in &next {
            self.reconcile_policy(*id);
        }
        self.compared_to = next.last().copied().unwrap_or_default();
        if next.len() < share {
            self.compared_to = 0;
            let result = self.reconcile_maps();
            self.conditions.note("comparison with the kernel", result.err().map(|error| error.to_string()));
        }
        self.note_hand_made();
    }

    /// Tells the path whose the addresses of this node are.
    fn write_addresses(&self) -> villus_datapath::Result<()> {
        make_equal(&self.kernel.maps.addrs4, &self.wanted_addrs4())?;
        make_equal(&self.kernel.maps.addrs6, &self.wanted_addrs6())?;
        Ok(())
    }

    fn reconcile_maps(&mut self) -> villus_datapath::Result<()> {
        let maps = self.kernel.maps.clone();
        let mut mended = make_equal(&maps.addrs4, &self.wanted_addrs4())?.total()
            + make_equal(&maps.addrs6, &self.wanted_addrs6())?.total()
            + make_equal(&maps.devices, &self.wanted_devices())?.total()
            + self.write_nodes()?
            + self.write_masquerade()?
            + self.follow_routes();
        self.follow_kept();
        let found = maps.endpoints.entries()?;
        self.learn_shapes(&found);
        let wanted = self.wanted_records();
        for (slot, found) in found {
            let want = wanted.get(&slot).copied().unwrap_or_default();
            if want != found {
                maps.endpoints.insert(&slot, &want)?;
                mended += 1;
            }
        }
        if maps.config.get(&0)? != Some(self.wanted_config()) {
            maps.config.insert(&0, &self.wanted_config())?;
            mended += 1;
        }
        if mended > 0 {
            tracing::warn!(entries = mended, "the kernel was not as it should be and was mended");
            self.counts.repaired += mended as u64;
        }
        Ok(())
    }

    /// A key that an operator put in by hand may need look-ups that policy does not ask for: they are the endpoint's as long
    /// as the key is there.
    pub fn learn_shapes(&mut self, records: &[(u32, villus_abi::Endpoint)]) {
        for (slot, record) in records {
            let Some(id) = u16::try_from(*slot).ok().filter(|id| self.endpoints.contains_key(id)) else {
                continue;
            };
            let there = Shapes::load(record);
            let known = self.endpoints.get(&id).map_or(there, |endpoint| endpoint.shapes);
            if known.union(there) != known {
                self.learn_shapes_by_hand(id);
            }
        }
    }

    /// Adds the shapes of what was put into an endpoint's map by hand; says whether they are new.
    fn learn_shapes_by_hand(&mut self, id: u16) -> bool {
        let Ok(view) = view_policy(&self.kernel.pins, &self.kernel.maps, id) else { return false };
        let by_hand = Shapes::of(view.entries.iter().filter(|(key, _)| view.hand_made.contains(key)));
        let Some(endpoint) = self.endpoints.get_mut(&id) else { return false };
        let all = endpoint.shapes.union(by_hand);
        std::mem::replace(&mut endpoint.shapes, all) != all
    }

    fn reconcile_policy(&mut self, id: u16) {
        self.adopt_put_back(id);
        let Some(wanted) = self.wanted_entries(id) else { return };
        let differences = match self.kernel.policies.compare(id, &wanted) {
            Ok(differences) => differences,
            Err(error) => {
                let text = format!("{} cannot be compared: {error}", policy_pin(id));
                return self.conditions.note(&format!("policy map of endpoint {id}"), Some(text));
            }
        };
        self.conditions.note(&format!("policy map of endpoint {id}"), None);
        if let Some(endpoint) = self.endpoints.get_mut(&id) {
            endpoint.hand_made = differences.hand_made.len();
        }
        if !differences.hand_made.is_empty() && self.learn_shapes_by_hand(id) {
            let result = self.write_record(id);
            let failed = result.err().map(|error| error.to_string());
            self.conditions.note(&format!("record of endpoint {id}"), failed);
        }
        if differences.is_none() || self.is_held(id) {
            return;
        }
        let mended = count(&differences);
        tracing::warn!(endpoint = id, entries = mended, "a policy map was not as it should be and is mended");
        self.counts.repaired += mended as u64;
        if let Some(endpoint) = self.endpoints.get_mut(&id) {
            endpoint.note("OK", format!("{mended} entries of its policy map were mended"));
        }
        self.regenerate([id]);
    }

    /// Says loudly what operators wrote by hand.
    fn note_hand_made(&mut self) {
        for (id, endpoint) in &self.endpoints {
            let hand_made = endpoint.hand_made;
            self.conditions.set_if(&format!("entries by hand of endpoint {id}"), hand_made > 0, || {
                format!(
                    "{hand_made} entries of {} were put in by hand and are kept; \
                     `villus emergency list` shows them, `villus emergency undo` removes them",
                    policy_pin(*id)
                )
            });
        }
    }

    /// After a while prefixes that did not come back give up their numbers of before the start.
    pub fn end_grace(&mut self, now: Instant) {
        if !self.grace_over && now.duration_since(self.started) > self.config.identity.restore_grace {
            self.grace_over = true;
            self.identities.end_restore(now);
            self.identities.save(&self.state);
        }
    }

    /// Looks at every device of an endpoint again: nobody has told what happened to it. Returns the labels whose
    /// identities go back with endpoints whose devices are gone.
    pub fn find_gone(&mut self) -> Vec<villus_labels::Labels> {
        let Ok(state) = villus_net::NodeState::read() else { return Vec::new() };
        for link in &state.links {
            self.device_changed(link);
        }
        let gone: Vec<u16> = self
            .endpoints
            .values()
            .filter(|e| {
                e.is_live()
                    && e.file
                        .device
                        .as_ref()
                        .is_some_and(|device| !state.links.iter().any(|l| l.index == device.index()))
            })
            .map(|e| e.id())
            .collect();
        let (adopted, made): (Vec<u16>, Vec<u16>) = gone.into_iter().partition(|id| self.is_adopted(*id));
        adopted.into_iter().for_each(|id| self.device_missing(id));
        self.find_missing();
        made.into_iter().filter_map(|id| self.mark_gone(id, "its device is gone")).collect()
    }

    fn restore_tunnel(&mut self) {
        let result = self.network.restore_tunnel(&self.config, &self.state);
        let is_new = matches!(result, Ok(true));
        self.conditions.note("tunnel", result.err().map(|error| error.to_string()));
        if is_new && self.sources.complete {
            tracing::warn!("the tunnel's device was gone and is made again");
            self.attach_uplinks();
            let result = self.write_config();
            self.conditions.note("comparison with the kernel", result.err().map(|error| error.to_string()));
            self.follow_nodes();
        }
    }

    /// Looks at the node's links and addresses again.
    pub fn refresh_network(&mut self) {
        self.restore_tunnel();
        match self.network.refresh(&self.config) {
            Ok(false) => self.conditions.note("node network", None),
            Ok(true) => {
                self.conditions.note("node network", None);
                let result = self.network.prepare_uplinks(&self.state);
                self.conditions.note("uplinks", result.err().map(|error| error.to_string()));
                self.wake.wrapping.notify_one();
                self.tell_own_node();
                if self.sources.complete {
                    let result = self.write_addresses();
                    self.conditions.note("node addresses", result.err().map(|error| error.to_string()));
                    self.attach_uplinks();
                    self.follow_names();
                    self.claim_node();
                    self.follow_nodes();
                }
            }
            Err(error) => self.conditions.note("node network", Some(error.to_string())),
        }
        self.look_for_astray();
    }
}

fn count(differences: &Differences) -> usize {
    differences.missing.len()
        + differences.extra.len()
        + differences.altered.len()
        + usize::from(differences.misplaced)
        + usize::from(differences.cramped)
}
