//! The reading of tshark (Wireshark's dissector of SMTP).

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    path::Path,
    process::{Command, Stdio},
};

use smtpwatch_core::FlowKey;

use crate::{Reading, Readings, UNKNOWN};

/// Separators of fields, and of values of one field: bytes that SMTP does not use.
const FIELD: char = '\u{1e}';
const VALUE: char = '\u{1f}';

const FIELDS: [&str; 9] = [
    "ip.src",
    "ipv6.src",
    "tcp.srcport",
    "ip.dst",
    "ipv6.dst",
    "tcp.dstport",
    "smtp.req.command",
    "smtp.response.code",
    "smtp.rsp.parameter",
];

/// Whether tshark can be run.
pub fn is_there() -> bool {
    Command::new("tshark").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

/// Reads a file.
pub fn read(path: &Path, ports: &BTreeSet<u16>) -> Readings {
    let mut command = Command::new("tshark");
    command.arg("-r").arg(path).args(["-n", "-o", "tcp.reassemble_out_of_order:TRUE", "-Y", "smtp", "-T", "fields"]);
    for port in ports {
        command.args(["-d", &format!("tcp.port=={port},smtp")]);
    }
    command.args(["-E", &format!("separator={FIELD}"), "-E", &format!("aggregator={VALUE}"), "-E", "occurrence=a"]);
    for field in FIELDS {
        command.args(["-e", field]);
    }
    let out = command.output().expect("tshark");
    assert!(out.status.success(), "tshark: {}", String::from_utf8_lossy(&out.stderr));
    let mut readings = Readings::new();
    for line in String::from_utf8_lossy(&out.stdout).split_terminator('\n') {
        let fields: Vec<&str> = line.split(FIELD).collect();
        assert_eq!(fields.len(), FIELDS.len(), "{line:?}");
        let (source, target) = (end(fields[0], fields[1], fields[2]), end(fields[3], fields[4], fields[5]));
        let from_server = ports.contains(&source.port());
        let (client, server) = if from_server { (target, source) } else { (source, target) };
        let reading = readings.entry(FlowKey { client, server }).or_default();
        if from_server {
            replies(reading, fields[7], fields[8]);
        } else {
            reading.verbs.extend(values(fields[6]).map(str::to_ascii_uppercase));
        }
    }
    readings
}

/// Reduces a reading to what tshark reports: the first four bytes of a verb, and nothing of a line without one.
pub fn as_far_as_it_tells(reading: &Reading) -> Reading {
    let verbs =
        reading.verbs.iter().filter(|verb| *verb != UNKNOWN).map(|verb| verb.chars().take(4).collect()).collect();
    Reading { verbs, ..reading.clone() }
}

/// Reads the codes of one packet, and its parameters if they are those of an EHLO reply. tshark reports one code for
/// all lines of a reply, so only a packet with one reply can be split.
fn replies(reading: &mut Reading, codes: &str, parameters: &str) {
    let codes: Vec<u16> = values(codes).filter_map(|code| code.parse().ok()).collect();
    let lines: Vec<&str> = values(parameters).collect();
    let answers_ehlo = reading.verbs.last().is_some_and(|verb| verb == "EHLO");
    if codes == [250] && answers_ehlo {
        let keyword = |line: &&str| line.split([' ', '\t', '=']).next().unwrap_or_default().to_ascii_uppercase();
        reading.keywords = lines.iter().skip(1).map(keyword).collect();
    }
    reading.codes.extend(codes);
}

fn values(field: &str) -> impl Iterator<Item = &str> {
    field.split(VALUE).filter(|value| !value.is_empty())
}

/// Address of either IP version, and port; of nested headers the outermost.
fn end(v4: &str, v6: &str, port: &str) -> SocketAddr {
    let address = values(v4).chain(values(v6)).next().expect("an address");
    let address: IpAddr = address.parse().expect("an address");
    SocketAddr::new(address, port.parse().expect("a port"))
}
