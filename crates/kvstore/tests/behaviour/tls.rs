//! Certificates: who may in, who is refused with a reason, and what happens when they are renewed.

use std::{fs, path::Path, sync::Arc, time::Duration};

use tempfile::TempDir;
use villus_kvstore::{Etcd, EtcdOptions, EtcdTls, Store};

use villus_testbed::{Authority, EtcdServer};

use crate::put;

struct Lab {
    directory: TempDir,
    ca: Authority,
    server: EtcdServer,
}

impl Lab {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ca = Authority::new("ca of the test");
        ca.write(&directory.path().join("ca.crt"));
        for name in ["server", "admin", "agent"] {
            ca.issue(directory.path(), name);
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
    let other = Authority::new("somebody else");
    other.write(&lab.path().join("other.crt"));
    other.issue(lab.path(), "stranger");
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
    lab.ca = Authority::new("next ca of the test");
    // First a half-written file, which must not take the place of the good ones.
    fs::write(path.join("agent.crt"), "-----BEGIN CERT").unwrap();
    lab.ca.write(&path.join("ca.crt"));
    for name in ["server", "admin"] {
        lab.ca.issue(&path, name);
    }
    lab.server.resume();
    lab.server.wait();
    assert!(store.get("a").await.unwrap_err().is_transient());
    lab.ca.issue(&path, "agent");
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

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_waited_for_by_who_is_patient_and_expired_ones_are_named() {
    let lab = Lab::new();
    let file = |name: &str| lab.path().join(name);
    let mut options = EtcdOptions::new(vec![lab.server.url()]);
    options.tls =
        Some(EtcdTls { ca: Some(file("ca.crt")), identity: Some((file("later.crt"), file("later.key"))) });
    let store = Etcd::patient(options).unwrap();
    let said = async || {
        let error = store.get("a").await.unwrap_err();
        assert!(error.is_transient(), "{error}");
        error.to_string()
    };
    assert!(said().await.contains("later.crt"));
    lab.ca.issue_expired(lab.path(), "later");
    let expired = said().await;
    assert!(expired.contains("later.crt has expired at") && expired.contains("renew it"), "{expired}");
    lab.ca.issue_future(lab.path(), "later");
    assert!(said().await.contains("look at the clock"));
    lab.ca.issue(lab.path(), "later");
    let read = async {
        while store.get("a").await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), read).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_under_way_while_roles_are_changed_are_carried_out() {
    let lab = Lab::new();
    let ctl = |line: &str| lab.server.etcdctl(&line.split(' ').collect::<Vec<_>>()).unwrap();
    for user in ["root", "admin", "agent"] {
        ctl(&format!("user add {user} --no-password=true"));
        ctl(&format!("user grant-role {user} root"));
    }
    ctl("role add some");
    ctl("auth enable");
    let store = lab.store("ca.crt", Some("agent"));
    let writers: Vec<_> = (0..64)
        .map(|n| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                loop {
                    put(&store, &format!("mine/{n}"), "x").await;
                }
            })
        })
        .collect();
    tokio::task::block_in_place(|| {
        for _ in 0..20 {
            ctl("role grant-permission some read other/");
        }
    });
    for writer in writers {
        assert!(!writer.is_finished(), "{:?}", writer.await);
        writer.abort();
    }
}
