//! The endpoint that a request means.

use std::collections::BTreeMap;

use villus_api::{ApiError, ApiResult, EndpointRef};

use super::Endpoint;

/// Finds an endpoint by any of its names.
pub(crate) fn find(
    endpoints: &BTreeMap<u16, Endpoint>,
    wanted: &EndpointRef,
    node: (&str, &str),
) -> ApiResult<u16> {
    let by = |test: &dyn Fn(&Endpoint) -> bool| endpoints.values().find(|e| test(e)).map(Endpoint::id);
    let is = |have: &Option<String>, name: &str| have.as_deref() == Some(name);
    let netns = |e: &Endpoint, name: &str| {
        e.file.names.netns.as_deref().is_some_and(|have| {
            have == name
                || have.strip_prefix("/run/netns/").or(have.strip_prefix("/var/run/netns/")) == Some(name)
        })
    };
    let pod = |e: &Endpoint, namespace: &str, name: &str| {
        is(&e.file.names.k8s_pod_name, name)
            && e.file.names.k8s_namespace.as_deref().unwrap_or("default") == namespace
    };
    let found = match wanted {
        EndpointRef::Id(id) => endpoints.contains_key(id).then_some(*id),
        EndpointRef::Global { cluster, node: name, id } => {
            ((cluster.as_str(), name.as_str()) == node && endpoints.contains_key(id)).then_some(*id)
        }
        EndpointRef::ContainerId(id) => by(&|e| is(&e.file.names.container_id, id)),
        EndpointRef::ContainerName(name) => by(&|e| is(&e.file.names.container_name, name)),
        EndpointRef::DockerEndpoint(id) => by(&|e| is(&e.file.names.docker_endpoint_id, id)),
        EndpointRef::PodName { namespace, name } | EndpointRef::CepName { namespace, name } => {
            by(&|e| pod(e, namespace, name))
        }
        EndpointRef::CniAttachment { container, interface } => by(&|e| {
            is(&e.file.names.container_id, container)
                && e.file.device.as_ref().and_then(|d| d.inner_name()) == Some(interface)
        }),
        EndpointRef::Ip(address) => by(&|e| e.file.addresses.contains(address)),
        EndpointRef::Netns(name) => by(&|e| netns(e, name)),
        EndpointRef::Owner(owner) => by(&|e| is(&e.file.names.owner, owner)),
        EndpointRef::Name(name) => by(&|e| is(&e.file.names.owner, name))
            .or_else(|| by(&|e| netns(e, name)))
            .or_else(|| {
                by(&|e| is(&e.file.names.container_name, name) || is(&e.file.names.container_id, name))
            })
            .or_else(|| by(&|e| is(&e.file.names.k8s_pod_name, name))),
    };
    found.ok_or_else(|| {
        ApiError::not_found(format!("there is no endpoint {wanted}")).hint("`villus endpoint list` shows all")
    })
}
