//! Endpoints as the API shows them.

use std::collections::BTreeMap;

use villus_abi::policy::Direction;
use villus_api::model::{
    Endpoint as Model, EndpointHealth, EndpointNetworking, EndpointPolicy, EndpointPolicyStatus,
    EndpointSpec, EndpointState, EndpointStatus, EndpointVillus, ExternalIdentifiers, Identity,
    LabelConfigurationSpec, LabelConfigurationStatus, Mac, PolicyEnabled,
};
use villus_datapath::{AttachMode, policy_pin};
use villus_labels::{Labels, NumericIdentity};
use villus_net::Delivery;

use crate::endpoint::{Endpoint, Labelled};
use crate::node::Node;
use crate::options::{AUDIT, audit_text};
use crate::state::{EndpointFile, Names};

impl Node {
    /// An endpoint as the API shows it; an empty one when there is none of that id.
    pub fn model(&self, id: u16) -> Model {
        self.endpoints.get(&id).map(|endpoint| self.model_of(endpoint)).unwrap_or_default()
    }

    /// What would be, of a request that changes nothing.
    pub fn model_of_plan(&self, file: EndpointFile, labelled: Labelled) -> Model {
        let mut endpoint = Endpoint::new(file, labelled, EndpointState::WaitingForIdentity);
        if let Some(identity) = self.identities.allocator.lookup(&endpoint.identity_labels) {
            endpoint.file.identity = identity.0;
        }
        self.model_of(&endpoint)
    }

    fn model_of(&self, endpoint: &Endpoint) -> Model {
        let file = &endpoint.file;
        let spec =
            EndpointSpec { label_configuration: LabelConfigurationSpec::default(), options: options(file) };
        Model {
            id: file.id,
            spec: spec.clone(),
            status: EndpointStatus {
                external_identifiers: names(&file.names),
                health: health(endpoint),
                identity: (file.identity != 0)
                    .then(|| identity_model(NumericIdentity(file.identity), &endpoint.identity_labels)),
                labels: LabelConfigurationStatus {
                    derived: texts(
                        &endpoint
                            .labels
                            .filtered(|label| !endpoint.identity_labels.iter().any(|other| other == label)),
                    ),
                    security_relevant: texts(&endpoint.identity_labels),
                    ..LabelConfigurationStatus::default()
                },
                log: endpoint.log.iter().cloned().collect(),
                networking: networking(file),
                policy: self.policy_model(endpoint),
                realized: spec,
                state: endpoint.state,
                villus: self.villus_model(endpoint),
            },
        }
    }

    fn policy_model(&self, endpoint: &Endpoint) -> EndpointPolicyStatus {
        let Some(policy) = self.policy_of(endpoint.id()) else { return EndpointPolicyStatus::default() };
        let all = endpoint.audit();
        let audited = [policy.audit[0] || all.ingress, policy.audit[1] || all.egress];
        let identities = |direction: Direction, deny: bool| {
            let mut all: Vec<u32> = policy
                .map_entries()
                .filter(|(key, entry)| key.dir() == direction && entry.is_deny() == deny)
                .map(|(key, _)| key.identity)
                .collect();
            all.sort_unstable();
            all.dedup();
            all
        };
        let model = |revision| EndpointPolicy {
            allowed_ingress_identities: identities(Direction::Ingress, false),
            allowed_egress_identities: identities(Direction::Egress, false),
            denied_ingress_identities: identities(Direction::Ingress, true),
            denied_egress_identities: identities(Direction::Egress, true),
            id: endpoint.file.identity,
            build: endpoint.builds,
            policy_enabled: PolicyEnabled::new(policy.enforced, audited),
            policy_revision: revision,
        };
        EndpointPolicyStatus { realized: model(endpoint.realized), spec: model(self.repository.revision()) }
    }

    fn villus_model(&self, endpoint: &Endpoint) -> EndpointVillus {
        let file = &endpoint.file;
        let device = file.device.as_ref();
        EndpointVillus {
            netns: file.names.netns.clone(),
            owner: file.names.owner.clone(),
            sticky: file.sticky,
            adopted: device.is_some_and(|device| device.is_adopted()),
            attach_mode: match self.kernel.mode {
                AttachMode::Tcx => "tcx",
                AttachMode::Tc => "tc",
            }
            .to_owned(),
            delivery: device
                .map(|device| match device.delivery() {
                    Delivery::Peer => "peer",
                    Delivery::Device => "device",
                })
                .unwrap_or_default()
                .to_owned(),
            mtu: device.map_or(0, |device| device.mtu()),
            named_ports: file.named_ports.iter().map(ToString::to_string).collect(),
            policy_map: if endpoint.is_live() { policy_pin(file.id) } else { String::new() },
            policy_entries: endpoint.size,
            hand_made_entries: u32::try_from(endpoint.hand_made).unwrap_or(u32::MAX),
            held: self.is_held(file.id),
            audited: self.audited_directions(endpoint),
            warnings: self.warnings(endpoint),
        }
    }

    /// The directions in which what policy would deny by default passes.
    fn audited_directions(&self, endpoint: &Endpoint) -> Vec<String> {
        let Some(policy) = self.policy_of(endpoint.id()) else { return Vec::new() };
        let audited = |direction: &Direction| {
            let side = *direction as usize;
            policy.enforced[side] && (policy.audit[side] || endpoint.audit().has(*direction))
        };
        let names = Direction::ALL.into_iter().filter(audited);
        names.map(|direction| direction.name().to_lowercase()).collect()
    }

    fn warnings(&self, endpoint: &Endpoint) -> Vec<String> {
        let mut warnings: Vec<String> = endpoint.problem.iter().cloned().collect();
        if endpoint.pending_until.is_some() {
            warnings.push(
                "restored-pending: it waits to be created again since the node was started anew".into(),
            );
        }
        if endpoint.missing {
            let name = endpoint.file.device.as_ref().map(|device| device.name()).unwrap_or_default();
            warnings.push(format!("device missing: it is at work again when {name} is there"));
        }
        if endpoint.hand_made > 0 {
            warnings.push(format!("{} entries of its policy map were put in by hand", endpoint.hand_made));
        }
        warnings
    }
}

/// An identity with its labels.
pub(super) fn identity_model(id: NumericIdentity, labels: &Labels) -> Identity {
    Identity {
        id: id.0,
        labels: texts(labels),
        labels_sha256: sha256(labels),
        named_ports: Vec::new(),
        interim: id.is_interim(),
    }
}

/// SHA-256 of the kvstore's label string, hex.
fn sha256(labels: &Labels) -> String {
    use sha2::Digest;
    let digest = sha2::Sha256::digest(labels.to_kvstore().as_bytes());
    digest.iter().fold(String::with_capacity(64), |text, byte| text + &format!("{byte:02x}"))
}

/// Labels as texts, sorted.
pub(super) fn texts(labels: &Labels) -> Vec<String> {
    let mut texts: Vec<String> = labels.iter().map(ToString::to_string).collect();
    texts.sort();
    texts
}

fn options(file: &EndpointFile) -> BTreeMap<String, String> {
    BTreeMap::from([(AUDIT.to_owned(), audit_text(file.audit.unwrap_or_default()).to_owned())])
}

fn names(names: &Names) -> ExternalIdentifiers {
    let pod = names.k8s_pod_name.as_ref();
    ExternalIdentifiers {
        container_id: names.container_id.clone(),
        container_name: names.container_name.clone(),
        docker_endpoint_id: names.docker_endpoint_id.clone(),
        docker_network_id: names.docker_network_id.clone(),
        k8s_namespace: names.k8s_namespace.clone(),
        k8s_pod_name: names.k8s_pod_name.clone(),
        pod_name: pod.map(|pod| format!("{}/{pod}", names.k8s_namespace.as_deref().unwrap_or("default"))),
        ..ExternalIdentifiers::default()
    }
}

fn health(endpoint: &Endpoint) -> EndpointHealth {
    let (bpf, overall) = match endpoint.state {
        EndpointState::Ready if endpoint.problem.is_some() => ("OK", "Warning"),
        EndpointState::Ready => ("OK", "OK"),
        EndpointState::Disconnected | EndpointState::Disconnecting | EndpointState::DeviceMissing => {
            ("Disabled", "Disabled")
        }
        EndpointState::Invalid => ("Failure", "Failure"),
        EndpointState::Restoring => ("Pending", "Pending"),
        _ => ("Bootstrap", "Bootstrap"),
    };
    let policy = match (&endpoint.problem, endpoint.subject) {
        (Some(_), _) => "Warning",
        (None, Some(_)) => "OK",
        (None, None) => overall,
    };
    EndpointHealth {
        bpf: bpf.into(),
        policy: policy.into(),
        connected: endpoint.is_live(),
        overall_health: overall.into(),
    }
}

fn networking(file: &EndpointFile) -> EndpointNetworking {
    let device = file.device.as_ref();
    EndpointNetworking {
        addressing: EndpointNetworking::pairs(file.addresses.iter().copied()),
        host_mac: device.map(|device| Mac(device.host_mac().0)),
        interface_index: device.map_or(0, |device| device.index()),
        interface_name: device.map(|device| device.name().to_owned()).unwrap_or_default(),
        container_interface_name: device.and_then(|device| device.inner_name()).map(str::to_owned),
        mac: device.and_then(|device| device.mac()).map(|mac| Mac(mac.0)),
    }
}
