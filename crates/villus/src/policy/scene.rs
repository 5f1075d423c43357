//! Policies and identities to reason about: those of the agent, or of files, without agent and root.

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use villus_api::EndpointRef;
use villus_api::model::{self, Identity, PolicyQuery};
use villus_labels::{Labels, NumericIdentity, source};
use villus_policy::{
    EndpointPolicy, EnforcementMode, NamedPort, Policy, Referent, Repository, Settings, parse,
    with_named_ports,
};

use super::files;
use crate::{
    connect::Host,
    failure::Failure,
    kernel::{ConfigArgs, policy_settings},
};

/// More entries than any map holds: what is reasoned about need not fit.
const ENTRIES: usize = 1 << 20;

/// Where policies and identities come from.
#[derive(Args, Clone, Debug, Default)]
pub struct SceneArgs {
    /// Files of policies, or directories of them, instead of those of the agent.
    #[arg(long, value_name = "FILE", num_args = 1.., value_hint = clap::ValueHint::AnyPath)]
    policies: Vec<String>,
    /// A file of identities instead of those of the agent: the JSON of `villus identity list -o json`.
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    identities: Option<String>,
    /// Name of the local cluster, in place of what the options say.
    #[arg(long, value_name = "NAME")]
    cluster_name: Option<String>,
    /// Options that change what policies mean.
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// Policies, and who there is.
pub struct Scene {
    settings: Settings,
    policies: Vec<Policy>,
    referents: Vec<Referent>,
    /// Identities with their labels, sorted by number.
    pub identities: Vec<(NumericIdentity, Labels)>,
    /// Named ports of identities.
    ports: BTreeMap<NumericIdentity, BTreeSet<NamedPort>>,
}

impl SceneArgs {
    /// Whether policies are those of files.
    pub fn is_offline(&self) -> bool {
        !self.policies.is_empty()
    }

    /// The policies, and everybody that is known, if anything says so.
    pub fn policies(&self, host: &Host) -> Result<Scene, Failure> {
        let mut scene = if self.is_offline() {
            let mut scene = Scene::new(self.settings()?);
            for file in files::read(&self.policies)? {
                scene.read(&file.name, &file.text)?;
            }
            scene
        } else {
            let policy = host.client()?.policy(&PolicyQuery::default())?;
            // Options are those of the agent, unless others are given.
            let is_told = self.config.is_given() || self.cluster_name.is_some();
            let settings = if is_told { self.settings()? } else { settings_of(&policy.settings)? };
            let objects: Vec<serde_json::Value> = serde_json::from_str(&policy.policy)
                .map_err(|error| Failure::new(format!("the agent's rules are no JSON: {error}")))?;
            let mut scene = Scene::new(settings);
            scene.read("the agent", &serde_json::json!({"kind": "List", "items": objects}).to_string())?;
            scene
        };
        match &self.identities {
            Some(file) => scene.know(read_identities(file)?)?,
            None if self.is_offline() => {}
            None => scene.know(host.client()?.identities(&[])?)?,
        }
        Ok(scene)
    }

    /// The policies and everybody that is known.
    pub fn load(&self, host: &Host) -> Result<Scene, Failure> {
        if self.is_offline() && self.identities.is_none() {
            return Err(Failure::usage("--policies without --identities: nobody is known")
                .fix("write them with `villus identity list -o json` where an agent runs"));
        }
        self.policies(host)
    }

    /// Who is known: to the file, or to the agent if it answers; reserved identities always.
    pub fn known(&self, host: &Host) -> Result<Vec<(NumericIdentity, Labels)>, Failure> {
        with_labels(&match &self.identities {
            Some(file) => read_identities(file)?,
            None => host.brief_client().and_then(|client| client.identities(&[]).ok()).unwrap_or_default(),
        })
    }

    fn settings(&self) -> Result<Settings, Failure> {
        policy_settings(&self.config.load(self.cluster_name.as_deref())?)
    }
}

/// What a running agent's options make of policies.
fn settings_of(settings: &model::PolicySettings) -> Result<Settings, Failure> {
    let model::PolicySettings {
        enforcement,
        cluster_name,
        allow_localhost,
        default_local_cluster,
        host_is_workload,
    } = settings;
    let mode = EnforcementMode::from_name(enforcement).ok_or_else(|| {
        Failure::new(format!(
            "the agent's enable-policy is {enforcement:?}, which this version does not know"
        ))
        .fix("use the version of the agent")
    })?;
    Ok(Settings {
        mode,
        allow_localhost: *allow_localhost,
        default_local_cluster: *default_local_cluster,
        host_is_workload: *host_is_workload,
        ..Settings::new(cluster_name).map_err(Failure::new)?
    })
}

/// Identities as numbers and labels, reserved ones added.
fn with_labels(known: &[Identity]) -> Result<Vec<(NumericIdentity, Labels)>, Failure> {
    let mut identities = Vec::with_capacity(known.len());
    for identity in known {
        let labels = Labels::parse_list(&identity.labels.join(","), source::K8S)
            .map_err(|error| Failure::new(format!("labels of identity {}: {error}", identity.id)))?;
        identities.push((NumericIdentity(identity.id), labels));
    }
    let reserved =
        NumericIdentity::reserved().filter_map(|(identity, _)| Some((identity, identity.reserved_labels()?)));
    identities.extend(reserved);
    Ok(identities)
}

fn read_identities(file: &str) -> Result<Vec<Identity>, Failure> {
    let text = std::fs::read_to_string(file).map_err(|error| Failure::new(format!("{file}: {error}")))?;
    serde_json::from_str(&text).map_err(|error| {
        Failure::new(format!("{file} is no list of identities: {error}"))
            .fix("write it with `villus identity list -o json`")
    })
}

impl Scene {
    fn new(settings: Settings) -> Self {
        Self {
            settings,
            policies: Vec::new(),
            referents: Vec::new(),
            identities: Vec::new(),
            ports: BTreeMap::new(),
        }
    }

    fn know(&mut self, known: Vec<Identity>) -> Result<(), Failure> {
        self.identities = with_labels(&known)?;
        self.identities.sort_by_key(|(identity, _)| *identity);
        self.identities.dedup_by_key(|(identity, _)| *identity);
        for identity in known.iter().filter(|identity| !identity.named_ports.is_empty()) {
            let ports: BTreeSet<NamedPort> = identity
                .named_ports
                .iter()
                .map(|text| text.parse())
                .collect::<Result<_, villus_policy::NamedPortError>>()
                .map_err(|error| Failure::new(format!("ports of identity {}: {error}", identity.id)))?;
            self.ports.insert(NumericIdentity(identity.id), ports);
        }
        Ok(())
    }

    /// What rules know of a subject with these labels: also the named ports of those who have them.
    pub fn subject(&self, labels: &Labels) -> Labels {
        with_named_ports(labels, &self.ports_of(labels))
    }

    /// The named ports of the identity with these labels; where there is none, of all that have these among theirs.
    fn ports_of(&self, labels: &Labels) -> BTreeSet<NamedPort> {
        let among = |has: &Labels| labels.iter().all(|label| has.get(label.key()) == Some(label));
        let of = |who: &dyn Fn(&Labels) -> bool| -> BTreeSet<NamedPort> {
            let found = self.identities.iter().filter(|(_, has)| who(has));
            found.filter_map(|(identity, _)| self.ports.get(identity)).flatten().cloned().collect()
        };
        match self.identities.iter().any(|(_, has)| has == labels) {
            true => of(&|has| has == labels),
            false => of(&among),
        }
    }

    /// The policy of labels.
    pub fn compiled(&self, repository: &Repository, labels: &Labels) -> Result<EndpointPolicy, Failure> {
        repository.endpoint_policy(&self.subject(labels), ENTRIES).map_err(Failure::new)
    }

    fn read(&mut self, name: &str, text: &str) -> Result<(), Failure> {
        let parsed = parse(name, text).map_err(|refused| {
            Failure::new(refused.to_string()).fix("`villus policy validate` lists all that is wrong")
        })?;
        self.policies.extend(parsed.policies);
        self.referents.extend(parsed.referents);
        Ok(())
    }

    /// All policies in force, where these are who there is.
    pub fn repository<'a>(&self, who: impl IntoIterator<Item = &'a (NumericIdentity, Labels)>) -> Repository {
        let mut repository = Repository::new(self.settings.clone());
        repository.upsert_referents(self.referents.clone());
        repository.set_named_ports(self.ports.clone());
        for policy in &self.policies {
            repository.upsert(policy.clone());
        }
        for (identity, labels) in who {
            if !self.ports.is_empty() && !self.ports.contains_key(identity) {
                repository.set_named_ports([(*identity, self.ports_of(labels))]);
            }
            repository.upsert_identity(*identity, labels);
        }
        repository
    }

    /// Everybody that an identity's number or labels mean; one at least.
    pub fn find(&self, text: &str, host: &Host) -> Result<Vec<&(NumericIdentity, Labels)>, Failure> {
        let found: Vec<_> = match text.parse::<u32>() {
            Ok(number) => self.identities.iter().filter(|(identity, _)| identity.0 == number).collect(),
            Err(_) if text.contains('=') || text.contains("reserved:") => {
                let selector = villus_labels::Selector::parse(text)
                    .map_err(|error| Failure::usage(format!("{text:?}: {error}")))?;
                self.identities.iter().filter(|(_, labels)| selector.matches(labels)).collect()
            }
            Err(_) => {
                let identity = identity_of_endpoint(text, host)?;
                self.identities.iter().filter(|(known, _)| known.0 == identity).collect()
            }
        };
        if found.is_empty() {
            return Err(Failure::new(format!("nobody known is {text:?}")).fix(
                "give labels, an identity's number or an endpoint; `villus identity list` shows who there is",
            ));
        }
        Ok(found)
    }
}

/// The identity of an endpoint of this node.
pub fn identity_of_endpoint(text: &str, host: &Host) -> Result<u32, Failure> {
    let reference: EndpointRef =
        text.parse().map_err(|error| Failure::usage(format!("{text:?}: {error}")))?;
    let endpoint = host.client()?.endpoint(&reference)?;
    endpoint.status.identity.map(|identity| identity.id).ok_or_else(|| {
        Failure::new(format!("endpoint {} has no identity yet", endpoint.id)).fix("try again in a moment")
    })
}

/// Labels as one text.
pub fn text_of(labels: &Labels) -> String {
    let mut texts: Vec<String> = labels.iter().map(ToString::to_string).collect();
    texts.sort();
    texts.join(" ")
}
