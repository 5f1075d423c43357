//! What the agents of a cluster write, below a prefix of our own: keys and values like theirs, in trees like theirs.

use super::{Load, PREFIX};

/// Pods that have the same labels, as a rule.
pub(super) const ALIKE: u32 = 15;
/// What an agent lists and watches: numbers, nodes and addresses. Who uses a number is asked only for a label set that
/// gets one.
pub(super) const TREES: [&str; 3] = ["identities/id/", "nodes/", "ip/"];

/// An entry, and the node under whose lease it lies.
pub(super) struct Written {
    pub key: String,
    pub value: String,
    pub owner: Option<u32>,
}

/// The labels of some pods.
pub(super) fn labels(number: u32) -> String {
    format!(
        "k8s:app=app-{number};k8s:io.cilium.k8s.policy.cluster=plan;\
         k8s:io.cilium.k8s.policy.serviceaccount=default;k8s:io.kubernetes.pod.namespace=plan;"
    )
}

/// Everything that a cluster has written when nothing happens.
pub(super) fn entries(load: &Load) -> impl Iterator<Item = Written> + '_ {
    let nodes = load.nodes.max(1);
    let identities = (0..load.pods.div_ceil(ALIKE)).flat_map(move |number| {
        let (id, text) = (format!("{PREFIX}identities/id/{}", 65_536 + number), labels(number));
        let first = number * ALIKE;
        // Each node says once that it uses a number.
        let uses = (first..load.pods.min(first + ALIKE.min(nodes))).map({
            let text = text.clone();
            move |pod| Written {
                key: format!("{PREFIX}identities/value/{text}/{}", host(pod % nodes)),
                value: (65_536 + number).to_string(),
                owner: Some(pod % nodes),
            }
        });
        std::iter::once(Written { key: id, value: text, owner: None }).chain(uses)
    });
    identities
        .chain((0..load.pods).map(move |pod| address(pod, pod % nodes)))
        .chain((0..load.nodes).map(node))
}

fn host(node: u32) -> String {
    let [_, b, c, d] = node.to_be_bytes();
    format!("192.{b}.{c}.{d}")
}

fn address(pod: u32, node: u32) -> Written {
    let [_, b, c, d] = pod.to_be_bytes();
    let address = format!("10.{b}.{c}.{d}");
    let value = format!(
        "{{\"IP\":\"{address}\",\"Mask\":null,\"HostIP\":\"{}\",\"ID\":{},\"Key\":0,\
         \"Metadata\":\"cilium-global:plan:node{c}:{d}\",\"K8sNamespace\":\"plan\",\"K8sPodName\":\"pod-{pod}\"}}",
        host(node),
        65_536 + pod / ALIKE
    );
    Written { key: format!("{PREFIX}ip/default/{address}"), value, owner: Some(node) }
}

fn node(number: u32) -> Written {
    let [_, b, c, d] = number.to_be_bytes();
    let value = format!(
        "{{\"Name\":\"node{number}\",\"Cluster\":\"plan\",\"IPAddresses\":[{{\"Type\":\"InternalIP\",\"IP\":\"{}\"}}],\
         \"IPv4AllocCIDR\":{{\"IP\":\"10.{b}.{c}.{d}\",\"Mask\":\"////AA==\"}},\"IPv4HealthIP\":\"\",\"ClusterID\":0,\"Source\":\"\"}}",
        host(number)
    );
    Written { key: format!("{PREFIX}nodes/plan/node{number}"), value, owner: Some(number) }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, time::Duration};

    use super::*;

    #[test]
    fn all_trees_are_there_and_no_key_twice() {
        for (nodes, uses) in [(20, 100), (3, 21)] {
            let load = Load { nodes, pods: 100, listers: 1, watchers: 1, churn: 1, time: Duration::ZERO };
            let keys: Vec<String> = entries(&load).map(|written| written.key).collect();
            let below =
                |tree: &str| keys.iter().filter(|key| key.starts_with(&format!("{PREFIX}{tree}"))).count();
            assert_eq!(TREES.map(below), [7, nodes as usize, 100]);
            assert_eq!(below("identities/value/"), uses);
            assert_eq!(keys.iter().collect::<BTreeSet<_>>().len(), keys.len());
        }
    }
}
