//! The directory of certificates: what is made, kept, renewed and refused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use proptest::prelude::*;
use tempfile::TempDir;
use villus_certs::{Found, Holder, Pki, Renewal, kubernetes};

fn lab() -> (TempDir, Pki) {
    let directory = tempfile::tempdir().unwrap();
    let pki = Pki::at(&directory.path().join("pki"));
    pki.init("villus-ca", 3650).unwrap();
    (directory, pki)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn each_agent_has_its_own_user_and_all_have_one_group() {
    let (_directory, pki) = lab();
    for node in ["node1", "node2.example.org"] {
        let issued = pki.issue(&Holder::agent(node).unwrap(), 365).unwrap();
        assert_eq!(issued.found.common_name, format!("villus:agent:{node}"));
        assert_eq!(issued.found.organisation.as_deref(), Some("villus:agents"));
        assert!(!issued.found.is_authority && (364..=365).contains(&issued.days), "{issued:?}");
        assert_eq!((mode(&issued.key), mode(&issued.certificate)), (0o600, 0o644));
    }
    let addresses = ["10.0.0.1".to_owned(), "fd00::1".to_owned(), "etcd1.example.org".to_owned()];
    let server = pki.issue(&Holder::server("etcd1", &addresses).unwrap(), 365).unwrap();
    assert_eq!(server.found.addresses, addresses);
    pki.issue(&Holder::user("root", None).unwrap(), 365).unwrap();
    let list: Vec<String> =
        pki.list().unwrap().into_iter().map(|one| one.unwrap().found.common_name).collect();
    assert_eq!(list, ["villus-ca", "villus:agent:node1", "villus:agent:node2.example.org", "etcd1", "root"]);
    assert_eq!(mode(&pki.authority().unwrap().key), 0o600);
}

#[test]
fn nothing_that_is_there_is_written_over() {
    let (directory, pki) = lab();
    let before = fs::read(directory.path().join("pki/ca.key")).unwrap();
    let error = pki.init("another", 10).unwrap_err().to_string();
    assert!(error.contains("ca.crt") && error.contains("worth nothing"), "{error}");
    fs::remove_file(directory.path().join("pki/ca.crt")).unwrap();
    assert!(pki.init("another", 10).unwrap_err().to_string().contains("ca.key"), "half of one is one, too");
    assert_eq!(fs::read(directory.path().join("pki/ca.key")).unwrap(), before);

    let (_directory, pki) = lab();
    let holder = Holder::agent("node1").unwrap();
    pki.issue(&holder, 10).unwrap();
    assert!(pki.issue(&holder, 10).unwrap_err().to_string().contains("villus certs renew"));
}

#[test]
fn renewing_keeps_the_key_and_touches_only_what_ends_soon() {
    let (_directory, pki) = lab();
    let (soon, late) = (Holder::agent("soon").unwrap(), Holder::agent("late").unwrap());
    let old = pki.issue(&soon, 5).unwrap();
    pki.issue(&late, 300).unwrap();
    let key = fs::read(&old.key).unwrap();
    let renewal = Renewal { days: 365, within: 30, ..Renewal::default() };
    let would = pki.renew(&Renewal { dry_run: true, ..renewal.clone() }).unwrap();
    assert!(would.len() == 1 && would[0].certificate == old.certificate, "{would:?}");
    assert_eq!(would[0].found, old.found);
    let renewed = pki.renew(&renewal).unwrap();
    assert_eq!(renewed.len(), 1);
    assert!(renewed[0].days > 300 && renewed[0].holder == Some(soon), "{renewed:?}");
    assert_eq!(fs::read(&old.key).unwrap(), key);
    assert!(pki.renew(&renewal).unwrap().is_empty());
    let named = Renewal { within: i64::MAX, names: vec!["late".into()], new_key: true, ..renewal.clone() };
    let before =
        fs::read(pki.renew(&Renewal { dry_run: true, ..named.clone() }).unwrap()[0].key.clone()).unwrap();
    let after = pki.renew(&named).unwrap();
    assert_ne!(fs::read(&after[0].key).unwrap(), before);
    assert_eq!(mode(&after[0].key), 0o600);
    let unknown = Renewal { names: vec!["nobody".into()], ..renewal };
    assert!(pki.renew(&unknown).unwrap_err().to_string().contains("nobody"));
}

#[test]
fn what_cannot_be_is_refused_with_a_way_out() {
    let (directory, pki) = lab();
    for (holder, part) in [
        (Holder::agent("../../etc/passwd"), "is no name"),
        (Holder::agent("Node1"), "small letters"),
        (Holder::agent(""), "is no name"),
        (Holder::agent(&"n".repeat(52)), "51 letters"),
        (Holder::server("etcd", &[]), "--address"),
        (Holder::server("etcd", &["not a host".into()]), "is no name"),
        (Holder::user("villus:agent:node1", None), "is no name"),
        (Holder::user("ann", Some("villus:agents")), "--group"),
    ] {
        let error = holder.unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    let holder = Holder::agent("node1").unwrap();
    let error = pki.issue(&holder, 4000).unwrap_err().to_string();
    assert!(error.contains("ends in 36") && error.contains("--days"), "{error}");
    let nowhere = Pki::at(&directory.path().join("nowhere"));
    assert!(nowhere.issue(&holder, 1).unwrap_err().to_string().contains("villus certs init"));
    // A damaged authority, a damaged certificate, the certificate of another.
    pki.issue(&holder, 10).unwrap();
    let agents = directory.path().join("pki/agents");
    fs::copy(agents.join("node1.crt"), agents.join("node2.crt")).unwrap();
    fs::write(agents.join("node3.crt"), "-----BEGIN CERT").unwrap();
    let wrong: Vec<String> =
        pki.list().unwrap().into_iter().filter_map(Result::err).map(|error| error.to_string()).collect();
    assert!(wrong[0].contains("node2.crt") && wrong[0].contains("not of"), "{wrong:?}");
    assert!(wrong[1].contains("node3.crt"), "{wrong:?}");
    fs::write(directory.path().join("pki/ca.key"), "").unwrap();
    let error = pki.issue(&Holder::agent("node9").unwrap(), 1).unwrap_err().to_string();
    assert!(error.contains("ca.key"), "{error}");
    assert!(!agents.join("node9.key").exists(), "nothing is left of it");
}

#[test]
fn kubernetes_tells_agents_apart_by_user() {
    let objects = kubernetes::objects();
    let kinds: Vec<&str> = objects.iter().map(|object| object["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["ClusterRole", "ClusterRoleBinding", "PriorityLevelConfiguration", "FlowSchema"]);
    let schema = &objects[3]["spec"];
    assert_eq!(schema["distinguisherMethod"]["type"], "ByUser");
    assert_eq!(schema["rules"][0]["subjects"][0]["group"]["name"], "villus:agents");
    assert_eq!(schema["priorityLevelConfiguration"]["name"], objects[2]["metadata"]["name"]);
    let rules = objects[0]["rules"].as_array().unwrap();
    assert!(
        rules.iter().all(|rule| rule["verbs"] == serde_json::json!(["get", "list", "watch"])),
        "agents only read"
    );
}

proptest! {
    #[test]
    fn no_bytes_are_too_strange_for_a_certificate(bytes in prop::collection::vec(any::<u8>(), 0..300), at in any::<usize>()) {
        let _ = Found::parse(&bytes);
        let (_directory, pki) = lab();
        let mut whole = fs::read(pki.authority().unwrap().certificate).unwrap();
        let at = at % whole.len();
        whole.splice(at..(at + bytes.len().min(3)).min(whole.len()), bytes);
        let _ = Found::parse(&whole);
    }
}
