//! The policy language at a live agent: what policies refer to comes and goes, by files, imports and endpoints.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{TestNode, Workload};
use villus_api::EndpointRef;
use villus_api::model::{
    EndpointChangeRequest, IpQuery, PolicyDelete, PolicyImport, PolicyText, PreviewRequest,
};
use villus_net::NetnsRef;
use villus_testbed::{alone, eventually, run, try_run};

#[test]
fn the_agent() {
    common::be_the_agent();
}

fn policy(name: &str, sections: &str) -> String {
    format!(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: {name}}}\n\
         spec:\n  endpointSelector: {{matchLabels: {{app: server}}}}\n  {sections}\n"
    )
}

/// What the agent says is not as it should be and has a word in it.
fn said(node: &TestNode, word: &str) -> Vec<String> {
    let warnings = node.client().status_details().unwrap().warnings.into_iter();
    warnings.map(|warning| warning.message).filter(|message| message.contains(word)).collect()
}

fn with_ports(node: &TestNode, name: &str, labels: &[&str], ports: &[&str]) -> Workload {
    run("ip", &["netns", "add", name]);
    let request = EndpointChangeRequest {
        netns: Some(name.to_owned()),
        labels: labels.iter().map(|label| (*label).to_owned()).collect(),
        named_ports: ports.iter().map(|port| (*port).to_owned()).collect(),
        ..EndpointChangeRequest::default()
    };
    let endpoint = node.client().create_endpoint(&EndpointRef::Id(0), &request).unwrap();
    Workload { netns: NetnsRef::Name(name.to_owned()).open().unwrap(), endpoint }
}

#[test]
fn named_ports_are_the_servers_own_and_outlive_the_agent() {
    alone!();
    let mut node = TestNode::started(&[]);
    node.import(&policy("web", "ingress: [{toPorts: [{ports: [{port: http, protocol: TCP}]}]}]"));
    assert!(said(&node, "default/web")[0].contains("port http, which nobody has"));
    let server = with_ports(&node, "server", &["k8s:app=server"], &["http=8080/TCP"]);
    let other = with_ports(&node, "other", &["k8s:app=server"], &["http=9090"]);
    let client = node.workload("client", &["k8s:app=client"]);
    for workload in [&server, &other] {
        workload.serves(workload.v4(), 8080);
        workload.serves(workload.v4(), 9090);
    }
    let open = |node: &TestNode| {
        assert!(said(node, "default/web").is_empty());
        // One identity, two workloads, each its own port.
        assert!(client.asks(server.v4(), 8080) && client.asks_in_vain(server.v4(), 9090));
        assert!(client.asks_in_vain(other.v4(), 8080) && client.asks(other.v4(), 9090));
    };
    open(&node);
    let shown = node.client().endpoint(&EndpointRef::Id(server.id())).unwrap();
    assert_eq!(shown.status.villus.named_ports, ["http=8080/TCP"]);
    node.kill();
    node.start();
    open(&node);
}

#[test]
fn a_group_comes_by_file_and_one_name_is_one_policy() {
    alone!();
    let node = TestNode::started(&[]);
    let server = node.workload("server", &["k8s:app=server"]);
    let client = node.workload("client", &["k8s:app=client"]);
    server.serves(server.v4(), 80);
    node.policy_file(
        "web.yaml",
        &policy("web", "ingress: [{fromCIDRSet: [{cidrGroupRef: friends}], toPorts: [{ports: [{port: 80, protocol: TCP}]}]}]"),
    );
    eventually("the policy is in force", || client.asks_in_vain(server.v4(), 80));
    eventually("the group is missed", || {
        said(&node, "default/web").iter().any(|s| s.contains("CIDR group friends"))
    });
    node.policy_file(
        "groups.yaml",
        "apiVersion: cilium.io/v2\nkind: CiliumCIDRGroup\nmetadata: {name: friends}\nspec: {externalCIDRs: [198.51.100.0/24]}\n",
    );
    eventually("the group is there", || said(&node, "default/web").is_empty());
    assert!(client.asks_in_vain(server.v4(), 80), "a prefix means no workload");
    let addresses = node.client().ips(&IpQuery::default()).unwrap();
    assert!(addresses.iter().any(|row| row.cidr == "198.51.100.0/24"), "{addresses:?}");

    // The API may not hold what a file holds; of two files the first counts.
    let import = PolicyImport {
        file: "mine.yaml".into(),
        text: policy("web", "ingress: [{}]"),
        ..PolicyImport::default()
    };
    let error = node.client().import_policy(&import).unwrap_err();
    assert_eq!(error.status(), Some(409), "{error}");
    assert!(error.to_string().contains("web.yaml"), "{error}");
    node.policy_file(
        "a.yaml",
        &policy("web", "ingress: [{toPorts: [{ports: [{port: 80, protocol: TCP}]}]}]"),
    );
    eventually("a.yaml sorts first", || !client.asks_in_vain(server.v4(), 80));
    eventually("the other is said to be in its shadow", || {
        said(&node, "web.yaml").iter().any(|message| message.contains("a.yaml"))
    });
    node.policy_file("z.yaml", &policy("web", "ingress: [{}]"));
    eventually("so is one that changes nothing", || !said(&node, "z.yaml").is_empty());
    assert!(client.asks(server.v4(), 80));
}

#[test]
fn a_service_is_imported_and_outlives_the_policy_of_its_name() {
    alone!();
    let node = TestNode::started(&[]);
    let client = node.workload("client", &["k8s:app=server"]);
    let backend = node.workload("backend", &["k8s:app=backend"]);
    backend.serves(backend.v4(), 80);
    node.import(&policy(
        "api",
        "egress: [{toServices: [{k8sService: {serviceName: api, namespace: default}}]}]",
    ));
    assert!(client.asks_in_vain(backend.v4(), 80));
    assert!(said(&node, "default/api")[0].contains("service default/api"));
    node.import("apiVersion: v1\nkind: Service\nmetadata: {name: api}\nspec: {selector: {app: backend}}\n");
    assert!(client.asks(backend.v4(), 80));
    let delete = |name: &str| {
        let delete = PolicyDelete { name: name.into(), ..PolicyDelete::default() };
        node.client().delete_policy(&delete).unwrap().deleted
    };
    assert_eq!(delete("api"), ["default/api"]);
    node.import(&policy(
        "web",
        "egress: [{toServices: [{k8sService: {serviceName: api, namespace: default}}]}]",
    ));
    assert!(client.asks(backend.v4(), 80), "the service is still there");
    assert_eq!(delete("api"), ["default/api"]);
    assert!(client.asks_in_vain(backend.v4(), 80));
}

#[test]
fn a_policy_for_nodes_is_never_silent() {
    alone!();
    let node = TestNode::started(&[]);
    node.import(
        "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {name: lock}\n\
         spec: {nodeSelector: {}, ingress: [{fromEntities: [remote-node]}]}\n",
    );
    assert!(said(&node, "lock")[0].contains("selects nodes"));
}

#[test]
fn in_a_pod_of_kubernetes_the_node_reaches_its_endpoints_whatever_policy_says() {
    alone!();
    let mut node = TestNode::new(&[]);
    node.in_a_pod = true;
    node.start();
    let server = node.workload("server", &["k8s:app=server"]);
    let answers = || try_run("ping", &["-c1", "-W1", &server.v4().to_string()]).status.success();
    node.import(&policy("web", "ingress: [{}]"));
    eventually("allow-localhost is auto", answers);
    node.stop();
    node.in_a_pod = false;
    node.start();
    assert!(!answers());
}

#[test]
fn a_preview_knows_named_ports_and_the_prefixes_of_the_node() {
    alone!();
    let node = TestNode::started(&[("policy-cidr-match-mode", "nodes"), ("policy-change-limit", "1%")]);
    let http = |peer: &str| {
        let from = format!("fromEndpoints: [{{matchLabels: {{app: {peer}}}}}]");
        policy(
            "web",
            &format!("ingress: [{{{from}, toPorts: [{{ports: [{{port: http, protocol: TCP}}]}}]}}]"),
        )
    };
    with_ports(&node, "server", &["k8s:app=server"], &["http=8080/TCP"]);
    let other = with_ports(&node, "other", &["k8s:app=server"], &["http=9090"]);
    let client = node.workload("client", &["k8s:app=client"]);
    let preview = |name: &str, text: String| {
        let files = vec![PolicyText { file: format!("{name}.yaml"), text }];
        node.client().preview_policy(&PreviewRequest { files, ..PreviewRequest::default() }).unwrap()
    };
    let told = preview("web", http("client"));
    let of = |id: u16| told.endpoints.iter().find(|endpoint| endpoint.id == id).unwrap();
    let identity = client.endpoint.status.identity.as_ref().unwrap().id;
    let added: Vec<_> = of(other.id()).added.iter().map(|entry| (entry.identity, entry.port)).collect();
    assert_eq!(added, [(Some(identity), 9090)], "its own port: {told:#?}");
    let import = PolicyImport { file: "web.yaml".into(), text: http("client"), ..PolicyImport::default() };
    let waiting = node.client().import_policy(&import).unwrap().waiting;
    if let Some(waiting) = waiting {
        node.client().confirm_policy(waiting.id).unwrap();
    }
    // What is there already is no difference, nor is what the node's own addresses are selected by.
    let told = preview("web", http("client"));
    assert!(told.endpoints.is_empty(), "{told:#?}");
    let import = PolicyImport {
        text: policy("other", "ingress: [{fromCIDR: [10.0.0.0/8]}]").replace("app: server", "app: client"),
        ..import
    };
    let waiting = node.client().import_policy(&import).unwrap().waiting.unwrap();
    assert_eq!(waiting.impact.endpoints, [client.id()], "{waiting:#?}");
    node.client().confirm_policy(waiting.id).unwrap();
    let told = preview("other", import.text);
    assert!(told.endpoints.is_empty(), "{told:#?}");
}

#[test]
fn whose_port_ranges_cost_many_look_ups_is_said_by_name_for_each_direction() {
    alone!();
    // Room for a wide range in few blocks only, which are of many sizes.
    let node = TestNode::started(&[("bpf-policy-map-max", "256")]);
    node.workload("server", &["k8s:app=server"]);
    let peers: Vec<String> = (1..=6).map(|n| format!("198.51.{n}.0/24")).collect();
    let of = |field: &str, first: u16| {
        let ports = format!("toPorts: [{{ports: [{{port: \"{first}\", endPort: 65534, protocol: TCP}}]}}]");
        format!("[{{{field}: [{}], {ports}}}]", peers.join(", "))
    };
    let said = |node: &TestNode| said(node, "looks for port ranges of");
    let delete = |name: &str| {
        let delete = PolicyDelete { name: name.into(), ..PolicyDelete::default() };
        node.client().delete_policy(&delete).unwrap();
    };
    node.import(&policy("narrow", &format!("ingress: {}", of("fromCIDR", 65_471))));
    assert!(said(&node).is_empty(), "few sizes are nobody's business");
    delete("narrow");
    for (name, section, field) in [("in", "ingress", "fromCIDR"), ("out", "egress", "toCIDR")] {
        node.import(&policy(name, &format!("{section}: {}", of(field, 1))));
        let told = said(&node);
        assert!(
            told.len() == 1 && told[0].to_lowercase().contains(&format!("{section} policy looks")),
            "{told:?}"
        );
        assert!(told[0].contains(&format!("CiliumNetworkPolicy default/{name};")), "{told:?}");
        let sizes = told[0].split("for port ranges of ").nth(1).unwrap().split(' ').next().unwrap();
        assert!((9..=14).contains(&sizes.parse::<u32>().unwrap()), "{told:?}");
        delete(name);
        assert!(said(&node).is_empty());
    }
}

#[test]
fn prefixes_mean_the_node_where_the_option_says_so() {
    alone!();
    let mut node = TestNode::started(&[("policy-cidr-match-mode", "nodes")]);
    let server = node.workload("server", &["k8s:app=server"]);
    node.import(&policy("web", "ingress: [{fromCIDR: [10.0.0.0/8]}]"));
    let answers = || try_run("ping", &["-c1", "-W10", &server.v4().to_string()]).status.success();
    assert!(answers(), "the node's own address lies in the prefix");
    node.import(&policy("web", "ingress: [{fromCIDR: [192.0.2.0/24]}]"));
    assert!(!answers());
    node.import(&policy("web", "ingress: [{fromCIDR: [10.0.0.0/8]}]"));
    node.stop();
    node.options.retain(|(name, _)| name != "policy-cidr-match-mode");
    node.start();
    assert!(!answers(), "without the option a prefix means no node");
}
