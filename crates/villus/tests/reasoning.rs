//! What policies of files make of flows: without an agent, without root.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::villus;

const POLICIES: &str = "\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: db}
spec:
  endpointSelector: {matchLabels: {app: db}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: web}}]
    toPorts: [{ports: [{port: \"5432\", protocol: TCP}]}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata:
  name: web
  annotations: {policy.villus.io/audit: \"true\"}
spec:
  endpointSelector: {matchLabels: {app: web}}
  egress:
  - toEndpoints: [{matchLabels: {app: cache}}]
";

const IDENTITIES: &str = r#"[
  {"id": 300, "labels": ["k8s:app=db", "k8s:io.kubernetes.pod.namespace=default"]},
  {"id": 301, "labels": ["k8s:app=web", "k8s:io.kubernetes.pod.namespace=default"]},
  {"id": 302, "labels": ["k8s:app=cron", "k8s:io.kubernetes.pod.namespace=default"]}
]"#;

struct Files {
    _dir: tempfile::TempDir,
    policies: String,
    identities: String,
}

fn files() -> Files {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (policies, identities) = (write("policies.yaml", POLICIES), write("identities.json", IDENTITIES));
    Files { _dir: dir, policies, identities }
}

#[test]
fn a_trace_says_rule_by_rule_what_becomes_of_a_flow() {
    let files = files();
    let trace = |src: &str, dst: &str, port: &str| {
        villus(&[
            "policy",
            "trace",
            "--src",
            src,
            "--dst",
            dst,
            "--dport",
            port,
            "--policies",
            &files.policies,
        ])
    };
    let allowed = trace("app=web", "app=db", "5432").ok();
    let file = files.policies.clone();
    assert_eq!(
        allowed.replace(&file, "FILE"),
        "\
----------------------------------------------------------------
Tracing From: [k8s:app=web k8s:io.kubernetes.pod.namespace=default] => To: [k8s:app=db k8s:io.kubernetes.pod.namespace=default] Ports: [5432/TCP]

Resolving ingress policy for [k8s:app=db k8s:io.kubernetes.pod.namespace=default]
* Rule {\"matchLabels\":{\"any:app\":\"db\",\"k8s:io.kubernetes.pod.namespace\":\"default\"}}: selected
    CiliumNetworkPolicy default/db spec (FILE:5)
    Allows from labels {\"matchLabels\":{\"any:app\":\"web\",\"k8s:io.kubernetes.pod.namespace\":\"default\"}}
      Found all required labels
      Allows the port (from CiliumNetworkPolicy default/db spec.ingress[0] (FILE:7))
1/2 rules selected
Found allow rule
Ingress verdict: allowed

Resolving egress policy for [k8s:app=web k8s:io.kubernetes.pod.namespace=default]
* Rule {\"matchLabels\":{\"any:app\":\"web\",\"k8s:io.kubernetes.pod.namespace\":\"default\"}}: selected
    CiliumNetworkPolicy default/web spec (FILE:16), audited
    Allows to labels {\"matchLabels\":{\"any:app\":\"cache\",\"k8s:io.kubernetes.pod.namespace\":\"default\"}}
      No label match for [k8s:app=db k8s:io.kubernetes.pod.namespace=default]
1/2 rules selected
Found no allow rule
Nearest: CiliumNetworkPolicy default/web spec.egress[0] (FILE:18) asks for any:app=cache
Egress verdict: allowed (audit)

Final verdict: ALLOWED
"
    );
    let denied = trace("app=cron", "app=db", "5432");
    let text = denied.out.clone();
    assert_eq!(denied.code, 1, "{text}");
    assert!(text.contains("asks for any:app=web\nIngress verdict: denied"), "{text}");
    assert!(text.contains("Final verdict: DENIED"), "{text}");
    let port = trace("app=web", "app=db", "80").out;
    assert!(port.contains("spec.ingress[0]") && port.contains("allows 5432/TCP"), "{port}");
}

#[test]
fn options_change_what_policies_mean() {
    let files = files();
    let dir = tempfile::tempdir().unwrap();
    let who = || {
        let scene = ["--policies", &files.policies, "--identities", &files.identities];
        let config = ["--config-dir", dir.path().to_str().unwrap()];
        villus(&[&["policy", "who-can", "app=cron", "80"][..], &scene, &config].concat()).ok()
    };
    assert!(who().contains("k8s:app=db"), "nobody selects it");
    std::fs::write(dir.path().join("enable-policy"), "always").unwrap();
    assert_eq!(who(), "nobody\n");
    std::fs::write(dir.path().join("enable-policy"), "sometimes").unwrap();
    let scene = ["--policies", &files.policies, "--identities", &files.identities];
    let config = ["--config-dir", dir.path().to_str().unwrap()];
    let said = villus(&[&["policy", "who-can", "app=cron", "80"][..], &scene, &config].concat()).fails(1);
    assert!(said.contains("enable-policy"), "{said}");
}

#[test]
fn references_are_looked_for_in_all_files_that_are_given() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let policy = write(
        "policy.yaml",
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: web}\nspec:\n  \
         endpointSelector: {}\n  egress:\n  - toCIDRSet: [{cidrGroupRef: friends}]\n  \
         - toServices: [{k8sService: {serviceName: api, namespace: default}}]\n    \
         toPorts: [{ports: [{port: http, protocol: TCP}]}]\n",
    );
    let alone = villus(&["policy", "validate", &policy]).ok();
    assert!(
        alone.contains("spec.egress[0] names CIDR group friends, which none of these files has"),
        "{alone}"
    );
    assert!(alone.contains("spec.egress[1] names service default/api"), "{alone}");
    assert!(!alone.contains("port http"), "workloads have ports, not files: {alone}");
    let groups = write(
        "groups.yaml",
        "apiVersion: cilium.io/v2\nkind: CiliumCIDRGroup\nmetadata: {name: friends}\n\
         spec: {externalCIDRs: [198.51.100.0/24]}\n---\napiVersion: v1\nkind: Service\n\
         metadata: {name: api}\nspec: {selector: {app: api}}\n",
    );
    let all = villus(&["policy", "validate", &policy, &groups]).ok();
    assert!(!all.contains("none of these files"), "{all}");
}

#[test]
fn owners_see_who_can_reach_whom() {
    let files = files();
    let scene = ["--policies", &files.policies, "--identities", &files.identities];
    let ask = |words: &[&str]| villus(&[&["policy"], words, &scene].concat()).ok();
    let who = ask(&["who-can", "app=db", "5432"]);
    assert!(who.contains("301") && who.contains("5432/tcp (audit)") && !who.contains("302"), "{who}");
    let reach = ask(&["can-reach", "app=cron"]);
    assert!(reach.contains("301") && !reach.contains("k8s:app=db"), "{reach}");
    let json = ask(&["can-reach", "301", "-o", "json"]);
    let rows: serde_json::Value = serde_json::from_str(&json).unwrap();
    let db = rows.as_array().unwrap().iter().find(|row| row["identity"] == 300).unwrap();
    assert_eq!(db["ports"], serde_json::json!([{"ports": "5432/TCP", "audited": true}]));
    let nobody = villus(&[&["policy", "who-can", "app=nobody", "80"][..], &scene].concat());
    assert!(nobody.fails(1).contains("nobody known is"));
}
