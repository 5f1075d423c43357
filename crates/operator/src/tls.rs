//! A listener that lets in who has a certificate, and knows them by its common name.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use axum::{extract::connect_info::Connected, serve::IncomingStream};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    task::JoinHandle,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
        server::WebPkiClientVerifier,
    },
    server::TlsStream,
};

use crate::external::Peer;

/// How long a handshake may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Handshakes under way at once.
const HANDSHAKES: usize = 256;
/// Between two looks at the files.
const LOOK: Duration = Duration::from_secs(1);

/// The files of a server that wants certificates of its clients, all PEM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsFiles {
    /// The server's certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authority that has signed its clients' certificates.
    pub authority: PathBuf,
}

/// A file of a certificate that can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}; give a PEM file with {wanted}", .path.display())]
pub struct TlsError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
    /// What should be in it.
    pub wanted: &'static str,
}

/// Accepts connections whose handshake is done.
pub(crate) struct TlsListener {
    accepted: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    address: SocketAddr,
    task: JoinHandle<()>,
}

/// The files as they were read last; what can't be used never replaces what can.
struct Current {
    files: TlsFiles,
    inner: Mutex<Loaded>,
}

struct Loaded {
    config: Arc<ServerConfig>,
    stamps: Stamps,
    looked: Instant,
}

/// When each file was changed last, and its size.
type Stamps = [Option<(SystemTime, u64)>; 3];

// === impl TlsFiles ===

impl TlsFiles {
    /// Reads the files.
    ///
    /// # Errors
    /// The first that can't be used.
    pub fn load(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let wrong = |path: &Path, wanted, reason: String| TlsError { path: path.to_owned(), reason, wanted };
        let certificates = certificates(&self.certificate, "the server's certificate")?;
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|error| wrong(&self.key, "the key of the server's certificate", error.to_string()))?;
        let mut roots = RootCertStore::empty();
        let about_roots = "the authority of the clients' certificates";
        for certificate in self::certificates(&self.authority, about_roots)? {
            roots.add(certificate).map_err(|error| wrong(&self.authority, about_roots, error.to_string()))?;
        }
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(|error| wrong(&self.authority, about_roots, error.to_string()))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| {
                builder.with_client_cert_verifier(verifier).with_single_cert(certificates, key)
            })
            .map_err(|error| wrong(&self.key, "the key of the server's certificate", error.to_string()))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    fn stamps(&self) -> Stamps {
        [&self.certificate, &self.key, &self.authority].map(|path| {
            let metadata = std::fs::metadata(path).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        })
    }
}

fn certificates(path: &Path, wanted: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |reason: String| TlsError { path: path.to_owned(), reason, wanted };
    let read: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))?.collect();
    let read = read.map_err(|error| wrong(error.to_string()))?;
    if read.is_empty() { Err(wrong("holds no certificate".to_owned())) } else { Ok(read) }
}

// === impl Current ===

impl Current {
    fn new(files: &TlsFiles) -> Result<Self, TlsError> {
        let stamps = files.stamps();
        let loaded = Loaded { config: files.load()?, stamps, looked: Instant::now() };
        Ok(Self { files: files.clone(), inner: Mutex::new(loaded) })
    }

    fn config(&self) -> Arc<ServerConfig> {
        let mut loaded = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if loaded.looked.elapsed() >= LOOK {
            loaded.looked = Instant::now();
            let stamps = self.files.stamps();
            if stamps != loaded.stamps {
                loaded.stamps = stamps;
                match self.files.load() {
                    Ok(config) => loaded.config = config,
                    Err(error) => tracing::warn!(%error, "the old certificates are used on"),
                }
            }
        }
        Arc::clone(&loaded.config)
    }
}

// === impl TlsListener ===

impl TlsListener {
    /// Listens. Renewed files are used for connections that come later.
    pub fn start(listener: TcpListener, files: &TlsFiles) -> Result<Self, TlsError> {
        let current = Arc::new(Current::new(files)?);
        let address = listener.local_addr().unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0)));
        let (sender, accepted) = mpsc::channel(16);
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
        let task = tokio::spawn(async move {
            loop {
                // It is never closed.
                let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await else { return };
                let (stream, from) = match listener.accept().await {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        tracing::warn!(%error, "a connection could not be accepted");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                };
                let (acceptor, sender) = (TlsAcceptor::from(current.config()), sender.clone());
                tokio::spawn(async move {
                    let _permit = permit;
                    let _ = stream.set_nodelay(true);
                    match tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await {
                        // Nobody listens any more: the connection ends.
                        Ok(Ok(stream)) => drop(sender.send((stream, from)).await),
                        Ok(Err(error)) => tracing::warn!(%from, %error, "a client is not let in"),
                        Err(_) => tracing::debug!(%from, "a handshake took too long"),
                    }
                });
            }
        });
        Ok(Self { accepted, address, task })
    }
}

impl Drop for TlsListener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl axum::serve::Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.accepted.recv().await {
            Some(accepted) => accepted,
            // The runtime ends.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Ok(self.address)
    }
}

impl Connected<IncomingStream<'_, TlsListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, TlsListener>) -> Self {
        let (_, connection) = stream.io().get_ref();
        let certificate = connection.peer_certificates().and_then(<[_]>::first);
        Self(certificate.and_then(|certificate| common_name(certificate)).unwrap_or_default())
    }
}

fn common_name(certificate: &[u8]) -> Option<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let name = certificate.subject().iter_common_name().next()?;
    name.as_str().ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_certificate_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = super::common_name(&bytes);
        }
    }
}
