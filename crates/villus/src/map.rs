//! `villus map`: any pinned map of ours, with what the agent knows of it where it answers.

use clap::Subcommand;
use villus_abi::{IpcacheKey, IpcacheValue, PolicyEntry, PolicyKey, from_bytes, names};
use villus_api::model::BpfMap;
use villus_datapath::sys::RawMap;
use villus_emergency::key_text;
use villus_print::{IpcacheRow, MapEntryRow, MapRow, map_get, map_list};

use crate::{
    connect::Host,
    failure::Failure,
    kernel::{Kernel, PlaceArgs},
    out::OutputArgs,
};

#[derive(Subcommand, Debug)]
pub enum MapCommand {
    /// List the maps.
    #[command(after_help = "Example:\n  villus map list")]
    List {
        #[command(flatten)]
        output: OutputArgs,
        #[command(flatten)]
        places: PlaceArgs,
    },
    /// List the entries of a map; as bytes where nothing better is known.
    #[command(after_help = "Example:\n  villus map get cilium_ipcache")]
    Get {
        /// Name of the map.
        name: String,
        #[command(flatten)]
        output: OutputArgs,
        #[command(flatten)]
        places: PlaceArgs,
    },
}

pub fn run(host: &Host, command: MapCommand) -> Result<(), Failure> {
    match command {
        MapCommand::List { output, places } => {
            let rows: Vec<MapRow> = match host.brief_client().and_then(|client| client.maps().ok()) {
                Some(list) => list.maps.iter().map(MapRow::from).collect(),
                None => list(&places.kernel()?)?,
            };
            output.print(&rows, || map_list(&rows))
        }
        MapCommand::Get { name, output, places } => {
            let rows = match host.brief_client().and_then(|client| client.map(&name).ok()) {
                Some(BpfMap { cache: Some(entries), .. }) => entries.iter().map(MapEntryRow::from).collect(),
                _ => entries(&places.kernel()?, &name)?,
            };
            output.print(&rows, || map_get(&rows))
        }
    }
}

fn list(kernel: &Kernel) -> Result<Vec<MapRow>, Failure> {
    let mut rows = Vec::new();
    for name in kernel.pins.list()? {
        let ours = name.starts_with("villus_") || name.starts_with("cilium_");
        // What is pinned beside the maps are links, and those of others are not ours to open.
        if let (true, Ok(Some(map))) = (ours, kernel.pins.map(&name)) {
            let mut entries = 0;
            visit(&map, &name, |_, _| entries += 1)?;
            rows.push(MapRow { name, entries, errors: 0, cached: false });
        }
    }
    Ok(rows)
}

fn entries(kernel: &Kernel, name: &str) -> Result<Vec<MapEntryRow>, Failure> {
    let map = kernel.pins.map(name)?.ok_or_else(|| {
        Failure::new(format!("there is no map {name:?}"))
            .fix("see `villus map list` for those that are there")
    })?;
    let mut rows = Vec::new();
    visit(&map, name, |key, value| {
        let (key, value) = words(name, key, value).unwrap_or_else(|| (hex(key), hex(value)));
        rows.push(MapEntryRow { key, value, ..MapEntryRow::default() });
    })?;
    Ok(rows)
}

/// Walks over all keys. An array's elements that are zero are left out.
fn visit(map: &RawMap, name: &str, mut each: impl FnMut(&[u8], &[u8])) -> Result<(), Failure> {
    const MOST: usize = 1 << 24;
    let failed = |error| Failure::new(format!("cannot list the map {name}: {error}"));
    let (mut next, mut value) = (vec![0; map.key_len()], vec![0; map.value_len()]);
    let mut key: Option<Vec<u8>> = None;
    // A ring has no keys at all.
    if map.key_len() == 0 {
        return Ok(());
    }
    for _ in 0..MOST {
        if !map.next_key(key.as_deref(), &mut next).map_err(failed)? {
            break;
        }
        if map.lookup(&next, &mut value).map_err(failed)? && value.iter().any(|byte| *byte != 0)
            || !is_array(map)
        {
            each(&next, &value);
        }
        key = Some(next.clone());
    }
    Ok(())
}

fn is_array(map: &RawMap) -> bool {
    use villus_datapath::sys::Kind;
    matches!(Kind::from_number(map.info().kind), Some(Kind::Array | Kind::PerCpuArray | Kind::ArrayOfMaps))
}

fn words(name: &str, key: &[u8], value: &[u8]) -> Option<(String, String)> {
    if name == names::IPCACHE {
        let row = IpcacheRow::new(&from_bytes::<IpcacheKey>(key)?, &from_bytes::<IpcacheValue>(value)?);
        return Some((format!("{}/{}", row.address, row.length), row.value()));
    }
    if name.starts_with(names::POLICY_PREFIX) {
        let (key, entry) = (from_bytes::<PolicyKey>(key)?, from_bytes::<PolicyEntry>(value)?);
        let verdict = if entry.is_deny() { "Deny" } else { "Allow" };
        return Some((key_text(&key), format!("{verdict} {} {}", entry.packets, entry.bytes)));
    }
    None
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}
