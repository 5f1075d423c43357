//! One member of the cluster at a time, and the next when it does not answer.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use etcd_client::{Client, Error, KeyValue};
use tokio::{
    sync::{Notify, Semaphore},
    time::{Instant, timeout},
};
use tonic::Code;
use x509_parser::time::ASN1Time;

use super::{
    channel, convert,
    options::{EtcdOptions, EtcdTls, OptionsError, Rate},
};
use crate::{
    error::StoreError,
    figures::{Figures, Operation},
    guard::Guard,
    model::LeaseId,
};

/// How long one request may take; a member that needs longer is taken for gone.
const REQUEST: Duration = Duration::from_secs(10);
/// How long a member that is not this cluster's is not asked again.
const REFUSED: Duration = Duration::from_secs(30);
/// How etcd says that its quota is used up.
const NO_SPACE: &str = "space exceeded";
/// How etcd says that users or roles have changed since the request was let in, or since our token was made. The request
/// has not been carried out.
const OLD_REVISION: &str = "revision of auth store is old";
/// How often such a request is sent again at once, for roles are often changed several at a time.
const ANEW: u32 = 8;
/// How etcd says that it does not know who asks.
const UNKNOWN_USER: [&str; 2] = ["user name is empty", "authentication failed"];
/// How often certificate files are looked at for a change, at most.
const FILES: Duration = Duration::from_secs(5);

pub(super) struct Connection {
    options: EtcdOptions,
    /// Asks each member that is connected to which cluster it is of.
    guard: Option<Arc<Guard>>,
    members: Vec<Member>,
    /// Counts connections.
    opened: AtomicU64,
    /// The member that is asked.
    current: AtomicUsize,
    files: Mutex<Files>,
    inflight: Semaphore,
    bootstrap: Rate,
    steady: Rate,
    started: AtomicBool,
    /// Rung when a request has failed.
    trouble: Notify,
    figures: Figures,
}

/// What the certificate files were like when they were last read.
struct Files {
    looked: std::time::Instant,
    changed: Vec<Option<SystemTime>>,
}

#[derive(Default)]
struct Member {
    open: Mutex<Option<Open>>,
    /// Held by who connects or asks which cluster it is of; when that failed last, and why.
    opening: tokio::sync::Mutex<Option<(Instant, Unusable)>>,
}

/// A connection that stands, or did.
#[derive(Clone)]
struct Open {
    client: Client,
    /// Tells it from the one before.
    number: u64,
    verdict: Verdict,
}

/// Whether a connection may be used.
#[derive(Clone, PartialEq)]
enum Verdict {
    NotAsked,
    Admitted,
    /// Since when, and why.
    Refused(Instant, String),
}

/// Why a member is not asked.
#[derive(Clone)]
enum Unusable {
    /// It is not there.
    Away(String),
    /// It is not this cluster's.
    Refused(String),
}

/// Who is asked.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Whom {
    /// Only members of which it is known that they are this cluster's.
    Ours,
    /// Whoever answers: to learn how it is.
    Anyone,
}

/// One line of the status.
#[derive(Debug)]
pub(super) struct Line {
    endpoint: String,
    pub connected: bool,
    said: String,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} - {}", self.endpoint, self.said)
    }
}

// === impl Member ===

impl Member {
    fn open(&self) -> Option<Open> {
        self.slot().clone()
    }

    fn slot(&self) -> MutexGuard<'_, Option<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Connection ===

impl Connection {
    /// Certificates are not looked at yet.
    pub(super) fn new(options: EtcdOptions, guard: Option<Arc<Guard>>) -> Result<Self, OptionsError> {
        options.check()?;
        Ok(Self {
            guard,
            opened: AtomicU64::new(0),
            members: options.endpoints.iter().map(|_| Member::default()).collect(),
            // Agents of one cluster do not all begin with the first member.
            current: AtomicUsize::new(fastrand::usize(..options.endpoints.len())),
            files: Mutex::new(Files { looked: std::time::Instant::now(), changed: options.changed() }),
            inflight: Semaphore::new(options.inflight()),
            bootstrap: Rate::new(options.bootstrap_qps),
            steady: Rate::new(options.qps),
            started: AtomicBool::new(false),
            trouble: Notify::new(),
            figures: Figures::default(),
            options,
        })
    }

    pub(super) fn started(&self) {
        self.started.store(true, Ordering::Relaxed);
    }

    /// Waits for a request that fails, or has failed since this was last waited for.
    pub(super) async fn trouble(&self) {
        self.trouble.notified().await;
    }

    pub(super) fn guard(&self) -> Option<&Guard> {
        self.guard.as_deref()
    }

    /// How long requests took.
    pub(super) fn figures(&self) -> &Figures {
        &self.figures
    }

    /// Keys per page of a list.
    pub(super) fn page(&self) -> usize {
        self.options.page
    }

    /// Bytes of an answer, at most.
    pub(super) fn max_message(&self) -> usize {
        self.options.max_message
    }

    /// Asks one member, once unless it is known that nothing took place. Whether a write that fails took place is not
    /// known.
    pub(super) async fn call<T, F: Future<Output = Result<T, Error>>>(
        &self,
        what: Operation,
        ask: impl Fn(Client) -> F,
    ) -> Result<T, StoreError> {
        self.timed(Whom::Ours, what, ask).await
    }

    async fn timed<T, F: Future<Output = Result<T, Error>>>(
        &self,
        whom: Whom,
        what: Operation,
        ask: impl Fn(Client) -> F,
    ) -> Result<T, StoreError> {
        let begin = Instant::now();
        let outcome = self.in_turn(whom, what.action, ask).await;
        self.figures.note(what, outcome.is_ok(), begin.elapsed());
        outcome
    }

    async fn in_turn<T, F: Future<Output = Result<T, Error>>>(
        &self,
        whom: Whom,
        what: &'static str,
        ask: impl Fn(Client) -> F,
    ) -> Result<T, StoreError> {
        let rate = if self.started.load(Ordering::Relaxed) { &self.steady } else { &self.bootstrap };
        rate.wait().await;
        let _turn = self.inflight.acquire().await.map_err(|_| StoreError::Closed)?;
        let member = self.current.load(Ordering::Relaxed);
        self.ask(whom, member, what, ask).await
    }

    /// Asks one member after another until one answers: for what changes nothing.
    pub(super) async fn read<T, F: Future<Output = Result<T, Error>>>(
        &self,
        what: Operation,
        ask: impl Fn(Client) -> F,
    ) -> Result<T, StoreError> {
        self.read_of(Whom::Ours, what, ask).await
    }

    /// As [`Self::read`], of whoever that is.
    pub(super) async fn read_of<T, F: Future<Output = Result<T, Error>>>(
        &self,
        whom: Whom,
        what: Operation,
        ask: impl Fn(Client) -> F,
    ) -> Result<T, StoreError> {
        let mut outcome = self.timed(whom, what, &ask).await;
        for _ in 1..self.members.len() {
            match outcome {
                Err(StoreError::Unavailable { .. }) => outcome = self.timed(whom, what, &ask).await,
                _ => break,
            }
        }
        outcome
    }

    async fn ask<T, F: Future<Output = Result<T, Error>>>(
        &self,
        whom: Whom,
        member: usize,
        what: &'static str,
        ask: impl Fn(Client) -> F,
    ) -> Result<T, StoreError> {
        let (mut ended, mut outdated) = (false, 0);
        let reason = loop {
            let open = match self.client(whom, member).await {
                Ok(open) => open,
                Err(Unusable::Away(reason)) => break reason,
                Err(Unusable::Refused(reason)) => {
                    self.trouble.notify_one();
                    self.pass_over(member);
                    return Err(StoreError::Unavailable { what, reason });
                }
            };
            let error = match timeout(REQUEST, ask(open.client)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => error,
                Err(_) => {
                    self.forget(member, open.number);
                    break format!("no answer from {} within {REQUEST:?}", self.options.endpoints[member]);
                }
            };
            if !ended && channel::was_not_sent(&error) {
                ended = true;
                self.forget(member, open.number);
            } else if outdated < ANEW && is_outdated(&error) {
                outdated += 1;
                // A token says of which revision it is; of a certificate the server finds that out at each request.
                if self.options.user.is_some() {
                    self.forget(member, open.number);
                }
            } else {
                match classify(what, error) {
                    Ok(error) => {
                        if error.is_transient() {
                            self.trouble.notify_one();
                        }
                        return Err(error);
                    }
                    Err(reason) => {
                        self.forget(member, open.number);
                        break self.hinted(reason);
                    }
                }
            }
        };
        self.trouble.notify_one();
        self.pass_over(member);
        Err(StoreError::Unavailable { what, reason })
    }

    /// This connection to a member is made anew next time.
    fn forget(&self, member: usize, number: u64) {
        self.members[member].slot().take_if(|open| open.number == number);
    }

    /// The next member is asked from now on, if this one still is the one.
    fn pass_over(&self, member: usize) {
        let next = (member + 1) % self.members.len();
        let _ = self.current.compare_exchange(member, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// With TLS 1.3 a server that refuses a client's certificate says so after the handshake, and what it says may
    /// arrive after the connection's end: then all that is seen is one of many ways in which a connection can break.
    fn hinted(&self, reason: String) -> String {
        if let Some(invalid) = self.options.tls.as_ref().and_then(EtcdTls::invalid_now) {
            return format!("{reason}; {invalid}");
        }
        const BREAKS: [&str; 5] = [
            "connection closed",
            "broken pipe",
            "connection reset",
            "unexpected end of file",
            "the connection has ended",
        ];
        const TIMES: [&str; 2] = ["certificate not valid yet", "certificate expired"];
        let lower = reason.to_lowercase();
        if TIMES.iter().any(|when| lower.contains(when)) {
            let now = ASN1Time::now();
            return format!(
                "{reason}; that is the server's certificate, and by this machine's clock it is {now}: renew the one or set the other"
            );
        }
        if self.options.tls.is_none() || !BREAKS.iter().any(|how| lower.contains(how)) {
            return reason;
        }
        format!("{reason}; perhaps the server does not accept this client's certificate")
    }

    /// The connection to a member, made if there is none. Of several who want one at the same time one makes it.
    async fn client(&self, whom: Whom, member: usize) -> Result<Open, Unusable> {
        self.look_at_files();
        let begun = Instant::now();
        if let Some(known) = self.known(whom, member) {
            return known;
        }
        // What it takes to connect is large, and seldom needed.
        Box::pin(self.open_in_turn(whom, member, begun)).await
    }

    async fn open_in_turn(&self, whom: Whom, member: usize, begun: Instant) -> Result<Open, Unusable> {
        let mut failed = self.members[member].opening.lock().await;
        if let Some(known) = self.known(whom, member) {
            return known;
        }
        if let Some((at, why)) = failed.as_ref().filter(|(at, _)| *at >= begun) {
            tracing::trace!(member, ?at, "whoever was first has failed");
            return Err(why.clone());
        }
        let outcome = self.open(whom, member).await;
        *failed = outcome.as_ref().err().map(|why| (Instant::now(), why.clone()));
        outcome
    }

    /// What can be said without asking the member.
    fn known(&self, whom: Whom, member: usize) -> Option<Result<Open, Unusable>> {
        let open = self.members[member].open()?;
        match open.verdict {
            _ if whom == Whom::Anyone => Some(Ok(open)),
            Verdict::Admitted => Some(Ok(open)),
            Verdict::Refused(at, reason) if at.elapsed() < REFUSED => Some(Err(Unusable::Refused(reason))),
            Verdict::NotAsked | Verdict::Refused(..) => None,
        }
    }

    async fn open(&self, whom: Whom, member: usize) -> Result<Open, Unusable> {
        loop {
            let (open, is_new) = match self.members[member].open() {
                Some(open) => (open, false),
                None => (self.connect(member).await?, true),
            };
            let Some(guard) = self.guard.as_ref().filter(|_| whom == Whom::Ours) else { return Ok(open) };
            let asked = Instant::now();
            match self.admit(guard, member, &open).await {
                Err(Unusable::Away(reason)) => {
                    self.forget(member, open.number);
                    // An old one may have ended long ago. Who is silent is not asked twice.
                    if is_new || asked.elapsed() >= REQUEST {
                        return Err(Unusable::Away(reason));
                    }
                }
                outcome => return outcome.map(|()| open),
            }
        }
    }

    async fn connect(&self, member: usize) -> Result<Open, Unusable> {
        let (endpoint, patience) = (&self.options.endpoints[member], self.options.dial_timeout);
        let reason = match timeout(patience, channel::open(endpoint, &self.options)).await {
            Ok(Ok(client)) => {
                let verdict = if self.guard.is_some() { Verdict::NotAsked } else { Verdict::Admitted };
                let open = Open { client, number: self.opened.fetch_add(1, Ordering::Relaxed), verdict };
                *self.members[member].slot() = Some(open.clone());
                return Ok(open);
            }
            Ok(Err(error)) => self.hinted(explained(&error)),
            Err(_) => format!("no answer within {patience:?}"),
        };
        Err(Unusable::Away(format!("{endpoint}: {reason}")))
    }

    /// Asks over a connection which cluster is at its other end. Nothing of ours goes over it before.
    async fn admit(&self, guard: &Guard, member: usize, open: &Open) -> Result<(), Unusable> {
        let endpoint = &self.options.endpoints[member];
        let mut asked = open.client.clone();
        let judged = match timeout(REQUEST, asked.get(guard.key(), None)).await {
            Ok(Ok(answer)) => guard.judge(answer.kvs().first().map(KeyValue::value)),
            Ok(Err(error)) => match classify("get", error) {
                Ok(denied @ StoreError::Denied { .. }) => Err(format!("`{}`: {denied}", guard.key())),
                Ok(error) => return Err(Unusable::Away(format!("{endpoint}: {error}"))),
                Err(reason) => return Err(Unusable::Away(format!("{endpoint}: {}", self.hinted(reason)))),
            },
            Err(_) => return Err(Unusable::Away(format!("{endpoint}: no answer within {REQUEST:?}"))),
        };
        let verdict = match &judged {
            Ok(()) => Verdict::Admitted,
            Err(reason) => Verdict::Refused(Instant::now(), reason.clone()),
        };
        // Unless it was given up meanwhile.
        if let Some(there) = self.members[member].slot().as_mut().filter(|there| there.number == open.number)
        {
            there.verdict = verdict;
        }
        judged.map_err(Unusable::Refused)
    }

    /// Asks the member that is asked now once more which cluster it is of, and all others when they are asked next.
    pub(super) async fn admit_anew(&self) -> Result<(), StoreError> {
        for member in &self.members {
            if let Some(open) = member.slot().as_mut().filter(|_| self.guard.is_some()) {
                open.verdict = Verdict::NotAsked;
            }
        }
        self.read(Operation::read("header", convert::PROBE), |_| async { Ok(()) }).await
    }

    /// Certificates that were renewed on disk are used by the connections made from now on; those that are open
    /// with the old ones are given up.
    fn look_at_files(&self) {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if files.changed.is_empty() || files.looked.elapsed() < FILES {
            return;
        }
        files.looked = std::time::Instant::now();
        let changed = self.options.changed();
        if changed == files.changed {
            return;
        }
        // A pair that is only half written, or worse, never replaces a good one.
        if let Err(error) = check_files(&self.options) {
            tracing::warn!(%error, "renewed certificates of the store cannot be used yet");
            return;
        }
        files.changed = changed;
        tracing::info!("certificates of the store were renewed; its connections are made anew");
        self.members.iter().for_each(|member| *member.slot() = None);
    }

    /// Asks every member how it is, all at once.
    pub(super) async fn members(&self) -> Vec<Line> {
        let asked = self.options.endpoints.iter().enumerate().map(|(index, endpoint)| async move {
            let said = self.version(index).await;
            let connected = said.is_ok();
            let said = said.unwrap_or_else(|reason| reason);
            Line { endpoint: endpoint.clone(), connected, said }
        });
        futures_util::future::join_all(asked).await
    }

    /// Of a member, and whether it leads.
    async fn version(&self, member: usize) -> Result<String, String> {
        let patience = self.options.dial_timeout;
        let mut ended = false;
        loop {
            let mut open = self
                .client(Whom::Anyone, member)
                .await
                .map_err(|(Unusable::Away(reason) | Unusable::Refused(reason))| reason)?;
            match timeout(patience, open.client.status()).await {
                Ok(Ok(status)) => {
                    let role = match status.header() {
                        Some(header) if header.member_id() == status.leader() => " (Leader)",
                        _ => "",
                    };
                    return Ok(format!("{}{role}", status.version()));
                }
                Ok(Err(error)) if !ended && channel::was_not_sent(&error) => {
                    ended = true;
                    self.forget(member, open.number);
                }
                Ok(Err(error)) => return Err(self.hinted(explained(&error))),
                Err(_) => return Err(format!("no answer within {patience:?}")),
            }
        }
    }
}

/// Whether the certificates can be used now.
pub(super) fn check_files(options: &EtcdOptions) -> Result<(), OptionsError> {
    options.tls.as_ref().map_or(Ok(()), |tls| tls.load().map(drop))
}

/// Whether users or roles have changed since a request was let in, or since our token was made.
fn is_outdated(error: &Error) -> bool {
    matches!(error, Error::GRpcStatus(status)
        if status.code() == Code::InvalidArgument && status.message().contains(OLD_REVISION))
}

/// What an error of a request means. `Err`: the member is not there, another should be asked.
fn classify(what: &'static str, error: Error) -> Result<StoreError, String> {
    if matches!(&error, Error::LeaseKeepAliveError(reason) if reason.contains("not found")) {
        return Ok(StoreError::LeaseNotFound(LeaseId(0)));
    }
    let Error::GRpcStatus(status) = &error else { return Err(explained(&error)) };
    let message = status.message();
    let unavailable = |reason: &str| Ok(StoreError::Unavailable { what, reason: reason.to_owned() });
    match status.code() {
        Code::OutOfRange if message.contains("compacted") => {
            Ok(StoreError::Compacted { requested: 0, oldest: 0 })
        }
        // A revision of the future: the store was rewound.
        Code::OutOfRange => unavailable(message),
        Code::NotFound if message.contains("lease") => Ok(StoreError::LeaseNotFound(LeaseId(0))),
        // Nothing is wrong with what was asked.
        Code::InvalidArgument if message.contains(OLD_REVISION) => unavailable(message),
        Code::InvalidArgument if UNKNOWN_USER.iter().any(|text| message.contains(text)) => {
            Err(message.to_owned())
        }
        Code::InvalidArgument => Ok(StoreError::BadTxn(message.to_owned())),
        Code::ResourceExhausted if message.contains(NO_SPACE) => {
            Ok(StoreError::Full { what, reason: message.to_owned() })
        }
        Code::ResourceExhausted => unavailable(message),
        Code::PermissionDenied => Ok(StoreError::Denied {
            what,
            reason: format!(
                "{message}: the user that this certificate or password stands for may not do that"
            ),
        }),
        Code::Unauthenticated => Err(message.to_owned()),
        _ => Err(explained(&error)),
    }
}

/// An error with its causes: the outer one alone often says only "transport error".
fn explained(error: &Error) -> String {
    let (mut text, mut cause): (String, Option<&dyn std::error::Error>) = match error {
        Error::GRpcStatus(status) => (status.message().to_owned(), std::error::Error::source(status)),
        Error::TransportError(transport) => (transport.to_string(), std::error::Error::source(transport)),
        other => (other.to_string(), None),
    };
    while let Some(inner) = cause {
        let said = inner.to_string();
        if !said.is_empty() && !text.contains(&said) {
            text = if text.is_empty() { said } else { format!("{text}: {said}") };
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use villus_testbed::EtcdServer;

    use super::*;

    fn what() -> Operation {
        Operation::read("test", "")
    }

    /// Requests that ask nobody anything, on a connection that is there.
    async fn ask(connection: &Connection) {
        connection.call(what(), |_| async { Ok(()) }).await.unwrap();
    }

    #[tokio::test]
    async fn requests_wait_for_their_turn_at_first_by_the_rate_of_the_start() {
        let server = EtcdServer::start();
        let mut options = EtcdOptions::new(vec![server.url()]);
        (options.bootstrap_qps, options.qps) = (1000, 100);
        let connection = Connection::new(options, None).unwrap();
        ask(&connection).await;
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(60)).await;
        // Of each a second's worth comes at once, and then two seconds of them evenly.
        for count in [3001, 301] {
            let begin = Instant::now();
            for _ in 0..count {
                ask(&connection).await;
            }
            let took = begin.elapsed().as_millis();
            assert!((2000..2020).contains(&took), "{count} requests: {took} ms");
            connection.started();
        }
    }

    #[tokio::test]
    async fn no_more_requests_are_under_way_than_may_be() {
        let server = EtcdServer::start();
        let mut options = EtcdOptions::new(vec![server.url()]);
        options.max_inflight = 3;
        let connection = Arc::new(Connection::new(options, None).unwrap());
        ask(&connection).await;
        let (under_way, may_end) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
        let tasks: Vec<_> = (0..10)
            .map(|_| {
                let (connection, under_way, may_end) =
                    (Arc::clone(&connection), Arc::clone(&under_way), Arc::clone(&may_end));
                tokio::spawn(async move {
                    let asked = |_| async {
                        under_way.fetch_add(1, Ordering::Relaxed);
                        may_end.acquire().await.unwrap().forget();
                        under_way.fetch_sub(1, Ordering::Relaxed);
                        Ok(())
                    };
                    connection.call(what(), asked).await.unwrap();
                })
            })
            .collect();
        let settled = async || {
            while under_way.load(Ordering::Relaxed) < 3 {
                tokio::task::yield_now().await;
            }
            // Whoever else would begin has the time to.
            for _ in 0..1000 {
                tokio::task::yield_now().await;
            }
        };
        for _ in 0..7 {
            settled().await;
            assert_eq!(under_way.load(Ordering::Relaxed), 3);
            may_end.add_permits(1);
            while may_end.available_permits() > 0 {
                tokio::task::yield_now().await;
            }
        }
        may_end.add_permits(3);
        for task in tasks {
            task.await.unwrap();
        }
    }
}
