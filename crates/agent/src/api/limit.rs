//! `api-rate-limit` at work: how many calls of a kind may come in a time, and how many may be under way at once.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout_at};
use villus_api::{ApiError, ApiResult};
use villus_config::limit::Limit;

/// The limits of all calls.
#[derive(Debug)]
pub(crate) struct Limiters(Vec<Arc<Limiter>>);

/// What a limiter has seen and how it is set now.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Seen {
    pub limit: Limit,
    /// Now, after adjustment.
    pub rate: Option<f64>,
    pub burst: f64,
    pub parallel: Option<u32>,
    pub factor: f64,
    pub in_flight: u32,
    /// Calls by outcome and answer.
    pub outcomes: BTreeMap<(&'static str, u16), u64>,
    /// Seconds, means over the last calls.
    pub mean_processing: f64,
    pub mean_wait: f64,
    pub longest_wait: f64,
}

impl Seen {
    /// Calls that were refused.
    pub fn refused(&self) -> u64 {
        self.outcomes.iter().filter(|((outcome, _), _)| outcome.starts_with("fail-")).map(|(_, n)| n).sum()
    }
}

#[derive(Debug)]
struct Limiter {
    limit: Limit,
    slots: Option<Arc<Semaphore>>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    rate: Option<f64>,
    burst: f64,
    /// Calls that may come at once; negative while calls wait for their turn.
    tokens: f64,
    refilled: Instant,
    /// Calls that may be under way, exactly and in whole; and how many slots are to be taken away as calls end.
    exact_parallel: f64,
    parallel: u32,
    surplus: u32,
    factor: f64,
    calls: u64,
    in_flight: u32,
    outcomes: BTreeMap<(&'static str, u16), u64>,
    processing: VecDeque<f64>,
    waits: VecDeque<f64>,
}

/// A call under way.
struct Running<'a> {
    limiter: &'a Limiter,
    slot: Option<OwnedSemaphorePermit>,
    started: bool,
    outcome: Option<(&'static str, u16)>,
}

// === impl Limiters ===

impl Limiters {
    pub fn new(limits: Vec<Limit>) -> Self {
        Self(limits.into_iter().map(|limit| Arc::new(Limiter::new(limit))).collect())
    }

    /// Does something once its call may be done.
    ///
    /// # Errors
    /// 429 if that would take longer than the call may wait; else what the work says.
    pub async fn run<T>(&self, call: &str, work: impl Future<Output = ApiResult<T>>) -> ApiResult<T> {
        match self.0.iter().find(|limiter| limiter.limit.call == call) {
            Some(limiter) => limiter.run(work).await,
            None => work.await,
        }
    }

    /// What each has seen.
    pub fn seen(&self) -> Vec<Seen> {
        self.0.iter().map(|limiter| limiter.seen()).collect()
    }
}

// === impl Limiter ===

impl Limiter {
    fn new(limit: Limit) -> Self {
        let parallel = limit.parallel.unwrap_or_default();
        let state = State {
            rate: limit.rate,
            burst: f64::from(limit.burst),
            tokens: f64::from(limit.burst),
            refilled: Instant::now(),
            exact_parallel: f64::from(parallel),
            parallel,
            surplus: 0,
            factor: 1.0,
            calls: 0,
            in_flight: 0,
            outcomes: BTreeMap::new(),
            processing: VecDeque::new(),
            waits: VecDeque::new(),
        };
        let slots = limit.parallel.map(|n| Arc::new(Semaphore::new(n as usize)));
        Self { limit, slots, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run<T>(&self, work: impl Future<Output = ApiResult<T>>) -> ApiResult<T> {
        let begin = Instant::now();
        let mut running = Running { limiter: self, slot: None, started: false, outcome: None };
        if let Err(error) = self.admit(begin, &mut running).await {
            if self.limit.log {
                tracing::info!(call = self.limit.call, error = error.message, "refused");
            }
            return Err(error);
        }
        let waited = begin.elapsed();
        let start = Instant::now();
        self.state().in_flight += 1;
        running.started = true;
        let result = work.await;
        let took = start.elapsed();
        let answer = result.as_ref().err().map_or(200, |error| error.status);
        running.outcome = Some((if result.is_ok() { "success" } else { "fail" }, answer));
        if self.limit.log {
            tracing::info!(call = self.limit.call, ?waited, ?took, answer, "done");
        }
        self.account(waited, took);
        result
    }

    /// Waits for a slot, then for the rate.
    async fn admit(&self, begin: Instant, running: &mut Running<'_>) -> ApiResult<()> {
        let deadline = self.limit.max_wait.map(|most| begin + most);
        if let Some(slots) = &self.slots {
            let slot = slots.clone().acquire_owned();
            let slot = match deadline {
                Some(deadline) => timeout_at(deadline, slot).await,
                None => Ok(slot.await),
            };
            match slot {
                Ok(slot) => running.slot = slot.ok(),
                Err(_) => {
                    running.outcome = Some(("fail-parallel-wait", 429));
                    return Err(self.refusal("too many of them are under way"));
                }
            }
        }
        let reserved = self.state().reserve(&self.limit, deadline);
        match reserved {
            Some(wait) => {
                sleep(wait).await;
                Ok(())
            }
            None => {
                running.outcome = Some(("fail-limit-wait", 429));
                Err(self.refusal("too many of them have come"))
            }
        }
    }

    fn refusal(&self, why: &str) -> ApiError {
        let most = self.limit.max_wait.unwrap_or_default();
        ApiError::too_many(format!("{}: {why}; none waits longer than {most:?}", self.limit.call))
            .hint("try again later, or change the option api-rate-limit")
    }

    fn account(&self, waited: Duration, took: Duration) {
        let mut state = self.state();
        let most = self.limit.mean_over as usize;
        let State { processing, waits, .. } = &mut *state;
        for (values, span) in [(processing, took), (waits, waited)] {
            values.push_back(span.as_secs_f64());
            while values.len() > most {
                values.pop_front();
            }
        }
        if self.limit.auto_adjust {
            state.adjust(&self.limit, self.slots.as_deref());
        }
    }

    fn seen(&self) -> Seen {
        let state = self.state();
        Seen {
            limit: self.limit.clone(),
            rate: state.rate,
            burst: state.burst,
            parallel: self.slots.is_some().then_some(state.parallel),
            factor: state.factor,
            in_flight: state.in_flight,
            outcomes: state.outcomes.clone(),
            mean_processing: mean(&state.processing),
            mean_wait: mean(&state.waits),
            longest_wait: state.waits.iter().copied().fold(0.0, f64::max),
        }
    }
}

// === impl State ===

impl State {
    /// Takes the next call's place; says how long until its turn, or `None` if that comes after the deadline.
    fn reserve(&mut self, limit: &Limit, deadline: Option<Instant>) -> Option<Duration> {
        self.calls += 1;
        let now = Instant::now();
        let Some(rate) = self.rate.filter(|_| self.calls > u64::from(limit.skip_initial)) else {
            return Some(limit.min_wait);
        };
        let since = now.duration_since(self.refilled).as_secs_f64();
        self.refilled = now;
        // A burst of none would let nobody in.
        self.tokens = (self.tokens + since * rate).min(self.burst.max(1.0));
        let wait = if self.tokens >= 1.0 {
            Duration::ZERO
        } else {
            Duration::try_from_secs_f64((1.0 - self.tokens) / rate).unwrap_or(Duration::MAX)
        };
        let wait = wait.max(limit.min_wait);
        if deadline.is_some_and(|deadline| now.checked_add(wait).is_none_or(|turn| turn > deadline)) {
            return None;
        }
        self.tokens -= 1.0;
        Some(wait)
    }

    /// Follows how long calls take.
    fn adjust(&mut self, limit: &Limit, slots: Option<&Semaphore>) {
        let mean = mean(&self.processing);
        if mean <= 0.0 {
            return;
        }
        let bounds = (1.0 / limit.max_adjustment, limit.max_adjustment);
        self.factor = (limit.estimated.as_secs_f64() / mean).clamp(bounds.0, bounds.1);
        let towards = |now: f64, set: f64| now + (set * self.factor - now) * limit.delayed_adjustment;
        self.rate = self.rate.zip(limit.rate).map(|(now, set)| towards(now, set));
        self.burst = towards(self.burst, f64::from(limit.burst));
        if let (Some(slots), Some(set)) = (slots, limit.parallel) {
            let most = limit.max_parallel.unwrap_or(u32::MAX >> 4);
            let least = limit.min_parallel.min(most);
            // A float too large for u32 saturates.
            self.exact_parallel =
                towards(self.exact_parallel, f64::from(set)).clamp(f64::from(least), f64::from(most));
            let next = self.exact_parallel.round() as u32;
            let (more, fewer) = (next.saturating_sub(self.parallel), self.parallel.saturating_sub(next));
            let paid = more.min(self.surplus);
            self.surplus -= paid;
            slots.add_permits((more - paid) as usize);
            let taken = u32::try_from(slots.forget_permits(fewer as usize)).unwrap_or(fewer);
            self.surplus += fewer - taken;
            self.parallel = next;
        }
    }
}

// === impl Running ===

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut state = self.limiter.state();
        if self.started {
            state.in_flight = state.in_flight.saturating_sub(1);
        }
        // Whoever asked did not wait for the answer.
        *state.outcomes.entry(self.outcome.unwrap_or(("request-cancelled", 0))).or_default() += 1;
        if state.surplus > 0
            && let Some(slot) = self.slot.take()
        {
            state.surplus -= 1;
            slot.forget();
        }
    }
}

fn mean(values: &VecDeque<f64>) -> f64 {
    if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / values.len() as f64 }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn limiters(text: &str) -> Limiters {
        Limiters::new(villus_config::limit::limits(text).unwrap())
    }

    async fn takes(millis: u64) -> ApiResult<()> {
        sleep(Duration::from_millis(millis)).await;
        Ok(())
    }

    fn create(all: &Limiters) -> Seen {
        all.seen().remove(0)
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_counts_after_the_burst() {
        let all = limiters("endpoint-create=rate-limit:1/s,rate-burst:3,max-wait-duration:10s");
        let begin = Instant::now();
        for _ in 0..5 {
            all.run("endpoint-create", takes(0)).await.unwrap();
        }
        let took = begin.elapsed();
        assert!((1990..2100).contains(&took.as_millis()), "three at once, two a second apart: {took:?}");
        assert_eq!(create(&all).outcomes[&("success", 200)], 5);
    }

    #[tokio::test(start_paused = true)]
    async fn who_would_wait_too_long_is_refused_at_once() {
        let all = limiters("endpoint-create=rate-limit:1/m,rate-burst:1,max-wait-duration:5s");
        all.run("endpoint-create", takes(0)).await.unwrap();
        let begin = Instant::now();
        let refused = all.run("endpoint-create", takes(0)).await.unwrap_err();
        assert_eq!((refused.status, begin.elapsed()), (429, Duration::ZERO));
        assert!(refused.message.contains("endpoint-create"), "{refused}");
        // It has not used up the turn of the next.
        sleep(Duration::from_secs(56)).await;
        all.run("endpoint-create", takes(0)).await.unwrap();
        assert_eq!((create(&all).refused(), create(&all).in_flight), (1, 0));
        all.run("endpoint-delete", takes(0)).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_than_said_are_under_way() {
        let all = limiters("endpoint-create=parallel-requests:2,max-wait-duration:1s,rate-burst:10");
        let begin = Instant::now();
        let one = || all.run("endpoint-create", takes(600));
        let (a, b, c, d) = tokio::join!(one(), one(), one(), one());
        assert!(a.is_ok() && b.is_ok() && c.is_ok() && d.is_ok());
        assert_eq!(begin.elapsed().as_millis() / 100, 12);
        let slow = || all.run("endpoint-create", takes(5000));
        let (_, _, refused) = tokio::join!(slow(), slow(), one());
        assert!(refused.unwrap_err().message.contains("under way"));
        assert_eq!(create(&all).outcomes[&("fail-parallel-wait", 429)], 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_calls_and_the_least_wait() {
        let all =
            limiters("endpoint-create=rate-limit:1/h,rate-burst:1,skip-initial:4,min-wait-duration:100ms");
        let begin = Instant::now();
        for _ in 0..5 {
            all.run("endpoint-create", takes(0)).await.unwrap();
        }
        assert_eq!(begin.elapsed().as_millis() / 100, 5);
        assert_eq!(all.run("endpoint-create", takes(0)).await.unwrap_err().status, 429);
    }

    #[tokio::test(start_paused = true)]
    async fn limits_follow_how_long_calls_take() {
        let text = "endpoint-create=auto-adjust:true,estimated-processing-duration:100ms,parallel-requests:8,\
                    min-parallel-requests:2,max-parallel-requests:16,rate-limit:100/s,rate-burst:100";
        let all = limiters(text);
        for _ in 0..20 {
            all.run("endpoint-create", takes(400)).await.unwrap();
        }
        let slow = create(&all);
        assert!((slow.factor - 0.25).abs() < 0.01, "{slow:?}");
        assert_eq!(slow.parallel, Some(2));
        assert!((slow.rate.unwrap() - 25.0).abs() < 1.0 && (slow.burst - 25.0).abs() < 1.0, "{slow:?}");
        for _ in 0..40 {
            all.run("endpoint-create", takes(20)).await.unwrap();
        }
        let quick = create(&all);
        assert_eq!(quick.parallel, Some(16), "no more than may be");
        assert!(quick.rate.unwrap() > 400.0, "{quick:?}");
        let begin = Instant::now();
        let all = Arc::new(all);
        let mut work = tokio::task::JoinSet::new();
        for _ in 0..16 {
            let all = all.clone();
            work.spawn(async move { all.run("endpoint-create", takes(100)).await });
        }
        assert!(work.join_all().await.iter().all(Result::is_ok));
        assert_eq!(begin.elapsed().as_millis() / 100, 1, "sixteen are under way at once");
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_wait_for_the_answer_gives_the_slot_back() {
        let all = limiters("endpoint-create=parallel-requests:1,max-wait-duration:1s");
        let work = all.run("endpoint-create", takes(10_000));
        assert!(tokio::time::timeout(Duration::from_millis(10), work).await.is_err());
        all.run("endpoint-create", takes(0)).await.unwrap();
        let seen = create(&all);
        assert_eq!((seen.outcomes[&("request-cancelled", 0)], seen.in_flight), (1, 0));
    }
}
