//! The packets of a session, one row each, and the difference between two copies of the same bytes; part of the page of
//! a finding.

use etherparse::{TcpOptionElement, TcpOptionsIterator};
use maud::{Markup, html};
use smtpwatch_core::{
    Side, TcpFlags,
    evidence::{ConflictingSegments, EvidenceBundle, Packet},
};

use super::format::{count, escaped};

pub(super) fn section(exhibit: &EvidenceBundle) -> Markup {
    html! {
        section aria-labelledby="packets" {
            h2 #packets { "Packets" }
            (copies(&exhibit.copies))
            details {
                summary { (count(exhibit.packets.len() as u64, "packet", "packets")) " kept" }
                // The table is wider than a phone's screen, and must scroll by keyboard too.
                div.wide tabindex="0" role="region" aria-label="Table of packets" { (table(exhibit)) }
            }
            @if exhibit.packets_left_out > 0 {
                p.note { (exhibit.packets_left_out) " packets in the middle of the session were not kept." }
            }
            @if exhibit.octets_left_out > 0 { p.note { (exhibit.octets_left_out) " cleartext bytes were not kept." } }
        }
    }
}

/// Column titles, and whether the column is numeric.
const HEADS: [(&str, bool); 10] = [
    ("After", true),
    ("From", false),
    ("Flags", false),
    ("Number", true),
    ("Acknowledges", true),
    ("Bytes", true),
    ("TTL", true),
    ("IP-ID", true),
    ("Window", true),
    ("Options", false),
];

fn table(exhibit: &EvidenceBundle) -> Markup {
    let begin = exhibit.packets.first().map_or(0, |packet| packet.time.0);
    let start = |side| exhibit.packets.iter().find(|packet| packet.from == side).map_or(0, |packet| packet.seq);
    let starts = [start(Side::Client), start(Side::Server)];
    html! {
        table.packets {
            caption { "Times in milliseconds after the first packet; numbers count the bytes of each stream from its first packet" }
            thead { tr { @for (head, number) in HEADS { th.number[number] scope="col" { (head) } } } }
            tbody { @for packet in &exhibit.packets { (row(packet, begin, starts)) } }
        }
    }
}

fn row(packet: &Packet, begin: i64, starts: [u32; 2]) -> Markup {
    let own = starts[packet.from as usize];
    let other = starts[1 - packet.from as usize];
    let flags = TcpFlags(packet.flags);
    let micros = packet.time.0.saturating_sub(begin) / 1_000;
    html! {
        tr class=(packet.from.as_str()) {
            td.number { (format!("{}.{:03}", micros / 1_000, (micros % 1_000).abs())) }
            td { (packet.from.as_str()) }
            td { (format!("{flags:?}")) }
            td.number { (packet.seq.wrapping_sub(own)) }
            td.number { @if flags.contains(TcpFlags::ACK) { (packet.ack.wrapping_sub(other)) } }
            td.number { (packet.length) }
            td.number { (packet.ttl) }
            td.number { (packet.ip_id) }
            td.number { (packet.window) }
            td { (options(&packet.options)) }
        }
    }
}

fn options(bytes: &[u8]) -> String {
    let named = TcpOptionsIterator::from_slice(bytes).map(|option| match option {
        Ok(TcpOptionElement::Noop) => String::new(),
        Ok(TcpOptionElement::MaximumSegmentSize(size)) => format!("MSS {size}"),
        Ok(TcpOptionElement::WindowScale(shift)) => format!("scale {shift}"),
        Ok(TcpOptionElement::SelectiveAcknowledgementPermitted) => "SACK".to_owned(),
        Ok(TcpOptionElement::SelectiveAcknowledgement(..)) => "SACK blocks".to_owned(),
        Ok(TcpOptionElement::Timestamp(value, echo)) => format!("time {value} {echo}"),
        Err(_) => "others".to_owned(),
    });
    named.filter(|name| !name.is_empty()).collect::<Vec<_>>().join(", ")
}

fn copies(copies: &[ConflictingSegments]) -> Markup {
    if copies.is_empty() {
        return html! {};
    }
    let text = |bytes: &[u8]| escaped(&String::from_utf8_lossy(bytes));
    html! {
        h3 { "Two copies of the same bytes" }
        @for pair in copies {
            table.difference {
                caption { "From the " (pair.from.as_str()) ", number " (pair.seq) ", the later copy with TTL " (pair.ttl) }
                tbody {
                    tr { th scope="row" { "first" } td { code { (text(&pair.first)) } } }
                    tr { th scope="row" { "later" } td { code { (text(&pair.other)) } } }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_named() {
        assert_eq!(options(&[2, 4, 5, 0xb4, 4, 2, 1, 3, 3, 7]), "MSS 1460, SACK, scale 7");
        assert_eq!(options(&[]), "");
        assert_eq!(options(&[34, 2]), "others");
        assert_eq!(options(&[2, 4]), "others");
    }
}
