//! Writes the committed corpus: `cargo run --manifest-path fuzz/Cargo.toml --example seeds`.
//!
//! Every file comes from a dialogue written here; none was recorded. Files that found a fault are stored next to them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair};
use smtpwatch_common::{
    FlowKey, Side,
    record::{Header, flag},
};
use smtpwatch_fuzz::{
    alphabet::{Word, octet},
    chain::encode,
    frames::{Frame, Streams, TARGET, kind},
    operation::{self, Operation, what},
    wire,
};

/// One write of one side.
#[derive(Clone, Copy)]
enum Says {
    /// The client.
    C(&'static str),
    /// The server.
    S(&'static str),
}

use Says::{C, S};

const HELLO: &str = "\x16\x03\x01\0\x46\x01\0\0\x42\x03\x03AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\0\0\x02\x7f\x2f\x01\0\
                     \0\x17\0\0\0\x13\0\x11\0\0\x0emx.example.net";
const ANSWER: &str = "\x16\x03\x03\0\x2a\x02\0\0\x26\x03\x03BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB\0\x7f\x2f\0";

/// [`ANSWER`], followed by a second record with two certificates of four bytes and the end of the server's flight.
const CERTIFIED: &str = "\x16\x03\x03\0\x2a\x02\0\0\x26\x03\x03BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB\0\x7f\x2f\0\
                         \x16\x03\x03\0\x19\x0b\0\0\x11\0\0\x0e\0\0\x04AAAA\0\0\x04BBBB\x0e\0\0\0";

const DIALOGUES: [(&str, &[Says]); 10] = [
    (
        "starttls",
        &[
            S("220 mx.example.net ESMTP\r\n"),
            C("EHLO mail.example.org\r\n"),
            S("250-mx.example.net Hello\r\n250-SIZE 35882577\r\n250 STARTTLS\r\n"),
            C("STARTTLS\r\n"),
            S("220 go ahead\r\n"),
            C(HELLO),
            S(ANSWER),
        ],
    ),
    (
        "stripped",
        &[
            S("220 mx.example.net ESMTP\r\n"),
            C("EHLO mail.example.org\r\n"),
            S("250-mx.example.net Hello\r\n250-PIPELINING\r\n250 DSN\r\n"),
            C("MAIL FROM:<a@example.org>\r\n"),
            C("RCPT TO:<b@example.net>\r\n"),
            C("DATA\r\n"),
            S("250 ok\r\n"),
            S("250 ok\r\n"),
            S("354 go on\r\n"),
            C("Subject: x\r\n\r\n..\r\n.\r\n"),
            S("250 ok\r\n"),
            C("QUIT\r\n"),
            S("221 2.0.0 bye\r\n"),
        ],
    ),
    (
        "masked",
        &[
            S("220 ****************2**\r\n"),
            C("EHLO mail.example.org\r\n"),
            S("250-mx.example.net Hello\r\n250-ETRN\r\n250-XXXXXXXA\r\n250-ENHANCEDSTATUSCODES\r\n250 DSN\r\n"),
            C("MAIL FROM:<a@example.org>\r\n"),
            S("250 ok\r\n"),
        ],
    ),
    (
        "refused",
        &[
            S("220 mx.example.net ESMTP\r\n"),
            C("EHLO mail.example.org\r\n"),
            S("250-mx.example.net Hello\r\n250 STARTTLS\r\n"),
            C("STARTTLS\r\n"),
            S("454 4.7.0 TLS not available\r\n"),
            C("MAIL FROM:<a@example.org>\r\n"),
            S("530 5.7.0 STARTTLS first\r\n"),
        ],
    ),
    (
        "injected",
        &[
            S("220 mx.example.net ESMTP\r\n"),
            C("EHLO mail.example.org\r\n"),
            S("250-mx.example.net Hello\r\n250 STARTTLS\r\n"),
            C("STARTTLS\r\n"),
            C("RSET\r\n"),
            C("MAIL FROM:<a@example.org>\r\n"),
            S("220 go ahead\r\n"),
            S("250 ok\r\n"),
            C(HELLO),
        ],
    ),
    (
        "auth-login",
        &[
            S("220 mx.example.net ESMTP\r\n"),
            C("EHLO mail.example.org\r\n"),
            S("250-mx.example.net Hello\r\n250-AUTH PLAIN LOGIN CRAM-MD5\r\n250 AUTH=LOGIN\r\n"),
            C("AUTH LOGIN\r\n"),
            S("334 VXNlcm5hbWU6\r\n"),
            C("dXNlcg==\r\n"),
            S("334 \r\n"),
            C("AHVzZXIAVHIwdWI0ZG9yLXBsYW50ZWQtYW5kLTM=\r\n"),
            S("235 2.7.0 ok\r\n"),
        ],
    ),
    (
        "auth-plain",
        &[
            S("220-mx.example.net\r\n220 go ahead\r\n"),
            C("EHLO mail.example.org\r\n"),
            S("250-mx.example.net Hello\r\n250-AUTH PLAIN LOGIN CRAM-MD5\r\n250 STARTTLS\r\n"),
            C("AUTH PLAIN AHVzZXIAVHIwdWI0ZG9yLXBsYW50ZWQtYW5kLTM=\r\n"),
            S("535 5.7.8 no\r\n"),
            C("*\r\n"),
            S("500 5.5.1 unrecognized: XXXXXXXX\r\n"),
        ],
    ),
    (
        "bdat",
        &[
            S("220 mx.example.net ESMTP\r\n"),
            C("EHLO mail.example.org\r\n"),
            S("250-mx.example.net Hello\r\n250-CHUNKING\r\n250 DSN\r\n"),
            C("MAIL FROM:<> SIZE=9 BODY=8BITMIME REQUIRETLS\r\n"),
            S("250 ok\r\n"),
            C("BDAT 5\r\n"),
            C("\0\0\0\0\0"),
            C("BDAT 0 LAST\r\n"),
            S("250 ok\r\n"),
            S("250 ok\r\n"),
            C("RSET\r\n"),
            S("250 ok\r\n"),
        ],
    ),
    (
        "handshake-failed",
        &[
            S("220 mx.example.net ESMTP\r\n"),
            C("EHLO mail.example.org\r\n"),
            S("250-mx.example.net Hello\r\n250 STARTTLS\r\n"),
            C("STARTTLS\r\n"),
            S("220 go ahead\r\n"),
            C(HELLO),
            S("\x15\x03\x01\0\x02\x02\x28"),
        ],
    ),
    (
        "no-ehlo",
        &[
            S("220 mx.example.net ESMTP\r\n"),
            C("EHLO mail.example.org\r\n"),
            S("502 5.5.2 not implemented\r\n"),
            C("HELO x\r\n"),
            S("250 ok\r\n"),
            C("XXXXXXXX\r\n"),
            S("500 5.5.1 unrecognized: XXXXXXXX\r\n"),
        ],
    ),
];

/// Dialogues in which something may shift the pairing of commands and replies (docs/pairing.md).
const PAIRING: [(&str, &[Says]); 11] = [
    (
        "line-before-go-ahead",
        &[
            S("220 mx.example.net ESMTP\r\n"),
            C("EHLO mail.example.org\r\n"),
            S("250-mx.example.net Hello\r\n250 STARTTLS\r\n"),
            C("STARTTLS\r\n"),
            S("4.7.0 hello\r\n"),
            S("220 go ahead\r\n"),
            C(HELLO),
            S(ANSWER),
        ],
    ),
    (
        "line-as-refusal",
        &[
            S("220 mx.example.net ESMTP\r\n"),
            C("EHLO mail.example.org\r\n"),
            S("250-mx.example.net Hello\r\n250 STARTTLS\r\n"),
            C("STARTTLS\r\n"),
            S("\r\n"),
            C("QUIT\r\n"),
            S("221 2.0.0 bye\r\n"),
        ],
    ),
    (
        "login-goes-on",
        &[
            S("220 mx.example.net ESMTP\r\n"),
            C("EHLO mail.example.org\r\n"),
            S("250-mx.example.net Hello\r\n250 AUTH=LOGIN\r\n"),
            C("AUTH LOGIN\r\n"),
            S("454 4.7.0 TLS not available\r\n"),
            C("dXNlcg==\r\n"),
            S("500 5.5.1 unrecognized: XXXXXXXX\r\n"),
            C("AHVzZXIAVHIwdWI0ZG9yLXBsYW50ZWQtYW5kLTM=\r\n"),
            S("500 5.5.1 unrecognized: XXXXXXXX\r\n"),
        ],
    ),
    (
        "login-does-not-wait",
        &[
            S("220 mx.example.net ESMTP\r\n"),
            C("EHLO mail.example.org\r\n"),
            S("250-mx.example.net Hello\r\n250 AUTH=LOGIN\r\n"),
            C("AUTH LOGIN\r\ndXNlcg==\r\nAHVzZXIAVHIwdWI0ZG9yLXBsYW50ZWQtYW5kLTM=\r\nQUIT\r\n"),
            S("503 5.5.1 not now\r\n502 5.5.2 not implemented\r\n221 2.0.0 bye\r\n"),
        ],
    ),
    (
        "data-350",
        &[
            S("220 mx.example.net ESMTP\r\n"),
            C("EHLO mail.example.org\r\n"),
            S("250-mx.example.net Hello\r\n250 DSN\r\n"),
            C("MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n"),
            S("250 ok\r\n250 ok\r\n350-go\r\n350 go\r\n"),
            C("Subject: x\r\n\r\nAUTH LOGIN\r\nQUIT\r\n.\r\n"),
            S("250 ok\r\n"),
        ],
    ),
    (
        "bdat-refused",
        &[
            S("220 mx.example.net ESMTP\r\n"),
            C("EHLO mail.example.org\r\n"),
            S("250-mx.example.net Hello\r\n250 DSN\r\n"),
            C("MAIL FROM:<a@example.org>\r\n"),
            S("250 ok\r\n"),
            C("BDAT 9 LAST\r\n"),
            C("STARTT\r\nX"),
            S("502 5.5.2 not implemented\r\n502 5.5.2 not implemented\r\n"),
            C("RSET\r\n"),
            S("250 ok\r\n"),
        ],
    ),
    (
        "proxy-v2",
        &[
            C("\r\n\r\n\0\r\nQUIT\n!\x11\0\x0c\x0a\0\0\x01\x0a\0\0\x02\x30\x39\0\x19"),
            S("220 mx.example.net ESMTP\r\n"),
            S("502 5.5.2 not implemented\r\n502 5.5.2 not implemented\r\n"),
            C("EHLO mail.example.org\r\n"),
            S("250-mx.example.net Hello\r\n250 STARTTLS\r\n"),
        ],
    ),
    (
        "clear-after-go-ahead",
        &[
            S("220 mx.example.net ESMTP\r\n"),
            C("EHLO mail.example.org\r\n"),
            S("250-mx.example.net Hello\r\n250 STARTTLS\r\n"),
            C("STARTTLS\r\n"),
            S("220 go ahead\r\n"),
            S("\r\n421 bye\r\n"),
        ],
    ),
    (
        "demanded",
        &[
            S("220 mx.example.net ESMTP\r\n"),
            C("EHLO mail.example.org\r\n"),
            S("250-mx.example.net Hello\r\n250 DSN\r\n"),
            C("MAIL FROM:<a@example.org>\r\n"),
            S("530 5.7.0 STARTTLS first\r\n"),
            C("STARTTLS\r\n"),
            S("502 5.5.2 not implemented\r\n"),
        ],
    ),
    (
        "blanks",
        &[
            S("220 mx.example.net ESMTP\r\n"),
            C("\r\n\0\0\r\nEHLO mail.example.org\r\n"),
            S("502 5.5.2 not implemented\r\n"),
            S("250-mx.example.net Hello\r\n250 STARTTLS\r\n"),
            C("STARTTLS\r\n"),
            S("454 4.7.0 TLS not available\r\n"),
        ],
    ),
    (
        "ntlm",
        &[
            S("220 mx.example.net ESMTP\r\n"),
            C("EHLO mail.example.org\r\n"),
            S("250-mx.example.net Hello\r\n250 DSN\r\n"),
            C("AUTH NTLM TlRMTVNTUAABAAAABzIAAAAAAAAAAAAAAAAAAAAAAAA=\r\n"),
            S("334 TlRMTVNTUAACAAAA\r\n"),
            C(
                "TlRMTVNTUAADAAAACAAIAEAAAAAIAAgAQAAAAAgACABIAAAACAAIAFAAAAAGAAYAWAAAAAAAAABeAAAAAQIIAgECAwQFBgcIQwBPAFIAUAB1AHMAZQByAFcAUwAxAA==\r\n",
            ),
            S("535 5.7.8 no user\r\n"),
        ],
    ),
];

fn main() -> io::Result<()> {
    let corpus = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let put = |target: &str, name: &str, bytes: &[u8]| -> io::Result<()> {
        assert!(bytes.len() < 4096, "{target}/{name}: {} octets", bytes.len());
        fs::create_dir_all(corpus.join(target))?;
        fs::write(corpus.join(target).join(name), bytes)
    };
    for (name, says) in DIALOGUES {
        put("dialogue", name, &words(0, says))?;
        put("walk_gate", name, &frames(says, 0, 1460))?;
        put("engine_pcap", name, &pcap(&packets(says, 0, 1460), Form::PCAP))?;
        put("reassembly", name, &operation::encode(&operations(says)))?;
    }
    for (name, says) in PAIRING {
        put("dialogue", name, &words(0, says))?;
        put("engine_pcap", name, &pcap(&packets(says, 0, 1460), Form::PCAP))?;
    }
    for (name, shape) in
        [("quoted-plain", 1), ("quoted-late", 4 + 16), ("quoted-upper", 5 + 8 + 32), ("midstream", 0x80)]
    {
        put("dialogue", name, &words(shape, DIALOGUES[1].1))?;
    }
    let certified = [&DIALOGUES[0].1[..6], &[S(CERTIFIED)]].concat();
    put("dialogue", "certificates", &words(0, &certified))?;
    let (starttls, stripped) = (DIALOGUES[0].1, DIALOGUES[1].1);
    let v6 = kind::V6 | kind::TAGGED | kind::OPTIONS;
    put("walk_gate", "ipv6-tagged-options", &frames(starttls, v6, 1460))?;
    put("walk_gate", "ipv4-options-egress", &frames(starttls, kind::OPTIONS | kind::EGRESS, 1460))?;
    put("walk_gate", "no-link-layer", &frames(stripped, kind::IP, 7))?;
    put("walk_gate", "cut", &frames(stripped, kind::CUT, 1460))?;
    put("walk_gate", "as-client", &directed(stripped, Side::Client))?;
    put("walk_gate", "as-server", &directed(starttls, Side::Server))?;
    put("walk_gate", "octets", &frames(&starttls[..5], 0, 1))?;
    put("walk_gate", "orders", &ordered(stripped))?;
    put("walk_gate", "raw", &raw())?;
    put("walk_gate", "encapsulated", &encapsulated())?;
    put("engine_pcap", "big-endian-nanoseconds", &pcap(&packets(stripped, kind::IP, 1460), Form::BIG_RAW))?;
    put("engine_pcap", "octets", &pcap(&packets(&starttls[..4], v6, 8), Form::PCAP))?;
    put("engine_pcap", "loopback", &pcap(&packets(DIALOGUES[5].1, kind::IP, 1460), Form::LOOPBACK))?;
    put("engine_pcap", "cooked", &pcap(&packets(DIALOGUES[6].1, kind::IP, 1460), Form::COOKED))?;
    put("engine_pcap", "pcapng", &pcapng(&packets(DIALOGUES[3].1, 0, 1460)))?;
    put("engine_pcap", "ends-early", &pcap(&packets(starttls, 0, 1460), Form::PCAP)[..777])?;
    for (name, bytes) in records() {
        put("record", name, &bytes)?;
    }
    for (name, list) in tangles() {
        put("reassembly", name, &operation::encode(&list))?;
    }
    for (name, text) in STS {
        put("sts", name, text.as_bytes())?;
    }
    put("sts", "records", b"v=spf1 -all\xffv=STSv1; id=20160831085700Z;\xff")?;
    for (name, text) in LISTS {
        put("starttls_list", name, text.as_bytes())?;
    }
    for (name, octets) in chains() {
        put("tlsa", name, &octets)?;
    }
    put("tlsa", "text", b"3 1 1 d2abde240d7cd3ee6b4b28c54df034b97983a1d16e8a410e4561cb106618e971")?;
    report(&corpus)
}

/// MTA-STS records and policies, some of them from RFC 8461.
const STS: [(&str, &str); 9] = [
    ("record", "v=STSv1; id=20160831085700Z;"),
    ("record-extended", "v=STSv1 ; id=1; a.b_c-d=!\"#; id=a-b ;"),
    ("record-malformed", "v=STSv1; id=test-123;;"),
    (
        "enforce",
        "version: STSv1\nmode: enforce\nmx: mail.example.com\nmx: *.example.net\nmx: backupmx.example.com\nmax_age: 604800\n",
    ),
    ("testing", "version:STSv1\r\nmode:testing \r\nmx:\t*.example.net\r\nmax_age:9999999999\r\n\r\n"),
    ("none", "version: STSv1\nmode: none\nmax_age: 86400"),
    ("extended", "version: STSv1\nmode: none\nmode: bad\nx-note: gr\u{fc}\u{df}e\nmax_age: 0\nmax_age: x\n"),
    ("not-a-name", "version: STSv1\nmode: enforce\nmx: *.*.x\nmx: b\u{fc}cher.example\nmax_age: 1\n"),
    ("without-mx", "version: STSv1\nmode: enforce\nmax_age: 12345678901\n"),
];

/// Lists in the schema of STARTTLS-Everywhere.
const LISTS: [(&str, &str); 4] = [
    (
        "list",
        r#"{"timestamp":"2026-05-22T22:44:41+00:00","expires":1795446245,"version":"0.1","author":"a","policy-aliases":{"h":
{"mode":"testing","mxs":[".mx.example.org"]}},"policies":{"example.com":{"mode":"enforce","mxs":["mx.example.com",".a.example"]},
"b\u00fccher.example":{"policy-alias":"h"}}}"#,
    ),
    ("empty", r#"{"timestamp":0,"expires":0,"version":"0.1","policies":{},"policy-aliases":{}}"#),
    (
        "alias-unknown",
        r#"{"timestamp":0,"expires":0,"version":"0.1","policies":{"a.b":{"policy-alias":"x"}},"policy-aliases":{}}"#,
    ),
    ("key-unknown", r#"{"timestamp":0,"expires":0,"version":"0.1","policies":{"a.b":[]},"other":null}"#),
];

/// Certificate chains with TLSA records of them. The keys are used nowhere: each is one byte repeated.
fn chains() -> Vec<(&'static str, Vec<u8>)> {
    const AT: u32 = 1_780_000_000;
    let key = |octet: u8| {
        // PKCS #8 of an Ed25519 key (RFC 8410 §7).
        let der = [&b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20"[..], &[octet; 32]].concat();
        KeyPair::try_from(der).expect("a key")
    };
    let named = |name: &str, names: &[&str]| {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("ASCII");
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params
    };
    let authority = |name| {
        let mut params = named(name, &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    };
    let root = authority("Root").self_signed(&key(1)).expect("a certificate");
    let by_root = Issuer::new(authority("Root"), key(1));
    let middle = authority("Middle").signed_by(&key(2), &by_root).expect("a certificate");
    let by_middle = Issuer::new(authority("Middle"), key(2));
    let server = named("server", &["*.example.net"]).signed_by(&key(3), &by_middle).expect("a certificate");
    let own = named("mx.example.net", &[]).self_signed(&key(4)).expect("a certificate");
    let (root, middle, server, own) = (root.der(), middle.der(), server.der(), own.der());
    vec![
        ("end-entity", encode(AT, &[own], &[(0, 3, 1, 1)])),
        ("end-entity-other", encode(AT, &[own, root], &[(1, 3, 1, 1), (1, 3, 0, 2)])),
        ("anchor", encode(AT, &[server, middle, root], &[(2, 2, 1, 1), (2, 2, 1, 2), (2, 2, 0, 1)])),
        ("anchor-between", encode(AT, &[server, root, middle], &[(2, 2, 0, 2)])),
        ("anchor-in-full", encode(AT, &[server, middle, root], &[(2, 2, 0, 0), (2, 2, 1, 0), (1, 3, 1, 1)])),
        ("anchor-of-another", encode(AT, &[own, middle, root], &[(2, 2, 1, 1)])),
        ("anchor-itself", encode(AT, &[own], &[(0, 2, 1, 1)])),
        ("unusable", [encode(AT, &[own], &[(0, 1, 1, 1), (0, 0, 0, 0)]), vec![0x83, 0x31, 1, 1, 2, 3]].concat()),
    ]
}

fn report(corpus: &Path) -> io::Result<()> {
    for target in fs::read_dir(corpus)? {
        let target = target?.path();
        let lengths: Vec<u64> =
            fs::read_dir(&target)?.map(|file| Ok(file?.metadata()?.len())).collect::<io::Result<_>>()?;
        println!("{}: {} files, {} octets", target.display(), lengths.len(), lengths.iter().sum::<u64>());
    }
    Ok(())
}

/// The words of a dialogue; bytes that are not a word are written as literals.
fn words(opening: u8, says: &[Says]) -> Vec<u8> {
    let mut octets = vec![opening];
    for one in says {
        let (turn, mut text) = match one {
            C(text) => (Word::Client, *text),
            S(text) => (Word::Server, *text),
        };
        octets.extend(octet(turn));
        while !text.is_empty() {
            let known = (0..=u8::MAX).find_map(|octet| match smtpwatch_fuzz::alphabet::word(octet) {
                Word::Text(word) | Word::Secret(word) if word.ends_with(b"\n") && text.as_bytes().starts_with(word) => {
                    Some((octet, word.len()))
                }
                _ => None,
            });
            match known {
                Some((octet, length)) => {
                    octets.push(octet);
                    text = &text[length..];
                }
                None => {
                    octets.extend(octet(Word::Literal));
                    octets.push(text.as_bytes()[0]);
                    text = &text[1..];
                }
            }
        }
    }
    octets
}

/// A connection with this dialogue, in segments of at most `size` bytes.
fn conversation(says: &'static [Says], bits: u8, size: usize) -> Vec<Frame<'static>> {
    let frame = |kind: u8, flags: u8, body: &'static [u8]| Frame { kind: kind | bits, order: 0, ahead: 0, flags, body };
    let mut frames = vec![frame(0, 0x02, b""), frame(kind::SERVER, 0x12, b""), frame(0, 0x10, b"")];
    for one in says {
        let (side, text) = match one {
            C(text) => (0, text),
            S(text) => (kind::SERVER, text),
        };
        frames.extend(text.as_bytes().chunks(size).map(|piece| frame(side, 0x18, piece)));
        frames.push(frame(kind::SERVER - side, 0x10, b""));
    }
    frames.extend([frame(0, 0x11, b""), frame(kind::SERVER, 0x11, b""), frame(0, 0x10, b"")]);
    frames
}

fn frames(says: &'static [Says], bits: u8, size: usize) -> Vec<u8> {
    let mut input = Vec::new();
    conversation(says, bits, size).iter().for_each(|frame| frame.put(&mut input));
    input
}

/// The frames as this host sees them if it is one of the ends. Every seventh frame is preceded by a copy from the other
/// direction, and every fifth one by a copy far off in sequence.
fn directed(says: &'static [Says], own: Side) -> Vec<u8> {
    let mut input = Vec::new();
    for (index, mut frame) in conversation(says, 0, 1460).into_iter().enumerate() {
        let (there, back) = if frame.from() == own { (kind::EGRESS, 0) } else { (0, kind::EGRESS) };
        if index % 7 == 6 {
            Frame { kind: frame.kind | back, flags: 0x10, body: b"", ..frame }.put(&mut input);
        }
        frame.kind |= there;
        if index % 5 == 4 {
            Frame { ahead: 127, flags: 0x10, body: b"", ..frame }.put(&mut input);
            frame.ahead = -127;
        }
        frame.put(&mut input);
    }
    input
}

/// Each of the daemon's orders in turn, with near and far sequence numbers.
fn ordered(says: &'static [Says]) -> Vec<u8> {
    let mut input = Vec::new();
    for (index, mut frame) in conversation(says, 0, 30).into_iter().enumerate() {
        frame.order = if index % 3 == 2 { u8::try_from(index).expect("few frames") } else { 0 };
        frame.ahead = if index % 5 == 4 { -3 } else { 0 };
        frame.put(&mut input);
    }
    input
}

/// Packets that are not mail, or not complete.
fn raw() -> Vec<u8> {
    let whole = packets(DIALOGUES[0].1, 0, 1460);
    let mut fragment = whole[3].clone();
    fragment[20] = 0x20;
    let mut udp = whole[3].clone();
    udp[23] = 17;
    let mut arp = whole[0].clone();
    arp[12..14].copy_from_slice(&[8, 6]);
    let mut web = whole[3].clone();
    web[34..38].copy_from_slice(&[0, 80, 0, 81]);
    let mut short_header = whole[3].clone();
    short_header[14] = 0x44;
    let mut input = Vec::new();
    let bodies = [&whole[0][..], &fragment, &udp, &arp, &web, &short_header, &whole[3][..40], &whole[3][..17], b""];
    for body in bodies {
        Frame { kind: kind::RAW, order: 0, ahead: 0, flags: 0, body }.put(&mut input);
    }
    input
}

/// Packets of a connection that is followed, and of one that is not, in each encapsulation.
fn encapsulated() -> Vec<u8> {
    let whole = packets(DIALOGUES[0].1, 0, 1460);
    let mut other = whole[3].clone();
    other[34..36].copy_from_slice(&[0x9c, 0x3f]);
    let outer = |protocol: u8, rest: &[u8]| {
        let [high, low] = u16::try_from(20 + rest.len()).expect("a packet is short").to_be_bytes();
        let header = [0x45, 0, high, low, 0, 1, 0x40, 0, 64, protocol, 0, 0, 203, 0, 113, 1, 203, 0, 113, 2];
        [&TARGET[..], &[2, 0, 0, 0, 0, 2, 8, 0], &header, rest].concat()
    };
    let of_type = |kind: [u8; 2], rest: &[u8]| [&TARGET[..], &[2, 0, 0, 0, 0, 2], &kind, rest].concat();
    let mut bodies = vec![whole[0].clone()];
    for frame in [&whole[3], &other] {
        let ip = &frame[14..];
        let udp = |port: [u8; 2], header: &[u8]| outer(17, &[&[0xc0, 0], &port[..], &[0; 4], header, frame].concat());
        bodies.extend([
            udp([0x12, 0xb5], &[8, 0, 0, 0, 0, 0, 7, 0]),
            udp([0x17, 0xc1], &[1, 0, 0x65, 0x58, 0, 0, 7, 0, 0, 0, 0, 0]),
            outer(47, &[&[0xb0, 0, 8, 0], &[0; 12][..], ip].concat()),
            outer(47, &[&[0x10, 0, 0x88, 0xbe], &[0; 12][..], frame].concat()),
            outer(4, ip),
            of_type([0x88, 0x64], &[&[0x11, 0, 0, 7, 0, 0, 0, 0x21], ip].concat()),
            of_type([0x88, 0x47], &[&[0, 1, 0, 64, 0, 2, 1, 64], ip].concat()),
        ]);
    }
    let mut input = Vec::new();
    for body in &bodies {
        Frame { kind: kind::RAW, order: 0, ahead: 0, flags: 0, body }.put(&mut input);
    }
    input
}

fn packets(says: &'static [Says], bits: u8, size: usize) -> Vec<Vec<u8>> {
    let mut streams = Streams::default();
    conversation(says, bits, size).iter().map(|frame| streams.build(frame)).collect()
}

/// Format of a capture file.
#[derive(Clone, Copy)]
struct Form {
    magic: u32,
    big_endian: bool,
    linktype: u32,
    pseudo_header: &'static [u8],
}

impl Form {
    const PCAP: Self = Self { magic: 0xa1b2_c3d4, big_endian: false, linktype: 1, pseudo_header: b"" };
    const BIG_RAW: Self = Self { magic: 0xa1b2_3c4d, big_endian: true, linktype: 101, ..Self::PCAP };
    const LOOPBACK: Self = Self { linktype: 0, pseudo_header: &[2, 0, 0, 0], ..Self::PCAP };
    const COOKED: Self =
        Self { linktype: 113, pseudo_header: &[0, 0, 0, 1, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0, 8, 0], ..Self::PCAP };

    fn number(self, number: u32) -> [u8; 4] {
        if self.big_endian { number.to_be_bytes() } else { number.to_le_bytes() }
    }
}

fn pcap(packets: &[Vec<u8>], form: Form) -> Vec<u8> {
    let version = if form.big_endian { [0, 2, 0, 4] } else { [2, 0, 4, 0] };
    let mut file = Vec::new();
    file.extend(form.number(form.magic));
    file.extend(version);
    for number in [0, 0, 65_535, form.linktype] {
        file.extend(form.number(number));
    }
    for (second, packet) in (1_795_446_245..).zip(packets) {
        let length = u32::try_from(form.pseudo_header.len() + packet.len()).expect("a packet is short");
        for number in [second, 7, length, length] {
            file.extend(form.number(number));
        }
        file.extend(form.pseudo_header);
        file.extend(packet);
    }
    file
}

fn pcapng(packets: &[Vec<u8>]) -> Vec<u8> {
    let block = |kind: u32, body: &[u8]| {
        let length = u32::try_from(12 + body.len()).expect("a block is short").to_le_bytes();
        [&kind.to_le_bytes()[..], &length, body, &length].concat()
    };
    let mut file = block(0x0a0d_0d0a, &[0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255]);
    // Name `eth0`, nanoseconds, end of options.
    let options = [2, 0, 4, 0, b'e', b't', b'h', b'0', 9, 0, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0];
    file.extend(block(1, &[&[1, 0, 0, 0, 0, 0, 1, 0][..], &options].concat()));
    for (time, packet) in (0_u32..).step_by(1_000_000).zip(packets) {
        let length = u32::try_from(packet.len()).expect("a packet is short");
        let mut body: Vec<u8> = [0, 0x18e0_0000, time, length, length].iter().flat_map(|n| n.to_le_bytes()).collect();
        body.extend(packet);
        body.resize(body.len().next_multiple_of(4), 0);
        file.extend(block(6, &body));
    }
    file
}

fn records() -> Vec<(&'static str, Vec<u8>)> {
    let key = FlowKey::new(([192, 0, 2, 10], 41_234).into(), ([198, 51, 100, 25], 25).into());
    let v6 = FlowKey::new("[2001:db8::10]:41234".parse().expect("v6"), "[2001:db8::25]:587".parse().expect("v6"));
    let record = |header: Header, payload: &[u8]| {
        let captured = u16::try_from(payload.len()).expect("a record is short");
        wire::encode(&Header { captured, length: captured.into(), ..header }, payload)
    };
    let banner =
        Header { key, from: 1, ip_version: 4, timestamp: 7, flow: 42, tcp_flags: 0x18, ttl: 64, ..Header::EMPTY };
    let mut syn = Header { key: v6, ip_version: 6, direction: 1, tcp_flags: 2, options_len: 4, ..Header::EMPTY };
    syn.options[..4].copy_from_slice(&[2, 4, 5, 0xb4]);
    let whole = record(banner, b"220 mx.example.net ESMTP\r\n");
    vec![
        ("banner", whole.clone()),
        ("syn", record(syn, b"")),
        ("full", record(Header { flags: flag::MIDSTREAM | flag::CUT, ..banner }, &[b'a'; 2048])),
        ("short", whole[..100].to_vec()),
        ("one-less", whole[..whole.len() - 1].to_vec()),
        ("abi", record(Header { abi: 2, ..banner }, b"x")),
        ("direction", record(Header { direction: 2, ..banner }, b"x")),
        ("options", record(Header { options_len: 41, ..banner }, b"x")),
        ("version", record(Header { ip_version: 5, ..banner }, b"x")),
    ]
}

/// The handshake, and one segment per line.
fn operations(says: &[Says]) -> Vec<Operation> {
    let step =
        |what, flags, length| Operation { what: what | what::ADVANCE, flags, length, after: 1, ..Operation::default() };
    let mut list = vec![step(0, 0x02, 0), step(what::SERVER, 0x12, 0), step(0, 0x10, 0)];
    for one in says {
        let (side, text) = match one {
            C(text) => (0, text),
            S(text) => (what::SERVER, text),
        };
        list.push(step(side, 0x18, u16::try_from(text.len()).expect("a line is short")));
        list.push(step(what::SERVER - side, 0x10, 0));
    }
    list.extend([step(0, 0x11, 0), step(what::SERVER, 0x11, 0), step(0, 0x10, 0)]);
    list
}

/// Hostile operations on a stream.
fn tangles() -> Vec<(&'static str, Vec<Operation>)> {
    let with = |more: &[Operation]| {
        let mut list = operations(&[S("220 mx\r\n"), C("EHLO x\r\n")]);
        list.truncate(list.len() - 3);
        list.extend(more);
        list
    };
    let data = Operation { flags: 0x18, length: 100, ..Operation::default() };
    let server = Operation { what: what::SERVER, flags: 0x10, ..Operation::default() };
    let rst = Operation { flags: 0x04, ..Operation::default() };
    vec![
        ("overlap", with(&[data, Operation { fill: 9, ..data }, Operation { ahead: 50, fill: 3, ..data }, server])),
        (
            "behind",
            with(&[Operation { ahead: -1, length: 1, ..data }, Operation { ahead: -8, fill: 5, ..data }, server]),
        ),
        ("out-of-order", with(&[Operation { ahead: 100, ..data }, data, Operation { ack: 200, ..server }])),
        (
            "hole",
            with(&[Operation { what: what::ADVANCE | what::HOLE, ..data }, data, Operation { ack: 100, ..server }]),
        ),
        ("far-hole", with(&[Operation { what: what::FAR, ahead: 30_000, length: 60_000, ..data }, data, server])),
        ("comb", with(&[Operation { what: what::COMB, ahead: 1, ..data }; 8])),
        ("comb-undrained", with(&[Operation { what: what::COMB | what::UNDRAINED, ahead: 9, ..data }; 12])),
        ("full-undrained", with(&[Operation { what: what::ADVANCE | what::UNDRAINED, length: 65_000, ..data }; 6])),
        ("full", with(&[Operation { what: what::ADVANCE, ahead: 2, length: 65_000, ..data }; 6])),
        ("decoy-reset", with(&[Operation { ahead: 20, ..rst }, data, server, rst, data, server])),
        ("decoy-fin", with(&[Operation { flags: 0x11, ahead: 50, length: 9, ..data }, data, data, server])),
        (
            "again",
            with(&[Operation { flags: 2, ahead: 9, length: 0, ..data }, Operation { flags: 0x12, ack: 10, ..server }]),
        ),
        (
            "closed-twice",
            with(&[Operation { what: what::CLOSE, ..data }, data, Operation { what: what::CLOSE, ..data }]),
        ),
        ("settled", with(&[Operation { what: what::SETTLE | what::ADVANCE, ..data }, data, server, rst])),
        ("midstream", vec![data, Operation { what: what::SERVER, ..data }, Operation { ahead: -200, ..data }, server]),
        ("tail-first", with(&[Operation { offset: 60, ..data }, Operation { offset: 0, length: 60, ..data }, server])),
        ("forged-ack", with(&[Operation { ack: 5_000, ..server }, data, Operation { ack: 50, ..server }, data])),
    ]
}
