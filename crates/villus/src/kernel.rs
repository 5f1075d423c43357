//! The kernel's pinned maps, with or without an agent.

use std::{net::IpAddr, path::PathBuf};

use clap::Args;
use villus_abi::Local;
use villus_api::EndpointRef;
use villus_config::{Config, Sources, config::Paths};
use villus_datapath::{Maps, Pins};
use villus_emergency::Journal;
use villus_policy::Settings;

use crate::{connect::Host, failure::Failure, out};

/// The options that say where things are; with all their other sources, as for the agent.
const PLACES: [&str; 3] = ["bpf-root", "lib-dir", "state-dir"];

/// Where the agent's options are. Give what the agent was given.
#[derive(Args, Clone, Debug, Default)]
pub struct ConfigArgs {
    /// Directory with one file per option, as given to the agent [env: VILLUS_CONFIG_DIR].
    #[arg(long, value_name = "PATH", value_hint = clap::ValueHint::DirPath, help_heading = "Places")]
    config_dir: Option<String>,
    /// YAML file of options, as given to the agent [env: VILLUS_CONFIG].
    #[arg(long, value_name = "PATH", value_hint = clap::ValueHint::FilePath, help_heading = "Places")]
    config: Option<String>,
}

impl ConfigArgs {
    fn flags(&self) -> impl Iterator<Item = (&'static str, &str)> {
        [("config-dir", &self.config_dir), ("config", &self.config)]
            .into_iter()
            .filter_map(|(name, value)| value.as_deref().map(|value| (name, value)))
    }

    /// Whether the command line names any.
    pub const fn is_given(&self) -> bool {
        self.config_dir.is_some() || self.config.is_some()
    }

    /// The agent's options from all sources; `cluster` takes the place of the name of its cluster.
    pub fn load(&self, cluster: Option<&str>) -> Result<Config, Failure> {
        let named = cluster.map(|name| ("cluster-name", name));
        let sources = Sources::new().process_env();
        let sources =
            self.flags().chain(named).fold(sources, |sources, (name, value)| sources.flag(name, value));
        Config::load(sources).map_err(|error| Failure::new(error).fix("correct what is named above"))
    }
}

/// What options make of policies.
pub fn policy_settings(config: &Config) -> Result<Settings, Failure> {
    villus_agent::policy_settings(config, config.policy.enforcement).map_err(Failure::new)
}

/// Where the agent keeps what it keeps. Give what the agent was given.
#[derive(Args, Clone, Debug, Default)]
pub struct PlaceArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Mount point of the BPF file system [env: VILLUS_BPF_ROOT] [default: /sys/fs/bpf].
    #[arg(long, value_name = "PATH", value_hint = clap::ValueHint::DirPath, help_heading = "Places")]
    bpf_root: Option<String>,
    /// Directory of what outlives a boot [env: VILLUS_LIB_DIR] [default: /var/lib/villus].
    #[arg(long, value_name = "PATH", value_hint = clap::ValueHint::DirPath, help_heading = "Places")]
    lib_dir: Option<String>,
    /// Directory of what lasts until the next boot [env: VILLUS_STATE_DIR] [default: /var/run/villus].
    #[arg(long, value_name = "PATH", value_hint = clap::ValueHint::DirPath, help_heading = "Places")]
    state_dir: Option<String>,
}

impl PlaceArgs {
    fn flags(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let places =
            [("bpf-root", &self.bpf_root), ("lib-dir", &self.lib_dir), ("state-dir", &self.state_dir)];
        let places =
            places.into_iter().filter_map(|(name, value)| value.as_deref().map(|value| (name, value)));
        self.config.flags().chain(places)
    }

    /// The places of a bpffs, where options say the rest.
    pub fn of_bpf_root(config: &ConfigArgs, bpf_root: Option<&str>) -> Self {
        Self { config: config.clone(), bpf_root: bpf_root.map(str::to_owned), ..Self::default() }
    }

    /// The agent's configuration from all sources.
    pub fn load(&self) -> Result<Config, Failure> {
        let sources = Sources::new().process_env();
        let sources = self.flags().fold(sources, |sources, (name, value)| sources.flag(name, value));
        Config::load(sources).map_err(|error| Failure::new(error).fix("correct what is named above"))
    }

    /// Where things are, even if something else in the configuration is wrong.
    pub fn paths(&self) -> Result<Paths, Failure> {
        let Err(refused) = self.load() else { return self.load().map(|config| config.paths) };
        let here = |name: &str| format!("VILLUS_{}", name.to_ascii_uppercase().replace('-', "_"));
        let wanted: Vec<String> = PLACES.into_iter().map(here).collect();
        let env = std::env::vars_os().filter(|(name, _)| wanted.iter().any(|wanted| name == wanted.as_str()));
        let mut sources = Sources::new().env(env);
        for (name, value) in self.flags().filter(|(name, _)| PLACES.contains(name)) {
            sources = sources.flag(name, value);
        }
        let config = Config::load(sources).map_err(|_| refused)?;
        out::complain(
            "villus: the configuration has errors (see `villus config check`); its paths are not used",
        );
        Ok(config.paths)
    }

    /// The journal of what was done by hand.
    pub fn journal(&self) -> Result<Journal, Failure> {
        Ok(Journal::open(&self.paths()?.lib_dir))
    }

    /// The kernel's maps.
    pub fn kernel(&self) -> Result<Kernel, Failure> {
        Kernel::open(self.paths()?.bpf_root)
    }
}

/// The maps of the path, open.
pub struct Kernel {
    pub pins: Pins,
    pub maps: Maps,
}

impl Kernel {
    fn open(root: PathBuf) -> Result<Self, Failure> {
        if !rustix::process::geteuid().is_root() {
            return Err(Failure::new("only root may look into the kernel's maps").fix("run it with sudo"));
        }
        let missing = |error: villus_datapath::Error| {
            let fix = "name the BPF file system that the agent uses with --bpf-root, or start the agent once";
            match error {
                villus_datapath::Error::Kernel { ref source, .. }
                    if source.kind() == std::io::ErrorKind::NotFound =>
                {
                    Failure::new(error).fix(fix)
                }
                other => other.into(),
            }
        };
        let pins = Pins::existing(&root).map_err(missing)?;
        let maps = Maps::existing(&pins).map_err(missing)?;
        Ok(Self { pins, maps })
    }

    /// The id of an endpoint: a number, the name of its policy map or one of its addresses as the kernel has
    /// them; any other form is asked of the agent.
    pub fn endpoint(&self, text: &str, host: &Host) -> Result<u16, Failure> {
        if let Some(digits) = text.rsplit('/').next().and_then(|name| name.strip_prefix("cilium_policy_")) {
            return digits.parse().map_err(|_| Failure::usage(format!("{text:?} is no policy map")));
        }
        let wanted: EndpointRef =
            text.parse().map_err(|error: villus_api::EndpointRefError| Failure::usage(error))?;
        match wanted {
            EndpointRef::Id(id) => Ok(id),
            EndpointRef::Ip(address) => self
                .owner(address)?
                .ok_or_else(|| Failure::new(format!("no endpoint of this node has the address {address}")))?
                .try_into()
                .map_err(Failure::new),
            other => Ok(host.client()?.endpoint(&other).map(|endpoint| endpoint.id)?),
        }
    }

    fn owner(&self, address: IpAddr) -> Result<Option<u32>, Failure> {
        let local: Option<Local> = match address {
            IpAddr::V4(v4) => self.maps.addrs4.get(&u32::from_ne_bytes(v4.octets()))?,
            IpAddr::V6(v6) => self.maps.addrs6.get(&v6.octets())?,
        };
        Ok(local.map(|local| local.slot).filter(|slot| *slot != villus_abi::endpoint::SLOT_HOST))
    }
}
