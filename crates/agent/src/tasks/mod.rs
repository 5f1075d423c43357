//! What the agent does by itself, beside the operations that it is asked for.

mod events;
mod export;
mod flows;
mod network;
mod nodes;
mod policies;
mod reconcile;
mod wrapping;

use std::future::Future;
use std::sync::Arc;

use tokio::task::JoinHandle;
use villus_identity::Layer;
use villus_net::MonitorStop;

use crate::AgentError;
use crate::agent::Agent;
use crate::cluster::{keep, mesh, tasks as cluster};
use crate::node::Node;

pub(crate) use export::ExportCounts;

/// The tasks of an agent.
pub(crate) struct Tasks {
    tasks: Vec<JoinHandle<()>>,
    monitor: Option<MonitorStop>,
}

/// Starts all of them.
pub(crate) async fn spawn(agent: &Agent) -> Result<Tasks, AgentError> {
    // Asked before others want the node.
    let wanted = |node: &mut Node| (node.mesh.clone(), node.mesh_seen, node.config.kvstore.mesh.is_none());
    let mesh = agent.with(wanted).await;
    let mut tasks = Tasks { tasks: Vec::new(), monitor: None };
    tasks.monitor = network::spawn(agent)?;
    tasks.add(export::run(agent.clone()));
    tasks.add(network::keep_masquerade(agent.clone()));
    tasks.add(network::follow_list(agent.clone()));
    tasks.add(wrapping::keep(agent.clone(), wrapping::listen()));
    tasks.add(events::run(agent.clone()));
    tasks.add(policies::watch(agent.clone()));
    tasks.add(policies::follow_identities(agent.clone()));
    tasks.add(policies::collect_identities(agent.clone()));
    tasks.add(flows::rejudge(agent.clone()));
    tasks.add(flows::collect(agent.clone()));
    tasks.add(nodes::follow(agent.clone()));
    tasks.add(reconcile::prepare(agent.clone()));
    tasks.add(reconcile::compare(agent.clone()));
    tasks.add(reconcile::maintain(agent.clone()));
    tasks.add(reconcile::attach(agent.clone()));
    tasks.add(reconcile::settle(agent.clone()));
    if let Some(shared) = &agent.identities.shared {
        let shared = || shared.clone();
        tasks.add(cluster::watch_health(agent.clone(), shared()));
        for layer in [Layer::State, Layer::Cache] {
            let (store, seen) = (shared().store.clone(), shared().seen);
            tasks.add(cluster::follow_layer(agent.clone(), shared(), store, seen, layer));
        }
        match mesh {
            Ok((Some(mesh), seen, _)) => {
                let store = Arc::new(mesh.store.clone());
                tasks.add(cluster::follow_layer(agent.clone(), shared(), store, seen, Layer::Mesh));
                tasks.add(mesh::run(agent.clone(), mesh));
            }
            Ok((None, _, true)) => tasks.add(mesh::end(agent.clone())),
            // What was known stays until its copies can be read again.
            Ok((None, _, false)) | Err(_) => {}
        }
        tasks.add(policies::follow_cluster(agent.clone(), shared()));
        tasks.add(policies::keep_cluster(agent.clone()));
        tasks.add(cluster::publish(agent.clone(), shared()));
        tasks.add(cluster::write(shared()));
        tasks.add(cluster::settle(agent.clone()));
        tasks.add(keep::keep_snapshot(agent.clone(), shared()));
    }
    Ok(tasks)
}

impl Tasks {
    fn add(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.push(tokio::spawn(task));
    }

    /// Ends all of them.
    pub async fn end(self) {
        if let Some(monitor) = self.monitor {
            monitor.stop();
        }
        for task in &self.tasks {
            task.abort();
        }
        for task in self.tasks {
            let _ = task.await;
        }
    }
}
