//! The node's own network: pools, router addresses, forwarding, masquerading, uplinks.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use villus_config::Config;
use villus_identity::{AddressPool, Family, PoolError};
use villus_net::{
    DeviceChoice, Journal, Masquerade, NetError, NodeAddress, NodeNetwork, NodeState, ROUTER_DEVICE,
    ROUTER_PEER, Recorder, RouterDevice, SystemPaths, TUNNEL_DEVICE, TUNNEL_OVERHEAD, Tunnel, Uplink,
    Uplinks,
};

use crate::AgentError;
use crate::kernel::masquerades;
use crate::masquerade::Masquerading;
use crate::state::StateDir;

/// Where the changes to the node are written down.
pub(crate) const JOURNAL: &str = "node-journal.json";
const POOLS: &str = "pools.json";
const DEFAULT_MTU: u32 = 1500;
/// What IPv6 asks of every network.
const LEAST_MTU: u32 = 1280;

/// The prefixes that endpoints get addresses of. Once chosen they are kept on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Prefixes {
    #[serde(default)]
    pub ipv4: Option<Ipv4Net>,
    #[serde(default)]
    pub ipv6: Option<Ipv6Net>,
}

/// The node's network as it was set up.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    pub prefixes: Prefixes,
    pub router_v4: Option<Ipv4Addr>,
    pub router_v6: Option<Ipv6Addr>,
    pub router: RouterDevice,
    pub choice: DeviceChoice,
    pub uplinks: Uplinks,
    pub addresses: Vec<NodeAddress>,
    /// MTU of endpoints' devices, which is the tunnel's if there is one.
    pub mtu: u32,
    /// Index of the tunnel's device, if packets to other nodes take one.
    pub tunnel: Option<u32>,
    /// The node's own address, IPv4 if it has one, as it was at the start.
    pub primary: Option<IpAddr>,
    /// The addresses by which other nodes reach this one, at most one of each family, IPv4 first.
    pub internal: Vec<IpAddr>,
    /// The table of masquerading, where a family is masqueraded.
    pub masquerading: Option<Arc<Mutex<Masquerading>>>,
    /// What could not be done and harms less than not starting.
    pub problems: Vec<String>,
}

impl Network {
    /// Looks at the node and sets it up; what is changed is written down first.
    ///
    /// `lending` are the devices on which programs of before masquerade until this agent's are attached.
    pub fn set_up(config: &Config, state: &StateDir, lending: &BTreeSet<u32>) -> Result<Self, AgentError> {
        let choice = DeviceChoice::new(config.node.devices.0.iter().map(String::as_str))
            .map_err(|error| AgentError::Option { option: "devices", reason: error.to_string() })?;
        let now = NodeState::read()?;
        let uplinks = now.uplinks(&choice);
        if config.policy.host_only {
            return Self::of_host_alone(config, state, choice, uplinks, &now);
        }
        let node_v4 = config.node.ipv4.or_else(|| as_v4(now.primary_address(&uplinks, true)));
        let prefixes = choose_prefixes(config, state, &now, node_v4)?;
        let routers = AddressPool::new(prefixes.ipv4, prefixes.ipv6, Duration::ZERO).map_err(no_pool)?;
        let (router_v4, router_v6) = (as_v4(routers.router(Family::V4)), as_v6(routers.router(Family::V6)));
        if config.routing.tunnel && node_v4.is_none() {
            let reason =
                "tunnels run over IPv4, and this node has no IPv4 address; set ipv4-node, or `native`";
            return Err(AgentError::Option { option: "routing-mode", reason: reason.into() });
        }
        let overhead = if config.routing.tunnel { TUNNEL_OVERHEAD } else { 0 };
        let outer = config.node.mtu.unwrap_or_else(|| least_mtu(&uplinks));
        let mtu = (outer - overhead).max(LEAST_MTU);
        let network = NodeNetwork {
            router_v4,
            router_v6,
            pools: prefixes.all(),
            mtu,
            uplinks: uplinks.used.iter().map(|uplink| uplink.name.clone()).collect(),
            system: SystemPaths::default(),
        };
        let router = with_journal(state, |recorder| network.apply(recorder))?;
        let tunnel = match config.routing.tunnel {
            true => Some(make_tunnel(config, mtu, state)?),
            false => {
                villus_net::remove_tunnel()?;
                None
            }
        };
        let mut problems = Vec::new();
        let (masquerading, made) = match masquerade(config, &prefixes, router_v4, router_v6) {
            Some(mut wanted) => {
                if masquerades(config) {
                    wanted.left.clone_from(lending);
                }
                let (table, made) = Masquerading::new(wanted);
                (Some(Arc::new(Mutex::new(table))), made)
            }
            None => (None, villus_net::remove_masquerade()),
        };
        if let Err(error) = made {
            problems.push(format!("masquerading: {error}"));
        }
        // Again, with the router's addresses.
        let now = NodeState::read()?;
        let primary = node_v4
            .map(IpAddr::from)
            .or(config.node.ipv6.map(IpAddr::from))
            .or_else(|| now.primary_address(&uplinks, false));
        let addresses = now.node_addresses(&uplinks);
        let internal = internal(config, &now, &uplinks);
        Ok(Self {
            prefixes,
            router_v4,
            router_v6,
            router,
            choice,
            uplinks,
            addresses,
            mtu,
            tunnel,
            primary,
            internal,
            masquerading,
            problems,
        })
    }

    /// A machine without endpoints is only looked at: nothing of it is changed.
    fn of_host_alone(
        config: &Config,
        state: &StateDir,
        choice: DeviceChoice,
        uplinks: Uplinks,
        now: &NodeState,
    ) -> Result<Self, AgentError> {
        let was_node =
            matches!(state.load::<Journal>(JOURNAL), Ok(Ok(Some(journal))) if !journal.changes().is_empty());
        if was_node {
            let reason = "this machine was set up for endpoints; `villus cleanup` undoes that (and forgets \
                          endpoints and imported policies), then start again";
            return Err(AgentError::Option { option: "host-only", reason: reason.into() });
        }
        let (v4, v6) = (config.node.ipv4.map(IpAddr::from), config.node.ipv6.map(IpAddr::from));
        Ok(Self {
            prefixes: Prefixes::default(),
            router_v4: None,
            router_v6: None,
            router: RouterDevice::default(),
            choice,
            addresses: now.node_addresses(&uplinks),
            mtu: config.node.mtu.unwrap_or_else(|| least_mtu(&uplinks)),
            tunnel: None,
            primary: v4.or(v6).or_else(|| now.primary_address(&uplinks, false)),
            internal: internal(config, now, &uplinks),
            uplinks,
            masquerading: None,
            problems: Vec::new(),
        })
    }

    /// Looks at the node again; says whether uplinks or addresses changed.
    pub fn refresh(&mut self, config: &Config) -> Result<bool, NetError> {
        let now = NodeState::read()?;
        let mut uplinks = now.uplinks(&self.choice);
        // An uplink that is switched off stays one, so that its first packet is judged when it is on again.
        for known in &self.uplinks.used {
            let off = now.links.iter().find(|link| link.index == known.index && !link.up);
            if let Some(link) = off.filter(|_| uplinks.used.iter().all(|used| used.index != known.index)) {
                uplinks.used.push(Uplink { name: link.name.clone(), ..known.clone() });
            }
        }
        uplinks.used.sort_by_key(|uplink| uplink.index);
        let addresses = now.node_addresses(&uplinks);
        let internal = internal(config, &now, &uplinks);
        let indices = |uplinks: &[Uplink]| uplinks.iter().map(|u| u.index).collect::<Vec<_>>();
        let changed = indices(&uplinks.used) != indices(&self.uplinks.used)
            || uplinks.used.iter().map(|u| &u.name).ne(self.uplinks.used.iter().map(|u| &u.name))
            || addresses.iter().map(|a| a.ip).ne(self.addresses.iter().map(|a| a.ip))
            || internal != self.internal;
        self.uplinks = uplinks;
        self.addresses = addresses;
        self.internal = internal;
        Ok(changed)
    }

    /// Does for uplinks that came later what [`Self::set_up`] does for those that are there.
    pub fn prepare_uplinks(&self, state: &StateDir) -> Result<(), AgentError> {
        if self.router_v6.is_none() {
            return Ok(());
        }
        let names: Vec<String> = self.uplinks.used.iter().map(|uplink| uplink.name.clone()).collect();
        with_journal(state, |recorder| villus_net::heed_advertisements(&names, recorder))
    }

    /// Makes the tunnel's device again where somebody removed or changed it; says whether it is another one now.
    pub fn restore_tunnel(&mut self, config: &Config, state: &StateDir) -> Result<bool, AgentError> {
        let Some(index) = self.tunnel else { return Ok(false) };
        let now = make_tunnel(config, self.mtu, state)?;
        self.tunnel = Some(now);
        Ok(now != index)
    }

    /// The router's addresses.
    pub fn router_ips(&self) -> impl Iterator<Item = IpAddr> {
        self.router_v4.map(IpAddr::from).into_iter().chain(self.router_v6.map(IpAddr::from))
    }

    /// All addresses of the node, the router's included.
    pub fn host_ips(&self) -> impl Iterator<Item = IpAddr> {
        let routers: Vec<IpAddr> = self.router_ips().collect();
        let others = self.addresses.iter().map(|address| address.ip).filter(|ip| !routers.contains(ip));
        others.collect::<Vec<_>>().into_iter().chain(routers.clone())
    }
}

/// Runs a change of the node with its journal on disk.
fn with_journal<T>(
    state: &StateDir,
    change: impl FnOnce(&mut Recorder<'_>) -> Result<T, NetError>,
) -> Result<T, AgentError> {
    let path = state.path(JOURNAL);
    let mut journal: Journal = match state.load(JOURNAL) {
        Ok(Ok(journal)) => journal.unwrap_or_default(),
        // Kept aside and reported; what it held can be put back by hand only.
        Ok(Err(_)) => Journal::default(),
        Err(source) => return Err(AgentError::File { action: "read", path, source }),
    };
    let mut save = |journal: &Journal| state.save(JOURNAL, journal);
    let mut recorder = Recorder::new(&mut journal, &path, &mut save);
    Ok(change(&mut recorder)?)
}

fn make_tunnel(config: &Config, mtu: u32, state: &StateDir) -> Result<u32, AgentError> {
    let device = Tunnel { port: config.routing.tunnel_port, mtu };
    with_journal(state, |recorder| device.apply(recorder))
}

/// What is masqueraded, if anything is.
fn masquerade(
    config: &Config,
    prefixes: &Prefixes,
    router_v4: Option<Ipv4Addr>,
    router_v6: Option<Ipv6Addr>,
) -> Option<Masquerade> {
    let mut wanted = Masquerade {
        inner_devices: vec!["lxc*".into(), ROUTER_DEVICE.into(), ROUTER_PEER.into(), TUNNEL_DEVICE.into()],
        ..Masquerade::default()
    };
    if let Some(pool) = prefixes.ipv4.filter(|_| config.ipv4.masquerade && router_v4.is_some()) {
        wanted.pools.push(pool.into());
        wanted.native.extend(config.ipv4.native_routing.map(IpNet::from));
    }
    if let Some(pool) = prefixes.ipv6.filter(|_| config.ipv6.masquerade && router_v6.is_some()) {
        wanted.pools.push(pool.into());
        wanted.native.extend(config.ipv6.native_routing.map(IpNet::from));
    }
    (!wanted.pools.is_empty()).then_some(wanted)
}

impl Prefixes {
    /// The pools of both families.
    pub fn all(&self) -> Vec<IpNet> {
        self.ipv4.map(IpNet::from).into_iter().chain(self.ipv6.map(IpNet::from)).collect()
    }
}

fn choose_prefixes(
    config: &Config,
    state: &StateDir,
    now: &NodeState,
    node: Option<Ipv4Addr>,
) -> Result<Prefixes, AgentError> {
    let path = state.path(POOLS);
    let kept: Prefixes = match state.load(POOLS) {
        Ok(Ok(kept)) => kept.unwrap_or_default(),
        Ok(Err(_)) => Prefixes::default(),
        Err(source) => return Err(AgentError::File { action: "read", path, source }),
    };
    let mut chosen = Prefixes::default();
    if config.ipv4.enabled {
        chosen.ipv4 = config.ipv4.range.or(kept.ipv4);
        if chosen.ipv4.is_none() {
            let taken: Vec<Ipv4Net> = now
                .routes
                .iter()
                .filter_map(|route| match route.destination {
                    IpNet::V4(net) if net.prefix_len() > 0 => Some(net),
                    _ => None,
                })
                .collect();
            let pool = villus_config::net::auto_ipv4_pool(node, &taken);
            chosen.ipv4 = Some(pool.ok_or_else(|| AgentError::Option {
                option: "ipv4-range",
                reason: "nothing of 10.0.0.0/8 is free on this node; set a prefix".into(),
            })?);
        }
    }
    if config.ipv6.enabled {
        chosen.ipv6 =
            config.ipv6.range.or(kept.ipv6).or_else(|| Some(villus_config::net::auto_ipv6_pool(node)));
    }
    let remembered = Prefixes { ipv4: chosen.ipv4.or(kept.ipv4), ipv6: chosen.ipv6.or(kept.ipv6) };
    if remembered != kept {
        state.save(POOLS, &remembered).map_err(|source| AgentError::File {
            action: "write",
            path,
            source,
        })?;
    }
    Ok(chosen)
}

/// A prefix that can be no pool.
pub(crate) fn no_pool(error: PoolError) -> AgentError {
    let option = match error {
        PoolError::BadPrefix { option, .. } => option,
        _ => "ipv4-range",
    };
    AgentError::Option { option, reason: error.to_string() }
}

/// The addresses by which other nodes reach this one: those of the options, else those of the best default routes.
fn internal(config: &Config, now: &NodeState, uplinks: &Uplinks) -> Vec<IpAddr> {
    let v4 = config.node.ipv4.map(IpAddr::from).or_else(|| now.primary_address(uplinks, true));
    let v6 = config.node.ipv6.map(IpAddr::from).or_else(|| now.primary_address(uplinks, false));
    v4.into_iter().chain(v6).collect()
}

fn as_v4(address: Option<IpAddr>) -> Option<Ipv4Addr> {
    match address? {
        IpAddr::V4(v4) => Some(v4),
        IpAddr::V6(_) => None,
    }
}

fn as_v6(address: Option<IpAddr>) -> Option<Ipv6Addr> {
    match address? {
        IpAddr::V6(v6) => Some(v6),
        IpAddr::V4(_) => None,
    }
}

/// What fits through every uplink.
fn least_mtu(uplinks: &Uplinks) -> u32 {
    uplinks.used.iter().map(|uplink| uplink.mtu).min().unwrap_or(DEFAULT_MTU).max(LEAST_MTU)
}
