//! The tunnel's device on a real kernel.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use common::*;
use villus_net::*;

const TUNNEL: Tunnel = Tunnel { port: 8472, mtu: 1450 };

fn apply(s: &Sandbox) -> u32 {
    let (mut journal, mut save) = (Journal::default(), |_: &Journal| Ok(()));
    s.inside(|| TUNNEL.apply(&mut Recorder::new(&mut journal, Path::new("journal"), &mut save)).unwrap())
}

/// What is on and off on the device, line by line.
fn features(s: &Sandbox) -> Vec<String> {
    let shown = s.node.command("ethtool", &["-k", TUNNEL_DEVICE]);
    shown.lines().map(|line| line.trim().to_owned()).collect()
}

fn gro(s: &Sandbox) -> String {
    let mut features = features(s).into_iter();
    features.find_map(|line| Some(line.strip_prefix("generic-receive-offload: ")?.to_owned())).unwrap()
}

#[test]
fn the_tunnels_device_receives_without_gro_of_its_own() {
    let s = Sandbox::new();
    let index = apply(&s);
    assert_eq!(gro(&s), "off");
    assert_eq!((apply(&s), gro(&s).as_str()), (index, "off"));

    s.node.command("ethtool", &["-K", TUNNEL_DEVICE, "gro", "on"]);
    assert_eq!(gro(&s), "on");
    assert_eq!((apply(&s), gro(&s).as_str()), (index, "off"), "somebody switched it on");

    // As an agent has made it that knew nothing of this.
    assert!(s.inside(|| remove_tunnel().unwrap()));
    s.ip(&format!("link add {TUNNEL_DEVICE} type vxlan external nolearning dstport {}", TUNNEL.port));
    s.ip(&format!("link set {TUNNEL_DEVICE} mtu {} up", TUNNEL.mtu));
    let before = features(&s);
    assert_eq!(gro(&s), "on");
    let index = s.ip_json(&format!("link show {TUNNEL_DEVICE}"))[0]["ifindex"].as_u64().unwrap();
    assert_eq!(u64::from(apply(&s)), index, "it is the same device");
    let after = features(&s);
    let changed: Vec<_> = before.iter().zip(&after).filter(|(before, after)| before != after).collect();
    assert_eq!(before.len(), after.len());
    assert_eq!(changed.len(), 1, "{changed:?}");
    assert_eq!(changed[0].1, "generic-receive-offload: off");
}
