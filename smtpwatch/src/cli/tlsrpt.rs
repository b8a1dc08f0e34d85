//! `smtpwatch tlsrpt`: prints this host's TLS reports, and checks reports of other senders.

use std::{collections::BTreeSet, io::Write as _, path::Path};

use anyhow::Context as _;
use smtpwatch_config::Config;
use smtpwatch_core::{day::Day, policy::published::domain_name};
use smtpwatch_pipeline::incident;
use smtpwatch_render::text;
use smtpwatch_store::{Store, StoreError};
use smtpwatch_system::clock::now;
use smtpwatch_tlsrpt::{
    inbound,
    outbound::{Reporter, host_name},
    reconcile::{Claim, Verdict, reconcile},
    report::Report,
};

use super::{Exit, Format, Lenient, TlsrptImportArgs, TlsrptReportArgs};

/// `tlsrpt report`: prints the reports of a day.
pub(super) fn report(args: &TlsrptReportArgs) -> anyhow::Result<Exit> {
    let (config, _) = Config::load(args.config.config.as_deref())?;
    let day = args.day.unwrap_or_else(|| Day::of(now()).plus(-1));
    let mut store = Store::open_existing(args.store.as_ref().unwrap_or(&config.store))?;
    let domains = match &args.domain {
        Some(domain) => {
            vec![domain_name(domain).with_context(|| format!("{domain:?} is not a domain name"))?]
        }
        None => store.delivery_domains(day)?,
    };
    let reporter = Reporter::new(&config.tlsrpt, &host_name());
    let mut out = Lenient(std::io::stdout().lock());
    let mut printed = 0;
    for domain in domains {
        let sessions = store.deliveries(day, &domain)?;
        if sessions.is_empty() {
            continue;
        }
        out.write_all(text::json_line(&reporter.report(day, &domain, sessions)).as_bytes())?;
        printed += 1;
    }
    out.flush()?;
    if printed == 0 {
        let domain = args.domain.as_ref().map(|domain| format!(" for {}", text::printable(domain))).unwrap_or_default();
        eprintln!("smtpwatch: no outbound sessions of {day}{domain} are on record: there is nothing to report");
    }
    Ok(Exit::Fine)
}

/// `tlsrpt import`: compares reports of other senders with the record of offers.
pub(super) fn import(args: &TlsrptImportArgs) -> anyhow::Result<Exit> {
    let (config, _) = Config::load(args.config.config.as_deref())?;
    let store = match Store::open_existing(args.store.as_deref().unwrap_or(&config.store)) {
        Ok(store) => Some(store),
        Err(error @ StoreError::Missing(_)) => {
            eprintln!("smtpwatch: {error}; nothing can be said about any report");
            None
        }
        Err(error) => return Err(error.into()),
    };
    let mut import = Import {
        store,
        config,
        out: Lenient(std::io::stdout().lock()),
        format: Format::or_default(args.format),
        seen: BTreeSet::new(),
        counts: Counts::default(),
    };
    for file in &args.files {
        import.file(file)?;
    }
    import.out.flush()?;
    let Counts { reports, refused, again, stripped, agree, unknown } = import.counts;
    eprintln!(
        "files {}, reports {reports} (refused {refused}, twice {again}), claims that STARTTLS was missing {}: \
         contradicted by our own record {stripped}, agree with it {agree}, unknown {unknown}",
        args.files.len(),
        stripped + agree + unknown
    );
    Ok(if refused > 0 { Exit::Failure } else { Exit::Fine })
}

#[derive(Default)]
struct Counts {
    reports: u64,
    refused: u64,
    again: u64,
    stripped: u64,
    agree: u64,
    unknown: u64,
}

struct Import<'a> {
    store: Option<Store>,
    config: Config,
    out: Lenient<std::io::StdoutLock<'a>>,
    format: Format,
    /// Reports by organization and identifier: the same report may arrive by mail and by HTTPS.
    seen: BTreeSet<(String, String)>,
    counts: Counts,
}

impl Import<'_> {
    fn file(&mut self, path: &Path) -> anyhow::Result<()> {
        let name = path.display().to_string();
        let name = text::printable(&name);
        let reports = inbound::read(path, now()).unwrap_or_else(|error| vec![Err(error)]);
        for report in reports {
            match report {
                Ok(report) => self.report(&name, &report)?,
                Err(error) => {
                    self.counts.refused += 1;
                    eprintln!("smtpwatch: {name}: {}", text::printable(&error.to_string()));
                }
            }
        }
        Ok(())
    }

    fn report(&mut self, name: &str, report: &Report) -> anyhow::Result<()> {
        let key = (report.organization_name.clone(), report.report_id.clone());
        if !report.report_id.is_empty() && !self.seen.insert(key) {
            self.counts.again += 1;
            return Ok(());
        }
        self.counts.reports += 1;
        let store = &mut self.store;
        let verdicts = reconcile(report, |client, port, day| match store {
            Some(store) => store.offers(client, port, day),
            None => Ok(Vec::new()),
        })?;
        for (claim, verdict) in verdicts {
            match verdict {
                Verdict::Stripped(mut finding) => {
                    self.counts.stripped += 1;
                    incident::name(&mut finding, &self.config.hash());
                    if let Some(store) = &mut self.store {
                        store.keep_findings(std::iter::once((&*finding, false)), self.config.window, now())?;
                    }
                    let text = match self.format {
                        Format::Text => text::finding(&finding),
                        Format::Json => text::json_line(&*finding),
                    };
                    self.out.write_all(text.as_bytes())?;
                }
                Verdict::Agrees(sessions) => {
                    self.counts.agree += 1;
                    say(
                        name,
                        report,
                        &claim,
                        &format!("true: by our own record we did not offer it in {sessions} sessions"),
                    );
                }
                Verdict::Unknown(why) => {
                    self.counts.unknown += 1;
                    say(name, report, &claim, &format!("unknown: {why}"));
                }
            }
        }
        Ok(())
    }
}

fn say(name: &str, report: &Report, claim: &Claim, verdict: &str) {
    let or_nothing = |text: &str| if text.is_empty() { "(not reported)".to_owned() } else { text.to_owned() };
    let organization: String = report.organization_name.chars().take(100).collect();
    let line = format!(
        "{}: no STARTTLS in {} sessions from {} to {}: {verdict}",
        or_nothing(&organization),
        claim.sessions,
        or_nothing(&claim.sending),
        or_nothing(&claim.receiving)
    );
    eprintln!("smtpwatch: {name}: {}", text::printable(&line));
}
