//! The operator's own socket, and its metrics for Prometheus.

use std::{
    collections::BTreeSet, fmt::Write as _, io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration,
};

use axum::{
    Extension, Router,
    extract::{ConnectInfo, Request},
    http::header,
    middleware::{Next, from_fn},
    response::IntoResponse,
    routing::get,
};
use tokio::net::TcpListener;
use villus_api::{
    ApiError, Socket, SocketOptions,
    model::{OperatorStatus, ServiceState},
    server::SocketError,
};

use villus_external::Externals;

use crate::{
    Operator,
    external::{self, Peer},
    tls::{TlsError, TlsFiles, TlsListener},
};

/// How long requests under way may take when the operator ends.
const GRACE: Duration = Duration::from_secs(1);

/// Why an operator does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket cannot be had.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The listener for metrics cannot be had.
    #[error("operator-prometheus-serve-addr={address}: {source}; choose another address and port")]
    Metrics {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The listener for other systems cannot be had.
    #[error("--external-serve-addr {address}: {source}; choose another address and port")]
    External {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// A certificate cannot be had.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The listener failed.
    #[error("{path:?}: {source}")]
    Serve {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Where an operator is asked.
#[derive(Clone, Debug, Default)]
pub struct Served {
    /// Its socket.
    pub socket: SocketOptions,
    /// Where metrics are served.
    pub metrics: Option<SocketAddr>,
    /// Where other systems say external resources.
    pub door: Option<Door>,
}

/// An address for clients that have a certificate.
#[derive(Clone, Debug)]
pub struct Door {
    /// The address.
    pub address: SocketAddr,
    /// The certificates.
    pub files: TlsFiles,
    /// Common names of those who may.
    pub users: BTreeSet<String>,
}

/// Serves status, metrics and external resources of an operator until `shutdown` is ready, then ends it: `/v1/operator`,
/// `/v1/external` and `/metrics` on the socket, `/metrics` at its address, `/v1/external` behind the door.
///
/// # Errors
/// When the socket, an address or a certificate cannot be had.
pub async fn serve(
    operator: Operator,
    served: &Served,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    let path = served.socket.path.clone();
    let read = operator.reader();
    let figures = {
        let read = read.clone();
        Router::new().route("/metrics", get(async move || ([(header::CONTENT_TYPE, TEXT)], text(&read()))))
    };
    let mut all = figures.clone().route(
        "/v1/operator",
        get(async move || ([(header::CONTENT_TYPE, "application/json")], json(&read()))),
    );
    let externals = operator.externals();
    if let Some(externals) = externals.clone() {
        all = all.merge(external::routes(externals).layer(Extension(Peer("socket".to_owned()))));
    }
    let socket = Socket::bind(&served.socket)?;
    let listener = match served.metrics {
        Some(address) => {
            let bound = TcpListener::bind(address).await;
            Some(bound.map_err(|source| ServeError::Metrics { address, source })?)
        }
        None => None,
    };
    let door = match served.door.clone().zip(externals) {
        Some((door, externals)) => Some(open(door, externals).await?),
        None => None,
    };
    let outside = async {
        match listener {
            Some(listener) => axum::serve(listener, figures).await,
            None => std::future::pending().await,
        }
    };
    let door = async {
        match door {
            Some(door) => door.await,
            None => std::future::pending().await,
        }
    };
    let served = tokio::select! {
        served = villus_api::serve(socket, all, shutdown, GRACE) => served,
        served = outside => served,
        served = door => served,
    };
    operator.end().await;
    served.map_err(|source| ServeError::Serve { path, source })
}

/// Opens a door: the future serves.
async fn open(door: Door, externals: Externals) -> Result<impl Future<Output = io::Result<()>>, ServeError> {
    let Door { address, files, users } = door;
    let bound = TcpListener::bind(address).await;
    let listener = bound.map_err(|source| ServeError::External { address, source })?;
    let listener = TlsListener::start(listener, &files)?;
    let users = Arc::new(users);
    let check = from_fn(move |ConnectInfo(peer): ConnectInfo<Peer>, mut request: Request, next: Next| {
        let may = users.contains(&peer.0);
        async move {
            if !may {
                let what =
                    format!("the certificate of `{}` is not one of those that may", peer.0.escape_debug());
                return ApiError::new(403, what).hint("name it with --external-user").into_response();
            }
            request.extensions_mut().insert(peer);
            next.run(request).await
        }
    });
    let routes = external::routes(externals)
        .fallback(async || ApiError::not_found("there is no such path").hint("see /v1/external"))
        .layer(check);
    let service = routes.into_make_service_with_connect_info::<Peer>();
    Ok(async move { axum::serve(listener, service).await })
}

fn json(status: &OperatorStatus) -> String {
    // Strings, numbers and truth values only: this can't fail.
    serde_json::to_string(status).unwrap_or_default()
}

const TEXT: &str = "text/plain; version=0.0.4";

/// The metrics, as Prometheus reads them.
fn text(status: &OperatorStatus) -> String {
    let collection = &status.collection;
    let healthy = status.store.state == ServiceState::Ok;
    let mut out = String::new();
    let mut family = |name: &str, kind: &str, help: &str, rows: &[(&str, u64)]| {
        // Writing to memory does not fail.
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in rows {
            let _ = writeln!(out, "{name}{labels} {value}");
        }
    };
    family(
        "cilium_operator_identity_gc_entries",
        "gauge",
        "Identities that the last pass found in use and deleted.",
        &[("{status=\"alive\"}", collection.used), ("{status=\"deleted\"}", collection.deleted)],
    );
    family(
        "cilium_operator_identity_gc_runs",
        "counter",
        "Passes over the identities.",
        &[("{outcome=\"success\"}", collection.passes), ("{outcome=\"fail\"}", collection.failures)],
    );
    family(
        "villus_operator_identities_deleted_total",
        "counter",
        "Identities deleted since the operator started.",
        &[("", collection.deleted_total)],
    );
    family(
        "villus_operator_leads",
        "gauge",
        "Whether this operator leads.",
        &[("", u64::from(status.leads))],
    );
    family("villus_operator_terms_total", "counter", "How often it was elected.", &[("", status.terms)]);
    family(
        "villus_operator_store_healthy",
        "gauge",
        "Whether the store answers.",
        &[("", u64::from(healthy))],
    );
    let external = &status.external;
    let gauge = [
        ("villus_operator_external_resources", "External resources that there are.", external.resources),
        (
            "villus_operator_external_broken",
            "External resources that can't be as they are recorded.",
            external.broken.len() as u64,
        ),
    ];
    for (name, help, value) in gauge {
        family(name, "gauge", help, &[("", value)]);
    }
    family(
        "villus_operator_external_kept_total",
        "counter",
        "What was done to keep external resources in order.",
        &[
            ("{what=\"expired\"}", external.expired),
            ("{what=\"mended\"}", external.mended),
            ("{what=\"restored\"}", external.restored),
            ("{what=\"orphan\"}", external.orphans),
            ("{what=\"unused\"}", external.unused),
        ],
    );
    out
}
