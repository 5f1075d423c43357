//! Drafts: how they read, that they are policies, and that they let pass what they were drafted from.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::io::Cursor;

use proptest::prelude::*;
use villus_flows::Direction;
use villus_flows::hubble::FlowReader;
use villus_labels::{Labels, Selector};
use villus_policy::{Settings, parse};
use villus_rollout::{
    Choice, Count, Draft, LearnError, Numbers, Objects, Observation, Observations, Outcome, Peer, PeerKeys,
    Plan, Seen, Side, World, learn, preview, subjects_of,
};

fn labels(text: &str) -> Labels {
    Labels::parse_list(text, "k8s").unwrap()
}

fn read(lines: &str) -> Observations {
    let mut observations = Observations::default();
    let reader = FlowReader::new("test", Cursor::new(lines.as_bytes().to_vec()));
    let report = reader.each(|flow| observations.add_flow(&flow, &|_| None)).unwrap();
    assert_eq!(report.malformed, 0, "{report:?}");
    observations
}

fn choice(subject: &str) -> Choice {
    Choice {
        subject: Selector::parse(subject).unwrap(),
        subject_labels: None,
        name: "web-learned".into(),
        namespace: None,
        directions: vec![Direction::Ingress, Direction::Egress],
        audited_only: false,
        denied_too: false,
        world: World::Addresses,
        keys: PeerKeys::All,
    }
}

const FLOWS: &str = r#"
{"flow":{"time":"2026-01-31T10:00:00.5Z","verdict":"FORWARDED","IP":{"source":"10.0.0.1","destination":"10.0.0.2"},"l4":{"TCP":{"source_port":40000,"destination_port":80,"flags":{"SYN":true}}},"source":{"identity":1001,"labels":["k8s:app=client","k8s:io.kubernetes.pod.namespace=shop"]},"destination":{"identity":1002,"labels":["k8s:app=web","k8s:io.kubernetes.pod.namespace=shop"]},"event_type":{"type":5},"traffic_direction":"INGRESS","is_reply":false}}
{"flow":{"time":"2026-01-31T11:00:00Z","verdict":"AUDIT","IP":{"source":"10.0.0.3","destination":"10.0.0.2"},"l4":{"TCP":{"source_port":40000,"destination_port":80,"flags":{"SYN":true}}},"source":{"identity":1003,"labels":["k8s:app=probe","k8s:io.kubernetes.pod.namespace=ops"]},"destination":{"identity":1002,"labels":["k8s:app=web","k8s:io.kubernetes.pod.namespace=shop"]},"event_type":{"type":5},"traffic_direction":"INGRESS","is_reply":false}}
{"flow":{"time":"2026-01-31T09:00:00Z","verdict":"FORWARDED","IP":{"source":"10.0.0.1","destination":"10.0.0.2"},"l4":{"TCP":{"source_port":40001,"destination_port":80,"flags":{"SYN":true}}},"source":{"identity":1001,"labels":["k8s:app=client","k8s:io.kubernetes.pod.namespace=shop"]},"destination":{"identity":1002,"labels":["k8s:app=web","k8s:io.kubernetes.pod.namespace=shop"]},"event_type":{"type":5},"traffic_direction":"INGRESS","is_reply":false}}
{"flow":{"verdict":"FORWARDED","IP":{"source":"10.0.0.9","destination":"10.0.0.2"},"l4":{"ICMPv4":{"type":8}},"source":{"identity":1,"labels":["reserved:host"]},"destination":{"identity":1002,"labels":["k8s:app=web","k8s:io.kubernetes.pod.namespace=shop"]},"event_type":{"type":4},"traffic_direction":"INGRESS","is_reply":false}}
{"flow":{"verdict":"FORWARDED","IP":{"source":"10.0.0.2","destination":"192.0.2.7"},"l4":{"UDP":{"source_port":40001,"destination_port":53}},"source":{"identity":1002,"labels":["k8s:app=web","k8s:io.kubernetes.pod.namespace=shop"]},"destination":{"identity":2,"labels":["reserved:world"]},"event_type":{"type":4},"traffic_direction":"EGRESS","is_reply":false}}
{"flow":{"verdict":"FORWARDED","IP":{"source":"10.0.0.2","destination":"10.0.0.1"},"l4":{"TCP":{"source_port":80,"destination_port":40000,"flags":{"SYN":true,"ACK":true}}},"source":{"identity":1002,"labels":["k8s:app=web","k8s:io.kubernetes.pod.namespace=shop"]},"destination":{"identity":1001,"labels":["k8s:app=client","k8s:io.kubernetes.pod.namespace=shop"]},"event_type":{"type":4},"traffic_direction":"EGRESS","is_reply":true}}
{"flow":{"verdict":"DROPPED","drop_reason_desc":"POLICY_DENIED","IP":{"source":"10.0.0.4","destination":"10.0.0.2"},"l4":{"TCP":{"source_port":80,"destination_port":22,"flags":{"SYN":true}}},"source":{"identity":1004,"labels":["k8s:app=evil","k8s:io.kubernetes.pod.namespace=shop"]},"destination":{"identity":1002,"labels":["k8s:app=web","k8s:io.kubernetes.pod.namespace=shop"]},"event_type":{"type":1,"sub_type":133},"traffic_direction":"INGRESS"}}
"#;

#[test]
fn a_draft_reads_as_a_person_would_write_it() {
    let observations = read(FLOWS);
    let draft = learn(&observations, &choice("app=web")).unwrap();
    assert_eq!(observations.unused.replies, 1);
    assert_eq!(
        draft.text,
        r#"# Drafted by villus policy learn from 5 flows, first seen 2026-01-31T09:00:00Z, last 2026-01-31T11:00:00Z.
# It allows what was seen and denies the rest: read it before it is imported.
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata:
  name: "web-learned"
  namespace: "shop"
spec:
  endpointSelector:
    matchLabels:
      any:app: "web"
  ingress:
    - fromEndpoints:
        # 2 flows, first seen 2026-01-31T09:00:00Z, last 2026-01-31T10:00:00Z
        - matchLabels:
            k8s:app: "client"
        # 1 flow, seen 2026-01-31T11:00:00Z
        - matchLabels:
            k8s:app: "probe"
            k8s:io.kubernetes.pod.namespace: "ops"
      toPorts:
        - ports:
            - port: "80" # 3 flows, first seen 2026-01-31T09:00:00Z, last 2026-01-31T11:00:00Z
              protocol: TCP
    - fromEntities:
        - host # 1 flow
      icmps:
        - fields:
            - family: IPv4
              type: 8 # 1 flow
  egress:
    - toCIDR:
        - "192.0.2.7/32" # 1 flow
      toPorts:
        - ports:
            - port: "53" # 1 flow
              protocol: UDP
"#
    );
    assert_eq!((draft.name.as_str(), draft.elements), ("shop/web-learned", 3));
}

#[test]
fn an_addition_holds_only_what_audit_let_pass() {
    let choice = Choice { audited_only: true, world: World::Entity, ..choice("app=web") };
    let draft = learn(&read(FLOWS), &choice).unwrap();
    assert!(
        draft.text.contains("app: \"probe\"") && !draft.text.contains("app: \"client\""),
        "{}",
        draft.text
    );
    assert!(
        !draft.text.contains("egress:"),
        "a direction without audited flows is left alone: {}",
        draft.text
    );
}

#[test]
fn what_was_seen_decides_who_is_meant() {
    let observations = read(FLOWS);
    let nobody = learn(&observations, &choice("app=nobody")).unwrap_err();
    assert!(matches!(nobody, LearnError::Nothing { observed: 5, .. }), "{nobody:?}");
    let several = learn(&observations, &choice("")).unwrap_err();
    assert_eq!(several, LearnError::Namespaces(vec!["ops".into(), "shop".into()]));
    let name = Choice { name: "Not A Name".into(), ..choice("app=web") };
    assert!(matches!(learn(&observations, &name), Err(LearnError::Name(_))));
    let denied = Choice { denied_too: true, world: World::Entity, ..choice("app=web") };
    let draft = learn(&observations, &denied).unwrap();
    assert!(draft.text.contains("app: \"evil\"") && draft.text.contains("- world"), "{}", draft.text);
}

#[test]
fn neighbouring_ports_become_a_range() {
    let mut observations = Observations::default();
    let peer = |text| Peer::Identity(labels(text));
    for port in [80, 8000, 8001, 8002, 8005, 8006] {
        let row = Observation {
            source: peer("app=a,io.kubernetes.pod.namespace=n"),
            destination: peer("app=web,io.kubernetes.pod.namespace=n"),
            protocol: 6,
            port,
        };
        let mut seen = Seen::default();
        seen.passed[0].count = 1;
        observations.add(row, &seen);
    }
    let draft = learn(&observations, &choice("app=web")).unwrap();
    let ports: Vec<&str> = draft
        .text
        .lines()
        .map(str::trim)
        .filter(|l| l.contains("port: ") || l.starts_with("endPort"))
        .collect();
    assert_eq!(
        ports,
        [
            "- port: \"80\" # 1 flow",
            "- port: \"8000\" # 3 flows",
            "endPort: 8002",
            "- port: \"8005\" # 1 flow",
            "- port: \"8006\" # 1 flow"
        ]
    );
}

// === properties ===

fn any_labels() -> impl Strategy<Value = Labels> {
    let app = prop_oneof![Just("a"), Just("b"), Just("c-1"), Just("weird/value"), Just("")];
    let source = prop_oneof![Just("k8s"), Just("container"), Just("mine"), Just("unspec")];
    let namespace = prop::option::weighted(0.8, prop_oneof![Just("n1"), Just("n2")]);
    let extra = prop::option::of(prop_oneof![
        Just("k8s:io.cilium.k8s.policy.cluster=c1"),
        Just("k8s:io.cilium.k8s.namespace.labels.team=x"),
        Just("k8s:world=flat"),
        Just("k8s:io.cilium.k8s.policy.serviceaccount=default"),
    ]);
    (app, source, namespace, extra).prop_map(|(app, source, namespace, extra)| {
        let mut texts = vec![format!("{source}:app={app}")];
        texts.extend(namespace.map(|name| format!("k8s:io.kubernetes.pod.namespace={name}")));
        texts.extend(extra.map(str::to_owned));
        Labels::new(texts.iter().map(|text| text.parse().unwrap())).unwrap()
    })
}

fn any_peer() -> impl Strategy<Value = Peer> {
    const RESERVED: [&str; 7] =
        ["host", "remote-node", "health", "init", "unmanaged", "ingress", "kube-apiserver"];
    prop_oneof![
        6 => any_labels().prop_map(Peer::Identity),
        2 => any::<[u8; 2]>().prop_map(|[a, b]| Peer::World([192, 0, a, b].into())),
        1 => any::<u16>().prop_map(|n| Peer::World(std::net::Ipv6Addr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, n]).into())),
        1 => prop::sample::select(&RESERVED[..])
            .prop_map(|name| Peer::Identity(labels(&format!("reserved:{name}")))),
    ]
}

fn any_observation() -> impl Strategy<Value = (Observation, Seen)> {
    let transport = prop_oneof![
        4 => (Just(6_u8), prop_oneof![1_u16..20, Just(0), Just(65535), 8000_u16..8010]),
        2 => (Just(17_u8), 50_u16..60),
        1 => (Just(132_u8), 1_u16..4),
        1 => (prop_oneof![Just(1_u8), Just(58)], 0_u16..256),
        1 => (Just(47_u8), Just(0_u16)),
    ];
    let counts = (0_u64..3, 0_u64..2, 0_u64..2, 0_u64..2);
    (any_peer(), any_peer(), transport, counts).prop_map(
        |(source, destination, (protocol, port), (a, b, c, d))| {
            let mut seen = Seen::default();
            let count = |count| Count { count, first: None, last: None };
            seen.passed = [count(a), count(b)];
            seen.audited[0] = count(c);
            seen.denied[1] = count(d);
            (Observation { source, destination, protocol, port }, seen)
        },
    )
}

fn policies_of(draft: &Draft) -> Objects {
    let parsed = parse("draft.yaml", &draft.text);
    let mut objects = Objects::default();
    objects.put(parsed.unwrap_or_else(|refused| panic!("{refused}\n{}", draft.text)));
    objects
}

proptest! {
    /// A draft is a policy, is the same from run to run and in whatever order flows came, and denies none of the flows that
    /// it was drafted from.
    #[test]
    fn a_draft_denies_nothing_that_it_was_drafted_from(
        rows in prop::collection::vec(any_observation(), 1..24),
        pick in any::<prop::sample::Index>(),
        entity in any::<bool>(),
        by_labels in any::<bool>(),
        keys in prop_oneof![Just(PeerKeys::All), Just(PeerKeys::Only(vec!["app".into()])), Just(PeerKeys::Only(vec!["k8s:nothing".into()]))],
    ) {
        let mut observations = Observations::default();
        let mut backwards = Observations::default();
        rows.iter().for_each(|(row, seen)| observations.add(row.clone(), seen));
        rows.iter().rev().for_each(|(row, seen)| backwards.add(row.clone(), seen));
        let subjects = subjects_of(&observations);
        prop_assume!(!subjects.is_empty());
        let subject = subjects[pick.index(subjects.len())].labels.clone();
        let exact = subject.iter().fold(Selector::everything(), |all, label| all.requiring(label));
        let choice = Choice {
            subject: exact,
            // People cannot write every label in a selector.
            subject_labels: (by_labels || Selector::parse(&subject.to_string()).is_err()).then(|| subject.clone()),
            namespace: subject.namespace().map(str::to_owned),
            world: if entity { World::Entity } else { World::Addresses },
            keys,
            ..choice("")
        };
        let draft = match learn(&observations, &choice) {
            Ok(draft) => draft,
            Err(LearnError::Nothing { .. } | LearnError::Namespaces(_)) => return Ok(()),
            Err(error) => panic!("{error}"),
        };
        prop_assert_eq!(&learn(&backwards, &choice).unwrap().text, &draft.text);
        let mut numbers = Numbers::default();
        for labels in rows.iter().flat_map(|(row, _)| [&row.source, &row.destination]).filter_map(Peer::labels) {
            numbers.of_labels(labels);
        }
        let policies = policies_of(&draft);
        let mut side = Side::new(Settings::new("c1").unwrap(), policies.clone(), &mut numbers, 100_000);
        for (row, seen) in observations.iter() {
            if draft.skipped.iter().any(|skipped| skipped.observation == *row) {
                continue;
            }
            for (own, peer, direction) in [
                (&row.destination, &row.source, Direction::Ingress),
                (&row.source, &row.destination, Direction::Egress),
            ] {
                if own.labels() != Some(&subject) || seen.through(direction).count == 0 {
                    continue;
                }
                let identity = side.identity_of(peer, &numbers).unwrap();
                let judged = side.judge(&subject, direction, identity, row.port, row.protocol).unwrap();
                prop_assert!(judged.verdict.is_allowed(), "{row:?}\n{judged}\n{}", draft.text);
                prop_assert!(side.policy_of(&subject).unwrap().enforced[usize::from(direction == Direction::Egress)]);
            }
        }
        // The preview says the same.
        let plan = Plan {
            settings: Settings::new("c1").unwrap(),
            before: Objects::default(),
            after: policies,
            numbers: Numbers::default(),
            subjects,
            audit: villus_policy::Audit::NONE,
            max_entries: 100_000,
        };
        let told = preview(plan, &observations);
        for change in told.flows.iter().filter(|change| change.after == Outcome::Denied) {
            let skipped = draft.skipped.iter().any(|skipped| skipped.observation == change.flow);
            let seen = observations.iter().find(|(row, _)| **row == change.flow).unwrap().1;
            let direction = if change.direction == "Ingress" { Direction::Ingress } else { Direction::Egress };
            prop_assert!(skipped || seen.through(direction).count == 0 || {
                let (own, _) = match direction {
                    Direction::Ingress => (&change.flow.destination, ()),
                    Direction::Egress => (&change.flow.source, ()),
                };
                // Others that the subject's selector selects as well were not asked for.
                own.labels() != Some(&subject)
            }, "{change:?}\n{}", draft.text);
        }
    }
}
