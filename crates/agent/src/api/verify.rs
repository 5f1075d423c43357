//! What is wanted beside what the kernel's maps hold.

use std::fmt::Display;
use std::hash::Hash;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::PoisonError;

use ipnet::IpNet;
use villus_abi::names;
use villus_abi::policy::{PolicyEntry, PolicyKey};
use villus_api::model::{Checked, Difference, DifferenceKind, VerifyReport, VerifyRequest};
use villus_api::{ApiError, ApiResult};
use villus_datapath::{Entries, policy_pin, view_entries};
use villus_emergency::key_text;

use super::maps::{ipcache_text, local_text};
use crate::kernel::{Drift, IpcacheMap};
use crate::masquerade::{NatDrift, table_name};
use crate::node::Node;

impl Node {
    /// Compares; with `repair` mends what differs, but for what operators did by hand.
    pub(super) fn verify(&mut self, request: &VerifyRequest) -> ApiResult<VerifyReport> {
        self.must_be_complete()?;
        let only = request.endpoint.as_ref().map(|id| self.find(id)).transpose()?;
        let mut report = self.compare_all(only).map_err(ApiError::internal)?;
        if !request.repair || request.dry_run || report.clean() {
            return Ok(report);
        }
        match only {
            Some(id) => self.regenerate([id]),
            None => {
                self.keep_masquerading();
                self.reconcile();
                self.ipcache_sync.full_trigger().request();
                self.step_ipcache();
            }
        }
        let left = self.compare_all(only).map_err(ApiError::internal)?;
        for difference in &mut report.differences {
            let stays = left.differences.iter().any(|other| {
                (&other.map, &other.key, other.kind) == (&difference.map, &difference.key, difference.kind)
            });
            difference.repaired = !stays && difference.kind != DifferenceKind::HandMade;
            if stays && difference.kind != DifferenceKind::HandMade && difference.note.is_empty() {
                let problem = difference.endpoint.and_then(|id| self.endpoints.get(&id)?.problem.clone());
                difference.note = problem.unwrap_or_else(|| "it could not be mended".into());
            }
        }
        Ok(report)
    }

    fn compare_all(&mut self, only: Option<u16>) -> villus_datapath::Result<VerifyReport> {
        self.read_journal();
        let mut report = VerifyReport::default();
        self.learn_shapes(&self.kernel.maps.endpoints.entries()?);
        if only.is_none() {
            self.compare_tables(&mut report)?;
            self.compare_masquerading(&mut report);
        }
        let live: Vec<u16> = self
            .endpoints
            .values()
            .filter(|e| e.is_live() && only.is_none_or(|only| only == e.id()))
            .map(|e| e.id())
            .collect();
        for id in live {
            self.compare_policy(id, &mut report)?;
        }
        Ok(report)
    }

    fn compare_masquerading(&self, report: &mut VerifyReport) {
        let Some(table) = &self.network.masquerading else { return };
        let drift = match table.lock().unwrap_or_else(PoisonError::into_inner).drift() {
            Ok(drift) => drift,
            Err(error) => Some(NatDrift::Altered(error.to_string())),
        };
        report.checked.push(Checked { map: table_name(), entries: 1 });
        let (kind, have) = match drift {
            None => return,
            Some(NatDrift::Missing) => (DifferenceKind::Missing, String::new()),
            Some(NatDrift::Altered(have)) => (DifferenceKind::Altered, have),
        };
        report.differences.push(Difference {
            map: table_name(),
            endpoint: None,
            kind,
            key: "the table itself".into(),
            want: "what endpoints send outside is masqueraded".into(),
            have,
            repaired: false,
            note: String::new(),
        });
    }

    fn keep_masquerading(&mut self) {
        let Some(table) = &self.network.masquerading else { return };
        let kept = table.lock().unwrap_or_else(PoisonError::into_inner).keep();
        self.counts.repaired += u64::from(matches!(kept, Ok(true)));
        self.conditions.note("masquerading", kept.err().map(|error| error.to_string()));
    }

    fn compare_policy(&mut self, id: u16, report: &mut VerifyReport) -> villus_datapath::Result<()> {
        self.adopt_put_back(id);
        let wanted = self.wanted_entries(id).unwrap_or_default();
        let differences = self.kernel.policies.compare(id, &wanted)?;
        let there = view_entries(&self.kernel.pins, &self.kernel.maps, id)?.entries;
        let map = policy_pin(id);
        report.checked.push(Checked { map: map.clone(), entries: there.len() as u64 });
        let held = if self.is_held(id) { "held: the agent's hands are off" } else { "" };
        let mut add =
            |kind, keys: &std::collections::BTreeSet<PolicyKey>, note: &dyn Fn(&PolicyKey) -> String| {
                for key in keys {
                    report.differences.push(Difference {
                        map: map.clone(),
                        endpoint: Some(id),
                        kind,
                        key: key_text(key),
                        want: decision(&wanted, key),
                        have: decision(&there, key),
                        repaired: false,
                        note: note(key),
                    });
                }
            };
        let plain = |_: &PolicyKey| held.to_owned();
        add(DifferenceKind::Missing, &differences.missing, &plain);
        add(DifferenceKind::Extra, &differences.extra, &plain);
        add(DifferenceKind::Altered, &differences.altered, &plain);
        let by_whom = |key: &PolicyKey| match self.emergency.deed_of(id, key) {
            Some(deed) => {
                format!("villus {} by {} (deed {})", deed.allow.command, deed.allow.by, deed.allow.id)
            }
            None => "put in by hand; `villus emergency undo` takes it out".to_owned(),
        };
        add(DifferenceKind::HandMade, &differences.hand_made, &by_whom);
        if differences.misplaced {
            report.differences.push(Difference {
                map,
                endpoint: Some(id),
                kind: DifferenceKind::Altered,
                key: "the map itself".into(),
                want: "the pinned map judges packets".into(),
                have: "another one does".into(),
                repaired: false,
                note: held.to_owned(),
            });
        }
        Ok(())
    }

    fn compare_tables(&self, report: &mut VerifyReport) -> villus_datapath::Result<()> {
        let maps = &self.kernel.maps;
        let there = maps.addrs4.entries()?;
        let text = |key: &u32| Ipv4Addr::from(key.to_ne_bytes()).to_string();
        add(report, names::ADDRS4, &there, &self.wanted_addrs4(), text, |v| local_text(*v));
        let there = maps.addrs6.entries()?;
        let text = |key: &[u8; 16]| Ipv6Addr::from(*key).to_string();
        add(report, names::ADDRS6, &there, &self.wanted_addrs6(), text, |v| local_text(*v));
        let there = maps.devices.entries()?;
        add(
            report,
            names::DEVICES,
            &there,
            &self.wanted_devices(),
            |k| format!("ifindex {k}"),
            |v| format!("endpoint {v}"),
        );
        let text = |key: &[u8; 16]| Ipv6Addr::from(*key).to_canonical().to_string();
        let node = |node: &villus_abi::Node| Ipv4Addr::from(node.tunnel.to_ne_bytes()).to_string();
        add(report, names::NODES, &maps.nodes.entries()?, &self.wanted_nodes(), text, node);
        if let Some(nat) = &maps.nat {
            let there = nat.prefixes.entries()?;
            let flags = |flags: &u32| format!("flags {flags:#x}");
            add(report, names::MASQUERADE, &there, &self.wanted_prefixes(), ipcache_text, flags);
            let there = nat.uplinks.entries()?;
            let lent = |uplink: &villus_abi::Uplink| format!("{uplink:?}");
            add(report, names::UPLINKS, &there, &self.wanted_uplinks(), |k| format!("ifindex {k}"), lent);
        }
        // Where they cannot be listed the condition of that name says so.
        let there = villus_net::node_routes().unwrap_or_default();
        let hop = |hop: &villus_net::NodeHop| match hop.gateway {
            Some(gateway) => format!("via {gateway}, device {}", hop.device),
            None => format!("device {}", hop.device),
        };
        add(report, "routes to nodes", &there, &self.wanted_routes().0, IpNet::to_string, hop);
        let there = maps.ipcache.entries()?;
        let wanted = IpcacheMap::wanted(&self.ipcache.snapshot());
        add(report, names::IPCACHE, &there, &wanted, ipcache_text, |v| format!("identity {}", v.identity));
        let unused = villus_abi::Endpoint::default();
        let there: Vec<_> = maps.endpoints.entries()?.into_iter().filter(|(_, v)| *v != unused).collect();
        add(
            report,
            names::ENDPOINTS,
            &there,
            &self.wanted_records(),
            |k| format!("endpoint {k}"),
            |v| format!("{v:?}"),
        );
        let there = maps.config.entries()?;
        let wanted = crate::kernel::Wanted::from([(0, self.wanted_config())]);
        add(report, names::CONFIG, &there, &wanted, |_| "config".to_owned(), |v| format!("{v:?}"));
        Ok(())
    }
}

fn decision(entries: &Entries, key: &PolicyKey) -> String {
    let text = |entry: &PolicyEntry| if entry.is_deny() { "deny" } else { "allow" };
    entries.get(key).map(text).unwrap_or_default().to_owned()
}

fn add<K: Copy + Eq + Hash, V: Copy + PartialEq, T: Display>(
    report: &mut VerifyReport,
    map: &str,
    there: &[(K, V)],
    wanted: &crate::kernel::Wanted<K, V>,
    key: impl Fn(&K) -> T,
    value: impl Fn(&V) -> String,
) {
    report.checked.push(Checked { map: map.to_owned(), entries: there.len() as u64 });
    let drift = Drift::between(wanted, there);
    let mut push = |kind, k: &K, want: String, have: String| {
        report.differences.push(Difference {
            map: map.to_owned(),
            endpoint: None,
            kind,
            key: key(k).to_string(),
            want,
            have,
            repaired: false,
            note: String::new(),
        });
    };
    for (k, want) in &drift.missing {
        push(DifferenceKind::Missing, k, value(want), String::new());
    }
    for (k, have) in &drift.extra {
        push(DifferenceKind::Extra, k, String::new(), value(have));
    }
    for (k, want, have) in &drift.altered {
        push(DifferenceKind::Altered, k, value(want), value(have));
    }
}
