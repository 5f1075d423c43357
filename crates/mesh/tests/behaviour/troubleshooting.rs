//! What is said about a remote that can't be reached, or is not who it should be.

use std::{fs, path::Path, time::Duration};

use villus_labels::MaxConnectedClusters;
use villus_mesh::{Findings, Own, remotes, troubleshoot};
use villus_testbed::{Authority, EtcdServer};

const PATIENCE: Duration = Duration::from_secs(30);

async fn look(directory: &Path, name: &str) -> Findings {
    let own = Own { name: "c1".to_owned(), id: 1, clusters: MaxConnectedClusters::C255 };
    let found = remotes::read(directory, "c1").unwrap();
    troubleshoot(name, &found[name], &own, PATIENCE).await
}

/// Steps that did not go well, with what was found.
fn failed(findings: &Findings) -> Vec<String> {
    let failed = findings.checks.iter().filter(|check| !check.ok);
    failed.map(|check| format!("{}: {}", check.step, check.found)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_step_to_a_remote_says_what_it_found() {
    let certificates = tempfile::tempdir().unwrap();
    let path = certificates.path();
    let (ca, other) = (Authority::new("ca of c2"), Authority::new("ca of c3"));
    ca.write(&path.join("ca.crt"));
    other.write(&path.join("other.crt"));
    for name in ["server", "admin", "mesh"] {
        ca.issue(path, name);
    }
    let server = EtcdServer::secure(path);
    server
        .etcdctl(&["put", "cilium/cluster-config/c2", r#"{"id":2,"capabilities":{"syncedCanaries":true}}"#])
        .unwrap();
    let directory = tempfile::tempdir().unwrap();
    let configure = |name: &str, url: &str, ca: &str| {
        let file = |name: &str| path.join(name).display().to_string();
        let text = format!(
            "endpoints: ['{url}']\ntrusted-ca-file: {}\ncert-file: {}\nkey-file: {}\n",
            file(ca),
            file("mesh.crt"),
            file("mesh.key")
        );
        fs::write(directory.path().join(name), text).unwrap();
    };
    configure("c2", &server.url(), "ca.crt");
    let found = look(directory.path(), "c2").await;
    let steps: Vec<&str> = found.checks.iter().map(|check| check.step.split(' ').next().unwrap()).collect();
    assert_eq!(
        steps,
        ["configuration", "resolve", "dial", "TLS", "etcd", "heartbeat", "cluster-config", "canaries"]
    );
    let tls = &found.checks[3].found;
    assert!(tls.contains("CN=server") && tls.contains("CN=ca of c2") && tls.contains("until"), "{tls}");
    // It does not say that anything is complete.
    let problems = failed(&found);
    assert!(
        problems.len() == 1 && problems[0].starts_with("canaries: not there yet: nodes, services"),
        "{problems:?}"
    );
    for kind in ["nodes", "services", "identities", "ip"] {
        server.etcdctl(&["put", &format!("cilium/synced/c2/cilium/state/{kind}/v1"), "now"]).unwrap();
    }
    let found = look(directory.path(), "c2").await;
    assert!(found.is_ok() && found.revision.is_some(), "{found:#?}");

    // The certificate of another cluster's authority, a name that is not there, a port that nobody listens on, another cluster.
    configure("c3", &server.url(), "other.crt");
    let problems = failed(&look(directory.path(), "c3").await);
    assert!(problems[0].starts_with("TLS") && problems[0].contains("is it this cluster's?"), "{problems:?}");
    configure("c4", "https://etcd.c4.invalid:2379", "ca.crt");
    let problems = failed(&look(directory.path(), "c4").await);
    assert!(problems[0].starts_with("resolve etcd.c4.invalid"), "{problems:?}");
    configure("c5", "https://127.0.0.1:1", "ca.crt");
    let problems = failed(&look(directory.path(), "c5").await);
    assert!(problems[0].starts_with("dial 127.0.0.1:1") && problems[0].contains("refused"), "{problems:?}");
    configure("c6", &server.url(), "ca.crt");
    let problems = failed(&look(directory.path(), "c6").await);
    assert_eq!(problems, ["cluster-config: there is no `cilium/cluster-config/c6`"]);
    // A key that is not there, and a file that is none.
    fs::write(
        directory.path().join("c7"),
        "endpoints: ['https://127.0.0.1:1']\ncert-file: /nowhere/a.crt\nkey-file: /nowhere/a.key\n",
    )
    .unwrap();
    let problems = failed(&look(directory.path(), "c7").await);
    assert!(problems.iter().any(|problem| problem.contains("/nowhere/a")), "{problems:?}");
    fs::write(directory.path().join("c8"), "endpoints: [").unwrap();
    let problems = failed(&look(directory.path(), "c8").await);
    assert!(problems[0].starts_with("configuration") && problems[0].contains("c8"), "{problems:?}");
}
