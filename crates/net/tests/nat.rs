//! Masquerading, and drops by others.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::time::Duration;

use common::*;
use proptest::prelude::*;
use villus_net::*;
use villus_testbed::run;

fn masquerade(native: &[&str]) -> Masquerade {
    let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    Masquerade {
        pools: nets(&["10.9.0.0/24", "fd09::/64"]),
        native: nets(native),
        kept: None,
        left: BTreeSet::new(),
        skip: Some(Mark { value: 0x200, mask: 0xf00 }),
        inner_devices: vec!["lxc*".into(), "villus_*".into()],
    }
}

/// A node with one workload and a server outside that knows no way back to the workload's addresses.
fn topology(s: &Sandbox) -> (Host, Host) {
    let outside = Host::named("outside");
    s.ip(&format!("link add up0 type veth peer name far netns {}", outside.name()));
    s.ip("link set up0 up");
    outside.ip("link set far up");
    s.settle("up0");
    for (near, far) in [("192.0.2.2/24", "192.0.2.1/24"), ("2001:db8::2/64", "2001:db8::1/64")] {
        let nodad = if near.contains(':') { " nodad" } else { "" };
        s.ip(&format!("addr add {near} dev up0{nodad}"));
        outside.ip(&format!("addr add {far} dev far{nodad}"));
    }
    s.inside(|| {
        Sysctl::at("net/ipv4/ip_forward").write("1").unwrap();
        Sysctl::of_device(Family::Ipv6, "all", "forwarding").write("1").unwrap();
    });
    let w = Host::named("w");
    let addresses = [address("10.9.0.10"), address("fd09::10")];
    s.inside(|| create_endpoint_link(&spec("w", "lxcw", &w, &addresses), nothing)).unwrap();
    (w, outside)
}

/// How long is waited for what must come, and for what must not.
const PATIENCE: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_secs(1);

/// The source address that a server in `to` sees of a client in `from`.
fn seen_source(from: &Host, to: &Host, server: &str) -> Option<IpAddr> {
    seen_source_within(PATIENCE, from, to, server)
}

fn seen_source_within(patience: Duration, from: &Host, to: &Host, server: &str) -> Option<IpAddr> {
    let listener = to.run(|| TcpListener::bind((address(server), 0))).unwrap();
    let target = listener.local_addr().unwrap();
    let client = from.run(|| TcpStream::connect_timeout(&target, patience));
    client.ok().map(|_client| listener.accept().unwrap().1.ip())
}

#[test]
fn what_leaves_the_node_gets_the_nodes_address() {
    let s = Sandbox::new();
    let (w, outside) = topology(&s);
    let clean = s.snapshot();
    assert_eq!(seen_source_within(SHORT, &w, &outside, "192.0.2.1"), None);
    s.inside(|| masquerade(&[]).apply()).unwrap();
    assert_eq!(seen_source(&w, &outside, "192.0.2.1"), Some(address("192.0.2.2")));
    assert_eq!(seen_source(&w, &outside, "2001:db8::1"), Some(address("2001:db8::2")));
    let counters = s.inside(masquerade_counters).unwrap().unwrap();
    assert_eq!(counters, NatCounters { ipv4: 1, ipv6: 1, skipped: 0 });

    let (text, generation) = s.inside(|| (masquerade_rules(), nft_generation()));
    let text = text.unwrap().unwrap();
    assert!(text.contains("masquerade"), "{text}");
    assert_eq!(s.inside(nft_generation).unwrap(), generation.unwrap(), "nobody changed anything");
    assert_eq!(seen_source(&w, &outside, "192.0.2.1"), Some(address("192.0.2.2")));
    assert_eq!(s.inside(masquerade_rules).unwrap().as_ref(), Some(&text), "what is counted is not of it");
    let counters = s.inside(masquerade_counters).unwrap().unwrap();

    // Applied again, counters go on; native prefixes are left alone.
    outside.ip("route add 10.9.0.0/24 via 192.0.2.2");
    s.inside(|| masquerade(&["192.0.2.0/24"]).apply()).unwrap();
    assert_eq!(seen_source(&w, &outside, "192.0.2.1"), Some(address("10.9.0.10")));
    assert_eq!(s.inside(masquerade_counters).unwrap(), Some(counters));
    let rules = s.inside(|| run("nft", &["list", "table", "inet", "villus"]));
    assert_eq!(rules.matches(" masquerade\n").count(), 2, "{rules}");

    s.inside(|| {
        remove_masquerade().unwrap();
        remove_masquerade().unwrap();
        assert_eq!(masquerade_counters().unwrap(), None);
    });
    assert_eq!(s.snapshot(), clean);
}

#[test]
fn marked_packets_and_traffic_of_the_node_are_left_alone() {
    let s = Sandbox::new();
    let (w, outside) = topology(&s);
    outside.ip("route add 10.9.0.0/24 via 192.0.2.2");
    s.inside(|| masquerade(&[]).apply()).unwrap();
    s.inside(|| {
        run("nft", &["add table inet marker; add chain inet marker pre { type filter hook prerouting priority -300; }; \
            add rule inet marker pre iifname lxcw meta mark set 0x5200"])
    });
    assert_eq!(seen_source(&w, &outside, "192.0.2.1"), Some(address("10.9.0.10")));
    let counters = s.inside(masquerade_counters).unwrap().unwrap();
    assert_eq!((counters.ipv4, counters.skipped), (0, 1));
    assert_eq!(seen_source(&s.node, &w, "10.9.0.10"), Some(address(GATEWAY_4)));
    assert_eq!(seen_source(&outside, &w, "10.9.0.10"), Some(address("192.0.2.1")));
}

#[test]
fn a_table_of_another_shape_is_replaced() {
    let s = Sandbox::new();
    s.inside(|| {
        run("nft", &["add table inet villus; add chain inet villus postrouting { type filter hook postrouting priority 5; }"]);
        masquerade(&[]).apply().unwrap();
        assert!(run("nft", &["list", "table", "inet", "villus"]).contains("type nat hook postrouting priority srcnat"));
        assert!(nft_version().unwrap().contains("nftables"));
    });
}

#[test]
fn a_foreign_forward_policy_is_named_and_its_own_lines_mend_it() {
    let s = Sandbox::new();
    let (w, outside) = topology(&s);
    s.inside(|| masquerade(&[]).apply()).unwrap();
    let look = || s.inside(|| foreign_drops(&["lxc*"])).unwrap();
    assert_eq!(look(), []);
    s.inside(|| {
        run("nft", &["add table inet filter; add chain inet filter forward { type filter hook forward priority 0; policy drop; }"])
    });
    assert_eq!(seen_source_within(SHORT, &w, &outside, "192.0.2.1"), None);
    let drops = look();
    assert_eq!(drops.len(), 1, "{drops:?}");
    assert_eq!(drops[0].place, "inet filter forward");
    assert_eq!(drops[0].mend[0], "nft insert rule inet filter forward iifname \"lxc*\" accept");
    for line in &drops[0].mend {
        s.inside(|| run("sh", &["-c", line]));
    }
    assert_eq!(seen_source(&w, &outside, "192.0.2.1"), Some(address("192.0.2.2")));
    assert_eq!(look(), []);
}

#[test]
fn a_rule_that_drops_the_rest_counts_unless_ours_pass_before() {
    let s = Sandbox::new();
    s.inside(|| {
        run("nft", &["add table ip fw; add chain ip fw through { type filter hook forward priority 0; policy accept; }; \
            add rule ip fw through tcp dport 22 drop"]);
        assert_eq!(foreign_drops(&["lxc*"]).unwrap(), []);
        run("nft", &["add rule ip fw through counter reject"]);
        let drops = foreign_drops(&["lxc*", "tap0"]).unwrap();
        assert_eq!(drops.len(), 1);
        assert_eq!(drops[0].what, "a rule that drops the rest");
        assert_eq!(drops[0].mend.len(), 4, "{drops:?}");
        // Behind the drop it is too late.
        run("nft", &["add rule ip fw through iifname \"lxc*\" accept; add rule ip fw through oifname \"lxc*\" accept"]);
        assert_eq!(foreign_drops(&["lxc*"]).unwrap().len(), 1);
    });
}

#[test]
fn dockers_tables_are_told_apart_in_both_listings() {
    let nft = r#"{"nftables":[{"metainfo":{}},
        {"chain":{"family":"ip","table":"filter","name":"FORWARD","type":"filter","hook":"forward","prio":0,"policy":"drop"}},
        {"chain":{"family":"ip","table":"filter","name":"DOCKER-USER"}},
        {"rule":{"family":"ip","table":"filter","chain":"FORWARD","expr":[{"jump":{"target":"DOCKER-USER"}}]}}]}"#;
    let accept = |side: &str| {
        format!(
            r#"{{"rule":{{"family":"ip","table":"filter","chain":"DOCKER-USER","expr":[
            {{"match":{{"op":"==","left":{{"meta":{{"key":"{side}"}}}},"right":"lxc*"}}}},{{"accept":null}}]}}}}"#
        )
    };
    let drops = nft_drops(nft, &["lxc*"]);
    assert_eq!(drops[0].what, "policy drop for all that is forwarded, set by docker");
    assert_eq!(
        drops[0].mend,
        ["iptables -I DOCKER-USER -i lxc+ -j ACCEPT", "iptables -I DOCKER-USER -o lxc+ -j ACCEPT"]
    );
    let saved = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:DOCKER-USER - [0:0]\nCOMMIT\n";
    assert_eq!(iptables_drops(saved, "iptables", &["lxc*"])[0].mend, drops[0].mend);
    let mended = format!("{saved}-A DOCKER-USER -i lxc+ -j ACCEPT\n-A DOCKER-USER -o lxc+ -j ACCEPT\n");
    assert_eq!(iptables_drops(&mended, "iptables", &["lxc*"]), []);
    assert_eq!(iptables_drops("*filter\n:FORWARD ACCEPT [0:0]\n", "iptables", &["lxc*"]), []);
    let body = nft.strip_suffix("]}").unwrap();
    let mended = format!("{body},{},{}]}}", accept("iifname"), accept("oifname"));
    assert_eq!(nft_drops(&mended, &["lxc*"]), []);
    let half = format!("{body},{}]}}", accept("iifname"));
    assert_eq!(nft_drops(&half, &["lxc*"]).len(), 1);
}

proptest! {
    #[test]
    fn any_listing_is_read_or_ignored(text in r#"[\[\]{}":, a-z*]{0,80}"#) {
        let _ = nft_drops(&text, &["lxc*"]);
        let _ = nft_drops(&format!(r#"{{"nftables":[{{"chain":{text}}},{{"rule":{text}}}]}}"#), &["lxc*"]);
        let _ = iptables_drops(&format!(":FORWARD DROP\n{text}"), "iptables", &["lxc*"]);
    }
}
