//! Real etcd servers, started and stopped by tests.

use std::{
    fs::File,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal};
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;

/// One member, or the only one. Gone with this value.
pub struct EtcdServer {
    directory: TempDir,
    child: Option<Child>,
    arguments: Vec<String>,
    address: String,
    /// Certificates that `etcdctl` needs.
    secure: Vec<String>,
}

/// How long a request may take: disks of busy machines are slow, and only a member that is away takes so long.
const PATIENCE: &str = "30s";

/// A port that nobody listens on now, and that no outgoing connection is given: the kernel takes those from 32768 up.
fn port(address: &str) -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = std::process::id().wrapping_mul(67).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(20_000 + number % 12_000).unwrap();
        // Nothing listens here, for a process that is started just then would listen on by its copy, and etcd could not.
        let at = SocketAddr::new(address.parse().unwrap(), port);
        let socket = Socket::new(Domain::for_address(at), Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        if socket.bind(&at.into()).is_ok() {
            return port;
        }
    }
}

/// Arguments of a server that wants certificates of its clients.
fn server_side(certificates: &Path) -> [(&'static str, String); 4] {
    let file = |name: &str| certificates.join(name).display().to_string();
    [
        ("client-cert-auth", "true".to_owned()),
        ("trusted-ca-file", file("ca.crt")),
        ("cert-file", file("server.crt")),
        ("key-file", file("server.key")),
    ]
}

/// Arguments of an `etcdctl` that shows the administrator's.
fn client_side(certificates: &Path) -> Vec<String> {
    let files = [("cacert", "ca.crt"), ("cert", "admin.crt"), ("key", "admin.key")];
    files.iter().map(|(name, file)| format!("--{name}={}", certificates.join(file).display())).collect()
}

/// A port of loopback for a server that is started later. Nobody listens on it now, and no outgoing connection is given it
/// meanwhile, as happens to ports that the kernel chooses.
pub fn free_port() -> u16 {
    port("127.0.0.1")
}

impl EtcdServer {
    /// An etcd of one member on loopback, ready.
    pub fn start() -> Self {
        Self::cluster(1).pop().unwrap()
    }

    /// An etcd of several members, ready.
    pub fn cluster(size: usize) -> Vec<Self> {
        Self::cluster_at("127.0.0.1", size, &[])
    }

    /// An etcd of several members on an address of this host, with more arguments, ready.
    pub fn cluster_at(address: &str, size: usize, more: &[&str]) -> Vec<Self> {
        Self::start_cluster(address, size, more, None)
    }

    /// As [`Self::cluster_at`], of members that want certificates of their clients as [`Self::secure_at`] does.
    pub fn secure_cluster_at(address: &str, certificates: &Path, size: usize, more: &[&str]) -> Vec<Self> {
        Self::start_cluster(address, size, more, Some(certificates))
    }

    fn start_cluster(address: &str, size: usize, more: &[&str], certificates: Option<&Path>) -> Vec<Self> {
        let scheme = if certificates.is_some() { "https" } else { "http" };
        let at = || format!("{address}:{}", port(address));
        let members: Vec<(String, String)> = (0..size).map(|_| (at(), at())).collect();
        let all: Vec<String> =
            members.iter().enumerate().map(|(n, (_, peer))| format!("m{n}=http://{peer}")).collect();
        let mut servers: Vec<Self> = members
            .iter()
            .enumerate()
            .map(|(n, (client, peer))| {
                let directory = tempfile::tempdir().unwrap();
                let arguments = [
                    ("name", format!("m{n}")),
                    ("data-dir", directory.path().join("data").display().to_string()),
                    ("listen-client-urls", format!("{scheme}://{client}")),
                    ("advertise-client-urls", format!("{scheme}://{client}")),
                    ("listen-peer-urls", format!("http://{peer}")),
                    ("initial-advertise-peer-urls", format!("http://{peer}")),
                    ("initial-cluster", all.join(",")),
                    ("log-level", "error".to_owned()),
                ];
                let arguments = arguments.into_iter().chain(certificates.into_iter().flat_map(server_side));
                let arguments = arguments.map(|(name, value)| format!("--{name}={value}"));
                let arguments = arguments.chain(more.iter().map(|argument| (*argument).to_owned())).collect();
                let secure = certificates.map(client_side).unwrap_or_default();
                Self { directory, child: None, arguments, address: client.clone(), secure }
            })
            .collect();
        servers.iter_mut().for_each(Self::resume);
        servers.iter().for_each(Self::wait);
        servers
    }

    /// An etcd of one member that wants certificates of its clients. The folder holds `ca.crt` and `server.crt`,
    /// `server.key`, `admin.crt` and `admin.key`.
    pub fn secure(certificates: &Path) -> Self {
        Self::secure_at("127.0.0.1", certificates)
    }

    /// As [`Self::secure`], on an address of this host for which its certificate is.
    pub fn secure_at(address: &str, certificates: &Path) -> Self {
        let (directory, address, peer) = (
            tempfile::tempdir().unwrap(),
            format!("{address}:{}", port(address)),
            format!("127.0.0.1:{}", port("127.0.0.1")),
        );
        let arguments = [
            ("data-dir", directory.path().join("data").display().to_string()),
            ("listen-client-urls", format!("https://{address}")),
            ("advertise-client-urls", format!("https://{address}")),
            ("listen-peer-urls", format!("http://{peer}")),
            ("log-level", "error".to_owned()),
        ];
        let arguments = arguments.into_iter().chain(server_side(certificates));
        let mut server = Self {
            directory,
            child: None,
            arguments: arguments.map(|(name, value)| format!("--{name}={value}")).collect(),
            address,
            secure: client_side(certificates),
        };
        server.resume();
        server.wait();
        server
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("{}://{}", if self.secure.is_empty() { "http" } else { "https" }, self.address)
    }

    /// Kills it: kill -9.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Starts it again with what it has on disk; does not wait.
    pub fn resume(&mut self) {
        let log = File::options().create(true).append(true).open(self.directory.path().join("log")).unwrap();
        let child = Command::new("etcd")
            .args(&self.arguments)
            // What the environment says about another etcd is not for this one.
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("etcd (package etcd-server)");
        self.child = Some(child);
    }

    /// Stops it, as if its machine stood still: its connections stay and nothing answers.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on after [`Self::pause`].
    pub fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("it runs");
        rustix::process::kill_process(Pid::from_child(child), signal).unwrap();
    }

    /// Throws its data away; it must be dead.
    pub fn wipe(&self) {
        assert!(self.child.is_none());
        std::fs::remove_dir_all(self.directory.path().join("data")).unwrap();
    }

    /// Writes a backup of what it holds.
    pub fn save(&self, backup: &Path) {
        let _ = std::fs::remove_file(backup);
        self.etcdctl(&["snapshot", "save", &backup.display().to_string()]).expect("a backup");
    }

    /// Replaces its data by those of a backup; it must be dead.
    pub fn restore(&self, backup: &Path) {
        self.wipe();
        let own = ["--name=", "--data-dir=", "--initial-cluster=", "--initial-advertise-peer-urls="];
        let restored = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["snapshot", "restore", &backup.display().to_string()])
            .args(self.arguments.iter().filter(|argument| own.iter().any(|own| argument.starts_with(own))))
            .output()
            .expect("etcdctl (package etcd-client)");
        assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
    }

    /// Waits until it answers reads that need a quorum.
    pub fn wait(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !(TcpStream::connect(&self.address).is_ok() && self.etcdctl(&["get", "nothing"]).is_some()) {
            let log = std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "etcd does not come up: {log}");
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    /// Runs `etcdctl` against it; `None` if that failed.
    pub fn etcdctl(&self, arguments: &[&str]) -> Option<String> {
        self.etcdctl_reading("", arguments)
    }

    /// As [`Self::etcdctl`], with text on its standard input.
    pub fn etcdctl_reading(&self, input: &str, arguments: &[&str]) -> Option<String> {
        // Who is dead answers nobody, however long that is waited for.
        self.child.as_ref()?;
        let mut child = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.url(), "--command-timeout", PATIENCE, "--dial-timeout", PATIENCE])
            .args(&self.secure)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("etcdctl (package etcd-client)");
        // It may be gone already.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    }

    /// Requests that it has answered since it started, watches not among them; `None` if it does not say.
    pub fn requests(&self) -> Option<u64> {
        let mut stream = TcpStream::connect(&self.address).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(60))).ok()?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").ok()?;
        let mut metrics = String::new();
        stream.read_to_string(&mut metrics).ok()?;
        let handled = metrics.lines().filter(|line| line.starts_with("grpc_server_handled_total{"));
        let count = |line: &str| line.rsplit(' ').next()?.parse::<f64>().ok();
        Some(handled.filter_map(count).map(|count| count as u64).sum())
    }

    /// Whether it leads its cluster.
    pub fn leads(&self) -> bool {
        let status = self.etcdctl(&["endpoint", "status", "-w", "simple"]).unwrap_or_default();
        status.split(',').nth(4).is_some_and(|leader| leader.trim() == "true")
    }

    /// Which of these members, that all run, leads. Waits until one does: on a busy machine they elect another at any time.
    pub fn leader(members: &[Self]) -> usize {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(leader) = members.iter().position(Self::leads) {
                return leader;
            }
            assert!(Instant::now() < deadline, "no member of etcd leads");
            std::thread::sleep(Duration::from_millis(30));
        }
    }
}

impl Drop for EtcdServer {
    fn drop(&mut self) {
        self.kill();
    }
}
