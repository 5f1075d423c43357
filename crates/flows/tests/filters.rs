//! Filters of `villus monitor`.
#![allow(clippy::unwrap_used, reason = "fixed inputs")]

mod common;

use common::{drop_of, flow, syn, verdict};
use proptest::prelude::*;
use villus_abi::{Event, Reason};
use villus_flows::{Filter, FilterSpec};

fn spec(field: &str, value: &str) -> FilterSpec {
    serde_json::from_value(serde_json::json!({ field: value })).unwrap()
}

#[test]
fn each_field_chooses() {
    let denied = Event { direction: 1, ..drop_of(133) };
    // field, value, which of [trace to endpoint 123 from 45, drop from 123 to 45, verdict] pass
    let cases = [
        ("type", "", [true, true, true]),
        ("type", "drop", [false, true, false]),
        ("type", "drop,policy-verdict", [false, true, true]),
        ("from", "45", [true, false, true]),
        ("to", "45", [false, true, false]),
        ("related-to", "45", [true, true, true]),
        ("related-to", "9", [false, false, false]),
        ("identity", "1002", [true, true, true]),
        ("identity", "7", [false, false, false]),
        ("ip", "10.0.0.2", [true, true, true]),
        ("ip", "10.9.0.0/16, fd00::/8", [false, false, false]),
        ("port", "40000", [true, true, true]),
        ("port", "443", [false, false, false]),
        ("protocol", "tcp", [true, true, true]),
        ("protocol", "udp", [false, false, false]),
        ("reason", "133", [false, true, false]),
        ("reason", "policy-denied", [false, true, false]),
        ("reason", "Policy denied", [false, true, false]),
    ];
    for (field, value, expected) in cases {
        let filter = Filter::try_from(&spec(field, value)).unwrap();
        let got = [syn(), denied, verdict(0, 2)].map(|event| filter.matches(&flow(event)));
        assert_eq!(got, expected, "--{field} {value}");
    }
}

#[test]
fn fields_must_all_hold() {
    let spec = FilterSpec { types: "drop".into(), port: "443".into(), ..FilterSpec::default() };
    assert!(!Filter::try_from(&spec).unwrap().matches(&flow(drop_of(133))));
}

#[test]
fn a_text_with_two_numbers_means_both() {
    let filter = Filter::try_from(&spec("reason", "invalid packet")).unwrap();
    assert_eq!(filter.reasons, [Reason(2), Reason(134)]);
}

#[test]
fn errors_name_the_field_the_value_and_the_fix() {
    for (field, value, fix) in [
        ("type", "l7", "does not report"),
        ("type", "dorp", "none of drop, trace, policy-verdict"),
        ("from", "70000", "0 to 65535"),
        ("ip", "10.0.0", "10.0.0.0/8"),
        ("port", "http", "0 to 65535"),
        ("identity", "-1", "a number"),
        ("protocol", "tpc", "icmpv6"),
        ("reason", "because", "its number or its text"),
    ] {
        let error = Filter::try_from(&spec(field, value)).unwrap_err().to_string();
        assert!(error.starts_with(field) && error.contains(value) && error.contains(fix), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases * 300 / 256))]

    #[test]
    fn no_text_panics(field in "(type|from|to|related-to|identity|ip|port|protocol|reason)", value in ".{0,30}") {
        let _ = Filter::try_from(&spec(&field, &value));
    }
}
