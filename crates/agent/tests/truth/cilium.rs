//! CiliumNetworkPolicy: whom rules speak about, and what emptiness means.

use crate::Case;

#[rustfmt::skip]
pub const CASES: &[Case] = &[
    Case {
        name: "an empty element denies",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {}
  ingress: [{}]
"#,
        allowed: |p| !p.to.in_ns("x"),
    },
    Case {
        name: "an empty egress element denies",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {}
  egress: [{}]
"#,
        allowed: |p| !p.from.in_ns("x"),
    },
    Case {
        name: "one empty selector is the namespace",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {}
  ingress:
  - fromEndpoints: [{}]
"#,
        allowed: |p| !p.to.in_ns("x") || p.from.in_ns("x"),
    },
    Case {
        name: "an empty list of endpoints is nobody",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {}
  ingress:
  - fromEndpoints: []
    toPorts: [{ports: [{port: "80", protocol: TCP}]}]
"#,
        allowed: |p| !p.to.in_ns("x"),
    },
    Case {
        name: "a label of the same namespace",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {matchLabels: {pod: a}}
  ingress:
  - fromEndpoints: [{matchLabels: {pod: b}}]
"#,
        allowed: |p| !p.to.is("x/a") || p.from.is("x/b"),
    },
    Case {
        name: "another namespace by name",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {}
  ingress:
  - fromEndpoints: [{matchLabels: {k8s:io.kubernetes.pod.namespace: y}}]
"#,
        allowed: |p| !p.to.in_ns("x") || p.from.in_ns("y"),
    },
    Case {
        name: "a pod of another namespace",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {}
  ingress:
  - fromEndpoints: [{matchLabels: {io.kubernetes.pod.namespace: y, pod: c}}]
"#,
        allowed: |p| !p.to.in_ns("x") || p.from.is("y/c"),
    },
    Case {
        name: "namespaces by their labels",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {}
  ingress:
  - fromEndpoints: [{matchLabels: {k8s:io.cilium.k8s.namespace.labels.team: blue}}]
"#,
        allowed: |p| !p.to.in_ns("x") || !p.from.in_ns("x"),
    },
    Case {
        name: "expressions",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {matchExpressions: [{key: pod, operator: NotIn, values: [a]}]}
  ingress:
  - fromEndpoints: [{matchExpressions: [{key: pod, operator: In, values: [a, b]}]}]
"#,
        allowed: |p| !p.to.in_ns("x") || p.to.is("x/a") || p.from.is("x/a") || p.from.is("x/b"),
    },
    Case {
        name: "a service account",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {}
  ingress:
  - fromEndpoints: [{matchLabels: {io.cilium.k8s.policy.serviceaccount: sa-c}}]
"#,
        allowed: |p| !p.to.in_ns("x") || p.from.is("x/c"),
    },
    Case {
        name: "any source of labels",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {matchLabels: {"any:pod": a}}
  ingress:
  - fromEndpoints: [{matchLabels: {"k8s:pod": b}}]
"#,
        allowed: |p| !p.to.is("x/a") || p.from.is("x/b"),
    },
    Case {
        name: "a label of another source is another label",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {}
  ingress:
  - fromEndpoints: [{matchLabels: {"container:pod": b}}]
"#,
        allowed: |p| !p.to.in_ns("x"),
    },
    Case {
        name: "everybody",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {}
  ingress:
  - fromEntities: [all]
"#,
        allowed: |_| true,
    },
    Case {
        name: "the cluster",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {}
  ingress:
  - fromEntities: [cluster]
"#,
        allowed: |_| true,
    },
    Case {
        name: "the world is not the pods",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {}
  ingress:
  - fromEntities: [world]
"#,
        allowed: |p| !p.to.in_ns("x"),
    },
    Case {
        name: "the host is not the pods",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {}
  ingress:
  - fromEntities: [host]
"#,
        allowed: |p| !p.to.in_ns("x"),
    },
    Case {
        name: "nobody",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {}
  ingress:
  - fromEntities: [none]
"#,
        allowed: |p| !p.to.in_ns("x"),
    },
    Case {
        name: "all addresses are not the pods",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {}
  ingress:
  - fromCIDR: [0.0.0.0/0, "::/0"]
"#,
        allowed: |p| !p.to.in_ns("x"),
    },
    Case {
        name: "an address set is not the pods",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {}
  ingress:
  - fromCIDRSet: [{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}]
"#,
        allowed: |p| !p.to.in_ns("x"),
    },
    Case {
        name: "egress to a label",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {matchLabels: {pod: a}}
  egress:
  - toEndpoints: [{matchLabels: {pod: b}}]
"#,
        allowed: |p| !p.from.is("x/a") || p.to.is("x/b"),
    },
    Case {
        name: "egress to entities and endpoints",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {matchLabels: {pod: a}}
  egress:
  - toEndpoints: [{matchLabels: {pod: b}}]
  - toEntities: [host]
"#,
        allowed: |p| !p.from.is("x/a") || p.to.is("x/b"),
    },
    Case {
        name: "what is required is required of every source",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {}
  ingress:
  - fromRequires: [{matchLabels: {pod: a}}]
    fromEndpoints: [{}]
"#,
        allowed: |p| !p.to.in_ns("x") || p.from.is("x/a"),
    },
    Case {
        name: "several rules of one policy",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
specs:
- endpointSelector: {matchLabels: {pod: a}}
  ingress:
  - fromEndpoints: [{matchLabels: {pod: b}}]
- endpointSelector: {matchLabels: {pod: b}}
  ingress:
  - fromEndpoints: [{matchLabels: {pod: c}}]
"#,
        allowed: |p| (!p.to.is("x/a") || p.from.is("x/b")) && (!p.to.is("x/b") || p.from.is("x/c")),
    },
    Case {
        name: "a rule that does not switch default deny on",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {}
  enableDefaultDeny: {ingress: false}
  ingress:
  - fromEndpoints: [{matchLabels: {pod: b}}]
"#,
        allowed: |_| true,
    },
    Case {
        name: "default deny without a rule that allows",
        policy: r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: x}
spec:
  endpointSelector: {}
  enableDefaultDeny: {ingress: true, egress: true}
  egress:
  - toEndpoints: [{}]
"#,
        allowed: |p| !p.to.in_ns("x") && (!p.from.in_ns("x") || p.to.in_ns("x")),
    },
];
