//! Sizes of the maps, from options and memory.

use villus_config::Config;
use villus_datapath::Sizes;

pub(super) fn of(config: &Config) -> Sizes {
    let mut sizes = Sizes::for_memory(memory(), config.datapath.map_size_ratio);
    sizes.endpoints = config.datapath.endpoint_max;
    sizes.frags = config.datapath.fragments_map_max;
    if let Some(tcp) = config.conntrack.tcp_max {
        sizes.ct_tcp = tcp;
    }
    if let Some(any) = config.conntrack.any_max {
        sizes.ct_any = any;
    }
    if super::config::masquerades(config) {
        sizes.nat = config.masquerade.nat_max.unwrap_or_else(|| sizes.nat_share());
    }
    sizes
}

/// Bytes of the node's memory; 0 where it is not told.
fn memory() -> u64 {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = info.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap_or_default();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap_or(0).saturating_mul(1024)
}
