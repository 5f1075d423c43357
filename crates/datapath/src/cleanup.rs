//! Taking everything of ours out of the kernel, and nothing else.

use villus_abi::names;

use crate::{
    cilium::interfaces,
    error::{Error, Result},
    links::Links,
    maps::{KNOWN, POLICY_START, Sizes, policy_spec},
    pins::Pins,
    policy::{pin as policy_pin, policy_endpoints},
};

/// What was removed (or would be), and what went wrong on the way.
#[derive(Debug, Default)]
pub struct Cleaned {
    /// Programs taken off interfaces, and pins.
    pub removed: Vec<String>,
    /// What could not be removed; the rest was removed all the same.
    pub errors: Vec<Error>,
}

/// Everything of ours in the kernel: programs on the interfaces of the current network namespace, and pins.
#[derive(Debug)]
pub struct DatapathCleanup<'a> {
    pins: &'a Pins,
    dry_run: bool,
}

impl<'a> DatapathCleanup<'a> {
    /// With `dry_run`, only says what would be removed.
    #[must_use]
    pub const fn new(pins: &'a Pins, dry_run: bool) -> Self {
        Self { pins, dry_run }
    }

    /// Removes programs first, then pins, in spite of errors.
    ///
    /// # Errors
    /// [`Error::Kernel`] when it cannot even be seen what there is.
    pub fn run(&self) -> Result<Cleaned> {
        let mut cleaned = Cleaned::default();
        let links = Links::new(self.pins);
        let interfaces: Vec<u32> = interfaces()?.into_iter().map(|(_, ifindex)| ifindex).collect();
        for link in links.list(&interfaces)? {
            let what = format!("{} from interface {}", link.hook.name(), link.ifindex);
            self.remove(&mut cleaned, what, || links.detach(link.hook, link.ifindex).map(drop));
        }
        for name in self.ours()? {
            let what = self.pins.path(&name).display().to_string();
            self.remove(&mut cleaned, what, || self.pins.remove(&name).map(drop));
        }
        if !self.dry_run {
            self.pins.remove_empty_directories();
        }
        Ok(cleaned)
    }

    fn remove(&self, cleaned: &mut Cleaned, what: String, remove: impl FnOnce() -> Result<()>) {
        match if self.dry_run { Ok(()) } else { remove() } {
            Ok(()) => cleaned.removed.push(what),
            Err(e) => cleaned.errors.push(e),
        }
    }

    /// Pins that are ours: all `villus_` ones; and, beside at least one of them, those whose names Cilium has
    /// too, if what is pinned has our shape.
    fn ours(&self) -> Result<Vec<String>> {
        let all = self.pins.list()?;
        let mut ours: Vec<String> = all.into_iter().filter(|name| name.starts_with("villus_")).collect();
        if ours.is_empty() {
            return Ok(ours);
        }
        let mut shared: Vec<String> = Vec::new();
        for endpoint in policy_endpoints(self.pins)? {
            let name = policy_pin(endpoint);
            if self.pins.map_like(&name, &policy_spec(&name, POLICY_START)).is_ok() {
                shared.push(name);
            }
        }
        let ipcache = KNOWN.iter().find(|known| known.pin == names::IPCACHE);
        if let Some(known) = ipcache
            && let Ok(Some(_)) = self.pins.map_like(known.pin, &known.spec(&Sizes::default()))
        {
            shared.push(known.pin.to_owned());
        }
        // Shared names first: while one of ours is left, a second run still knows them.
        shared.append(&mut ours);
        Ok(shared)
    }
}
