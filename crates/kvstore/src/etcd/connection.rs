//! One member of the cluster at a time, and the next when it does not answer.

use std::{
    fmt,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use etcd_client::{Client, ConnectOptions, Error};
use tokio::{
    sync::{Notify, Semaphore},
    time::timeout,
};
use tonic::Code;
use x509_parser::time::ASN1Time;

use super::options::{EtcdOptions, EtcdTls, OptionsError, Rate};
use crate::{
    error::StoreError,
    figures::{Figures, Operation},
    model::LeaseId,
};

/// How long one request may take; a member that needs longer is taken for gone.
const REQUEST: Duration = Duration::from_secs(10);
const CONNECT: Duration = Duration::from_secs(5);
/// How etcd says that its quota is used up.
const NO_SPACE: &str = "space exceeded";
/// How often certificate files are looked at for a change, at most.
const FILES: Duration = Duration::from_secs(5);

pub(super) struct Connection {
    options: EtcdOptions,
    members: Vec<Mutex<Option<Client>>>,
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

/// One line of the status.
#[derive(Debug)]
pub(super) struct Member {
    endpoint: String,
    pub connected: bool,
    said: String,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} - {}", self.endpoint, self.said)
    }
}

// === impl Connection ===

impl Connection {
    /// Certificates are not looked at yet.
    pub(super) fn new(options: EtcdOptions) -> Result<Self, OptionsError> {
        options.check()?;
        Ok(Self {
            members: options.endpoints.iter().map(|_| Mutex::default()).collect(),
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

    /// Asks one member once. Whether a write that fails took place is not known.
    pub(super) async fn call<T, F: Future<Output = Result<T, Error>>>(
        &self,
        what: Operation,
        ask: impl FnOnce(Client) -> F,
    ) -> Result<T, StoreError> {
        let begin = tokio::time::Instant::now();
        let outcome = self.in_turn(what.action, ask).await;
        self.figures.note(what, outcome.is_ok(), begin.elapsed());
        outcome
    }

    async fn in_turn<T, F: Future<Output = Result<T, Error>>>(
        &self,
        what: &'static str,
        ask: impl FnOnce(Client) -> F,
    ) -> Result<T, StoreError> {
        let rate = if self.started.load(Ordering::Relaxed) { &self.steady } else { &self.bootstrap };
        rate.wait().await;
        let _turn = self.inflight.acquire().await.map_err(|_| StoreError::Closed)?;
        let member = self.current.load(Ordering::Relaxed);
        self.ask(member, what, ask).await
    }

    /// Asks one member after another until one answers: for what changes nothing.
    pub(super) async fn read<T, F: Future<Output = Result<T, Error>>>(
        &self,
        what: Operation,
        ask: impl Fn(Client) -> F,
    ) -> Result<T, StoreError> {
        let mut outcome = self.call(what, &ask).await;
        for _ in 1..self.members.len() {
            match outcome {
                Err(StoreError::Unavailable { .. }) => outcome = self.call(what, &ask).await,
                _ => break,
            }
        }
        outcome
    }

    async fn ask<T, F: Future<Output = Result<T, Error>>>(
        &self,
        member: usize,
        what: &'static str,
        ask: impl FnOnce(Client) -> F,
    ) -> Result<T, StoreError> {
        let client = match self.client(member).await {
            Ok(client) => client,
            Err(reason) => {
                self.trouble.notify_one();
                self.leave(member);
                return Err(StoreError::Unavailable { what, reason });
            }
        };
        let reason = match timeout(REQUEST, ask(client)).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => match classify(what, error) {
                Ok(error) => {
                    if error.is_transient() {
                        self.trouble.notify_one();
                    }
                    return Err(error);
                }
                Err(reason) => self.hinted(reason),
            },
            Err(_) => format!("no answer from {} within {REQUEST:?}", self.options.endpoints[member]),
        };
        self.trouble.notify_one();
        self.leave(member);
        Err(StoreError::Unavailable { what, reason })
    }

    /// The next member is asked from now on, if this one still is the one; its connection is made anew next time.
    fn leave(&self, member: usize) {
        *self.members[member].lock().unwrap_or_else(PoisonError::into_inner) = None;
        let next = (member + 1) % self.members.len();
        let _ = self.current.compare_exchange(member, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// With TLS 1.3 a server that refuses a client's certificate says so after the handshake, and what it says may
    /// arrive after the connection's end: then all that is seen is one of many ways in which a connection can break.
    fn hinted(&self, reason: String) -> String {
        if let Some(invalid) = self.options.tls.as_ref().and_then(EtcdTls::invalid_now) {
            return format!("{reason}; {invalid}");
        }
        const BREAKS: [&str; 4] =
            ["connection closed", "broken pipe", "connection reset", "unexpected end of file"];
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

    async fn client(&self, member: usize) -> Result<Client, String> {
        self.look_at_files();
        let known = self.members[member].lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(client) = known {
            return Ok(client);
        }
        let endpoint = &self.options.endpoints[member];
        let options = connect_options(&self.options).map_err(|error| error.to_string())?;
        let client = match timeout(CONNECT, Client::connect([endpoint], Some(options))).await {
            Ok(Ok(client)) => client,
            Ok(Err(error)) => return Err(format!("{endpoint}: {}", self.hinted(explained(&error)))),
            Err(_) => return Err(format!("{endpoint}: no answer within {CONNECT:?}")),
        };
        *self.members[member].lock().unwrap_or_else(PoisonError::into_inner) = Some(client.clone());
        Ok(client)
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
        if let Err(error) = connect_options(&self.options) {
            tracing::warn!(%error, "renewed certificates of the store cannot be used yet");
            return;
        }
        files.changed = changed;
        tracing::info!("certificates of the store were renewed; its connections are made anew");
        for member in &self.members {
            *member.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    /// Asks every member how it is, all at once.
    pub(super) async fn members(&self) -> Vec<Member> {
        let asked = self.options.endpoints.iter().enumerate().map(|(index, endpoint)| async move {
            let said = match self.client(index).await {
                Ok(mut client) => match timeout(CONNECT, client.status()).await {
                    Ok(Ok(status)) => {
                        let role = match status.header() {
                            Some(header) if header.member_id() == status.leader() => " (Leader)",
                            _ => "",
                        };
                        Ok(format!("{}{role}", status.version()))
                    }
                    Ok(Err(error)) => Err(self.hinted(explained(&error))),
                    Err(_) => Err(format!("no answer within {CONNECT:?}")),
                },
                Err(reason) => Err(reason),
            };
            let connected = said.is_ok();
            let said = said.unwrap_or_else(|reason| reason);
            Member { endpoint: endpoint.clone(), connected, said }
        });
        futures_util::future::join_all(asked).await
    }
}

/// Whether the certificates can be used now.
pub(super) fn check_files(options: &EtcdOptions) -> Result<(), OptionsError> {
    connect_options(options).map(drop)
}

fn connect_options(options: &EtcdOptions) -> Result<ConnectOptions, OptionsError> {
    let mut connect = ConnectOptions::new()
        .with_connect_timeout(CONNECT)
        .with_keep_alive(options.keepalive_heartbeat, options.keepalive_timeout)
        .with_keep_alive_while_idle(true)
        .with_require_leader(true)
        .with_auto_token_refresh(true);
    if let Some((name, password)) = &options.user {
        connect = connect.with_user(name, password);
    }
    if let Some(tls) = &options.tls {
        connect = connect.with_tls(tls.load()?);
    }
    Ok(connect)
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
    use std::sync::Arc;

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
        let connection = Connection::new(options).unwrap();
        ask(&connection).await;
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(60)).await;
        // Of each a second's worth comes at once, and then two seconds of them evenly.
        for count in [3001, 301] {
            let begin = tokio::time::Instant::now();
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
        let connection = Arc::new(Connection::new(options).unwrap());
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
