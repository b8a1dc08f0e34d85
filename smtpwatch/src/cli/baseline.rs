//! `smtpwatch baseline`: lists, shows, deletes, exports and imports the history of peers in the store.

use std::{
    collections::HashMap,
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    path::Path,
};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use smtpwatch_config::Config;
use smtpwatch_core::{
    Role, Timestamp,
    policy::history::{HistoryKey, HistoryPeer, HistoryRecord, peer_text},
};
use smtpwatch_render::text;
use smtpwatch_store::{Entry, Store, StoreHandle, Writer, WriterSettings};

use super::{BaselineImportArgs, BaselineStoreArgs, BaselineVerb, Exit, Format};

/// Version of the export format.
const SCHEMA_VERSION: u32 = 1;
/// Maximum size of a line in bytes; a row has a few hundred.
const MAX_LINE: u64 = 64 * 1024;

pub(super) fn run(verb: BaselineVerb) -> anyhow::Result<Exit> {
    match verb {
        BaselineVerb::List(args) => {
            let entries = open(&args.store_args)?.entries()?;
            print(&entries, args.format)?;
        }
        BaselineVerb::Show(args) => {
            let entries = open(&args.common.store_args)?.peer(&args.peer)?;
            anyhow::ensure!(
                !entries.is_empty(),
                "{}: no such peer in the history; see `smtpwatch baseline list`",
                args.peer
            );
            print(&entries, args.common.format)?;
        }
        BaselineVerb::Forget(args) => {
            let rows = open(&args.common.store_args)?.forget(&args.peer)?;
            anyhow::ensure!(rows > 0, "{}: no such peer in the history; see `smtpwatch baseline list`", args.peer);
            let answer = match Format::or_default(args.common.format) {
                Format::Text => format!("{}: forgotten ({rows} rows)\n", text::printable(&args.peer)),
                Format::Json => text::json_line(&serde_json::json!({ "peer": args.peer, "forgotten": rows })),
            };
            super::out(|out| out.write_all(answer.as_bytes()))?;
        }
        BaselineVerb::Export(store_args) => {
            let entries = open(&store_args)?.entries()?;
            let rows =
                entries.into_iter().map(|(key, record)| Exported { schema_version: SCHEMA_VERSION, key, record });
            super::out(|out| {
                rows.map(|row| text::json_line(&row)).try_for_each(|line| out.write_all(line.as_bytes()))
            })?;
        }
        BaselineVerb::Import(args) => {
            let (read, imported) = import(&args)?;
            super::out(|out| writeln!(out, "{read} rows read, {imported} taken over"))?;
        }
    }
    Ok(Exit::Fine)
}

fn open(store_args: &BaselineStoreArgs) -> anyhow::Result<Store> {
    let path = match &store_args.store {
        Some(path) => path.clone(),
        None => Config::load(store_args.config.config.as_deref())?.0.store,
    };
    Ok(Store::open_existing(&path)?)
}

/// One line of `baseline export`.
#[derive(Serialize, Deserialize)]
struct Exported {
    schema_version: u32,
    #[serde(flatten)]
    key: HistoryKey,
    #[serde(flatten)]
    record: HistoryRecord,
}

/// Reads the whole file before it writes anything, so that no partial import remains. Returns the numbers of rows read
/// and imported.
fn import(args: &BaselineImportArgs) -> anyhow::Result<(usize, usize)> {
    let (mut config, _) = Config::load(args.store_args.config.config.as_deref())?;
    if let Some(store) = &args.store_args.store {
        config.store.clone_from(store);
    }
    let name = if args.file == Path::new("-") { "stdin".to_owned() } else { args.file.display().to_string() };
    let from: Box<dyn Read> = match name.as_str() {
        "stdin" => Box::new(std::io::stdin()),
        _ => Box::new(File::open(&args.file).with_context(|| format!("cannot read {name}"))?),
    };
    let rows = read(from, &name, config.limits.peers)?;
    // The writer takes the daemon's lock, and fails while the daemon runs.
    let (writer, stored) = Writer::start(&config.store, WriterSettings::of(&config))?;
    let stored: HashMap<HistoryKey, HistoryRecord> = stored.into_iter().collect();
    let store = writer.handle().map(StoreHandle::blocking).context("the store has no writer")?;
    let (read, mut imported) = (rows.len(), 0);
    for Exported { key, record, .. } in rows {
        if stored.get(&key).is_none_or(|stored| stored.last_seen < record.last_seen) {
            store.keep(key, record);
            imported += 1;
        }
    }
    drop(store);
    let lost = writer.finish();
    anyhow::ensure!(lost == 0, "{lost} rows could not be written to {}", config.store.display());
    Ok((read, imported))
}

fn read(from: impl Read, name: &str, most: usize) -> anyhow::Result<Vec<Exported>> {
    let mut from = BufReader::new(from);
    let mut rows = Vec::new();
    loop {
        let (mut line, number) = (String::new(), rows.len() + 1);
        let wrong = || format!("{name}:{number}: no row of `smtpwatch baseline export`");
        if from.by_ref().take(MAX_LINE).read_line(&mut line).with_context(wrong)? == 0 {
            return Ok(rows);
        }
        let mut row: Exported = serde_json::from_str(&line).with_context(wrong)?;
        anyhow::ensure!(row.schema_version == SCHEMA_VERSION, "{name}:{number}: written by a newer smtpwatch");
        anyhow::ensure!(number <= most, "{name}: more than {most} rows: raise peers in [limits]");
        if let HistoryPeer::Name(name) = &mut row.key.peer {
            name.make_ascii_lowercase();
        }
        rows.push(row);
    }
}

/// One row of the history, as a JSON line.
#[derive(Serialize)]
struct PeerRow {
    peer: String,
    peer_kind: &'static str,
    /// The role of this host.
    role: Role,
    own: String,
    port: u16,
    sessions: u64,
    offered: u64,
    /// Sessions without an offer while the history was too weak to call that a regression.
    missed: u64,
    /// Number of times that the offer came back after a regression.
    returns: u64,
    /// Number of consecutive sessions, up to the newest, that were a regression.
    missing_run: u64,
    used: u64,
    unused: u64,
    first_seen: Timestamp,
    last_seen: Timestamp,
    /// `None` if STARTTLS was never offered.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_offered: Option<Timestamp>,
}

impl From<&Entry> for PeerRow {
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
        for row in entries.iter().map(PeerRow::from) {
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
