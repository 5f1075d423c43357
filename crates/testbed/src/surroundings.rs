//! The hosts around the node, and its own network.

use std::collections::BTreeSet;

use villus_net::{DeviceChoice, Journal, Masquerade, NodeNetwork, NodeState, Recorder, SystemPaths};

use crate::{
    host::{Host, join},
    node::NodeSpec,
    party::Addresses,
};

/// The networks around the node, and the node's own device on them.
pub(crate) fn surroundings(spec: &NodeSpec, host: &Host, outside: &Host, beyond: &Host) {
    if spec.uplink.has_bond() {
        outside.ip("link add far type bridge mcast_snooping 0");
        outside.ip("link set far up");
        bond(host, outside, "far", ["far0", "far1"]);
    } else {
        join(host, "up0", outside, "far", 1500);
    }
    let mut far = "far";
    if spec.uplink.has_tag() {
        tag(host, if spec.uplink.has_bond() { "bond0" } else { "up0" });
        tag(outside, far);
        far = "far.7";
    }
    join(outside, "out0", beyond, "in0", spec.beyond_mtu);
    for (host, device, addresses) in [
        (host, spec.uplink.device(), Addresses::NODE),
        (outside, far, Addresses::OUTSIDE),
        (outside, "out0", Addresses::OUTSIDE_FAR),
        (beyond, "in0", Addresses::BEYOND),
    ] {
        host.add_address(device, &format!("{}/24", addresses.v4));
        host.add_address(device, &format!("{}/64", addresses.v6));
    }
    outside.forward();
    for (gateway, (far_gateway, node)) in Addresses::OUTSIDE
        .all()
        .into_iter()
        .zip(Addresses::OUTSIDE_FAR.all().into_iter().zip(Addresses::NODE.all()))
    {
        host.default_via(gateway);
        beyond.default_via(far_gateway);
        let pool = if gateway.is_ipv4() { "10.9.0.0/24" } else { "fd09::/64" };
        let virtuals = if gateway.is_ipv4() { "10.96.0.0/24" } else { "fd96::/64" };
        for net in [pool, virtuals] {
            outside.ip(&format!("route add {net} via {node}"));
        }
    }
}

/// Gives a device a VLAN device above it.
pub(crate) fn tag(host: &Host, device: &str) {
    host.ip(&format!("link add link {device} name {device}.7 type vlan id 7"));
    host.ip(&format!("link set {device}.7 up"));
}

/// Joins a host by two veth pairs, whose ends there are a bond that uses one at a time, with the bridge of another. The other
/// ends have the names of `ports`.
pub(crate) fn bond(host: &Host, other: &Host, bridge: &str, ports: [&str; 2]) {
    host.ip("link add bond0 type bond mode active-backup miimon 10");
    for (member, port) in ["up0", "up1"].into_iter().zip(ports) {
        join(host, member, other, port, 1500);
        other.ip(&format!("link set {port} master {bridge}"));
        host.ip(&format!("link set {member} down"));
        host.ip(&format!("link set {member} master bond0"));
    }
    host.ip("link set bond0 up");
}

/// The node's network as the agent would make it; the uplinks that it finds.
pub(crate) fn prepare_network(spec: &NodeSpec, journal: &mut Journal) -> Vec<u32> {
    let state = NodeState::read().unwrap();
    let uplinks = state.uplinks(&DeviceChoice::default());
    let names: Vec<String> = uplinks.used.iter().map(|uplink| uplink.name.clone()).collect();
    assert!(names.contains(&spec.uplink.device().to_owned()), "{uplinks:?}");
    let nowhere = |name: &str| format!("/nonexistent/{name}").into();
    let network = NodeNetwork {
        router_v4: Some(Addresses::ROUTER.v4),
        router_v6: Some(Addresses::ROUTER.v6),
        pools: vec!["10.9.0.0/24".parse().unwrap(), "fd09::/64".parse().unwrap()],
        mtu: 1500,
        uplinks: names,
        system: SystemPaths {
            networkd_state: nowhere("state"),
            networkd_dir: nowhere("network"),
            udev_state: nowhere("udev"),
            sysctl_dir: nowhere("sysctl"),
            reload: false,
        },
    };
    let mut save = |_: &Journal| Ok(());
    network.apply(&mut Recorder::new(journal, "memory".as_ref(), &mut save)).unwrap();
    let found: Vec<u32> = uplinks.used.iter().map(|uplink| uplink.index).collect();
    if !spec.direct {
        let ours = if spec.nat { found.iter().copied().collect() } else { BTreeSet::new() };
        let masquerade = Masquerade {
            pools: network.pools.clone(),
            left: ours,
            inner_devices: ["lxc*", "tap*", "near*", "villus_*"].map(str::to_owned).to_vec(),
            ..Masquerade::default()
        };
        masquerade.apply().unwrap();
    }
    found
}

/// What the node has of devices, addresses, routes, lasting neighbours, rules and parameters.
pub(crate) fn state_of(host: &Host) -> String {
    let mut text = String::new();
    for what in ["-o link", "-o addr", "-4 route", "-6 route", "neigh"] {
        for line in host.ip(&format!("{what} show")).lines() {
            if what == "neigh" && !line.contains("PERMANENT") {
                continue;
            }
            text.push_str(line.split(" valid_lft").next().unwrap_or_default().trim());
            text.push('\n');
        }
    }
    text.push_str(&host.command("nft", &["list", "ruleset"]));
    let parameters =
        "cd /proc/sys/net; grep -r . ipv4/ip_forward ipv?/conf/*/forwarding ipv4/conf/*/rp_filter";
    text + &host.command("sh", &["-c", parameters])
}
