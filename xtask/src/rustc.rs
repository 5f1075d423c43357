//! Standing between cargo and rustc while the kernel object is built, so that its bytes do not depend on where the
//! checkout lies: cargo derives `-C metadata`, and with it every mangled name, from the absolute path of a
//! dependency outside its workspace. For our own crates we put their names there instead.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

/// Set, to the root of the checkout, where cargo runs this binary as `RUSTC_WRAPPER`.
pub const ROOT_VARIABLE: &str = "VILLUS_STABLE_NAMES_BELOW";

/// Whether cargo called us in place of rustc.
pub fn is_asked() -> bool {
    std::env::var_os(ROOT_VARIABLE).is_some()
}

/// Becomes the rustc that cargo named, with stable metadata.
pub fn exec() -> ExitCode {
    let root = std::env::var_os(ROOT_VARIABLE).unwrap_or_default();
    let mut args = std::env::args_os().skip(1);
    let Some(rustc) = args.next() else {
        eprintln!("{ROOT_VARIABLE} is set, but no rustc was named");
        return ExitCode::FAILURE;
    };
    let args = with_stable_metadata(args.collect(), Path::new(&root));
    let error = Command::new(&rustc).args(args).exec();
    eprintln!("{}: {error}", rustc.to_string_lossy());
    ExitCode::FAILURE
}

fn with_stable_metadata(mut args: Vec<OsString>, root: &Path) -> Vec<OsString> {
    if !args.iter().any(|arg| is_our_source(arg, root)) {
        return args;
    }
    let name = value_of(&args, "--crate-name").unwrap_or_default();
    let kind = value_of(&args, "--crate-type").unwrap_or_default();
    for arg in &mut args {
        if arg.to_string_lossy().starts_with("metadata=") {
            *arg = format!("metadata={name}-{kind}").into();
        }
    }
    args
}

fn is_our_source(arg: &OsStr, root: &Path) -> bool {
    let path = Path::new(arg);
    path.extension() == Some(OsStr::new("rs")) && path.canonicalize().is_ok_and(|full| full.starts_with(root))
}

fn value_of(args: &[OsString], flag: &str) -> Option<String> {
    let at = args.iter().position(|arg| arg == flag)?;
    Some(args.get(at + 1)?.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(words: &str) -> Vec<OsString> {
        words.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn our_crates_are_named_by_name() {
        // As cargo says now: a checkout elsewhere may have built this binary into the same target directory.
        let root = std::env::var_os("CARGO_MANIFEST_DIR").unwrap();
        let root = Path::new(&root);
        let source = root.join("src/main.rs");
        let line =
            format!("--crate-name abi {} --crate-type lib -C metadata=17 -C opt-level=3", source.display());
        let wanted = line.replace("metadata=17", "metadata=abi-lib");
        assert_eq!(with_stable_metadata(args(&line), root), args(&wanted));
    }

    #[test]
    fn other_crates_keep_their_metadata() {
        let line = "--crate-name core /nowhere/lib.rs --crate-type lib -C metadata=17";
        assert_eq!(with_stable_metadata(args(line), Path::new("/checkout")), args(line));
    }
}
