//! Audit as operators switch it: for the agent, for the endpoints of a selector, for one endpoint. What policy denies passes
//! and is reported. Whichever of them audits, audits; policies that are audited themselves are the compiler's matter.

use serde::{Deserialize, Serialize};
use villus_api::model::{SelectorAudit, SelectorAuditDelete, SelectorAuditRequest};
use villus_api::{ApiError, ApiResult};
use villus_labels::{Labels, Selector};
use villus_policy::Audit;

use crate::node::Node;
use crate::state::timestamp;

/// Below `lib-dir`, the selectors whose endpoints are audited.
const AUDITS: &str = "audits.json";

/// The endpoints of a selector are audited, those of now and those to come.
#[derive(Debug, Clone)]
pub(crate) struct Selected {
    selector: Selector,
    row: Row,
}

/// As it is on disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Row {
    selector: String,
    audit: Audit,
    created: String,
}

impl Node {
    /// Reads the selectors whose endpoints are audited. A file that cannot be read is kept aside and said in the status.
    pub fn load_audits(&mut self) -> std::io::Result<()> {
        let rows = match self.state.load::<Vec<Row>>(AUDITS)? {
            Ok(rows) => rows.unwrap_or_default(),
            Err(damaged) => {
                let what =
                    format!("it was damaged ({}) and lies in {}", damaged.reason, damaged.kept.display());
                self.conditions.note("audited selectors", Some(what));
                return Ok(());
            }
        };
        for row in rows {
            match Selector::parse(&row.selector) {
                Ok(selector) => self.audits.push(Selected { selector, row }),
                Err(error) => {
                    tracing::error!(selector = row.selector, %error, "endpoints are audited no more")
                }
            }
        }
        Ok(())
    }

    /// What the agent's options and selectors audit of an endpoint with these labels.
    pub fn audit_of(&self, labels: &Labels) -> Audit {
        let selected = self.audits.iter().filter(|selected| selected.selector.matches(labels));
        selected.fold(self.runtime.audit, |all, selected| all.or(selected.row.audit))
    }

    /// Brings endpoints' records up to date after options, selectors or labels changed.
    ///
    /// # Errors
    /// Some record cannot be written; all others are.
    pub fn follow_audits(&mut self) -> villus_datapath::Result<()> {
        let mut result = Ok(());
        let ids: Vec<u16> = self.endpoints.keys().copied().collect();
        for id in ids {
            let Some(endpoint) = self.endpoints.get(&id) else { continue };
            let audit = self.audit_of(&endpoint.labels);
            let Some(endpoint) = self.endpoints.get_mut(&id).filter(|endpoint| endpoint.audited != audit)
            else {
                continue;
            };
            endpoint.audited = audit;
            let effective = endpoint.audit();
            endpoint.note("OK", format!("audit mode is {effective}"));
            result = self.write_record(id).and(result);
            // What audit let pass is judged now.
            self.rejudge.insert(id);
        }
        self.wake.rejudge.notify_one();
        result
    }

    /// The selectors whose endpoints are audited, and which endpoints those are now.
    pub fn list_audits(&self) -> Vec<SelectorAudit> {
        let endpoints = |selector: &Selector| {
            let selected = self.endpoints.values().filter(|endpoint| selector.matches(&endpoint.labels));
            selected.map(|endpoint| endpoint.id()).collect()
        };
        let model = |selected: &Selected| SelectorAudit {
            selector: selected.row.selector.clone(),
            audit: selected.row.audit.to_string(),
            created: selected.row.created.clone(),
            endpoints: endpoints(&selected.selector),
        };
        self.audits.iter().map(model).collect()
    }

    /// Audits the endpoints of a selector from now on; one that is there already is changed.
    pub fn put_audit(&mut self, request: &SelectorAuditRequest) -> ApiResult<Vec<SelectorAudit>> {
        let selector = read_selector(&request.selector)?;
        let audit: Audit = match request.audit.as_str() {
            "" => Audit::BOTH,
            text => text.parse().map_err(|error| ApiError::bad_field("audit", format!("{error}")))?,
        };
        if audit.is_none() {
            return Err(ApiError::bad_field("audit", "a selector that audits nothing is not kept")
                .hint("`villus policy audit delete SELECTOR` ends it"));
        }
        let before = self.audits.clone();
        self.audits.retain(|selected| selected.selector != selector);
        let row = Row { selector: request.selector.trim().to_owned(), audit, created: timestamp() };
        self.audits.push(Selected { selector, row });
        self.audits.sort_by(|a, b| a.row.selector.cmp(&b.row.selector));
        self.keep_audits(before, request.dry_run)
    }

    /// The endpoints of a selector are audited no more.
    pub fn delete_audit(&mut self, delete: &SelectorAuditDelete) -> ApiResult<Vec<SelectorAudit>> {
        let selector = read_selector(&delete.selector)?;
        let before = self.audits.clone();
        self.audits.retain(|selected| selected.selector != selector);
        if self.audits.len() == before.len() {
            return Err(ApiError::not_found(format!("no audit of `{}`", delete.selector))
                .hint("`villus policy audit list` shows all"));
        }
        self.keep_audits(before, delete.dry_run)
    }

    /// Writes them down and makes them true, or goes back to what was before.
    fn keep_audits(&mut self, before: Vec<Selected>, dry_run: bool) -> ApiResult<Vec<SelectorAudit>> {
        let now = self.list_audits();
        if dry_run {
            self.audits = before;
            return Ok(now);
        }
        let rows: Vec<&Row> = self.audits.iter().map(|selected| &selected.row).collect();
        if let Err(error) = self.state.save(AUDITS, &rows) {
            self.audits = before;
            let remedy = villus_durable::remedy(&error);
            return Err(ApiError::internal(format!("the audited selectors cannot be written down: {error}"))
                .hint(remedy));
        }
        self.follow_audits().map_err(ApiError::internal)?;
        Ok(now)
    }
}

fn read_selector(text: &str) -> ApiResult<Selector> {
    let selector =
        Selector::parse(text).map_err(|error| ApiError::bad_field("selector", error.to_string()))?;
    if text.trim().is_empty() {
        return Err(ApiError::bad_field("selector", "it selects every endpoint")
            .hint("`villus config PolicyAuditMode=true` audits all of them"));
    }
    Ok(selector)
}
