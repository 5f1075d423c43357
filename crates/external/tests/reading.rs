//! What people and machines write: what is understood, and what is refused by field and with what to do.
#![allow(clippy::unwrap_used, missing_docs)]

use proptest::prelude::*;
use villus_external::{
    Kind, MAX_ADDRESSES, MAX_LABELS, Place, read_batch, read_names, read_objects, read_spec,
};

const YAML: &str = "\
apiVersion: villus.io/v1alpha1
kind: ExternalResource
metadata:
  name: db-7
spec:
  kind: vm
  addresses: [10.9.0.5, \"fd00:9::5\"]
  labels: [\"k8s:app=db\", tier=gold]
  node: hyp-1
  ttl: 1h
";

#[test]
fn objects_are_read_from_yaml_and_json_alone_and_in_lists() {
    let wanted = read_objects(
        "a.yaml",
        &format!(
            "---\n{YAML}---\n\n---\n{}",
            YAML.replace("db-7", "db-8").replace("9.0.5", "9.0.6").replace("::5", "::6")
        ),
    )
    .unwrap();
    assert_eq!(wanted.len(), 2);
    let spec = &wanted[0].spec;
    assert_eq!((wanted[0].name.as_str(), spec.kind, spec.addresses.len()), ("db-7", Kind::Vm, 2));
    assert_eq!(spec.labels.to_string(), "k8s:app=db,k8s:tier=gold");
    assert_eq!(spec.place, Some(Place::Node("hyp-1".to_owned())));
    assert_eq!(spec.ttl.unwrap().as_secs(), 3600);
    let object = r#"{"apiVersion":"villus.io/v1alpha1","kind":"ExternalResource","metadata":{"name":"a"},"spec":{"addresses":["10.9.0.7"],"labels":["app=a"],"host":"10.3.9.1"},"status":{"identity":7}}"#;
    for text in [
        object.to_owned(),
        format!("[{object}]"),
        format!(r#"{{"apiVersion":"v1","kind":"List","items":[{object}]}}"#),
        format!(r#"{{"apiVersion":"villus.io/v1alpha1","kind":"ExternalResourceList","items":[{object}]}}"#),
    ] {
        let wanted = read_objects("-", &text).unwrap();
        assert_eq!((wanted.len(), wanted[0].spec.kind), (1, Kind::Other), "{text}");
        assert_eq!(wanted[0].spec.place, Some(Place::Host("10.3.9.1".parse().unwrap())));
    }
    assert_eq!(read_spec("a", object.as_bytes()).unwrap().name, "a");
    let flat = r#"{"name":"b","addresses":["10.9.0.8"],"labels":["app=a"]}"#;
    let batch = read_batch(format!(r#"{{"items":[{object},{flat}]}}"#).as_bytes()).unwrap();
    assert_eq!(batch.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(read_names(br#"{"names":["a","b","a"]}"#).unwrap().len(), 2);
    assert!(read_objects("empty", "").unwrap().is_empty());
}

#[test]
fn each_mistake_is_named_by_its_field_with_what_to_do() {
    let long = "x".repeat(254);
    let addresses: Vec<String> = (0..=MAX_ADDRESSES).map(|n| format!("\"10.9.1.{n}\"")).collect();
    let labels: Vec<String> = (0..=MAX_LABELS).map(|n| format!("\"k8s:l{n}=x\"")).collect();
    let spec = |more: &str| format!(r#"{{"addresses":["10.9.0.5"],"labels":["app=a"]{more}}}"#);
    let with_address = |address: &str| format!(r#"{{"addresses":[{address}],"labels":["app=a"]}}"#);
    let with_label = |label: &str| format!(r#"{{"addresses":["10.9.0.5"],"labels":["app=a",{label}]}}"#);
    for (name, body, field, reason, fix) in [
        ("a", with_address(r#""10.9.0.256""#), "addresses[0]", "`10.9.0.256` is no address", "10.9.0.5"),
        ("a", with_address(r#""10.9.0.0/24""#), "addresses[0]", "is a range", "CIDR"),
        ("a", with_address(r#""0.0.0.0""#), "addresses[0]", "unspecified", "sends from"),
        ("a", with_address(r#""127.0.0.1""#), "addresses[0]", "loopback", "sends from"),
        ("a", with_address(r#""::1""#), "addresses[0]", "loopback", "sends from"),
        ("a", with_address(r#""224.0.0.1""#), "addresses[0]", "multicast", "sends from"),
        ("a", with_address(r#""255.255.255.255""#), "addresses[0]", "broadcast", "sends from"),
        ("a", with_address(r#""fe80::1""#), "addresses[0]", "link-local", "sends from"),
        ("a", with_address(r#""::ffff:10.9.0.5""#), "addresses[0]", "other family", "sends from"),
        ("a", with_address(r#""10.9.0.5","10.9.0.5""#), "addresses[1]", "is there twice", "keep one"),
        ("a", with_address("5"), "addresses[0]", "a number is no text", "10.9.0.5"),
        ("a", with_address(""), "addresses", "is empty", "list"),
        ("a", with_address(&addresses.join(",")), "addresses", "at most 16", "several resources"),
        (
            "a",
            with_label(r#""reserved:host""#),
            "labels[1]",
            "`reserved` are given by agents",
            "another source",
        ),
        (
            "a",
            with_label(r#""cidr:10.0.0.0/8""#),
            "labels[1]",
            "`cidr` are given by agents",
            "another source",
        ),
        ("a", with_label(r#""any:x=y""#), "labels[1]", "no source that a label can have", "another source"),
        ("a", with_label(r#""what:x=y""#), "labels[1]", "no source that a label can have", "another source"),
        ("a", with_label(&format!("\"x={long}\"")), "labels[1]", "at most 63", "SOURCE:KEY=VALUE"),
        ("a", with_label(r#""x=a;b""#), "labels[1]", "`;`", "SOURCE:KEY=VALUE"),
        ("a", with_label(r#""x=a\nb""#), "labels[1]", "line break", "SOURCE:KEY=VALUE"),
        ("a", with_label(r#""app=b""#), "labels", "same key", "keep one"),
        ("a", with_label("7"), "labels[1]", "a number is no text", "SOURCE:KEY=VALUE"),
        ("a", with_label(&labels.join(",")), "labels", "at most 64", "select by"),
        ("a", r#"{"addresses":["10.9.0.5"]}"#.to_owned(), "labels", "is missing", "k8s:app=db"),
        (
            "a",
            r#"{"addresses":["10.9.0.5"],"labels":{"app":"a"}}"#.to_owned(),
            "labels",
            "is no list",
            "k8s:app=db",
        ),
        ("a", r#"{"labels":["app=a"]}"#.to_owned(), "addresses", "is missing", "list"),
        ("a", spec(r#","identity":15614229"#), "identity", "not chosen", "leave it out"),
        ("a", spec(r#","securityIdentity":1"#), "securityIdentity", "not chosen", "leave it out"),
        ("a", spec(r#","adresses":[]"#), "adresses", "is no field", "`addresses`"),
        ("a", spec(r#","colour":1"#), "colour", "is no field", "known are kind"),
        ("a", spec(r#","kind":"container""#), "kind", "`container` is no kind", "vm, baremetal, pod, other"),
        ("a", spec(r#","ttl":"1s""#), "ttl", "not between 10s", "1h"),
        ("a", spec(r#","ttl":"soon""#), "ttl", "not a duration", "1h"),
        ("a", spec(r#","ttl":60"#), "ttl", "a number is no text", "1h"),
        ("a", spec(r#","host":"10.3.9.1","node":"n1""#), "host", "beside `node`", "or neither"),
        ("a", spec(r#","host":"n1""#), "host", "no address", "10.9.0.5"),
        ("a", spec(r#","node":"a/b""#), "node", "no name", "node list"),
        ("a", spec(r#","name":"b""#), "name", "is not `a`", "leave it out"),
        ("", spec(""), "name", "is empty", "253"),
        (long.as_str(), spec(""), "name", "has 254 characters", "253"),
        ("a/b", spec(""), "name", "holds `/`", "letters"),
        ("-a", spec(""), "name", "begins or ends", "letter or digit"),
        ("a", "[]".to_owned(), "", "a list instead of an object", "addresses"),
        ("a", "{".to_owned(), "", "no JSON", "one JSON value"),
    ] {
        let problems = read_spec(name, body.as_bytes()).unwrap_err();
        let found =
            problems.0.iter().find(|problem| problem.field == field && problem.reason.contains(reason));
        let found = found.unwrap_or_else(|| panic!("{name} {body}: {problems}"));
        assert!(found.fix.contains(fix), "{found}");
    }
}

#[test]
fn files_name_the_document_and_the_object_and_list_all_that_is_wrong() {
    let change = |from: &str, to: &str| YAML.replace(from, to);
    for (text, parts) in [
        (
            change("v1alpha1", "v1"),
            &[
                "f: document 1: resource db-7: apiVersion: is `villus.io/v1`; write apiVersion: villus.io/v1alpha1",
            ][..],
        ),
        (change("kind: ExternalResource", "kind: Pod"), &["f: document 1: kind: is `Pod`"]),
        (
            change("  name: db-7", "  name: db-7\n  namespace: shop"),
            &["metadata.namespace", "io.kubernetes.pod.namespace"],
        ),
        (
            change("  name: db-7", "  name: db-7\n  labels: {app: a}"),
            &["metadata.labels", "write them as spec.labels"],
        ),
        (change("  name: db-7", "  title: db-7"), &["metadata.title", "metadata.name: is missing"]),
        (change("  ttl: 1h", "  identity: 7"), &["resource db-7: spec.identity: an identity is not chosen"]),
        (change("10.9.0.5", "10.9.0"), &["spec.addresses[0]: `10.9.0` is no address"]),
        (format!("{YAML}---\n{YAML}"), &["resource db-7: name: is there twice"]),
        (
            format!("{YAML}---\n{}", change("db-7", "db-8")),
            &["resource db-8: addresses: 10.9.0.5 is also one of resource db-7", "fd00:9::5 is also"],
        ),
        (
            change("10.9.0.5", "10.9.0").replace("tier", "reserved:x"),
            &["spec.addresses[0]", "spec.labels[1]"],
        ),
        ("a: [".to_owned(), &["f: is no YAML"]),
        ("just text".to_owned(), &["f: document 1: is a text instead of an object"]),
        (format!("{YAML}{YAML}"), &["is no YAML"]),
    ] {
        let said = read_objects("f", &text).unwrap_err().to_string();
        for part in parts {
            assert!(said.contains(part), "{said}\n\nlacks {part}");
        }
    }
    let many: String = (0..500).map(|n| format!("---\n{}", YAML.replace("db-7", &format!("-{n}")))).collect();
    assert_eq!(read_objects("f", &many).unwrap_err().0.len(), 100);
    for (body, part) in [
        (r#"{"things":[]}"#, "items"),
        ("7", "no list"),
        (r#"[{"addresses":["10.9.0.5"],"labels":["app=a"]}]"#, "items[0]: name: is missing"),
        (
            r#"[{"name":"a","addresses":["10.9.0.5"],"labels":["app=a"]},{"name":"a","addresses":["10.9.0.6"],"labels":["app=a"]}]"#,
            "resource a: name: is there twice",
        ),
    ] {
        let said = read_batch(body.as_bytes()).unwrap_err().to_string();
        assert!(said.contains(part), "{said}");
    }
    for body in ["{}", r#"{"names":"a"}"#, r#"{"names":["a/b"]}"#, r#"{"names":["a"],"more":1}"#, "[]"] {
        assert!(read_names(body.as_bytes()).is_err(), "{body}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), text in "\\PC{0,120}") {
        let _ = read_spec("a", &bytes);
        let _ = read_batch(&bytes);
        let _ = read_names(&bytes);
        let _ = read_objects("f", &text);
    }

    #[test]
    fn no_damage_to_an_object_panics_and_what_is_read_is_sound(at in 0..YAML.len(), with in "[\"{}\\[\\]:,0-9a-z/=\\n -]{0,6}") {
        let mut text = YAML.to_owned();
        text.replace_range(at..at + 1, &with);
        if let Ok(all) = read_objects("f", &text) {
            for wanted in all {
                prop_assert!(!wanted.name.is_empty() && !wanted.name.contains('/'));
                prop_assert!(!wanted.spec.addresses.is_empty() && !wanted.spec.labels.is_empty());
                prop_assert!(wanted.spec.labels.iter().all(|label| label.source() != "reserved"));
            }
        }
    }
}
