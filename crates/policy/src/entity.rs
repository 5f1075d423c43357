//! Whom the entities stand for (reference `policy` 3.3).

use villus_labels::{KEY_CLUSTER, Label, Selector, source};

use crate::Entity;

/// What an entity stands for; everybody is the empty selector.
pub(crate) fn entity_selectors(entity: Entity, cluster: &Label) -> Vec<Selector> {
    let reserved = |names: &[&str]| names.iter().map(|name| Selector::reserved(name)).collect();
    match entity {
        Entity::All => vec![Selector::everything()],
        Entity::World => reserved(&["world", "world-ipv4", "world-ipv6"]),
        Entity::WorldIpv4 => reserved(&["world-ipv4"]),
        Entity::WorldIpv6 => reserved(&["world-ipv6"]),
        Entity::Cluster => {
            let mut selectors: Vec<Selector> = reserved(&CLUSTER_ENTITIES);
            selectors.push(Selector::label(cluster));
            selectors
        }
        Entity::ClusterMesh => {
            let mut selectors: Vec<Selector> = reserved(&CLUSTER_ENTITIES);
            selectors.push(Selector::everything().requiring_key(source::K8S, KEY_CLUSTER));
            selectors
        }
        Entity::Host => reserved(&["host"]),
        Entity::RemoteNode => reserved(&["remote-node"]),
        Entity::KubeApiserver => reserved(&["kube-apiserver"]),
        Entity::Ingress => reserved(&["ingress"]),
        Entity::Init => reserved(&["init"]),
        Entity::Health => reserved(&["health"]),
        Entity::Unmanaged => reserved(&["unmanaged"]),
        Entity::None => Vec::new(),
    }
}

/// The reserved identities that belong to a cluster.
const CLUSTER_ENTITIES: [&str; 7] =
    ["host", "remote-node", "init", "ingress", "health", "unmanaged", "kube-apiserver"];
