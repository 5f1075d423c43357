//! The ring of events, read by one process at a time.

use std::{
    fmt,
    os::fd::{AsFd, BorrowedFd},
};

use aya::maps::{Map as AyaMap, MapData, RingBuf};

use crate::{
    error::{Context, Error, Result},
    maps::Maps,
};

/// The reading end of the ring. Its descriptor is readable when there are events.
pub struct EventRing {
    ring: RingBuf<MapData>,
}

impl fmt::Debug for EventRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventRing").finish_non_exhaustive()
    }
}

impl AsFd for EventRing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl EventRing {
    /// Maps the ring of `maps` into memory.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn open(maps: &Maps) -> Result<Self> {
        let failed = |e: &dyn std::error::Error| Error::Kernel {
            action: "map into memory",
            what: villus_abi::names::EVENTS.to_owned(),
            source: std::io::Error::other(e.to_string()),
        };
        let fd = maps.events.as_fd().try_clone_to_owned().on("open", villus_abi::names::EVENTS)?;
        let data = MapData::from_fd(fd).map_err(|e| failed(&e))?;
        let map = AyaMap::from_map_data(data).map_err(|e| failed(&e))?;
        let ring = RingBuf::try_from(map).map_err(|e| failed(&e))?;
        Ok(Self { ring })
    }

    /// Hands at most `most` waiting events to `each`, oldest first; says how many.
    pub fn read(&mut self, most: usize, mut each: impl FnMut(&[u8])) -> usize {
        let mut read = 0;
        while read < most
            && let Some(event) = self.ring.next()
        {
            each(&event);
            read += 1;
        }
        read
    }
}
