//! The file of `etcd.config`: that of etcd's own clients (`clientv3/yaml`), every field of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::options::{self, EtcdOptions, EtcdTls};

/// The fields of a file that nobody has taken yet.
struct Fields(BTreeMap<String, Value>);

/// Fields that count here.
const KNOWN: [&str; 14] = [
    "endpoints",
    "trusted-ca-file",
    "ca-file",
    "cert-file",
    "key-file",
    "username",
    "password",
    "token",
    "dial-timeout",
    "dial-keep-alive-time",
    "dial-keep-alive-timeout",
    "permit-without-stream",
    "insecure-transport",
    "insecure-skip-tls-verify",
];
/// Fields that etcd's clients know and that change nothing here. Members are those of `endpoints`, what is tried again and
/// when is decided for each request, and messages may be as large as any that etcd sends.
const WITHOUT_EFFECT: [&str; 14] = [
    "auto-sync-interval",
    "reject-old-cluster",
    "max-unary-retries",
    "backoff-wait-between",
    "backoff-jitter-fraction",
    "backoff-exponent",
    "backoff-max-wait-between",
    "MaxCallSendMsgSize",
    "MaxCallRecvMsgSize",
    "TLS",
    "DialOptions",
    "Context",
    "Logger",
    "LogConfig",
];
/// Shorter times in such a file are numbers that were not meant as nanoseconds.
const SHORTEST: u64 = 1_000_000;

/// Reads the text of such a file. Says also which fields of it have no effect. `Err`: what is wrong.
pub(super) fn read(text: &str) -> Result<(EtcdOptions, Vec<&'static str>), String> {
    let fields: BTreeMap<String, Value> = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    let is_known = |field: &str| KNOWN.contains(&field) || WITHOUT_EFFECT.contains(&field);
    if let Some(unknown) = fields.keys().find(|field| !is_known(field)) {
        return Err(format!("`{unknown}` is no field of such a file; {}", suggestion(unknown)));
    }
    let without_effect = WITHOUT_EFFECT.into_iter().filter(|field| fields.contains_key(*field)).collect();
    Ok((Fields(fields).options()?, without_effect))
}

fn suggestion(field: &str) -> String {
    let alike = |known: &&str| strsim::damerau_levenshtein(&field.to_lowercase().replace('_', "-"), known);
    match KNOWN.iter().min_by_key(|known| alike(known)).filter(|known| alike(known) <= field.len() / 4) {
        Some(known) => format!("did you mean `{known}`?"),
        None => format!("those that count are {}", KNOWN.join(", ")),
    }
}

/// Says that a field of a file has no effect, the first time that it is read.
pub(super) fn warn_once(path: &Path, field: &'static str) {
    static SAID: Mutex<BTreeSet<(PathBuf, &'static str)>> = Mutex::new(BTreeSet::new());
    if SAID.lock().unwrap_or_else(PoisonError::into_inner).insert((path.to_owned(), field)) {
        tracing::warn!(file = %path.display(), field, "a field of the file of etcd.config has no effect here");
    }
}

// === impl Fields ===

impl Fields {
    fn options(mut self) -> Result<EtcdOptions, String> {
        if self.take("insecure-skip-tls-verify")? == Some(true) {
            return Err(
                "`insecure-skip-tls-verify` is not offered: whoever answers could change every policy; \
                        name the CA in `trusted-ca-file`"
                    .to_owned(),
            );
        }
        if self.text("token")?.is_some() {
            return Err("`token` is not offered; give `username` and `password`, or a certificate in \
                        `cert-file` and `key-file`"
                .to_owned());
        }
        let ca = self.text("trusted-ca-file")?.or(self.text("ca-file")?);
        let identity = self.both("cert-file", "key-file")?;
        let tls = EtcdTls {
            ca: ca.map(PathBuf::from),
            identity: identity.map(|(cert, key)| (cert.into(), key.into())),
        };
        let is_plain = self.take("insecure-transport")?.unwrap_or(false);
        let by_default = EtcdOptions::new(self.take("endpoints")?.unwrap_or_default());
        Ok(EtcdOptions {
            tls: (!is_plain && tls != EtcdTls::default()).then_some(tls),
            user: self.both("username", "password")?,
            dial_timeout: self.time("dial-timeout")?.unwrap_or(by_default.dial_timeout),
            keepalive_heartbeat: self.time("dial-keep-alive-time")?.unwrap_or(by_default.keepalive_heartbeat),
            keepalive_timeout: self.time("dial-keep-alive-timeout")?.unwrap_or(by_default.keepalive_timeout),
            keepalive_idle: self.take("permit-without-stream")?.unwrap_or(by_default.keepalive_idle),
            ..by_default
        })
    }

    /// A field, if it says something.
    fn take<T: DeserializeOwned>(&mut self, field: &str) -> Result<Option<T>, String> {
        let value = self.0.remove(field).unwrap_or_default();
        serde_json::from_value(value).map_err(|error| format!("`{field}`: {error}"))
    }

    /// A text that is not empty.
    fn text(&mut self, field: &str) -> Result<Option<String>, String> {
        match self.take(field)? {
            None => Ok(None),
            Some(Value::String(text)) => Ok((!text.is_empty()).then_some(text)),
            // Which may be secret.
            Some(_) => Err(format!("`{field}` must be text; put it into quotes")),
        }
    }

    /// Two texts of which neither is anything without the other.
    fn both(&mut self, one: &str, other: &str) -> Result<Option<(String, String)>, String> {
        match (self.text(one)?, self.text(other)?) {
            (Some(first), Some(second)) => Ok(Some((first, second))),
            (None, None) => Ok(None),
            _ => Err(format!("`{one}` and `{other}` belong together; give both")),
        }
    }

    /// A time as etcd's clients read it, a number of nanoseconds, or as people write it. Zero is none.
    fn time(&mut self, field: &str) -> Result<Option<Duration>, String> {
        let value: Value = self.take(field)?.unwrap_or_default();
        let time = match &value {
            Value::Null => return Ok(None),
            Value::String(text) => options::duration(text),
            other => match other.as_u64() {
                Some(0) => return Ok(None),
                nanoseconds => nanoseconds.filter(|n| *n >= SHORTEST).map(Duration::from_nanos),
            },
        };
        let reason =
            || format!("`{field}`: {value} is no time; write it like `5s` or `500ms`, or in nanoseconds");
        time.map(Some).ok_or_else(reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_of_etcds_clients_is_taken_and_those_without_effect_are_said() {
        let text = r#"
endpoints: ["https://10.0.0.1:2379", "https://10.0.0.2:2379"]
trusted-ca-file: /ca.crt
ca-file: /older.crt
cert-file: /a.crt
key-file: /a.key
username: a
password: secret
token: ""
dial-timeout: 2000000000
dial-keep-alive-time: 20s
dial-keep-alive-timeout: 1m30s
permit-without-stream: false
insecure-transport: false
insecure-skip-tls-verify: false
auto-sync-interval: 0
reject-old-cluster: true
max-unary-retries: 3
backoff-wait-between: 25000000
backoff-jitter-fraction: 0.1
backoff-exponent: 2.0
backoff-max-wait-between: 5000000000
MaxCallSendMsgSize: 2097152
MaxCallRecvMsgSize: 0
TLS: null
DialOptions: []
Context: null
Logger: null
LogConfig: {level: info}
"#;
        let (options, without_effect) = read(text).unwrap();
        assert_eq!(without_effect, WITHOUT_EFFECT);
        assert_eq!(options.endpoints.len(), 2);
        let tls = options.tls.unwrap();
        assert_eq!(tls.ca.as_deref(), Some(Path::new("/ca.crt")));
        assert_eq!(tls.identity, Some((PathBuf::from("/a.crt"), PathBuf::from("/a.key"))));
        assert_eq!(options.user, Some(("a".to_owned(), "secret".to_owned())));
        let seconds = [options.dial_timeout, options.keepalive_heartbeat, options.keepalive_timeout];
        assert_eq!(seconds.map(|time| time.as_secs()), [2, 20, 90]);
        assert!(!options.keepalive_idle);
    }

    #[test]
    fn what_is_left_out_or_empty_is_as_by_default() {
        for text in [
            "endpoints: [\"http://a\"]",
            "endpoints: [\"http://a\"]\ncert-file: \"\"\nkey-file: \"\"\nusername: \"\"\ntrusted-ca-file:\ndial-timeout: 0",
        ] {
            let (options, without_effect) = read(text).unwrap();
            assert_eq!(options, EtcdOptions::new(vec!["http://a".to_owned()]));
            assert!(without_effect.is_empty());
        }
        let (options, _) = read("endpoints: [\"https://a\"]\nca-file: /older.crt").unwrap();
        assert_eq!(options.tls.unwrap().ca.as_deref(), Some(Path::new("/older.crt")));
    }
}
