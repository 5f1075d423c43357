//! CiliumClusterwideNetworkPolicy: what is selected without a namespace.

use crate::Case;

#[rustfmt::skip]
pub const CASES: &[Case] = &[
    Case {
        name: "one empty selector is every pod",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: p}
spec:
  endpointSelector: {}
  ingress:
  - fromEndpoints: [{}]
"#,
        allowed: |_| true,
    },
    Case {
        name: "default deny for all",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: p}
spec:
  endpointSelector: {}
  ingress: [{}]
"#,
        allowed: |_| false,
    },
    Case {
        name: "a namespace by its name",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: p}
spec:
  endpointSelector: {matchLabels: {k8s:io.kubernetes.pod.namespace: y}}
  ingress:
  - fromEndpoints: [{matchLabels: {k8s:io.kubernetes.pod.namespace: x}}]
"#,
        allowed: |p| !p.to.in_ns("y") || p.from.in_ns("x"),
    },
    Case {
        name: "namespaces by their labels",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: p}
spec:
  endpointSelector: {matchLabels: {k8s:io.cilium.k8s.namespace.labels.team: blue}}
  ingress:
  - fromEndpoints: [{matchLabels: {k8s:io.cilium.k8s.namespace.labels.team: blue}}]
"#,
        allowed: |p| p.to.in_ns("x") || !p.from.in_ns("x"),
    },
    Case {
        name: "one pod name in all namespaces",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: p}
spec:
  endpointSelector: {matchLabels: {pod: a}}
  ingress:
  - fromEndpoints: [{matchLabels: {pod: b}}]
"#,
        allowed: |p| p.to.name != "a" || p.from.name == "b",
    },
    Case {
        name: "all but one namespace",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: p}
spec:
  endpointSelector: {matchExpressions: [{key: io.kubernetes.pod.namespace, operator: NotIn, values: [x]}]}
  egress:
  - toEndpoints: [{matchLabels: {io.kubernetes.pod.namespace: x}}]
"#,
        allowed: |p| p.from.in_ns("x") || p.to.in_ns("x"),
    },
    Case {
        name: "a denial for the whole cluster",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: p}
spec:
  endpointSelector: {}
  enableDefaultDeny: {ingress: false}
  ingressDeny:
  - toPorts: [{ports: [{port: "81", protocol: TCP}]}]
"#,
        allowed: |p| !(p.tcp() && p.port == 81),
    },
    Case {
        name: "the cluster's denial beats the namespace's allow",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: cluster}
spec:
  endpointSelector: {}
  enableDefaultDeny: {ingress: false}
  ingressDeny:
  - fromEndpoints: [{matchLabels: {pod: c}}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: own, namespace: x}
spec:
  endpointSelector: {}
  ingress:
  - fromEntities: [all]
"#,
        allowed: |p| p.from.name != "c",
    },
    Case {
        name: "each namespace by itself",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: x}
spec:
  endpointSelector: {matchLabels: {io.kubernetes.pod.namespace: x}}
  ingress:
  - fromEndpoints: [{matchLabels: {io.kubernetes.pod.namespace: x}}]
---
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: y}
spec:
  endpointSelector: {matchLabels: {io.kubernetes.pod.namespace: y}}
  ingress:
  - fromEndpoints: [{matchLabels: {io.kubernetes.pod.namespace: y}}]
"#,
        allowed: |p| p.to.in_ns("z") || p.from.namespace == p.to.namespace,
    },
];
