//! Objects that policies refer to by name: groups of prefixes, services and their backends.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use serde::{Serialize, Serializer};
use villus_labels::{Labels, Selector};

use crate::{ObjectKey, ObjectText};

/// One object that policies may refer to.
#[derive(Clone, PartialEq, Debug)]
pub struct Referent {
    /// What it is known by.
    pub key: ObjectKey,
    /// What it says.
    pub content: Content,
    /// The object as JSON, its namespace filled in, its status left out.
    pub object: ObjectText,
}

/// What a [`Referent`] says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Content {
    /// A CiliumCIDRGroup.
    Group {
        /// Its own labels, for `cidrGroupSelector`.
        labels: Labels,
        /// Its prefixes, sorted, each once.
        prefixes: Vec<IpNet>,
    },
    /// A service.
    Service {
        /// Its own labels, for `k8sServiceSelector`.
        labels: Labels,
        /// The pods of its namespace that are its backends; none where they are written down as addresses.
        pods: Option<Selector>,
    },
    /// Addresses of a service's backends.
    Backends {
        /// The service's name; it is in the namespace of the object.
        service: Arc<str>,
        /// The addresses, sorted, each once.
        addresses: Vec<IpAddr>,
    },
}

impl Serialize for Referent {
    /// The object.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.object.serialize(serializer)
    }
}
