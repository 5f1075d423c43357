//! A connection to one member that ends for good: nothing makes it anew behind our back, so that what was found out about
//! who is at its other end stays true.

use std::{error::Error, fmt};

use etcd_client::{Channel, Client, ConnectOptions};
use hyper_util::client::legacy::connect::HttpConnector;
use tokio::task::JoinSet;
use tonic::transport::{Endpoint, Uri};
use tower::Service;

use super::options::{EtcdOptions, EtcdTls, OptionsError};

type Boxed = Box<dyn Error + Send + Sync>;

/// Why a request was not sent.
#[derive(Debug)]
struct Ended;

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection has ended")
    }
}

impl Error for Ended {}

/// Connects once, and says who we are; in a task, for that takes much of a stack of which whoever asks may have little left.
pub(super) async fn open(url: &str, options: &EtcdOptions) -> Result<Client, etcd_client::Error> {
    let mut task = JoinSet::new();
    task.spawn(connect(url.to_owned(), options.clone()));
    match task.join_next().await {
        Some(Ok(outcome)) => outcome,
        Some(Err(error)) => Err(etcd_client::Error::Internal(error.to_string())),
        None => Err(etcd_client::Error::Internal("nobody connects".to_owned())),
    }
}

async fn connect(url: String, options: EtcdOptions) -> Result<Client, etcd_client::Error> {
    let mut connect = ConnectOptions::new().with_require_leader(true).with_auto_token_refresh(true);
    if let Some((name, password)) = &options.user {
        connect = connect.with_user(name, password);
    }
    let endpoint = endpoint(&url, &options)?;
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(options.dial_timeout));
    let mut is_used = false;
    let once = tower::service_fn(move |uri: Uri| {
        let connecting = (!std::mem::replace(&mut is_used, true)).then(|| http.call(uri));
        async move {
            match connecting {
                Some(connecting) => connecting.await.map_err(Boxed::from),
                None => Err(Boxed::from(Ended)),
            }
        }
    });
    let channel = endpoint.connect_with_connector(once).await?;
    Client::from_channel(Channel::Tonic(channel), Some(connect)).await
}

fn endpoint(url: &str, options: &EtcdOptions) -> Result<Endpoint, etcd_client::Error> {
    let wrong = |error: OptionsError| etcd_client::Error::InvalidArgs(error.to_string());
    let uri: Uri = url.parse()?;
    let is_secure = uri.scheme_str() == Some("https");
    let endpoint = Endpoint::from(uri)
        .connect_timeout(options.dial_timeout)
        .http2_keep_alive_interval(options.keepalive_heartbeat)
        .keep_alive_timeout(options.keepalive_timeout)
        .keep_alive_while_idle(options.keepalive_idle);
    match is_secure {
        true => {
            let tls = options.tls.as_ref().map(EtcdTls::load).transpose().map_err(wrong)?;
            Ok(endpoint.tls_config(tls.unwrap_or_default())?)
        }
        false => Ok(endpoint),
    }
}

/// Whether a request failed before anything of it was sent, because the connection had ended.
pub(super) fn was_not_sent(error: &etcd_client::Error) -> bool {
    let mut cause: Option<&dyn Error> = match error {
        etcd_client::Error::GRpcStatus(status) => status.source(),
        etcd_client::Error::TransportError(error) => error.source(),
        _ => None,
    };
    while let Some(inner) = cause {
        if inner.is::<Ended>() {
            return true;
        }
        cause = inner.source();
    }
    false
}
