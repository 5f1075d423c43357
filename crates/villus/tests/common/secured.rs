//! An etcd with users and roles, made by the commands that the documentation names.

use std::{path::Path, process::Command};

use villus_testbed::EtcdServer;

use super::villus;

/// It, and the directory of certificates. The cluster is c1; `ann` changes policies, `op` is an operator.
pub struct Secured {
    directory: String,
    pub etcd: EtcdServer,
}

impl Secured {
    /// With an agent for one node, which has these ranges.
    pub fn new(directory: &Path, node: &str, ranges: &str) -> Self {
        let place = directory.display().to_string();
        for words in [
            &["init"][..],
            &["server", "etcd", "--address", "127.0.0.1"],
            &["user", "root"],
            &["user", "ann"],
            &["user", "op"],
            &["agent", node],
        ] {
            villus(&[&["certs"], words, &["--dir", &place]].concat()).ok();
        }
        // Where the testbed's servers look for them.
        for (from, to) in [("servers/etcd", "server"), ("users/root", "admin")] {
            for kind in ["crt", "key"] {
                let file = |name: &str| directory.join(format!("{name}.{kind}"));
                std::fs::copy(file(from), file(to)).unwrap();
            }
        }
        let etcd = EtcdServer::secure(directory);
        let node = format!("{node}={ranges}");
        let words = ["certs", "etcd", "--cluster", "c1", "--node", &node];
        let more = ["--policy-writer", "ann", "--operator", "op", "--enable"];
        let script = villus(&[&words[..], &more].concat()).ok();
        let file = |name: &str| directory.join(name);
        let made = Command::new("sh")
            .args(["-c", &script])
            .envs([("ETCDCTL_API", "3"), ("ETCDCTL_ENDPOINTS", &etcd.url())])
            .envs([("ETCDCTL_COMMAND_TIMEOUT", "60s"), ("ETCDCTL_DIAL_TIMEOUT", "60s")])
            .envs([("ETCDCTL_CACERT", file("ca.crt")), ("ETCDCTL_CERT", file("admin.crt"))])
            .env("ETCDCTL_KEY", file("admin.key"))
            .output()
            .unwrap();
        assert!(made.status.success(), "{script}\n{made:?}");
        Self { directory: place, etcd }
    }

    /// `kvstore-opt` of somebody: `users/ann`, `agents/node1`.
    pub fn option(&self, who: &str) -> String {
        let (directory, url) = (&self.directory, self.etcd.url());
        let path = format!("{directory}/{who}.yaml");
        let config = format!(
            "endpoints: ['{url}']\ntrusted-ca-file: {directory}/ca.crt\ncert-file: {directory}/{who}.crt\nkey-file: {directory}/{who}.key\n"
        );
        std::fs::write(&path, config).unwrap();
        format!("etcd.config={path}")
    }
}
