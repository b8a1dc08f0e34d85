//! The capture file reader: every format, and damage at every byte.

use std::path::Path;

use smtpwatch_capture::pcap::{self, FileReport, PcapFileError};
use smtpwatch_common::Direction;

use crate::traffic::{self, START_NS};

struct Seen {
    times: Vec<i64>,
    interfaces: Vec<String>,
    /// The IP packets, without their link headers.
    packets: Vec<Vec<u8>>,
}

fn read(bytes: &[u8], link_len: usize) -> (Result<FileReport, PcapFileError>, Seen) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let mut seen = Seen { times: Vec::new(), interfaces: Vec::new(), packets: Vec::new() };
    let result = pcap::read(file.path(), |packet| {
        seen.times.push(packet.at.0);
        seen.interfaces.push(packet.interface.to_owned());
        seen.packets.push(packet.bytes[link_len..].to_vec());
        assert_eq!(usize::try_from(packet.wire_len).unwrap(), packet.bytes.len());
    });
    (result, seen)
}

fn expected() -> (Vec<i64>, Vec<Vec<u8>>) {
    let packets = traffic::password();
    packets.into_iter().map(|packet| (i64::try_from(packet.at_ns).unwrap(), packet.ip)).unzip()
}

#[test]
fn every_pcap_form_gives_the_same_packets() {
    let (times, packets) = expected();
    for linktype in [0, 1, 101, 108, 113, 228, 276] {
        // The gate parses Ethernet headers; the reader removes pseudo-headers.
        let link_len = if linktype == 1 { 14 } else { 0 };
        for (nanos, big) in [(false, false), (false, true), (true, false), (true, true)] {
            let (report, seen) = read(&traffic::pcap(&traffic::password(), linktype, nanos, big), link_len);
            let report = report.unwrap();
            assert_eq!((report.packets, report.skipped, report.damage), (packets.len() as u64, 0, None), "{linktype}");
            assert_eq!(seen.packets, packets, "link type {linktype}, nanoseconds {nanos}, big endian {big}");
            assert_eq!(seen.times, times);
        }
    }
}

#[test]
fn pcapng_interfaces_have_their_names_links_and_clocks() {
    let (times, packets) = expected();
    for big in [false, true] {
        // Microseconds, nanoseconds, and 2^-30 s.
        let interfaces = [("eth0", 101, 6), ("wan é", 228, 9), ("", 101, 0x80 | 30)];
        let (report, seen) = read(&traffic::pcapng(&traffic::password(), &interfaces, big), 0);
        assert_eq!(report.unwrap().damage, None);
        assert_eq!(seen.packets, packets);
        assert_eq!(seen.interfaces[..4], ["eth0", "wan é", "", "eth0"]);
        for (seen, expected) in seen.times.iter().zip(&times) {
            assert!((seen - expected).abs() <= 1, "{seen} {expected}");
        }
    }
}

fn directions(bytes: &[u8]) -> Vec<(u32, Option<Direction>)> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let mut seen = Vec::new();
    pcap::read(file.path(), |packet| seen.push((packet.interface_index, packet.direction))).unwrap();
    seen
}

#[test]
fn flags_of_pcapng_packets_are_directions() {
    // draft-ietf-opsawg-pcapng §4.3.1: the lowest two bits; unicast and an FCS length beside them.
    let flags = [Some(1), Some(2), None, Some(0), Some(3), Some(1 << 2 | 1), Some(4 << 5 | 2), Some(0xffff_0000)];
    let (there, back) = (Some(Direction::Egress), Some(Direction::Ingress));
    let expected = [back, there, None, None, None, back, there, None];
    for big in [false, true] {
        let interfaces = [("eth0", 1, 6), ("eth1", 1, 6)];
        let file = traffic::pcapng_flagged(&traffic::password(), &interfaces, big, |index, _| flags[index % 8]);
        for (index, (interface, direction)) in directions(&file).into_iter().enumerate() {
            assert_eq!(direction, expected[index % 8], "packet {index}, big endian {big}");
            assert_eq!(interface as usize, index % 2);
        }
    }
}

#[test]
fn types_of_cooked_packets_are_directions() {
    let packets = traffic::password();
    for (linktype, at) in [(113, 1), (276, 10)] {
        let mut file = traffic::pcap(&packets, linktype, false, false);
        for ((_, direction), packet) in directions(&file).into_iter().zip(&packets) {
            let expected = if traffic::leaves(&packet.ip) { Direction::Egress } else { Direction::Ingress };
            assert_eq!(direction, Some(expected), "link type {linktype}");
        }
        // Broadcast, multicast and other-host do not show the direction.
        for kind in [1, 2, 3, 5] {
            file[24 + 16 + at] = kind;
            assert_eq!(directions(&file)[0].1, None, "packet type {kind} of link type {linktype}");
        }
    }
    // Other links have no such field.
    for linktype in [0, 1, 101, 108, 228] {
        let file = traffic::pcap(&packets, linktype, false, false);
        let found = directions(&file);
        assert!(!found.is_empty() && found.iter().all(|(_, direction)| direction.is_none()), "{linktype}");
    }
}

#[test]
fn an_unknown_link_layer_is_reported() {
    let mut file = traffic::pcap(&traffic::password(), 101, false, false);
    file[20..24].copy_from_slice(&147_u32.to_le_bytes());
    let (report, seen) = read(&file, 0);
    let report = report.unwrap();
    assert_eq!((report.skipped, report.unsupported), (report.packets, vec![147]));
    assert!(seen.packets.is_empty());
}

/// Truncated at every byte: no panic, every complete packet before the cut is read, and the cut is reported.
#[test]
fn truncation_at_every_byte_is_reported() {
    let packets = &traffic::password()[..8];
    let pcap = traffic::pcap(packets, 1, false, false);
    let pcapng = traffic::pcapng(packets, &[("eth0", 1, 6)], false);
    for (whole, header) in [(pcap, 24), (pcapng, 28)] {
        let ends = packet_ends(&whole, packets.len());
        for cut in 0..whole.len() {
            let (report, seen) = read(&whole[..cut], 14);
            if cut < header {
                let message = report.unwrap_err().to_string();
                let hint = if cut == 0 {
                    "it is empty"
                } else if cut < 4 {
                    ""
                } else {
                    "within its header"
                };
                assert!(message.contains("is not a capture file") && message.contains(hint), "{cut}: {message}");
                continue;
            }
            let report = report.unwrap();
            assert_eq!(seen.packets.len(), ends.iter().filter(|&&end| end <= cut).count(), "cut at {cut}");
            // A cut between two packets looks like the end of the file.
            let clean = cut == header || ends.contains(&cut) || cut == blocks_before_packets(&whole);
            assert_eq!(report.damage.is_none(), clean, "cut at {cut}: {:?}", report.damage);
            if let Some(damage) = report.damage {
                assert!(damage.starts_with("truncated at byte "), "{damage}");
            }
        }
    }
}

/// A block of any type with a length shorter than its own header.
#[test]
fn a_block_shorter_than_its_header_is_reported() {
    let packets = &traffic::password()[..2];
    for big in [false, true] {
        let whole = traffic::pcapng(packets, &[("eth0", 1, 6)], big);
        let number = |value: u32| if big { value.to_be_bytes() } else { value.to_le_bytes() };
        // Packets, the process information of macOS, and an undefined type.
        for block_type in [2, 3, 5, 6, 0x8000_0001, 0x0bad_0bad] {
            for length in 0..12 {
                let mut file = whole.clone();
                file.extend([number(block_type), number(length)].concat());
                file.extend([0; 24]);
                let (report, seen) = read(&file, 14);
                let damage = report.unwrap().damage.expect("damage");
                assert!(damage.starts_with("a block that is shorter than its own header at byte "), "{damage}");
                assert_eq!(seen.packets.len(), packets.len());
            }
        }
    }
}

/// Any byte overwritten: no panic, and no endless loop.
#[test]
fn damage_anywhere_is_survived() {
    let packets = &traffic::password()[..4];
    for whole in [traffic::pcap(packets, 1, false, false), traffic::pcapng(packets, &[("eth0", 1, 6)], true)] {
        for position in 0..whole.len() {
            for value in [0x00, 0xff] {
                let mut damaged = whole.clone();
                damaged[position] = value;
                let file = tempfile::NamedTempFile::new().unwrap();
                std::fs::write(file.path(), &damaged).unwrap();
                let mut count = 0;
                let _ = pcap::read(file.path(), |_| count += 1);
                // Damaged lengths make other bytes look like packets; each needs a header of at least 16 bytes.
                assert!(count <= whole.len() / 16);
            }
        }
    }
}

#[test]
fn what_is_no_capture_is_named() {
    for (bytes, hint) in [
        (b"".as_slice(), "it is empty"),
        (b"hello world, this is text", "its first bytes match neither format"),
        (b"\x1f\x8b\x08\x00\x00\x00\x00\x00", "use gunzip first"),
        (b"\x28\xb5\x2f\xfd\x00\x00\x00\x00", "use unzstd first"),
    ] {
        let message = read(bytes, 0).0.unwrap_err().to_string();
        assert!(message.contains(hint), "{message}");
    }
    let missing = pcap::read(Path::new("/nonexistent/x.pcap"), |_| {}).unwrap_err().to_string();
    assert_eq!(missing, "cannot read /nonexistent/x.pcap: No such file or directory (os error 2)");
    assert!(pcap::read(Path::new("/"), |_| {}).unwrap_err().to_string().starts_with("cannot read /: "));
}

#[test]
fn times_are_those_of_the_file() {
    let (_, seen) = read(&traffic::pcap(&traffic::password(), 101, true, false), 0);
    assert_eq!(seen.times[0], i64::try_from(START_NS + 1_000_000).unwrap());
}

/// Offsets at which a packet's record ends.
fn packet_ends(whole: &[u8], packets: usize) -> Vec<usize> {
    let u32_at = |at: usize| usize::try_from(u32::from_le_bytes(whole[at..at + 4].try_into().unwrap())).unwrap();
    let mut ends = Vec::new();
    let ng = whole.starts_with(&[0x0a, 0x0d]);
    let mut at = if ng { blocks_before_packets(whole) } else { 24 };
    while ends.len() < packets {
        at += if ng { u32_at(at + 4) } else { 16 + u32_at(at + 8) };
        ends.push(at);
    }
    ends
}

fn blocks_before_packets(whole: &[u8]) -> usize {
    let u32_at = |at: usize| usize::try_from(u32::from_le_bytes(whole[at..at + 4].try_into().unwrap())).unwrap();
    if whole.starts_with(&[0x0a, 0x0d]) { 28 + u32_at(28 + 4) } else { 24 }
}
