//! Adopted devices that go and come back, as those of a virtual machine that is started anew: the endpoint stays. And
//! workloads whose Ethernet addresses nobody has given: they are learned.

use std::collections::BTreeMap;
use std::net::IpAddr;

use villus_api::ApiResult;
use villus_api::model::EndpointState;
use villus_net::{
    AdoptSpec, Rtnl, adopt_interface, forget_workload_mac, learn_workload_mac, restore_host_side,
};

use super::create::{gone, refused_device};
use crate::node::Node;
use crate::state::Device;

/// What is said while its device is not there.
pub(super) const MISSING: &str = "device missing";

impl Node {
    /// Whether an endpoint's device is somebody else's, who may make it again.
    pub fn is_adopted(&self, id: u16) -> bool {
        let endpoint = self.endpoints.get(&id);
        endpoint.and_then(|e| e.file.device.as_ref()).is_some_and(Device::is_adopted)
    }

    /// An adopted device is gone: nobody reaches the endpoint, whose identity, addresses and name stay its own.
    pub fn device_missing(&mut self, id: u16) {
        self.wait_settled(id);
        let Some(endpoint) = self.endpoints.get_mut(&id) else { return };
        let addresses = endpoint.file.addresses.clone();
        let Some(device) = endpoint.file.device.as_mut().and_then(Device::adopted_mut) else { return };
        let index = std::mem::take(&mut device.index);
        let name = device.device.clone();
        if device.learned {
            device.workload_mac = None;
        }
        endpoint.missing = true;
        endpoint.enter(EndpointState::DeviceMissing, format!("{MISSING}: {name}"));
        let mut errors = self.uninstall(id, Some(index), &addresses);
        let mut note = |result: villus_datapath::Result<()>| {
            errors.extend(result.err().map(|error| error.to_string()));
        };
        note(self.kernel.flows.purge(&addresses).map(drop));
        note(self.kernel.mappings.purge(&addresses).map(drop));
        note(self.kernel.policies.remove(id));
        self.untrack(id);
        for error in errors {
            tracing::warn!(endpoint = id, error, "what was left of an endpoint whose device is gone");
        }
        self.save_endpoint(id);
        self.note_missing(id, None);
    }

    /// Says what keeps an endpoint from its device.
    fn note_missing(&mut self, id: u16, why: Option<String>) {
        let name = self.endpoints.get(&id).filter(|e| e.missing).and_then(|e| e.file.device.as_ref());
        let said = name.map(|device| match why {
            None => format!("{MISSING}: {} was adopted and is not there; it is waited for", device.name()),
            Some(why) => format!("{MISSING}: it is there, but {why}"),
        });
        self.conditions.note(&format!("device of endpoint {id}"), said);
    }

    /// Takes up the devices that endpoints miss and that are there again.
    pub fn find_missing(&mut self) {
        let missing: Vec<(u16, String)> = self
            .endpoints
            .values()
            .filter(|e| e.missing)
            .filter_map(|e| Some((e.id(), e.file.device.as_ref()?.name().to_owned())))
            .collect();
        if missing.is_empty() || !self.sources.complete {
            return;
        }
        let Ok(mut node) = Rtnl::open() else { return };
        for (id, name) in missing {
            match node.link_by_name(&name) {
                Ok(Some(_)) => {
                    let failed = self.take_again(id).err().map(|error| error.to_string());
                    if failed.is_some() {
                        for error in self.let_go_again(id) {
                            tracing::warn!(
                                endpoint = id,
                                error,
                                "what was left of a device that was not fit"
                            );
                        }
                    }
                    self.note_missing(id, failed);
                }
                Ok(None) => self.note_missing(id, None),
                Err(error) => self.note_missing(id, Some(error.to_string())),
            }
        }
    }

    /// As when it was adopted first: its policy, then what the stack and the path know of it, its programs last.
    fn take_again(&mut self, id: u16) -> ApiResult<()> {
        let sources: Vec<IpAddr> = self.network.router_ips().collect();
        let taken = self.taken_devices();
        let endpoint = self.endpoints.get_mut(&id).ok_or_else(|| gone(id))?;
        let addresses = endpoint.file.addresses.clone();
        let boot = self.boot.clone();
        let Some(device) = endpoint.file.device.as_mut().and_then(Device::adopted_mut) else { return Ok(()) };
        let spec = AdoptSpec {
            device: &device.device.clone(),
            owner: &device.owner.clone(),
            addresses: &addresses,
            workload_mac: device.workload_mac.filter(|_| !device.learned),
            host_sources: &sources,
        };
        *device = adopt_interface(&spec, &taken).map_err(refused_device)?;
        let index = device.index;
        endpoint.file.boot_id = boot;
        endpoint.missing = false;
        endpoint.device_up = true;
        self.track(id);
        self.follow_policies();
        self.fill_policy(id)?;
        self.claim_addresses(id);
        self.install(id).map_err(villus_api::ApiError::internal)?;
        self.kernel.attacher().attach_endpoint(index).map_err(villus_api::ApiError::internal)?;
        if let Some(endpoint) = self.endpoints.get_mut(&id) {
            endpoint.enter(EndpointState::Ready, "its device is there again");
        }
        self.save_endpoint(id);
        tracing::info!(endpoint = id, interface = index, "the device of an endpoint is there again");
        Ok(())
    }

    /// Undoes what [`Self::take_again`] did before it failed; the endpoint goes on missing its device.
    fn let_go_again(&mut self, id: u16) -> Vec<String> {
        let Some(endpoint) = self.endpoints.get(&id).filter(|e| !e.missing) else { return Vec::new() };
        let Some(Device::Adopted(device)) = endpoint.file.device.clone() else { return Vec::new() };
        let mut errors = self.kernel.attacher().detach_endpoint(device.index);
        if let Err(failed) = villus_net::release_interface(&device) {
            errors.extend(failed.0.iter().map(ToString::to_string));
        }
        self.device_missing(id);
        errors
    }

    /// Which devices are some endpoint's, by index.
    pub(super) fn taken_devices(&self) -> BTreeMap<u32, String> {
        let known = self.endpoints.values().filter(|e| !e.missing);
        known.filter_map(|e| Some((e.file.device.as_ref()?.index(), e.id().to_string()))).collect()
    }

    /// Takes up the Ethernet addresses that workloads have said meanwhile.
    pub fn learn_macs(&mut self) {
        let unknown: Vec<u16> = self
            .endpoints
            .values()
            .filter(|e| e.is_live() && e.file.device.as_ref().is_some_and(|device| device.mac().is_none()))
            .map(|e| e.id())
            .collect();
        for id in unknown {
            let failed = self.learn_mac(id).err();
            self.conditions.note(&format!("Ethernet address of endpoint {id}"), failed);
        }
    }

    fn learn_mac(&mut self, id: u16) -> Result<(), String> {
        let sources: Vec<IpAddr> = self.network.router_ips().collect();
        let Some(endpoint) = self.endpoints.get_mut(&id) else { return Ok(()) };
        let Some(device) = endpoint.file.device.as_mut().and_then(Device::adopted_mut) else { return Ok(()) };
        let Some(mac) = learn_workload_mac(device).map_err(|error| error.to_string())? else { return Ok(()) };
        let link = Rtnl::open().and_then(|mut node| node.link_by_index(device.index));
        if let Some(link) = link.map_err(|error| error.to_string())? {
            restore_host_side(&link, &device.addresses, Some(mac), &sources)
                .map_err(|error| error.to_string())?;
        }
        device.workload_mac = Some(mac);
        endpoint.note("OK", format!("its Ethernet address is {mac}"));
        self.install(id).map_err(|error| error.to_string())?;
        self.save_endpoint(id);
        Ok(())
    }

    /// What is behind a device was switched off, and what comes after it may have another Ethernet address.
    pub(super) fn unlearn_mac(&mut self, id: u16) {
        let Some(endpoint) = self.endpoints.get_mut(&id) else { return };
        let Some(device) = endpoint.file.device.as_mut().and_then(Device::adopted_mut) else { return };
        if !device.learned || device.workload_mac.take().is_none() {
            return;
        }
        let failed = forget_workload_mac(device).err().map(|error| error.to_string());
        endpoint
            .note("OK", "what is behind its device was switched off: its Ethernet address is learned anew");
        let failed = failed.or(self.install(id).err().map(|error| error.to_string()));
        self.conditions.note(&format!("Ethernet address of endpoint {id}"), failed);
        self.save_endpoint(id);
    }
}
