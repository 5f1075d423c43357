//! What would be copied: reads each remote once and writes nothing.

use std::sync::Arc;

use serde::Serialize;
use tokio::sync::watch;
use villus_kvstore::{Pages, Store, StoreError};

use crate::{
    Mesh,
    cluster::Claims,
    filter::{Dropped, Judge, Reason, Verdict},
    guard::{Guard, Highest},
    layout::{Kind, Layout, Odd},
    leases::Leases,
    remote::{Known, Remote, Shared},
    remotes::{self, RemoteFile},
};

/// What would be copied of one remote.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Preview {
    /// The remote.
    pub name: String,
    /// Its id; 0 if it is not known.
    pub cluster_id: u32,
    /// Why nothing would be copied, or why it could not be found out.
    pub problem: Option<String>,
    /// Each kind.
    pub kinds: Vec<PreviewKind>,
}

/// What would be copied of one kind.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct PreviewKind {
    /// The kind.
    pub kind: Kind,
    /// The layout.
    pub layout: Layout,
    /// Prefix of the copies.
    pub target: String,
    /// Entries that pass.
    pub passes: u64,
    /// Bytes of their keys and values.
    pub bytes: u64,
    /// Entries that don't, by reason.
    pub dropped: Dropped,
    /// The first few that pass: what follows the prefix.
    pub sample: Vec<String>,
}

impl Mesh {
    /// What would be copied, remote by remote. Writes nothing and needs no lock.
    ///
    /// # Errors
    /// The directory can't be read.
    pub async fn preview(&self) -> std::io::Result<Vec<Preview>> {
        let settings = self.settings();
        let found = remotes::read(&settings.directory, &settings.own.name)?;
        let (_changes, changed) = watch::channel(0);
        let shared = Shared {
            settings: Arc::clone(settings),
            local: Arc::clone(self.local()),
            own_store: self.own_store(),
            guard: Guard::default(),
            highest: Highest::default(),
            leases: Arc::new(Leases::new(Arc::clone(self.local()), settings.lease_ttl)),
            claims: Claims::default(),
            board: self.board(),
            connect: Arc::clone(self.connect()),
            local_changed: changed,
        };
        let mut previews = Vec::new();
        // The claims on ids are held until all are done.
        let mut all_known = Vec::new();
        for (name, file) in found {
            let (preview, known) = preview(&shared, &name, file).await;
            previews.push(preview);
            all_known.extend(known);
        }
        Ok(previews)
    }
}

async fn preview(shared: &Shared, name: &str, file: RemoteFile) -> (Preview, Option<Known>) {
    let mut preview = Preview { name: name.to_owned(), cluster_id: 0, problem: None, kinds: Vec::new() };
    let config = match file.config {
        Ok(config) => config,
        Err(problem) => {
            preview.problem = Some(problem);
            return (preview, None);
        }
    };
    let filter = config.extra.filter.clone();
    let store = match (shared.connect)(name, &config) {
        Ok(store) => store,
        Err(problem) => {
            preview.problem = Some(problem);
            return (preview, None);
        }
    };
    let remote = Remote { name: name.to_owned(), config, shared: shared.clone() };
    let known = match remote.ask(&store).await {
        Ok(Ok(known)) => known,
        Ok(Err(refused)) => {
            preview.problem = Some(refused.to_string());
            return (preview, None);
        }
        Err(problem) => {
            preview.problem = Some(problem);
            return (preview, None);
        }
    };
    preview.cluster_id = known.config.id;
    for layout in &shared.settings.layouts {
        let judge = Judge::new(filter.clone(), known.space.clone(), *layout == Layout::State);
        match kinds(&store, &known, *layout, &judge).await {
            Ok(kinds) => preview.kinds.extend(kinds),
            Err(error) => preview.problem = Some(error.to_string()),
        }
    }
    (preview, Some(known))
}

async fn kinds(
    store: &Arc<dyn Store>,
    known: &Known,
    layout: Layout,
    judge: &Judge,
) -> Result<Vec<PreviewKind>, StoreError> {
    let cluster = &known.space.cluster;
    // Labels of identities decide about addresses, and addresses about which identities are in use.
    kind(store, known, Kind::Identities, layout, judge).await?;
    let addresses = kind(store, known, Kind::Addresses, layout, judge).await?;
    judge.all_addresses_seen();
    let mut kinds = Vec::new();
    for one in known.config.kinds(layout) {
        if one.target(layout, cluster).is_none() {
            continue;
        }
        kinds.push(match one {
            Kind::Addresses => addresses.clone(),
            other => kind(store, known, other, layout, judge).await?,
        });
    }
    Ok(kinds)
}

async fn kind(
    store: &Arc<dyn Store>,
    known: &Known,
    kind: Kind,
    layout: Layout,
    judge: &Judge,
) -> Result<PreviewKind, StoreError> {
    let cluster = &known.space.cluster;
    let target = kind.target(layout, cluster).unwrap_or_default();
    let mut found = PreviewKind {
        kind,
        layout,
        target,
        passes: 0,
        bytes: 0,
        dropped: Dropped::new(),
        sample: Vec::new(),
    };
    for (source, prefix) in kind.sources(known.config.layout(), cluster).into_iter().enumerate() {
        let mut pages = Pages::of(&prefix);
        while let Some(page) = pages.next(store.as_ref()).await? {
            for entry in &page.entries {
                let Some(rest) = entry.key.strip_prefix(&prefix) else { continue };
                let verdict = match kind.check(rest, &known.space) {
                    Ok(()) => judge.judge(kind, rest, source as u8, &entry.value, 0, false),
                    Err(Odd::Foreign) => Verdict::Drop(Reason::ForeignKey),
                    Err(Odd::Shape) => Verdict::Drop(Reason::BadKey),
                };
                found.count(rest, entry.value.len(), verdict);
            }
        }
    }
    Ok(found)
}

// === impl PreviewKind ===

impl PreviewKind {
    fn count(&mut self, rest: &str, size: usize, verdict: Verdict) {
        match verdict {
            Verdict::Pass(_) => {
                self.passes += 1;
                self.bytes += (self.target.len() + rest.len() + size) as u64;
                if self.sample.len() < 3 {
                    self.sample.push(rest.to_owned());
                }
            }
            Verdict::Drop(reason) => *self.dropped.entry(reason).or_default() += 1,
        }
    }
}
