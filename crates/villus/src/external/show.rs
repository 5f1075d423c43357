//! `villus external list` and `get`.

use clap::Args;
use villus_external::Record;
use villus_print::Table;

use super::PlaceArgs;
use crate::{
    connect::Host,
    failure::Failure,
    out::{self, OutputArgs},
};

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  villus external list\n  villus external list -o json >backup.json      # external import reads it again"
)]
pub struct ListArgs {
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Args, Debug)]
#[command(after_help = "Example:\n  villus external get db-7 -o yaml")]
pub struct GetArgs {
    /// Its name.
    name: String,
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub fn list(host: &Host, args: &ListArgs) -> Result<(), Failure> {
    let (records, damaged) = args.place.with(host, async |externals, _| externals.list().await)?;
    for (key, reason) in damaged {
        out::complain(&format!("villus: `{key}` can't be read: {reason}"));
    }
    let objects: Vec<_> = records.iter().map(Record::object).collect();
    args.output.print(&objects, || {
        let mut table = Table::new(["NAME", "KIND", "IDENTITY", "ADDRESSES", "LABELS", "BEHIND", "EXPIRES"]);
        for record in &records {
            table.row(row(record));
        }
        table.render()
    })
}

fn row(record: &Record) -> [String; 7] {
    let addresses: Vec<String> = record.addresses.iter().map(ToString::to_string).collect();
    let behind = record.node.clone().or_else(|| record.host.map(|host| host.to_string()));
    [
        record.name.clone(),
        record.kind.to_string(),
        record.identity.to_string(),
        addresses.join(","),
        record.labels.to_string(),
        behind.unwrap_or_default(),
        record.expires.clone().unwrap_or_default(),
    ]
}

pub fn get(host: &Host, args: &GetArgs) -> Result<(), Failure> {
    let name = args.name.clone();
    let record = args.place.with(host, async |externals, _| externals.get(&name).await)?;
    let Some(record) = record else {
        return Err(Failure::new(format!("the cluster has no external resource {}", args.name))
            .fix("see `villus external list`"));
    };
    args.output.print(&record.object(), || {
        let [name, kind, identity, addresses, labels, behind, expires] = row(&record);
        let mut text = format!(
            "Name:             {name}\nKind:             {kind}\nAddresses:        {addresses}\nLabels:           {labels}\n\
             Identity:         {identity}\nIdentity labels:  {}\n",
            record.identity_labels()
        );
        for (title, value) in [("Behind:           ", behind), ("Expires:          ", expires)] {
            if !value.is_empty() {
                text.push_str(&format!("{title}{value}\n"));
            }
        }
        text + &format!(
            "Created:          {}\nUpdated:          {} by {}\n",
            record.created, record.updated, record.author
        )
    })
}
