//! Standard output and error. A reader that has gone ends the command quietly.

use std::io::{self, Write};

use clap::Args;
use serde::Serialize;
use villus_print::Output;

use crate::failure::Failure;

/// How a result is printed.
#[derive(Args, Clone, Debug, Default)]
pub struct OutputArgs {
    /// Print as JSON, as YAML, or parts of the JSON form chosen by a template such as `{[*].id}`.
    #[arg(short = 'o', long = "output", value_name = "json|yaml|jsonpath=TEMPLATE", global = false)]
    output: Option<Output>,
}

impl OutputArgs {
    /// Prints a result; `text` makes the form for people.
    pub fn print<T: Serialize + ?Sized>(
        &self,
        value: &T,
        text: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        let output = self.output.clone().unwrap_or_default();
        print(&output.render(value, text).map_err(Failure::new)?)
    }

    /// Whether people read it.
    pub fn is_text(&self) -> bool {
        matches!(self.output, None | Some(Output::Text))
    }
}

/// Prints text as it is.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    done(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// Prints a line.
pub fn line(text: &str) -> Result<(), Failure> {
    print(&format!("{text}\n"))
}

/// Prints a line on standard error.
pub fn complain(text: &str) {
    // Nobody is left to be told.
    let _ = writeln!(io::stderr(), "{text}");
}

fn done(result: io::Result<()>) -> Result<(), Failure> {
    result.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::silent(0),
        _ => Failure::new(format!("cannot write to standard output: {error}")),
    })
}
