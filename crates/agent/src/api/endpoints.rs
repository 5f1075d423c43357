//! Endpoints: created, listed, changed, deleted.

use std::time::Duration;

use villus_abi::endpoint::HOST_ID;
use villus_api::model::{Endpoint, EndpointChangeRequest, EndpointDeleted, EndpointPatch, EndpointState};
use villus_api::{ApiError, ApiResult, EndpointRef};
use villus_labels::{Label, NumericIdentity, source};

use super::Api;
use crate::agent::Agent;
use crate::endpoint::{Labelled, Request, find};
use crate::node::Node;

impl Node {
    /// The endpoint that a request means.
    pub fn find(&self, id: &EndpointRef) -> ApiResult<u16> {
        find(&self.endpoints, id, (&self.cluster, &self.name))
    }

    /// Every policy map of this node learns of an identity that an endpoint is about to have. Says how long other nodes
    /// are given to do the same: a store of this node's own is no other's, so for it only what the option asks for.
    fn announce(&mut self, id: u16, identity: NumericIdentity) -> Duration {
        self.follow_identities();
        let Some(endpoint) = self.endpoints.get_mut(&id).filter(|e| e.identity() != identity) else {
            return Duration::ZERO;
        };
        let usual = match self.identities.shared {
            Some(_) => villus_config::config::Identity::CHANGE_GRACE,
            None => Duration::ZERO,
        };
        let grace = self.config.identity.change_grace.unwrap_or(usual);
        if !grace.is_zero() {
            endpoint.note("OK", format!("identity {identity} is used in {grace:?}"));
        }
        grace
    }
}

impl Api {
    pub(super) async fn list_endpoints(&self, labels: Vec<String>) -> ApiResult<Vec<Endpoint>> {
        let wanted: Vec<Label> = labels
            .iter()
            .map(|text| Label::parse_with_source(text, source::ANY))
            .collect::<Result<_, _>>()
            .map_err(|error| ApiError::bad_field("labels", error.to_string()))?;
        self.0
            .with(move |node| {
                let has = |endpoint: &crate::endpoint::Endpoint| {
                    wanted.iter().all(|want| {
                        endpoint.labels.get(want.key()).is_some_and(|have| {
                            have.value() == want.value()
                                && [source::ANY, have.source()].contains(&want.source())
                        })
                    })
                };
                node.endpoints.values().filter(|e| has(e)).map(|e| node.model(e.id())).collect()
            })
            .await
    }

    pub(super) async fn create(&self, id: EndpointRef, body: EndpointChangeRequest) -> ApiResult<Endpoint> {
        let request = Request::read(&id, body)?;
        // Goes on when the client does not wait.
        detached(create(self.0.clone(), request)).await
    }

    pub(super) async fn relabel(&self, id: EndpointRef, patch: EndpointPatch) -> ApiResult<Endpoint> {
        detached(relabel(self.0.clone(), id, patch)).await
    }

    pub(super) async fn delete(&self, id: EndpointRef) -> ApiResult<EndpointDeleted> {
        detached(delete(self.0.clone(), id)).await
    }
}

async fn detached<T: Send + 'static>(
    work: impl Future<Output = ApiResult<T>> + Send + 'static,
) -> ApiResult<T> {
    tokio::spawn(work)
        .await
        .map_err(|error| ApiError::internal(format!("the operation broke off: {error}")))?
}

async fn create(agent: Agent, request: Request) -> ApiResult<Endpoint> {
    let dry_run = request.dry_run;
    let (planned, file, request) =
        agent.with(move |node| node.plan(&request).map(|(planned, file)| (planned, file, request))).await??;
    if dry_run {
        return agent.with(move |node| node.model_of_plan(file, planned.labelled)).await;
    }
    let id = planned.id;
    let held = planned.held();
    let labels = planned.labelled.identity.clone();
    let identity = match allocate(&agent, &planned.labelled, planned.had).await {
        Ok(identity) => identity,
        Err(error) => {
            let freed = agent.with(move |node| node.abandon(planned)).await?;
            give_back(&agent, freed).await;
            return Err(error);
        }
    };
    let built = agent
        .with(move |node| match node.build(&planned, identity, &request) {
            Ok(()) => Ok(node.model(id)),
            Err(error) => Err((error, node.abandon(planned))),
        })
        .await?;
    match built {
        Ok(model) => {
            // What waited held its identity too.
            give_back(&agent, held).await;
            Ok(model)
        }
        Err((error, freed)) => {
            give_back(&agent, [labels].into_iter().chain(freed)).await;
            Err(error)
        }
    }
}

async fn give_back(agent: &Agent, labels: impl IntoIterator<Item = villus_labels::Labels>) {
    for labels in labels {
        agent.identities.release(&labels).await;
    }
}

async fn allocate(
    agent: &Agent,
    labelled: &Labelled,
    had: Option<NumericIdentity>,
) -> ApiResult<NumericIdentity> {
    agent
        .identities
        .allocate(&labelled.identity, had)
        .await
        .map_err(|error| ApiError::unavailable(error.to_string()))
}

async fn relabel(agent: Agent, id: EndpointRef, patch: EndpointPatch) -> ApiResult<Endpoint> {
    let dry_run = patch.dry_run;
    let (id, labelled, file, labels) = agent
        .with(move |node| {
            let id = node.find(&id)?;
            let labelled = node.relabelled(id, &patch)?;
            let endpoint = node.endpoints.get(&id);
            let (file, labels) = (endpoint.map(|e| e.file.clone()), endpoint.map(|e| e.labels.clone()));
            Ok::<_, ApiError>((id, labelled, file, labels))
        })
        .await??;
    if let (true, Some(mut file)) = (dry_run, file) {
        file.labels = labelled.all.iter().map(ToString::to_string).collect();
        return agent.with(move |node| node.model_of_plan(file, labelled)).await;
    }
    let identity = allocate(&agent, &labelled, None).await?;
    let new = labelled.identity.clone();
    let grace = agent.with(move |node| node.announce(id, identity)).await?;
    if !grace.is_zero() {
        tokio::time::sleep(grace).await;
    }
    let changed = agent
        .with(move |node| {
            if node.endpoints.get(&id).map(|e| &e.labels) != labels.as_ref() {
                return Err(ApiError::conflict(format!(
                    "the labels of endpoint {id} were changed meanwhile"
                ))
                .hint("look at them and ask again"));
            }
            let before = node.relabel(id, labelled, identity)?;
            Ok::<_, ApiError>((before, node.model(id)))
        })
        .await?;
    match changed {
        Ok((before, model)) => {
            // Each allocation took a reference; one is held for an endpoint.
            agent.identities.release(&before).await;
            Ok(model)
        }
        Err(error) => {
            agent.identities.release(&new).await;
            Err(error)
        }
    }
}

async fn delete(agent: Agent, id: EndpointRef) -> ApiResult<EndpointDeleted> {
    let (deleted, freed, errors) = agent
        .with(move |node| {
            let ids: Vec<u16> = match &id {
                // All endpoints of a container go together.
                EndpointRef::ContainerId(container) => {
                    let of = |e: &&crate::endpoint::Endpoint| {
                        e.file.names.container_id.as_ref() == Some(container)
                    };
                    node.endpoints.values().filter(of).map(|e| e.id()).collect()
                }
                other => vec![node.find(other)?],
            };
            if ids.is_empty() {
                node.find(&id)?;
            }
            if ids.contains(&HOST_ID) {
                return Err(ApiError::conflict("endpoint 0 is the node itself, which cannot be deleted")
                    .hint("it is not judged where no policy selects it, or with enable-host-firewall off"));
            }
            let mut freed = Vec::new();
            let mut errors = Vec::new();
            for id in &ids {
                // What waits for an identity holds none; who creates it gives it back.
                let holds = |e: &crate::endpoint::Endpoint| {
                    e.gone_since.is_none() && e.state != EndpointState::WaitingForIdentity
                };
                let had = node.endpoints.get(id).is_some_and(holds);
                if let Some((labels, failed)) = node.remove(*id) {
                    freed.extend(had.then_some(labels));
                    errors.extend(failed);
                }
            }
            Ok::<_, ApiError>((ids, freed, errors))
        })
        .await??;
    give_back(&agent, freed).await;
    Ok(EndpointDeleted { deleted, errors })
}
