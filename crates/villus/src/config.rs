//! `villus config`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::Value;
use villus_api::model::{DaemonConfiguration, DaemonConfigurationSpec};
use villus_config::Config;
use villus_print::Table;

use crate::{
    connect::Host,
    failure::{FAILED, Failure},
    out::{self, OutputArgs},
};

/// Show the agent's configuration, or change what can be changed while it runs.
#[derive(Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  villus config\n  villus config get cluster-name\n  villus config check /etc/villus/config\n  \
                  villus config PolicyAuditMode=true"
)]
pub struct ConfigArgs {
    #[command(subcommand)]
    command: Option<ConfigCommand>,
    /// Options to change while the agent runs.
    #[arg(value_name = "OPTION=VALUE")]
    change: Vec<String>,
    /// Also show options that have their default.
    #[arg(short, long)]
    all: bool,
    /// Say what would be changed, and change nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Subcommand, Debug)]
enum ConfigCommand {
    /// Print the value of one option.
    #[command(after_help = "Example:\n  villus config get cluster-name")]
    Get {
        /// Name of the option.
        option: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Check a directory with one file per option, or a YAML file; needs no agent.
    #[command(
        after_help = "Example:\n  villus config check /etc/villus/config\n\nExit code 1 if an agent would refuse to start with it."
    )]
    Check {
        /// The directory or file.
        #[arg(value_hint = clap::ValueHint::AnyPath)]
        path: PathBuf,
        #[command(flatten)]
        output: OutputArgs,
    },
}

pub fn run(host: &Host, args: ConfigArgs) -> Result<(), Failure> {
    match args.command {
        Some(ConfigCommand::Get { option, output }) => get(host, &option, &output),
        Some(ConfigCommand::Check { path, output }) => check(&path, &output),
        None if args.change.is_empty() => {
            let config = host.client()?.config()?;
            args.output.print(&config, || table(&config, args.all))
        }
        None => change(host, &args),
    }
}

fn get(host: &Host, option: &str, output: &OutputArgs) -> Result<(), Failure> {
    let config = host.client()?.config()?;
    let runtime = config.status.realized.options.get(option).map(|value| Value::from(value.as_str()));
    match config.status.options.get(option).cloned().or(runtime) {
        Some(value) => output.print(&value, || format!("{}\n", plain(&value))),
        None => Err(unknown(option)),
    }
}

fn unknown(option: &str) -> Failure {
    Failure::new(format!("the agent has no option {option:?}"))
        .fix("see `villus config --all` for all of them")
}

fn check(path: &std::path::Path, output: &OutputArgs) -> Result<(), Failure> {
    if !path.exists() {
        return Err(Failure::new(format!("{}: there is no such directory or file", path.display())));
    }
    let report = if path.is_dir() { Config::check_dir(path) } else { Config::check_file(path) };
    output.print(&report, || report.table())?;
    if report.is_ok() { Ok(()) } else { Err(Failure::silent(FAILED)) }
}

fn change(host: &Host, args: &ConfigArgs) -> Result<(), Failure> {
    let mut spec = DaemonConfigurationSpec::default();
    for assignment in &args.change {
        let Some((option, value)) = assignment.split_once('=') else {
            return Err(Failure::usage(format!("{assignment:?} is not OPTION=VALUE"))
                .fix("to read an option: villus config get OPTION"));
        };
        match option {
            "PolicyEnforcement" => spec.policy_enforcement = Some(value.to_owned()),
            _ => drop(spec.options.insert(option.to_owned(), value.to_owned())),
        }
    }
    let client = host.client()?;
    if args.dry_run {
        let now = client.config()?.status.realized;
        for (option, value) in &spec.options {
            let old = now.options.get(option).ok_or_else(|| unknown(option))?;
            out::line(&format!("would change {option} from {old} to {value}"))?;
        }
        if let Some(value) = &spec.policy_enforcement {
            let old = now.policy_enforcement.unwrap_or_default();
            out::line(&format!("would change PolicyEnforcement from {old} to {value}"))?;
        }
        return Ok(());
    }
    let config = client.patch_config(&spec)?;
    args.output.print(&config, || {
        let changed = spec.options.iter().map(|(option, value)| format!("{option}={value}\n"));
        changed
            .chain(spec.policy_enforcement.iter().map(|value| format!("PolicyEnforcement={value}\n")))
            .collect()
    })
}

/// Options that some source sets or that can be changed; with `all` every one.
fn table(config: &DaemonConfiguration, all: bool) -> String {
    let status = &config.status;
    let mut table = Table::new(["OPTION", "VALUE", "SOURCE"]);
    for (option, value) in &status.realized.options {
        table.row([option.as_str(), value, "can be changed"]);
    }
    if let Some(enforcement) = &status.realized.policy_enforcement {
        table.row(["PolicyEnforcement", enforcement, "can be changed"]);
    }
    for (option, value) in &status.options {
        let source = status.sources.get(option);
        if all || source.is_some() {
            table.row([option.clone(), plain(value), source.cloned().unwrap_or_else(|| "default".into())]);
        }
    }
    status.warnings.iter().fold(table.render(), |text, warning| text + "Warning: " + warning + "\n")
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
