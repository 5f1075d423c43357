//! Client and server over a real socket.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::time::{Duration, Instant};

use common::Server;
use villus_abi::{Event, bytes_of, event as abi};
use villus_api::{ClientError, EndpointRef, model::*};
use villus_flows::{FilterSpec, FlowEvent, LossSource, Record};

/// How long is waited for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

fn request(owner: &str) -> EndpointChangeRequest {
    EndpointChangeRequest {
        netns: Some("client".into()),
        labels: vec!["k8s:app=client".into()],
        addressing: AddressPair { ipv4: Some([10, 0, 0, 1].into()), ..AddressPair::default() },
        addresses: vec!["fd00::1".parse().unwrap(), "10.0.0.2".parse().unwrap(), "10.0.0.1".parse().unwrap()],
        owner: Some(owner.into()),
        sticky: true,
        ..EndpointChangeRequest::default()
    }
}

fn api_error(result: Result<impl std::fmt::Debug, ClientError>) -> villus_api::ApiError {
    match result {
        Err(ClientError::Api(error)) => error,
        other => panic!("an error of the API expected, not {other:?}"),
    }
}

#[test]
fn an_endpoint_lives() {
    let server = Server::start();
    let client = server.client();
    let made = client.create_endpoint(&EndpointRef::Id(0), &request("a/b c")).unwrap();
    assert_eq!(made.id, 5);
    assert_eq!(
        made.status.networking.addressing,
        [
            Addressing { ipv4: Some([10, 0, 0, 1].into()), ipv6: Some("fd00::1".parse().unwrap()) },
            Addressing { ipv4: Some([10, 0, 0, 2].into()), ipv6: None },
        ]
    );
    assert_eq!(
        client.endpoints(&["k8s:app=client".into(), "x".into()]).unwrap(),
        std::slice::from_ref(&made)
    );
    assert_eq!(client.endpoint(&"owner:a/b c".parse().unwrap()).unwrap(), made, "paths are encoded");

    let patch = EndpointPatch { labels: Some(vec!["k8s:app=web".into()]), ..EndpointPatch::default() };
    let patched = client.patch_endpoint(&EndpointRef::Id(5), &patch).unwrap();
    assert_eq!(patched.status.labels.security_relevant, ["k8s:app=web"]);
    assert_eq!(client.endpoint_health(&EndpointRef::Id(5)).unwrap(), EndpointHealth::default());
    assert_eq!(client.endpoint_log(&EndpointRef::Id(5)).unwrap(), []);

    assert_eq!(client.delete_endpoint(&EndpointRef::Id(5)).unwrap().deleted, [5]);
    let missing = api_error(client.endpoint(&EndpointRef::Id(5)));
    assert_eq!((missing.status, missing.hint.as_deref()), (404, Some("see `villus endpoint list`")));
    assert_eq!(missing.to_string(), "no endpoint 5 (see `villus endpoint list`)");
    assert_eq!(
        server.asked(),
        ["(\"create\", Id(0))", "(\"endpoints\", [\"k8s:app=client\", \"x\"])", "(\"delete\", Id(5))",]
    );
}

#[test]
fn conflicts_and_limits_have_their_status() {
    let server = Server::start();
    let client = server.client();
    for owner in ["a", "b", "c"] {
        client.create_endpoint(&EndpointRef::Id(0), &request(owner)).unwrap();
    }
    let conflict = api_error(client.create_endpoint(&EndpointRef::Id(0), &request("a")));
    assert_eq!((conflict.status, conflict.field.as_deref()), (409, Some("owner")));
    let many = api_error(client.create_endpoint(&EndpointRef::Id(0), &request("d")));
    assert_eq!(many.status, 429);
    let partial = client.delete_endpoint(&EndpointRef::ContainerId("abc".into())).unwrap();
    assert_eq!(partial.errors.len(), 1, "206 is a success that says what is left");
    let absent = client.status_details();
    assert_eq!(absent.as_ref().unwrap_err().status(), Some(501));
    assert_eq!(absent.unwrap_err().to_string(), "this agent does not offer details of its status");
}

#[test]
fn policies_travel_as_text() {
    let server = Server::start();
    let client = server.client();
    let text = "a: \"ü\"\n---\nb: {}\n".to_owned();
    let import = PolicyImport { file: "dir/web & db.yaml".into(), dry_run: true, text: text.clone() };
    let change = client.import_policy(&import).unwrap();
    assert_eq!((change.revision, change.dry_run), (2, true));
    assert_eq!(server.asked(), [format!("{:?}", ("import", text))]);

    let bad = PolicyImport { text: "bad".into(), ..import };
    assert_eq!(
        api_error(client.import_policy(&bad)).to_string(),
        "dir/web & db.yaml: spec.ingress[0].toPorts: 70000 is no port (ports go up to 65535)"
    );
    assert_eq!(client.wait_policy(&PolicyWaitQuery { revision: 2, timeout: 1 }).unwrap().revision, 2);
    let all = PolicyDelete { all: true, ..PolicyDelete::default() };
    client.delete_policy(&all).unwrap();
    let both = PolicyDelete { name: "x".into(), ..all };
    assert_eq!(api_error(client.delete_policy(&both)).field.as_deref(), Some("name"));
}

#[test]
fn the_other_operations_arrive() {
    let server = Server::start();
    let client = server.client();
    assert!(client.status(true).unwrap().healthy());
    assert_eq!(client.identity(16_777_217).unwrap().id, 16_777_217);
    assert_eq!(client.map("cilium_policy_00794").unwrap().name(), "cilium_policy_00794");
    let options = [("PolicyAuditMode".to_owned(), "true".to_owned())].into();
    let spec = DaemonConfigurationSpec { options, ..DaemonConfigurationSpec::default() };
    client.patch_config(&spec).unwrap();
    let verify = VerifyRequest { endpoint: Some(EndpointRef::Id(5)), repair: true, dry_run: false };
    assert!(client.verify(&verify).unwrap().clean());
    client.release(&EndpointRef::Id(5)).unwrap();
    let why =
        WhyRequest { src: "client".into(), dst: "10.0.0.2".into(), port: "80/tcp".into(), source_port: None };
    assert!(client.why(&why).unwrap().question.contains("80/tcp"));
    assert_eq!(
        server.asked(),
        [
            "(\"status\", true)",
            "(\"config\", {\"PolicyAuditMode\": \"true\"})",
            "(\"verify\", true, Some(Id(5)))",
            "(\"release\", Id(5))",
        ]
    );
}

fn event(time: u64, reason: u8) -> FlowEvent {
    let event = Event { time, kind: abi::KIND_DROP, reason, ..Event::default() };
    FlowEvent::decode(bytes_of(&event)).unwrap()
}

#[test]
fn events_stream_past_and_present_and_losses() {
    let mut server = Server::start();
    server.fake.history.push(&[event(1, 133), event(2, 181), event(3, 133)]);
    let client = server.client();
    let filter = FilterSpec { reason: "Policy denied".into(), ..FilterSpec::default() };
    let past = MonitorQuery { filter: filter.clone(), last: 10, follow: false };
    let records: Vec<_> = client.monitor(&past).unwrap().map(Result::unwrap).collect();
    assert_eq!(records, [Record::Event(event(1, 133)), Record::Event(event(3, 133))]);

    let mut live = client.monitor(&MonitorQuery { filter, last: 1, follow: true }).unwrap();
    assert_eq!(live.next().unwrap().unwrap(), Record::Event(event(3, 133)));
    assert_eq!(live.next_within(Duration::from_millis(20)).unwrap(), None);
    assert!(!live.ended());
    server.fake.history.push(&[event(4, 181), event(5, 133)]);
    server.fake.history.lost_in_kernel(9);
    assert_eq!(live.next().unwrap().unwrap(), Record::Event(event(5, 133)));
    let lost = Record::Lost { source: LossSource::KernelRing, count: 9 };
    assert_eq!(live.next().unwrap().unwrap(), lost);
    assert_eq!(server.fake.history.observers(), 1);

    server.fake.history.close();
    assert!(live.next().is_none() && live.ended());
    server.stop();
    assert!(!server.path.exists(), "the socket goes with its server");
}

#[test]
fn a_monitor_that_leaves_is_forgotten() {
    let server = Server::start();
    let client = server.client();
    drop(client.monitor(&MonitorQuery::default()).unwrap());
    drop(client);
    let end = Instant::now() + PATIENCE;
    while server.fake.history.observers() > 0 {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_wrong_filter_names_the_parameter() {
    let server = Server::start();
    let filter = FilterSpec { types: "l7".into(), ..FilterSpec::default() };
    let query = MonitorQuery { filter, ..MonitorQuery::default() };
    let error = api_error(server.client().monitor(&query).map(|_| ()));
    assert_eq!((error.status, error.field.as_deref()), (400, Some("type")));
}

#[test]
fn too_many_monitors_are_refused() {
    let server = Server::start();
    let clients: Vec<_> = (0..33).map(|_| server.client()).collect();
    let streams: Vec<_> = clients.iter().map(|client| client.monitor(&MonitorQuery::default())).collect();
    assert!(streams[..32].iter().all(Result::is_ok));
    assert_eq!(streams[32].as_ref().unwrap_err().status(), Some(429));
    assert!(server.client().status(false).is_ok(), "requests are counted on their own");
}

#[test]
fn a_stream_does_not_keep_the_server_alive() {
    let mut server = Server::start();
    let client = server.client();
    let _stream = client.monitor(&MonitorQuery::default()).unwrap();
    let (ended, end) = std::sync::mpsc::channel();
    let stopping = std::thread::spawn(move || {
        server.stop();
        ended.send(()).unwrap();
    });
    end.recv_timeout(PATIENCE).unwrap();
    stopping.join().unwrap();
}
