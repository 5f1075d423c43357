//! NetworkPolicy of Kubernetes: selectors, emptiness, ports, directions.

use crate::Case;

#[rustfmt::skip]
pub const CASES: &[Case] = &[
    Case {
        name: "all ingress denied",
        policy: r#"apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: x}
spec:
  podSelector: {}
  policyTypes: [Ingress]
"#,
        allowed: |p| !p.to.in_ns("x"),
    },
    Case {
        name: "all ingress allowed",
        policy: r#"apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: x}
spec:
  podSelector: {}
  policyTypes: [Ingress]
  ingress: [{}]
"#,
        allowed: |_| true,
    },
    Case {
        name: "all egress denied",
        policy: r#"apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: x}
spec:
  podSelector: {}
  policyTypes: [Egress]
"#,
        allowed: |p| !p.from.in_ns("x"),
    },
    Case {
        name: "all egress allowed",
        policy: r#"apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: x}
spec:
  podSelector: {}
  policyTypes: [Egress]
  egress: [{}]
"#,
        allowed: |_| true,
    },
    Case {
        name: "both directions denied",
        policy: r#"apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: x}
spec:
  podSelector: {}
  policyTypes: [Ingress, Egress]
"#,
        allowed: |p| !p.to.in_ns("x") && !p.from.in_ns("x"),
    },
    Case {
        name: "no types and no rules deny ingress",
        policy: r#"apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: x}
spec:
  podSelector: {}
"#,
        allowed: |p| !p.to.in_ns("x"),
    },
    Case {
        name: "no types with egress rules deny ingress too",
        policy: r#"apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: x}
spec:
  podSelector: {}
  egress: [{}]
"#,
        allowed: |p| !p.to.in_ns("x"),
    },
    Case {
        name: "an empty list of sources is everybody",
        policy: r#"apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: x}
spec:
  podSelector: {matchLabels: {pod: a}}
  ingress:
  - from: []
    ports: [{port: 80}]
"#,
        allowed: |p| !p.to.is("x/a") || p.port == 80 && p.tcp(),
    },
    Case {
        name: "an empty pod selector is the namespace",
        policy: r#"apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: x}
spec:
  podSelector: {}
  ingress:
  - from: [{podSelector: {}}]
"#,
        allowed: |p| !p.to.in_ns("x") || p.from.in_ns("x"),
    },
    Case {
        name: "pods of the same namespace by label",
        policy: r#"apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: x}
spec:
  podSelector: {}
  ingress:
  - from: [{podSelector: {matchLabels: {pod: b}}}]
"#,
        allowed: |p| !p.to.in_ns("x") || p.from.is("x/b"),
    },
    Case {
        name: "an empty namespace selector is every pod",
        policy: r#"apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: x}
spec:
  podSelector: {}
  ingress:
  - from: [{namespaceSelector: {}}]
"#,
        allowed: |_| true,
    },
    Case {
        name: "a namespace by label",
        policy: r#"apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: x}
spec:
  podSelector: {}
  ingress:
  - from: [{namespaceSelector: {matchLabels: {ns: y}}}]
"#,
        allowed: |p| !p.to.in_ns("x") || p.from.in_ns("y"),
    },
    Case {
        name: "namespace and pod of one peer belong together",
        policy: r#"apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: x}
spec:
  podSelector: {}
  ingress:
  - from:
    - namespaceSelector: {matchLabels: {ns: y}}
      podSelector: {matchLabels: {pod: a}}
"#,
        allowed: |p| !p.to.in_ns("x") || p.from.is("y/a"),
    },
    Case {
        name: "two peers are alternatives",
        policy: r#"apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: x}
spec:
  podSelector: {}
  ingress:
  - from:
    - namespaceSelector: {matchLabels: {ns: y}}
    - podSelector: {matchLabels: {pod: b}}
"#,
        allowed: |p| !p.to.in_ns("x") || p.from.in_ns("y") || p.from.is("x/b"),
    },
    Case {
        name: "namespaces by what they are not",
        policy: r#"apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: x}
spec:
  podSelector: {}
  ingress:
  - from:
    - namespaceSelector: {matchExpressions: [{key: ns, operator: NotIn, values: [x]}]}
"#,
        allowed: |p| !p.to.in_ns("x") || !p.from.in_ns("x"),
    },
    Case {
        name: "several namespaces by one label",
        policy: r#"apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: x}
spec:
  podSelector: {}
  ingress:
  - from: [{namespaceSelector: {matchLabels: {team: blue}}}]
"#,
        allowed: |p| !p.to.in_ns("x") || p.from.in_ns("y") || p.from.in_ns("z"),
    },
    Case {
        name: "pods by one of several values",
        policy: r#"apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: x}
spec:
  podSelector: {matchExpressions: [{key: pod, operator: In, values: [b, c]}]}
  ingress:
  - from: [{podSelector: {matchLabels: {pod: a}}}]
"#,
        allowed: |p| !(p.to.is("x/b") || p.to.is("x/c")) || p.from.is("x/a"),
    },
    Case {
        name: "pods that have a label",
        policy: r#"apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: x}
spec:
  podSelector: {matchExpressions: [{key: pod, operator: Exists}]}
  policyTypes: [Ingress]
"#,
        allowed: |p| !p.to.in_ns("x"),
    },
    Case {
        name: "pods that lack a label",
        policy: r#"apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: x}
spec:
  podSelector: {matchExpressions: [{key: pod, operator: DoesNotExist}]}
  policyTypes: [Ingress]
"#,
        allowed: |_| true,
    },
    Case {
        name: "addresses are not pods",
        policy: r#"apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: x}
spec:
  podSelector: {}
  ingress:
  - from: [{ipBlock: {cidr: 10.0.0.0/8}}]
"#,
        allowed: |p| !p.to.in_ns("x"),
    },
    Case {
        name: "a port is TCP unless it says so",
        policy: r#"apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: x}
spec:
  podSelector: {}
  ingress:
  - ports: [{port: 80}]
"#,
        allowed: |p| !p.to.in_ns("x") || p.port == 80 && p.tcp(),
    },
    Case {
        name: "a UDP port",
        policy: r#"apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: x}
spec:
  podSelector: {}
  ingress:
  - ports: [{port: 80, protocol: UDP}]
"#,
        allowed: |p| !p.to.in_ns("x") || p.port == 80 && p.udp(),
    },
    Case {
        name: "an SCTP port",
        policy: r#"apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: x}
spec:
  podSelector: {}
  ingress:
  - ports: [{port: 81, protocol: SCTP}]
"#,
        allowed: |p| !p.to.in_ns("x") || p.port == 81 && p.sctp(),
    },
    Case {
        name: "several ports",
        policy: r#"apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: x}
spec:
  podSelector: {}
  ingress:
  - ports: [{port: 80}, {port: 81, protocol: UDP}]
"#,
        allowed: |p| !p.to.in_ns("x") || p.port == 80 && p.tcp() || p.port == 81 && p.udp(),
    },
    Case {
        name: "a range of ports",
        policy: r#"apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: x}
spec:
  podSelector: {}
  ingress:
  - ports: [{port: 80, endPort: 90}]
"#,
        allowed: |p| !p.to.in_ns("x") || p.tcp(),
    },
    Case {
        name: "a range of ports beside",
        policy: r#"apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: x}
spec:
  podSelector: {}
  ingress:
  - ports: [{port: 81, endPort: 90, protocol: UDP}]
"#,
        allowed: |p| !p.to.in_ns("x") || p.udp() && p.port == 81,
    },
    Case {
        name: "all ports of a protocol",
        policy: r#"apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: x}
spec:
  podSelector: {}
  ingress:
  - ports: [{protocol: UDP}]
"#,
        allowed: |p| !p.to.in_ns("x") || p.udp(),
    },
    Case {
        name: "each rule has its own peers and ports",
        policy: r#"apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: x}
spec:
  podSelector: {}
  ingress:
  - from: [{podSelector: {matchLabels: {pod: b}}}]
    ports: [{port: 80}]
  - from: [{namespaceSelector: {matchLabels: {ns: y}}}]
    ports: [{port: 81}]
"#,
        allowed: |p| !p.to.in_ns("x") || p.tcp() && (p.port == 80 && p.from.is("x/b") || p.port == 81 && p.from.in_ns("y")),
    },
    Case {
        name: "policies add up",
        policy: r#"apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny, namespace: x}
spec:
  podSelector: {}
  policyTypes: [Ingress]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: allow, namespace: x}
spec:
  podSelector: {}
  ingress:
  - from: [{namespaceSelector: {matchLabels: {ns: y}}}]
"#,
        allowed: |p| !p.to.in_ns("x") || p.from.in_ns("y"),
    },
    Case {
        name: "egress to a namespace on a port",
        policy: r#"apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: x}
spec:
  podSelector: {}
  policyTypes: [Egress]
  egress:
  - to: [{namespaceSelector: {matchLabels: {ns: y}}}]
    ports: [{port: 80}]
"#,
        allowed: |p| !p.from.in_ns("x") || p.to.in_ns("y") && p.port == 80 && p.tcp(),
    },
    Case {
        name: "egress to pods of the same namespace",
        policy: r#"apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: x}
spec:
  podSelector: {}
  policyTypes: [Egress]
  egress:
  - to: [{podSelector: {matchLabels: {pod: c}}}]
"#,
        allowed: |p| !p.from.in_ns("x") || p.to.is("x/c"),
    },
    Case {
        name: "both sides must agree",
        policy: r#"apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: out, namespace: x}
spec:
  podSelector: {matchLabels: {pod: a}}
  policyTypes: [Egress]
  egress:
  - to: [{namespaceSelector: {matchLabels: {ns: y}}}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: in, namespace: y}
spec:
  podSelector: {matchLabels: {pod: b}}
  policyTypes: [Ingress]
  ingress:
  - from: [{podSelector: {}}]
"#,
        allowed: |p| (!p.from.is("x/a") || p.to.in_ns("y")) && (!p.to.is("y/b") || p.from.in_ns("y")),
    },
];
