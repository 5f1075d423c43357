//! The state of the agent: everything that its operations share, behind one lock.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use villus_abi::Local;
use villus_abi::endpoint::{ADDR_GATEWAY, SLOT_HOST};
use villus_api::model::DaemonConfigurationSpec;
use villus_config::Config;
use villus_identity::{AddressPool, Claim, Ipcache, Mapping, Nodes, PoolState, Rank, Remote};
use villus_kvstore::Header;
use villus_labels::{Labels, NumericIdentity, cidr_labels, source};
use villus_policy::Repository;
use villus_table::{Changes, Reconciler, Source};

use crate::between::Wrapping;
use crate::cluster::{Calendar, ClusterMesh, Feed, Freeze, Learned};
use crate::conditions::Conditions;
use crate::endpoint::{Endpoint, LabelRules, owner_key, word_of};
use crate::host;
use crate::identities::IdentityRoom;
use crate::kernel::{IpcacheMap, Kernel, Runtime, Told, Wanted, config_of};
use crate::nat::Nat;
use crate::network::Network;
use crate::policy::{Answers, ClusterPolicies, Selected, Sources, Waiting};
use crate::reconcile::Counts;
use crate::state::StateDir;
use crate::wake::Wake;

/// Where the pool's memory is kept.
pub(crate) const ADDRESSES: &str = "addresses.json";

/// How long what could not be written down waits for the next attempt.
const WRITE_AGAIN: Duration = Duration::from_secs(5);

/// What could not be written down and is to be.
#[derive(Debug, Default)]
pub(crate) struct Unwritten {
    endpoints: BTreeSet<u16>,
    is_pool: bool,
    again: Option<Instant>,
}

/// Everything that operations share.
pub(crate) struct Node {
    pub config: Arc<Config>,
    pub runtime: Runtime,
    /// Name of the cluster and of this node.
    pub cluster: String,
    pub name: String,
    pub boot: String,
    pub state: StateDir,
    pub kernel: Kernel,
    pub network: Network,
    pub nat: Nat,
    pub rules: LabelRules,
    pub endpoints: BTreeMap<u16, Endpoint>,
    pub repository: Repository,
    /// Which policies decided what was asked of late.
    pub answers: Arc<Answers>,
    pub sources: Sources,
    /// Changes of policies that wait to be confirmed.
    pub waiting: Waiting,
    pub identities: Arc<IdentityRoom>,
    pub identity_feed: Changes<NumericIdentity, Labels>,
    /// Prefixes that policies name and that have a reference to their number.
    pub prefixes: BTreeMap<IpNet, NumericIdentity>,
    /// All nodes, this one among them.
    pub nodes: Nodes,
    /// What others say in the shared store, if there is one; what of it was not listed yet, and what waits for that.
    pub remote: Option<Remote>,
    pub awaited: HashSet<Feed>,
    /// Prefixes of the store that this node may not read, and what the store says to that.
    pub unread: BTreeMap<String, String>,
    /// What could not be written down.
    pub unwritten: Unwritten,
    pub store_source: Option<Source>,
    /// What this agent reads itself of other clusters' stores.
    pub mesh: Option<Arc<ClusterMesh>>,
    /// What its store was when the state of the cluster was written down that this agent began with.
    pub mesh_seen: Option<Header>,
    /// Whether what others say is applied.
    pub freeze: Freeze,
    /// Whether this machine's calendar is that of the others.
    pub calendar: Calendar,
    /// When the state of the cluster was written down that this agent began with.
    pub snapshot_saved: Option<jiff::Timestamp>,
    /// What was learned of the cluster since its state was written down, if there is a store that is shared.
    pub learned: Option<Learned>,
    /// Identities that policy knows, and those of which addresses have not been told yet.
    pub known: HashSet<NumericIdentity>,
    pub arrived: Vec<(NumericIdentity, bool)>,
    /// Policies of the shared store, if there is one.
    pub cluster_policies: Option<ClusterPolicies>,
    pub ipcache: Ipcache,
    pub ipcache_sync: Reconciler<IpNet, Claim>,
    /// Not complete until every policy source was read once.
    pub ipcache_source: Option<Source>,
    pub pool: AddressPool,
    pub conditions: Conditions,
    /// Selectors whose endpoints are audited.
    pub audits: Vec<Selected>,
    /// Options that were changed while an agent ran.
    pub changed_options: DaemonConfigurationSpec,
    /// Endpoints whose flows are to be judged again.
    pub rejudge: BTreeSet<u16>,
    /// What the journal of deeds by hand says.
    pub emergency: villus_emergency::State,
    /// First packets may pass.
    pub open: bool,
    pub wake: Arc<Wake>,
    pub started: Instant,
    /// Ids whose slots hold empty policy maps.
    pub ready: BTreeSet<u16>,
    /// Endpoints whose programs are attached, but not the way that the options say; that of which this is being mended,
    /// with what is held meanwhile; and when the last endpoint was made.
    pub unsettled: BTreeSet<u16>,
    pub settling: Option<u16>,
    pub settle_lock: Arc<Mutex<()>>,
    pub last_made: Instant,
    /// The programs of this version are on every device.
    pub attached: bool,
    pub counts: Counts,
    /// The endpoint whose policy map was compared last.
    pub compared_to: u16,
    /// What goes past the host's stack.
    pub wrapping: Wrapping,
    /// The journal as it was last read: length and time of its last change.
    pub journal_seen: Option<(u64, std::time::SystemTime)>,
    /// Numbers of prefixes of before the start were given up.
    pub grace_over: bool,
}

impl Node {
    /// What `villus_addrs4_v1` should hold.
    pub fn wanted_addrs4(&self) -> Wanted<u32, Local> {
        self.locals()
            .filter_map(|(ip, local)| match ip {
                IpAddr::V4(v4) => Some((word_of(v4), local)),
                IpAddr::V6(_) => None,
            })
            .collect()
    }

    /// What `villus_addrs6_v1` should hold.
    pub fn wanted_addrs6(&self) -> Wanted<[u8; 16], Local> {
        self.locals()
            .filter_map(|(ip, local)| match ip {
                IpAddr::V6(v6) => Some((v6.octets(), local)),
                IpAddr::V4(_) => None,
            })
            .collect()
    }

    /// Whose the local addresses are; a later one replaces an earlier one.
    fn locals(&self) -> impl Iterator<Item = (IpAddr, Local)> {
        let routers: Vec<IpAddr> = self.network.router_ips().collect();
        let host = self.network.host_ips().map(move |ip| {
            let flags = if routers.contains(&ip) { ADDR_GATEWAY } else { 0 };
            (ip, Local { slot: SLOT_HOST, flags })
        });
        let endpoints = self.endpoints.values().filter(|endpoint| endpoint.is_live()).flat_map(|endpoint| {
            let local = Local { slot: u32::from(endpoint.id()), flags: 0 };
            endpoint.file.addresses.iter().map(move |ip| (*ip, local))
        });
        host.chain(endpoints)
    }

    /// What `villus_devices_v1` should hold.
    pub fn wanted_devices(&self) -> Wanted<u32, u32> {
        let live = self.endpoints.values().filter(|endpoint| endpoint.is_live());
        live.filter_map(|e| Some((e.file.device.as_ref()?.index(), u32::from(e.id())))).collect()
    }

    /// What `villus_endpoints_v1` should hold in slots that are in use.
    pub fn wanted_records(&self) -> HashMap<u32, villus_abi::Endpoint> {
        self.endpoints.values().filter_map(|e| Some((u32::from(e.id()), e.record()?))).collect()
    }

    /// What the path should be told.
    pub fn wanted_config(&self) -> villus_abi::Config {
        let of = Told {
            host: self.is_host_judged(),
            masquerade: self.kernel.masquerades(),
            seed: self.kernel.nat_seed,
            wrapping: self.wrapping,
        };
        config_of(&self.config, &self.runtime, &self.network, &of)
    }

    /// Tells the path; from now on first packets may pass.
    pub fn write_config(&mut self) -> villus_datapath::Result<()> {
        self.kernel.maps.config.insert(&0, &self.wanted_config())?;
        self.open = true;
        self.follow_devices();
        Ok(())
    }

    /// Claims the addresses of an endpoint for its identity.
    pub fn claim_addresses(&mut self, id: u16) {
        let Some(endpoint) = self.endpoints.get(&id) else { return };
        let owner: Arc<str> = owner_key(id).into();
        let mapping = Mapping::plain(endpoint.identity());
        let mut edit = self.ipcache.edit();
        edit.retain_owned(&owner, |prefix| endpoint.file.addresses.contains(&prefix.addr()));
        for address in &endpoint.file.addresses {
            let claim = Claim { rank: Rank::Local, owner: owner.clone(), revision: 0, mapping };
            edit.upsert(IpNet::from(*address), claim);
        }
        drop(edit);
        self.step_ipcache();
        self.wake.publish.notify_one();
    }

    /// Takes back what an endpoint claims.
    pub fn unclaim_addresses(&mut self, id: u16) {
        let owner = owner_key(id);
        self.ipcache.edit().retain_owned(&owner, |_| false);
        self.step_ipcache();
        self.wake.publish.notify_one();
    }

    /// Claims the node's own addresses, its pools and all that is outside. An address of a pool that no endpoint has is
    /// somebody whose identity has not arrived, never quietly the world.
    pub fn claim_node(&mut self) {
        const OWNER: &str = "node";
        let own: Vec<IpNet> = self.network.host_ips().map(IpNet::from).collect();
        let pools = self.network.prefixes.all();
        let mut edit = self.ipcache.edit();
        edit.retain_owned(OWNER, |prefix| {
            prefix.prefix_len() == 0 || own.contains(&prefix) || pools.contains(&prefix)
        });
        for pool in pools {
            let (owner, mapping) = (OWNER.into(), Mapping::cluster_range());
            edit.upsert(pool, Claim { rank: Rank::Local, owner, revision: 0, mapping });
        }
        let mut claim = |prefix: IpNet, rank, identity| {
            let mapping = Mapping::plain(identity);
            edit.upsert(prefix, Claim { rank, owner: OWNER.into(), revision: 0, mapping });
        };
        for prefix in own {
            claim(prefix, Rank::Local, NumericIdentity::HOST);
        }
        for world in [IpNet::from(ipnet::Ipv4Net::default()), IpNet::from(ipnet::Ipv6Net::default())] {
            if let Some(identity) = NumericIdentity::of_prefix(world) {
                claim(world, Rank::Generated, identity);
            }
        }
        drop(edit);
        self.match_node_by_address();
    }

    /// Where prefixes in policies mean nodes too, the node's own identity has those that cover its addresses among its
    /// labels.
    pub fn match_node_by_address(&mut self) {
        if !self.config.policy.cidr_matches_nodes {
            return;
        }
        let Some(labels) = NumericIdentity::HOST.reserved_labels() else { return };
        let labels = self.network.host_ips().fold(labels, |labels, ip| {
            let covering = cidr_labels(IpNet::from(ip));
            let prefixes = covering.iter().filter(|label| label.source() == source::CIDR);
            prefixes.fold(labels, |labels, label| labels.with(label.clone()))
        });
        self.repository.upsert_identity(NumericIdentity::HOST, &labels);
        if self.sources.complete {
            self.follow_policies();
        }
    }

    /// Brings the kernel's ipcache up to date; what fails is tried again later.
    pub fn step_ipcache(&mut self) {
        let mut target = IpcacheMap(self.kernel.maps.clone());
        loop {
            let step = self.ipcache_sync.step(Instant::now(), &mut target);
            if !step.more {
                self.conditions.set_if("ipcache", step.failing > 0, || {
                    format!("{} prefixes could not be written to the ipcache", step.failing)
                });
                return;
            }
        }
    }

    /// Takes up which addresses rested and who had which. Who has one now is said by the endpoints' files, which are newer and
    /// therefore read before.
    pub fn load_pool(&mut self) {
        let problem = match self.state.load::<PoolState>(ADDRESSES) {
            Ok(Ok(Some(known))) => {
                self.pool.restore(&PoolState { in_use: Vec::new(), ..known }, Instant::now());
                return;
            }
            Ok(Ok(None)) => return,
            Ok(Err(damaged)) => {
                format!("it was damaged ({}) and lies in {}", damaged.reason, damaged.kept.display())
            }
            Err(error) => error.to_string(),
        };
        self.conditions.note("memory of the address pool", Some(problem));
    }

    /// Writes down which addresses rest and who had which; a failure is a condition until it succeeds.
    pub fn save_pool(&mut self) {
        let result = self.state.save(ADDRESSES, &self.pool.state(Instant::now()));
        if result.is_err() {
            self.unwritten.is_pool = true;
            self.unwritten.again.get_or_insert(Instant::now() + WRITE_AGAIN);
        }
        self.conditions.note(
            "addresses of the pool",
            result.err().map(|error| {
                format!("who had which cannot be written: {error}; {}", villus_durable::remedy(&error))
            }),
        );
    }

    /// Tries again to write what could not be written, once that is due.
    pub fn write_again(&mut self, now: Instant) {
        if self.unwritten.again.is_none_or(|due| now < due) {
            return;
        }
        let Unwritten { endpoints, is_pool, .. } = std::mem::take(&mut self.unwritten);
        endpoints.into_iter().for_each(|id| self.save_endpoint(id));
        if is_pool {
            self.save_pool();
        }
    }

    /// Writes an endpoint's file; a failure is a condition until it succeeds.
    pub fn save_endpoint(&mut self, id: u16) {
        let Some(endpoint) = self.endpoints.get(&id) else { return };
        let result = match endpoint.is_host() {
            true => self.state.save(host::FILE, &endpoint.file),
            false => self.state.save_endpoint(&endpoint.file),
        };
        if result.is_err() {
            self.unwritten.endpoints.insert(id);
            self.unwritten.again.get_or_insert(Instant::now() + WRITE_AGAIN);
        }
        self.conditions.note(
            &format!("state of endpoint {id}"),
            result.err().map(|error| {
                format!("its file cannot be written: {error}; {}", villus_durable::remedy(&error))
            }),
        );
    }

    /// The ids that are free, lowest first. One that an operator has opened by hand is not: the deed was not meant for
    /// the next endpoint of that number.
    pub fn free_ids(&self) -> impl Iterator<Item = u16> {
        let most = u16::try_from(self.config.datapath.endpoint_max.saturating_sub(1)).unwrap_or(u16::MAX);
        (1..=most).filter(|id| !self.endpoints.contains_key(id) && !self.has_deeds(*id))
    }
}
