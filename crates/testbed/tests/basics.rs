//! The testbed itself: what it builds works and leaves nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use villus_testbed::{Kind, Node, NodeSpec, Ping, Plain, Version};

#[test]
fn a_node_is_built_and_leaves_nothing() {
    let mut node = Node::new(NodeSpec::default());
    let (client, server) = (node.add(101, 50_101, Kind::Veth), node.add(102, 50_102, Kind::Veth));
    node.allow_all(&client);
    node.allow_all(&server);
    for version in Version::ALL {
        assert_eq!(Ping::open(&client.host, None, server.ip(version)).echo(56), Ok(()), "{version:?}");
    }
    drop((client, server));
    node.finish();
}

#[test]
fn the_plain_baseline_routes() {
    let plain = Plain::new();
    for version in Version::ALL {
        assert_eq!(Ping::open(&plain.client, None, plain.server_ip(version)).echo(56), Ok(()), "{version:?}");
    }
}
