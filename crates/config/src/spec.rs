//! What is known about one option.

use crate::kind::Kind;

/// One option: its name, the values it takes, and what becomes of it.
#[derive(Clone, Copy, Debug)]
pub struct OptionSpec {
    /// Name as in Cilium where Cilium has the option: lower case, words joined by dashes.
    pub name: &'static str,
    /// Which texts are values.
    pub kind: Kind,
    /// The text that stands when no source sets the option; always a valid value of `kind`.
    pub default: &'static str,
    /// What the option does, one or two sentences.
    pub help: &'static str,
    /// Older names, accepted from every source.
    pub aliases: &'static [&'static str],
    /// Where it is listed.
    pub group: Group,
    /// What a plain number counts ("entries", "bytes"); empty where the value says it itself.
    pub unit: &'static str,
    /// One-letter flag.
    pub short: Option<char>,
    /// What the agent does with it.
    pub support: Support,
}

/// What the agent does with an option.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Support {
    /// It works.
    Served,
    /// It says where other options are; only a flag or the environment can set it.
    Command,
    /// Its value is checked and kept for a later version. Set to anything but the default it warns with
    /// this text.
    Kept(&'static str),
    /// It turns on a feature that this version does not have: the values listed leave the feature off and
    /// pass in silence, all others stop the start.
    Later {
        /// The feature, as a noun.
        feature: &'static str,
        /// Values that don't ask for the feature.
        off: &'static [&'static str],
    },
    /// Villus does this in one way only: the values listed pass in silence, others stop the start.
    Fixed {
        /// Values that say what Villus does anyway.
        only: &'static [&'static str],
        /// Why there is nothing to choose.
        why: &'static str,
    },
    /// It adjusts a feature that this version does not have; anything but the default warns that it has no
    /// effect. The text names the feature.
    Tuning(&'static str),
    /// Cilium has retired it, or Villus has no use for it: warns with this reason and changes nothing.
    Unneeded(&'static str),
}

impl Support {
    /// A word for it, as the reference documentation and `-o json` use it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Served => "served",
            Self::Command => "command",
            Self::Kept(_) => "kept",
            Self::Later { .. } => "later",
            Self::Fixed { .. } => "fixed",
            Self::Tuning(_) => "tuning",
            Self::Unneeded(_) => "unneeded",
        }
    }
}

/// Heading under which an option is listed in `--help` and in the reference.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[allow(missing_docs)]
pub enum Group {
    Sources,
    Paths,
    Node,
    Addresses,
    Datapath,
    Conntrack,
    Policy,
    Identity,
    Endpoints,
    Monitor,
    Api,
    Logging,
    Kvstore,
    Kubernetes,
    Routing,
    Services,
    Encryption,
    Hubble,
    Proxy,
    Health,
    Other,
}

impl Group {
    /// All groups, in the order of the reference.
    pub const ALL: [Self; 21] = [
        Self::Sources,
        Self::Paths,
        Self::Node,
        Self::Addresses,
        Self::Datapath,
        Self::Conntrack,
        Self::Policy,
        Self::Identity,
        Self::Endpoints,
        Self::Monitor,
        Self::Api,
        Self::Logging,
        Self::Kvstore,
        Self::Kubernetes,
        Self::Routing,
        Self::Services,
        Self::Encryption,
        Self::Hubble,
        Self::Proxy,
        Self::Health,
        Self::Other,
    ];

    /// The heading.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Sources => "Where options come from",
            Self::Paths => "Paths",
            Self::Node => "Node and cluster",
            Self::Addresses => "Addresses and masquerade",
            Self::Datapath => "Datapath and maps",
            Self::Conntrack => "Connection tracking",
            Self::Policy => "Policy",
            Self::Identity => "Identity",
            Self::Endpoints => "Endpoints and restart",
            Self::Monitor => "Monitor",
            Self::Api => "API and metrics",
            Self::Logging => "Logging",
            Self::Kvstore => "Kvstore and clusters",
            Self::Kubernetes => "Kubernetes",
            Self::Routing => "Routing and tunnels",
            Self::Services => "Services",
            Self::Encryption => "Encryption",
            Self::Hubble => "Hubble",
            Self::Proxy => "L7 proxy and DNS",
            Self::Health => "Health",
            Self::Other => "Other",
        }
    }
}

// === impl OptionSpec ===

impl OptionSpec {
    pub(crate) const fn new(
        name: &'static str,
        kind: Kind,
        default: &'static str,
        help: &'static str,
    ) -> Self {
        Self {
            name,
            kind,
            default,
            help,
            aliases: &[],
            group: Group::Other,
            unit: "",
            short: None,
            support: Support::Served,
        }
    }

    pub(crate) const fn group(mut self, group: Group) -> Self {
        self.group = group;
        self
    }

    pub(crate) const fn aliases(mut self, aliases: &'static [&'static str]) -> Self {
        self.aliases = aliases;
        self
    }

    pub(crate) const fn unit(mut self, unit: &'static str) -> Self {
        self.unit = unit;
        self
    }

    pub(crate) const fn short(mut self, letter: char) -> Self {
        self.short = Some(letter);
        self
    }

    pub(crate) const fn support(mut self, support: Support) -> Self {
        self.support = support;
        self
    }

    /// Environment variable that sets the option: `VILLUS_` and the name in capitals, dashes as underscores.
    #[must_use]
    pub fn variable(&self) -> String {
        crate::source::env::variable("VILLUS_", self.name)
    }
}
