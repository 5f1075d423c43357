//! Port ranges as people wrote them: the aligned blocks of a policy map, put together again.

use villus_abi::{PolicyEntry, PolicyKey};
use villus_emergency::port_text;
use villus_print::PolicyRow;

/// One row: a single entry, or the blocks of one range.
struct Run {
    first: PolicyKey,
    entry: PolicyEntry,
    last_port: u16,
    has_block: bool,
}

impl Run {
    fn new(key: PolicyKey, entry: PolicyEntry) -> Self {
        Self { first: key, entry, last_port: last_port(&key), has_block: key.block_log2() > 0 }
    }

    /// Takes a block that begins where the run ends and says the same.
    fn takes(&mut self, key: &PolicyKey, entry: &PolicyEntry) -> bool {
        let about = |key: &PolicyKey| (key.dir(), key.identity, key.proto);
        let says = |entry: &PolicyEntry| (entry.is_deny(), entry.proxy_port);
        let follows = self.last_port.checked_add(1) == Some(key.port()) && key.dport != 0;
        let block = self.has_block || key.block_log2() > 0;
        let single = self.first.dport == 0 && self.first.block_log2() == 0;
        if single
            || !follows
            || !block
            || about(key) != about(&self.first)
            || says(entry) != says(&self.entry)
        {
            return false;
        }
        self.last_port = last_port(key);
        self.has_block = true;
        self.entry.packets = self.entry.packets.saturating_add(entry.packets);
        self.entry.bytes = self.entry.bytes.saturating_add(entry.bytes);
        true
    }

    fn row(self, labels: Vec<String>) -> PolicyRow {
        let row = PolicyRow::new(&self.first, &self.entry, labels);
        if !self.has_block {
            return row;
        }
        // The protocol as the print of one port has it.
        let one = port_text(&PolicyKey { direction: self.first.dir() as u8, ..self.first });
        let proto = one.rsplit('/').next().unwrap_or_default().to_owned();
        PolicyRow { port_proto: format!("{}-{}/{proto}", self.first.port(), self.last_port), ..row }
    }
}

fn last_port(key: &PolicyKey) -> u16 {
    let last = u32::from(key.port()) + (1_u32 << key.block_log2()) - 1;
    u16::try_from(last).unwrap_or(u16::MAX)
}

/// The rows of a policy map: by direction, denies first, then by identity, protocol and port; the blocks of
/// a range together unless every key is to be seen as it is.
pub fn rows<'a>(
    entries: impl IntoIterator<Item = (&'a PolicyKey, &'a PolicyEntry)>,
    every_key: bool,
    labels: impl Fn(u32) -> Vec<String>,
) -> Vec<PolicyRow> {
    let mut sorted: Vec<_> = entries.into_iter().map(|(key, entry)| (*key, *entry)).collect();
    sorted.sort_by_key(|(key, entry)| {
        (key.dir(), !entry.is_deny(), key.identity, key.proto, key.port(), key.block_log2())
    });
    let mut runs: Vec<Run> = Vec::new();
    for (key, entry) in sorted {
        let taken = !every_key && runs.last_mut().is_some_and(|run| run.takes(&key, &entry));
        if !taken {
            runs.push(Run::new(key, entry));
        }
    }
    runs.into_iter()
        .map(|run| {
            let labels = labels(run.first.identity);
            run.row(labels)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use villus_abi::Direction;

    use super::*;

    fn ports(texts: &[&str], every_key: bool) -> Vec<String> {
        let keys: Vec<PolicyKey> = texts
            .iter()
            .flat_map(|text| text.parse::<crate::ports::Ports>().unwrap().keys(7, Direction::Ingress))
            .collect();
        let entry = PolicyEntry { packets: 1, bytes: 60, ..PolicyEntry::ALLOW };
        let entries: Vec<_> = keys.iter().map(|key| (*key, entry)).collect();
        rows(entries.iter().map(|(key, entry)| (key, entry)), every_key, |_| Vec::new())
            .into_iter()
            .map(|row| format!("{} {}", row.port_proto, row.packets.unwrap_or_default()))
            .collect()
    }

    #[test]
    fn blocks_of_a_range_are_one_row() {
        assert_eq!(ports(&["8000-8999/tcp"], false), ["8000-8999/TCP 6"]);
        assert_eq!(ports(&["8001-8999/udp"], false), ["8001-8999/UDP 11"]);
        assert_eq!(ports(&["1-65534/tcp"], false), ["1-65534/TCP 30"]);
    }

    #[test]
    fn single_ports_stay_apart() {
        assert_eq!(
            ports(&["80", "81", "any/tcp", "any"], false),
            ["ANY 1", "ANY/TCP 1", "80/TCP 1", "81/TCP 1"]
        );
        assert_eq!(ports(&["0/icmp", "8/icmp"], false), ["8/ICMP 1", "0/ICMP 1"]);
    }

    #[test]
    fn every_key_can_be_seen() {
        assert_eq!(ports(&["8000-8999/tcp"], true).len(), 6);
    }
}
