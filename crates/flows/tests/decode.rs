//! Decoding: no bytes from the ring may panic, and nothing is lost on the way through JSON.

mod common;

use common::{drop_of, flow, syn, verdict};
use proptest::prelude::*;
use villus_abi::{Event, bytes_of, event as abi};
use villus_flows::{DecodeError, FlowEvent, LineFormat, Numeric, Record, WhyQuery};

#[test]
fn short_long_and_unknown_records_are_refused() {
    let bytes = bytes_of(&syn()).to_vec();
    assert_eq!(FlowEvent::decode(&[]), Err(DecodeError::Length { got: 0, want: 88 }));
    assert_eq!(FlowEvent::decode(&bytes[..87]), Err(DecodeError::Length { got: 87, want: 88 }));
    assert_eq!(FlowEvent::decode(&[bytes, vec![0]].concat()), Err(DecodeError::Length { got: 89, want: 88 }));
    let odd = Event { kind: 2, ..syn() };
    assert_eq!(FlowEvent::decode(bytes_of(&odd)), Err(DecodeError::Kind(2)));
}

#[test]
fn endpoints_of_both_sides_follow_from_the_direction() {
    let sides = |event: Event| (flow(event).src_endpoint(), flow(event).dst_endpoint());
    assert_eq!(sides(drop_of(133)), (45, 123));
    assert_eq!(sides(Event { direction: 1, ..drop_of(133) }), (123, 45));
    assert_eq!(sides(Event { direction: 1, ..syn() }), (45, 123), "a trace to an endpoint names its target");
    assert_eq!(sides(Event { point: abi::POINT_FROM_ENDPOINT, ..syn() }), (123, 45));
}

#[test]
fn json_is_one_flat_object() {
    let json = serde_json::to_value(Record::Event(flow(verdict(-133, 0)))).unwrap();
    for (key, value) in [
        ("type", "policy-verdict"),
        ("action", "deny"),
        ("reason", "Policy denied"),
        ("match", "none"),
        ("direction", "ingress"),
        ("hook", "from-endpoint"),
        ("src", "10.0.0.1"),
        ("proto", "tcp"),
        ("summary", "10.0.0.1:40000 -> 10.0.0.2:80 tcp SYN"),
    ] {
        assert_eq!(json[key], value, "{json}");
    }
    assert_eq!(json["dstPort"], 80);
    assert_eq!(json["reasonCode"], 133);
    assert_eq!(json["srcEndpoint"], 45);
    assert!(json.get("observationPoint").is_none());
}

#[test]
fn a_loss_is_told_apart_from_an_event_in_json() {
    let text = r#"{"lost":"observer-queue","count":3}"#;
    let record: Record = serde_json::from_str(text).unwrap();
    assert!(matches!(record, Record::Lost { count: 3, .. }));
    assert_eq!(serde_json::to_string(&record).unwrap(), text);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases * 2000 / 256))]

    #[test]
    fn no_record_panics_and_json_keeps_every_event(
        mut bytes in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..200),
            proptest::collection::vec(any::<u8>(), 88..=88),
        ],
        kind in prop_oneof![Just(1_u8), Just(4), Just(5), any::<u8>()],
    ) {
        if let Some(byte) = bytes.get_mut(8) {
            *byte = kind;
        }
        let Ok(event) = FlowEvent::decode(&bytes) else { return Ok(()) };
        let _ = WhyQuery::of(&event);
        let line = LineFormat { names: Numeric, verbose: true }.line(&event);
        prop_assert!(!line.is_empty());
        let json = serde_json::to_string(&Record::Event(event.clone())).unwrap();
        prop_assert_eq!(serde_json::from_str::<Record>(&json).unwrap(), Record::Event(event), "{}", json);
    }

    #[test]
    fn no_json_panics(text in ".{0,200}", field in "(type|state|hook|match|tcpFlags|proto)", value in ".{0,12}") {
        let _ = serde_json::from_str::<Record>(&text);
        let mut json = serde_json::to_value(flow(syn())).unwrap();
        json[field] = value.into();
        let _ = serde_json::from_value::<Record>(json);
    }
}
