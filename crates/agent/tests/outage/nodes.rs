//! Three nodes in namespaces of their own, joined by a switch, with a real etcd of three members beside them, in which each
//! agent may do what its own certificate says.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::runtime::Runtime;
use villus_cluster_policy::Policies;
use villus_kvstore::Etcd;
use villus_labels::MaxConnectedClusters;
use villus_operator::{HEARTBEAT, Operator, OperatorConfig};
use villus_policy::parse;
use villus_table::Backoff;
use villus_testbed::{EtcdServer, eventually, run_ip as ip};

use crate::common::{
    TestNode, Workload,
    secured::{OPERATOR, Secured, WRITER, agent},
};

/// Where the members of etcd listen, as the nodes see it.
const STORE: &str = "192.168.50.254";
const CLUSTER: &str = "outage";
const CERTIFICATES: &str = "/tmp/pki";

/// The cluster. Gone with this value.
pub struct Nodes {
    pub etcd: Vec<EtcdServer>,
    pub all: Vec<TestNode>,
    secured: Secured,
}

/// An operator that deletes at once what two looks find unused. Gone with this value.
pub struct Collector {
    operator: Operator,
    _runtime: Runtime,
}

impl Collector {
    /// Whether it has deleted an identity.
    pub fn has_deleted(&self) -> bool {
        self.operator.status().collection.deleted_total > 0
    }
}

/// How packets get from node to node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Routing {
    Native,
    Tunnel,
}

// === impl Routing ===

impl Routing {
    /// The names of all.
    pub const ALL: [&str; 2] = ["native", "tunnel"];

    /// The one of a name.
    pub fn of(name: &str) -> Self {
        if name == Self::ALL[0] { Self::Native } else { Self::Tunnel }
    }
}

/// Name of the namespace that is node `n`.
pub fn name(n: usize) -> String {
    format!("n{n}")
}

/// Address of node `n` on the switch.
pub fn address(n: usize) -> String {
    format!("192.168.50.{}", n + 1)
}

/// The ranges of node `n`: such that etcd can tell its addresses from others'.
fn ranges(n: usize) -> [String; 2] {
    [format!("10.5{n}.0.0/24"), format!("fd5{n}:1:2:3:4:5:6:0/112")]
}

impl Nodes {
    /// Three agents on one store, all serving. `more` are options of all.
    pub fn start(routing: Routing, more: &[(&str, &str)]) -> Self {
        ip("link add br0 type bridge");
        ip(&format!("addr add {STORE}/24 dev br0"));
        ip("addr add fd99::fe/64 dev br0 nodad");
        ip("link set br0 up");
        let nodes: Vec<(String, Vec<String>)> = (0..3).map(|n| (name(n), ranges(n).into())).collect();
        let secured = Secured::new(CERTIFICATES.as_ref(), STORE, CLUSTER, &nodes);
        let quota = ["--quota-backend-bytes=16777216"];
        let etcd = EtcdServer::secure_cluster_at(STORE, CERTIFICATES.as_ref(), 3, &quota);
        secured.enable(&etcd[0]);
        for n in 0..3 {
            let node = name(n);
            ip(&format!("netns add {node}"));
            ip(&format!("link add port{n} type veth peer name eth0 netns {node}"));
            ip(&format!("link set port{n} master br0 up"));
            ip(&format!("-n {node} link set lo up"));
            ip(&format!("-n {node} link set eth0 up"));
            ip(&format!("-n {node} addr add {}/24 dev eth0", address(n)));
            ip(&format!("-n {node} addr add fd99::{}/64 dev eth0 nodad", n + 1));
            ip(&format!("-n {node} route add default via {STORE}"));
            ip(&format!("-n {node} -6 route add default via fd99::fe"));
        }
        let option = |n| secured.option(&agent(&name(n)), &etcd);
        let mut all: Vec<TestNode> = (0..3).map(|n| Self::node(n, routing, &option(n), more)).collect();
        for node in &mut all {
            node.start();
        }
        let nodes = Self { etcd, all, secured };
        for node in &nodes.all {
            eventually("every node follows the store", || node.kvstore().0 == "Ok");
        }
        nodes
    }

    fn node(n: usize, routing: Routing, store: &str, more: &[(&str, &str)]) -> TestNode {
        let [v4, v6] = ranges(n);
        let node = name(n);
        let mut options = vec![
            ("node-name", node.as_str()),
            ("cluster-name", CLUSTER),
            ("cluster-id", "1"),
            ("kvstore", "etcd"),
            ("kvstore-opt", store),
            ("ipv4-range", &v4),
            ("ipv6-range", &v6),
        ];
        match routing {
            Routing::Native => options.extend([
                ("routing-mode", "native"),
                ("auto-direct-node-routes", "true"),
                ("ipv4-native-routing-cidr", "10.0.0.0/8"),
                ("ipv6-native-routing-cidr", "fd00::/8"),
            ]),
            Routing::Tunnel => options.extend([("routing-mode", "tunnel"), ("tunnel-protocol", "vxlan")]),
        }
        options.extend(more);
        TestNode::at(PathBuf::from(format!("/tmp/{node}")), Some(&node), &options)
    }

    /// Whether an address is known on every node as that of the same, real identity.
    pub fn knows(&self, workload: &Workload) -> bool {
        [workload.v4(), workload.v6()].iter().all(|address| {
            let identities: Vec<Option<u32>> =
                self.all.iter().map(|node| node.identity_of(&address.to_string())).collect();
            identities[0].is_some_and(|first| first >= 256) && identities.iter().all(|i| *i == identities[0])
        })
    }

    /// An operator of the cluster that has less patience than any should have.
    pub fn collector(&self) -> Collector {
        let runtime = Runtime::new().unwrap();
        let inside = runtime.enter();
        let store = Etcd::new(self.secured.options(OPERATOR, &self.etcd)).unwrap();
        let config = OperatorConfig {
            name: "collector".to_owned(),
            cluster: CLUSTER.to_owned(),
            range: MaxConnectedClusters::C255.range(1).unwrap(),
            ttl: Duration::from_secs(25),
            gc_interval: Some(Duration::from_secs(1)),
            gc_grace: Duration::ZERO,
            gc_rate: (2500, Duration::from_secs(60)),
            heartbeat: HEARTBEAT,
            probe: Duration::from_secs(5),
            backoff: Backoff::try_new(Duration::from_millis(100), Duration::from_secs(5), 0.5).unwrap(),
        };
        let operator = Operator::start(Arc::new(store), config);
        drop(inside);
        Collector { operator, _runtime: runtime }
    }

    /// Gives all nodes policies, as an operator does.
    pub fn apply(&self, text: &str) {
        let files = [parse("test.yaml", text).unwrap()];
        Runtime::new().unwrap().block_on(async {
            let store = Etcd::new(self.secured.options(WRITER, &self.etcd)).unwrap();
            let policies = Policies::new(Arc::new(store), CLUSTER);
            let changes = policies.plan(&files, "writer").await.unwrap();
            policies.write(&changes).await.unwrap();
        });
    }

    /// A member of etcd that answers.
    pub fn etcdctl(&self, arguments: &[&str]) -> Option<String> {
        self.etcd.iter().find_map(|member| member.etcdctl(arguments))
    }

    /// Whether the store has a key.
    pub fn has(&self, key: &str) -> bool {
        let found = self.etcdctl(&["get", "--keys-only", key]).expect("a member that answers");
        found.contains(key)
    }

    /// The key of node `n`.
    pub fn key(&self, n: usize) -> String {
        format!("cilium/state/nodes/v1/{CLUSTER}/{}", name(n))
    }

    /// Makes the store forget what has happened so far.
    pub fn compact(&self) {
        let status = self.etcdctl(&["get", "nothing", "-w", "json"]).unwrap();
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        self.etcdctl(&["compact", &status["header"]["revision"].to_string()]).unwrap();
    }

    /// Makes users and roles in a store that was wiped.
    pub fn secure(&self) {
        self.secured.enable(&self.etcd[0]);
    }

    /// Kills all members of etcd.
    pub fn kill_etcd(&mut self) {
        self.etcd.iter_mut().for_each(EtcdServer::kill);
    }

    /// Starts all members again and waits for them.
    pub fn resume_etcd(&mut self) {
        self.etcd.iter_mut().for_each(EtcdServer::resume);
        self.etcd.iter().for_each(EtcdServer::wait);
    }

    /// Takes the store away from one node, and nothing else. Nobody hears of it: what is sent is lost, both ways.
    pub fn cut(&self, n: usize) {
        let chain = |hook: &str, end: &str| {
            format!("chain {hook} {{ type filter hook {hook} priority 0 ; ip {end} {STORE} drop ; }} ;")
        };
        let chains = [chain("input", "saddr"), chain("output", "daddr")].join(" ");
        ip(&format!("netns exec {} nft add table inet cut {{ {chains} }}", name(n)));
    }

    /// As [`Self::cut`], and whoever asks hears at once that there is no way.
    pub fn refuse(&self, n: usize) {
        ip(&format!("-n {} route add blackhole {STORE}/32", name(n)));
    }

    /// Ends [`Self::cut`].
    pub fn mend(&self, n: usize) {
        ip(&format!("netns exec {} nft delete table inet cut", name(n)));
    }

    /// Ends [`Self::refuse`].
    pub fn allow(&self, n: usize) {
        ip(&format!("-n {} route del blackhole {STORE}/32", name(n)));
    }
}

/// Nodes and addresses that count for an agent though nobody stands behind them any more.
pub fn stale(node: &TestNode) -> (u64, u64) {
    let metrics = node.client().metrics().unwrap();
    let value = |name: &str, of: Option<&str>| {
        let is_it = |metric: &&villus_api::model::MetricValue| {
            metric.name == name && metric.labels.get("state").map(String::as_str) == of
        };
        metrics.iter().find(is_it).expect("a figure of the store").value as u64
    };
    (value("villus_kvstore_stale_nodes", None), value("villus_kvstore_addresses", Some("stale")))
}

/// What a node has dropped, by reason and direction.
pub fn drops(node: &TestNode) -> Vec<String> {
    let metrics = node.client().metrics().unwrap();
    let drops = metrics.iter().filter(|metric| metric.name == "cilium_drop_count_total");
    drops.map(|metric| format!("{:?}: {}", metric.labels, metric.value)).collect()
}

impl TestNode {
    /// Identity of an address as this node's `ip list` has it.
    pub fn identity_of(&self, address: &str) -> Option<u32> {
        let entries = self.client().ips(&villus_api::model::IpQuery::default()).unwrap();
        entries.iter().find(|e| e.cidr.split('/').next() == Some(address)).map(|e| e.identity)
    }

    /// State and message of the store in `villus status`.
    pub fn kvstore(&self) -> (String, String) {
        let status = self.client().status_details().unwrap();
        let line =
            status.lines.into_iter().find(|line| line.label == "KVStore").expect("a line of the store");
        (line.state.to_string(), line.message)
    }
}
