//! A directory with an authority and what it signed.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde::Serialize;
use villus_durable::{FileError, write_atomic, write_atomic_as};

use crate::{CertsError, Found, Holder};

/// Certificates are valid from a little before now on, for hosts whose clocks are behind.
const BEFORE: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
/// Readable for who has to trust the authority.
const PUBLIC: u32 = 0o644;

/// A directory with an authority (`ca.crt`, `ca.key`) and what it signed (`agents/`, `servers/`, `users/`; each
/// `NAME.crt` and `NAME.key`). Keys have mode 0600.
#[derive(Clone, Debug)]
pub struct Pki {
    directory: PathBuf,
}

/// A certificate that was made or found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Issued {
    /// Who holds it; none for the authority itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holder: Option<Holder>,
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// What it says.
    pub found: Found,
    /// Days it is still valid; negative once it has ended.
    pub days: i64,
}

/// Which certificates are renewed, and how.
#[derive(Clone, Debug, Default)]
pub struct Renewal {
    /// Days the new ones are valid.
    pub days: u32,
    /// Only those that end within so many days.
    pub within: i64,
    /// Only those of these holders; all if empty.
    pub names: Vec<String>,
    /// With a new key instead of the one they have.
    pub new_key: bool,
    /// Change nothing.
    pub dry_run: bool,
}

// === impl Pki ===

impl Pki {
    /// The directory. Nothing is read or made yet.
    #[must_use]
    pub fn at(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// Makes the authority.
    ///
    /// # Errors
    /// There is one, whole or in part; the directory cannot be written.
    pub fn init(&self, name: &str, days: u32) -> Result<Issued, CertsError> {
        let (certificate, key_file) = self.files_of_authority();
        for path in [&certificate, &key_file] {
            if path.exists() {
                return Err(CertsError::AuthorityExists { path: path.clone() });
            }
        }
        let failed =
            |error: rcgen::Error| CertsError::Make { name: name.to_owned(), reason: error.to_string() };
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = params(name, None, days)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let pem = params.self_signed(&key).map_err(failed)?.pem();
        self.folder(&self.directory)?;
        write_atomic(&key_file, key.serialize_pem().as_bytes())?;
        write_atomic_as(&certificate, pem.as_bytes(), PUBLIC)?;
        self.authority()
    }

    /// The authority.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn authority(&self) -> Result<Issued, CertsError> {
        let (certificate, key) = self.files_of_authority();
        if !certificate.exists() {
            return Err(CertsError::NoAuthority { path: self.directory.clone() });
        }
        look(None, certificate, key)
    }

    /// Makes a certificate and its key.
    ///
    /// # Errors
    /// There is one already, there is no authority, or it ends sooner than the certificate would.
    pub fn issue(&self, holder: &Holder, days: u32) -> Result<Issued, CertsError> {
        let (certificate, key_file) = self.files_of(holder);
        for path in [&certificate, &key_file] {
            if path.exists() {
                return Err(CertsError::Exists { path: path.clone() });
            }
        }
        let key = KeyPair::generate().map_err(|error| make_failed(holder, &error))?;
        let pem = self.sign(holder, &key, days)?;
        self.folder(&self.directory.join(holder.folder()))?;
        write_atomic(&key_file, key.serialize_pem().as_bytes())?;
        write_atomic_as(&certificate, pem.as_bytes(), PUBLIC)?;
        look(Some(holder.clone()), certificate, key_file)
    }

    /// Everything in the directory, the authority first. A file that cannot be read is an error of its own.
    ///
    /// # Errors
    /// There is no authority, or a folder cannot be read.
    pub fn list(&self) -> Result<Vec<Result<Issued, CertsError>>, CertsError> {
        let mut list = vec![Ok(self.authority()?)];
        for folder in ["agents", "servers", "users"] {
            for name in names_in(&self.directory.join(folder))? {
                list.push(self.find(folder, &name));
            }
        }
        Ok(list)
    }

    /// Makes those certificates anew that end soon. Without a new key the certificate alone is replaced, in one step: whoever
    /// reads it meanwhile has a pair that fits. Returns what was, or with `dry_run` would be, renewed.
    ///
    /// # Errors
    /// No such holder; the first certificate that cannot be read or replaced. Those before it are renewed.
    pub fn renew(&self, renewal: &Renewal) -> Result<Vec<Issued>, CertsError> {
        let mut all = Vec::new();
        for one in self.list()? {
            let issued = one?;
            if let Some(holder) = issued.holder.clone() {
                all.push((holder, issued));
            }
        }
        if let Some(unknown) =
            renewal.names.iter().find(|name| !all.iter().any(|(holder, _)| holder.name() == name.as_str()))
        {
            let reason = "has no certificate here; see `villus certs list`";
            return Err(CertsError::Name { name: unknown.clone(), reason });
        }
        let wanted = |holder: &Holder| {
            renewal.names.is_empty() || renewal.names.iter().any(|name| name == holder.name())
        };
        let due = all.into_iter().filter(|(holder, issued)| wanted(holder) && issued.days <= renewal.within);
        let mut renewed = Vec::new();
        for (holder, issued) in due {
            renewed.push(if renewal.dry_run { issued } else { self.renew_one(&holder, issued, renewal)? });
        }
        Ok(renewed)
    }

    fn renew_one(&self, holder: &Holder, old: Issued, renewal: &Renewal) -> Result<Issued, CertsError> {
        let key = if renewal.new_key {
            KeyPair::generate().map_err(|error| make_failed(holder, &error))?
        } else {
            read_key(&old.key)?
        };
        let pem = self.sign(holder, &key, renewal.days)?;
        if renewal.new_key {
            write_atomic(&old.key, key.serialize_pem().as_bytes())?;
        }
        write_atomic_as(&old.certificate, pem.as_bytes(), PUBLIC)?;
        look(Some(holder.clone()), old.certificate, old.key)
    }

    fn sign(&self, holder: &Holder, key: &KeyPair, days: u32) -> Result<String, CertsError> {
        let authority = self.authority()?;
        if authority.days < i64::from(days) {
            return Err(CertsError::AuthorityEnds { path: self.directory.clone(), days: authority.days });
        }
        let damaged = |error: rcgen::Error| CertsError::Damaged {
            path: authority.certificate.clone(),
            reason: error.to_string(),
        };
        let text = read(&authority.certificate)?;
        let issuer = Issuer::from_ca_cert_pem(&String::from_utf8_lossy(&text), read_key(&authority.key)?)
            .map_err(damaged)?;
        let mut params = params(&holder.common_name(), holder.organisation(), days)?;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if let Holder::Server { addresses, .. } = holder {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
            let names =
                CertificateParams::new(addresses.clone()).map_err(|error| make_failed(holder, &error))?;
            params.subject_alt_names = names.subject_alt_names;
        }
        let certificate = params.signed_by(key, &issuer).map_err(|error| make_failed(holder, &error))?;
        Ok(certificate.pem())
    }

    fn find(&self, folder: &str, name: &str) -> Result<Issued, CertsError> {
        let place = self.directory.join(folder);
        let (certificate, key) = (place.join(format!("{name}.crt")), place.join(format!("{name}.key")));
        let mut issued = look(None, certificate, key)?;
        let found = &issued.found;
        let holder = match folder {
            "agents" => Holder::agent(name)?,
            "servers" => Holder::server(name, &found.addresses)?,
            _ => Holder::user(name, found.organisation.as_deref())?,
        };
        if found.common_name != holder.common_name() || found.organisation.as_deref() != holder.organisation()
        {
            let reason = format!("it is that of {}, not of {}", found.common_name, holder.common_name());
            return Err(CertsError::Damaged { path: issued.certificate, reason });
        }
        issued.holder = Some(holder);
        Ok(issued)
    }

    fn files_of_authority(&self) -> (PathBuf, PathBuf) {
        (self.directory.join("ca.crt"), self.directory.join("ca.key"))
    }

    fn files_of(&self, holder: &Holder) -> (PathBuf, PathBuf) {
        let folder = self.directory.join(holder.folder());
        (folder.join(format!("{}.crt", holder.name())), folder.join(format!("{}.key", holder.name())))
    }

    fn folder(&self, path: &Path) -> Result<(), CertsError> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(path);
        made.map_err(|source| FileError { path: path.to_owned(), what: "can't be made", source }.into())
    }
}

fn params(name: &str, group: Option<&str>, days: u32) -> Result<CertificateParams, CertsError> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    let now = SystemTime::now();
    let end = now.checked_add(DAY * days).filter(|end| *end < UNIX_EPOCH + DAY * 365 * 2000);
    let out_of_range =
        || CertsError::Make { name: name.to_owned(), reason: format!("{days} days are too many") };
    params.not_before = now.checked_sub(BEFORE).unwrap_or(now).into();
    params.not_after = end.ok_or_else(out_of_range)?.into();
    Ok(params)
}

fn look(holder: Option<Holder>, certificate: PathBuf, key: PathBuf) -> Result<Issued, CertsError> {
    let found = Found::parse(&read(&certificate)?)
        .map_err(|reason| CertsError::Damaged { path: certificate.clone(), reason })?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let left = found.not_after.saturating_sub(i64::try_from(now).unwrap_or(i64::MAX));
    Ok(Issued { holder, certificate, key, days: left.div_euclid(86_400), found })
}

fn read_key(path: &Path) -> Result<KeyPair, CertsError> {
    let text = read(path)?;
    KeyPair::from_pem(&String::from_utf8_lossy(&text)).map_err(|error| CertsError::Damaged {
        path: path.to_owned(),
        reason: format!("it holds no key: {error}"),
    })
}

fn read(path: &Path) -> Result<Vec<u8>, CertsError> {
    let failed = |source| FileError { path: path.to_owned(), what: "can't be read", source };
    Ok(fs::read(path).map_err(failed)?)
}

/// Names of the certificates in a folder, sorted; none if it is not there.
fn names_in(folder: &Path) -> Result<Vec<String>, CertsError> {
    let failed = |source| FileError { path: folder.to_owned(), what: "can't be read", source };
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        names.extend(name.to_string_lossy().strip_suffix(".crt").map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

fn make_failed(holder: &Holder, error: &rcgen::Error) -> CertsError {
    CertsError::Make { name: holder.common_name(), reason: error.to_string() }
}
