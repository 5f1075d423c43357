//! The keeper on a real etcd of three members, whose leader dies, and that restarts as a whole.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::{sync::Arc, time::Duration};

use common::{config, dump, one, open, until};
use villus_external::{Keeper, KeeperConfig, What, Writing};
use villus_kvstore::{Compare, Etcd, EtcdOptions, Store};
use villus_testbed::EtcdServer;

const ADDRESS: &str = "cilium/state/ip/v1/default/10.9.0.5";

/// Says a resource until the store has taken it: while a leader is chosen it takes nothing.
async fn say(keeper: &Keeper, name: &str, spec: &str) -> What {
    let how = Writing { author: "ann@host".to_owned(), dry_run: false };
    loop {
        if let Ok(mut outcomes) = keeper.externals().put(vec![one(name, spec)], &how).await
            && let Ok(what) = outcomes.remove(0).result
        {
            return what;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Deletes a key that is a resource's behind its back.
async fn take_away(store: &Arc<dyn Store>) {
    while store.delete(ADDRESS).await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn has(store: &Arc<dyn Store>, key: &str) -> bool {
    matches!(store.get(key).await, Ok(Some(_)))
}

#[tokio::test(flavor = "multi_thread")]
async fn resources_are_kept_through_changes_of_etcds_leader_and_its_restart() {
    let mut servers = EtcdServer::cluster(3);
    let mut options = EtcdOptions::new(servers.iter().map(EtcdServer::url).collect());
    options.qps = 10_000;
    let store: Arc<dyn Store> = Arc::new(Etcd::new(options).unwrap());
    let (compare, gather) = (Duration::from_millis(200), Duration::from_millis(20));
    let settings = KeeperConfig { compare, gather, pace: config().pace };
    let keeper = Arc::new(Keeper::new(open(&store), settings));
    while store.update("office", "me".into(), None).await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (follower, leader) = (Arc::clone(&keeper), Arc::clone(&keeper));
    let tasks = [
        tokio::spawn(async move { follower.follow().await }),
        tokio::spawn(async move { leader.lead(Compare::Present("office".to_owned())).await }),
    ];
    let said = say(&keeper, "db", r#"{"addresses":["10.9.0.5","fd00:9::5"],"labels":["app=db"]}"#).await;
    // Said again, if the answer was lost.
    assert!(matches!(said, What::Created | What::Unchanged), "{said:?}");
    say(&keeper, "brief", r#"{"addresses":["10.9.0.6"],"labels":["app=brief"],"ttl":"10s"}"#).await;
    let before = dump(&store).await;

    for round in 0..2 {
        let leading = EtcdServer::leader(&servers);
        servers[leading].kill();
        take_away(&store).await;
        until("what was taken away comes back", async || has(&store, ADDRESS).await).await;
        let name = format!("later-{round}");
        let spec = format!(r#"{{"addresses":["10.9.1.{round}"],"labels":["app=later"]}}"#);
        say(&keeper, &name, &spec).await;
        until("the keeper knows it", async || keeper.kept().problem.is_empty()).await;
        servers[leading].resume();
        servers[leading].wait();
    }

    servers.iter_mut().for_each(EtcdServer::kill);
    until("the keeper notices", async || !keeper.kept().problem.is_empty()).await;
    servers.iter_mut().for_each(EtcdServer::resume);
    servers.iter().for_each(EtcdServer::wait);
    take_away(&store).await;
    until("what was taken away comes back", async || has(&store, ADDRESS).await).await;
    until("what was brief is over", async || !has(&store, "cilium/state/ip/v1/default/10.9.0.6").await).await;
    until("all is well", async || keeper.kept().problem.is_empty() && keeper.kept().resources == 3).await;
    let kept = keeper.kept();
    // What goes while a leader dies is not counted, if the answer dies with it.
    assert!(kept.expired <= 1 && (kept.restored, kept.orphans) == (0, 0), "{kept:?}");
    assert!(kept.mended >= 3 && kept.broken.is_empty(), "{kept:?}");
    // A restart is no loss of anything: what was there is as it was.
    let after = dump(&store).await;
    for (key, value) in before.iter().filter(|(key, _)| key.contains("db") || key.contains("10.9.0.5")) {
        assert_eq!(after.get(key), Some(value), "{key}");
    }
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
}
