//! The embedded store's file: what survives, and what is done about a file that did not.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use villus_kvstore::{Embedded, LeasePurpose, Locks, Op, OpenError, Opened, Store, StoreError, Txn};

const MINUTE: Duration = Duration::from_secs(60);

fn open(path: &Path) -> Embedded {
    let Opened { store, damaged } = Embedded::open(path).unwrap();
    assert_eq!(damaged, None);
    store
}

async fn rows(store: &Embedded) -> BTreeMap<String, String> {
    let listing = store.list_prefix("").await.unwrap();
    listing.entries.iter().map(|e| (e.key.to_string(), e.text().unwrap().to_owned())).collect()
}

#[tokio::test]
async fn everything_is_there_again_and_revisions_go_on() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kvstore");
    let store = open(&path);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let lease = store.grant(MINUTE, LeasePurpose::Entries).await.unwrap();
    store.update("a", "1".into(), None).await.unwrap();
    store.update("a", "2".into(), None).await.unwrap();
    store.update("leased", "x".into(), Some(lease)).await.unwrap();
    store.update("gone", "x".into(), None).await.unwrap();
    store.delete("gone").await.unwrap();
    let (before, header) = (rows(&store).await, store.header().await.unwrap());
    let entry = store.get("a").await.unwrap().unwrap();
    drop(store);

    let store = open(&path);
    assert_eq!(rows(&store).await, before);
    assert_eq!(store.get("a").await.unwrap().unwrap(), entry);
    let now = store.header().await.unwrap();
    assert!(now.cluster == header.cluster && now.revision >= header.revision);
    store.keep_alive(lease).await.unwrap();
    let next = store.update("a", "3".into(), None).await.unwrap();
    assert!(next > header.revision);
    let mut watch = store.watch("", entry.mod_revision).await.unwrap();
    assert!(matches!(watch.next().await, Err(StoreError::Compacted { .. })));
    store.revoke(lease).await.unwrap();
    drop((store, watch));

    let store = open(&path);
    assert_eq!(rows(&store).await, BTreeMap::from([("a".to_owned(), "3".to_owned())]));
    assert!(store.header().await.unwrap().revision > next);
}

#[tokio::test]
async fn locks_do_not_outlive_the_process_and_cost_no_write() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kvstore");
    let store = open(&path);
    store.update("a", "1".into(), None).await.unwrap();
    let written = fs::read(&path).unwrap();
    let locks = Locks::new(Arc::new(store.clone()));
    for _ in 0..3 {
        locks.acquire("l", MINUTE).await.unwrap().release().await;
    }
    let held = locks.acquire("l", MINUTE).await.unwrap();
    assert_eq!(fs::read(&path).unwrap(), written);
    std::mem::forget(held);
    let at = store.header().await.unwrap().revision;
    // Forgetting the lock keeps the first store open in this process; a copy is what a crash leaves.
    let copy = directory.path().join("copy");
    fs::copy(&path, &copy).unwrap();
    let store = open(&copy);
    assert_eq!(rows(&store).await, BTreeMap::from([("a".to_owned(), "1".to_owned())]));
    assert!(store.header().await.unwrap().revision > at, "above revisions that were never on disk");
}

#[tokio::test]
async fn leases_of_a_dead_process_expire_after_their_whole_time() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kvstore");
    let store = open(&path);
    let lease = store.grant(Duration::from_secs(5), LeasePurpose::Entries).await.unwrap();
    store.update("a", "1".into(), Some(lease)).await.unwrap();
    drop(store);
    let store = open(&path);
    assert_eq!(rows(&store).await.len(), 1);
    let gone = async {
        while !rows(&store).await.is_empty() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(MINUTE, gone).await.unwrap();
}

#[tokio::test]
async fn a_file_in_use_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kvstore");
    let first = open(&path);
    first.update("a", "1".into(), None).await.unwrap();
    let error = Embedded::open(&path).err().unwrap();
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    assert!(error.to_string().contains("kvstore"));
    let status = child("a_process_that_opens", OPENS, &path).output().unwrap();
    assert!(String::from_utf8_lossy(&status.stdout).contains("another process"), "{status:?}");
    drop(first);
    assert_eq!(rows(&open(&path)).await.len(), 1);
}

#[test]
fn a_missing_directory_is_an_error_with_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let error = Embedded::open(&directory.path().join("no/kvstore")).err().unwrap();
    assert!(matches!(&error, OpenError::Io { .. }) && error.to_string().contains("no/kvstore"), "{error}");
    let error = Embedded::open(directory.path()).err().unwrap();
    assert!(matches!(&error, OpenError::Io { .. }), "{error}");
}

async fn filled(path: &Path) -> BTreeMap<String, String> {
    let store = open(path);
    for n in 0..60 {
        store.update(&format!("key/{n}"), "x".repeat(n * 20).into(), None).await.unwrap();
    }
    rows(&store).await
}

#[tokio::test]
async fn a_damaged_file_is_kept_aside_and_a_fresh_one_opened() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kvstore");
    filled(&path).await;
    let good = fs::read(&path).unwrap();
    let short = good[..good.len() / 3].to_vec();
    let zeros = vec![0; good.len()];
    let text = b"this is no database at all, but somebody's notes".to_vec();
    let mut torn = good.clone();
    torn[4096..].fill(0xa5);
    for (name, bytes) in [("short", short), ("zeros", zeros), ("text", text), ("torn", torn)] {
        fs::write(&path, &bytes).unwrap();
        let opened = Embedded::open(&path).unwrap();
        let (aside, reason) = opened.damaged.expect(name);
        assert_eq!(fs::read(&aside).unwrap().len(), bytes.len(), "{name}: {reason}");
        let shown = aside.file_name().unwrap().to_string_lossy().into_owned();
        assert!(shown.starts_with("kvstore.damaged-"), "{shown}");
        assert_eq!(rows(&opened.store).await.len(), 0);
        opened.store.update("a", "1".into(), None).await.unwrap();
        drop(opened.store);
        assert_eq!(rows(&open(&path)).await.len(), 1);
    }
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 5, "each is kept");
}

#[tokio::test]
async fn flipped_bits_are_noticed_or_harmless_and_never_a_panic() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kvstore");
    let wanted = filled(&path).await;
    let good = fs::read(&path).unwrap();
    // Later pages of the file are not in use.
    let used = good.iter().rposition(|byte| *byte != 0).unwrap();
    let mut chance = fastrand::Rng::with_seed(3);
    let mut noticed = 0;
    for round in 0..60 {
        let mut bytes = good.clone();
        let limit = if round % 3 == 0 { 512 } else { used };
        for _ in 0..chance.usize(1..4) {
            bytes[chance.usize(0..limit)] ^= chance.u8(1..);
        }
        if round % 10 == 9 {
            bytes.truncate(chance.usize(0..good.len()));
        }
        fs::write(&path, bytes).unwrap();
        match Embedded::open(&path) {
            Ok(Opened { store, damaged: None }) => {
                let found = rows(&store).await;
                // An empty file is a new one.
                assert!(found == wanted || found.is_empty(), "round {round}: {} rows", found.len());
            }
            Ok(Opened { damaged: Some((aside, _)), .. }) => {
                noticed += 1;
                fs::remove_file(aside).unwrap();
            }
            Err(error) => assert!(error.to_string().contains("kvstore"), "{error}"),
        }
    }
    assert!(noticed > 20, "{noticed}");
}

/// Tells a process that it is another one of these, and the store's path.
const OPENS: &str = "VILLUS_TEST_STORE_OPENS";
const WRITES: &str = "VILLUS_TEST_STORE_WRITES";

/// This test binary as another process that runs one of the tests below.
fn child(test: &str, role: &str, path: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(role, path);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

/// The other process of `a_file_in_use_is_refused_by_name`.
#[test]
fn a_process_that_opens() {
    let Some(path) = std::env::var_os(OPENS) else { return };
    match Embedded::open(Path::new(&path)) {
        Ok(_) => println!("opened"),
        Err(error) => println!("{error}"),
    }
}

/// The other process of `what_was_acknowledged_survives_kill_9`.
#[tokio::test]
async fn a_process_that_writes() {
    let Some(path) = std::env::var_os(WRITES) else { return };
    let store = open(Path::new(&path));
    let lease = store.grant(MINUTE, LeasePurpose::Entries).await.unwrap();
    let start = store.list_prefix("left/").await.unwrap().entries.len();
    for n in start.. {
        let txn = Txn::new()
            .then(Op::put(format!("left/{n:06}"), n.to_string(), None))
            .then(Op::put(format!("right/{n:06}"), "x".repeat(n % 3000), Some(lease)))
            .then(Op::put("last", n.to_string(), None));
        store.txn(txn).await.unwrap();
        println!("\nwrote {n}");
    }
}

#[tokio::test]
async fn what_was_acknowledged_survives_kill_9() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kvstore");
    let mut chance = fastrand::Rng::with_seed(11);
    let mut count = 0;
    for round in 0..15 {
        let mut process = child("a_process_that_writes", WRITES, &path).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut acknowledged = None;
        // The first rounds also end while the file is opened.
        let until = count + if round < 3 { 0 } else { chance.usize(1..60) };
        while acknowledged.is_none_or(|n| n < until) && (round >= 3 || acknowledged.is_none()) {
            let line = lines.next().expect("the child ended by itself").unwrap();
            acknowledged = line.strip_prefix("wrote ").map(|n| n.parse().unwrap()).or(acknowledged);
            if round < 3 {
                std::thread::sleep(Duration::from_millis(chance.u64(0..6)));
                break;
            }
        }
        process.kill().unwrap();
        for line in lines.map_while(Result::ok) {
            acknowledged = line.strip_prefix("wrote ").and_then(|n| n.parse().ok()).or(acknowledged);
        }
        process.wait().unwrap();

        let store = open(&path);
        let (left, right) =
            (store.list_prefix("left/").await.unwrap(), store.list_prefix("right/").await.unwrap());
        assert_eq!(left.entries.len(), right.entries.len(), "round {round}: whole transactions only");
        let last =
            store.get("last").await.unwrap().map(|entry| entry.text().unwrap().parse::<usize>().unwrap());
        assert_eq!(last.map_or(0, |n| n + 1), left.entries.len());
        if let Some(acknowledged) = acknowledged {
            assert!(last >= Some(acknowledged), "round {round}: {last:?} < {acknowledged}");
        }
        count = left.entries.len();
    }
    assert!(count > 50, "{count}");
}

#[tokio::test]
async fn writes_in_flight_share_the_cost_of_being_durable() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory.path().join("kvstore"));
    let tasks: Vec<_> = (0..256)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move { store.update(&format!("k{n}"), "x".into(), None).await })
        })
        .collect();
    let mut revisions = Vec::new();
    for task in tasks {
        revisions.push(task.await.unwrap().unwrap());
    }
    revisions.sort_unstable();
    revisions.dedup();
    assert_eq!(revisions.len(), 256);
}
