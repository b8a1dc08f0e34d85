//! A plain-text report for the abuse desk of a carrier or the postmaster of a peer, understandable without other
//! documents.

use std::fmt::Write as _;

use smtpwatch_core::{
    Finding, Role, Side, TcpFlags,
    cause::{About, Cause},
};

use super::ends;
use crate::{
    difference::{Change, difference},
    text::printable,
    words,
};

/// Maximum number of packets listed.
const PACKETS: usize = 40;
/// Width of a paragraph in columns.
const COLUMNS: usize = 72;

/// The findings of an incident as plain text: the first one with evidence in full, and the times of the others.
#[must_use]
pub fn text(incident: &str, findings: &[Finding]) -> String {
    let Some(best) = findings.iter().find(|finding| finding.exhibit.is_some()).or(findings.first()) else {
        return String::new();
    };
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = whole(&mut text, incident, findings, best);
    // Line breaks are this program's own; all other characters are escaped for terminals.
    text.split_inclusive('\n').map(|line| format!("{}\n", printable(line.trim_end_matches('\n')))).collect()
}

fn whole(text: &mut String, incident: &str, findings: &[Finding], f: &Finding) -> std::fmt::Result {
    let peer = if f.peer.name.is_empty() { String::new() } else { format!(" ({})", f.peer.name) };
    let (first, last) = (findings.iter().map(|f| f.time).min(), findings.iter().map(|f| f.time).max());
    let about = Cause::of(f).map_or(About::Peer, |cause| cause.about);
    writeln!(text, "{}\n", title(about))?;
    paragraph(
        text,
        &format!(
            "In a mail connection between the hosts below, {}. {}: {}. Result: {}.",
            words::happened(f.kind, about),
            "Certainty",
            words::how_sure(f.evidence),
            words::cost(f.outcome)
        ),
    )?;
    writeln!(text, "When (UTC)        {} to {}", first.unwrap_or(f.time), last.unwrap_or(f.time))?;
    writeln!(text, "How often         {} times", findings.len())?;
    let end =
        |end: Option<std::net::SocketAddr>, other: &str| end.map_or_else(|| other.to_owned(), |end| end.to_string());
    let both = ends(f);
    writeln!(text, "Sending host      {}", end(both.map(|both| both.0), &f.flow.client))?;
    writeln!(text, "Receiving host    {}", end(both.map(|both| both.1), &f.flow.server))?;
    writeln!(text, "Seen at           the {} end{peer}", if f.role == Role::Client { "sending" } else { "receiving" })?;
    writeln!(text, "Kind              {} [{}], severity {}\n", f.kind, f.rule, f.severity)?;

    writeln!(text, "Expected, and why\n")?;
    paragraph(text, &format!("By {}: {}.", f.expected.source, f.expected.detail))?;
    writeln!(text, "Observed\n")?;
    let rows = difference(f);
    if rows.is_empty() {
        writeln!(text, "  STARTTLS: {}", f.observed.starttls)?;
    } else {
        writeln!(
            text,
            "  Capabilities in the server's reply; - was expected and is missing,\n  + is present and was not expected:"
        )?;
        for row in rows {
            match row.change {
                Change::Same => writeln!(text, "      {}", row.came)?,
                Change::Missing => writeln!(text, "    - {}", row.expected)?,
                Change::Masked => {
                    writeln!(text, "    - {}\n    + {}   (overwritten in place)", row.expected, row.came)?
                }
                Change::Added => writeln!(text, "    + {}", row.came)?,
            }
        }
    }
    if let Some(mechanism) = &f.observed.mechanism {
        writeln!(text, "  Login mechanism: {mechanism} (the secret itself was not kept)")?;
    }
    writeln!(text)?;
    if !f.indicators.is_empty() {
        writeln!(text, "Further indicators\n")?;
        for sign in &f.indicators {
            paragraph(text, &format!("* {sign}"))?;
        }
    }
    writeln!(text, "The cleartext dialogue (secrets and user names are left out)\n")?;
    for line in &f.transcript {
        let from = if line.from == Side::Client { "C" } else { "S" };
        writeln!(text, "  {from}: {}", line.text)?;
    }
    writeln!(text)?;
    packets(text, f)?;
    writeln!(text, "Our request\n")?;
    paragraph(text, request(about))?;
    writeln!(text, "Verification\n")?;
    writeln!(text, "  incident          {incident}")?;
    writeln!(text, "  finding           {}", f.id)?;
    writeln!(text, "  Community ID      {}", f.flow.community_id)?;
    writeln!(text, "  program           smtpwatch {}", f.provenance.version)?;
    writeln!(text, "  configuration     sha256 {}", f.provenance.config_sha256)?;
    writeln!(text, "  policies          sha256 {}", f.provenance.policy_sha256)
}

const fn title(about: About) -> &'static str {
    match about {
        About::Peer => "Interference with the encryption of mail (SMTP), or its absence",
        About::ThisHost => "A mail server (SMTP) whose encryption is not set up as it should be",
        About::Guessing => "Password guessing at a mail server (SMTP)",
    }
}

const fn request(about: About) -> &'static str {
    match about {
        About::Peer => {
            "Please check whether a device in your network, such as a firewall with SMTP inspection or a mail filter, changes these \
             connections. If so, please switch this off, or tell us who operates the device. We can send a capture file."
        }
        About::ThisHost => {
            "Please check the configuration of the receiving host: its own mail server sent the replies above. Nothing indicates \
             that the connection was changed on the way."
        }
        About::Guessing => {
            "Please check the sending host: it tries passwords at our mail server. It may be compromised. If you operate it, please \
             stop this, or tell us who operates it. We can send a capture file."
        }
    }
}

fn packets(text: &mut String, f: &Finding) -> std::fmt::Result {
    let Some(exhibit) = &f.exhibit else { return Ok(()) };
    writeln!(text, "Packets (S: from the server; number and length in bytes of the stream; TTL: time to live)\n")?;
    let start = |side| exhibit.packets.iter().find(|packet| packet.from == side).map_or(0, |packet| packet.seq);
    let starts = [start(Side::Client), start(Side::Server)];
    writeln!(text, "  TIME (UTC)                   FLAGS     NUMBER  LENGTH  TTL")?;
    for packet in exhibit.packets.iter().take(PACKETS) {
        let from = if packet.from == Side::Client { "C" } else { "S" };
        let number = packet.seq.wrapping_sub(starts[packet.from as usize]);
        let flags = format!("{:?}", TcpFlags(packet.flags));
        writeln!(text, "  {} {from} {flags:<5} {number:>10} {:>7} {:>4}", packet.time, packet.length, packet.ttl)?;
    }
    let more = exhibit.packets.len().saturating_sub(PACKETS) as u64 + exhibit.packets_left_out;
    if more > 0 {
        writeln!(text, "  and {more} more")?;
    }
    writeln!(text)
}

/// Writes text wrapped at [`COLUMNS`], and an empty line.
fn paragraph(text: &mut String, words: &str) -> std::fmt::Result {
    let mut column = 0;
    for word in words.split(' ').filter(|word| !word.is_empty()) {
        if column > 0 && column + word.chars().count() >= COLUMNS {
            text.push('\n');
            column = 0;
        }
        text.push_str(if column == 0 { "  " } else { " " });
        text.push_str(word);
        column += word.chars().count() + 1;
    }
    writeln!(text, "\n")
}
