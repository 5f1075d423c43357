//! What is known about the cluster before it is asked: `kvstore-opt` and the file that `etcd.config` names.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use etcd_client::{Certificate, Identity, TlsOptions};
use thiserror::Error;
use tokio::time::Instant;
use x509_parser::{pem::parse_x509_pem, time::ASN1Time};

use super::file;
use crate::pages::LARGEST_PAGE;

/// Largest message that is taken: pages of the largest values that etcd stores by default (1.5 MiB each).
const MAX_MESSAGE: usize = 512 << 20;

/// How to reach a cluster of etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdOptions {
    /// URLs of its members, at least one.
    pub endpoints: Vec<String>,
    /// Certificates; needed for `https` only.
    pub tls: Option<EtcdTls>,
    /// User and password, where the certificate does not say who we are.
    pub user: Option<(String, String)>,
    /// Requests a second (`etcd.qps`).
    pub qps: u32,
    /// Requests a second until the first lists are read (`etcd.bootstrapQps`).
    pub bootstrap_qps: u32,
    /// Requests that may be under way at once (`etcd.maxInflight`); 0 as many as `qps`.
    pub max_inflight: u32,
    /// Keys per page of a list, at most (`etcd.limit`).
    pub page: usize,
    /// Bytes of a message at most. A page of a list that has more is asked for again as a smaller one.
    pub max_message: usize,
    /// How often an idle connection is tried (`etcd.keepaliveHeartbeat`).
    pub keepalive_heartbeat: Duration,
    /// How long it may take to answer that (`etcd.keepaliveTimeout`).
    pub keepalive_timeout: Duration,
    /// Whether it is tried although nobody waits for an answer.
    pub keepalive_idle: bool,
    /// How long a member may take to be connected to.
    pub dial_timeout: Duration,
}

/// Files of certificates, read when a connection is made, and again when they change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EtcdTls {
    /// Who signs the members' certificates.
    pub ca: Option<PathBuf>,
    /// Our certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// Options that cannot be used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum OptionsError {
    /// A value or a combination of values.
    #[error("{option}: {reason}")]
    Value {
        /// The option.
        option: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The file of `etcd.config`.
    #[error("etcd.config {path:?}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A certificate or key.
    #[error("{path:?} cannot be read: {reason}")]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// The keys of `kvstore-opt`.
const KEYS: [&str; 8] = [
    "etcd.address",
    "etcd.config",
    "etcd.qps",
    "etcd.bootstrapQps",
    "etcd.maxInflight",
    "etcd.limit",
    "etcd.keepaliveHeartbeat",
    "etcd.keepaliveTimeout",
];

// === impl EtcdOptions ===

impl EtcdOptions {
    /// The members, everything else as by default.
    #[must_use]
    pub fn new(endpoints: Vec<String>) -> Self {
        Self {
            endpoints,
            tls: None,
            user: None,
            qps: 20,
            bootstrap_qps: 10_000,
            max_inflight: 0,
            page: LARGEST_PAGE,
            max_message: MAX_MESSAGE,
            keepalive_heartbeat: Duration::from_secs(15),
            keepalive_timeout: Duration::from_secs(25),
            keepalive_idle: true,
            dial_timeout: Duration::from_secs(5),
        }
    }

    /// Reads the values of `kvstore-opt`, and the file that `etcd.config` names.
    ///
    /// # Errors
    /// Keys that nobody knows, values that are none, a file that cannot be used.
    pub fn read(options: &BTreeMap<String, String>) -> Result<Self, OptionsError> {
        if let Some(unknown) = options.keys().find(|key| !KEYS.contains(&key.as_str())) {
            let reason = format!("no such key of kvstore-opt; there are {}", KEYS.join(", "));
            return Err(value(unknown, reason));
        }
        let mut read = match (options.get("etcd.config"), options.get("etcd.address")) {
            (Some(path), _) => Self::read_file(Path::new(path))?,
            (None, Some(address)) => Self::new(address.split(',').map(|one| one.trim().to_owned()).collect()),
            (None, None) => {
                let reason = "needs `etcd.address` (a URL) or `etcd.config` (a file)".to_owned();
                return Err(value("kvstore-opt", reason));
            }
        };
        if let (Some(_), Some(address)) = (options.get("etcd.config"), options.get("etcd.address")) {
            read.endpoints = address.split(',').map(|one| one.trim().to_owned()).collect();
        }
        let number = |key: &str, default: u32| match options.get(key).map(|text| text.parse()) {
            None => Ok(default),
            Some(Ok(number)) if number > 0 => Ok(number),
            Some(_) => Err(value(key, "must be a number above 0".to_owned())),
        };
        read.qps = number("etcd.qps", read.qps)?;
        read.bootstrap_qps = number("etcd.bootstrapQps", read.bootstrap_qps.max(read.qps))?;
        read.max_inflight = number("etcd.maxInflight", read.qps)?;
        read.page = number("etcd.limit", LARGEST_PAGE as u32)? as usize;
        let seconds = |key: &str, default: Duration| match options.get(key) {
            None => Ok(default),
            Some(text) => {
                duration(text).ok_or_else(|| value(key, "must be a time like `15s` or `1m30s`".to_owned()))
            }
        };
        read.keepalive_heartbeat = seconds("etcd.keepaliveHeartbeat", read.keepalive_heartbeat)?;
        read.keepalive_timeout = seconds("etcd.keepaliveTimeout", read.keepalive_timeout)?;
        read.check()?;
        Ok(read)
    }

    /// Reads the file of `etcd.config`.
    ///
    /// # Errors
    /// It cannot be read, is no such file, or asks for what is not offered.
    pub fn read_file(path: &Path) -> Result<Self, OptionsError> {
        let wrong = |reason: String| OptionsError::File { path: path.to_owned(), reason };
        let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        let (options, without_effect) = file::read(&text).map_err(wrong)?;
        for field in without_effect {
            file::warn_once(path, field);
        }
        options.check()?;
        Ok(options)
    }

    pub(super) fn check(&self) -> Result<(), OptionsError> {
        if self.endpoints.is_empty() {
            return Err(value(
                "endpoints",
                "at least one is needed, for example `https://10.0.0.1:2379`".to_owned(),
            ));
        }
        for endpoint in &self.endpoints {
            let rest = endpoint.strip_prefix("http://").or_else(|| endpoint.strip_prefix("https://"));
            let Some(rest) = rest.filter(|rest| !rest.is_empty()) else {
                let reason = format!("`{endpoint}` must begin with http:// or https:// and name a host");
                return Err(value("endpoints", reason));
            };
            if endpoint.parse::<tonic::transport::Uri>().is_err() || rest.contains(char::is_whitespace) {
                return Err(value("endpoints", format!("`{endpoint}` is no URL")));
            }
            if self.tls.is_some() && endpoint.starts_with("http://") {
                let reason =
                    format!("`{endpoint}` is not encrypted, but certificates are given; write https://");
                return Err(value("endpoints", reason));
            }
        }
        Ok(())
    }

    pub(super) fn inflight(&self) -> usize {
        (if self.max_inflight == 0 { self.qps } else { self.max_inflight }) as usize
    }

    /// When each file of certificates was last written; empty without any.
    pub(super) fn changed(&self) -> Vec<Option<SystemTime>> {
        let Some(tls) = &self.tls else { return Vec::new() };
        let (cert, key) = tls.identity.as_ref().map_or((None, None), |(cert, key)| (Some(cert), Some(key)));
        [tls.ca.as_ref(), cert, key]
            .into_iter()
            .flatten()
            .map(|path| std::fs::metadata(path).and_then(|meta| meta.modified()).ok())
            .collect()
    }
}

// === impl EtcdTls ===

impl EtcdTls {
    pub(super) fn load(&self) -> Result<TlsOptions, OptionsError> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|error| OptionsError::Certificate {
                path: path.to_owned(),
                reason: error.to_string(),
            })
        };
        let mut tls = TlsOptions::new();
        if let Some(ca) = &self.ca {
            tls = tls.ca_certificate(Certificate::from_pem(pem(ca, read(ca)?, "CERTIFICATE")?));
        }
        if let Some((cert, key)) = &self.identity {
            let cert_pem = pem(cert, read(cert)?, "CERTIFICATE")?;
            tls = tls.identity(Identity::from_pem(cert_pem, pem(key, read(key)?, "PRIVATE KEY")?));
        }
        Ok(tls)
    }

    /// Why nobody accepts our certificate now, by this machine's clock: it has expired, or it is not valid yet.
    pub(super) fn invalid_now(&self) -> Option<String> {
        let (path, _) = self.identity.as_ref()?;
        let bytes = std::fs::read(path).ok()?;
        let (_, pem) = parse_x509_pem(&bytes).ok()?;
        let certificate = pem.parse_x509().ok()?;
        let validity = certificate.validity();
        let (now, path) = (ASN1Time::now(), path.display());
        if now > validity.not_after {
            return Some(format!("{path} has expired at {}: renew it", validity.not_after));
        }
        (now < validity.not_before).then(|| {
            format!(
                "{path} is valid from {} on, and it is {now} here: look at the clock",
                validity.not_before
            )
        })
    }
}

/// A file that is being written is often empty or cut; such a one is not taken.
fn pem(path: &Path, bytes: Vec<u8>, what: &str) -> Result<Vec<u8>, OptionsError> {
    let text = String::from_utf8_lossy(&bytes);
    let whole = text.contains(&format!("{what}-----"))
        && text.matches("-----BEGIN ").count() == text.matches("-----END ").count();
    if whole {
        return Ok(bytes);
    }
    let reason = format!("it holds no complete `{what}` in PEM");
    Err(OptionsError::Certificate { path: path.to_owned(), reason })
}

fn value(option: &str, reason: String) -> OptionsError {
    OptionsError::Value { option: option.to_owned(), reason }
}

/// A duration as Go writes it, of whole hours, minutes, seconds and milliseconds.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let (mut total, mut rest) = (Duration::ZERO, text);
    while !rest.is_empty() {
        let (digits, behind) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
        let end = behind.find(|c: char| c.is_ascii_digit()).unwrap_or(behind.len());
        let unit = match &behind[..end] {
            "h" => 3_600_000,
            "m" => 60_000,
            "s" => 1000,
            "ms" => 1,
            _ => return None,
        };
        let some = Duration::from_millis(digits.parse::<u64>().ok()?.checked_mul(unit)?);
        total = total.checked_add(some)?;
        rest = &behind[end..];
    }
    (total > Duration::ZERO).then_some(total)
}

/// At most so many turns a second; a second's worth may come at once.
pub(super) struct Rate {
    step: Duration,
    burst: Duration,
    /// When the next turn would be, if turns came evenly.
    next: Mutex<Instant>,
}

// === impl Rate ===

impl Rate {
    pub(super) fn new(per_second: u32) -> Self {
        let step = Duration::from_secs(1) / per_second.max(1);
        Self { step, burst: Duration::from_secs(1), next: Mutex::new(Instant::now()) }
    }

    /// Waits for a turn.
    pub(super) async fn wait(&self) {
        let wait = {
            let now = Instant::now();
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            *next = (*next).max(now.checked_sub(self.burst).unwrap_or(now)) + self.step;
            next.saturating_duration_since(now)
        };
        if wait > Duration::ZERO {
            tokio::time::sleep(wait).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<EtcdOptions, OptionsError> {
        EtcdOptions::read(&pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn options_are_read_and_what_is_wrong_is_named() {
        let options = read(&[("etcd.address", "http://a:2379,http://b:2379"), ("etcd.qps", "100")]).unwrap();
        assert_eq!((options.endpoints.len(), options.qps, options.inflight()), (2, 100, 100));
        for (pairs, says) in [
            (vec![], "etcd.address"),
            (vec![("etcd.adress", "x")], "etcd.adress"),
            (vec![("etcd.address", "a:2379")], "http://"),
            (vec![("etcd.address", "http://a"), ("etcd.qps", "0")], "above 0"),
            (vec![("etcd.address", "http://a"), ("etcd.keepaliveTimeout", "soon")], "15s"),
            (vec![("etcd.config", "/nowhere/etcd.yaml")], "/nowhere/etcd.yaml"),
        ] {
            let error = read(&pairs).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn what_is_wrong_with_the_file_is_said_with_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("etcd.yaml");
        for (text, says) in [
            ("endpoints: [\"https://a\"]\ncert-file: /a", "belong together"),
            ("endpoints: [\"https://a\"]\ninsecure-skip-tls-verify: true", "trusted-ca-file"),
            ("endpoints: [\"https://a\"]\ntoken: abc", "cert-file"),
            ("endpoint: [\"http://a\"]", "did you mean `endpoints`"),
            ("endpoints: [\"http://a\"]\nDial-Timeout: 5s", "did you mean `dial-timeout`"),
            ("endpoints: [\"http://a\"]\nfavourite-colour: red", "favourite-colour"),
            ("endpoints: [\"http://a\"]\ndial-timeout: 5", "nanoseconds"),
            ("endpoints: [\"http://a\"]\ndial-keep-alive-time: soon", "dial-keep-alive-time"),
            ("endpoints: http://a", "`endpoints`"),
            ("endpoints: [\"http://a\"]\nusername: a\npassword: 123", "`password` must be text"),
            ("{", "etcd.yaml"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = EtcdOptions::read_file(&path).unwrap_err().to_string();
            assert!(error.contains(says) && error.contains("etcd.yaml"), "{error}");
        }
        for (text, says) in [
            ("endpoints: []", "at least one"),
            ("endpoints: [\"http://a\"]\ntrusted-ca-file: /ca", "not encrypted"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = EtcdOptions::read_file(&path).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn times_are_those_of_go() {
        let ms = |text: &str| duration(text).map(|time| time.as_millis());
        assert_eq!(ms("1h2m3s4ms"), Some(3_723_004));
        assert_eq!(["", "5", "s", "0s", "1d", "1.5s"].map(ms), [None; 6]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_of_turns_comes_at_once_and_the_others_evenly() {
        let rate = Rate::new(1000);
        tokio::time::advance(Duration::from_secs(60)).await;
        let begin = Instant::now();
        for _ in 0..3001 {
            rate.wait().await;
        }
        let took = begin.elapsed().as_millis();
        assert!((2000..2010).contains(&took), "{took} ms");
    }
}
