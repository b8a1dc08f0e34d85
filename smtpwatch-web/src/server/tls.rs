//! TLS of the server: certificate, key, versions, and client certificates. [`acceptor`] builds the configuration;
//! [`accept`] does the handshake of one connection.

use std::{net::IpAddr, path::Path, sync::Arc, time::Duration};

use rustls::{
    RootCertStore, ServerConfig, SupportedProtocolVersion,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
    version::{TLS12, TLS13},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::files::Files;

/// Maximum time of a handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Content type of a handshake record (RFC 8446, section 5.1).
const HANDSHAKE_RECORD: u8 = 22;
/// Maximum number of bytes of a plain HTTP request that are read and discarded.
const PLAIN_REQUEST: u64 = 64 * 1024;
/// The response to plain HTTP.
const NOT_HTTPS: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: 37\r\n\r\n\
                           this port speaks HTTPS: use https://\n";

/// Client certificate policy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ClientAuth {
    /// No certificate is requested.
    None,
    /// A certificate is optional, and verified if present.
    IfGiven,
    /// A certificate signed by an authority of the configured file is required.
    Required,
}

/// The enabled versions, oldest first.
pub(super) fn versions(min: &str, max: &str) -> Result<Vec<&'static SupportedProtocolVersion>, &'static str> {
    match (min, max) {
        ("TLS12", "TLS12") => Ok(vec![&TLS12]),
        ("TLS12", "TLS13") => Ok(vec![&TLS12, &TLS13]),
        ("TLS13", "TLS13") => Ok(vec![&TLS13]),
        ("TLS13", "TLS12") => Err("it is older than min_version"),
        _ => Err("expected TLS12 or TLS13"),
    }
}

/// Parses a client certificate policy of the exporter-toolkit.
pub(super) fn client_auth(name: &str) -> Result<ClientAuth, &'static str> {
    match name {
        "" | "NoClientCert" => Ok(ClientAuth::None),
        "VerifyClientCertIfGiven" => Ok(ClientAuth::IfGiven),
        "RequireAndVerifyClientCert" => Ok(ClientAuth::Required),
        "RequestClientCert" | "RequireAnyClientCert" | "RequireClientCert" => {
            Err("smtpwatch does not accept unverified certificates: use RequireAndVerifyClientCert")
        }
        _ => Err("expected NoClientCert, VerifyClientCertIfGiven or RequireAndVerifyClientCert"),
    }
}

/// Reads certificate and key in PEM form.
pub(super) fn identity(
    files: &mut Files,
    cert_file: &Path,
    key_file: &Path,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), String> {
    let chain = certificates(files, cert_file)?;
    let pem = read(files, key_file)?;
    // The error does not quote the content, because it is the key.
    let key = PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|_| format!("{}: there is no private key in PEM form in it", key_file.display()))?;
    Ok((chain, key))
}

/// The verifier of client certificates.
pub(super) fn verifier(
    files: &mut Files,
    ca_file: &Path,
    auth: ClientAuth,
) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let mut roots = RootCertStore::empty();
    let bad = |why: &dyn std::fmt::Display| format!("{}: {why}", ca_file.display());
    for certificate in certificates(files, ca_file)? {
        roots.add(certificate).map_err(|why| bad(&why))?;
    }
    let provider = Arc::new(ring::default_provider());
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let builder = if auth == ClientAuth::Required { builder } else { builder.allow_unauthenticated() };
    builder.build().map_err(|why| bad(&why))
}

/// The TLS acceptor for this configuration.
pub(super) fn acceptor(
    versions: &[&'static SupportedProtocolVersion],
    (chain, key): (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>),
    verifier: Arc<dyn ClientCertVerifier>,
) -> Result<TlsAcceptor, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn certificates(files: &mut Files, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = read(files, path)?;
    let found = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(format!("{}: there is no certificate in PEM form in it", path.display())),
    }
}

fn read(files: &mut Files, path: &Path) -> Result<Vec<u8>, String> {
    files.read(path).map_err(|why| format!("cannot read {}: {why}", path.display()))
}

/// Performs the handshake. `None`: it failed, and the client has been sent the reason where possible.
pub(super) async fn accept(acceptor: &TlsAcceptor, stream: TcpStream, client: IpAddr) -> Option<TlsStream<TcpStream>> {
    let shaken = tokio::time::timeout(HANDSHAKE, async {
        let mut first = [0];
        let came = stream.peek(&mut first).await?;
        if came == 1 && first[0] != HANDSHAKE_RECORD {
            return answer_in_clear(stream).await.map(|()| None);
        }
        acceptor.accept(stream).await.map(Some)
    });
    match shaken.await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%client, %error, "TLS handshake failed");
            None
        }
        Err(_) => {
            tracing::debug!(%client, "a TLS handshake took too long");
            None
        }
    }
}

async fn answer_in_clear(mut stream: TcpStream) -> std::io::Result<()> {
    stream.write_all(NOT_HTTPS).await?;
    stream.shutdown().await?;
    // Closing with unread data would reset the connection and lose the response; the request may arrive in several
    // segments.
    tokio::io::copy(&mut stream.take(PLAIN_REQUEST), &mut tokio::io::sink()).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_toolkit() {
        assert_eq!(versions("TLS12", "TLS13").map(|versions| versions.len()), Ok(2));
        assert_eq!(versions("TLS13", "TLS13").map(|versions| versions.len()), Ok(1));
        assert_eq!(versions("TLS13", "TLS12"), Err("it is older than min_version"));
        assert_eq!(versions("TLS10", "TLS13"), Err("expected TLS12 or TLS13"));
        assert_eq!(client_auth("RequireAndVerifyClientCert"), Ok(ClientAuth::Required));
        assert!(client_auth("RequireAnyClientCert").is_err_and(|why| why.contains("unverified")));
        assert!(client_auth("Always").is_err_and(|why| why.starts_with("expected")));
    }

    #[test]
    fn the_answer_in_clear_is_as_long_as_it_says() {
        let answer = std::str::from_utf8(NOT_HTTPS).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.ends_with(&format!("Content-Length: {}", body.len())), "{}", body.len());
    }
}
