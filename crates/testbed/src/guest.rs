//! What is behind a tap: a machine with a network stack of its own, fed frame by frame.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use crate::{
    capture::Capture,
    host::{Host, join},
};

/// A tap in a node's namespace whose frames reach the device `eth0` of a guest, and the other way round.
#[derive(Debug)]
pub struct TapGuest {
    stop: Arc<AtomicBool>,
    pumps: Vec<JoinHandle<()>>,
    _board: Host,
}

impl TapGuest {
    /// Makes the tap `device` in `node`, switched on, and `eth0` in `guest`.
    #[must_use]
    pub fn open(node: &Host, device: &str, guest: &Host) -> Self {
        let tap: SyncDevice = node
            .run(|| DeviceBuilder::new().name(device).layer(Layer::L2).enable(false).build_sync().unwrap());
        // Without a link-local address the node sends no redirects, which would be counted.
        node.ip(&format!("link set {device} addrgenmode none"));
        node.ip(&format!("link set {device} up"));
        let tap = Arc::new(tap);
        tap.set_nonblocking(true).unwrap();
        let board = Host::new("board");
        join(guest, "eth0", &board, "wire", 1500);
        board.sysctl("net/ipv6/conf/wire/disable_ipv6", "1");
        // A packet socket sees what the device would finish: checksums and segments.
        guest.command("ethtool", &["-K", "eth0", "tx", "off", "tso", "off", "gso", "off"]);
        let wire = Arc::new(Capture::open(&board, "wire"));
        let stop = Arc::new(AtomicBool::new(false));
        let (from_tap, from_wire) = ((stop.clone(), tap.clone(), wire.clone()), (stop.clone(), tap, wire));
        let pumps = vec![
            std::thread::spawn(move || pump_in(&from_tap.0, &from_tap.1, &from_tap.2)),
            std::thread::spawn(move || pump_out(&from_wire.0, &from_wire.1, &from_wire.2)),
        ];
        Self { stop, pumps, _board: board }
    }
}

fn pump_in(stop: &AtomicBool, tap: &SyncDevice, wire: &Capture) {
    let mut frame = vec![0; 1 << 16];
    while !stop.load(Ordering::Relaxed) {
        match tap.recv(&mut frame) {
            Ok(length) => drop(wire.try_send(&frame[..length])),
            Err(_) => std::thread::sleep(Duration::from_micros(50)),
        }
    }
}

fn pump_out(stop: &AtomicBool, tap: &SyncDevice, wire: &Capture) {
    while !stop.load(Ordering::Relaxed) {
        if let Some(frame) = wire.receive(Duration::from_millis(20)) {
            let _ = tap.send(&frame);
        }
    }
}

impl Drop for TapGuest {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for pump in self.pumps.drain(..) {
            let _ = pump.join();
        }
    }
}
