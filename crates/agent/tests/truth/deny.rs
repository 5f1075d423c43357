//! Sections that deny, and who wins.

use crate::Case;

#[rustfmt::skip]
pub const CASES: &[Case] = &[
    Case {
        name: "a deny beats the allow of everybody",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {}
  ingress:
  - fromEntities: [all]
  ingressDeny:
  - fromEndpoints: [{matchLabels: {pod: b}}]
"#,
        allowed: |p| !p.to.in_ns("x") || !p.from.is("x/b"),
    },
    Case {
        name: "a denied port",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {}
  ingress:
  - fromEntities: [all]
  ingressDeny:
  - toPorts: [{ports: [{port: "80", protocol: TCP}]}]
"#,
        allowed: |p| !p.to.in_ns("x") || !(p.tcp() && p.port == 80),
    },
    Case {
        name: "a denied range",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {}
  ingress:
  - fromEntities: [all]
  ingressDeny:
  - toPorts: [{ports: [{port: "1", endPort: 80, protocol: ANY}]}]
"#,
        allowed: |p| !p.to.in_ns("x") || p.port == 81,
    },
    Case {
        name: "a wide deny beats a narrow allow",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {}
  ingress:
  - fromEndpoints: [{matchLabels: {pod: b}}]
    toPorts: [{ports: [{port: "80", protocol: TCP}]}]
  ingressDeny:
  - fromEndpoints: [{}]
"#,
        allowed: |p| !p.to.in_ns("x"),
    },
    Case {
        name: "a deny of one port of one peer",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {}
  ingress:
  - fromEndpoints: [{}]
  ingressDeny:
  - fromEndpoints: [{matchLabels: {pod: c}}]
    toPorts: [{ports: [{port: "81", protocol: UDP}]}]
"#,
        allowed: |p| !p.to.in_ns("x") || p.from.in_ns("x") && !(p.from.is("x/c") && p.udp() && p.port == 81),
    },
    Case {
        name: "a deny alone switches default deny on",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {}
  ingressDeny:
  - fromEndpoints: [{matchLabels: {pod: b}}]
"#,
        allowed: |p| !p.to.in_ns("x"),
    },
    Case {
        name: "a deny alone without default deny",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {}
  enableDefaultDeny: {ingress: false}
  ingressDeny:
  - fromEndpoints: [{matchLabels: {pod: b}}]
"#,
        allowed: |p| !p.to.in_ns("x") || !p.from.is("x/b"),
    },
    Case {
        name: "egress denied to a namespace",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {}
  egress:
  - toEntities: [all]
  egressDeny:
  - toEndpoints: [{matchLabels: {io.kubernetes.pod.namespace: y}}]
"#,
        allowed: |p| !p.from.in_ns("x") || !p.to.in_ns("y"),
    },
    Case {
        name: "egress denied on a port",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {}
  egress:
  - toEntities: [all]
  egressDeny:
  - toPorts: [{ports: [{port: "81", protocol: SCTP}]}]
"#,
        allowed: |p| !p.from.in_ns("x") || !(p.sctp() && p.port == 81),
    },
    Case {
        name: "a deny of one policy beats the allow of another kind",
        policy: r#"apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: k, namespace: x}
spec:
  podSelector: {}
  ingress: [{}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: c, namespace: x}
spec:
  endpointSelector: {matchLabels: {pod: a}}
  ingressDeny:
  - fromEndpoints: [{matchLabels: {io.kubernetes.pod.namespace: z}}]
"#,
        allowed: |p| !p.to.is("x/a") || !p.from.in_ns("z"),
    },
    Case {
        name: "everybody denied",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {matchLabels: {pod: a}}
  ingress:
  - fromEntities: [all]
  ingressDeny:
  - fromEntities: [all]
"#,
        allowed: |p| !p.to.is("x/a"),
    },
    Case {
        name: "the world denied leaves the pods",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {}
  ingress:
  - fromEntities: [all]
  ingressDeny:
  - fromEntities: [world]
"#,
        allowed: |_| true,
    },
];
