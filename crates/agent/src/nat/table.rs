//! The table of nftables beside our programs: it masquerades on every device that has none of them.
//!
//! A device that comes is the table's until its programs masquerade; one that goes is the table's before they are taken off.

use std::collections::BTreeSet;
use std::sync::PoisonError;

use ipnet::IpNet;
use villus_net::NetError;

use crate::masquerade::Masquerading;
use crate::nat::Origin;
use crate::node::Node;

impl Node {
    /// Tells the table which devices have programs that masquerade, once they do.
    pub fn follow_devices(&mut self) {
        if self.open && self.attached {
            let left = self.nat.lending.clone();
            self.with_table(|table| table.leave(&left, false));
        }
    }

    /// As [`Self::follow_devices`], though nothing may be different but devices' names, which the table shows.
    pub fn follow_names(&mut self) {
        if self.open && self.attached {
            let left = self.nat.lending.clone();
            self.with_table(|table| table.leave(&left, true));
        }
    }

    /// Before programs are taken off devices: what leaves by others than these is the table's, connections that our programs
    /// have masqueraded included.
    pub fn take_devices_back(&mut self, uplinks: &BTreeSet<u32>) {
        let before = self.nat.lending.len();
        self.nat.lending.retain(|index| uplinks.contains(index));
        if self.nat.lending.len() < before {
            self.follow_devices();
            self.forget_astray();
        }
    }

    /// Tells the table of prefixes that are reached without masquerade beside those of the options: the operator's list, and
    /// without a tunnel what is other nodes'.
    pub fn follow_kept(&mut self) {
        if !self.knows_all_nodes() {
            return;
        }
        let others = |origin: &Origin| matches!(origin, Origin::OtherNode(_) | Origin::List);
        let mut kept: Vec<IpNet> = self
            .kept_prefixes()
            .into_iter()
            .filter(|(_, origin)| others(origin))
            .map(|(net, _)| net)
            .collect();
        if self.network.tunnel.is_none() {
            let nodes = self.other_nodes();
            kept.extend(nodes.iter().flat_map(|node| &node.addresses).map(|address| IpNet::from(address.ip)));
        }
        kept.sort_unstable();
        kept.dedup();
        self.with_table(|table| {
            table.keep_to(kept);
            Ok(())
        });
    }

    /// Has connections looked for that leave by other devices than before.
    pub fn look_for_astray(&mut self) {
        if let Some(table) = &self.network.masquerading {
            table.lock().unwrap_or_else(PoisonError::into_inner).look_for_astray();
            self.wake.masquerade.notify_one();
        }
    }

    fn forget_astray(&mut self) {
        let Some(table) = &self.network.masquerading else { return };
        let forgotten = table.lock().unwrap_or_else(PoisonError::into_inner).forget_astray();
        self.note_forgotten(forgotten);
    }

    /// What came of looking for connections to forget.
    pub fn note_forgotten(&mut self, forgotten: Result<usize, NetError>) {
        if let Ok(connections @ 1..) = forgotten {
            tracing::info!(connections, "they leave by another device now, and are masqueraded there");
        }
        let problem = forgotten.err().map(|error| {
            format!(
                "{error}; what an endpoint goes on sending by another device than before keeps its address until it \
                 was silent for a while"
            )
        });
        self.conditions.note("connections by another device", problem);
    }

    fn with_table(&mut self, change: impl FnOnce(&mut Masquerading) -> Result<(), NetError>) {
        let Some(table) = &self.network.masquerading else { return };
        let changed = change(&mut table.lock().unwrap_or_else(PoisonError::into_inner));
        // What is right in itself says nothing about what the last look has found.
        if let Err(error) = changed {
            self.conditions.note("masquerading", Some(error.to_string()));
        }
    }
}
