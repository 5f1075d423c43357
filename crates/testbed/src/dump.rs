//! Everything the kernel knows about a node, as text.

use std::{fmt::Write, net::IpAddr};

use villus_abi::{Event, Flow, Reason, event, from_bytes};
use villus_datapath::{FlowKey, Snapshot};

use crate::node::Node;

/// Flows and events shown at most.
const MOST: usize = 60;

/// A flow in one line.
pub(crate) fn flow(key: &FlowKey, flow: &Flow) -> String {
    let (from, to) = key.ends(flow);
    format!(
        "flow proto {} {from} -> {to}: {} packets {} bytes, back {} packets {} bytes, flags {:#x}, \
         endpoints {} -> {}, identities {} -> {}",
        key.proto(),
        flow.fwd_packets,
        flow.fwd_bytes,
        flow.rev_packets,
        flow.rev_bytes,
        flow.flags,
        flow.src_endpoint,
        flow.dst_endpoint,
        flow.src_identity,
        flow.dst_identity
    )
}

impl Node {
    /// All maps, devices and routes, and the last events.
    #[must_use]
    pub fn dump(&self) -> String {
        let mut text = format!("node: {:?}\n", self.spec);
        match Snapshot::take(&self.pins, &self.maps) {
            Ok(snapshot) => maps(&mut text, &snapshot),
            Err(e) => drop(writeln!(text, "maps: {e}")),
        }
        for line in self.events() {
            let _ = writeln!(text, "event {line}");
        }
        for (host, what) in [
            (&self.host, "-o addr"),
            (&self.host, "-4 route"),
            (&self.host, "-6 route"),
            (&self.host, "neigh"),
            (&self.host, "-s -o link"),
        ] {
            let _ = writeln!(text, "{} {what}:\n{}", host.name(), host.ip(&format!("{what} show")));
        }
        for workload in &self.workloads {
            let _ = writeln!(text, "{}:\n{}", workload.host.name(), workload.host.ip("neigh show"));
        }
        let _ = writeln!(text, "{}", self.host.command("nft", &["list", "ruleset"]));
        text
    }

    /// The last events that nobody has read, one line each.
    #[must_use]
    pub fn events(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if let Ok(mut ring) = self.events.lock() {
            ring.read(usize::MAX, |bytes| {
                if let Some(event) = from_bytes::<Event>(bytes) {
                    lines.push(line(&event));
                }
            });
        }
        lines.split_off(lines.len().saturating_sub(MOST))
    }
}

fn line(e: &Event) -> String {
    let kind = match e.kind {
        event::KIND_DROP => "drop",
        event::KIND_VERDICT => "verdict",
        _ => "trace",
    };
    let address = |words: [u32; 4]| -> IpAddr {
        if e.flags & event::FLAG_V6 == 0 {
            words[0].to_ne_bytes().into()
        } else {
            let mut bytes = [0; 16];
            for (to, word) in bytes.chunks_mut(4).zip(words) {
                to.copy_from_slice(&word.to_ne_bytes());
            }
            bytes.into()
        }
    };
    format!(
        "{kind} hook {} point {} state {} dir {} endpoint {} peer {} if {} identities {} -> {} {} -> {} ports {} {} proto {} \
         icmp {}/{} len {} reason {} ({})",
        e.hook,
        e.point,
        e.state,
        e.direction,
        e.endpoint,
        e.peer,
        e.ifindex,
        e.src_identity,
        e.dst_identity,
        address(e.src),
        address(e.dst),
        u16::from_be(e.sport),
        u16::from_be(e.dport),
        e.proto,
        e.icmp_type,
        e.icmp_code,
        e.len,
        e.reason,
        Reason(e.reason).text()
    )
}

fn maps(text: &mut String, snapshot: &Snapshot) {
    let _ = writeln!(text, "config {:?}", snapshot.config);
    for endpoint in snapshot.endpoints.values() {
        let _ = writeln!(text, "{endpoint:?}");
    }
    let _ = writeln!(text, "devices {:?}", snapshot.devices);
    for (address, local) in &snapshot.addrs4 {
        let _ = writeln!(text, "address {} {local:?}", IpAddr::from(address.to_ne_bytes()));
    }
    for (key, value) in &snapshot.ipcache {
        let _ = writeln!(text, "ipcache {:?}/{} -> {}", key.addr, key.prefixlen - 32, value.identity);
    }
    for view in snapshot.policies.values() {
        for (key, entry) in &view.entries {
            let _ = writeln!(
                text,
                "policy of {}: {} identity {} port {} proto {} {}: {} packets",
                view.endpoint,
                key.dir().name(),
                key.identity,
                key.port(),
                key.proto,
                if entry.is_deny() { "deny" } else { "allow" },
                entry.packets
            );
        }
    }
    let v4 = snapshot.flows4.iter().map(|(key, value)| (FlowKey::V4(*key), value));
    let v6 = snapshot.flows6.iter().map(|(key, value)| (FlowKey::V6(*key), value));
    let _ = writeln!(text, "{} flows", snapshot.flows4.len() + snapshot.flows6.len());
    for (key, value) in v4.chain(v6).take(MOST) {
        let _ = writeln!(text, "{}", flow(&key, value));
    }
    for (index, metric) in &snapshot.metrics {
        let reason = Reason((index >> 1) as u8);
        let direction = if index & 1 == 0 { "ingress" } else { "egress" };
        let _ = writeln!(text, "{direction} {} ({}): {} packets", reason.0, reason.text(), metric.packets);
    }
}
