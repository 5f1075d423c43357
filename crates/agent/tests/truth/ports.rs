//! Ports, ranges and protocols.

use crate::Case;

#[rustfmt::skip]
pub const CASES: &[Case] = &[
    Case {
        name: "one TCP port from everybody",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {}
  ingress:
  - toPorts: [{ports: [{port: "80", protocol: TCP}]}]
"#,
        allowed: |p| !p.to.in_ns("x") || p.port == 80 && p.tcp(),
    },
    Case {
        name: "any protocol",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {}
  ingress:
  - toPorts: [{ports: [{port: "80", protocol: ANY}]}]
"#,
        allowed: |p| !p.to.in_ns("x") || p.port == 80,
    },
    Case {
        name: "a port without a protocol",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {}
  ingress:
  - toPorts: [{ports: [{port: "81"}]}]
"#,
        allowed: |p| !p.to.in_ns("x") || p.port == 81,
    },
    Case {
        name: "all ports of a protocol",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {}
  ingress:
  - toPorts: [{ports: [{port: "0", protocol: UDP}]}]
"#,
        allowed: |p| !p.to.in_ns("x") || p.udp(),
    },
    Case {
        name: "all ports of SCTP",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {}
  ingress:
  - toPorts: [{ports: [{port: "0", protocol: SCTP}]}]
"#,
        allowed: |p| !p.to.in_ns("x") || p.sctp(),
    },
    Case {
        name: "a range",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {}
  ingress:
  - toPorts: [{ports: [{port: "80", endPort: 81, protocol: TCP}]}]
"#,
        allowed: |p| !p.to.in_ns("x") || p.tcp(),
    },
    Case {
        name: "a wide range beside the ports",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {}
  ingress:
  - toPorts: [{ports: [{port: "82", endPort: 65535, protocol: TCP}]}]
"#,
        allowed: |p| !p.to.in_ns("x"),
    },
    Case {
        name: "a wide range that begins with one of the ports",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {}
  ingress:
  - toPorts: [{ports: [{port: "81", endPort: 65535, protocol: ANY}]}]
"#,
        allowed: |p| !p.to.in_ns("x") || p.port == 81,
    },
    Case {
        name: "a range and a port",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {}
  ingress:
  - toPorts: [{ports: [{port: "1", endPort: 80, protocol: UDP}, {port: "81", protocol: TCP}]}]
"#,
        allowed: |p| !p.to.in_ns("x") || p.udp() && p.port == 80 || p.tcp() && p.port == 81,
    },
    Case {
        name: "peers and ports together",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {}
  ingress:
  - fromEndpoints: [{matchLabels: {pod: b}}]
    toPorts: [{ports: [{port: "80", protocol: TCP}]}]
"#,
        allowed: |p| !p.to.in_ns("x") || p.from.is("x/b") && p.tcp() && p.port == 80,
    },
    Case {
        name: "entities and ports together",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {}
  ingress:
  - fromEntities: [cluster]
    toPorts: [{ports: [{port: "80", protocol: UDP}]}]
"#,
        allowed: |p| !p.to.in_ns("x") || p.udp() && p.port == 80,
    },
    Case {
        name: "ICMP is neither",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {}
  ingress:
  - icmps: [{fields: [{type: EchoRequest}, {type: EchoRequest, family: IPv6}]}]
"#,
        allowed: |p| !p.to.in_ns("x"),
    },
    Case {
        name: "egress to a port",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {}
  egress:
  - toPorts: [{ports: [{port: "81", protocol: TCP}]}]
"#,
        allowed: |p| !p.from.in_ns("x") || p.tcp() && p.port == 81,
    },
    Case {
        name: "egress to a range of one peer",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {}
  egress:
  - toEndpoints: [{matchLabels: {io.kubernetes.pod.namespace: z}}]
    toPorts: [{ports: [{port: "64", endPort: 80, protocol: SCTP}]}]
"#,
        allowed: |p| !p.from.in_ns("x") || p.to.in_ns("z") && p.sctp() && p.port == 80,
    },
    Case {
        name: "a port of the pods' own by name",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {}
  ingress:
  - toPorts: [{ports: [{port: http, protocol: TCP}]}]
"#,
        allowed: |p| !p.to.in_ns("x") || p.tcp() && p.port == 80,
    },
    Case {
        name: "a port of the peers by name",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {}
  egress:
  - toEndpoints: [{matchLabels: {io.kubernetes.pod.namespace: y}}]
    toPorts: [{ports: [{port: dns, protocol: UDP}]}]
"#,
        allowed: |p| !p.from.in_ns("x") || p.to.in_ns("y") && p.udp() && p.port == 81,
    },
    Case {
        name: "a name that no pod has",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {}
  ingress:
  - toPorts: [{ports: [{port: metrics, protocol: TCP}]}]
"#,
        allowed: |p| !p.to.in_ns("x"),
    },
    Case {
        name: "a port of Kubernetes' policies by name",
        policy: r#"apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: x}
spec:
  podSelector: {}
  ingress:
  - ports: [{port: dns, protocol: UDP}]
"#,
        allowed: |p| !p.to.in_ns("x") || p.udp() && p.port == 81,
    },
    Case {
        name: "the pods behind a service",
        policy: r#"apiVersion: v1
kind: Service
metadata: {name: web, namespace: y}
spec: {selector: {pod: a}, ports: [{port: 80}]}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {}
  egress:
  - toServices: [{k8sService: {serviceName: web, namespace: y}}]
"#,
        allowed: |p| !p.from.in_ns("x") || p.to.is("y/a"),
    },
];
