//! `smtpwatch baseline`.

use std::io::Write;

use serde::Serialize;
use smtpwatch_core::{Role, Timestamp};

use super::{BaselineArgs, BaselineVerb, Exit, Format};
use crate::{
    config::Config,
    output::text,
    store::{Entry, Store, peer_text},
};

pub(super) fn run(verb: BaselineVerb) -> anyhow::Result<Exit> {
    match verb {
        BaselineVerb::List(args) => {
            let entries = open(&args)?.entries()?;
            print(&entries, args.format)?;
        }
        BaselineVerb::Show(args) => {
            let entries = open(&args.common)?.peer(&args.peer)?;
            anyhow::ensure!(
                !entries.is_empty(),
                "{}: no such peer in the history; see `smtpwatch baseline list`",
                args.peer
            );
            print(&entries, args.common.format)?;
        }
        BaselineVerb::Forget(args) => {
            let rows = open(&args.common)?.forget(&args.peer)?;
            anyhow::ensure!(rows > 0, "{}: no such peer in the history; see `smtpwatch baseline list`", args.peer);
            let answer = match Format::or_default(args.common.format) {
                Format::Text => format!("{}: forgotten ({rows} rows)\n", text::printable(&args.peer)),
                Format::Json => text::json_line(&serde_json::json!({ "peer": args.peer, "forgotten": rows })),
            };
            super::out(|out| out.write_all(answer.as_bytes()))?;
        }
    }
    Ok(Exit::Fine)
}

fn open(args: &BaselineArgs) -> anyhow::Result<Store> {
    let path = match &args.store {
        Some(path) => path.clone(),
        None => Config::load(args.config.config.as_deref())?.0.store,
    };
    Ok(Store::open_existing(&path)?)
}

/// One row, as a JSON line.
#[derive(Serialize)]
struct Row {
    peer: String,
    peer_kind: &'static str,
    /// Which end this host is.
    role: Role,
    own: String,
    port: u16,
    sessions: u64,
    offered: u64,
    /// Sessions without an offer while the history was too thin to call that a regression.
    missed: u64,
    /// Times the offer came back after a regression.
    returns: u64,
    /// The newest sessions in a row that were a regression.
    missing_run: u64,
    used: u64,
    unused: u64,
    first_seen: Timestamp,
    last_seen: Timestamp,
    /// Absent: STARTTLS was never offered.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_offered: Option<Timestamp>,
}

impl From<&Entry> for Row {
    fn from((key, record): &Entry) -> Self {
        let (peer_kind, peer) = peer_text(&key.peer);
        Self {
            peer,
            peer_kind,
            role: key.role,
            own: key.own.to_string(),
            port: key.port,
            sessions: record.sessions,
            offered: record.offered.yes,
            missed: record.offered.no,
            returns: record.offered.returns,
            missing_run: record.offered.run,
            used: record.used.yes,
            unused: record.used.no + record.used.run,
            first_seen: record.first_seen,
            last_seen: record.last_seen,
            last_offered: (record.offered.yes > 0).then_some(record.last_offered),
        }
    }
}

fn print(entries: &[Entry], format: Option<Format>) -> anyhow::Result<()> {
    let format = Format::or_default(format);
    super::out(|out| {
        if format == Format::Text {
            writeln!(
                out,
                "{:<40} {:>5} {:>9} {:>9} {:>9} {:<12} OWN",
                "PEER", "PORT", "SESSIONS", "OFFERED", "USED", "LAST SEEN"
            )?;
        }
        for row in entries.iter().map(Row::from) {
            match format {
                Format::Json => out.write_all(text::json_line(&row).as_bytes())?,
                Format::Text => writeln!(
                    out,
                    "{:<40} {:>5} {:>9} {:>9} {:>9} {:<12} {}",
                    text::printable(&row.peer),
                    row.port,
                    row.sessions,
                    row.offered,
                    row.used,
                    row.last_seen.date(),
                    row.own
                )?,
            }
        }
        Ok(())
    })?;
    Ok(())
}
