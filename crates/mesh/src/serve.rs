//! Where a mesh is asked how it is: a file for `status`, and HTTP for probes and Prometheus.

use std::{io, net::SocketAddr, path::Path, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use tokio::net::TcpListener;
use villus_table::Stop;

use crate::status::{Board, MeshStatus, metrics};

/// Between two versions of the file.
const EVERY: Duration = Duration::from_secs(1);

/// Keeps a file with the status, as JSON, until `stop` is said; then it is removed. Whoever reads it sees a whole version.
pub async fn file(board: Board, path: &Path, stop: &Stop) {
    let mut complained = false;
    loop {
        match write(path, &board.status()) {
            Ok(()) => complained = false,
            Err(error) => {
                if !std::mem::replace(&mut complained, true) {
                    tracing::warn!("the status can't be written to {}: {error}", path.display());
                }
            }
        }
        tokio::select! {
            () = stop.stopped() => break,
            () = tokio::time::sleep(EVERY) => {}
        }
    }
    // That it is gone already is fine.
    let _ = std::fs::remove_file(path);
}

fn write(path: &Path, status: &MeshStatus) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    std::fs::write(&name, serde_json::to_vec(status)?)?;
    std::fs::rename(name, path)
}

/// Serves `/metrics`, `/status`, `/healthz` (the process works) and `/readyz` (it copies all that can be copied, or another
/// replica does) until `stop` is said. Returns the address that it listens on, and when it has ended.
///
/// # Errors
/// The address can't be had.
pub async fn http(
    board: Board,
    address: SocketAddr,
    stop: Stop,
) -> io::Result<(SocketAddr, impl Future<Output = io::Result<()>>)> {
    let routes = Router::new()
        .route("/metrics", get(|State(board): State<Board>| async move { metrics(&board.status()) }))
        .route("/status", get(|State(board): State<Board>| async move { json(&board.status()) }))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(|State(board): State<Board>| async move { ready(&board.status()) }))
        .with_state(board);
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    let ended = async move {
        axum::serve(listener, routes).with_graceful_shutdown(async move { stop.stopped().await }).await
    };
    Ok((bound, ended))
}

fn json(status: &MeshStatus) -> impl IntoResponse + use<> {
    // Names, numbers and times only: this can't fail.
    ([(CONTENT_TYPE, "application/json")], serde_json::to_string(status).unwrap_or_default())
}

/// A remote that is away or refused does not hold anybody up.
fn ready(status: &MeshStatus) -> (StatusCode, String) {
    if !status.leading {
        return (StatusCode::OK, "another replica leads\n".to_owned());
    }
    let late = status.remotes.iter().filter(|remote| {
        let syncing = remote.prefixes.is_empty() || remote.prefixes.iter().any(|one| !one.synced_once);
        remote.connected && remote.refused.is_none() && syncing
    });
    let late: Vec<&str> = late.map(|remote| remote.name.as_str()).collect();
    if late.is_empty() {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    (StatusCode::SERVICE_UNAVAILABLE, format!("not copied yet: {}\n", late.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        layout::{Kind, Layout},
        status,
    };

    #[test]
    fn who_is_away_holds_nobody_up() {
        let board = Board::new("c1", 1, &[Layout::Cache]);
        board.edit(|status| status.leading = true);
        board.remote("away", |_| {});
        assert_eq!(ready(&board.status()).0, StatusCode::OK);
        board.remote("late", |remote| remote.connected = true);
        assert_eq!(
            ready(&board.status()),
            (StatusCode::SERVICE_UNAVAILABLE, "not copied yet: late\n".to_owned())
        );
        board.remote("late", |remote| remote.prefix(Kind::Nodes, Layout::Cache).enter(status::State::Synced));
        assert_eq!(ready(&board.status()).0, StatusCode::OK);
    }

    #[tokio::test]
    async fn the_file_is_whole_and_goes_with_the_process() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("below/status.json");
        let (board, stop) = (Board::new("c1", 1, &[Layout::Cache]), Stop::new());
        board.remote("c2", |remote| remote.prefix(Kind::Nodes, Layout::Cache).enter(status::State::Stale));
        let (written, said) = (path.clone(), stop.clone());
        let task = tokio::spawn(async move { file(board, &written, &said).await });
        let read = loop {
            if let Ok(text) = std::fs::read(&path) {
                break text;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let status: MeshStatus = serde_json::from_slice(&read).unwrap();
        assert_eq!(status.remotes[0].prefixes[0].state, status::State::Stale);
        assert!(metrics(&status).contains(
            "villus_kvstoremesh_state{target_cluster=\"c2\",type=\"nodes\",layout=\"cache\",state=\"stale\"} 1"
        ));
        stop.stop();
        task.await.unwrap();
        assert!(!path.exists());
    }
}
