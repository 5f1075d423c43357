//! What a change of policies would do, on a copy.

use villus_api::model::PreviewRequest;
use villus_api::{ApiError, ApiResult};
use villus_datapath::ROOM;
use villus_policy::Audit;
use villus_rollout::{Objects, Plan, Preview, Subject};

use super::observed;
use crate::agent::Agent;
use crate::node::Node;
use crate::policy::parse_import;

/// Compiles a copy and judges observed flows; nothing is changed.
pub(super) async fn preview(agent: &Agent, mut request: PreviewRequest) -> ApiResult<Preview> {
    let observations = match request.observations.take() {
        Some(given) => given,
        None => observed::flows(agent).await?.observations,
    };
    let plan = agent.with(move |node| node.preview_plan(&request)).await??;
    let done = tokio::task::spawn_blocking(move || villus_rollout::preview(plan, &observations)).await;
    done.map_err(|error| ApiError::internal(format!("the preview broke off: {error}")))
}

impl Node {
    /// The policies now and after what is asked, with all that their meaning depends on.
    fn preview_plan(&self, request: &PreviewRequest) -> ApiResult<Plan> {
        let before = Objects::of(&self.repository);
        let mut after = before.clone();
        for name in &request.delete {
            let gone = self.imported(&name.name, &name.namespace, "")?;
            if gone.is_empty() {
                return Err(self.not_imported(&name.name));
            }
            after.remove(|key| gone.contains(key));
        }
        for file in &request.files {
            after.put(parse_import(&file.file, &file.text)?);
        }
        let audit = if request.enforced { Audit::NONE } else { self.runtime.audit };
        let subjects = self.endpoints.values().map(|endpoint| Subject {
            id: endpoint.id(),
            labels: endpoint.identity_labels.clone(),
            ports: endpoint.file.named_ports.clone(),
            audit: if request.enforced { Audit::NONE } else { endpoint.audit() },
        });
        Ok(Plan {
            settings: self.repository.settings().clone(),
            before,
            after,
            numbers: self.numbers(),
            subjects: subjects.collect(),
            audit,
            max_entries: (self.config.datapath.policy_map_max as usize).saturating_sub(ROOM),
        })
    }
}
