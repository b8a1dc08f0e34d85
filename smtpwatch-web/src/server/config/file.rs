//! Parses the YAML of a web configuration file. [`read`] also reads the certificates and keys that the file names.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::SignedDuration;
use serde::Deserialize;
use serde_saphyr::{Location, Spanned};

use super::{Tls, WebConfig, WebConfigError};
use crate::server::{
    files::Files,
    headers,
    limits::Quota,
    paths::OPEN_PATHS,
    tls::{self, ClientAuth},
    users::{self, Users},
};

/// The maximum `interval` and the maximum `burst` of `rate_limit`.
const MAX_INTERVAL: Duration = Duration::from_secs(3600);
const MAX_BURST: u32 = 1_000_000;

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct File {
    tls_server_config: Option<Spanned<TlsServerConfig>>,
    http_server_config: Option<HttpServerConfig>,
    basic_auth_users: Option<BTreeMap<String, Spanned<String>>>,
    auth_excluded_paths: Option<Vec<Spanned<String>>>,
    rate_limit: Option<Spanned<RateLimit>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TlsServerConfig {
    cert_file: PathBuf,
    key_file: PathBuf,
    #[serde(default)]
    client_auth_type: Option<Spanned<String>>,
    #[serde(default)]
    client_ca_file: Option<Spanned<PathBuf>>,
    #[serde(default)]
    min_version: Option<Spanned<String>>,
    #[serde(default)]
    max_version: Option<Spanned<String>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct HttpServerConfig {
    headers: Option<BTreeMap<String, Spanned<String>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RateLimit {
    interval: String,
    burst: u32,
}

/// Reads and checks the file, and the files that it names.
pub(super) fn read(path: &Path, files: &mut Files) -> Result<WebConfig, WebConfigError> {
    let text = files.read(path).map_err(|source| WebConfigError::Read { path: path.to_owned(), source })?;
    let file: Option<File> = serde_saphyr::from_slice(&text).map_err(|error| WebConfigError::yaml(path, &error))?;
    let file = file.unwrap_or_default();
    let wrong = |location, message: String| WebConfigError::at(path, location, message);

    let tls = file.tls_server_config.map(|tls| read_tls(path, tls, files)).transpose()?;
    let mut headers = Vec::new();
    for (name, value) in file.http_server_config.and_then(|http| http.headers).unwrap_or_default() {
        headers.extend(headers::configured(&name, &value.value).map_err(|why| wrong(value.referenced, why))?);
    }
    let mut hashes = BTreeMap::new();
    for (user, hash) in file.basic_auth_users.unwrap_or_default() {
        if user.contains(':') {
            return Err(wrong(hash.referenced, format!("basic_auth_users: {user:?}: a name cannot have a colon")));
        }
        users::check_hash(&hash.value)
            .map_err(|why| wrong(hash.referenced, format!("basic_auth_users: {user:?}: {why}")))?;
        hashes.insert(user, hash.value);
    }
    let users = if hashes.is_empty() { None } else { Some(Users::new(hashes)) };
    let users =
        users.transpose().map_err(|_| wrong(Location::UNKNOWN, "the system has no random numbers".to_owned()))?;
    let mut auth_excluded_paths = Vec::new();
    for excluded in file.auth_excluded_paths.unwrap_or_default() {
        if !OPEN_PATHS.contains(&excluded.value.as_str()) {
            let message = format!("auth_excluded_paths: only these can be: {}", OPEN_PATHS.join(", "));
            return Err(wrong(excluded.referenced, message));
        }
        auth_excluded_paths.push(excluded.value);
    }
    let rate_limit = match file.rate_limit {
        Some(limit) => quota(&limit.value).map_err(|why| wrong(limit.referenced, format!("rate_limit: {why}")))?,
        None => None,
    };
    Ok(WebConfig { tls, users, auth_excluded_paths, headers, rate_limit })
}

fn read_tls(path: &Path, tls: Spanned<TlsServerConfig>, files: &mut Files) -> Result<Tls, WebConfigError> {
    let (section, tls) = (tls.referenced, tls.value);
    let wrong = |location, why: &dyn std::fmt::Display| WebConfigError::at(path, location, format!("{why}"));
    let beside = |file: &Path| path.parent().unwrap_or(Path::new("")).join(file);
    let text = |value: &Option<Spanned<String>>, default: &str| {
        value.as_ref().map_or_else(|| (section, default.to_owned()), |value| (value.referenced, value.value.clone()))
    };

    let (min_at, min) = text(&tls.min_version, "TLS12");
    let (max_at, max) = text(&tls.max_version, "TLS13");
    tls::versions(&min, "TLS13").map_err(|why| wrong(min_at, &format!("min_version: {why}")))?;
    let versions = tls::versions(&min, &max).map_err(|why| wrong(max_at, &format!("max_version: {why}")))?;
    let (auth_at, auth) = text(&tls.client_auth_type, "");
    let client_auth = tls::client_auth(&auth).map_err(|why| wrong(auth_at, &format!("client_auth_type: {why}")))?;

    let identity =
        tls::identity(files, &beside(&tls.cert_file), &beside(&tls.key_file)).map_err(|why| wrong(section, &why))?;
    let verifier = match (client_auth, tls.client_ca_file) {
        (ClientAuth::None, None) => rustls::server::WebPkiClientVerifier::no_client_auth(),
        (ClientAuth::None, Some(file)) => {
            return Err(wrong(file.referenced, &"client_ca_file: client_auth_type does not request certificates"));
        }
        (_, None) => return Err(wrong(auth_at, &"client_auth_type: this needs client_ca_file")),
        (auth, Some(file)) => {
            tls::verifier(files, &beside(&file.value), auth).map_err(|why| wrong(file.referenced, &why))?
        }
    };
    let acceptor = tls::acceptor(&versions, identity, verifier)
        .map_err(|why| wrong(section, &format!("cert_file and key_file: {why}")))?;
    Ok(Tls { acceptor, client_auth })
}

/// Parses a rate limit; `None`: an interval of 0 means no limit.
fn quota(limit: &RateLimit) -> Result<Option<Quota>, String> {
    let interval = match limit.interval.as_str() {
        "0" => Some(Duration::ZERO),
        text => text.parse::<SignedDuration>().ok().and_then(|interval| Duration::try_from(interval).ok()),
    };
    match interval {
        Some(Duration::ZERO) => Ok(None),
        Some(interval) if interval <= MAX_INTERVAL && (1..=MAX_BURST).contains(&limit.burst) => {
            Ok(Some(Quota { burst: limit.burst, interval }))
        }
        _ => Err(format!("expected an interval up to 1h, such as 1s or 100ms, and a burst of 1 to {MAX_BURST}")),
    }
}
