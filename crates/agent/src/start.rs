//! The start: from options and files to a node whose endpoints' packets may pass.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use villus_api::model::EndpointState;
use villus_config::Config;
use villus_datapath::{Hook, OldFlows, now};
use villus_identity::{AddressPool, Ipcache, PoolState};
use villus_net::endpoint_devices;
use villus_policy::Repository;
use villus_table::{Backoff, Reconciler};

use crate::AgentError;
use crate::conditions::Conditions;
use crate::endpoint::LabelRules;
use crate::identities::IdentityRoom;
use crate::kernel::{Kernel, Runtime};
use crate::network::{Network, no_pool};
use crate::node::{ADDRESSES, Node};
use crate::policy::{Sources, settings};
use crate::state::{AgentLock, StateDir, boot_id};
use crate::wake::Wake;

/// How long an address rests after its endpoint is gone.
const REST: Duration = Duration::from_secs(30);
/// Empty policy maps that are made ready at once, and how few may be left before more are.
const READY: usize = 16;
const LOW: usize = 8;
/// How long no endpoint was made before attachments are put right.
const QUIET: Duration = Duration::from_millis(1500);

impl Node {
    /// Everything up to the point where policies are read. Must be called inside a runtime.
    pub fn start(config: Arc<Config>) -> Result<(Self, AgentLock), AgentError> {
        if !rustix::process::geteuid().is_root() {
            return Err(AgentError::NotRoot);
        }
        let started = Instant::now();
        let rules = LabelRules::new(&config)?;
        let runtime = Runtime::new(&config);
        let repository = Repository::new(settings(&config, runtime.enforcement)?);
        let state = StateDir::open(&config.paths.lib_dir)?;
        let lock = AgentLock::take(&state)?;
        let kernel = Kernel::open(&config)?;
        let network = Network::set_up(&config, &state)?;
        let name = node_name(&config);
        let node_key = network.primary.map_or_else(|| name.clone(), |ip| ip.to_string());
        let identities = Arc::new(IdentityRoom::open(&config, &state, &node_key)?);
        let mut pool =
            AddressPool::new(network.prefixes.ipv4, network.prefixes.ipv6, REST).map_err(no_pool)?;
        let mut conditions = Conditions::default();
        restore_pool(&mut pool, &state, &mut conditions);
        for (n, problem) in identities.problems.iter().chain(&network.problems).enumerate() {
            conditions.note(&format!("start {n}"), Some(problem.clone()));
        }
        let ipcache = Ipcache::new();
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
            rules,
            endpoints: BTreeMap::new(),
            repository,
            sources,
            identities,
            identity_feed,
            prefixes: BTreeMap::new(),
            ipcache,
            ipcache_sync,
            ipcache_source,
            pool,
            conditions,
            rejudge: Default::default(),
            emergency: Default::default(),
            open: false,
            wake: Arc::new(Wake::new()),
            started,
            ready: Default::default(),
            quick: Default::default(),
            last_made: started,
            attached: false,
            counts: Default::default(),
            compared_to: 0,
            journal_seen: None,
            grace_over: false,
            config,
        };
        node.read_journal();
        node.remember_old_flows();
        Ok((node, lock))
    }

    fn remember_old_flows(&mut self) {
        if self.kernel.resized.is_empty() {
            return;
        }
        let interfaces = self.all_interfaces();
        match OldFlows::of_attached(&self.kernel.links(), &interfaces, &self.kernel.maps) {
            Ok(old) => self.kernel.old_flows = Some(old),
            Err(error) => self.conditions.note("old flows", Some(error.to_string())),
        }
    }

    fn all_interfaces(&self) -> Vec<u32> {
        villus_net::NodeState::read()
            .map_or_else(|_| Vec::new(), |state| state.links.iter().map(|l| l.index).collect())
    }

    /// Takes over endpoints and what belongs to them; their identities are allocated here, so this waits for the store.
    pub async fn restore_identities(&mut self) {
        let wanted: Vec<(u16, villus_labels::Labels, villus_labels::NumericIdentity)> =
            self.endpoints.values().map(|e| (e.id(), e.identity_labels.clone(), e.identity())).collect();
        for (id, labels, had) in wanted {
            match self.identities.allocate(&labels, Some(had)).await {
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
        self.load_imports().map_err(|error| format!("imported policies cannot be read: {error}"))
    }

    /// Every source was read: policy maps, then records, addresses and devices, then programs, then the go-ahead.
    pub fn go(&mut self) -> villus_datapath::Result<()> {
        let prefixes: Vec<_> = self.repository.prefixes_in_use().collect();
        self.acquire_prefixes(&prefixes);
        self.absorb_identities();
        self.sources.complete = true;
        self.note_policies();
        let live: Vec<u16> = self.endpoints.values().filter(|e| e.is_live()).map(|e| e.id()).collect();
        self.regenerate(live.iter().copied());
        tracing::debug!(took = ?self.started.elapsed(), "policy maps are right");
        self.sweep_policies();
        self.claim_node();
        for id in &live {
            self.claim_addresses(*id);
        }
        self.claim_prefixes();
        if let Some(source) = self.ipcache_source.take() {
            source.complete();
        }
        self.step_ipcache();
        self.install_restored()?;
        tracing::debug!(took = ?self.started.elapsed(), "records, addresses and devices are right");
        if self.kernel.programs().are_loaded() {
            self.attach_all();
        }
        self.write_config()?;
        self.prepare_slots();
        Ok(())
    }

    /// Programs of this version on every device, link by link.
    pub fn attach_all(&mut self) {
        let live = self.endpoints.values().filter(|e| e.is_live());
        let live: Vec<(u16, u32)> =
            live.filter_map(|e| Some((e.id(), e.file.device.as_ref()?.index()))).collect();
        for (id, index) in &live {
            let result = self.kernel.attach_endpoint(*index);
            self.conditions.note(&format!("programs of endpoint {id}"), result.err().map(|e| e.to_string()));
            if let Some(endpoint) = self.endpoints.get_mut(id)
                && endpoint.state == EndpointState::Restoring
            {
                endpoint.enter(EndpointState::Ready, "taken over");
            }
        }
        self.attached = true;
        self.attach_uplinks();
        if let Some(old) = self.kernel.old_flows.take()
            && let Err(error) = old.carry(&self.kernel.maps, now())
        {
            self.conditions.note("old flows", Some(error.to_string()));
        }
        tracing::debug!(took = ?self.started.elapsed(), endpoints = live.len(), "programs are attached");
    }

    /// Remembers that a new endpoint's programs are to be attached the way that the options say.
    pub fn attach_later(&mut self, id: u16, later: bool) {
        self.last_made = Instant::now();
        if later {
            self.quick.insert(id);
        }
    }

    /// Attaches one endpoint's programs the way that the options say, when no endpoint was made for a moment; the old
    /// attachment goes after the new one is there. Says whether there are more.
    pub fn attach_properly(&mut self, now: Instant) -> bool {
        if now.duration_since(self.last_made) < QUIET {
            return false;
        }
        let Some(id) = self.quick.pop_first() else { return false };
        if let Some(endpoint) = self.endpoints.get(&id).filter(|e| e.is_live())
            && let Some(device) = &endpoint.file.device
        {
            let result = self.kernel.attach_endpoint(device.index());
            self.conditions.note(&format!("programs of endpoint {id}"), result.err().map(|e| e.to_string()));
        }
        !self.quick.is_empty()
    }

    /// The program of uplinks on those that there are, and on no other device.
    pub fn attach_uplinks(&mut self) {
        if !self.kernel.programs().are_loaded() {
            return;
        }
        let uplinks: Vec<(u32, String)> =
            self.network.uplinks.used.iter().map(|uplink| (uplink.index, uplink.name.clone())).collect();
        for (index, name) in &uplinks {
            let result = self.kernel.attach_uplink(*index);
            self.conditions.note(&format!("program of uplink {name}"), result.err().map(|e| e.to_string()));
        }
        let interfaces = self.all_interfaces();
        let attached = self.kernel.links().list(&interfaces).unwrap_or_default();
        for attachment in attached.iter().filter(|a| a.hook == Hook::FromNetwork) {
            if !uplinks.iter().any(|(index, _)| *index == attachment.ifindex)
                && let Err(error) = self.kernel.links().detach(Hook::FromNetwork, attachment.ifindex)
            {
                tracing::warn!(%error, "a former uplink keeps its program");
            }
        }
        if let Err(error) = self.kernel.links().sweep() {
            tracing::warn!(%error, "pins of gone links stay");
        }
    }

    /// Policy maps and devices of endpoints that nobody knows: a crash left them.
    fn sweep_policies(&mut self) {
        for id in self.kernel.policies.endpoints().unwrap_or_default() {
            if !self.endpoints.get(&id).is_some_and(|e| e.is_live())
                && let Err(error) = self.kernel.policies.remove(id)
            {
                tracing::warn!(endpoint = id, %error, "a left-over policy map stays");
            }
        }
        let known: Vec<u32> =
            self.endpoints.values().filter_map(|e| Some(e.file.device.as_ref()?.index())).collect();
        for (link, owner) in endpoint_devices().unwrap_or_default() {
            if known.contains(&link.index) {
                continue;
            }
            tracing::warn!(device = link.name, owner, "a device that no endpoint claims is removed");
            let removed = villus_net::Rtnl::open().and_then(|mut node| node.delete_link(link.index));
            if let Err(error) = removed {
                tracing::warn!(device = link.name, %error, "it stays");
            }
        }
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

fn restore_pool(pool: &mut AddressPool, state: &StateDir, conditions: &mut Conditions) {
    match state.load::<PoolState>(ADDRESSES) {
        // Who has which address now is said by the endpoints' files.
        Ok(Ok(Some(known))) => {
            pool.restore(&PoolState { in_use: Vec::new(), ..known }, Instant::now());
        }
        Ok(Ok(None)) => {}
        Ok(Err(damaged)) => conditions.note(
            "memory of the address pool",
            Some(format!("it was damaged ({}) and lies in {}", damaged.reason, damaged.kept.display())),
        ),
        Err(error) => conditions.note("memory of the address pool", Some(error.to_string())),
    }
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
