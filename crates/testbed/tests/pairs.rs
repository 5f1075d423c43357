//! The hook table: whoever speaks to whom, whichever way the packets take, each packet is judged and counted exactly
//! once per endpoint and direction, replies come back, and nothing passes without an entry on each side.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod hook_table;

use villus_datapath::AttachMode::{self, Tc, Tcx};
use villus_testbed::{Kind, Node, NodeSpec, UplinkKind, kernel_has_link_kind};

fn every_pair(spec: NodeSpec, client: Kind, server: Kind) {
    let mut node = Node::new(spec);
    let (client, server) = (node.add(101, 50_101, client), node.add(102, 50_102, server));
    hook_table::run(&node, &client, &server);
    drop((client, server));
    node.finish();
}

fn between_veths(attach: AttachMode, direct: bool) {
    every_pair(NodeSpec { attach, direct, ..NodeSpec::default() }, Kind::Veth, Kind::Veth);
}

#[test]
fn veths_with_tcx_through_the_stack() {
    between_veths(Tcx, false);
}

#[test]
fn veths_with_tcx_and_direct() {
    between_veths(Tcx, true);
}

#[test]
fn veths_with_tc_through_the_stack() {
    between_veths(Tc, false);
}

#[test]
fn veths_with_tc_and_direct() {
    between_veths(Tc, true);
}

#[test]
fn a_tap_speaks_to_a_veth() {
    every_pair(NodeSpec::default(), Kind::Tap, Kind::Veth);
}

#[test]
fn a_veth_with_both_ends_on_the_node_speaks_to_a_tap() {
    every_pair(NodeSpec { direct: true, ..NodeSpec::default() }, Kind::VethOnNode, Kind::Tap);
}

#[test]
fn a_veth_speaks_to_one_with_both_ends_on_the_node() {
    every_pair(NodeSpec { attach: Tc, ..NodeSpec::default() }, Kind::Veth, Kind::VethOnNode);
}

fn over_uplink(uplink: UplinkKind, kind: &str) {
    if !kernel_has_link_kind(kind) {
        println!("not tested: this kernel makes no devices of kind {kind}");
        return;
    }
    for direct in [false, true] {
        every_pair(NodeSpec { uplink, direct, ..NodeSpec::default() }, Kind::Veth, Kind::Veth);
    }
}

#[test]
fn a_vlan_device_is_an_uplink() {
    over_uplink(UplinkKind::Vlan, "vlan");
}

#[test]
fn a_bond_is_an_uplink() {
    over_uplink(UplinkKind::Bond, "bond");
}
