//! Policies and identities to reason about: those of the agent, or of files, without agent and root.

use clap::Args;
use villus_api::EndpointRef;
use villus_api::model::{Identity, PolicyQuery};
use villus_labels::{Labels, NumericIdentity, source};
use villus_policy::{EndpointPolicy, Policy, Referent, Repository, Settings, parse};

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
}

impl SceneArgs {
    /// Whether policies are those of files.
    pub fn is_offline(&self) -> bool {
        !self.policies.is_empty()
    }

    /// The policies, without identities.
    pub fn policies(&self, host: &Host) -> Result<Scene, Failure> {
        let settings = policy_settings(&self.config.load(self.cluster_name.as_deref())?)?;
        let mut scene =
            Scene { settings, policies: Vec::new(), referents: Vec::new(), identities: Vec::new() };
        if self.is_offline() {
            for file in files::read(&self.policies)? {
                scene.read(&file.name, &file.text)?;
            }
        } else {
            let policy = host.client()?.policy(&PolicyQuery::default())?.policy;
            let objects: Vec<serde_json::Value> = serde_json::from_str(&policy)
                .map_err(|error| Failure::new(format!("the agent's rules are no JSON: {error}")))?;
            scene.read("the agent", &serde_json::json!({"kind": "List", "items": objects}).to_string())?;
        }
        Ok(scene)
    }

    /// The policies and everybody that is known.
    pub fn load(&self, host: &Host) -> Result<Scene, Failure> {
        let mut scene = self.policies(host)?;
        scene.identities = with_labels(match &self.identities {
            Some(file) => read_identities(file)?,
            None if self.is_offline() => {
                return Err(Failure::usage("--policies without --identities: nobody is known")
                    .fix("write them with `villus identity list -o json` where an agent runs"));
            }
            None => host.client()?.identities(&[])?,
        })?;
        scene.identities.sort_by_key(|(identity, _)| *identity);
        scene.identities.dedup_by_key(|(identity, _)| *identity);
        Ok(scene)
    }

    /// Who is known: to the file, or to the agent if it answers; reserved identities always.
    pub fn known(&self, host: &Host) -> Result<Vec<(NumericIdentity, Labels)>, Failure> {
        with_labels(match &self.identities {
            Some(file) => read_identities(file)?,
            None => host.brief_client().and_then(|client| client.identities(&[]).ok()).unwrap_or_default(),
        })
    }
}

/// Identities as numbers and labels, reserved ones added.
fn with_labels(known: Vec<Identity>) -> Result<Vec<(NumericIdentity, Labels)>, Failure> {
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
        for policy in &self.policies {
            repository.upsert(policy.clone());
        }
        for (identity, labels) in who {
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

/// The policy of labels.
pub fn compiled(repository: &Repository, labels: &Labels) -> Result<EndpointPolicy, Failure> {
    repository.endpoint_policy(labels, ENTRIES).map_err(Failure::new)
}

/// Labels as one text.
pub fn text_of(labels: &Labels) -> String {
    let mut texts: Vec<String> = labels.iter().map(ToString::to_string).collect();
    texts.sort();
    texts.join(" ")
}
