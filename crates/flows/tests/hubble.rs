//! Flows as lines: what is written, what is read, and how much of the disk is used.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::{collections::BTreeMap, fs, io::Cursor};

use common::{drop_of, flow, syn, verdict, words};
use jiff::Timestamp;
use proptest::prelude::*;
use villus_abi::{Event, event as abi};
use villus_flows::hubble::{
    ExportFile, Flow, FlowReader, Limits, Origin, ReadReport, Verdict, Workload, Workloads, open_flows,
    write_line, write_lost,
};
use villus_flows::{Direction, FlowEvent, LossSource, PolicyName, Reason};
use villus_labels::Labels;

#[derive(Default)]
struct Known {
    labels: BTreeMap<u32, Labels>,
    workloads: BTreeMap<u16, Workload>,
}

impl Workloads for Known {
    fn labels(&self, identity: u32) -> Option<Labels> {
        self.labels.get(&identity).cloned()
    }

    fn workload(&self, endpoint: u16) -> Option<&Workload> {
        self.workloads.get(&endpoint)
    }
}

fn known() -> Known {
    let labels = |text| Labels::parse_list(text, "k8s").unwrap();
    Known {
        labels: BTreeMap::from([
            (1001, labels("app=web,io.kubernetes.pod.namespace=shop")),
            (1002, labels("reserved:world")),
        ]),
        workloads: BTreeMap::from([(45, Workload { pod_name: "web-1".into() })]),
    }
}

fn origin() -> Origin {
    let boot = "2026-01-31T10:00:00Z".parse().unwrap();
    Origin { node_name: "c1/node1".into(), cluster: "c1".into(), boot }
}

fn line(event: Event) -> String {
    let mut out = Vec::new();
    write_line(&mut out, &flow(event), &origin(), &known());
    String::from_utf8(out).unwrap()
}

fn read(text: impl AsRef<[u8]>) -> (Vec<Flow>, ReadReport) {
    let mut flows = Vec::new();
    let reader = FlowReader::new("flows.json", Cursor::new(text.as_ref().to_vec()));
    let report = reader.each(|flow| flows.push(flow)).unwrap();
    (flows, report)
}

#[test]
fn an_event_has_the_line_of_the_exporter() {
    assert_eq!(
        line(Event { state: abi::STATE_NEW, ..syn() }),
        concat!(
            r#"{"flow":{"time":"2026-01-31T10:00:01.5Z","verdict":"FORWARDED","#,
            r#""IP":{"source":"10.0.0.1","destination":"10.0.0.2","ipVersion":"IPv4"},"#,
            r#""l4":{"TCP":{"source_port":40000,"destination_port":80,"flags":{"SYN":true}}},"#,
            r#""source":{"ID":45,"identity":1001,"cluster_name":"c1","namespace":"shop","#,
            r#""labels":["k8s:app=web","k8s:io.kubernetes.pod.namespace=shop"],"pod_name":"web-1"},"#,
            r#""destination":{"ID":123,"identity":1002,"cluster_name":"c1","labels":["reserved:world"]},"#,
            r#""Type":"L3_L4","node_name":"c1/node1","event_type":{"type":4},"traffic_direction":"INGRESS","#,
            r#""trace_observation_point":"TO_ENDPOINT","trace_reason":"NEW","is_reply":false,"#,
            r#""interface":{"index":7},"Summary":"TCP Flags: SYN"},"#,
            r#""node_name":"c1/node1","time":"2026-01-31T10:00:01.5Z"}"#,
            "\n"
        )
    );
    let dropped = line(Event { direction: 1, ..drop_of(133) });
    for part in [
        r#""verdict":"DROPPED","drop_reason":133"#,
        r#""event_type":{"type":1,"sub_type":133}"#,
        r#""traffic_direction":"EGRESS""#,
        r#""drop_reason_desc":"POLICY_DENIED""#,
    ] {
        assert!(dropped.contains(part), "{part}: {dropped}");
    }
    let judged = line(verdict(0, abi::matched::L3_L4));
    assert!(judged.contains(r#""event_type":{"type":5}"#) && judged.contains(r#""policy_match_type":2"#));
}

#[test]
fn the_policies_that_decided_are_named_as_hubble_names_them() {
    let names = |event: Event, name: &str| {
        let policy =
            PolicyName { kind: "CiliumNetworkPolicy".into(), namespace: "shop".into(), name: name.into() };
        let mut out = Vec::new();
        let event = FlowEvent { policies: Some([policy].into()), ..flow(event) };
        write_line(&mut out, &event, &origin(), &known());
        let line: serde_json::Value = serde_json::from_slice(&out).unwrap();
        let by = ["ingress_allowed_by", "egress_allowed_by", "ingress_denied_by", "egress_denied_by"];
        by.map(|field| line["flow"][field][0]["name"].as_str().unwrap_or_default().to_owned())
    };
    let audited = Event { flags: syn().flags | abi::FLAG_AUDITED, ..verdict(-133, 0) };
    assert_eq!(names(verdict(0, abi::matched::L3_L4), "web"), ["web", "", "", ""]);
    assert_eq!(names(Event { direction: 1, ..verdict(0, abi::matched::L3_L4) }, "web"), ["", "web", "", ""]);
    assert_eq!(names(drop_of(181), "web"), ["", "", "web", ""]);
    assert_eq!(names(Event { direction: 1, ..audited }, "web"), ["", "", "", "web"]);
}

#[test]
fn what_is_written_is_read_again() {
    let icmp6 = Event {
        flags: abi::FLAG_V6 | abi::FLAG_ADDRS,
        src: words("fd00::1"),
        dst: words("fd00::2"),
        proto: 58,
        icmp_type: 128,
        ..verdict(-133, 0)
    };
    let audited = Event { flags: syn().flags | abi::FLAG_AUDITED, ..verdict(-133, 0) };
    let lines = [syn(), drop_of(181), icmp6, audited].map(line).concat();
    let (flows, report) = read(lines);
    assert_eq!((report.flows, report.malformed), (4, 0));
    let [forwarded, dropped, icmp, audited] = flows.as_slice() else { panic!("{flows:?}") };
    assert_eq!(forwarded.transport(), Some((6, 80)));
    assert_eq!(forwarded.time, Some("2026-01-31T10:00:01.5Z".parse().unwrap()));
    assert_eq!((forwarded.source.id, forwarded.source.pod_name.as_str()), (45, "web-1"));
    assert_eq!(forwarded.source.labels.namespace(), Some("shop"));
    assert_eq!((forwarded.direction(), forwarded.is_opening()), (Some(Direction::Ingress), Some(true)));
    assert_eq!((dropped.verdict, dropped.reason()), (Verdict::Dropped, Some(Reason::POLICY_DENY)));
    assert_eq!((icmp.transport(), icmp.reason()), (Some((58, 128)), Some(Reason::POLICY)));
    assert_eq!(icmp.addresses().unwrap().0.to_string(), "fd00::1");
    assert_eq!(audited.verdict, Verdict::Audit);
}

#[test]
fn lines_of_hubble_are_read() {
    let exporter = r#"{"flow":{"time":"2025-03-01T08:00:00.123456789Z","uuid":"x","verdict":"DROPPED","drop_reason":133,"ethernet":{"source":"aa:bb:cc:dd:ee:ff","destination":"ff:ee:dd:cc:bb:aa"},"IP":{"source":"10.1.0.7","destination":"10.1.1.8","ipVersion":"IPv4"},"l4":{"UDP":{"source_port":5000,"destination_port":53}},"source":{"ID":7,"identity":40001,"namespace":"a","labels":["k8s:app=x","k8s:io.kubernetes.pod.namespace=a"],"pod_name":"x-0","workloads":[{"name":"x","kind":"StatefulSet"}]},"destination":{"identity":2,"labels":["reserved:world"]},"Type":"L3_L4","node_name":"n1","event_type":{"type":1,"sub_type":133},"traffic_direction":"EGRESS","drop_reason_desc":"POLICY_DENIED","is_reply":null,"Summary":"UDP"},"node_name":"n1","time":"2025-03-01T08:00:00.123456789Z"}"#;
    let by_number = r#"{"flow":{"verdict":4,"IP":{"source":"10.1.0.7","destination":"10.1.1.8"},"l4":{"ICMPv4":{"type":8}},"traffic_direction":1,"event_type":null,"source":null}}"#;
    let bare = r#"{"time":"2025-03-01T08:00:00Z","verdict":"FORWARDED","IP":{"source":"10.1.0.7","destination":"10.1.1.8","ipVersion":"IPv4"},"l4":{"TCP":{"source_port":80,"destination_port":5000,"flags":{"SYN":true,"ACK":true}}},"nodeName":"n2"}"#;
    let others = concat!(
        r#"{"node_status":{"state_change":"NODE_CONNECTED","node_names":["n1"]}}"#,
        "\n",
        r#"{"lost_events":{"source":"PERF_EVENT_RING_BUFFER","num_events_lost":"12"},"node_name":"n1"}"#,
        "\n\n",
        r#"{"agent_event":{"type":"AGENT_STARTED"}}"#,
    );
    let (flows, report) = read(format!("{exporter}\n{by_number}\r\n{bare}\n{others}"));
    assert_eq!((report.lines, report.flows, report.others, report.lost), (6, 3, 2, 12));
    let [dropped, audited, answer] = flows.as_slice() else { panic!("{flows:?}") };
    assert_eq!((dropped.transport(), dropped.is_opening()), (Some((17, 53)), Some(true)));
    assert_eq!((dropped.node_name.as_str(), dropped.source.identity), ("n1", 40001));
    assert_eq!((audited.verdict, audited.direction()), (Verdict::Audit, Some(Direction::Ingress)));
    assert_eq!((answer.is_opening(), answer.node_name.as_str()), (Some(false), "n2"));
}

#[test]
fn bad_lines_are_named_and_passed_over() {
    let long = "x".repeat(3 << 20);
    let text =
        format!("{}nonsense\n{long}\n{{\"a\":1}}\n{{\"flow\":{{\"IP\":3}}}}\n{}", line(syn()), line(syn()));
    let (flows, report) = read(text);
    assert_eq!((flows.len(), report.malformed, report.lines), (2, 4, 6));
    let bad: Vec<(u64, &str)> = report.bad.iter().map(|bad| (bad.line, bad.problem.as_str())).collect();
    assert!(bad[0].0 == 2 && bad[0].1.starts_with("not an object of JSON"), "{bad:?}");
    assert!(bad[1].0 == 3 && bad[1].1.contains("more than 1048576 bytes"), "{bad:?}");
    assert!(bad[2].0 == 4 && bad[2].1.contains("no `flow`"), "{bad:?}");
    assert!(bad[3].0 == 5 && bad[3].1.starts_with("flow: "), "{bad:?}");
}

proptest! {
    #[test]
    fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let (flows, report) = read(&bytes);
        prop_assert_eq!(flows.len() as u64, report.flows);
        prop_assert_eq!(report.lines, report.flows + report.others + report.malformed + u64::from(report.lost > 0));
    }

    #[test]
    fn a_flow_survives_damage_around_it(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut middle = line(drop_of(133)).into_bytes();
        for (at, byte) in damage {
            let at = at.index(middle.len());
            middle[at] = byte;
        }
        middle.truncate(cut.index(middle.len()));
        let mut bytes = line(syn()).into_bytes();
        bytes.extend_from_slice(&middle);
        bytes.push(b'\n');
        bytes.extend_from_slice(line(syn()).as_bytes());
        let (flows, _) = read(&bytes);
        let whole = read(line(syn())).0;
        prop_assert_eq!(flows.first(), whole.first());
        prop_assert_eq!(flows.last(), whole.first());
    }

    #[test]
    fn any_event_is_written_as_a_line_that_is_read(bytes in proptest::array::uniform32(any::<u8>()), more in proptest::array::uniform32(any::<u8>()), last in proptest::array::uniform24(any::<u8>()), kind in 0..3_usize) {
        let record: Vec<u8> = bytes.into_iter().chain(more).chain(last).collect();
        let mut event: Event = villus_abi::from_bytes(&record).unwrap();
        event.kind = [abi::KIND_DROP, abi::KIND_TRACE, abi::KIND_VERDICT][kind];
        let written = line(event);
        prop_assert_eq!(written.matches('\n').count(), 1);
        let (flows, report) = read(&written);
        prop_assert_eq!((flows.len(), report.malformed), (1, 0), "{} {:?}", written, report);
    }
}

#[test]
fn the_disk_holds_no_more_than_was_allowed() {
    for compress in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/flows.log");
        let limits = Limits { file: 4096, backups: 3, compress };
        let mut file = ExportFile::open(&path, limits).unwrap();
        fs::write(dir.path().join("deep/flows-notes.log"), "mine").unwrap();
        let one = line(syn());
        let now: Timestamp = "2026-01-31T10:00:00Z".parse().unwrap();
        for _ in 0..200 {
            file.append(one.as_bytes(), now).unwrap();
        }
        let files = ExportFile::all(&path).unwrap();
        assert_eq!(files.len(), 4, "{files:?}");
        for file in &files {
            assert!(fs::metadata(file).unwrap().len() <= 4096, "{file:?}");
            let zipped = file.extension().is_some_and(|end| end == "gz");
            assert_eq!(zipped, compress && *file != path, "{file:?}");
            let report = open_flows(file).unwrap().each(|_| {}).unwrap();
            assert!(report.flows > 0 && report.malformed == 0, "{report:?}");
        }
        assert!(dir.path().join("deep/flows-notes.log").exists());
    }
}

#[test]
fn half_a_line_of_a_crash_spoils_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("flows.log");
    fs::write(&path, &line(syn())[..50]).unwrap();
    let limits = Limits { file: 1 << 20, backups: 1, compress: false };
    let now = Timestamp::UNIX_EPOCH;
    let mut file = ExportFile::open(&path, limits).unwrap();
    file.append(line(syn()).as_bytes(), now).unwrap();
    fs::rename(&path, dir.path().join("elsewhere")).unwrap();
    file.append(line(syn()).as_bytes(), now).unwrap();
    let report = open_flows(&dir.path().join("elsewhere")).unwrap().each(|_| {}).unwrap();
    assert_eq!((report.flows, report.malformed), (1, 1));
    assert_eq!(open_flows(&path).unwrap().each(|_| {}).unwrap().flows, 1, "a moved file is made anew");
}

#[test]
fn losses_have_a_line_of_their_own() {
    let mut out = Vec::new();
    write_lost(&mut out, LossSource::ObserverQueue, 7, &origin(), Timestamp::UNIX_EPOCH);
    let (flows, report) = read(&out);
    assert_eq!((flows.len(), report.lost, report.malformed), (0, 7, 0), "{report:?}");
}
