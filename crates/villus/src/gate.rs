//! `villus gate`.

use std::{
    collections::hash_map::RandomState,
    hash::BuildHasher,
    num::NonZeroU32,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use clap::{Args, Subcommand};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use villus_config::duration;
use villus_emergency::rfc3339;
use villus_gate::{
    Bypass, Gate, GateError, Moment, Reason, State, Verdict, rules,
    size::{self, Size, Source},
    window,
};

use crate::{
    emergency::who,
    failure::Failure,
    out::{self, OutputArgs},
};

/// How often one who waits looks whether something was granted.
const LOOK: Duration = Duration::from_secs(1);

/// Wait until this node's agent may start: once in a window that follows the cluster's size, at a moment that chance picks.
#[derive(Args, Debug)]
#[command(
    subcommand_negates_reqs = true,
    after_help = "Examples:\n  villus gate\n  villus gate --cluster-size 5000 --dry-run\n  \
                  villus gate -- villus agent --config-dir /etc/villus/config\n\n\
                  The first start on a node is let through at once. The hook of systemd and the entrypoint of compose\n\
                  are in packaging/; docs/operations.md says how the window follows the cluster's size."
)]
pub struct GateArgs {
    #[command(subcommand)]
    command: Option<GateCommand>,
    /// Directory of what outlives a boot [env: VILLUS_LIB_DIR] [default: /var/lib/villus].
    #[arg(
        long, global = true, value_name = "PATH", value_hint = clap::ValueHint::DirPath, env = "VILLUS_LIB_DIR", hide_env = true
    )]
    lib_dir: Option<PathBuf>,
    #[command(flatten)]
    window: WindowArgs,
    /// Say what would happen now; wait for nothing and note nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: OutputArgs,
    /// What to run in place of the gate once the start is let through.
    #[arg(last = true, value_name = "COMMAND", conflicts_with = "dry_run")]
    run: Vec<String>,
}

#[derive(Args, Debug)]
struct WindowArgs {
    /// Nodes of the cluster; without it, what the agent last wrote down [env: VILLUS_CLUSTER_SIZE].
    #[arg(long, value_name = "NODES", env = "VILLUS_CLUSTER_SIZE", hide_env = true)]
    cluster_size: Option<NonZeroU32>,
    /// The window itself, instead of the one that follows from the size.
    #[arg(long, value_name = "DURATION", value_parser = length)]
    window: Option<Duration>,
}

#[derive(Subcommand, Debug)]
enum GateCommand {
    /// Show the window, the last start and who waits.
    #[command(after_help = "Example:\n  villus gate status -o json")]
    Status {
        #[command(flatten)]
        window: WindowArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Let one start through that needs no turn: who waits now, else the next.
    #[command(after_help = "Example:\n  villus gate grant --for 10m")]
    Grant {
        /// How long it is worth something.
        #[arg(long = "for", value_name = "DURATION", default_value = "1h", value_parser = length)]
        lasts: Duration,
        /// Say what would be done, and do nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Open the gate: every start is let through.
    #[command(after_help = "Examples:\n  villus gate bypass --for 2h\n  villus gate bypass --off")]
    Bypass {
        /// How long; without it until --off.
        #[arg(long = "for", value_name = "DURATION", value_parser = length)]
        lasts: Option<Duration>,
        /// Close the gate again.
        #[arg(long, conflicts_with = "lasts")]
        off: bool,
        /// Say what would be done, and do nothing.
        #[arg(long)]
        dry_run: bool,
    },
}

fn length(text: &str) -> Result<Duration, String> {
    match duration::parse(text)? {
        time if time < Duration::from_millis(1) => Err("it must be longer than nothing, as in 15m".into()),
        time => Ok(time),
    }
}

// === impl WindowArgs ===

/// The window and where it comes from.
struct Window {
    size: Size,
    length: Duration,
}

impl WindowArgs {
    /// The window; says on standard error what it had to assume.
    fn find(&self, lib_dir: &Path) -> Window {
        let (size, problem) = size::find(self.cluster_size, lib_dir);
        if let Some(problem) = problem {
            out::complain(&format!("villus gate: the size of the cluster cannot be read: {problem}"));
        }
        if size.source == Source::Assumed && self.window.is_none() {
            out::complain(&format!(
                "villus gate: nobody knows how many nodes the cluster has, {} are assumed; say so with --cluster-size",
                size.nodes
            ));
        }
        Window { length: self.window.unwrap_or_else(|| window::of_nodes(size.nodes)), size }
    }
}

pub fn run(args: &GateArgs) -> Result<(), Failure> {
    let lib_dir = args.lib_dir.as_deref().unwrap_or(Path::new("/var/lib/villus"));
    let gate = Gate::open(lib_dir);
    match &args.command {
        None if args.dry_run => foresee(args, &gate, &args.window.find(lib_dir)),
        None => pass(args, gate, &args.window.find(lib_dir)),
        Some(GateCommand::Status { window, output }) => status(&gate, window.find(lib_dir), output),
        Some(GateCommand::Grant { lasts, dry_run }) => grant(&gate, *lasts, *dry_run),
        Some(GateCommand::Bypass { off: true, dry_run, .. }) => bypass(&gate, None, *dry_run),
        Some(GateCommand::Bypass { lasts, dry_run, .. }) => {
            let open = Bypass::new(&who(), &Moment::now(), *lasts);
            bypass(&gate, Some(open), *dry_run)
        }
    }
}

// === passing ===

/// How a call of the gate ended.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Passed {
    /// `start`, or with --dry-run `wait`.
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Reason>,
    /// Seconds that were, or would be, waited.
    wait: f64,
    /// Seconds.
    window: f64,
    #[serde(flatten)]
    size: Size,
}

impl Passed {
    fn new(outcome: &'static str, reason: Option<Reason>, wait: Duration, window: &Window) -> Self {
        let size = window.size.clone();
        Self { outcome, reason, wait: wait.as_secs_f64(), window: window.length.as_secs_f64(), size }
    }

    fn text(&self) -> String {
        let spread = format!("window {}, {} nodes", whole(self.window), self.size.nodes);
        match self.reason {
            Some(reason) => format!("villus gate: start: {} ({spread})\n", reason_text(reason)),
            None => format!("villus gate: would wait {} ({spread})\n", whole(self.wait)),
        }
    }
}

const fn reason_text(reason: Reason) -> &'static str {
    match reason {
        Reason::New => "the first on this node",
        Reason::Granted => "granted by an operator",
        Reason::Bypassed => "the gate stands open",
        Reason::Turn => "its turn has come",
    }
}

fn whole(seconds: f64) -> String {
    duration::format(Duration::from_secs(seconds.round() as u64))
}

/// Chance that differs from node to node even where they boot alike.
fn chance() -> fastrand::Rng {
    fastrand::Rng::with_seed(RandomState::new().hash_one(0))
}

fn foresee(args: &GateArgs, gate: &Gate, window: &Window) -> Result<(), Failure> {
    let looked = gate.look()?;
    if let Some(damage) = looked.damage {
        out::complain(&format!("villus gate: {} would be put aside: {damage}", gate.path().display()));
    }
    let mut state = looked.state;
    let passed = match rules::ask(&mut state, &Moment::now(), window.length, &mut chance()) {
        Verdict::Start(reason) => Passed::new("start", Some(reason), Duration::ZERO, window),
        Verdict::Wait(left) => Passed::new("wait", None, left, window),
    };
    args.output.print(&passed, || passed.text())
}

fn pass(args: &GateArgs, gate: Gate, window: &Window) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::new)?;
    let mut asking = Asking { gate, memory: None, chance: chance() };
    let begin = Moment::now();
    let reason = runtime.block_on(wait(&mut asking, window))?;
    let passed = Passed::new("start", Some(reason), Moment::now().since(&begin), window);
    args.output.print(&passed, || passed.text())?;
    let Some((program, arguments)) = args.run.split_first() else { return Ok(()) };
    let error = Command::new(program).args(arguments).exec();
    Err(Failure::new(format!("cannot run {program}: {error}")).fix("name it with its path"))
}

/// Asks until the start is let through. Ends on SIGTERM and SIGINT, also as the first process of a container.
async fn wait(asking: &mut Asking, window: &Window) -> Result<Reason, Failure> {
    let mut ends = [SignalKind::terminate(), SignalKind::interrupt()].map(signal).into_iter();
    let (Some(Ok(mut terminate)), Some(Ok(mut interrupt))) = (ends.next(), ends.next()) else {
        return Err(Failure::new("signals cannot be received"));
    };
    let mut said = None;
    loop {
        let left = match asking.ask(window.length) {
            Verdict::Start(reason) => return Ok(reason),
            Verdict::Wait(left) => left,
        };
        // A turn that is drawn anew is said anew.
        let due = SystemTime::now() + left;
        let moved = |said: SystemTime| due.duration_since(said).unwrap_or_default() > 2 * LOOK;
        if said.is_none_or(moved) {
            said = Some(due);
            out::complain(&format!(
                "villus gate: waiting {} until {} (window {}, {} nodes); `villus gate grant` lets it start now",
                whole(left.as_secs_f64()),
                rfc3339(due),
                whole(window.length.as_secs_f64()),
                window.size.nodes,
            ));
        }
        tokio::select! {
            () = tokio::time::sleep(left.min(LOOK)) => {}
            _ = terminate.recv() => return Err(stopped()),
            _ = interrupt.recv() => return Err(stopped()),
        }
    }
}

fn stopped() -> Failure {
    Failure::new("stopped while waiting for its turn").fix("the turn is kept for who comes back before it")
}

/// One who asks. Where the state cannot be kept on disk it is kept in memory: the start is still spread.
struct Asking {
    gate: Gate,
    memory: Option<State>,
    chance: fastrand::Rng,
}

impl Asking {
    fn ask(&mut self, window: Duration) -> Verdict {
        let now = Moment::now();
        match self.gate.ask(&now, window, &mut self.chance) {
            Ok((verdict, kept)) => {
                self.memory = None;
                if let Some(kept) = kept {
                    out::complain(&format!("villus gate: a damaged state was put aside: {}", kept.display()));
                }
                verdict
            }
            Err(error) => {
                let state = self.memory.get_or_insert_with(|| {
                    out::complain(&format!("villus gate: {error}"));
                    out::complain("villus gate: this start is spread, but the next will not know of it");
                    State::unknown()
                });
                rules::ask(state, &now, window, &mut self.chance)
            }
        }
    }
}

// === the operator's ===

/// What `villus gate status` shows.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Shown {
    file: PathBuf,
    #[serde(flatten)]
    size: Size,
    /// Seconds.
    window: f64,
    state: State,
    #[serde(skip_serializing_if = "Option::is_none")]
    damage: Option<String>,
    /// Seconds until the turn that was drawn.
    #[serde(skip_serializing_if = "Option::is_none")]
    wait: Option<f64>,
}

fn status(gate: &Gate, window: Window, output: &OutputArgs) -> Result<(), Failure> {
    let now = Moment::now();
    let looked = gate.look()?;
    let left = looked.state.ticket.as_ref().map(|ticket| ticket.timer.left(&now));
    let shown = Shown {
        file: gate.path(),
        size: window.size,
        window: window.length.as_secs_f64(),
        wait: left.map(|left| left.as_secs_f64()),
        state: looked.state,
        damage: looked.damage,
    };
    output.print(&shown, || text(&shown, &now))
}

fn text(shown: &Shown, now: &Moment) -> String {
    let state = &shown.state;
    let source = match shown.size.source {
        Source::Option => "said by an option",
        Source::Disk => "as the agent last knew",
        Source::Assumed => "assumed",
    };
    let started = match &state.started {
        Some(started) => {
            let ago = duration::format(Duration::from_secs(now.since(started).as_secs()));
            format!("{} ({ago} ago)", moment_text(started))
        }
        None if state.is_new() => "never: the first start is let through".to_owned(),
        None => "not known".to_owned(),
    };
    let mut lines = vec![
        ("Cluster", format!("{} nodes, {source}", shown.size.nodes)),
        ("Window", whole(shown.window)),
        ("Last start", started),
    ];
    if state.streak > 0 {
        lines.push(("Backed off", format!("{} starts in a row came too early", state.streak)));
    }
    if let Some(wait) = shown.wait {
        lines.push(("Turn", format!("in {}", whole(wait))));
    }
    if let Some(grant) = &state.grant {
        let left = grant.timer.left(now).as_secs_f64();
        lines.push(("Grant", format!("by {}, for one start within {}", grant.by, whole(left))));
    }
    if let Some(bypass) = state.bypass.as_ref().filter(|bypass| bypass.holds(now)) {
        lines.push(("Bypass", format!("open by {} since {}", bypass.by, moment_text(&bypass.since))));
    }
    if let Some(damage) = &shown.damage {
        lines.push(("Damaged", format!("{}: {damage}", shown.file.display())));
    }
    lines.iter().map(|(name, value)| format!("{name:12}{value}\n")).collect()
}

fn moment_text(moment: &Moment) -> String {
    rfc3339(SystemTime::UNIX_EPOCH + Duration::from_millis(moment.unix_ms))
}

fn grant(gate: &Gate, lasts: Duration, dry_run: bool) -> Result<(), Failure> {
    let lasts_text = duration::format(lasts);
    if dry_run {
        return out::line(&format!("one start within {lasts_text} would be let through"));
    }
    gate.grant(&who(), &Moment::now(), lasts)?;
    out::line(&format!("one start within {lasts_text} is let through; who waits now takes it"))
}

fn bypass(gate: &Gate, open: Option<Bypass>, dry_run: bool) -> Result<(), Failure> {
    let would = if dry_run { "would be" } else { "is" };
    let text = match open.as_ref().map(|open| open.timer.as_ref().map(|timer| timer.lasts_ms)) {
        None => format!("the gate {would} closed"),
        Some(None) => format!("the gate {would} open until `villus gate bypass --off`"),
        Some(Some(ms)) => {
            format!("the gate {would} open for {}", duration::format(Duration::from_millis(ms)))
        }
    };
    if !dry_run {
        gate.bypass(open)?;
    }
    out::line(&text)
}

impl From<GateError> for Failure {
    fn from(error: GateError) -> Self {
        crate::failure::split(&error.to_string())
    }
}
