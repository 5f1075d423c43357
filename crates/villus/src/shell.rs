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
    clap_complete::generate(shell, &mut cli::command(), "villus", &mut script);
    out::print(&String::from_utf8_lossy(&script))
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
