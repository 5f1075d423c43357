//! Following changes of links, addresses and routes.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use common::*;
use villus_net::*;

const SOON: Option<Duration> = Some(Duration::from_secs(60));

/// Waits for an event that is wanted, past others.
fn expect(monitor: &mut Monitor, wanted: impl Fn(&NetEvent) -> bool) {
    let end = Instant::now() + SOON.unwrap();
    while Instant::now() < end {
        match monitor.wait(SOON).unwrap() {
            Some(event) if wanted(&event) => return,
            _ => {}
        }
    }
    panic!("the event did not come");
}

#[test]
fn changes_come_as_typed_events() {
    let s = Sandbox::new();
    let mut monitor = s.inside(Monitor::open).unwrap();
    assert_eq!(monitor.wait(SOON).unwrap(), Some(NetEvent::Resync));
    // What the sandbox's own making still causes, and then silence.
    while monitor.wait(Some(Duration::from_millis(20))).unwrap().is_some() {}
    s.ip("link add one type veth peer name two");
    expect(&mut monitor, |event| matches!(event, NetEvent::Link(link) if link.name == "one" && !link.up));
    s.ip("link set two up");
    s.ip("link set one up");
    expect(&mut monitor, |event| matches!(event, NetEvent::Link(link) if link.name == "one" && link.carrier));
    s.ip("addr add 192.0.2.1/24 dev one");
    let net = "192.0.2.1/24".parse().unwrap();
    expect(&mut monitor, |event| matches!(event, NetEvent::Address(address) if address.net == net));
    s.ip("route add default via 192.0.2.9");
    expect(&mut monitor, |event| matches!(event, NetEvent::Route(route) if route.is_default()));
    s.ip("route del default");
    expect(&mut monitor, |event| matches!(event, NetEvent::RouteGone(route) if route.is_default()));
    s.ip("addr del 192.0.2.1/24 dev one");
    expect(&mut monitor, |event| matches!(event, NetEvent::AddressGone(address) if address.net == net));
    s.ip("link del one");
    expect(&mut monitor, |event| matches!(event, NetEvent::LinkGone(link) if link.name == "one"));
}

#[test]
fn it_can_be_stopped_while_it_waits() {
    let s = Sandbox::new();
    let (events, stop) = s.inside(|| Monitor::open().unwrap().into_channel()).unwrap();
    assert_eq!(events.recv_timeout(SOON.unwrap()), Ok(NetEvent::Resync));
    stop.stop();
    // What the sandbox's own making still causes may have come before.
    let end = std::iter::repeat_with(|| events.recv_timeout(SOON.unwrap())).find_map(Result::err);
    assert_eq!(end, Some(RecvTimeoutError::Disconnected));
}

#[test]
fn lost_events_ask_for_a_resync() {
    let s = Sandbox::new();
    let mut monitor = s.inside(Monitor::open).unwrap();
    assert_eq!(monitor.wait(SOON).unwrap(), Some(NetEvent::Resync));
    s.ip("link add one type veth peer name two");
    // Switched off, a device has no changes worth telling.
    s.ip("link set one up");
    let script: String = (0..6_000).map(|n| format!("link set one alias {n}{}\n", "x".repeat(200))).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), script).unwrap();
    s.ip(&format!("-batch {}", file.path().display()));
    expect(&mut monitor, |event| *event == NetEvent::Resync);
    let state = s.inside(NodeState::read).unwrap();
    assert!(state.links.iter().any(|link| link.name == "one" && link.alias.is_some()));
}
