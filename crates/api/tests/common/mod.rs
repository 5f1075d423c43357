//! A backend that remembers, and a server over it.
#![allow(dead_code, missing_docs, clippy::unwrap_used, reason = "each test file uses a part")]

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{runtime::Runtime, sync::oneshot};
use villus_api::{
    ApiError, ApiResult, Backend, Client, EndpointRef, Socket, SocketOptions, model::*, router, serve,
};
use villus_flows::{Filter, History, Observer};

/// Endpoints in a list, events in a history, and what it was asked.
pub struct Fake {
    pub endpoints: Mutex<Vec<Endpoint>>,
    pub history: History,
    pub asked: Mutex<Vec<String>>,
}

impl Default for Fake {
    fn default() -> Self {
        Self { endpoints: Mutex::default(), history: History::new(64), asked: Mutex::default() }
    }
}

impl Fake {
    fn note(&self, what: impl std::fmt::Debug) {
        self.asked.lock().unwrap().push(format!("{what:?}"));
    }

    fn find(&self, id: &EndpointRef) -> ApiResult<Endpoint> {
        let endpoints = self.endpoints.lock().unwrap();
        let named = |endpoint: &&Endpoint| match id {
            EndpointRef::Id(id) => endpoint.id == *id,
            EndpointRef::Owner(owner) => endpoint.status.villus.owner.as_ref() == Some(owner),
            _ => false,
        };
        endpoints.iter().find(named).cloned().ok_or_else(|| {
            ApiError::not_found(format!("no endpoint {id}")).hint("see `villus endpoint list`")
        })
    }
}

#[async_trait]
impl Backend for Fake {
    async fn status(&self, brief: bool) -> ApiResult<StatusResponse> {
        self.note(("status", brief));
        let cilium = State { state: ServiceState::Ok, msg: "0.1.0".into() };
        Ok(StatusResponse { cilium, ..StatusResponse::default() })
    }

    async fn config(&self) -> ApiResult<DaemonConfiguration> {
        Ok(DaemonConfiguration::default())
    }

    async fn patch_config(&self, spec: DaemonConfigurationSpec) -> ApiResult<()> {
        self.note(("config", &spec.options));
        Ok(())
    }

    async fn endpoints(&self, labels: Vec<String>) -> ApiResult<Vec<Endpoint>> {
        self.note(("endpoints", labels));
        Ok(self.endpoints.lock().unwrap().clone())
    }

    async fn endpoint(&self, id: EndpointRef) -> ApiResult<Endpoint> {
        self.find(&id)
    }

    async fn create_endpoint(&self, id: EndpointRef, request: EndpointChangeRequest) -> ApiResult<Endpoint> {
        self.note(("create", &id));
        let mut endpoints = self.endpoints.lock().unwrap();
        if request.owner.is_some() && endpoints.iter().any(|other| other.status.villus.owner == request.owner)
        {
            return Err(ApiError::conflict("the owner has an endpoint already").field("owner"));
        }
        if endpoints.len() >= 3 {
            return Err(ApiError::too_many("three are enough"));
        }
        let mut endpoint = Endpoint { id: 5 + endpoints.len() as u16, ..Endpoint::default() };
        endpoint.status.networking.addressing = EndpointNetworking::pairs(request.requested_addresses());
        endpoint.status.labels.security_relevant = request.labels;
        endpoint.status.villus.owner = request.owner;
        endpoint.status.villus.netns = request.netns;
        endpoint.status.state = EndpointState::Ready;
        endpoints.push(endpoint.clone());
        Ok(endpoint)
    }

    async fn patch_endpoint(&self, id: EndpointRef, patch: EndpointPatch) -> ApiResult<Endpoint> {
        let mut endpoint = self.find(&id)?;
        endpoint.status.labels.security_relevant = patch.labels.unwrap_or_default();
        Ok(endpoint)
    }

    async fn delete_endpoint(&self, id: EndpointRef) -> ApiResult<EndpointDeleted> {
        self.note(("delete", &id));
        if matches!(id, EndpointRef::ContainerId(_)) {
            let errors = vec!["the interface is gone already".to_owned()];
            return Ok(EndpointDeleted { deleted: vec![7], errors });
        }
        let found = self.find(&id)?;
        self.endpoints.lock().unwrap().retain(|endpoint| endpoint.id != found.id);
        Ok(EndpointDeleted { deleted: vec![found.id], errors: vec![] })
    }

    async fn identity(&self, id: u32) -> ApiResult<Identity> {
        Ok(Identity { id, labels: vec!["reserved:host".into()], ..Identity::default() })
    }

    async fn import_policy(&self, import: PolicyImport) -> ApiResult<PolicyChange> {
        self.note(("import", &import.text));
        if import.text.contains("bad") {
            return Err(ApiError::bad_field("spec.ingress[0].toPorts", "70000 is no port")
                .file(import.file)
                .hint("ports go up to 65535"));
        }
        Ok(PolicyChange { revision: 2, dry_run: import.dry_run, ..PolicyChange::default() })
    }

    async fn delete_policy(&self, delete: PolicyDelete) -> ApiResult<PolicyChange> {
        self.note(("delete policy", &delete.name));
        Ok(PolicyChange::default())
    }

    async fn wait_policy(&self, query: PolicyWaitQuery) -> ApiResult<PolicyWait> {
        tokio::time::sleep(Duration::from_millis(query.timeout.into())).await;
        Ok(PolicyWait { revision: query.revision, realized: true, waiting: vec![] })
    }

    async fn map(&self, name: String) -> ApiResult<BpfMap> {
        Ok(BpfMap { path: format!("tc/globals/{name}"), ..BpfMap::default() })
    }

    async fn monitor(&self, filter: Filter, past: usize) -> ApiResult<Observer> {
        Ok(self.history.observe(filter, past, 256))
    }

    async fn verify(&self, request: VerifyRequest) -> ApiResult<VerifyReport> {
        self.note(("verify", request.repair, request.endpoint));
        Ok(VerifyReport::default())
    }

    async fn why(&self, request: WhyRequest) -> ApiResult<WhyReply> {
        Ok(WhyReply { question: format!("{request:?}"), ..WhyReply::default() })
    }

    async fn release(&self, id: EndpointRef) -> ApiResult<()> {
        self.note(("release", id));
        Ok(())
    }
}

/// A server over a [`Fake`] in a directory of its own.
pub struct Server {
    pub fake: Arc<Fake>,
    pub path: PathBuf,
    pub runtime: Runtime,
    stop: Option<oneshot::Sender<()>>,
    task: Option<tokio::task::JoinHandle<std::io::Result<()>>>,
    _directory: tempfile::TempDir,
}

impl Server {
    pub fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/villus.sock");
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let fake = Arc::new(Fake::default());
        let (stop, stopped) = oneshot::channel();
        let options = SocketOptions { path: path.clone(), ..SocketOptions::default() };
        let routes = router(Arc::clone(&fake) as Arc<dyn Backend>);
        let socket = runtime.block_on(async { Socket::bind(&options) }).unwrap();
        let shutdown = async {
            let _ = stopped.await;
        };
        let task = runtime.spawn(serve(socket, routes, shutdown, Duration::from_millis(300)));
        Self { fake, path, runtime, stop: Some(stop), task: Some(task), _directory: directory }
    }

    pub fn client(&self) -> Client {
        Client::new(&self.path).unwrap()
    }

    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.fake.asked.lock().unwrap())
    }

    /// Stops it and waits until it has stopped.
    pub fn stop(&mut self) {
        drop(self.stop.take());
        if let Some(task) = self.task.take() {
            self.runtime.block_on(task).unwrap().unwrap();
        }
    }
}
