//! `smtpwatch policy`: looks up policies, shows what the daemon knows, and exports tables for mail servers.

use std::{collections::BTreeSet, io::Write, net::IpAddr, path::Path, sync::Arc};

use anyhow::Context as _;
use smtpwatch_config::Config;
use smtpwatch_core::{
    Timestamp,
    policy::{
        known::{Kept, KnownDomain},
        memory::Memory,
        published::{DomainFacts, HOSTS_PER_DOMAIN, HostFacts, domain_name, list::StarttlsList},
    },
};
use smtpwatch_policy::{
    list::{self, ListSource},
    lookup::{Sources, Timeouts, Trust},
};
use smtpwatch_render::{
    policy::{Host, Knowledge, Report},
    tables::{DomainRow, Export},
    text,
};
use smtpwatch_store::{Entry, Store, StoreError};
use smtpwatch_system::{clock::now, whole_file};

use super::{
    Exit, Format, MailServer, PolicyCheckArgs, PolicyExportArgs, PolicyListArgs, PolicyShowArgs, PolicyStoreArgs,
    PolicyVerb,
};

/// Maximum size of the table that is replaced, in bytes.
const MAX_TABLE: u64 = 64 * 1024 * 1024;
const NO_LIST: &str = "no list is configured ([policy] starttls_everywhere)";

pub(super) fn run(verb: PolicyVerb) -> anyhow::Result<Exit> {
    match verb {
        PolicyVerb::Check(args) => check(&args),
        PolicyVerb::Show(args) => show(args),
        PolicyVerb::List(args) => list_all(&args),
        PolicyVerb::Export(args) => export(&args),
    }
}

/// The subject of `policy show`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Subject {
    /// A domain or a mail host.
    Name(String),
    /// An address.
    Address(IpAddr),
}

/// Parses the subject of `policy show`.
pub(super) fn parse_subject(text: &str) -> Result<Subject, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(Subject::Address(address.to_canonical()));
    }
    let expected = || "expected a domain, the name of a mail host, or an address".to_owned();
    domain_name(text).map(Subject::Name).ok_or_else(expected)
}

/// Parses a domain of the command line.
pub(super) fn parse_domain(text: &str) -> Result<String, String> {
    domain_name(text).ok_or_else(|| "expected a mail domain, such as example.net".to_owned())
}

fn check(args: &PolicyCheckArgs) -> anyhow::Result<Exit> {
    let (config, _) = Config::load(args.config.config.as_deref())?;
    let trust = Trust::load(&config.policy)?;
    let history = history(&config)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(look(&config, &trust, &args.domain, &history))?;
    print(&[report], args.format)
}

/// Looks up all published policies of a domain.
async fn look(config: &Config, trust: &Trust, domain: &str, history: &[Entry]) -> anyhow::Result<Report> {
    let now = now();
    let sources = Arc::new(Sources::start(&config.policy, trust, Timeouts::default(), now).await?);
    let list = match ListSource::of(&config.policy.starttls_everywhere) {
        None => Err(NO_LIST.to_owned()),
        Some(source) => source.read(Some(&sources)).await.and_then(|text| list::parse(&text)),
    };
    let facts = sources.domain(domain, Memory::default(), now).await.facts;
    let names = facts.mx.valid().map(|mx| mx.hosts.clone()).unwrap_or_default();
    let mut lookups = tokio::task::JoinSet::new();
    for (index, name) in names.into_iter().take(HOSTS_PER_DOMAIN).enumerate() {
        let sources = sources.clone();
        lookups.spawn(async move {
            let facts = sources.host(&name, now).await;
            (index, (name, Some(facts)))
        });
    }
    let mut hosts = lookups.join_all().await;
    hosts.sort_by_key(|(index, _)| *index);
    let hosts: Vec<Host> = hosts.into_iter().map(|(_, host)| host).collect();
    let knowledge = knowledge(config, list.as_ref().map_err(Clone::clone), history, now);
    let report = knowledge.domain(domain, Some(&facts), &hosts);
    Ok(Report { dnssec: Some(sources.dnssec().to_string()), ..report })
}

/// The policies in the store and in local files, without any look-up.
struct Offline {
    config: Config,
    stored: Kept,
    history: Vec<Entry>,
    list: Result<StarttlsList, String>,
    now: Timestamp,
}

impl Offline {
    fn open(store_args: &PolicyStoreArgs) -> anyhow::Result<Self> {
        let (mut config, _) = Config::load(store_args.config.config.as_deref())?;
        if let Some(store) = &store_args.store {
            config.store.clone_from(store);
        }
        let where_list = ListSource::of(&config.policy.starttls_everywhere);
        let (stored, history, fetched) = match Store::open_existing(&config.store) {
            Ok(mut store) => {
                let list = match &where_list {
                    Some(ListSource::Url(url)) => store.policy_list(url)?,
                    Some(ListSource::File(_)) | None => None,
                };
                (store.policies()?, store.entries()?, list)
            }
            // Local rules and a list in a file apply without a store.
            Err(StoreError::Missing(_)) => (Kept::default(), Vec::new(), None),
            Err(error) => return Err(error.into()),
        };
        let list = match where_list {
            None => Err(NO_LIST.to_owned()),
            Some(ListSource::File(path)) => list::read_file(&path).and_then(|text| list::parse(&text)),
            Some(ListSource::Url(url)) => match fetched {
                Some(fetched) => list::parse(&fetched.text),
                None => Err(format!("the list at {url} was not fetched yet")),
            },
        };
        Ok(Self { config, stored, history, list, now: now() })
    }

    fn knowledge(&self) -> Knowledge<'_> {
        knowledge(&self.config, self.list.as_ref().map_err(Clone::clone), &self.history, self.now)
    }

    /// Why the configured list is unavailable.
    fn list_problem(&self) -> Option<String> {
        ListSource::of(&self.config.policy.starttls_everywhere)?;
        match &self.list {
            Err(why) => Some(why.clone()),
            Ok(list) if list.is_expired(self.now) => {
                Some(format!("the STARTTLS-Everywhere list expired on {}", list.expires.date()))
            }
            Ok(_) => None,
        }
    }

    fn facts(&self, domain: &str) -> Option<&DomainFacts> {
        self.stored.domains.iter().find(|known| known.name == domain).map(|known| &*known.facts)
    }

    fn host(&self, name: &str) -> Host {
        let known = self.stored.hosts.iter().find(|known| known.name == name);
        (name.to_owned(), known.map(|known| (*known.facts).clone()))
    }

    fn domain(&self, domain: &str) -> Report {
        let facts = self.facts(domain);
        let names = facts.and_then(|facts| facts.mx.value.as_ref()).map(|mx| mx.hosts.as_slice()).unwrap_or_default();
        let hosts: Vec<Host> = names.iter().take(HOSTS_PER_DOMAIN).map(|name| self.host(name)).collect();
        self.knowledge().domain(domain, facts, &hosts)
    }

    /// The domains that use one of these mail hosts.
    fn domains_of(&self, hosts: &[&str]) -> Vec<KnownDomain> {
        let takes = |domain: &&KnownDomain| {
            let mx = domain.facts.mx.value.as_ref();
            mx.is_some_and(|mx| mx.hosts.iter().any(|host| hosts.contains(&host.as_str())))
        };
        self.stored.domains.iter().filter(takes).cloned().collect()
    }
}

fn show(args: PolicyShowArgs) -> anyhow::Result<Exit> {
    let offline = Offline::open(&args.common.store_args)?;
    let knows = |name: &str| offline.stored.hosts.iter().any(|host| host.name == name);
    let report = match args.subject {
        // A name can be both a domain and a mail host; what is known of the domain takes precedence.
        Subject::Name(name) if offline.facts(&name).is_none() && knows(&name) => {
            offline.knowledge().mail_host(&offline.host(&name), &offline.domains_of(&[&name]))
        }
        Subject::Name(name) => offline.domain(&name),
        Subject::Address(address) => {
            let has = |facts: &HostFacts| facts.addresses.value.iter().flatten().any(|at| at.to_canonical() == address);
            let hosts = offline.stored.hosts.iter().filter(|host| has(&host.facts));
            let hosts: Vec<Host> = hosts.map(|host| offline.host(&host.name)).collect();
            let names: Vec<&str> = hosts.iter().map(|(name, _)| name.as_str()).collect();
            offline.knowledge().address(address, &hosts, &offline.domains_of(&names))
        }
    };
    print(&[report], args.common.format)
}

fn list_all(args: &PolicyListArgs) -> anyhow::Result<Exit> {
    let offline = Offline::open(&args.store_args)?;
    let mut reports: Vec<Report> = offline.stored.domains.iter().map(|known| offline.domain(&known.name)).collect();
    // Mail hosts are printed with their domains; these are the ones without a known domain.
    let with_domain: BTreeSet<String> =
        reports.iter().flat_map(|report| &report.hosts).map(|host| host.host.clone()).collect();
    let alone = offline.stored.hosts.iter().filter(|known| !with_domain.contains(&known.name));
    reports.extend(alone.map(|known| offline.knowledge().mail_host(&offline.host(&known.name), &[])));
    print(&reports, args.format)
}

fn print(reports: &[Report], format: Option<Format>) -> anyhow::Result<Exit> {
    let format = Format::or_default(format);
    super::out(|out| {
        reports.iter().try_for_each(|report| match format {
            Format::Text => out.write_all(report.text().as_bytes()),
            Format::Json => out.write_all(text::json_line(report).as_bytes()),
        })
    })?;
    Ok(Exit::Fine)
}

fn export(args: &PolicyExportArgs) -> anyhow::Result<Exit> {
    let offline = Offline::open(&args.store_args)?;
    let list = offline.list.as_ref().ok().filter(|list| !list.is_expired(offline.now));
    let known = offline.stored.domains.iter().map(|known| known.name.as_str());
    let listed = list.iter().flat_map(|list| list.policies.keys()).map(String::as_str);
    let domains: BTreeSet<&str> = known.chain(listed).collect();
    let rows = domains.into_iter().map(|domain| DomainRow {
        report: offline.domain(domain),
        sts: offline.facts(domain).and_then(|facts| facts.sts.valid()),
    });
    let (rules, now) = (offline.config.rules.as_slice(), offline.now);
    let export = Export { rules, list, rows: rows.collect(), learned: args.learned, now };
    let table = match args.server {
        MailServer::Postfix => export.postfix(),
        MailServer::Exim => export.exim(),
    };
    for warning in &table.warnings {
        eprintln!("smtpwatch: warning: {}", text::printable(warning));
    }
    let mut less: Vec<String> = offline.list_problem().into_iter().collect();
    if let Some(path) = &args.output {
        let lost = export.lost(&previous(path)?, &table.text);
        less.extend((!lost.is_empty()).then(|| format!("of the table in {}: {}", path.display(), lost.join(", "))));
    }
    for why in &less {
        eprintln!("smtpwatch: less is known than before: {}", text::printable(why));
    }
    if !less.is_empty() && !args.force {
        let left = if args.output.is_some() { "; the file is left as it is" } else { "" };
        eprintln!("smtpwatch: no table is written{left} (--force writes it all the same)");
        return Ok(Exit::Failure);
    }
    match &args.output {
        Some(path) => {
            whole_file::replace(path, table.text.as_bytes())
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        None => super::out(|out| out.write_all(table.text.as_bytes()))?,
    }
    Ok(if less.is_empty() { Exit::Fine } else { Exit::Failure })
}

/// The content of the table that is to be replaced; empty if there is no file.
fn previous(path: &Path) -> anyhow::Result<String> {
    match whole_file::read(path, MAX_TABLE) {
        Ok(text) => Ok(String::from_utf8_lossy(&text).into_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read the table to be replaced, {}", path.display())),
    }
}

fn knowledge<'a>(
    config: &'a Config,
    list: Result<&'a StarttlsList, String>,
    history: &'a [Entry],
    now: Timestamp,
) -> Knowledge<'a> {
    Knowledge { rules: &config.rules, list, history, strength: config.baseline, now }
}

/// The history of peers; empty if there is no store yet.
fn history(config: &Config) -> anyhow::Result<Vec<Entry>> {
    match Store::open_existing(&config.store) {
        Ok(mut store) => Ok(store.entries()?),
        Err(StoreError::Missing(_)) => Ok(Vec::new()),
        Err(error) => {
            tracing::warn!(%error, "cannot read the history: it is left out");
            Ok(Vec::new())
        }
    }
}
