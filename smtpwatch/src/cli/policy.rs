//! `smtpwatch policy`.

use std::{
    io::Write,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use smtpwatch_core::{
    Timestamp,
    policy::published::{domain_name, list::StarttlsList},
};

use super::{Exit, Format, PolicyCheckArgs, PolicyVerb};
use crate::{
    config::Config,
    output::text,
    policy::{
        list::{self, Place},
        lookup::{Patience, Sources, Trust},
        report::{Host, Knowledge, Report},
        sts::Memory,
    },
    store::{Entry, Store, StoreError},
};

/// Mail hosts of one domain that are looked up.
const HOSTS: usize = 16;

pub(super) fn run(verb: PolicyVerb) -> anyhow::Result<Exit> {
    match verb {
        PolicyVerb::Check(args) => check(&args),
    }
}

/// What is a domain, on the command line.
pub(super) fn parse_domain(text: &str) -> Result<String, String> {
    domain_name(text).ok_or_else(|| "expected a mail domain, such as example.net".to_owned())
}

fn check(args: &PolicyCheckArgs) -> anyhow::Result<Exit> {
    let (config, _) = Config::load(args.config.config.as_deref())?;
    let trust = Trust::load(&config.policy)?;
    let history = history(&config)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(look(&config, &trust, &args.domain, &history))?;
    let answer = match Format::or_default(args.format) {
        Format::Text => report.text(),
        Format::Json => text::json_line(&report),
    };
    super::out(|out| out.write_all(answer.as_bytes()))?;
    Ok(Exit::Fine)
}

/// Asks everybody, now.
async fn look(config: &Config, trust: &Trust, domain: &str, history: &[Entry]) -> anyhow::Result<Report> {
    let now = now();
    let sources = Arc::new(Sources::start(&config.policy, trust, Patience::default(), now).await?);
    let list = match Place::of(&config.policy.starttls_everywhere) {
        None => Err("no list is configured ([policy] starttls_everywhere)".to_owned()),
        Some(place) => place.read(Some(&sources)).await.and_then(|text| list::parse(&text)),
    };
    let facts = sources.domain(domain, Memory::default(), now).await.facts;
    let names = facts.mx.valid().map(|mx| mx.hosts.clone()).unwrap_or_default();
    let mut looks = tokio::task::JoinSet::new();
    for (place, name) in names.into_iter().take(HOSTS).enumerate() {
        let sources = sources.clone();
        looks.spawn(async move {
            let facts = sources.host(&name, now).await;
            (place, (name, Some(facts)))
        });
    }
    let mut hosts = looks.join_all().await;
    hosts.sort_by_key(|(place, _)| *place);
    let hosts: Vec<Host> = hosts.into_iter().map(|(_, host)| host).collect();
    let knowledge = knowledge(config, list.as_ref().map_err(Clone::clone), history, now);
    let report = knowledge.domain(domain, Some(&facts), &hosts);
    Ok(Report { dnssec: Some(sources.dnssec().to_string()), ..report })
}

fn knowledge<'a>(
    config: &'a Config,
    list: Result<&'a StarttlsList, String>,
    history: &'a [Entry],
    now: Timestamp,
) -> Knowledge<'a> {
    Knowledge { rules: &config.rules, list, history, strength: config.baseline, now }
}

/// What was seen of peers; nothing where there is no store yet.
fn history(config: &Config) -> anyhow::Result<Vec<Entry>> {
    match Store::open_existing(&config.store) {
        Ok(mut store) => Ok(store.entries()?),
        Err(StoreError::Missing(_)) => Ok(Vec::new()),
        Err(error) => {
            tracing::warn!(%error, "the history is left out");
            Ok(Vec::new())
        }
    }
}

fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX))
}
