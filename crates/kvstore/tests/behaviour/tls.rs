//! Certificates: who may in, who is refused with a reason, and what happens when they are renewed.

use std::{fs, path::Path, sync::Arc, time::Duration};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;
use villus_kvstore::{Etcd, EtcdOptions, EtcdTls, Store};

use villus_testbed::EtcdServer;

use crate::put;

type Ca = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Ca {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Writes `<name>.crt` and `<name>.key`, signed by `ca`.
fn issue(directory: &Path, ca: &Ca, name: &str) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    let certificate = params.signed_by(&key, ca).unwrap();
    fs::write(directory.join(format!("{name}.crt")), certificate.pem()).unwrap();
    fs::write(directory.join(format!("{name}.key")), key.serialize_pem()).unwrap();
}

struct Lab {
    directory: TempDir,
    ca: Ca,
    server: EtcdServer,
}

impl Lab {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ca = authority("ca of the test");
        fs::write(directory.path().join("ca.crt"), ca.pem()).unwrap();
        for name in ["server", "admin", "agent"] {
            issue(directory.path(), &ca, name);
        }
        let server = EtcdServer::secure(directory.path());
        Self { directory, ca, server }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn store(&self, ca: &str, identity: Option<&str>) -> Arc<dyn Store> {
        let mut options = EtcdOptions::new(vec![self.server.url()]);
        options.qps = 1000;
        let identity = identity
            .map(|name| (self.path().join(format!("{name}.crt")), self.path().join(format!("{name}.key"))));
        options.tls = Some(EtcdTls { ca: Some(self.path().join(ca)), identity });
        Arc::new(Etcd::new(options).unwrap())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_with_a_certificate_is_let_in_and_others_learn_why_not() {
    let lab = Lab::new();
    put(&lab.store("ca.crt", Some("agent")), "a", "1").await;
    let other = authority("somebody else");
    fs::write(lab.path().join("other.crt"), other.pem()).unwrap();
    issue(lab.path(), &other, "stranger");
    for (ca, identity) in [("other.crt", Some("agent")), ("ca.crt", Some("stranger")), ("ca.crt", None)] {
        let error = lab.store(ca, identity).get("a").await.unwrap_err();
        let text = error.to_string().to_lowercase();
        assert!(error.is_transient(), "{text}");
        assert!(text.contains("certificate") || text.contains("unknownissuer"), "{ca} {identity:?}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn renewed_certificates_are_used_without_a_restart() {
    let mut lab = Lab::new();
    let store = lab.store("ca.crt", Some("agent"));
    put(&store, "a", "1").await;
    // The whole chain is renewed: the old certificates are worth nothing with the new server.
    lab.server.kill();
    let path = lab.path().to_owned();
    lab.ca = authority("next ca of the test");
    // First a half-written file, which must not take the place of the good ones.
    fs::write(path.join("agent.crt"), "-----BEGIN CERT").unwrap();
    fs::write(path.join("ca.crt"), lab.ca.pem()).unwrap();
    for name in ["server", "admin"] {
        issue(&path, &lab.ca, name);
    }
    lab.server.resume();
    lab.server.wait();
    assert!(store.get("a").await.unwrap_err().is_transient());
    issue(&path, &lab.ca, "agent");
    let read = async {
        while store.get("a").await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), read).await.unwrap();
}

#[test]
fn certificates_that_are_not_there_are_named_at_once() {
    let mut options = EtcdOptions::new(vec!["https://127.0.0.1:1".to_owned()]);
    options.tls = Some(EtcdTls { ca: Some("/nowhere/ca.crt".into()), identity: None });
    let error = Etcd::new(options).err().unwrap().to_string();
    assert!(error.contains("/nowhere/ca.crt"), "{error}");
}
