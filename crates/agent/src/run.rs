//! From the call to the end.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use villus_api::{Socket, SocketOptions, router, serve};
use villus_config::Config;

use crate::AgentError;
use crate::agent::Agent;
use crate::api::Api;
use crate::node::Node;
use crate::tasks;

/// How long requests under way may take when the agent ends.
const GRACE: Duration = Duration::from_secs(2);
const STACK: usize = 512 << 10;

/// Runs the agent until `shutdown` is ready, then ends and leaves the datapath at work. It makes its own runtime
/// and blocks the calling thread, so it must not be called from within a runtime; [`crate::signals`] is the usual
/// `shutdown`.
///
/// # Errors
/// What kept the agent from starting: nothing was changed for those that are found before anything is touched.
pub fn run(config: Config, shutdown: impl Future<Output = ()> + Send + 'static) -> Result<(), AgentError> {
    villus_datapath::sys::spare_memory();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .thread_stack_size(STACK)
        .thread_name("villus")
        .enable_all()
        .build()
        .map_err(AgentError::Runtime)?;
    let result = runtime.block_on(agent(Arc::new(config), shutdown));
    // Threads that wait in the kernel end with the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn agent(
    config: Arc<Config>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), AgentError> {
    let ignored = crate::log::begin(&config.log);
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let socket = SocketOptions {
        path: config.api.socket.clone(),
        mode: config.api.socket_mode,
        group: config.api.socket_group.clone(),
    };
    let (mut node, _lock) = Node::start(config.clone())?;
    tracing::debug!(took = ?node.started.elapsed(), "kernel, network and store are open");
    let restored = node.load_endpoints()?;
    node.restore_identities().await;
    node.load_host()?;
    let freed: Vec<_> = restored
        .gone
        .iter()
        .filter_map(|id| node.mark_gone(*id, "its device went while no agent was there"))
        .collect();
    let identities = node.identities.clone();
    for labels in freed {
        identities.release(&labels).await;
    }
    let damaged = restored.damaged.iter();
    let damaged: Vec<String> =
        damaged.map(|file| format!("its file lies in {}: {}", file.kept.display(), file.reason)).collect();
    node.conditions.set_if("an endpoint was damaged", !damaged.is_empty(), || damaged.join("; "));
    tracing::debug!(took = ?node.started.elapsed(), "endpoints are known");
    let opened = node.read_sources();
    if opened.is_ok() {
        node.go()?;
    } else if restored.live.is_empty() {
        node.kernel.programs().wait()?;
    }
    node.conditions.note("sources of policy", opened.err());
    node.conditions.set_if("log", !ignored.is_empty(), || ignored.join("; "));
    tracing::info!(
        endpoints = restored.live.len(),
        pending = restored.pending.len(),
        took = ?node.started.elapsed(),
        "the datapath is at work"
    );
    let programs = node.kernel.programs().clone();
    let agent = Agent::new(node);
    let tasks = tasks::spawn(&agent).await?;
    let path = socket.path.clone();
    let socket = Socket::bind(&socket)?;
    tracing::info!(socket = %path.display(), "serving");
    // Much of the program has run for the last time, and the loader has read all types of the kernel, ten megabytes, and forgotten
    // them.
    tokio::task::spawn_blocking(move || {
        programs.wait_for_all();
        villus_datapath::sys::return_memory();
    });
    let history = agent.history.clone();
    let ending = async move {
        shutdown.await;
        tracing::info!("ending; the datapath goes on");
        history.close();
    };
    let served = serve(socket, router(Arc::new(Api(agent))), ending, GRACE).await;
    tasks.end().await;
    served.map_err(|source| AgentError::Serve { path, source })
}
