//! Compares the dialogue with two independent readers of the same recordings: the parsers of the crate smtp-proto, and
//! tshark.
//!
//! Compared over every flow of `../shared/captures` in which both sides were captured: the verbs of the client, the
//! codes of the server, the keywords of its last EHLO reply. [`EXPLAINED`] lists each known difference with its reason;
//! a difference that is not listed fails, and so does a listed one that does not occur.
//!
//! Without the recordings or without tshark, the comparison is skipped with a message.

mod oracle {
    pub mod ours;
    pub mod smtp_proto;
    pub mod tshark;
}

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::{Path, PathBuf},
};

use oracle::{ours, smtp_proto, tshark};
use smtpwatch_core::FlowKey;

/// Represents a line whose first word is not a verb that the reader knows.
pub const UNKNOWN: &str = "?";

/// One reader's result for one flow.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Reading {
    /// Verbs in upper case, in order. A line that answers a SASL challenge is not a verb.
    pub verbs: Vec<String>,
    /// One code per reply.
    pub codes: Vec<u16>,
    /// Keywords of the last EHLO reply, in upper case.
    pub keywords: Vec<String>,
}

/// Results for one capture file.
pub type Readings = BTreeMap<FlowKey, Reading>;

/// A known difference, and which reader is correct.
struct Explained {
    file: &'static str,
    reader: &'static str,
    what: &'static str,
    why: &'static str,
}

/// The other readers, and the compared fields.
const SMTP_PROTO: &str = "smtp-proto";
const TSHARK: &str = "tshark";
const VERBS: &str = "verbs";
const CODES: &str = "codes";
const KEYWORDS: &str = "keywords";

const NO_SIZE: &str =
    "the size of a BDAT chunk is no number: the server refuses it, and what follows is commands to it and to us";
const NOISE: &str =
    "a client speaks TLS to a server that greets in clear: we read what that server reads, lines of noise";
const GAP: &str = "900 bytes of a chunk and what follows them are missing: we say so and read no further";
const PROXIED: &str =
    "a web proxy answers CONNECT before the banner: its lines are no replies of the mail server to us";
const NO_TLS: &str =
    "after the go-ahead the server says lines without a code instead of TLS: our transcript shows them";
const BAD_TAIL_TSHARK: &str = "`BDAT 5 X` is refused, and no chunk follows; it takes the whole next segment for one";
const CHUNK: &str = "it takes a BDAT line that comes with its chunk, or whose size is out of range, for part of a \
                     message, and some commands behind it too";
const PIPELINED: &str = "of several commands in one segment it shows some only, of those before a chunk none";
const ONE_SEGMENT: &str =
    "it tells the lines of all replies in one segment together, so that those of EHLO cannot be told";

#[rustfmt::skip] // one row, one line
const EXPLAINED: &[Explained] = &[
    Explained { file: "ntop+nDPI/smtps.pcapng", reader: SMTP_PROTO, what: VERBS, why: NOISE },
    Explained { file: "zeek+zeek/smtp-bdat-cmd-invalid.pcapng", reader: TSHARK, what: VERBS, why: NO_SIZE },
    Explained { file: "OISF+suricata-verify/protocol-change-failed-event__input.pcap", reader: SMTP_PROTO, what: CODES, why: NO_TLS },
    Explained { file: "OISF+suricata-verify/protocol-change-failed-event__input.pcap", reader: TSHARK, what: CODES, why: NO_TLS },
    Explained { file: "zeek+zeek/smtp-bdat-gap.pcap", reader: SMTP_PROTO, what: CODES, why: GAP },
    Explained { file: "zeek+zeek/smtp-bdat-gap.pcap", reader: TSHARK, what: CODES, why: GAP },
    Explained { file: "zeek+zeek/connect-with-smtp.pcap", reader: SMTP_PROTO, what: VERBS, why: PROXIED },
    Explained { file: "zeek+zeek/connect-with-smtp.pcap", reader: TSHARK, what: VERBS, why: PROXIED },
    Explained { file: "zeek+zeek/connect-with-smtp.pcap", reader: SMTP_PROTO, what: CODES, why: PROXIED },
    Explained { file: "zeek+zeek/connect-with-smtp.pcap", reader: TSHARK, what: CODES, why: PROXIED },
    Explained { file: "OISF+suricata-verify/smtp-bdat-bad-tail-next-mail__input.pcap", reader: TSHARK, what: VERBS, why: BAD_TAIL_TSHARK },
    Explained { file: "OISF+suricata-verify/smtp-bug-5989__input.pcap", reader: SMTP_PROTO, what: CODES, why: "they count 5,000 bytes behind the banner, never acknowledged and without an end, as a reply" },
    Explained { file: "OISF+suricata-verify/smtp-bug-5989__input.pcap", reader: TSHARK, what: VERBS, why: "it takes the server's stream for lost behind a segment that the client acknowledged in part" },
    Explained { file: "OISF+suricata-verify/smtp-bug-5989__input.pcap", reader: TSHARK, what: CODES, why: "it takes the server's stream for lost behind a segment that the client acknowledged in part" },
    Explained { file: "OISF+suricata-verify/smtp-bug-5989__input.pcap", reader: TSHARK, what: KEYWORDS, why: "it takes the server's stream for lost behind a segment that the client acknowledged in part" },
    Explained { file: "OISF+suricata-verify/smtp-bdat-last-next-mail__input.pcap", reader: TSHARK, what: VERBS, why: CHUNK },
    Explained { file: "OISF+suricata-verify/smtp-bdat-multichunk-next-mail__input.pcap", reader: TSHARK, what: VERBS, why: CHUNK },
    Explained { file: "zeek+zeek/smtp-bdat-cmd-chunk-size-overflow.pcap", reader: TSHARK, what: VERBS, why: CHUNK },
    Explained { file: "zeek+zeek/smtp-bdat-cmd-chunk-size-overflow2.pcap", reader: TSHARK, what: VERBS, why: CHUNK },
    Explained { file: "zeek+zeek/smtp-bdat-cmd-negative-chunk-size.pcap", reader: TSHARK, what: VERBS, why: CHUNK },
    Explained { file: "OISF+suricata-verify/smtp-ehlo-reset-after-rejected-data__input.pcap", reader: TSHARK, what: VERBS, why: "it takes what follows a refused DATA for a message (docs/threats.md FP-10)" },
    Explained { file: "OISF+suricata-verify/smtp-ehlo-reset-after-rejected-data__input.pcap", reader: TSHARK, what: KEYWORDS, why: "it takes what follows a refused DATA for a message (docs/threats.md FP-10)" },
    Explained { file: "OISF+suricata-verify/smtp-pipelining__input.pcap", reader: TSHARK, what: VERBS, why: PIPELINED },
    Explained { file: "OISF+suricata-verify/smtpsuricataflowbitsFN.pcap", reader: TSHARK, what: VERBS, why: PIPELINED },
    Explained { file: "zeek+zeek/smtp-bdat-pipeline-8bitmime.pcap", reader: TSHARK, what: VERBS, why: PIPELINED },
    Explained { file: "zeek+zeek/smtp-bdat-pipeline-8bitmime.pcap", reader: TSHARK, what: KEYWORDS, why: "as it shows no verb behind EHLO, a later reply of two lines stands for the EHLO reply" },
    Explained { file: "zeek+zeek/smtp-mail-transactions-invalid.pcap", reader: TSHARK, what: KEYWORDS, why: ONE_SEGMENT },
    Explained { file: "zeek+zeek/rfc3030-bdat-nonascii.pcap", reader: TSHARK, what: CODES, why: "it takes the two segments of one EHLO reply for two replies" },
    Explained { file: "zeek+zeek/rfc3030-bdat-nonascii.pcap", reader: TSHARK, what: KEYWORDS, why: "it takes the two segments of one EHLO reply for two replies" },
];

struct Capture {
    name: String,
    path: PathBuf,
    ports: BTreeSet<u16>,
}

#[test]
fn smtp_proto_reads_the_same() {
    let Some(captures) = captures() else { return };
    let theirs = |_: &Capture, flows: &ours::Flows| -> Readings {
        flows.iter().map(|(key, flow)| (*key, smtp_proto::read(&flow.stream))).collect()
    };
    compare(SMTP_PROTO, &captures, smtp_proto::as_far_as_it_tells, theirs);
}

#[test]
fn tshark_reads_the_same() {
    let Some(captures) = captures() else { return };
    if !tshark::is_there() {
        println!("SKIPPED: tshark is not installed (Debian's package tshark)");
        return;
    }
    let theirs = |capture: &Capture, _: &ours::Flows| tshark::read(&capture.path, &capture.ports);
    compare(TSHARK, &captures, tshark::as_far_as_it_tells, theirs);
}

fn captures() -> Option<Vec<Capture>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/captures");
    let Ok(index) = std::fs::read_to_string(directory.join("INDEX.tsv")) else {
        println!("SKIPPED: {} is not there", directory.join("INDEX.tsv").display());
        return None;
    };
    let capture = |line: &str| {
        let columns: Vec<_> = line.split('\t').collect();
        Capture { name: columns[0].to_owned(), path: directory.join(columns[0]), ports: ports(columns[6]) }
    };
    Some(index.lines().skip(1).filter(|line| !line.is_empty()).map(capture).collect())
}

/// Parses the ports from `#0 10.0.0.1:1>10.0.0.2:25 offered … ;; #1 …`: some recordings use ports other than those of
/// mail.
fn ports(truth: &str) -> BTreeSet<u16> {
    let ends = truth.split_whitespace().filter_map(|word| word.split_once('>'));
    ends.filter_map(|(_, server)| server.rsplit_once(':')?.1.parse().ok()).collect()
}

/// `as_far_as` reduces smtpwatch's reading to what the other reader can report.
fn compare(
    reader: &str,
    captures: &[Capture],
    as_far_as: impl Fn(&Reading) -> Reading,
    theirs: impl Fn(&Capture, &ours::Flows) -> Readings,
) {
    let (mut flows, mut agree, mut explained) = (0, 0, 0);
    let mut wrong = String::new();
    let mut unused: Vec<_> = EXPLAINED.iter().filter(|known| known.reader == reader).collect();
    for capture in captures {
        let ours = ours::read(&capture.path, &capture.ports);
        let theirs = theirs(capture, &ours);
        for (key, flow) in ours.iter().filter(|(_, flow)| flow.two_sided()) {
            flows += 1;
            let nothing = Reading::default();
            let differences = differences(&as_far_as(&flow.reading), theirs.get(key).unwrap_or(&nothing));
            if differences.is_empty() {
                agree += 1;
                continue;
            }
            let mut all_known = true;
            for (what, difference) in differences {
                let known = EXPLAINED.iter().find(|k| (k.file, k.reader, k.what) == (&capture.name, reader, what));
                match known {
                    Some(known) => {
                        println!("{}: {what} differ, {}", capture.name, known.why);
                        unused.retain(|other| (other.file, other.what) != (known.file, known.what));
                    }
                    None => {
                        all_known = false;
                        let _ = writeln!(wrong, "{} {}: {what}: {difference}", capture.name, key.client);
                    }
                }
            }
            explained += usize::from(all_known);
        }
    }
    println!("{reader}: {agree} of {flows} flows agree, {explained} explained");
    for known in unused {
        let _ = writeln!(wrong, "{}: no difference of {} any longer", known.file, known.what);
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(flows > 0);
}

fn differences(ours: &Reading, theirs: &Reading) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    if ours.verbs != theirs.verbs {
        found.push((VERBS, format!("ours {:?}, theirs {:?}", ours.verbs, theirs.verbs)));
    }
    if ours.codes != theirs.codes {
        found.push((CODES, format!("ours {:?}, theirs {:?}", ours.codes, theirs.codes)));
    }
    if ours.keywords != theirs.keywords {
        found.push((KEYWORDS, format!("ours {:?}, theirs {:?}", ours.keywords, theirs.keywords)));
    }
    found
}
