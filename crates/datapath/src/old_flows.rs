//! Flow maps of before a resize or of an earlier version, which attached programs still use: their flows are carried over.

use std::{cell::Cell, os::fd::AsFd};

use villus_abi::{Bytes, Flow, FlowKey4, FlowKey6, flow_v1::FlowV1, time::Tick};

use crate::{
    error::{Context, Result},
    flows::is_expired,
    links::Links,
    map::Map,
    maps::{FLOW_ROOM, Maps},
    sys::{self, RawMap},
};

/// Flow maps that attached programs still use though other maps have taken their pins.
#[derive(Debug)]
pub struct OldFlows {
    maps: Vec<RawMap>,
    /// When they were carried the first time.
    carried: Cell<Option<Tick>>,
}

impl OldFlows {
    /// Looks at the programs that are attached now, before they are replaced. After a resize that was cut short this
    /// finds the maps that are really in use.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`].
    pub fn of_attached(links: &Links<'_>, interfaces: &[u32], maps: &Maps) -> Result<Self> {
        let mut programs: Vec<u32> = links.list(interfaces)?.iter().map(|link| link.program).collect();
        programs.sort_unstable();
        programs.dedup();
        let mut ids: Vec<u32> = Vec::new();
        for id in programs {
            // A program may have been replaced since it was listed.
            let info = sys::prog_fd_by_id(id).and_then(|fd| sys::prog_info(fd.as_fd()));
            ids.extend(info.map(|info| info.maps).unwrap_or_default());
        }
        ids.sort_unstable();
        ids.dedup();
        let current =
            [maps.ct4_tcp.info().id, maps.ct4_any.info().id, maps.ct6_tcp.info().id, maps.ct6_any.info().id];
        ids.retain(|id| !current.contains(id));
        let opened = ids.into_iter().filter_map(|id| sys::map_by_id(id).ok());
        let maps = opened.filter(|map| map.info().name.starts_with("villus_ct")).collect();
        Ok(Self { maps, carried: Cell::new(None) })
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.maps.is_empty()
    }

    /// Copies what lives and the new maps do not have, what lives longest last, so that it is evicted last; says how much. Done before
    /// the programs are replaced, and after it for what they have made meanwhile: then only that, since what is not there any more has
    /// made room or was taken away.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`].
    pub fn carry(&self, maps: &Maps, now: Tick) -> Result<usize> {
        let since = self.carried.replace(Some(now));
        let mut carried = 0;
        for raw in &self.maps {
            let name = raw.info().name.clone();
            let raw = raw.try_clone().on("open", &name)?;
            let tcp = name.contains("tcp");
            if raw.key_len() == size_of::<FlowKey4>() {
                let to = if tcp { &maps.ct4_tcp } else { &maps.ct4_any };
                carried += carry(flows::<FlowKey4>(raw, name, FLOW_ROOM)?, to, since, now)?;
            } else if raw.key_len() == size_of::<FlowKey6>() {
                let to = if tcp { &maps.ct6_tcp } else { &maps.ct6_any };
                carried += carry(flows::<FlowKey6>(raw, name, 0)?, to, since, now)?;
            }
        }
        Ok(carried)
    }
}

/// The flows of an old map, which has this layout or the one before.
fn flows<K: Bytes>(raw: RawMap, name: String, room: usize) -> Result<Vec<(K, Flow)>> {
    if raw.value_len() == size_of::<FlowV1>() {
        let old = Map::<K, FlowV1>::new(raw, name)?.entries()?;
        return Ok(old.into_iter().map(|(key, flow)| (key, flow.into())).collect());
    }
    Map::roomy(raw, name, room)?.entries()
}

/// Whether something was made since a moment, or if there was no such moment.
fn is_new(created: Tick, since: Option<Tick>) -> bool {
    since.is_none_or(|since| created.wrapping_sub(since).cast_signed() >= 0)
}

fn carry<K: Bytes>(
    mut old: Vec<(K, Flow)>,
    new: &Map<K, Flow>,
    since: Option<Tick>,
    now: Tick,
) -> Result<usize> {
    old.retain(|(_, flow)| !is_expired(flow.expires, now));
    old.sort_by_key(|(_, flow)| flow.expires.wrapping_sub(now));
    let mut carried = 0;
    for (key, flow) in &old {
        match new.get(key)? {
            None if is_new(flow.created, since) => carried += usize::from(new.insert_new(key, flow)?),
            // Copied once already. Nothing has used it since it was copied: what the old map says is newer.
            Some(copy) if packets(&copy) < packets(flow) => carried += usize::from(new.replace(key, flow)?),
            _ => {}
        }
    }
    Ok(carried)
}

const fn packets(flow: &Flow) -> u64 {
    flow.fwd_packets.wrapping_add(flow.rev_packets)
}
