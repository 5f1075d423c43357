//! Kernel parameters below `/proc/sys`, of the calling thread's network namespace.

use std::fmt;
use std::fs;
use std::io;

use serde::{Deserialize, Serialize};

use crate::error::NetError;

/// An IP version, where kernel parameters are told apart by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

/// The key of a kernel parameter: its path below `/proc/sys`, such as `net/ipv4/conf/eth0.100/rp_filter`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sysctl(String);

// === impl Family ===

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::Ipv4 => "ipv4",
            Family::Ipv6 => "ipv6",
        })
    }
}

// === impl Sysctl ===

impl Sysctl {
    /// A parameter of one device; `device` may be `all` or `default`.
    pub fn of_device(family: Family, device: &str, parameter: &str) -> Self {
        Sysctl(format!("net/{family}/conf/{device}/{parameter}"))
    }

    /// Any other parameter, by its path below `/proc/sys`.
    pub fn at(path: &str) -> Self {
        Sysctl(path.to_owned())
    }

    /// The value, without the line's end.
    ///
    /// # Errors
    /// When it does not exist or may not be read.
    pub fn read(&self) -> Result<String, NetError> {
        let text = fs::read_to_string(self.path()).map_err(|source| self.failed("read".into(), source))?;
        Ok(text.trim_end().to_owned())
    }

    /// The value, or `None` where the parameter does not exist: the device is gone, the family not in the kernel.
    ///
    /// # Errors
    /// When it may not be read.
    pub fn read_if_present(&self) -> Result<Option<String>, NetError> {
        match self.read() {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sets the value.
    ///
    /// # Errors
    /// When it does not exist, may not be written, or the kernel refuses the value.
    pub fn write(&self, value: &str) -> Result<(), NetError> {
        fs::write(self.path(), value).map_err(|source| self.failed(format!("set to {value}"), source))
    }

    /// Sets the value where the parameter exists.
    ///
    /// # Errors
    /// When it may not be written, or the kernel refuses the value.
    pub fn write_if_present(&self, value: &str) -> Result<(), NetError> {
        crate::error::missing_is_fine(self.write(value))
    }

    fn path(&self) -> String {
        format!("/proc/sys/{}", self.0)
    }

    fn failed(&self, action: String, source: io::Error) -> NetError {
        NetError::Sysctl { action, key: self.0.clone(), source }
    }
}

impl fmt::Display for Sysctl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
