//! `villus plan identities`.

use clap::Args;
use villus_labels::MaxConnectedClusters;
use villus_plan::identities::{Dump, count, text};

use crate::{failure::Failure, out::OutputArgs, policy::files};

#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  kubectl get pods,namespaces -A -o json | villus plan identities -\n  \
                  villus plan identities pods.json \\\n    --labels 'k8s:com.example/app k8s:!io.cilium.k8s.namespace.labels'\n  \
                  villus endpoint list -o json > node1.json; villus plan identities node*.json -o json")]
pub struct IdentitiesArgs {
    /// What `kubectl get pods -A -o json` (with namespaces for their labels) or `villus endpoint list -o json`
    /// printed; - for standard input. Several add up.
    #[arg(required = true, value_name = "FILE", value_hint = clap::ValueHint::AnyPath)]
    files: Vec<String>,
    /// The filter: the value of the agent's option `labels`.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "RULES")]
    labels: String,
    /// Name of the cluster that the pods are in.
    #[arg(long, value_name = "NAME", default_value = "default")]
    cluster_name: String,
    /// 255 clusters of 65,536 identities or 511 of 32,768.
    #[arg(long, value_name = "255|511", default_value = "255", value_parser = clusters)]
    max_connected_clusters: MaxConnectedClusters,
    #[command(flatten)]
    output: OutputArgs,
}

fn clusters(text: &str) -> Result<MaxConnectedClusters, String> {
    let number = text.parse().map_err(|_| "it is 255 or 511".to_owned())?;
    MaxConnectedClusters::from_number(number).map_err(|error| error.to_string())
}

pub fn run(args: &IdentitiesArgs) -> Result<(), Failure> {
    let mut dump = Dump::default();
    for file in files::read(&args.files)? {
        dump.read(&file.name, &file.text, &args.cluster_name)
            .map_err(|error| crate::failure::split(&error.to_string()))?;
    }
    let count = count(&dump, &args.labels, args.max_connected_clusters).map_err(Failure::usage)?;
    args.output.print(&count, || text(&count))
}
