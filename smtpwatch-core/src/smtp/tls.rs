//! The first TLS records after STARTTLS: who began, with which version, for which name.
//!
//! Records and messages are read by tls-parser; this file only collects the octets that belong to one message.

use tls_parser::{
    TlsExtension, TlsMessage, TlsMessageHandshake, TlsRecordType, TlsVersion, parse_tls_extensions,
    parse_tls_message_handshake, parse_tls_raw_record,
};

use crate::Side;

/// Octets of one direction that are looked at: a ClientHello with a post-quantum key share is below 2 KiB, a ServerHello
/// below 200 octets. What does not fit is not TLS that anybody negotiates.
const HANDSHAKE_OCTETS: usize = 16 * 1024;

/// What the client asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientHello {
    /// The highest version offered, as on the wire: `0x0303` is TLS 1.2.
    pub version: u16,
    /// The server name (RFC 6066 §3), in lower case.
    pub sni: Option<String>,
}

/// What the server chose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ServerHello {
    /// The version, as on the wire: `0x0304` is TLS 1.3.
    pub version: u16,
    /// The cipher suite (IANA number).
    pub cipher: u16,
}

/// What came after the go-ahead, both directions.
#[derive(Clone, Debug, Default)]
pub struct TlsPhase {
    /// The client's hello, once it is whole.
    pub client_hello: Option<ClientHello>,
    /// The server's hello, once it is whole.
    pub server_hello: Option<ServerHello>,
    /// First alert that came in clear: who sent it, and its description (RFC 8446 §6).
    pub alert: Option<(Side, u8)>,
    client: Direction,
    server: Direction,
}

#[derive(Clone, Debug, Default)]
struct Direction {
    /// Octets not yet read: the start of a record.
    raw: Vec<u8>,
    /// Handshake octets of whole records: the start of a message.
    handshake: Vec<u8>,
    begun: Begun,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Begun {
    /// No octet yet.
    #[default]
    No,
    /// Records are being read.
    Tls,
    /// All that was wanted has been read, or cannot be: the rest is not looked at.
    Done,
    /// The first octet was not a TLS record's.
    Other,
}

impl TlsPhase {
    /// Takes octets of one direction.
    pub(super) fn push(&mut self, from: Side, bytes: &[u8]) {
        let direction = match from {
            Side::Client => &mut self.client,
            Side::Server => &mut self.server,
        };
        if direction.begun == Begun::No && !bytes.is_empty() {
            direction.begun = if is_record_type(bytes[0]) { Begun::Tls } else { Begun::Other };
        }
        if direction.begun != Begun::Tls {
            return;
        }
        direction.raw.extend_from_slice(bytes);
        let mut taken = 0;
        while let Ok((rest, record)) = parse_tls_raw_record(&direction.raw[taken..]) {
            taken = direction.raw.len() - rest.len();
            match record.hdr.record_type {
                TlsRecordType::Handshake => direction.handshake.extend_from_slice(record.data),
                TlsRecordType::Alert => {
                    if let (None, Some(description)) = (self.alert, record.data.get(1)) {
                        self.alert = Some((from, *description));
                    }
                    direction.begun = Begun::Done;
                }
                TlsRecordType::ChangeCipherSpec => {}
                _ => direction.begun = Begun::Done,
            }
        }
        direction.raw.drain(..taken);
        match parse_tls_message_handshake(&direction.handshake) {
            Ok((_, TlsMessage::Handshake(message))) => {
                match message {
                    TlsMessageHandshake::ClientHello(hello) if from == Side::Client => {
                        self.client_hello = Some(client_hello(hello.version, hello.ext));
                    }
                    TlsMessageHandshake::ServerHello(hello) if from == Side::Server => {
                        self.server_hello = Some(ServerHello {
                            version: chosen_version(hello.version, hello.ext),
                            cipher: hello.cipher.0,
                        });
                    }
                    _ => {}
                }
                direction.begun = Begun::Done;
            }
            Err(tls_parser::nom::Err::Incomplete(_))
                if direction.raw.len() + direction.handshake.len() < HANDSHAKE_OCTETS => {}
            _ => direction.begun = Begun::Done,
        }
        if direction.begun == Begun::Done {
            direction.raw = Vec::new();
            direction.handshake = Vec::new();
        }
    }

    /// The first octet of this direction was a TLS record's.
    #[must_use]
    pub fn is_tls(&self, from: Side) -> bool {
        matches!(self.direction(from).begun, Begun::Tls | Begun::Done)
    }

    /// The first octet of this direction was something else.
    #[must_use]
    pub fn is_other(&self, from: Side) -> bool {
        self.direction(from).begun == Begun::Other
    }

    const fn direction(&self, from: Side) -> &Direction {
        match from {
            Side::Client => &self.client,
            Side::Server => &self.server,
        }
    }
}

/// Handshake or alert: nothing else can begin a direction (RFC 8446 §5.1).
pub(super) const fn is_record_type(octet: u8) -> bool {
    matches!(octet, 0x15 | 0x16)
}

fn client_hello(version: TlsVersion, extensions: Option<&[u8]>) -> ClientHello {
    let mut hello = ClientHello { version: version.0, sni: None };
    for extension in parsed(extensions) {
        match extension {
            TlsExtension::SupportedVersions(versions) => {
                // RFC 8701 puts meaningless values (0x?a?a) among them.
                let real = versions.iter().map(|version| version.0).filter(|version| version >> 8 == 3);
                hello.version = real.max().unwrap_or(hello.version);
            }
            TlsExtension::SNI(names) => {
                let name = names.first().and_then(|(_, name)| super::ehlo::host_name(name));
                hello.sni = name;
            }
            _ => {}
        }
    }
    hello
}

fn chosen_version(version: TlsVersion, extensions: Option<&[u8]>) -> u16 {
    let chosen = parsed(extensions).into_iter().find_map(|extension| match extension {
        TlsExtension::SupportedVersions(versions) => versions.first().map(|version| version.0),
        _ => None,
    });
    chosen.unwrap_or(version.0)
}

fn parsed(extensions: Option<&[u8]>) -> Vec<TlsExtension<'_>> {
    extensions.and_then(|octets| parse_tls_extensions(octets).ok()).map(|(_, parsed)| parsed).unwrap_or_default()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A ClientHello of TLS 1.2 and 1.3 for `mx.example.net`, put together after RFC 8446 §4.1.2.
    pub(in crate::smtp) fn client_hello_record() -> Vec<u8> {
        let name = b"mx.example.net";
        let n = u8::try_from(name.len()).expect("short");
        let mut sni = vec![0, 0, 0, n + 5, 0, n + 3, 0, 0, n];
        sni.extend_from_slice(name);
        let versions = [0, 43, 0, 5, 4, 3, 4, 3, 3];
        handshake(1, &[&[3, 3], &[7; 32], &[0], &[0, 2, 0x13, 0x01], &[1, 0]], &[&sni, &versions])
    }

    /// A ServerHello that chooses TLS 1.3.
    pub(in crate::smtp) fn server_hello_record() -> Vec<u8> {
        handshake(2, &[&[3, 3], &[9; 32], &[0], &[0x13, 0x01], &[0]], &[&[0, 43, 0, 2, 3, 4]])
    }

    fn handshake(kind: u8, fields: &[&[u8]], extensions: &[&[u8]]) -> Vec<u8> {
        let extensions = extensions.concat();
        let mut body = fields.concat();
        body.extend_from_slice(&u16::try_from(extensions.len()).expect("short").to_be_bytes());
        body.extend_from_slice(&extensions);
        let length = u16::try_from(body.len()).expect("short");
        let mut message = vec![kind, 0];
        message.extend_from_slice(&length.to_be_bytes());
        message.extend_from_slice(&body);
        let mut record = vec![0x16, 3, 1];
        record.extend_from_slice(&u16::try_from(message.len()).expect("short").to_be_bytes());
        record.extend_from_slice(&message);
        record
    }

    #[test]
    fn hellos_are_read_in_any_cut() {
        for size in [1, 2, 5, 6, 50, 4000] {
            let mut tls = TlsPhase::default();
            client_hello_record().chunks(size).for_each(|piece| tls.push(Side::Client, piece));
            server_hello_record().chunks(size).for_each(|piece| tls.push(Side::Server, piece));
            let hello = tls.client_hello.clone().expect("client hello");
            assert_eq!((hello.version, hello.sni.as_deref()), (0x0304, Some("mx.example.net")));
            assert_eq!(tls.server_hello, Some(ServerHello { version: 0x0304, cipher: 0x1301 }));
            assert!(tls.is_tls(Side::Client) && tls.is_tls(Side::Server));
        }
    }

    #[test]
    fn an_alert_says_who_gave_up() {
        let mut tls = TlsPhase::default();
        tls.push(Side::Client, &client_hello_record());
        tls.push(Side::Server, &[0x15, 3, 3, 0, 2, 2, 40]);
        assert_eq!(tls.alert, Some((Side::Server, 40)));
        assert_eq!(tls.server_hello, None);
    }

    #[test]
    fn what_is_not_tls_is_not_called_tls() {
        let mut tls = TlsPhase::default();
        tls.push(Side::Server, b"500 what?\r\n");
        assert!(tls.is_other(Side::Server) && !tls.is_tls(Side::Server) && !tls.is_tls(Side::Client));
    }

    #[test]
    fn a_hello_without_end_is_bounded() {
        let mut tls = TlsPhase::default();
        // A handshake message of 2^24 - 1 octets in records of 16 KiB.
        tls.push(Side::Client, &[0x16, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff]);
        for _ in 0..100 {
            tls.push(Side::Client, &[0; 1024]);
        }
        assert!(tls.client.raw.len() + tls.client.handshake.len() <= 2 * HANDSHAKE_OCTETS);
    }
}
