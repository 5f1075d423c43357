//! Changes of links, addresses and routes as the kernel reports them.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::route::RouteFlags;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_recv_buffer_size_force;

use crate::error::NetError;
use crate::rtnl::{Address, Link, Route, RouteKind, decode_all, groups};

/// Room for bursts: some thousand events.
const RECEIVE_BUFFER: usize = 4 << 20;

/// Events waiting for a slow receiver of [`Monitor::into_channel`]; what is more waits in the kernel.
const CHANNEL_ROOM: usize = 256;

/// A change of the node's network. Events say what is now: seeing one twice does no harm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetEvent {
    /// Read everything anew: always the first event, and later when the kernel had to drop some.
    Resync,
    /// A device appeared or changed.
    Link(Link),
    /// A device is gone.
    LinkGone(Link),
    /// An address appeared or changed.
    Address(Address),
    /// An address is gone.
    AddressGone(Address),
    /// A route of the main table appeared or changed.
    Route(Route),
    /// A route of the main table is gone.
    RouteGone(Route),
}

/// Follows the namespace of the thread that opened it. As an iterator it blocks between events and ends when it is
/// stopped or fails.
pub struct Monitor {
    socket: Socket,
    stop: Arc<std::os::fd::OwnedFd>,
    buffer: Vec<u8>,
    /// In reverse order.
    ready: Vec<NetEvent>,
}

/// Ends a [`Monitor`] from any thread; dropping it does nothing.
#[derive(Debug, Clone)]
pub struct MonitorStop(Arc<std::os::fd::OwnedFd>);

// === impl MonitorStop ===

impl MonitorStop {
    /// Ends the monitor, now and for ever.
    pub fn stop(&self) {
        // It fails only when the counter is full, and then it is not zero either.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }
}

// === impl Monitor ===

impl Monitor {
    /// Begins to listen in the calling thread's namespace. Nothing that happens after this is missed: read the
    /// state on the [`NetEvent::Resync`] that comes first.
    ///
    /// # Errors
    /// When the process may open no more files.
    pub fn open() -> Result<Self, NetError> {
        let connect = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind(&SocketAddr::new(0, 0))?;
            // A smaller buffer only means more frequent resyncs.
            let _ = set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER);
            for group in [
                groups::LINK,
                groups::IPV4_IFADDR,
                groups::IPV6_IFADDR,
                groups::IPV4_ROUTE,
                groups::IPV6_ROUTE,
            ] {
                socket.add_membership(group)?;
            }
            socket.set_non_blocking(true)?;
            let stop = eventfd(0, EventfdFlags::CLOEXEC)?;
            io::Result::Ok((socket, stop))
        };
        let (socket, stop) = connect().map_err(failed)?;
        Ok(Monitor {
            socket,
            stop: Arc::new(stop),
            buffer: Vec::with_capacity(128 * 1024),
            ready: vec![NetEvent::Resync],
        })
    }

    /// A way to end it from elsewhere.
    pub fn stop_handle(&self) -> MonitorStop {
        MonitorStop(Arc::clone(&self.stop))
    }

    /// Waits for the next event. `None` when the time is up or it was stopped.
    ///
    /// # Errors
    /// When listening failed for good.
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<Option<NetEvent>, NetError> {
        let end = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            if self.poll(Some(Duration::ZERO))?.1 {
                return Ok(None);
            }
            if let Some(event) = self.ready.pop() {
                return Ok(Some(event));
            }
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            let (readable, stopped) = self.poll(left)?;
            if stopped || !readable && left.is_some() {
                return Ok(None);
            }
            if readable {
                self.receive()?;
            }
        }
    }

    /// Goes on in a thread of its own and hands the events over. The channel ends when it is stopped or failed
    /// (which is logged), the thread when the receiver is dropped and one more event comes, or when it is stopped.
    ///
    /// # Errors
    /// When the thread cannot be made.
    pub fn into_channel(mut self) -> Result<(Receiver<NetEvent>, MonitorStop), NetError> {
        let stop = self.stop_handle();
        let (sender, receiver) = sync_channel(CHANNEL_ROOM);
        let follow = move || {
            for event in self.by_ref() {
                if sender.send(event).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("net-monitor".into()).spawn(follow).map_err(failed)?;
        Ok((receiver, stop))
    }

    /// Readable, stopped.
    fn poll(&self, timeout: Option<Duration>) -> Result<(bool, bool), NetError> {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let socket = self.socket.as_fd();
        let mut files = [PollFd::new(&socket, PollFlags::IN), PollFd::new(&*self.stop, PollFlags::IN)];
        match poll(&mut files, timeout.as_ref()) {
            Ok(_) => Ok((!files[0].revents().is_empty(), !files[1].revents().is_empty())),
            Err(Errno::INTR) => Ok((false, false)),
            Err(error) => Err(failed(error.into())),
        }
    }

    fn receive(&mut self) -> Result<(), NetError> {
        self.buffer.clear();
        match self.socket.recv(&mut self.buffer, 0) {
            Ok(_) => {
                let events = decode_all(&self.buffer).filter_map(|message| match message.payload {
                    NetlinkPayload::InnerMessage(message) => event_of(message),
                    NetlinkPayload::Overrun(_) => Some(NetEvent::Resync),
                    _ => None,
                });
                self.ready.extend(events);
                self.ready.reverse();
                Ok(())
            }
            Err(error) => match error.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::AGAIN | Errno::INTR) => Ok(()),
                Some(Errno::NOBUFS) => {
                    self.ready.push(NetEvent::Resync);
                    Ok(())
                }
                _ => Err(failed(error)),
            },
        }
    }
}

impl Iterator for Monitor {
    type Item = NetEvent;

    fn next(&mut self) -> Option<NetEvent> {
        match self.wait(None) {
            Ok(event) => event,
            Err(error) => {
                tracing::error!(%error, "changes of the node's network are no longer followed");
                None
            }
        }
    }
}

impl std::fmt::Debug for Monitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Monitor").field("ready", &self.ready.len()).finish_non_exhaustive()
    }
}

fn event_of(message: RouteNetlinkMessage) -> Option<NetEvent> {
    match message {
        // A bridge reports its ports by messages of its own family, which say nothing about the device.
        RouteNetlinkMessage::NewLink(link) if link.header.interface_family == AddressFamily::Unspec => {
            Some(NetEvent::Link(Link::from_message(link)))
        }
        RouteNetlinkMessage::DelLink(link) if link.header.interface_family == AddressFamily::Unspec => {
            Some(NetEvent::LinkGone(Link::from_message(link)))
        }
        RouteNetlinkMessage::NewAddress(address) => Address::from_message(address).map(NetEvent::Address),
        RouteNetlinkMessage::DelAddress(address) => Address::from_message(address).map(NetEvent::AddressGone),
        RouteNetlinkMessage::NewRoute(route) if !route.header.flags.contains(RouteFlags::Cloned) => {
            Route::from_message(route).filter(is_of_interest).map(NetEvent::Route)
        }
        RouteNetlinkMessage::DelRoute(route) if !route.header.flags.contains(RouteFlags::Cloned) => {
            Route::from_message(route).filter(is_of_interest).map(NetEvent::RouteGone)
        }
        _ => None,
    }
}

fn is_of_interest(route: &Route) -> bool {
    route.table == Route::default().table && !matches!(route.kind, RouteKind::Other(_))
}

fn failed(source: io::Error) -> NetError {
    NetError::Netlink { action: "follow changes of the network".into(), source, kernel: None }
}
