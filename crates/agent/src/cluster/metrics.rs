//! Figures of the cluster and its store.

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
        let counts = remote.counts();
        let of = |state: &str| [("state", state.to_owned())];
        let resolved = counts.addresses - counts.unresolved;
        add("villus_kvstore_addresses", &of("resolved"), resolved as f64);
        add("villus_kvstore_addresses", &of("pending"), counts.unresolved as f64);
        add("villus_kvstore_addresses", &of("stale"), counts.stale_addresses as f64);
        add("villus_kvstore_stale_nodes", &[], counts.stale_nodes as f64);
        let refused = remote.refused();
        let allocator = &self.identities.allocator;
        let now = refused.iter().count() + allocator.refused().len();
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
