//! The commands against an agent: endpoints, policies, traffic, verdicts and explanations, emergencies.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;

use std::{
    io::Write,
    process::{Child, Command, Stdio},
    time::Duration,
};

use common::{Said, command_in_sandbox as command, secured::Secured};
use villus_testbed::{EtcdServer, alone, eventually, run};

/// The demo's policy, in the test's own /tmp: the checkout may lie below the one that it hides.
const POLICY: &str = "/tmp/policy.yaml";

/// An agent and workloads; its end ends them.
struct Node {
    agent: Child,
    servers: Vec<Child>,
}

impl Node {
    fn new() -> Self {
        Self::with(&[])
    }

    fn with(options: &[&str]) -> Self {
        std::fs::write(POLICY, include_str!("../../../demo/policy.yaml")).unwrap();
        let agent = command(&["agent", "--socket-path", "/tmp/villus.sock", "--endpoint-max", "64"])
            .args(options)
            .args(["--ipv4-range", "10.15.0.0/24", "--ipv6-range", "fd15::/112"])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        villus(&["status", "--wait"]).ok();
        Self { agent, servers: Vec::new() }
    }

    fn workload(name: &str) {
        run("ip", &["netns", "add", name]);
        let labels = format!("k8s:app={name}");
        let text = villus(&["endpoint", "add", "--netns", name, "--name", name, "--labels", &labels]).ok();
        assert!(text.starts_with("endpoint ") && text.contains(", identity ") && text.ends_with(", ready\n"));
    }

    fn serve(&mut self, name: &str, port: u16) {
        let listen = format!("TCP6-LISTEN:{port},ipv6only=0,reuseaddr,fork");
        let server = Command::new("ip").args(["netns", "exec", name, "socat", &listen, "EXEC:cat"]).spawn();
        self.servers.push(server.unwrap());
        let port = format!(":{port}");
        eventually("the server listens", || {
            run("ip", &["netns", "exec", name, "ss", "-Hltn"]).contains(&port)
        });
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for child in self.servers.iter_mut().chain([&mut self.agent]) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn villus(args: &[&str]) -> Said {
    common::said(&command(args).output().unwrap())
}

/// Whether a question is answered.
fn asks(who: &str, address: &str, port: &str) -> bool {
    asks_within("60", who, address, port)
}

/// Whether a question is not answered.
fn asks_in_vain(who: &str, address: &str, port: &str) -> bool {
    !asks_within("1", who, address, port)
}

fn asks_within(seconds: &str, who: &str, address: &str, port: &str) -> bool {
    let script = format!("exec 3<>/dev/tcp/{address}/{port} && echo hello >&3 && read -r line <&3");
    let args = ["netns", "exec", who, "timeout", seconds, "bash", "-c", &script];
    Command::new("ip").args(args).stderr(Stdio::null()).status().unwrap().success()
}

fn of(endpoint: &str, path: &str) -> String {
    villus(&["endpoint", "get", endpoint, "-o", &format!("jsonpath={{[0].{path}}}")]).ok()
}

#[test]
fn from_endpoints_to_explanations() {
    alone!();
    let mut node = Node::new();
    for name in ["client", "server", "intruder"] {
        Node::workload(name);
    }
    node.serve("server", 8080);
    let address = of("server", "status.networking.addressing[0].ipv4");
    let list = villus(&["endpoint", "list"]).ok();
    assert_eq!(list.matches(" ready\n").count(), 3, "{list}");
    assert_eq!(list.matches("k8s:app=server").count(), 1, "{list}");
    assert!(asks("intruder", &address, "8080"), "no policy");

    let dry = villus(&["policy", "import", "--dry-run", POLICY]).ok();
    assert!(dry.contains("default/server would be added"), "{dry}");
    assert!(asks("intruder", &address, "8080"), "a dry run");
    let text = villus(&["policy", "import", "--wait", POLICY]).ok();
    assert!(
        text.contains("default/server added") && text.contains("every endpoint is at revision"),
        "{text}"
    );
    assert!(asks("client", &address, "8080"));
    assert!(asks_in_vain("intruder", &address, "8080"));

    let mut drops = String::new();
    eventually("the agent has heard of it", || {
        drops = villus(&["monitor", "--last", "100", "--no-follow", "--type", "drop", "-j"]).ok();
        !drops.is_empty()
    });
    // A busy machine says it again before it gives up.
    let drop = drops.lines().next().unwrap();
    assert!(drops.lines().all(|line| line.contains("8080")), "{drops}");
    let lines = villus(&["monitor", "--last", "100", "--no-follow", "--from", &of("intruder", "id")]).ok();
    assert!(lines.contains("xx drop (Policy denied) flow 0x"), "{lines}");

    let by_name = villus(&["why", "intruder", "server", "8080/tcp"]).ok();
    assert!(by_name.contains("Kernel's maps: DROPPED (133 Policy denied)"), "{by_name}");
    assert!(by_name.contains("ingress policy") && by_name.contains("<- decided"), "{by_name}");
    let mut asked =
        command(&["why", "--event"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    asked.stdin.take().unwrap().write_all(drop.as_bytes()).unwrap();
    let by_event = String::from_utf8_lossy(&asked.wait_with_output().unwrap().stdout).into_owned();
    assert!(by_event.contains("DROPPED (133 Policy denied)"), "{by_event}");
    assert!(villus(&["why", "client", "server", "8080"]).ok().contains("FORWARDED"));

    let id = of("server", "id");
    let map = villus(&["bpf", "policy", "get", &id]).ok();
    assert!(map.contains("k8s:app=client") && map.contains("8080/TCP"), "{map}");
    let numbers = villus(&["bpf", "policy", "get", &id, "-n"]).ok();
    assert!(numbers.contains(&of("client", "status.identity.id")), "{numbers}");
    assert!(villus(&["policy", "verify"]).ok().contains(": 0 differ\n"));
    let who = villus(&["policy", "who-can", "app=server", "8080", "--from-kernel"]).ok();
    assert!(who.contains("k8s:app=client") && !who.contains("k8s:app=intruder"), "{who}");
    villus(&["bpf", "policy", "add", &id, "ingress", &of("intruder", "status.identity.id"), "8080/tcp"]).ok();
    let who = villus(&["policy", "who-can", "server", "8080", "--from-kernel"]);
    assert!(who.out.contains("k8s:app=intruder"), "{who:?}");
    assert!(who.fails(3).contains("8080/TCP: hand-made, wanted nothing, found allow"));
    villus(&["emergency", "undo", "--all"]).ok();
    eventually("nothing is by hand any more", || !villus(&["status"]).ok().contains("by hand"));
    for (args, needle) in [
        (&["identity", "list"][..], "k8s:app=intruder"),
        (&["ip", "list", "-n"], "10.15.0.2/32"),
        (&["policy", "selectors"], "app=client"),
        (&["policy", "get", "server"], "\"name\": \"server\""),
        (&["map", "list"], "cilium_policy_00002"),
        (&["config", "get", "cluster-name"], "default"),
        (&["endpoint", "healthz", "server"], "OK"),
        (&["endpoint", "log", "server"], "ready"),
        (&["status", "--verbose"], "KERNEL FEATURE"),
        (&["version"], "Agent:  0.1.0"),
    ] {
        let text = villus(args).ok();
        assert!(text.contains(needle), "{args:?}: {text}");
    }
    let text = villus(&["policy", "delete", "server"]).ok();
    assert!(text.contains("default/server deleted"), "{text}");
    eventually("open again", || asks("intruder", &address, "8080"));
    assert!(villus(&["endpoint", "get", "nobody"]).fails(1).contains("nobody"));
    assert!(villus(&["endpoint", "delete", "client"]).ok().contains("deleted"));
}

/// A policy that refers to a group, to a service and to a port by name, and what it refers to.
const REFERRING: &str = "apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: client}
spec:
  endpointSelector: {matchLabels: {app: client}}
  egress:
  - toCIDRSet: [{cidrGroupRef: friends}]
    toPorts: [{ports: [{port: \"443\", protocol: TCP}]}]
  - toServices: [{k8sService: {serviceName: api, namespace: default}}]
    toPorts: [{ports: [{port: http, protocol: TCP}]}]
---
apiVersion: cilium.io/v2
kind: CiliumCIDRGroup
metadata: {name: friends}
spec: {externalCIDRs: [198.51.100.0/24]}
---
apiVersion: v1
kind: Service
metadata: {name: api}
spec: {selector: {app: server}}
";

#[test]
fn what_policies_refer_to_is_shown_and_reasoned_with_as_the_agent_knows_it() {
    alone!();
    let node = Node::new();
    Node::workload("client");
    run("ip", &["netns", "add", "server"]);
    villus(&[
        "endpoint",
        "add",
        "--netns",
        "server",
        "--labels",
        "k8s:app=server",
        "--port",
        "http=8080/TCP",
    ])
    .ok();
    std::fs::write("/tmp/referring.yaml", REFERRING).unwrap();
    villus(&["policy", "import", "--wait", "/tmp/referring.yaml"]).ok();

    let all = villus(&["policy", "get"]).ok();
    for needle in
        ["CiliumCIDRGroup friends comes from api", "Service default/api comes from api", "198.51.100.0/24"]
    {
        assert!(all.contains(needle), "{needle}: {all}");
    }
    let group = villus(&["policy", "get", "friends"]).ok();
    assert!(group.contains("CiliumCIDRGroup") && !group.contains("CiliumNetworkPolicy"), "{group}");
    // What is shown is what would be imported.
    std::fs::write("/tmp/shown.json", villus(&["policy", "get", "-o", "json"]).ok()).unwrap();
    let again = villus(&["policy", "import", "--dry-run", "/tmp/shown.json"]).ok();
    assert_eq!(again.matches("would be replaced").count(), 3, "{again}");

    let reach = villus(&["policy", "can-reach", "app=client"]).ok();
    assert!(reach.contains("443/TCP") && reach.contains("cidr:198.51.100.0/24"), "{reach}");
    assert!(reach.contains("8080/TCP") && reach.contains("k8s:app=server"), "{reach}");
    let who = |port: &str| villus(&["policy", "who-can", "app=server", port]).ok();
    assert!(
        who("8080").contains("k8s:app=client") && !who("8081").contains("k8s:app=client"),
        "{}",
        who("8080")
    );
    let trace = |port: &str| {
        villus(&["policy", "trace", "--src", "app=client", "--dst", "app=server", "--dport", port])
    };
    assert!(trace("8080").ok().contains("Final verdict: ALLOWED"));
    assert_eq!(trace("8081").code, 1);
    let here = of("server", "id");
    let by_endpoint = ["policy", "trace", "--src", "app=client", "--dst-endpoint", &here, "--dport", "8080"];
    assert!(villus(&by_endpoint).ok().contains("ALLOWED"));

    // So are the agent's options, those too that were changed while it runs.
    villus(&["config", "PolicyEnforcement=always"]).ok();
    assert!(!who("8080").contains("k8s:app=client"), "nothing lets anybody into the server");
    // On another machine, what the agent says is enough.
    std::fs::write("/tmp/identities.json", villus(&["identity", "list", "-o", "json"]).ok()).unwrap();
    drop(node);
    let files = ["--policies", "/tmp/shown.json", "--identities", "/tmp/identities.json"];
    let reach = villus(&[&["policy", "can-reach", "app=client"][..], &files].concat()).ok();
    assert!(reach.contains("8080/TCP") && reach.contains("443/TCP"), "{reach}");
}

#[test]
fn an_agent_keeps_what_was_opened_in_an_emergency_until_it_is_undone() {
    alone!();
    let mut node = Node::new();
    for name in ["server", "intruder"] {
        Node::workload(name);
    }
    node.serve("server", 8080);
    let (id, address) = (of("server", "id"), of("server", "status.networking.addressing[0].ipv4"));
    let deny = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: closed}\nspec:\n  \
                endpointSelector: {matchLabels: {app: server}}\n  ingress: [{}]\n  \
                ingressDeny: [{fromEntities: [all]}]\n";
    std::fs::write("/tmp/deny.yaml", deny).unwrap();
    villus(&["policy", "import", "--wait", "/tmp/deny.yaml"]).ok();
    assert!(asks_in_vain("intruder", &address, "8080"));

    let text = villus(&["emergency", "allow", "--endpoint", &id, "--override-deny"]).ok();
    assert!(text.contains("no longer denied"), "{text}");
    assert!(asks("intruder", &address, "8080"), "at the next packet");
    // Whatever makes the agent look at the map again does not change that.
    std::fs::write(
        "/tmp/other.yaml",
        deny.replace("closed", "other").replace("ingress: [{}]", "egress: [{}]"),
    )
    .unwrap();
    villus(&["policy", "import", "--wait", "/tmp/other.yaml"]).ok();
    let report = villus(&["policy", "verify", "--repair"]).ok();
    assert!(asks("intruder", &address, "8080"), "{report}");
    assert!(villus(&["status"]).ok().contains("opened by hand"));
    villus(&["emergency", "undo", "--all"]).ok();
    eventually("closed again", || asks_in_vain("intruder", &address, "8080"));
    villus(&["policy", "verify", "--repair"]).ok();
    assert!(asks_in_vain("intruder", &address, "8080"));
    assert_eq!(villus(&["emergency", "list"]).ok(), "nothing was done by hand\n");
}

#[test]
fn a_held_map_stays_as_it_is() {
    alone!();
    let node = Node::new();
    Node::workload("server");
    let id = of("server", "id");
    assert!(
        villus(&["policy", "hold", "server", "--reason", "a look", "--dry-run"])
            .ok()
            .starts_with("would be held")
    );
    villus(&["policy", "hold", "server", "--reason", "a look"]).ok();
    let before = villus(&["bpf", "policy", "get", &id, "-n"]).ok();
    villus(&["policy", "import", POLICY]).ok();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(villus(&["bpf", "policy", "get", &id, "-n"]).ok(), before);
    villus(&["policy", "release", "server"]).ok();
    eventually("as policy asks for", || villus(&["bpf", "policy", "get", &id, "-n"]).ok() != before);
    drop(node);
}

#[test]
fn the_demo_shows_what_it_promises_and_leaves_nothing() {
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../../demo/demo.sh");
    let output = Command::new("bash").arg(demo).env("VILLUS", env!("CARGO_BIN_EXE_villus")).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    for needle in [
        "client   -> server 10.15.0.3 port 8080: answered",
        "intruder -> server 10.15.0.3 port 8080: silence",
        "xx drop (Policy denied)",
        "Kernel's maps: DROPPED (133 Policy denied)",
        "1f 90 06 00",
        "nothing is left: no pin, no device, no table",
    ] {
        assert!(text.contains(needle), "{needle}: {text}");
    }
}

#[test]
fn without_an_agent_the_kernels_maps_still_say_why() {
    alone!();
    let mut node = Node::new();
    for name in ["client", "server", "intruder"] {
        Node::workload(name);
    }
    villus(&["policy", "import", "--wait", POLICY]).ok();
    let server = of("server", "status.networking.addressing[0].ipv4");
    let (client, intruder) = (of("client", "id"), of("intruder", "id"));
    node.agent.kill().unwrap();
    node.agent.wait().unwrap();
    let denied = villus(&["why", &intruder, &server, "8080/tcp"]);
    assert!(
        denied.err.contains("does not answer") && denied.err.contains("for the agent to say"),
        "{denied:?}"
    );
    let denied = denied.ok();
    assert!(denied.contains("Kernel's maps: DROPPED (133 Policy denied)"), "{denied}");
    assert!(denied.contains("<- decided") && !denied.contains("Wanted state"), "{denied}");
    let allowed =
        villus(&["why", &client, &server, "8080", "-o", "jsonpath={.kernel.verdict} {.wanted}"]).ok();
    assert!(allowed.starts_with("forwarded"), "{allowed}");
    let who = villus(&["policy", "who-can", &server, "8080", "--from-kernel"]);
    assert!(who.err.contains("for the agent to say"), "{who:?}");
    let who = who.ok();
    assert!(
        who.contains(&format!("(endpoint {client})")) && !who.contains(&format!("(endpoint {intruder})")),
        "{who}"
    );
    let unknown = villus(&["why", "client", &server, "8080"]).fails(1);
    assert!(unknown.contains("only the agent knows who \"client\" is"), "{unknown}");

    let would = villus(&["cleanup", "--dry-run"]).ok();
    assert!(would.starts_with("would remove:\n") && would.contains("  forwarding of ipv4\n"), "{would}");
    assert!(!would.contains('{') && !would.contains("Sysctl"), "{would}");
    let json = villus(&["cleanup", "--dry-run", "-o", "json"]).ok();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["removed"].as_array().unwrap().len() + 1, would.lines().count());
    assert!(villus(&["cleanup"]).ok().starts_with("removed:\n"));
    assert_eq!(villus(&["cleanup", "--dry-run"]).ok(), "nothing of Villus is here\n");
}

#[test]
fn the_shared_store_and_the_cluster_are_those_of_the_agent() {
    alone!();
    run("ip", &["link", "set", "lo", "up"]);
    let etcd = EtcdServer::start();
    let opt = format!("etcd.address={}", etcd.url());
    let _node = Node::with(&[
        "--kvstore",
        "etcd",
        "--kvstore-opt",
        &opt,
        "--cluster-name",
        "c5",
        "--cluster-id",
        "5",
    ]);
    let config = "cilium/cluster-config/c5";
    eventually("the agent has said its cluster", || villus(&["kvstore", "get", config]).code == 0);
    assert!(villus(&["kvstore", "get", config]).ok().contains("\"id\":5"));
    villus(&["policy", "apply", "--cluster", POLICY]).ok();
    villus(&["policy", "status", "server", "--wait", "60"]).ok();
    let keys = etcd.etcdctl(&["get", "--prefix", "--keys-only", "villus/policies/"]).unwrap();
    assert!(keys.contains("villus/policies/v1/c5/current/"), "{keys}");
    let table = villus(&["metrics", "list", "kvstore_refused"]).ok();
    assert!(table.starts_with("METRIC") && table.contains("villus_kvstore_refused_total"), "{table}");
    assert!(table.lines().skip(1).all(|line| line.contains("kvstore_refused")), "{table}");

    let lists: [&[&str]; 4] = [&["ip", "list"], &["identity", "list"], &["node", "list"], &["policy", "get"]];
    let errors = |more: &[&str]| lists.map(|list| villus(&[list, more].concat()).err);
    villus(&["freeze", "etcd is being restored"]).ok();
    for said in errors(&[]) {
        assert!(said.starts_with("villus: frozen: by an operator (etcd is being restored)"), "{said}");
    }
    assert_eq!(errors(&["-o", "json"]), [""; 4], "for programs it is in the status");
    villus(&["thaw"]).ok();
    assert_eq!(errors(&[]), [""; 4]);
}

#[test]
fn policies_that_the_store_has_lost_are_shown_deleted_and_written_back() {
    alone!();
    run("ip", &["link", "set", "lo", "up"]);
    let mut etcd = EtcdServer::start();
    let opt = format!("etcd.address={}", etcd.url());
    let options = ["--kvstore", "etcd", "--kvstore-opt", &opt, "--cluster-name", "c5", "--cluster-id", "5"];
    let _node = Node::with(&options);
    let config = "cilium/cluster-config/c5";
    eventually("the agent has said its cluster", || villus(&["kvstore", "get", config]).code == 0);
    villus(&["policy", "apply", "--cluster", POLICY]).ok();
    villus(&["policy", "status", "server", "--wait", "60"]).ok();
    let mut wiped = || {
        etcd.kill();
        etcd.wipe();
        etcd.resume();
        etcd.wait();
        let shown = || villus(&["policy", "status"]);
        eventually("what it has lost is shown", || {
            let shown = shown();
            shown.code == 0 && shown.out.contains("0/1, 1 stale") && shown.out.contains("Stale: nodes go on")
        });
    };
    wiped();
    let said = villus(&["policy", "status", "server"]);
    assert_eq!(said.code, 3, "{said:?}");
    assert!(
        said.out.contains("lost by the store") && said.out.contains("goes on with version 1"),
        "{said:?}"
    );
    let shown = villus(&["policy", "get"]).ok();
    assert!(shown.contains("is stale: version 1 is in force, the store has lost it"), "{shown}");
    assert!(villus(&["policy", "restore", "--cluster", "nothing"]).fails(1).contains("nothing"));
    let dry = villus(&["policy", "restore", "--cluster", "--dry-run"]).ok();
    assert!(dry.contains("would be added: version 1, restored: of "), "{dry}");
    let said = villus(&["policy", "restore", "--cluster", "server"]).ok();
    assert_eq!(said.lines().count(), 1, "{said}");
    villus(&["policy", "status", "server", "--wait", "60"]).ok();
    assert!(!villus(&["policy", "get"]).ok().contains("is stale"));
    assert_eq!(villus(&["policy", "restore", "--cluster"]).ok(), "nothing changes\n");

    wiped();
    let said = villus(&["policy", "delete", "--cluster", "server"]).ok();
    assert!(said.contains("deleted: version 2"), "{said}");
    eventually("it is gone", || !villus(&["policy", "get"]).ok().contains("server"));
    villus(&["policy", "status", "server", "--wait", "60"]).ok();
}

#[test]
fn where_etcd_has_roles_a_node_is_forgotten_by_a_user_who_may() {
    alone!();
    run("ip", &["link", "set", "lo", "up"]);
    let secured = Secured::new("/tmp/pki".as_ref(), "node1", "10.15.0.0/24");
    let [agent, ann, op] = ["agents/node1", "users/ann", "users/op"].map(|who| secured.option(who));
    let of_the_node = ["--kvstore", "etcd", "--kvstore-opt", &agent, "--node-name", "node1"];
    let _node = Node::with(&[&of_the_node[..], &["--cluster-name", "c1", "--cluster-id", "1"]].concat());
    let etcdctl = |words: &[&str]| secured.etcd.etcdctl(words).unwrap();
    let entry = r#"{"Name":"dead","Cluster":"c1","IPAddresses":[{"Type":"InternalIP","IP":"10.3.9.77"}],"IPv4AllocCIDR":{"IP":"10.77.0.0","Mask":"////AA=="},"ClusterID":1}"#;
    let pair = r#"{"IP":"10.77.0.5","Mask":null,"HostIP":"10.3.9.77","ID":66000,"Key":0,"Metadata":""}"#;
    let keys = [
        ("cilium/state/nodes/v1/c1/dead", entry),
        ("cilium/state/ip/v1/default/10.77.0.5", pair),
        ("villus/realised/v1/c1/dead", "{}"),
        // What it uses lies under another lease.
        ("cilium/state/identities/v1/value/k8s:app=gone;/10.3.9.77", "66000"),
    ];
    etcdctl(&["put", "cilium/state/identities/v1/id/66000", "k8s:app=gone;"]);
    let grant = || {
        [&keys[..3], &keys[3..]].map(|keys| {
            let lease = etcdctl(&["lease", "grant", "86400"]);
            let lease = lease.split_whitespace().nth(1).unwrap().to_owned();
            for &(key, value) in keys {
                etcdctl(&["put", &format!("--lease={lease}"), key, value]);
            }
            lease
        })
    };
    let is_there = |key: &str| etcdctl(&["get", "--keys-only", key]).contains(key);
    let is_known = || villus(&["node", "list"]).ok().contains("c1/dead");
    let has_address = || villus(&["ip", "list", "-n"]).ok().contains("10.77.0.5");
    let is_resolved = || villus(&["ip", "list"]).ok().contains("k8s:app=gone");
    let leases = grant();
    eventually("the agent knows it", || is_known() && has_address() && is_resolved());

    let forget = ["node", "forget", "dead", "--force"];
    let by = |option: &str| villus(&[&forget[..], &["--kvstore-opt", option]].concat());
    let said = villus(&forget).fails(1);
    assert!(said.contains("does not permit this agent") && said.contains("--kvstore-opt"), "{said}");
    assert!(!said.contains("tried again"), "{said}");
    let said = by(&ann).fails(1);
    assert!(said.contains("does not permit `txn`") && said.contains("a user who may"), "{said}");
    let dry = villus(&[&forget[..], &["--kvstore-opt", &op, "--dry-run"]].concat()).ok();
    assert!(dry.contains("would go: cilium/state/nodes/v1/c1/dead"), "{dry}");
    assert!(keys.iter().all(|(key, _)| is_there(key)) && is_known() && has_address());

    let said = by(&op).ok();
    assert!(said.contains("c1/dead is forgotten; 2 leases ended"), "{said}");
    let left = etcdctl(&["lease", "list"]);
    assert!(!keys.iter().any(|(key, _)| is_there(key)) && !leases.iter().any(|lease| left.contains(lease)));
    eventually("the agent forgets it", || !is_known() && !has_address());

    // One that is silent has no keys any more: everybody is told all the same.
    let leases = grant();
    eventually("the agent knows it again", || is_known() && has_address());
    for lease in &leases {
        etcdctl(&["lease", "revoke", lease]);
    }
    let silent = ["node", "forget", "dead", "--kvstore-opt", &op];
    eventually("it is silent and forgotten", || villus(&silent).code == 0);
    eventually("nothing of it is left", || !is_known() && !has_address());
    assert!(!keys.iter().any(|(key, _)| is_there(key)));
}
