//! Which block sizes port ranges are cut into.

use crate::PortMatch;

/// Most block sizes of one direction before somebody is told: each is up to four more look-ups for each packet.
pub const MANY_SIZES: u32 = 8;

/// The block sizes that ranges may be cut into, as a mask of their log2. Single ports always may.
///
/// Ranges that share few sizes cost a packet few look-ups; a size that is left out costs entries, for its blocks are
/// made of smaller ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cut(u32);

impl Default for Cut {
    fn default() -> Self {
        Self::EVERY
    }
}

impl Cut {
    /// Every size: the fewest entries.
    pub const EVERY: Self = Self(u32::MAX);

    /// A choice for these ranges: sizes are left out, the cheapest first, as long as that costs not more than half as
    /// many entries again; and beyond that until there are no more than [`MANY_SIZES`]. It depends on the set of
    /// ranges alone.
    #[must_use]
    pub fn of(ports: impl IntoIterator<Item = PortMatch>) -> Self {
        let mut ranges: Vec<(u16, u16)> = ports.into_iter().map(|ports| (ports.first, ports.last)).collect();
        ranges.retain(|(first, last)| first != last);
        ranges.sort_unstable();
        ranges.dedup();
        let count = |cut: Self, most: usize| -> Option<usize> {
            let mut total = 0;
            for (first, last) in &ranges {
                total += cut.blocks(*first, *last).take(most + 1).count();
                if total > most {
                    return None;
                }
            }
            Some(total)
        };
        let sizes = |(first, last): &(u16, u16)| Self::EVERY.blocks(*first, *last).map(|(_, log2)| log2);
        let mut cut = Self(ranges.iter().flat_map(sizes).fold(0, |mask, log2| mask | 1 << log2) & !1);
        let Some(natural) = count(cut, usize::MAX - 1) else { return cut };
        loop {
            let most = if cut.0.count_ones() > MANY_SIZES { usize::MAX - 1 } else { natural + natural / 2 };
            let without =
                (1..16).filter(|log2| cut.0 & 1 << log2 != 0).map(|log2| Self(cut.0 & !(1 << log2)));
            let cheapest = without
                .filter_map(|cut| Some((count(cut, most)?, cut)))
                .min_by_key(|(total, cut)| (*total, cut.0));
            match cheapest {
                Some((_, fewer)) => cut = fewer,
                None => return cut,
            }
        }
    }

    /// The aligned blocks that make up ports `first` to `last`: first port and log2 of the size.
    pub fn blocks(self, first: u16, last: u16) -> impl Iterator<Item = (u16, u8)> {
        let mut next = Some(u32::from(first));
        let end = u32::from(last) + 1;
        std::iter::from_fn(move || {
            let start = next.filter(|start| *start < end)?;
            let aligned = if start == 0 { 0 } else { start.trailing_zeros() };
            let most = aligned.min((end - start).ilog2()).min(15);
            let allowed = (self.0 | 1) & ((2 << most) - 1);
            let log2 = allowed.ilog2();
            next = Some(start + (1 << log2));
            Some((u16::try_from(start).ok()?, u8::try_from(log2).ok()?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(first: u16, last: u16) -> PortMatch {
        PortMatch { proto: 6, first, last }
    }

    fn sizes(cut: Cut, ranges: &[PortMatch]) -> u32 {
        let blocks = ranges.iter().flat_map(|range| cut.blocks(range.first, range.last));
        (blocks.fold(0u32, |mask, (_, log2)| mask | 1 << log2) & !1).count_ones()
    }

    fn entries(cut: Cut, ranges: &[PortMatch]) -> usize {
        ranges.iter().map(|range| cut.blocks(range.first, range.last).count()).sum()
    }

    #[test]
    fn ranges_are_cut_into_few_sizes() {
        // Ranges; sizes and entries by themselves; sizes and entries as cut.
        for (ranges, natural, cut) in [
            (vec![range(80, 80), range(443, 443)], (0, 2), (0, 2)),
            (vec![range(8000, 8063)], (1, 1), (1, 1)),
            (vec![range(8000, 8999)], (6, 6), (4, 8)),
            (vec![range(1024, 65535)], (6, 6), (3, 9)),
            (vec![range(30000, 32767)], (5, 5), (4, 6)),
            (vec![range(8000, 8999), range(1024, 65535)], (12, 12), (7, 17)),
            (vec![range(1, 65534)], (14, 30), (7, 44)),
        ] {
            let found = Cut::of(ranges.iter().copied());
            assert_eq!((sizes(Cut::EVERY, &ranges), entries(Cut::EVERY, &ranges)), natural, "{ranges:?}");
            assert_eq!((sizes(found, &ranges), entries(found, &ranges)), cut, "{ranges:?}");
        }
    }

    proptest! {
        #[test]
        fn blocks_cover_exactly_the_ranges(
            ranges in proptest::collection::vec((1u16.., 1u16..), 1..5),
            probe in 0u16..,
        ) {
            let ranges: Vec<PortMatch> = ranges.into_iter().map(|(a, b)| range(a.min(b), a.max(b))).collect();
            let cut = Cut::of(ranges.iter().copied());
            for PortMatch { first, last, .. } in &ranges {
                let blocks: Vec<(u16, u8)> = cut.blocks(*first, *last).collect();
                prop_assert!(blocks.iter().all(|(port, log2)| u32::from(*port) % (1u32 << log2) == 0));
                let covering = blocks.iter().filter(|(port, log2)| probe >> log2 == port >> log2).count();
                prop_assert_eq!(covering, usize::from((*first..=*last).contains(&probe)));
            }
            prop_assert!(sizes(cut, &ranges) <= MANY_SIZES);
            prop_assert!(sizes(cut, &ranges) <= sizes(Cut::EVERY, &ranges));
            let mut turned = ranges.clone();
            turned.reverse();
            prop_assert_eq!(Cut::of(turned), cut);
        }
    }
}
