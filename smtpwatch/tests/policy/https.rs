//! An HTTPS server that serves MTA-STS policies.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

/// A running policy host; dropping it ends it.
pub struct PolicyHost {
    pub address: SocketAddr,
    /// Number of requests so far.
    pub requests: Arc<AtomicUsize>,
    answers: Arc<Mutex<HashMap<String, Vec<u8>>>>,
    ca: tempfile::NamedTempFile,
    task: JoinHandle<()>,
}

impl Drop for PolicyHost {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl PolicyHost {
    /// Starts it with a certificate for these names, issued by its own authority.
    pub async fn start(names: &[&str]) -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST.into(), names).await
    }

    /// As [`PolicyHost::start`], at `address`.
    pub async fn start_at(address: IpAddr, names: &[&str]) -> Self {
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority_key = KeyPair::generate().unwrap();
        let authority_certificate = authority.self_signed(&authority_key).unwrap();
        let issuer = Issuer::new(authority, authority_key);
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
        let ca = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(ca.path(), authority_certificate.pem()).unwrap();

        let chain = vec![CertificateDer::from(certificate.der().to_vec())];
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let answers: Arc<Mutex<HashMap<String, Vec<u8>>>> = Arc::default();
        let requests = Arc::new(AtomicUsize::new(0));
        let task = tokio::spawn(serve(listener, acceptor, answers.clone(), requests.clone()));
        Self { address, requests, answers, ca, task }
    }

    /// The file with its authority's certificate.
    pub fn ca(&self) -> PathBuf {
        self.ca.path().to_owned()
    }

    /// Sets the raw response for a host name; without one the server sends nothing.
    pub fn answer(&self, host: &str, response: impl Into<Vec<u8>>) {
        self.answers.lock().unwrap().insert(host.to_owned(), response.into());
    }

    /// Sets a correct policy response.
    pub fn policy(&self, host: &str, body: &str) {
        self.answer(host, response("200 OK", "text/plain; charset=utf-8", body));
    }

    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

pub fn response(status: &str, kind: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

async fn serve(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    answers: Arc<Mutex<HashMap<String, Vec<u8>>>>,
    requests: Arc<AtomicUsize>,
) {
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, answers, requests) = (acceptor.clone(), answers.clone(), requests.clone());
        tokio::spawn(async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            let sni = stream.get_ref().1.server_name().unwrap_or_default().to_owned();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                match stream.read_u8().await {
                    Ok(byte) => request.push(byte),
                    Err(_) => return,
                }
            }
            requests.fetch_add(1, Ordering::SeqCst);
            let request = String::from_utf8(request).unwrap();
            assert!(request.starts_with("GET /.well-known/mta-sts.txt HTTP/1.1\r\n"), "{request}");
            let answer = answers.lock().unwrap().get(&sni).cloned();
            let Some(answer) = answer else {
                tokio::time::sleep(Duration::from_secs(60)).await;
                return;
            };
            let _ = stream.write_all(&answer).await;
            let _ = stream.shutdown().await;
        });
    }
}
