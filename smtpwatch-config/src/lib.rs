//! The configuration file: one TOML document in which every key is checked and unknown keys are errors.
//!
//! An error names file, line, and the correction:
//! `smtpwatch.toml:7: unknown key "starttsl" in [[rule]]: did you mean "starttls"?`
//!
//! [`ConfigSource::load`] reads the file and applies the overrides of the command line; the result is a [`Config`], from
//! which the daemon configures the other crates. [`effective()`] lists each value with its source, and
//! [`mod@reference`] generates manual and template from the table of keys. Imports `smtpwatch-core` (rules, strength of
//! history) and `smtpwatch-system` (files); opens no socket.

pub mod drop_in;
mod effective;
mod error;
pub mod reference;
mod sinks;
mod source;
mod tlsrpt;
mod value;

use std::{
    net::IpAddr,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use smtpwatch_core::{
    hash, limits,
    policy::{history::Strength, rule::Rule},
};
use smtpwatch_system::whole_file::{self, MAX_CONFIG, special_kind};
use toml::Spanned;

pub use drop_in::RulePlace;
pub use effective::{Effective, Origin, effective};
pub use error::ConfigError;
pub use sinks::{AlertmanagerSettings, JournalFormat, JournalSettings};
pub use source::ConfigSource;
pub use tlsrpt::TlsrptSettings;
use value::{
    Checked, Days, FindingCount, FlowCount, InterfaceGlob, Megabytes, Minutes, OfferRatio, PeerCount, RulePeer,
    Sessions, TlsVersion, ValidPort,
};
pub use value::{Label, Network, Reason, Resolver, Until, parse_interface, parse_port};

/// The default path of the configuration file.
pub const DEFAULT_PATH: &str = "/etc/smtpwatch/smtpwatch.toml";
/// The default path of the store.
pub const DEFAULT_STORE: &str = "/var/lib/smtpwatch/smtpwatch.db";
/// The default ports: SMTP (RFC 5321 §4.5.4.2) and submission (RFC 6409 §3.1).
pub const DEFAULT_PORTS: [u16; 2] = [25, 587];

/// The whole configuration. The defaults are valid without a file.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    /// Watched server ports: sorted, unique, at least one.
    pub ports: Vec<u16>,
    /// Name of the group of hosts that this host belongs to; empty for none.
    pub cluster: String,
    /// Interface names or globs. Empty: every interface whose routes lead out of this host, or that carries mail.
    pub interfaces: Vec<String>,
    /// The hook for received packets.
    pub ingress: Ingress,
    /// Whether interfaces that appear after the start are watched too.
    pub hot_plug: bool,
    /// Own networks, for interfaces whose addresses do not show which endpoint this host is.
    pub local: Vec<Network>,
    /// Load balancers and filters whose PROXY header is trusted.
    pub trusted_proxies: Vec<Network>,
    /// Networks of this site's own clients, besides `local`.
    pub trusted_clients: Vec<Network>,
    /// Path of the store of history and findings.
    pub store: PathBuf,
    /// Retention of findings in the store.
    pub retention: Retention,
    /// Maximum gap between two findings of the same incident: the same kind and peer.
    pub window: Duration,
    /// When the history is strong enough for a finding.
    pub baseline: Strength,
    /// Bounds of tables in memory.
    pub limits: Limits,
    /// Local policy rules, those of the drop-in files first; the first match applies.
    pub rules: Vec<Rule>,
    /// Where each of `rules` is written. It is no part of [`Self::hash`].
    pub places: Vec<RulePlace>,
    /// Look-ups of published policies.
    pub policy: PolicySettings,
    /// TLS reports.
    pub tlsrpt: TlsrptSettings,
    /// The output of findings.
    pub journal: JournalSettings,
    /// The Alertmanagers that receive alerts.
    pub alertmanager: AlertmanagerSettings,
}

impl Default for Config {
    fn default() -> Self {
        File::default().into()
    }
}

impl Config {
    /// Reads `path`; without one, [`DEFAULT_PATH`] if it exists, otherwise the defaults. Then reads the rules of the
    /// drop-in files ([`drop_in`]). Also returns the path of the file.
    ///
    /// # Errors
    ///
    /// A file cannot be read, is not TOML, or contains an unknown key or an invalid value.
    pub fn load(path: Option<&Path>) -> Result<(Self, Option<PathBuf>), ConfigError> {
        let path = match path {
            Some(path) => Some(path),
            None => Some(Path::new(DEFAULT_PATH)).filter(|path| path.exists()),
        };
        let mut config = match path {
            Some(path) => Self::parse(&read_file(path)?, path)?,
            None => Self::default(),
        };
        let (mut rules, mut places) = drop_in::rules(path.unwrap_or(Path::new(DEFAULT_PATH)))?;
        rules.append(&mut config.rules);
        places.append(&mut config.places);
        Ok((Self { rules, places, ..config }, path.map(Path::to_owned)))
    }

    /// Parses the text of a configuration file; `path` is only used in errors.
    ///
    /// # Errors
    ///
    /// The text is not TOML, or contains an unknown key or an invalid value.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let file = toml::from_str::<File>(text).map_err(|error| ConfigError::invalid(path, text, &error))?;
        let places = drop_in::places(path, text, &file.rule);
        Ok(Self { places, ..file.into() })
    }

    /// Applies the settings of `new` that a running daemon can change; returns the names of those that differ and need
    /// a restart.
    pub fn take_over(&mut self, new: Self) -> Vec<&'static str> {
        // Destructured, so that the compiler demands a decision for each added field.
        let Self {
            ports,
            cluster,
            interfaces,
            ingress,
            hot_plug,
            local,
            trusted_proxies,
            trusted_clients,
            store,
            retention,
            window,
            baseline,
            limits,
            rules,
            places,
            policy,
            tlsrpt,
            journal,
            alertmanager,
        } = new;
        // Without hot-plug, the privilege to attach to further interfaces has been dropped.
        let interfaces_kept = !self.hot_plug && self.interfaces != interfaces;
        if self.hot_plug {
            self.interfaces = interfaces;
        }
        self.local = local;
        self.trusted_proxies = trusted_proxies;
        self.trusted_clients = trusted_clients;
        self.baseline = baseline;
        self.rules = rules;
        self.places = places;
        let kept = [
            ("ports", self.ports != ports),
            ("cluster", self.cluster != cluster),
            ("interfaces", interfaces_kept),
            ("ingress", self.ingress != ingress),
            ("hot_plug", self.hot_plug != hot_plug),
            ("[store]", self.store != store || self.retention != retention),
            ("[incidents]", self.window != window),
            ("[limits]", self.limits != limits),
            ("[policy]", self.policy != policy),
            ("[tlsrpt]", self.tlsrpt != tlsrpt),
            ("[journal]", self.journal != journal),
            ("[alertmanager]", self.alertmanager != alertmanager),
        ];
        kept.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect()
    }

    /// Checks what is at the paths that the daemon writes to. A missing file is valid: the daemon creates it.
    ///
    /// # Errors
    ///
    /// A path names a directory, a special file, or, for the journal, a symbolic link: SQLite and the journal would
    /// fail later, block until there is a reader, or write outside of the named directory.
    pub fn check_paths(&self) -> Result<(), ConfigError> {
        let refuse =
            |key, path: &Path, what, remedy| Err(ConfigError::Path { key, path: path.to_owned(), what, remedy });
        const FILE: &str = "name a file, such as /var/lib/smtpwatch/smtpwatch.db";
        if names_directory(&self.store) {
            return refuse("[store] path", &self.store, "a directory", FILE);
        }
        if let Some(what) = self.store.metadata().ok().and_then(|found| special_kind(found.file_type())) {
            return refuse("[store] path", &self.store, what, FILE);
        }
        let Some(journal) = self.journal.file() else { return Ok(()) };
        if let Some((what, remedy)) = journal_refusal(&journal) {
            return refuse("[journal] path", &journal, what, remedy);
        }
        Ok(())
    }

    /// SHA-256 of the configuration in force, flags and defaults included, in hexadecimal. It is the same for the same
    /// program version and the same values, whatever their sources.
    #[must_use]
    pub fn hash(&self) -> String {
        hash::sha256(format!("{:?}", Self { places: Vec::new(), ..self.clone() }).as_bytes())
    }

    /// Whether `address` belongs to this host, as far as `local` says.
    #[must_use]
    pub fn is_local(&self, address: IpAddr) -> bool {
        self.local.iter().any(|network| network.contains(address))
    }
}

/// Whether a path can only name a directory, whether it exists or not.
fn names_directory(path: &Path) -> bool {
    path.file_name().is_none() || path.as_os_str().as_encoded_bytes().ends_with(b"/")
}

/// Why the journal cannot be written to this path, and the remedy; `None` if it can.
///
/// A symbolic link as the final component is not followed: if another user can write to the directory, a link would
/// make the daemon append to a file of that user's choice. Log rotation renames the file itself, not the link's target.
#[must_use]
pub fn journal_refusal(path: &Path) -> Option<(&'static str, &'static str)> {
    const FILE: &str = "name a file, such as /var/log/smtpwatch/findings.json";
    if names_directory(path) {
        return Some(("a directory", FILE));
    }
    let kind = path.symlink_metadata().ok()?.file_type();
    if kind.is_char_device() {
        return None;
    }
    match special_kind(kind)? {
        what @ "a symbolic link" => Some((what, "name the file that it leads to, or remove the link")),
        what if kind.is_dir() => Some((what, FILE)),
        what => Some((what, "name a regular file, or leave path empty for standard output")),
    }
}

/// Reads the text of a configuration file: a regular file of at most [`MAX_CONFIG`] bytes.
///
/// # Errors
///
/// The file cannot be read, or is not such a file.
pub fn read_file(path: &Path) -> Result<String, ConfigError> {
    whole_file::read_text(path, MAX_CONFIG).map_err(|source| ConfigError::Read { path: path.to_owned(), source })
}

smtpwatch_system::vocabulary! {
    /// `ingress`: the hook for received packets.
    #[derive(Default)]
    pub enum Ingress {
        /// Native XDP if the driver supports it and the hook is free, otherwise TCX, otherwise clsact.
        #[default]
        Auto = "auto",
        /// Native XDP only.
        Xdp = "xdp",
        /// XDP in generic mode.
        XdpGeneric = "xdp-generic",
        /// TCX (kernel 6.6 and later).
        Tcx = "tcx",
        /// A filter of a clsact qdisc.
        Clsact = "clsact",
    }
}

/// `[limits]`: bounds of the tables, and with them of the memory use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Maximum number of tracked connections; the least recently active one is evicted and counted. An open connection
    /// takes about 4.5 KiB (measured: `docs/performance.md`), and up to some hundred KiB where a sender leaves gaps in
    /// its stream (see [`limits::REASSEMBLY_BYTES`]). The kernel's tables take about 0.7 KiB for each of them, from the
    /// start.
    pub flows: usize,
    /// Maximum number of peers with history, in memory and in the store; peers with little history are evicted first. A
    /// row takes about 0.9 KiB in memory and 0.7 KiB in the store. A server is known by its address and by its name:
    /// two rows.
    pub peers: usize,
}

impl Limits {
    /// Capacity of the gate's flow table in the kernel: it also has muted flows and flows that the engine has dropped.
    #[must_use]
    pub const fn gate_flows(&self) -> usize {
        4 * self.flows
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { flows: limits::FLOWS, peers: limits::HISTORY_PEERS }
    }
}

/// Retention of findings; the limit that is reached first applies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Retention {
    /// Maximum age in days.
    pub age_days: u32,
    /// Maximum number of findings.
    pub findings: u64,
    /// Maximum size of documents and evidence in bytes.
    pub bytes: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self { age_days: 90, findings: 100_000, bytes: 1024 * MEGABYTE }
    }
}

/// One mebibyte, in bytes.
const MEGABYTE: u64 = 1 << 20;

/// `[policy]`: look-ups of published policies.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicySettings {
    /// The name server for DNS look-ups.
    pub resolver: Checked<Resolver>,
    /// DNSSEC trust anchor in zone-file form; empty for that of the root zone.
    pub trust_anchor: Checked<String>,
    /// File of extra certificate authorities for MTA-STS policy hosts; empty for none.
    pub ca_file: Checked<String>,
    /// Whether policies may be fetched from private or loopback addresses.
    pub allow_private: Checked<bool>,
    /// HTTPS port of policy hosts.
    pub https_port: Checked<ValidPort>,
    /// Whether MTA-STS policies are looked up (RFC 8461).
    pub mta_sts: Checked<bool>,
    /// Whether TLSA records are looked up (RFC 7672).
    pub dane: Checked<bool>,
    /// Path or URL (`https://…`) of a STARTTLS-Everywhere list; empty for none.
    pub starttls_everywhere: Checked<String>,
    /// Recipient domains that are looked up from the start; others are looked up when mail to them is seen.
    #[serde(deserialize_with = "value::domains")]
    pub domains: Vec<String>,
}

impl Default for PolicySettings {
    fn default() -> Self {
        Self {
            resolver: Checked(Resolver::System),
            trust_anchor: Checked(String::new()),
            ca_file: Checked(String::new()),
            allow_private: Checked(false),
            https_port: Checked(ValidPort(443)),
            mta_sts: Checked(true),
            dane: Checked(true),
            starttls_everywhere: Checked(String::new()),
            domains: Vec::new(),
        }
    }
}

/// The structure of the TOML file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
struct File {
    #[serde(deserialize_with = "value::ports")]
    ports: Vec<u16>,
    cluster: Checked<Label>,
    interfaces: Vec<Checked<InterfaceGlob>>,
    ingress: Checked<Ingress>,
    hot_plug: Checked<bool>,
    local: Vec<Checked<Network>>,
    trusted_proxies: Vec<Checked<Network>>,
    trusted_clients: Vec<Checked<Network>>,
    store: StoreTable,
    incidents: IncidentsTable,
    baseline: BaselineTable,
    limits: LimitsTable,
    rule: Vec<Spanned<RuleTable>>,
    policy: PolicySettings,
    tlsrpt: TlsrptSettings,
    journal: JournalSettings,
    alertmanager: AlertmanagerSettings,
}

impl Default for File {
    fn default() -> Self {
        Self {
            ports: DEFAULT_PORTS.to_vec(),
            cluster: Checked(Label(String::new())),
            interfaces: Vec::new(),
            ingress: Checked(Ingress::Auto),
            hot_plug: Checked(true),
            local: Vec::new(),
            trusted_proxies: Vec::new(),
            trusted_clients: Vec::new(),
            store: StoreTable::default(),
            incidents: IncidentsTable::default(),
            baseline: BaselineTable::default(),
            limits: LimitsTable::default(),
            rule: Vec::new(),
            policy: PolicySettings::default(),
            tlsrpt: TlsrptSettings::default(),
            journal: JournalSettings::default(),
            alertmanager: AlertmanagerSettings::default(),
        }
    }
}

impl From<File> for Config {
    fn from(file: File) -> Self {
        Self {
            ports: file.ports,
            cluster: file.cluster.0.0,
            interfaces: file.interfaces.into_iter().map(|glob| glob.0.0).collect(),
            ingress: file.ingress.0,
            hot_plug: file.hot_plug.0,
            local: file.local.into_iter().map(|network| network.0).collect(),
            trusted_proxies: file.trusted_proxies.into_iter().map(|network| network.0).collect(),
            trusted_clients: file.trusted_clients.into_iter().map(|network| network.0).collect(),
            retention: Retention {
                age_days: file.store.max_age_days.0.0,
                findings: file.store.max_findings.0.0,
                bytes: file.store.max_megabytes.0.0.saturating_mul(MEGABYTE),
            },
            store: PathBuf::from(file.store.path.0.0),
            window: Duration::from_secs(u64::from(file.incidents.window_minutes.0.0) * 60),
            baseline: Strength {
                min_sessions: file.baseline.min_sessions.0.0,
                min_offer_ratio: file.baseline.min_offer_ratio.0.0,
            },
            limits: Limits { flows: file.limits.flows.0.0, peers: file.limits.peers.0.0 },
            rules: file.rule.into_iter().map(|rule| rule.into_inner().into()).collect(),
            places: Vec::new(),
            policy: file.policy,
            tlsrpt: file.tlsrpt,
            journal: file.journal,
            alertmanager: file.alertmanager,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a [store] table")]
struct StoreTable {
    path: Checked<value::NonEmpty>,
    max_age_days: Checked<Days>,
    max_findings: Checked<FindingCount>,
    max_megabytes: Checked<Megabytes>,
}

impl Default for StoreTable {
    fn default() -> Self {
        let Retention { age_days, findings, bytes } = Retention::default();
        Self {
            path: Checked(value::NonEmpty(DEFAULT_STORE.to_owned())),
            max_age_days: Checked(Days(age_days)),
            max_findings: Checked(FindingCount(findings)),
            max_megabytes: Checked(Megabytes(bytes / MEGABYTE)),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "an [incidents] table")]
struct IncidentsTable {
    window_minutes: Checked<Minutes>,
}

impl Default for IncidentsTable {
    fn default() -> Self {
        Self { window_minutes: Checked(Minutes(60)) }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a [baseline] table")]
struct BaselineTable {
    min_sessions: Checked<Sessions>,
    min_offer_ratio: Checked<OfferRatio>,
}

impl Default for BaselineTable {
    fn default() -> Self {
        Self { min_sessions: Checked(Sessions(5)), min_offer_ratio: Checked(OfferRatio(0.95)) }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a [limits] table")]
struct LimitsTable {
    flows: Checked<FlowCount>,
    peers: Checked<PeerCount>,
}

impl Default for LimitsTable {
    fn default() -> Self {
        let Limits { flows, peers } = Limits::default();
        Self { flows: Checked(FlowCount(flows)), peers: Checked(PeerCount(peers)) }
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a [[rule]] table")]
struct RuleTable {
    peer: Vec<Checked<RulePeer>>,
    port: Vec<Checked<ValidPort>>,
    role: Option<Checked<smtpwatch_core::Role>>,
    starttls: Option<Checked<smtpwatch_core::policy::rule::StarttlsRule>>,
    auth_plaintext: Option<Checked<smtpwatch_core::policy::rule::AuthRule>>,
    min_tls: Option<Checked<TlsVersion>>,
    until: Option<Checked<Until>>,
    reason: Option<Checked<Reason>>,
}

impl From<RuleTable> for Rule {
    fn from(table: RuleTable) -> Self {
        Self {
            peer: table.peer.into_iter().map(|peer| peer.0.0).collect(),
            port: table.port.into_iter().map(|port| port.0.0).collect(),
            role: table.role.map(|role| role.0),
            starttls: table.starttls.map(|rule| rule.0),
            auth_plaintext: table.auth_plaintext.map(|rule| rule.0),
            min_tls: table.min_tls.map(|version| version.0.0),
            until: table.until.map(|until| until.0.0),
            reason: table.reason.map_or_else(String::new, |reason| reason.0.0),
        }
    }
}
