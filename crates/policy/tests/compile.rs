//! What policies become: entries, default deny, budget, explanation.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use villus_abi::{Direction, PolicyKey, endpoint::MASK_PROTO};
use villus_labels::{Labels, NumericIdentity, cidr_labels};
use villus_policy::{EndpointPolicy, EnforcementMode, Repository, Settings, Verdict, parse};

const INGRESS: Direction = Direction::Ingress;
const EGRESS: Direction = Direction::Egress;
const CLIENT: u32 = 300;
const INTRUDER: u32 = 301;
const STRANGER: u32 = 302;
const WORLD: u32 = 2;

fn labels(text: &str) -> Labels {
    Labels::parse_list(text, "k8s").unwrap()
}

fn server() -> Labels {
    labels("app=server,io.kubernetes.pod.namespace=default")
}

fn repository(settings: Settings) -> Repository {
    let mut repository = Repository::new(settings);
    for (identity, text) in [
        (CLIENT, "app=client,io.kubernetes.pod.namespace=default"),
        (INTRUDER, "app=intruder,io.kubernetes.pod.namespace=default"),
        (STRANGER, "app=client,io.kubernetes.pod.namespace=elsewhere"),
    ] {
        repository.upsert_identity(NumericIdentity(identity), &labels(text));
    }
    repository
}

/// A policy of namespace `default` that selects the server.
fn policy(name: &str, sections: &str) -> String {
    let sections = sections.replace('\n', "\n  ");
    format!(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: {name}}}\n\
         spec:\n  endpointSelector: {{matchLabels: {{app: server}}}}\n  {sections}\n---\n"
    )
}

fn compiled_with(settings: Settings, text: &str, subject: &Labels) -> EndpointPolicy {
    let mut repository = repository(settings);
    repository.replace_origin("p.yaml", parse("p.yaml", text).unwrap().policies);
    repository.endpoint_policy(subject, 16_384).unwrap()
}

fn compiled(text: &str) -> EndpointPolicy {
    compiled_with(Settings::new("default").unwrap(), text, &server())
}

#[test]
fn the_emptiness_rules() {
    // Sections of a policy; then who may come in on 80/TCP: client, intruder, stranger, world; then egress enforced.
    for (sections, expected, egress) in [
        ("egress: [{}]", [true; 4], true),
        ("ingress: [{}]", [false; 4], false),
        ("ingress: []", [true; 4], false),
        ("ingress: [{fromEndpoints: [{}]}]", [true, true, false, false], false),
        ("ingress: [{fromEndpoints: []}]", [false; 4], false),
        ("ingress: [{fromEndpoints: [], toPorts: [{ports: [{port: 80}]}]}]", [false; 4], false),
        ("ingress: [{toPorts: [{ports: [{port: 80}]}]}]", [true; 4], false),
        ("ingress: [{toPorts: [{ports: [{port: 81}]}]}]", [false; 4], false),
        ("ingress: [{fromEntities: [all]}]", [true; 4], false),
        ("ingress: [{fromEntities: [none]}]", [false; 4], false),
        ("ingress: [{fromEntities: [world]}]", [false, false, false, true], false),
        ("ingress: [{fromEndpoints: [{matchLabels: {app: client}}]}]", [true, false, false, false], false),
        (
            "ingress: [{fromEndpoints: [{matchLabels: {app: client, io.kubernetes.pod.namespace: elsewhere}}]}]",
            [false, false, true, false],
            false,
        ),
        ("ingressDeny: [{fromEndpoints: [{matchLabels: {app: intruder}}]}]", [false; 4], false),
        (
            "ingress: [{fromEntities: [all]}]\ningressDeny: [{fromEndpoints: [{matchLabels: {app: intruder}}]}]",
            [true, false, true, true],
            false,
        ),
        ("ingressDeny: [{}]\nenableDefaultDeny: {ingress: false}", [true; 4], false),
        (
            "ingressDeny: [{fromEntities: [world]}]\nenableDefaultDeny: {ingress: false}",
            [true, true, true, false],
            false,
        ),
        ("ingress: [{fromEntities: [world]}]\nenableDefaultDeny: {ingress: false}", [true; 4], false),
        ("ingress: [{fromEntities: [all]}]\nenableDefaultDeny: {egress: true}", [true; 4], true),
    ] {
        let policy = compiled(&policy("p", sections));
        let allowed = [CLIENT, INTRUDER, STRANGER, WORLD]
            .map(|identity| policy.verdict(INGRESS, identity, 80, 6).is_allowed());
        assert_eq!(allowed, expected, "{sections}\n{policy:#?}");
        assert_eq!(policy.enforced[1], egress, "{sections}");
        assert_eq!(policy.verdict(EGRESS, CLIENT, 80, 6).is_allowed(), !egress, "{sections}");
    }
}

#[test]
fn an_unselected_endpoint_is_free_and_one_rule_makes_one_entry() {
    let text = policy(
        "p",
        "ingress: [{fromEndpoints: [{matchLabels: {app: client}}], toPorts: [{ports: [{port: 80, protocol: TCP}]}]}]",
    );
    let free = compiled_with(Settings::new("default").unwrap(), &text, &labels("app=client"));
    assert_eq!(free.enforced, [false, false]);
    assert_eq!(
        free.keys().collect::<Vec<_>>(),
        [PolicyKey::new(0, 0, 0, INGRESS), PolicyKey::new(0, 0, 0, EGRESS)]
    );
    let server = compiled(&text);
    assert_eq!(server.enforced, [true, false]);
    assert_eq!(
        server.keys().collect::<Vec<_>>(),
        [PolicyKey::new(0, 0, 0, EGRESS), PolicyKey::new(CLIENT, 80, 6, INGRESS)]
    );
    assert_eq!((server.mask(), server.deny_identity()), ([0, 0], [false, false]));
}

#[test]
fn modes_localhost_and_init_decide_enforcement() {
    let settings =
        |mode, allow_localhost| Settings { mode, allow_localhost, ..Settings::new("default").unwrap() };
    let allow = |policy: &EndpointPolicy, identity| policy.verdict(INGRESS, identity, 80, 6).is_allowed();
    let text = policy("p", "ingress: [{fromEntities: [init]}]");
    let default = compiled_with(settings(EnforcementMode::Default, false), &text, &server());
    assert_eq!([1, CLIENT, 5].map(|id| allow(&default, id)), [false, false, true]);
    let localhost = compiled_with(settings(EnforcementMode::Default, true), &text, &server());
    assert_eq!([1, CLIENT, 5].map(|id| allow(&localhost, id)), [true, false, true]);
    let always = compiled_with(settings(EnforcementMode::Always, false), "", &server());
    assert_eq!((always.enforced, allow(&always, CLIENT)), ([true, true], false));
    let never = compiled_with(settings(EnforcementMode::Never, false), &text, &server());
    assert_eq!((never.enforced, allow(&never, CLIENT)), ([false, false], true));
    let init = labels("reserved:init");
    let fresh = compiled_with(settings(EnforcementMode::Default, false), &text, &init);
    assert_eq!((fresh.enforced, allow(&fresh, CLIENT)), ([true, true], false));
    assert!(allow(&compiled_with(settings(EnforcementMode::Never, false), "", &init), CLIENT));
}

#[test]
fn shapes_of_keys_set_their_bits() {
    let policy = compiled(&policy(
        "p",
        "ingress:\n- toPorts: [{ports: [{port: 8000, endPort: 8999, protocol: TCP}]}]\n\
         egress:\n- toPorts: [{ports: [{protocol: UDP}]}]\n\
         egressDeny:\n- toEntities: [host]\n- icmps: [{fields: [{type: EchoReply}]}]",
    ));
    let sizes = [3, 5, 6, 8].iter().fold(0, |mask, log2| mask | 1 << log2);
    assert_eq!(policy.mask(), [sizes, MASK_PROTO]);
    assert_eq!(policy.deny_identity(), [false, true]);
    assert!(policy.verdict(INGRESS, WORLD, 8999, 6).is_allowed());
    assert!(!policy.verdict(INGRESS, WORLD, 9000, 6).is_allowed());
    assert!(policy.verdict(EGRESS, WORLD, 53, 17).is_allowed());
    assert_eq!(
        policy.verdict(EGRESS, WORLD, 0, 1),
        Verdict::Denied(PolicyKey::new(0, 256, 1, EGRESS)),
        "echo reply has a port of its own"
    );
    assert_eq!(policy.verdict(EGRESS, WORLD, 8, 1), Verdict::DeniedByDefault);
}

#[test]
fn nothing_is_spelled_out_for_denies() {
    let prefixes: Vec<String> = (0..5000u32).map(|i| format!("20.{}.{}.0/24", i / 256, i % 256)).collect();
    let ports: Vec<String> = (1000..1040).map(|port| format!("{{port: {port}, protocol: TCP}}")).collect();
    let text = policy(
        "p",
        &format!(
            "egress: [{{toPorts: [{{ports: [{}]}}]}}]\negressDeny: [{{toCIDR: [{}]}}]",
            ports.join(", "),
            prefixes.join(", ")
        ),
    );
    let mut repository = repository(Settings::new("default").unwrap());
    let change = repository.replace_origin("p.yaml", parse("p.yaml", &text).unwrap().policies);
    assert_eq!(change.new_prefixes.len(), 5000);
    let subjects = [server(), labels("app=x")].map(|labels| repository.acquire_subject(&labels));
    assert_eq!(repository.sync().len(), 2);
    for (i, prefix) in change.new_prefixes.iter().enumerate() {
        let identity = NumericIdentity(NumericIdentity::SCOPE_LOCAL + 1 + i as u32);
        repository.upsert_identity(identity, &cidr_labels(*prefix));
    }
    let changes = repository.sync();
    assert_eq!(changes.iter().map(|c| (c.subject, c.edits.len())).collect::<Vec<_>>(), [(subjects[0], 5000)]);
    let policy = repository.endpoint_policy(&server(), 16_384).unwrap();
    assert_eq!(policy.len(), 5000 + 40 + 1, "the last one is for ingress, which is free");

    let overflow = repository.endpoint_policy(&server(), 4096).unwrap_err();
    assert_eq!((overflow.asked, overflow.max_entries, overflow.costs.len()), (5040, 4096, 2));
    assert_eq!(overflow.costs.iter().map(|cost| cost.entries).collect::<Vec<_>>(), [5000, 40]);
    let shown = overflow.to_string();
    assert!(
        shown.contains("CiliumNetworkPolicy default/p spec.egressDeny[0] (p.yaml:7): 5000 entries"),
        "{shown}"
    );
}

#[test]
fn changes_say_whom_they_affect_and_the_same_again_is_none() {
    let mut repository = repository(Settings::new("default").unwrap());
    assert_eq!(repository.revision(), 1);
    let text = policy("p", "ingress: [{fromCIDR: [10.0.0.0/8]}]") + &policy("q", "egress: [{}]");
    let policies = parse("p.yaml", &text).unwrap().policies;
    let first = repository.replace_origin("p.yaml", policies.clone());
    assert_eq!((first.revision, first.updated.len(), first.new_prefixes.len()), (2, 2, 1));
    assert!(first.affects(&server()) && !first.affects(&labels("app=server")));
    assert!(repository.replace_origin("p.yaml", policies.clone()).is_empty());
    assert_eq!(repository.revision(), 2);
    let gone = repository.replace_origin("p.yaml", policies[1..].to_vec());
    assert_eq!((gone.removed.len(), gone.updated.len(), gone.gone_prefixes.len()), (1, 0, 1));
    assert_eq!(gone.revision, 3);
    assert_eq!(repository.selectors().rows(), []);
    let owner = villus_labels::Selector::parse("io.cilium.k8s.policy.name=q").unwrap();
    let found: Vec<_> = repository.policies_with_labels(&owner).map(|p| p.key.clone()).collect();
    assert_eq!(found.len(), 1);
    assert!(!repository.delete(found).is_empty());
    assert_eq!(repository.policies().count(), 0);
}

#[test]
fn of_two_policies_with_one_name_the_one_whose_origin_sorts_first_counts() {
    let with = |port: u16| {
        let text = policy("p", &format!("ingress: [{{toPorts: [{{ports: [{{port: {port}}}]}}]}}]"));
        parse("any", &text).unwrap().policies
    };
    let passing = |repository: &Repository| -> Vec<u16> {
        let policy = repository.endpoint_policy(&server(), 100).unwrap();
        (80..84).filter(|port| policy.verdict(INGRESS, CLIENT, *port, 6).is_allowed()).collect()
    };
    let mut repository = repository(Settings::new("default").unwrap());
    assert_eq!(repository.replace_origin("b.yaml", with(80)).updated.len(), 1);
    assert!(repository.replace_origin("c.yaml", with(81)).is_empty());
    assert_eq!(passing(&repository), [80]);
    let change = repository.replace_origin("a.yaml", with(82));
    assert_eq!((change.updated.len(), change.removed.len()), (1, 1));
    assert_eq!(passing(&repository), [82]);
    let shadowed: Vec<String> = repository
        .shadowed()
        .map(|(policy, winner)| format!("{} by {}", policy.key.origin, winner.origin))
        .collect();
    assert_eq!(shadowed, ["b.yaml by a.yaml", "c.yaml by a.yaml"]);
    assert!(repository.replace_origin("b.yaml", with(83)).is_empty());
    repository.replace_origin("a.yaml", Vec::new());
    assert_eq!(passing(&repository), [83]);
    repository.replace_origin("b.yaml", Vec::new());
    assert_eq!(passing(&repository), [81]);
    assert_eq!((repository.known().count(), repository.shadowed().count()), (1, 0));
}

#[test]
fn a_verdict_is_explained_down_to_the_rule() {
    let text = policy(
        "allow",
        "ingress:\n- fromEndpoints: [{matchLabels: {app: client}}]\n  toPorts: [{ports: [{port: 80, protocol: TCP}]}]",
    ) + &policy("deny", "ingressDeny:\n- fromEntities: [world]");
    let policy = compiled(&text);
    let explanation = policy.explain(INGRESS, CLIENT, 80, 6);
    assert_eq!(explanation.verdict, Verdict::Allowed(PolicyKey::new(CLIENT, 80, 6, INGRESS)));
    let shown = explanation.to_string();
    assert!(shown.starts_with("Ingress, identity 300, port 80, protocol 6: allowed\n"), "{shown}");
    assert!(
        shown.contains(
            "{300, 80, 6} identity, port and protocol: allow\n    CiliumNetworkPolicy default/allow spec.ingress[0] (p.yaml:7)\n"
        ),
        "{shown}"
    );
    assert_eq!(explanation.lookups.len(), 6);

    let denied = policy.explain(INGRESS, INTRUDER, 80, 6);
    assert_eq!(denied.verdict, Verdict::DeniedByDefault);
    assert_eq!(denied.default_deny_by.len(), 2);
    assert!(
        denied
            .to_string()
            .contains("default deny because of CiliumNetworkPolicy default/allow spec (p.yaml:5)")
    );
    let json = serde_json::to_value(policy.explain(INGRESS, WORLD, 80, 6)).unwrap();
    assert_eq!(
        (json["verdict"].as_str(), json["direction"].as_str()),
        (Some("denied by policy"), Some("Ingress"))
    );
    assert_eq!(json["lookups"][4]["found"]["origins"][0]["policy"]["name"], "deny");
    let json = serde_json::to_value(&policy).unwrap();
    assert_eq!(json["entries"].as_array().unwrap().len(), policy.len());
    assert_eq!(json["entries"][1]["direction"], "Ingress");
}
