//! The log: standard error, and syslog where `log-driver` names it.

use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use villus_config::config::Log;

/// Overrides the level of standard error, for looking closer at one start.
const LEVEL: &str = "VILLUS_LOG";

/// Begins to log, unless the process does so already. Returns what of the options has no effect.
pub(crate) fn begin(config: &Log) -> Vec<String> {
    let mut ignored = Vec::new();
    let default = if config.debug { LevelFilter::DEBUG } else { LevelFilter::INFO };
    let level = |name: &str, otherwise: LevelFilter, ignored: &mut Vec<String>| {
        let Some(text) = config.options.get(name) else { return otherwise };
        text.parse().unwrap_or_else(|_| {
            ignored.push(format!("log-opt {name}={text}: not a level (error, warn, info, debug, trace)"));
            otherwise
        })
    };
    let mut stderr = level("level", default, &mut ignored);
    if let Ok(text) = std::env::var(LEVEL) {
        stderr = text.parse().unwrap_or(stderr);
    }
    let to_syslog = level("syslog.level", LevelFilter::INFO, &mut ignored);
    for name in ["syslog.network", "syslog.address", "format"] {
        if config.options.contains_key(name) {
            ignored.push(format!(
                "log-opt {name}: the log goes to the local syslog and to standard error as text"
            ));
        }
    }
    let text =
        tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false).with_target(false);
    let syslog = config.syslog.then(|| syslog(config)).flatten();
    if config.syslog && syslog.is_none() {
        ignored.push("log-driver syslog: this process has a syslog already, or the tag is not valid".into());
    }
    let syslog = syslog.map(|writer| {
        let plain = tracing_subscriber::fmt::layer().with_writer(writer);
        plain.with_ansi(false).without_time().with_level(false).with_target(false).with_filter(to_syslog)
    });
    // Somebody else's subscriber, as in tests, stays.
    let _ = tracing_subscriber::registry().with(text.with_filter(stderr)).with(syslog).try_init();
    ignored
}

fn syslog(config: &Log) -> Option<syslog_tracing::Syslog> {
    let tag = config.options.get("syslog.tag").map_or("villus", String::as_str);
    let tag = std::ffi::CString::new(tag).ok()?;
    syslog_tracing::Syslog::new(tag, syslog_tracing::Options::LOG_PID, syslog_tracing::Facility::Daemon)
}
