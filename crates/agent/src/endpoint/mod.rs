//! Endpoints: what the agent knows of each, and how they come, change and go.

mod adopt;
mod create;
mod delete;
mod find;
mod labels;
mod missing;
mod ports;
mod record;
mod relabel;
mod request;
mod restore;
mod vanish;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Instant;

use villus_abi::endpoint::HOST_ID;
use villus_api::model::{EndpointLogEntry, EndpointState};
use villus_datapath::Shapes;
use villus_identity::AddressPool;
use villus_labels::{Labels, NumericIdentity};
use villus_policy::Audit;
use villus_policy::SubjectId;

pub(crate) use find::find;
pub(crate) use labels::{LabelRules, Labelled};
pub(crate) use record::word_of;
pub(crate) use request::{Place, Request};

use crate::state::{EndpointFile, timestamp};

/// How many entries of its log an endpoint keeps.
const LOG: usize = 32;

/// An endpoint of this node.
#[derive(Debug)]
pub(crate) struct Endpoint {
    /// Tells it from one that gets its number after it.
    pub serial: u64,
    /// What is on disk.
    pub file: EndpointFile,
    /// All its labels.
    pub labels: Labels,
    /// Those that make its identity.
    pub identity_labels: Labels,
    pub state: EndpointState,
    pub log: VecDeque<EndpointLogEntry>,
    /// Whose policy its map should hold.
    pub subject: Option<SubjectId>,
    /// Which version of that policy its map holds; 0 if that is not known.
    pub version: u64,
    /// Revision of the rules that its policy map holds.
    pub realized: u64,
    /// How often its policy was compiled.
    pub builds: u64,
    /// What the path must look up in its map.
    pub shapes: Shapes,
    /// What options and selectors audit of it.
    pub audited: Audit,
    /// Whether only audited policies ask for its default deny: ingress, egress.
    pub audit_default: [bool; 2],
    /// Entries of its map and how many it can hold.
    pub size: (u32, u32),
    /// Entries that somebody else wrote, and that are kept.
    pub hand_made: usize,
    /// What keeps its map from being as wanted.
    pub problem: Option<String>,
    /// Failures in a row, and when to try again.
    pub failures: u32,
    pub retry: Option<Instant>,
    /// Until when it waits to be created again, after a boot.
    pub pending_until: Option<Instant>,
    /// Since when its device is gone.
    pub gone_since: Option<Instant>,
    /// The device that it adopted is not there; it waits for it.
    pub missing: bool,
    /// Its device was switched on when it was looked at last.
    pub device_up: bool,
    /// Of the node itself: a policy selects it.
    pub selected: bool,
}

impl Endpoint {
    /// An endpoint as its file says.
    pub fn new(file: EndpointFile, labelled: Labelled, state: EndpointState) -> Self {
        let mut endpoint = Self {
            serial: fastrand::u64(..),
            file,
            labels: labelled.all,
            identity_labels: labelled.identity,
            state: EndpointState::WaitingForIdentity,
            log: VecDeque::new(),
            subject: None,
            version: 0,
            realized: 0,
            builds: 0,
            shapes: Shapes::default(),
            audited: Audit::NONE,
            audit_default: [false; 2],
            size: (0, 0),
            hand_made: 0,
            problem: None,
            failures: 0,
            retry: None,
            pending_until: None,
            gone_since: None,
            missing: false,
            device_up: true,
            selected: false,
        };
        endpoint.enter(state, "known to the agent");
        endpoint
    }

    pub fn id(&self) -> u16 {
        self.file.id
    }

    /// The directions in which whatever is denied passes.
    pub fn audit(&self) -> Audit {
        self.file.audit.unwrap_or_default().or(self.audited)
    }

    pub fn identity(&self) -> NumericIdentity {
        NumericIdentity(self.file.identity)
    }

    /// Whether it is the node itself, which has no device of its own.
    pub fn is_host(&self) -> bool {
        self.file.id == HOST_ID
    }

    /// Whether packets can be its: it has a device and a record in the kernel; of the node itself, whether it is judged.
    pub fn is_live(&self) -> bool {
        if self.is_host() {
            return self.selected;
        }
        self.file.device.is_some()
            && self.gone_since.is_none()
            && self.pending_until.is_none()
            && !self.missing
    }

    /// Enters a state and writes that into its log.
    pub fn enter(&mut self, state: EndpointState, why: impl Into<String>) {
        self.state = state;
        self.note("OK", why);
    }

    /// Whether an address is its own. Those of one whose device is gone are not.
    pub fn has(&self, address: &IpAddr) -> bool {
        self.gone_since.is_none() && self.file.addresses.contains(address)
    }

    /// Gives its addresses back but those that it keeps. They rest; sticky ones wait for their owner besides.
    pub fn give_back(&self, pool: &mut AddressPool, keeps: &[IpAddr]) {
        let now = Instant::now();
        for address in self.file.addresses.iter().filter(|address| !keeps.contains(address)) {
            if self.file.sticky {
                pool.release(*address, now)
            } else {
                pool.retire(*address, now)
            };
        }
    }

    /// Writes into its log.
    pub fn note(&mut self, code: &str, message: impl Into<String>) {
        let entry = EndpointLogEntry {
            code: code.into(),
            message: message.into(),
            state: self.state,
            timestamp: timestamp(),
        };
        self.log.push_front(entry);
        self.log.truncate(LOG);
    }
}

/// Owner of an endpoint's claims in the ipcache.
pub(crate) fn owner_key(id: u16) -> String {
    format!("endpoint {id}")
}

/// Owner of an endpoint's addresses: its owner where they are sticky, else itself.
pub(crate) fn pool_owner(file: &EndpointFile) -> String {
    match &file.names.owner {
        Some(owner) if file.sticky => owner.clone(),
        _ => format!("endpoint:{}", file.id),
    }
}
