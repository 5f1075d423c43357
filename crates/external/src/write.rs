//! Jobs in transactions: each resource whole in one, many resources in one where they fit, several under way at once.

use std::{sync::Arc, time::Duration};

use tokio::task::JoinSet;
use villus_kvstore::{Answer, Compare, Entry, Op, StoreError, Txn};
use villus_labels::{Labels, NumericIdentity};

use crate::{
    error::Refusal,
    externals::Inner,
    job::{Job, Plan, Step},
};

/// Conditions, or operations, of one transaction at most; etcd takes 128 of each.
const TOGETHER: usize = 116;
/// Bytes of values in one transaction, but for a single resource that has more; etcd takes 1.5 MiB.
const BYTES: usize = 512 << 10;
/// Transactions under way at once.
const PARALLEL: usize = 8;
/// How often a resource is looked at before it is given up: a guess, two looks, and others that change it meanwhile.
const ROUNDS: u32 = 8;
/// Between two attempts after the store failed, the first time.
const REST: Duration = Duration::from_millis(50);

/// Whether something is written, and under which condition.
#[derive(Clone, Debug, Default)]
pub(crate) struct Terms {
    pub dry_run: bool,
    pub fence: Option<Compare>,
}

/// Carries out jobs; they come back in their order, each with its outcome.
pub(crate) async fn carry_out(inner: &Arc<Inner>, jobs: Vec<Job>, terms: &Terms) -> Vec<Job> {
    let mut waiting = batches(jobs).into_iter().enumerate();
    let mut done: Vec<(usize, Vec<Job>)> = Vec::new();
    let mut under_way = JoinSet::new();
    loop {
        while under_way.len() < PARALLEL
            && let Some((n, batch)) = waiting.next()
        {
            let (inner, terms) = (Arc::clone(inner), terms.clone());
            under_way.spawn(async move { (n, Batch { inner, terms }.run(batch).await) });
        }
        match under_way.join_next().await {
            // A task that was aborted: the runtime ends.
            Some(outcome) => done.extend(outcome),
            None => break,
        }
    }
    done.sort_unstable_by_key(|(n, _)| *n);
    done.into_iter().flat_map(|(_, jobs)| jobs).collect()
}

fn batches(jobs: Vec<Job>) -> Vec<Vec<Job>> {
    let mut batches: Vec<Vec<Job>> = Vec::new();
    let mut cost = TOGETHER;
    for job in jobs {
        if cost + job.cost() > TOGETHER {
            batches.push(Vec::new());
            cost = 0;
        }
        cost += job.cost();
        if let Some(batch) = batches.last_mut() {
            batch.push(job);
        }
    }
    batches
}

/// Jobs that are looked at together.
struct Batch {
    inner: Arc<Inner>,
    terms: Terms,
}

/// Plans of one transaction, each with the number of its job.
#[derive(Default)]
struct Pack {
    plans: Vec<(usize, Plan)>,
    labels: Vec<(Labels, NumericIdentity)>,
    conditions: usize,
    ops: usize,
    bytes: usize,
}

// === impl Batch ===

impl Batch {
    async fn run(self, mut jobs: Vec<Job>) -> Vec<Job> {
        if self.terms.dry_run {
            jobs.iter_mut().for_each(|job| job.guess = false);
        }
        let mut failures = 0;
        for _ in 0..ROUNDS {
            match self.round(&mut jobs).await {
                Ok(true) => return jobs,
                Ok(false) => {}
                Err(error) if failures + 1 < ROUNDS && error.is_transient() => {
                    // What was written and what not has to be looked at.
                    jobs.iter_mut().for_each(Job::forget);
                    tokio::time::sleep(REST * 2u32.pow(failures)).await;
                    failures += 1;
                }
                Err(error) => {
                    for job in jobs.iter_mut().filter(|job| job.outcome.is_none()) {
                        job.outcome = Some(Err(Refusal::Store(error.clone())));
                    }
                    return jobs;
                }
            }
        }
        for job in jobs.iter_mut().filter(|job| job.outcome.is_none()) {
            job.outcome = Some(Err(Refusal::Contended));
        }
        jobs
    }

    /// One look at every job that is not done. Returns whether all are.
    async fn round(&self, jobs: &mut [Job]) -> Result<bool, StoreError> {
        let mut reads = Vec::new();
        let mut packs = vec![Pack::default()];
        for (n, job) in jobs.iter_mut().enumerate().filter(|(_, job)| job.outcome.is_none()) {
            match job.step(&self.inner.keys, &self.inner.nodes) {
                Step::Done(outcome) => job.outcome = Some(outcome),
                Step::Read(keys) => reads.extend(keys.into_iter().map(|key| (n, key))),
                Step::Write(plan) if self.terms.dry_run => job.outcome = Some(Ok(plan.what)),
                Step::Write(plan) => {
                    if !packs.last().is_some_and(|pack| pack.has_room(&plan)) {
                        packs.push(Pack::default());
                    }
                    if let Some(pack) = packs.last_mut() {
                        pack.add(n, plan);
                    }
                }
            }
        }
        for some in reads.chunks(TOGETHER) {
            let txn = some.iter().fold(Txn::new(), |txn, (_, key)| txn.then(Op::Get(key.clone())));
            let answers = self.inner.store.txn(txn).await?.answers;
            for ((n, key), entry) in some.iter().zip(entries(answers)) {
                jobs[*n].learn(key, entry);
            }
        }
        for pack in packs.into_iter().filter(|pack| !pack.plans.is_empty()) {
            self.write(pack, jobs).await?;
        }
        Ok(jobs.iter().all(|job| job.outcome.is_some()))
    }

    async fn write(&self, pack: Pack, jobs: &mut [Job]) -> Result<(), StoreError> {
        let mut txn = self.terms.fence.iter().fold(Txn::new(), |txn, fence| txn.when(fence.clone()));
        let mut looked_at = Vec::new();
        for (labels, number) in &pack.labels {
            let text = labels.to_kvstore();
            let user = villus_identity::use_key(&text, &self.inner.keys.user());
            txn = txn.then(Op::put(user, number.to_string(), None));
            txn = txn.then(Op::put(self.inner.keys.identity(*number), text, None));
            for compare in self.inner.conditions(labels, *number) {
                if let Compare::Value(key, value) = &compare {
                    looked_at.push((labels, *number, value.clone()));
                    txn = txn.otherwise(Op::Get(key.clone()));
                }
                txn = txn.when(compare);
            }
        }
        for (_, plan) in &pack.plans {
            for (key, compare) in &plan.compares {
                txn = txn.when(compare.clone()).otherwise(Op::Get(key.clone()));
            }
            txn = plan.ops.iter().fold(txn, |txn, op| txn.then(op.clone()));
        }
        let outcome = self.inner.store.txn(txn).await?;
        if outcome.held {
            for (n, plan) in &pack.plans {
                jobs[*n].outcome = Some(Ok(plan.what));
            }
            return Ok(());
        }
        let mut found = entries(outcome.answers);
        let mut lost: Vec<(&Labels, NumericIdentity)> = looked_at
            .iter()
            .zip(found.by_ref())
            .filter(|((_, _, value), entry)| entry.as_ref().is_none_or(|entry| entry.value != *value))
            .map(|((labels, number, _), _)| (*labels, *number))
            .collect();
        lost.dedup();
        for (n, plan) in &pack.plans {
            for (key, _) in &plan.compares {
                jobs[*n].learn(key, found.next().flatten());
            }
        }
        for (labels, number) in lost {
            if let Err(refusal) = self.inner.recover(labels, number).await {
                for (n, _) in pack
                    .plans
                    .iter()
                    .filter(|(_, plan)| plan.labels.as_ref().is_some_and(|(l, _)| l == labels))
                {
                    jobs[*n].outcome = Some(Err(refusal.clone()));
                }
            }
        }
        Ok(())
    }
}

// === impl Pack ===

impl Pack {
    fn has_room(&self, plan: &Plan) -> bool {
        let more = if self.is_new(plan) { 2 } else { 0 };
        self.plans.is_empty()
            || (self.conditions + plan.compares.len() + more <= TOGETHER
                && self.ops + plan.ops.len() + more <= TOGETHER
                && self.bytes + size(plan) <= BYTES)
    }

    fn is_new(&self, plan: &Plan) -> bool {
        plan.labels.as_ref().is_some_and(|labels| !self.labels.contains(labels))
    }

    fn add(&mut self, job: usize, plan: Plan) {
        if let Some(labels) = plan.labels.clone().filter(|_| self.is_new(&plan)) {
            self.labels.push(labels);
            (self.conditions, self.ops) = (self.conditions + 2, self.ops + 2);
        }
        self.conditions += plan.compares.len();
        self.ops += plan.ops.len();
        self.bytes += size(&plan);
        self.plans.push((job, plan));
    }
}

fn size(plan: &Plan) -> usize {
    let of = |op: &Op| if let Op::Put { key, value, .. } = op { key.len() + value.len() } else { 0 };
    plan.ops.iter().map(of).sum()
}

fn entries(answers: Vec<Answer>) -> impl Iterator<Item = Option<Entry>> {
    answers.into_iter().map(|answer| match answer {
        Answer::Got(entry) => entry,
        Answer::Listed { .. } | Answer::Put | Answer::Deleted(_) => None,
    })
}
