//! Options of the store that nodes share.

use crate::kind::{Kind, SECONDS, int, secs, secs_or_zero};
use crate::spec::{Group, OptionSpec, Support};

const fn opt(name: &'static str, kind: Kind, default: &'static str, help: &'static str) -> OptionSpec {
    OptionSpec::new(name, kind, default, help).group(Group::Kvstore)
}

pub(super) const OPTIONS: &[OptionSpec] = &[
    opt(
        "kvstore",
        Kind::Choice(&["", "etcd"]),
        "",
        "Store shared with other nodes; empty: the embedded one of this node.",
    ),
    opt(
        "kvstore-opt",
        Kind::Map,
        "",
        "Settings of the store; one of the first two is needed. etcd.address: URLs of its members. etcd.config: a file as etcd's \
         own clients read it, whose endpoints etcd.address replaces. etcd.qps (20): requests a second of a node. \
         etcd.bootstrapQps (10000, or etcd.qps if that is more): the same until the first lists are read. etcd.maxInflight \
         (etcd.qps): requests at the same time. etcd.limit (4096): keys of a page at most; pages begin with 256, or fewer if \
         that is less, and grow while entries are small. These four are from 1 to 4294967295, but no page has more than 4096 \
         keys. etcd.keepaliveHeartbeat (15s): how often an idle connection is tried; etcd.keepaliveTimeout (25s): how long \
         it may take to answer; both from 1ms.",
    ),
    opt(
        "kvstore-address-space",
        Kind::Choice(&["default", "cluster"]),
        "default",
        "Address space below which this node writes its addresses: `default`, or the cluster's name. Both are read.",
    ),
    opt(
        "kvstore-lease-ttl",
        secs(25, 86_400),
        "24h",
        "How long what a node has written into the store outlives its agent.",
    ),
    opt(
        "kvstore-max-consecutive-quorum-errors",
        int(1, u32::MAX as u64),
        "5",
        "Checks of the store's quorum that may fail one after another before it is said to have none.",
    ),
    opt(
        "identity-allocation-sync-interval",
        SECONDS,
        "5m",
        "How often a node compares what it has in the store with what it wants there; longer in a large cluster.",
    )
    .aliases(&["kvstore-periodic-sync"]),
    opt(
        "identity-allocation-timeout",
        SECONDS,
        "2m",
        "How long an identity is waited for from a store that answers.",
    )
    .aliases(&["kvstore-connectivity-timeout"]),
    opt(
        "allocator-list-timeout",
        secs_or_zero("never"),
        "3h",
        "After how long without the first list of the store's identities the agent raises an alarm, and goes on.",
    ),
    opt(
        "stale-grace",
        SECONDS,
        "1h",
        "How long addresses, nodes and identities count whose owner has fallen silent.",
    ),
    opt(
        "clustermesh-config",
        Kind::Path { empty: true },
        "",
        "Directory with one file for each cluster whose store this node reads itself (ClusterMesh).",
    ),
    opt(
        "clustermesh-removal-grace",
        secs_or_zero("at once"),
        "3m",
        "How long the entries of a cluster count whose file is gone from clustermesh-config, or all of them if that is.",
    ),
    opt(
        "identity-allocation-mode",
        Kind::Choice(&["kvstore", "crd", "doublewrite-readkvstore", "doublewrite-readcrd"]),
        "kvstore",
        "Where numbers of identities are agreed on.",
    )
    .support(Support::Later { feature: "identities in Kubernetes resources", off: &["kvstore"] }),
];
