//! `villus kvstore set`.

use std::io::Read;

use clap::Args;
use villus_identity::{Meaning, beside, check_entry};

use super::{
    WriteArgs,
    change::{Change, Content, Plan, Text, carry_out},
    open::Shared,
};
use crate::{connect::Host, failure::Failure};

/// Where policies for all nodes lie; they have versions.
const POLICIES: &str = "villus/policies/";

#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  villus kvstore set foo=bar\n  villus kvstore set --dry-run \
                  cilium/state/identities/v1/id/15614229 \\\n    'k8s:app=app1;k8s:io.kubernetes.pod.namespace=ns1;'\n  \
                  villus kvstore set --key cilium/state/ip/v1/cluster1/10.3.192.65 --value - <pair.json\n\n\
                  Keys below cilium/state/ are checked as agents read them. A key that is there keeps its lease.")]
pub struct SetArgs {
    /// KEY=VALUE, or the key and then the value.
    #[arg(value_name = "KEY=VALUE | KEY VALUE", num_args = 0..=2)]
    words: Vec<String>,
    /// The key.
    #[arg(long, value_name = "KEY", requires = "value", conflicts_with = "words")]
    key: Option<String>,
    /// The value; - for standard input.
    #[arg(long, value_name = "VALUE", requires = "key", allow_hyphen_values = true)]
    value: Option<String>,
    /// Write it although it is wrong.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    write: WriteArgs,
}

pub fn run(host: &Host, args: &SetArgs) -> Result<(), Failure> {
    let (key, value) = pair(args)?;
    let shared = args.write.store.open(host)?;
    let mut notes = Vec::new();
    if key.starts_with(POLICIES) && !args.force {
        return Err(Failure::new(format!("{key}: policies for all nodes have versions"))
            .fix("use villus policy apply --cluster, or --force"));
    }
    match check_entry(&key, &value, shared.clusters()) {
        Ok(meaning) => {
            notes.extend(elsewhere(&shared, &meaning));
            notes.extend(shared.wait(beside(&*shared.store, &meaning))?);
        }
        Err(error) if args.force => notes.push(error.to_string()),
        Err(error) => {
            let what = format!("`{}`: {}: {}", error.key, error.field, error.reason);
            return Err(Failure::new(what).fix(format!("{}; or --force writes it as it is", error.fix)));
        }
    }
    let old = shared.wait(shared.store.get(&key))?;
    let lease = old.as_ref().and_then(|old| old.lease).map(|lease| lease.to_string());
    if lease.is_some() {
        notes
            .push(format!("{key} goes with its owner's lease, and its owner may write it again at any time"));
    }
    let change = Change::of(&key, old.as_ref(), Some(Content { value: Text(value), lease }));
    let changes = if change.is_none() { Vec::new() } else { vec![change] };
    carry_out(&shared, &args.write, Plan { verb: "set", undoes: None, forced: args.force, changes, notes })
}

/// A number of another cluster's range is known to all, and collected by that cluster's operator alone.
fn elsewhere(shared: &Shared, meaning: &Meaning) -> Option<String> {
    let (Meaning::Identity(number, _) | Meaning::Use(number, _)) = meaning else { return None };
    let (ours, theirs) = (shared.cluster_id()?, number.cluster_id(shared.clusters())?);
    (ours != theirs)
        .then(|| format!("identity {number} lies in the range of cluster {theirs}, not of this one ({ours})"))
}

fn pair(args: &SetArgs) -> Result<(String, Vec<u8>), Failure> {
    let (key, value) = match (args.words.as_slice(), &args.key, &args.value) {
        ([key, value], None, None) => (key.clone(), value.clone()),
        ([], Some(key), Some(value)) => (key.clone(), value.clone()),
        ([word], None, None) => match word.split_once('=') {
            // In a label string the first `=` is not the one that ends a key.
            Some(_) if word.starts_with("cilium/state/identities/") && word.matches('=').count() > 1 => {
                return Err(Failure::usage("where the key ends is not clear: labels hold `=`")
                    .fix("give key and value as two words, or as --key and --value"));
            }
            Some((key, value)) => (key.to_owned(), value.to_owned()),
            None => return Err(Failure::usage(format!("{word:?} is not KEY=VALUE"))),
        },
        _ => {
            return Err(
                Failure::usage("no key is given").fix("write KEY=VALUE, or the key and then the value")
            );
        }
    };
    if value != "-" {
        return Ok((key, value.into_bytes()));
    }
    let mut bytes = Vec::new();
    let read = std::io::stdin().lock().read_to_end(&mut bytes);
    read.map_err(|error| Failure::new(format!("cannot read standard input: {error}")))?;
    // An editor ends a file with a newline; no entry does.
    if bytes.ends_with(b"\n") {
        bytes.pop();
    }
    Ok((key, bytes))
}
