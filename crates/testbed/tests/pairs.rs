//! The hook table: whoever speaks to whom, whichever way the packets take, each packet is judged and counted exactly
//! once per endpoint and direction, replies come back, and nothing passes without an entry on each side.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod hook_table;

use hook_table::every_pair;
use villus_datapath::AttachMode::{self, Tc, Tcx};
use villus_testbed::{Kind, NodeSpec};

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
