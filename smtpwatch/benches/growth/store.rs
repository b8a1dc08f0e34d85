//! The store: how fast rows are written, and how long a start takes.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use smtpwatch_core::policy::history::History;
use smtpwatch_store::{Writer, WriterSettings};

use crate::{
    history::{key, record},
    per,
};

/// Results with a store of this many rows.
#[derive(Clone, Copy, Debug)]
pub struct Stored {
    /// Rows written per second, starting with an empty store.
    pub rows_per_second: usize,
    /// Time from opening the file to the history in memory.
    pub start: Duration,
    /// Bytes of the file per row.
    pub file: f64,
}

pub fn measure(peers: usize) -> anyhow::Result<Stored> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("smtpwatch.db");
    let (writer, _) = Writer::start(&path, WriterSettings { peers, ..WriterSettings::default() })?;
    let handle = writer.handle().context("the way to the writer")?.blocking();
    let start_time = Instant::now();
    for number in 0..peers {
        handle.keep(key(number), record(number));
    }
    drop(handle);
    ensure!(writer.finish() == 0, "rows were lost");
    let rows_per_second = peers * 1_000 / usize::try_from(start_time.elapsed().as_millis())?.max(1);
    let file = per(usize::try_from(std::fs::metadata(&path)?.len())?, peers);

    let start_time = Instant::now();
    let (writer, entries) = Writer::start(&path, WriterSettings { peers, ..WriterSettings::default() })?;
    let mut history = History::new(peers);
    entries.into_iter().for_each(|(key, record)| _ = history.restore(key, record));
    let start = start_time.elapsed();
    ensure!(history.len() == peers, "{} rows were read", history.len());
    drop(writer);
    let stored = Stored { rows_per_second, start, file };
    eprintln!("growth: {peers} rows: {stored:?}");
    Ok(stored)
}
