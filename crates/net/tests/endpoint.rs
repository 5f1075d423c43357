//! Making and removing the links of endpoints.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::*;
use villus_net::*;

fn create(s: &Sandbox, spec: &EndpointLinkSpec<'_>) -> Result<EndpointLink, NetError> {
    s.inside(|| create_endpoint_link(spec, nothing))
}

fn forward(s: &Sandbox) {
    s.inside(|| {
        Sysctl::at("net/ipv4/ip_forward").write("1").unwrap();
        Sysctl::of_device(Family::Ipv6, "all", "forwarding").write("1").unwrap();
    });
}

#[test]
fn two_endpoints_reach_each_other_and_the_node_over_both_families() {
    let s = Sandbox::new();
    forward(&s);
    let (a, b) = (Host::named("a"), Host::named("b"));
    let addresses_a = [address("10.9.0.10"), address("10.9.0.11"), address("fd09::10"), address("fd09::11")];
    let addresses_b = [address("10.9.0.20"), address("fd09::20")];
    let clean = s.snapshot();
    let link_a = create(&s, &spec("a", "lxca", &a, &addresses_a)).unwrap();
    let link_b = create(&s, &spec("b", "lxcb", &b, &addresses_b)).unwrap();
    assert_eq!((link_a.delivery, link_b.delivery), (Delivery::Peer, Delivery::Peer));
    for to in addresses_b {
        assert!(ping(&a, to), "a to {to}");
        assert!(ping(&s.node, to), "node to {to}");
    }
    for to in addresses_a {
        assert!(ping(&b, to), "b to {to}");
    }
    s.inside(|| {
        remove_endpoint_link(&link_a).unwrap();
        remove_endpoint_link(&link_b).unwrap();
        remove_endpoint_link(&link_b).unwrap();
    });
    assert_eq!(s.snapshot(), clean);
}

#[test]
fn both_sides_are_as_the_request_says() {
    let s = Sandbox::new();
    let w = Host::named("w");
    let addresses = [address("10.9.0.10"), address("fd09::10")];
    let spec = EndpointLinkSpec { mtu: 1400, route_mtu: Some(1350), ..spec("w", "lxcw", &w, &addresses) };
    let link = create(&s, &spec).unwrap();

    let inside = &ip_json(&w, "-d addr show dev eth0")[0];
    assert_eq!(inside["address"], spec.container_mac.to_string());
    assert_eq!(inside["mtu"], 1400);
    assert_eq!(inside["ifindex"], link.container_index);
    assert!(inside["flags"].to_string().contains("LOWER_UP"));
    let shown = inside["addr_info"].as_array().unwrap();
    let prefixes: Vec<_> =
        shown.iter().map(|a| format!("{}/{}", a["local"].as_str().unwrap(), a["prefixlen"])).collect();
    assert!(
        prefixes.contains(&"10.9.0.10/32".into()) && prefixes.contains(&"fd09::10/128".into()),
        "{prefixes:?}"
    );
    // The link-local one is the kernel's, which takes its time.
    let mut ours = shown.iter().filter(|a| a["scope"] == "global");
    assert!(ours.all(|a| a.get("tentative").is_none()), "{shown:?}");

    let routes = w.ip("route show") + &w.ip("-6 route show");
    for line in [
        "default via 10.9.0.1 dev eth0 proto 118 src 10.9.0.10 onlink mtu 1350",
        "10.9.0.1 dev eth0 proto 118 scope link src 10.9.0.10",
        "fd09::1 dev eth0 proto 118 src fd09::10",
        "default via fd09::1 dev eth0 proto 118 src fd09::10",
    ] {
        assert!(routes.contains(line), "{line} is missing in\n{routes}");
    }
    let neighbours = w.ip("neigh show");
    assert_eq!(neighbours.matches(&format!("lladdr {} ", spec.host_mac)).count(), 2, "{neighbours}");
    assert_eq!(neighbours.matches("PERMANENT").count(), 2, "{neighbours}");
    assert!(w.ip("link show lo").contains("LOOPBACK,UP"));

    let host = &s.ip_json("-d addr show dev lxcw")[0];
    assert_eq!((&host["address"], &host["mtu"]), (&spec.host_mac.to_string().into(), &1400.into()));
    assert_eq!(host["ifalias"], "villus endpoint w");
    assert_eq!(s.ip_json("-d link show dev lxcw")[0]["inet6_addr_gen_mode"], "none");
    assert!(host["addr_info"].as_array().unwrap().is_empty(), "{host}");
    let routes = s.ip("route show") + &s.ip("-6 route show");
    assert!(routes.contains("10.9.0.10 dev lxcw proto 118 scope link"), "{routes}");
    assert!(routes.contains("fd09::10 dev lxcw proto 118"), "{routes}");
    let neighbours = s.ip("neigh show");
    assert_eq!(
        neighbours.matches(&format!("lladdr {} PERMANENT", spec.container_mac)).count(),
        2,
        "{neighbours}"
    );
    let rp_filter = s.inside(|| Sysctl::of_device(Family::Ipv4, "lxcw", "rp_filter").read().unwrap());
    assert_eq!(rp_filter, "0");
}

#[test]
fn making_it_again_changes_nothing_and_mends_what_is_missing() {
    let s = Sandbox::new();
    let w = Host::named("w");
    let addresses = [address("10.9.0.10"), address("fd09::10")];
    let spec = spec("w", "lxcw", &w, &addresses);
    let first = create(&s, &spec).unwrap();
    settle(&w, "eth0");
    let (node, inside) = (s.snapshot(), w.ip("addr show") + &w.ip("route show") + &w.ip("-6 route show"));
    s.ip("route del 10.9.0.10 dev lxcw");
    s.ip("neigh del fd09::10 dev lxcw");
    w.ip("route del default");
    w.ip("addr del fd09::10/128 dev eth0");
    let second = create(&s, &spec).unwrap();
    assert_eq!(first, second);
    assert_eq!(s.snapshot(), node);
    let again = w.ip("addr show") + &w.ip("route show") + &w.ip("-6 route show");
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&again), sorted(&inside));
}

#[test]
fn addresses_that_are_no_longer_wanted_lose_their_way_in() {
    let s = Sandbox::new();
    let w = Host::named("w");
    create(&s, &spec("w", "lxcw", &w, &[address("10.9.0.10"), address("fd09::10")])).unwrap();
    let addresses = [address("10.9.0.11"), address("fd09::11")];
    create(&s, &EndpointLinkSpec { mtu: 1400, ..spec("w", "lxcw", &w, &addresses) }).unwrap();
    let shown = s.ip("route show") + &s.ip("-6 route show") + &s.ip("neigh show");
    assert!(shown.contains("10.9.0.11") && shown.contains("fd09::11"), "{shown}");
    assert!(!shown.contains("10.9.0.10") && !shown.contains("fd09::10 "), "{shown}");
    assert_eq!(s.ip_json("link show lxcw")[0]["mtu"], 1400);
    assert!(addresses.into_iter().all(|to| ping(&s.node, to)));
}

#[test]
fn an_address_that_another_endpoint_has_is_refused() {
    let s = Sandbox::new();
    let (a, b) = (Host::named("a"), Host::named("b"));
    let addresses = [address("10.9.0.10"), address("fd09::10")];
    let first = create(&s, &spec("a", "lxca", &a, &addresses)).unwrap();
    let before = s.snapshot();
    let error = create(&s, &spec("b", "lxcb", &b, &addresses[1..])).unwrap_err().to_string();
    assert!(
        error.contains("a route to fd09::10/128 exists already") && error.contains("which is lxca"),
        "{error}"
    );
    assert_eq!(s.snapshot(), before);
    s.inside(|| remove_endpoint_link(&first)).unwrap();
    create(&s, &spec("b", "lxcb", &b, &addresses)).unwrap();
    assert!(addresses.into_iter().all(|to| ping(&s.node, to)));
}

#[test]
fn ipv6_works_where_the_nodes_new_devices_have_it_off() {
    let s = Sandbox::new();
    let w = Host::named("w");
    s.inside(|| Sysctl::of_device(Family::Ipv6, "default", "disable_ipv6").write("1")).unwrap();
    let addresses = [address("fd09::10")];
    create(&s, &spec("w", "lxcw", &w, &addresses)).unwrap();
    assert!(ping(&s.node, addresses[0]));
}

#[test]
fn an_ipv4_only_and_an_ipv6_only_endpoint_get_only_their_family() {
    let s = Sandbox::new();
    let (a, b) = (Host::named("a"), Host::named("b"));
    let (v4, v6) = ([address("10.9.0.10")], [address("fd09::10")]);
    create(&s, &EndpointLinkSpec { gateway_v6: None, ..spec("a", "lxca", &a, &v4) }).unwrap();
    create(&s, &EndpointLinkSpec { gateway_v4: None, ..spec("b", "lxcb", &b, &v6) }).unwrap();
    assert!(!a.ip("-6 route show").contains("default"));
    assert!(!b.ip("route show").contains("default"));
    assert!(ping(&s.node, v4[0]) && ping(&s.node, v6[0]));
}

#[test]
fn a_link_local_gateway_answers_on_the_host_side() {
    let s = Sandbox::new();
    let w = Host::named("w");
    let addresses = [address("fd09::10")];
    let mut spec = spec("w", "lxcw", &w, &addresses);
    let gateway = spec.host_mac.link_local();
    spec.gateway_v6 = Some(gateway);
    let link = create(&s, &spec).unwrap();
    // The kernel takes its time with link-local addresses of its own making.
    assert!(ping_scoped(&w, gateway, link.container_index));
    assert!(ping(&s.node, addresses[0]));
}

#[test]
fn ipv6_works_where_the_runtime_switched_it_off() {
    let s = Sandbox::new();
    let w = Host::named("w");
    w.run(|| {
        for device in ["all", "default", "lo"] {
            Sysctl::of_device(Family::Ipv6, device, "disable_ipv6").write("1").unwrap();
        }
    });
    let addresses = [address("fd09::10")];
    create(&s, &spec("w", "lxcw", &w, &addresses)).unwrap();
    assert!(ping(&s.node, addresses[0]));
}

#[test]
fn a_failure_at_any_step_leaves_nothing_behind() {
    let s = Sandbox::new();
    let w = Host::named("w");
    let addresses = [address("10.9.0.10"), address("fd09::10")];
    let clean = s.snapshot();
    let inside = w.ip("addr show");

    // The caller's own step.
    let failing = |link: &EndpointLink| {
        assert!(s.ip("link show dev lxcw").contains(&link.host_mac.to_string()));
        assert!(
            !s.ip("link show dev lxcw").contains("LOWER_UP"),
            "no packet may pass before the caller is ready"
        );
        Err("no program")
    };
    let error = s.inside(|| create_endpoint_link(&spec("w", "lxcw", &w, &addresses), failing)).unwrap_err();
    assert_eq!(error.to_string(), "preparing device lxcw failed: no program");
    assert_eq!((s.snapshot(), w.ip("addr show")), (clean.clone(), inside.clone()));

    // A source address that the node does not have.
    let sources = [address("10.9.0.99")];
    let refused = EndpointLinkSpec { host_sources: &sources, ..spec("w", "lxcw", &w, &addresses) };
    let error = create(&s, &refused).unwrap_err().to_string();
    assert!(error.contains("add route 10.9.0.10/32"), "{error}");
    assert_eq!((s.snapshot(), w.ip("addr show")), (clean.clone(), inside.clone()));

    // Somebody else's route.
    s.ip("route add blackhole fd09::10/128");
    let error = create(&s, &spec("w", "lxcw", &w, &addresses)).unwrap_err();
    assert!(matches!(error, NetError::ForeignRoute { .. }), "{error}");
    s.ip("route del blackhole fd09::10/128");
    assert_eq!((s.snapshot(), w.ip("addr show")), (clean, inside));
}

#[test]
fn names_in_use_are_refused_with_their_owner() {
    let s = Sandbox::new();
    let (a, b) = (Host::named("a"), Host::named("b"));
    let addresses = [address("10.9.0.10")];
    create(&s, &spec("a", "lxca", &a, &addresses)).unwrap();
    let before = s.snapshot();

    let error = create(&s, &spec("other", "lxca", &b, &addresses)).unwrap_err().to_string();
    assert!(error.contains("lxca already exists in the node and belongs to endpoint a"), "{error}");
    let error = create(&s, &spec("a", "lxca", &b, &addresses)).unwrap_err().to_string();
    assert!(error.contains("its other end is not eth0"), "{error}");
    let error = create(&s, &spec("other", "lxco", &a, &addresses)).unwrap_err().to_string();
    assert!(error.contains(&format!("eth0 already exists in {} ", a.name())), "{error}");
    // The same index in another namespace is not the same device.
    s.ip(&format!("link add foreign type veth peer name eth0 netns {}", b.name()));
    assert_eq!(ip_json(&a, "link show eth0")[0]["ifindex"], ip_json(&b, "link show eth0")[0]["ifindex"]);
    let error = create(&s, &spec("a", "lxca", &b, &addresses)).unwrap_err().to_string();
    assert!(error.contains(&format!("eth0 already exists in {} ", b.name())), "{error}");
    s.ip("link del foreign");
    s.ip("link add lxcb type bridge");
    let error = create(&s, &spec("b", "lxcb", &b, &addresses)).unwrap_err().to_string();
    assert!(
        error.contains("lxcb already exists in the node and is somebody else's bridge device"),
        "{error}"
    );
    s.ip("link del lxcb");
    assert_eq!(s.snapshot(), before);
}

#[test]
fn nonsense_is_refused_before_anything_is_touched() {
    let s = Sandbox::new();
    let w = Host::named("w");
    let addresses = [address("10.9.0.10")];
    let base = || spec("w", "lxcw", &w, &addresses);
    let (twice, loopback) = ([address("10.9.0.10"); 2], [address("127.0.0.1")]);
    let cases = [
        (EndpointLinkSpec { owner: "", ..base() }, "owner"),
        (EndpointLinkSpec { host_name: "a-name-that-is-too-long", ..base() }, "host device"),
        (EndpointLinkSpec { host_name: "a/b", ..base() }, "host device"),
        (EndpointLinkSpec { container_name: "..", ..base() }, "container device"),
        (EndpointLinkSpec { host_mac: Mac([1, 0, 0, 0, 0, 1]), ..base() }, "host MAC"),
        (EndpointLinkSpec { container_mac: base().host_mac, ..base() }, "container MAC"),
        (EndpointLinkSpec { mtu: 68, ..base() }, "mtu"),
        (EndpointLinkSpec { route_mtu: Some(1501), ..base() }, "route mtu"),
        (EndpointLinkSpec { gateway_v4: None, ..base() }, "addresses"),
        (EndpointLinkSpec { addresses: &twice, ..base() }, "addresses"),
        (EndpointLinkSpec { addresses: &loopback, ..base() }, "addresses"),
        (EndpointLinkSpec { netns: s.node.netns(), ..base() }, "netns"),
    ];
    for (spec, wrong) in &cases {
        match create(&s, spec) {
            Err(NetError::Invalid { field, .. }) => assert_eq!(field, *wrong),
            other => panic!("{wrong}: {other:?}"),
        }
    }
}

#[test]
fn delivery_follows_the_other_end() {
    let s = Sandbox::new();
    let w = Host::named("w");
    let addresses = [address("10.9.0.10")];
    let link = create(&s, &spec("w", "lxcw", &w, &addresses)).unwrap();
    let ask = || s.inside(|| delivery_of(link.host_index));
    assert_eq!(ask().unwrap(), Delivery::Peer);
    w.ip("link set eth0 down");
    assert_eq!(ask().unwrap(), Delivery::Device);
    w.ip("link set eth0 up");
    assert_eq!(ask().unwrap(), Delivery::Peer);
    s.ip("link add one type veth peer name two");
    s.ip("link set one up");
    s.ip("link set two up");
    let one = s.ip_json("link show one")[0]["ifindex"].as_u64().unwrap() as u32;
    assert_eq!(s.inside(|| delivery_of(one)).unwrap(), Delivery::Device);
    assert!(matches!(s.inside(|| delivery_of(99_999)), Err(NetError::NoDevice { .. })));
}

#[test]
fn a_namespace_that_died_is_noticed_and_its_link_removed_without_error() {
    let s = Sandbox::new();
    let w = Host::named("w");
    let addresses = [address("10.9.0.10"), address("fd09::10")];
    let clean = s.snapshot();
    let link = create(&s, &spec("w", "lxcw", &w, &addresses)).unwrap();
    let (name, id) = (w.netns().name().clone(), w.netns().id());
    assert_eq!(name.state(id), NetnsState::Alive);
    drop(w);
    assert_eq!(name.state(id), NetnsState::Gone);
    s.inside(|| remove_endpoint_link(&link)).unwrap();
    assert_eq!(s.snapshot(), clean);
}

#[test]
fn leftovers_are_found_by_their_mark() {
    let s = Sandbox::new();
    let w = Host::named("w");
    create(&s, &spec("pod 7", "lxcw", &w, &[address("10.9.0.10")])).unwrap();
    s.ip("link add lxcforeign type veth peer name other");
    let found = s.inside(endpoint_devices).unwrap();
    let found: Vec<_> = found.iter().map(|(link, owner)| (link.name.as_str(), owner.as_str())).collect();
    assert_eq!(found, [("lxcw", "pod 7")]);
}

#[test]
fn somebody_elses_device_under_our_name_is_not_removed() {
    let s = Sandbox::new();
    let w = Host::named("w");
    let link = create(&s, &spec("w", "lxcw", &w, &[address("10.9.0.10")])).unwrap();
    s.ip("link del lxcw");
    s.ip("link add lxcw type bridge");
    let errors = s.inside(|| remove_endpoint_link(&link)).unwrap_err();
    assert!(errors.to_string().contains("somebody else's bridge"), "{errors}");
    s.ip("link show lxcw");
}

#[test]
fn names_of_host_devices_fit_and_stay() {
    assert_eq!(host_device_name("0123456789abcdef").len(), 15);
    assert_eq!(host_device_name("web"), host_device_name("web"));
    assert_ne!(host_device_name("web"), host_device_name("db"));
    assert_eq!(host_device_name("web"), "lxce11948724051");
}
