//! Rules of this repository that no ready-made linter knows.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::tree;

/// Longer files are two ideas.
const MAX_LINES: usize = 900;
/// Crates that may contain `unsafe`, each block with its reason.
const MAY_BE_UNSAFE: [&str; 3] = ["crates/abi", "crates/datapath", "ebpf"];
/// Folders that say nothing about a machine when a checkout lies in them.
const ORDINARY_FOLDERS: [&str; 6] = ["/", "/tmp", "/var/tmp", "/opt", "/srv", "/usr/src"];

/// Every rule, every violation, one per line.
pub fn check(root: &Path) -> Result<()> {
    let files = tree::files(root)?;
    let mut found = Vec::new();
    let names = machine_names(root);
    for file in &files {
        let Ok(text) = std::fs::read_to_string(root.join(file)) else { continue };
        let kind = file.extension().and_then(|kind| kind.to_str()).unwrap_or_default();
        if kind == "rs" {
            found.extend(too_long(file, &text));
            found.extend(fixed_cases(file, &text));
        }
        if kind == "md" {
            found.extend(broken_links(root, file, &text));
        }
        if kind == "sh" || text.starts_with("#!/usr/bin/env bash") || text.starts_with("#!/bin/bash") {
            found.extend(bad_shell(root, file));
        }
        found.extend(machine_paths(file, &text, &names));
        found.extend(unmerged(file, &text));
    }
    for dir in crate_dirs(&files) {
        found.extend(crate_rules(root, &dir)?);
    }
    if !found.is_empty() {
        bail!("{} violations\n  {}", found.len(), found.join("\n  "));
    }
    Ok(())
}

fn too_long(file: &Path, text: &str) -> Option<String> {
    let lines = text.lines().count();
    (lines > MAX_LINES).then(|| format!("{}: {lines} lines, more than {MAX_LINES}: split it", file.display()))
}

/// What a merge has left undecided.
fn unmerged(file: &Path, text: &str) -> Option<String> {
    let marks = ["<", ">"].map(|side| format!("{} ", side.repeat(7)));
    let at = text.lines().position(|line| marks.iter().any(|mark| line.starts_with(mark.as_str())))?;
    Some(format!("{}:{}: a merge that was not finished", file.display(), at + 1))
}

/// A property test whose number of cases `./dev fuzz` could not raise.
fn fixed_cases(file: &Path, text: &str) -> Vec<String> {
    let is_fixed = |line: &str| {
        let number = line.split("with_cases(").nth(1);
        number.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    let lines = text.lines().enumerate().filter(|(_, line)| is_fixed(line));
    let place = |(number, _)| format!("{}:{}", file.display(), number + 1);
    let fix = "a share or multiple of ProptestConfig::default().cases (256), so that ./dev fuzz can raise it";
    lines.map(|line| format!("{}: a fixed number of cases: write {fix}", place(line))).collect()
}

fn bad_shell(root: &Path, file: &Path) -> Option<String> {
    let output = Command::new("bash").arg("-n").arg(file).current_dir(root).output().ok()?;
    (!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

// === crates ===

fn crate_dirs(files: &[PathBuf]) -> BTreeSet<PathBuf> {
    let manifests = files.iter().filter(|file| file.ends_with("Cargo.toml"));
    manifests
        .filter_map(|file| file.parent())
        .filter(|dir| !dir.as_os_str().is_empty())
        .map(Path::to_owned)
        .collect()
}

fn crate_rules(root: &Path, dir: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let may_be_unsafe = MAY_BE_UNSAFE.iter().any(|free| dir == Path::new(free));
    for file in tree::crate_roots(root, dir) {
        let text = std::fs::read_to_string(root.join(&file))?;
        if !may_be_unsafe && !text.contains("#![forbid(unsafe_code)]") {
            found.push(format!("{}: add #![forbid(unsafe_code)]", file.display()));
        }
    }
    let manifest = std::fs::read_to_string(root.join(dir).join("Cargo.toml"))?;
    if dir != Path::new("ebpf") && !manifest.contains("[lints]\nworkspace = true") {
        found.push(format!("{}/Cargo.toml: add [lints] workspace = true", dir.display()));
    }
    Ok(found)
}

// === paths that mean nothing elsewhere ===

/// Folders of this very machine: the checkout's, and the one that holds it.
fn machine_names(root: &Path) -> Vec<String> {
    let dirs = [Some(root), root.parent()].into_iter().flatten();
    let telling = dirs.filter(|dir| !ORDINARY_FOLDERS.iter().any(|plain| *dir == Path::new(plain)));
    telling.map(|dir| format!("{}/", dir.display())).collect()
}

fn machine_paths(file: &Path, text: &str, names: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let homes = ["home", "Users", "root"].iter().filter(|folder| names_a_home(line, folder));
        let here = names.iter().filter(|name| starts_a_path(line, name));
        for what in homes.copied().chain(here.map(String::as_str)) {
            found.push(format!("{}:{}: a path of one machine ({what})", file.display(), number + 1));
        }
    }
    found
}

/// An absolute path into the folder of homes called `folder`, or into root's.
fn names_a_home(line: &str, folder: &str) -> bool {
    let start = format!("/{folder}/");
    let goes_on = |rest: &str| rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '.');
    line.match_indices(&start).any(|(at, found)| is_absolute(line, at) && goes_on(&line[at + found.len()..]))
}

fn starts_a_path(line: &str, path: &str) -> bool {
    line.match_indices(path).any(|(at, _)| is_absolute(line, at))
}

fn is_absolute(line: &str, at: usize) -> bool {
    !line[..at].ends_with(|c: char| c.is_alphanumeric() || "_-./}>*$~".contains(c))
}

// === links in prose ===

fn broken_links(root: &Path, file: &Path, text: &str) -> Vec<String> {
    let dir = file.parent().unwrap_or(Path::new(""));
    let mut found = Vec::new();
    for link in links(text) {
        let (target, anchor) = link.split_once('#').unwrap_or((link, ""));
        let path = if target.is_empty() { root.join(file) } else { root.join(dir).join(target) };
        if !path.exists() {
            found.push(format!("{}: link to {link}: no such file", file.display()));
        } else if !anchor.is_empty()
            && target.ends_with(".md") | target.is_empty()
            && !has_heading(&path, anchor)
        {
            found.push(format!("{}: link to {link}: no such heading", file.display()));
        }
    }
    found
}

/// Targets of `[text](target)` that stay in the repository, outside of code.
fn links(text: &str) -> Vec<&str> {
    let mut links = Vec::new();
    let mut in_code = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code || line.starts_with("    ") {
            continue;
        }
        let targets = line.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next());
        links.extend(targets.filter(|target| !target.contains("://") && !target.starts_with("mailto:")));
    }
    links
}

fn has_heading(path: &Path, anchor: &str) -> bool {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().filter(|line| line.starts_with('#')).any(|line| slug(line) == anchor)
}

/// A heading's anchor as forges make it.
fn slug(heading: &str) -> String {
    let words = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = words.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes_are_found_and_other_folders_are_not() {
        let cases = [
            (format!("let x = \"/{}/ann/src\";", "home"), true),
            (format!("cd /{}/.cargo", "root"), true),
            ("/proc/PID/root/usr/bin/villus".to_owned(), false),
            ("the /home/ folder".to_owned(), false),
            ("cgroup/root/x".to_owned(), false),
        ];
        for (line, wanted) in cases {
            assert_eq!(!machine_paths(Path::new("f"), &line, &[]).is_empty(), wanted, "{line}");
        }
    }

    #[test]
    fn the_checkout_itself_is_found() {
        let names = machine_names(Path::new("/build/villus"));
        assert_eq!(names, ["/build/villus/", "/build/"]);
        assert_eq!(machine_paths(Path::new("f"), "see /build/villus/dev", &names).len(), 2);
        assert!(machine_paths(Path::new("f"), "target/build/x", &names).is_empty());
    }

    #[test]
    fn links_outside_and_code_are_left_alone() {
        let text = "[a](docs/a.md) and [b](https://x.invalid/)\n```\n[c](no.md)\n```\n[d](#here)\n";
        assert_eq!(links(text), ["docs/a.md", "#here"]);
    }

    #[test]
    fn a_merge_that_was_not_finished_is_found() {
        let left = format!("one\n{} ours\n", "<".repeat(7));
        assert_eq!(
            unmerged(Path::new("a.md"), &left),
            Some("a.md:2: a merge that was not finished".to_owned())
        );
        assert_eq!(unmerged(Path::new("a.md"), "a heading\n=======\n"), None);
    }

    #[test]
    fn a_fixed_number_of_cases_is_found() {
        let count = |line: &str| fixed_cases(Path::new("f"), line).len();
        assert_eq!(count(&format!("ProptestConfig::{}(64)", "with_cases")), 1);
        assert_eq!(count("ProptestConfig::with_cases(ProptestConfig::default().cases / 4)"), 0);
    }

    #[test]
    fn headings_become_anchors() {
        assert_eq!(slug("## How a packet is decided (v1)"), "how-a-packet-is-decided-v1");
    }
}
