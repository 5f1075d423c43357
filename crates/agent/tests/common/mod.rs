//! A node of a test's own: namespaces, a bpffs, directories, and an agent as a process that can be killed.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

pub mod resource;
pub mod secured;
pub mod store;

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use villus_api::model::{Endpoint, EndpointChangeRequest, PolicyImport};
use villus_api::{Client, ClientError, EndpointRef};
use villus_config::{Config, Sources};
use villus_net::{Netns, NetnsRef};
use villus_testbed::{Clock, run, try_run};

/// How long is waited for what must come: only a failure takes so long.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How long is waited for what must not come.
pub const SHORT: Duration = Duration::from_secs(1);

/// Tells a process that it is the agent, and its options.
const AGENT: &str = "VILLUS_TEST_AGENT";
/// Tells a process that it runs in a pod of Kubernetes.
const IN_A_POD: &str = "KUBERNETES_SERVICE_HOST";

/// The agent itself; every test file has a test of this name that calls this.
pub fn be_the_agent() {
    let Some(options) = std::env::var_os(AGENT) else { return };
    let options: Vec<(String, String)> = serde_json::from_str(options.to_str().unwrap()).unwrap();
    let sources = options.iter().fold(Sources::new(), |sources, (name, text)| sources.flag(name, text));
    let config = Config::load(sources).unwrap();
    if let Err(error) = villus_agent::run(config, villus_agent::signals()) {
        eprintln!("agent: {error}");
        std::process::exit(3);
    }
    std::process::exit(0);
}

/// Makes the running of this program that of the agent.
pub fn as_agent<'a>(command: &'a mut Command, options: &[(String, String)]) -> &'a mut Command {
    command
        .args(["--exact", "the_agent", "--nocapture"])
        .env(AGENT, serde_json::to_string(options).unwrap())
        .env_remove(IN_A_POD)
}

/// Directories, options and the agent of one node.
pub struct TestNode {
    pub root: PathBuf,
    pub options: Vec<(String, String)>,
    pub agent: Option<Child>,
    /// The network namespace that is the node; none: that of the test.
    pub netns: Option<String>,
    /// The agent runs in a pod of Kubernetes.
    pub in_a_pod: bool,
    /// Where the agent's log goes; none: that of the test.
    pub log: Option<PathBuf>,
    /// The agent's calendar; none: the right one.
    pub clock: Option<Clock>,
}

impl TestNode {
    /// A node without an agent yet.
    pub fn new(options: &[(&str, &str)]) -> Self {
        Self::at("/tmp/node".into(), None, options)
    }

    /// One of several nodes: its directory, and its network namespace.
    pub fn at(root: PathBuf, netns: Option<&str>, options: &[(&str, &str)]) -> Self {
        std::fs::create_dir_all(root.join("policies")).unwrap();
        let place = |name: &str| root.join(name).display().to_string();
        let mut all: Vec<(String, String)> = [
            ("state-dir", place("run")),
            ("lib-dir", place("lib")),
            ("bpf-root", place("bpf")),
            ("socket-path", place("villus.sock")),
            ("static-cnp-path", place("policies")),
            ("ipv4-range", "10.11.0.0/24".into()),
            ("ipv6-range", "fd11::/112".into()),
            ("bpf-ct-global-tcp-max", "4096".into()),
            ("bpf-ct-global-any-max", "4096".into()),
            ("endpoint-max", "512".into()),
        ]
        .map(|(name, text)| (name.to_owned(), text))
        .into();
        all.retain(|(name, _)| !options.iter().any(|(other, _)| other == name));
        all.extend(options.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())));
        let netns = netns.map(str::to_owned);
        Self { root, options: all, agent: None, netns, in_a_pod: false, log: None, clock: None }
    }

    /// A node with an agent that serves.
    pub fn started(options: &[(&str, &str)]) -> Self {
        let mut node = Self::new(options);
        node.start();
        node
    }

    /// Starts the agent and waits for nothing.
    pub fn spawn(&mut self) {
        let program = std::env::current_exe().unwrap();
        let mut command = match &self.netns {
            None => Command::new(program),
            Some(netns) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/run/netns/{netns}")).arg(program);
                command
            }
        };
        let command = as_agent(&mut command, &self.options).stdout(Stdio::null());
        if self.in_a_pod {
            command.env(IN_A_POD, "10.96.0.1");
        }
        if let Some(clock) = &self.clock {
            clock.give(command);
        }
        if let Some(log) = &self.log {
            command.stderr(std::fs::File::options().create(true).append(true).open(log).unwrap());
        }
        let child = command.spawn().unwrap();
        self.agent = Some(child);
    }

    /// Starts the agent and waits until it serves; says how long that took.
    pub fn start(&mut self) -> Duration {
        let begin = Instant::now();
        self.spawn();
        // The kernel takes seconds of a CPU to look at the programs, and many may want that CPU.
        let limit = begin + 3 * PATIENCE;
        loop {
            if let Some(status) = self.agent.as_mut().unwrap().try_wait().unwrap() {
                panic!("the agent ended: {status}");
            }
            if self.client().endpoints(&[]).is_ok() {
                return begin.elapsed();
            }
            assert!(Instant::now() < limit, "the agent does not serve");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn client(&self) -> Client {
        Client::new(self.root.join("villus.sock")).unwrap()
    }

    pub fn pid(&self) -> u32 {
        self.agent.as_ref().unwrap().id()
    }

    /// The options as the agent reads them.
    pub fn config(&self) -> Config {
        let sources =
            self.options.iter().fold(Sources::new(), |sources, (name, text)| sources.flag(name, text));
        Config::load(sources).unwrap()
    }

    /// Starts an agent that must refuse; what it said.
    pub fn refused(&mut self) -> String {
        let output =
            as_agent(&mut Command::new(std::env::current_exe().unwrap()), &self.options).output().unwrap();
        assert_eq!(output.status.code(), Some(3));
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Kills the agent as nothing can be caught.
    pub fn kill(&mut self) {
        let mut child = self.agent.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Lets the agent stand still.
    pub fn pause(&self) {
        run("kill", &["-STOP", &self.pid().to_string()]);
    }

    /// Lets one that stands still go on.
    pub fn go_on(&self) {
        run("kill", &["-CONT", &self.pid().to_string()]);
    }

    /// Tells the agent to end.
    pub fn stop(&mut self) {
        let mut child = self.agent.take().unwrap();
        run("kill", &["-TERM", &child.id().to_string()]);
        assert!(child.wait().unwrap().success());
    }

    /// A workload: a namespace of that name and an endpoint with these labels in it.
    pub fn workload(&self, name: &str, labels: &[&str]) -> Workload {
        run("ip", &["netns", "add", name]);
        let endpoint = self.endpoint(name, labels).unwrap();
        Workload { netns: NetnsRef::Name(name.to_owned()).open().unwrap(), endpoint }
    }

    pub fn endpoint(&self, netns: &str, labels: &[&str]) -> Result<Endpoint, ClientError> {
        let request = EndpointChangeRequest {
            netns: Some(netns.to_owned()),
            labels: labels.iter().map(|label| (*label).to_owned()).collect(),
            ..EndpointChangeRequest::default()
        };
        self.client().create_endpoint(&EndpointRef::Id(0), &request)
    }

    pub fn import(&self, text: &str) -> u64 {
        let import =
            PolicyImport { file: "test.yaml".into(), text: text.to_owned(), ..PolicyImport::default() };
        self.client().import_policy(&import).unwrap().revision
    }

    /// Writes a file of the watched directory.
    pub fn policy_file(&self, name: &str, text: &str) {
        std::fs::write(self.root.join("policies").join(name), text).unwrap();
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }
}

/// A namespace with its endpoint.
pub struct Workload {
    pub netns: Netns,
    pub endpoint: Endpoint,
}

impl Workload {
    pub fn id(&self) -> u16 {
        self.endpoint.id
    }

    pub fn v4(&self) -> IpAddr {
        IpAddr::V4(self.endpoint.status.networking.addressing[0].ipv4.unwrap())
    }

    pub fn v6(&self) -> IpAddr {
        IpAddr::V6(self.endpoint.status.networking.addressing[0].ipv6.unwrap())
    }

    /// Whether an echo request is answered.
    pub fn pings(&self, to: IpAddr) -> bool {
        self.ping(to, PATIENCE)
    }

    /// Whether an echo request is not answered.
    pub fn pings_in_vain(&self, to: IpAddr) -> bool {
        !self.ping(to, SHORT)
    }

    fn ping(&self, to: IpAddr, patience: Duration) -> bool {
        let (to, patience) = (to.to_string(), patience.as_secs().to_string());
        self.netns.run(|| try_run("ping", &["-c1", "-W", &patience, &to]).status.success()).unwrap()
    }

    /// Listens on a TCP port and echoes, for ever.
    pub fn serves(&self, address: IpAddr, port: u16) {
        serves(&self.netns, SocketAddr::new(address, port));
    }

    pub fn connects(&self, to: IpAddr, port: u16) -> std::io::Result<TcpStream> {
        connect(&self.netns, SocketAddr::new(to, port), PATIENCE)
    }

    /// Whether a question over a new connection is answered.
    pub fn asks(&self, to: IpAddr, port: u16) -> bool {
        self.connects(to, port).is_ok_and(|mut stream| echoes(&mut stream))
    }

    /// Whether no new connection comes about.
    pub fn asks_in_vain(&self, to: IpAddr, port: u16) -> bool {
        connect(&self.netns, SocketAddr::new(to, port), SHORT).is_err()
    }

    pub fn udp(&self, address: IpAddr, port: u16) -> UdpSocket {
        let socket = self.netns.run(|| UdpSocket::bind(SocketAddr::new(address, port))).unwrap().unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }
}

/// Listens on a TCP port inside a namespace and echoes, for ever.
pub fn serves(netns: &Netns, at: SocketAddr) {
    echo_to_all(netns.run(|| TcpListener::bind(at)).unwrap().unwrap());
}

/// Echoes to all who connect, for ever.
pub fn echo_to_all(listener: TcpListener) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut buffer = [0; 1024];
                while let Ok(length) = stream.read(&mut buffer) {
                    if length == 0 || stream.write_all(&buffer[..length]).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

/// A connection from a namespace, for whose answers is waited as long as for the connection.
pub fn connect(from: &Netns, to: SocketAddr, patience: Duration) -> std::io::Result<TcpStream> {
    let stream = from.run(|| TcpStream::connect_timeout(&to, patience)).unwrap()?;
    stream.set_read_timeout(Some(patience))?;
    Ok(stream)
}

/// Whether a question over an open connection is answered.
pub fn echoes(stream: &mut TcpStream) -> bool {
    echoes_within(stream, PATIENCE)
}

/// Whether a question over an open connection is not answered.
pub fn echoes_in_vain(stream: &mut TcpStream) -> bool {
    !echoes_within(stream, SHORT)
}

fn echoes_within(stream: &mut TcpStream, patience: Duration) -> bool {
    let mut answer = [0; 5];
    stream.set_read_timeout(Some(patience)).unwrap();
    stream.write_all(b"hello").is_ok() && stream.read_exact(&mut answer).is_ok() && &answer == b"hello"
}

/// A policy: `subject` may be reached by `peer` on a TCP port.
pub fn allow(name: &str, subject: &str, peer: &str, port: u16) -> String {
    format!(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: {name}, namespace: default}}\n\
         spec:\n  endpointSelector: {{matchLabels: {{app: {subject}}}}}\n  ingress:\n  \
         - fromEndpoints: [{{matchLabels: {{app: {peer}}}}}]\n    \
         toPorts: [{{ports: [{{port: \"{port}\", protocol: TCP}}]}}]\n"
    )
}
