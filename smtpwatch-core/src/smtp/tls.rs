//! The TLS phase of a session: cleartext before the first record, the hellos, the server's certificates, and the
//! progress of the handshake. [`TlsPhase`] holds the state of both directions; the session feeds it.
//!
//! tls-parser decodes the messages; this file finds the record boundaries and collects the bytes of one message.

use tls_parser::{
    TlsCipherAu, TlsCipherEnc, TlsCipherSuite, TlsExtension, TlsMessage, TlsMessageHandshake, parse_tls_extensions,
    parse_tls_message_handshake,
};

use crate::{Side, secret_buffer::SecretBuffer};

/// Maximum size of a hello message, in bytes: a ClientHello with a post-quantum key share is below 2 KiB, a
/// ServerHello below 200 bytes. A larger message is not parsed.
const HANDSHAKE_BYTES: usize = 16 * 1024;
/// Maximum size of a Certificate message, in bytes: the gate copies no more of a server's TLS bytes.
const CERTIFICATE_BYTES: usize = 16 * 1024;
/// Maximum number of certificates of one message. No real chain is that long.
const CERTIFICATES: usize = 16;
/// Maximum number of bytes retained before the first record of a direction.
const BEFORE_BYTES: usize = 4 * 1024;
/// Content types (RFC 8446 §5.1).
const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
/// An application data record up to this length holds a TLS 1.3 alert: two bytes, the content type, a tag of 8 or 16
/// bytes.
const ENCRYPTED_ALERT: u16 = 19;
/// Handshake type of the Certificate message (RFC 5246 §7.4).
const CERTIFICATE: u8 = 11;
/// Length of a handshake header in bytes: the type, and a length of three bytes.
const MESSAGE_HEADER: usize = 4;
/// First bytes of `ServerHello.random` in a HelloRetryRequest (RFC 8446 §4.1.3).
const RETRY: [u8; 8] = [0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11];
/// Last bytes of the random of a server that supports TLS 1.3 and negotiates TLS 1.2, or TLS 1.1 or below (RFC 8446
/// §4.1.3).
const SENTINELS: [&[u8]; 2] = [b"DOWNGRD\x01", b"DOWNGRD\x00"];

/// The parameters that the client offered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientHello {
    /// The highest version offered, as on the wire: `0x0303` is TLS 1.2.
    pub version: u16,
    /// The server name (RFC 6066 §3), in lower case.
    pub sni: Option<String>,
}

/// The parameters that the server chose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ServerHello {
    /// The version, as on the wire: `0x0304` is TLS 1.3.
    pub version: u16,
    /// The cipher suite (IANA number).
    pub cipher: u16,
    /// The random shows that the server supports a higher version than the one it chose.
    pub downgrade_sentinel: bool,
}

impl ServerHello {
    /// The IANA name of the suite if it gives no adequate protection: no encryption, no authentication, export
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

/// The customary name of a protocol version.
#[must_use]
pub fn version_name(version: u16) -> String {
    match version {
        0x0300 => "SSL 3.0".to_owned(),
        0x0301..=0x0304 => format!("TLS 1.{}", version - 0x0301),
        _ => format!("version {version:#06x}"),
    }
}

/// Version of TLS that a session negotiated.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum TlsVersion {
    /// TLS 1.0.
    V1_0,
    /// TLS 1.1.
    V1_1,
    /// TLS 1.2.
    V1_2,
    /// TLS 1.3.
    V1_3,
    /// The server's hello was not seen whole, or it chose another version, such as SSL 3.0.
    Unknown,
}

impl TlsVersion {
    /// Every version, for metric labels.
    pub const ALL: [Self; 5] = [Self::V1_0, Self::V1_1, Self::V1_2, Self::V1_3, Self::Unknown];

    /// The version of a server's hello, as on the wire (RFC 8446 §4.2.1); `None`: no hello was seen.
    #[must_use]
    pub const fn of_wire(version: Option<u16>) -> Self {
        match version {
            Some(0x0301) => Self::V1_0,
            Some(0x0302) => Self::V1_1,
            Some(0x0303) => Self::V1_2,
            Some(0x0304) => Self::V1_3,
            Some(_) | None => Self::Unknown,
        }
    }

    /// The name: a metric label, and the name in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V1_0 => "1.0",
            Self::V1_1 => "1.1",
            Self::V1_2 => "1.2",
            Self::V1_3 => "1.3",
            Self::Unknown => "unknown",
        }
    }
}

/// State of both directions after the go-ahead.
#[derive(Clone, Debug, Default)]
pub struct TlsPhase {
    /// The client's hello, once it is complete.
    pub client_hello: Option<ClientHello>,
    /// The server's hello, once it is complete.
    pub server_hello: Option<ServerHello>,
    /// First cleartext alert: its sender, and its description (RFC 8446 §6).
    pub alert: Option<(Side, u8)>,
    /// The server's certificates in DER, its own first, of a handshake below TLS 1.3 (RFC 5246 §7.4.2). Empty if they
    /// were encrypted, not sent, or not seen completely.
    pub certificates: Vec<Vec<u8>>,
    /// Evidence in the newest bytes: a record header, a complete hello, an alert; each with its offset in the stream.
    shown: Vec<(u64, Vec<u8>)>,
    client: Direction,
    server: Direction,
}

#[derive(Clone, Debug, Default)]
struct Direction {
    /// Stream offset of the first byte after the go-ahead.
    start: u64,
    /// Stream offset of the next byte to read.
    place: u64,
    /// Bytes before the first record, at most [`BEFORE_BYTES`].
    before: SecretBuffer,
    /// A record has begun: only records follow.
    tls: bool,
    /// The bytes of the record header received so far.
    header: Vec<u8>,
    /// Bytes of the record's content that have not arrived.
    left: u16,
    /// Content of handshake records: the start of a message.
    handshake: SecretBuffer,
    /// Stream offset of that content; `None` if it spans more than one record.
    message: Option<u64>,
    /// The message expected next.
    reading: Reading,
    /// A record arrived that a party sends only if it continues the handshake.
    went_on: bool,
    /// A ChangeCipherSpec arrived: before TLS 1.3 its sender has accepted the other side's authentication.
    changed_cipher: bool,
    /// The hello has the form of SSL 2.0 (RFC 5246 §E.2): records are not parsed.
    opaque: bool,
    /// Bytes are missing.
    hole: bool,
    /// The record boundaries are unknown: nothing is parsed.
    lost: bool,
}

/// The handshake message that one direction is expected to send next.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Reading {
    /// The hello.
    #[default]
    Hello,
    /// The server's Certificate message, which follows its hello below TLS 1.3 (RFC 5246 §7.3).
    Certificate,
    /// None: parsing is complete, or not possible.
    Nothing,
}

impl Direction {
    fn read_nothing(&mut self) {
        self.reading = Reading::Nothing;
        self.handshake = SecretBuffer::default();
    }
}

impl TlsPhase {
    /// Processes bytes of one direction that begin at stream offset `place`; returns the bytes that are not a record
    /// although a record should begin there.
    pub(super) fn push<'a>(&mut self, from: Side, place: u64, bytes: &'a [u8]) -> &'a [u8] {
        let direction = self.direction_mut(from);
        if direction.lost {
            return &[];
        }
        if direction.tls {
            direction.place = place;
            return self.records(from, bytes);
        }
        if direction.before.is_empty() {
            direction.start = place;
        }
        direction.before.extend_from_slice(bytes);
        let Some(start) = record_start(&direction.before) else {
            // Keeps the last byte: it may be the first of a record.
            if let Some(last) = direction.before.pop() {
                direction.before.truncate(BEFORE_BYTES - 1);
                direction.before.push(last);
            }
            return &[];
        };
        direction.tls = true;
        direction.opaque = direction.before.first().is_some_and(|byte| *byte >= 0x80);
        // Not `split_off`: it would keep the capacity of the whole buffer.
        let records = SecretBuffer::from(&direction.before[start..]);
        direction.place = place.saturating_add(bytes.len() as u64).saturating_sub(records.len() as u64);
        direction.before.truncate(start);
        direction.before.shrink_to_fit();
        let rest = self.records(from, &records).len();
        // The remainder of both is a suffix of the current bytes: no record began before them.
        &bytes[bytes.len() - rest.min(bytes.len())..]
    }

    /// Processes a gap of `length` bytes in one direction. Within a record the end of the record is still known;
    /// beyond it the next boundary is unknown, and bytes parsed as a record could be part of a key or of a
    /// certificate.
    pub(super) fn gap(&mut self, from: Side, length: u64) {
        let direction = self.direction_mut(from);
        direction.hole = true;
        let within = u64::from(direction.left);
        if direction.tls && length > 0 && length <= within {
            // Cannot fail: at most `left`.
            direction.left = u16::try_from(within - length).unwrap_or(0);
            let reads = direction.header.first() == Some(&HANDSHAKE) || !direction.handshake.is_empty();
            // An incomplete alert does not count.
            if direction.header.first() == Some(&ALERT) {
                direction.header = vec![APPLICATION_DATA, 3, 3, 0, 0];
            }
            if direction.left == 0 {
                direction.header.clear();
            }
            if reads {
                direction.read_nothing();
            }
        } else {
            direction.lost = true;
            direction.read_nothing();
        }
    }

    /// Bytes of this direction are missing.
    pub(super) fn has_hole(&self, from: Side) -> bool {
        self.direction(from).hole
    }

    /// A TLS record began in this direction.
    #[must_use]
    pub fn is_tls(&self, from: Side) -> bool {
        self.direction(from).tls
    }

    /// Bytes of this direction that stand before its first TLS record.
    #[must_use]
    pub fn before(&self, from: Side) -> &[u8] {
        &self.direction(from).before
    }

    /// Stream offset of those bytes.
    pub(super) fn start(&self, from: Side) -> u64 {
        self.direction(from).start
    }

    /// Takes the evidence in the bytes of the latest call.
    pub(super) fn take_shown(&mut self) -> Vec<(u64, Vec<u8>)> {
        std::mem::take(&mut self.shown)
    }

    /// Overwrites the bytes before the first TLS record of both directions; their number is preserved.
    pub(super) fn forget_before(&mut self) {
        for direction in [&mut self.client, &mut self.server] {
            direction.before.fill(0);
        }
    }

    pub(super) fn take_before(&mut self, from: Side) -> SecretBuffer {
        std::mem::take(&mut self.direction_mut(from).before)
    }

    /// Both sides sent a hello, and the client continued the handshake: it accepted the server's version, suite and
    /// certificate.
    #[must_use]
    pub fn is_established(&self) -> bool {
        let server_went_on =
            self.server_hello.is_some_and(|hello| hello.version >= 0x0304 || self.server.changed_cipher);
        self.client_hello.is_some() && self.client.went_on && server_went_on
    }

    /// The client's hello has a form that is not parsed: the result of the handshake is unknown.
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
                direction.place = direction.place.saturating_add(1);
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
            direction.place = direction.place.saturating_add(taken as u64);
            if direction.left == 0 {
                direction.header.clear();
            }
        }
        &[]
    }

    fn record_begins(&mut self, from: Side) {
        let version = self.server_hello.map(|hello| hello.version);
        let direction = self.direction_mut(from);
        let is_alert = direction.header[0] == ALERT;
        let shown = (direction.reading == Reading::Hello || is_alert)
            .then(|| (direction.place.saturating_sub(direction.header.len() as u64), direction.header.clone()));
        direction.message = (direction.handshake.is_empty()).then_some(direction.place);
        self.shown.extend(shown);
        let direction = self.direction_mut(from);
        direction.changed_cipher |= direction.header[0] == CHANGE_CIPHER_SPEC;
        // A second ClientHello (after a HelloRetryRequest) is a handshake record too, so in TLS 1.3 only encrypted
        // records count.
        direction.went_on |= match (direction.header[0], version) {
            (APPLICATION_DATA, Some(0x0304..)) => direction.left > ENCRYPTED_ALERT,
            (HANDSHAKE, Some(..0x0304)) => direction.reading != Reading::Hello,
            _ => false,
        };
        // A resumed session has no certificates (RFC 5246 §7.3).
        if direction.reading == Reading::Certificate
            && matches!(direction.header[0], CHANGE_CIPHER_SPEC | APPLICATION_DATA)
        {
            direction.read_nothing();
        }
    }

    fn content(&mut self, from: Side, content: &[u8]) {
        let direction = self.direction_mut(from);
        match direction.header.first() {
            Some(&ALERT) if direction.left == 0 && direction.header[3..] == [0, 2] => {
                // The two bytes may arrive separately: the second is the description.
                let place = direction.place;
                if let (None, Some(description)) = (self.alert, content.last()) {
                    self.shown.push((place, content.to_vec()));
                    self.alert = Some((from, *description));
                }
            }
            Some(&HANDSHAKE) if direction.reading != Reading::Nothing => {
                direction.handshake.extend_from_slice(content);
                if direction.reading == Reading::Hello {
                    self.hello(from);
                }
                if self.direction(from).reading == Reading::Certificate {
                    self.certificate_message();
                }
            }
            _ => {}
        }
    }

    fn hello(&mut self, from: Side) {
        let mut client = None;
        let mut server = None;
        let direction = self.direction_mut(from);
        let mut retry = false;
        let mut shown = None;
        match parse_tls_message_handshake(&direction.handshake) {
            Ok((rest, TlsMessage::Handshake(TlsMessageHandshake::ClientHello(hello)))) if from == Side::Client => {
                shown = Some(direction.handshake.len() - rest.len());
                client = Some(client_hello(hello.version, hello.ext));
            }
            Ok((rest, TlsMessage::Handshake(TlsMessageHandshake::ServerHello(hello)))) if from == Side::Server => {
                retry = hello.random.starts_with(&RETRY);
                let used = direction.handshake.len() - rest.len();
                shown = Some(used);
                server = Some((used, server_hello(&hello)));
            }
            Err(tls_parser::nom::Err::Incomplete(_)) if direction.handshake.len() < HANDSHAKE_BYTES => return,
            _ => {}
        }
        // Only bytes that parsed as a hello: other bytes may hold a secret.
        let shown =
            direction.message.zip(shown).and_then(|(at, used)| Some((at, direction.handshake.get(..used)?.to_vec())));
        self.shown.extend(shown);
        let direction = self.direction_mut(from);
        if let (true, Some((used, _))) = (retry, server) {
            direction.handshake.remove_front(used);
            direction.message = direction.message.map(|at| at.saturating_add(used as u64));
            return;
        }
        match server {
            Some((used, ServerHello { version: 0x0300..=0x0303, .. })) if !direction.hole => {
                direction.reading = Reading::Certificate;
                direction.handshake.remove_front(used);
            }
            _ => direction.read_nothing(),
        }
        self.client_hello = self.client_hello.take().or(client);
        self.server_hello = self.server_hello.or(server.map(|(_, hello)| hello));
    }

    /// Parses the message after the server's hello, once it is complete.
    fn certificate_message(&mut self) {
        let Some(&[kind, high, middle, low]) = self.server.handshake.first_chunk::<MESSAGE_HEADER>() else { return };
        let end = MESSAGE_HEADER + (usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low));
        if kind == CERTIFICATE && end <= MESSAGE_HEADER + CERTIFICATE_BYTES {
            let Some(message) = self.server.handshake.get(..end) else { return };
            self.certificates = certificates(message).unwrap_or_default();
        }
        self.server.read_nothing();
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

/// Content types (RFC 8446 §5.1, RFC 6520): text does not begin with any of these bytes.
pub(super) const CONTENT_TYPES: std::ops::RangeInclusive<u8> = CHANGE_CIPHER_SPEC..=24;

/// Handshake or alert: a direction cannot begin with any other record.
pub(super) const fn is_record_type(byte: u8) -> bool {
    matches!(byte, ALERT | HANDSHAKE)
}

/// Index of the first record: its type and the major version, which do not occur in text. A type byte at the very end
/// may be the start of a record.
fn record_start(bytes: &[u8]) -> Option<usize> {
    match *bytes {
        [first, ..] if is_record_type(first) => return Some(0),
        // A hello in the form of SSL 2.0: length with its high bit set, type 1, version 3.x.
        [0x80..=0xff, _, 1, 3, ..] => return Some(0),
        _ => {}
    }
    bytes.windows(2).position(|pair| is_record_type(pair[0]) && pair[1] == 3)
}

fn client_hello(version: tls_parser::TlsVersion, extensions: Option<&[u8]>) -> ClientHello {
    let mut hello = ClientHello { version: version.0, sni: None };
    for extension in parsed(extensions) {
        match extension {
            TlsExtension::SupportedVersions(versions) => {
                // Ignores the reserved values (0x?a?a) of RFC 8701.
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

/// The certificates of a message; `None` if it does not match RFC 5246 §7.4.2, or has more than [`CERTIFICATES`].
fn certificates(message: &[u8]) -> Option<Vec<Vec<u8>>> {
    /// Size of the length fields of the list and of each certificate, in bytes.
    const LENGTH: usize = 3;
    let Ok((_, TlsMessage::Handshake(TlsMessageHandshake::Certificate(list)))) = parse_tls_message_handshake(message)
    else {
        return None;
    };
    // The parser silently skips a truncated end of the list.
    let bytes = list.cert_chain.iter().fold(LENGTH, |bytes, certificate| bytes + LENGTH + certificate.data.len());
    let is_whole = message.len() == MESSAGE_HEADER + bytes && list.cert_chain.len() <= CERTIFICATES;
    is_whole.then(|| list.cert_chain.iter().map(|certificate| certificate.data.to_vec()).collect())
}

fn parsed(extensions: Option<&[u8]>) -> Vec<TlsExtension<'_>> {
    extensions.and_then(|bytes| parse_tls_extensions(bytes).ok()).map(|(_, parsed)| parsed).unwrap_or_default()
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Timestamp, smtp::Session};

    impl TlsPhase {
        /// Processes bytes whose stream offset does not matter.
        fn take<'a>(&mut self, from: Side, bytes: &'a [u8]) -> &'a [u8] {
            self.push(from, 0, bytes)
        }
    }

    /// A ClientHello of TLS 1.2 and 1.3 for `mx.example.net`, built after RFC 8446 §4.1.2.
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
        record(0x16, &message(kind, &body))
    }

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        [&[kind][..], &u24(body.len()), body].concat()
    }

    fn u24(length: usize) -> Vec<u8> {
        u32::try_from(length).expect("short").to_be_bytes()[1..].to_vec()
    }

    fn record(kind: u8, content: &[u8]) -> Vec<u8> {
        let length = u16::try_from(content.len()).expect("short");
        [&[kind, 3, 3][..], &length.to_be_bytes(), content].concat()
    }

    /// A ServerHello without extensions (RFC 5246 §7.4.1.3).
    fn server_hello(version: u16) -> Vec<u8> {
        message(2, &[&version.to_be_bytes()[..], &[9; 32], &[0, 0xc0, 0x2f, 0]].concat())
    }

    /// A Certificate message (RFC 5246 §7.4.2).
    fn certificate_message(certificates: &[Vec<u8>]) -> Vec<u8> {
        let list: Vec<u8> = certificates.iter().flat_map(|bytes| [u24(bytes.len()), bytes.clone()].concat()).collect();
        message(CERTIFICATE, &[u24(list.len()), list].concat())
    }

    /// A server's first flight in one record.
    fn flight(version: u16, certificates: &[Vec<u8>]) -> Vec<u8> {
        let done = message(14, &[]);
        record(HANDSHAKE, &[server_hello(version), certificate_message(certificates), done].concat())
    }

    fn pushed(bytes: &[u8]) -> TlsPhase {
        let mut tls = TlsPhase::default();
        tls.take(Side::Client, &client_hello_record());
        assert!(tls.take(Side::Server, bytes).is_empty());
        tls
    }

    #[test]
    fn hellos_are_read_in_any_cut() {
        for size in [1, 2, 5, 6, 50, 4000] {
            let mut tls = TlsPhase::default();
            client_hello_record().chunks(size).for_each(|piece| assert!(tls.take(Side::Client, piece).is_empty()));
            server_hello_record().chunks(size).for_each(|piece| assert!(tls.take(Side::Server, piece).is_empty()));
            let hello = tls.client_hello.clone().expect("client hello");
            assert_eq!((hello.version, hello.sni.as_deref()), (0x0304, Some("mx.example.net")));
            assert_eq!(
                tls.server_hello,
                Some(ServerHello { version: 0x0304, cipher: 0x1301, downgrade_sentinel: false })
            );
            assert!(tls.is_tls(Side::Client) && tls.is_tls(Side::Server) && !tls.is_established());
            [0x14, 3, 3, 0, 1, 1, 0x17, 3, 3, 0, 53]
                .chunks(size)
                .for_each(|piece| assert!(tls.take(Side::Client, piece).is_empty()));
            assert!(tls.is_established());
        }
    }

    #[test]
    fn evidence_is_headers_whole_hellos_and_alerts_in_their_places() {
        for size in [1, 2, 5, 6, 50, 4000] {
            let mut tls = TlsPhase::default();
            let mut push = |from, at: u64, bytes: &[u8]| {
                let mut shown = Vec::new();
                for (number, piece) in bytes.chunks(size).enumerate() {
                    tls.push(from, at + (number * size) as u64, piece);
                    shown.extend(tls.take_shown());
                }
                shown
            };
            let hello = client_hello_record();
            let client = push(Side::Client, 70, &[&b"NOOP\r\n"[..], &hello].concat());
            assert_eq!(client, [(76, hello[..5].to_vec()), (81, hello[5..].to_vec())], "{size}");
            let hello = server_hello_record();
            let encrypted = [0x17, 3, 3, 0, 3, 1, 2, 3];
            let server = push(Side::Server, 9, &[&hello[..], &encrypted].concat());
            assert_eq!(server, [(9, hello[..5].to_vec()), (14, hello[5..].to_vec())], "{size}");
            let alert = push(Side::Client, 900, &[0x15, 3, 3, 0, 2, 2, 48]);
            assert_eq!((alert[0].0, alert.last().map(|(_, bytes)| bytes.last().copied())), (900, Some(Some(48))));
        }
        // Bytes that only look like a hello may hold a secret.
        let mut tls = TlsPhase::default();
        tls.push(Side::Client, 0, &record(HANDSHAKE, &message(1, b"AUTH PLAIN AGFubmEAaHVudGVyMg==")));
        assert_eq!(tls.take_shown().len(), 1, "its header");
    }

    #[test]
    fn an_alert_says_who_gave_up() {
        let mut tls = TlsPhase::default();
        tls.take(Side::Client, &client_hello_record());
        tls.take(Side::Server, &[0x15, 3, 3, 0, 2, 2, 40]);
        assert_eq!(tls.alert, Some((Side::Server, 40)));
        assert_eq!(tls.server_hello, None);
    }

    #[test]
    fn what_is_not_tls_is_not_called_tls() {
        let mut tls = TlsPhase::default();
        tls.take(Side::Server, b"500 what?\r\n");
        assert!(!tls.is_tls(Side::Server) && !tls.is_tls(Side::Client));
        assert_eq!(tls.before(Side::Server), b"500 what?\r\n");
    }

    #[test]
    fn a_hello_without_end_is_bounded() {
        let mut tls = TlsPhase::default();
        // A handshake message of 2^24 - 1 bytes in records of 16 KiB.
        tls.take(Side::Client, &[0x16, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff]);
        for _ in 0..100 {
            tls.take(Side::Client, &[0; 1024]);
        }
        assert!(tls.client.handshake.len() <= HANDSHAKE_BYTES + 1024);
        let mut text = TlsPhase::default();
        for _ in 0..100 {
            text.take(Side::Server, &[b'a'; 1024]);
        }
        assert_eq!(text.before(Side::Server).len(), BEFORE_BYTES);
    }

    #[test]
    fn text_before_a_record_is_kept_apart_from_it_in_any_cut() {
        let bytes = [b"EHLO evil\r\nMAIL FR".as_slice(), &client_hello_record()].concat();
        for size in 1..bytes.len() {
            let mut tls = TlsPhase::default();
            bytes.chunks(size).for_each(|piece| assert!(tls.take(Side::Client, piece).is_empty()));
            assert_eq!(tls.before(Side::Client), b"EHLO evil\r\nMAIL FR", "{size}");
            assert!(tls.client_hello.is_some(), "{size}");
        }
    }

    #[test]
    fn an_encrypted_alert_is_not_a_handshake_that_went_on() {
        let mut tls = TlsPhase::default();
        tls.take(Side::Client, &client_hello_record());
        tls.take(Side::Server, &server_hello_record());
        tls.take(Side::Client, &[&[0x17, 3, 3, 0, 19][..], &[0; 19]].concat());
        assert!(!tls.is_established());
    }

    #[test]
    fn the_certificates_of_tls_below_1_3_are_read() {
        let chain = [vec![1; 900], vec![2; 1100]];
        for version in [0x0301, 0x0302, 0x0303] {
            let tls = pushed(&flight(version, &chain));
            assert_eq!(tls.certificates, chain);
            assert_eq!(tls.server.handshake.capacity(), 0, "nothing is kept twice");
            assert!(!tls.is_established());
        }
        assert!(pushed(&flight(0x0304, &chain)).certificates.is_empty());
    }

    #[test]
    fn certificates_do_not_establish_anything() {
        let mut tls = pushed(&flight(0x0303, &[vec![1; 900]]));
        tls.take(Side::Client, &record(HANDSHAKE, &message(16, &[0; 66])));
        assert!(!tls.is_established());
        tls.take(Side::Server, &record(CHANGE_CIPHER_SPEC, &[1]));
        assert!(tls.is_established());
    }

    #[test]
    fn what_is_not_a_whole_list_of_certificates_is_none() {
        let list = |bytes: &[u8]| message(CERTIFICATE, &[&u24(bytes.len()), bytes].concat());
        let short = message(CERTIFICATE, &[0, 0, 9, 0, 0, 1, 7]);
        let long = message(CERTIFICATE, &[0, 0, 4, 0, 0, 1, 7, 0]);
        for other in
            [list(&[0, 0, 1, 7, 0, 0, 2, 7]), list(&[0, 0, 1, 7, 0]), list(&[]), short, long, message(12, &[0; 70])]
        {
            let tls = pushed(&record(HANDSHAKE, &[server_hello(0x0303), other].concat()));
            assert!(tls.certificates.is_empty());
            assert_eq!((tls.server.reading, tls.server.handshake.capacity()), (Reading::Nothing, 0));
        }
    }

    #[test]
    fn certificates_are_bounded() {
        let most = vec![vec![1; 100]; CERTIFICATES];
        assert_eq!(pushed(&flight(0x0303, &most)).certificates, most);
        assert!(pushed(&flight(0x0303, &[&most[..], &most[..1]].concat())).certificates.is_empty());
        let begun = [&server_hello(0x0303)[..], &[CERTIFICATE, 0, 0x40, 1]].concat();
        let tls = pushed(&record(HANDSHAKE, &begun));
        assert_eq!(tls.server.reading, Reading::Nothing, "of a message that is too long nothing is kept");
        let longest = [vec![1; CERTIFICATE_BYTES - 6]];
        let bytes = [server_hello(0x0303), certificate_message(&longest)].concat();
        let bytes: Vec<u8> = bytes.chunks(16_000).flat_map(|content| record(HANDSHAKE, content)).collect();
        assert_eq!(pushed(&bytes).certificates, longest);
    }

    #[test]
    fn a_resumed_session_has_no_certificates() {
        let resumed = [record(HANDSHAKE, &server_hello(0x0303)), record(CHANGE_CIPHER_SPEC, &[1])].concat();
        // The following bytes are encrypted, and can have any value.
        let mut tls = pushed(&resumed);
        tls.take(Side::Server, &record(HANDSHAKE, &certificate_message(&[vec![1; 900]])));
        assert!(tls.certificates.is_empty());
        let ticket = record(HANDSHAKE, &[server_hello(0x0303), message(4, &[0; 200])].concat());
        assert_eq!(pushed(&ticket).server.reading, Reading::Nothing);
    }

    #[test]
    fn certificates_with_a_hole_are_not_seen() {
        let flight = flight(0x0303, &[vec![1; 900]]);
        for hole in [60, 500] {
            let mut session = Session::new(false);
            let mut say = |from, offset: usize, bytes: &[u8]| session.data(from, Timestamp(0), offset as u64, bytes);
            say(Side::Client, 0, &client_hello_record());
            say(Side::Server, 0, &flight[..hole]);
            session.gap(Side::Server, 10);
            session.data(Side::Server, Timestamp(0), (hole + 10) as u64, &flight[hole..]);
            let tls = session.seen.tls.expect("TLS from the first byte");
            assert!(tls.server_hello.is_some() && tls.certificates.is_empty());
            assert_eq!(tls.server.handshake.capacity(), 0);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn certificates_are_the_same_in_any_cut_of_messages_and_of_bytes(
            chain in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..300), 1..5),
            records in proptest::collection::vec(1..400_usize, 1..8),
            pieces in proptest::collection::vec(1..400_usize, 1..8),
            cut in any::<proptest::sample::Index>(),
        ) {
            let messages = [server_hello(0x0303), certificate_message(&chain), message(14, &[])].concat();
            let bytes: Vec<u8> = cuts(&messages, &records).flat_map(|content| record(HANDSHAKE, content)).collect();
            let mut tls = pushed(&[]);
            for piece in cuts(&bytes, &pieces) {
                tls.take(Side::Server, piece);
                prop_assert!(tls.certificates.is_empty() || tls.server.handshake.capacity() == 0);
            }
            prop_assert_eq!(&tls.certificates, &chain);
            // Either all certificates or none.
            let cut = pushed(&bytes[..cut.index(bytes.len())]);
            prop_assert!(cut.certificates.is_empty() || cut.certificates == chain);
        }
    }

    /// Splits `bytes` into segments of these lengths, cyclically.
    fn cuts<'a>(mut bytes: &'a [u8], lengths: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
        lengths.iter().cycle().map_while(move |length| {
            let (piece, rest) = bytes.split_at((*length).min(bytes.len()));
            bytes = rest;
            (!piece.is_empty()).then_some(piece)
        })
    }

    #[test]
    fn weak_suites_are_known_by_name() {
        let hello = |cipher| ServerHello { version: 0x0301, cipher, downgrade_sentinel: false };
        assert_eq!(hello(0x0004).weak_suite(), Some("TLS_RSA_WITH_RC4_128_MD5"));
        assert!(hello(0x0000).weak_suite().is_some() && hello(0x0034).weak_suite().is_some());
        assert_eq!(hello(0x1301).weak_suite(), None);
        assert_eq!(hello(0xc02f).weak_suite(), None);
    }

    #[test]
    fn versions_have_a_closed_set_of_names() {
        for (wire, name) in [
            (Some(0x0300), "unknown"),
            (Some(0x0301), "1.0"),
            (Some(0x0302), "1.1"),
            (Some(0x0303), "1.2"),
            (Some(0x0304), "1.3"),
            (Some(0x7f1c), "unknown"),
            (None, "unknown"),
        ] {
            assert_eq!(TlsVersion::of_wire(wire).as_str(), name, "{wire:?}");
        }
    }
}
