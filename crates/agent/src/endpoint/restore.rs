//! Endpoints of before the agent's start: taken over as they are, or kept until they are created again.

use std::time::Instant;

use villus_api::model::EndpointState;
use villus_net::{Link, NodeState};

use super::missing::MISSING;
use super::{Endpoint, Labelled, pool_owner};
use crate::node::Node;
use crate::state::{Damaged, Device, EndpointFile};

/// What the files said.
#[derive(Debug, Default)]
pub(crate) struct Restored {
    /// Endpoints that are at work.
    pub live: Vec<u16>,
    /// Endpoints that wait to be created again.
    pub pending: Vec<u16>,
    /// Endpoints whose devices went while no agent was there.
    pub gone: Vec<u16>,
    /// Files that could not be read.
    pub damaged: Vec<Damaged>,
}

impl Node {
    /// Reads the endpoints' files and takes over what is there. The kernel is not touched yet.
    pub fn load_endpoints(&mut self) -> Result<Restored, crate::AgentError> {
        let error = |source| crate::AgentError::File { action: "read", path: self.state.endpoints(), source };
        let (files, damaged) = self.state.load_endpoints().map_err(error)?;
        let links = NodeState::read()?.links;
        let mut restored = Restored { damaged, ..Restored::default() };
        for file in files {
            self.load(file, &links, &mut restored);
        }
        self.load_pool();
        Ok(restored)
    }

    fn load(&mut self, mut file: EndpointFile, links: &[Link], restored: &mut Restored) {
        let id = file.id;
        let labelled = match self.rules.reread(&file.labels) {
            Ok(labelled) => labelled,
            Err(reason) => {
                tracing::error!(endpoint = id, reason, "the labels of its file are not valid");
                restored.gone.push(id);
                return;
            }
        };
        let owner = pool_owner(&file);
        for address in &file.addresses {
            if let Err(error) = self.pool.allocate(*address, &owner, Instant::now()) {
                tracing::info!(endpoint = id, %address, %error, "an address of before is not of the pool");
            }
        }
        let reset = !self.config.endpoints.keep_config && file.audit.is_some_and(|audit| !audit.is_none());
        if reset {
            file.audit = None;
        }
        let same_boot = file.boot_id == self.boot;
        let link = device_of(&file, links).filter(|_| same_boot && self.config.endpoints.restore);
        let waits = file.device.as_ref().is_some_and(Device::is_adopted) && self.config.endpoints.restore;
        if waits && link.is_none() {
            return self.put_missing(file, labelled, reset);
        }
        if !same_boot && self.config.endpoints.restore {
            file.device = None;
            let mut endpoint = Endpoint::new(file, labelled, EndpointState::Restoring);
            endpoint.pending_until = Some(Instant::now() + self.config.endpoints.restore_grace);
            endpoint.note("OK", "the node was started anew: it waits to be created again");
            self.put_restored(endpoint, reset);
            restored.pending.push(id);
            return;
        }
        match (&mut file.device, link) {
            (Some(device), Some(link)) => {
                device.follow(link);
                restored.live.push(id);
            }
            _ => restored.gone.push(id),
        }
        let mut endpoint = Endpoint::new(file, labelled, EndpointState::Restoring);
        // It may have been switched off and on while no agent was there.
        endpoint.device_up = false;
        self.put_restored(endpoint, reset);
    }

    /// Takes over an endpoint whose adopted device is not there, or is another one of that name.
    fn put_missing(&mut self, mut file: EndpointFile, labelled: Labelled, reset: bool) {
        if let Some(device) = file.device.as_mut().and_then(Device::adopted_mut) {
            device.index = 0;
            device.workload_mac = device.workload_mac.filter(|_| !device.learned);
        }
        let mut endpoint = Endpoint::new(file, labelled, EndpointState::DeviceMissing);
        endpoint.missing = true;
        endpoint.note("OK", MISSING);
        self.put_restored(endpoint, reset);
    }

    /// Takes over an endpoint; without `keep-config` its own options end with the agent that set them.
    fn put_restored(&mut self, mut endpoint: Endpoint, reset: bool) {
        let id = endpoint.id();
        endpoint.audited = self.audit_of(&endpoint.labels);
        if reset {
            endpoint.note("OK", "its audit mode ended with the restart, for keep-config is off");
            tracing::warn!(endpoint = id, "its audit mode ended with the restart, for keep-config is off");
        }
        self.endpoints.insert(id, endpoint);
        if reset {
            self.save_endpoint(id);
        }
    }

    /// Writes what restored endpoints need into the kernel, each map in one go; what is right already is not touched. Their
    /// policy maps are to be right before.
    pub fn install_restored(&mut self) -> villus_datapath::Result<()> {
        let wanted = self.wanted_records();
        let there = self.kernel.maps.endpoints.entries()?;
        let writes: Vec<(u32, villus_abi::Endpoint)> = there
            .into_iter()
            .filter_map(|(slot, found)| {
                let want = wanted.get(&slot).copied().unwrap_or_default();
                (want != found).then_some((slot, want))
            })
            .collect();
        if !writes.is_empty() {
            self.kernel.maps.endpoints.insert_all(&writes)?;
        }
        crate::kernel::make_equal(&self.kernel.maps.addrs4, &self.wanted_addrs4())?;
        crate::kernel::make_equal(&self.kernel.maps.addrs6, &self.wanted_addrs6())?;
        crate::kernel::make_equal(&self.kernel.maps.devices, &self.wanted_devices())?;
        Ok(())
    }
}

/// The device that an endpoint's file describes, if it is there. It may have another name by now.
fn device_of<'a>(file: &EndpointFile, links: &'a [Link]) -> Option<&'a Link> {
    let device = file.device.as_ref()?;
    links.iter().find(|link| {
        link.index == device.index()
            && (link.mac == Some(device.host_mac())
                || matches!(device, Device::Adopted(_)) && link.name == device.name())
    })
}
