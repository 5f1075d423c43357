//! External resources through processes on a real etcd: said by other systems over mutual TLS, by commands, and by an
//! operator that is killed in the middle of it.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::Arc,
    time::Duration,
};

use common::{command, said, secured::Secured, villus, villus_with_input};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime::Runtime,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    },
};
use villus_external::Record;
use villus_kvstore::{Etcd, EtcdOptions, IpIdentityPair, Store};
use villus_testbed::{EtcdServer, eventually, free_port};

/// An operator under way. Killed with this value: kill -9.
struct Operator {
    child: Child,
    socket: PathBuf,
}

impl Operator {
    fn start(server: &EtcdServer, directory: &Path, more: &[&str]) -> Self {
        let socket = directory.join("operator.sock");
        let args = ["operator", "--cluster-name", "c7", "--cluster-id", "7", "--kvstore-opt"];
        let child = command(&args)
            .arg(format!("etcd.address={}", server.url()))
            .arg("--operator-socket")
            .arg(&socket)
            .args(more)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let started = Self { child, socket };
        eventually("the operator answers", || {
            started.asks("GET", "/v1/external", None).is_ok_and(|(status, _)| status == 200)
        });
        started
    }

    /// Asks over its socket.
    fn asks(&self, method: &str, path: &str, body: Option<&Value>) -> Result<(u16, Value), String> {
        let mut stream = UnixStream::connect(&self.socket).map_err(|error| error.to_string())?;
        let request = request(method, path, body.map(Value::to_string).unwrap_or_default().as_bytes());
        stream.write_all(&request).map_err(|error| error.to_string())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).map_err(|error| error.to_string())?;
        answered(&answer)
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn request(method: &str, path: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

fn answered(answer: &[u8]) -> Result<(u16, Value), String> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| format!("no answer: {text}"))?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or("no status")?;
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    assert!(!chunked, "answers have a length");
    let value = serde_json::from_str(body).map_err(|error| format!("{error}: {body}"))?;
    Ok((status, value))
}

/// Another system, with or without a certificate.
struct System {
    runtime: Runtime,
    port: u16,
    authority: PathBuf,
    identity: Option<(PathBuf, PathBuf)>,
}

impl System {
    fn new(port: u16, pki: &Path, user: Option<PathBuf>) -> Self {
        let identity = user.map(|path| (path.with_extension("crt"), path.with_extension("key")));
        let (runtime, authority) = (Runtime::new().unwrap(), pki.join("ca.crt"));
        Self { runtime, port, authority, identity }
    }

    fn asks(&self, method: &str, path: &str, body: &str) -> Result<(u16, Value), String> {
        self.sends(&request(method, path, body.as_bytes()))
    }

    fn sends(&self, request: &[u8]) -> Result<(u16, Value), String> {
        let talk = async {
            let mut stream = self.connect().await?;
            stream.write_all(request).await?;
            let mut answer = Vec::new();
            // Who hangs up without a word has said all the same what it said.
            let ended = stream.read_to_end(&mut answer).await;
            if answer.is_empty() {
                ended?;
            }
            std::io::Result::Ok(answer)
        };
        let answer = self.runtime.block_on(talk).map_err(|error| error.to_string())?;
        answered(&answer)
    }

    /// The certificate that the server shows.
    fn is_shown(&self) -> Vec<u8> {
        let stream = self.runtime.block_on(self.connect()).unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    }

    async fn connect(&self) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(&self.authority).unwrap() {
            roots.add(certificate.unwrap()).unwrap();
        }
        let config = ClientConfig::builder().with_root_certificates(roots);
        let config = match &self.identity {
            Some((certificate, key)) => {
                let chain = CertificateDer::pem_file_iter(certificate).unwrap().map(Result::unwrap).collect();
                config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(key).unwrap()).unwrap()
            }
            None => config.with_no_client_auth(),
        };
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        let name = ServerName::try_from("127.0.0.1").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }
}

/// An authority with a server and two users, and another with one user.
fn certificates(directory: &Path) -> (PathBuf, PathBuf) {
    let (pki, strange) = (directory.join("pki"), directory.join("strange"));
    for dir in [&pki, &strange] {
        let at = ["--dir", dir.to_str().unwrap()];
        villus(&[&["certs", "init"], &at[..]].concat()).ok();
        villus(&[&["certs", "user", "openstack"], &at[..]].concat()).ok();
    }
    let at = ["--dir", pki.to_str().unwrap()];
    villus(&[&["certs", "server", "operator", "--address", "127.0.0.1"], &at[..]].concat()).ok();
    villus(&[&["certs", "user", "nobody"], &at[..]].concat()).ok();
    (pki, strange)
}

fn value(server: &EtcdServer, key: &str) -> String {
    server.etcdctl(&["get", key, "--print-value-only"]).unwrap().trim().to_owned()
}

#[test]
fn other_systems_say_resources_over_mutual_tls_and_only_those_who_may() {
    let server = EtcdServer::start();
    let directory = tempfile::tempdir().unwrap();
    let (pki, strange) = certificates(directory.path());
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let file = |name: &str| pki.join(name).display().to_string();
    let (certificate, key, authority) =
        (file("servers/operator.crt"), file("servers/operator.key"), file("ca.crt"));
    let door = [
        "--external-serve-addr",
        &address,
        "--external-cert-file",
        &certificate,
        "--external-key-file",
        &key,
        "--external-ca-file",
        &authority,
        "--external-user",
        "openstack",
    ];
    let _operator = Operator::start(&server, directory.path(), &door);
    let openstack = System::new(port, &pki, Some(pki.join("users/openstack")));

    let db = r#"{"kind":"vm","addresses":["10.9.0.5","fd00:9::5"],"labels":["app=db"]}"#;
    let (status, said) = openstack.asks("PUT", "/v1/external/db-7", db).unwrap();
    assert_eq!((status, &said["result"]), (201, &json!("created")), "{said}");
    // The store has it when the answer is there.
    let id = said["resource"]["status"]["identity"].as_u64().unwrap();
    let written = value(&server, "cilium/state/ip/v1/default/10.9.0.5");
    assert!(
        written.contains(&format!("\"ID\":{id}")) && written.contains("villus-external:c7:db-7"),
        "{written}"
    );
    assert_eq!(said["resource"]["status"]["author"], "openstack");
    let (status, said) = openstack.asks("PUT", "/v1/external/db-7", db).unwrap();
    assert_eq!((status, &said["result"]), (200, &json!("unchanged")));
    let (status, one) = openstack.asks("GET", "/v1/external/db-7", "").unwrap();
    assert_eq!((status, &one["spec"]["kind"]), (200, &json!("vm")));
    let (status, said) = openstack.asks("PUT", "/v1/external/db-7", &one.to_string()).unwrap();
    assert_eq!((status, &said["result"]), (200, &json!("unchanged")), "what is got can be put: {said}");
    let moved = db.replace("app=db", "app=web");
    let (status, said) = openstack.asks("PUT", "/v1/external/db-7?dry-run=true", &moved).unwrap();
    assert_eq!((status, &said["result"]), (200, &json!("updated")), "{said}");
    assert_eq!(openstack.asks("GET", "/v1/external/db-7", "").unwrap().1, one, "a dry run changes nothing");

    let batch = r#"[{"name":"a","addresses":["10.9.0.6"],"labels":["app=a"]},
        {"name":"b","addresses":["10.9.0.5"],"labels":["app=a"]},
        {"name":"c","addresses":["10.9.0.7"],"labels":["app=a"],"ttl":"1h"}]"#;
    let (status, said) = openstack.asks("POST", "/v1/external", batch).unwrap();
    assert_eq!((status, &said["counts"]), (409, &json!({"created": 2, "refused": 1})), "{said}");
    assert_eq!(
        said["items"][1]["error"]["message"],
        "10.9.0.5 belongs to external resource db-7 of cluster c7"
    );

    for (method, path, body, status, part) in [
        (
            "PUT",
            "/v1/external/x",
            r#"{"addresses":["10.9.0.300"],"labels":["app=a"]}"#,
            400,
            r#""field":"addresses[0]""#,
        ),
        (
            "PUT",
            "/v1/external/x",
            r#"{"addresses":["10.9.0.8"],"labels":["reserved:host"]}"#,
            400,
            r#""field":"labels[0]""#,
        ),
        (
            "PUT",
            "/v1/external/x",
            r#"{"addresses":["10.9.0.8"],"labels":["app=a"],"identity":7}"#,
            400,
            "an identity is not chosen",
        ),
        (
            "PUT",
            "/v1/external/a%2Fb",
            r#"{"addresses":["10.9.0.8"],"labels":["app=a"]}"#,
            400,
            r#""field":"name""#,
        ),
        ("PUT", "/v1/external/x", "{", 400, "no JSON"),
        ("PUT", "/v1/external/x?force", db, 400, "dry-run=true"),
        (
            "POST",
            "/v1/external",
            r#"[{"name":"x","addresses":["10.9.0.8"],"labels":["app=a"]},{"name":"x","addresses":["10.9.0.9"],"labels":["app=a"]}]"#,
            400,
            "is there twice",
        ),
        ("DELETE", "/v1/external", r#"{"names":"x"}"#, 400, "names"),
        ("GET", "/v1/external/x", "", 404, "no external resource x"),
        ("PATCH", "/v1/external/x", "", 405, "GET, PUT and DELETE"),
        ("GET", "/v1/operator", "", 404, "/v1/external"),
    ] {
        let (found, said) = openstack.asks(method, path, body).unwrap();
        assert!(found == status && said.to_string().contains(part), "{method} {path} {body}: {found} {said}");
    }
    let head = format!(
        "POST /v1/external HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        33 << 20
    );
    let (status, said) = openstack.sends(head.as_bytes()).unwrap();
    assert!(status == 413 && said.to_string().contains("several requests"), "{status} {said}");

    let nobody = System::new(port, &pki, Some(pki.join("users/nobody")));
    let (status, said) = nobody.asks("GET", "/v1/external", "").unwrap();
    assert!(status == 403 && said.to_string().contains("`nobody`"), "{status} {said}");
    let stranger = System::new(port, &pki, Some(strange.join("users/openstack")));
    assert!(stranger.asks("GET", "/v1/external", "").is_err(), "the name is right, the authority is not");
    assert!(System::new(port, &pki, None).asks("GET", "/v1/external", "").is_err());

    let (status, said) = openstack.asks("DELETE", "/v1/external/db-7", "").unwrap();
    assert_eq!((status, &said["result"]), (200, &json!("deleted")));
    assert_eq!(value(&server, "cilium/state/ip/v1/default/10.9.0.5"), "");
    assert_eq!(openstack.asks("DELETE", "/v1/external/db-7", "").unwrap().1["result"], "absent");
    let (status, said) = openstack.asks("DELETE", "/v1/external", r#"{"names":["a","c","z"]}"#).unwrap();
    assert_eq!((status, &said["counts"]), (200, &json!({"absent": 1, "deleted": 2})));

    // Files that can't be used are said before anything runs.
    let wrong = [&door[..5], &[authority.as_str()], &door[6..]].concat();
    let store = format!("etcd.address={}", server.url());
    let args = [&["operator", "--kvstore-opt", &store], &wrong[..]].concat();
    let error = said_by(&args).fails(1);
    assert!(error.contains("ca.crt") && error.contains("the key of the server's certificate"), "{error}");
    let error = said_by(&["operator", "--kvstore-opt", &store, "--external-serve-addr", &address]).fails(2);
    assert!(error.contains("--external-user"), "{error}");
}

#[test]
fn renewed_certificates_are_served_without_a_restart_and_broken_ones_are_not() {
    let server = EtcdServer::start();
    let directory = tempfile::tempdir().unwrap();
    let (pki, strange) = certificates(directory.path());
    let port = free_port();
    let file = |name: &str| pki.join(name).display().to_string();
    let (certificate, key, authority) =
        (file("servers/operator.crt"), file("servers/operator.key"), file("clients.crt"));
    std::fs::copy(pki.join("ca.crt"), &authority).unwrap();
    let address = format!("127.0.0.1:{port}");
    let door = [
        ("--external-serve-addr", address.as_str()),
        ("--external-cert-file", &certificate),
        ("--external-key-file", &key),
        ("--external-ca-file", &authority),
        ("--external-user", "openstack"),
    ];
    let door: Vec<&str> = door.iter().flat_map(|(option, value)| [*option, *value]).collect();
    let operator = Operator::start(&server, directory.path(), &door);
    let openstack = System::new(port, &pki, Some(pki.join("users/openstack")));
    let first = openstack.is_shown();

    // One that is half written is looked at, and does not replace what is good.
    let good = std::fs::read(&certificate).unwrap();
    std::fs::write(&certificate, &good[..good.len() / 2]).unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(openstack.is_shown(), first);
    std::fs::write(&certificate, &good).unwrap();
    let renew =
        ["certs", "renew", "operator", "--within", "9999", "--new-key", "--dir", pki.to_str().unwrap()];
    villus(&renew).ok();
    eventually("the new certificate is shown", || openstack.is_shown() != first);
    assert_eq!(openstack.asks("GET", "/v1/external", "").unwrap().0, 200);

    // Clients of an authority that comes to the file are let in, those of one that goes are not.
    let mut stranger = System::new(port, &pki, Some(strange.join("users/openstack")));
    assert!(stranger.asks("GET", "/v1/external", "").is_err());
    std::fs::copy(strange.join("ca.crt"), &authority).unwrap();
    eventually("the other authority counts", || {
        stranger.asks("GET", "/v1/external", "").is_ok_and(|(status, _)| status == 200)
    });
    assert!(openstack.asks("GET", "/v1/external", "").is_err());
    stranger.identity = None;
    assert!(stranger.asks("GET", "/v1/external", "").is_err());
    assert!(operator.asks("GET", "/v1/operator", None).is_ok(), "it is the same process");
}

fn said_by(args: &[&str]) -> common::Said {
    said(&command(args).output().unwrap())
}

const FILE: &str = "\
apiVersion: villus.io/v1alpha1
kind: ExternalResource
metadata: {name: db-7}
spec: {kind: vm, addresses: [10.9.0.5], labels: [\"k8s:app=db\"]}
---
apiVersion: villus.io/v1alpha1
kind: ExternalResource
metadata: {name: gpu-1}
spec: {kind: baremetal, addresses: [10.9.1.1], labels: [\"k8s:app=gpu\"], ttl: 1h}
";

#[test]
fn commands_say_list_and_delete_resources_without_an_agent_or_an_operator() {
    let server = EtcdServer::start();
    let option = format!("etcd.address={}", server.url());
    let place = ["--kvstore-opt", &option, "--cluster-name", "c7", "--cluster-id", "7"];
    let external = |args: &[&str]| villus(&[&["external"], args, &place].concat());
    let import = |text: &str, more: &[&str]| {
        villus_with_input(&[&["external", "import", "-"], more, &place].concat(), text)
    };
    let text = import(FILE, &["--dry-run"]).ok();
    assert!(text.contains("db-7 would be created") && text.contains("2 of 2 resources would be"), "{text}");
    assert_eq!(external(&["list"]).ok().lines().count(), 1, "only the heading");
    assert!(import(FILE, &[]).ok().contains("gpu-1 created, identity "));
    let rows: Value = serde_json::from_str(&import(FILE, &["-o", "json"]).ok()).unwrap();
    assert_eq!((&rows[0]["result"], &rows[1]["result"]), (&json!("unchanged"), &json!("renewed")), "{rows}");
    let added = [
        "add",
        "web",
        "--kind",
        "pod",
        "--address",
        "10.9.0.6",
        "--address",
        "fd00:9::6",
        "--label",
        "app=web",
        "--behind",
        "10.3.9.10",
    ];
    assert!(external(&added).ok().contains("web created, identity"));
    let list = external(&["list"]).ok();
    for part in ["db-7", "10.9.0.6,fd00:9::6", "k8s:app=web", "10.3.9.10", "baremetal"] {
        assert!(list.contains(part), "{list}");
    }
    let text = external(&["get", "web"]).ok();
    assert!(text.contains("Identity labels:  k8s:app=web,k8s:io.cilium.k8s.policy.cluster=c7"), "{text}");
    let all = external(&["list", "-o", "json"]).ok();
    let text = external(&["delete", "-f", "-", "--dry-run"]);
    assert_eq!(text.ok(), "", "nothing is named on an empty input");
    assert!(external(&["delete", "db-7", "gpu-1", "web"]).ok().contains("db-7 deleted"));
    assert!(import(&all, &[]).ok().contains("3 of 3 resources as asked for"), "a list is a backup");

    let conflict = external(&["add", "thief", "--address", "10.9.0.5", "--label", "app=x"]);
    assert!(
        conflict.out.contains("thief refused: 10.9.0.5 belongs to external resource db-7"),
        "{conflict:?}"
    );
    assert_eq!(conflict.code, 1);
    for (said, code, parts) in [
        (
            import(&FILE.replace("k8s:app=db", "reserved:host"), &[]),
            1,
            &["standard input: document 1: resource db-7: spec.labels[0]", "nothing was written"][..],
        ),
        (import(&FILE.replace("10.9.1.1", "10.9.0.5"), &[]), 1, &["10.9.0.5 is also one of resource db-7"]),
        (external(&["add", "x", "--address", "10.9.0", "--label", "app=x"]), 2, &["10.9.0"]),
        (
            external(&["add", "x", "--address", "10.9.0.9", "--label", "app=x", "--node", "nowhere"]),
            1,
            &["no node `nowhere`"],
        ),
        (
            external(&["add", "x", "--address", "10.9.0.9", "--label", "app=x", "--ttl", "1s"]),
            1,
            &["ttl", "10s"],
        ),
        (external(&["get", "x"]), 1, &["no external resource x"]),
        (villus(&["external", "list"]), 1, &["no shared store is configured"]),
    ] {
        let error = said.fails(code);
        for part in parts {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
    server.etcdctl(&["put", "cilium/cluster-config/c7", r#"{"id":9}"#]).unwrap();
    let error = external(&["list"]).fails(1);
    assert!(error.contains("cluster-id is 9 there and 7 here"), "{error}");
}

#[test]
fn the_author_of_a_resource_is_the_user_of_the_certificate() {
    let directory = tempfile::tempdir().unwrap();
    let secured = Secured::new(directory.path(), "node1", "10.15.0.0/24");
    let option = secured.option("users/op");
    let place = ["--kvstore-opt", &option, "--cluster-name", "c1", "--cluster-id", "1"];
    let external = |args: &[&str]| villus(&[&["external"], args, &place].concat()).ok();
    external(&["add", "db-7", "--address", "10.9.0.5", "--label", "app=db"]);
    let record: Value = serde_json::from_str(&external(&["get", "db-7", "-o", "json"])).unwrap();
    let author = record["status"]["author"].as_str().unwrap();
    assert!(author.starts_with("op (") && author.contains('@'), "{record}");
}

/// What is there of resources, looked at from outside: that each is whole, and nothing lies about without one.
fn whole(runtime: &Runtime, store: &Arc<dyn Store>) -> BTreeMap<String, Record> {
    let entries = runtime.block_on(store.list_prefix("")).unwrap().entries;
    let all: BTreeMap<&str, &str> =
        entries.iter().map(|entry| (&*entry.key, entry.text().unwrap())).collect();
    let mut records = BTreeMap::new();
    let prefix = "villus/external/v1/c7/resources/";
    for entry in entries.iter().filter(|entry| entry.key.starts_with(prefix)) {
        let record = Record::read(entry).unwrap();
        let (id, labels) = (record.identity.to_string(), record.identity_labels.as_str());
        assert_eq!(all.get(format!("cilium/state/identities/v1/id/{id}").as_str()), Some(&labels));
        let user = format!("cilium/state/identities/v1/value/{labels}/external.c7");
        assert_eq!(all.get(user.as_str()), Some(&id.as_str()), "{record:?}");
        for address in &record.addresses {
            let key = format!("cilium/state/ip/v1/default/{address}");
            let value = all.get(key.as_str()).unwrap_or_else(|| panic!("{key} is missing: {record:?}"));
            let (_, pair) = IpIdentityPair::read(&key, value.as_bytes()).unwrap();
            assert_eq!((pair.id, pair.pod.as_str()), (record.identity.0, record.name.as_str()));
        }
        records.insert(record.name.clone(), record);
    }
    for (key, value) in all.iter().filter(|(key, _)| key.starts_with("cilium/state/ip/")) {
        let (_, pair) = IpIdentityPair::read(key, value.as_bytes()).unwrap();
        let record = records.get(&pair.pod).unwrap_or_else(|| panic!("{key} has no resource"));
        assert!(record.addresses.contains(&pair.ip), "{key}");
    }
    records
}

#[test]
fn an_operator_that_is_killed_at_any_moment_leaves_no_half_resource_and_the_next_one_finishes() {
    let server = EtcdServer::start();
    let directory = tempfile::tempdir().unwrap();
    let runtime = Runtime::new().unwrap();
    let store: Arc<dyn Store> = {
        let mut options = EtcdOptions::new(vec![server.url()]);
        options.qps = 1000;
        let _inside = runtime.enter();
        Arc::new(Etcd::new(options).unwrap())
    };
    // Each round says all of them, some with other addresses and labels than before.
    let batch = |round: u32| -> Value {
        let one = |n: u32| {
            let turn = if n.is_multiple_of(3) { round } else { 0 };
            json!({
                "name": format!("vm-{n}"),
                "addresses": [format!("10.9.{}.{n}", 2 * turn), format!("fd00:9:{turn}::{n}")],
                "labels": [format!("app=a{}", (n + turn) % 40)],
            })
        };
        (0..240).map(one).collect()
    };
    let mut chance = fastrand::Rng::with_seed(7);
    for round in 0..8 {
        let mut operator = Operator::start(
            &server,
            directory.path(),
            &["--identity-gc-interval", "1s", "--identity-gc-grace", "0"],
        );
        let socket = operator.socket.clone();
        let body = request("POST", "/v1/external", batch(round).to_string().as_bytes());
        let asks = std::thread::spawn(move || {
            let mut stream = UnixStream::connect(socket)?;
            stream.write_all(&body)?;
            stream.read_to_end(&mut Vec::new())
        });
        std::thread::sleep(Duration::from_millis(chance.u64(0..400)));
        operator.child.kill().unwrap();
        operator.child.wait().unwrap();
        // It was answered, or the connection was cut.
        let _ = asks.join().unwrap();
        whole(&runtime, &store);
    }
    let operator = Operator::start(&server, directory.path(), &[]);
    let (status, said) = operator.asks("POST", "/v1/external", Some(&batch(9))).unwrap();
    assert_eq!(status, 200, "{said}");
    let records = whole(&runtime, &store);
    assert_eq!(records.len(), 240);
    assert!(records["vm-3"].addresses.contains(&"10.9.18.3".parse().unwrap()));
    // Gone for good, nothing of it goes away; and what is deleted is gone with all its keys.
    drop(operator);
    assert_eq!(whole(&runtime, &store), records);
    let operator = Operator::start(&server, directory.path(), &[]);
    let names: Vec<&String> = records.keys().collect();
    let (status, said) = operator.asks("DELETE", "/v1/external", Some(&json!({"names": names}))).unwrap();
    assert_eq!((status, &said["counts"]["deleted"]), (200, &json!(240)));
    assert!(whole(&runtime, &store).is_empty());
}
