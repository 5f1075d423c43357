//! Frames as they are on a device: sent as given, received as they come.

use std::{
    io::{ErrorKind, Read},
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use nix::{
    ifaddrs::getifaddrs,
    sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, bind, socket},
};
use socket2::Socket;

use crate::{frame::Frame, host::Host};

/// An open device. Sees what the device receives and what its host sends through it.
#[derive(Debug)]
pub struct Capture {
    socket: Socket,
}

impl Capture {
    /// Opens a device of a host.
    #[must_use]
    pub fn open(host: &Host, device: &str) -> Self {
        let socket = host.run(|| {
            let link = getifaddrs().unwrap().find_map(|interface| {
                let found = interface.interface_name == device;
                interface.address.filter(|_| found)?.as_link_addr().copied()
            });
            let socket =
                socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)
                    .unwrap();
            bind(socket.as_raw_fd(), &link.expect("no such device")).unwrap();
            socket
        });
        let socket = Socket::from(socket);
        let _ = socket.set_recv_buffer_size(8 << 20);
        let this = Self { socket };
        // Between making and binding it heard every device.
        while this.receive(Duration::from_micros(1)).is_some() {}
        this
    }

    /// Sends a frame through the device.
    pub fn send(&self, frame: &[u8]) {
        self.socket.send(frame).unwrap();
    }

    /// Sends a frame if there is room for it.
    pub fn try_send(&self, frame: &[u8]) -> bool {
        self.socket.send(frame).is_ok()
    }

    /// The next frame, unless none comes in time.
    #[must_use]
    pub fn receive(&self, timeout: Duration) -> Option<Vec<u8>> {
        self.socket.set_read_timeout(Some(timeout)).unwrap();
        let mut bytes = vec![0; 1 << 16];
        match (&self.socket).read(&mut bytes) {
            Ok(length) => {
                bytes.truncate(length);
                Some(bytes)
            }
            Err(e)
                if matches!(
                    e.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) =>
            {
                None
            }
            // The device has been switched off or is gone.
            Err(_) => None,
        }
    }

    /// The first frame that `pick` wants, unless none comes in time.
    #[must_use]
    pub fn wait_for(&self, timeout: Duration, mut pick: impl FnMut(&Frame) -> bool) -> Option<Frame> {
        let end = Instant::now() + timeout;
        loop {
            let left = end.checked_duration_since(Instant::now())?;
            let frame = Frame::new(self.receive(left.max(Duration::from_micros(100)))?);
            if pick(&frame) {
                return Some(frame);
            }
        }
    }

    /// Everything that has come so far.
    #[must_use]
    pub fn drain(&self) -> Vec<Frame> {
        std::iter::from_fn(|| self.receive(Duration::from_millis(1))).map(Frame::new).collect()
    }
}
