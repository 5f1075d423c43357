//! A link between two hosts that carries packets without Ethernet headers, as those of WireGuard and PPP do.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use crate::host::Host;

/// Two devices of kind tun, switched on, each in a host; what one sends the other receives. They go with this value.
#[derive(Debug)]
pub struct TunWire {
    stop: Arc<AtomicBool>,
    pumps: Vec<JoinHandle<()>>,
}

impl TunWire {
    /// Makes `one` in the first host and `other` in the second.
    #[must_use]
    pub fn open((host, one): (&Host, &str), (far, other): (&Host, &str)) -> Self {
        let make = |host: &Host, name: &str| {
            let made =
                || DeviceBuilder::new().name(name).layer(Layer::L3).enable(false).build_sync().unwrap();
            let device: SyncDevice = host.run(made);
            host.ip(&format!("link set {name} addrgenmode none"));
            host.ip(&format!("link set {name} up"));
            device.set_nonblocking(true).unwrap();
            Arc::new(device)
        };
        let (one, other) = (make(host, one), make(far, other));
        let stop = Arc::new(AtomicBool::new(false));
        let pump = |from: &Arc<SyncDevice>, to: &Arc<SyncDevice>| {
            let (stop, from, to) = (stop.clone(), from.clone(), to.clone());
            std::thread::spawn(move || pump(&stop, &from, &to))
        };
        let pumps = vec![pump(&one, &other), pump(&other, &one)];
        Self { stop, pumps }
    }
}

fn pump(stop: &AtomicBool, from: &SyncDevice, to: &SyncDevice) {
    let mut packet = vec![0; 1 << 16];
    while !stop.load(Ordering::Relaxed) {
        match from.recv(&mut packet) {
            Ok(length) => drop(to.send(&packet[..length])),
            Err(_) => std::thread::sleep(Duration::from_micros(200)),
        }
    }
}

impl Drop for TunWire {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for pump in self.pumps.drain(..) {
            let _ = pump.join();
        }
    }
}
