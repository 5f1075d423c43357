//! Programs on the devices of endpoints and on uplinks.
//!
//! What must be there at once is attached without waiting for the kernel. What the options ask for comes in the background,
//! one endpoint after the other, while nobody makes endpoints.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use villus_api::model::EndpointState;
use villus_datapath::{Hook, OldFlows, now};

use crate::kernel::Attacher;
use crate::node::Node;

/// How long no endpoint was made before attachments are put right.
const QUIET: Duration = Duration::from_millis(1500);

/// What the condition of an uplink begins with.
const OF_UPLINK: &str = "program of uplink ";

/// An endpoint whose programs are to be attached the way that the options say.
pub(crate) struct ToSettle {
    pub id: u16,
    pub ifindex: u32,
    pub attacher: Attacher,
    /// Held while it is done; who deletes the endpoint waits for that.
    pub busy: Arc<Mutex<()>>,
}

impl Node {
    /// Programs of this version on every device, each in the place of that of before.
    pub fn attach_all(&mut self) {
        self.carry_old_flows();
        let live = self.endpoints.values().filter(|e| e.is_live());
        let live: Vec<(u16, u32)> =
            live.filter_map(|e| Some((e.id(), e.file.device.as_ref()?.index()))).collect();
        let attacher = self.kernel.attacher();
        for (id, index) in &live {
            let result = attacher.attach_at_once(*index);
            if !matches!(result, Ok(true)) {
                self.unsettled.insert(*id);
            }
            self.note_programs(*id, result.err());
            if let Some(endpoint) = self.endpoints.get_mut(id)
                && endpoint.state == EndpointState::Restoring
            {
                endpoint.enter(EndpointState::Ready, "taken over");
            }
        }
        self.attached = true;
        self.attach_uplinks();
        self.carry_old_flows();
        self.kernel.old_flows = None;
        // Programs of before may have masqueraded where the table does now.
        self.look_for_astray();
        tracing::debug!(took = ?self.started.elapsed(), endpoints = live.len(), "programs are attached");
    }

    /// Remembers that a new endpoint's programs are to be attached the way that the options say.
    pub fn settle_later(&mut self, id: u16, settled: bool) {
        self.last_made = Instant::now();
        if !settled {
            self.unsettled.insert(id);
        }
    }

    /// The next endpoint whose programs are to be attached the way that the options say, if no endpoint was made for a
    /// moment.
    pub fn next_to_settle(&mut self, now: Instant) -> Option<ToSettle> {
        if now.duration_since(self.last_made) < QUIET {
            return None;
        }
        loop {
            let id = self.unsettled.pop_first()?;
            let device = self.endpoints.get(&id).filter(|e| e.is_live()).and_then(|e| e.file.device.as_ref());
            if let Some(device) = device {
                self.settling = Some(id);
                let (ifindex, attacher) = (device.index(), self.kernel.attacher());
                return Some(ToSettle { id, ifindex, attacher, busy: self.settle_lock.clone() });
            }
        }
    }

    /// What came of it; says whether it is done. What failed is tried again later.
    pub fn settled(&mut self, id: u16, result: villus_datapath::Result<()>) -> bool {
        self.settling = None;
        let done = result.is_ok();
        if self.endpoints.get(&id).is_some_and(|e| e.is_live()) {
            self.note_programs(id, result.err());
            if !done {
                self.unsettled.insert(id);
            }
        }
        done
    }

    /// Attaches programs again that somebody took off an endpoint's device or the tunnel's, without which no policy holds
    /// there, or off an uplink on which they masquerade. Says of how many devices.
    pub fn mend_programs(&mut self) -> usize {
        if !self.attached {
            return 0;
        }
        let live = self.endpoints.values().filter(|e| e.is_live() && self.settling != Some(e.id()));
        let live: Vec<(u16, u32)> =
            live.filter_map(|e| Some((e.id(), e.file.device.as_ref()?.index()))).collect();
        let lending = self.nat.lending.iter().copied();
        let indices: Vec<u32> =
            live.iter().map(|(_, index)| *index).chain(self.network.tunnel).chain(lending).collect();
        let attached = match self.kernel.links().list(&indices) {
            Ok(attached) => attached,
            Err(error) => {
                self.conditions.note("programs on devices", Some(error.to_string()));
                return 0;
            }
        };
        self.conditions.note("programs on devices", None);
        let has =
            |index: u32, hook: Hook| attached.iter().any(|a| a.alive && a.ifindex == index && a.hook == hook);
        let tunnel = self.network.tunnel;
        let bare_tunnel =
            tunnel.is_some_and(|index| !has(index, Hook::FromOverlay) || !has(index, Hook::ToOverlay));
        let bare_uplinks = self
            .nat
            .lending
            .iter()
            .filter(|index| !has(**index, Hook::FromNetwork) || !has(**index, Hook::ToNetwork))
            .count();
        let bare: Vec<(u16, u32)> = live
            .into_iter()
            .filter(|(_, index)| !has(*index, Hook::FromEndpoint) || !has(*index, Hook::ToEndpoint))
            .collect();
        for (id, index) in &bare {
            tracing::warn!(
                endpoint = id,
                "somebody took our programs off its device; they are attached again"
            );
            let result = self.kernel.attacher().attach_at_once(*index);
            if !matches!(result, Ok(true)) {
                self.unsettled.insert(*id);
            }
            self.note_programs(*id, result.err());
        }
        if bare_uplinks > 0 {
            tracing::warn!(uplinks = bare_uplinks, "somebody took our programs off; they are attached again");
            self.attach_uplinks();
        }
        if bare_tunnel {
            tracing::warn!("somebody took our programs off the tunnel's device; they are attached again");
            self.attach_tunnel();
        }
        bare.len() + usize::from(bare_tunnel) + bare_uplinks
    }

    /// Waits until nobody attaches programs to an endpoint that is about to go.
    pub fn wait_settled(&self, id: u16) {
        if self.settling == Some(id) {
            drop(self.settle_lock.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }

    fn note_programs(&mut self, id: u16, error: Option<villus_datapath::Error>) {
        self.conditions.note(&format!("programs of endpoint {id}"), error.map(|error| error.to_string()));
    }

    /// The programs of uplinks on those that there are, and on no other device; that of their egress while the node itself
    /// is judged, or where it masquerades. At every moment either the table of nftables masquerades on a device or they do.
    pub fn attach_uplinks(&mut self) {
        if !self.kernel.programs().are_loaded() {
            return;
        }
        let uplinks: Vec<(u32, String)> =
            self.network.uplinks.used.iter().map(|uplink| (uplink.index, uplink.name.clone())).collect();
        let attacher = self.kernel.attacher();
        let lends = self.kernel.masquerades();
        let out = self.is_host_judged() || lends;
        self.take_devices_back(&uplinks.iter().map(|(index, _)| *index).filter(|_| lends).collect());
        // What is lent on a device is known there before its programs are.
        self.follow_masquerade();
        self.nat.lending.clear();
        let instead = if lends { "; the table of nftables masquerades there" } else { "" };
        let mut problems = BTreeMap::new();
        for (index, name) in &uplinks {
            match attacher.attach_uplink(*index, out) {
                Err(error) => {
                    drop(problems.insert(format!("{OF_UPLINK}{name}"), format!("{error}{instead}")))
                }
                Ok(()) if lends => drop(self.nat.lending.insert(*index)),
                Ok(()) => {}
            }
        }
        self.conditions.replace(OF_UPLINK, problems);
        self.follow_devices();
        self.attach_tunnel();
        let interfaces = self.all_interfaces();
        let attached = self.kernel.links().list(&interfaces).unwrap_or_default();
        for attachment in attached.iter().filter(|a| !a.hook.is_of_endpoints()) {
            let wanted = if attachment.hook.is_of_tunnel() {
                self.network.tunnel == Some(attachment.ifindex)
            } else {
                uplinks.iter().any(|(index, _)| *index == attachment.ifindex)
                    && (out || attachment.hook != Hook::ToNetwork)
            };
            if !wanted && let Err(error) = self.kernel.links().detach(attachment.hook, attachment.ifindex) {
                tracing::warn!(%error, "a device that needs it no more keeps its program");
            }
        }
        if let Err(error) = self.kernel.links().sweep() {
            tracing::warn!(%error, "pins of gone links stay");
        }
    }

    /// The programs of the tunnel's device, if there is one.
    fn attach_tunnel(&mut self) {
        let Some(index) = self.network.tunnel else { return };
        let result = self.kernel.attacher().attach_tunnel(index);
        self.conditions.note("programs of the tunnel", result.err().map(|error| error.to_string()));
    }

    /// Flow maps that attached programs use though others have their pins: after a resize, also one that was cut short.
    pub fn remember_old_flows(&mut self) {
        let interfaces = self.all_interfaces();
        match OldFlows::of_attached(&self.kernel.links(), &interfaces, &self.kernel.maps) {
            Ok(old) => self.kernel.old_flows = Some(old).filter(|old| !old.is_empty()),
            Err(error) => self.conditions.note("old flows", Some(error.to_string())),
        }
    }

    /// Copies what the old flow maps have and the new ones do not: before programs are replaced, so that these know every
    /// open flow from their first packet, and after it, for what has come meanwhile.
    fn carry_old_flows(&mut self) {
        let Some(old) = &self.kernel.old_flows else { return };
        let carried = old.carry(&self.kernel.maps, now());
        if let Ok(flows) = &carried {
            tracing::debug!(took = ?self.started.elapsed(), flows, "flows are carried over");
        }
        self.conditions.note("old flows", carried.err().map(|error| error.to_string()));
    }

    pub fn all_interfaces(&self) -> Vec<u32> {
        villus_net::NodeState::read()
            .map_or_else(|_| Vec::new(), |state| state.links.iter().map(|l| l.index).collect())
    }
}
