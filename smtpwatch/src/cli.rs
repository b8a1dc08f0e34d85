//! The command line: every flag in one place; one file per verb below.

mod baseline;
mod check_config;
mod generate;
mod incidents;
mod policy;
mod probe;
mod replay;
mod run;
mod tlsrpt;

use std::{
    io::{self, IsTerminal, Write},
    path::PathBuf,
};

use clap::{ArgMatches, Args, Parser, Subcommand, ValueEnum};
use smtpwatch_config::{ConfigError, JournalFormat, Network, Source, parse_interface, parse_port};
use smtpwatch_core::{
    Role, Timestamp,
    day::Day,
    finding::{Evidence, Kind, Severity},
};
use smtpwatch_policy::lookup::TrustError;
use smtpwatch_store::incidents::PeerFilter;
use smtpwatch_web::server::{ConfigFile, DEFAULT_LISTEN, ListenAddress, WebConfigError};

use crate::{
    log::{LogFormat, LogLevel},
    version,
};

/// Catches STARTTLS stripping and SMTP passwords in clear. Passive: every packet passes, no byte is changed.
#[derive(Debug, Parser)]
#[command(name = "smtpwatch", version = version::short(), long_version = version::long(), max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
    /// Lowest level that is logged (stderr).
    #[arg(
        long = "log.level",
        global = true,
        value_name = "LEVEL",
        env = "SMTPWATCH_LOG_LEVEL",
        default_value = "info"
    )]
    pub log_level: LogLevel,
    /// Form of the log; auto: logfmt, without time stamps when journald adds them.
    #[arg(
        long = "log.format",
        global = true,
        value_name = "FORMAT",
        env = "SMTPWATCH_LOG_FORMAT",
        default_value = "auto"
    )]
    pub log_format: LogFormat,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Watch this host's mail traffic: the daemon.
    Run(RunArgs),
    /// Judge recorded traffic (pcap, pcapng) with the same gate and engine.
    Replay(ReplayArgs),
    /// Tell what this kernel and host allow, each with its remedy.
    Probe(ProbeArgs),
    /// What was found, with its evidence: list it, look at it, hand it over, check it.
    #[command(subcommand)]
    Incidents(IncidentsVerb),
    /// Look at the history of peers, and correct it.
    #[command(subcommand)]
    Baseline(BaselineVerb),
    /// Tell which policy applies to a domain or mail host, and why.
    #[command(subcommand)]
    Policy(PolicyVerb),
    /// TLS reports: what ours would say, and what others say of us.
    #[command(subcommand)]
    Tlsrpt(TlsrptVerb),
    /// Check the configuration files.
    CheckConfig(CheckConfigArgs),
    /// Print what is generated from the program itself.
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
    /// TLS and logins of the HTTP server, in the form of Prometheus' exporter-toolkit; read again when it changes.
    #[arg(long = "web.config.file", value_name = "FILE", env = "SMTPWATCH_WEB_CONFIG_FILE")]
    pub(crate) web_config: Option<PathBuf>,
}

impl WebConfigArg {
    fn load(&self) -> Result<Option<ConfigFile>, WebConfigError> {
        // An empty value is what a unit or compose file gives that leaves it to its environment.
        self.web_config.as_deref().filter(|path| !path.as_os_str().is_empty()).map(ConfigFile::load).transpose()
    }
}

/// Flags of `check-config`.
#[derive(Debug, Args)]
pub struct CheckConfigArgs {
    /// Print every value in force, and where it comes from: a flag, a variable, a line of the file, or the default.
    #[arg(long)]
    pub(crate) effective: bool,
    #[command(flatten)]
    pub(crate) source: SourceArgs,
    #[command(flatten)]
    pub(crate) web: WebConfigArg,
}

/// The configuration, and what stands in its place.
#[derive(Debug, Args)]
pub struct SourceArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArg,
    /// Interface name or glob, repeatable [default: every interface whose routes lead out of this host, or that mail
    /// takes].
    #[arg(long, value_name = "NAME|GLOB", env = "SMTPWATCH_INTERFACE", value_delimiter = ',', value_parser = parse_interface)]
    pub(crate) interface: Vec<String>,
    /// Watched server port, repeatable [default: 25, 587].
    #[arg(long, value_name = "N", env = "SMTPWATCH_PORT", value_delimiter = ',', value_parser = parse_port)]
    pub(crate) port: Vec<u16>,
    /// Form of findings in the journal [default: json].
    #[arg(long, value_name = "FORMAT", env = "SMTPWATCH_FORMAT")]
    pub(crate) format: Option<JournalFormat>,
}

impl SourceArgs {
    fn source(self) -> Source {
        let Self { config, interface, port, format } = self;
        Source { path: config.config, interfaces: interface, ports: port, format }
    }
}

/// Flags of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub(crate) source: SourceArgs,
    /// Where metrics, health, pages and API are served; pages and API off loopback only with --web.config.file.
    #[arg(long = "web.listen-address", value_name = "ADDR", env = "SMTPWATCH_WEB_LISTEN_ADDRESS", default_value = DEFAULT_LISTEN)]
    pub(crate) listen: ListenAddress,
    #[command(flatten)]
    pub(crate) web: WebConfigArg,
}

/// Flags of `replay`.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// Captures, read as one timeline in this order: history learned in one judges the next.
    #[arg(value_name = "FILE", required = true)]
    pub(crate) files: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) config: ConfigArg,
    /// Watched server port, repeatable [default: 25, 587].
    #[arg(long, value_name = "N", env = "SMTPWATCH_PORT", value_delimiter = ',', value_parser = parse_port)]
    pub(crate) port: Vec<u16>,
    /// Own network, repeatable: tells which end of a connection the captured host was [default: the client].
    #[arg(long, value_name = "CIDR", env = "SMTPWATCH_LOCAL", value_delimiter = ',')]
    pub(crate) local: Vec<Network>,
    /// Form of the findings [default: text on a terminal, else json: one object per line].
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<Format>,
    /// Keep history, findings and their evidence in this file, and begin with the history that it holds [default: in memory].
    #[arg(long, value_name = "PATH")]
    pub(crate) store: Option<PathBuf>,
    /// Exit with 3 when there is a finding of this severity or a louder one: info, low, medium, high, critical.
    #[arg(long, value_name = "SEVERITY")]
    pub(crate) fail_on: Option<Severity>,
}

/// Flags of `probe`.
#[derive(Debug, Args)]
pub struct ProbeArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArg,
    /// Also try the hooks of this interface: attached for a moment, then detached.
    #[arg(long, value_name = "NAME")]
    pub(crate) interface: Option<String>,
    /// Form of the answer [default: text on a terminal, else json].
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<Format>,
}

/// Verbs of `generate`.
#[derive(Debug, Subcommand)]
pub enum GenerateVerb {
    /// What is detected: one row per threat, with the finding it raises, or the reason why none is raised.
    Rules(RulesArgs),
    /// JSON Schema of a finding, as it is printed, kept and served.
    Schema,
    /// Completions of the command line for a shell.
    Completions {
        /// For which shell.
        #[arg(value_name = "SHELL")]
        shell: clap_complete::Shell,
    },
    /// Manual pages: that of the program, or one for each verb into a directory.
    Man {
        /// Write one page for each verb there [default: that of the program, to stdout].
        #[arg(long, value_name = "DIR")]
        directory: Option<PathBuf>,
    },
    /// The configuration file with every key, its default and what it is for.
    Config {
        /// As the shipped file, or as the page docs/configuration.md.
        #[arg(long, value_name = "FORMAT", default_value = "toml")]
        format: ConfigFormat,
    },
    /// What is exported at /metrics: the page docs/metrics.md.
    Metrics,
}

/// Forms of `generate config`.
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
    /// Form of the table.
    #[arg(long, value_name = "FORMAT", default_value = "markdown")]
    pub(crate) format: RulesFormat,
}

/// Forms of `generate rules`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum RulesFormat {
    /// The page docs/detection.md.
    Markdown,
    /// One JSON object per line and row.
    Json,
}

/// Verbs of `policy`.
#[derive(Debug, Subcommand)]
pub enum PolicyVerb {
    /// Look everything up now, and tell what a sender should do.
    Check(PolicyCheckArgs),
    /// What the daemon knows of a domain, a mail host or an address, and which source wins; asks nobody.
    Show(PolicyShowArgs),
    /// Every domain that the daemon knows.
    List(PolicyListArgs),
    /// Write what is known as a table for a mail server, so that it can enforce it.
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
    pub(crate) place: PolicyPlace,
    /// Form of the answer [default: text on a terminal, else json].
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<Format>,
}

/// Flags of `policy export`.
#[derive(Debug, Args)]
pub struct PolicyExportArgs {
    /// For which mail server.
    #[arg(value_name = "SERVER")]
    pub(crate) server: MailServer,
    /// Require TLS also of peers of which only history expects it.
    #[arg(long)]
    pub(crate) learned: bool,
    /// Replace this file, in one step, instead of printing the table.
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Write the table also when less is known than before.
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) place: PolicyPlace,
}

/// Where the daemon keeps what it knows.
#[derive(Debug, Args)]
pub struct PolicyPlace {
    #[command(flatten)]
    pub(crate) config: ConfigArg,
    /// The store [default: that of the configuration].
    #[arg(long, value_name = "PATH")]
    pub(crate) store: Option<PathBuf>,
}

/// Mail servers that a table can be written for.
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
    /// Form of the answer [default: text on a terminal, else json].
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<Format>,
}

/// Verbs of `tlsrpt`.
#[derive(Debug, Subcommand)]
pub enum TlsrptVerb {
    /// Print the reports of a day, one JSON object per line and policy domain; nothing is sent.
    Report(TlsrptReportArgs),
    /// Read the reports of others about our domains, and hold them against what this host offered.
    Import(TlsrptImportArgs),
}

/// Flags of `tlsrpt report`.
#[derive(Debug, Args)]
pub struct TlsrptReportArgs {
    /// The day, of UTC [default: yesterday].
    #[arg(long, value_name = "YYYY-MM-DD")]
    pub(crate) day: Option<Day>,
    /// One policy domain [default: all].
    #[arg(long, value_name = "DOMAIN")]
    pub(crate) domain: Option<String>,
    /// The store [default: that of the configuration].
    #[arg(long, value_name = "PATH")]
    pub(crate) store: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) config: ConfigArg,
}

/// Flags of `tlsrpt import`.
#[derive(Debug, Args)]
pub struct TlsrptImportArgs {
    /// Reports: JSON, gzip, or messages that carry them.
    #[arg(value_name = "FILE", required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// The store [default: that of the configuration].
    #[arg(long, value_name = "PATH")]
    pub(crate) store: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) config: ConfigArg,
    /// Form of the findings [default: text on a terminal, else json: one object per line].
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<Format>,
}

/// Verbs of `incidents`.
#[derive(Debug, Subcommand)]
pub enum IncidentsVerb {
    /// Incidents, the one that was seen last first.
    List(IncidentsListArgs),
    /// One incident, with the finding that shows it best.
    Show(IncidentArgs),
    /// One incident, to hand over: to a program, to Wireshark, or to an abuse desk.
    Export(IncidentsExportArgs),
    /// Check every finding against the chain of hashes: later edits show.
    Verify(IncidentsVerifyArgs),
    /// The pages and the JSON API over a store, while nothing is watched: for what `replay --store` has put there.
    Serve(IncidentsServeArgs),
}

/// Flags of `incidents serve`.
#[derive(Debug, Args)]
pub struct IncidentsServeArgs {
    #[command(flatten)]
    pub(crate) place: IncidentsPlace,
    /// Where the pages are, on this host only.
    #[arg(long = "web.listen-address", value_name = "ADDR", env = "SMTPWATCH_WEB_LISTEN_ADDRESS", default_value = DEFAULT_LISTEN)]
    pub(crate) listen: ListenAddress,
}

/// Where findings are kept.
#[derive(Debug, Args)]
pub struct IncidentsPlace {
    #[command(flatten)]
    pub(crate) config: ConfigArg,
    /// The store [default: that of the configuration].
    #[arg(long, value_name = "PATH")]
    pub(crate) store: Option<PathBuf>,
}

/// Flags of `incidents list`.
#[derive(Debug, Args)]
pub struct IncidentsListArgs {
    /// Seen at this time or later: RFC 3339, or so long ago (30m, 24h, 7d).
    #[arg(long, value_name = "TIME", value_parser = incidents::parse_time)]
    pub(crate) since: Option<Timestamp>,
    /// Begun before this time, likewise.
    #[arg(long, value_name = "TIME", value_parser = incidents::parse_time)]
    pub(crate) until: Option<Timestamp>,
    /// Of this kind, repeatable.
    #[arg(long, value_name = "KIND")]
    pub(crate) kind: Vec<Kind>,
    /// Of this severity or a louder one: info, low, medium, high, critical.
    #[arg(long, value_name = "SEVERITY")]
    pub(crate) severity: Option<Severity>,
    /// Of evidence this strong or stronger: suspicious, regression, policy, tamper.
    #[arg(long, value_name = "EVIDENCE")]
    pub(crate) evidence: Option<Evidence>,
    /// Which end this host was: client, server.
    #[arg(long, value_name = "ROLE", value_parser = incidents::parse_role)]
    pub(crate) role: Option<Role>,
    /// Of this peer: an address, a network, a name, or every name below one (*.example.net).
    #[arg(long, value_name = "PEER")]
    pub(crate) peer: Option<PeerFilter>,
    /// At most so many.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) limit: u16,
    #[command(flatten)]
    pub(crate) place: IncidentsPlace,
    /// Form of the answer [default: text on a terminal, else json: one object per line].
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<Format>,
}

/// Flags of `incidents show`.
#[derive(Debug, Args)]
pub struct IncidentArgs {
    /// The identifier of the incident or of one of its findings, or a beginning of it that fits no other.
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) place: IncidentsPlace,
    /// Form of the answer [default: text on a terminal, else json].
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<Format>,
}

/// Flags of `incidents export`.
#[derive(Debug, Args)]
pub struct IncidentsExportArgs {
    /// The identifier of the incident or of one of its findings, or a beginning of it that fits no other.
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) place: IncidentsPlace,
    /// Form of what is written to stdout.
    #[arg(long, value_name = "FORMAT", default_value = "json")]
    pub(crate) format: ExportFormat,
    /// Write a capture file for Wireshark, put together from the evidence, and nothing to stdout; - is stdout.
    #[arg(long, value_name = "FILE", conflicts_with = "format")]
    pub(crate) pcapng: Option<PathBuf>,
}

/// Forms of `incidents export`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum ExportFormat {
    /// Incident, findings and evidence as one JSON object.
    Json,
    /// A letter to an abuse desk.
    Text,
    /// Elastic Common Schema, one object per finding and line.
    Ecs,
    /// Suricata's EVE, one object per finding and line.
    Eve,
}

/// Flags of `incidents verify`.
#[derive(Debug, Args)]
pub struct IncidentsVerifyArgs {
    /// A head of the chain that was written down earlier: it must stand in the chain.
    #[arg(long, value_name = "SHA256", value_parser = incidents::parse_hash)]
    pub(crate) head: Option<[u8; 32]>,
    #[command(flatten)]
    pub(crate) place: IncidentsPlace,
    /// Form of the answer [default: text on a terminal, else json].
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<Format>,
}

/// Verbs of `baseline`.
#[derive(Debug, Subcommand)]
pub enum BaselineVerb {
    /// All peers, the newest first.
    List(BaselineArgs),
    /// One peer.
    Show(PeerArgs),
    /// Forget one peer; a running daemon forgets it too, within a second.
    Forget(PeerArgs),
    /// Write all of it to stdout, one JSON object per line: for another host, or to keep.
    Export(BaselinePlace),
    /// Read what export has written; of two rows about one peer the one that was seen last stays. The daemon must be stopped.
    Import(BaselineImportArgs),
}

/// Where history is kept.
#[derive(Debug, Args)]
pub struct BaselinePlace {
    #[command(flatten)]
    pub(crate) config: ConfigArg,
    /// The store [default: that of the configuration].
    #[arg(long, value_name = "PATH")]
    pub(crate) store: Option<PathBuf>,
}

/// Flags of `baseline import`.
#[derive(Debug, Args)]
pub struct BaselineImportArgs {
    /// What was exported; - is stdin.
    #[arg(value_name = "FILE", default_value = "-")]
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) place: BaselinePlace,
}

/// Flags of `baseline`.
#[derive(Debug, Args)]
pub struct BaselineArgs {
    #[command(flatten)]
    pub(crate) place: BaselinePlace,
    /// Form of the answer [default: text on a terminal, else json].
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<Format>,
}

/// Flags of `baseline show` and `baseline forget`.
#[derive(Debug, Args)]
pub struct PeerArgs {
    /// Server address, or the name that the server gives itself.
    #[arg(value_name = "PEER")]
    pub(crate) peer: String,
    #[command(flatten)]
    pub(crate) common: BaselineArgs,
}

/// Form of data on stdout.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Format {
    /// For people; not a stable form.
    Text,
    /// For programs: stable.
    Json,
}

impl Format {
    /// What was asked for, else text on a terminal and JSON elsewhere.
    fn or_default(choice: Option<Self>) -> Self {
        choice.unwrap_or(if io::stdout().is_terminal() { Self::Text } else { Self::Json })
    }
}

/// How the process ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Exit {
    /// All went well.
    Fine = 0,
    /// Something failed.
    Failure = 1,
    /// The command line is not one (also clap's own code).
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
        }
        Self::Failure
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Does what the command line asks for; `matches` is what `cli` was made from.
///
/// # Errors
///
/// What failed, why, and what to do; [`Exit::of`] has the code.
pub fn dispatch(cli: Cli, matches: &ArgMatches) -> anyhow::Result<Exit> {
    match cli.verb {
        Verb::Run(args) => run::run(args),
        Verb::Replay(args) => replay::run(args),
        Verb::Probe(args) => probe::run(&args),
        Verb::Incidents(verb) => incidents::run(verb),
        Verb::Baseline(verb) => baseline::run(verb),
        Verb::Policy(verb) => policy::run(verb),
        Verb::Tlsrpt(TlsrptVerb::Report(args)) => tlsrpt::report(&args),
        Verb::Tlsrpt(TlsrptVerb::Import(args)) => tlsrpt::import(&args),
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

/// A writer for which a reader that went away (`| head`) is no failure: the rest is not written.
struct Lenient<W>(W);

impl<W: Write> Write for Lenient<W> {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        lenient(self.0.write(octets), octets.len())
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
