//! The node itself as an endpoint: nothing of it is judged until a policy selects it, and then it is audited until an
//! operator says otherwise.

use villus_abi::endpoint::{HOST_ID, SLOT_HOST};
use villus_api::model::EndpointState;
use villus_config::Config;
use villus_config::config::Enforcement;
use villus_labels::{Label, Labels, NumericIdentity, source};
use villus_policy::Audit;

use crate::AgentError;
use crate::endpoint::{Endpoint, Labelled};
use crate::node::Node;
use crate::state::{EndpointFile, timestamp};

/// Where it is kept what operators chose for it.
pub(crate) const FILE: &str = "host.json";

/// The node's labels: `reserved:host` and those of the option `node-labels`.
pub(crate) fn labels(config: &Config) -> Result<Labels, AgentError> {
    let wrong = |reason: String| AgentError::Option { option: "node-labels", reason };
    let mut labels = Vec::new();
    for text in &config.policy.node_labels {
        let label = Label::parse_with_source(text, source::K8S)
            .map_err(|error| wrong(format!("`{text}`: {error}")))?;
        label.check_kubernetes_lengths().map_err(|error| wrong(format!("`{text}`: {error}")))?;
        if label.source() == source::RESERVED {
            return Err(wrong(format!("`{text}`: labels of the source `reserved` are the agent's own")));
        }
        labels.push(label);
    }
    let labels = Labels::new(labels).map_err(|error| wrong(error.to_string()))?;
    let reserved = NumericIdentity::HOST.reserved_labels().unwrap_or_default();
    Ok(reserved.iter().fold(labels, |labels, label| labels.with(label.clone())))
}

impl Node {
    /// Knows the node as an endpoint, with what an operator chose for it. Nothing is in force yet.
    ///
    /// # Errors
    /// Its file or its labels cannot be read.
    pub fn load_host(&mut self) -> Result<(), AgentError> {
        if !self.config.policy.host_firewall {
            return Ok(());
        }
        let kept: Option<EndpointFile> = match self.state.load(FILE) {
            // Without what was chosen it begins as for the first time: audited.
            Ok(kept) => kept.unwrap_or_default(),
            Err(source) => {
                return Err(AgentError::File { action: "read", path: self.state.path(FILE), source });
            }
        };
        let labels = match &kept {
            _ if !self.config.policy.host_only => labels(&self.config)?,
            kept => self.labels_of_before(kept.as_ref().map(|kept| kept.labels.as_slice()))?,
        };
        let file = EndpointFile {
            format: EndpointFile::FORMAT,
            boot_id: self.boot.clone(),
            id: HOST_ID,
            identity: NumericIdentity::HOST.0,
            labels: labels.iter().map(ToString::to_string).collect(),
            addresses: Vec::new(),
            names: Default::default(),
            sticky: false,
            named_ports: Default::default(),
            audit: kept.as_ref().and_then(|kept| kept.audit),
            allow_dhcp: false,
            device: None,
            created: kept.map_or_else(timestamp, |kept| kept.created),
        };
        let labelled = Labelled { all: labels.clone(), identity: labels };
        let mut host = Endpoint::new(file, labelled, EndpointState::Ready);
        host.audited = self.audit_of(&host.labels);
        self.endpoints.insert(HOST_ID, host);
        Ok(())
    }

    /// Whether the node itself is judged.
    pub fn is_host_judged(&self) -> bool {
        self.endpoints.get(&HOST_ID).is_some_and(Endpoint::is_live)
    }

    /// Whether a policy selects the node.
    fn is_host_selected(&self) -> bool {
        let host = self.endpoints.get(&HOST_ID);
        self.runtime.enforcement != Enforcement::Never
            && host.is_some_and(|host| self.repository.rules_of(&host.identity_labels).next().is_some())
    }

    /// At the start: the node is judged if policy selects it, and what an agent before left is undone if not, before its
    /// policy map goes.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn settle_host(&mut self) -> villus_datapath::Result<()> {
        self.follow_host();
        if !self.is_host_judged() {
            self.kernel.maps.endpoints.insert(&SLOT_HOST, &villus_abi::Endpoint::default())?;
        }
        Ok(())
    }

    /// Judges the node from when a policy selects it until none does any more. What fails is tried again with the next
    /// change or comparison.
    pub fn follow_host(&mut self) {
        if !self.sources.complete || !self.endpoints.contains_key(&HOST_ID) {
            return;
        }
        let failed = match (self.is_host_selected(), self.is_host_judged()) {
            (true, false) => self.begin_host().err(),
            (false, true) => self.end_host().err().map(|error| error.to_string()),
            _ => None,
        };
        self.conditions.note("policy of the node", failed);
        self.note_host_audit();
    }

    /// Its policy map first, then its record, the programs, and the word to the path.
    fn begin_host(&mut self) -> Result<(), String> {
        self.track(HOST_ID);
        let Some(host) = self.endpoints.get_mut(&HOST_ID) else { return Ok(()) };
        host.selected = true;
        if host.file.audit.is_none() {
            host.file.audit = Some(Audit::BOTH);
        }
        host.note("OK", "a policy selects the node");
        self.save_endpoint(HOST_ID);
        self.regenerate([HOST_ID]);
        let problem = self.endpoints.get(&HOST_ID).and_then(|host| host.problem.clone());
        let installed = match problem {
            Some(problem) => Err(problem),
            None => self.install(HOST_ID).and_then(|()| self.tell_host()).map_err(|error| error.to_string()),
        };
        if installed.is_err() {
            // Better not judged at all than by half of a policy.
            let _ = self.end_host();
        }
        tracing::info!(judged = installed.is_ok(), "a policy selects the node");
        installed
    }

    /// The other way round.
    fn end_host(&mut self) -> villus_datapath::Result<()> {
        if let Some(host) = self.endpoints.get_mut(&HOST_ID) {
            host.selected = false;
            host.problem = None;
            host.retry = None;
            host.note("OK", "no policy selects the node");
        }
        self.install(HOST_ID)?;
        self.tell_host()?;
        self.untrack(HOST_ID);
        self.kernel.policies.remove(HOST_ID)?;
        self.end_deeds(HOST_ID);
        tracing::info!("no policy selects the node: it is not judged any more");
        Ok(())
    }

    fn tell_host(&mut self) -> villus_datapath::Result<()> {
        if self.attached {
            self.attach_uplinks();
        }
        if self.open {
            self.write_config()?;
        }
        Ok(())
    }

    /// Says loudly that the node is only audited, and how that ends.
    pub fn note_host_audit(&mut self) {
        let audited = self.endpoints.get(&HOST_ID).filter(|host| host.is_live() && !host.audit().is_none());
        let said = audited.map(|_| {
            "policies select this node and are audited only: what they deny passes and is reported; \
             `villus endpoint config 0 PolicyAuditMode=false` enforces them"
                .to_owned()
        });
        self.conditions.note("audit of the node", said);
    }
}
