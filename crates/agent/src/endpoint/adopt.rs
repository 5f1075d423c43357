//! An endpoint on a device that somebody else made.

use std::net::IpAddr;

use villus_api::{ApiError, ApiResult};
use villus_config::config::AllowDhcp;
use villus_net::{AdoptSpec, Rtnl, adopt_interface, check_adoptable};

use super::Request;
use super::create::{device_owner, gone, refused_device};
use crate::node::Node;
use crate::state::Device;

impl Node {
    /// Whether a device could be adopted by an endpoint. Nothing is changed.
    pub(super) fn may_adopt(
        &self,
        id: u16,
        name: &str,
        request: &Request,
        addresses: &[IpAddr],
    ) -> ApiResult<()> {
        if let Some(uplink) = self.network.uplinks.used.iter().find(|uplink| uplink.name == name) {
            return Err(ApiError::conflict(format!("{} connects the node to the world", uplink.name))
                .field("adopt-interface")
                .hint("name a device of a workload, or take it out of `devices`"));
        }
        let mut taken = self.taken_devices();
        // Its own of before.
        taken.retain(|_, owner| *owner != id.to_string());
        let owner = device_owner(id, request);
        let spec = AdoptSpec {
            device: name,
            owner: &owner,
            addresses,
            workload_mac: request.mac,
            host_sources: &[],
        };
        check_adoptable(&spec, &taken).map_err(refused_device)
    }

    /// Adopts a device. Our programs are attached last: until then it goes on as it was.
    pub(super) fn adopt(&mut self, id: u16, name: &str, request: &Request) -> ApiResult<Device> {
        let addresses = self.endpoints.get(&id).ok_or_else(|| gone(id))?.file.addresses.clone();
        let sources: Vec<IpAddr> = self.network.router_ips().collect();
        let taken = self.taken_devices();
        let owner = device_owner(id, request);
        let spec = AdoptSpec {
            device: name,
            owner: &owner,
            addresses: &addresses,
            workload_mac: request.mac,
            host_sources: &sources,
        };
        let adopted = adopt_interface(&spec, &taken).map_err(refused_device)?;
        let allow_dhcp = request.allow_dhcp.unwrap_or_else(|| self.dhcp_by_default(name));
        let endpoint = self.endpoints.get_mut(&id).ok_or_else(|| gone(id))?;
        endpoint.file.allow_dhcp = allow_dhcp;
        let index = adopted.index;
        let device = Device::Adopted(adopted);
        endpoint.file.device = Some(device.clone());
        self.install(id).map_err(ApiError::internal)?;
        // The kernel stops a device for a moment when it gets a clsact, and this one may be busy.
        self.kernel.attacher().attach_endpoint(index).map_err(ApiError::internal)?;
        Ok(device)
    }

    fn dhcp_by_default(&self, name: &str) -> bool {
        match self.config.datapath.allow_dhcp {
            AllowDhcp::Never => false,
            AllowDhcp::Adopted => true,
            AllowDhcp::Taps => Rtnl::open()
                .and_then(|mut node| node.link_by_name(name))
                .is_ok_and(|link| link.is_some_and(|link| link.kind.as_deref() == Some("tun"))),
        }
    }
}
