//! Objects of Kubernetes: what agents may read, and how many of their requests the API server serves at once.

use serde_json::{Value, json};

use crate::AGENTS;

/// Shares of the API server's concurrency that all agents together have.
const SHARES: u32 = 30;

/// A `ClusterRole` and its binding for the group of agents, and a `PriorityLevelConfiguration` with a `FlowSchema` that tells
/// agents apart by user: so one agent's requests queue behind its own, not behind everybody's, and all of them together never
/// crowd out the control plane.
#[must_use]
pub fn objects() -> Vec<Value> {
    let rule = |groups: &[&str], resources: &[&str], verbs: &[&str]| json!({"apiGroups": groups, "resources": resources, "verbs": verbs});
    let look = ["get", "list", "watch"];
    let group = json!({"kind": "Group", "name": AGENTS, "apiGroup": "rbac.authorization.k8s.io"});
    vec![
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": {"name": AGENTS},
            "rules": [
                rule(&[""], &["nodes", "namespaces", "pods", "services", "endpoints"], &look),
                rule(&["discovery.k8s.io"], &["endpointslices"], &look),
                rule(&["networking.k8s.io"], &["networkpolicies"], &look),
                rule(
                    &["cilium.io"],
                    &["ciliumnetworkpolicies", "ciliumclusterwidenetworkpolicies", "ciliumcidrgroups"],
                    &look,
                ),
            ],
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": AGENTS},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": AGENTS},
            "subjects": [group],
        }),
        json!({
            "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "PriorityLevelConfiguration",
            "metadata": {"name": "villus-agents"},
            "spec": {"type": "Limited", "limited": {
                "nominalConcurrencyShares": SHARES,
                "limitResponse": {"type": "Queue", "queuing": {"queues": 128, "handSize": 6, "queueLengthLimit": 100}},
            }},
        }),
        json!({
            "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema",
            "metadata": {"name": "villus-agents"},
            "spec": {
                "priorityLevelConfiguration": {"name": "villus-agents"},
                "matchingPrecedence": 1000,
                "distinguisherMethod": {"type": "ByUser"},
                "rules": [{
                    "subjects": [{"kind": "Group", "group": {"name": AGENTS}}],
                    "resourceRules": [{
                        "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"], "clusterScope": true,
                    }],
                    "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
                }],
            },
        }),
    ]
}
