//! A machine of bare metal or a virtual one that has no endpoints and is itself the workload: an external resource, whose
//! labels the shared store tells by the machine's addresses.

use ipnet::IpNet;
use villus_abi::endpoint::HOST_ID;
use villus_api::{ApiError, ApiResult};
use villus_identity::Rank;
use villus_labels::{Label, Labels, NumericIdentity, Scope, source};

use crate::AgentError;
use crate::node::Node;

/// Who the store says this machine is.
pub(crate) enum Resource {
    /// The identity of one of its addresses, and its labels.
    Is(NumericIdentity, Labels),
    /// The store has not told everything yet.
    Awaited,
    /// No address of it is a resource's, or there is no store that could say so.
    Nobody,
}

impl Node {
    /// Refuses what only an agent with endpoints can do.
    pub fn must_have_endpoints(&self) -> ApiResult<()> {
        if !self.config.policy.host_only {
            return Ok(());
        }
        Err(ApiError::conflict(
            "this agent is host-only: it holds the machine itself to policies and has no endpoints",
        )
        .hint("on a machine for endpoints start it without host-only"))
    }

    /// Who the store says this machine is, by the first of its addresses that the store knows.
    pub fn resource(&self) -> Resource {
        let mut pending = !self.awaited.is_empty();
        for ip in self.network.host_ips() {
            let claims = self.ipcache.claims(IpNet::from(ip));
            let said = claims.iter().filter(|claim| claim.rank == Rank::Kvstore);
            for identity in said.map(|claim| claim.mapping.identity) {
                match self.identities.table.get(&identity) {
                    Some(labels) if identity.scope() == Scope::Global => {
                        return Resource::Is(identity, labels);
                    }
                    Some(_) => {}
                    None => pending = true,
                }
            }
        }
        if pending { Resource::Awaited } else { Resource::Nobody }
    }

    /// The labels of the options, complete as those of an endpoint are, with `reserved:host`.
    fn labels_of_options(&self) -> Result<Labels, AgentError> {
        crate::host::labels(&self.config)?;
        let wrong = |error: ApiError| AgentError::Option { option: "node-labels", reason: error.to_string() };
        let given = &self.config.policy.node_labels;
        let own = if given.is_empty() {
            Labels::default()
        } else {
            self.rules.read(given, None).map_err(wrong)?.identity
        };
        Ok(joined(own, &NumericIdentity::HOST.reserved_labels().unwrap_or_default()))
    }

    /// The labels to begin with: those of before the start, until the store says others.
    pub fn labels_of_before(&self, kept: Option<&[String]>) -> Result<Labels, AgentError> {
        let options = self.labels_of_options()?;
        let kept = kept.filter(|_| self.config.kvstore.etcd).unwrap_or_default();
        let known = kept.iter().filter_map(|text| Label::parse_with_source(text, source::K8S).ok());
        Ok(known.fold(
            options,
            |labels, label| if labels.get(label.key()).is_some() { labels } else { labels.with(label) },
        ))
    }

    /// Takes up the labels that the store says of this machine. While it has not told everything, those of before hold.
    pub fn follow_resource(&mut self) {
        if !self.config.policy.host_only || !self.endpoints.contains_key(&HOST_ID) {
            return;
        }
        // They were read at the start; wrong ones ended it.
        let options = self.labels_of_options().unwrap_or_default();
        let labels = match self.resource() {
            Resource::Awaited => return,
            Resource::Is(_, labels) => joined(options, &labels),
            Resource::Nobody => options,
        };
        let unknown = labels.iter().all(|label| label.source() == source::RESERVED);
        self.conditions.set_if("labels of this machine", unknown, || {
            let fix = match self.config.kvstore.etcd {
                true => "no external resource has one of its addresses: `villus external add` says one, or set node-labels",
                false => "set node-labels, or kvstore=etcd where external resources are known",
            };
            format!("it has none, so that no policy with a selector of labels means it; {fix}")
        });
        let judged = self.is_host_judged();
        let Some(host) = self.endpoints.get_mut(&HOST_ID).filter(|host| host.identity_labels != labels)
        else {
            return;
        };
        host.file.labels = labels.iter().map(ToString::to_string).collect();
        host.labels = labels.clone();
        host.identity_labels = labels;
        host.note("OK", "the labels of this machine are others");
        let labels = host.labels.clone();
        let audited = self.audit_of(&labels);
        if let Some(host) = self.endpoints.get_mut(&HOST_ID) {
            host.audited = audited;
        }
        self.save_endpoint(HOST_ID);
        tracing::info!(labels = ?labels.iter().map(ToString::to_string).collect::<Vec<_>>(), "labels of this machine");
        if judged {
            self.track(HOST_ID);
            self.regenerate([HOST_ID]);
        }
        self.follow_host();
    }
}

/// All labels of both; where keys are the same those of the second.
fn joined(labels: Labels, others: &Labels) -> Labels {
    others.iter().fold(labels, |labels, label| labels.with(label.clone()))
}
