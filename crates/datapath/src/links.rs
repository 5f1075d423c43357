//! Which program runs on which interface: TCX links that stay pinned, or filters of clsact.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use crate::{
    error::{Context, Result},
    object::Program,
    pins::Pins,
    sys::{self, TcxHook},
    tc::{self, Side},
};

/// What the pins of our links begin with: `villus_link_<ifindex>_<hook>`.
const PREFIX: &str = "villus_link_";

/// A place where packets meet us.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Hook {
    /// An endpoint's host-side device, ingress.
    FromEndpoint,
    /// An endpoint's host-side device, egress.
    ToEndpoint,
    /// An uplink, ingress.
    FromNetwork,
    /// An uplink, egress; only while policy selects the node.
    ToNetwork,
    /// The tunnel's device, ingress.
    FromOverlay,
    /// The tunnel's device, egress.
    ToOverlay,
}

impl Hook {
    /// Every hook.
    pub const ALL: [Self; 6] = [
        Self::FromEndpoint,
        Self::ToEndpoint,
        Self::FromNetwork,
        Self::ToNetwork,
        Self::FromOverlay,
        Self::ToOverlay,
    ];
    /// Those of a node that sends and gets its packets without a tunnel.
    pub const WITHOUT_TUNNEL: [Self; 4] =
        [Self::FromEndpoint, Self::ToEndpoint, Self::FromNetwork, Self::ToNetwork];
    /// Those of the tunnel's device.
    pub const OF_TUNNEL: [Self; 2] = [Self::FromOverlay, Self::ToOverlay];

    /// Its name, which is its program's.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::FromEndpoint => "from_endpoint",
            Self::ToEndpoint => "to_endpoint",
            Self::FromNetwork => "from_network",
            Self::ToNetwork => "to_network",
            Self::FromOverlay => "from_overlay",
            Self::ToOverlay => "to_overlay",
        }
    }

    /// Whether it is on endpoints' devices.
    #[must_use]
    pub const fn is_of_endpoints(self) -> bool {
        matches!(self, Self::FromEndpoint | Self::ToEndpoint)
    }

    /// Whether it is on the tunnel's device.
    #[must_use]
    pub const fn is_of_tunnel(self) -> bool {
        matches!(self, Self::FromOverlay | Self::ToOverlay)
    }

    const fn tcx(self) -> TcxHook {
        match self {
            Self::ToEndpoint | Self::ToNetwork | Self::ToOverlay => TcxHook::Egress,
            Self::FromEndpoint | Self::FromNetwork | Self::FromOverlay => TcxHook::Ingress,
        }
    }

    const fn side(self) -> Side {
        match self {
            Self::ToEndpoint | Self::ToNetwork | Self::ToOverlay => Side::Egress,
            Self::FromEndpoint | Self::FromNetwork | Self::FromOverlay => Side::Ingress,
        }
    }
}

/// How programs are attached (`--attach-mode`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum AttachMode {
    /// Pinned TCX links, from Linux 6.6.
    Tcx,
    /// Filters of clsact.
    Tc,
}

/// What attaching did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Attached {
    /// Nothing of ours was there.
    Made,
    /// Our older program was there and has been replaced in place, between two packets.
    Replaced,
    /// This very program was there.
    Unchanged,
}

/// A program of ours that is attached now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attachment {
    /// The interface; the pin of a link whose interface is gone keeps the number it had.
    pub ifindex: u32,
    /// Where on it.
    pub hook: Hook,
    /// How.
    pub mode: AttachMode,
    /// Id of the program.
    pub program: u32,
    /// Whether the interface is still there.
    pub alive: bool,
}

/// The attachments of one node: those of its bpffs and of the current network namespace.
#[derive(Debug)]
pub struct Links<'a> {
    pins: &'a Pins,
}

impl<'a> Links<'a> {
    /// The attachments that belong to a bpffs.
    #[must_use]
    pub const fn new(pins: &'a Pins) -> Self {
        Self { pins }
    }

    /// Makes an interface run a program of ours, and no other of ours. If an older one runs
    /// there it is replaced atomically; if it was attached the other way it goes after the new one is there: of the two
    /// the kernel asks only the TCX link, whose verdict is final. An empty clsact stays behind until [`Self::detach`], for
    /// the kernel stops a device for a moment when its clsact goes.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`] naming hook and interface.
    pub fn attach(&self, program: &Program, hook: Hook, ifindex: u32, mode: AttachMode) -> Result<Attached> {
        let what = what(hook, ifindex);
        match mode {
            AttachMode::Tcx => {
                let attached = self.attach_tcx(program, hook, ifindex).on("attach", &what)?;
                let replaced = tc::detach(hook.name(), ifindex, hook.side()).on("detach", &what)?;
                Ok(if replaced { Attached::Replaced } else { attached })
            }
            AttachMode::Tc => {
                let attached = attach_tc(program, hook, ifindex).on("attach", &what)?;
                let replaced = self.detach_tcx(hook, ifindex).on("detach", &what)?;
                Ok(if replaced { Attached::Replaced } else { attached })
            }
        }
    }

    /// As [`Self::attach`], but without waiting for a grace period of the kernel, as each new TCX link does: a
    /// program of ours that is there is replaced where it is, and where there is none a filter of clsact is made. Says whether
    /// the interface has what `mode` asks for; if not, [`Self::attach`] gives it that.
    ///
    /// # Errors
    /// As [`Self::attach`].
    pub fn attach_at_once(
        &self,
        program: &Program,
        hook: Hook,
        ifindex: u32,
        mode: AttachMode,
    ) -> Result<bool> {
        let what = what(hook, ifindex);
        if self.replace_tcx(program, hook, ifindex).on("attach", &what)?.is_none() {
            attach_tc(program, hook, ifindex).on("attach", &what)?;
            return Ok(mode == AttachMode::Tc);
        }
        // Both are there if moving from one to the other was cut short.
        let filtered = tc::filters(ifindex, hook.side()).on("list filters of", &what)?;
        Ok(mode == AttachMode::Tcx && !filtered.iter().any(tc::Filter::is_ours))
    }

    /// Takes our program off an interface; says whether it was there. That the interface is gone is no error.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`].
    pub fn detach(&self, hook: Hook, ifindex: u32) -> Result<bool> {
        let tcx = self.detach_tcx(hook, ifindex).on("detach", what(hook, ifindex));
        let tc = tc::detach(hook.name(), ifindex, hook.side()).on("detach", what(hook, ifindex));
        let removed = tcx? | tc?;
        if removed {
            remove_empty_clsact(ifindex).on("remove the clsact of", format!("interface {ifindex}"))?;
        }
        Ok(removed)
    }

    /// What is attached: all pinned links, and the filters on `interfaces`.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`].
    pub fn list(&self, interfaces: &[u32]) -> Result<Vec<Attachment>> {
        let mut all = Vec::new();
        for name in self.pins.list()? {
            let Some((ifindex, hook)) = parse(&name) else { continue };
            let Some(fd) = self.pins.get(&name)? else { continue };
            let info = sys::link_info(fd.as_fd()).on("ask about link", &name)?;
            let alive = info.ifindex == Some(ifindex);
            all.push(Attachment { ifindex, hook, mode: AttachMode::Tcx, program: info.program, alive });
        }
        for &ifindex in interfaces {
            all.extend(filters_on(ifindex).on("list filters of", format!("interface {ifindex}"))?);
        }
        Ok(all)
    }

    /// Removes the pins of links whose interface is gone; says how many.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`].
    pub fn sweep(&self) -> Result<usize> {
        let mut swept = 0;
        for link in self.list(&[])?.iter().filter(|link| !link.alive) {
            swept += usize::from(self.pins.remove(&pin(link.hook, link.ifindex))?);
        }
        Ok(swept)
    }

    /// Removes every attachment of ours, in spite of errors; what went wrong is returned.
    pub fn remove_all(&self, interfaces: &[u32]) -> Vec<crate::Error> {
        match self.list(interfaces) {
            Ok(all) => all.iter().filter_map(|link| self.detach(link.hook, link.ifindex).err()).collect(),
            Err(e) => vec![e],
        }
    }

    fn pinned(&self, hook: Hook, ifindex: u32) -> io::Result<Option<OwnedFd>> {
        match sys::get(&self.pins.path(&pin(hook, ifindex))) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            result => result.map(Some),
        }
    }

    fn attach_tcx(&self, program: &Program, hook: Hook, ifindex: u32) -> io::Result<Attached> {
        if let Some(attached) = self.replace_tcx(program, hook, ifindex)? {
            return Ok(attached);
        }
        let link = sys::tcx_create(program.as_fd(), ifindex, hook.tcx())?;
        sys::pin(link.as_fd(), &self.pins.path(&pin(hook, ifindex)))?;
        Ok(Attached::Made)
    }

    /// Puts a program behind the link of an interface; `None` if it has none.
    fn replace_tcx(&self, program: &Program, hook: Hook, ifindex: u32) -> io::Result<Option<Attached>> {
        let Some(link) = self.pinned(hook, ifindex)? else { return Ok(None) };
        let info = sys::link_info(link.as_fd())?;
        if info.ifindex != Some(ifindex) || info.attach_type != hook.tcx() as u32 {
            // The interface it was for is gone and the number has been given to another.
            std::fs::remove_file(self.pins.path(&pin(hook, ifindex)))?;
            return Ok(None);
        }
        if info.program == program.info.id {
            return Ok(Some(Attached::Unchanged));
        }
        sys::tcx_update(link.as_fd(), program.as_fd())?;
        Ok(Some(Attached::Replaced))
    }

    fn detach_tcx(&self, hook: Hook, ifindex: u32) -> io::Result<bool> {
        let Some(link) = self.pinned(hook, ifindex)? else { return Ok(false) };
        // Detaching is at once even if somebody else has the link open. One without a device has nothing to detach.
        let info = sys::link_info(link.as_fd())?;
        if info.ifindex == Some(ifindex) {
            sys::link_detach(link.as_fd())?;
        }
        std::fs::remove_file(self.pins.path(&pin(hook, ifindex)))?;
        Ok(true)
    }
}

/// Removes an interface's clsact unless somebody's filter hangs on it.
fn remove_empty_clsact(ifindex: u32) -> io::Result<()> {
    let gone = |e: &io::Error| matches!(e.raw_os_error(), Some(libc::ENODEV | libc::ENOENT | libc::EINVAL));
    let removed = (|| {
        if tc::is_empty(ifindex, Side::Ingress)? && tc::is_empty(ifindex, Side::Egress)? {
            tc::remove_clsact(ifindex)?;
        }
        Ok(())
    })();
    removed.or_else(|e| if gone(&e) { Ok(()) } else { Err(e) })
}

fn attach_tc(program: &Program, hook: Hook, ifindex: u32) -> io::Result<Attached> {
    let ours = tc::filters(ifindex, hook.side())?.into_iter().find(tc::Filter::is_ours);
    if ours.as_ref().is_some_and(|filter| filter.program == program.info.id) {
        return Ok(Attached::Unchanged);
    }
    tc::attach(program.as_fd(), hook.name(), ifindex, hook.side())?;
    Ok(if ours.is_some() { Attached::Replaced } else { Attached::Made })
}

fn filters_on(ifindex: u32) -> io::Result<Vec<Attachment>> {
    let mut found = Vec::new();
    for side in [Side::Ingress, Side::Egress] {
        let filters = match tc::filters(ifindex, side) {
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => continue,
            result => result?,
        };
        for filter in filters {
            let is_it = |hook: &Hook| filter.program_name() == Some(hook.name()) && hook.side() == side;
            if let Some(hook) = Hook::ALL.into_iter().find(is_it) {
                let (mode, program) = (AttachMode::Tc, filter.program);
                found.push(Attachment { ifindex, hook, mode, program, alive: true });
            }
        }
    }
    Ok(found)
}

fn pin(hook: Hook, ifindex: u32) -> String {
    format!("{PREFIX}{ifindex}_{}", hook.name())
}

fn parse(name: &str) -> Option<(u32, Hook)> {
    let (ifindex, hook) = name.strip_prefix(PREFIX)?.split_once('_')?;
    Some((ifindex.parse().ok()?, Hook::ALL.into_iter().find(|known| known.name() == hook)?))
}

fn what(hook: Hook, ifindex: u32) -> String {
    format!("{} to interface {ifindex}", hook.name())
}
