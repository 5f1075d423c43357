//! Real etcd servers, started and stopped by tests.

use std::{
    fs::File,
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

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

/// A port that nobody listens on now.
fn port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl EtcdServer {
    /// An etcd of one member on loopback, ready.
    pub fn start() -> Self {
        Self::cluster(1).pop().unwrap()
    }

    /// An etcd of several members, ready.
    pub fn cluster(size: usize) -> Vec<Self> {
        let members: Vec<(String, String)> =
            (0..size).map(|_| (format!("127.0.0.1:{}", port()), format!("127.0.0.1:{}", port()))).collect();
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
                    ("listen-client-urls", format!("http://{client}")),
                    ("advertise-client-urls", format!("http://{client}")),
                    ("listen-peer-urls", format!("http://{peer}")),
                    ("initial-advertise-peer-urls", format!("http://{peer}")),
                    ("initial-cluster", all.join(",")),
                    ("heartbeat-interval", "50".to_owned()),
                    ("election-timeout", "500".to_owned()),
                    ("log-level", "error".to_owned()),
                ];
                let arguments = arguments.iter().map(|(name, value)| format!("--{name}={value}")).collect();
                Self { directory, child: None, arguments, address: client.clone(), secure: Vec::new() }
            })
            .collect();
        servers.iter_mut().for_each(Self::resume);
        servers.iter().for_each(Self::wait);
        servers
    }

    /// An etcd of one member that wants certificates of its clients. The folder holds `ca.crt` and `server.crt`,
    /// `server.key`, `admin.crt` and `admin.key`.
    pub fn secure(certificates: &Path) -> Self {
        let (directory, address, peer) =
            (tempfile::tempdir().unwrap(), format!("127.0.0.1:{}", port()), format!("127.0.0.1:{}", port()));
        let file = |name: &str| certificates.join(name).display().to_string();
        let arguments = [
            ("data-dir", directory.path().join("data").display().to_string()),
            ("listen-client-urls", format!("https://{address}")),
            ("advertise-client-urls", format!("https://{address}")),
            ("listen-peer-urls", format!("http://{peer}")),
            ("client-cert-auth", "true".to_owned()),
            ("trusted-ca-file", file("ca.crt")),
            ("cert-file", file("server.crt")),
            ("key-file", file("server.key")),
            ("log-level", "error".to_owned()),
        ];
        let secure = [("cacert", "ca.crt"), ("cert", "admin.crt"), ("key", "admin.key")];
        let mut server = Self {
            directory,
            child: None,
            arguments: arguments.iter().map(|(name, value)| format!("--{name}={value}")).collect(),
            address,
            secure: secure.iter().map(|(name, value)| format!("--{name}={}", file(value))).collect(),
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

    /// Throws its data away; it must be dead.
    pub fn wipe(&self) {
        assert!(self.child.is_none());
        std::fs::remove_dir_all(self.directory.path().join("data")).unwrap();
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
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.url(), "--command-timeout=5s"])
            .args(&self.secure)
            .args(arguments)
            .output()
            .expect("etcdctl (package etcd-client)");
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    }

    /// Whether it leads its cluster.
    pub fn leads(&self) -> bool {
        let status = self.etcdctl(&["endpoint", "status", "-w", "simple"]).unwrap_or_default();
        status.split(',').nth(4).is_some_and(|leader| leader.trim() == "true")
    }
}

impl Drop for EtcdServer {
    fn drop(&mut self) {
        self.kill();
    }
}
