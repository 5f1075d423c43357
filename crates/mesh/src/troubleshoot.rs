//! One remote looked at step by step, from its file to its canaries; needs no running mesh and writes nothing.

use std::{path::Path, sync::Arc, time::Duration};

use axum::http::Uri;
use jiff::Timestamp;
use serde::Serialize;
use tokio::{
    net::{TcpStream, lookup_host},
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    },
};
use villus_kvstore::{Etcd, EtcdTls, Header, Store, keys};

use crate::{
    cluster::{ClusterConfig, Own, config_key},
    remotes::{RemoteConfig, RemoteFile},
};

/// A step and what came of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Check {
    /// What was tried, and with what.
    pub step: String,
    /// Whether it went well.
    pub ok: bool,
    /// What was found, or why it did not go well.
    pub found: String,
}

/// What was found about a remote.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Findings {
    /// The remote.
    pub name: String,
    /// Each step.
    pub checks: Vec<Check>,
    /// The store's revision, for comparing it with what a running mesh has heard.
    pub revision: Option<u64>,
}

// === impl Findings ===

impl Findings {
    /// Whether all went well.
    pub fn is_ok(&self) -> bool {
        self.checks.iter().all(|check| check.ok)
    }

    fn note<T>(&mut self, step: impl Into<String>, found: Result<(T, String), String>) -> Option<T> {
        let (value, found, ok) = match found {
            Ok((value, found)) => (Some(value), found, true),
            Err(found) => (None, found, false),
        };
        self.checks.push(Check { step: step.into(), ok, found });
        value
    }
}

/// Looks at a remote. No step takes longer than `patience`.
pub async fn troubleshoot(name: &str, file: &RemoteFile, own: &Own, patience: Duration) -> Findings {
    let mut findings = Findings { name: name.to_owned(), checks: Vec::new(), revision: None };
    let config = file.config.clone().map(|config| {
        let endpoints = config.etcd.endpoints.join(", ");
        (config, endpoints)
    });
    let Some(config) = findings.note("configuration", config) else { return findings };
    for endpoint in &config.etcd.endpoints {
        reach(&mut findings, endpoint, config.etcd.tls.as_ref(), patience).await;
    }
    store(&mut findings, name, &config, own, patience).await;
    findings
}

async fn reach(findings: &mut Findings, endpoint: &str, tls: Option<&EtcdTls>, patience: Duration) {
    let parts = endpoint.parse::<Uri>().ok().and_then(|uri| {
        let host = uri.host()?.trim_matches(['[', ']']).to_owned();
        let secure = uri.scheme_str() == Some("https");
        Some((host, uri.port_u16().unwrap_or(if secure { 443 } else { 80 }), secure))
    });
    let Some((host, port, secure)) = parts else {
        findings.note::<()>(format!("resolve {endpoint}"), Err("it is no URL".to_owned()));
        return;
    };
    let found = within(patience, async {
        let all: Vec<_> =
            lookup_host((host.as_str(), port)).await.map_err(|error| error.to_string())?.collect();
        let text: Vec<String> = all.iter().map(|address| address.ip().to_string()).collect();
        if all.is_empty() { Err("it has no address".to_owned()) } else { Ok((all, text.join(", "))) }
    });
    let Some(addresses) = findings.note(format!("resolve {host}"), found.await) else { return };
    let dial = within(patience, async {
        let stream = TcpStream::connect(&addresses[..]).await.map_err(|error| error.to_string())?;
        let peer = stream.peer_addr().map_err(|error| error.to_string())?;
        Ok((stream, format!("connected to {peer}")))
    });
    let Some(stream) = findings.note(format!("dial {host}:{port}"), dial.await) else { return };
    if secure {
        let shaken = within(patience, handshake(stream, &host, tls));
        findings.note(format!("TLS {host}:{port}"), shaken.await);
    }
}

/// Shakes hands and describes the server's certificates.
async fn handshake(stream: TcpStream, host: &str, tls: Option<&EtcdTls>) -> Result<((), String), String> {
    let tls = tls.cloned().unwrap_or_default();
    let mut roots = RootCertStore::empty();
    if let Some(ca) = &tls.ca {
        for one in certificates(ca)? {
            roots.add(one).map_err(|error| format!("{}: {error}", ca.display()))?;
        }
    }
    let builder = ClientConfig::builder().with_root_certificates(roots);
    let config = match &tls.identity {
        Some((cert, key)) => {
            let own =
                PrivateKeyDer::from_pem_file(key).map_err(|error| format!("{}: {error}", key.display()))?;
            builder.with_client_auth_cert(certificates(cert)?, own).map_err(|error| {
                format!("{} and {} do not belong together: {error}", cert.display(), key.display())
            })?
        }
        None => builder.with_no_client_auth(),
    };
    let server = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
    let connected = TlsConnector::from(Arc::new(config)).connect(server, stream).await;
    let connected = connected.map_err(|error| explained(&error))?;
    let chain = connected.get_ref().1.peer_certificates().unwrap_or_default();
    let text: Vec<String> = chain.iter().map(describe).collect();
    Ok(((), text.join("; ")))
}

fn explained(error: &std::io::Error) -> String {
    let text = error.to_string();
    let hint = if text.contains("UnknownIssuer") {
        ": the CA of trusted-ca-file has not signed this server's certificate; is it this cluster's?"
    } else if text.contains("NotValidForName") {
        ": the server's certificate is for another name"
    } else {
        ""
    };
    text + hint
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let failed = |error: String| format!("{}: {error}", path.display());
    let all = CertificateDer::pem_file_iter(path).map_err(|error| failed(error.to_string()))?;
    all.collect::<Result<_, _>>().map_err(|error| failed(error.to_string()))
}

fn describe(certificate: &CertificateDer<'_>) -> String {
    match x509_parser::parse_x509_certificate(certificate) {
        Ok((_, parsed)) => {
            let until = parsed.validity().not_after.timestamp();
            let until = Timestamp::from_second(until).map(|at| at.to_string()).unwrap_or_default();
            format!("{} (signed by {}, until {until})", parsed.subject(), parsed.issuer())
        }
        Err(error) => format!("a certificate that can't be read: {error}"),
    }
}

async fn store(findings: &mut Findings, name: &str, config: &RemoteConfig, own: &Own, patience: Duration) {
    let opened = Etcd::new(config.etcd.clone()).map_err(|error| error.to_string());
    let asked = within(patience, async {
        let store = opened?;
        let header = store.header().await.map_err(|error| error.to_string())?;
        let found = format!("cluster {:x}, revision {}", header.cluster, header.revision);
        Ok(((store, header), found))
    });
    let Some((store, Header { revision, .. })) = findings.note("etcd", asked.await) else { return };
    findings.revision = Some(revision);
    let beat = within(patience, async {
        match store.get(keys::HEARTBEAT).await.map_err(|error| error.to_string())? {
            None => Ok(((), "none is written there; that is no failure".to_owned())),
            Some(entry) => Ok(((), entry.text().unwrap_or("not a text").to_owned())),
        }
    });
    findings.note("heartbeat", beat.await);
    let said = within(patience, async {
        let value = store.get(&config_key(name)).await.map_err(|error| error.to_string())?;
        let read = match (value, config.extra.cluster_id) {
            (Some(entry), _) => ClusterConfig::read(name, &entry.value, own),
            (None, Some(id)) => ClusterConfig::assumed(name, id, own),
            (None, None) => return Err(format!("there is no `cilium/cluster-config/{name}`")),
        };
        let read = read.map_err(|refused| refused.to_string())?;
        let found = format!(
            "id {}, layout {}, {}",
            read.id,
            read.layout(),
            if read.canaries { "says when it is complete" } else { "does not say when it is complete" }
        );
        Ok((read, found))
    });
    let Some(read) = findings.note("cluster-config", said.await) else { return };
    if !read.canaries {
        return;
    }
    let canaries = within(patience, async {
        let mut missing = Vec::new();
        for kind in read.kinds(read.layout()) {
            let canary = kind.canary(read.layout(), name);
            if store.get(&canary).await.map_err(|error| error.to_string())?.is_none() {
                missing.push(kind.name());
            }
        }
        if missing.is_empty() {
            Ok(((), "all are there".to_owned()))
        } else {
            Err(format!("not there yet: {}; these are waited for", missing.join(", ")))
        }
    });
    findings.note("canaries", canaries.await);
}

async fn within<T>(patience: Duration, step: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    timeout(patience, step).await.unwrap_or_else(|_| Err(format!("no answer within {patience:?}")))
}
