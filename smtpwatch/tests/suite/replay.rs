//! Replay of files through the library.

use smtpwatch_common::Encapsulation;
use smtpwatch_config::Config;
use smtpwatch_core::{
    Finding,
    engine::{SessionResult, SessionSummary},
    finding::{Kind, Outcome, StarttlsState},
    policy::history::History,
};
use smtpwatch_pipeline::replay::{Event, Replay};

use crate::traffic::{self, CLIENT, Packet, START_NS, wrap};

fn sessions(files: &[Vec<u8>]) -> (Vec<SessionSummary>, smtpwatch_pipeline::replay::Summary) {
    let directory = tempfile::tempdir().unwrap();
    let mut replay = Replay::new(&Config::default(), History::new(100));
    let mut sessions = Vec::new();
    for (index, bytes) in files.iter().enumerate() {
        let path = directory.path().join(index.to_string());
        std::fs::write(&path, bytes).unwrap();
        replay.file(&path, |event| sessions.extend(session(event))).unwrap();
    }
    let summary = replay.finish(|event| sessions.extend(session(event)));
    (sessions, summary)
}

/// The findings of one capture, in order.
fn findings(packets: &[Packet]) -> Vec<Finding> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("capture");
    std::fs::write(&path, traffic::pcap(packets, 1, false, false)).unwrap();
    let mut replay = Replay::new(&Config::default(), History::new(100));
    let mut found = Vec::new();
    let mut take = |event| found.extend(if let Event::Finding(finding) = event { Some(*finding) } else { None });
    replay.file(&path, &mut take).unwrap();
    replay.finish(&mut take);
    found
}

fn session(event: Event) -> Option<SessionSummary> {
    if let Event::Session(session, _) = event { Some(session) } else { None }
}

#[test]
fn a_whole_session_is_reported() {
    let mail = traffic::mail(CLIENT, START_NS, "250-STARTTLS\r\n250 8BITMIME\r\n");
    let (found, summary) = sessions(&[traffic::pcap(&mail, 1, false, false)]);
    let [session] = found.as_slice() else { panic!("one session: {found:?}") };
    assert_eq!((session.result, session.starttls), (SessionResult::Plaintext, StarttlsState::Offered));
    assert_eq!((session.messages, session.gaps, session.starttls_sent), (1, 0, false));
    assert_eq!((summary.files, summary.packets, summary.unread), (1, mail.len() as u64, 0));
    assert_eq!(summary.sessions, [0, 1, 0, 0]);
}

/// A connection that continues in the next file is one session: files form one timeline.
#[test]
fn a_session_continues_in_the_next_file() {
    let mut first = traffic::mail(CLIENT, START_NS, "250-STARTTLS\r\n250 8BITMIME\r\n");
    let second = first.split_off(9);
    let files = [traffic::pcap(&first, 1, false, false), traffic::pcapng(&second, &[("eth0", 101, 9)], true)];
    let (found, summary) = sessions(&files);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((found[0].messages, found[0].gaps, summary.files), (1, 0, 2));
}

/// The gate omits the message and reports its end: what follows is parsed.
#[test]
fn commands_after_a_message_are_read_and_the_message_is_not() {
    use traffic::Turn::{Client, Server};
    let before = [
        Server("220 mx1.example.net ESMTP\r\n"),
        Client("EHLO gw\r\n"),
        Server("250-mx1.example.net\r\n250 PIPELINING\r\n"),
        Client("MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n"),
        Server("250 ok\r\n250 ok\r\n354 go\r\n"),
    ];
    let auth = "AUTH PLAIN AGFsaWNlAGh1bnRlcjI=\r\n";
    let message = "Subject: AUTH PLAIN AGEAYg==\r\n\r\nAUTH PLAIN AGEAYg==\r\nSTARTTLS\r\n.\r\n";
    let together = format!("{message}{auth}");
    let again = format!("{message}MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n");
    let after = [Client("QUIT\r\n"), Server("221 Bye\r\n")];
    let kinds = |middle: &[traffic::Turn]| {
        let turns = [&before[..], middle, &after].concat();
        let found = findings(&traffic::session(CLIENT, "198.51.100.25:25", START_NS, &turns));
        for finding in &found {
            let json = serde_json::to_string(finding).unwrap();
            assert!(!json.contains("Subject") && !json.contains("AGEAYg") && !json.contains("hunter2"), "{json}");
            assert_eq!(finding.gaps, 0);
        }
        found.into_iter().map(|finding| (finding.kind, finding.rule.into_owned())).collect::<Vec<_>>()
    };
    let said = [Server("250 queued\r\n235 ok\r\n")];
    let plaintext = [(Kind::AuthPlaintext, "F1".to_owned())];
    assert_eq!(kinds(&[&[Client(&together)][..], &said].concat()), plaintext, "in one segment");
    assert_eq!(kinds(&[&[Client(message), Client(auth)][..], &said].concat()), plaintext, "in the next one");
    assert_eq!(kinds(&[Client(message), Server("250 queued\r\n"), Client(auth), Server("235 ok\r\n")]), plaintext);
    // A second message after the first one is treated as a message too.
    let more = [Client(&again), Server("250 queued\r\n250 ok\r\n250 ok\r\n354 go\r\n"), Client(message)];
    assert_eq!(kinds(&[&more[..], &[Server("250 queued\r\n")]].concat()), []);
}

/// EV-25: a client may use a watched port as its source port.
#[test]
fn the_syn_tells_who_the_client_is() {
    for (client, server) in [
        ("192.0.2.10:25", "198.51.100.25:25"),
        ("203.0.113.9:25", "198.51.100.25:25"),
        ("192.0.2.10:25", "198.51.100.25:587"),
        ("192.0.2.10:587", "198.51.100.25:587"),
        ("192.0.2.10:587", "198.51.100.25:25"),
    ] {
        use traffic::Turn::{Client, Server};
        let turns = [
            Server("220 mx1.example.net ESMTP\r\n"),
            Client("EHLO gw\r\n"),
            Server("250 mx1.example.net\r\n"),
            Client("AUTH PLAIN AGFsaWNlAGh1bnRlcjI=\r\n"),
            Server("235 ok\r\n"),
        ];
        let found = findings(&traffic::session(client, server, START_NS, &turns));
        assert!(
            found.iter().any(|finding| finding.rule == "F1" && finding.flow.server == server),
            "{client} {found:?}"
        );
    }
}

/// The session is the same whichever end captured it, and whether or not the capture has directions. Arriving packets
/// with this host's own address are not part of it.
#[test]
fn directions_of_a_capture_tell_what_is_forged() {
    let mail = traffic::mail(CLIENT, START_NS, "250-STARTTLS\r\n250 8BITMIME\r\n");
    for own_client in [true, false] {
        let mut packets = traffic::mail(CLIENT, START_NS, "250-STARTTLS\r\n250 8BITMIME\r\n");
        // The third line of this host's side, as RST: offset 13 of the TCP header holds the flags.
        let (at, ours) =
            packets.iter().enumerate().filter(|(_, packet)| traffic::leaves(&packet.ip) == own_client).nth(5).unwrap();
        let mut forged = Packet { at_ns: ours.at_ns - 1, ip: ours.ip.clone() };
        forged.ip[20 + 13] = 0x04;
        packets.insert(at, forged);
        let file = traffic::pcapng_flagged(&packets, &[("eth0", 101, 9)], false, |index, packet| {
            let leaves = index != at && traffic::leaves(&packet.ip) == own_client;
            Some(if leaves { 2 } else { 1 })
        });
        let (found, summary) = sessions(&[file]);
        let [session] = found.as_slice() else { panic!("one session: {found:?}") };
        assert_eq!((session.result, session.starttls), (SessionResult::Plaintext, StarttlsState::Offered));
        assert_eq!((session.messages, session.gaps, session.starttls_sent), (1, 0, false), "{own_client}");
        assert_eq!((summary.packets, summary.unread), (mail.len() as u64 + 1, 1), "the forged one");
    }
}

type Wrap = fn(&[u8]) -> Vec<u8>;

/// Each form: the encapsulation, the outer EtherType, and the outer packet around an inner one.
const ENCAPSULATIONS: [(Encapsulation, u16, Wrap); 4] = [
    (Encapsulation::Vxlan, 0x0800, wrap::vxlan),
    (Encapsulation::Gre, 0x0800, wrap::gre),
    (Encapsulation::Ipip, 0x0800, |ip| wrap::ipv4(4, ip)),
    (Encapsulation::Pppoe, 0x8864, wrap::pppoe),
];

/// The outer packet after the link header of this type.
fn linked(linktype: u32, ether_type: u16, outer: &[u8]) -> Vec<u8> {
    let mut header = traffic::link_header(linktype, true);
    match linktype {
        1 | 113 => {
            let at = header.len() - 2;
            header[at..].copy_from_slice(&ether_type.to_be_bytes());
        }
        276 => header[..2].copy_from_slice(&ether_type.to_be_bytes()),
        _ => {}
    }
    [&header, outer].concat()
}

/// Mail that is seen only within an encapsulation is counted: every packet but the SYN.
#[test]
fn ev29_mail_in_an_encapsulation_is_counted_and_not_judged() {
    let mail = traffic::mail(CLIENT, START_NS, "250-STARTTLS\r\n250 8BITMIME\r\n");
    let hidden = mail.len() as u64 - 1;
    let mut forms = 0;
    for (encapsulation, ether_type, wrapped) in ENCAPSULATIONS {
        for linktype in [1, 101, 113, 276] {
            if linktype == 101 && ether_type != 0x0800 {
                continue; // raw IP has no EtherType
            }
            let frames: Vec<_> =
                mail.iter().map(|packet| (packet.at_ns, linked(linktype, ether_type, &wrapped(&packet.ip)))).collect();
            let file = traffic::pcap_of_frames(&frames, (linktype, usize::MAX), false, false);
            let (found, summary) = sessions(&[file]);
            assert_eq!(found.len(), 0, "{found:?}");
            let expected = Encapsulation::ALL.map(|one| if one == encapsulation { hidden } else { 0 });
            assert_eq!(summary.encapsulated, expected, "{encapsulation:?}, link type {linktype}");
            assert_eq!((summary.unread, summary.cuts.dialogue, summary.findings), (0, 0, 0));
            forms += 1;
        }
    }
    assert_eq!(forms, 15);
}

/// A capture of all interfaces has the inner packets too: nothing is hidden.
#[test]
fn mail_that_is_seen_outside_the_encapsulation_too_is_not_counted() {
    let mail = traffic::mail(CLIENT, START_NS, "250-STARTTLS\r\n250 8BITMIME\r\n");
    for (_, ether_type, wrapped) in ENCAPSULATIONS {
        for outer_first in [true, false] {
            let mut frames = Vec::new();
            for packet in &mail {
                let inner = (packet.at_ns, wrap::ethernet(0x0800, &packet.ip));
                let outer = (packet.at_ns, wrap::ethernet(ether_type, &wrapped(&packet.ip)));
                frames.extend(if outer_first { [outer, inner] } else { [inner, outer] });
            }
            let (found, summary) = sessions(&[traffic::pcap_of_frames(&frames, (1, usize::MAX), false, false)]);
            let [session] = found.as_slice() else { panic!("one session: {found:?}") };
            assert_eq!((session.result, session.messages), (SessionResult::Plaintext, 1));
            assert_eq!(summary.encapsulated, [0; Encapsulation::ALL.len()], "outer first: {outer_first}");
        }
    }
}

/// Ten honest sessions in full, and a strip and a password whose packets the snap length has cut: whatever it leaves,
/// nothing is claimed over the hole.
#[test]
fn what_the_snap_length_cuts_is_counted_and_accuses_nobody() {
    const WHOLE: usize = 14 + 40;
    let server = "198.51.100.25:25";
    let honest = |session: u64| {
        let client = format!("192.0.2.10:{}", 40_000 + session);
        traffic::mail(&client, START_NS + session * 1_000_000_000, "250-8BITMIME\r\n250 STARTTLS\r\n")
    };
    let offered = "250-mx1.example.net\r\n250-8BITMIME\r\n250 STARTTLS\r\n";
    let stripped = "250-mx1.example.net\r\n250 8BITMIME\r\n";
    let history: Vec<Packet> = (0..10).flat_map(honest).collect();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("capture");
    let judged = |packets: &[Packet], snap: usize| {
        let mut replay = Replay::new(&Config::default(), History::new(100));
        let (mut kinds, mut results) = (Vec::new(), Vec::new());
        let frames = |packets: &[Packet]| -> Vec<_> {
            packets.iter().map(|packet| (packet.at_ns, wrap::ethernet(0x0800, &packet.ip))).collect()
        };
        for (packets, snap) in [(history.as_slice(), usize::MAX), (packets, snap)] {
            results.clear();
            std::fs::write(&path, traffic::pcap_of_frames(&frames(packets), (1, snap), false, false)).unwrap();
            let mut take = |event| match event {
                Event::Finding(finding) => kinds.push((finding.kind, finding.outcome)),
                Event::Session(session, _) => results.push(session.result),
                Event::History(..) | Event::HistoryForgotten(_) => {}
            };
            replay.file(&path, &mut take).unwrap();
        }
        let summary = replay.finish(|event| match event {
            Event::Finding(finding) => kinds.push((finding.kind, finding.outcome)),
            Event::Session(session, _) => results.push(session.result),
            Event::History(..) | Event::HistoryForgotten(_) => {}
        });
        (kinds, results, summary)
    };
    let start = START_NS + 3_600_000_000_000;
    let longest = WHOLE + 60;
    for ehlo in [offered, stripped] {
        let mail = traffic::session(CLIENT, server, start, &traffic::dialogue(ehlo));
        let (whole, results, summary) = judged(&mail, usize::MAX);
        assert_eq!(whole.iter().any(|(kind, _)| *kind == Kind::StarttlsStripped), ehlo == stripped, "{whole:?}");
        assert_eq!(
            (results.as_slice(), summary.cuts.dialogue, summary.cuts.headers),
            (&[SessionResult::Plaintext][..], 0, 0)
        );
        // The message is skipped as in live operation, whether it is whole or not.
        let is_message = |packet: &Packet| packet.ip[40..].starts_with(b"Subject");
        let lengths: Vec<usize> =
            mail.iter().filter(|packet| !is_message(packet)).map(|packet| 14 + packet.ip.len()).collect();
        // The headers of every packet are whole, but not its payload.
        for snap in WHOLE..longest {
            let dialogue = lengths.iter().filter(|length| **length > snap).count() as u64;
            let (kinds, results, summary) = judged(&mail, snap);
            // The engine mutes a session that it cannot follow.
            assert_eq!(summary.cuts.dialogue > 0, dialogue > 0, "snap length {snap}");
            assert!(summary.cuts.dialogue <= dialogue, "snap length {snap}: {} of {dialogue}", summary.cuts.dialogue);
            let ehlo_is_cut = snap < WHOLE + ehlo.len();
            if ehlo_is_cut {
                assert_eq!(results, [SessionResult::Unknown], "snap length {snap}");
                assert_eq!(kinds, [], "snap length {snap}");
            } else {
                // The reply is whole: what it shows is before the hole. That the message was accepted is not known.
                let lost = if results == [SessionResult::Unknown] { Outcome::Envelope } else { Outcome::Content };
                let expected: &[_] = if ehlo == offered { &[] } else { &[(Kind::StarttlsStripped, lost)] };
                assert_eq!(kinds, expected, "snap length {snap}: {results:?}");
            }
        }
        // The headers themselves are cut: no session, and the packets are counted.
        for snap in [20, 34, WHOLE - 1] {
            let (kinds, results, summary) = judged(&mail, snap);
            assert_eq!((kinds.len(), results.len(), summary.cuts.dialogue), (0, 0, 0), "{snap}");
            assert_eq!(summary.cuts.headers, mail.len() as u64, "{snap}");
        }
    }
    let password = traffic::password();
    let longest = password.iter().map(|packet| 14 + packet.ip.len()).max().unwrap();
    let (kinds, ..) = judged(&password, longest);
    assert!(kinds.iter().any(|(kind, _)| *kind == Kind::AuthPlaintext), "{kinds:?}");
    for snap in WHOLE..longest {
        let (kinds, results, summary) = judged(&password, snap);
        assert!(summary.cuts.dialogue > 0, "{snap}");
        assert_eq!(results, [SessionResult::Unknown], "{snap}");
        assert!(kinds.iter().all(|(kind, _)| *kind == Kind::AuthPlaintext), "{snap}: {kinds:?}");
    }
}
