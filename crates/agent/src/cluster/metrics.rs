//! Figures of the cluster and its store.

use villus_kvstore::Durations;

use crate::node::Node;

impl Node {
    /// Adds them.
    pub fn cluster_metrics(&self, add: &mut impl FnMut(&str, &[(&str, String)], f64)) {
        let usage = self.identities.allocator.usage();
        add("villus_identity_space_used_ratio", &[], usage.used as f64 / usage.total.max(1) as f64);
        add("cilium_nodes_all_num", &[], self.nodes.len() as f64);
        self.mesh_metrics(add);
        add("villus_frozen", &[], f64::from(u8::from(self.freeze.is_frozen())));
        let (Some(shared), Some(remote)) = (&self.identities.shared, &self.remote) else { return };
        let health = shared.health();
        add("villus_kvstore_up", &[], f64::from(u8::from(health.down_since.is_none())));
        add("cilium_kvstore_quorum_errors_total", &[], health.quorum_errors as f64);
        let seconds = "cilium_kvstore_operations_duration_seconds";
        for (of, succeeded, took) in shared.etcd.figures().operations() {
            let outcome = if succeeded { "success" } else { "fail" };
            let labels =
                [("scope", of.scope), ("kind", of.kind), ("action", of.action), ("outcome", outcome)];
            histogram(seconds, &labels, &took, add);
        }
        for (scope, action, took) in shared.etcd.figures().waits() {
            histogram(
                "cilium_kvstore_events_queue_seconds",
                &[("scope", scope), ("action", action)],
                &took,
                add,
            );
        }
        let counts = remote.counts();
        let of = |state: &str| [("state", state.to_owned())];
        let resolved = counts.addresses - counts.unresolved;
        add("villus_kvstore_addresses", &of("resolved"), resolved as f64);
        add("villus_kvstore_addresses", &of("pending"), counts.unresolved as f64);
        add("villus_kvstore_addresses", &of("stale"), counts.stale_addresses as f64);
        add("villus_kvstore_stale_nodes", &[], counts.stale_nodes as f64);
        let policies = self.cluster_policies.iter().flat_map(|policies| policies.stale());
        add("villus_cluster_policies_stale", &[], policies.count() as f64);
        let refused = remote.refused();
        let allocator = &self.identities.allocator;
        let now = refused.count() + allocator.refused().len();
        add("villus_kvstore_refused_entries", &[], now as f64);
        let total = refused.total() + allocator.refused_total();
        add("villus_kvstore_refused_total", &[], total as f64);
        add("villus_clock_offset_seconds", &[], self.calendar.offset().as_secs_f64());
        add("villus_clock_jumps_total", &[], self.calendar.jumps() as f64);
        let published = shared.publisher.state();
        add("villus_kvstore_own_keys", &of("wanted"), published.wanted as f64);
        add("villus_kvstore_own_keys", &of("written"), published.written as f64);
        add("villus_kvstore_reasserted_total", &[], published.reasserted as f64);
        let interim = self.endpoints.values().filter(|endpoint| endpoint.identity().is_interim()).count();
        add("villus_endpoints_with_interim_identity", &[], interim as f64);
    }
}

/// As Prometheus has it: how often it took at most so long, how often at all, and how long all together.
fn histogram(
    name: &str,
    labels: &[(&str, &str)],
    took: &Durations,
    add: &mut impl FnMut(&str, &[(&str, String)], f64),
) {
    let mut labels: Vec<(&str, String)> = labels.iter().map(|(key, of)| (*key, (*of).to_owned())).collect();
    add(&format!("{name}_sum"), &labels, took.sum);
    add(&format!("{name}_count"), &labels, took.count as f64);
    let all = took.at_most().map(|(bound, count)| (bound.to_string(), count));
    for (bound, count) in all.chain([("+Inf".to_owned(), took.count)]) {
        labels.push(("le", bound));
        add(&format!("{name}_bucket"), &labels, count as f64);
        labels.pop();
    }
}
