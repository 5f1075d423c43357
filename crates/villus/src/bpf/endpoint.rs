//! `villus bpf endpoint`.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use clap::Subcommand;
use villus_abi::{Endpoint, Local, endpoint::SLOT_HOST};
use villus_print::{EndpointMapRow, bpf_endpoint_list};

use crate::{failure::Failure, kernel::PlaceArgs, out::OutputArgs};

#[derive(Subcommand, Debug)]
pub enum EndpointCommand {
    /// List local addresses and the endpoints they belong to.
    #[command(after_help = "Example:\n  villus bpf endpoint list")]
    List {
        #[command(flatten)]
        output: OutputArgs,
        #[command(flatten)]
        places: PlaceArgs,
    },
}

pub fn run(command: EndpointCommand) -> Result<(), Failure> {
    let EndpointCommand::List { output, places } = command;
    let maps = places.kernel()?.maps;
    let records: BTreeMap<u32, Endpoint> = maps.endpoints.entries()?.into_iter().collect();
    let v4 = maps.addrs4.entries()?.into_iter();
    let v6 = maps.addrs6.entries()?.into_iter();
    let mut addresses: Vec<(IpAddr, Local)> = v4
        .map(|(address, local)| (Ipv4Addr::from(address.to_ne_bytes()).into(), local))
        .chain(v6.map(|(address, local)| (Ipv6Addr::from(address).into(), local)))
        .collect();
    addresses.sort_by_key(|(address, _)| *address);
    let rows: Vec<EndpointMapRow> = addresses
        .into_iter()
        .map(|(address, local)| {
            let record = records.get(&local.slot).filter(|_| local.slot != SLOT_HOST);
            EndpointMapRow::new(address, record)
        })
        .collect();
    output.print(&rows, || bpf_endpoint_list(&rows))
}
