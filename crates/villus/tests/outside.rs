//! Policy for what is no pod, from the command line: a tap that is adopted, and a machine that is its own workload.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;

use std::process::{Child, Stdio};

use common::{Said, command_in_sandbox as command};
use villus_testbed::{alone, eventually, run_ip as ip, try_run};

/// An agent; its end ends it.
struct Agent(Child);

impl Agent {
    fn new(options: &[&str]) -> Self {
        let arguments =
            [&["agent", "--socket-path", "/tmp/villus.sock", "--endpoint-max", "64"], options].concat();
        let agent = command(&arguments).stderr(Stdio::null()).spawn().unwrap();
        villus(&["status", "--wait"]).ok();
        Self(agent)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn villus(args: &[&str]) -> Said {
    common::said(&command(args).output().unwrap())
}

#[test]
fn a_tap_is_adopted_missed_back_and_let_go() {
    alone!();
    let _agent = Agent::new(&["--ipv4-range", "10.15.0.0/24", "--ipv6-range", "fd15::/112"]);
    let makes = || {
        ip("tuntap add dev tap7 mode tap");
        ip("link set tap7 up");
    };
    makes();
    let add = |device: &str| {
        let mut args =
            vec!["endpoint", "add", "--adopt", device, "--ipv4", "10.9.0.5", "--ipv6", "fd00:9::5"];
        args.extend(["--mac", "52:54:00:00:00:07", "--name", "vm-7", "--labels", "app=db"]);
        villus(&args)
    };
    assert!(add("nowhere").fails(1).contains("there is no device nowhere"));
    assert!(add("lo").fails(1).contains("a tap or veth is needed"));
    assert!(villus(&["endpoint", "add", "--adopt", "tap7", "--netns", "x"]).fails(2).contains("--netns"));
    let said = add("tap7").ok();
    assert!(said.contains("10.9.0.5 fd00:9::5, ready"), "{said}");
    assert!(ip("route show dev tap7").contains("10.9.0.5"));
    assert!(ip("neigh show dev tap7").contains("10.9.0.5 lladdr 52:54:00:00:00:07 PERMANENT"));
    assert!(add("tap7").fails(1).contains("endpoint delete"));

    ip("link del tap7");
    eventually("it is missed", || {
        villus(&["status"]).out.contains("device missing: tap7")
            && villus(&["endpoint", "list"]).ok().contains("device-missing")
    });
    makes();
    eventually("it is back", || villus(&["endpoint", "list"]).ok().contains(" ready"));
    eventually("and not missed any more", || !villus(&["status"]).out.contains("device missing"));
    villus(&["endpoint", "delete", "vm-7"]).ok();
    assert!(ip("-o link show tap7").contains("tap7") && !ip("route show dev tap7").contains("10.9.0.5"));
}

/// What answers a client that reads: nobody has to be there for longer than a connection.
fn connects() -> bool {
    let script = "exec 3<>/dev/tcp/192.0.2.1/80";
    let args = ["netns", "exec", "outside", "timeout", "2", "bash", "-c", script];
    try_run("ip", &args).status.success()
}

#[test]
fn a_machine_is_shown_held_opened_in_an_emergency_and_closed_again() {
    alone!();
    ip("netns add outside");
    ip("link add up0 type veth peer name far netns outside");
    ip("addr add 192.0.2.1/24 dev up0");
    ip("-n outside addr add 192.0.2.9/24 dev far");
    ip("link set up0 up");
    ip("-n outside link set far up");
    ip("route add default via 192.0.2.9");
    let _listens = std::net::TcpListener::bind("192.0.2.1:80").unwrap();
    let _agent = Agent::new(&["--host-only", "--node-labels", "app=db"]);
    let status = villus(&["status"]).ok();
    assert!(status.contains("Host Only:") && status.contains("k8s:app=db"), "{status}");
    ip("netns add web");
    assert!(villus(&["endpoint", "add", "--netns", "web"]).fails(1).contains("host-only"));

    let policy = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: db}\nspec:\n  \
                  endpointSelector: {matchLabels: {app: db}}\n  ingress:\n  - fromCIDR: [198.51.100.0/24]\n";
    std::fs::write("/tmp/db.yaml", policy).unwrap();
    villus(&["policy", "import", "--wait", "/tmp/db.yaml"]).ok();
    let status = villus(&["status"]).out;
    assert!(status.contains("audited only"), "{status}");
    eventually("audited", connects);
    villus(&["endpoint", "config", "0", "PolicyAuditMode=false"]).ok();
    assert!(!connects());
    let why = villus(&["why", "192.0.2.9", "192.0.2.1", "80/tcp"]).ok();
    assert!(why.contains("DROPPED (133 Policy denied)"), "{why}");
    villus(&["emergency", "allow", "--host"]).ok();
    eventually("opened by hand", connects);
    villus(&["emergency", "undo", "--all"]).ok();
    eventually("and closed again", || !connects());
}
