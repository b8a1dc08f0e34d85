//! Fetches policies over HTTPS (RFC 8461 §3.3): without redirects or proxy, only from public addresses of other
//! hosts, and up to a maximum size. The main type is [`Fetcher`].

use std::{
    error::Error as StdError,
    io,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Once},
    time::Duration,
};

use reqwest::{
    Certificate, Client, Response, StatusCode,
    dns::{Addrs, Name, Resolve, Resolving},
    header::CONTENT_TYPE,
    redirect,
};
use smtpwatch_core::{
    VERSION,
    policy::{
        memory::FetchError,
        published::{
            list::MAX_LIST,
            sts::{MAX_POLICY, StsPolicy},
        },
    },
};
use smtpwatch_system::whole_file;

use super::{
    address::{AddressRefusal, OwnAddresses},
    resolver::{QueryResult, Resolver},
};

/// Maximum length of a shown error in characters: a certificate may have any number of names.
const MAX_QUOTED: usize = 400;
/// Maximum size of a file of certificate authorities, in bytes.
const MAX_CA_FILE: u64 = 4 * 1024 * 1024;

/// Why HTTPS is unusable as a whole.
#[derive(Debug, thiserror::Error)]
pub enum FetcherError {
    /// `ca_file` cannot be read.
    #[error("[policy] ca_file: cannot read {path}: {source}: name a readable PEM file")]
    CaFile {
        /// Path of the file.
        path: String,
        /// The error of the system.
        source: io::Error,
    },
    /// `ca_file` holds no certificates.
    #[error("[policy] ca_file: {path}: {why}: it must hold certificates in PEM form")]
    NoCertificates {
        /// Path of the file.
        path: String,
        /// The error in it.
        why: String,
    },
    /// There are no certificate authorities.
    #[error("HTTPS cannot be used: {0}: install the system's certificate authorities (package ca-certificates)")]
    Client(String),
}

/// Certificate authorities in addition to those of the system.
#[derive(Clone, Default)]
pub struct Authorities(Vec<Certificate>);

impl Authorities {
    /// Reads the value of `ca_file`: empty, or the path of a PEM file.
    ///
    /// # Errors
    ///
    /// See [`FetcherError`].
    pub fn load(path: &str) -> Result<Self, FetcherError> {
        if path.is_empty() {
            return Ok(Self::default());
        }
        let failed = |source| FetcherError::CaFile { path: path.to_owned(), source };
        let wrong = |why: String| FetcherError::NoCertificates { path: path.to_owned(), why };
        let found = Certificate::from_pem_bundle(&whole_file::read(Path::new(path), MAX_CA_FILE).map_err(failed)?);
        match found {
            Ok(found) if !found.is_empty() => Ok(Self(found)),
            Ok(_) => Err(wrong("no certificate in it".to_owned())),
            Err(error) => Err(wrong(with_causes(&error))),
        }
    }
}

/// HTTPS client for policies and lists.
pub struct Fetcher {
    policies: Client,
    lists: Client,
    port: u16,
    allow_private: bool,
}

impl Fetcher {
    /// Creates a fetcher that resolves names with `resolver`; each fetch may take `time` in total.
    ///
    /// # Errors
    ///
    /// The system has no certificate authorities.
    pub fn new(
        resolver: Arc<Resolver>,
        authorities: &Authorities,
        port: u16,
        allow_private: bool,
        time: Duration,
    ) -> Result<Self, FetcherError> {
        choose_cryptography();
        let client = |allow_private| {
            Client::builder()
                .user_agent(format!("smtpwatch/{}", VERSION))
                .https_only(true)
                .redirect(redirect::Policy::none())
                .no_proxy()
                .retry(reqwest::retry::never())
                .timeout(time)
                .connect_timeout(time)
                .pool_max_idle_per_host(0)
                .tls_version_min(reqwest::tls::Version::TLS_1_2)
                .tls_certs_merge(authorities.0.iter().cloned())
                .dns_resolver(Arc::new(Filter { resolver: resolver.clone(), allow_private }))
                .build()
                .map_err(|error| FetcherError::Client(with_causes(&error)))
        };
        // The operator configures the URL of a list, so it may be on a private address.
        Ok(Self { policies: client(allow_private)?, lists: client(true)?, port, allow_private })
    }

    /// Fetches the MTA-STS policy of a domain and its text; `id` is that of the TXT record.
    ///
    /// # Errors
    ///
    /// See [`FetchError`].
    pub async fn policy(&self, domain: &str, id: &str) -> Result<(StsPolicy, String), FetchError> {
        let url = format!("https://mta-sts.{domain}:{}/.well-known/mta-sts.txt", self.port);
        let response = self.policies.get(&url).send().await.map_err(|error| of_transport(&error))?;
        let response = success(response)?;
        // Otherwise a host that accepts uploads from its users could publish a policy for its domain (RFC 8461 §3.3).
        let kind = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim();
        if !kind.eq_ignore_ascii_case("text/plain") {
            return Err(FetchError::Invalid(short(&format!("media type {kind:?} instead of text/plain"))));
        }
        let body = body(response, MAX_POLICY).await?;
        let policy = StsPolicy::parse(&body, id).map_err(|error| FetchError::Invalid(error.to_string()))?;
        Ok((policy, String::from_utf8_lossy(&body).into_owned()))
    }

    /// Fetches the text of a STARTTLS-Everywhere list.
    ///
    /// # Errors
    ///
    /// See [`FetchError`].
    pub async fn list(&self, url: &str) -> Result<Vec<u8>, FetchError> {
        let response = self.lists.get(url).send().await.map_err(|error| of_transport(&error))?;
        body(success(response)?, MAX_LIST).await
    }

    /// Sends a body by POST, such as a TLS report (RFC 8460 §5.4); returns the HTTP status. The address filter of
    /// policies applies: the URL comes from a third party.
    ///
    /// # Errors
    ///
    /// See [`FetchError`].
    pub async fn post(&self, url: &str, media: &'static str, body: Vec<u8>) -> Result<u16, FetchError> {
        let url: reqwest::Url =
            url.parse().map_err(|error| FetchError::Fetch(format!("{url:?} is no URL: {error}")))?;
        // A literal address in a URL is not resolved, so the filter does not see it.
        let literal = url.host_str().and_then(|host| host.trim_matches(['[', ']']).parse().ok());
        if let Some(address) = literal.filter(|_| !self.allow_private) {
            let own = OwnAddresses::read().map_err(|error| FetchError::Fetch(unlisted(&error)))?;
            own.admit(address).map_err(|refused| FetchError::Fetch(format!("{refused}: {}", refusal(refused))))?;
        }
        let sent = self.policies.post(url).header(CONTENT_TYPE, media).body(body).send().await;
        sent.map(|response| response.status().as_u16()).map_err(|error| of_transport(&error))
    }
}

/// Requires status 200; a redirect is an error.
fn success(response: Response) -> Result<Response, FetchError> {
    match response.status() {
        StatusCode::OK => Ok(response),
        status if status.is_redirection() => {
            Err(FetchError::Fetch(format!("HTTP status {status}: redirects must not be followed (RFC 8461 §3.3)")))
        }
        status => Err(FetchError::Fetch(format!("HTTP status {status}"))),
    }
}

/// Selects the cryptography provider of HTTPS clients, once per process. A provider that was installed earlier stays.
pub fn choose_cryptography() {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| _ = rustls::crypto::ring::default_provider().install_default());
}

/// The complete body, or an error if it exceeds `most` bytes.
async fn body(mut response: Response, most: usize) -> Result<Vec<u8>, FetchError> {
    let too_long = || FetchError::Invalid(format!("longer than {most} bytes"));
    if response.content_length().is_some_and(|length| length > most as u64) {
        return Err(too_long());
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| of_transport(&error))? {
        if body.len() + chunk.len() > most {
            return Err(too_long());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn of_transport(error: &reqwest::Error) -> FetchError {
    match certificate_error(error) {
        Some(why) => FetchError::WebPki(short(&why)),
        None if error.is_timeout() => FetchError::Fetch("it took too long".to_owned()),
        None => FetchError::Fetch(short(&with_causes(error))),
    }
}

/// Shortens text from remote hosts for display.
fn short(text: &str) -> String {
    text.chars().take(MAX_QUOTED).collect()
}

/// The reason why rustls rejected the certificate. It is nested in [`io::Error`]s, whose `source` skips it.
fn certificate_error(error: &(dyn StdError + 'static)) -> Option<String> {
    if let Some(rustls::Error::InvalidCertificate(why)) = error.downcast_ref() {
        return Some(why.to_string());
    }
    let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    let inner = inner.and_then(|inner| certificate_error(inner));
    inner.or_else(|| error.source().and_then(certificate_error))
}

/// An error with its causes, without repetitions.
fn with_causes(error: &dyn StdError) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let own = error.to_string();
        if !text.ends_with(&own) {
            text = if text.is_empty() { own } else { format!("{text}: {own}") };
        }
        next = error.source();
    }
    text
}

const fn refusal(why: AddressRefusal) -> &'static str {
    match why {
        AddressRefusal::Private(_) => {
            "nothing is fetched from private ones, and nothing sent there, unless [policy] allow_private = true"
        }
        AddressRefusal::Own(_) => {
            "nothing is fetched from there, and nothing sent, unless [policy] allow_private = true"
        }
    }
}

fn unlisted(error: &io::Error) -> String {
    format!("cannot list the addresses of this host, which are not connected to: {error}")
}

/// Resolves names for the HTTPS client, and returns only permitted addresses.
struct Filter {
    resolver: Arc<Resolver>,
    allow_private: bool,
}

impl Resolve for Filter {
    fn resolve(&self, name: Name) -> Resolving {
        let (resolver, allow_private) = (self.resolver.clone(), self.allow_private);
        Box::pin(async move {
            let host = name.as_str();
            let found = match resolver.addresses(host).await {
                QueryResult::Present { value, .. } => value.list,
                QueryResult::Absent { .. } => return Err(format!("{host} has no address").into()),
                QueryResult::Bogus(why) | QueryResult::Error(why) => return Err(why.into()),
            };
            let mut allowed = found;
            let mut refused = None;
            if !allow_private {
                // The client connects to one of the returned addresses immediately.
                let own = OwnAddresses::read().map_err(|error| unlisted(&error))?;
                allowed.retain(|at| {
                    let admitted = own.admit(*at);
                    refused = refused.or(admitted.err());
                    admitted.is_ok()
                });
            }
            if let (true, Some(why)) = (allowed.is_empty(), refused) {
                let has = match why {
                    AddressRefusal::Private(address) => format!("has no public address ({address})"),
                    AddressRefusal::Own(address) => format!("has an address of this host ({address})"),
                };
                return Err(format!("{host} {has}: {}", refusal(why)).into());
            }
            let addresses: Addrs = Box::new(allowed.into_iter().map(|address| SocketAddr::new(address, 0)));
            Ok(addresses)
        })
    }
}
