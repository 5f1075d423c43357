//! What a certificate says.

use serde::Serialize;
use x509_parser::{
    extensions::GeneralName,
    pem::parse_x509_pem,
    prelude::{ParsedExtension, X509Certificate},
};

/// What a certificate says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Found {
    /// The user.
    pub common_name: String,
    /// The group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub organisation: Option<String>,
    /// Names and addresses of a server.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// Whether it signs others.
    pub is_authority: bool,
    /// Valid from then on, in seconds since 1970.
    pub not_before: i64,
    /// Valid until then, in seconds since 1970.
    pub not_after: i64,
}

// === impl Found ===

impl Found {
    /// Reads the first certificate of a text in PEM.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(pem: &[u8]) -> Result<Self, String> {
        let (_, pem) = parse_x509_pem(pem).map_err(|error| format!("it holds no PEM: {error}"))?;
        if pem.label != "CERTIFICATE" {
            return Err(format!("it holds a {}, not a certificate", pem.label));
        }
        let certificate = pem.parse_x509().map_err(|error| format!("it holds no certificate: {error}"))?;
        Ok(Self::of(&certificate))
    }

    fn of(certificate: &X509Certificate<'_>) -> Self {
        let subject = certificate.subject();
        let text = |mut found: Box<dyn Iterator<Item = String> + '_>| found.next();
        let common_name = text(Box::new(
            subject.iter_common_name().filter_map(|name| name.as_str().ok().map(str::to_owned)),
        ));
        let organisation = text(Box::new(
            subject.iter_organization().filter_map(|name| name.as_str().ok().map(str::to_owned)),
        ));
        Self {
            common_name: common_name.unwrap_or_default(),
            organisation,
            addresses: addresses(certificate),
            is_authority: certificate.is_ca(),
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
        }
    }
}

fn addresses(certificate: &X509Certificate<'_>) -> Vec<String> {
    let extensions = certificate.extensions().iter().map(|extension| extension.parsed_extension());
    let names = extensions.filter_map(|parsed| match parsed {
        ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
        _ => None,
    });
    names.flatten().filter_map(address).collect()
}

fn address(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(*bytes).map(|octets| std::net::IpAddr::from(octets).to_string());
            let v6 = <[u8; 16]>::try_from(*bytes).map(|octets| std::net::IpAddr::from(octets).to_string());
            v4.or(v6).ok()
        }
        _ => None,
    }
}
