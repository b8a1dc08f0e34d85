//! `smtpwatch incidents`: lists, shows, exports and verifies the findings in the store.

mod serve;

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use serde::Serialize;
use serde_json::{Value, value::RawValue};
use smtpwatch_config::Config;
use smtpwatch_core::{Finding, Role, Timestamp, evidence::EvidenceBundle};
use smtpwatch_render::{
    difference::{Change, difference},
    export,
    text::{self, json_line, printable},
    words,
};
use smtpwatch_store::{
    Store,
    incidents::{Filter, Incident, PAGE, Reach, RemovedFor, RemovedSeverity, StoredFinding, Verified},
};
use smtpwatch_system::{
    clock::now,
    moment::{Moment, MomentError},
};

use super::{
    Exit, ExportFormat, Format, IncidentArgs, IncidentsExportArgs, IncidentsListArgs, IncidentsStoreArgs,
    IncidentsVerb, IncidentsVerifyArgs,
};

pub(super) fn run(verb: IncidentsVerb) -> anyhow::Result<Exit> {
    match verb {
        IncidentsVerb::List(args) => list(args),
        IncidentsVerb::Show(args) => show(&args),
        IncidentsVerb::Export(args) => hand_over(&args),
        IncidentsVerb::Verify(args) => verify(&args),
        IncidentsVerb::Serve(args) => serve::run(&args),
    }
}

/// Parses an RFC 3339 time, or an age such as `24h`.
pub(super) fn parse_time(text: &str) -> Result<Timestamp, MomentError> {
    text.parse::<Moment>().map(|moment| moment.at(now()))
}

pub(super) fn parse_role(text: &str) -> Result<Role, String> {
    Role::ALL.into_iter().find(|role| role.as_str() == text).ok_or_else(|| "expected client or server".to_owned())
}

pub(super) fn parse_hash(text: &str) -> Result<[u8; 32], String> {
    let byte = |at: usize| text.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
    let bytes: Option<Vec<u8>> = (0..text.len()).step_by(2).map(byte).collect();
    bytes.and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| "expected 64 hexadecimal digits".to_owned())
}

fn open(store_args: &IncidentsStoreArgs) -> anyhow::Result<Store> {
    Ok(Store::open_existing(&path(store_args)?)?)
}

fn path(store_args: &IncidentsStoreArgs) -> anyhow::Result<PathBuf> {
    Ok(match &store_args.store {
        Some(path) => path.clone(),
        None => Config::load(store_args.config.config.as_deref())?.0.store,
    })
}

fn list(args: IncidentsListArgs) -> anyhow::Result<Exit> {
    let filter = Filter {
        since: args.since,
        until: args.until,
        kinds: args.kind,
        severity: args.severity,
        evidence: args.evidence,
        role: args.role,
        peer: args.peer,
        sort: args.sort,
        after: None,
        limit: usize::from(args.limit),
    };
    let incidents = open(&args.store_args)?.incidents(&filter)?;
    super::out(|out| match Format::or_default(args.format) {
        Format::Json => incidents.iter().try_for_each(|incident| out.write_all(json_line(incident).as_bytes())),
        Format::Text => table(out, &incidents),
    })?;
    Ok(Exit::Fine)
}

fn table(out: &mut impl Write, incidents: &[Incident]) -> io::Result<()> {
    writeln!(
        out,
        "{:<20} {:<8} {:<23} {:<10} {:<10} {:>8} {:<36} PEER",
        "LAST SEEN (UTC)", "SEVERITY", "KIND", "EVIDENCE", "OUTCOME", "FINDINGS", "ID"
    )?;
    for incident in incidents {
        let name = if incident.name.is_empty() { String::new() } else { format!(" ({})", incident.name) };
        let last: String = incident.last_seen.to_string().chars().take(19).collect();
        let headline = headline(incident).map(|headline| format!(" {headline}")).unwrap_or_default();
        let peer = format!("{}:{}{name}{headline}", incident.peer, incident.port);
        writeln!(
            out,
            "{last:<20} {:<8} {:<23} {:<10} {:<10} {:>8} {:<36} {}",
            incident.severity.as_str(),
            incident.kind.as_str(),
            incident.evidence.as_str(),
            incident.outcome.as_str(),
            kept_of(incident),
            incident.id,
            printable(&peer)
        )?;
    }
    Ok(())
}

/// How many findings; where retention has removed some, how many of them are kept.
fn kept_of(incident: &Incident) -> String {
    if incident.kept == incident.findings {
        incident.findings.to_string()
    } else {
        format!("{} of {}", incident.kept, incident.findings)
    }
}

/// The title of an incident that is not about a peer.
fn headline(incident: &Incident) -> Option<String> {
    words::headline(incident.kind, incident.about, incident.findings, &incident.address_count())
}

fn show(args: &IncidentArgs) -> anyhow::Result<Exit> {
    let mut store = open(&args.store_args)?;
    let incident = store.incident(&args.id)?;
    let reach = store.reach(&incident)?;
    let best = store.best_finding(&incident)?;
    let answer = match Format::or_default(args.format) {
        Format::Json => json_line(&document(&incident, reach, best.as_slice())?),
        Format::Text => in_words(&incident, reach, best.as_ref()),
    };
    super::out(|out| out.write_all(answer.as_bytes()))?;
    Ok(Exit::Fine)
}

/// The JSON document of an incident with findings.
#[derive(Serialize)]
struct Document<'a> {
    incident: &'a Incident,
    reach: Reach,
    findings: Vec<DocumentFinding<'a>>,
}

#[derive(Serialize)]
struct DocumentFinding<'a> {
    number: u64,
    chain: &'a str,
    /// The stored document, byte for byte, so that its hash can be verified.
    finding: Box<RawValue>,
    exhibit: Option<&'a EvidenceBundle>,
}

fn document<'a>(incident: &'a Incident, reach: Reach, findings: &'a [StoredFinding]) -> anyhow::Result<Document<'a>> {
    let finding = |stored: &'a StoredFinding| -> anyhow::Result<_> {
        Ok(DocumentFinding {
            number: stored.number,
            chain: &stored.chain,
            finding: RawValue::from_string(stored.document.clone())?,
            exhibit: stored.finding.exhibit.as_deref(),
        })
    };
    Ok(Document { incident, reach, findings: findings.iter().map(finding).collect::<anyhow::Result<_>>()? })
}

fn in_words(incident: &Incident, reach: Reach, best: Option<&StoredFinding>) -> String {
    let of_peer = headline(incident).is_none();
    let mut text = format!(
        "Incident {}\n{} {} {} {}, port {}: {}.\nHow sure: {}. Cost: {}.\n{} findings{} from {} to {}; {}.\n",
        incident.id,
        incident.severity.as_str().to_uppercase(),
        incident.kind,
        if of_peer { "with" } else { "at" },
        printable(&incident.peer),
        incident.port,
        headline(incident).unwrap_or_else(|| words::happened(incident.kind, incident.about).to_owned()),
        words::how_sure(incident.evidence),
        words::cost(incident.outcome),
        incident.findings,
        if incident.kept < incident.findings { format!(" ({} kept)", incident.kept) } else { String::new() },
        incident.first_seen,
        incident.last_seen,
        if of_peer {
            format!("peers with the same at that time: {}, in this network: {}", reach.peers, reach.network)
        } else {
            format!("clients: {}", incident.address_count())
        }
    );
    if !incident.mechanisms.is_empty() {
        let mechanisms =
            incident.mechanisms.iter().map(|mechanism| format!("{} {}", mechanism.name, mechanism.findings));
        text.push_str(&format!("mechanisms: {}\n", printable(&mechanisms.collect::<Vec<_>>().join(", "))));
    }
    let Some(best) = best else { return text };
    let rows = difference(&best.finding);
    if !rows.is_empty() {
        text.push_str("\n   EXPECTED                 CAME\n");
    }
    for row in rows {
        let (mark, note) = match row.change {
            Change::Same => (' ', ""),
            Change::Missing => ('-', "   <- missing"),
            Change::Masked => ('!', "   <- overwritten"),
            Change::Added => ('+', "   <- not expected"),
        };
        text.push_str(&format!("{mark}  {:<24} {}{note}\n", printable(&row.expected), printable(&row.came)));
    }
    text.push('\n');
    text.push_str(&text::finding(&best.finding));
    text.push_str(&format!("\nfinding {} (number {} of the chain, {})\n", best.finding.id, best.number, best.chain));
    text.push_str(&format!("next: {}\n", words::next(incident.kind, incident.about)));
    text
}

/// What is missing in the chain, and why: totals, and the removed findings of high and critical severity.
fn missing(verified: &Verified) -> String {
    if verified.removed == 0 {
        return String::new();
    }
    let totals = |totals: &[(&str, u64)]| {
        let parts = totals.iter().filter(|(_, total)| *total > 0).map(|(name, total)| format!("{name} {total}"));
        parts.collect::<Vec<_>>().join(", ")
    };
    let severities = |severity: RemovedSeverity| {
        let RemovedSeverity { critical, high, medium, low, info, unknown } = severity;
        let loud = [("critical", critical), ("high", high), ("medium", medium)];
        totals(&[&loud[..], &[("low", low), ("info", info), ("unknown", unknown)]].concat())
    };
    let reasons = |removed: RemovedFor| {
        let RemovedFor { age, count, bytes, quota, unknown } = removed;
        totals(&[("age", age), ("count", count), ("bytes", bytes), ("quota", quota), ("unknown", unknown)])
    };
    let mut text = format!("  severity: {}\n", severities(verified.removed_severity));
    text.push_str(&format!("  reason: {}\n", reasons(verified.removed_for)));
    for entry in verified.missing.iter().filter(|entry| entry.severity.critical > 0 || entry.severity.high > 0) {
        let numbers = if entry.first == entry.last {
            format!("number {}", entry.first)
        } else {
            format!("numbers {} to {}", entry.first, entry.last)
        };
        let kind = entry.kind.as_ref().map(|kind| format!(" {kind}")).unwrap_or_default();
        let id = entry.id.as_ref().map(|id| format!(", {id}")).unwrap_or_default();
        text.push_str(&format!(
            "  {numbers}:{} ({}), {}, from {} to {}{}\n",
            printable(&kind),
            severities(entry.severity),
            reasons(entry.removed_for),
            entry.begins,
            entry.ends,
            printable(&id)
        ));
    }
    text
}

fn hand_over(args: &IncidentsExportArgs) -> anyhow::Result<Exit> {
    let mut store = open(&args.store_args)?;
    let incident = store.incident(&args.id)?;
    let stored = store.first_findings(&incident, PAGE)?;
    let left_out = incident.findings.saturating_sub(stored.len() as u64);
    if left_out > 0 {
        tracing::warn!(left_out, "the incident has more findings than are written or stored");
    }
    let findings: Vec<Finding> = stored.iter().map(|stored| stored.finding.clone()).collect();
    if let Some(path) = &args.pcapng {
        anyhow::ensure!(
            findings.iter().any(|finding| finding.exhibit.is_some()),
            "incident {}: no evidence was kept with it, so there is nothing to make a capture file from",
            incident.id
        );
        write_file(path, &findings)?;
        return Ok(Exit::Fine);
    }
    let lines =
        |form: fn(&Finding) -> Value| findings.iter().map(|finding| json_line(&form(finding))).collect::<String>();
    let answer = match args.format {
        ExportFormat::Json => json_line(&document(&incident, store.reach(&incident)?, &stored)?),
        ExportFormat::Text => export::text(&incident.id, &findings),
        ExportFormat::Ecs => lines(export::ecs),
        ExportFormat::Eve => lines(export::eve),
    };
    super::out(|out| out.write_all(answer.as_bytes()))?;
    Ok(Exit::Fine)
}

fn write_file(path: &PathBuf, findings: &[Finding]) -> anyhow::Result<()> {
    if path == Path::new("-") {
        return Ok(super::out(|out| export::pcapng(findings, out))?);
    }
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    let mut file = BufWriter::new(file);
    export::pcapng(findings, &mut file).with_context(|| format!("cannot write {}", path.display()))
}

fn verify(args: &IncidentsVerifyArgs) -> anyhow::Result<Exit> {
    let mut store = open(&args.store_args)?;
    let mut verified = store.verify()?;
    if let Some(head) = &args.head
        && !store.has_chain(head)?
    {
        verified.broken.push(
            "the head that was written down does not stand in the chain: findings were removed or the chain was made anew \
             (or retention has removed that finding since)"
                .to_owned(),
        );
    }
    let answer = match Format::or_default(args.format) {
        Format::Json => json_line(&verified),
        Format::Text => {
            let verdict = if verified.broken.is_empty() { "the chain is whole" } else { "THE CHAIN IS BROKEN" };
            let broken: String = verified.broken.iter().map(|line| format!("  {line}\n")).collect();
            format!(
                "{verdict}: {} findings checked, {} removed by retention\n{}head {}\n{broken}",
                verified.findings,
                verified.removed,
                missing(&verified),
                verified.head
            )
        }
    };
    super::out(|out| out.write_all(answer.as_bytes()))?;
    Ok(if verified.broken.is_empty() { Exit::Fine } else { Exit::Failure })
}
