//! The same dialogue in every link-layer and IP format raises the same findings (docs/threats.md EV-1, EV-6, EV-7).

use smtpwatch_config::Config;
use smtpwatch_core::{Finding, finding::FlowInfo, policy::history::History};
use smtpwatch_pipeline::replay::{Event, Replay};

use crate::traffic::{self, CLIENT, Packet, START_NS};

/// Link type of Ethernet.
const ETHERNET: u32 = 1;
const IPV4_HEADER: usize = 20;
const TCP_HEADER: usize = 20;

#[test]
fn findings_do_not_depend_on_the_form() {
    let plain: Vec<_> = traffic::mail(CLIENT, START_NS, "250-XXXXXXXA\r\n250 8BITMIME\r\n")
        .into_iter()
        .chain(traffic::password())
        .collect();
    let expected = findings(&frames(&plain, |ip| framed(&[], 0x0800, ip)));
    assert!(expected.len() >= 3, "mask, password and offer: {expected:?}");
    let forms: [(&str, Vec<Packet>); 9] = [
        ("VLAN tag", frames(&plain, |ip| framed(&[0x8100], 0x0800, ip))),
        ("two VLAN tags", frames(&plain, |ip| framed(&[0x88a8, 0x8100], 0x0800, ip))),
        ("padding to 60 bytes", frames(&plain, |ip| padded(framed(&[], 0x0800, ip)))),
        ("IPv4 options", frames(&plain, |ip| framed(&[], 0x0800, &with_options(ip)))),
        ("IPv6", frames(&plain, |ip| framed(&[], 0x86dd, &to_ipv6(ip, &[])))),
        ("IPv6 extension headers", frames(&plain, |ip| framed(&[], 0x86dd, &to_ipv6(ip, &[0, 60, 43])))),
        ("IPv6 atomic fragment", frames(&plain, |ip| framed(&[0x8100], 0x86dd, &to_ipv6(ip, &[44])))),
        ("one byte per segment", frames(&cut(&plain), |ip| framed(&[], 0x0800, ip))),
        ("every packet twice", twice(frames(&plain, |ip| framed(&[], 0x0800, ip)))),
    ];
    for (form, packets) in forms {
        assert_eq!(findings(&packets), expected, "{form}");
    }
}

/// The claims of findings, without what the format changes: identifiers, times, addresses, and packet details.
fn findings(packets: &[Packet]) -> Vec<Finding> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("capture.pcap");
    // The frames are complete: no link header is prepended.
    let bytes = traffic::pcap(packets, 101, false, false);
    std::fs::write(&path, as_ethernet(bytes)).unwrap();
    let mut replay = Replay::new(&Config::default(), History::new(100));
    let mut found = Vec::new();
    let mut take = |event| {
        if let Event::Finding(finding) = event {
            found.push(*finding);
        }
    };
    replay.file(&path, &mut take).unwrap();
    replay.finish(&mut take);
    found.into_iter().map(normal).collect()
}

fn normal(finding: Finding) -> Finding {
    let flow = FlowInfo {
        client: String::new(),
        server: String::new(),
        interface: String::new(),
        community_id: String::new(),
    };
    Finding { id: String::new(), time: smtpwatch_core::Timestamp(0), flow, exhibit: None, ..finding }
}

/// Sets the link type in a pcap file's header (little-endian, at byte 20).
fn as_ethernet(mut file: Vec<u8>) -> Vec<u8> {
    file[20..24].copy_from_slice(&ETHERNET.to_le_bytes());
    file
}

fn frames(packets: &[Packet], frame: impl Fn(&[u8]) -> Vec<u8>) -> Vec<Packet> {
    packets.iter().map(|packet| Packet { at_ns: packet.at_ns, ip: frame(&packet.ip) }).collect()
}

fn framed(tags: &[u16], ether_type: u16, ip: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 12];
    for tag in tags {
        frame.extend(tag.to_be_bytes());
        frame.extend([0, 7]);
    }
    frame.extend(ether_type.to_be_bytes());
    frame.extend(ip);
    frame
}

fn padded(mut frame: Vec<u8>) -> Vec<u8> {
    // Padding that would be a command if it were parsed as payload.
    let padding = b"\r\nAUTH PLAIN AHVzZXIAcGFzcw==\r\n".iter().cycle().take(60_usize.saturating_sub(frame.len()));
    frame.extend(padding);
    frame
}

/// A router alert option and padding before TCP.
fn with_options(ip: &[u8]) -> Vec<u8> {
    let mut with = ip[..IPV4_HEADER].to_vec();
    with.extend([0x94, 4, 0, 0, 1, 1, 1, 0]);
    with.extend(&ip[IPV4_HEADER..]);
    with[0] = 0x47;
    let length = u16::try_from(with.len()).unwrap();
    with[2..4].copy_from_slice(&length.to_be_bytes());
    with
}

/// The same segment over IPv6, with these extension headers (IANA protocol numbers).
fn to_ipv6(ip: &[u8], extensions: &[u8]) -> Vec<u8> {
    let mut rest = Vec::new();
    for (at, _) in extensions.iter().enumerate() {
        let next = extensions.get(at + 1).copied().unwrap_or(6);
        // Eight bytes each: next header, length in further units of eight, and options or fields without effect.
        rest.extend([next, 0, 0, 0, 0, 0, 0, 0]);
    }
    rest.extend(&ip[IPV4_HEADER..]);
    let mut v6 = vec![0x60, 0, 0, 0];
    v6.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
    v6.extend([extensions.first().copied().unwrap_or(6), ip[8]]);
    for address in [&ip[12..16], &ip[16..20]] {
        v6.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0]);
        v6.extend(address);
    }
    v6.extend(rest);
    v6
}

/// Every payload byte in a packet of its own.
fn cut(packets: &[Packet]) -> Vec<Packet> {
    let mut cut = Vec::new();
    for Packet { at_ns, ip } in packets {
        let (head, payload) = ip.split_at(IPV4_HEADER + TCP_HEADER);
        if payload.is_empty() {
            cut.push(Packet { at_ns: *at_ns, ip: ip.clone() });
        }
        let seq = u32::from_be_bytes(head[24..28].try_into().unwrap());
        for (at, byte) in payload.iter().enumerate() {
            let mut one = [head, &[*byte]].concat();
            one[2..4].copy_from_slice(&41_u16.to_be_bytes());
            one[24..28].copy_from_slice(&seq.wrapping_add(u32::try_from(at).unwrap()).to_be_bytes());
            cut.push(Packet { at_ns: *at_ns, ip: one });
        }
    }
    cut
}

fn twice(packets: Vec<Packet>) -> Vec<Packet> {
    let copy = |packet: &Packet| Packet { at_ns: packet.at_ns, ip: packet.ip.clone() };
    packets.into_iter().flat_map(|packet| [copy(&packet), packet]).collect()
}
