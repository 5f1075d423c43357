//! A request for an endpoint, checked.

use std::collections::BTreeSet;
use std::net::IpAddr;

use villus_api::model::EndpointChangeRequest;
use villus_api::{ApiError, ApiResult, EndpointRef};
use villus_net::{CONTAINER_DEVICE, Mac, NetnsRef};
use villus_policy::NamedPort;

use super::ports::read_ports;
use crate::state::Names;

/// What was asked for; nothing in it contradicts itself.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// The wanted id.
    pub id: Option<u16>,
    pub names: Names,
    pub labels: Vec<String>,
    pub named_ports: BTreeSet<NamedPort>,
    pub addresses: Vec<IpAddr>,
    /// Addresses outside the pool are fine.
    pub any_address: bool,
    pub sticky: bool,
    pub place: Place,
    pub mac: Option<Mac>,
    pub host_mac: Option<Mac>,
    pub mtu: Option<u32>,
    pub allow_dhcp: Option<bool>,
    pub dry_run: bool,
}

/// Where an endpoint lives.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// A device of ours in a namespace.
    Namespace {
        /// Which namespace.
        netns: NetnsRef,
        /// Name of the device in there.
        device: String,
    },
    /// A device that is there already.
    Device {
        /// Its name.
        name: String,
    },
}

impl Request {
    /// Checks a request.
    pub fn read(id: &EndpointRef, body: EndpointChangeRequest) -> ApiResult<Self> {
        let id = wanted_id(id, body.id)?;
        if body.interface_index != 0 {
            return Err(ApiError::bad_field("interface-index", "a device is named, not numbered")
                .hint("give its name as adopt-interface"));
        }
        let place = place_of(&body)?;
        let addresses = body.requested_addresses();
        let adopted = matches!(place, Place::Device { .. });
        let text = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let names = Names {
            owner: text(&body.owner),
            netns: netns_name(&body),
            container_id: text(&body.container_id),
            container_name: text(&body.container_name),
            docker_endpoint_id: text(&body.docker_endpoint_id),
            docker_network_id: text(&body.docker_network_id),
            k8s_namespace: text(&body.k8s_namespace),
            k8s_pod_name: text(&body.k8s_pod_name),
        };
        if body.sticky && names.owner.is_none() {
            return Err(ApiError::bad_field(
                "sticky",
                "sticky addresses belong to an owner, and none is named",
            )
            .hint("give `owner` as well"));
        }
        let mac = |mac: Option<villus_api::model::Mac>| mac.map(|mac| Mac(mac.0));
        Ok(Self {
            id,
            names,
            labels: body.labels,
            named_ports: read_ports(&body.named_ports)?,
            addresses,
            any_address: adopted || body.datapath_configuration.external_ipam,
            sticky: body.sticky,
            place,
            mac: mac(body.mac),
            host_mac: mac(body.host_mac),
            mtu: body.mtu,
            allow_dhcp: body.allow_dhcp,
            dry_run: body.dry_run,
        })
    }

    /// What people call it.
    pub fn display(&self) -> String {
        let names = &self.names;
        let name = names.owner.as_ref().or(names.container_id.as_ref()).or(names.k8s_pod_name.as_ref());
        match (&self.place, name.or(names.netns.as_ref())) {
            (_, Some(name)) => name.clone(),
            (Place::Device { name }, None) => name.clone(),
            (Place::Namespace { netns, .. }, None) => netns.to_string(),
        }
    }
}

fn wanted_id(id: &EndpointRef, in_body: u16) -> ApiResult<Option<u16>> {
    let in_path = match id {
        EndpointRef::Id(id) => *id,
        // Cilium's clients name what they make by its container.
        _ => 0,
    };
    match (in_path, in_body) {
        (0, 0) => Ok(None),
        (a, b) if a == b || b == 0 => Ok(Some(a)),
        (0, b) => Ok(Some(b)),
        (a, b) => Err(ApiError::bad_field("id", format!("the path asks for {a} and the body for {b}"))),
    }
}

fn place_of(body: &EndpointChangeRequest) -> ApiResult<Place> {
    let netns = netns_of(body);
    let adopt =
        body.adopt_interface.clone().or_else(|| body.interface_name.clone().filter(|_| netns.is_empty()));
    match (adopt.filter(|name| !name.is_empty()), netns.as_slice()) {
        (Some(name), []) => Ok(Place::Device { name }),
        (Some(_), _) => Err(ApiError::bad_field(
            "adopt-interface",
            "a device is adopted in the node's own namespace; no namespace may be given with it",
        )),
        (None, [(_, netns)]) => {
            let device = body.container_interface_name.clone().filter(|name| !name.is_empty());
            Ok(Place::Namespace {
                netns: netns.clone(),
                device: device.unwrap_or_else(|| CONTAINER_DEVICE.to_owned()),
            })
        }
        (None, []) => Err(ApiError::bad_field("netns", "neither a namespace nor a device to adopt is named")
            .hint("give netns (a name of `ip netns` or a path) or adopt-interface")),
        (None, [_, (field, _), ..]) => {
            Err(ApiError::bad_field(*field, "the namespace is named twice; one of them is enough"))
        }
    }
}

/// All ways in which the request names a namespace.
fn netns_of(body: &EndpointChangeRequest) -> Vec<(&'static str, NetnsRef)> {
    let named = |text: &str| {
        if text.contains('/') { NetnsRef::Path(text.into()) } else { NetnsRef::Name(text.to_owned()) }
    };
    let texts = [("netns", &body.netns), ("container-netns-path", &body.container_netns_path)];
    let mut all: Vec<_> = texts
        .into_iter()
        .filter_map(|(field, text)| Some((field, named(text.as_deref().filter(|t| !t.is_empty())?))))
        .collect();
    // A process is only a way to a namespace that is not named otherwise.
    if body.pid != 0 && all.is_empty() {
        all.push(("pid", NetnsRef::Pid(body.pid)));
    }
    all
}

fn netns_name(body: &EndpointChangeRequest) -> Option<String> {
    match netns_of(body).into_iter().next()?.1 {
        NetnsRef::Name(name) => Some(name),
        other => Some(other.path().display().to_string()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(change: impl FnOnce(&mut EndpointChangeRequest)) -> ApiResult<Request> {
        let mut body = EndpointChangeRequest::default();
        change(&mut body);
        Request::read(&EndpointRef::Id(0), body)
    }

    #[test]
    fn contradictions_are_refused_by_field() {
        let field = |result: ApiResult<Request>| result.unwrap_err().field.unwrap();
        assert_eq!(field(read(|_| {})), "netns");
        let both = |b: &mut EndpointChangeRequest| {
            b.netns = Some("a".into());
            b.adopt_interface = Some("tap0".into());
        };
        assert_eq!(field(read(both)), "adopt-interface");
        let twice = |b: &mut EndpointChangeRequest| {
            b.netns = Some("a".into());
            b.container_netns_path = Some("/proc/1/ns/net".into());
        };
        assert_eq!(field(read(twice)), "container-netns-path");
        let sticky = |b: &mut EndpointChangeRequest| {
            b.netns = Some("a".into());
            b.sticky = true;
        };
        assert_eq!(field(read(sticky)), "sticky");
        let port = |b: &mut EndpointChangeRequest| {
            b.netns = Some("a".into());
            b.named_ports = vec!["http=80".into(), "dns=53/QUIC".into()];
        };
        assert_eq!(field(read(port)), "named-ports[1]");
    }

    #[test]
    fn a_namespace_is_a_name_or_a_path() {
        let request = read(|b| b.netns = Some("web".into())).unwrap();
        assert!(matches!(&request.place, Place::Namespace { netns: NetnsRef::Name(name), device }
            if name == "web" && device == "eth0"));
        let request = read(|b| b.container_netns_path = Some("/run/netns/web".into())).unwrap();
        assert!(matches!(&request.place, Place::Namespace { netns: NetnsRef::Path(_), .. }));
        assert_eq!(request.display(), "/run/netns/web");
    }
}
