//! Random operations against a plain map.

use std::{collections::BTreeMap, sync::Arc};

use villus_kvstore::{Compare, Event, Op, Store, Txn};

use crate::{bytes, each};

each! {
    async fn random_operations_agree_with_a_plain_map(store: Arc<dyn Store>) {
        let mut chance = fastrand::Rng::with_seed(7);
        let mut map: BTreeMap<String, String> = BTreeMap::new();
        let from = store.header().await.unwrap().revision + 1;
        let mut watch = store.watch("", from).await.unwrap();
        for n in 0..400 {
            let key = format!("{}/{}", chance.u8(0..3), chance.u8(0..6));
            match chance.u8(0..10) {
                0..4 => {
                    store.update(&key, bytes(&n.to_string()), None).await.unwrap();
                    map.insert(key, n.to_string());
                }
                4..6 => {
                    let there = store.delete(&key).await.unwrap();
                    assert_eq!(there, map.remove(&key).is_some());
                }
                6 => {
                    let created = store.create(&key, bytes("new"), None).await.unwrap();
                    assert_eq!(created, !map.contains_key(&key));
                    map.entry(key).or_insert_with(|| "new".to_owned());
                }
                7 => {
                    let prefix = format!("{}/", chance.u8(0..3));
                    let count = store.delete_prefix(&prefix).await.unwrap();
                    let before = map.len();
                    map.retain(|key, _| !key.starts_with(&prefix));
                    assert_eq!(count as usize, before - map.len());
                }
                _ => {
                    let other = format!("3/{n}");
                    let txn = Txn::new()
                        .when(Compare::Present(key.clone()))
                        .then(Op::put(other.as_str(), "moved", None))
                        .then(Op::Delete(key.clone()))
                        .otherwise(Op::put(key.as_str(), "fresh", None));
                    let held = store.txn(txn).await.unwrap().held;
                    assert_eq!(held, map.contains_key(&key));
                    if held {
                        map.remove(&key);
                        map.insert(other, "moved".to_owned());
                    } else {
                        map.insert(key, "fresh".to_owned());
                    }
                }
            }
        }
        let rows: BTreeMap<String, String> = listed(&store).await;
        assert_eq!(rows, map);
        let last = store.header().await.unwrap().revision;
        let mut mirror = BTreeMap::new();
        while watch.position() <= last {
            let batch = watch.next().await.unwrap();
            for event in &batch.events {
                match event {
                    Event::Put(entry) => drop(mirror.insert(entry.key.to_string(), entry.text().unwrap().to_owned())),
                    Event::Delete { key, .. } => assert!(mirror.remove(&**key).is_some()),
                }
            }
        }
        assert_eq!(mirror, map);
    }
}

async fn listed(store: &Arc<dyn Store>) -> BTreeMap<String, String> {
    let listing = store.list_prefix("").await.unwrap();
    listing.entries.iter().map(|e| (e.key.to_string(), e.text().unwrap().to_owned())).collect()
}
