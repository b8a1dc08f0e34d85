//! `smtpwatch silence`: writes an exception for one peer into a drop-in file, lists rules that end, and removes an
//! exception. A running daemon then reloads its configuration.

use std::{
    fs, io,
    io::Write as _,
    net::{IpAddr, SocketAddr},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{ArgGroup, Args};
use serde::Serialize;
use smtpwatch_config::{
    Config, ConfigError, ConfigSource, DEFAULT_PATH, Reason, RulePlace,
    drop_in::{self, Exception, MAX_FILES},
};
use smtpwatch_core::{
    Timestamp,
    finding::Kind,
    policy::rule::{PeerPattern, Rule, RuleState, Suppressing},
};
use smtpwatch_render::text;
use smtpwatch_system::{clock::now, moment::parse_seconds, whole_file};
use smtpwatch_web::server::{DEFAULT_LISTEN, ListenAddress};

use super::{ConfigArg, Exit, Format};

/// Bounds of `--for`, in seconds: a minute, and ten years.
const SPAN: std::ops::RangeInclusive<i64> = 60..=3_650 * 86_400;
/// Timeout of the request to the daemon. A reload waits for the pipeline, which answers within a fraction of a second.
const PATIENCE: Duration = Duration::from_secs(10);
/// How to reload the configuration without the HTTP server.
const BY_HAND: &str = "reload it: systemctl reload smtpwatch, or kill -HUP";

/// Arguments of `silence`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("action").required(true).args(["peer", "list", "end"])))]
pub struct SilenceArgs {
    /// Peer: an address, a network, or a server name (mx*.example.net).
    #[arg(value_name = "PEER", value_parser = parse_peer, requires_all = ["span", "reason"])]
    pub(crate) peer: Option<PeerPattern>,
    /// Time until the exception ends: 12h, 7d, 4w.
    #[arg(long = "for", id = "span", value_name = "TIME", value_parser = parse_span, conflicts_with_all = ["list", "end"])]
    pub(crate) span: Option<Duration>,
    /// Why the exception exists; it is shown when the end is announced.
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["list", "end"])]
    pub(crate) reason: Option<Reason>,
    /// Kind of finding, repeatable: decides whether findings about STARTTLS, about credentials in cleartext, or both are
    /// suppressed [default: about STARTTLS].
    #[arg(long, value_name = "KIND", value_parser = parse_kind, conflicts_with_all = ["list", "end"])]
    pub(crate) kind: Vec<Kind>,
    /// List the rules that have an end.
    #[arg(long)]
    pub(crate) list: bool,
    /// Remove the exception of this peer.
    #[arg(long, value_name = "PEER", value_parser = parse_peer)]
    pub(crate) end: Option<PeerPattern>,
    #[command(flatten)]
    pub(crate) config: ConfigArg,
    /// Listen address of the running daemon, which then reloads its configuration.
    #[arg(long = "web.listen-address", value_name = "ADDR", env = "SMTPWATCH_WEB_LISTEN_ADDRESS", default_value = DEFAULT_LISTEN)]
    pub(crate) listen: ListenAddress,
    /// Format of the list [default: text on a terminal, else json, one object per line].
    #[arg(long, value_name = "FORMAT", requires = "list")]
    pub(crate) format: Option<Format>,
}

/// Why a drop-in file was not written or removed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}{}", path.display(), self.remedy())]
pub struct FileError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl FileError {
    /// The user, or the file system, does not permit it.
    #[must_use]
    pub fn is_permission(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
    }

    fn remedy(&self) -> &'static str {
        match self.source.kind() {
            io::ErrorKind::PermissionDenied => ": run it as a user that may write there, such as root",
            io::ErrorKind::ReadOnlyFilesystem => {
                ": write the rule where this file system comes from, such as a ConfigMap"
            }
            _ => "",
        }
    }
}

pub(super) fn run(args: SilenceArgs) -> anyhow::Result<Exit> {
    let SilenceArgs { peer, span, reason, kind, list, end, config, listen, format } = args;
    let path = config.config.clone().unwrap_or_else(|| DEFAULT_PATH.into());
    if list {
        let (config, _) = ConfigSource { path: config.config, ..ConfigSource::default() }.load()?;
        print(&config, format)?;
        return Ok(Exit::Fine);
    }
    let change = if let Some(peer) = end {
        remove(&path, &peer.to_string())?
    } else {
        // clap requires all three.
        let (Some(peer), Some(span), Some(reason)) = (peer, span, reason) else { return Ok(Exit::Usage) };
        // Nothing is written beside a configuration that the daemon would refuse.
        ConfigSource { path: config.config, ..ConfigSource::default() }.load()?;
        let mut suppressing = Vec::new();
        for key in kind.into_iter().filter_map(Rule::suppressing) {
            if !suppressing.contains(&key) {
                suppressing.push(key);
            }
        }
        if suppressing.is_empty() {
            suppressing.push(Suppressing::Starttls);
        }
        write(&path, &Exception { peer: peer.to_string(), suppressing, until: now() + span, reason: reason.0 })?
    };
    let outcome = match reload(listen.0) {
        Reload::Done => format!("the daemon at {} has reloaded its configuration", listen.0),
        Reload::Unreached(why) => format!("the daemon at {} was not reached ({why}); {BY_HAND}", listen.0),
        Reload::Refused(why) => {
            anyhow::bail!("{change}\nthe daemon at {} kept its previous configuration: {why}", listen.0)
        }
    };
    super::out(|out| writeln!(out, "{change}\n{outcome}"))?;
    Ok(Exit::Fine)
}

fn parse_peer(text: &str) -> Result<PeerPattern, String> {
    text.parse().map_err(|error: smtpwatch_core::policy::rule::PatternError| error.to_string())
}

fn parse_span(text: &str) -> Result<Duration, String> {
    let seconds =
        parse_seconds(text).filter(|seconds| SPAN.contains(seconds)).and_then(|span| u64::try_from(span).ok());
    seconds.map(Duration::from_secs).ok_or_else(|| "expected a time from a minute to ten years: 12h, 7d, 4w".to_owned())
}

fn parse_kind(text: &str) -> Result<Kind, String> {
    let kind: Kind = text.parse()?;
    match Rule::suppressing(kind) {
        Some(Suppressing::Starttls | Suppressing::Auth) => Ok(kind),
        None => Err("no rule suppresses this kind: it has no legitimate cause that is expected to last".to_owned()),
    }
}

/// Writes the file of an exception; returns what was done.
fn write(config: &Path, exception: &Exception) -> anyhow::Result<String> {
    let path = Exception::path(config, &exception.peer);
    let text = exception.text();
    drop_in::parse(&text, &path)?;
    let is_new = !path.exists();
    if is_new && drop_in::files(config)?.len() >= MAX_FILES {
        let path = drop_in::directory(config);
        return Err(ConfigError::DropIns { path, files: MAX_FILES + 1, most: MAX_FILES }.into());
    }
    let failed = |source| FileError { action: "write", path: path.clone(), source };
    let directory = drop_in::directory(config);
    if !directory.exists() {
        fs::create_dir_all(&directory).and_then(|()| readable(&directory, 0o755)).map_err(failed)?;
    }
    whole_file::replace(&path, text.as_bytes()).and_then(|()| readable(&path, 0o644)).map_err(failed)?;
    let keys: Vec<_> = exception
        .suppressing
        .iter()
        .map(|key| match key {
            Suppressing::Starttls => "about STARTTLS",
            Suppressing::Auth => "about credentials in cleartext",
        })
        .collect();
    let Exception { peer, until, .. } = exception;
    let done = if is_new { "written" } else { "replaced" };
    Ok(format!("{}: {done}\n{peer}: no findings {} until {until}", path.display(), keys.join(" and ")))
}

/// Lets the daemon's user read it, whatever the umask of this user is.
fn readable(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Removes the file of an exception; returns what was done.
fn remove(config: &Path, peer: &str) -> anyhow::Result<String> {
    let path = Exception::path(config, peer);
    match fs::remove_file(&path) {
        Ok(()) => Ok(format!("{}: removed\n{peer}: findings are reported again", path.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            anyhow::bail!(
                "{peer}: no exception was written for it ({} does not exist); see smtpwatch silence --list",
                path.display()
            )
        }
        Err(source) => Err(FileError { action: "remove", path, source }.into()),
    }
}

/// One rule that has an end, in the list.
#[derive(Serialize)]
struct Row<'a> {
    peer: Vec<String>,
    port: &'a [u16],
    role: Option<&'static str>,
    starttls: Option<&'static str>,
    auth_plaintext: Option<&'static str>,
    until: Timestamp,
    state: RuleState,
    reason: &'a str,
    file: String,
    line: usize,
}

fn print(config: &Config, format: Option<Format>) -> io::Result<()> {
    let (at, format) = (now(), Format::or_default(format));
    super::out(|out| {
        for row in config.rules.iter().zip(&config.places).filter_map(|(rule, place)| Row::of(rule, place, at)) {
            let line = match format {
                Format::Json => text::json_line(&row),
                Format::Text => row.text(),
            };
            out.write_all(line.as_bytes())?;
        }
        Ok(())
    })
}

impl<'a> Row<'a> {
    /// `None`: the rule has no end.
    fn of(rule: &'a Rule, place: &RulePlace, at: Timestamp) -> Option<Self> {
        Some(Self {
            peer: rule.peer.iter().map(PeerPattern::to_string).collect(),
            port: &rule.port,
            role: rule.role.map(|role| role.as_str()),
            starttls: rule.starttls.map(|demand| demand.as_str()),
            auth_plaintext: rule.auth_plaintext.map(|demand| demand.as_str()),
            until: rule.until?,
            state: rule.state(at),
            reason: &rule.reason,
            file: place.file.display().to_string(),
            line: place.line,
        })
    }

    fn text(&self) -> String {
        let peer = if self.peer.is_empty() { "every peer".to_owned() } else { self.peer.join(", ") };
        let demand = |key, value: Option<&str>| value.map(|value| format!(", {key} {value}")).unwrap_or_default();
        let ends = match self.state {
            RuleState::Active | RuleState::Expiring => "until",
            RuleState::Expired => "ended",
        };
        let reason = if self.reason.is_empty() { String::new() } else { format!(": {}", self.reason) };
        let (starttls, auth) = (demand("starttls", self.starttls), demand("auth_plaintext", self.auth_plaintext));
        format!("{peer}{starttls}{auth}, {ends} {}{reason} ({}:{})\n", self.until, self.file, self.line)
    }
}

/// What the running daemon did.
enum Reload {
    Done,
    /// It answers that the configuration is invalid.
    Refused(String),
    /// It does not answer, or does not accept the request.
    Unreached(String),
}

/// Requests a reload of the configuration from the daemon at `listen`.
fn reload(listen: SocketAddr) -> Reload {
    let address = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => SocketAddr::new(std::net::Ipv4Addr::LOCALHOST.into(), listen.port()),
        IpAddr::V6(ip) if ip.is_unspecified() => SocketAddr::new(std::net::Ipv6Addr::LOCALHOST.into(), listen.port()),
        IpAddr::V4(_) | IpAddr::V6(_) => listen,
    };
    let asked = (|| -> anyhow::Result<(u16, String)> {
        smtpwatch_policy::fetch::choose_cryptography();
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(PATIENCE)
            .build()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let answer = client.post(format!("http://{address}/-/reload")).send().await?;
            Ok((answer.status().as_u16(), answer.text().await?))
        })
    })();
    match asked {
        Ok((200, _)) => Reload::Done,
        Ok((500, body)) => Reload::Refused(text::printable(body.trim_end()).to_string()),
        Ok((status, _)) => Reload::Unreached(format!("HTTP status {status}")),
        Err(error) => Reload::Unreached(error.root_cause().to_string()),
    }
}
