//! `smtpwatch replay`: analyses recorded traffic with the gate and engine of the daemon.

use std::io::{LineWriter, Write};

use smtpwatch_common::Encapsulation;
use smtpwatch_config::ConfigSource;
use smtpwatch_core::{Finding, engine::SessionResult, finding::Severity, policy::history::History};
use smtpwatch_pipeline::replay::{Event, Replay, Summary};
use smtpwatch_policy::list::{self, ListSource};
use smtpwatch_render::text;
use smtpwatch_store::{StoreHandle, Writer, WriterSettings};

use super::{Exit, Format, Lenient, ReplayArgs};

pub(super) fn run(args: ReplayArgs) -> anyhow::Result<Exit> {
    let source = ConfigSource { path: args.config.config, ports: args.port, ..ConfigSource::default() };
    let (mut config, _) = source.load()?;
    if !args.local.is_empty() {
        config.local = args.local;
    }
    // Without --store the daemon's own history is not used: recorded traffic must not change it.
    let mut history = History::new(config.limits.peers);
    let writer = match &args.store {
        Some(path) => {
            let (writer, entries) = Writer::start(path, WriterSettings::of(&config))?;
            entries.into_iter().for_each(|(key, record)| _ = history.restore(key, record));
            Some(writer)
        }
        None => None,
    };
    let mut report = Report {
        out: Lenient(LineWriter::new(std::io::stdout())),
        format: Format::or_default(args.format),
        store: writer.as_ref().and_then(Writer::handle).map(StoreHandle::blocking),
        loudest: None,
        failed: None,
    };
    let mut replay = Replay::new(&config, history);
    match ListSource::of(&config.policy.starttls_everywhere) {
        Some(ListSource::File(path)) => {
            let list = list::read_file(&path).and_then(|text| list::parse(&text));
            replay.list(list.map_err(anyhow::Error::msg)?);
        }
        Some(ListSource::Url(url)) => tracing::warn!(url, "a replay does not fetch the list: it is left out"),
        None => {}
    }
    let mut whole = true;
    for path in &args.files {
        match replay.file(path, |event| report.take(event)) {
            Ok(file) => {
                for linktype in &file.unsupported {
                    tracing::warn!(file = %path.display(), linktype, "unknown link type: its packets are left out");
                }
                if let Some(damage) = file.damage {
                    eprintln!("smtpwatch: {}: {damage}; the packets before that were analysed", path.display());
                    whole = false;
                }
            }
            Err(error) => {
                eprintln!("smtpwatch: {error}");
                whole = false;
            }
        }
    }
    let summary = replay.finish(|event| report.take(event));
    let Report { store, loudest, failed, mut out, .. } = report;
    out.flush()?;
    drop(store);
    if let Some(writer) = writer {
        let lost = writer.finish();
        anyhow::ensure!(lost == 0, "{lost} rows could not be written to the store");
    }
    if let Some(error) = failed {
        return Err(error.into());
    }
    eprintln!("{}", in_words(&summary));
    if summary.undirected > 0 {
        eprintln!(
            "of {} mail packets neither the capture nor --local says which way they went: both sides are taken for what they claim to be; \
             --local CIDR with this host's addresses has forged frames left out",
            summary.undirected
        );
    }
    blind_spots(&summary).iter().for_each(|line| eprintln!("{line}"));
    Ok(match (whole, args.fail_on, loudest) {
        (false, ..) => Exit::Failure,
        (true, Some(limit), Some(loudest)) if loudest >= limit => Exit::Findings,
        (true, ..) => Exit::Fine,
    })
}

struct Report<W: Write> {
    out: W,
    format: Format,
    store: Option<StoreHandle>,
    loudest: Option<Severity>,
    failed: Option<std::io::Error>,
}

impl<W: Write> Report<W> {
    fn take(&mut self, event: Event) {
        match event {
            Event::Finding(finding) => {
                self.finding(&finding);
                if let Some(store) = &self.store {
                    // This handle waits for the disk: no finding is refused.
                    let _ = store.finding(finding);
                }
            }
            Event::Session(session, at) => {
                if let Some(store) = &self.store {
                    store.offer(session, at);
                }
            }
            Event::History(key, record) => {
                if let Some(store) = &self.store {
                    store.keep(key, record);
                }
            }
            Event::HistoryForgotten(key) => {
                if let Some(store) = &self.store {
                    store.forget(key);
                }
            }
        }
    }

    fn finding(&mut self, finding: &Finding) {
        self.loudest = self.loudest.max(Some(finding.severity));
        let text = match self.format {
            Format::Text => text::finding(finding),
            Format::Json => text::json_line(finding),
        };
        if let Err(error) = self.out.write_all(text.as_bytes()) {
            self.failed.get_or_insert(error);
        }
    }
}

/// What the capture hides, each with its remedy.
fn blind_spots(summary: &Summary) -> Vec<String> {
    let mut lines = Vec::new();
    for (encapsulation, packets) in Encapsulation::ALL.iter().zip(summary.encapsulated) {
        if packets > 0 {
            lines.push(format!(
                "mail in {}, packets {packets}, is not analysed: capture where the encapsulation ends, on the inner interface",
                encapsulation.name()
            ));
        }
    }
    if summary.cuts.dialogue > 0 {
        lines.push(format!(
            "{} mail packets are cut by the snap length of the capture, and their sessions are unknown: capture whole \
             packets (tcpdump -s 0)",
            summary.cuts.dialogue
        ));
    }
    if summary.cuts.headers > 0 {
        lines.push(format!(
            "{} packets are cut within their headers by the snap length of the capture: capture whole packets (tcpdump -s 0)",
            summary.cuts.headers
        ));
    }
    lines
}

fn in_words(summary: &Summary) -> String {
    let results = SessionResult::ALL.iter().zip(summary.sessions);
    let results: Vec<_> = results.map(|(result, count)| format!("{} {count}", result.as_str())).collect();
    format!(
        "files {}, packets {} (not readable {}), sessions {} ({}), gaps {}, evicted {}, findings {}",
        summary.files,
        summary.packets,
        summary.unread,
        summary.sessions.iter().sum::<u64>(),
        results.join(", "),
        summary.gaps,
        summary.evicted,
        summary.findings
    )
}
