//! `villus completion` and `villus man`.

use std::{io, path::PathBuf};

use clap::Args;
use clap_complete::Shell;

use crate::{cli, failure::Failure, out};

#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  villus completion bash > /etc/bash_completion.d/villus\n  \
                  villus completion zsh > /usr/local/share/zsh/site-functions/_villus\n  \
                  villus completion fish > ~/.config/fish/completions/villus.fish")]
pub struct CompletionArgs {
    /// The shell.
    #[arg(value_parser = ["bash", "zsh", "fish"])]
    shell: String,
}

#[derive(Args, Debug)]
#[command(after_help = "Example:\n  villus man /usr/local/share/man/man1")]
pub struct ManArgs {
    /// Directory for the pages; it is made if it is missing.
    #[arg(value_hint = clap::ValueHint::DirPath)]
    dir: PathBuf,
}

pub fn completion(args: &CompletionArgs) -> Result<(), Failure> {
    let shell = match args.shell.as_str() {
        "zsh" => Shell::Zsh,
        "fish" => Shell::Fish,
        _ => Shell::Bash,
    };
    let mut script = Vec::new();
    let mut command = cli::command();
    clap_complete::generate(shell, &mut command, "villus", &mut script);
    let mut script = String::from_utf8_lossy(&script).into_owned();
    if shell == Shell::Fish {
        for_fish(&command, &[], &mut script);
    }
    out::print(&script)
}

/// The values that arguments without a name may have: the generator offers those of options only.
fn for_fish(command: &clap::Command, path: &[&str], script: &mut String) {
    let given: Vec<_> = command.get_positionals().map(clap::Arg::get_possible_values).collect();
    let values: Vec<&str> =
        given.iter().flatten().filter(|v| !v.is_hide_set()).map(|v| v.get_name()).collect();
    if let ([first, below @ ..], false) = (path, values.is_empty()) {
        let mut when = format!("__fish_villus_using_subcommand {first}");
        for name in below {
            when.push_str(&format!("; and __fish_seen_subcommand_from {name}"));
        }
        // Files are offered where an argument may be one.
        let no_files = if given.iter().any(Vec::is_empty) { "" } else { " -f" };
        script.push_str(&format!("complete -c villus -n \"{when}\"{no_files} -a \"{}\"\n", values.join(" ")));
    }
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
        for_fish(inner, &[path, &[inner.get_name()]].concat(), script);
    }
}

pub fn man(args: &ManArgs) -> Result<(), Failure> {
    let failed = |error: io::Error| {
        Failure::new(format!("cannot write manual pages to {}: {error}", args.dir.display()))
            .fix("name a directory that you may write to")
    };
    std::fs::create_dir_all(&args.dir).map_err(failed)?;
    // The agent's hidden options are for compatibility; manual pages describe what is there.
    clap_mangen::generate_to(cli::command(), &args.dir).map_err(failed)
}
