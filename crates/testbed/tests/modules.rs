//! What needs modules that not every kernel has: uplinks that are VLAN devices or bonds, and associations of SCTP (with
//! SCTP in the kernel, [`every_pair`] opens them; without, it only exchanges their first packets). `./dev test` runs this
//! file on Debian's kernel too, which has all of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod hook_table;

use std::{net::SocketAddr, time::Duration};

use hook_table::every_pair;
use villus_abi::Direction;
use villus_datapath::{AttachMode, Features};
use villus_testbed::{
    Blocked, Kind, Node, NodeSpec, SCTP, SctpAssociation, TCP, UplinkKind, Version, kernel_has_link_kind,
};

const SHORT: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(60);
/// Set where the modules are there: what is missing fails then.
const THERE: &str = "VILLUS_TEST_MODULES";

/// Whether a test can go on here.
fn has(what: &str, there: bool) -> bool {
    assert!(there || std::env::var_os(THERE).is_none(), "this kernel has no {what}");
    if !there {
        println!("not tested: this kernel has no {what}");
    }
    there
}

fn over_uplink(uplink: UplinkKind, kind: &str, direct: bool) {
    if has(&format!("devices of kind {kind}"), kernel_has_link_kind(kind)) {
        let attach = attach();
        every_pair(NodeSpec { uplink, direct, attach, ..NodeSpec::default() }, Kind::Veth, Kind::Veth);
    }
}

fn attach() -> AttachMode {
    if Features::probe().has_tcx() { AttachMode::Tcx } else { AttachMode::Tc }
}

#[test]
fn a_vlan_device_is_an_uplink() {
    over_uplink(UplinkKind::Vlan, "vlan", true);
}

#[test]
fn a_bond_is_an_uplink() {
    over_uplink(UplinkKind::Bond, "bond", false);
}

#[test]
fn an_association_is_cut_when_its_entry_goes_and_heals_when_it_comes_back() {
    if !has("SCTP", SctpAssociation::kernel_has_it()) {
        return;
    }
    let mut node = Node::new(NodeSpec { attach: attach(), ..NodeSpec::default() });
    let (client, server) = (node.add(101, 50_101, Kind::Veth), node.add(102, 50_102, Kind::Veth));
    node.allow_all(&client);
    for v in Version::ALL {
        let at = SocketAddr::new(server.ip(v), 9000);
        node.allow(&server, Direction::Ingress, client.identity, 9000, TCP);
        let opened = SctpAssociation::open(&client.host, &server.host, at, at, SHORT);
        assert!(opened.is_err(), "{v:?}: the port is open to another protocol only");
        let key = node.allow(&server, Direction::Ingress, client.identity, 9000, SCTP);
        let mut open = SctpAssociation::open(&client.host, &server.host, at, at, LONG).unwrap();
        assert_eq!(open.echo(b"hello"), Ok(()), "{v:?}");
        node.forget(&server, &key);
        open.patience(SHORT);
        assert_eq!(open.echo(b"hello"), Err(Blocked::Forward), "{v:?}");
        node.allow(&server, Direction::Ingress, client.identity, 9000, SCTP);
        open.patience(LONG);
        // What was sent in between is sent again.
        assert_eq!(open.answer_of(b"hello"), Ok(()), "{v:?}");
        open.close();
        node.forget_all(&server);
    }
    drop((client, server));
    node.finish();
}
