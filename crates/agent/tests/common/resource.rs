//! A machine on the node's network that is an external resource, and who says so.

use std::{sync::Arc, time::Duration};

use tokio::runtime::Runtime;
use villus_external::{ExternalConfig, Externals, What, Writing, read_spec};
use villus_kvstore::{Etcd, EtcdOptions};
use villus_labels::MaxConnectedClusters;
use villus_net::{Netns, NetnsRef};
use villus_table::Backoff;
use villus_testbed::{EtcdServer, run};

use super::PATIENCE;

/// Whoever says resources: an operator, or a command.
pub struct Says {
    runtime: Runtime,
    externals: Externals,
}

impl Says {
    pub fn new(etcd: &EtcdServer) -> Self {
        let runtime = Runtime::new().unwrap();
        let mut options = EtcdOptions::new(vec![etcd.url()]);
        options.qps = 1000;
        let pace = Backoff::try_new(Duration::from_millis(20), Duration::from_secs(1), 0.5).unwrap();
        let externals = {
            let _inside = runtime.enter();
            let config = ExternalConfig {
                cluster: "cluster1".to_owned(),
                cluster_id: 238,
                clusters: MaxConnectedClusters::C255,
                space_of_cluster: false,
                label_rules: String::new(),
                writer: "a-test".to_owned(),
                lease_ttl: Duration::from_secs(60),
                patience: PATIENCE,
                pace: pace.into(),
            };
            Externals::open(Arc::new(Etcd::new(options).unwrap()), config).unwrap()
        };
        Self { runtime, externals }
    }

    pub fn says(&self, label: &str) -> What {
        let spec =
            format!(r#"{{"kind":"baremetal","addresses":["{MACHINE4}","{MACHINE6}"],"labels":["{label}"]}}"#);
        let wanted = vec![read_spec("machine", spec.as_bytes()).unwrap()];
        let outcomes = self.runtime.block_on(self.externals.put(wanted, &Writing::default())).unwrap();
        outcomes[0].result.clone().unwrap()
    }

    pub fn deletes(&self) {
        let names = ["machine".to_owned()].into();
        let outcomes = self.runtime.block_on(self.externals.delete(names, &Writing::default())).unwrap();
        assert_eq!(outcomes[0].result.clone().unwrap(), What::Deleted);
    }
}

pub const MACHINE4: &str = "192.0.2.9";
pub const MACHINE6: &str = "2001:db8::9";

/// A machine on the node's network.
pub fn machine() -> Netns {
    run("ip", &["netns", "add", "machine"]);
    run("ip", &["link", "add", "up0", "type", "veth", "peer", "name", "far", "netns", "machine"]);
    let there = |arguments: &[&str]| run("ip", &[&["-n", "machine"], arguments].concat());
    for (node, other, length, nodad) in
        [("192.0.2.1", MACHINE4, 24, &[][..]), ("2001:db8::1", MACHINE6, 64, &["nodad"][..])]
    {
        run("ip", &[&["addr", "add", &format!("{node}/{length}"), "dev", "up0"], nodad].concat());
        there(&[&["addr", "add", &format!("{other}/{length}"), "dev", "far"], nodad].concat());
    }
    for device in ["up0", "lo"] {
        run("ip", &["link", "set", device, "up"]);
    }
    there(&["link", "set", "far", "up"]);
    for (family, node, other) in [("-4", "192.0.2.1", MACHINE4), ("-6", "2001:db8::1", MACHINE6)] {
        there(&[family, "route", "add", "default", "via", node]);
        run("ip", &[family, "route", "add", "default", "via", other, "dev", "up0"]);
    }
    NetnsRef::Name("machine".into()).open().unwrap()
}
