//! The directory of remote clusters.
//!
//! One file for each cluster, named as the cluster, holds what a client of etcd needs (`endpoints`, `trusted-ca-file`,
//! `cert-file`, `key-file`). Beside it may lie `CLUSTER.mesh` with what is ours alone: the filter, and what is assumed
//! of a cluster that does not say it. Files that name no endpoints are no configurations, here as for Cilium.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    path::Path,
    time::Duration,
};

use ipnet::IpNet;
use serde::Deserialize;
use villus_kvstore::EtcdOptions;
use villus_labels::Selector;

use crate::{cluster::is_name, filter::Filter};

/// Ending of the files with our own settings.
pub const ENDING: &str = ".mesh";
/// Largest file that is read.
const MOST: u64 = 1 << 20;

/// What a directory says about one cluster.
#[derive(Clone, Debug)]
pub struct RemoteFile {
    /// Changes with everything that the files say.
    pub fingerprint: u64,
    /// The configuration, or why there is none.
    pub config: Result<RemoteConfig, String>,
}

/// How to reach a cluster, and what of it is wanted.
#[derive(Clone, Debug)]
pub struct RemoteConfig {
    /// Its etcd.
    pub etcd: EtcdOptions,
    /// What is ours.
    pub extra: Extra,
}

/// Settings of `CLUSTER.mesh`.
#[derive(Clone, Debug, Default)]
pub struct Extra {
    /// The id of a cluster that publishes none.
    pub cluster_id: Option<u32>,
    /// Instead of the process's `cache-ttl`.
    pub cache_ttl: Option<Duration>,
    /// What is copied.
    pub filter: Filter,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
#[derive(Default)]
struct File {
    cluster_id: Option<u32>,
    cache_ttl: Option<String>,
    labels: Vec<String>,
    namespaces: Vec<String>,
    cidrs: Vec<String>,
    identities_in_use: bool,
}

// === impl Extra ===

impl Extra {
    /// Reads the text of `CLUSTER.mesh`: YAML.
    ///
    /// # Errors
    /// The field and what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let file: File = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        let mut extra = Self { cluster_id: file.cluster_id, ..Self::default() };
        if file.cluster_id == Some(0) {
            return Err("cluster-id: 0 is no id of a cluster; they begin with 1".to_owned());
        }
        if let Some(text) = &file.cache_ttl {
            let ttl = villus_config::duration::parse(text);
            extra.cache_ttl = Some(ttl.map_err(|reason| format!("cache-ttl: {text:?}: {reason}"))?);
        }
        for text in &file.labels {
            let selector = Selector::parse(text).map_err(|error| format!("labels: {text:?}: {error}"))?;
            if selector.is_everything() {
                return Err(format!("labels: {text:?} selects everything; leave it out"));
            }
            extra.filter.selectors.push(selector);
        }
        for text in &file.cidrs {
            let prefix: IpNet =
                villus_labels::parse_prefix(text).map_err(|error| format!("cidrs: {text:?}: {error}"))?;
            extra.filter.prefixes.push(prefix);
        }
        for namespace in file.namespaces {
            if namespace.is_empty() || namespace.contains('/') {
                return Err(format!("namespaces: {namespace:?} is no name of a namespace"));
            }
            extra.filter.namespaces.push(namespace);
        }
        extra.filter.in_use = file.identities_in_use;
        Ok(extra)
    }
}

/// Reads the directory; our own cluster's file is not one of a remote.
///
/// # Errors
/// The directory can't be read: nothing is known then about any remote.
pub fn read(directory: &Path, own: &str) -> io::Result<BTreeMap<String, RemoteFile>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        // Secrets that are mounted keep their versions under such names.
        if name.starts_with('.') || name.ends_with(ENDING) || name == own {
            continue;
        }
        if let Some(file) = read_one(directory, &name) {
            found.insert(name, file);
        }
    }
    Ok(found)
}

/// `None`: no configuration of a cluster.
fn read_one(directory: &Path, name: &str) -> Option<RemoteFile> {
    let path = directory.join(name);
    let text = match limited(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => return None,
        Err(error) => return Some(broken(format!("{}: {error}", path.display()))),
    };
    if !text.contains("endpoints:") {
        return None;
    }
    let beside = directory.join(format!("{name}{ENDING}"));
    let extra = match limited(&beside) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(format!("{}: {error}", beside.display())),
    };
    let mut hasher = DefaultHasher::new();
    (&text, &extra).hash(&mut hasher);
    let config = (|| {
        if !is_name(name) {
            return Err(format!(
                "{}: {name:?} can't be the name of a cluster (up to 32 small letters, digits and dashes); name the file as the cluster",
                path.display()
            ));
        }
        let etcd = EtcdOptions::read_file(&path).map_err(|error| error.to_string())?;
        let extra = Extra::parse(&extra?).map_err(|reason| format!("{}: {reason}", beside.display()))?;
        Ok(RemoteConfig { etcd, extra })
    })();
    Some(RemoteFile { fingerprint: hasher.finish(), config })
}

fn broken(reason: String) -> RemoteFile {
    let mut hasher = DefaultHasher::new();
    reason.hash(&mut hasher);
    RemoteFile { fingerprint: hasher.finish(), config: Err(reason) }
}

fn limited(path: &Path) -> io::Result<String> {
    let size = std::fs::metadata(path)?.len();
    if size > MOST {
        return Err(io::Error::other(format!("it has {size} bytes, more than {MOST}")));
    }
    std::fs::read_to_string(path)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = "endpoints:\n- http://10.0.0.1:2379\n";

    #[test]
    fn only_configurations_of_other_clusters_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
        write("c1", GOOD);
        write("c2", GOOD);
        write("c2.mesh", "namespaces: [shop]\n");
        write("c2.crt", "-----BEGIN CERTIFICATE-----");
        write("..data", GOOD);
        write("C3", GOOD);
        write("c4", "endpoints: []\n");
        write("c5", GOOD);
        write("c5.mesh", "cidrs: [10.0.0.0/33]\n");
        std::fs::create_dir(directory.path().join("c6")).unwrap();
        let found = read(directory.path(), "c1").unwrap();
        let good: Vec<_> =
            found.iter().filter(|(_, file)| file.config.is_ok()).map(|(name, _)| name).collect();
        assert_eq!(good, ["c2"]);
        assert_eq!(found["c2"].config.as_ref().unwrap().extra.filter.namespaces, ["shop"]);
        for (name, says) in [("C3", "name of a cluster"), ("c4", "at least one"), ("c5", "c5.mesh: cidrs")] {
            let error = found[name].config.as_ref().unwrap_err();
            assert!(error.contains(says), "{error}");
        }
        assert_eq!(found.len(), 4);
        let before = found["c2"].fingerprint;
        write("c2.mesh", "namespaces: [shop, other]\n");
        assert_ne!(read(directory.path(), "c1").unwrap()["c2"].fingerprint, before);
        assert!(read(Path::new("/nowhere/at/all"), "c1").is_err());
    }

    #[test]
    fn our_own_settings_are_read_and_what_is_wrong_is_named() {
        let extra = Extra::parse(
            "cluster-id: 4\ncache-ttl: 12h\nlabels: ['k8s:app=web,k8s:tier', 'k8s:app=db']\ncidrs: ['10.0.0.0/8']\nidentities-in-use: true\n",
        )
        .unwrap();
        assert_eq!((extra.cluster_id, extra.cache_ttl), (Some(4), Some(Duration::from_secs(12 * 3600))));
        assert!(extra.filter.selectors.len() == 2 && extra.filter.in_use && !extra.filter.is_empty());
        assert!(Extra::parse("\n").unwrap().filter.is_empty());
        for (text, says) in [
            ("cluster-id: 0", "begin with 1"),
            ("cluster-id: x", "cluster-id"),
            ("cache-ttl: soon", "not a duration"),
            ("labels: ['']", "everything"),
            ("cidrs: [ten]", "ten"),
            ("namespaces: [a/b]", "a/b"),
            ("namespace: [a]", "namespace"),
        ] {
            let error = Extra::parse(text).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "([a-z-]{0,12}:? ?[\\[\\]a-z0-9:/.=,'\"-]{0,20}\n?){0,6}") {
            let _ = Extra::parse(&text);
        }

        #[test]
        fn no_bytes_panic(text in any::<String>()) {
            let _ = Extra::parse(&text);
        }

        #[test]
        fn what_is_understood_is_kept(id in 1u32..512, namespaces in prop::collection::vec("[a-z]{1,8}", 0..4), used: bool) {
            let text = format!("cluster-id: {id}\nnamespaces: [{}]\nidentities-in-use: {used}\n",
                namespaces.iter().map(|one| format!("'{one}'")).collect::<Vec<_>>().join(", "));
            let extra = Extra::parse(&text).unwrap();
            prop_assert_eq!((extra.cluster_id, extra.filter.namespaces, extra.filter.in_use), (Some(id), namespaces, used));
        }
    }
}
