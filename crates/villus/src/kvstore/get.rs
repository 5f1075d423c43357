//! `villus kvstore get`.

use clap::Args;
use serde::Serialize;
use villus_kvstore::Entry;

use super::{change::Text, open::StoreArgs};
use crate::{connect::Host, failure::Failure, out::OutputArgs};

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  villus kvstore get cilium/.heartbeat\n  villus kvstore get --recursive cilium/state/ip/v1 \
                  --kvstore-opt etcd.config=/etc/villus/etcd.yaml"
)]
pub struct GetArgs {
    /// The key, or how keys begin.
    #[arg(default_value = "", hide_default_value = true)]
    key: String,
    /// Show all keys that begin so.
    #[arg(long)]
    recursive: bool,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// An entry as JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    key: String,
    value: Text,
    #[serde(skip_serializing_if = "Option::is_none")]
    lease: Option<String>,
    revision: u64,
    created_revision: u64,
    version: u64,
}

impl Row {
    fn of(entry: &Entry) -> Self {
        Self {
            key: entry.key.to_string(),
            value: Text(entry.value.to_vec()),
            lease: entry.lease.map(|lease| lease.to_string()),
            revision: entry.mod_revision,
            created_revision: entry.create_revision,
            version: entry.version,
        }
    }

    fn line(&self) -> String {
        format!("{} => {}\n", self.key, self.value.shown())
    }
}

pub fn run(host: &Host, args: &GetArgs) -> Result<(), Failure> {
    if args.key.is_empty() && !args.recursive {
        return Err(Failure::usage("no key is given").fix("give one, or --recursive for all"));
    }
    let shared = args.store.open(host)?;
    if args.recursive {
        let listing = shared.wait(shared.store.list_prefix(&args.key))?;
        let rows: Vec<Row> = listing.entries.iter().map(Row::of).collect();
        return args.output.print(&rows, || rows.iter().map(Row::line).collect());
    }
    let Some(entry) = shared.wait(shared.store.get(&args.key))? else {
        return Err(Failure::new(format!("key {} is not found", args.key))
            .fix(format!("villus kvstore get --recursive {} shows what begins so", args.key)));
    };
    let row = Row::of(&entry);
    args.output.print(&row, || row.line())
}
