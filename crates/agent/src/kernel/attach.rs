//! Programs on devices: at once, and the way that the options say.

use std::sync::Arc;

use villus_datapath::{AttachMode, Hook, Links, Pins, Result};

use super::Programs;

/// What is needed to attach programs, apart from everything else. Clones share it.
#[derive(Clone)]
pub(crate) struct Attacher {
    pub(super) pins: Arc<Pins>,
    pub(super) programs: Programs,
    pub(super) mode: AttachMode,
}

impl Attacher {
    /// Makes an endpoint's device run the two programs of endpoints, the way that the options say; the old attachment goes
    /// after the new one is there. Each TCX link that is new waits for a grace period of the kernel, some 10 ms.
    pub fn attach_endpoint(&self, ifindex: u32) -> Result<()> {
        let (object, links) = (self.programs.wait()?, Links::new(&self.pins));
        // To the endpoint first: once it can send, answers are judged as well.
        links.attach(object, Hook::ToEndpoint, ifindex, self.mode)?;
        links.attach(object, Hook::FromEndpoint, ifindex, self.mode)?;
        Ok(())
    }

    /// As [`Self::attach_endpoint`], the way that waits for nothing. Says whether it is the way that the options say.
    pub fn attach_at_once(&self, ifindex: u32) -> Result<bool> {
        let (object, links) = (self.programs.wait()?, Links::new(&self.pins));
        let to = links.attach_at_once(object, Hook::ToEndpoint, ifindex, self.mode)?;
        let from = links.attach_at_once(object, Hook::FromEndpoint, ifindex, self.mode)?;
        Ok(to && from)
    }

    /// Takes our programs off an endpoint's device.
    pub fn detach_endpoint(&self, ifindex: u32) -> Vec<String> {
        let links = Links::new(&self.pins);
        [Hook::FromEndpoint, Hook::ToEndpoint]
            .into_iter()
            .filter_map(|hook| links.detach(hook, ifindex).err())
            .map(|error| error.to_string())
            .collect()
    }

    /// Makes the tunnel's device run its two programs.
    pub fn attach_tunnel(&self, ifindex: u32) -> Result<()> {
        let (object, links) = (self.programs.wait()?, Links::new(&self.pins));
        links.attach(object, Hook::FromOverlay, ifindex, self.mode)?;
        links.attach(object, Hook::ToOverlay, ifindex, self.mode)?;
        Ok(())
    }

    /// Makes an uplink run its program; with `host` also that which judges what the node itself sends.
    pub fn attach_uplink(&self, ifindex: u32, host: bool) -> Result<()> {
        let (object, links) = (self.programs.wait()?, Links::new(&self.pins));
        links.attach(object, Hook::FromNetwork, ifindex, self.mode)?;
        if host {
            links.attach(object, Hook::ToNetwork, ifindex, self.mode)?;
        }
        Ok(())
    }
}
