//! Programs on interfaces, by TCX and by clsact; what the node must not have; what the kernel has.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use villus_datapath::{
    AttachMode::{Tc, Tcx},
    Attached, Error, Features, Hook, Links, Maps, Object, Pins, Program, Sizes, refuse_cilium, sys, tc,
};
use villus_testbed::{alone, run, try_run};

fn program(verdict: i32) -> Program {
    Program::adopt("from_endpoint", sys::prog_load_tc("from_endpoint", &common::returns(verdict)).unwrap())
        .unwrap()
}

fn veth(name: &str) -> u32 {
    run("ip", &["link", "add", name, "type", "veth", "peer", "name", &format!("{name}p")]);
    let shown = run("ip", &["-o", "link", "show", name]);
    shown.split(':').next().unwrap().parse().unwrap()
}

#[test]
fn tcx_links_outlive_their_maker_and_are_replaced_in_place() {
    alone!();
    let (_, pins) = common::bpffs();
    let (links, ifindex) = (Links::new(&pins), veth("v0"));
    let attach = |program: &Program| links.attach(program, Hook::FromEndpoint, ifindex, Tcx).unwrap();
    let (first, second) = (program(0), program(0));
    assert_eq!(attach(&first), Attached::Made);
    assert_eq!(attach(&first), Attached::Unchanged);
    drop(first);
    let alive = links.list(&[]).unwrap();
    assert_eq!((alive.len(), alive[0].hook, alive[0].alive), (1, Hook::FromEndpoint, true));
    assert_eq!(attach(&second), Attached::Replaced);
    assert_eq!(links.list(&[ifindex]).unwrap()[0].program, second.info.id);
    assert!(links.detach(Hook::FromEndpoint, ifindex).unwrap());
    assert!(!links.detach(Hook::FromEndpoint, ifindex).unwrap());
    assert_eq!(pins.list().unwrap(), [""; 0]);
    assert!(!run("bpftool", &["net"]).contains("from_endpoint"));
}

#[test]
fn a_dead_interface_leaves_a_pin_that_is_swept() {
    alone!();
    let (_, pins) = common::bpffs();
    let links = Links::new(&pins);
    let (gone, program) = (veth("v0"), program(0));
    links.attach(&program, Hook::ToEndpoint, gone, Tcx).unwrap();
    links.attach(&program, Hook::FromEndpoint, gone, Tcx).unwrap();
    run("ip", &["link", "del", "v0"]);
    assert!(links.list(&[]).unwrap().iter().all(|link| !link.alive));
    run("ip", &["link", "add", "v1", "index", &gone.to_string(), "type", "veth", "peer", "name", "v1p"]);
    assert_eq!(links.attach(&program, Hook::ToEndpoint, gone, Tcx).unwrap(), Attached::Made);
    assert_eq!(links.sweep().unwrap(), 1);
    assert_eq!(links.list(&[]).unwrap().len(), 1);
    assert!(links.remove_all(&[]).is_empty());
    assert_eq!(pins.list().unwrap(), [""; 0]);
}

#[test]
fn clsact_filters_are_found_again_and_replaced_in_place() {
    alone!();
    let (_, pins) = common::bpffs();
    let (links, ifindex) = (Links::new(&pins), veth("v0"));
    let (first, second) = (program(0), program(0));
    for (program, expected) in
        [(&first, Attached::Made), (&first, Attached::Unchanged), (&second, Attached::Replaced)]
    {
        for hook in [Hook::FromEndpoint, Hook::ToEndpoint] {
            assert_eq!(links.attach(program, hook, ifindex, Tc).unwrap(), expected);
        }
    }
    let shown = run("tc", &["filter", "show", "dev", "v0", "ingress"]);
    assert_eq!(shown.matches("direct-action").count(), 1, "{shown}");
    assert!(shown.contains("villus_from_endpoint") && shown.contains("pref 16"), "{shown}");
    let found = links.list(&[ifindex]).unwrap();
    assert_eq!(found.len(), 2);
    assert!(found.iter().all(|link| link.mode == Tc && link.program == second.info.id));
    pins.put("theirs", std::os::fd::AsFd::as_fd(&first)).unwrap();
    let object = pins.path("theirs").to_string_lossy().into_owned();
    run("tc", &["filter", "add", "dev", "v0", "egress", "pref", "99", "bpf", "object-pinned", &object]);
    assert!(links.remove_all(&[ifindex]).is_empty());
    let kept = run("tc", &["filter", "show", "dev", "v0", "egress"]);
    assert!(kept.contains("pref 99") && !kept.contains("villus_"), "{kept}");
}

#[test]
fn the_way_of_attaching_can_change() {
    alone!();
    let (_, pins) = common::bpffs();
    let (links, ifindex, program) = (Links::new(&pins), veth("v0"), program(0));
    for mode in [Tcx, Tc, Tcx] {
        links.attach(&program, Hook::FromEndpoint, ifindex, mode).unwrap();
        let found = links.list(&[ifindex]).unwrap();
        assert_eq!((found.len(), found[0].mode), (1, mode));
    }
    assert!(links.remove_all(&[ifindex]).is_empty());
    assert_eq!(run("tc", &["qdisc", "show", "dev", "v0", "clsact"]), "", "it goes with the last program");
    assert_eq!(pins.list().unwrap(), [""; 0]);
}

#[test]
fn what_is_attached_at_once_waits_for_nothing_and_says_whether_it_is_the_wanted_way() {
    alone!();
    let (_, pins) = common::bpffs();
    let maps = Maps::open(&pins, &Sizes::default()).unwrap();
    let (links, ifindex, old) = (Links::new(&pins), veth("v0"), program(0));
    let object = Object::load(&pins, &maps, &[Hook::FromEndpoint]).unwrap();
    let new = object.program(Hook::FromEndpoint).unwrap();
    let at_once = |mode| links.attach_at_once(new, Hook::FromEndpoint, ifindex, mode).unwrap();
    let modes =
        || links.list(&[ifindex]).unwrap().iter().map(|link| (link.mode, link.program)).collect::<Vec<_>>();
    let ours = new.info.id;
    // Nothing there: a filter.
    assert!(!at_once(Tcx));
    assert!(at_once(Tc));
    assert_eq!(modes(), [(Tc, ours)]);
    // A filter of before: replaced as it is.
    links.attach(&old, Hook::FromEndpoint, ifindex, Tc).unwrap();
    assert!(!at_once(Tcx));
    assert_eq!(modes(), [(Tc, ours)]);
    // A link of before, and a filter that moving has left.
    links.attach(&old, Hook::FromEndpoint, ifindex, Tcx).unwrap();
    assert!(!at_once(Tc));
    assert!(at_once(Tcx));
    assert_eq!(modes(), [(Tcx, ours)]);
    tc::attach(std::os::fd::AsFd::as_fd(&old), "from_endpoint", ifindex, tc::Side::Ingress).unwrap();
    assert!(!at_once(Tcx));
    links.attach(new, Hook::FromEndpoint, ifindex, Tcx).unwrap();
    assert!(at_once(Tcx));
    assert_eq!(modes(), [(Tcx, ours)]);
    assert!(links.remove_all(&[ifindex]).is_empty());
}

#[test]
fn somebody_elses_filter_in_our_place_is_left_alone() {
    alone!();
    let (_, pins) = common::bpffs();
    let (ifindex, program) = (veth("v0"), program(0));
    run("tc", &["qdisc", "add", "dev", "v0", "clsact"]);
    pins.put("theirs", std::os::fd::AsFd::as_fd(&program)).unwrap();
    let object = pins.path("theirs");
    run(
        "tc",
        &[
            "filter",
            "add",
            "dev",
            "v0",
            "ingress",
            "pref",
            "16",
            "handle",
            "0x7631",
            "bpf",
            "da",
            "object-pinned",
            object.to_str().unwrap(),
        ],
    );
    let error = Links::new(&pins).attach(&program, Hook::FromEndpoint, ifindex, Tc).unwrap_err();
    assert!(error.to_string().contains("somebody else has preference 16"), "{error}");
}

#[test]
fn a_clsact_with_somebody_elses_filter_of_another_kind_stays() {
    alone!();
    let (_, pins) = common::bpffs();
    let (links, ifindex, program) = (Links::new(&pins), veth("v0"), program(0));
    links.attach(&program, Hook::FromEndpoint, ifindex, Tc).unwrap();
    let theirs = "filter add dev v0 egress pref 7 protocol ip u32 match u32 0 0 flowid 1:1";
    run("tc", &theirs.split(' ').collect::<Vec<_>>());
    assert!(links.detach(Hook::FromEndpoint, ifindex).unwrap());
    assert!(run("tc", &["filter", "show", "dev", "v0", "egress"]).contains("u32"));
}

#[test]
fn an_ingress_queue_takes_programs_of_one_side_only() {
    alone!();
    let (_, pins) = common::bpffs();
    let (links, ifindex) = (Links::new(&pins), veth("v0"));
    run("tc", &["qdisc", "add", "dev", "v0", "ingress"]);
    let (received, sent) = (program(0), program(0));
    assert_eq!(links.attach(&received, Hook::FromNetwork, ifindex, Tc).unwrap(), Attached::Made);
    let told = links.attach(&sent, Hook::ToNetwork, ifindex, Tc).unwrap_err().to_string();
    assert!(told.contains("a queue of kind `ingress` stands where a clsact would"), "{told}");
    assert!(!links.detach(Hook::ToNetwork, ifindex).unwrap());
    let hooks: Vec<Hook> = links.list(&[ifindex]).unwrap().iter().map(|at| at.hook).collect();
    assert_eq!(hooks, [Hook::FromNetwork]);
    assert!(links.detach(Hook::FromNetwork, ifindex).unwrap());
    assert!(run("tc", &["qdisc", "show", "dev", "v0"]).contains("ingress"), "it is somebody's");
}

#[test]
fn a_vanished_interface_is_named() {
    let pins = Pins::detached().unwrap();
    for mode in [Tcx, Tc] {
        let error = Links::new(&pins).attach(&program(0), Hook::FromNetwork, 999_999, mode).unwrap_err();
        assert!(error.to_string().contains("from_network to interface 999999"), "{error}");
        assert!(error.to_string().contains("the interface is gone"), "{error}");
    }
    assert!(!Links::new(&pins).detach(Hook::FromNetwork, 999_999).unwrap());
}

#[test]
fn this_kernel_has_what_is_needed() {
    let features = Features::probe();
    features.require().unwrap();
    assert!(features.has("batches on hash maps"), "{features:?}");
    let mut poor = features;
    poor.list[5].missing = Some("Invalid argument (Linux 5.8)".to_owned());
    let error = poor.require().unwrap_err().to_string();
    assert!(
        error.contains("ring buffer for events: Invalid argument (Linux 5.8)") && error.contains("5.10"),
        "{error}"
    );
}

#[test]
fn a_node_with_cilium_is_refused() {
    alone!();
    let (root, pins) = common::bpffs();
    refuse_cilium(&root).unwrap();
    refuse_cilium(&root.join("nowhere")).unwrap();
    let found = |what: &str| {
        let error = refuse_cilium(&root).unwrap_err();
        assert!(matches!(&error, Error::Cilium { found } if found.len() == 1), "{error}");
        assert!(error.to_string().contains(what), "{error}");
    };
    // Pins.
    let map = |name: &str, path: &std::path::Path| {
        let path = path.to_string_lossy();
        run(
            "bpftool",
            &["map", "create", &path, "type", "hash", "key", "4", "value", "4", "entries", "4", "name", name],
        );
    };
    for name in ["cilium_lxc", "cilium_calls_00012", "cilium_ipcache", "cilium_policy_00001"] {
        map("x", &pins.path(name));
        found(name);
        assert!(pins.remove(name).unwrap());
    }
    std::fs::create_dir(root.join("cilium")).unwrap();
    refuse_cilium(&root).unwrap();
    map("x", &root.join("cilium/links"));
    found("pins in");
    std::fs::remove_file(root.join("cilium/links")).unwrap();
    // Devices and programs.
    veth("cilium_host");
    found("device cilium_host");
    run("ip", &["link", "del", "cilium_host"]);
    let ifindex = veth("v0");
    let theirs = sys::prog_load_tc("cil_from_netdev", &common::returns(0)).unwrap();
    let link = sys::tcx_create(std::os::fd::AsFd::as_fd(&theirs), ifindex, sys::TcxHook::Ingress).unwrap();
    found("program cil_from_netdev on v0");
    drop(link);
    // Ours are not Cilium's.
    Maps::open(&pins, &Sizes::default()).unwrap();
    refuse_cilium(&root).unwrap();
    assert!(!try_run("ip", &["link", "show", "cilium_host"]).status.success());
}
