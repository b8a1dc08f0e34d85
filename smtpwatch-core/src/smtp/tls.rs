//! What comes after STARTTLS: octets that are not TLS, the hellos, and how far the handshake got.
//!
//! Messages are read by tls-parser; this file finds where records begin and collects the octets of one message.

use tls_parser::{
    TlsCipherAu, TlsCipherEnc, TlsCipherSuite, TlsExtension, TlsMessage, TlsMessageHandshake, TlsVersion,
    parse_tls_extensions, parse_tls_message_handshake,
};

use crate::Side;

/// Octets of one message that are collected: a ClientHello with a post-quantum key share is below 2 KiB, a ServerHello
/// below 200 octets. What does not fit is not TLS that anybody negotiates.
const HANDSHAKE_OCTETS: usize = 16 * 1024;
/// Octets kept of what stands before the first record of a direction.
const BEFORE_OCTETS: usize = 4 * 1024;
/// Content types (RFC 8446 §5.1).
const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
/// A record of application data up to this length holds an alert of TLS 1.3: two octets, the content type, a tag of 8 or 16.
const ENCRYPTED_ALERT: u16 = 19;
/// `ServerHello.random` of a HelloRetryRequest (RFC 8446 §4.1.3), its first octets.
const RETRY: [u8; 8] = [0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11];
/// What a server that knows TLS 1.3 writes into its random when it is made to choose TLS 1.2 (RFC 8446 §4.1.3), and TLS 1.1
/// or below.
const SENTINELS: [&[u8]; 2] = [b"DOWNGRD\x01", b"DOWNGRD\x00"];

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
    /// The random says that the server would have chosen a higher version, had it been asked.
    pub downgrade_sentinel: bool,
}

impl ServerHello {
    /// The suite's IANA name where it gives no protection worth the name: no encryption, no authentication, export
    /// strength, DES, RC2 or RC4 (RFC 9325 §4.1).
    #[must_use]
    pub fn weak_suite(&self) -> Option<&'static str> {
        let suite = TlsCipherSuite::from_id(self.cipher)?;
        let weak = matches!(suite.enc, TlsCipherEnc::Null | TlsCipherEnc::Des | TlsCipherEnc::Rc2 | TlsCipherEnc::Rc4)
            || suite.au == TlsCipherAu::Null
            || suite.name.contains("_EXPORT_");
        weak.then_some(suite.name)
    }
}

/// The name of a protocol version, as people write it.
#[must_use]
pub fn version_name(version: u16) -> String {
    match version {
        0x0300 => "SSL 3.0".to_owned(),
        0x0301..=0x0304 => format!("TLS 1.{}", version - 0x0301),
        _ => format!("version {version:#06x}"),
    }
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
    /// Octets before the first record, at most [`BEFORE_OCTETS`].
    before: Vec<u8>,
    /// A record has begun: what follows is records.
    tls: bool,
    /// The header of a record, as far as it came.
    header: Vec<u8>,
    /// Octets of the record's content that have not come.
    left: u16,
    /// Content of handshake records: the start of a message.
    handshake: Vec<u8>,
    /// The hello was read, or cannot be.
    hello_done: bool,
    /// A record came that only a party which goes on with the handshake sends.
    went_on: bool,
    /// A ChangeCipherSpec came: before TLS 1.3 the side that sends it has taken in what the other one proved.
    changed_cipher: bool,
    /// The hello has the form of SSL 2.0 (RFC 5246 §E.2): records are not read.
    opaque: bool,
}

impl TlsPhase {
    /// Takes octets of one direction; gives those that stand where a record should begin and are none.
    pub(super) fn push<'a>(&mut self, from: Side, bytes: &'a [u8]) -> &'a [u8] {
        let direction = self.direction_mut(from);
        if direction.tls {
            return self.records(from, bytes);
        }
        direction.before.extend_from_slice(bytes);
        let Some(start) = record_start(&direction.before) else {
            // The last octet stays: it may be the first of a record.
            if let Some(last) = direction.before.pop() {
                direction.before.truncate(BEFORE_OCTETS - 1);
                direction.before.push(last);
            }
            return &[];
        };
        direction.tls = true;
        direction.opaque = direction.before.first().is_some_and(|octet| *octet >= 0x80);
        // Not `split_off`: it leaves the room of all of them behind.
        let records = direction.before[start..].to_vec();
        direction.before.truncate(start);
        direction.before.shrink_to_fit();
        let rest = self.records(from, &records).len();
        // What is left of both is the end of what came now: before it nothing was a record.
        &bytes[bytes.len() - rest.min(bytes.len())..]
    }

    /// A TLS record began in this direction.
    #[must_use]
    pub fn is_tls(&self, from: Side) -> bool {
        self.direction(from).tls
    }

    /// Octets of this direction that stand before its first TLS record.
    #[must_use]
    pub fn before(&self, from: Side) -> &[u8] {
        &self.direction(from).before
    }

    pub(super) fn take_before(&mut self, from: Side) -> Vec<u8> {
        std::mem::take(&mut self.direction_mut(from).before)
    }

    /// Both sides said hello, and the client went on with what the server said: it took the server's version, suite and
    /// certificate.
    #[must_use]
    pub fn is_established(&self) -> bool {
        let server_went_on =
            self.server_hello.is_some_and(|hello| hello.version >= 0x0304 || self.server.changed_cipher);
        self.client_hello.is_some() && self.client.went_on && server_went_on
    }

    /// The client's hello has a form that is not read: whether the handshake succeeded cannot be told.
    #[must_use]
    pub fn is_opaque(&self) -> bool {
        self.client.opaque
    }

    fn records<'a>(&mut self, from: Side, mut bytes: &'a [u8]) -> &'a [u8] {
        if self.direction(from).opaque {
            return &[];
        }
        while !bytes.is_empty() {
            let direction = self.direction_mut(from);
            if direction.left == 0 {
                if direction.header.is_empty() && !CONTENT_TYPES.contains(&bytes[0]) {
                    return bytes;
                }
                direction.header.push(bytes[0]);
                bytes = &bytes[1..];
                if let [_, _, _, high, low] = *direction.header.as_slice() {
                    direction.left = u16::from_be_bytes([high, low]);
                    self.record_begins(from);
                    let direction = self.direction_mut(from);
                    if direction.left == 0 {
                        direction.header.clear();
                    }
                }
                continue;
            }
            let taken = usize::from(direction.left).min(bytes.len());
            let (content, rest) = bytes.split_at(taken);
            bytes = rest;
            #[expect(clippy::cast_possible_truncation, reason = "not more than `left`")]
            {
                direction.left -= taken as u16;
            }
            self.content(from, content);
            let direction = self.direction_mut(from);
            if direction.left == 0 {
                direction.header.clear();
            }
        }
        &[]
    }

    fn record_begins(&mut self, from: Side) {
        let version = self.server_hello.map(|hello| hello.version);
        let direction = self.direction_mut(from);
        direction.changed_cipher |= direction.header[0] == CHANGE_CIPHER_SPEC;
        // A second ClientHello (after a HelloRetryRequest) is a handshake record too, so in TLS 1.3 only what is encrypted counts.
        direction.went_on |= match (direction.header[0], version) {
            (APPLICATION_DATA, Some(0x0304..)) => direction.left > ENCRYPTED_ALERT,
            (HANDSHAKE, Some(..0x0304)) => direction.hello_done,
            _ => false,
        };
    }

    fn content(&mut self, from: Side, content: &[u8]) {
        let direction = self.direction_mut(from);
        match direction.header.first() {
            Some(&ALERT) if direction.left == 0 && direction.header[3..] == [0, 2] => {
                // The two octets may have come one by one: the second is the description.
                if let (None, Some(description)) = (self.alert, content.last()) {
                    self.alert = Some((from, *description));
                }
            }
            Some(&HANDSHAKE) if !direction.hello_done => {
                direction.handshake.extend_from_slice(content);
                self.hello(from);
            }
            _ => {}
        }
    }

    fn hello(&mut self, from: Side) {
        let mut client = None;
        let mut server = None;
        let direction = self.direction_mut(from);
        let mut retry = false;
        match parse_tls_message_handshake(&direction.handshake) {
            Ok((_, TlsMessage::Handshake(TlsMessageHandshake::ClientHello(hello)))) if from == Side::Client => {
                client = Some(client_hello(hello.version, hello.ext));
            }
            Ok((rest, TlsMessage::Handshake(TlsMessageHandshake::ServerHello(hello)))) if from == Side::Server => {
                retry = hello.random.starts_with(&RETRY);
                let used = direction.handshake.len() - rest.len();
                server = Some((used, server_hello(&hello)));
            }
            Err(tls_parser::nom::Err::Incomplete(_)) if direction.handshake.len() < HANDSHAKE_OCTETS => return,
            _ => {}
        }
        if let (true, Some((used, _))) = (retry, server) {
            direction.handshake.drain(..used);
            return;
        }
        direction.hello_done = true;
        direction.handshake = Vec::new();
        self.client_hello = self.client_hello.take().or(client);
        self.server_hello = self.server_hello.or(server.map(|(_, hello)| hello));
    }

    const fn direction(&self, from: Side) -> &Direction {
        match from {
            Side::Client => &self.client,
            Side::Server => &self.server,
        }
    }

    const fn direction_mut(&mut self, from: Side) -> &mut Direction {
        match from {
            Side::Client => &mut self.client,
            Side::Server => &mut self.server,
        }
    }
}

/// Content types (RFC 8446 §5.1, RFC 6520): no text begins with one.
pub(super) const CONTENT_TYPES: std::ops::RangeInclusive<u8> = CHANGE_CIPHER_SPEC..=24;

/// Handshake or alert: nothing else can begin a direction.
pub(super) const fn is_record_type(octet: u8) -> bool {
    matches!(octet, ALERT | HANDSHAKE)
}

/// Where a record begins: its type and the major version, which no text holds. A type at the very end may be the start of one.
fn record_start(octets: &[u8]) -> Option<usize> {
    match *octets {
        [first, ..] if is_record_type(first) => return Some(0),
        // A hello in the form of SSL 2.0: length with its high bit set, type 1, version 3.x.
        [0x80..=0xff, _, 1, 3, ..] => return Some(0),
        _ => {}
    }
    octets.windows(2).position(|pair| is_record_type(pair[0]) && pair[1] == 3)
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
                hello.sni = names.first().and_then(|(_, name)| super::ehlo::host_name(name));
            }
            _ => {}
        }
    }
    hello
}

fn server_hello(hello: &tls_parser::TlsServerHelloContents<'_>) -> ServerHello {
    let chosen = parsed(hello.ext).into_iter().find_map(|extension| match extension {
        TlsExtension::SupportedVersions(versions) => versions.first().map(|version| version.0),
        _ => None,
    });
    ServerHello {
        version: chosen.unwrap_or(hello.version.0),
        cipher: hello.cipher.0,
        downgrade_sentinel: SENTINELS.iter().any(|sentinel| hello.random.ends_with(sentinel)),
    }
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
            client_hello_record().chunks(size).for_each(|piece| assert!(tls.push(Side::Client, piece).is_empty()));
            server_hello_record().chunks(size).for_each(|piece| assert!(tls.push(Side::Server, piece).is_empty()));
            let hello = tls.client_hello.clone().expect("client hello");
            assert_eq!((hello.version, hello.sni.as_deref()), (0x0304, Some("mx.example.net")));
            assert_eq!(
                tls.server_hello,
                Some(ServerHello { version: 0x0304, cipher: 0x1301, downgrade_sentinel: false })
            );
            assert!(tls.is_tls(Side::Client) && tls.is_tls(Side::Server) && !tls.is_established());
            [0x14, 3, 3, 0, 1, 1, 0x17, 3, 3, 0, 53]
                .chunks(size)
                .for_each(|piece| assert!(tls.push(Side::Client, piece).is_empty()));
            assert!(tls.is_established());
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
        assert!(!tls.is_tls(Side::Server) && !tls.is_tls(Side::Client));
        assert_eq!(tls.before(Side::Server), b"500 what?\r\n");
    }

    #[test]
    fn a_hello_without_end_is_bounded() {
        let mut tls = TlsPhase::default();
        // A handshake message of 2^24 - 1 octets in records of 16 KiB.
        tls.push(Side::Client, &[0x16, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff]);
        for _ in 0..100 {
            tls.push(Side::Client, &[0; 1024]);
        }
        assert!(tls.client.handshake.len() <= HANDSHAKE_OCTETS + 1024);
        let mut text = TlsPhase::default();
        for _ in 0..100 {
            text.push(Side::Server, &[b'a'; 1024]);
        }
        assert_eq!(text.before(Side::Server).len(), BEFORE_OCTETS);
    }

    #[test]
    fn text_before_a_record_is_kept_apart_from_it_in_any_cut() {
        let octets = [b"EHLO evil\r\nMAIL FR".as_slice(), &client_hello_record()].concat();
        for size in 1..octets.len() {
            let mut tls = TlsPhase::default();
            octets.chunks(size).for_each(|piece| assert!(tls.push(Side::Client, piece).is_empty()));
            assert_eq!(tls.before(Side::Client), b"EHLO evil\r\nMAIL FR", "{size}");
            assert!(tls.client_hello.is_some(), "{size}");
        }
    }

    #[test]
    fn an_encrypted_alert_is_not_a_handshake_that_went_on() {
        let mut tls = TlsPhase::default();
        tls.push(Side::Client, &client_hello_record());
        tls.push(Side::Server, &server_hello_record());
        tls.push(Side::Client, &[&[0x17, 3, 3, 0, 19][..], &[0; 19]].concat());
        assert!(!tls.is_established());
    }

    #[test]
    fn weak_suites_are_known_by_name() {
        let hello = |cipher| ServerHello { version: 0x0301, cipher, downgrade_sentinel: false };
        assert_eq!(hello(0x0004).weak_suite(), Some("TLS_RSA_WITH_RC4_128_MD5"));
        assert!(hello(0x0000).weak_suite().is_some() && hello(0x0034).weak_suite().is_some());
        assert_eq!(hello(0x1301).weak_suite(), None);
        assert_eq!(hello(0xc02f).weak_suite(), None);
    }
}
