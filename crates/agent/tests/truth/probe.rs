//! One attempt to reach a pod.

use std::fmt;

/// A pod: `x/a`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pod {
    pub namespace: &'static str,
    pub name: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// Who tries whom, and how.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Probe {
    pub from: Pod,
    pub to: Pod,
    pub port: u16,
    pub protocol: Protocol,
    pub v6: bool,
}

impl Pod {
    pub fn is(&self, text: &str) -> bool {
        text.split_once('/') == Some((self.namespace, self.name))
    }

    pub fn in_ns(&self, namespace: &str) -> bool {
        self.namespace == namespace
    }
}

impl Probe {
    pub fn tcp(&self) -> bool {
        self.protocol == Protocol::Tcp
    }

    pub fn udp(&self) -> bool {
        self.protocol == Protocol::Udp
    }

    pub fn sctp(&self) -> bool {
        self.protocol == Protocol::Sctp
    }
}

impl fmt::Display for Pod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.v6 { "IPv6" } else { "IPv4" };
        write!(f, "{} -> {} {}/{:?} {family}", self.from, self.to, self.port, self.protocol)
    }
}
