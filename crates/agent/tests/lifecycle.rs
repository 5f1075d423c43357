//! Endpoints: what is refused, what is kept, what a change of labels and of policy does to open connections.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::{
    io::Write,
    sync::Arc,
    time::{Duration, Instant},
};

use common::{TestNode, allow, echoes, echoes_in_vain};
use villus_abi::{Flow, Reason};
use villus_api::EndpointRef;
use villus_api::model::{
    EndpointChangeRequest, EndpointPatch, EndpointState, MetricValue, PolicyDelete, PolicyImport,
    PolicyQuery, PolicyWaitQuery,
};
use villus_datapath::{FlowKey, Flows, Maps, Pins};
use villus_testbed::{alone, eventually, run, try_run};

#[test]
fn the_agent() {
    common::be_the_agent();
}

#[test]
fn wrong_requests_are_refused_and_change_nothing() {
    alone!();
    let node = TestNode::started(&[("ipv4-range", "10.11.0.0/29")]);
    let client = node.client();
    let first = node.workload("first", &["k8s:app=first"]);
    run("ip", &["netns", "add", "second"]);
    run("ip", &["link", "add", "br0", "type", "bridge"]);
    run("ip", &["link", "add", "port0", "type", "veth", "peer", "name", "port1"]);
    run("ip", &["link", "set", "port0", "master", "br0"]);
    run("ip", &["link", "add", "mine0", "type", "veth", "peer", "name", "mine1"]);
    run("ip", &["link", "set", "mine0", "up"]);
    let adopt = |name: &str| EndpointChangeRequest {
        adopt_interface: Some(name.into()),
        owner: Some(format!("of {name}")),
        ..EndpointChangeRequest::default()
    };
    client.create_endpoint(&EndpointRef::Id(0), &adopt("mine0")).unwrap();
    let before = client.endpoints(&[]).unwrap();
    type Change = Box<dyn FnOnce(&mut EndpointChangeRequest)>;
    let taken = first.v4();
    let cases: Vec<(u16, &str, Change)> = vec![
        (400, "netns", Box::new(|r| r.netns = Some("nowhere".into()))),
        (409, "netns", Box::new(|r| r.netns = Some("first".into()))),
        (400, "labels[0]", Box::new(|r| r.labels = vec!["reserved:host".into()])),
        (400, "labels[0]", Box::new(|r| r.labels = vec![format!("k8s:{}=x", "k".repeat(300))])),
        (409, "addresses[0]", Box::new(move |r| r.addresses = vec![taken])),
        (400, "addresses[0]", Box::new(|r| r.addresses = vec!["192.0.2.1".parse().unwrap()])),
        (400, "id", Box::new(|r| r.id = 4000)),
        (409, "id", Box::new(|r| r.id = 1)),
        (400, "netns", Box::new(|r| r.netns = None)),
        (409, "br0", Box::new(|r| (r.netns, r.adopt_interface) = (None, Some("port0".into())))),
        (409, "adopt-interface", Box::new(|r| (r.netns, r.adopt_interface) = (None, Some("mine0".into())))),
        (400, "interface-index", Box::new(|r| r.interface_index = 7)),
        (400, "", Box::new(|r| (r.netns, r.adopt_interface) = (None, Some("nodev0".into())))),
    ];
    for (status, field, change) in cases {
        let mut request =
            EndpointChangeRequest { netns: Some("second".into()), ..EndpointChangeRequest::default() };
        change(&mut request);
        let error = client.create_endpoint(&EndpointRef::Id(0), &request).unwrap_err();
        assert_eq!(error.status(), Some(status), "{field}: {error}");
        assert!(error.to_string().contains(field), "{field}: {error}");
        assert_eq!(client.endpoints(&[]).unwrap(), before, "{field}");
    }
    assert!(client.verify(&Default::default()).unwrap().differences.is_empty());
    // 8 addresses: the network's, the router's, the broadcast, and five for workloads.
    for name in ["b", "c", "d"] {
        node.workload(name, &["k8s:app=x"]);
    }
    run("ip", &["netns", "add", "last"]);
    let error = node.endpoint("last", &["k8s:app=x"]).unwrap_err();
    assert_eq!(error.status(), Some(429), "{error}");
    assert!(error.to_string().contains("ipv4-range"), "{error}");
}

#[test]
fn a_change_of_labels_and_of_policy_cuts_what_is_not_allowed_any_more() {
    alone!();
    let node = TestNode::started(&[]);
    let client_of = node.client();
    let server = node.workload("server", &["k8s:app=server"]);
    let client = node.workload("client", &["k8s:app=client"]);
    server.serves(server.v4(), 80);
    node.import(&allow("web", "server", "client", 80));
    let mut open = client.connects(server.v4(), 80).unwrap();
    assert!(echoes(&mut open));

    let patch = EndpointPatch { add_labels: vec!["k8s:app=other".into()], ..EndpointPatch::default() };
    let changed = client_of.patch_endpoint(&EndpointRef::Id(client.id()), &patch).unwrap();
    assert_ne!(changed.status.identity, client.endpoint.status.identity);
    assert!(echoes_in_vain(&mut open), "its new labels are not allowed");
    let back = EndpointPatch { add_labels: vec!["k8s:app=client".into()], ..EndpointPatch::default() };
    let changed = client_of.patch_endpoint(&EndpointRef::Id(client.id()), &back).unwrap();
    assert_eq!(changed.status.identity, client.endpoint.status.identity);
    assert!(client.asks(server.v4(), 80));

    // A silent flow goes within a second after the policy that let it in.
    let silent = client.udp(client.v4(), 5000);
    let asked = server.udp(server.v4(), 53);
    let dns = allow("dns", "server", "client", 53).replace("TCP", "UDP");
    node.import(&dns);
    let mut buffer = [0; 8];
    silent.send_to(b"q", (server.v4(), 53)).unwrap();
    assert!(asked.recv(&mut buffer).is_ok());
    asked.send_to(b"a", (client.v4(), 5000)).unwrap();
    assert!(silent.recv(&mut buffer).is_ok());
    let delete = PolicyDelete { name: "dns".into(), ..PolicyDelete::default() };
    let change = client_of.delete_policy(&delete).unwrap();
    let wait = PolicyWaitQuery { revision: change.revision, timeout: 60 };
    assert!(client_of.wait_policy(&wait).unwrap().realized);
    eventually("the flow is gone", || {
        let pins = Pins::existing("/tmp/node/bpf".as_ref()).unwrap();
        let flows = Flows::new(Arc::new(Maps::existing(&pins).unwrap())).list().unwrap();
        let of_dns = |(key, flow): &(FlowKey, Flow)| key.ends(flow).1.port() == 53;
        !flows.iter().any(of_dns)
    });
    drop((silent, asked));
}

#[test]
fn broken_policies_change_nothing_and_are_named() {
    alone!();
    let mut node = TestNode::started(&[]);
    let client_of = node.client();
    let server = node.workload("server", &["k8s:app=server"]);
    let client = node.workload("client", &["k8s:app=client"]);
    server.serves(server.v4(), 80);
    node.policy_file("web.yaml", &allow("web", "server", "client", 80));
    eventually("default deny", || client.pings_in_vain(server.v4()));
    node.policy_file("web.yaml", &allow("web", "server", "client", 80).replace("\"80\"", "\"70000\""));
    eventually("the broken file is named", || {
        let details = client_of.status_details().unwrap();
        details.warnings.iter().any(|w| w.message.contains("web.yaml") && w.message.contains("70000"))
    });
    assert!(client.asks(server.v4(), 80), "its last good version is in force");
    node.kill();
    node.start();
    assert!(client.asks(server.v4(), 80) && client.pings_in_vain(server.v4()), "also after a restart");
    let revision = client_of.policy(&Default::default()).unwrap().revision;
    for text in ["{", "kind: Deployment", &allow("x", "a", "b", 1).replace("ingress", "ingres")] {
        let import = PolicyImport { text: text.to_owned(), ..PolicyImport::default() };
        assert_eq!(client_of.import_policy(&import).unwrap_err().status(), Some(400), "{text}");
        assert!(!client_of.validate_policy(&import).unwrap().valid);
    }
    assert_eq!(client_of.policy(&Default::default()).unwrap().revision, revision);
    std::fs::remove_file(node.root.join("policies/web.yaml")).unwrap();
    eventually("its policy goes with the file", || !client.pings_in_vain(server.v4()));
}

#[test]
fn a_half_written_file_keeps_its_policies_in_force_until_it_is_removed_and_none_comes_back() {
    alone!();
    let mut node = TestNode::started(&[]);
    let server = node.workload("server", &["k8s:app=server"]);
    let client = node.workload("client", &["k8s:app=client"]);
    server.serves(server.v4(), 80);
    let file = node.root.join("policies/web.yaml");
    let good = allow("web", "server", "client", 80);
    let half = good.split_inclusive("toPorts: [{").next().unwrap();
    let in_force = |_: &TestNode| client.pings_in_vain(server.v4()) && client.asks(server.v4(), 80);
    let is_named = |node: &TestNode, part: &str| {
        let warnings = node.client().status_details().unwrap().warnings;
        warnings.iter().any(|w| w.message.contains("web.yaml") && w.message.contains(part))
    };
    node.policy_file("web.yaml", &good);
    eventually("it is in force", || in_force(&node));
    for (text, part) in [(half, "last good version"), ("", "it is empty"), (" \n", "it is empty")] {
        node.policy_file("web.yaml", text);
        eventually("the broken file is named", || is_named(&node, part));
        assert!(in_force(&node), "{text:?}");
    }
    std::fs::remove_file(&file).unwrap();
    eventually("it goes with the file, half-written as that is", || !client.pings_in_vain(server.v4()));
    assert!(!is_named(&node, ""));
    // Nobody knows any more what a broken file of that name held.
    node.policy_file("web.yaml", half);
    eventually("it is named again", || is_named(&node, "web.yaml"));
    assert!(client.pings(server.v4()));

    // The same while no agent runs.
    node.policy_file("web.yaml", &good);
    eventually("it is in force again", || in_force(&node));
    node.policy_file("web.yaml", half);
    eventually("the broken file is named", || is_named(&node, "last good version"));
    node.kill();
    node.start();
    assert!(in_force(&node), "the last good version outlives the agent");
    node.kill();
    std::fs::remove_file(&file).unwrap();
    node.start();
    assert!(client.pings(server.v4()), "the file is gone");
    node.kill();
    node.policy_file("web.yaml", half);
    node.start();
    assert!(client.pings(server.v4()), "what is gone does not come back");
}

#[test]
fn a_file_that_holds_less_for_a_moment_takes_nothing_out_of_force() {
    alone!();
    let node = TestNode::started(&[]);
    let file = node.root.join("policies/both.yaml");
    let (first, second) = (allow("first", "server", "client", 80), allow("second", "server", "client", 8181));
    let both = format!("{first}---\n{second}");
    let in_force = |name: &str| node.client().policy(&PolicyQuery::default()).unwrap().policy.contains(name);
    node.policy_file("both.yaml", &both);
    eventually("both are in force", || in_force("first") && in_force("8181"));
    // A writer rests between two documents and within one, and the directory is read for another file's sake. What took
    // so long that the rest may be taken for the end proves nothing.
    let without_ports = both.rsplit_once("    toPorts").unwrap().0;
    for half in [&first, without_ports] {
        let mut round = 0;
        eventually("a round is quick", || {
            eventually("both are in force", || in_force("first") && in_force("8181"));
            round += 1;
            let other = format!("other{round}-{}", half.len());
            let rests = Instant::now();
            let mut writer = std::fs::File::create(&file).unwrap();
            writer.write_all(half.as_bytes()).unwrap();
            node.policy_file(&format!("{other}.yaml"), &allow(&other, "nobody", "client", 80));
            eventually("the directory was read", || in_force(&other));
            let stays = in_force("first") && in_force("8181");
            let is_quick = rests.elapsed() < Duration::from_secs(2);
            writer.write_all(&both.as_bytes()[half.len()..]).unwrap();
            assert!(stays || !is_quick, "{half}");
            is_quick
        });
    }
    // What stays less is meant, and another file in its place at once.
    node.policy_file("both.yaml", &first);
    eventually("the second goes", || in_force("first") && !in_force("second"));
    node.policy_file("both.yaml", &both);
    eventually("both are in force again", || in_force("first") && in_force("second"));
    let written = node.root.join("policies/.both.new");
    std::fs::write(&written, &second).unwrap();
    std::fs::rename(&written, &file).unwrap();
    eventually("the first goes", || !in_force("first") && in_force("second"));
}

#[test]
fn a_policy_that_does_not_fit_leaves_the_complete_one() {
    alone!();
    let node = TestNode::started(&[("bpf-policy-map-max", "256")]);
    let server = node.workload("server", &["k8s:app=server"]);
    let client = node.workload("client", &["k8s:app=client"]);
    server.serves(server.v4(), 80);
    node.import(&allow("web", "server", "client", 80));
    let many: Vec<String> = (0..300).map(|n| format!("198.51.{}.{}/32", n / 250, n % 250)).collect();
    let text = format!(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: many}}\nspec:\n  \
         endpointSelector: {{matchLabels: {{app: server}}}}\n  ingress:\n  - fromCIDR: [{}]\n",
        many.join(", ")
    );
    let import = PolicyImport { text, ..PolicyImport::default() };
    let change = node.client().import_policy(&import).unwrap();
    assert!(change.warnings.iter().any(|warning| warning.contains("endpoint 1")), "{change:?}");
    assert!(client.asks(server.v4(), 80) && client.pings_in_vain(server.v4()));
    let wait = PolicyWaitQuery { revision: change.revision, timeout: 0 };
    assert_eq!(node.client().wait_policy(&wait).unwrap().waiting, [1]);
    let delete = PolicyDelete { name: "many".into(), ..PolicyDelete::default() };
    node.client().delete_policy(&delete).unwrap();
    assert!(node.client().wait_policy(&PolicyWaitQuery { revision: 0, timeout: 60 }).unwrap().realized);
}

#[test]
fn sticky_addresses_come_back_and_others_rest() {
    alone!();
    let node = TestNode::started(&[]);
    let client = node.client();
    run("ip", &["netns", "add", "a"]);
    let request = EndpointChangeRequest {
        netns: Some("a".into()),
        owner: Some("shop/db".into()),
        sticky: true,
        addresses: vec!["10.11.0.77".parse().unwrap(), "10.11.0.78".parse().unwrap()],
        ..EndpointChangeRequest::default()
    };
    let made = client.create_endpoint(&EndpointRef::Id(0), &request).unwrap();
    assert_eq!(made.status.networking.addressing.len(), 2, "two of IPv4, one of IPv6");
    client.delete_endpoint(&EndpointRef::Owner("shop/db".into())).unwrap();
    assert!(!try_run("ip", &["-n", "a", "link", "show", "eth0"]).status.success());
    let plain = node.endpoint("a", &[]).unwrap();
    assert!(![77, 78].contains(&plain.status.networking.addressing[0].ipv4.unwrap().octets()[3]));
    client.delete_endpoint(&EndpointRef::Id(plain.id)).unwrap();
    let again = EndpointChangeRequest { addresses: Vec::new(), ..request };
    let again = client.create_endpoint(&EndpointRef::Id(0), &again).unwrap();
    assert!([77, 78].contains(&again.status.networking.addressing[0].ipv4.unwrap().octets()[3]));
}

#[test]
fn calls_beyond_the_limit_are_refused_and_counted() {
    alone!();
    let limits = r#"{"endpoint-get": "rate-limit:1/h,rate-burst:2,max-wait-duration:1s"}"#;
    let node = TestNode::started(&[("api-rate-limit", limits)]);
    let server = node.workload("server", &["k8s:app=server"]);
    let (client, id) = (node.client(), EndpointRef::Id(server.id()));
    for _ in 0..2 {
        client.endpoint(&id).unwrap();
    }
    let refused = client.endpoint(&id).unwrap_err();
    assert_eq!(refused.status(), Some(429), "{refused}");
    assert!(refused.to_string().contains("api-rate-limit"), "{refused}");
    client.endpoints(&[]).unwrap();
    let metric = |outcome: &str| {
        let all = client.metrics().unwrap();
        let is_it = |m: &&MetricValue| {
            m.name == "cilium_api_limiter_processed_requests_total"
                && m.labels["api_call"] == "endpoint-get"
                && m.labels["outcome"] == outcome
        };
        all.iter().find(is_it).map(|m| m.value)
    };
    assert_eq!((metric("success"), metric("fail-limit-wait")), (Some(2.0), Some(1.0)));
    let lines = client.status_details().unwrap().lines;
    let line = lines.iter().find(|line| line.label == "API Limits").unwrap();
    assert!(line.message.contains("endpoint-get") && line.message.contains("1 refused"), "{line:?}");
}

#[test]
fn a_new_identity_is_used_after_the_grace_that_others_need() {
    const GRACE: Duration = Duration::from_secs(10);
    alone!();
    let node = TestNode::started(&[("identity-change-grace-period", "10s")]);
    let server = node.workload("server", &["k8s:app=server"]);
    let client = node.workload("client", &["k8s:app=client"]);
    server.serves(server.v4(), 80);
    node.import(&allow("web", "server", "other", 80));
    let entries = || {
        let pins = Pins::existing("/tmp/node/bpf".as_ref()).unwrap();
        villus_datapath::view_policy(&pins, &Maps::existing(&pins).unwrap(), server.id()).unwrap().entries
    };
    let (before, begin) = (entries().len(), Instant::now());
    let changing = {
        let (agent, id) = (node.client(), EndpointRef::Id(client.id()));
        let patch = EndpointPatch { add_labels: vec!["k8s:app=other".into()], ..EndpointPatch::default() };
        std::thread::spawn(move || agent.patch_endpoint(&id, &patch).unwrap())
    };
    eventually("policy maps know the new identity", || entries().len() > before);
    assert!(begin.elapsed() < GRACE, "they know it before it is used");
    assert!(client.asks_in_vain(server.v4(), 80), "it has its old one");
    let changed = changing.join().unwrap();
    assert!(begin.elapsed() >= GRACE);
    assert_ne!(changed.status.identity, client.endpoint.status.identity);
    assert!(client.asks(server.v4(), 80));
}

#[test]
fn status_names_who_else_drops_and_the_line_that_mends_it() {
    alone!();
    let node = TestNode::started(&[]);
    let warned = || {
        let warnings = node.client().status_details().unwrap().warnings;
        warnings.into_iter().find(|w| w.message.contains("drops what endpoints send"))
    };
    assert_eq!(warned(), None);
    run("nft", &["add", "table", "ip", "filter"]);
    run("nft", &["add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }"]);
    let warning = warned().unwrap();
    assert!(warning.message.contains("ip filter FORWARD"), "{warning:?}");
    assert!(warning.mend.contains("iptables -I FORWARD -i lxc+ -j ACCEPT"), "as docker's: {warning:?}");
    run("nft", &["delete", "table", "ip", "filter"]);
    assert_eq!(warned(), None);
    run("nft", &["add", "table", "inet", "theirs"]);
    run("nft", &["add chain inet theirs forward { type filter hook forward priority 0; policy drop; }"]);
    let warning = warned().unwrap();
    // What it says is done as it stands there.
    for line in warning.mend.lines() {
        run("sh", &["-c", line.trim()]);
    }
    assert_eq!(warned(), None, "{}", run("nft", &["list", "ruleset"]));
}

/// The flows of an address.
fn flows_of(address: std::net::IpAddr) -> usize {
    let pins = Pins::existing("/tmp/node/bpf".as_ref()).unwrap();
    let flows = Flows::new(Arc::new(Maps::existing(&pins).unwrap()));
    flows.find(|key, _| key.involves(address)).unwrap().len()
}

#[test]
fn an_address_is_given_back_without_its_flows() {
    alone!();
    let node = TestNode::started(&[]);
    let client = node.workload("client", &["k8s:app=client"]);
    let server = node.workload("server", &["k8s:app=server"]);
    let address = server.v4();
    server.serves(address, 80);
    assert!(client.asks(address, 80));
    assert!(flows_of(address) > 0);
    let id = EndpointRef::Id(server.id());
    node.client().delete_endpoint(&id).unwrap();
    assert_eq!(flows_of(address), 0);
    // It rests for everybody: also for one that gets the number of the one before.
    run("ip", &["netns", "add", "next"]);
    let next = node.endpoint("next", &["k8s:app=next"]).unwrap();
    assert_eq!(EndpointRef::Id(next.id), id);
    assert_ne!(next.status.networking.addressing[0].ipv4.map(std::net::IpAddr::V4), Some(address));
    let this_very = || {
        let request = EndpointChangeRequest {
            netns: Some("server".into()),
            addresses: vec![address],
            ..EndpointChangeRequest::default()
        };
        node.client().create_endpoint(&EndpointRef::Id(0), &request)
    };
    let refused = this_very().unwrap_err();
    assert_eq!(refused.status(), Some(409), "{refused}");
    assert!(refused.to_string().contains("rests"), "{refused}");
}

#[test]
fn what_is_left_of_an_endpoint_whose_namespace_died_takes_nothing_from_who_has_its_address_now() {
    alone!();
    let node = TestNode::started(&[]);
    let client = node.workload("client", &["k8s:app=client"]);
    let doomed = node.workload("doomed", &["k8s:app=doomed"]);
    let (address, id) = (doomed.v4(), EndpointRef::Id(doomed.id()));
    drop(doomed);
    run("ip", &["netns", "del", "doomed"]);
    eventually("the endpoint is marked", || {
        node.client().endpoint(&id).unwrap().status.state == EndpointState::Disconnected
    });
    run("ip", &["netns", "add", "heir"]);
    let request = EndpointChangeRequest {
        netns: Some("heir".into()),
        addresses: vec![address],
        ..EndpointChangeRequest::default()
    };
    // As long as it rests.
    let mut heir = node.client().create_endpoint(&EndpointRef::Id(0), &request);
    let limit = Instant::now() + Duration::from_secs(120);
    while heir.is_err() && Instant::now() < limit {
        std::thread::sleep(Duration::from_secs(1));
        heir = node.client().create_endpoint(&EndpointRef::Id(0), &request);
    }
    heir.unwrap();
    assert!(client.pings(address));
    node.client().delete_endpoint(&id).unwrap();
    assert!(client.pings(address), "it is the heir's");
    assert!(node.client().verify(&Default::default()).unwrap().clean());
}

#[test]
fn an_address_of_the_pool_that_nobody_has_is_not_the_world() {
    alone!();
    let node = TestNode::started(&[]);
    let client = node.workload("client", &["k8s:app=client"]);
    let pending = || -> f64 {
        let metrics = node.client().metrics().unwrap();
        let all = metrics
            .iter()
            .filter(|m| m.labels.get("reason").is_some_and(|r| r == Reason::IDENTITY_PENDING.text()));
        all.filter(|m| m.name == "cilium_drop_count_total").map(|m| m.value).sum()
    };
    let policy = |entity: &str| {
        format!(
            "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: out, namespace: default}}\n\
             spec:\n  endpointSelector: {{matchLabels: {{app: client}}}}\n  egress: [{{toEntities: [{entity}]}}]\n"
        )
    };
    let nobody: [std::net::IpAddr; 2] = ["10.11.0.200".parse().unwrap(), "fd11::1234".parse().unwrap()];
    node.import(&policy("world"));
    for (index, address) in nobody.into_iter().enumerate() {
        assert!(client.pings_in_vain(address));
        assert!(pending() > index as f64, "{address}");
    }
    node.import(&policy("all"));
    let before = pending();
    for address in nobody {
        assert!(client.pings_in_vain(address), "nobody answers");
    }
    assert_eq!(pending(), before, "whom policy lets reach everybody need not know who it is");
}
