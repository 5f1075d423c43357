//! Policies that come by the API, and what is kept of them on disk.

use std::io;
use std::path::PathBuf;

use villus_api::model::{
    PolicyChange as ChangeReply, PolicyDelete, PolicyImport, PolicyProblem, PolicySummary, PolicyValidation,
};
use villus_api::{ApiError, ApiResult};
use villus_labels::Selector;
use villus_policy::{ObjectKey, ObjectText, ParsedFile, Policy, PolicyChange, Problem, ProblemKind, Refused};

use super::API;
use crate::node::Node;
use crate::state::write_atomic;

impl Node {
    /// Reads the policies that were imported before. What cannot be read is kept aside.
    pub fn load_imports(&mut self) -> io::Result<()> {
        for entry in std::fs::read_dir(self.state.policies())? {
            let path = entry?.path();
            if path.extension().is_none_or(|end| end != "json") {
                continue;
            }
            let text = std::fs::read_to_string(&path)?;
            match villus_policy::parse(&path.display().to_string(), &text) {
                Ok(mut parsed) => {
                    of_the_api(&mut parsed);
                    self.repository.upsert_referents(parsed.referents);
                    for policy in parsed.policies {
                        self.repository.upsert(policy);
                    }
                }
                Err(refused) => {
                    let kept = PathBuf::from(format!("{}.damaged-0", path.display()));
                    std::fs::rename(&path, &kept)?;
                    tracing::error!(file = %kept.display(), %refused, "an imported policy cannot be read");
                }
            }
        }
        Ok(())
    }

    /// Takes over all policies of a text, or none.
    pub fn import(&mut self, import: &PolicyImport) -> ApiResult<ChangeReply> {
        if !import.dry_run {
            self.must_not_be_frozen()?;
        }
        let parsed = parse_import(&import.file, &import.text)?;
        let mut reply = ChangeReply {
            revision: self.repository.revision(),
            dry_run: import.dry_run,
            warnings: parsed.warnings.iter().map(ToString::to_string).collect(),
            ..ChangeReply::default()
        };
        for policy in &parsed.policies {
            self.must_not_be_elsewhere(&policy.key)?;
        }
        for key in objects(&parsed).map(|(key, _)| key) {
            if self.repository.policy(key).is_some() || self.repository.referents().get(key).is_some() {
                reply.replaced.push(name_of(key));
            } else {
                reply.added.push(name_of(key));
            }
        }
        if import.dry_run {
            return Ok(reply);
        }
        self.must_be_complete()?;
        if let Some(waiting) = self.import_waits(import, &parsed) {
            reply.added.clear();
            reply.replaced.clear();
            reply.waiting = Some(waiting);
            return Ok(reply);
        }
        self.import_now(parsed, reply)
    }

    /// Takes over all policies of a text, whatever they touch.
    pub(super) fn import_now(
        &mut self,
        parsed: ParsedFile,
        mut reply: ChangeReply,
    ) -> ApiResult<ChangeReply> {
        for (key, object) in objects(&parsed) {
            self.keep(key, object).map_err(|error| {
                let remedy = villus_durable::remedy(&error);
                ApiError::internal(format!("{key} cannot be written down: {error}")).hint(remedy)
            })?;
        }
        let mut all = None;
        merge(&mut all, self.repository.upsert_referents(parsed.referents));
        for policy in parsed.policies {
            merge(&mut all, self.repository.upsert(policy));
        }
        self.carry(all, &mut reply);
        Ok(reply)
    }

    /// A policy that a file holds is changed there: with one name only one of both could be in force.
    fn must_not_be_elsewhere(&self, key: &ObjectKey) -> ApiResult<()> {
        match self.repository.in_force(key).filter(|other| other.key.origin != key.origin) {
            Some(other) => Err(ApiError::conflict(format!("{key} comes from {}", other.key.origin))
                .hint("change it there, or give this one another name")),
            None => Ok(()),
        }
    }

    /// Removes imported policies.
    pub fn delete_policies(&mut self, delete: &PolicyDelete) -> ApiResult<ChangeReply> {
        if !delete.dry_run {
            self.must_not_be_frozen()?;
        }
        if delete.name.is_empty() && delete.labels.is_empty() && !delete.all {
            return Err(ApiError::bad_request("nothing says which policies are to go")
                .hint("give a name, labels, or all"));
        }
        let mut keys = self.imported(&delete.name, &delete.namespace, &delete.labels)?;
        if keys.is_empty() && !delete.all {
            return Err(self.not_imported(&delete.name));
        }
        keys.dedup();
        let mut reply = ChangeReply {
            revision: self.repository.revision(),
            deleted: keys.iter().map(name_of).collect(),
            dry_run: delete.dry_run,
            ..ChangeReply::default()
        };
        if delete.dry_run {
            return Ok(reply);
        }
        self.must_be_complete()?;
        if let Some(waiting) = self.deletion_waits(delete, &keys) {
            reply.deleted.clear();
            reply.waiting = Some(waiting);
            return Ok(reply);
        }
        self.delete_now(keys, reply)
    }

    /// Removes imported policies, whatever that touches.
    pub(super) fn delete_now(
        &mut self,
        keys: Vec<ObjectKey>,
        mut reply: ChangeReply,
    ) -> ApiResult<ChangeReply> {
        for key in &keys {
            if let Err(error) = std::fs::remove_file(self.file_of(key))
                && error.kind() != io::ErrorKind::NotFound
            {
                return Err(ApiError::internal(format!("the file of policy {}: {error}", key.name)));
            }
        }
        let mut all = None;
        merge(&mut all, self.repository.delete_referents(&keys));
        merge(&mut all, self.repository.delete(keys));
        self.carry(all, &mut reply);
        Ok(reply)
    }

    /// Says what a text holds and what is wrong with it.
    pub fn validate(&self, import: &PolicyImport) -> PolicyValidation {
        let file = if import.file.is_empty() { "the text" } else { &import.file };
        match villus_policy::parse(file, &import.text) {
            Ok(parsed) => PolicyValidation {
                valid: true,
                policies: parsed.policies.iter().map(|policy| self.summary(policy)).collect(),
                problems: parsed.warnings.iter().map(problem_of).collect(),
            },
            Err(refused) => PolicyValidation {
                valid: false,
                policies: Vec::new(),
                problems: refused.problems.iter().map(problem_of).collect(),
            },
        }
    }

    fn summary(&self, policy: &Policy) -> PolicySummary {
        let rules = self.repository.resolve(policy);
        let selected = |endpoint: &&crate::endpoint::Endpoint| {
            rules.iter().any(|rule| rule.subject.matches(&endpoint.subject_labels()))
        };
        PolicySummary {
            kind: policy.key.kind.name().to_owned(),
            namespace: policy.key.namespace.as_deref().unwrap_or_default().to_owned(),
            name: policy.key.name.to_string(),
            rules: policy.rules.len() as u64,
            endpoints: self.endpoints.values().filter(selected).map(|endpoint| endpoint.id()).collect(),
        }
    }

    fn carry(&mut self, change: Option<PolicyChange>, reply: &mut ChangeReply) {
        match change.filter(|change| !change.is_empty()) {
            Some(change) => self.realize(&change),
            // What is missing or in a shadow may be different all the same.
            None => self.note_policies(),
        }
        reply.revision = self.repository.revision();
        let problems = self.endpoints.values().filter_map(|endpoint| {
            Some(format!("endpoint {}: {}", endpoint.id(), endpoint.problem.as_ref()?))
        });
        reply.warnings.extend(problems);
    }

    /// Keys of imported policies that all of what is given picks; of what policies refer to only if a name picks no
    /// policy, or none is given.
    pub fn imported(&self, name: &str, namespace: &str, labels: &str) -> ApiResult<Vec<ObjectKey>> {
        let selector = match labels {
            "" => Selector::everything(),
            text => {
                Selector::parse(text).map_err(|error| ApiError::bad_field("labels", error.to_string()))?
            }
        };
        let picks = |key: &&ObjectKey| {
            &*key.origin == API
                && (name.is_empty() || *key.name == *name)
                && (namespace.is_empty() || key.namespace.as_deref() == Some(namespace))
        };
        let policies = self.repository.policies_with_labels(&selector).map(|policy| &policy.key);
        // Labels are those of policies.
        let referents = self.repository.referents().objects().map(|referent| &referent.key);
        let mut keys: Vec<ObjectKey> = policies.filter(picks).cloned().collect();
        if labels.is_empty() && (name.is_empty() || keys.is_empty()) {
            keys.extend(referents.filter(picks).cloned());
        }
        Ok(keys)
    }

    pub fn not_imported(&self, name: &str) -> ApiError {
        let elsewhere = self.repository.policies().find(|policy| *policy.key.name == *name);
        match elsewhere {
            Some(policy) => ApiError::conflict(format!("policy {name} comes from {}", policy.key.origin))
                .hint("remove it there"),
            None => ApiError::not_found("no imported policy is meant").hint("`villus policy get` shows all"),
        }
    }

    fn keep(&self, key: &ObjectKey, object: &ObjectText) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(object).map_err(io::Error::other)?;
        write_atomic(&self.file_of(key), &text)
    }

    fn file_of(&self, key: &ObjectKey) -> PathBuf {
        let namespace = key.namespace.as_deref().unwrap_or("");
        self.state.policies().join(format!("{}_{namespace}_{}.json", key.kind.name(), key.name))
    }

    /// Nothing is changed before every configured source was read.
    pub fn must_be_complete(&self) -> ApiResult<()> {
        if self.sources.complete {
            return Ok(());
        }
        Err(ApiError::unavailable("not every configured source of policies was read yet")
            .hint("`villus status` says which one is missing"))
    }
}

/// Reads a text as an import does.
pub(crate) fn parse_import(file: &str, text: &str) -> ApiResult<ParsedFile> {
    let file = if file.is_empty() { "the text" } else { file };
    let mut parsed = villus_policy::parse(file, text).map_err(refusal)?;
    of_the_api(&mut parsed);
    Ok(parsed)
}

/// Makes a text's objects the API's own.
fn of_the_api(parsed: &mut ParsedFile) {
    for policy in &mut parsed.policies {
        policy.key.origin = API.into();
    }
    for referent in &mut parsed.referents {
        referent.key.origin = API.into();
    }
}

/// The objects of a text as JSON.
pub(super) fn objects(parsed: &ParsedFile) -> impl Iterator<Item = (&ObjectKey, &ObjectText)> {
    let referents = parsed.referents.iter().map(|referent| (&referent.key, &referent.object));
    referents.chain(parsed.policies.iter().map(|policy| (&policy.key, &policy.object)))
}

pub(super) fn merge(all: &mut Option<PolicyChange>, change: PolicyChange) {
    match all {
        None => *all = Some(change),
        Some(all) => {
            all.revision = change.revision;
            all.updated.extend(change.updated);
            all.removed.extend(change.removed);
            all.subjects.extend(change.subjects);
            // A prefix may be new by one policy and gone by the next.
            all.gone_prefixes.retain(|prefix| !change.new_prefixes.contains(prefix));
            all.new_prefixes.retain(|prefix| !change.gone_prefixes.contains(prefix));
            all.new_prefixes.extend(change.new_prefixes);
            all.gone_prefixes.extend(change.gone_prefixes);
        }
    }
}

/// `namespace/name`, or the name of what is in no namespace.
pub(super) fn name_of(key: &ObjectKey) -> String {
    match &key.namespace {
        Some(namespace) => format!("{namespace}/{}", key.name),
        None => key.name.to_string(),
    }
}

fn refusal(refused: Refused) -> ApiError {
    let text = refused.to_string();
    match refused.problems.first() {
        Some(problem) => {
            let error = ApiError::bad_request(text).file(problem.file.clone());
            if problem.path.is_empty() { error } else { error.field(problem.path.clone()) }
        }
        None => ApiError::bad_request(text),
    }
}

fn problem_of(problem: &Problem) -> PolicyProblem {
    PolicyProblem {
        file: problem.file.clone(),
        line: problem.position.map_or(0, |position| u64::from(position.line)),
        policy: problem.object.clone().unwrap_or_default(),
        field: problem.path.clone(),
        message: problem.message.clone(),
        hint: String::new(),
        warning: problem.kind == ProblemKind::Warning,
    }
}
