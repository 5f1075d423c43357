//! The datapath goes on while the agent is gone, and a new agent takes over what is there.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::{
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use common::{TestNode, allow, echoes};
use villus_api::EndpointRef;
use villus_api::model::{EndpointPatch, EndpointState};
use villus_datapath::{AttachMode, Links, Maps, Pins, view_policy};
use villus_testbed::{alone, eventually, run, try_run};

#[test]
fn the_agent() {
    common::be_the_agent();
}

#[test]
fn killed_and_started_again_no_packet_is_lost_and_everything_is_as_before() {
    alone!();
    let mut node = TestNode::new(&[]);
    node.policy_file("web.yaml", &allow("web", "server", "client", 80));
    node.start();
    let server = node.workload("server", &["k8s:app=server"]);
    let client = node.workload("client", &["k8s:app=client"]);
    let peer = node.workload("peer", &["k8s:app=peer"]);
    node.import(&allow("imported", "peer", "client", 81));
    server.serves(server.v4(), 80);
    peer.serves(peer.v4(), 81);
    let mut open = client.connects(server.v4(), 80).unwrap();
    assert!(echoes(&mut open));
    let before = node.client().endpoints(&[]).unwrap();

    // 500 packets, one each 10 ms, while the agent is killed, gone, and started again.
    let to = client.v4().to_string();
    let pinger = server
        .netns
        .run(|| {
            Command::new("ping")
                .args(["-q", "-i", "0.01", "-c", "500", "-W", "30", &to])
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .unwrap();
    std::thread::sleep(Duration::from_millis(300));
    node.kill();
    assert!(echoes(&mut open), "while the agent is gone");
    assert!(peer.asks_in_vain(server.v4(), 80), "policy holds while the agent is gone");
    node.start();
    node.kill();
    node.start();
    let output = pinger.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains(" 0% packet loss"), "{text}");

    assert!(echoes(&mut open));
    assert!(client.asks(server.v4(), 80) && client.asks(peer.v4(), 81));
    assert!(peer.asks_in_vain(server.v4(), 80) && client.asks_in_vain(server.v4(), 81));
    eventually("all are taken over", || {
        node.client().endpoints(&[]).unwrap().iter().all(|e| e.status.state == EndpointState::Ready)
    });
    let after = node.client().endpoints(&[]).unwrap();
    let facts = |list: &[villus_api::model::Endpoint]| {
        list.iter()
            .map(|e| {
                (
                    e.id,
                    e.status.identity.clone().unwrap().id,
                    e.status.networking.addressing.clone(),
                    e.status.state,
                )
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(facts(&before), facts(&after));
    eventually("nothing differs", || node.client().verify(&Default::default()).unwrap().clean());

    node.stop();
    assert!(echoes(&mut open), "an agent that was told to end leaves the datapath");
}

#[test]
fn programs_move_to_their_wanted_place_under_traffic_without_a_packet_lost_or_judged_twice() {
    alone!();
    let mut node = TestNode::started(&[("attach-mode", "tc")]);
    let server = node.workload("server", &["k8s:app=server"]);
    let client = node.workload("client", &["k8s:app=client"]);
    node.import(&allow("dns", "server", "client", 53).replace("TCP", "UDP"));
    // The next agent finds everything attached another way than it wants.
    node.kill();
    node.options.retain(|(name, _)| name != "attach-mode");
    let pins = Pins::existing("/tmp/node/bpf".as_ref()).unwrap();
    let modes = || {
        let links = villus_net::NodeState::read().unwrap().links;
        let indices: Vec<u32> = links.iter().map(|link| link.index).collect();
        let all = Links::new(&pins).list(&indices).unwrap();
        all.iter().map(|attached| attached.mode).collect::<Vec<_>>()
    };
    assert_eq!(modes(), [AttachMode::Tc; 4]);
    let (asked, asks) = (server.udp(server.v4(), 53), client.udp(client.v4(), 5000));
    asks.connect((server.v4(), 53)).unwrap();
    let stop = AtomicBool::new(false);
    let count = std::thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            let mut count = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                asks.send(b"q").unwrap();
                assert!(asked.recv(&mut [0; 8]).is_ok(), "packet {count} is lost");
                count += 1;
                std::thread::sleep(Duration::from_millis(1));
            }
            count
        });
        node.start();
        eventually("they have moved", || traffic.is_finished() || modes() == [AttachMode::Tcx; 4]);
        stop.store(true, Ordering::Relaxed);
        traffic.join().unwrap()
    });
    let policy = view_policy(&pins, &Maps::existing(&pins).unwrap(), server.id()).unwrap();
    let packets: u64 = policy.entries.values().map(|entry| entry.packets).sum();
    assert_eq!(packets, count, "each packet is judged once");
}

#[test]
fn after_a_boot_an_endpoint_waits_with_its_id_identity_and_addresses() {
    alone!();
    let mut node = TestNode::started(&[]);
    let _other = node.workload("other", &["k8s:app=other"]);
    let server = node.workload("server", &["k8s:app=server"]);
    node.stop();
    // What a boot leaves: files of another boot, no devices, no maps.
    run("ip", &["netns", "del", "server"]);
    run("ip", &["netns", "del", "other"]);
    for id in [1, 2] {
        let path = node.root.join(format!("lib/endpoints/{id}.json"));
        let text = std::fs::read_to_string(&path).unwrap();
        let mut file: serde_json::Value = serde_json::from_str(&text).unwrap();
        file["boot-id"] = "another".into();
        std::fs::write(&path, file.to_string()).unwrap();
    }
    run("umount", &[node.root.join("bpf").to_str().unwrap()]);
    std::fs::write(node.root.join("lib/endpoints/3.json"), "{ half").unwrap();
    node.start();

    let waiting = node.client().endpoints(&[]).unwrap();
    assert_eq!(waiting.len(), 2);
    assert!(waiting.iter().all(|e| e.status.state == EndpointState::Restoring));
    let details = node.client().status_details().unwrap();
    let told = details.warnings.iter().filter(|w| w.message.contains("3.json.damaged-"));
    assert_eq!(told.count(), 1, "{:?}", details.warnings);

    // A request that fails leaves it waiting.
    assert!(node.endpoint("server", &["k8s:app=server"]).is_err());
    assert_eq!(node.client().endpoints(&[]).unwrap()[1].status.state, EndpointState::Restoring);
    let again = node.workload("server", &["k8s:app=server"]);
    assert_eq!(again.id(), server.id());
    assert_eq!(again.endpoint.status.identity, server.endpoint.status.identity);
    assert_eq!((again.v4(), again.v6()), (server.v4(), server.v6()));
    assert_eq!(node.client().endpoints(&[]).unwrap().len(), 2);
}

#[test]
fn nothing_passes_before_every_source_was_read() {
    alone!();
    let mut node = TestNode::new(&[]);
    std::fs::remove_dir(node.root.join("policies")).unwrap();
    node.start();
    run("ip", &["netns", "add", "early"]);
    let refused = node.endpoint("early", &["k8s:app=early"]).unwrap_err();
    assert_eq!(refused.status(), Some(503), "{refused}");
    assert!(!node.client().status(true).unwrap().healthy());
    std::fs::create_dir(node.root.join("policies")).unwrap();
    eventually("the directory is read", || node.client().status(true).unwrap().healthy());
    node.endpoint("early", &["k8s:app=early"]).unwrap();
}

#[test]
fn a_second_agent_and_a_foreign_map_are_refused() {
    alone!();
    let node = TestNode::started(&[]);
    let mut second = TestNode::new(&[("socket-path", "/tmp/other.sock")]);
    let output = second.refused();
    assert!(output.contains("another agent (pid"), "{output}");
    drop(node);
    run(
        "bpftool",
        &[
            "map",
            "create",
            "/tmp/node/bpf/tc/globals/cilium_lxc",
            "type",
            "hash",
            "key",
            "4",
            "value",
            "4",
            "entries",
            "8",
            "name",
            "cilium_lxc",
        ],
    );
    let output = second.refused();
    assert!(output.contains("cilium_lxc") && output.contains("Cilium"), "{output}");
}

#[test]
fn a_namespace_that_dies_marks_its_endpoint_and_frees_what_it_had() {
    alone!();
    let node = TestNode::started(&[]);
    let doomed = node.workload("doomed", &["k8s:app=doomed"]);
    let client = node.client();
    let id = EndpointRef::Id(doomed.id());
    let pin = node.root.join(format!("bpf/tc/globals/cilium_policy_{:05}", doomed.id()));
    assert!(pin.exists());
    let address = doomed.v4();
    drop(doomed);
    run("ip", &["netns", "del", "doomed"]);
    eventually("it is marked", || client.endpoint(&id).unwrap().status.state == EndpointState::Disconnected);
    assert!(!pin.exists());
    let addresses = client.ips(&Default::default()).unwrap();
    assert!(addresses.iter().all(|entry| !entry.cidr.starts_with(&format!("{address}/"))));
    // The same workload again: the same endpoint, but its addresses rest.
    let again = node.workload("doomed", &["k8s:app=doomed"]);
    assert_eq!(EndpointRef::Id(again.id()), id);
    assert_ne!(again.v4(), address);
    assert_eq!(client.endpoints(&[]).unwrap().len(), 1);
}

#[test]
fn stopped_at_a_breakpoint_the_agent_harms_nothing_and_learns_afterwards_what_happened() {
    alone!();
    let node = TestNode::started(&[]);
    let server = node.workload("server", &["k8s:app=server"]);
    let client = node.workload("client", &["k8s:app=client"]);
    let doomed = node.workload("doomed", &["k8s:app=doomed"]);
    node.import(&allow("web", "server", "client", 80));
    server.serves(server.v4(), 80);
    let mut open = client.connects(server.v4(), 80).unwrap();
    node.pause();
    let (to, id) = (client.v4().to_string(), EndpointRef::Id(doomed.id()));
    let args = ["-q", "-i", "0.01", "-c", "300", "-W", "30", &to];
    let ping = server.netns.run(|| run("ping", &args)).unwrap();
    assert!(ping.contains(" 0% packet loss"), "{ping}");
    assert!(echoes(&mut open) && client.asks(server.v4(), 80), "open and new connections go on");
    assert!(doomed.asks_in_vain(server.v4(), 80), "policy holds");
    drop(doomed);
    run("ip", &["netns", "del", "doomed"]);
    node.go_on();
    eventually("what happened meanwhile is known", || {
        node.client().endpoint(&id).unwrap().status.state == EndpointState::Disconnected
    });
    assert!(echoes(&mut open) && client.asks(server.v4(), 80));
    eventually("nothing differs", || node.client().verify(&Default::default()).unwrap().clean());
}

#[test]
fn nobody_but_root_starts_an_agent() {
    alone!();
    let node = TestNode::new(&[]);
    let program = std::env::current_exe().unwrap();
    std::fs::write("/tmp/program", "").unwrap();
    run("mount", &["--bind", program.to_str().unwrap(), "/tmp/program"]);
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--clear-groups", "--no-new-privs", "/tmp/program"]);
    let output = common::as_agent(&mut command, &node.options).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("must run as root") && said.contains("sudo"), "{said}");
    assert!(!node.root.join("lib").exists() && !node.root.join("bpf").exists(), "nothing was touched");
}

#[test]
fn what_cannot_be_written_down_is_said_and_is_written_as_soon_as_it_can_be() {
    alone!();
    let mut node = TestNode::started(&[]);
    let server = node.workload("server", &["k8s:app=server"]);
    let client = node.workload("client", &["k8s:app=client"]);
    let file = node.root.join(format!("lib/endpoints/{}.json", client.id()));
    let written = || std::fs::read_to_string(&file).unwrap();
    let lib = node.root.join("lib");
    let lib = lib.to_str().unwrap();
    let warned = |node: &TestNode| {
        let warnings = node.client().status_details().unwrap().warnings;
        warnings.iter().filter(|w| w.message.contains("mount the file system of lib-dir")).count()
    };
    run("mount", &["--bind", lib, lib]);
    // The kernel refuses as long as the agent has a file of it open.
    let done = |program: &str, arguments: &[&str]| try_run(program, arguments).status.success();
    eventually("it is for reading only", || done("mount", &["-o", "remount,ro,bind", lib]));
    run("ip", &["netns", "add", "third"]);
    let refused = node.endpoint("third", &["k8s:app=third"]).unwrap_err().to_string();
    assert!(refused.contains("cannot be written") && refused.contains("Read-only"), "{refused}");
    let patch = EndpointPatch { add_labels: vec!["k8s:app=other".into()], ..Default::default() };
    node.client().patch_endpoint(&EndpointRef::Id(client.id()), &patch).unwrap();
    eventually("the pool and the endpoint are named", || warned(&node) == 2);
    assert!(!written().contains("k8s:app=other"));
    assert!(client.pings(server.v4()), "all goes on");

    eventually("it is as before", || done("umount", &[lib]));
    eventually("nothing is left to be said", || warned(&node) == 0);
    assert!(written().contains("k8s:app=other"));
    assert!(node.endpoint("third", &["k8s:app=third"]).is_ok());

    node.kill();
    run("mount", &["--bind", lib, lib]);
    run("mount", &["-o", "remount,ro,bind", lib]);
    let said = node.refused();
    assert!(said.contains("Read-only") && said.contains("mount the file system of lib-dir"), "{said}");
    assert!(client.pings(server.v4()), "without an agent too");
    run("umount", &[lib]);
    node.start();
}
