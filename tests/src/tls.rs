//! Certificates of the lab, and the two ends of a TLS connection for the scripted server and client.

use std::sync::Arc;

use anyhow::{Context, Result};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// A self-signed certificate and its key.
#[derive(Debug)]
pub struct Identity {
    /// Host name in the certificate.
    pub name: String,
    /// The certificate, PEM.
    pub certificate_pem: String,
    /// The private key, PEM (PKCS #8).
    pub key_pem: String,
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    /// Makes one for the host `name`.
    ///
    /// # Errors
    /// When the name cannot stand in a certificate.
    pub fn generate(name: &str) -> Result<Self> {
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(vec![name.to_owned()])?.self_signed(&key)?;
        Ok(Self {
            name: name.to_owned(),
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            certificate: certificate.der().clone(),
            key: PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?,
        })
    }

    /// Configuration of a server that shows this certificate.
    ///
    /// # Errors
    /// When key and certificate do not fit.
    pub fn server(&self) -> Result<Arc<ServerConfig>> {
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate.clone()], self.key.clone_key())?;
        Ok(Arc::new(config))
    }

    /// Configuration of a client that trusts this certificate only.
    ///
    /// # Errors
    /// When the certificate cannot be an anchor.
    pub fn client(&self) -> Result<Arc<ClientConfig>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone())?;
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Arc::new(config))
    }

    /// The name that a client checks.
    ///
    /// # Errors
    /// When it is no host name.
    pub fn server_name(&self) -> Result<ServerName<'static>> {
        ServerName::try_from(self.name.clone()).with_context(|| format!("{} is no host name", self.name))
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
