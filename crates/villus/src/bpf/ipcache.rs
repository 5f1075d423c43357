//! `villus bpf ipcache`.

use std::net::IpAddr;

use clap::Subcommand;
use villus_abi::IpcacheKey;
use villus_print::{IpcacheRow, ipcache_get, ipcache_list, no_identity};

use crate::{
    failure::{FAILED, Failure},
    kernel::PlaceArgs,
    out::OutputArgs,
};

#[derive(Subcommand, Debug)]
pub enum IpcacheCommand {
    /// List prefixes and their identities.
    #[command(after_help = "Example:\n  villus bpf ipcache list")]
    List {
        #[command(flatten)]
        output: OutputArgs,
        #[command(flatten)]
        places: PlaceArgs,
    },
    /// Print what the longest prefix that covers an address maps to.
    #[command(
        after_help = "Example:\n  villus bpf ipcache get 10.2.6.113\n\nPrints identity, encryption key and node: \
                      10.2.6.113 maps to identity 298951 0 0.0.0.0. Exit code 1 if no prefix covers the address."
    )]
    Get {
        /// The address.
        address: IpAddr,
        #[command(flatten)]
        output: OutputArgs,
        #[command(flatten)]
        places: PlaceArgs,
    },
}

pub fn run(command: IpcacheCommand) -> Result<(), Failure> {
    match command {
        IpcacheCommand::List { output, places } => {
            let entries = places.kernel()?.maps.ipcache.entries()?;
            let mut rows: Vec<IpcacheRow> =
                entries.iter().map(|(key, value)| IpcacheRow::new(key, value)).collect();
            rows.sort_by_key(|row| (row.address, row.length));
            output.print(&rows, || ipcache_list(&rows))
        }
        IpcacheCommand::Get { address, output, places } => {
            let value = places.kernel()?.maps.ipcache.of_address(address)?;
            let key = match address {
                IpAddr::V4(v4) => IpcacheKey::v4(v4.octets(), 32),
                IpAddr::V6(v6) => IpcacheKey::v6(v6.octets(), 128),
            };
            let row = value.map(|value| IpcacheRow::new(&key, &value));
            output.print(&row, || match &row {
                Some(row) => ipcache_get(address, row),
                None => no_identity(address),
            })?;
            if row.is_some() { Ok(()) } else { Err(Failure::silent(FAILED)) }
        }
    }
}
