//! What a crash left in the middle of making or deleting an endpoint: nothing of it stays.

use villus_net::{Link, Mac, remove_left_over};

use crate::node::Node;

impl Node {
    /// Removes policy maps, devices, routes and attached programs of endpoints that nobody knows.
    pub fn sweep(&mut self) {
        for id in self.kernel.policies.endpoints().unwrap_or_default() {
            if !self.endpoints.get(&id).is_some_and(|e| e.is_live())
                && let Err(error) = self.kernel.policies.remove(id)
            {
                tracing::warn!(endpoint = id, %error, "a left-over policy map stays");
            }
        }
        let claimed: Vec<u32> =
            self.endpoints.values().filter_map(|e| Some(e.file.device.as_ref()?.index())).collect();
        // Programs first: a device of somebody else is free before its routes go.
        self.detach_strangers(&claimed);
        let is_ours = |link: &Link| link.mac == Some(self.host_mac(&link.name));
        let (removed, errors) = remove_left_over(&claimed, is_ours);
        for what in removed {
            tracing::warn!(what, "no endpoint claims it: it was left over and is removed");
        }
        for error in errors.0 {
            tracing::warn!(%error, "something left over stays");
        }
    }

    fn detach_strangers(&self, claimed: &[u32]) {
        let links = self.kernel.links();
        let attached = links.list(&self.all_interfaces()).unwrap_or_default();
        for attachment in attached.iter().filter(|a| a.alive && a.hook.is_of_endpoints()) {
            if claimed.contains(&attachment.ifindex) {
                continue;
            }
            tracing::warn!(
                interface = attachment.ifindex,
                hook = attachment.hook.name(),
                "no endpoint claims an interface that has our program: it is taken off"
            );
            if let Err(error) = links.detach(attachment.hook, attachment.ifindex) {
                tracing::warn!(%error, "it stays");
            }
        }
    }

    /// The Ethernet address that this agent gives to a host-side device of that name, by which it knows its own.
    pub fn host_mac(&self, device: &str) -> Mac {
        Mac::from_seed(&format!("node {}/{}/{device}", self.name, self.boot))
    }
}
