//! The kernel as the agent holds it: pins, maps, programs, and what they should say.

mod config;
mod equal;
mod ipcache;
mod programs;
mod sizes;

use std::sync::Arc;

use villus_config::Config;
use villus_config::config::AttachMode as Choice;
use villus_datapath::{
    AttachMode, Features, Flows, Hook, Links, Maps, OldFlows, Pins, PolicyMaps, Resized, now, refuse_cilium,
    resize,
};

use crate::AgentError;

pub(crate) use config::{Runtime, config_of};
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
    pub mode: AttachMode,
    pub features: Features,
    pub resized: Vec<Resized>,
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
        let resized = resize(&pins, &wanted, now())?;
        let maps = Arc::new(Maps::open(&pins, &wanted)?);
        tracing::debug!(took = ?begin.elapsed(), resized = resized.len(), "maps are open");
        let programs = Programs::load(pins.clone(), maps.clone())?;
        let policies = PolicyMaps::open(pins.clone(), maps.clone(), config.datapath.policy_map_max)?;
        let flows = Flows::new(maps.clone());
        Ok(Self { pins, maps, programs, policies, flows, mode, features, resized, old_flows: None })
    }

    /// The programs, perhaps still on their way.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// The attachments of this node.
    pub fn links(&self) -> Links<'_> {
        Links::new(&self.pins)
    }

    /// Makes an endpoint's device run the two programs of endpoints, the way that the options say.
    pub fn attach_endpoint(&self, ifindex: u32) -> villus_datapath::Result<()> {
        self.attach_endpoint_by(ifindex, self.mode)
    }

    /// As [`Self::attach_endpoint`], the way that is quickest: each TCX link of a new device waits for a grace period of the
    /// kernel, a filter of clsact for nothing. Says whether it is another way than the options ask for.
    pub fn attach_quickly(&self, ifindex: u32) -> villus_datapath::Result<bool> {
        self.attach_endpoint_by(ifindex, AttachMode::Tc)?;
        Ok(self.mode != AttachMode::Tc)
    }

    fn attach_endpoint_by(&self, ifindex: u32, mode: AttachMode) -> villus_datapath::Result<()> {
        let object = self.programs.wait()?;
        // To the endpoint first: once it can send, answers are judged as well.
        self.links().attach(object, Hook::ToEndpoint, ifindex, mode)?;
        self.links().attach(object, Hook::FromEndpoint, ifindex, mode)?;
        Ok(())
    }

    /// Takes our programs off an endpoint's device.
    pub fn detach_endpoint(&self, ifindex: u32) -> Vec<String> {
        let links = self.links();
        [Hook::FromEndpoint, Hook::ToEndpoint]
            .into_iter()
            .filter_map(|hook| links.detach(hook, ifindex).err())
            .map(|error| error.to_string())
            .collect()
    }

    /// Makes an uplink run its program.
    pub fn attach_uplink(&self, ifindex: u32) -> villus_datapath::Result<()> {
        self.links().attach(self.programs.wait()?, Hook::FromNetwork, ifindex, self.mode).map(drop)
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
