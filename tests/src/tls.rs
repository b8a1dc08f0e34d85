//! Certificates of the lab, and both ends of a TLS connection for the scripted server and client.

use std::sync::Arc;

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, PublicKeyData, date_time_ymd};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use sha2::{Digest, Sha256};

/// A certificate and its key.
#[derive(Debug)]
pub struct Identity {
    /// First host name in the certificate.
    pub name: String,
    /// The certificate, PEM; followed by the authority's certificate if it was issued by one.
    pub certificate_pem: String,
    /// The private key, PEM (PKCS #8).
    pub key_pem: String,
    /// The data of a TLSA record for it: DANE-EE, public key, SHA-256 (RFC 7672 §3.1).
    pub tlsa: String,
    certificate: CertificateDer<'static>,
    /// The client's trust anchor: the certificate itself, or that of the authority.
    anchor: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    /// Generates a self-signed certificate for the host `name`.
    ///
    /// # Errors
    /// When the name is not valid in a certificate.
    pub fn generate(name: &str) -> Result<Self> {
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(vec![name.to_owned()])?.self_signed(&key)?;
        Self::new(name, certificate.der(), certificate.der(), certificate.pem(), &key)
    }

    fn new(
        name: &str,
        certificate: &CertificateDer<'static>,
        anchor: &CertificateDer<'static>,
        certificate_pem: String,
        key: &KeyPair,
    ) -> Result<Self> {
        let digest = Sha256::digest(key.subject_public_key_info());
        let hex: String = digest.iter().map(|octet| format!("{octet:02x}")).collect();
        Ok(Self {
            name: name.to_owned(),
            certificate_pem,
            key_pem: key.serialize_pem(),
            tlsa: format!("3 1 1 {hex}"),
            certificate: certificate.clone(),
            anchor: anchor.clone(),
            key: PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?,
        })
    }

    /// Configuration of a server that presents this certificate.
    ///
    /// # Errors
    /// When key and certificate do not match.
    pub fn server(&self) -> Result<Arc<ServerConfig>> {
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate.clone()], self.key.clone_key())?;
        Ok(Arc::new(config))
    }

    /// Configuration of a client that trusts this certificate only, or the authority that signed it.
    ///
    /// # Errors
    /// When the certificate is not usable as a trust anchor.
    pub fn client(&self) -> Result<Arc<ClientConfig>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.anchor.clone())?;
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Arc::new(config))
    }

    /// The name that a client checks.
    ///
    /// # Errors
    /// When it is not a host name.
    pub fn server_name(&self) -> Result<ServerName<'static>> {
        ServerName::try_from(self.name.clone()).with_context(|| format!("{} is no host name", self.name))
    }
}

/// A private certification authority.
#[derive(Debug)]
pub struct Authority {
    /// Its certificate, PEM.
    pub certificate_pem: String,
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Generates an authority with this name.
    ///
    /// # Errors
    /// When no random numbers are available.
    pub fn generate(name: &str) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.distinguished_name.push(DnType::CommonName, name);
        let certificate = parameters.self_signed(&key)?;
        Ok(Self {
            certificate_pem: certificate.pem(),
            certificate: certificate.der().clone(),
            issuer: Issuer::new(parameters, key),
        })
    }

    /// Issues a certificate for these hosts; the first one is its name.
    ///
    /// # Errors
    /// When a name is not valid in a certificate.
    pub fn issue(&self, hosts: &[&str]) -> Result<Identity> {
        self.sign(hosts, CertificateParams::new(owned(hosts))?)
    }

    /// As [`Authority::issue`], but the certificate has expired.
    ///
    /// # Errors
    /// As [`Authority::issue`].
    pub fn issue_expired(&self, hosts: &[&str]) -> Result<Identity> {
        let mut parameters = CertificateParams::new(owned(hosts))?;
        (parameters.not_before, parameters.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2020, 12, 31));
        self.sign(hosts, parameters)
    }

    fn sign(&self, hosts: &[&str], mut parameters: CertificateParams) -> Result<Identity> {
        let name = *hosts.first().context("a certificate needs a host")?;
        parameters.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate()?;
        let certificate = parameters.signed_by(&key, &self.issuer)?;
        let chain = format!("{}{}", certificate.pem(), self.certificate_pem);
        Identity::new(name, certificate.der(), &self.certificate, chain, &key)
    }
}

fn owned(hosts: &[&str]) -> Vec<String> {
    hosts.iter().map(|host| (*host).to_owned()).collect()
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
