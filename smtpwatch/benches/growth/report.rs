//! Formats the section of `docs/performance.md`.

use std::{fmt::Write as _, time::Duration};

use crate::{
    flows::{Bounded, Flows},
    history::Known,
    per,
    store::Stored,
};

pub fn section(flows: &[Flows], bounded: &Bounded, history: &[Known], store: &[Stored]) -> String {
    let mut page = String::from(
        "![Time for a session and memory for a flow, as flows and peers grow](growth.svg)\n\n\
         Sessions of 24 packets, three of four under TLS and one with a message in clear, between this host and 2,000 peers. All \
         flows are open at once, and take turns packet by packet: the worst order for every cache. Processor time for gate and \
         engine, the best of several rounds, once tables and memory have grown. Memory is what they ask the allocator for, after \
         the reply to EHLO, and after the handshake or the message; a flow's own bytes, the dialogue so far in both directions \
         among them, and its part of every table. Resident is what the process grew by in the dialogue.\n\n\
         | flows open at once | µs for a session | beside 1,000 | bytes for a flow, in its dialogue (gate + engine) | after its \
         handshake (gate + engine) | resident |\n|---:|---:|---:|---:|---:|---:|\n",
    );
    let first = flows.first().map_or(Duration::ZERO, |flows| flows.session);
    // Writing to a String cannot fail.
    for row in flows {
        let (dialogue, rest) = (row.dialogue, row.rest);
        let _ = writeln!(
            page,
            "| {} | {:.1} | {:.2} | {:.0} ({:.0} + {:.0}) | {:.0} ({:.0} + {:.0}) | {:.0} |",
            grouped(row.flows),
            micros(row.session),
            row.session.as_secs_f64() / first.as_secs_f64(),
            dialogue.sum(),
            dialogue.gate,
            dialogue.engine,
            rest.sum(),
            rest.gate,
            rest.engine,
            row.resident,
        );
    }
    let Bounded { offered, held, evicted, bytes } = *bounded;
    let _ = writeln!(
        page,
        "\nBounded by configuration: with `[limits] flows = {held}` and {} flows opened, {} were held in the end, {} made room \
         (each is counted), and gate and engine held {} MiB.\n",
        grouped(offered),
        grouped(held),
        grouped(evicted),
        bytes.div_ceil(1 << 20),
    );
    page.push_str(
        "History, half of it by address and half by name. A look-up is what every verdict asks; a session is noted once, at its \
         end. The longest note is that of a new peer where another one makes room, the longest of 100,000. The store is written \
         by a thread of its own, in batches; its start reads every row into history.\n\n\
         | peers known | ns for a look-up | beside 1,000 | µs for a note | beside 1,000 | longest note, µs | bytes in memory | \
         rows written in a second | bytes in the file | start, s |\n|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    let first = history.first().map_or((1.0, 1.0), |known| (known.look_up.as_secs_f64(), known.note.as_secs_f64()));
    for (known, stored) in history.iter().zip(store) {
        let _ = writeln!(
            page,
            "| {} | {:.0} | {:.2} | {:.2} | {:.2} | {:.1} | {:.0} | {} | {:.0} | {:.2} |",
            grouped(known.peers),
            known.look_up.as_secs_f64() * 1e9,
            known.look_up.as_secs_f64() / first.0,
            micros(known.note),
            known.note.as_secs_f64() / first.1,
            micros(known.worst),
            known.memory,
            grouped(stored.rows_per_second),
            stored.file,
            stored.start.as_secs_f64(),
        );
    }
    page
}

fn micros(time: Duration) -> f64 {
    per(usize::try_from(time.as_nanos()).unwrap_or(usize::MAX), 1_000)
}

/// A number with thousands separators.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
