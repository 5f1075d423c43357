//! Namespaces.
#![allow(clippy::unwrap_used, clippy::panic)]

mod sandbox;

use std::panic::{AssertUnwindSafe, catch_unwind};

use sandbox::*;
use villus_net::*;

#[test]
fn the_caller_stays_where_it_is() {
    let s = Sandbox::new();
    let before = Netns::current().unwrap().id();
    let inside = s.node.run(|| Netns::current().unwrap().id()).unwrap();
    assert_eq!(inside, s.node.id());
    assert_ne!(inside, before);
    assert_eq!(run_in(s.node.name(), || 7).unwrap(), 7);
    let panicked = catch_unwind(AssertUnwindSafe(|| s.node.run(|| panic!("inside"))));
    assert_eq!(panicked.unwrap_err().downcast_ref(), Some(&"inside"));
    assert_eq!(Netns::current().unwrap().id(), before);
}

#[test]
fn what_is_opened_inside_stays_inside() {
    let s = Sandbox::new();
    s.ip("link add only-here type bridge");
    let mut inside = s.node.run(|| Rtnl::open().unwrap()).unwrap();
    assert!(inside.link_by_name("only-here").unwrap().is_some());
    assert!(Rtnl::open().unwrap().link_by_name("only-here").unwrap().is_none());
}

#[test]
fn a_namespace_is_found_by_name_path_and_process() {
    let s = Sandbox::new();
    let path = NetnsRef::Path(s.node.name().path());
    assert_eq!(path.open().unwrap().id(), s.node.id());
    let mut child = s.inside(|| std::process::Command::new("sleep").arg("60").spawn().unwrap());
    let process = NetnsRef::Pid(child.id());
    assert_eq!(process.state(s.node.id()), NetnsState::Alive);
    assert_eq!(process.open().unwrap().id(), s.node.id());
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(process.state(s.node.id()), NetnsState::Gone);
}

#[test]
fn another_namespace_of_the_same_name_is_not_the_same() {
    let mut s = Sandbox::new();
    let w = s.workload("w");
    let (name, id) = (w.name().clone(), w.id());
    s.end(w);
    // Takes the number that became free, so that the next one has another.
    let _other = s.workload("other");
    let _again = s.workload("w");
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
