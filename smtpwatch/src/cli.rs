//! The command line: all flags are here; each verb has its own file.

mod baseline;
mod check_config;
mod generate;
mod incidents;
mod peers;
mod policy;
mod probe;
mod replay;
mod run;
pub(crate) mod silence;
mod tlsrpt;

use std::{
    io::{self, IsTerminal, Write},
    path::PathBuf,
};

use clap::{ArgMatches, Args, Parser, Subcommand, ValueEnum};
use smtpwatch_config::{ConfigError, ConfigSource, JournalFormat, Network, parse_interface, parse_port};
use smtpwatch_core::{
    Role, Timestamp,
    day::Day,
    finding::{Evidence, Kind, Severity},
};
use smtpwatch_policy::lookup::TrustError;
use smtpwatch_store::{
    incidents::{PeerFilter, Sort},
    peers::PeerSort,
};
use smtpwatch_web::server::{ConfigFile, DEFAULT_LISTEN, ListenAddress, WebConfigError};

use crate::{
    log::{LogFormat, LogLevel},
    version,
};

/// Detects STARTTLS stripping and SMTP passwords in cleartext. Passive: every packet passes, no byte is changed.
#[derive(Debug, Parser)]
#[command(name = "smtpwatch", version = version::short(), long_version = version::long(), max_term_width = 100)]
pub struct Cli {
    /// The verb.
    #[command(subcommand)]
    pub verb: Verb,
    /// Minimum level of log messages on stderr.
    #[arg(
        long = "log.level",
        global = true,
        value_name = "LEVEL",
        env = "SMTPWATCH_LOG_LEVEL",
        default_value = "info"
    )]
    pub log_level: LogLevel,
    /// Log format; auto: logfmt, without time stamps if journald adds them.
    #[arg(
        long = "log.format",
        global = true,
        value_name = "FORMAT",
        env = "SMTPWATCH_LOG_FORMAT",
        default_value = "auto"
    )]
    pub log_format: LogFormat,
}

/// Verbs of the program.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run the daemon: watch this host's mail traffic.
    Run(RunArgs),
    /// Analyse recorded traffic (pcap, pcapng) with the same gate and engine.
    Replay(ReplayArgs),
    /// Report what this kernel and host support, with a remedy for each failure.
    Probe(ProbeArgs),
    /// List, show, export and verify findings with their evidence.
    #[command(subcommand)]
    Incidents(IncidentsVerb),
    /// Show and correct the history of peers.
    #[command(subcommand)]
    Baseline(BaselineVerb),
    /// List who still talks in cleartext, and what would have waited if TLS had been required.
    Peers(PeersArgs),
    /// Show which policy applies to a domain or mail host, and why.
    #[command(subcommand)]
    Policy(PolicyVerb),
    /// TLS reports (RFC 8460): print this host's, check those of others.
    #[command(subcommand)]
    Tlsrpt(TlsrptVerb),
    /// Exempt a peer from findings until a point in time, list such exceptions, or end one.
    Silence(silence::SilenceArgs),
    /// Check the configuration files.
    CheckConfig(CheckConfigArgs),
    /// Print documents that are generated from the program.
    #[command(subcommand)]
    Generate(GenerateVerb),
}

/// `--config`.
#[derive(Debug, Args)]
pub struct ConfigArg {
    /// Configuration file [default: /etc/smtpwatch/smtpwatch.toml if it exists].
    #[arg(long, value_name = "FILE", env = "SMTPWATCH_CONFIG")]
    pub config: Option<PathBuf>,
}

/// `--web.config.file`.
#[derive(Debug, Args)]
pub struct WebConfigArg {
    /// TLS and logins of the HTTP server, in the format of Prometheus' exporter-toolkit; reloaded when it changes.
    #[arg(long = "web.config.file", value_name = "FILE", env = "SMTPWATCH_WEB_CONFIG_FILE")]
    pub(crate) web_config: Option<PathBuf>,
}

impl WebConfigArg {
    fn load(&self) -> Result<Option<ConfigFile>, WebConfigError> {
        // A unit or compose file that leaves the value to its environment passes an empty one.
        self.web_config.as_deref().filter(|path| !path.as_os_str().is_empty()).map(ConfigFile::load).transpose()
    }
}

/// Flags of `check-config`.
#[derive(Debug, Args)]
pub struct CheckConfigArgs {
    /// Print every value in force and its source: a flag, a variable, a line of the file, or the default.
    #[arg(long)]
    pub(crate) effective: bool,
    #[command(flatten)]
    pub(crate) source: SourceArgs,
    #[command(flatten)]
    pub(crate) web: WebConfigArg,
}

/// The configuration, and flags that override it.
#[derive(Debug, Args)]
pub struct SourceArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArg,
    /// Interface name or glob, repeatable [default: every interface whose routes lead out of this host, or that carries
    /// mail].
    #[arg(long, value_name = "NAME|GLOB", env = "SMTPWATCH_INTERFACE", value_delimiter = ',', value_parser = parse_interface)]
    pub(crate) interface: Vec<String>,
    /// Watched server port, repeatable [default: 25, 587].
    #[arg(long, value_name = "N", env = "SMTPWATCH_PORT", value_delimiter = ',', value_parser = parse_port)]
    pub(crate) port: Vec<u16>,
    /// Format of findings in the journal [default: json].
    #[arg(long, value_name = "FORMAT", env = "SMTPWATCH_FORMAT")]
    pub(crate) format: Option<JournalFormat>,
}

impl SourceArgs {
    fn source(self) -> ConfigSource {
        let Self { config, interface, port, format } = self;
        ConfigSource { path: config.config, interfaces: interface, ports: port, format }
    }
}

/// Flags of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub(crate) source: SourceArgs,
    /// Listen address for metrics, health, pages and API; pages and API beyond loopback need --web.config.file.
    #[arg(long = "web.listen-address", value_name = "ADDR", env = "SMTPWATCH_WEB_LISTEN_ADDRESS", default_value = DEFAULT_LISTEN)]
    pub(crate) listen: ListenAddress,
    #[command(flatten)]
    pub(crate) web: WebConfigArg,
}

/// Flags of `replay`.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// Capture files, read as one timeline in this order: history from one file applies to the next.
    #[arg(value_name = "FILE", required = true)]
    pub(crate) files: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) config: ConfigArg,
    /// Watched server port, repeatable [default: 25, 587].
    #[arg(long, value_name = "N", env = "SMTPWATCH_PORT", value_delimiter = ',', value_parser = parse_port)]
    pub(crate) port: Vec<u16>,
    /// Own network, repeatable: decides which end of a connection the captured host was [default: the client].
    #[arg(long, value_name = "CIDR", env = "SMTPWATCH_LOCAL", value_delimiter = ',')]
    pub(crate) local: Vec<Network>,
    /// Format of the findings [default: text on a terminal, else json, one object per line].
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<Format>,
    /// Store history, findings and evidence in this file, and start with the history in it [default: in memory].
    #[arg(long, value_name = "PATH")]
    pub(crate) store: Option<PathBuf>,
    /// Exit with code 3 if there is a finding of this severity or higher: info, low, medium, high, critical.
    #[arg(long, value_name = "SEVERITY")]
    pub(crate) fail_on: Option<Severity>,
}

/// Flags of `probe`.
#[derive(Debug, Args)]
pub struct ProbeArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArg,
    /// Also try the hooks of this interface: attach and detach them.
    #[arg(long, value_name = "NAME")]
    pub(crate) interface: Option<String>,
    /// Output format [default: text on a terminal, else json].
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<Format>,
}

/// Verbs of `generate`.
#[derive(Debug, Subcommand)]
pub enum GenerateVerb {
    /// All rules: one row per threat, with the finding that it raises, or the reason why it raises none.
    Rules(RulesArgs),
    /// JSON Schema of a finding, as printed, stored and served.
    Schema,
    /// Shell completions.
    Completions {
        /// The shell.
        #[arg(value_name = "SHELL")]
        shell: clap_complete::Shell,
    },
    /// Manual pages: one for the program, or one for each verb, written to a directory.
    Man {
        /// Directory for one page for each verb [default: the program's page, to stdout].
        #[arg(long, value_name = "DIR")]
        directory: Option<PathBuf>,
    },
    /// The configuration file with every key, its default and its purpose.
    Config {
        /// The shipped file, or the page docs/configuration.md.
        #[arg(long, value_name = "FORMAT", default_value = "toml")]
        format: ConfigFormat,
    },
    /// The page docs/metrics.md: all metrics at /metrics.
    Metrics,
}

/// Formats of `generate config`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum ConfigFormat {
    /// The file.
    Toml,
    /// The page docs/configuration.md.
    Markdown,
}

/// Flags of `generate rules`.
#[derive(Debug, Args)]
pub struct RulesArgs {
    /// Format of the table.
    #[arg(long, value_name = "FORMAT", default_value = "markdown")]
    pub(crate) format: RulesFormat,
}

/// Formats of `generate rules`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum RulesFormat {
    /// The page docs/detection.md.
    Markdown,
    /// One JSON object per row, one per line.
    Json,
}

/// Verbs of `policy`.
#[derive(Debug, Subcommand)]
pub enum PolicyVerb {
    /// Look up everything now, and print what a sender should do.
    Check(PolicyCheckArgs),
    /// What the daemon knows of a domain, a mail host or an address, and which source wins; looks nothing up.
    Show(PolicyShowArgs),
    /// Every domain that the daemon knows.
    List(PolicyListArgs),
    /// Write the known policies as a table that a mail server can enforce.
    Export(PolicyExportArgs),
}

/// Flags of `policy show`.
#[derive(Debug, Args)]
pub struct PolicyShowArgs {
    /// A domain, the name of a mail host, or an address.
    #[arg(value_name = "DOMAIN|MX|ADDRESS", value_parser = policy::parse_subject)]
    pub(crate) subject: policy::Subject,
    #[command(flatten)]
    pub(crate) common: PolicyListArgs,
}

/// Flags of `policy list`.
#[derive(Debug, Args)]
pub struct PolicyListArgs {
    #[command(flatten)]
    pub(crate) store_args: PolicyStoreArgs,
    /// Output format [default: text on a terminal, else json].
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<Format>,
}

/// Flags of `policy export`.
#[derive(Debug, Args)]
pub struct PolicyExportArgs {
    /// The mail server.
    #[arg(value_name = "SERVER")]
    pub(crate) server: MailServer,
    /// Also require TLS of peers for which only history expects it.
    #[arg(long)]
    pub(crate) learned: bool,
    /// Replace this file atomically, instead of printing the table.
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Write the table even if it would enforce less than before.
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) store_args: PolicyStoreArgs,
}

/// The store of the daemon.
#[derive(Debug, Args)]
pub struct PolicyStoreArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArg,
    /// Path of the store [default: from the configuration].
    #[arg(long, value_name = "PATH")]
    pub(crate) store: Option<PathBuf>,
}

/// Mail servers with a table format.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum MailServer {
    /// A TLS policy table (`smtp_tls_policy_maps`).
    Postfix,
    /// A host list (`hosts_require_tls`).
    Exim,
}

/// Flags of `policy check`.
#[derive(Debug, Args)]
pub struct PolicyCheckArgs {
    /// The recipient domain.
    #[arg(value_name = "DOMAIN", value_parser = policy::parse_domain)]
    pub(crate) domain: String,
    #[command(flatten)]
    pub(crate) config: ConfigArg,
    /// Output format [default: text on a terminal, else json].
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<Format>,
}

/// Verbs of `tlsrpt`.
#[derive(Debug, Subcommand)]
pub enum TlsrptVerb {
    /// Print the reports of a day, one JSON object per policy domain, one per line; nothing is sent.
    Report(TlsrptReportArgs),
    /// Check reports of others about this host's domains against the record of what it offered.
    Import(TlsrptImportArgs),
}

/// Flags of `tlsrpt report`.
#[derive(Debug, Args)]
pub struct TlsrptReportArgs {
    /// The day, in UTC [default: yesterday].
    #[arg(long, value_name = "YYYY-MM-DD")]
    pub(crate) day: Option<Day>,
    /// One policy domain [default: all].
    #[arg(long, value_name = "DOMAIN")]
    pub(crate) domain: Option<String>,
    /// Path of the store [default: from the configuration].
    #[arg(long, value_name = "PATH")]
    pub(crate) store: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) config: ConfigArg,
}

/// Flags of `tlsrpt import`.
#[derive(Debug, Args)]
pub struct TlsrptImportArgs {
    /// Reports: JSON, gzip, zip, messages with reports, mailboxes.
    #[arg(value_name = "FILE", required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// Path of the store [default: from the configuration].
    #[arg(long, value_name = "PATH")]
    pub(crate) store: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) config: ConfigArg,
    /// Format of the findings [default: text on a terminal, else json, one object per line].
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<Format>,
}

/// Verbs of `incidents`.
#[derive(Debug, Subcommand)]
pub enum IncidentsVerb {
    /// List incidents, the most recent first.
    List(IncidentsListArgs),
    /// Show one incident with its strongest finding.
    Show(IncidentArgs),
    /// Export one incident for a program, for Wireshark, or for an abuse desk.
    Export(IncidentsExportArgs),
    /// Verify the hash chain of all findings: it reveals later edits.
    Verify(IncidentsVerifyArgs),
    /// Serve the pages and the JSON API for a store without capturing, such as one from `replay --store`.
    Serve(IncidentsServeArgs),
}

/// Flags of `incidents serve`.
#[derive(Debug, Args)]
pub struct IncidentsServeArgs {
    #[command(flatten)]
    pub(crate) store_args: IncidentsStoreArgs,
    /// Listen address; loopback only.
    #[arg(long = "web.listen-address", value_name = "ADDR", env = "SMTPWATCH_WEB_LISTEN_ADDRESS", default_value = DEFAULT_LISTEN)]
    pub(crate) listen: ListenAddress,
}

/// The store of findings.
#[derive(Debug, Args)]
pub struct IncidentsStoreArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArg,
    /// Path of the store [default: from the configuration].
    #[arg(long, value_name = "PATH")]
    pub(crate) store: Option<PathBuf>,
}

/// Flags of `incidents list`.
#[derive(Debug, Args)]
pub struct IncidentsListArgs {
    /// Last seen at this time or later: RFC 3339, or an age (30m, 24h, 7d).
    #[arg(long, value_name = "TIME", value_parser = incidents::parse_time)]
    pub(crate) since: Option<Timestamp>,
    /// Begun before this time: RFC 3339, or an age.
    #[arg(long, value_name = "TIME", value_parser = incidents::parse_time)]
    pub(crate) until: Option<Timestamp>,
    /// Kind of finding, repeatable.
    #[arg(long, value_name = "KIND")]
    pub(crate) kind: Vec<Kind>,
    /// This severity or higher: info, low, medium, high, critical.
    #[arg(long, value_name = "SEVERITY")]
    pub(crate) severity: Option<Severity>,
    /// This evidence or stronger: suspicious, regression, policy, tamper.
    #[arg(long, value_name = "EVIDENCE")]
    pub(crate) evidence: Option<Evidence>,
    /// The end that this host was: client, server.
    #[arg(long, value_name = "ROLE", value_parser = incidents::parse_role)]
    pub(crate) role: Option<Role>,
    /// Peer: an address, a network, a name, or all names below one (*.example.net).
    #[arg(long, value_name = "PEER")]
    pub(crate) peer: Option<PeerFilter>,
    /// Order: time (newest first) or worth (highest severity first, then newest).
    #[arg(long, value_name = "ORDER", default_value = "time")]
    pub(crate) sort: Sort,
    /// Maximum number of incidents.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) limit: u16,
    #[command(flatten)]
    pub(crate) store_args: IncidentsStoreArgs,
    /// Output format [default: text on a terminal, else json, one object per line].
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<Format>,
}

/// Flags of `incidents show`.
#[derive(Debug, Args)]
pub struct IncidentArgs {
    /// Identifier of the incident or of one of its findings, or an unambiguous beginning of it.
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) store_args: IncidentsStoreArgs,
    /// Output format [default: text on a terminal, else json].
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<Format>,
}

/// Flags of `incidents export`.
#[derive(Debug, Args)]
pub struct IncidentsExportArgs {
    /// Identifier of the incident or of one of its findings, or an unambiguous beginning of it.
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) store_args: IncidentsStoreArgs,
    /// Format of the output.
    #[arg(long, value_name = "FORMAT", default_value = "json")]
    pub(crate) format: ExportFormat,
    /// Write a capture file for Wireshark, made from the evidence, instead of text; - is stdout.
    #[arg(long, value_name = "FILE", conflicts_with = "format")]
    pub(crate) pcapng: Option<PathBuf>,
}

/// Formats of `incidents export`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum ExportFormat {
    /// Incident, findings and evidence as one JSON object.
    Json,
    /// A letter to an abuse desk.
    Text,
    /// Elastic Common Schema, one object per finding, one per line.
    Ecs,
    /// Suricata's EVE, one object per finding, one per line.
    Eve,
}

/// Flags of `incidents verify`.
#[derive(Debug, Args)]
pub struct IncidentsVerifyArgs {
    /// A head of the chain that was noted earlier: the chain must contain it.
    #[arg(long, value_name = "SHA256", value_parser = incidents::parse_hash)]
    pub(crate) head: Option<[u8; 32]>,
    #[command(flatten)]
    pub(crate) store_args: IncidentsStoreArgs,
    /// Output format [default: text on a terminal, else json].
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<Format>,
}

/// Verbs of `baseline`.
#[derive(Debug, Subcommand)]
pub enum BaselineVerb {
    /// List all peers, the most recent first.
    List(BaselineArgs),
    /// Show one peer.
    Show(PeerArgs),
    /// Delete the history of one peer; a running daemon follows within a second.
    Forget(PeerArgs),
    /// Write the history to stdout, one JSON object per line, for another host or as a backup.
    Export(BaselineStoreArgs),
    /// Read the output of export; of two rows for one peer the most recent one is kept. The daemon must be stopped.
    Import(BaselineImportArgs),
}

/// The store of the history.
#[derive(Debug, Args)]
pub struct BaselineStoreArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArg,
    /// Path of the store [default: from the configuration].
    #[arg(long, value_name = "PATH")]
    pub(crate) store: Option<PathBuf>,
}

/// Flags of `baseline import`.
#[derive(Debug, Args)]
pub struct BaselineImportArgs {
    /// File with the exported history; - is stdin.
    #[arg(value_name = "FILE", default_value = "-")]
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) store_args: BaselineStoreArgs,
}

/// Flags of `baseline`.
#[derive(Debug, Args)]
pub struct BaselineArgs {
    #[command(flatten)]
    pub(crate) store_args: BaselineStoreArgs,
    /// Output format [default: text on a terminal, else json].
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<Format>,
}

/// Flags of `baseline show` and `baseline forget`.
#[derive(Debug, Args)]
pub struct PeerArgs {
    /// Address of the peer, or the name that a server gives itself.
    #[arg(value_name = "PEER")]
    pub(crate) peer: String,
    #[command(flatten)]
    pub(crate) common: BaselineArgs,
}

/// Flags of `peers`.
#[derive(Debug, Args)]
pub struct PeersArgs {
    /// The end that this host was: client, server.
    #[arg(long, value_name = "ROLE", value_parser = incidents::parse_role)]
    pub(crate) role: Option<Role>,
    /// This port of the server.
    #[arg(long, value_name = "N", value_parser = parse_port)]
    pub(crate) port: Option<u16>,
    /// The order, the largest first: affected (messages in cleartext), last (in cleartext), sessions.
    #[arg(long, value_name = "ORDER", default_value = "affected", value_parser = peers::parse_sort)]
    pub(crate) sort: PeerSort,
    /// Maximum number of peers.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) limit: u16,
    /// Output format [default: text on a terminal, else json, one object per line].
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<PeersFormat>,
    /// Path of the store [default: from the configuration].
    #[arg(long, value_name = "PATH")]
    pub(crate) store: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) config: ConfigArg,
}

/// Formats of `peers`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum PeersFormat {
    /// For people; not stable.
    Text,
    /// For programs: stable.
    Json,
    /// For a spreadsheet: stable; further columns may follow.
    Csv,
}

/// Format of data on stdout.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Format {
    /// For people; not stable.
    Text,
    /// For programs: stable.
    Json,
}

impl Format {
    /// The requested format; otherwise text on a terminal, and JSON elsewhere.
    fn or_default(choice: Option<Self>) -> Self {
        choice.unwrap_or(if io::stdout().is_terminal() { Self::Text } else { Self::Json })
    }
}

/// Exit code of the process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Exit {
    /// Success.
    Fine = 0,
    /// Something failed.
    Failure = 1,
    /// Invalid command line (also clap's own code).
    Usage = 2,
    /// Findings at or above `--fail-on`.
    Findings = 3,
    /// Not permitted (`EX_NOPERM` of sysexits.h).
    NoPermission = 77,
    /// Bad configuration (`EX_CONFIG` of sysexits.h).
    BadConfig = 78,
}

impl Exit {
    /// The code for an error that ended a verb.
    #[must_use]
    pub fn of(error: &anyhow::Error) -> Self {
        for cause in error.chain() {
            if cause.is::<ConfigError>() || cause.is::<TrustError>() || cause.is::<WebConfigError>() {
                return Self::BadConfig;
            }
            if cause
                .downcast_ref::<smtpwatch_capture::CaptureError>()
                .is_some_and(smtpwatch_capture::CaptureError::is_permission)
            {
                return Self::NoPermission;
            }
            if cause.downcast_ref::<silence::FileError>().is_some_and(silence::FileError::is_permission) {
                return Self::NoPermission;
            }
        }
        Self::Failure
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Runs the verb; `matches` is the clap result that `cli` was parsed from.
///
/// # Errors
///
/// The failure, its cause and its remedy; [`Exit::of`] gives the code.
pub fn dispatch(cli: Cli, matches: &ArgMatches) -> anyhow::Result<Exit> {
    match cli.verb {
        Verb::Run(args) => run::run(args),
        Verb::Replay(args) => replay::run(args),
        Verb::Probe(args) => probe::run(&args),
        Verb::Incidents(verb) => incidents::run(verb),
        Verb::Baseline(verb) => baseline::run(verb),
        Verb::Peers(args) => peers::run(&args),
        Verb::Policy(verb) => policy::run(verb),
        Verb::Tlsrpt(TlsrptVerb::Report(args)) => tlsrpt::report(&args),
        Verb::Tlsrpt(TlsrptVerb::Import(args)) => tlsrpt::import(&args),
        Verb::Silence(args) => silence::run(args),
        Verb::CheckConfig(args) => check_config::run(args, matches),
        Verb::Generate(GenerateVerb::Rules(args)) => generate::rules(&args),
        Verb::Generate(GenerateVerb::Schema) => generate::schema(),
        Verb::Generate(GenerateVerb::Completions { shell }) => generate::completions(shell),
        Verb::Generate(GenerateVerb::Man { directory }) => generate::man(directory.as_deref()),
        Verb::Generate(GenerateVerb::Config { format }) => generate::config(format),
        Verb::Generate(GenerateVerb::Metrics) => generate::metrics(),
    }
}

/// Writes data to stdout.
fn out(write: impl FnOnce(&mut Lenient<io::StdoutLock<'static>>) -> io::Result<()>) -> io::Result<()> {
    let mut out = Lenient(io::stdout().lock());
    write(&mut out)?;
    out.flush()
}

/// A writer that treats a closed pipe (`| head`) as success and discards the rest.
struct Lenient<W>(W);

impl<W: Write> Write for Lenient<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lenient(self.0.write(bytes), bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        lenient(self.0.flush(), ())
    }
}

fn lenient<T>(result: io::Result<T>, otherwise: T) -> io::Result<T> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(otherwise),
        result => result,
    }
}
