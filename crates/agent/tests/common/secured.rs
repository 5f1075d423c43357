//! A cluster in which everybody has a certificate, and may do in etcd what `villus certs etcd` prints.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use villus_certs::{
    CertsError, Holder, Pki,
    etcd::{Access, Cluster},
};
use villus_kvstore::{EtcdOptions, EtcdTls};
use villus_testbed::EtcdServer;

/// The certificate of an operator.
pub const OPERATOR: &str = "users/operator";

/// The certificate of who may change the cluster's policies.
pub const WRITER: &str = "users/writer";

/// Certificates of a cluster, and what each may.
pub struct Secured {
    pub directory: PathBuf,
    access: Access,
}

/// The certificate of the agent of a node.
pub fn agent(node: &str) -> String {
    format!("agents/{node}")
}

impl Secured {
    /// For etcd on this address, an operator, a writer of policies, and an agent on each of the nodes, which have these ranges.
    pub fn new(directory: &Path, address: &str, cluster: &str, nodes: &[(String, Vec<String>)]) -> Self {
        fs::create_dir_all(directory).unwrap();
        let pki = Pki::at(directory);
        pki.init("ca of the test", 3650).unwrap();
        let issue = |holder: Result<Holder, CertsError>| pki.issue(&holder.unwrap(), 365).unwrap();
        issue(Holder::server("etcd", &[address.to_owned()]));
        for user in ["root", "operator", "writer"] {
            issue(Holder::user(user, None));
        }
        let mut of = Cluster::new(cluster, "default").unwrap();
        of.add_operator("operator").unwrap();
        of.add_policy_writer("writer").unwrap();
        for (node, ranges) in nodes {
            issue(Holder::agent(node));
            of.add(node, ranges.iter().map(|range| range.parse().unwrap()).collect()).unwrap();
        }
        // Where the testbed's servers look for them.
        for (from, to) in [("servers/etcd", "server"), ("users/root", "admin")] {
            for kind in ["crt", "key"] {
                let file = |name: &str| directory.join(format!("{name}.{kind}"));
                fs::copy(file(from), file(to)).unwrap();
            }
        }
        Self { directory: directory.to_owned(), access: of.access() }
    }

    /// From now on who has no user may do nothing.
    pub fn enable(&self, etcd: &EtcdServer) {
        let script = format!("{}{}", self.access.script(), Access::enable_script());
        let made = Command::new("sh")
            .args(["-c", &script])
            .env("ETCDCTL_API", "3")
            .env("ETCDCTL_COMMAND_TIMEOUT", "60s")
            .env("ETCDCTL_DIAL_TIMEOUT", "60s")
            .env("ETCDCTL_ENDPOINTS", etcd.url())
            .env("ETCDCTL_CACERT", self.file("ca.crt"))
            .env("ETCDCTL_CERT", self.file("admin.crt"))
            .env("ETCDCTL_KEY", self.file("admin.key"))
            .output()
            .unwrap();
        assert!(made.status.success(), "{script}\n{made:?}");
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// `kvstore-opt` of somebody.
    pub fn option(&self, who: &str, etcd: &[EtcdServer]) -> String {
        let urls: Vec<String> = etcd.iter().map(EtcdServer::url).collect();
        let file = |name: &str| self.file(name).display().to_string();
        let config = format!(
            "endpoints: [{}]\ntrusted-ca-file: {}\ncert-file: {}\nkey-file: {}\n",
            urls.join(", "),
            file("ca.crt"),
            file(&format!("{who}.crt")),
            file(&format!("{who}.key"))
        );
        let path = file(&format!("{who}.yaml"));
        fs::write(&path, config).unwrap();
        format!("etcd.config={path}")
    }

    /// How somebody reaches it from here.
    pub fn options(&self, who: &str, etcd: &[EtcdServer]) -> EtcdOptions {
        let identity = (self.file(&format!("{who}.crt")), self.file(&format!("{who}.key")));
        let tls = EtcdTls { ca: Some(self.file("ca.crt")), identity: Some(identity) };
        EtcdOptions { tls: Some(tls), ..EtcdOptions::new(etcd.iter().map(EtcdServer::url).collect()) }
    }
}
