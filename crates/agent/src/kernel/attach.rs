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
        // To the endpoint first: once it can send, answers are judged as well.
        self.attach(Hook::ToEndpoint, ifindex)?;
        self.attach(Hook::FromEndpoint, ifindex)
    }

    /// As [`Self::attach_endpoint`], the way that waits for nothing. Says whether it is the way that the options say.
    pub fn attach_at_once(&self, ifindex: u32) -> Result<bool> {
        let links = Links::new(&self.pins);
        let at_once = |hook| links.attach_at_once(self.programs.program(hook)?, hook, ifindex, self.mode);
        Ok(at_once(Hook::ToEndpoint)? & at_once(Hook::FromEndpoint)?)
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
        Hook::OF_TUNNEL.into_iter().try_for_each(|hook| self.attach(hook, ifindex))
    }

    /// Makes an uplink run its program; with `out` also that of what leaves, which judges what the node itself sends and
    /// masquerades. Answers are expected before anything is sent.
    pub fn attach_uplink(&self, ifindex: u32, out: bool) -> Result<()> {
        self.attach(Hook::FromNetwork, ifindex)?;
        if out {
            self.attach(Hook::ToNetwork, ifindex)?;
        }
        Ok(())
    }

    fn attach(&self, hook: Hook, ifindex: u32) -> Result<()> {
        let program = self.programs.program(hook)?;
        Links::new(&self.pins).attach(program, hook, ifindex, self.mode).map(drop)
    }
}
