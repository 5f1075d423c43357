//! From policies and identities to kernel maps: all from nothing, one identity, one policy, and what it takes to hold.
//!
//! Every node has 250 endpoints, no two alike, with four policies each that let 100 identities reach five ports: about
//! 2,000 entries an endpoint. Everything runs on one thread.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use villus_datapath::{Edits, Entries, Maps, Pins, PolicyMaps, ROOM, Shapes, Sizes};
use villus_labels::{Labels, NumericIdentity};
use villus_policy::{Repository, Settings, SubjectChange, SubjectId, parse};

use crate::report::Row;

const ENDPOINTS: u16 = 250;
const PER_ENDPOINT: usize = 4;
const GROUP: usize = 100;
const PORTS: u16 = 5;
/// Groups that policies speak about; all others are unaffected by any policy.
const SELECTED: usize = 100;
/// As the agent does: endpoints whose whole policies are in memory at once.
const TOGETHER: usize = 64;
const ROUNDS: usize = 200;
const CHANGED_POLICIES: usize = 100;
const MOST: u32 = 16_384;
const SIZES: Sizes =
    Sizes { endpoints: 512, ct_tcp: 1024, ct_any: 1024, frags: 1024, ipcache: 1024, events: 4096, nat: 0 };

/// Runs the benchmark.
pub fn run() -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    // First, while nothing has been freed that the process would still hold.
    let before = resident()?;
    let node = Node::build(65_536, 10_000)?;
    for (held, what) in
        node.held.iter().zip(["64K identities", "and 10,000 policies", "and 250 endpoints compiled"])
    {
        rows.push(row(&format!("resident, {what}"), *held, "MB", (before, "before it"), None));
    }
    let now = resident()?;
    rows.push(row("resident, and their maps written", now, "MB", (before, "before it"), Some(150.0)));
    drop(node);
    let kernel = kernel_alone()?;
    let mut first: BTreeMap<&str, f64> = BTreeMap::new();
    for (count, name) in [(1_000, "1K"), (8_000, "8K"), (10_000, "10K"), (65_536, "64K")] {
        let mut node = Node::build(count, 1_000)?;
        let goal = (count == 10_000).then_some(2000.0);
        let all = (millis(kernel), "kernel alone, batches");
        rows.push(row(&format!("all from nothing, {name} identities"), millis(node.took), "ms", all, goal));
        let mut add = |what: &'static str, figure: f64, goal| {
            let base = *first.entry(what).or_insert(figure);
            rows.push(row(
                &format!("{what}, {name} identities"),
                figure,
                "ms",
                (base, "1K identities"),
                goal,
            ));
        };
        let ten = node.identities("team")?;
        add("identity added, 10 endpoints, p50", ten.0, Some(1.0));
        add("identity added, 10 endpoints, p99", ten.1, Some(10.0));
        let all = node.identities("everybody")?;
        add("identity added, 250 endpoints, p50", all.0, Some(1.0));
        add("identity added, 250 endpoints, p99", all.1, Some(10.0));
        let policies = node.policies()?;
        add("policy added, 10 endpoints, p50", policies.0, None);
        add("policy added, 10 endpoints, p99", policies.1, Some(20.0));
        node.verify()?;
    }
    Ok(rows)
}

/// The part of a node that turns policies into kernel maps.
struct Node {
    repository: Repository,
    maps: Arc<Maps>,
    policies: PolicyMaps,
    endpoints: BTreeMap<u16, SubjectId>,
    next: u32,
    took: Duration,
    /// What the process held when identities, policies and compiled policies were there.
    held: Vec<f64>,
}

impl Node {
    fn build(identities: usize, policies: usize) -> Result<Self> {
        let pins = Arc::new(Pins::detached()?);
        let maps = Arc::new(Maps::open(&pins, &SIZES)?);
        let mut kernel = PolicyMaps::open(pins, maps.clone(), MOST)?;
        // As the agent does before any endpoint is there.
        kernel.prepare(&(1..=ENDPOINTS).collect::<Vec<_>>())?;
        let start = Instant::now();
        let mut settings = Settings::new("bench").map_err(|error| anyhow!("{error}"))?;
        settings.max_entries = MOST as usize - ROOM;
        let mut node = Self {
            repository: Repository::new(settings),
            maps,
            policies: kernel,
            endpoints: BTreeMap::new(),
            next: 256,
            took: Duration::ZERO,
            held: Vec::new(),
        };
        for i in 0..identities {
            let labels = peer(&format!("g{}", i / GROUP), i)?;
            node.repository.upsert_identity(NumericIdentity(node.next), &labels);
            node.next += 1;
        }
        node.held.push(resident()?);
        let groups = (identities / GROUP).min(SELECTED);
        for n in 0..policies {
            let text = match u16::try_from(n / PER_ENDPOINT) {
                Ok(id) if id < ENDPOINTS => {
                    policy(&format!("p{n}"), &format!("app: local{}", id + 1), &format!("g{}", n % groups))
                }
                // Nobody of this node.
                _ => policy(&format!("p{n}"), &format!("app: elsewhere{n}"), &format!("g{}", n % groups)),
            };
            node.import(&text)?;
        }
        node.import(&policy("everybody", "kind: local", "everybody"))?;
        node.import(&policy("team", "team: t0", "team"))?;
        node.held.push(resident()?);
        for id in 1..=ENDPOINTS {
            let team = id % 25;
            let labels = labels(&format!("app=local{id},kind=local,team=t{team},{NAMESPACE}"))?;
            node.endpoints.insert(id, node.repository.acquire_subject(&labels));
        }
        node.repository.sync();
        node.held.push(resident()?);
        let ids: Vec<u16> = node.endpoints.keys().copied().collect();
        let mut entries = 0;
        for ids in ids.chunks(TOGETHER) {
            let wanted: Vec<(u16, Entries)> = ids.iter().map(|id| node.wanted(*id)).collect::<Result<_>>()?;
            let batch: Vec<(u16, &Entries)> = wanted.iter().map(|(id, entries)| (*id, entries)).collect();
            for (id, result) in node.policies.apply_all(&batch, &mut &node.maps.endpoints)? {
                result.with_context(|| format!("endpoint {id}"))?;
            }
            entries += wanted.iter().map(|(_, entries)| entries.len()).sum::<usize>();
        }
        node.took = start.elapsed();
        ensure!(entries >= usize::from(ENDPOINTS) * 1900, "{entries} entries are not what is to be measured");
        Ok(node)
    }

    fn import(&mut self, text: &str) -> Result<()> {
        for policy in parse("bench", text).map_err(|refused| anyhow!("{refused}"))?.policies {
            self.repository.upsert(policy);
        }
        Ok(())
    }

    fn wanted(&self, id: u16) -> Result<(u16, Entries)> {
        let compiled = self.endpoints.get(&id).and_then(|subject| self.repository.compiled(*subject));
        let (policy, _) = compiled.context("a policy is not compiled")?;
        Ok((id, policy.map_entries().collect()))
    }

    /// As the agent does: what is different goes into the maps of all endpoints that it concerns.
    fn follow(&mut self) -> Result<usize> {
        let mut edits: BTreeMap<SubjectId, Arc<Edits>> = BTreeMap::new();
        let mut last: Option<(SubjectChange, Arc<Edits>)> = None;
        for change in self.repository.sync() {
            let (policy, _) = self.repository.compiled(change.subject).context("a policy is not compiled")?;
            let shapes = Shapes { mask: policy.mask(), deny_identity: policy.deny_identity() };
            let like = last
                .take()
                .filter(|(like, edits)| Arc::ptr_eq(&like.edits, &change.edits) && edits.shapes() == shapes);
            let own = like.map_or_else(
                || {
                    let mut own = Edits::new(shapes);
                    change.edits.iter().for_each(|edit| own.push(edit.key, edit.before, edit.after));
                    Arc::new(own)
                },
                |(_, edits)| edits,
            );
            edits.insert(change.subject, own.clone());
            last = Some((change, own));
        }
        let batch = self.endpoints.iter().filter_map(|(id, subject)| Some((*id, &**edits.get(subject)?)));
        let batch: Vec<(u16, &Edits)> = batch.collect();
        for (id, result) in self.policies.apply_edits(&batch, &mut &self.maps.endpoints)? {
            result?.with_context(|| format!("endpoint {id} was not edited in place"))?;
        }
        Ok(batch.len())
    }

    /// Median and 99th percentile of adding an identity of a group, in milliseconds.
    fn identities(&mut self, group: &str) -> Result<(f64, f64)> {
        let expected = if group == "team" { usize::from(ENDPOINTS) / 25 } else { usize::from(ENDPOINTS) };
        let mut times = Vec::with_capacity(ROUNDS);
        for round in 0..ROUNDS {
            let identity = NumericIdentity(self.next + 1 + round as u32);
            let labels = peer(group, 1_000_000 + round)?;
            let start = Instant::now();
            self.repository.upsert_identity(identity, &labels);
            let edited = self.follow()?;
            times.push(start.elapsed());
            ensure!(edited == expected, "{edited} endpoints were edited, not {expected}");
            // Some stay, as on a node.
            if round % 8 != 0 {
                self.repository.remove_identity(identity);
                self.follow()?;
            }
        }
        self.next += ROUNDS as u32 + 1;
        Ok(percentiles(times))
    }

    /// Median and 99th percentile of adding a policy that selects ten endpoints and lets a group reach five ports.
    fn policies(&mut self) -> Result<(f64, f64)> {
        let mut times = Vec::with_capacity(CHANGED_POLICIES);
        for round in 0..CHANGED_POLICIES {
            let group = format!("g{}", round % 10);
            let text = policy(&format!("new{round}"), &format!("team: t{}", 1 + round % 24), &group);
            let start = Instant::now();
            self.import(&text)?;
            let edited = self.follow()?;
            times.push(start.elapsed());
            ensure!(edited == usize::from(ENDPOINTS) / 25, "{edited} endpoints were edited");
            let gone = self.repository.policies().find(|policy| policy.key.name.starts_with("new"));
            let gone = gone.context("the policy is not there")?.key.clone();
            self.repository.delete([gone]);
            self.follow()?;
        }
        Ok(percentiles(times))
    }

    /// Whether every map holds what is compiled from nothing.
    fn verify(&self) -> Result<()> {
        for id in self.endpoints.keys() {
            let (id, entries) = self.wanted(*id)?;
            ensure!(
                self.policies.compare(id, &entries)?.is_none(),
                "the map of endpoint {id} is not as wanted"
            );
        }
        Ok(())
    }
}

const NAMESPACE: &str = "io.kubernetes.pod.namespace=default,io.cilium.k8s.policy.cluster=bench";

fn labels(text: &str) -> Result<Labels> {
    Labels::parse_list(text, "k8s").map_err(|error| anyhow!("{error}"))
}

fn peer(group: &str, n: usize) -> Result<Labels> {
    labels(&format!("app=app{n},group={group},{NAMESPACE},io.cilium.k8s.policy.serviceaccount=default"))
}

fn policy(name: &str, subject: &str, group: &str) -> String {
    let ports: Vec<String> =
        (0..PORTS).map(|port| format!("{{port: \"{}\", protocol: TCP}}", 8000 + port)).collect();
    format!(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: {name}, namespace: default}}\n\
         spec:\n  endpointSelector: {{matchLabels: {{{subject}}}}}\n  ingress:\n  \
         - fromEndpoints: [{{matchLabels: {{group: {group}}}}}]\n    toPorts: [{{ports: [{}]}}]\n",
        ports.join(", ")
    )
}

/// What the kernel takes for as many entries in as many maps, written in batches by nobody who thinks about them.
fn kernel_alone() -> Result<Duration> {
    let pins = Arc::new(Pins::detached()?);
    let maps = Arc::new(Maps::open(&pins, &SIZES)?);
    let mut policies = PolicyMaps::open(pins, maps.clone(), MOST)?;
    let ids: Vec<u16> = (1..=ENDPOINTS).collect();
    let wide: Entries = (0..2000)
        .map(|n| {
            (
                villus_abi::PolicyKey::new(256 + n, 8000, 6, villus_abi::Direction::Ingress),
                villus_abi::PolicyEntry::ALLOW,
            )
        })
        .collect();
    // Maps of the right size, then only what fills them.
    let batch: Vec<(u16, &Entries)> = ids.iter().map(|id| (*id, &wide)).collect();
    policies.apply_all(&batch, &mut &maps.endpoints)?;
    let mut took = Duration::ZERO;
    let elements: Vec<_> = wide.into_iter().collect();
    for id in ids {
        let number = maps.policies.get(&u32::from(id))?.context("no map in the slot")?;
        let map = villus_datapath::PolicyMap::new(villus_datapath::sys::map_by_id(number)?, "bench")?;
        map.remove_if(|_, _| true)?;
        let start = Instant::now();
        map.insert_all(&elements)?;
        took += start.elapsed();
    }
    Ok(took)
}

fn percentiles(mut times: Vec<Duration>) -> (f64, f64) {
    times.sort_unstable();
    let at = |share: usize| times.get(times.len() * share / 100).copied().map_or(f64::NAN, millis);
    (at(50), at(99))
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn resident() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.split_whitespace().next().context("VmRSS")?.parse::<f64>()? / 1024.0)
}

fn row(case: &str, ours: f64, unit: &str, baseline: (f64, &str), goal: Option<f64>) -> Row {
    Row {
        case: case.into(),
        ours,
        baseline: baseline.0,
        baseline_name: baseline.1.into(),
        ratio: ours / baseline.0,
        unit: unit.into(),
        goal: goal.map_or_else(|| "-".into(), |most| format!("< {most} {unit}")),
        holds: goal.is_none_or(|most| ours < most),
    }
}
