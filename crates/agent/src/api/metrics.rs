//! Counters and gauges.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use villus_abi::Reason;
use villus_api::model::MetricValue;
use villus_api::{ApiError, ApiResult};
use villus_datapath::metrics as kernel_metrics;
use villus_flows::{History, LossSource};

use super::limit::Seen;
use crate::node::Node;
use crate::tasks::ExportCounts;

impl Node {
    /// All metrics.
    pub(super) fn metrics(
        &mut self,
        history: &History,
        limits: &[Seen],
        exported: &ExportCounts,
    ) -> ApiResult<Vec<MetricValue>> {
        let mut all = Vec::new();
        let mut add = |name: &str, labels: &[(&str, String)], value: f64| {
            let labels: BTreeMap<String, String> =
                labels.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
            all.push(MetricValue { name: name.to_owned(), labels, value });
        };
        for (index, metric) in kernel_metrics(&self.kernel.maps).map_err(ApiError::internal)? {
            let reason = Reason(u8::try_from(index >> 1).unwrap_or(u8::MAX));
            let direction = if index & 1 == 0 { "INGRESS" } else { "EGRESS" };
            let labels = [("direction", direction.to_owned()), ("reason", reason.text().to_owned())];
            if reason == Reason::FORWARDED {
                add("cilium_forward_count_total", &labels[..1], metric.packets as f64);
                add("cilium_forward_bytes_total", &labels[..1], metric.bytes as f64);
            } else {
                add("cilium_drop_count_total", &labels, metric.packets as f64);
                add("cilium_drop_bytes_total", &labels, metric.bytes as f64);
            }
        }
        let mut states: BTreeMap<&str, u32> = BTreeMap::new();
        for endpoint in self.endpoints.values() {
            *states.entry(endpoint.state.name()).or_default() += 1;
            let id = [("endpoint", endpoint.id().to_string())];
            if endpoint.hand_made > 0 {
                add("villus_policy_hand_made_entries", &id, endpoint.hand_made as f64);
            }
            if endpoint.size.1 > 0 {
                let most = f64::from(self.config.datapath.policy_map_max);
                add(
                    "cilium_bpf_map_pressure",
                    &[("map_name", villus_datapath::policy_pin(endpoint.id()))],
                    f64::from(endpoint.size.0) / most,
                );
            }
        }
        for (state, count) in states {
            add("cilium_endpoint_state", &[("endpoint_state", state.to_owned())], f64::from(count));
        }
        add("cilium_policy", &[], self.repository.policies().count() as f64);
        add("cilium_policy_max_revision", &[], self.repository.revision() as f64);
        add(
            "cilium_identity",
            &[("type", "cluster_local".into())],
            self.identities.allocator.usage().used as f64,
        );
        add("cilium_identity", &[("type", "node_local".into())], self.identities.local.len() as f64);
        self.cluster_metrics(&mut add);
        add("cilium_controllers_failing", &[], self.conditions.iter().count() as f64);
        add("villus_reconcile_repaired_total", &[], self.counts.repaired as f64);
        add("villus_reconcile_runs_total", &[], self.counts.compared as f64);
        add("villus_flows_cut_total", &[], self.counts.cut_flows as f64);
        add("villus_flows_alive", &[], self.counts.alive_flows as f64);
        add("villus_nat_entries_alive", &[], self.counts.alive_mappings as f64);
        add("cilium_nat_gc_entries", &[], self.counts.collected_mappings as f64);
        add("villus_flows_collected_total", &[], self.counts.collected_flows as f64);
        add("villus_emergency_deeds", &[], self.emergency.deeds.len() as f64);
        add("villus_events_total", &[], history.seen() as f64);
        add(
            "villus_events_lost_total",
            &[("at", "kernel".into())],
            history.lost(LossSource::KernelRing) as f64,
        );
        add(
            "villus_events_lost_total",
            &[("at", "observer".into())],
            history.lost(LossSource::ObserverQueue) as f64,
        );
        limits.iter().for_each(|seen| limit_metrics(seen, &mut add));
        if self.config.export.path.is_some() {
            let lost = |at: &str| [("at", at.to_owned())];
            add("villus_export_events_total", &[], exported.written.load(Relaxed) as f64);
            add("villus_export_lost_total", &lost("queue"), exported.overrun.load(Relaxed) as f64);
            add("villus_export_lost_total", &lost("file"), exported.refused.load(Relaxed) as f64);
        }
        Ok(all)
    }
}

/// Cilium's metrics of a limited call.
fn limit_metrics(seen: &Seen, add: &mut impl FnMut(&str, &[(&str, String)], f64)) {
    let call = ("api_call", seen.limit.call.to_owned());
    let of = |value: &str| [call.clone(), ("value", value.to_owned())];
    for ((outcome, code), count) in &seen.outcomes {
        let labels = [call.clone(), ("outcome", (*outcome).to_owned()), ("return_code", code.to_string())];
        add("cilium_api_limiter_processed_requests_total", &labels, *count as f64);
    }
    let in_flight = "cilium_api_limiter_requests_in_flight";
    add(in_flight, &of("in-flight"), f64::from(seen.in_flight));
    if let Some(parallel) = seen.parallel {
        add(in_flight, &of("limit"), f64::from(parallel));
    }
    if let Some(rate) = seen.rate {
        add("cilium_api_limiter_rate_limit", &of("limit"), rate);
        add("cilium_api_limiter_rate_limit", &of("burst"), seen.burst);
    }
    add("cilium_api_limiter_adjustment_factor", std::slice::from_ref(&call), seen.factor);
    let processing = "cilium_api_limiter_processing_duration_seconds";
    add(processing, &of("mean"), seen.mean_processing);
    add(processing, &of("estimated"), seen.limit.estimated.as_secs_f64());
    let wait = "cilium_api_limiter_wait_duration_seconds";
    add(wait, &of("mean"), seen.mean_wait);
    add(wait, &of("max"), seen.longest_wait);
    add(wait, &of("min"), seen.limit.min_wait.as_secs_f64());
}
