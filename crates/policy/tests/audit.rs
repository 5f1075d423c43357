//! Policies that are audited by their annotation, beside others and alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use villus_abi::{Direction, PolicyEntry, PolicyKey};
use villus_labels::{Labels, NumericIdentity};
use villus_policy::{Audit, EndpointPolicy, Explanation, Repository, Settings, parse};

const CLIENT: NumericIdentity = NumericIdentity(300);
const OTHER: NumericIdentity = NumericIdentity(301);

fn labels(app: &str) -> Labels {
    Labels::parse_list(&format!("app={app},io.kubernetes.pod.namespace=default"), "k8s").unwrap()
}

/// A policy for the server: its annotation, `enableDefaultDeny` of ingress, its sections.
fn policy(name: &str, audit: &str, default_deny: bool, sections: &str) -> String {
    format!(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata:\n  name: {name}\n  annotations: \
         {{policy.villus.io/audit: \"{audit}\"}}\nspec:\n  endpointSelector: {{matchLabels: {{app: server}}}}\n  \
         enableDefaultDeny: {{ingress: {default_deny}}}\n{sections}---\n"
    )
}

fn allow(app: &str) -> String {
    format!("  ingress:\n  - fromEndpoints: [{{matchLabels: {{app: {app}}}}}]\n")
}

fn deny(app: &str) -> String {
    format!("  ingressDeny:\n  - fromEndpoints: [{{matchLabels: {{app: {app}}}}}]\n")
}

fn compiled(text: &str) -> EndpointPolicy {
    let mut repository = Repository::new(Settings::new("default").unwrap());
    repository.upsert_identity(CLIENT, &labels("client"));
    repository.upsert_identity(OTHER, &labels("other"));
    for policy in parse("policies.yaml", text).unwrap().policies {
        repository.upsert(policy);
    }
    let whole = repository.endpoint_policy(&labels("server"), 1000).unwrap();
    let subject = repository.acquire_subject(&labels("server"));
    repository.sync();
    assert_eq!(**repository.compiled(subject).unwrap().0, whole, "kept compiled it is the same");
    whole
}

fn asked(policy: &EndpointPolicy, peer: NumericIdentity) -> Explanation {
    policy.explain(Direction::Ingress, peer.0, 80, 6)
}

/// `allow`, `deny` or `audit`, and the policy that decided.
fn verdict(text: &str, peer: NumericIdentity) -> (&'static str, String) {
    let explanation = asked(&compiled(text), peer);
    let verdict = match (explanation.verdict.is_allowed(), explanation.audited) {
        (true, false) => "allow",
        (false, false) => "deny",
        (_, true) => "audit",
    };
    let names = explanation.deciders().iter().filter_map(|origin| match origin {
        villus_policy::Origin::Rule(rule) => Some(rule.policy.name.to_string()),
        _ => None,
    });
    (verdict, names.collect::<Vec<_>>().join(" "))
}

#[test]
fn allowed_by_an_enforced_rule_else_denied_by_enforced_policies_else_audited() {
    let enforced = policy("enforced", "false", true, &allow("client"));
    let audited = policy("audited", "true", true, &allow("other"));
    let list = policy("list", "false", false, &deny("client"));
    let audited_list = policy("audited-list", "true", false, &deny("client"));
    let is = |text: &str, peer| verdict(text, peer);
    let told = |verdict: &'static str, by: &str| (verdict, by.to_owned());
    // Enforced ones decide alone.
    let both = format!("{enforced}{audited}");
    assert_eq!(is(&both, CLIENT), told("allow", "enforced"));
    assert_eq!(is(&both, OTHER), told("deny", "enforced"), "what an audited policy allows does not count");
    // Audited ones alone deny nothing.
    assert_eq!(is(&audited, OTHER), told("allow", "audited"));
    assert_eq!(is(&audited, CLIENT), told("audit", "audited"));
    // A list of denials without default deny holds beside an audited policy.
    let with_list = format!("{list}{audited}");
    assert_eq!(is(&with_list, CLIENT), told("deny", "list"));
    assert_eq!(is(&with_list, NumericIdentity(999)), told("audit", "audited"));
    assert_eq!(is(&with_list, OTHER), told("allow", "audited"));
    // An audited list denies nothing, and beside enforced policies it has no say.
    assert_eq!(is(&audited_list, CLIENT), told("audit", "audited-list"));
    assert_eq!(is(&audited_list, OTHER), told("allow", ""));
    assert_eq!(is(&format!("{enforced}{audited_list}"), CLIENT), told("allow", "enforced"));
    // Both deny the same: it holds, and both are named.
    assert_eq!(is(&format!("{list}{audited_list}"), CLIENT), told("deny", "audited-list list"));
}

#[test]
fn the_map_says_which_denials_are_audited() {
    let key = PolicyKey::new(CLIENT.0, 0, 0, Direction::Ingress);
    let audited_list = policy("audited-list", "true", false, &deny("client"));
    let policy_of = compiled(&audited_list);
    assert_eq!(policy_of.entry(&key), Some(PolicyEntry::AUDIT));
    assert_eq!(
        (policy_of.deny_identity(), policy_of.enforced, policy_of.audit),
        ([false; 2], [false; 2], [false; 2])
    );
    let list = compiled(&policy("list", "false", false, &deny("client")));
    assert_eq!((list.entry(&key), list.deny_identity()), (Some(PolicyEntry::DENY), [true, false]));
    let audited = compiled(&policy("audited", "true", true, &deny("client")));
    assert_eq!((audited.enforced, audited.audit), ([true, false], [true, false]));
    assert_eq!(EndpointPolicy::of_entries(audited.map_entries()).entry(&key), Some(PolicyEntry::AUDIT));
}

#[test]
fn one_direction_is_audited_and_the_other_is_not() {
    let text = policy("web", "egress", true, &format!("{}  egress: [{{}}]\n", allow("client")));
    let policy = compiled(&text);
    assert_eq!((policy.enforced, policy.audit), ([true, true], [false, true]));
    assert!(!asked(&policy, OTHER).passes());
    assert!(policy.explain(Direction::Egress, OTHER.0, 80, 6).passes());
}

#[test]
fn an_annotation_that_says_nothing_known_is_refused_with_its_place() {
    let error = parse("a.yaml", &policy("web", "maybe", true, &allow("client"))).unwrap_err().to_string();
    assert!(error.contains("metadata.annotations[policy.villus.io/audit]"), "{error}");
    assert!(error.contains("none of true, false, ingress and egress"), "{error}");
    let parsed = parse("a.yaml", &policy("web", "ingress", true, &allow("client"))).unwrap();
    assert_eq!(parsed.policies[0].audit, Audit { ingress: true, egress: false });
}
