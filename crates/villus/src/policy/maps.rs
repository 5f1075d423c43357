//! Policies of this node's endpoints as packets meet them: read from the kernel's maps, with or without an agent.

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use villus_abi::{
    Direction, Endpoint, PolicyEntry, PolicyKey,
    config::FLAG_AUDIT,
    endpoint::{
        FLAG_AUDIT_DEFAULT_EGRESS, FLAG_AUDIT_DEFAULT_INGRESS, FLAG_AUDIT_EGRESS, FLAG_AUDIT_INGRESS,
    },
};
use villus_api::EndpointRef;
use villus_api::model::{Difference, VerifyRequest};
use villus_datapath::{PolicyView, Snapshot};
use villus_labels::{Labels, NumericIdentity, Selector};
use villus_policy::EndpointPolicy;

use super::scene::SceneArgs;
use crate::{
    connect::Host,
    failure::{DIFFERS, Failure},
    kernel::{Kernel, PlaceArgs},
    out,
};

/// Whether the kernel's maps are asked, and where they are.
#[derive(Args, Clone, Debug, Default)]
pub struct KernelArgs {
    /// Ask the policy maps of this node's kernel, which packets are judged by, instead of policies.
    #[arg(long, conflicts_with = "policies")]
    pub from_kernel: bool,
    /// Mount point of the BPF file system [env: VILLUS_BPF_ROOT] [default: /sys/fs/bpf].
    #[arg(
        long,
        value_name = "PATH",
        value_hint = clap::ValueHint::DirPath,
        requires = "from_kernel",
        help_heading = "Places"
    )]
    bpf_root: Option<String>,
}

/// Endpoints of one identity whose maps say the same.
pub struct Group {
    pub identity: NumericIdentity,
    pub endpoints: Vec<u16>,
    pub policy: EndpointPolicy,
}

/// What the kernel holds, and who there is.
pub struct KernelScene {
    kernel: Kernel,
    /// Sorted by identity.
    groups: Vec<Group>,
    /// Everybody whom the kernel or the agent knows, sorted by number; labels are empty where nobody says them.
    pub identities: Vec<(NumericIdentity, Labels)>,
}

impl KernelArgs {
    /// Reads the maps. Labels of identities are those of a file or of the agent, as far as it answers.
    pub fn load(&self, scene: &SceneArgs, host: &Host) -> Result<KernelScene, Failure> {
        let kernel = PlaceArgs::of_bpf_root(&scene.config, self.bpf_root.as_deref()).kernel()?;
        let snapshot = Snapshot::without_flows(&kernel.pins, &kernel.maps)?;
        let whole_node = snapshot.config.is_some_and(|config| config.flags & FLAG_AUDIT != 0);
        let mut groups: Vec<Group> = Vec::new();
        for endpoint in snapshot.endpoints.values() {
            let Some(view) = snapshot.policies.get(&endpoint.policy) else { continue };
            let policy = as_judged(view, endpoint, whole_node);
            let identity = NumericIdentity(endpoint.identity);
            match groups.iter_mut().find(|group| group.identity == identity && group.policy == policy) {
                Some(group) => group.endpoints.push(endpoint.id),
                None => groups.push(Group { identity, endpoints: vec![endpoint.id], policy }),
            }
        }
        groups.sort_by_key(|group| group.identity);
        let mut identities: BTreeMap<NumericIdentity, Labels> = scene.known(host)?.into_iter().collect();
        let mapped = snapshot.ipcache.values().map(|value| value.identity);
        let keys = snapshot.policies.values().flat_map(|view| view.entries.keys()).map(|key| key.identity);
        let numbers: BTreeSet<u32> = mapped.chain(keys).filter(|number| *number != 0).collect();
        for number in numbers.into_iter().map(NumericIdentity).chain(groups.iter().map(|g| g.identity)) {
            identities.entry(number).or_default();
        }
        Ok(KernelScene { kernel, groups, identities: identities.into_iter().collect() })
    }
}

/// The entries that the path looks up, each as it decides.
fn as_judged(view: &PolicyView, endpoint: &Endpoint, whole_node: bool) -> EndpointPolicy {
    let audit = [FLAG_AUDIT_INGRESS, FLAG_AUDIT_EGRESS].map(|flag| whole_node || endpoint.has(flag));
    let by_default = [FLAG_AUDIT_DEFAULT_INGRESS, FLAG_AUDIT_DEFAULT_EGRESS].map(|flag| endpoint.has(flag));
    let is_asked = |key: &PolicyKey| {
        let bit = key.mask_bit();
        bit == 0 || endpoint.mask[key.dir() as usize] & bit != 0
    };
    // Packets are judged by the map in the slot, and by no other.
    let entries = view.entries.iter().filter(|(key, _)| view.in_slot.is_some() && is_asked(key));
    let mut policy = EndpointPolicy::of_entries(entries.map(|(key, entry)| {
        let audited = entry.is_audit() || entry.is_deny() && audit[key.dir() as usize];
        let decides = match (entry.is_deny(), audited) {
            (false, _) => PolicyEntry::ALLOW,
            (true, false) => PolicyEntry::DENY,
            (true, true) => PolicyEntry::AUDIT,
        };
        (*key, decides)
    }));
    for side in Direction::ALL.map(|direction| direction as usize) {
        policy.audit[side] = audit[side] || by_default[side];
    }
    policy
}

impl KernelScene {
    /// The groups of an identity's number, of labels, or of one endpoint; one at least.
    pub fn find(&self, text: &str, host: &Host) -> Result<Vec<&Group>, Failure> {
        let found: Vec<&Group> = match text.parse::<u32>() {
            Ok(number) => self.groups.iter().filter(|group| group.identity.0 == number).collect(),
            Err(_) if text.contains('=') || text.contains("reserved:") => {
                let selector =
                    Selector::parse(text).map_err(|error| Failure::usage(format!("{text:?}: {error}")))?;
                let is_meant = |group: &&Group| {
                    self.labels_of(group.identity).is_some_and(|labels| selector.matches(labels))
                };
                self.groups.iter().filter(is_meant).collect()
            }
            Err(_) => {
                let endpoint = self.kernel.endpoint(text, host)?;
                self.groups.iter().filter(|group| group.endpoints.contains(&endpoint)).collect()
            }
        };
        if found.is_empty() {
            return Err(Failure::new(format!("no endpoint of this node is {text:?}")).fix(
                "the kernel's maps say what this node's endpoints let pass, by their identity's number, their address, or \
                 their labels as far as the agent or --identities says them; see `villus bpf endpoint list`",
            ));
        }
        Ok(found)
    }

    /// The groups of an identity; empty if it has no endpoint on this node.
    pub fn of(&self, identity: NumericIdentity) -> impl Iterator<Item = &Group> {
        self.groups.iter().filter(move |group| group.identity == identity)
    }

    fn labels_of(&self, identity: NumericIdentity) -> Option<&Labels> {
        let at = self.identities.binary_search_by_key(&identity, |(number, _)| *number).ok()?;
        self.identities.get(at).map(|(_, labels)| labels)
    }

    /// Fails if the agent wants other entries in the maps that were asked, and says which.
    pub fn beside_wanted(&self, asked: &[&Group], host: &Host) -> Result<(), Failure> {
        let Some(client) = host.brief_client() else { return Ok(()) };
        let mut differences: Vec<Difference> = Vec::new();
        for endpoint in asked.iter().flat_map(|group| &group.endpoints) {
            let request =
                VerifyRequest { endpoint: Some(EndpointRef::Id(*endpoint)), ..VerifyRequest::default() };
            match client.verify(&request) {
                Ok(report) => differences.extend(report.differences),
                Err(error) => {
                    out::complain(&format!("villus: {error}"));
                    out::complain(
                        "  only the kernel's maps were asked: what policy wants is for the agent to say",
                    );
                    return Ok(());
                }
            }
        }
        if differences.is_empty() {
            return Ok(());
        }
        out::complain("villus: the kernel's maps differ from what policy asks for");
        let or_nothing = |text: &str| if text.is_empty() { "nothing".to_owned() } else { text.to_owned() };
        for Difference { map, kind, key, want, have, .. } in &differences {
            let (want, have) = (or_nothing(want), or_nothing(have));
            out::complain(&format!("  {map}: {key}: {kind}, wanted {want}, found {have}"));
        }
        Err(Failure::silent(DIFFERS))
    }
}
