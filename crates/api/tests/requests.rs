//! Requests as others send them: wrong ones are named, and none stops the server.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;

use axum::{Router, body::Body, http::Request};
use common::Fake;
use http_body_util::BodyExt;
use proptest::prelude::*;
use serde_json::Value;
use tower::ServiceExt;
use villus_api::router;

fn routes() -> Router {
    router(Arc::new(Fake::default()))
}

async fn ask(routes: Router, method: &str, target: &str, body: impl Into<Body>) -> (u16, Value) {
    let request = Request::builder().method(method).uri(target).body(body.into()).unwrap();
    let response = routes.oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

#[tokio::test]
async fn wrong_requests_name_what_is_wrong() {
    // method, target, body, status, field, needle in the message
    let cases = [
        ("PUT", "/v1/endpoint/0", r#"{"labels": 5}"#, 400, "labels", "invalid type"),
        (
            "PUT",
            "/v1/endpoint/0",
            r#"{"addresses": ["10.0.0.1", "10.0.0"]}"#,
            400,
            "addresses[1]",
            "IP address",
        ),
        ("PUT", "/v1/endpoint/0", r#"{"mac": "0a:00"}"#, 400, "mac", "no MAC address"),
        ("PUT", "/v1/endpoint/0", r#"{"lables": []}"#, 400, "lables", "unknown field `lables`"),
        ("PUT", "/v1/endpoint/0", r#"{"interface-index": -1}"#, 400, "interface-index", "invalid value"),
        ("PUT", "/v1/endpoint/0", r#"{"addressing": {"ipv4": "::1"}}"#, 400, "addressing.ipv4", "IPv4"),
        ("PUT", "/v1/endpoint/0", "[]", 400, "", "no JSON object"),
        ("PUT", "/v1/endpoint/0", "{", 400, "", "EOF"),
        ("PUT", "/v1/endpoint/0", "{} {}", 400, "", "goes on"),
        ("PUT", "/v1/endpoint/pod:x:y", "{}", 400, "id", "pod-name:NAMESPACE:NAME"),
        ("GET", "/v1/endpoint/70000", "", 400, "id", "0 to 65535"),
        ("GET", "/v1/endpoint/%ff", "", 400, "id", ""),
        ("GET", "/v1/endpoint?label=x", "", 400, "label", "unknown field"),
        ("GET", "/v1/identity/x", "", 400, "id", "no identity"),
        ("GET", "/v1/villus/policy/wait?revision=x", "", 400, "revision", "invalid digit"),
        ("GET", "/v1/villus/monitor?last=-1", "", 400, "last", "invalid digit"),
        ("GET", "/v1/villus/monitor?tpye=drop", "", 400, "tpye", "known are type"),
        ("GET", "/v1/villus/monitor?port=http", "", 400, "port", "0 to 65535"),
        ("PATCH", "/v1/endpoint/5", r#"{"labels": [], "add-labels": ["a"]}"#, 400, "labels", "replaces all"),
        ("PATCH", "/v1/config", r#"{"option": {}}"#, 400, "option", "unknown field"),
        ("POST", "/v1/villus/why", r#"{"src": "a"}"#, 400, "", "missing field `dst`"),
        ("DELETE", "/v1/policy", "", 400, "name", "exactly one"),
        ("DELETE", "/v1/endpoint", "{}", 400, "", "missing field `container-id`"),
        ("GET", "/v1/endpoint/5", "", 404, "", "no endpoint 5"),
        ("GET", "/v2/endpoint", "", 404, "", "there is no /v2/endpoint"),
        ("GET", "/v1/nothing", "", 404, "", "there is no /v1/nothing"),
        ("GET", "/v1/villus/nothing", "", 404, "", "there is no"),
        ("POST", "/v1/endpoint/5", "", 405, "", "does not understand POST"),
        ("POST", "/v1/villus/emergency", "", 405, "", "does not understand POST"),
    ];
    for (method, target, body, status, field, needle) in cases {
        let (got, error) = ask(routes(), method, target, body).await;
        let message = error["message"].as_str().unwrap_or_default();
        let named = error["field"].as_str().unwrap_or_default();
        assert_eq!((got, named), (status, field), "{method} {target} {body}: {error}");
        assert!(message.contains(needle), "{method} {target}: {message}");
    }
}

#[tokio::test]
async fn bodies_have_a_limit() {
    let big = vec![b' '; (8 << 20) + 1];
    let (status, error) = ask(routes(), "PUT", "/v1/policy", big).await;
    assert_eq!((status, error["message"].as_str()), (413, Some("the body is larger than 8 MiB")));
    let deep = "[".repeat(100_000);
    assert_eq!(ask(routes(), "PUT", "/v1/endpoint/0", format!("{{\"properties\":{deep}")).await.0, 400);
}

#[tokio::test]
async fn text_must_be_text() {
    let (status, error) = ask(routes(), "PUT", "/v1/policy", vec![b'a', 0xff]).await;
    assert_eq!(status, 400);
    assert!(error["message"].as_str().unwrap().contains("offset 1"), "{error}");
}

#[tokio::test]
async fn a_probe_may_ask_by_header() {
    let fake = Arc::new(Fake::default());
    let request = Request::builder().uri("/v1/healthz").header("brief", "true").body(Body::empty()).unwrap();
    let backend: Arc<dyn villus_api::Backend> = Arc::<Fake>::clone(&fake);
    assert_eq!(router(backend).oneshot(request).await.unwrap().status(), 200);
    assert_eq!(*fake.asked.lock().unwrap(), ["(\"status\", true)"]);
}

#[tokio::test]
async fn what_a_cni_plugin_of_cilium_sends_is_taken() {
    let body = r#"{
        "addressing": {"ipv4": "10.15.0.7", "ipv6": "f00d::a0f:0:0:7", "ipv4-expiration-uuid": "x"},
        "container-id": "0a1b", "container-interface-name": "eth0", "container-netns-path": "/run/netns/x",
        "datapath-configuration": {"external-ipam": true, "require-routing": false},
        "host-mac": "0a:00:00:00:00:01", "mac": "0A:00:00:00:00:02", "interface-index": 12,
        "interface-name": "lxc0a1b", "k8s-namespace": "default", "k8s-pod-name": "web-0", "k8s-uid": "u",
        "labels": ["k8s:app=web"], "netns-cookie": "123", "state": "waiting-for-identity",
        "sync-build-endpoint": true, "properties": {"a": 1}
    }"#;
    let (status, endpoint) = ask(routes(), "PUT", "/v1/endpoint/cilium-local:0", body).await;
    assert_eq!(status, 201, "{endpoint}");
    assert_eq!(endpoint["status"]["networking"]["addressing"][0]["ipv4"], "10.15.0.7");
    assert_eq!(endpoint["status"]["state"], "ready");
    let routes = routes();
    let (status, _) = ask(routes, "DELETE", "/v1/endpoint", r#"{"container-id": "0a1b"}"#).await;
    assert_eq!(status, 206);
}

#[tokio::test]
async fn labels_can_be_patched_in_the_form_of_the_field() {
    let routes = routes();
    ask(routes.clone(), "PUT", "/v1/endpoint/0", "{}").await;
    let (status, labels) =
        ask(routes, "PATCH", "/v1/endpoint/5/labels", r#"{"user": ["k8s:app=web"]}"#).await;
    assert_eq!((status, &labels["security-relevant"][0]), (200, &Value::from("k8s:app=web")));
}

const TARGETS: [(&str, &str); 20] = [
    ("PUT", "/v1/endpoint/0"),
    ("PATCH", "/v1/endpoint/5"),
    ("PATCH", "/v1/endpoint/5/labels"),
    ("PATCH", "/v1/endpoint/5/config"),
    ("DELETE", "/v1/endpoint"),
    ("PATCH", "/v1/config"),
    ("PUT", "/v1/policy"),
    ("POST", "/v1/villus/policy/validate"),
    ("POST", "/v1/villus/verify"),
    ("POST", "/v1/villus/why"),
    ("PUT", "/v1/villus/hold/5"),
    ("GET", "/v1/endpoint"),
    ("GET", "/v1/identity"),
    ("GET", "/v1/ip"),
    ("GET", "/v1/policy"),
    ("DELETE", "/v1/policy"),
    ("GET", "/v1/healthz"),
    ("GET", "/v1/villus/policy/wait"),
    ("GET", "/v1/map/x"),
    ("DELETE", "/v1/villus/emergency/x"),
];

/// Bytes, broken JSON, and JSON of the right names with wrong values.
fn bodies() -> impl Strategy<Value = Vec<u8>> {
    let value = prop_oneof![
        Just("null".to_owned()),
        any::<i64>().prop_map(|number| number.to_string()),
        ".{0,12}".prop_map(|text| Value::from(text).to_string()),
        Just("[1,\"a\",{}]".to_owned()),
        Just("{\"ipv4\":\"10.0.0.1\"}".to_owned()),
    ];
    let key = "(labels|addresses|addressing|mac|id|netns|user|options|repair|endpoint|src|dst|port|reason|container-id|state|[a-z-]{0,9})";
    let object = proptest::collection::vec((key, value), 0..5).prop_map(|pairs| {
        let pairs: Vec<_> = pairs.into_iter().map(|(key, value)| format!("\"{key}\":{value}")).collect();
        format!("{{{}}}", pairs.join(",")).into_bytes()
    });
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..200),
        "[\\[\\]{}:,\"a-z0-9. ]{0,60}".prop_map(String::into_bytes),
        object
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases * 300 / 256))]

    #[test]
    fn no_request_stops_the_server(
        index in 0..TARGETS.len(),
        body in bodies(),
        query in "([a-z-]{0,8}(=[a-zA-Z0-9%+.,:/-]{0,10})?&?){0,3}",
        segment in "[a-zA-Z0-9%.:-]{0,20}",
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (method, target) = TARGETS[index];
        // `policy wait` sleeps for as long as it is told.
        let query = query.replace("timeout", "t");
        for target in [format!("{target}?{query}"), format!("/v1/endpoint/{segment}"), format!("/v1/map/{segment}")] {
            if target.parse::<axum::http::Uri>().is_err() {
                continue;
            }
            let (status, answer) = runtime.block_on(ask(routes(), method, &target, body.clone()));
            prop_assert!((200..600).contains(&status));
            if status >= 400 {
                prop_assert!(answer["message"].is_string(), "{} {}: {} {}", method, target, status, answer);
            }
        }
    }
}
