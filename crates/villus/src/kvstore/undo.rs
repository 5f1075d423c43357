//! `villus kvstore undo`.

use clap::Args;

use super::{
    WriteArgs,
    change::{Change, Content, Plan, carry_out},
    journal::Journal,
};
use crate::{connect::Host, failure::Failure};

#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  villus kvstore undo 3 --dry-run\n\nNumbers are those of `villus kvstore journal`. What somebody changed since then is left as it \
                  is; so is what went with a lease that is gone: its owner writes it again."
)]
pub struct UndoArgs {
    /// The deed.
    #[arg(value_name = "ID")]
    id: u64,
    #[command(flatten)]
    write: WriteArgs,
}

pub fn run(host: &Host, args: &UndoArgs) -> Result<(), Failure> {
    let journal = Journal::open(args.write.lib_dir.as_deref())?;
    let deeds = journal.deeds()?;
    let Some((deed, done)) = deeds.iter().find(|(deed, _)| deed.id == args.id) else {
        return Err(
            Failure::new(format!("the journal has no deed {}", args.id)).fix("see `villus kvstore journal`")
        );
    };
    let shared = args.write.store.open(host)?;
    if deed.store != shared.endpoints {
        return Err(Failure::new(format!(
            "deed {} was done on {}, not on {}",
            deed.id, deed.store, shared.endpoints
        ))
        .fix("name that store with --kvstore-opt etcd.address"));
    }
    let (mut changes, mut notes) = (Vec::new(), Vec::new());
    for change in &deed.changes[..*done] {
        let now = shared.wait(shared.store.get(&change.key))?;
        if now.as_ref().map(Content::of) == change.new {
            changes.push(Change::of(&change.key, now.as_ref(), change.old.clone()));
        } else if now.as_ref().map(Content::of) != change.old {
            notes.push(format!("{} was changed since then and is left as it is", change.key));
        }
    }
    carry_out(
        &shared,
        &args.write,
        Plan { verb: "undo", undoes: Some(deed.id), forced: false, changes, notes },
    )
}
