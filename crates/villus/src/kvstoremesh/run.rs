//! The process itself, and its dry run.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use clap::Args;
use villus_config::Value;
use villus_kvstore::{Etcd, EtcdOptions, Store};
use villus_labels::MaxConnectedClusters;
use villus_mesh::{Kind, Layout, Mesh, Own, Preview, Settings, remotes::RemoteConfig};
use villus_print::Table;
use villus_table::{Backoff, Stop};

use super::DEFAULT_FILE;
use crate::{failure::Failure, out::OutputArgs};

/// Requests a second to stores, where nobody says otherwise: what limits a mesh is how much it has under way.
const QPS: u32 = 10_000;

#[derive(Args, Debug)]
pub struct RunArgs {
    /// Name of this cluster.
    #[arg(long, value_name = "NAME")]
    cluster_name: Option<String>,
    /// Id of this cluster.
    #[arg(long, value_name = "ID", default_value_t = 0)]
    cluster_id: u32,
    /// How many clusters there can be: 255 or 511.
    #[arg(long, value_name = "NUMBER", default_value_t = 255)]
    max_connected_clusters: u32,
    /// Directory with one file for each remote cluster.
    #[arg(long, value_name = "PATH", value_hint = clap::ValueHint::DirPath)]
    clustermesh_config: Option<PathBuf>,
    /// The local store: etcd.address=URL,URL or etcd.config=FILE, and others.
    #[arg(long, value_name = "KEY=VALUE")]
    kvstore_opt: Vec<String>,
    /// How copies lie: cache (agents of 1.14 and later), state (agents before), or cache,state while there are both.
    #[arg(long, value_name = "LAYOUT", value_delimiter = ',', default_value = "cache")]
    layout: Vec<Layout>,
    /// Time to live of what is written; 0: without leases, it stays without this process.
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = villus_config::duration::parse)]
    kvstore_lease_ttl: Duration,
    /// Take services of a remote away that has been away for so long; 0: never.
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = villus_config::duration::parse)]
    clustermesh_cache_ttl: Duration,
    /// From the removal of a configuration to that of its copies; also how long a former layout stays, and what the first list lacks.
    #[arg(long, value_name = "TIME", default_value = "3m", value_parser = villus_config::duration::parse)]
    removal_grace: Duration,
    /// How long copies stay that a restored or wiped remote lacks.
    #[arg(long, value_name = "TIME", default_value = "15m", value_parser = villus_config::duration::parse)]
    rewind_grace: Duration,
    /// Between two comparisons of all copies with their remotes; 0: never.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = villus_config::duration::parse)]
    compare_interval: Duration,
    /// Let several replicas agree on one that copies.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    leader_election: bool,
    /// Where `status` finds how it is.
    #[arg(
        long, global = true, value_name = "PATH", default_value = DEFAULT_FILE, value_hint = clap::ValueHint::FilePath
    )]
    pub status_file: PathBuf,
    /// Serve /metrics, /status, /healthz and /readyz there.
    #[arg(long, value_name = "ADDRESS")]
    prometheus_serve_addr: Option<String>,
    /// Log more.
    #[arg(long)]
    debug: bool,
    /// Show what would be copied, remote by remote, and write nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: OutputArgs,
}

pub fn run(args: &RunArgs) -> Result<(), Failure> {
    let settings = settings(args)?;
    let local = local(args)?;
    let address = args.prometheus_serve_addr.as_deref().map(address).transpose()?;
    villus_datapath::sys::spare_memory();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("kvstoremesh")
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("threads can't be made: {error}")))?;
    let mesh = Mesh::new(settings, local, Arc::new(connect));
    if args.dry_run {
        let directory = args.clustermesh_config.clone().unwrap_or_default();
        let previews = runtime.block_on(mesh.preview()).map_err(|error| {
            Failure::new(format!("{}: {error}", directory.display())).fix("name a directory that can be read")
        })?;
        return args.output.print(&previews, || preview(&previews));
    }
    let level = if args.debug { tracing::Level::DEBUG } else { tracing::Level::INFO };
    let log = tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).with_target(false);
    log.with_max_level(level).init();
    let stop = Stop::new();
    runtime.block_on(async {
        let served = match address {
            Some(address) => {
                Some(villus_mesh::http(mesh.board(), address, stop.clone()).await.map_err(|error| {
                    Failure::new(format!("--prometheus-serve-addr {address}: {error}"))
                        .fix("name an address of this host that is free")
                })?)
            }
            None => None,
        };
        let said = stop.clone();
        tokio::spawn(async move {
            villus_agent::signals().await;
            said.stop();
        });
        let http = async {
            if let Some((_, ended)) = served
                && let Err(error) = ended.await
            {
                tracing::warn!(%error, "metrics are not served any more");
            }
        };
        tokio::join!(mesh.run(&stop), villus_mesh::file(mesh.board(), &args.status_file, &stop), http);
        Ok(())
    })
}

fn settings(args: &RunArgs) -> Result<Settings, Failure> {
    let name = args.cluster_name.clone().ok_or_else(|| {
        Failure::usage("the name of this cluster is missing").fix("give --cluster-name, and --cluster-id")
    })?;
    if !villus_mesh::is_name(&name) {
        return Err(Failure::usage(format!("--cluster-name {name:?} can't be the name of a cluster"))
            .fix("up to 32 small letters, digits and dashes"));
    }
    let clusters = MaxConnectedClusters::from_number(args.max_connected_clusters)
        .map_err(|error| Failure::usage(format!("--max-connected-clusters: {error}")))?;
    clusters.range(args.cluster_id).map_err(|error| Failure::usage(format!("--cluster-id: {error}")))?;
    let directory = args.clustermesh_config.clone().ok_or_else(|| {
        Failure::usage("the directory of remote clusters is missing").fix("give --clustermesh-config PATH")
    })?;
    let mut layouts = args.layout.clone();
    layouts.sort_unstable();
    layouts.dedup();
    let backoff =
        Backoff::try_new(Duration::from_millis(100), Duration::from_secs(30), 0.5).map_err(Failure::new)?;
    Ok(Settings {
        own: Own { name, id: args.cluster_id, clusters },
        directory,
        layouts,
        lease_ttl: args.kvstore_lease_ttl,
        cache_ttl: args.clustermesh_cache_ttl,
        grace: args.removal_grace,
        rewind_grace: args.rewind_grace,
        election: args.leader_election,
        scan: Duration::from_secs(1),
        kinds: Kind::ALL.to_vec(),
        compare: args.compare_interval,
        pace: backoff.into(),
    })
}

fn local(args: &RunArgs) -> Result<Arc<dyn Store>, Failure> {
    let fix = "name it with --kvstore-opt etcd.address=URL or etcd.config=FILE";
    let options = match villus_config::kind::Kind::Map.parse(&args.kvstore_opt.join(",")) {
        Ok(Value::Map(options)) => options,
        Ok(_) => BTreeMap::new(),
        Err(reason) => return Err(Failure::usage(format!("--kvstore-opt: {reason}")).fix(fix)),
    };
    if options.is_empty() {
        return Err(Failure::usage("the local store is missing").fix(fix));
    }
    let mut etcd = EtcdOptions::read(&options).map_err(|error| Failure::usage(error).fix(fix))?;
    if !options.contains_key("etcd.qps") {
        (etcd.qps, etcd.bootstrap_qps, etcd.max_inflight) = (QPS, QPS, QPS);
    }
    Ok(Arc::new(Etcd::new(etcd).map_err(|error| Failure::usage(error).fix(fix))?))
}

fn connect(_: &str, config: &RemoteConfig) -> Result<Arc<dyn Store>, String> {
    let mut options = config.etcd.clone();
    (options.qps, options.bootstrap_qps, options.max_inflight) = (QPS, QPS, QPS);
    Etcd::new(options).map(|store| Arc::new(store) as Arc<dyn Store>).map_err(|error| error.to_string())
}

fn address(text: &str) -> Result<SocketAddr, Failure> {
    let whole = if text.starts_with(':') { format!("[::]{text}") } else { text.to_owned() };
    whole.parse().map_err(|_| {
        Failure::usage(format!("--prometheus-serve-addr {text:?} is no address"))
            .fix("write for example 127.0.0.1:9964 or :9964")
    })
}

fn preview(previews: &[Preview]) -> String {
    let mut table = Table::new(["CLUSTER", "ID", "LAYOUT", "TYPE", "PASS", "BYTES", "NOT COPIED"]);
    for one in previews {
        for kind in &one.kinds {
            let dropped: Vec<String> =
                kind.dropped.iter().map(|(reason, count)| format!("{}={count}", reason.name())).collect();
            table.row([
                one.name.clone(),
                one.cluster_id.to_string(),
                kind.layout.to_string(),
                kind.kind.to_string(),
                kind.passes.to_string(),
                kind.bytes.to_string(),
                dropped.join(" "),
            ]);
        }
    }
    let mut text = table.render();
    for one in previews {
        if let Some(problem) = &one.problem {
            text.push_str(&format!("{}: {problem}\n", one.name));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        run: RunArgs,
    }

    #[tokio::test]
    async fn the_local_store_may_have_several_members() {
        let read = |text: &str| {
            let line: Line = clap::Parser::try_parse_from(["run", "--kvstore-opt", text]).unwrap();
            local(&line.run).map(|_| ()).map_err(|failure| failure.what)
        };
        assert_eq!(read("etcd.address=http://127.0.0.1:1,http://127.0.0.1:2,etcd.qps=5"), Ok(()));
        for (text, says) in [
            ("etcd.address=http://127.0.0.1:1,127.0.0.1:2", "`127.0.0.1:2` must begin with http://"),
            ("http://127.0.0.1:1", "'http://127.0.0.1:1' is not key=value"),
            ("", "the local store is missing"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn addresses_are_read_as_others_write_them() {
        assert_eq!(address(":9964").unwrap().port(), 9964);
        assert_eq!(address("127.0.0.1:1").unwrap().to_string(), "127.0.0.1:1");
        assert!(address("here").is_err());
    }

    /// As where the directory is empty.
    #[test]
    fn an_empty_preview_is_a_header() {
        assert_eq!(preview(&[]).lines().count(), 1);
    }
}
