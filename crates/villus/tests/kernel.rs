//! Commands that need no agent, on the maps of a kernel.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use common::{Said, command, villus};
use villus_abi::{
    Direction, Endpoint, IpcacheKey, IpcacheValue, Local, Nat, NatKey4, PolicyEntry, PolicyKey,
    endpoint::{FLAG_ACTIVE, FLAG_AUDIT_INGRESS},
    time::from_secs,
};
use villus_datapath::{
    Entries, Maps, Pins, PolicyMaps, Sizes, now,
    sys::{Kind, MapSpec},
    view_policy,
};
use villus_testbed::{alone, eventually};

const IN: Direction = Direction::Ingress;
const OUT: Direction = Direction::Egress;
/// What an emergency opens.
const ALL_IN: PolicyKey = PolicyKey::new(0, 0, 0, IN);
const ALL_OUT: PolicyKey = PolicyKey::new(0, 0, 0, OUT);

/// The maps of a node whose agent is gone.
struct Kernel {
    root: PathBuf,
    pins: Arc<Pins>,
    maps: Arc<Maps>,
    policies: PolicyMaps,
}

impl Kernel {
    fn new() -> Self {
        Self::with(Sizes { endpoints: 1024, ct_tcp: 1024, ct_any: 1024, frags: 1024, ..Sizes::default() })
    }

    fn with(sizes: Sizes) -> Self {
        let root = PathBuf::from("/tmp/bpf");
        let pins = Arc::new(Pins::open(&root).unwrap());
        let maps = Arc::new(Maps::open(&pins, &sizes).unwrap());
        let policies = PolicyMaps::open(pins.clone(), maps.clone(), 2048).unwrap();
        Self { root, pins, maps, policies }
    }

    fn endpoint(&mut self, id: u16, identity: u32, wanted: &[(PolicyKey, PolicyEntry)]) {
        let record = Endpoint { id, identity, policy: id.into(), flags: FLAG_ACTIVE, ..Endpoint::default() };
        self.maps.endpoints.insert(&id.into(), &record).unwrap();
        let [_, low] = id.to_be_bytes();
        let local = Local { slot: id.into(), flags: 0 };
        self.maps.addrs4.insert(&u32::from_ne_bytes([10, 15, 0, low]), &local).unwrap();
        self.policies.create(id).unwrap();
        self.want(id, wanted);
    }

    fn want(&mut self, id: u16, wanted: &[(PolicyKey, PolicyEntry)]) {
        let wanted: Entries = wanted.iter().copied().collect();
        self.policies.apply(id, &wanted, &mut &self.maps.endpoints).unwrap();
    }

    fn entries(&self, id: u16) -> Entries {
        view_policy(&self.pins, &self.maps, id).unwrap().entries
    }

    /// Runs a command on these maps.
    fn villus(&self, args: &[&str]) -> Said {
        let places = ["--bpf-root", self.root.to_str().unwrap(), "--lib-dir", "/tmp/lib"];
        villus(&[args, &places].concat())
    }
}

fn key(identity: u32, port: u16, proto: u8, direction: Direction) -> PolicyKey {
    PolicyKey::new(identity, port, proto, direction)
}

/// Lines of a table with single spaces.
fn squeezed(text: &str) -> Vec<String> {
    text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn the_ipcache_answers_to_the_byte() {
    alone!();
    let kernel = Kernel::new();
    let value = |identity| IpcacheValue { identity, ..IpcacheValue::default() };
    for (address, length, identity) in
        [([10, 2, 6, 113], 32, 298_951), ([10, 2, 0, 0], 16, 7), ([0; 4], 0, 9)]
    {
        kernel.maps.ipcache.insert(&IpcacheKey::v4(address, length), &value(identity)).unwrap();
    }
    let get = |address: &str| kernel.villus(&["bpf", "ipcache", "get", address]);
    assert_eq!(get("10.2.6.113").ok(), "10.2.6.113 maps to identity 298951 0 0.0.0.0\n");
    assert_eq!(get("10.2.6.114").ok(), "10.2.6.114 maps to identity 7 0 0.0.0.0\n");
    assert_eq!(get("192.0.2.1").ok(), "192.0.2.1 maps to identity 9 0 0.0.0.0\n");
    let said = get("fd00::1");
    assert_eq!((said.code, said.out.as_str()), (1, "fd00::1 does not map to any identity\n"));
    let list = squeezed(&kernel.villus(&["bpf", "ipcache", "list"]).ok());
    assert_eq!(
        list,
        [
            "IP PREFIX/ADDRESS IDENTITY",
            "0.0.0.0/0 9 0 0.0.0.0",
            "10.2.0.0/16 7 0 0.0.0.0",
            "10.2.6.113/32 298951 0 0.0.0.0",
        ]
    );
    let json = kernel.villus(&["bpf", "ipcache", "get", "10.2.6.113", "-o", "jsonpath={.identity}"]).ok();
    assert_eq!(json, "298951");
}

#[test]
fn policy_maps_are_printed_and_edited() {
    alone!();
    let mut kernel = Kernel::new();
    let mut wanted = vec![
        (key(298_951, 80, 6, IN), PolicyEntry::ALLOW),
        (key(2, 0, 0, IN), PolicyEntry::DENY),
        (key(0, 0, 0, OUT), PolicyEntry::ALLOW),
    ];
    wanted.extend(
        [(8000, 6), (8064, 7), (8192, 9), (8704, 8), (8960, 5), (8992, 3)]
            .map(|(port, log2)| (PolicyKey::block(298_951, port, log2, 6, IN), PolicyEntry::ALLOW)),
    );
    kernel.endpoint(794, 5, &wanted);
    let get = |args: &[&str]| squeezed(&kernel.villus(&[&["bpf", "policy", "get"], args].concat()).ok());
    let expected = [
        "POLICY DIRECTION IDENTITY PORT/PROTO PROXY PORT BYTES PACKETS",
        "Deny Ingress 2 ANY NONE 0 0",
        "Allow Ingress 298951 80/TCP NONE 0 0",
        "Allow Ingress 298951 8000-8999/TCP NONE 0 0",
        "Allow Egress ANY ANY NONE 0 0",
    ];
    assert_eq!(get(&["794", "-n"]), expected);
    assert_eq!(get(&["cilium_policy_00794", "-n"]), expected);
    assert_eq!(get(&["10.15.0.26", "-n"]), expected);
    assert_eq!(get(&["794", "-n", "--keys"]).len(), wanted.len() + 1);
    let named = get(&["794"]);
    assert_eq!(named[0], "POLICY DIRECTION LABELS (source:key[=value]) PORT/PROTO PROXY PORT BYTES PACKETS");
    assert_eq!(named[1], "Deny Ingress reserved:world ANY NONE 0 0");
    assert!(get(&["--all"])[0] == "Endpoint ID: 794");

    let add = ["bpf", "policy", "add", "794", "ingress", "7", "53/udp"];
    let text = kernel.villus(&[&add[..], &["--dry-run"]].concat()).ok();
    assert_eq!(text, "endpoint 794: would be allowed: ingress from identity 7, 53/UDP\n");
    assert!(!kernel.entries(794).contains_key(&key(7, 53, 17, IN)));
    kernel.villus(&add).ok();
    assert_eq!(kernel.entries(794).get(&key(7, 53, 17, IN)), Some(&PolicyEntry::ALLOW));
    assert!(kernel.villus(&add).ok().contains("there is an entry already that allows"));
    let view = view_policy(&kernel.pins, &kernel.maps, 794).unwrap();
    assert_eq!(view.hand_made.into_iter().collect::<Vec<_>>(), [key(7, 53, 17, IN)]);
    kernel.villus(&["bpf", "policy", "add", "794", "egress", "any", "1000-1999/tcp", "--deny"]).ok();
    assert!(get(&["794", "-n"]).contains(&"Deny Egress ANY 1000-1999/TCP NONE 0 0".to_owned()));

    kernel.villus(&["bpf", "policy", "delete", "794", "ingress", "7", "53/udp"]).ok();
    assert!(!kernel.entries(794).contains_key(&key(7, 53, 17, IN)));
    let delete = ["bpf", "policy", "delete", "794", "ingress", "298951", "80/tcp"];
    assert!(kernel.villus(&[&delete[..], &["--dry-run"]].concat()).ok().contains("would be taken out"));
    let said = kernel.villus(&delete);
    assert!(said.err.contains("villus emergency undo"), "{said:?}");
    assert!(!kernel.entries(794).contains_key(&key(298_951, 80, 6, IN)));
    assert!(kernel.villus(&delete).fails(1).contains("has no such entry"));
    kernel.villus(&["emergency", "undo", "--all"]).ok();
    let after: Vec<PolicyKey> = kernel.entries(794).into_keys().collect();
    let mut before: Vec<PolicyKey> = wanted.iter().map(|(key, _)| *key).collect();
    before.sort_unstable();
    assert_eq!(after, before);
}

#[test]
fn owners_see_who_can_reach_whom_as_the_maps_say() {
    alone!();
    let mut kernel = Kernel::new();
    let open = [(ALL_IN, PolicyEntry::ALLOW), (ALL_OUT, PolicyEntry::ALLOW)];
    let server = [
        (key(301, 5432, 6, IN), PolicyEntry::ALLOW),
        (key(302, 5432, 6, IN), PolicyEntry::DENY),
        (PolicyKey::block(303, 8000, 6, 6, IN), PolicyEntry::ALLOW),
        (ALL_OUT, PolicyEntry::ALLOW),
    ];
    kernel.endpoint(5, 300, &server);
    kernel.endpoint(6, 301, &[(ALL_IN, PolicyEntry::ALLOW), (key(300, 5432, 6, OUT), PolicyEntry::ALLOW)]);
    kernel.endpoint(7, 302, &open);
    let mapped = IpcacheValue { identity: 303, ..IpcacheValue::default() };
    kernel.maps.ipcache.insert(&IpcacheKey::v4([10, 2, 6, 113], 32), &mapped).unwrap();
    let from_kernel =
        |args: &[&str]| villus(&[&["policy"], args, &["--from-kernel", "--bpf-root", "/tmp/bpf"]].concat());
    let ask = |_: &Kernel, args: &[&str]| squeezed(&from_kernel(args).ok());
    assert_eq!(
        ask(&kernel, &["who-can", "300", "5432"]),
        ["IDENTITY PORTS LABELS", "301 (endpoint 6) 5432/tcp"]
    );
    assert_eq!(ask(&kernel, &["who-can", "10.15.0.5", "8001"]), ["IDENTITY PORTS LABELS", "303 8001/tcp"]);
    let reach = ask(&kernel, &["can-reach", "301"]);
    assert_eq!(reach, ["IDENTITY PORTS LABELS", "300 (endpoint 5) 5432/TCP"]);

    // An endpoint of the same identity whose map somebody has opened by hand.
    kernel.endpoint(8, 300, &server);
    kernel.villus(&["bpf", "policy", "add", "8", "ingress", "302", "22/tcp"]).ok();
    let who = ask(&kernel, &["who-can", "300", "22"]);
    assert_eq!(who, ["IDENTITY PORTS LABELS", "302 (endpoint 7) 22/tcp"]);
    let json = from_kernel(&["who-can", "300", "22", "-o", "json"]).ok();
    let rows: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        rows,
        serde_json::json!([{
            "of": 300, "of-endpoints": [8], "identity": 302, "endpoints": [7], "labels": [],
            "ports": [{"ports": "22/tcp"}],
        }])
    );
    let both = ask(&kernel, &["can-reach", "302"]);
    let here: Vec<&String> = both.iter().filter(|line| line.contains("endpoint")).collect();
    assert_eq!(here, ["300 (endpoint 8) 22/TCP", "301 (endpoint 6) ANY", "302 (endpoint 7) ANY"], "{both:?}");
    assert!(both.contains(&"303 ANY".to_owned()), "{both:?}");

    // A block that the endpoint's record does not know of is not looked up; audit lets pass what is denied.
    let slot = view_policy(&kernel.pins, &kernel.maps, 5).unwrap().pinned.unwrap();
    let map = villus_datapath::sys::map_by_id(slot).unwrap();
    let map: villus_datapath::PolicyMap = villus_datapath::Map::new(map, "policy").unwrap();
    map.insert(&PolicyKey::block(301, 4096, 12, 6, IN), &PolicyEntry::ALLOW).unwrap();
    assert_eq!(ask(&kernel, &["who-can", "10.15.0.5", "5000"]), ["nobody"]);
    let mut record = kernel.maps.endpoints.get(&5).unwrap().unwrap();
    record.flags |= FLAG_AUDIT_INGRESS;
    kernel.maps.endpoints.insert(&5, &record).unwrap();
    let audited = ask(&kernel, &["who-can", "10.15.0.5", "5432"]);
    assert!(audited.contains(&"302 (endpoint 7) 5432/tcp (audit)".to_owned()), "{audited:?}");

    let nobody = from_kernel(&["who-can", "999", "80"]).fails(1);
    assert!(nobody.contains("no endpoint of this node is \"999\""), "{nobody}");
    from_kernel(&["who-can", "300", "80", "--policies", "/tmp/none"]).fails(2);
}

#[test]
fn other_maps_are_listed() {
    alone!();
    let mut kernel = Kernel::new();
    kernel.endpoint(7, 300, &[(ALL_IN, PolicyEntry::ALLOW)]);
    kernel.maps.addrs4.insert(&u32::from_ne_bytes([10, 15, 0, 1]), &Local::default()).unwrap();
    let list = squeezed(&kernel.villus(&["bpf", "endpoint", "list"]).ok());
    assert_eq!(list[0], "IP ADDRESS LOCAL ENDPOINT INFO");
    assert_eq!(list[1], "10.15.0.1 (localhost)");
    assert!(list[2].starts_with("10.15.0.7 id=7 sec_id=300 flags=0x0001 ifindex=0"), "{list:?}");
    assert_eq!(kernel.villus(&["bpf", "ct", "list"]).ok(), "");
    assert_eq!(kernel.villus(&["bpf", "ct", "flush", "global", "--dry-run"]).ok(), "would forget 0 flows\n");
    assert_eq!(kernel.villus(&["bpf", "ct", "flush", "7"]).ok(), "0 flows forgotten\n");
    let metrics = squeezed(&kernel.villus(&["bpf", "metrics", "list"]).ok());
    assert_eq!(metrics, ["REASON DIRECTION PACKETS BYTES"]);
    let maps = squeezed(&kernel.villus(&["map", "list"]).ok());
    assert!(maps.contains(&"cilium_policy_00007 1 0 false".to_owned()), "{maps:?}");
    assert!(maps.contains(&"villus_addrs4_v1 2 0 false".to_owned()), "{maps:?}");
    let entries = squeezed(&kernel.villus(&["map", "get", "cilium_policy_00007"]).ok());
    assert_eq!(entries, ["Key Value State Error", "ingress from ANY, ANY Allow 0 0"]);
    assert!(kernel.villus(&["map", "get", "nothing"]).fails(1).contains("villus map list"));
}

#[test]
fn beside_an_agent_of_an_earlier_version_all_but_its_flows_is_seen() {
    alone!();
    let mut kernel = Kernel::new();
    kernel.endpoint(7, 300, &[(ALL_IN, PolicyEntry::ALLOW)]);
    for (name, key) in [("ct4_tcp", 16), ("ct4_any", 16), ("ct6_tcp", 40), ("ct6_any", 40)] {
        assert!(kernel.pins.remove(&format!("villus_{name}_v2")).unwrap());
        let name = format!("villus_{name}_v1");
        let spec = MapSpec { name: &name, kind: Kind::LruHash, key, value: 96, entries: 1024, flags: 0 };
        kernel.pins.open_or_create(&name, &spec, None).unwrap();
    }
    let refused = kernel.villus(&["bpf", "ct", "list"]).fails(1);
    assert!(refused.contains("earlier version") && refused.contains("start the agent"), "{refused}");
    kernel.villus(&["bpf", "ct", "flush", "global"]).fails(1);
    assert!(kernel.villus(&["bpf", "policy", "get", "7"]).ok().contains("ANY"));
    assert!(squeezed(&kernel.villus(&["bpf", "endpoint", "list"]).ok()).len() > 1);
}

#[test]
fn masqueraded_packets_are_listed_and_forgotten() {
    alone!();
    let kernel = Kernel::with(Sizes { endpoints: 1024, nat: 1024, ..Sizes::default() });
    assert_eq!(kernel.villus(&["bpf", "nat", "list"]).ok(), "");
    let word = |octets: [u8; 4]| u32::from_ne_bytes(octets);
    let out = NatKey4 {
        src: word([10, 15, 0, 7]),
        dst: word([192, 0, 2, 9]),
        sport: 40_000_u16.to_be(),
        dport: 443_u16.to_be(),
        proto: 6,
        ..NatKey4::default()
    };
    let lent = Nat {
        addr: [word([192, 0, 2, 1]), 0, 0, 0],
        port: 50_000_u16.to_be(),
        created: now(),
        expires: now().wrapping_add(from_secs(8000)),
        ..Nat::default()
    };
    kernel.maps.nat.as_ref().unwrap().nat4.insert(&out, &lent).unwrap();
    let listed = kernel.villus(&["bpf", "nat", "list"]).ok();
    assert!(
        listed.starts_with("TCP OUT 10.15.0.7:40000 -> 192.0.2.9:443 XLATE_SRC 192.0.2.1:50000 Created="),
        "{listed}"
    );
    let json = kernel.villus(&["bpf", "nat", "list", "-n", "-o", "json"]).ok();
    let rows: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&rows[0]["protocol"], &rows[0]["becomes"]), (&"6".into(), &"192.0.2.1:50000".into()));
    let flush = |args: &[&str]| kernel.villus(&[&["bpf", "nat", "flush"], args].concat()).ok();
    assert_eq!(flush(&["--dry-run"]), "would forget 1 entries\n");
    assert_eq!(flush(&[]), "1 entries forgotten\n");
    assert_eq!(kernel.villus(&["bpf", "nat", "list"]).ok(), "");
}

#[test]
fn an_emergency_opens_the_node_itself_for_who_is_locked_out() {
    alone!();
    let mut kernel = Kernel::new();
    let said = kernel.villus(&["emergency", "allow", "--host"]).fails(1);
    assert!(said.contains("the node itself has no policy map") && said.contains("nftables"), "{said}");
    let deny = PolicyKey::new(2, 22, 6, IN);
    kernel.endpoint(0, 1, &[(deny, PolicyEntry::DENY), (PolicyKey::new(2, 80, 6, IN), PolicyEntry::ALLOW)]);
    kernel.endpoint(5, 500, &[]);
    let said = kernel.villus(&["emergency", "allow", "--host", "--dry-run"]).ok();
    assert!(said.contains("the node itself: would be allowed") && said.contains("--override-deny"), "{said}");
    assert!(!kernel.entries(0).contains_key(&ALL_IN));
    kernel.villus(&["emergency", "allow", "--all"]).ok();
    assert!(!kernel.entries(0).contains_key(&ALL_IN), "--all is for workloads");
    let said = kernel.villus(&["emergency", "allow", "--host", "--override-deny"]).ok();
    assert!(said.contains("the node itself: no longer denied"), "{said}");
    let there = kernel.entries(0);
    assert!(there.contains_key(&ALL_IN) && there.contains_key(&ALL_OUT) && !there.contains_key(&deny));
    kernel.villus(&["emergency", "undo", "--all"]).ok();
    assert_eq!(kernel.entries(0).len(), 2);
    kernel.villus(&["emergency", "allow", "--host", "--egress"]).ok();
    assert!(!kernel.entries(0).contains_key(&ALL_IN) && kernel.entries(0).contains_key(&ALL_OUT));
}

#[test]
fn an_emergency_opens_both_directions_and_is_undone() {
    alone!();
    let mut kernel = Kernel::new();
    let server = [(key(300, 80, 6, IN), PolicyEntry::ALLOW)];
    kernel.endpoint(5, 500, &server);
    kernel.endpoint(6, 300, &[(ALL_IN, PolicyEntry::ALLOW), (key(500, 80, 6, OUT), PolicyEntry::ALLOW)]);
    let allow = ["emergency", "allow", "--endpoint", "5"];

    let text = kernel.villus(&[&allow[..], &["--dry-run"]].concat()).ok();
    assert!(text.contains("endpoint 5: would be allowed: ingress from ANY, ANY"), "{text}");
    assert_eq!(kernel.entries(5).len(), 1);
    assert!(!Path::new("/tmp/lib").exists(), "a dry run writes nothing");

    let text = kernel.villus(&allow).ok();
    assert!(text.contains("endpoint 5: allowed: egress to ANY, ANY"), "{text}");
    assert!(text.contains("the egress policy of endpoint 6 does not let everything pass to it"), "{text}");
    let entries = kernel.entries(5);
    assert_eq!(entries.get(&ALL_IN), Some(&PolicyEntry::ALLOW));
    assert_eq!(entries.get(&ALL_OUT), Some(&PolicyEntry::ALLOW));
    assert!(kernel.villus(&allow).ok().contains("egress is open already"));

    let list = kernel.villus(&["emergency", "list"]).ok();
    assert!(list.contains("villus emergency allow by"), "{list}");
    assert_eq!(list.lines().count(), 3, "{list}");
    let ids = kernel.villus(&["emergency", "list", "-o", "jsonpath={.entries[*].id}"]).ok();
    assert_eq!(ids, "1 1");
    assert!(kernel.villus(&["emergency", "undo", "1", "--dry-run"]).ok().contains("would be taken out"));
    assert!(kernel.villus(&["emergency", "undo", "1"]).ok().contains("deed 1 is undone"));
    assert_eq!(kernel.entries(5), server.into());
    assert!(kernel.villus(&["emergency", "undo", "1"]).fails(1).contains("not in effect"));
    assert_eq!(kernel.villus(&["emergency", "list"]).ok(), "nothing was done by hand\n");
}

#[test]
fn one_direction_of_all_endpoints() {
    alone!();
    let mut kernel = Kernel::new();
    for id in [5, 6, 7] {
        kernel.endpoint(id, 500, &[]);
    }
    kernel.villus(&["emergency", "allow", "--all", "--ingress"]).ok();
    for id in [5, 6, 7] {
        assert_eq!(kernel.entries(id), BTreeMap::from([(ALL_IN, PolicyEntry::ALLOW)]));
    }
    kernel.villus(&["emergency", "undo", "--all"]).ok();
    for id in [5, 6, 7] {
        assert!(kernel.entries(id).is_empty());
    }
}

#[test]
fn denies_win_unless_they_are_overridden_and_come_back_with_their_counters() {
    alone!();
    let mut kernel = Kernel::new();
    let counted = PolicyEntry { packets: 41, bytes: 4200, ..PolicyEntry::DENY };
    kernel.endpoint(5, 500, &[(ALL_IN, PolicyEntry::DENY), (key(2, 0, 0, IN), PolicyEntry::DENY)]);
    kernel.endpoint(6, 600, &[]);
    let slot = view_policy(&kernel.pins, &kernel.maps, 5).unwrap().pinned.unwrap();
    let map = villus_datapath::sys::map_by_id(slot).unwrap();
    let map: villus_datapath::PolicyMap = villus_datapath::Map::new(map, "policy").unwrap();
    map.insert(&key(2, 0, 0, IN), &counted).unwrap();
    let before = kernel.entries(5);

    let text = kernel.villus(&["emergency", "allow", "--endpoint", "5", "--ingress"]).fails(1);
    assert!(text.contains("2 entries that deny stay in force for ingress"), "{text}");
    assert!(text.contains("repeat it with --override-deny"), "{text}");
    assert_eq!(kernel.entries(5), before, "a deny of everything has the same key");

    let text = kernel.villus(&["emergency", "allow", "--endpoint", "5", "--ingress", "--override-deny"]).ok();
    assert!(text.contains("no longer denied: ingress from identity 2, ANY"), "{text}");
    assert_eq!(kernel.entries(5), BTreeMap::from([(ALL_IN, PolicyEntry::ALLOW)]));
    let list = kernel.villus(&["emergency", "list"]).ok();
    assert!(list.contains("no longer denied: ingress from identity 2, ANY"), "{list}");
    assert!(list.contains("ingress from ANY, ANY"), "{list}");

    let text = kernel.villus(&["emergency", "undo", "--all"]).ok();
    assert!(text.contains("put back: ingress from identity 2, ANY"), "{text}");
    assert_eq!(kernel.entries(5), before);
}

#[test]
fn when_the_time_is_up_it_is_undone_without_anybody() {
    alone!();
    let mut kernel = Kernel::new();
    kernel.endpoint(5, 500, &[]);
    // A shell that ends at once, with its process group. The time is enough for two looks on a busy machine.
    let allow = [
        "emergency",
        "allow",
        "--endpoint",
        "5",
        "--for",
        "10s",
        "--bpf-root",
        "/tmp/bpf",
        "--lib-dir",
        "/tmp/lib",
    ];
    let begin = Instant::now();
    let output = command(&allow).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("by process"), "{output:?}");
    assert_eq!(kernel.entries(5).len(), 2);
    let until = kernel.villus(&["emergency", "list", "-o", "jsonpath={.entries[0].until}"]).ok();
    assert!(until.ends_with('Z'), "{until}");
    eventually("undone", || kernel.entries(5).is_empty());
    assert!(begin.elapsed() >= Duration::from_secs(10));
    eventually("written down", || {
        std::fs::read_to_string("/tmp/lib/emergency.jsonl").unwrap().contains(r#""by":"timer""#)
    });
    assert_eq!(kernel.villus(&["emergency", "list"]).ok(), "nothing was done by hand\n");
}

#[test]
fn a_deed_whose_process_was_killed_is_overdue_and_can_be_undone() {
    alone!();
    let mut kernel = Kernel::new();
    kernel.endpoint(5, 500, &[]);
    kernel.villus(&["emergency", "allow", "--endpoint", "5", "--for", "1h"]).ok();
    let journal = std::fs::read_to_string("/tmp/lib/emergency.jsonl").unwrap();
    let pid = journal.rsplit_once(r#""pid":"#).unwrap().1.trim_end_matches(['}', '\n']);
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let session = stat.rsplit_once(") ").unwrap().1.split(' ').nth(3).unwrap();
    assert_eq!(session, pid, "it leads a session of its own");
    assert!(std::process::Command::new("kill").args(["-9", pid]).status().unwrap().success());
    // An hour later.
    let until = journal.split_once(r#""until":""#).unwrap().1.split('"').next().unwrap();
    std::fs::write("/tmp/lib/emergency.jsonl", journal.replace(until, "2020-01-01T00:00:00Z")).unwrap();
    let list = kernel.villus(&["emergency", "list"]).ok();
    assert!(list.contains("overdue: the process that should have undone it is gone"), "{list}");
    kernel.villus(&["emergency", "undo", "1"]).ok();
    assert!(kernel.entries(5).is_empty());
}

#[test]
fn the_fullest_map_can_be_opened() {
    alone!();
    let mut kernel = Kernel::new();
    let full: Vec<_> = (0..2048).map(|n| (key(1000 + n, 80, 6, IN), PolicyEntry::ALLOW)).collect();
    kernel.endpoint(5, 500, &full);
    kernel.villus(&["emergency", "allow", "--endpoint", "5"]).ok();
    let entries = kernel.entries(5);
    assert_eq!(entries.len(), 2050);
    assert!(entries.contains_key(&ALL_IN) && entries.contains_key(&ALL_OUT));
}

#[test]
fn what_was_put_in_by_other_means_is_listed_and_can_be_taken_out() {
    alone!();
    let mut kernel = Kernel::new();
    kernel.endpoint(794, 500, &[(key(300, 80, 6, IN), PolicyEntry::ALLOW)]);
    let zeros = |n: usize| vec!["00"; n];
    let bpftool = |pin: &str| {
        let args = [
            vec!["map", "update", "pinned", pin, "key", "hex"],
            zeros(8),
            vec!["value", "hex"],
            zeros(24),
            vec!["noexist"],
        ];
        std::process::Command::new("bpftool").args(args.concat()).status().unwrap().success()
    };
    let pin = "/tmp/bpf/tc/globals/cilium_policy_00794";
    assert!(bpftool(pin), "the recipe");
    assert!(!bpftool(pin), "it refuses what is there");
    let id = kernel.villus(&["emergency", "list", "-o", "jsonpath={.entries[0].id}"]).ok();
    assert_eq!(id, "hand-794-0000000000000000");
    assert!(kernel.villus(&["emergency", "undo", &id, "--dry-run"]).ok().contains("would be taken out"));
    kernel.villus(&["emergency", "undo", &id]).ok();
    assert_eq!(kernel.entries(794).len(), 1);
    assert!(kernel.villus(&["emergency", "undo", &id]).fails(1).contains("no entry made by hand"));
    assert!(kernel.villus(&["emergency", "undo", "x"]).fails(2).contains("emergency list"));
}

#[test]
fn holds_are_written_down_for_the_next_agent() {
    alone!();
    let kernel = Kernel::new();
    let text = kernel.villus(&["policy", "hold", "794", "--reason", "a look"]).ok();
    assert_eq!(text, "held from the agent's next start: endpoint 794\n");
    let list = kernel.villus(&["emergency", "list"]).ok();
    assert!(list.contains("HELD ENDPOINT") && list.contains("a look"), "{list}");
    kernel.villus(&["policy", "release", "794"]).ok();
    assert_eq!(kernel.villus(&["emergency", "list"]).ok(), "nothing was done by hand\n");
}

#[test]
fn a_damaged_journal_is_said_and_read_as_far_as_it_goes() {
    alone!();
    let mut kernel = Kernel::new();
    kernel.endpoint(5, 500, &[]);
    kernel.villus(&["emergency", "allow", "--endpoint", "5"]).ok();
    let journal = std::fs::read("/tmp/lib/emergency.jsonl").unwrap();
    std::fs::write("/tmp/lib/emergency.jsonl", [b"nonsense\n", &journal[..]].concat()).unwrap();
    let said = kernel.villus(&["emergency", "list"]);
    assert!(said.err.contains("emergency.jsonl: passed over what cannot be understood: line 1"), "{said:?}");
    assert!(said.ok().contains("egress to ANY"));
    // Nowhere to write it down: nothing is done.
    std::fs::write("/tmp/file", "").unwrap();
    kernel.endpoint(6, 600, &[]);
    let args = ["emergency", "allow", "--endpoint", "6", "--bpf-root", "/tmp/bpf", "--lib-dir", "/tmp/file"];
    let error = villus(&args).fails(1);
    assert!(error.contains("/tmp/file/emergency.jsonl") && error.contains("--lib-dir"), "{error}");
    assert!(kernel.entries(6).is_empty());
}

#[test]
fn a_node_without_villus_is_said() {
    alone!();
    let args = |root: &str| villus(&["bpf", "endpoint", "list", "--bpf-root", root]).fails(1);
    let error = args("/tmp/none");
    assert!(error.contains("/tmp/none") && error.contains("--bpf-root"), "{error}");
    Pins::open(Path::new("/tmp/empty")).unwrap();
    assert!(args("/tmp/empty").contains("villus_endpoints_v1"), "{}", args("/tmp/empty"));
    let said = command(&["bpf", "endpoint", "list"]).env("VILLUS_BPF_ROOT", "/tmp/none").output().unwrap();
    assert!(String::from_utf8_lossy(&said.stderr).contains("/tmp/none"));
    // A wrong setting elsewhere does not keep an operator from looking.
    let said = command(&["bpf", "endpoint", "list"])
        .env("VILLUS_BPF_ROOT", "/tmp/none")
        .env("VILLUS_ENABLE_IPV4", "perhaps")
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(error.contains("the configuration has errors") && error.contains("/tmp/none"), "{error}");
}

#[test]
fn an_endpoint_that_is_not_there_is_said() {
    alone!();
    let kernel = Kernel::new();
    assert!(kernel.villus(&["bpf", "policy", "get", "9"]).fails(1).contains("endpoint 9 has no policy map"));
    assert!(
        kernel.villus(&["bpf", "policy", "get", "10.9.9.9"]).fails(1).contains("no endpoint of this node")
    );
    let error = kernel.villus(&["bpf", "policy", "get", "web"]).fails(1);
    assert!(error.contains("the agent does not answer"), "{error}");
    let error = kernel.villus(&["emergency", "allow", "--endpoint", "9"]).fails(1);
    assert!(
        error.contains("endpoint 9 has no policy map") && error.contains("nothing was opened"),
        "{error}"
    );
}
