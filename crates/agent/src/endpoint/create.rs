//! An endpoint comes: its place is taken, its identity allocated, its policy written, and only then its device made.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Instant;

use villus_abi::endpoint::SLOT_HOST;
use villus_api::model::EndpointState;
use villus_api::{ApiError, ApiResult};
use villus_identity::{AddressPool, Family, PoolError, Standing};
use villus_labels::{Labels, NumericIdentity};
use villus_net::{
    EndpointLink, EndpointLinkSpec, Mac, NetError, Netns, NetnsRef, create_endpoint_link, host_device_name,
};

use super::{Endpoint, Labelled, Place, Request, pool_owner};
use crate::node::Node;
use crate::state::{Device, EndpointFile, timestamp};

/// An endpoint that has its place but no identity yet.
#[derive(Debug)]
pub(crate) struct Planned {
    pub id: u16,
    /// Of the endpoint that has the place.
    pub serial: u64,
    pub labelled: Labelled,
    /// The number it had before.
    pub had: Option<NumericIdentity>,
    /// What waited in its place. It comes back if the endpoint cannot be made.
    pub before: Option<Endpoint>,
    /// How the addresses that it took, and those of what waited, stood before.
    pub addresses: Vec<Standing>,
}

impl Planned {
    /// The labels of what waited, if it still holds its identity.
    pub fn held(&self) -> Option<Labels> {
        let before = self.before.as_ref().filter(|endpoint| endpoint.gone_since.is_none())?;
        Some(before.identity_labels.clone())
    }
}

impl Node {
    /// Takes id and addresses for a new endpoint, or those that it had before. With `dry_run` nothing is taken, and what
    /// would be is returned as the endpoint's file.
    pub fn plan(&mut self, request: &Request) -> ApiResult<(Planned, EndpointFile)> {
        self.must_have_endpoints()?;
        self.must_be_complete()?;
        let labelled = self.rules.read(&request.labels, request.names.k8s_namespace.as_deref())?;
        let before = self.waiting_for(request)?;
        let id = self.choose_id(request, before)?;
        let before = before.filter(|before| *before == id);
        let had = before.and_then(|id| self.endpoints.get(&id)).map(|e| e.identity());
        let mut file = EndpointFile {
            format: EndpointFile::FORMAT,
            boot_id: self.boot.clone(),
            id,
            identity: had.unwrap_or_default().0,
            labels: labelled.all.iter().map(|label| label.to_string()).collect(),
            named_ports: request.named_ports.clone(),
            addresses: Vec::new(),
            names: request.names.clone(),
            sticky: request.sticky,
            audit: None,
            allow_dhcp: request.allow_dhcp.unwrap_or(false),
            device: None,
            created: timestamp(),
        };
        let mut pool = self.pool.clone();
        let waiting = before.and_then(|id| self.endpoints.get(&id));
        let kept = waiting.and_then(|endpoint| keep_addresses(&mut pool, endpoint, request, &file));
        file.addresses = match kept {
            Some(kept) => kept,
            None => self.choose_addresses(&mut pool, request, &file)?,
        };
        let touched: BTreeSet<IpAddr> =
            file.addresses.iter().chain(waiting.iter().flat_map(|e| &e.file.addresses)).copied().collect();
        let addresses = touched.into_iter().filter_map(|address| self.pool.standing(address)).collect();
        // What can't be is said before an identity is asked for, and as well to who only asks.
        match &request.place {
            Place::Device { name } => self.may_adopt(id, name, request, &file.addresses)?,
            Place::Namespace { netns, .. } => drop(open_netns(netns)?),
        }
        let mut before = None;
        let mut endpoint = Endpoint::new(file.clone(), labelled.clone(), EndpointState::WaitingForIdentity);
        let serial = endpoint.serial;
        if !request.dry_run {
            self.pool = pool;
            endpoint.audited = self.audit_of(&endpoint.labels);
            before = self.endpoints.insert(id, endpoint);
        }
        Ok((Planned { id, serial, labelled, had, before, addresses }, file))
    }

    /// The endpoint of the same name that waits to be created again. One that is at work is a conflict.
    fn waiting_for(&self, request: &Request) -> ApiResult<Option<u16>> {
        for endpoint in self.endpoints.values() {
            let Some(field) = same(endpoint, request) else { continue };
            if endpoint.is_live() || endpoint.state == EndpointState::WaitingForIdentity {
                let id = endpoint.id();
                return Err(ApiError::conflict(format!("endpoint {id} has this {field} already"))
                    .field(field)
                    .hint(format!("`villus endpoint delete {id}` removes it")));
            }
            return Ok(Some(endpoint.id()));
        }
        Ok(None)
    }

    fn choose_id(&self, request: &Request, before: Option<u16>) -> ApiResult<u16> {
        let most = self.config.datapath.endpoint_max.saturating_sub(1);
        match (request.id, before) {
            (None, Some(id)) => Ok(id),
            (None, None) => self.free_ids().next().ok_or_else(|| {
                ApiError::too_many(format!("all {most} endpoint ids are taken")).hint("raise endpoint-max")
            }),
            (Some(id), before) if before == Some(id) => Ok(id),
            (Some(id), _) if u32::from(id) > most => {
                Err(ApiError::bad_field("id", format!("{id} is beyond endpoint-max - 1, which is {most}")))
            }
            (Some(id), _) if self.has_deeds(id) => {
                Err(ApiError::conflict(format!("endpoint {id} of before was opened by hand"))
                    .field("id")
                    .hint(
                        "`villus emergency list` shows by which deed, `villus emergency undo` takes it back",
                    ))
            }
            (Some(id), _) if self.endpoints.contains_key(&id) => {
                Err(ApiError::conflict(format!("endpoint {id} exists already")).field("id"))
            }
            (Some(id), _) => Ok(id),
        }
    }

    fn choose_addresses(
        &self,
        pool: &mut AddressPool,
        request: &Request,
        file: &EndpointFile,
    ) -> ApiResult<Vec<IpAddr>> {
        let owner = pool_owner(file);
        let now = Instant::now();
        let mut addresses = Vec::new();
        for (n, address) in request.addresses.iter().enumerate() {
            let field = format!("addresses[{n}]");
            if let Some(user) = self.endpoints.values().find(|e| e.has(address) && e.id() != file.id) {
                return Err(ApiError::conflict(format!("{address} is endpoint {}'s", user.id())).field(field));
            }
            if self.network.host_ips().any(|ip| ip == *address) {
                return Err(ApiError::conflict(format!("{address} is the node's own")).field(field));
            }
            match pool.allocate(*address, &owner, now) {
                Ok(()) => {}
                Err(PoolError::OutOfRange { .. } | PoolError::NoPool { .. }) if request.any_address => {}
                Err(error) => return Err(refused_address(error).field(field)),
            }
            addresses.push(*address);
        }
        let families: Vec<Family> = pool.families().collect();
        for family in families {
            if !addresses.iter().any(|address| Family::of(*address) == family) {
                addresses.push(pool.allocate_next(family, &owner, now).map_err(refused_address)?);
            }
        }
        if addresses.is_empty() {
            return Err(ApiError::bad_field("addresses", "there is no pool to take an address from")
                .hint("switch enable-ipv4 or enable-ipv6 on"));
        }
        Ok(addresses)
    }

    /// The endpoint that was planned, unless somebody deleted it meanwhile.
    pub fn planned(&self, planned: &Planned) -> Option<&Endpoint> {
        self.endpoints.get(&planned.id).filter(|endpoint| endpoint.serial == planned.serial)
    }

    /// Makes the endpoint with its identity. Whatever fails, nothing of it is left but its place, which
    /// [`Node::abandon`] gives back.
    pub fn build(
        &mut self,
        planned: &Planned,
        identity: NumericIdentity,
        request: &Request,
    ) -> ApiResult<()> {
        let id = planned.id;
        self.planned(planned).ok_or_else(|| gone(id))?;
        self.absorb_identities();
        self.endpoints.get_mut(&id).ok_or_else(|| gone(id))?.file.identity = identity.0;
        self.announce_ports([identity]);
        self.track(id);
        self.follow_policies();
        let endpoint = self.endpoints.get_mut(&id).ok_or_else(|| gone(id))?;
        endpoint.enter(EndpointState::Regenerating, format!("identity {identity}"));
        self.fill_policy(id)?;
        self.claim_addresses(id);
        let device = self.make_device(id, request)?;
        let endpoint = self.endpoints.get_mut(&id).ok_or_else(|| gone(id))?;
        endpoint.file.device = Some(device);
        endpoint.enter(EndpointState::Ready, "created");
        // How it is delivered to was asked once more after it was switched on.
        self.install(id).map_err(ApiError::internal)?;
        let endpoint = self.endpoints.get(&id).ok_or_else(|| gone(id))?;
        self.state.save_endpoint(&endpoint.file).map_err(|error| {
            let remedy = villus_durable::remedy(&error);
            ApiError::internal(format!("the endpoint's file cannot be written: {error}")).hint(remedy)
        })?;
        self.save_pool();
        self.wake.prepare.notify_one();
        Ok(())
    }

    /// Writes a new endpoint's policy before anything can ask it.
    pub(super) fn fill_policy(&mut self, id: u16) -> ApiResult<()> {
        let subject = self.endpoints.get(&id).and_then(|e| e.subject).ok_or_else(|| gone(id))?;
        if let Some(overflow) = self.repository.overflow(subject) {
            return Err(ApiError::conflict(format!("its policy does not fit: {overflow}"))
                .hint("raise bpf-policy-map-max or make the policies select less"));
        }
        let (policy, version) = self.repository.compiled(subject).ok_or_else(|| gone(id))?;
        let (entries, audit, revision) =
            (policy.map_entries().collect(), policy.audit, self.repository.revision());
        let policies = &mut self.kernel.policies;
        let existing = policies.endpoints().map_err(ApiError::internal)?.contains(&id);
        if !existing {
            policies.create(id).map_err(ApiError::internal)?;
            self.ready.remove(&id);
        }
        let maps = self.kernel.maps.clone();
        let applied = policies.apply(id, &entries, &mut &maps.endpoints).map_err(ApiError::internal)?;
        let endpoint = self.endpoints.get_mut(&id).ok_or_else(|| gone(id))?;
        endpoint.shapes = applied.shapes;
        endpoint.audit_default = audit;
        endpoint.size = (u32::try_from(entries.len()).unwrap_or(u32::MAX), applied.capacity);
        endpoint.realized = revision;
        endpoint.version = version;
        endpoint.builds += 1;
        Ok(())
    }

    fn make_device(&mut self, id: u16, request: &Request) -> ApiResult<Device> {
        match &request.place {
            Place::Device { name } => self.adopt(id, name, request),
            Place::Namespace { netns, device } => self.make_link(id, netns, device, request),
        }
    }

    fn make_link(&mut self, id: u16, netns: &NetnsRef, device: &str, request: &Request) -> ApiResult<Device> {
        let netns = open_netns(netns)?;
        let addresses = self.endpoints.get(&id).ok_or_else(|| gone(id))?.file.addresses.clone();
        let sources: Vec<IpAddr> = self.network.router_ips().collect();
        let owner = device_owner(id, request);
        let host_name = host_device_name(&owner);
        let seed = format!("{}/{}/{owner}", self.name, self.boot);
        let spec = EndpointLinkSpec {
            owner: &owner,
            host_name: &host_name,
            host_mac: request.host_mac.unwrap_or_else(|| self.host_mac(&host_name)),
            netns: &netns,
            container_name: device,
            container_mac: request.mac.unwrap_or_else(|| Mac::from_seed(&format!("workload {seed}"))),
            mtu: request.mtu.unwrap_or(self.network.mtu),
            route_mtu: None,
            addresses: &addresses,
            gateway_v4: self.network.router_v4,
            gateway_v6: self.network.router_v6,
            host_sources: &sources,
        };
        let made = create_endpoint_link(&spec, |link: &EndpointLink| {
            let Some(endpoint) = self.endpoints.get_mut(&id) else {
                return Err("it was deleted meanwhile".to_owned());
            };
            endpoint.file.device = Some(Device::Made(link.clone()));
            self.install(id).map_err(|error| error.to_string())?;
            let attacher = self.kernel.attacher();
            let settled = attacher.attach_at_once(link.host_index).map_err(|error| error.to_string())?;
            self.settle_later(id, settled);
            Ok::<(), String>(())
        });
        made.map(Device::Made).map_err(refused_device)
    }

    /// Writes an endpoint's record alone.
    pub fn write_record(&self, id: u16) -> villus_datapath::Result<()> {
        match self.endpoints.get(&id).and_then(Endpoint::record) {
            Some(record) => self.kernel.maps.endpoints.insert(&u32::from(id), &record),
            None => Ok(()),
        }
    }

    /// Writes an endpoint's record, addresses and device, in the order in which they are asked.
    pub fn install(&mut self, id: u16) -> villus_datapath::Result<()> {
        let Some(endpoint) = self.endpoints.get(&id) else { return Ok(()) };
        if endpoint.is_host() {
            return self.kernel.maps.endpoints.insert(&SLOT_HOST, &endpoint.record().unwrap_or_default());
        }
        let (Some(record), Some(device)) = (endpoint.record(), &endpoint.file.device) else { return Ok(()) };
        let maps = &self.kernel.maps;
        let slot = u32::from(id);
        let local = villus_abi::Local { slot, flags: 0 };
        maps.endpoints.insert(&slot, &record)?;
        for address in &endpoint.file.addresses {
            match address {
                IpAddr::V4(v4) => maps.addrs4.insert(&super::word_of(*v4), &local)?,
                IpAddr::V6(v6) => maps.addrs6.insert(&v6.octets(), &local)?,
            }
        }
        maps.devices.insert(&device.index(), &slot)
    }
}

/// The addresses of an endpoint that waited, if they are wanted again and still to be had; else they are given back.
fn keep_addresses(
    pool: &mut AddressPool,
    waiting: &Endpoint,
    request: &Request,
    file: &EndpointFile,
) -> Option<Vec<IpAddr>> {
    let now = Instant::now();
    let (old, new) = (pool_owner(&waiting.file), pool_owner(file));
    let addresses = &waiting.file.addresses;
    if waiting.gone_since.is_none() && (old != new || !request.addresses.is_empty()) {
        waiting.give_back(pool, if old == new { &request.addresses } else { &[] });
    }
    if !request.addresses.is_empty() {
        return None;
    }
    let mut trial = pool.clone();
    for address in addresses {
        match trial.allocate(*address, &new, now) {
            Ok(()) | Err(PoolError::OutOfRange { .. } | PoolError::NoPool { .. }) => {}
            Err(_) => return None,
        }
    }
    *pool = trial;
    Some(addresses.clone())
}

/// What an endpoint's device is marked with.
pub(super) fn device_owner(id: u16, request: &Request) -> String {
    let mut owner = format!("{id} {}", request.display());
    while owner.len() > 200 {
        owner.pop();
    }
    owner
}

pub(super) fn gone(id: u16) -> ApiError {
    ApiError::conflict(format!("endpoint {id} was deleted meanwhile"))
}

/// By which field an endpoint is the one that is asked for.
fn same(endpoint: &Endpoint, request: &Request) -> Option<&'static str> {
    let (have, want) = (&endpoint.file.names, &request.names);
    let equal = |a: &Option<String>, b: &Option<String>| a.is_some() && a == b;
    let inner = endpoint.file.device.as_ref().and_then(Device::inner_name);
    match &request.place {
        Place::Device { name } => {
            if endpoint.file.device.as_ref().is_some_and(|device| device.name() == name) {
                return Some("adopt-interface");
            }
        }
        Place::Namespace { device, .. } => {
            let same_device = inner.is_none_or(|inner| inner == device);
            if equal(&have.netns, &want.netns) && same_device {
                return Some("netns");
            }
            if equal(&have.container_id, &want.container_id) && same_device {
                return Some("container-id");
            }
        }
    }
    equal(&have.owner, &want.owner).then_some("owner")
}

fn open_netns(netns: &NetnsRef) -> ApiResult<Netns> {
    netns.open().map_err(|error| ApiError::bad_field("netns", error.to_string()))
}

fn refused_address(error: PoolError) -> ApiError {
    match error {
        PoolError::UsedUp { .. } => ApiError::too_many(error.to_string()),
        PoolError::InUse { .. } => ApiError::conflict(error.to_string()),
        PoolError::Resting { .. } => ApiError::conflict(error.to_string())
            .hint("an owner that is named gets its `sticky` addresses again at once"),
        other => ApiError::bad_request(other.to_string()),
    }
}

pub(super) fn refused_device(error: NetError) -> ApiError {
    match &error {
        NetError::Invalid { field, .. } => ApiError::bad_field(*field, error.to_string()),
        NetError::NameTaken { .. } | NetError::ForeignRoute { .. } | NetError::Refused { .. } => {
            ApiError::conflict(error.to_string())
        }
        NetError::NoDevice { .. } | NetError::Namespace { .. } => ApiError::bad_request(error.to_string()),
        _ => ApiError::internal(error),
    }
}
