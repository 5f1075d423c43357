//! The socket's life, and what a client says when it cannot be used.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        net::UnixListener,
    },
    time::Duration,
};

use common::Server;
use villus_api::{Client, ClientError, Socket, SocketOptions};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn bind(options: &SocketOptions) -> Result<Socket, String> {
    runtime().block_on(async { Socket::bind(options) }).map_err(|error| error.to_string())
}

#[test]
fn a_stale_socket_is_replaced_with_mode_and_group() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("villus.sock");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "left behind as by a crash");
    let gid = fs::metadata(directory.path()).unwrap().gid();
    let options = SocketOptions { path: path.clone(), mode: 0o600, group: Some(gid.to_string()) };
    let runtime = runtime();
    let socket = runtime.block_on(async { Socket::bind(&options) }).unwrap();
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!((metadata.permissions().mode() & 0o777, metadata.gid()), (0o600, gid));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing else is left");
    drop(socket);
    assert!(!path.exists());
}

#[test]
fn a_socket_of_another_agent_is_not_removed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("villus.sock");
    let options = SocketOptions { path: path.clone(), ..SocketOptions::default() };
    let runtime = runtime();
    let first = runtime.block_on(async { Socket::bind(&options) }).unwrap();
    fs::remove_file(&path).unwrap();
    let _second = UnixListener::bind(&path).unwrap();
    drop(first);
    assert!(path.exists());
}

#[test]
fn what_stands_in_the_way_is_named() {
    let server = Server::start();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "precious").unwrap();
    let options = |path: &std::path::Path| SocketOptions { path: path.into(), ..SocketOptions::default() };
    let cases = [
        (options(&server.path), "another agent answers on"),
        (options(&file), "is no socket"),
        (options(&directory.path().join("x".repeat(200))), "107 bytes"),
        (options(&file.join("villus.sock")), "cannot create the directory"),
        (
            SocketOptions {
                group: Some("no-such-group-here".into()),
                ..options(&directory.path().join("s"))
            },
            "groupadd no-such-group-here",
        ),
    ];
    for (options, needle) in cases {
        let error = bind(&options).unwrap_err();
        assert!(error.contains(needle), "{error}");
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    assert!(server.client().status(false).is_ok(), "the one that answers is not disturbed");
}

#[test]
fn a_client_without_an_agent_says_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("villus.sock");
    let error = Client::new(&path).unwrap().status(false).unwrap_err();
    assert!(error.no_agent());
    let text = error.to_string();
    assert!(text.contains("villus.sock: there is no such socket; is it running?"), "{text}");
    assert!(text.contains("systemctl status villus"), "{text}");

    drop(UnixListener::bind(&path).unwrap());
    let error = Client::new(&path).unwrap().status(false).unwrap_err();
    assert!(error.no_agent() && error.to_string().contains("nobody listens"), "{error}");
}

#[test]
fn an_agent_that_is_stopped_in_a_debugger_times_out() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("villus.sock");
    let _deaf = UnixListener::bind(&path).unwrap();
    let client = Client::new(&path).unwrap().with_timeout(Duration::from_millis(50));
    let error = client.status(false).unwrap_err();
    assert!(matches!(error, ClientError::Timeout { .. }) && !error.no_agent(), "{error}");
}

#[test]
fn an_agent_that_speaks_something_else_breaks_clearly() {
    use std::io::{Read, Write};
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("villus.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let task = std::thread::spawn(move || {
        for answer in ["220 mail ready\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n5"] {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    let client = Client::new(&path).unwrap().with_timeout(Duration::from_secs(60));
    assert!(matches!(client.config().unwrap_err(), ClientError::Broken { .. }));
    let text = client.identity(1).unwrap_err().to_string();
    assert!(text.contains("GET /v1/identity/1 cannot be understood"), "{text}");
    task.join().unwrap();
}

#[test]
fn the_host_names_the_socket() {
    let client = Client::from_host(Some("unix:///tmp/a.sock")).unwrap();
    assert_eq!(client.path().to_str(), Some("/tmp/a.sock"));
    assert_eq!(Client::from_host(Some("/tmp/b.sock")).unwrap().path().to_str(), Some("/tmp/b.sock"));
}
