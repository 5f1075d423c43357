//! Devices that change or go without a call.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use villus_api::model::EndpointState;
use villus_net::{Delivery, Link, Rtnl, restore_host_side};

use crate::node::Node;

/// How long an endpoint whose namespace died stays in the list.
const REMEMBERED: Duration = Duration::from_secs(600);

impl Node {
    /// A device is gone: its endpoint is marked, out of the kernel, and its addresses rest. Returns the labels whose
    /// identity it gives back. One that was adopted is waited for.
    pub fn device_gone(&mut self, link: &Link) -> Option<villus_labels::Labels> {
        let id = self.endpoints.values().find(|endpoint| {
            endpoint.is_live()
                && endpoint.file.device.as_ref().is_some_and(|device| device.index() == link.index)
        })?;
        let id = id.id();
        tracing::warn!(endpoint = id, device = link.name, "the device of an endpoint is gone");
        if self.is_adopted(id) {
            self.device_missing(id);
            return None;
        }
        self.mark_gone(id, "its device is gone: the namespace died or somebody removed it")
    }

    /// Marks an endpoint whose device is gone.
    pub fn mark_gone(&mut self, id: u16, why: &str) -> Option<villus_labels::Labels> {
        for error in self.take_down(id) {
            tracing::warn!(endpoint = id, error, "what was left of a vanished endpoint");
        }
        let endpoint = self.endpoints.get_mut(&id)?;
        endpoint.gone_since = Some(Instant::now());
        endpoint.enter(EndpointState::Disconnected, why);
        let labels = endpoint.identity_labels.clone();
        endpoint.give_back(&mut self.pool, &[]);
        if let Err(error) = self.state.remove_endpoint(id) {
            tracing::warn!(endpoint = id, %error, "its file cannot be removed");
        }
        self.save_pool();
        self.conditions.forget_endpoint(id);
        Some(labels)
    }

    /// A device changed: how its endpoint is delivered to, how much it takes and its name may be different, and what was
    /// forgotten while it was switched off comes back.
    pub fn device_changed(&mut self, link: &Link) {
        let sources: Vec<IpAddr> = self.network.router_ips().collect();
        let Some(endpoint) = self.endpoints.values_mut().find(|endpoint| {
            endpoint.is_live() && endpoint.file.device.as_ref().is_some_and(|d| d.index() == link.index)
        }) else {
            return;
        };
        let id = endpoint.id();
        // As it is by now, which may be newer than the event.
        let Ok(Some(link)) = Rtnl::open().and_then(|mut node| node.link_by_index(link.index)) else { return };
        let Some(device) = endpoint.file.device.as_mut() else { return };
        self.conditions.set_if(&format!("device of endpoint {id}"), link.master.is_some(), || {
            let kind = link.master_kind.as_deref().unwrap_or("device");
            format!(
                "{0} is part of a {kind} now, which takes its packets; take it out with `ip link set {0} nomaster`",
                link.name
            )
        });
        let (changed, mac) = (device.follow(&link), device.mac());
        if std::mem::replace(&mut endpoint.device_up, link.up) != link.up {
            let result = restore_host_side(&link, &endpoint.file.addresses, mac, &sources);
            self.conditions
                .note(&format!("routes to endpoint {id}"), result.err().map(|error| error.to_string()));
        }
        if !changed {
            if !link.carrier {
                self.unlearn_mac(id);
            }
            return;
        }
        endpoint.note("OK", format!("delivered to by {:?} through {}", Delivery::of(&link), link.name));
        let result = self.install(id);
        self.conditions
            .note(&format!("record of endpoint {id}"), result.err().map(|error| error.to_string()));
        self.save_endpoint(id);
        if !link.carrier {
            self.unlearn_mac(id);
        }
    }

    /// Forgets endpoints that are gone for long, and gives up those that nobody created again after a boot. Returns the
    /// labels whose identities they give back.
    pub fn expire_endpoints(&mut self, now: Instant) -> Vec<villus_labels::Labels> {
        let gone: Vec<u16> = self
            .endpoints
            .values()
            .filter(|e| e.gone_since.is_some_and(|since| now.duration_since(since) > REMEMBERED))
            .map(|e| e.id())
            .collect();
        for id in gone {
            self.endpoints.remove(&id);
        }
        let late: Vec<u16> = self
            .endpoints
            .values()
            .filter(|e| e.pending_until.is_some_and(|until| until <= now))
            .map(|e| e.id())
            .collect();
        late.into_iter().filter_map(|id| self.remove(id)).map(|(labels, _)| labels).collect()
    }
}
