//! The node's own part: router device, pools, forwarding, parameters, and putting all of it back.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use common::*;
use socket2::{Domain, Protocol, Socket, Type};
use villus_net::*;
use villus_testbed::eventually;

fn node(uplinks: &[&str], system: &Path) -> NodeNetwork {
    NodeNetwork {
        router_v4: Some("10.9.0.2".parse().unwrap()),
        router_v6: Some("fd09::2".parse().unwrap()),
        pools: vec!["10.9.0.0/24".parse().unwrap(), "fd09::/64".parse().unwrap()],
        mtu: 1500,
        uplinks: uplinks.iter().map(|name| (*name).to_owned()).collect(),
        system: SystemPaths {
            networkd_state: system.join("networkd"),
            networkd_dir: system.join("network"),
            udev_state: system.join("udev"),
            sysctl_dir: system.join("sysctl.d"),
            reload: false,
        },
    }
}

fn apply(s: &Sandbox, node: &NodeNetwork, journal: &mut Journal) -> Result<RouterDevice, NetError> {
    let mut save = |_: &Journal| Ok(());
    s.inside(|| node.apply(&mut Recorder::new(journal, Path::new("journal"), &mut save)))
}

fn restore(s: &Sandbox, journal: &mut Journal) -> Restored {
    s.inside(|| journal.restore())
}

fn sysctl(s: &Sandbox, key: &str) -> String {
    s.inside(|| Sysctl::at(key).read().unwrap())
}

fn set(s: &Sandbox, key: &str, value: &str) {
    s.inside(|| Sysctl::at(key).write(value).unwrap());
}

/// An uplink to a router in a namespace of its own.
fn uplink(s: &Sandbox) -> Host {
    let router = Host::named("router");
    s.ip(&format!("link add up0 type veth peer name far netns {}", router.name()));
    s.ip("link set up0 up");
    s.ip("addr add 192.0.2.2/24 dev up0");
    router.ip("link set far up");
    router.ip("addr add 192.0.2.1/24 dev far");
    s.settle("up0");
    s.ip("route add default via 192.0.2.1");
    router
}

#[test]
fn all_is_set_and_all_is_put_back() {
    let s = Sandbox::new();
    let _router = uplink(&s);
    let system = tempfile::tempdir().unwrap();
    std::fs::write(system.path().join("networkd"), "").unwrap();
    std::fs::write(system.path().join("udev"), "").unwrap();
    set(&s, "net/ipv4/conf/all/rp_filter", "1");
    set(&s, "net/ipv4/conf/up0/rp_filter", "2");
    set(&s, "net/ipv4/conf/default/rp_filter", "0");
    set(&s, "net/ipv4/conf/up0/forwarding", "1");
    set(&s, "net/ipv4/conf/all/accept_redirects", "0");
    let clean = s.snapshot();

    let (node, mut journal) = (node(&["up0"], system.path()), Journal::default());
    let router = apply(&s, &node, &mut journal).unwrap();
    assert_eq!(s.ip_json("link show villus_host")[0]["ifindex"], router.index);
    assert_eq!(s.ip_json("link show villus_net")[0]["address"], router.peer_mac.to_string());
    let addresses = s.ip("addr show dev villus_host");
    assert!(addresses.contains("inet 10.9.0.2/32") && addresses.contains("inet6 fd09::2/128"), "{addresses}");
    assert!(!addresses.contains("tentative") && !addresses.contains("fe80"), "{addresses}");
    let routes = s.ip("route show") + &s.ip("-6 route show");
    assert!(routes.contains("unreachable 10.9.0.0/24 proto 118"), "{routes}");
    assert!(routes.contains("unreachable fd09::/64 dev lo proto 118"), "{routes}");
    for (key, value) in [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
        ("net/ipv6/conf/up0/accept_ra", "2"),
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/default/rp_filter", "1"),
        ("net/ipv4/conf/lo/rp_filter", "1"),
        ("net/ipv4/conf/up0/rp_filter", "2"),
        ("net/ipv4/conf/villus_host/rp_filter", "0"),
        ("net/ipv4/conf/villus_net/rp_filter", "0"),
    ] {
        assert_eq!(sysctl(&s, key), value, "{key}");
    }
    let file = std::fs::read_to_string(system.path().join("network/00-villus.network")).unwrap();
    assert!(file.contains("Unmanaged=yes") && file.contains("villus_*"), "{file}");
    let file = std::fs::read_to_string(system.path().join("sysctl.d/99-zz-villus.conf")).unwrap();
    assert!(file.contains("villus_*.rp_filter = 0"), "{file}");

    // Again, from the journal as it was on disk.
    let (applied, text) = (s.snapshot(), serde_json::to_string(&journal).unwrap());
    let mut journal: Journal = serde_json::from_str(&text).unwrap();
    assert_eq!(apply(&s, &node, &mut journal).unwrap(), router);
    assert_eq!((s.snapshot(), serde_json::to_string(&journal).unwrap()), (applied, text));

    let restored = restore(&s, &mut journal);
    assert!(restored.errors.0.is_empty() && restored.left.is_empty(), "{restored:?}");
    assert!(journal.changes().is_empty());
    assert_eq!(s.snapshot(), clean);
    assert!(!system.path().join("network/00-villus.network").exists());
    assert!(!system.path().join("sysctl.d/99-zz-villus.conf").exists());
    assert!(restore(&s, &mut journal).undone.is_empty());
}

#[test]
fn what_others_changed_since_is_left_alone() {
    let s = Sandbox::new();
    let _router = uplink(&s);
    let system = tempfile::tempdir().unwrap();
    std::fs::write(system.path().join("networkd"), "").unwrap();
    let (node, mut journal) = (node(&["up0"], system.path()), Journal::default());
    apply(&s, &node, &mut journal).unwrap();
    set(&s, "net/ipv6/conf/up0/accept_ra", "0");
    set(&s, "net/ipv4/ip_forward", "0");
    let file = system.path().join("network/00-villus.network");
    std::fs::write(&file, "mine").unwrap();
    s.ip("link del villus_host");
    s.ip("link add villus_host type bridge");
    let restored = restore(&s, &mut journal);
    assert!(restored.errors.0.is_empty(), "{restored:?}");
    let left = restored.left.join("\n");
    for words in [
        "net/ipv6/conf/up0/accept_ra is 0 now, no longer our 2",
        "forwarding of ipv4 was switched off by somebody else",
        "00-villus.network was changed by somebody",
        "device villus_host is not the one that we made",
    ] {
        assert!(left.contains(words), "{words} is missing in\n{left}");
    }
    assert_eq!(sysctl(&s, "net/ipv6/conf/up0/accept_ra"), "0");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
    assert_eq!(sysctl(&s, "net/ipv6/conf/all/forwarding"), "0");
}

#[test]
fn an_operators_file_of_the_same_name_is_not_replaced() {
    let s = Sandbox::new();
    let system = tempfile::tempdir().unwrap();
    std::fs::write(system.path().join("networkd"), "").unwrap();
    std::fs::create_dir(system.path().join("network")).unwrap();
    let file = system.path().join("network/00-villus.network");
    std::fs::write(&file, "mine").unwrap();
    let mut journal = Journal::default();
    apply(&s, &node(&[], system.path()), &mut journal).unwrap();
    restore(&s, &mut journal);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
}

#[test]
fn the_journal_is_saved_before_each_change_and_a_failed_save_stops() {
    let s = Sandbox::new();
    let clean = s.snapshot();
    let system = tempfile::tempdir().unwrap();
    let (node, mut journal) = (node(&[], system.path()), Journal::default());
    let mut saves = 0;
    let mut save = |journal: &Journal| {
        saves += 1;
        assert_eq!(journal.changes().len(), saves);
        if saves == 3 { Err(std::io::Error::other("disk full")) } else { Ok(()) }
    };
    let error =
        s.inside(|| node.apply(&mut Recorder::new(&mut journal, Path::new("/state/journal"), &mut save)));
    assert_eq!(error.unwrap_err().to_string(), "cannot save the journal /state/journal: disk full");
    let restored = restore(&s, &mut journal);
    assert!(restored.errors.0.is_empty(), "{restored:?}");
    assert_eq!(s.snapshot(), clean);
}

#[test]
fn changed_pools_and_routers_replace_the_old_ones() {
    let s = Sandbox::new();
    let clean = s.snapshot();
    let system = tempfile::tempdir().unwrap();
    let (mut node, mut journal) = (node(&[], system.path()), Journal::default());
    apply(&s, &node, &mut journal).unwrap();
    node.router_v4 = Some("10.8.0.2".parse().unwrap());
    node.router_v6 = None;
    node.pools = vec!["10.8.0.0/24".parse().unwrap()];
    apply(&s, &node, &mut journal).unwrap();
    let shown = s.ip("addr show dev villus_host") + &s.ip("route show") + &s.ip("-6 route show");
    assert!(shown.contains("10.8.0.2/32") && shown.contains("unreachable 10.8.0.0/24"), "{shown}");
    assert!(
        !shown.contains("10.9.0.2") && !shown.contains("fd09::2") && !shown.contains("fd09::/64"),
        "{shown}"
    );
    assert!(!shown.contains("10.9.0.0/24"), "{shown}");
    restore(&s, &mut journal);
    assert_eq!(s.snapshot(), clean);
}

#[test]
fn conflicts_are_named() {
    let s = Sandbox::new();
    let system = tempfile::tempdir().unwrap();
    let node_net = node(&[], system.path());
    s.ip("link add villus_host type bridge");
    let error = apply(&s, &node_net, &mut Journal::default()).unwrap_err().to_string();
    assert!(error.contains("villus_host already exists in the node and was not made by Villus"), "{error}");
    s.ip("link del villus_host");
    s.ip("route add blackhole 10.9.0.0/24");
    let error = apply(&s, &node_net, &mut Journal::default()).unwrap_err().to_string();
    assert!(
        error.contains("a route to 10.9.0.0/24 exists already (blackhole 10.9.0.0/24 protocol 3)"),
        "{error}"
    );
    let error =
        apply(&s, &NodeNetwork { router_v6: None, ..node(&[], system.path()) }, &mut Journal::default());
    assert!(matches!(error, Err(NetError::Invalid { field: "router", .. })));
}

#[test]
fn unused_addresses_of_the_pool_do_not_leak_and_used_ones_work() {
    let s = Sandbox::new();
    let router = uplink(&s);
    let system = tempfile::tempdir().unwrap();
    let mut journal = Journal::default();
    apply(&s, &node(&["up0"], system.path()), &mut journal).unwrap();
    let w = Host::named("w");
    let addresses = [address("10.9.0.10"), address("fd09::10")];
    let sources = [address("10.9.0.2"), address("fd09::2")];
    let spec = EndpointLinkSpec {
        gateway_v4: Some("10.9.0.2".parse().unwrap()),
        gateway_v6: Some("fd09::2".parse().unwrap()),
        host_sources: &sources,
        ..spec("w", "lxcw", &w, &addresses)
    };
    s.inside(|| create_endpoint_link(&spec, nothing)).unwrap();
    for to in addresses {
        assert!(ping(&s.node, to), "{to}");
        assert!(s.ip(&format!("route get {to}")).contains("src"), "{to}");
    }
    for to in sources {
        assert!(ping(&w, to), "{to}");
    }
    // The answer comes from the node, not by running out of time.
    let refused = |nobody: &str| {
        let at = nobody.parse().unwrap();
        w.run(|| std::net::TcpStream::connect_timeout(&at, Duration::from_secs(30))).unwrap_err().kind()
    };
    assert_eq!(refused("10.9.0.99:80"), std::io::ErrorKind::HostUnreachable);
    assert_ne!(refused("[fd09::99]:80"), std::io::ErrorKind::TimedOut);
    router.ip("route add 10.9.0.0/24 via 192.0.2.2");
    assert!(ping(&router, addresses[0]), "forwarded from outside");
}

/// A router advertisement (RFC 4861, 4.2) with a lifetime of 1800 s and no options.
fn advertise(router: &Host) {
    let index = ip_json(router, "link show far")[0]["ifindex"].as_u64().unwrap() as u32;
    router.run(|| {
        let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6)).unwrap();
        socket.set_multicast_hops_v6(255).unwrap();
        socket.set_multicast_if_v6(index).unwrap();
        let advertisement = [134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
        let everyone = std::net::SocketAddrV6::new("ff02::1".parse().unwrap(), 0, 0, index);
        // Fails until the link-local address is there; the caller tries again.
        let _ = socket.send_to(&advertisement, &std::net::SocketAddr::V6(everyone).into());
    });
}

#[test]
fn routes_from_advertisements_survive_forwarding() {
    let s = Sandbox::new();
    let router = Host::named("router");
    s.ip(&format!("link add up0 type veth peer name far netns {}", router.name()));
    s.ip("link set up0 up");
    router.ip("link set far up");
    let has_route = || s.ip("-6 route show default").contains("proto ra");
    let end = Instant::now() + Duration::from_secs(30);
    while !has_route() {
        assert!(Instant::now() < end, "no route from the advertisement");
        advertise(&router);
        std::thread::sleep(Duration::from_millis(50));
    }
    let system = tempfile::tempdir().unwrap();
    let mut journal = Journal::default();
    let state = s.inside(|| NodeState::read().unwrap());
    let uplinks = state.uplinks(&DeviceChoice::default());
    let names: Vec<_> = uplinks.used.iter().map(|uplink| uplink.name.as_str()).collect();
    assert_eq!(names, ["up0"]);
    assert!(uplinks.used[0].default_v6 && !uplinks.used[0].default_v4);
    apply(&s, &node(&names, system.path()), &mut journal).unwrap();
    assert!(has_route(), "forwarding threw the route away");
    restore(&s, &mut journal);
    assert_eq!(sysctl(&s, "net/ipv6/conf/up0/accept_ra"), "1");
}

#[test]
fn what_carries_our_mark_goes_without_a_journal() {
    let s = Sandbox::new();
    let (w, v) = (Host::named("w"), Host::named("v"));
    s.ip(&format!("link add veth7 type veth peer name eth0 netns {}", v.name()));
    s.ip("link set veth7 up");
    v.ip("link set eth0 up");
    s.settle("veth7");
    s.inside(|| {
        for device in ["all", "default"] {
            Sysctl::of_device(Family::Ipv6, device, "forwarding").write("1").unwrap();
        }
        Sysctl::at("net/ipv4/ip_forward").write("1").unwrap();
    });
    let clean = s.snapshot();
    let system = tempfile::tempdir().unwrap();
    apply(&s, &node(&[], system.path()), &mut Journal::default()).unwrap();
    s.inside(|| {
        create_endpoint_link(&spec("w", "lxcw", &w, &[address("10.9.0.10"), address("fd09::10")]), nothing)
            .unwrap();
        let addresses = [address("10.9.0.11"), address("fd09::11")];
        let foreign = AdoptSpec {
            device: "veth7",
            owner: "v",
            addresses: &addresses,
            workload_mac: None,
            host_sources: &[],
        };
        adopt_interface(&foreign, &Default::default()).unwrap();
        remove_all_marked().unwrap();
        remove_all_marked().unwrap();
    });
    assert_eq!(s.snapshot(), clean);
}

#[test]
fn a_journal_of_an_earlier_boot_restores_files_only() {
    let s = Sandbox::new();
    let system = tempfile::tempdir().unwrap();
    let file = system.path().join("ours");
    std::fs::write(&file, "ours").unwrap();
    set(&s, "net/ipv4/ip_forward", "1");
    let mut journal: Journal = serde_json::from_value(serde_json::json!({
        "boot": "another",
        "changes": [
            { "what": "sysctl", "key": "net/ipv4/ip_forward", "old": "0", "ours": "1" },
            { "what": "file", "path": file, "content": "ours" },
        ],
    }))
    .unwrap();
    let restored = restore(&s, &mut journal);
    assert_eq!(restored.undone.len(), 1, "{restored:?}");
    assert!(!file.exists());
    assert_eq!(sysctl(&s, "net/ipv4/ip_forward"), "1");
}

#[test]
fn neighbours_that_nobody_has_heard_of_for_a_while_are_asked_again() {
    let s = Sandbox::new();
    let router = uplink(&s);
    let confirm = || {
        s.inside(|| {
            let mut rtnl = Rtnl::open().unwrap();
            let device = rtnl.links().unwrap().into_iter().find(|link| link.name == "up0").unwrap().index;
            rtnl.confirm_neighbours(&[device]).unwrap()
        })
    };
    let known = |ip: &str| s.ip(&format!("neigh show {ip} dev up0"));
    let mac = router.mac("far");
    // One who is still there, and one whose address another has meanwhile.
    router.ip("addr add 192.0.2.3/24 dev far");
    s.ip(&format!("neigh replace 192.0.2.1 lladdr {mac} dev up0 nud stale"));
    s.ip("neigh replace 192.0.2.3 lladdr 02:00:00:00:00:99 dev up0 nud stale");
    s.ip("neigh replace 192.0.2.4 lladdr 02:00:00:00:00:98 dev up0 nud permanent");
    assert_eq!(confirm(), 2);
    eventually("who is there answers", || known("192.0.2.1").contains("REACHABLE"));
    eventually("the other is not believed in", || !known("192.0.2.3").contains("02:00:00:00:00:99"));
    assert!(known("192.0.2.4").contains("PERMANENT"));
}
