//! An endpoint goes: nothing of it is left, and its addresses rest.

use std::net::IpAddr;

use villus_api::model::EndpointState;
use villus_labels::Labels;
use villus_net::{release_interface, remove_endpoint_link};

use super::create::Planned;
use super::word_of;
use crate::node::Node;
use crate::state::Device;

impl Node {
    /// Removes an endpoint, past errors, which are returned together with the labels whose identity it gives back.
    pub fn remove(&mut self, id: u16) -> Option<(Labels, Vec<String>)> {
        let endpoint = self.endpoints.get_mut(&id)?;
        endpoint.enter(EndpointState::Disconnecting, "deleted");
        // What is gone was taken down, and its addresses may be another's by now.
        let there = endpoint.gone_since.is_none();
        let mut errors = if there { self.take_down(id) } else { Vec::new() };
        let endpoint = self.endpoints.remove(&id)?;
        self.announce_ports([endpoint.identity()]);
        self.follow_policies();
        if there {
            endpoint.give_back(&mut self.pool, &[]);
        }
        if let Err(error) = self.state.remove_endpoint(id) {
            errors.push(format!("its file cannot be removed: {error}"));
        }
        self.save_pool();
        self.end_deeds(id);
        self.conditions.forget_endpoint(id);
        // Its slot holds an empty map again.
        self.ready.insert(id);
        self.wake.prepare.notify_one();
        Some((endpoint.identity_labels, errors))
    }

    /// Takes an endpoint out of the kernel and off its device; id, identity and addresses stay its own.
    pub fn take_down(&mut self, id: u16) -> Vec<String> {
        self.wait_settled(id);
        let Some(endpoint) = self.endpoints.get_mut(&id) else { return Vec::new() };
        let addresses = endpoint.file.addresses.clone();
        let device = endpoint.file.device.take();
        // The number of a device that is gone may be another's by now.
        let device = device.filter(|_| !endpoint.missing);
        let mut errors = self.uninstall(id, device.as_ref().map(Device::index), &addresses);
        if let Some(device) = &device {
            errors.extend(self.kernel.attacher().detach_endpoint(device.index()));
            let released = match device {
                Device::Made(link) => remove_endpoint_link(link),
                Device::Adopted(link) => release_interface(link),
            };
            if let Err(failed) = released {
                errors.extend(failed.0.iter().map(ToString::to_string));
            }
        }
        let mut note = |result: villus_datapath::Result<()>| {
            if let Err(error) = result {
                errors.push(error.to_string());
            }
        };
        note(self.kernel.flows.purge(&addresses).map(drop));
        note(self.kernel.mappings.purge(&addresses).map(drop));
        note(self.kernel.policies.remove(id));
        self.unclaim_addresses(id);
        self.untrack(id);
        errors
    }

    /// Nobody finds the endpoint any more: not by its device, nor by its addresses, nor by its number.
    pub(super) fn uninstall(&self, id: u16, index: Option<u32>, addresses: &[IpAddr]) -> Vec<String> {
        let maps = &self.kernel.maps;
        let slot = u32::from(id);
        let mut results = Vec::new();
        if let Some(index) = index {
            results.push(maps.devices.remove(&index).map(drop));
        }
        for address in addresses {
            results.push(match address {
                IpAddr::V4(v4) => maps.addrs4.remove(&word_of(*v4)).map(drop),
                IpAddr::V6(v6) => maps.addrs6.remove(&v6.octets()).map(drop),
            });
        }
        results.push(maps.endpoints.insert(&slot, &villus_abi::Endpoint::default()));
        results.into_iter().filter_map(Result::err).map(|error| error.to_string()).collect()
    }

    /// Gives up an endpoint that could not be made; what waited in its place waits again, with the addresses that it had.
    /// Those of an endpoint that had no device yet do not rest: nothing was sent by them. Returns the labels whose identity
    /// is given back because somebody deleted it meanwhile, and what waited with it.
    pub fn abandon(&mut self, planned: Planned) -> Option<Labels> {
        let Some(endpoint) = self.planned(&planned) else { return planned.held() };
        let unused = endpoint.file.device.is_none();
        let Planned { id, before, addresses, .. } = planned;
        if let Some((_, errors)) = self.remove(id) {
            for error in errors {
                tracing::warn!(endpoint = id, error, "what was left of a failed endpoint");
            }
        }
        for standing in addresses.into_iter().filter(|standing| unused || standing.is_held()) {
            let address = standing.address();
            if let Err(error) = self.pool.put_back(standing) {
                tracing::warn!(endpoint = id, %address, %error, "an address is not put back");
            }
        }
        self.save_pool();
        let before = before?;
        let waits = before.pending_until.is_some();
        self.endpoints.insert(id, before);
        if waits {
            self.save_endpoint(id);
        }
        None
    }
}
