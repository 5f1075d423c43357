//! The kernel as the agent holds it: pins, maps, programs, and what they should say.

mod attach;
mod config;
mod equal;
mod ipcache;
mod programs;
mod sizes;

use std::collections::BTreeSet;
use std::sync::Arc;

use villus_abi::config::{FLAG_MASQUERADE_V4, FLAG_MASQUERADE_V6};
use villus_abi::names;
use villus_config::Config;
use villus_config::config::AttachMode as Choice;
use villus_datapath::{
    AttachMode, Features, Flows, Hook, Links, Mappings, Maps, OldFlows, Pins, PolicyMaps, now, refuse_cilium,
    resize,
};
use villus_net::NodeState;

use crate::AgentError;

pub(crate) use attach::Attacher;
pub(crate) use config::{Runtime, Told, config_of, masquerades};
pub(crate) use equal::{Drift, Wanted, make_equal};
pub(crate) use ipcache::IpcacheMap;
pub(crate) use programs::Programs;

/// Pins, maps and programs of this node.
pub(crate) struct Kernel {
    pub pins: Arc<Pins>,
    pub maps: Arc<Maps>,
    programs: Programs,
    pub policies: PolicyMaps,
    pub flows: Flows,
    /// Of masqueraded packets.
    pub mappings: Mappings,
    /// What the search for a port to lend begins with.
    pub nat_seed: u32,
    pub mode: AttachMode,
    pub features: Features,
    /// Flow maps of before a resize, until all programs are replaced.
    pub old_flows: Option<OldFlows>,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel").field("pins", &self.pins.root()).field("mode", &self.mode).finish()
    }
}

impl Kernel {
    /// Refuses what cannot be worked with before anything is touched, then opens or makes everything. Programs that are
    /// attached go on with what they have.
    pub fn open(config: &Config) -> Result<Self, AgentError> {
        let begin = std::time::Instant::now();
        let features = Features::probe();
        features.require()?;
        let mode = attach_mode(config, &features)?;
        refuse_cilium(&config.paths.bpf_root)?;
        tracing::debug!(took = ?begin.elapsed(), "the kernel can be worked with");
        let pins = Arc::new(Pins::open(&config.paths.bpf_root)?);
        let wanted = sizes::of(config);
        for map in resize(&pins, &wanted, now())? {
            tracing::info!(map = map.pin, from = map.from, to = map.to, copied = map.copied, "another size");
        }
        let maps = Arc::new(Maps::open(&pins, &wanted)?);
        if maps.nat.is_none() {
            // Programs that masquerade keep theirs until they are replaced.
            for pin in [names::NAT4, names::NAT6, names::MASQUERADE, names::UPLINKS] {
                pins.remove(pin)?;
            }
        }
        tracing::debug!(took = ?begin.elapsed(), "maps are open");
        // Drawn once, so that a flow that was forgotten gets the same port again.
        let nat_seed = maps.config.get(&0)?.map_or(0, |config| config.nat_seed);
        let nat_seed = if nat_seed == 0 { fastrand::u32(1..) } else { nat_seed };
        let programs = Programs::load(pins.clone(), maps.clone(), config.routing.tunnel)?;
        let policies = PolicyMaps::open(pins.clone(), maps.clone(), config.datapath.policy_map_max)?;
        let flows = Flows::new(maps.clone());
        let mappings = Mappings::new(maps.clone());
        Ok(Self {
            pins,
            maps,
            programs,
            policies,
            flows,
            mappings,
            nat_seed,
            mode,
            features,
            old_flows: None,
        })
    }

    /// The programs, perhaps still on their way.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// Whether our programs masquerade, as far as is known while they are on their way.
    pub fn masquerades(&self) -> bool {
        self.maps.nat.is_some() && self.programs.refused().is_none()
    }

    /// Devices on which programs of an agent before this one masquerade.
    pub fn lending(&self) -> Result<BTreeSet<u32>, AgentError> {
        let flags = self.maps.config.get(&0)?.map_or(0, |config| config.flags);
        if self.maps.nat.is_none() || flags & (FLAG_MASQUERADE_V4 | FLAG_MASQUERADE_V6) == 0 {
            return Ok(BTreeSet::new());
        }
        let indices: Vec<u32> = NodeState::read()?.links.iter().map(|link| link.index).collect();
        let attached = self.links().list(&indices)?;
        let lends = attached.iter().filter(|a| a.alive && a.hook == Hook::ToNetwork);
        Ok(lends.map(|attachment| attachment.ifindex).collect())
    }

    /// The attachments of this node.
    pub fn links(&self) -> Links<'_> {
        Links::new(&self.pins)
    }

    /// What attaches programs.
    pub fn attacher(&self) -> Attacher {
        Attacher { pins: self.pins.clone(), programs: self.programs.clone(), mode: self.mode }
    }
}

fn attach_mode(config: &Config, features: &Features) -> Result<AttachMode, AgentError> {
    match config.datapath.attach_mode {
        Choice::Tc => Ok(AttachMode::Tc),
        Choice::Tcx if !features.has_tcx() => Err(AgentError::Option {
            option: "attach-mode",
            reason: format!("this kernel ({}) has no TCX; use `tc` or `auto`", features.release),
        }),
        Choice::Tcx => Ok(AttachMode::Tcx),
        Choice::Auto if features.has_tcx() => Ok(AttachMode::Tcx),
        Choice::Auto => Ok(AttachMode::Tc),
    }
}
