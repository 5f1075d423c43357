//! Who holds a certificate.

use std::net::IpAddr;

use serde::Serialize;

use crate::CertsError;

/// The group of all agents: organisation of their certificates, and name of the role that they share in etcd.
pub const AGENTS: &str = "villus:agents";
/// The group of the members of etcd.
const SERVERS: &str = "villus:servers";
/// Longest common name that X.509 allows.
const COMMON_NAME: usize = 64;

/// Who holds a certificate, and what follows from it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Holder {
    /// The agent of a node.
    Agent {
        /// The node.
        node: String,
    },
    /// A member of etcd, or another server.
    Server {
        /// Its name, which names its files.
        name: String,
        /// Names and addresses under which it is reached.
        addresses: Vec<String>,
    },
    /// A person or a program with a user of its own.
    User {
        /// The user.
        name: String,
        /// Its group.
        group: Option<String>,
    },
}

/// The user of a node's agent in etcd and Kubernetes.
#[must_use]
pub fn agent_user(node: &str) -> String {
    format!("villus:agent:{node}")
}

// === impl Holder ===

impl Holder {
    /// The agent of a node.
    ///
    /// # Errors
    /// The name is no name of a node, or too long for a certificate.
    pub fn agent(node: &str) -> Result<Self, CertsError> {
        check_name(node)?;
        let holder = Self::Agent { node: node.to_owned() };
        holder.check_length()?;
        Ok(holder)
    }

    /// A member of etcd, reached under these names and addresses.
    ///
    /// # Errors
    /// A name that is none, or no address.
    pub fn server(name: &str, addresses: &[String]) -> Result<Self, CertsError> {
        check_name(name)?;
        if addresses.is_empty() {
            let reason = "needs the names and addresses under which it is reached: --address";
            return Err(CertsError::Name { name: name.to_owned(), reason });
        }
        for address in addresses {
            if address.parse::<IpAddr>().is_err() {
                check_name(address.strip_prefix("*.").unwrap_or(address))?;
            }
        }
        Ok(Self::Server { name: name.to_owned(), addresses: addresses.to_vec() })
    }

    /// A user of its own, such as etcd's `root`.
    ///
    /// # Errors
    /// The name cannot be that of a file or of a user, or is one of an agent's.
    pub fn user(name: &str, group: Option<&str>) -> Result<Self, CertsError> {
        check_name(name)?;
        if group.is_some_and(|group| group == AGENTS || group.is_empty() || group.len() > COMMON_NAME) {
            let reason = "is a group of agents, empty or longer than 64 letters; name another with --group";
            return Err(CertsError::Name { name: group.unwrap_or_default().to_owned(), reason });
        }
        Ok(Self::User { name: name.to_owned(), group: group.map(str::to_owned) })
    }

    fn check_length(&self) -> Result<(), CertsError> {
        if self.common_name().len() <= COMMON_NAME {
            return Ok(());
        }
        let reason = "is too long for the common name of a certificate; 51 letters are left for a node";
        Err(CertsError::Name { name: self.name().to_owned(), reason })
    }

    /// Its name: that of its files.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Agent { node } => node,
            Self::Server { name, .. } | Self::User { name, .. } => name,
        }
    }

    /// The folder of its files.
    #[must_use]
    pub const fn folder(&self) -> &'static str {
        match self {
            Self::Agent { .. } => "agents",
            Self::Server { .. } => "servers",
            Self::User { .. } => "users",
        }
    }

    /// Common name of the certificate: the user in etcd and Kubernetes.
    #[must_use]
    pub fn common_name(&self) -> String {
        match self {
            Self::Agent { node } => agent_user(node),
            Self::Server { name, .. } | Self::User { name, .. } => name.clone(),
        }
    }

    /// Organisation of the certificate: the group in Kubernetes.
    #[must_use]
    pub fn organisation(&self) -> Option<&str> {
        match self {
            Self::Agent { .. } => Some(AGENTS),
            Self::Server { .. } => Some(SERVERS),
            Self::User { group, .. } => group.as_deref(),
        }
    }
}

/// A name of a node, host or user: letters, digits, `-` and `.`, as Kubernetes has them.
fn check_name(name: &str) -> Result<(), CertsError> {
    let ends = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let inside = |c: char| ends(c) || matches!(c, '-' | '.');
    let is_name = name.starts_with(ends)
        && name.ends_with(ends)
        && name.chars().all(inside)
        && !name.contains("..")
        && name.len() <= 253;
    if is_name {
        return Ok(());
    }
    let reason = "is no name: it has small letters, digits, `-` and `.`, and a letter or digit at both ends";
    Err(CertsError::Name { name: name.to_owned(), reason })
}
