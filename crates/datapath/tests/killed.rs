//! An agent that is killed at random moments while it replaces policy maps under load.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::{
    io::{BufRead, BufReader},
    os::fd::AsFd,
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use villus_abi::{PolicyEntry, PolicyKey, policy::Direction};
use villus_datapath::{Entries, Maps, Pins, PolicyMaps, Sizes, SkbContext, sys, view_policy};
use villus_testbed::alone;

/// Where the agent of this test finds its bpffs.
const ROOT: &str = "VILLUS_TEST_ROOT";
/// What it says: that it begins, and that it has replaced all maps once and goes on with that.
const MOMENTS: [&str; 2] = ["the agent begins", "the agent is at work"];
const ENDPOINTS: u16 = 8;
const SIZES: Sizes =
    Sizes { endpoints: 64, ct_tcp: 1024, ct_any: 1024, frags: 1024, ipcache: 1024, events: 4096, nat: 0 };

/// Two policies between which no order of single changes is right. Both let identity 1 in.
fn policies() -> [Entries; 2] {
    let key = |identity| PolicyKey::new(identity, 80, 6, Direction::Ingress);
    let policy = |deny: u32| {
        let others =
            (2..50).map(|n| (key(n), if n % 2 == deny { PolicyEntry::DENY } else { PolicyEntry::ALLOW }));
        others.chain([(key(1), PolicyEntry::ALLOW)]).collect()
    };
    [policy(0), policy(1)]
}

fn open(root: &Path) -> (Arc<Pins>, Arc<Maps>, PolicyMaps) {
    let pins = Arc::new(Pins::open(root).unwrap());
    let maps = Arc::new(Maps::open(&pins, &SIZES).unwrap());
    let agent = PolicyMaps::open(pins.clone(), maps.clone(), 1000).unwrap();
    (pins, maps, agent)
}

/// Not a test of its own: the agent that is killed.
#[test]
fn agent_to_be_killed() {
    let Some(root) = std::env::var_os(ROOT) else { return };
    println!("{}", MOMENTS[0]);
    let (_pins, maps, mut agent) = open(root.as_ref());
    for round in 0.. {
        if round == 1 {
            println!("{}", MOMENTS[1]);
        }
        let wanted = &policies()[round % 2];
        let all: Vec<_> = (1..=ENDPOINTS).map(|id| (id, wanted)).collect();
        agent.apply_all(&all, &mut &maps.endpoints).unwrap();
    }
}

#[test]
fn killed_at_random_moments_it_leaves_whole_policies_and_packets_never_miss_them() {
    alone!();
    let (root, pins) = common::bpffs();
    drop(pins);
    let (_, maps, mut agent) = open(&root);
    let [old, new] = policies();
    for id in 1..=ENDPOINTS {
        agent.apply(id, &old, &mut &maps.endpoints).unwrap();
    }
    drop(agent);
    let program = common::counting_program(&maps.policies, 3, &PolicyKey::new(1, 80, 6, Direction::Ingress));
    let (stop, mut caught) = (AtomicBool::new(false), 0);
    std::thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let run = sys::test_run(program.as_fd(), &[0; 64], &SkbContext::default(), 50).unwrap();
                assert_eq!(run.verdict, 1, "a packet saw no policy");
            }
        });
        for round in 0..25_u64 {
            let mut agent = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "agent_to_be_killed", "--nocapture"])
                .env(ROOT, &root)
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let moment = MOMENTS[usize::from(round % 2 == 1)];
            let mut said = BufReader::new(agent.stdout.take().unwrap()).lines();
            assert!(said.any(|line| line.unwrap().ends_with(moment)), "it ends before {moment}");
            std::thread::sleep(Duration::from_micros(round * 1_733 % 20_000));
            agent.kill().unwrap();
            agent.wait().unwrap();
            let pins = Pins::open(&root).unwrap();
            caught += usize::from(pins.list().unwrap().iter().any(|name| name.starts_with("villus_old")));
            let (pins, maps, mut agent) = open(&root);
            for id in 1..=ENDPOINTS {
                let view = view_policy(&pins, &maps, id).unwrap();
                let whole = |policy: &Entries| {
                    view.entries.len() == policy.len()
                        && policy.iter().all(|(key, entry)| view.entries[key].is_deny() == entry.is_deny())
                };
                assert!(whole(&old) || whole(&new), "round {round}, endpoint {id}");
                assert!(!view.is_misplaced() && view.hand_made.is_empty(), "{view:?}");
            }
            let names = pins.list().unwrap();
            assert!(
                !names.iter().any(|name| name.starts_with("villus_old") || name.starts_with("villus_new"))
            );
            let all: Vec<_> = (1..=ENDPOINTS).map(|id| (id, &old)).collect();
            assert!(
                agent.apply_all(&all, &mut &maps.endpoints).unwrap().iter().all(|(_, result)| result.is_ok())
            );
        }
        stop.store(true, Ordering::Relaxed);
        traffic.join().unwrap();
    });
    println!("killed {caught} times of 25 in the middle of a swap");
    assert!(caught > 0);
}
