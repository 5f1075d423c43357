//! The operator's own socket, and its metrics for Prometheus.

use std::{fmt::Write as _, io, net::SocketAddr, path::PathBuf, time::Duration};

use axum::{Router, http::header, routing::get};
use tokio::net::TcpListener;
use villus_api::{
    Socket, SocketOptions,
    model::{OperatorStatus, ServiceState},
    server::SocketError,
};

use crate::Operator;

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
    /// The listener failed.
    #[error("{path:?}: {source}")]
    Serve {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Serves status and metrics of an operator until `shutdown` is ready, then ends it: `/v1/operator` on the socket,
/// `/metrics` there and at `metrics`.
///
/// # Errors
/// When the socket or the address cannot be had.
pub async fn serve(
    operator: Operator,
    socket: &SocketOptions,
    metrics: Option<SocketAddr>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    let path = socket.path.clone();
    let read = operator.reader();
    let figures = {
        let read = read.clone();
        Router::new().route("/metrics", get(async move || ([(header::CONTENT_TYPE, TEXT)], text(&read()))))
    };
    let all = figures.clone().route(
        "/v1/operator",
        get(async move || ([(header::CONTENT_TYPE, "application/json")], json(&read()))),
    );
    let socket = Socket::bind(socket)?;
    let listener = match metrics {
        Some(address) => {
            let bound = TcpListener::bind(address).await;
            Some(bound.map_err(|source| ServeError::Metrics { address, source })?)
        }
        None => None,
    };
    let outside = async {
        match listener {
            Some(listener) => axum::serve(listener, figures).await,
            None => std::future::pending().await,
        }
    };
    let served = tokio::select! {
        served = villus_api::serve(socket, all, shutdown, GRACE) => served,
        served = outside => served,
    };
    operator.end().await;
    served.map_err(|source| ServeError::Serve { path, source })
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
    out
}
