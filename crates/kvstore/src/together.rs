//! Many small transactions in few requests: who is allowed twenty requests a second has twenty, whatever they hold.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

use crate::{
    error::StoreError,
    model::{Compare, LeaseId, Op, Txn, TxnOutcome},
    store::Store,
};

/// Conditions and operations of a request at most, below what etcd takes by default.
const OPS: usize = 100;
/// Bytes of a request at most.
const BYTES: usize = 512 << 10;

/// Transactions of many tasks, in few requests. Clones share them. Needs a tokio runtime.
///
/// One request is under way at a time; what comes meanwhile goes with the next, in its order. A transaction that is not
/// waited for any more is left out where it has not been sent. What is written by one is in no condition of another of
/// the same request, so that each is as if it were carried out alone.
#[derive(Clone)]
pub struct Together(Arc<Inner>);

type Reply = oneshot::Sender<Result<TxnOutcome, StoreError>>;

struct Inner {
    store: Arc<dyn Store>,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<(Txn, Reply)>,
    /// Somebody carries out what waits.
    is_running: bool,
}

/// Whoever carries out what waits. If that ends before its time, because its runtime does, what waits fails.
struct Running {
    inner: Arc<Inner>,
    is_done: bool,
}

/// What goes with one request.
#[derive(Default)]
struct Load<'a> {
    compares: usize,
    ops: usize,
    bytes: usize,
    written: BTreeSet<&'a str>,
    compared: BTreeSet<&'a str>,
    /// Prefixes in conditions.
    below: Vec<&'a str>,
    /// Nothing else goes with it.
    is_closed: bool,
}

// === impl Together ===

impl Together {
    /// Nothing is under way.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self(Arc::new(Inner { store, queue: Mutex::default() }))
    }

    /// Carries out a transaction. One that does something if its conditions do not hold goes alone.
    ///
    /// # Errors
    /// As [`Store::txn`]. An error of one does not concern the others.
    pub async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        let (answer, outcome) = oneshot::channel();
        let begins = {
            let mut queue = self.0.queue();
            queue.waiting.push_back((txn, answer));
            !std::mem::replace(&mut queue.is_running, true)
        };
        if begins {
            tokio::spawn(Running { inner: Arc::clone(&self.0), is_done: false }.run());
        }
        outcome.await.unwrap_or(Err(StoreError::Closed))
    }
}

// === impl Inner ===

impl Inner {
    /// What goes with the next request; if there is nothing, nobody is running any more.
    fn next(&self) -> Option<(Vec<Txn>, Vec<Reply>)> {
        let mut queue = self.queue();
        queue.waiting.retain(|(_, answer)| !answer.is_closed());
        let count = {
            let mut load = Load::default();
            queue.waiting.iter().take_while(|(txn, _)| load.takes(txn)).count()
        };
        if count == 0 {
            queue.is_running = false;
            return None;
        }
        Some(queue.waiting.drain(..count).unzip())
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Running ===

impl Running {
    async fn run(mut self) {
        while let Some((txns, answers)) = self.inner.next() {
            for (answer, outcome) in answers.into_iter().zip(all(&*self.inner.store, txns).await) {
                // Whoever asked may have stopped waiting.
                let _ = answer.send(outcome);
            }
        }
        self.is_done = true;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.is_done {
            let mut queue = self.inner.queue();
            queue.is_running = false;
            queue.waiting.clear();
        }
    }
}

// === impl Load ===

impl<'a> Load<'a> {
    /// Takes a transaction in, if it fits with those before. The first one always does.
    fn takes(&mut self, txn: &'a Txn) -> bool {
        let bytes: usize = txn.compare.iter().map(compared).chain(txn.then.iter().map(done)).sum();
        let alone = !txn.otherwise.is_empty() || txn.then.iter().any(|op| matches!(op, Op::DeletePrefix(_)));
        let is_first = self.compares + self.ops == 0 && !self.is_closed;
        let fits = !self.is_closed
            && !alone
            && self.compares + txn.compare.len() <= OPS
            && self.ops + txn.then.len() <= OPS
            && self.bytes + bytes <= BYTES
            && !self.conflicts(txn);
        if !is_first && !fits {
            return false;
        }
        self.is_closed = alone;
        self.compares += txn.compare.len();
        self.ops += txn.then.len();
        self.bytes += bytes;
        self.written.extend(written(txn));
        for compare in &txn.compare {
            match compare {
                Compare::NoneBelow(prefix) => self.below.push(prefix),
                other => drop(self.compared.insert(other.key())),
            }
        }
        true
    }

    /// Whether one writes what another writes or has in a condition.
    fn conflicts(&self, txn: &Txn) -> bool {
        let writes = written(txn).any(|key| {
            self.written.contains(key)
                || self.compared.contains(key)
                || self.below.iter().any(|prefix| key.starts_with(prefix))
        });
        writes
            || txn.compare.iter().any(|compare| match compare {
                Compare::NoneBelow(prefix) => {
                    self.written.range(prefix.as_str()..).next().is_some_and(|key| key.starts_with(prefix))
                }
                other => self.written.contains(other.key()),
            })
    }
}

fn written(txn: &Txn) -> impl Iterator<Item = &str> {
    txn.then.iter().filter_map(|op| match op {
        Op::Put { key, .. } | Op::Delete(key) | Op::DeletePrefix(key) => Some(key.as_str()),
        Op::Get(_) | Op::List { .. } => None,
    })
}

fn compared(compare: &Compare) -> usize {
    compare.key().len() + if let Compare::Value(_, value) = compare { value.len() } else { 0 }
}

fn done(op: &Op) -> usize {
    match op {
        Op::Get(key) | Op::Delete(key) | Op::DeletePrefix(key) => key.len(),
        Op::List { prefix, .. } => prefix.len(),
        Op::Put { key, value, .. } => key.len() + value.len(),
    }
}

// === many at once ===

/// Carries out transactions in as few requests as they fit in, in their order; each as if it were alone. Where a request
/// is refused, or a condition in it does not hold, its halves are tried, so that one holds up no other. When the store
/// is not there all that are left fail without being tried.
pub(crate) async fn all(store: &dyn Store, txns: Vec<Txn>) -> Vec<Result<TxnOutcome, StoreError>> {
    let mut outcomes: Vec<Option<Result<TxnOutcome, StoreError>>> = txns.iter().map(|_| None).collect();
    let mut groups = groups(&txns);
    groups.reverse();
    while let Some(mut group) = groups.pop() {
        let outcome = store.txn(merged(group.iter().map(|at| &txns[*at]))).await;
        match outcome {
            Ok(outcome) if group.len() == 1 => outcomes[group[0]] = Some(Ok(outcome)),
            Ok(outcome) if outcome.held => {
                let mut answers = outcome.answers.into_iter();
                for at in group {
                    let answers = answers.by_ref().take(txns[at].then.len()).collect();
                    outcomes[at] = Some(Ok(TxnOutcome { held: true, revision: outcome.revision, answers }));
                }
            }
            Err(error) if group.len() == 1 && is_its_own(&error) => outcomes[group[0]] = Some(Err(error)),
            Err(error)
                if is_its_own(&error)
                    && let Some(to_blame) = to_blame(&error, &group, &txns) =>
            {
                group.retain(|at| !to_blame.contains(at));
                for at in to_blame {
                    outcomes[at] = Some(Err(error.clone()));
                }
                groups.extend((!group.is_empty()).then_some(group));
            }
            Err(error) if !is_its_own(&error) => {
                outcomes.iter_mut().filter(|outcome| outcome.is_none()).for_each(|outcome| {
                    *outcome = Some(Err(error.clone()));
                });
                break;
            }
            Ok(_) | Err(_) => {
                let second = group.split_off(group.len() / 2);
                groups.extend([second, group]);
            }
        }
    }
    outcomes.into_iter().map(|outcome| outcome.unwrap_or(Err(StoreError::Closed))).collect()
}

/// Whether an error is about what was asked, so that something else may well succeed.
fn is_its_own(error: &StoreError) -> bool {
    error.is_of_one_key() || matches!(error, StoreError::LeaseNotFound(_) | StoreError::Full { .. })
}

/// Which of several transactions an error is about, where that can be told.
fn to_blame(error: &StoreError, group: &[usize], txns: &[Txn]) -> Option<Vec<usize>> {
    let puts = |at: &usize| txns[*at].then.iter().filter(|op| matches!(op, Op::Put { .. })).count() > 0;
    let lease_of = |op: &Op| if let Op::Put { lease, .. } = op { *lease } else { None };
    let leases = |at: &usize| txns[*at].then.iter().filter_map(lease_of).collect::<BTreeSet<LeaseId>>();
    let to_blame: Vec<usize> = match error {
        StoreError::LeaseNotFound(_) if group.iter().flat_map(leases).collect::<BTreeSet<_>>().len() == 1 => {
            group.iter().filter(|at| !leases(at).is_empty()).copied().collect()
        }
        StoreError::Full { .. } => group.iter().filter(|at| puts(at)).copied().collect(),
        _ => Vec::new(),
    };
    (!to_blame.is_empty()).then_some(to_blame)
}

/// Which go together, by their places.
fn groups(txns: &[Txn]) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut load = Load::default();
    for (at, txn) in txns.iter().enumerate() {
        if !load.takes(txn) {
            load = Load::default();
            load.takes(txn);
            groups.push(Vec::new());
        }
        match groups.last_mut() {
            Some(group) => group.push(at),
            None => groups.push(vec![at]),
        }
    }
    groups
}

/// One transaction that is all of these.
fn merged<'a>(txns: impl Iterator<Item = &'a Txn>) -> Txn {
    txns.fold(Txn::new(), |mut all, txn| {
        all.compare.extend(txn.compare.iter().cloned());
        all.then.extend(txn.then.iter().cloned());
        all.otherwise.extend(txn.otherwise.iter().cloned());
        all
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{Answer, Memory, Store};

    fn memory() -> (Memory, Together) {
        let memory = Memory::new().unwrap();
        (memory.clone(), Together::new(Arc::new(memory)))
    }

    fn create(key: &str) -> Txn {
        Txn::new().when(Compare::Absent(key.to_owned())).then(Op::put(key, "1", None))
    }

    #[tokio::test]
    async fn many_are_few_requests_and_each_has_its_own_answer() {
        let (memory, together) = memory();
        memory.update("k7", "0".into(), None).await.unwrap();
        let before = memory.operations();
        let name = |n: usize| format!("k{n}");
        let made = (0..250).map(|n| {
            let together = together.clone();
            async move { together.txn(create(&name(n)).then(Op::Get(name(n)))).await.unwrap() }
        });
        let outcomes = futures_util::future::join_all(made).await;
        let held: Vec<usize> = (0..250).filter(|n| !outcomes[*n].held).collect();
        assert_eq!(held, [7], "one that does not hold holds up no other");
        for (n, outcome) in outcomes.iter().enumerate().filter(|(_, outcome)| outcome.held) {
            let [Answer::Put, Answer::Got(Some(entry))] = &outcome.answers[..] else {
                unreachable!("{outcome:?}")
            };
            assert_eq!(*entry.key, name(n));
        }
        let requests = memory.operations() - before;
        assert!((5..=20).contains(&requests), "{requests} requests");
    }

    #[tokio::test]
    async fn what_is_refused_is_refused_alone() {
        let memory = Memory::new().unwrap();
        let mut txns: Vec<Txn> = (0..60).map(|n| create(&format!("k{n}"))).collect();
        txns[11] = Txn::new().then(Op::put("", "1", None));
        txns[23] = Txn::new().then(Op::put("leased", "1", Some(LeaseId(5))));
        let outcomes = all(&memory, txns).await;
        assert!(matches!(outcomes[11], Err(StoreError::BadKey { .. })), "{:?}", outcomes[11]);
        assert_eq!(outcomes[23], Err(StoreError::LeaseNotFound(LeaseId(5))));
        assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 58);
        assert_eq!(memory.list_prefix("k").await.unwrap().entries.len(), 58);
    }

    #[tokio::test]
    async fn a_store_that_is_away_is_asked_once() {
        let (memory, _) = memory();
        memory.go_down();
        let before = memory.operations();
        let outcomes = all(&memory, (0..300).map(|n| create(&format!("k{n}"))).collect()).await;
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Err(StoreError::Unavailable { .. }))));
        assert_eq!(memory.operations() - before, 1);
    }

    /// Each of these pairs would come to something else if both were judged before either is carried out.
    #[test]
    fn what_depends_on_another_does_not_go_with_it() {
        let put = |key: &str| Txn::new().then(Op::put(key, "1", None));
        let below = |prefix: &str| {
            Txn::new().when(Compare::NoneBelow(prefix.to_owned())).then(Op::put("x", "1", None))
        };
        for (first, second, apart) in [
            (put("a"), put("b"), false),
            (put("a"), put("a"), true),
            (put("a"), create("a"), true),
            (create("a"), Txn::new().then(Op::Delete("a".to_owned())), true),
            (put("p/1"), below("p/"), true),
            (below("p/"), put("p/1"), true),
            (below("p/"), put("q"), false),
            (put("a"), put("b").otherwise(Op::Get("b".to_owned())), true),
            (Txn::new().then(Op::DeletePrefix("p".to_owned())), put("q"), true),
            (put("a"), put("b").then(Op::put("large", vec![0; BYTES], None)), true),
        ] {
            let count = groups(&[first.clone(), second.clone()]).len();
            assert_eq!(count == 2, apart, "{first:?} {second:?}");
        }
        assert_eq!(groups(&[put("a"), put("b").then(Op::put("large", vec![0; 2 * BYTES], None))]).len(), 2);
    }

    #[tokio::test]
    async fn what_nobody_waits_for_any_more_is_not_sent() {
        let (memory, together) = memory();
        memory.inject(crate::Verb::Txn, crate::Fault::Hangs, 1);
        let task = |key: &str| {
            let (together, txn) = (together.clone(), create(key));
            tokio::spawn(async move { together.txn(txn).await })
        };
        let first = task("first");
        while memory.operations() == 0 {
            tokio::task::yield_now().await;
        }
        let (left, last) = (task("left"), task("last"));
        while together.0.queue().waiting.len() < 2 {
            tokio::task::yield_now().await;
        }
        left.abort();
        assert!(left.await.unwrap_err().is_cancelled());
        memory.heal();
        assert!(first.await.unwrap().unwrap().held && last.await.unwrap().unwrap().held);
        assert!(memory.get("left").await.unwrap().is_none());
    }
}
