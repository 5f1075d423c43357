//! `villus kvstore`: what lies in the store that nodes share, read and changed by hand.
//!
//! Whatever is written is checked first, stands in the journal with what was there before, and is written only if
//! that is still there.

mod change;
mod delete;
mod get;
mod journal;
mod open;
mod set;
mod undo;

use clap::{Args, Subcommand};

pub use open::{Shared, StoreArgs, failed};

use crate::{connect::Host, failure::Failure, out::OutputArgs};

#[derive(Subcommand, Debug)]
pub enum KvstoreCommand {
    /// Show a key, or all keys that begin so.
    Get(get::GetArgs),
    /// Write a key, checked as agents will read it.
    Set(set::SetArgs),
    /// Delete a key, or all keys that begin so.
    Delete(delete::DeleteArgs),
    /// List what was written and deleted from this node.
    Journal(journal::JournalArgs),
    /// Make what was written or deleted as it was.
    Undo(undo::UndoArgs),
}

/// What every command has that writes.
#[derive(Args, Debug)]
pub struct WriteArgs {
    /// Say what would change, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Directory of the journal [env: VILLUS_LIB_DIR] [default: /var/lib/villus].
    #[arg(long, value_name = "PATH", value_hint = clap::ValueHint::DirPath, help_heading = "Places")]
    lib_dir: Option<String>,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub fn run(host: &Host, command: KvstoreCommand) -> Result<(), Failure> {
    match command {
        KvstoreCommand::Get(args) => get::run(host, &args),
        KvstoreCommand::Set(args) => set::run(host, &args),
        KvstoreCommand::Delete(args) => delete::run(host, &args),
        KvstoreCommand::Journal(args) => journal::run(host, &args),
        KvstoreCommand::Undo(args) => undo::run(host, &args),
    }
}
