//! Namespaces.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};

use common::*;
use villus_net::*;
use villus_testbed::{alone, run};

#[test]
fn the_caller_stays_where_it_is() {
    let s = Sandbox::new();
    let before = Netns::current().unwrap().id();
    let inside = s.node.run(|| Netns::current().unwrap().id());
    assert_eq!(inside, s.node.netns().id());
    assert_ne!(inside, before);
    assert_eq!(run_in(s.node.netns().name(), || 7).unwrap(), 7);
    let panicked = catch_unwind(AssertUnwindSafe(|| s.node.run(|| panic!("inside"))));
    assert_eq!(panicked.unwrap_err().downcast_ref(), Some(&"inside"));
    assert_eq!(Netns::current().unwrap().id(), before);
}

#[test]
fn what_is_opened_inside_stays_inside() {
    let s = Sandbox::new();
    s.ip("link add only-here type bridge");
    let mut inside = s.node.run(|| Rtnl::open().unwrap());
    assert!(inside.link_by_name("only-here").unwrap().is_some());
    assert!(Rtnl::open().unwrap().link_by_name("only-here").unwrap().is_none());
}

#[test]
fn a_namespace_is_found_by_name_path_and_process() {
    let s = Sandbox::new();
    let path = NetnsRef::Path(s.node.netns().name().path());
    assert_eq!(path.open().unwrap().id(), s.node.netns().id());
    let mut child = s.inside(|| std::process::Command::new("sleep").arg("60").spawn().unwrap());
    let process = NetnsRef::Pid(child.id());
    assert_eq!(process.state(s.node.netns().id()), NetnsState::Alive);
    assert_eq!(process.open().unwrap().id(), s.node.netns().id());
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(process.state(s.node.netns().id()), NetnsState::Gone);
}

#[test]
fn another_namespace_of_the_same_name_is_not_the_same() {
    alone!();
    let name = NetnsRef::Name("w".into());
    // Both are there at once: the kernel gives the number of one that is gone to the next.
    run("ip", &["netns", "add", "w"]);
    run("ip", &["netns", "add", "other"]);
    let id = name.open().unwrap().id();
    assert_eq!(name.state(id), NetnsState::Alive);
    run("ip", &["netns", "del", "w"]);
    assert_eq!(name.state(id), NetnsState::Gone);
    std::fs::write(name.path(), "").unwrap();
    let [other, w] =
        [NetnsRef::Name("other".into()), name.clone()].map(|name| name.path().display().to_string());
    run("mount", &["--bind", &other, &w]);
    assert_eq!(name.state(id), NetnsState::Replaced);
}

#[test]
fn what_is_no_namespace_is_refused() {
    let error = NetnsRef::Name("does-not-exist".into()).open().unwrap_err();
    assert!(error.is_missing() && error.to_string().contains("`ip netns list`"), "{error}");
    let error = NetnsRef::Path("/proc/version".into()).open().unwrap_err().to_string();
    assert!(error.contains("it is not a network namespace"), "{error}");
    for name in ["", "..", "a/b"] {
        let error = NetnsRef::Name(name.into()).open().unwrap_err();
        assert!(matches!(error, NetError::Invalid { field: "netns", .. }), "{error}");
    }
    // A namespace, but not of the network.
    let error =
        NetnsRef::Path("/proc/self/ns/uts".into()).open().unwrap().run(|| ()).unwrap_err().to_string();
    assert!(error.contains("cannot enter network namespace /proc/self/ns/uts"), "{error}");
}
