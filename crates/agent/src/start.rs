//! The start: from options and files to a node whose endpoints' packets may pass.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use villus_abi::endpoint::HOST_ID;
use villus_config::Config;
use villus_identity::{AddressPool, Clusters, Ipcache, Layer, Leased, Remote, RemoteConfig, new_nodes};
use villus_policy::Repository;
use villus_table::{Backoff, Reconciler};

use crate::AgentError;
use crate::between::Wrapping;
use crate::cluster::{ClusterMesh, Feed, SharedStore, Snapshot};
use crate::conditions::Conditions;
use crate::endpoint::LabelRules;
use crate::host;
use crate::identities::IdentityRoom;
use crate::kernel::Kernel;
use crate::nat::Nat;
use crate::network::{Network, no_pool};
use crate::node::Node;
use crate::policy::{ClusterPolicies, Sources, settings};
use crate::state::{AgentLock, StateDir, boot_id};
use crate::wake::Wake;

/// How long an address rests after its endpoint is gone.
const REST: Duration = Duration::from_secs(30);
/// Empty policy maps that are made ready at once, and how few may be left before more are.
const READY: usize = 16;
const LOW: usize = 8;

impl Node {
    /// Everything up to the point where policies are read. Must be called inside a runtime.
    pub fn start(config: Arc<Config>) -> Result<(Self, AgentLock), AgentError> {
        if !rustix::process::geteuid().is_root() {
            return Err(AgentError::NotRoot);
        }
        let started = Instant::now();
        let rules = LabelRules::new(&config)?;
        host::labels(&config)?;
        let state = StateDir::open(&config.paths.lib_dir)?;
        let lock = AgentLock::take(&state)?;
        let mut conditions = Conditions::default();
        if !config.kvstore.etcd {
            // Nobody else asks the store of a node that has its own.
            let written = state.remember_size(NonZeroU32::MIN);
            conditions.note("size of the cluster on disk", written.err().map(|error| error.to_string()));
        }
        let (runtime, changed_options) = crate::options::kept(&config, &state, &mut conditions)?;
        let repository = Repository::new(settings(&config, runtime.enforcement)?);
        let open = || {
            let kernel = Kernel::open(&config)?;
            let lending = kernel.lending()?;
            let network = Network::set_up(&config, &state, &lending)?;
            Ok::<_, AgentError>((kernel, lending, network))
        };
        let (opened, (snapshot, learned)) = std::thread::scope(|scope| {
            let opening = scope.spawn(open);
            let loaded = config.kvstore.etcd.then(|| Snapshot::load(&state, &mut conditions)).unzip();
            (opening.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), loaded)
        });
        let (kernel, lending, network) = opened?;
        tracing::debug!(took = ?started.elapsed(), "what was known before is read");
        let (nat, problem) = Nat::at_start(config.masquerade.list.as_deref(), lending);
        conditions.note("ip-masq-agent", problem);
        let name = node_name(&config);
        let node_key = network.primary.map_or_else(|| name.clone(), |ip| ip.to_string());
        let snapshot = snapshot.flatten();
        let (seen, witness) =
            (snapshot.as_ref().and_then(Snapshot::seen), snapshot.as_ref().and_then(Snapshot::witness));
        let shared = SharedStore::open(&config, &name, seen, witness)?;
        let shared = shared.map(Arc::new);
        let known = snapshot.as_ref().map(Snapshot::identities).unwrap_or_default();
        let identities = Arc::new(IdentityRoom::open(&config, &state, &node_key, shared, known)?);
        let pool = AddressPool::new(network.prefixes.ipv4, network.prefixes.ipv6, REST).map_err(no_pool)?;
        for (n, problem) in identities.problems.iter().chain(&network.problems).enumerate() {
            conditions.note(&format!("start {n}"), Some(problem.clone()));
        }
        let ipcache = Ipcache::new();
        // Until the store has said what it knows, nothing of it goes.
        let is_shared = identities.shared.is_some();
        let store_source = is_shared.then(|| ipcache.winners().source("store"));
        let mesh = match &identities.shared {
            Some(shared) => ClusterMesh::open(&config, &state, shared, &mut conditions)?.map(Arc::new),
            None => None,
        };
        let layers: &[Layer] = match (is_shared, &mesh) {
            (false, _) => &[],
            (true, None) => &[Layer::State, Layer::Cache],
            (true, Some(_)) => &Layer::ALL,
        };
        let nodes = new_nodes();
        let remote = identities.shared.as_ref().map(|shared| {
            let (range, others) = (identities.allocator.range(), shared.others.clone());
            let leased = identities.allocator.leased();
            let settings = RemoteConfig { leased, ..remote_config(&config, &name, range, others) };
            Remote::new(settings, ipcache.clone(), nodes.clone(), identities.nodes.clone())
        });
        let ipcache_source = Some(ipcache.winners().source("policies and endpoints"));
        let ipcache_sync = Reconciler::new(ipcache.winners(), reconcile_config(&config)?, fastrand::u64(..));
        let identity_feed = identities.table.changes();
        let sources = Sources { directory: config.policy.static_cnp_path.clone(), ..Sources::default() };
        let mut node = Self {
            runtime,
            cluster: config.node.cluster_name.clone(),
            name,
            boot: boot_id(),
            state,
            kernel,
            network,
            nat,
            rules,
            endpoints: BTreeMap::new(),
            repository,
            answers: Arc::default(),
            sources,
            waiting: Default::default(),
            identities,
            identity_feed,
            prefixes: BTreeMap::new(),
            nodes,
            awaited: layers.iter().copied().flat_map(Feed::of).collect(),
            unread: BTreeMap::new(),
            unwritten: Default::default(),
            remote,
            cluster_policies: is_shared.then(|| ClusterPolicies::new(&config.node.cluster_name)),
            store_source,
            mesh,
            mesh_seen: snapshot.as_ref().and_then(Snapshot::mesh_seen),
            freeze: Default::default(),
            calendar: Default::default(),
            snapshot_saved: snapshot.as_ref().map(|snapshot| snapshot.saved),
            // What was known before is not learned.
            learned: None,
            known: Default::default(),
            arrived: Vec::new(),
            ipcache,
            ipcache_sync,
            ipcache_source,
            pool,
            conditions,
            audits: Vec::new(),
            changed_options,
            rejudge: Default::default(),
            emergency: Default::default(),
            open: false,
            wake: Arc::new(Wake::new()),
            started,
            ready: Default::default(),
            unsettled: Default::default(),
            settling: None,
            settle_lock: Default::default(),
            last_made: started,
            attached: false,
            counts: Default::default(),
            compared_to: 0,
            wrapping: Wrapping::at_start(),
            journal_seen: None,
            grace_over: false,
            config,
        };
        node.tell_own_node();
        if let Some(snapshot) = snapshot {
            node.restore_cluster(snapshot);
        }
        node.learned = learned;
        node.load_waiting();
        node.load_audits().map_err(|source| AgentError::File {
            action: "read",
            path: node.state.path("audits.json"),
            source,
        })?;
        node.freeze_as_before();
        node.read_journal();
        node.remember_old_flows();
        Ok((node, lock))
    }

    /// Takes over endpoints and what belongs to them; their identities are allocated here, so this waits for the store of
    /// this node. One that is shared is not asked: it confirms later.
    pub async fn restore_identities(&mut self) {
        let wanted: Vec<(u16, villus_labels::Labels, villus_labels::NumericIdentity)> =
            self.endpoints.values().map(|e| (e.id(), e.identity_labels.clone(), e.identity())).collect();
        for (id, labels, had) in wanted {
            match self.identities.take_over(&labels, had).await {
                Ok(identity) => {
                    let Some(endpoint) = self.endpoints.get_mut(&id) else { continue };
                    if identity != had {
                        endpoint.note("OK", format!("identity {had} became {identity}"));
                        endpoint.file.identity = identity.0;
                        self.save_endpoint(id);
                    }
                }
                // What it had goes on being true.
                Err(error) => {
                    self.conditions.note(&format!("identity of endpoint {id}"), Some(error.to_string()))
                }
            }
        }
    }

    /// Reads every configured source of policies once; until that succeeds no first packet passes.
    pub fn read_sources(&mut self) -> Result<(), String> {
        self.scan_directory()?;
        self.load_imports().map_err(|error| format!("imported policies cannot be read: {error}"))?;
        self.load_cluster_policies();
        Ok(())
    }

    /// Every source was read: policy maps, then records, addresses and devices, then programs, then the go-ahead.
    pub fn go(&mut self) -> villus_datapath::Result<()> {
        self.announce_all_ports();
        let prefixes: Vec<_> = self.repository.prefixes_in_use().collect();
        self.acquire_prefixes(&prefixes);
        self.absorb_identities();
        self.match_node_by_address();
        self.sources.complete = true;
        self.note_policies();
        self.follow_resource();
        self.settle_host()?;
        let live: Vec<u16> = self.endpoints.values().filter(|e| e.is_live()).map(|e| e.id()).collect();
        live.iter().for_each(|id| self.track(*id));
        self.regenerate(live.iter().copied());
        tracing::debug!(took = ?self.started.elapsed(), "policy maps are right");
        self.sweep();
        self.claim_node();
        let missing = self.endpoints.values().filter(|e| e.missing).map(|e| e.id());
        let claiming: Vec<u16> = live.iter().copied().filter(|id| *id != HOST_ID).chain(missing).collect();
        claiming.into_iter().for_each(|id| self.claim_addresses(id));
        self.follow_nodes();
        let prefixes: Vec<_> = self.prefixes.keys().copied().collect();
        self.claim_prefixes(&prefixes);
        self.resolve_addresses();
        if let Some(source) = self.ipcache_source.take() {
            source.complete();
        }
        self.step_ipcache();
        self.install_restored()?;
        self.prepare_slots();
        tracing::debug!(took = ?self.started.elapsed(), "records, addresses and devices are right");
        self.kernel.programs().hurry();
        if live.iter().all(|id| *id == HOST_ID) {
            // Nothing goes on without programs: better not to start at all.
            self.kernel.programs().wait()?;
        }
        if self.kernel.programs().are_loaded() {
            self.attach_all();
        }
        self.write_config()?;
        self.wake.publish.notify_one();
        Ok(())
    }

    /// Makes empty policy maps for endpoints to come, in one go.
    pub fn prepare_slots(&mut self) {
        let next: Vec<u16> = self.free_ids().take(READY).collect();
        let ready = next.iter().take_while(|id| self.ready.contains(id)).count();
        if ready >= LOW.min(next.len()) {
            return;
        }
        let result = self.kernel.policies.prepare(&next);
        if result.is_ok() {
            self.ready.extend(next);
        }
        self.conditions.note("prepared policy maps", result.err().map(|error| error.to_string()));
    }
}

/// Between an owner's return and the end of what it has not said again.
const SETTLE: Duration = Duration::from_secs(30);

fn remote_config(config: &Config, name: &str, range: RangeInclusive<u32>, others: Clusters) -> RemoteConfig {
    RemoteConfig {
        cluster: config.node.cluster_name.clone(),
        cluster_id: config.node.cluster_id,
        range,
        node: name.to_owned(),
        tunnels: config.routing.tunnel,
        routed: routed(config),
        settle: SETTLE,
        stale_grace: config.kvstore.stale_grace,
        node_labels: config.policy.node_selector_labels,
        node_prefixes: config.policy.cidr_matches_nodes,
        others,
        leased: Leased::default(),
    }
}

/// Within which prefixes no packet between endpoints of two nodes is masqueraded or in a tunnel.
fn routed(config: &Config) -> Vec<IpNet> {
    if config.routing.tunnel {
        return Vec::new();
    }
    let (v4, v6) = (&config.ipv4, &config.ipv6);
    let v4 = if v4.masquerade { v4.native_routing } else { Some(Ipv4Net::default()) };
    let v6 = if v6.masquerade { v6.native_routing } else { Some(Ipv6Net::default()) };
    v4.map(IpNet::from).into_iter().chain(v6.map(IpNet::from)).collect()
}

fn reconcile_config(config: &Config) -> Result<villus_table::Config, AgentError> {
    let wrong =
        |reason: String| AgentError::Option { option: "bpf-policy-map-full-reconciliation-interval", reason };
    let backoff = Backoff::try_new(Duration::from_millis(200), Duration::from_secs(30), 0.5)
        .map_err(|error| wrong(error.to_string()))?;
    villus_table::Config::try_new(config.policy.reconcile_interval, 4096, backoff)
        .map_err(|error| wrong(error.to_string()))
}

fn node_name(config: &Config) -> String {
    let own = || std::fs::read_to_string("/proc/sys/kernel/hostname").map(|name| name.trim().to_owned());
    config
        .node
        .name
        .clone()
        .or_else(|| own().ok())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "localhost".into())
}
