//! Authorities and certificates of tests.

use std::{fs, path::Path, time::SystemTime};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};

/// Signs certificates for 127.0.0.1 and an address more, if there is one.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    addresses: Vec<String>,
}

impl Authority {
    /// One of this name.
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer, addresses: vec!["127.0.0.1".to_owned()] }
    }

    /// Its certificates are for this address too.
    pub fn also_for(mut self, address: &str) -> Self {
        self.addresses.push(address.to_owned());
        self
    }

    /// Writes its own certificate.
    pub fn write(&self, path: &Path) {
        fs::write(path, self.issuer.pem()).unwrap();
    }

    /// Writes `<name>.crt` and `<name>.key`, the common name being `name`.
    pub fn issue(&self, directory: &Path, name: &str) {
        self.sign(directory, name, |_| {});
    }

    /// As [`Authority::issue`], of a certificate that expired long ago.
    pub fn issue_expired(&self, directory: &Path, name: &str) {
        self.sign(directory, name, |params| {
            (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
        });
    }

    /// As [`Authority::issue`], of a certificate that is valid in many years only: what a clock that is wrong sees.
    pub fn issue_future(&self, directory: &Path, name: &str) {
        self.sign(directory, name, |params| {
            (params.not_before, params.not_after) = (date_time_ymd(2200, 1, 1), date_time_ymd(2201, 1, 1));
        });
    }

    /// As [`Authority::issue`], of a certificate that is valid from one time to another.
    pub fn issue_for(&self, directory: &Path, name: &str, (from, to): (SystemTime, SystemTime)) {
        self.sign(directory, name, |params| (params.not_before, params.not_after) = (from.into(), to.into()));
    }

    fn sign(&self, directory: &Path, name: &str, alter: impl FnOnce(&mut CertificateParams)) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(self.addresses.clone()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        alter(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(directory.join(format!("{name}.crt")), certificate.pem()).unwrap();
        fs::write(directory.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}
