//! Killed right after it has learned something from the store: the next agent knows it, store or none.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use common::TestNode;
use common::store::{LETS_IN, OUTSIDE, lets_in, new, shared, status, who};
use villus_abi::IpcacheKey;
use villus_datapath::{Maps, Pins, view_policy};
use villus_testbed::{EtcdServer, alone, eventually};

#[test]
fn the_agent() {
    common::be_the_agent();
}

/// Whether the kernel's ipcache says that an address has an identity, and the policy map of an endpoint lets that in.
fn kernel(root: &Path, ip: [u8; 4], number: u32, endpoint: u16) -> [bool; 2] {
    let pins = Pins::existing(&root.join("bpf")).unwrap();
    let maps = Maps::existing(&pins).unwrap();
    let found = maps.ipcache.get(&IpcacheKey::v4(ip, 32)).unwrap();
    let view = view_policy(&pins, &maps, endpoint).unwrap();
    [
        found.is_some_and(|value| value.identity == number),
        view.entries.keys().any(|key| key.identity == number),
    ]
}

fn written_down(node: &TestNode, text: &str) -> bool {
    fs::read_to_string(node.root.join("lib/cluster.json")).is_ok_and(|state| state.contains(text))
}

fn learned(node: &TestNode) -> Vec<PathBuf> {
    let files = fs::read_dir(node.root.join("lib")).unwrap().map(|file| file.unwrap().path());
    files.filter(|path| path.to_string_lossy().contains("cluster-learned-")).collect()
}

/// A workload that is told by the store, each time another: its address, key, value, and the number of its identity.
fn outside(n: u8) -> ([u8; 4], String, String, u32) {
    let number = 15_614_229 + u32::from(n);
    let value = OUTSIDE[2].1.replace("192.65", &format!("192.{n}")).replace("15614229", &number.to_string());
    ([10, 3, 192, n], OUTSIDE[2].0.replace("192.65", &format!("192.{n}")), value, number)
}

/// Has an agent learn something of which the state on disk knows nothing, and kills it as soon as the kernel knows.
fn learn_and_kill(
    node: &mut TestNode,
    mut learn: impl FnMut(&TestNode, u8),
    known: impl Fn(&TestNode, u8) -> bool,
) -> u8 {
    let first = (1..60).find(|n| {
        learn(node, *n);
        node.kill();
        let is_new = !known(node, *n);
        if !is_new {
            node.start();
        }
        is_new
    });
    assert!(first.is_some(), "the agent always wrote the whole state down first");
    first.unwrap()
}

#[test]
fn an_agent_killed_right_after_it_has_learned_something_knows_it_when_it_starts_without_the_store() {
    alone!();
    let mut etcd = EtcdServer::start();
    let mut node = new(&shared(&etcd));
    node.start();
    let server = node.workload("server", &["k8s:app=server"]).id();
    node.import(LETS_IN);
    eventually("there is a state of before", || written_down(&node, "app=server"));
    let n = learn_and_kill(
        &mut node,
        |node, n| {
            let (ip, key, value, number) = outside(n);
            etcd.etcdctl(&["put", &format!("cilium/state/identities/v1/id/{number}"), OUTSIDE[0].1]).unwrap();
            etcd.etcdctl(&["put", &key, &value]).unwrap();
            eventually("the kernel knows it", || kernel(&node.root, ip, number, server) == [true; 2]);
        },
        |node, n| written_down(node, &outside(n).1),
    );
    let (ip, key, _, number) = outside(n);
    assert!(!learned(&node).is_empty());
    // Killed in the middle of a line.
    let last = learned(&node).into_iter().max_by_key(|path| fs::metadata(path).unwrap().modified().unwrap());
    let text = fs::read_to_string(last.as_ref().unwrap()).unwrap();
    fs::write(last.unwrap(), text + "{\"address\":[\"cilium/state/ip/v1/default/10.3.192.").unwrap();
    etcd.kill();
    let (root, is_started) = (node.root.clone(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let looks = scope.spawn(|| {
            let mut looks = 0;
            while !is_started.load(Ordering::Relaxed) {
                assert_eq!(kernel(&root, ip, number, server), [true; 2], "while the agent starts");
                looks += 1;
            }
            looks
        });
        node.start();
        is_started.store(true, Ordering::Relaxed);
        assert!(looks.join().unwrap() > 0);
    });
    let cidr = format!("10.3.192.{n}/32");
    assert_eq!(who(&node, &cidr), Some((number, false)));
    assert!(lets_in(&node, server, number));
    assert!(status(&node).contains("from snapshot, age"), "{}", status(&node));

    // The other way round: what the state on disk has still, and the kernel no more.
    etcd.resume();
    etcd.wait();
    eventually("the store is back", || !status(&node).contains("from snapshot"));
    let value = outside(n).2;
    learn_and_kill(
        &mut node,
        |node, _| {
            etcd.etcdctl(&["put", &key, &value]).unwrap();
            eventually("it is written down", || written_down(node, &key));
            etcd.etcdctl(&["del", &key]).unwrap();
            eventually("the kernel has forgotten it", || !kernel(&node.root, ip, number, server)[0]);
        },
        |node, _| !written_down(node, &key),
    );
    etcd.kill();
    node.start();
    assert_eq!(who(&node, &cidr), None);
    assert!(!kernel(&node.root, ip, number, server)[0]);
    etcd.resume();
    etcd.wait();
    eventually("what was learned is part of the state, and its files go", || learned(&node).len() <= 2);
    assert!(!status(&node).contains("cannot be written"), "{}", status(&node));
}

#[test]
fn an_agent_killed_before_it_has_written_any_state_down_begins_with_what_it_learned() {
    alone!();
    let mut etcd = EtcdServer::start();
    for (key, value) in OUTSIDE {
        etcd.etcdctl(&["put", key, value]).unwrap();
    }
    let mut node = new(&shared(&etcd));
    let is_first = (0..20).any(|_| {
        // What the kernel knows of one before would be taken for what this one has learned.
        villus_agent::cleanup(&node.config(), false).unwrap();
        node.spawn();
        let pins = || Maps::existing(&Pins::existing(&node.root.join("bpf")).ok()?).ok();
        eventually("the kernel knows it", || {
            let found = pins().map(|maps| maps.ipcache.get(&IpcacheKey::v4([10, 3, 192, 65], 32)).unwrap());
            found.flatten().is_some_and(|value| value.identity == 15_614_229)
        });
        node.kill();
        !node.root.join("lib/cluster.json").exists()
    });
    assert!(is_first, "the agent always wrote the whole state down first");
    etcd.kill();
    node.start();
    assert_eq!(who(&node, "10.3.192.65/32"), Some((15_614_229, false)));
    assert!(status(&node).contains("from snapshot, age"), "{}", status(&node));
}
