//! Comparing the kernel with what is wanted, always, and what is due from time to time.

use std::time::{Duration, Instant};

use crate::agent::Agent;

const TICK: Duration = Duration::from_secs(1);

/// Makes empty policy maps for endpoints to come.
pub(super) async fn prepare(agent: Agent) {
    loop {
        agent.wake.prepare.notified().await;
        if agent.with(|node| node.prepare_slots()).await.is_err() {
            return;
        }
    }
}

/// Compares everything at its interval, or when somebody asks.
pub(super) async fn compare(agent: Agent) {
    let Ok(interval) = agent.with(|node| node.config.policy.reconcile_interval).await else { return };
    loop {
        let _ = tokio::time::timeout(interval.max(TICK), agent.wake.reconcile.notified()).await;
        if agent.with(|node| node.reconcile()).await.is_err() {
            return;
        }
    }
}

/// What is tried again, and what expires.
pub(super) async fn maintain(agent: Agent) {
    loop {
        tokio::time::sleep(TICK).await;
        let freed = agent
            .with(|node| {
                let now = Instant::now();
                if node.sources.complete {
                    node.retry_policies(now);
                    node.step_ipcache();
                    node.reconcile_some();
                    node.find_missing();
                    node.learn_macs();
                    node.follow_resource();
                }
                node.tick_cluster();
                node.settle_identities();
                node.note_usage();
                node.end_grace(now);
                node.write_again(now);
                node.expire_endpoints(now)
            })
            .await;
        for labels in freed.unwrap_or_default() {
            agent.identities.release(&labels).await;
        }
    }
}

/// Attaches programs of endpoints the way that the options say, one endpoint after the other, when it is quiet.
pub(super) async fn settle(agent: Agent) {
    loop {
        tokio::time::sleep(TICK).await;
        while agent.settle_one().await {}
    }
}

/// Puts the programs of this version on every device once the kernel has taken them; those of before go on until then.
pub(super) async fn attach(agent: Agent) {
    let Ok(programs) = agent.with(|node| node.kernel.programs().clone()).await else { return };
    let loaded = tokio::task::spawn_blocking(move || programs.wait().map(drop)).await;
    let problem = match loaded {
        Ok(result) => result.err().map(|error| format!("the programs of before go on: {error}")),
        Err(_) => return,
    };
    let good = problem.is_none();
    let _ = agent
        .with(move |node| {
            node.conditions.note("programs", problem);
            let refused = node.kernel.programs().refused().map(|error| {
                format!(
                    "the kernel does not take our programs for it, and nftables does it everywhere: {error}"
                )
            });
            let others = refused.is_some();
            node.conditions.note("masquerading in eBPF", refused);
            if good && node.sources.complete && !node.attached {
                node.attach_all();
            }
            if others && node.open {
                let result = node.write_config();
                node.conditions
                    .note("comparison with the kernel", result.err().map(|error| error.to_string()));
            }
        })
        .await;
}
