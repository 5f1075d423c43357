//! Keys of the shared store (reference `kvstore` 1.1). Cilium's agents use the same.

/// Everything lies below this.
pub const BASE: &str = "cilium";
/// State that this cluster's own nodes write.
pub const STATE: &str = "cilium/state";
/// Copies of other clusters' state.
pub const CACHE: &str = "cilium/cache";
/// RFC 3339 time, rewritten every 60 s.
pub const HEARTBEAT: &str = "cilium/.heartbeat";
/// Below it each client proves that the store has a quorum, by locking a random name.
pub const INIT_LOCK: &str = "cilium/.initlock";
/// `<cluster>`: configuration of a cluster, JSON.
pub const CLUSTER_CONFIG: &str = "cilium/cluster-config";
/// `<cluster>/<prefix>`: the prefix has been written completely once.
pub const SYNCED: &str = "cilium/synced";
/// `<cluster>/<node>`: nodes, JSON.
pub const NODES: &str = "cilium/state/nodes/v1";
/// Registrations of external workloads.
pub const NODE_REGISTER: &str = "cilium/state/noderegister/v1";
/// Below it lie [`IDENTITY_IDS`], [`IDENTITY_VALUES`] and [`IDENTITY_LOCKS`].
pub const IDENTITIES: &str = "cilium/state/identities/v1";
/// `<decimal>`: master key of an identity, its label string, without lease.
pub const IDENTITY_IDS: &str = "cilium/state/identities/v1/id";
/// `<label string>/<node address>`: slave key, the decimal identity, under the node's lease.
pub const IDENTITY_VALUES: &str = "cilium/state/identities/v1/value";
/// `<label string>.lock`: mutex of an allocation.
pub const IDENTITY_LOCKS: &str = "cilium/state/identities/v1/locks";
/// `<address space>/<address>`: [`crate::IpIdentityPair`].
pub const IPS: &str = "cilium/state/ip/v1";
/// The address space that Cilium writes below [`IPS`].
pub const DEFAULT_ADDRESS_SPACE: &str = "default";
/// `<cluster>/<namespace>/<name>`: shared services, JSON.
pub const SERVICES: &str = "cilium/state/services/v1";
/// `<cluster>/<namespace>/<name>`: exported services, JSON.
pub const SERVICE_EXPORTS: &str = "cilium/state/serviceexports/v1";

/// Joins parts with `/`: repeated `/` become one and those at the end go. `.` and `..` stay as they are.
pub fn join_key(parts: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let mut key = String::new();
    for (n, part) in parts.into_iter().enumerate() {
        if n > 0 {
            push(&mut key, '/');
        }
        for c in part.as_ref().chars() {
            push(&mut key, c);
        }
    }
    while key.ends_with('/') {
        key.pop();
    }
    key
}

fn push(key: &mut String, c: char) {
    if c != '/' || !key.ends_with('/') {
        key.push(c);
    }
}

/// The prefix under which a copy of this state lies: `cilium/state…` becomes `cilium/cache…`; what is not
/// state stays.
pub fn state_to_cache(prefix: &str) -> String {
    match prefix.strip_prefix(STATE) {
        Some(rest) => format!("{CACHE}{rest}"),
        None => prefix.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parts_are_joined_as_everybody_else_does() {
        for (parts, key) in [
            (&["a", "b"][..], "a/b"),
            (&["a/", "/b"], "a/b"),
            (&["a//b", "c///"], "a/b/c"),
            (&["/a", "b"], "/a/b"),
            (&["a", "..", ".", "b"], "a/.././b"),
            (&["a", "", "b"], "a/b"),
            (&["", "a"], "/a"),
            (&["a", ""], "a"),
            (&["/"], ""),
            (&[], ""),
            (
                &[IDENTITY_VALUES, "k8s:a=b/c;", "10.0.0.1"],
                "cilium/state/identities/v1/value/k8s:a=b/c;/10.0.0.1",
            ),
        ] {
            assert_eq!(join_key(parts), key, "{parts:?}");
        }
    }

    #[test]
    fn state_maps_to_its_copy() {
        assert_eq!(state_to_cache(NODES), "cilium/cache/nodes/v1");
        assert_eq!(state_to_cache("elsewhere/x"), "elsewhere/x");
    }

    proptest! {
        #[test]
        fn joining_is_stable(parts in prop::collection::vec("[a/.]{0,6}", 0..5)) {
            let key = join_key(&parts);
            prop_assert!(!key.contains("//") && !key.ends_with('/'));
            prop_assert_eq!(join_key([&key]), key);
        }
    }
}
