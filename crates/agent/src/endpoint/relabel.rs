//! An endpoint's labels change: every policy map knows the new identity before the endpoint has it.

use villus_api::model::EndpointPatch;
use villus_api::{ApiError, ApiResult};
use villus_labels::{Label, Labels, NumericIdentity, source};

use super::create::gone;
use super::{LabelRules, Labelled};
use crate::node::Node;

impl Node {
    /// The labels that an endpoint would have after a patch.
    pub fn relabelled(&self, id: u16, patch: &EndpointPatch) -> ApiResult<Labelled> {
        if !patch.dry_run {
            self.must_not_be_frozen()?;
        }
        let endpoint = self.endpoints.get(&id).ok_or_else(|| gone(id))?;
        if endpoint.is_host() {
            return Err(ApiError::conflict(
                "endpoint 0 is the node itself: its labels are those of the options",
            )
            .hint("set node-labels and start the agent again; with host-only change its external resource"));
        }
        if !endpoint.is_live() {
            return Err(ApiError::conflict(format!(
                "endpoint {id} waits to be created again, with its labels"
            )));
        }
        let mut texts: Vec<String> = match &patch.labels {
            Some(labels) => labels.clone(),
            None => endpoint.labels.iter().map(|label| label.full_text().to_owned()).collect(),
        };
        let added = read_keys(&patch.add_labels, "add-labels")?;
        let removed = read_keys(&patch.delete_labels, "delete-labels")?;
        texts.retain(|text| {
            let key = Label::parse_with_source(text, source::K8S).map(|label| label.key().to_owned());
            key.map_or(true, |key| !added.contains(&key) && !removed.contains(&key))
        });
        texts.extend(patch.add_labels.iter().cloned());
        self.rules.read(&texts, endpoint.file.names.k8s_namespace.as_deref())
    }

    /// Gives an endpoint labels and their identity, which was allocated before. Returns the identity-relevant labels that
    /// it had.
    pub fn relabel(&mut self, id: u16, labelled: Labelled, identity: NumericIdentity) -> ApiResult<Labels> {
        self.absorb_identities();
        self.follow_policies();
        let endpoint = self.endpoints.get_mut(&id).ok_or_else(|| gone(id))?;
        endpoint.file.labels = labelled.all.iter().map(ToString::to_string).collect();
        endpoint.labels = labelled.all;
        let before = std::mem::replace(&mut endpoint.identity_labels, labelled.identity);
        if endpoint.identity() != identity {
            self.change_identity(id, identity).map_err(ApiError::internal)?;
        }
        self.follow_audits().map_err(ApiError::internal)?;
        self.save_endpoint(id);
        Ok(before)
    }

    /// Gives an endpoint another identity, which every policy map knows already.
    ///
    /// # Errors
    /// The kernel refuses; the endpoint goes on as it was, and the comparison mends it.
    pub fn change_identity(&mut self, id: u16, identity: NumericIdentity) -> villus_datapath::Result<()> {
        self.absorb_identities();
        self.follow_policies();
        let Some(endpoint) = self.endpoints.get(&id) else { return Ok(()) };
        let old = endpoint.identity();
        if endpoint.is_live() {
            // Its own rules first, then who it is to others.
            self.track(id);
            self.regenerate([id]);
        }
        let Some(endpoint) = self.endpoints.get_mut(&id) else { return Ok(()) };
        endpoint.file.identity = identity.0;
        endpoint.note("OK", format!("identity {old} became {identity}"));
        let installed = self.install(id);
        self.announce_ports([old, identity]);
        self.follow_policies();
        if self.endpoints.get(&id).is_some_and(|endpoint| endpoint.is_live()) {
            self.claim_addresses(id);
        }
        self.rejudge.extend(self.endpoints.keys().copied());
        self.wake.rejudge.notify_one();
        installed
    }
}

fn read_keys(texts: &[String], field: &str) -> ApiResult<Vec<String>> {
    texts
        .iter()
        .enumerate()
        .map(|(n, text)| {
            Label::parse_with_source(text, source::K8S)
                .map(|label| label.key().to_owned())
                .map_err(|error| ApiError::bad_field(format!("{field}[{n}]"), error.to_string()))
        })
        .collect()
}

impl LabelRules {
    /// The labels of an endpoint's file, which were complete when it was written.
    pub fn reread(&self, texts: &[String]) -> Result<Labelled, String> {
        self.read(texts, None).map_err(|error| error.to_string())
    }
}
